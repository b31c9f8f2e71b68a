//! One client's side of the conversation: carries out its operations.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use rand::RngExt;
use tracing::{debug, warn};

use super::auth::ClientOptions;
use super::interest::Group;
use super::outbox::Appended;
use super::parser::{Op, Publish, Violation};
use super::peer::{Delivered, Outgoing, Peer, Subscription};
use super::server::Shared;
use super::subject;

/// From this size on a message is copied once and shared by its receivers.
const SHARE_BYTES: usize = 8 << 10;

/// How many subscriptions are taken out of the index under one lock when a client leaves.
const REMOVE_AT_ONCE: usize = 256;

/// The state of a connection.
#[derive(Debug)]
pub(super) struct Session {
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    options: ClientOptions,
    /// It has shown its credentials, or needs none.
    authorized: bool,
    /// Pings without an answer.
    pub(super) pings_out: u32,
    aftermath: Aftermath,
}

/// What is left to do after delivering, outside of all locks.
#[derive(Debug, Default)]
struct Aftermath {
    /// Writers to wake.
    wake: Vec<Arc<Peer>>,
    /// Subscriptions that have got their last message.
    last: Vec<Arc<Subscription>>,
    /// Somebody for whom too much waits.
    congested: Option<Arc<Peer>>,
}

impl Session {
    pub(super) fn new(shared: Arc<Shared>, peer: Arc<Peer>) -> Self {
        let authorized = !shared.config.auth.is_required();
        Self { shared, peer, options: ClientOptions::default(), authorized, pings_out: 0, aftermath: Aftermath::default() }
    }

    pub(super) fn is_authorized(&self) -> bool {
        self.authorized
    }

    /// Whether the client understands an INFO after the first.
    pub(super) fn takes_late_info(&self) -> bool {
        self.options.protocol >= 1
    }

    /// Carries out one operation.
    pub(super) fn handle(&mut self, op: Op<'_>) -> Result<(), Violation> {
        if !self.authorized && !matches!(op, Op::Connect { .. }) {
            return Err(Violation::Authorization);
        }
        match op {
            Op::Connect { options } => self.connect(options)?,
            Op::Ping => self.say(b"PONG\r\n"),
            Op::Pong => self.pings_out = 0,
            Op::Publish(message) => self.publish(&message)?,
            Op::Subscribe { subject, queue, sid } => self.subscribe(subject, queue, sid),
            Op::Unsubscribe { sid, max } => self.unsubscribe(sid, max),
        }
        Ok(())
    }

    /// Queues bytes for this client.
    pub(super) fn say(&mut self, bytes: &[u8]) {
        let appended = self.peer.outbox.append(None, |buffer| buffer.extend_from_slice(bytes));
        self.aftermath.note(&self.peer, appended);
    }

    /// Tells this client of an error.
    pub(super) fn say_error(&mut self, error: &str) {
        self.say(format!("-ERR '{error}'\r\n").as_bytes());
    }

    /// Sets everybody to work to whom something was delivered; to be called before any wait. Returns a client that cannot keep up.
    pub(super) fn finish_batch(&mut self) -> Option<Arc<Peer>> {
        for peer in self.aftermath.wake.drain(..) {
            peer.outbox.wake();
        }
        self.aftermath.congested.take()
    }

    /// Takes all subscriptions out of the index.
    pub(super) fn leave(&mut self) {
        for some in self.peer.take_all().chunks(REMOVE_AT_ONCE) {
            let mut interest = self.shared.interest_mut();
            for subscription in some {
                interest.remove(subscription);
            }
        }
    }

    fn connect(&mut self, json: &[u8]) -> Result<(), Violation> {
        let options = ClientOptions::parse(json).ok_or(Violation::Protocol)?;
        if !self.shared.config.auth.admits(&options) {
            warn!(client = self.peer.id, name = options.name, "client with wrong credentials refused");
            return Err(Violation::Authorization);
        }
        self.authorized = true;
        if options.no_responders && !options.headers {
            return Err(Violation::NoRespondersWithoutHeaders);
        }
        self.peer.headers.store(options.headers, Ordering::Relaxed);
        debug!(client = self.peer.id, name = options.name, "client connected");
        self.options = options;
        self.acknowledge();
        Ok(())
    }

    fn acknowledge(&mut self) {
        if self.options.verbose {
            self.say(b"+OK\r\n");
        }
    }

    fn subscribe(&mut self, subject: &[u8], queue: Option<&[u8]>, sid: &[u8]) {
        // A second subscription under a number in use is no subscription, valid or not, as in nats-server.
        if self.peer.find(sid).is_none() {
            if !subject::is_valid_subscription(subject) {
                return self.say_error("Invalid Subject");
            }
            let subscription = Arc::new(Subscription::new(subject, queue, sid, Arc::clone(&self.peer)));
            if !self.peer.add(&subscription, self.shared.config.max_subscriptions) {
                return self.say_error("maximum subscriptions exceeded");
            }
            self.shared.interest_mut().insert(subscription);
        }
        self.acknowledge();
    }

    fn unsubscribe(&mut self, sid: &[u8], max: Option<u64>) {
        let found = self.peer.find(sid);
        if let Some(subscription) = found
            && max.is_none_or(|max| subscription.end_after(max))
        {
            self.shared.remove(&subscription);
        }
        self.acknowledge();
    }

    fn publish(&mut self, message: &Publish<'_>) -> Result<(), Violation> {
        if message.headers.is_some() && !self.options.headers {
            return Err(Violation::HeadersNotNegotiated);
        }
        if self.options.pedantic && (!subject::is_well_formed(message.subject) || subject::has_wildcard(message.subject)) {
            self.say_error("Invalid Publish Subject");
        }
        self.acknowledge();
        let delivered = self.route(message);
        for subscription in std::mem::take(&mut self.aftermath.last) {
            self.shared.remove(&subscription);
        }
        if !delivered
            && self.options.no_responders
            && let Some(reply) = message.reply
        {
            self.say_no_responders(reply);
        }
        Ok(())
    }

    /// Delivers to every plain subscription and to one member of every queue group. Says whether anybody got the message.
    fn route(&mut self, message: &Publish<'_>) -> bool {
        let shared = (message.body.len() >= SHARE_BYTES).then(|| with_line_end(message.body));
        let Publish { subject, reply, headers, body } = *message;
        let outgoing = Outgoing { subject, reply, headers, body, shared: shared.as_ref() };
        let (sender, echo, aftermath) = (self.peer.id, self.options.echo, &mut self.aftermath);
        let mut deliver = |subscription: &Arc<Subscription>| {
            (echo || subscription.peer().id != sender) && aftermath.record(subscription, subscription.deliver(&outgoing))
        };
        let mut delivered = false;
        let mut groups: Vec<&Group<Subscription>> = Vec::new();
        let interest = self.shared.interest();
        interest.visit(subject, &mut |receivers| {
            for subscription in &receivers.plain {
                delivered |= deliver(subscription);
            }
            groups.extend(&receivers.groups);
        });
        for (position, group) in groups.iter().enumerate() {
            // A group may be there once for every matching subject; it is one group all the same.
            if groups[..position].iter().any(|earlier| earlier.name == group.name) {
                continue;
            }
            let members = || groups[position..].iter().filter(|other| other.name == group.name).flat_map(|same| &same.members);
            let count = members().count();
            let first = rand::rng().random_range(0..count.max(1));
            delivered |= members().cycle().skip(first).take(count).any(&mut deliver);
        }
        delivered
    }

    /// Answers a request that nobody listens for, on the subscription of this client that waits for the answer. One in a
    /// group does not count, as in nats-server.
    fn say_no_responders(&mut self, reply: &[u8]) {
        let mut waiting = None;
        let interest = self.shared.interest();
        interest.visit(reply, &mut |receivers| {
            waiting = waiting.take().or_else(|| receivers.plain.iter().find(|other| other.peer().id == self.peer.id).cloned());
        });
        drop(interest);
        if let Some(subscription) = waiting {
            let line = [b"HMSG ", reply, b" ", subscription.sid(), b" 16 16\r\nNATS/1.0 503\r\n\r\n\r\n"].concat();
            self.say(&line);
        }
    }
}

impl Aftermath {
    /// Takes note of a delivery; says whether the message is on its way.
    fn record(&mut self, subscription: &Arc<Subscription>, delivered: Delivered) -> bool {
        if delivered.last {
            self.last.push(Arc::clone(subscription));
        }
        self.note(subscription.peer(), delivered.appended);
        delivered.appended != Appended::Refused
    }

    fn note(&mut self, peer: &Arc<Peer>, appended: Appended) {
        match appended {
            Appended::First => self.wake.push(Arc::clone(peer)),
            Appended::Congested if self.congested.is_none() => self.congested = Some(Arc::clone(peer)),
            Appended::More | Appended::Congested | Appended::Refused => {}
        }
    }
}

fn with_line_end(body: &[u8]) -> Bytes {
    [body, b"\r\n"].concat().into()
}
