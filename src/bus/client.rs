//! The client: publish, subscribe, request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_nats::client::{PublishError, PublishErrorKind, SubscribeErrorKind};
use async_nats::connection::State;
use bytes::Bytes;
use futures::FutureExt;
use rand::RngExt;
use serde::Serialize;
use tokio::sync::{mpsc, watch};
use tokio::task::coop;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::DropGuard;

use crate::config::{self, Servers};
use crate::link::{self, EVENT_QUEUE, Link};
use crate::subscription::{Subscribe, Subscription};
use crate::{BusConfig, BusError, BusEvent, Message, Reply};

/// How many commands (publish, subscribe, unsubscribe) wait to be written to the socket. Past it, publishing fails.
pub const SEND_QUEUE: usize = 4096;

/// How many messages async-nats holds for a subscription until its task takes them. The task does nothing else, so this only has to
/// hold what arrives in one go.
const ARRIVAL_QUEUE: usize = 16_384;

/// How long the queue of commands may stay full before subscribing gives up.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(5);

/// How many answers [`Bus::request_many`] collects at most.
pub const REPLIES_MAX: usize = 65_536;

/// Middle of the first pause between two attempts to reconnect, and of the longest; each is drawn from half to one and a half of it.
const RECONNECT_DELAY_FIRST: Duration = Duration::from_millis(100);
const RECONNECT_DELAY_LONGEST: Duration = Duration::from_secs(2);

/// A connection to the bus, shared by its clones. It is closed when the last of them and of its subscriptions is dropped.
#[derive(Debug, Clone)]
pub struct Bus {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    client: async_nats::Client,
    link: Arc<Link>,
    up: watch::Receiver<bool>,
    /// For messages: the servers without credentials.
    servers: String,
    traffic: Arc<Traffic>,
    _closes_link: DropGuard,
}

/// Messages since the client was made.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) published: AtomicU64,
    pub(crate) dropped: AtomicU64,
    pub(crate) received: AtomicU64,
    pub(crate) slow_consumer: AtomicU64,
}

/// Numbers of messages since the client was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BusCounters {
    /// Handed to the connection.
    pub published: u64,
    /// Not sent, because the bus was down, the queue full or the message impossible.
    pub dropped: u64,
    /// Taken in for a subscription or as an answer.
    pub received: u64,
    /// Arrived, but dropped because a subscription's owner did not keep up.
    pub slow_consumer: u64,
    /// Connections that have come about; all but the first after one was lost.
    pub connects: u64,
}

impl Bus {
    /// A client that connects by itself, and reconnects for ever. Does not wait for a server: the receiver says [`BusEvent::Up`] when
    /// there is one, [`BusEvent::Down`] when it is lost, and so on, in turn. Pauses between attempts grow to about 2 s, with jitter so that
    /// the clients of a restarted server do not come back all at once. The receiver may be dropped.
    ///
    /// # Errors
    /// When the configuration cannot work: no or malformed servers, unreadable certificates or credentials. Never because of the network.
    pub async fn connect(config: BusConfig) -> Result<(Bus, mpsc::Receiver<BusEvent>), BusError> {
        let servers = Servers::parse(&config.servers)?;
        let link = Arc::new(Link::default());
        let options = config::connect_options(&config, &servers).await?;
        let options = report_to(options, &link, servers.addresses.len())
            .client_capacity(SEND_QUEUE)
            .subscription_capacity(ARRIVAL_QUEUE)
            .request_timeout(None);
        let shown = servers.display();
        let client = options
            .connect(servers.addresses.as_slice())
            .await
            .map_err(|error| BusError::InvalidServer { server: shown.clone(), reason: error.to_string() })?;
        let (up_sender, up) = watch::channel(false);
        let (event_sender, events) = mpsc::channel(EVENT_QUEUE);
        tokio::spawn(link::watch(client.clone(), Arc::clone(&link), shown.clone(), up_sender, event_sender));
        let closes_link = link.closed.clone().drop_guard();
        let shared = Shared { client, link, up, servers: shown, traffic: Arc::default(), _closes_link: closes_link };
        Ok((Bus { shared: Arc::new(shared) }, events))
    }

    /// Waits for a connection.
    ///
    /// # Errors
    /// [`BusError::Unreachable`] after `wait`, with the servers and the last cause.
    pub async fn wait_up(&self, wait: Duration) -> Result<(), BusError> {
        let mut up = self.shared.up.clone();
        let unreachable = || BusError::Unreachable { servers: self.shared.servers.clone(), after: wait, cause: self.shared.link.cause() };
        match timeout(wait, up.wait_for(|up| *up)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(unreachable()),
        }
    }

    /// Whether there is a connection, as far as this side knows.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.shared.client.connection_state() == State::Connected
    }

    /// The largest payload in bytes that the server of the latest connection takes; `None` before the first connection.
    #[must_use]
    pub fn max_payload(&self) -> Option<usize> {
        self.shared.client.try_server_info().map(|info| info.max_payload)
    }

    /// Publishes `payload` as JSON. Never waits.
    ///
    /// # Errors
    /// As [`Bus::publish_raw`], and when `payload` has no JSON form.
    pub fn publish<T: Serialize>(&self, subject: &str, payload: &T) -> Result<(), BusError> {
        self.publish_json(subject, None, payload)
    }

    /// Publishes `payload` as JSON and says where to answer. Never waits.
    ///
    /// # Errors
    /// As [`Bus::publish`].
    pub fn publish_reply<T: Serialize>(&self, subject: &str, reply_to: &str, payload: &T) -> Result<(), BusError> {
        self.publish_json(subject, Some(reply_to), payload)
    }

    /// Publishes bytes. Never waits: a message is handed to the connection's queue of [`SEND_QUEUE`] entries, in order with
    /// subscriptions and requests of this client, or it is dropped and counted. Once accepted it is sent if the connection lasts.
    ///
    /// # Errors
    /// [`BusError::Down`], [`BusError::QueueFull`], [`BusError::InvalidSubject`], [`BusError::TooLarge`].
    pub fn publish_raw(&self, subject: &str, reply_to: Option<&str>, payload: Bytes) -> Result<(), BusError> {
        let outcome = self.try_publish(subject, reply_to, payload);
        self.count(&outcome);
        outcome
    }

    /// All messages to `subject`, which may hold wildcards. Also while the bus is down: the server learns of it at the next
    /// connection. A message published by another client right after this returns may still be missed; [`Bus::flush`] closes the gap.
    ///
    /// # Errors
    /// [`BusError::InvalidSubject`]; [`BusError::Timeout`] when the send queue stays full.
    pub async fn subscribe(&self, subject: &str) -> Result<Subscription, BusError> {
        self.subscribe_all(&[Subscribe { subject, group: None }]).await
    }

    /// Subscribes to several subjects at once, those of precedence first. A message never overtakes one that the server sent before
    /// it on a subject that stands earlier in the list; nor, of course, one on the same subject. What comes later on an earlier
    /// subject may still be handed out first.
    ///
    /// # Errors
    /// As [`Bus::subscribe`].
    pub async fn subscribe_all(&self, subjects: &[Subscribe<'_>]) -> Result<Subscription, BusError> {
        let mut subscribers = Vec::with_capacity(subjects.len());
        for wanted in subjects {
            subscribers.push(self.subscriber(*wanted).await?);
        }
        Ok(Subscription::start(subscribers, self.clone(), Arc::clone(&self.shared.traffic)))
    }

    /// A subject that nobody else uses, to be answered on.
    #[must_use]
    pub fn new_inbox(&self) -> String {
        self.shared.client.new_inbox()
    }

    /// Publishes `payload` as JSON and waits for the first answer.
    ///
    /// # Errors
    /// [`BusError::NoResponders`] as soon as the server says so, [`BusError::Timeout`] after `wait`, and those of [`Bus::publish`].
    pub async fn request<T: Serialize>(&self, subject: &str, payload: &T, wait: Duration) -> Result<Message, BusError> {
        let mut inbox = self.ask(subject, payload).await?;
        match timeout(wait, inbox.next_reply()).await {
            Ok(Some(Reply::Message(message))) => Ok(message),
            Ok(Some(Reply::NoResponders)) => Err(BusError::NoResponders { subject: subject.to_owned() }),
            Ok(None) => Err(BusError::Closed { subject: subject.to_owned() }),
            Err(_) => Err(BusError::Timeout { subject: subject.to_owned(), after: wait }),
        }
    }

    /// Publishes `payload` as JSON and collects all answers within `window`, at most [`REPLIES_MAX`]; fewer when they come faster than
    /// they can be collected. Returns early, with none, when the server says that nobody listens.
    ///
    /// # Errors
    /// Those of [`Bus::publish`] and [`Bus::subscribe`]; that nobody answers is none.
    pub async fn request_many<T: Serialize>(&self, subject: &str, payload: &T, window: Duration) -> Result<Vec<Message>, BusError> {
        let deadline = Instant::now() + window;
        let mut inbox = self.ask(subject, payload).await?;
        let mut answers = Vec::new();
        while answers.len() < REPLIES_MAX {
            match timeout_at(deadline, inbox.next_reply()).await {
                Ok(Some(Reply::Message(message))) => answers.push(message),
                Ok(Some(Reply::NoResponders) | None) | Err(_) => break,
            }
        }
        Ok(answers)
    }

    /// Waits until the server has taken in everything that this client has published and subscribed before. It is asked by a message
    /// to ourselves, since async-nats only flushes its socket: a server handles one connection's commands in order.
    ///
    /// # Errors
    /// [`BusError::Timeout`] after `wait`, and those of [`Bus::publish`].
    pub async fn flush(&self, wait: Duration) -> Result<(), BusError> {
        let subject = self.new_inbox();
        let confirmed = async {
            let mut inbox = self.subscribe(&subject).await?;
            self.try_publish(&subject, None, Bytes::new())?;
            match inbox.next_reply().await {
                Some(_) => Ok(()),
                None => Err(BusError::Closed { subject: subject.clone() }),
            }
        };
        match timeout(wait, confirmed).await {
            Ok(outcome) => outcome,
            Err(_) => Err(BusError::Timeout { subject: "flush".to_owned(), after: wait }),
        }
    }

    /// Numbers of messages so far.
    #[must_use]
    pub fn counters(&self) -> BusCounters {
        let Shared { link, traffic, .. } = &*self.shared;
        BusCounters {
            published: traffic.published.load(Ordering::Relaxed),
            dropped: traffic.dropped.load(Ordering::Relaxed),
            received: traffic.received.load(Ordering::Relaxed),
            slow_consumer: traffic.slow_consumer.load(Ordering::Relaxed) + link.slow_consumer.load(Ordering::Relaxed),
            connects: self.shared.client.statistics().connects.load(Ordering::Relaxed),
        }
    }

    /// Publishes a question and returns the inbox on which answers arrive.
    async fn ask<T: Serialize>(&self, subject: &str, payload: &T) -> Result<Subscription, BusError> {
        let inbox = self.new_inbox();
        let answers = self.subscribe(&inbox).await?;
        self.publish_reply(subject, &inbox, payload)?;
        Ok(answers)
    }

    fn publish_json<T: Serialize>(&self, subject: &str, reply_to: Option<&str>, payload: &T) -> Result<(), BusError> {
        match serde_json::to_vec(payload) {
            Ok(bytes) => self.publish_raw(subject, reply_to, bytes.into()),
            Err(source) => {
                let outcome = Err(BusError::Encode { subject: subject.to_owned(), source });
                self.count(&outcome);
                outcome
            }
        }
    }

    fn try_publish(&self, subject: &str, reply_to: Option<&str>, payload: Bytes) -> Result<(), BusError> {
        if !self.is_up() {
            return Err(BusError::Down { subject: subject.to_owned() });
        }
        let client = &self.shared.client;
        let size = payload.len();
        let publishing = async {
            match reply_to {
                Some(reply_to) => client.publish_with_reply(subject.to_owned(), reply_to.to_owned(), payload).await,
                None => client.publish(subject.to_owned(), payload).await,
            }
        };
        // Its only await is on the queue of commands, so one poll tells whether there was room. Outside of tokio's budget, which
        // would make a busy task's poll say "not now" for another reason.
        match coop::unconstrained(publishing).now_or_never() {
            Some(outcome) => outcome.map_err(|error| publish_error(&error, subject, size, client.max_payload())),
            None => Err(BusError::QueueFull { subject: subject.to_owned() }),
        }
    }

    fn count(&self, outcome: &Result<(), BusError>) {
        let Traffic { published, dropped, .. } = &*self.shared.traffic;
        let counter = if outcome.is_ok() { published } else { dropped };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    async fn subscriber(&self, Subscribe { subject, group }: Subscribe<'_>) -> Result<async_nats::Subscriber, BusError> {
        let client = &self.shared.client;
        let subscribing = async {
            match group {
                Some(group) => client.queue_subscribe(subject.to_owned(), group.to_owned()).await,
                None => client.subscribe(subject.to_owned()).await,
            }
        };
        match timeout(SUBSCRIBE_TIMEOUT, subscribing).await {
            Ok(Ok(subscriber)) => Ok(subscriber),
            Ok(Err(error)) => Err(match error.kind() {
                SubscribeErrorKind::InvalidSubject | SubscribeErrorKind::InvalidQueueName => {
                    BusError::InvalidSubject { subject: subject.to_owned() }
                }
                SubscribeErrorKind::Other => BusError::Closed { subject: subject.to_owned() },
            }),
            Err(_) => Err(BusError::Timeout { subject: subject.to_owned(), after: SUBSCRIBE_TIMEOUT }),
        }
    }
}

fn publish_error(error: &PublishError, subject: &str, size: usize, max: usize) -> BusError {
    let subject = subject.to_owned();
    match error.kind() {
        PublishErrorKind::MaxPayloadExceeded => BusError::TooLarge { subject, size, max },
        PublishErrorKind::InvalidSubject => BusError::InvalidSubject { subject },
        PublishErrorKind::Send => BusError::Closed { subject },
    }
}

/// Makes a connection report to `link`, and pause with jitter between attempts.
fn report_to(options: async_nats::ConnectOptions, link: &Arc<Link>, servers: usize) -> async_nats::ConnectOptions {
    let (observer, failures) = (Arc::clone(link), Arc::clone(link));
    let connected = Arc::new(AtomicBool::new(false));
    let was_connected = Arc::clone(&connected);
    options
        .event_callback(move |event| {
            connected.fetch_or(event == async_nats::Event::Connected, Ordering::Relaxed);
            observer.observe(event);
            std::future::ready(())
        })
        // Asked before each round of attempts which server to try. It has no wish; it is here because it is the only one to be shown
        // why the last round failed, and the only place where retries can be ended.
        .reconnect_to_server_callback(move |pool, _| {
            let link = Arc::clone(&failures);
            async move {
                link.note_failures(&pool);
                if link.closed.is_cancelled() {
                    std::future::pending::<()>().await;
                }
                None
            }
        })
        .reconnect_delay_callback(move |attempt| {
            // The first connection of a starting process is wanted at once; after a loss all clients of a server come back.
            let first_round = attempt <= servers && !was_connected.load(Ordering::Relaxed);
            if first_round { Duration::ZERO } else { reconnect_delay(attempt.div_ceil(servers), rand::rng().random_range(0.5..1.5)) }
        })
}

/// The pause before a round of attempts, the first being 1: doubles up to [`RECONNECT_DELAY_LONGEST`], times `jitter`.
fn reconnect_delay(round: usize, jitter: f64) -> Duration {
    let doublings = u32::try_from(round.saturating_sub(1)).unwrap_or(u32::MAX).min(16);
    RECONNECT_DELAY_FIRST.saturating_mul(1 << doublings).min(RECONNECT_DELAY_LONGEST).mul_f64(jitter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_two_seconds_and_stay_there() {
        let table = [(1, 100), (2, 200), (3, 400), (4, 800), (5, 1600), (6, 2000), (60, 2000), (usize::MAX, 2000)];
        for (round, milliseconds) in table {
            assert_eq!(reconnect_delay(round, 1.0), Duration::from_millis(milliseconds), "round {round}");
        }
        assert_eq!(reconnect_delay(6, 0.5), Duration::from_secs(1));
        assert_eq!(reconnect_delay(6, 1.5), Duration::from_secs(3));
    }
}
