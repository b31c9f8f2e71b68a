//! The endpoints of one route, and which of them the next request goes to.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::{Balancing, Endpoint, Lease, Pick, Wish};
use crate::Mono;

#[derive(Debug)]
pub(super) struct Pool<A> {
    pub(super) members: Vec<Member<A>>,
    cursor: AtomicUsize,
    /// Since when pruning has left nothing. Unregistering leaves no pool at all.
    pub(super) empty_since: Option<Mono>,
}

#[derive(Debug)]
pub(super) struct Member<A> {
    /// A copy of the endpoint's, so that a scan stays within one allocation.
    pub(super) address: SocketAddr,
    pub(super) endpoint: Arc<Endpoint<A>>,
    pub(super) refreshed: Mono,
    pub(super) stale_after: Duration,
}

impl<A> Default for Pool<A> {
    fn default() -> Self {
        Self { members: Vec::new(), cursor: AtomicUsize::new(0), empty_since: None }
    }
}

impl<A> Pool<A> {
    pub(super) fn member_mut(&mut self, address: SocketAddr) -> Option<&mut Member<A>> {
        self.members.iter_mut().find(|member| member.address == address)
    }

    pub(super) fn remove(&mut self, address: SocketAddr) -> bool {
        let before = self.members.len();
        self.members.retain(|member| member.address != address);
        self.members.len() < before
    }

    pub(super) fn pick(&self, now: Mono, wish: Wish<'_>, tried: &[SocketAddr], balancing: Balancing, limit: usize) -> Pick<A> {
        if self.members.is_empty() {
            return Pick::NoEndpoints;
        }
        let wished = match wish {
            Wish::Any => None,
            Wish::Sticky(id) => self.members.iter().find(|member| member.endpoint.info.instance_id.as_deref() == Some(id)),
            Wish::Instance { app, index } => match self.members.iter().find(|member| is_instance(&member.endpoint, app, index)) {
                Some(member) if tried.contains(&member.address) => return Pick::Exhausted,
                Some(member) => return Lease::take(&member.endpoint, limit).map_or(Pick::Overloaded, Pick::Endpoint),
                None => return Pick::UnknownInstance,
            },
        };
        if let Some(member) = wished
            && !tried.contains(&member.address)
            && let Some(lease) = Lease::take(&member.endpoint, limit)
        {
            return Pick::Endpoint(lease);
        }
        self.balance(now, tried, balancing, limit)
    }

    fn balance(&self, now: Mono, tried: &[SocketAddr], balancing: Balancing, limit: usize) -> Pick<A> {
        let start = self.cursor.fetch_add(1, Ordering::Relaxed);
        // When everything has failed lately, a failure no longer tells the endpoints apart.
        let healthy = self.choose(start, balancing, limit, |m| !tried.contains(&m.address) && !m.endpoint.is_failed(now));
        let chosen = healthy.or_else(|| self.choose(start, balancing, limit, |m| !tried.contains(&m.address)));
        match chosen {
            Some(lease) => Pick::Endpoint(lease),
            None if self.members.iter().all(|member| tried.contains(&member.address)) => Pick::Exhausted,
            None => Pick::Overloaded,
        }
    }

    fn choose(&self, start: usize, balancing: Balancing, limit: usize, fits: impl Fn(&Member<A>) -> bool) -> Option<Lease<A>> {
        let (after, before) = {
            let (before, after) = self.members.split_at(start % self.members.len());
            (after, before)
        };
        let mut in_turn = after.iter().chain(before).filter(|member| fits(member));
        match balancing {
            Balancing::RoundRobin => in_turn.find_map(|member| Lease::take(&member.endpoint, limit)),
            // The first of the least: the turn decides between equals.
            Balancing::LeastConnections => {
                let least = in_turn.min_by_key(|member| member.endpoint.in_flight())?;
                Lease::take(&least.endpoint, limit)
            }
        }
    }
}

fn is_instance<A>(endpoint: &Endpoint<A>, app: &str, index: &str) -> bool {
    endpoint.info.app.as_ref().is_some_and(|id| id.as_str() == app) && endpoint.info.index.as_deref() == Some(index)
}
