//! A connected client as the others see it: somebody to deliver to.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::interest::Interested;
use super::outbox::{Appended, Outbox};

/// A client.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) id: u64,
    pub(super) outbox: Outbox,
    /// It can be sent headers.
    pub(super) headers: AtomicBool,
    /// By subscription id. Others take out those that have run out.
    subscriptions: Mutex<HashMap<Box<[u8]>, Arc<Subscription>>>,
}

/// What a client wants to get.
#[derive(Debug)]
pub(super) struct Subscription {
    subject: Box<[u8]>,
    queue: Option<Box<[u8]>>,
    sid: Box<[u8]>,
    peer: Arc<Peer>,
    delivered: AtomicU64,
    /// It ends with this many deliveries; 0: it does not.
    max: AtomicU64,
}

/// A message on its way out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outgoing<'a> {
    pub(super) subject: &'a [u8],
    pub(super) reply: Option<&'a [u8]>,
    /// How much of `body` is headers.
    pub(super) headers: Option<usize>,
    pub(super) body: &'a [u8],
    /// The body with its line end, to be queued without copying it for every receiver; only where that pays.
    pub(super) shared: Option<&'a Bytes>,
}

/// What became of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Delivered {
    pub(super) appended: Appended,
    /// This was the last message that the subscription was to get.
    pub(super) last: bool,
}

impl Peer {
    pub(super) fn new(id: u64, max_pending: usize) -> Self {
        Self { id, outbox: Outbox::new(max_pending), headers: AtomicBool::new(false), subscriptions: Mutex::default() }
    }

    /// Adds a subscription; says whether there was room for it beside `max` others.
    pub(super) fn add(&self, subscription: &Arc<Subscription>, max: usize) -> bool {
        let mut subscriptions = self.subscriptions();
        let room = subscriptions.len() < max;
        if room {
            subscriptions.insert(subscription.sid.clone(), Arc::clone(subscription));
        }
        room
    }

    /// The subscription with a number.
    pub(super) fn find(&self, sid: &[u8]) -> Option<Arc<Subscription>> {
        self.subscriptions().get(sid).cloned()
    }

    /// Takes out a subscription, unless another has got its number since.
    pub(super) fn take(&self, subscription: &Arc<Subscription>) {
        let mut subscriptions = self.subscriptions();
        if subscriptions.get(&subscription.sid).is_some_and(|found| Arc::ptr_eq(found, subscription)) {
            subscriptions.remove(&subscription.sid);
        }
    }

    /// Takes out all subscriptions.
    pub(super) fn take_all(&self) -> Vec<Arc<Subscription>> {
        self.subscriptions().drain().map(|(_, subscription)| subscription).collect()
    }

    fn subscriptions(&self) -> MutexGuard<'_, HashMap<Box<[u8]>, Arc<Subscription>>> {
        self.subscriptions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Subscription {
    pub(super) fn new(subject: &[u8], queue: Option<&[u8]>, sid: &[u8], peer: Arc<Peer>) -> Self {
        let (delivered, max) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { subject: subject.into(), queue: queue.map(Box::from), sid: sid.into(), peer, delivered, max }
    }

    pub(super) fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }

    pub(super) fn sid(&self) -> &[u8] {
        &self.sid
    }

    /// Lets it end with `max` deliveries. Says whether it has had them already.
    pub(super) fn end_after(&self, max: u64) -> bool {
        self.max.store(max, Ordering::Relaxed);
        self.delivered.load(Ordering::Relaxed) >= max
    }

    /// Queues a message for the client. Never waits.
    pub(super) fn deliver(&self, message: &Outgoing<'_>) -> Delivered {
        let count = self.delivered.fetch_add(1, Ordering::Relaxed) + 1;
        let max = self.max.load(Ordering::Relaxed);
        if max != 0 && count > max {
            return Delivered { appended: Appended::Refused, last: false };
        }
        let appended = match message.headers {
            Some(headers) if !self.peer.headers.load(Ordering::Relaxed) => {
                self.append(&Outgoing { headers: None, body: message.body.get(headers..).unwrap_or_default(), shared: None, ..*message })
            }
            _ => self.append(message),
        };
        Delivered { appended, last: max != 0 && count == max }
    }

    fn append(&self, message: &Outgoing<'_>) -> Appended {
        let line = |buffer: &mut Vec<u8>| {
            buffer.extend_from_slice(if message.headers.is_some() { b"HMSG " } else { b"MSG " });
            for word in [Some(message.subject), Some(&*self.sid), message.reply].into_iter().flatten() {
                buffer.extend_from_slice(word);
                buffer.push(b' ');
            }
            if let Some(headers) = message.headers {
                push_decimal(buffer, headers);
                buffer.push(b' ');
            }
            push_decimal(buffer, message.body.len());
            buffer.extend_from_slice(b"\r\n");
        };
        match message.shared {
            Some(shared) => self.peer.outbox.append(Some(shared), line),
            None => self.peer.outbox.append(None, |buffer| {
                line(buffer);
                buffer.extend_from_slice(message.body);
                buffer.extend_from_slice(b"\r\n");
            }),
        }
    }
}

impl Interested for Subscription {
    fn subject(&self) -> &[u8] {
        &self.subject
    }

    fn queue(&self) -> Option<&[u8]> {
        self.queue.as_deref()
    }
}

fn push_decimal(buffer: &mut Vec<u8>, mut number: usize) {
    let mut digits = [0; 20];
    let mut start = digits.len();
    loop {
        start -= 1;
        // A remainder by ten fits.
        digits[start] = b'0' + u8::try_from(number % 10).unwrap_or(0);
        number /= 10;
        if number == 0 {
            break;
        }
    }
    buffer.extend_from_slice(&digits[start..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals() {
        for number in [0, 7, 10, 99, 100, 1_048_576, usize::MAX] {
            let mut buffer = Vec::new();
            push_decimal(&mut buffer, number);
            assert_eq!(buffer, number.to_string().into_bytes());
        }
    }
}
