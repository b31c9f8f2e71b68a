//! Messages in: subscriptions, drained by a task of their own.
//!
//! async-nats drops messages without a word once a subscriber's queue is full. So nobody's code stands between that queue and
//! the socket: a task moves messages into a queue whose overflow is counted, and reported once per burst.

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;

use async_nats::StatusCode;
use bytes::Bytes;
use futures::{FutureExt, Stream, StreamExt};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, coop};
use tracing::{info, warn};

use crate::Bus;
use crate::client::Traffic;

/// How many messages wait for a subscription's owner. The newest are dropped when it is full.
pub const SUBSCRIPTION_QUEUE: usize = 8192;

/// How many bytes of payload wait for a subscription's owner. The newest messages are dropped when it is full.
pub const SUBSCRIPTION_QUEUE_BYTES: usize = 64 << 20;

/// A message from the bus. `Debug` does not print the payload, which may hold credentials.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    /// Where it was published.
    pub subject: String,
    /// Where an answer is expected.
    pub reply_to: Option<String>,
    /// The bytes, whatever they are.
    pub payload: Bytes,
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("subject", &self.subject)
            .field("reply_to", &self.reply_to)
            .field("bytes", &self.payload.len())
            .finish()
    }
}

/// A subject to subscribe to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subscribe<'a> {
    /// The subject, maybe with wildcards.
    pub subject: &'a str,
    /// Each message goes to one member of this group only.
    pub group: Option<&'a str>,
}

/// What can arrive on an inbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Somebody answered.
    Message(Message),
    /// The server says that nobody listens where the request went.
    NoResponders,
}

/// A live subscription to one subject or several. It outlives reconnects and ends when it is dropped.
#[derive(Debug)]
pub struct Subscription {
    replies: mpsc::Receiver<Reply>,
    waiting_bytes: Arc<AtomicUsize>,
    pump: JoinHandle<()>,
    /// Keeps the connection.
    _bus: Bus,
}

impl Subscription {
    /// Of one subject or several, in the order of their precedence.
    pub(crate) fn start(subscribers: Vec<async_nats::Subscriber>, bus: Bus, traffic: Arc<Traffic>) -> Self {
        let (sender, replies) = mpsc::channel(SUBSCRIPTION_QUEUE);
        let waiting_bytes = Arc::new(AtomicUsize::new(0));
        let queue = Queue { sender, waiting_bytes: Arc::clone(&waiting_bytes), traffic, burst: None };
        Self { replies, waiting_bytes, pump: tokio::spawn(pump(subscribers, queue)), _bus: bus }
    }

    /// The next message; `None` once the client is closed. Cancel safe.
    pub async fn next(&mut self) -> Option<Message> {
        loop {
            if let Reply::Message(message) = self.next_reply().await? {
                return Some(message);
            }
        }
    }

    /// The next message, or the server's word that nobody listens: for an inbox that was given with a request. Cancel safe.
    pub async fn next_reply(&mut self) -> Option<Reply> {
        let reply = self.replies.recv().await?;
        self.waiting_bytes.fetch_sub(payload_length(&reply), Ordering::Relaxed);
        Some(reply)
    }

    /// Ends the subscription; when this returns, the word is on its way to the server.
    pub async fn unsubscribe(self) {
        drop(self.replies);
        // It fails only when the runtime is shutting down, and the connection with it.
        let _ = self.pump.await;
    }
}

/// Moves messages until the owner or the client is gone; dropping the subscriber tells the server.
async fn pump(mut subscribers: Vec<async_nats::Subscriber>, mut queue: Queue) {
    loop {
        let (position, message) = tokio::select! {
            biased;
            () = queue.sender.closed() => return,
            next = first_of(&mut subscribers) => match next {
                (position, Some(message)) => (position, message),
                (_, None) => return,
            },
        };
        settle(&mut subscribers, position, message, &mut |message| queue.offer(message));
    }
}

/// Hands out a message that came at `position`, after all that came before it on a subject of precedence.
///
/// The connection hands messages out as they come. So whatever came before this one is there by now, though it may not have been when
/// that subject was looked at. What is found there in turn may be younger than this message, and preceded by others: hence for each
/// of them the same again, which goes as deep as there are subjects.
fn settle<M>(subscribers: &mut [impl Stream<Item = M> + Unpin], position: usize, message: M, offer: &mut impl FnMut(M)) {
    for earlier in 0..position {
        for _ in 0..SUBSCRIPTION_QUEUE {
            // Outside of tokio's budget, which would make a busy task's poll say "nothing there" for another reason.
            match coop::unconstrained(subscribers[earlier].next()).now_or_never() {
                Some(Some(found)) => settle(subscribers, earlier, found, offer),
                Some(None) | None => break,
            }
        }
    }
    offer(message);
}

/// The next message, looking at the subscribers in their order, and at which it came. Cancel safe.
async fn first_of<M>(subscribers: &mut [impl Stream<Item = M> + Unpin]) -> (usize, Option<M>) {
    poll_fn(|context| {
        for (position, subscriber) in subscribers.iter_mut().enumerate() {
            if let Poll::Ready(message) = subscriber.poll_next_unpin(context) {
                return Poll::Ready((position, message));
            }
        }
        Poll::Pending
    })
    .await
}

/// The queue in front of a subscription's owner.
struct Queue {
    sender: mpsc::Sender<Reply>,
    waiting_bytes: Arc<AtomicUsize>,
    traffic: Arc<Traffic>,
    burst: Option<Burst>,
}

/// Consecutive messages that did not fit.
struct Burst {
    dropped: u64,
}

impl Queue {
    fn offer(&mut self, message: async_nats::Message) {
        let reply = reply_from(message);
        let length = payload_length(&reply);
        let waiting = self.waiting_bytes.fetch_add(length, Ordering::Relaxed);
        // Nobody else sends here, so room that is there stays.
        if waiting.saturating_add(length) > SUBSCRIPTION_QUEUE_BYTES || self.sender.capacity() == 0 {
            return self.overflow(&reply);
        }
        self.traffic.received.fetch_add(1, Ordering::Relaxed);
        if let Some(Burst { dropped }) = self.burst.take() {
            info!(dropped, "slow consumer has caught up");
        }
        // It fails only when the owner has gone, which the loop sees next.
        let _ = self.sender.try_send(reply);
    }

    fn overflow(&mut self, reply: &Reply) {
        self.waiting_bytes.fetch_sub(payload_length(reply), Ordering::Relaxed);
        self.traffic.slow_consumer.fetch_add(1, Ordering::Relaxed);
        match &mut self.burst {
            Some(burst) => burst.dropped += 1,
            None => {
                let subject = if let Reply::Message(message) = reply { message.subject.as_str() } else { "" };
                warn!(subject, "slow consumer, messages are being dropped");
                self.burst = Some(Burst { dropped: 1 });
            }
        }
    }
}

fn payload_length(reply: &Reply) -> usize {
    match reply {
        Reply::Message(message) => message.payload.len(),
        Reply::NoResponders => 0,
    }
}

fn reply_from(message: async_nats::Message) -> Reply {
    if message.status == Some(StatusCode::NO_RESPONDERS) && message.payload.is_empty() {
        return Reply::NoResponders;
    }
    Reply::Message(Message {
        subject: message.subject.into_string(),
        reply_to: message.reply.map(async_nats::Subject::into_string),
        payload: message.payload,
    })
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::VecDeque;
    use std::pin::Pin;
    use std::rc::Rc;
    use std::task::Context;

    use proptest::prelude::*;

    use super::*;

    /// Queues that a connection fills, here whenever somebody finds one empty: by so many messages as `pace` says next, of those that
    /// are still on the wire, each with its queue.
    struct Connection {
        queues: Vec<VecDeque<u32>>,
        wire: VecDeque<(usize, u32)>,
        pace: VecDeque<usize>,
    }

    struct Subscriber {
        connection: Rc<RefCell<Connection>>,
        position: usize,
    }

    impl Stream for Subscriber {
        type Item = u32;
        fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<u32>> {
            let mut connection = self.connection.borrow_mut();
            if let Some(message) = connection.queues[self.position].pop_front() {
                return Poll::Ready(Some(message));
            }
            for _ in 0..connection.pace.pop_front().unwrap_or(1) {
                if let Some((position, message)) = connection.wire.pop_front() {
                    connection.queues[position].push_back(message);
                }
            }
            Poll::Pending
        }
    }

    proptest! {
        #[test]
        fn nothing_overtakes_what_came_earlier_on_a_subject_of_precedence(pace in prop::collection::vec(0..6_usize, 0..100)) {
            // Message 10·n + p is the nth on the subject at p; on the wire those of one n come in their order.
            let all: Vec<(usize, u32)> = (0..30_u32).flat_map(|n| (0..3).map(move |p: u8| (usize::from(p), 10 * n + u32::from(p)))).collect();
            let connection = Connection { queues: vec![VecDeque::new(); 3], wire: all.iter().copied().collect(), pace: pace.into() };
            let connection = Rc::new(RefCell::new(connection));
            let mut subscribers: Vec<Subscriber> =
                (0..3).map(|position| Subscriber { connection: Rc::clone(&connection), position }).collect();
            let mut offered = Vec::new();
            while offered.len() < all.len() {
                if let Some((position, Some(message))) = first_of(&mut subscribers).now_or_never() {
                    settle(&mut subscribers, position, message, &mut |message| offered.push(message));
                }
            }
            for (at, message) in offered.iter().enumerate() {
                let overtaken = offered[at..].iter().find(|later| *later < message && *later % 10 <= message % 10);
                prop_assert_eq!(overtaken, None, "{} came first: {:?}", message, offered);
            }
        }
    }
}
