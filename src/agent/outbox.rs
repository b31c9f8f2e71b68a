//! Messages out, in order: between the driver, which never waits, and the bus, whose queue may be full for a moment.

mod held;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use dewar_bus::{Bus, BusError};
use dewar_core::{Answer, Publication};
use dewar_protocol::{Heartbeat, subjects};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::sleep_until;
use tracing::{debug, error, warn};

use self::held::Held;
use crate::config::StagingReplyKeys;
use crate::hm9000::Hm9000;
use crate::staging_reply;

#[cfg(test)]
mod tests;

/// Messages under way to the bus: enough for one of each instance of a full agent, several times. One more is dropped and counted.
const QUEUE: usize = 64 << 10;

/// Pause before another attempt when the bus's own queue is full; it is drained within microseconds unless the server hangs.
const PAUSE: Duration = Duration::from_millis(1);

/// Where the driver puts messages. Cheap to clone; the sender's task ends when the last clone is gone.
#[derive(Debug, Clone)]
pub(crate) struct Outbox {
    queue: mpsc::Sender<Outgoing>,
    bus: Bus,
    /// Whether heartbeats may be sent in parts.
    split_heartbeats: bool,
    greeting_inbox: String,
    reply_keys: StagingReplyKeys,
    /// Who gets heartbeats besides.
    hm9000: Option<Hm9000>,
    dropped: Arc<AtomicU64>,
}

/// What is said how.
#[derive(Debug)]
pub(crate) struct Manners {
    /// Whether heartbeats may be sent in parts.
    pub(crate) split_heartbeats: bool,
    /// Where routers answer greetings.
    pub(crate) greeting_inbox: String,
    /// The keys of replies to staging requests.
    pub(crate) reply_keys: StagingReplyKeys,
    /// Who gets heartbeats besides those on the bus.
    pub(crate) hm9000: Option<Hm9000>,
}

#[derive(Debug)]
struct Outgoing {
    subject: String,
    reply_to: Option<String>,
    payload: Bytes,
    /// Whether it is never said again, and so waits while there is no bus.
    once: bool,
}

impl Outbox {
    /// An outbox, and the task that empties it.
    pub(crate) fn new(bus: Bus, manners: Manners) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let Manners { split_heartbeats, greeting_inbox, reply_keys, hm9000 } = manners;
        let (queue, outgoing) = mpsc::channel(QUEUE);
        let outbox = Self { queue, bus: bus.clone(), split_heartbeats, greeting_inbox, reply_keys, hm9000, dropped: Arc::default() };
        (outbox, send_all(bus, outgoing))
    }

    /// Messages that were dropped because the outbox was full.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    pub(crate) fn publish(&self, publication: &Publication) {
        match publication {
            Publication::Hello(hello) => self.put(subjects::DEA_START, hello),
            Publication::Advertise(advertise) => self.put(subjects::DEA_ADVERTISE, advertise),
            Publication::StagingAdvertise(advertise) => self.put(subjects::STAGING_ADVERTISE, advertise),
            Publication::Heartbeat(heartbeat) => self.heartbeat_to_all(heartbeat),
            Publication::DropletExited(exited) => self.put(subjects::DROPLET_EXITED, exited),
            Publication::RouterRegister(route) => self.put(subjects::ROUTER_REGISTER, route),
            Publication::RouterUnregister(route) => self.put(subjects::ROUTER_UNREGISTER, route),
            Publication::Shutdown(shutdown) => self.put(subjects::DEA_SHUTDOWN, shutdown),
            Publication::ComponentAnnounce(announce) => self.put(subjects::COMPONENT_ANNOUNCE, announce),
            Publication::RouterGreet => self.send(Outgoing {
                subject: subjects::ROUTER_GREET.to_owned(),
                reply_to: Some(self.greeting_inbox.clone()),
                payload: Bytes::from_static(b"{}"),
                once: false,
            }),
        }
    }

    fn heartbeat_to_all(&self, heartbeat: &Heartbeat) {
        let Some(payload) = json(subjects::DEA_HEARTBEAT, heartbeat) else { return };
        if let Some(hm9000) = &self.hm9000 {
            hm9000.beat(payload.clone().into());
        }
        self.heartbeat(heartbeat, payload);
    }

    /// Whole, or in parts that the server takes. Where it must be whole the cell sees to it that it fits; if it does not, because
    /// this server takes less than the one before, somebody has to know.
    fn heartbeat(&self, heartbeat: &Heartbeat, payload: Vec<u8>) {
        let (bytes, instances) = (payload.len(), heartbeat.droplets.len());
        let limit = self.bus.max_payload().unwrap_or(usize::MAX);
        if bytes > limit && self.split_heartbeats && instances > 1 {
            let (first, second) = heartbeat.droplets.split_at(instances / 2);
            for part in [first, second] {
                let part = Heartbeat { droplets: part.to_vec(), dea: heartbeat.dea.clone() };
                if let Some(payload) = json(subjects::DEA_HEARTBEAT, &part) {
                    self.heartbeat(&part, payload);
                }
            }
            return;
        }
        if bytes > limit {
            error!(bytes, limit, instances, "heartbeat too large for the NATS server (max_payload), health managers will miss it");
        }
        self.send_on(subjects::DEA_HEARTBEAT, payload);
    }

    /// Answers on a reply subject. Some answers are never asked for over the bus.
    pub(crate) fn reply(&self, subject: &str, answer: &Answer) {
        match answer {
            Answer::Found(found) => self.put(subject, found),
            Answer::Status(status) => self.put(subject, status),
            Answer::Setup(setup) => self.put_once(subject, &staging_reply::setup(self.reply_keys, setup)),
            Answer::Staged(staged) => self.put_once(subject, &staging_reply::staged(self.reply_keys, staged)),
            Answer::Component(component) => self.put(subject, component),
            Answer::Varz(_) | Answer::Files(_) | Answer::Accepted | Answer::Unavailable(_) => {
                debug!(subject, "answer that is not for the bus")
            }
        }
    }

    fn put<T: Serialize>(&self, subject: &str, message: &T) {
        if let Some(payload) = json(subject, message) {
            self.send_on(subject, payload);
        }
    }

    fn put_once(&self, subject: &str, reply: &serde_json::Value) {
        if let Some(payload) = json(subject, reply) {
            self.send(Outgoing { subject: subject.to_owned(), reply_to: None, payload: payload.into(), once: true });
        }
    }

    fn send_on(&self, subject: &str, payload: Vec<u8>) {
        self.send(Outgoing { subject: subject.to_owned(), reply_to: None, payload: payload.into(), once: false });
    }

    fn send(&self, outgoing: Outgoing) {
        match self.queue.try_send(outgoing) {
            Ok(()) => {}
            Err(TrySendError::Full(outgoing)) => {
                self.dropped.fetch_add(1, Ordering::Relaxed);
                warn!(subject = outgoing.subject, "message dropped, too many wait to be sent");
            }
            Err(TrySendError::Closed(outgoing)) => debug!(subject = outgoing.subject, "message dropped, the agent ends"),
        }
    }
}

fn json<T: Serialize>(subject: &str, message: &T) -> Option<Vec<u8>> {
    serde_json::to_vec(message).inspect_err(|error| error!(subject, %error, "message has no JSON form")).ok()
}

async fn send_all(bus: Bus, mut outgoing: mpsc::Receiver<Outgoing>) {
    let mut held = Held::new();
    loop {
        let next = tokio::select! {
            next = outgoing.recv() => next,
            () = sleep_until(held.next_look()), if !held.is_empty() => {
                for reply in held.look(bus.is_up()) {
                    send_or_hold(&bus, reply, &mut held).await;
                }
                continue;
            }
        };
        match next {
            // No reply overtakes another.
            Some(reply) if reply.once && !held.is_empty() => held.push(reply),
            Some(next) => send_or_hold(&bus, next, &mut held).await,
            None => break,
        }
    }
    // The agent ends: now or never.
    for reply in held.take() {
        send_or_hold(&bus, reply, &mut held).await;
    }
}

async fn send_or_hold(bus: &Bus, outgoing: Outgoing, held: &mut Held) {
    let Outgoing { subject, reply_to, payload, once } = &outgoing;
    loop {
        match bus.publish_raw(subject, reply_to.as_deref(), payload.clone()) {
            Ok(()) => break,
            Err(BusError::QueueFull { .. }) => tokio::time::sleep(PAUSE).await,
            Err(BusError::Down { .. }) if *once => {
                debug!(subject, "reply waits for the bus");
                return held.push(outgoing);
            }
            // Everything else that peers must know is said again once the bus is back.
            Err(error @ BusError::Down { .. }) => {
                debug!(%error, "message dropped");
                break;
            }
            Err(error) => {
                warn!(%error, "message dropped");
                break;
            }
        }
    }
}
