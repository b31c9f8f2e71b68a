//! Replies that found no bus. Whoever waits for one hears it once or never, so they wait for a bus, too.

use std::collections::VecDeque;
use std::mem;
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use super::Outgoing;

/// Bytes of all that is held; what would be more is dropped. A staging has two replies, mostly of a few hundred bytes.
const MAX_BYTES: usize = 16 << 20;

/// Pause between two looks whether there is a bus. Replies are sent when two looks in a row have found one: who waits for them has
/// lost the bus, too, and takes a moment to come back.
const LOOK: Duration = Duration::from_secs(3);

/// Replies in their order.
#[derive(Debug)]
pub(super) struct Held {
    replies: VecDeque<Outgoing>,
    bytes: usize,
    next_look: Instant,
    was_up: bool,
}

impl Held {
    pub(super) fn new() -> Self {
        Self { replies: VecDeque::new(), bytes: 0, next_look: Instant::now(), was_up: false }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.replies.is_empty()
    }

    /// When to call [`Held::look`], as long as there is something.
    pub(super) fn next_look(&self) -> Instant {
        self.next_look
    }

    pub(super) fn push(&mut self, reply: Outgoing) {
        let bytes = reply.subject.len() + reply.payload.len();
        if self.bytes + bytes > MAX_BYTES {
            warn!(subject = reply.subject, "reply dropped, too many wait for the bus");
            return;
        }
        if self.is_empty() {
            (self.next_look, self.was_up) = (Instant::now() + LOOK, false);
        }
        self.bytes += bytes;
        self.replies.push_back(reply);
    }

    /// What is to be sent now; what finds no bus again is to be pushed again.
    pub(super) fn look(&mut self, is_up: bool) -> VecDeque<Outgoing> {
        self.next_look = Instant::now() + LOOK;
        let settled = mem::replace(&mut self.was_up, is_up) && is_up;
        if settled { self.take() } else { VecDeque::new() }
    }

    /// Everything.
    pub(super) fn take(&mut self) -> VecDeque<Outgoing> {
        self.bytes = 0;
        mem::take(&mut self.replies)
    }
}
