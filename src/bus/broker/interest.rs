//! Who wants a message: all subscriptions, indexed by subject.
//!
//! Most subscriptions have no wildcard and are found by one look into a map. The others are in a trie of tokens. The index knows nothing
//! of connections: it holds anything that has a subject and perhaps a queue group.

use std::collections::HashMap;
use std::sync::Arc;

use super::subject;

/// What the index needs to know of a subscription.
pub(super) trait Interested {
    /// What it wants, possibly with wildcards. Never changes.
    fn subject(&self) -> &[u8];
    /// The group of which only one member gets a message. Never changes.
    fn queue(&self) -> Option<&[u8]>;
}

/// All subscriptions.
#[derive(Debug)]
pub(super) struct Interest<S> {
    literals: HashMap<Box<[u8]>, Receivers<S>>,
    wildcards: Level<S>,
}

/// The subscriptions of one subject.
#[derive(Debug)]
pub(super) struct Receivers<S> {
    /// Each gets every message.
    pub(super) plain: Vec<Arc<S>>,
    /// One member of each gets a message.
    pub(super) groups: Vec<Group<S>>,
}

/// The members of a queue group under one subject. A group may have members under others, too.
#[derive(Debug)]
pub(super) struct Group<S> {
    pub(super) name: Box<[u8]>,
    pub(super) members: Vec<Arc<S>>,
}

/// What can follow a prefix of tokens.
#[derive(Debug)]
struct Level<S> {
    tokens: HashMap<Box<[u8]>, Branch<S>>,
    /// `*`
    any: Option<Box<Branch<S>>>,
    /// `>`
    rest: Receivers<S>,
}

/// What ends after a token, and what goes on.
#[derive(Debug)]
struct Branch<S> {
    here: Receivers<S>,
    below: Level<S>,
}

impl<S: Interested> Interest<S> {
    /// Adds a subscription whose subject is valid.
    pub(super) fn insert(&mut self, subscription: Arc<S>) {
        if subject::has_wildcard(subscription.subject()) {
            let tokens: Vec<Box<[u8]>> = subject::tokens(subscription.subject()).map(Box::from).collect();
            self.wildcards.insert(&tokens, subscription);
        } else {
            let receivers = self.literals.entry(subscription.subject().into()).or_default();
            receivers.insert(subscription);
        }
    }

    /// Takes a subscription out; does nothing if it is not there.
    pub(super) fn remove(&mut self, subscription: &Arc<S>) {
        let subject = subscription.subject();
        if subject::has_wildcard(subject) {
            let tokens: Vec<&[u8]> = subject::tokens(subject).collect();
            self.wildcards.remove(&tokens, subscription);
        } else if let Some(receivers) = self.literals.get_mut(subject) {
            receivers.remove(subscription);
            if receivers.is_empty() {
                self.literals.remove(subject);
            }
        }
    }

    /// Shows everyone who wants a message to `subject`. Wildcards in it mean nothing; with an empty token it reaches nobody.
    pub(super) fn visit<'a>(&'a self, subject: &[u8], visitor: &mut impl FnMut(&'a Receivers<S>)) {
        if let Some(receivers) = self.literals.get(subject) {
            visitor(receivers);
        }
        if !self.wildcards.is_empty() && subject::is_well_formed(subject) {
            self.wildcards.visit(subject, visitor);
        }
    }

    /// Whether nobody is subscribed to anything.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.literals.is_empty() && self.wildcards.is_empty()
    }
}

impl<S: Interested> Level<S> {
    fn insert(&mut self, tokens: &[Box<[u8]>], subscription: Arc<S>) {
        let Some((token, after)) = tokens.split_first() else { return };
        let branch = match &**token {
            b">" => return self.rest.insert(subscription),
            b"*" => self.any.get_or_insert_default(),
            _ => self.tokens.entry(token.clone()).or_default(),
        };
        if after.is_empty() { branch.here.insert(subscription) } else { branch.below.insert(after, subscription) }
    }

    fn remove(&mut self, tokens: &[&[u8]], subscription: &Arc<S>) {
        match tokens.split_first() {
            None => {}
            Some((&b">", _)) => self.rest.remove(subscription),
            Some((&b"*", after)) => {
                if let Some(branch) = &mut self.any
                    && branch.remove(after, subscription)
                {
                    self.any = None;
                }
            }
            Some((token, after)) => {
                if let Some(branch) = self.tokens.get_mut(*token)
                    && branch.remove(after, subscription)
                {
                    self.tokens.remove(*token);
                }
            }
        }
    }

    /// `remaining` holds at least one token.
    fn visit<'a>(&'a self, remaining: &[u8], visitor: &mut impl FnMut(&'a Receivers<S>)) {
        if !self.rest.is_empty() {
            visitor(&self.rest);
        }
        let (token, after) = match memchr::memchr(b'.', remaining) {
            Some(dot) => (&remaining[..dot], Some(&remaining[dot + 1..])),
            None => (remaining, None),
        };
        let named = if self.tokens.is_empty() { None } else { self.tokens.get(token) };
        for branch in [named, self.any.as_deref()].into_iter().flatten() {
            match after {
                Some(after) => branch.below.visit(after, visitor),
                None if branch.here.is_empty() => {}
                None => visitor(&branch.here),
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.tokens.is_empty() && self.any.is_none() && self.rest.is_empty()
    }
}

impl<S: Interested> Branch<S> {
    /// Says whether nothing is left.
    fn remove(&mut self, after: &[&[u8]], subscription: &Arc<S>) -> bool {
        if after.is_empty() {
            self.here.remove(subscription);
        } else {
            self.below.remove(after, subscription);
        }
        self.here.is_empty() && self.below.is_empty()
    }
}

impl<S: Interested> Receivers<S> {
    fn insert(&mut self, subscription: Arc<S>) {
        let Some(queue) = subscription.queue() else { return self.plain.push(subscription) };
        match self.groups.iter_mut().find(|group| *group.name == *queue) {
            Some(group) => group.members.push(subscription),
            None => self.groups.push(Group { name: queue.into(), members: vec![subscription] }),
        }
    }

    fn remove(&mut self, subscription: &Arc<S>) {
        let Some(queue) = subscription.queue() else { return take_out(&mut self.plain, subscription) };
        if let Some(group) = self.groups.iter_mut().find(|group| *group.name == *queue) {
            take_out(&mut group.members, subscription);
        }
        self.groups.retain(|group| !group.members.is_empty());
    }
}

impl<S> Receivers<S> {
    fn is_empty(&self) -> bool {
        self.plain.is_empty() && self.groups.is_empty()
    }
}

fn take_out<S>(subscriptions: &mut Vec<Arc<S>>, subscription: &Arc<S>) {
    if let Some(position) = subscriptions.iter().position(|other| Arc::ptr_eq(other, subscription)) {
        subscriptions.swap_remove(position);
    }
}

impl<S> Default for Interest<S> {
    fn default() -> Self {
        Self { literals: HashMap::new(), wildcards: Level::default() }
    }
}

impl<S> Default for Level<S> {
    fn default() -> Self {
        Self { tokens: HashMap::new(), any: None, rest: Receivers::default() }
    }
}

impl<S> Default for Branch<S> {
    fn default() -> Self {
        Self { here: Receivers::default(), below: Level::default() }
    }
}

impl<S> Default for Receivers<S> {
    fn default() -> Self {
        Self { plain: Vec::new(), groups: Vec::new() }
    }
}

#[cfg(test)]
mod tests;
