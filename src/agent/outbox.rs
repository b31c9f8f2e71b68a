//! Messages out, in order: between the driver, which never waits, and the bus, whose queue may be full for a moment.

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
use tracing::{debug, error, warn};

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
    dropped: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Outgoing {
    subject: String,
    reply_to: Option<String>,
    payload: Bytes,
}

impl Outbox {
    /// An outbox, and the task that empties it. Routers answer greetings to `greeting_inbox`.
    pub(crate) fn new(bus: Bus, greeting_inbox: String, split_heartbeats: bool) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (queue, outgoing) = mpsc::channel(QUEUE);
        (Self { queue, bus: bus.clone(), split_heartbeats, greeting_inbox, dropped: Arc::default() }, send_all(bus, outgoing))
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
            Publication::Heartbeat(heartbeat) => self.heartbeat(heartbeat),
            Publication::DropletExited(exited) => self.put(subjects::DROPLET_EXITED, exited),
            Publication::RouterRegister(route) => self.put(subjects::ROUTER_REGISTER, route),
            Publication::RouterUnregister(route) => self.put(subjects::ROUTER_UNREGISTER, route),
            Publication::Shutdown(shutdown) => self.put(subjects::DEA_SHUTDOWN, shutdown),
            Publication::ComponentAnnounce(announce) => self.put(subjects::COMPONENT_ANNOUNCE, announce),
            Publication::RouterGreet => self.send(Outgoing {
                subject: subjects::ROUTER_GREET.to_owned(),
                reply_to: Some(self.greeting_inbox.clone()),
                payload: Bytes::from_static(b"{}"),
            }),
        }
    }

    /// Whole, or in parts that the server takes. Where it must be whole the cell sees to it that it fits; if it does not, because
    /// this server takes less than the one before, somebody has to know.
    fn heartbeat(&self, heartbeat: &Heartbeat) {
        let Some(payload) = json(subjects::DEA_HEARTBEAT, heartbeat) else { return };
        let (bytes, instances) = (payload.len(), heartbeat.droplets.len());
        let limit = self.bus.max_payload().unwrap_or(usize::MAX);
        if bytes > limit && self.split_heartbeats && instances > 1 {
            let (first, second) = heartbeat.droplets.split_at(instances / 2);
            for part in [first, second] {
                self.heartbeat(&Heartbeat { droplets: part.to_vec(), dea: heartbeat.dea.clone() });
            }
            return;
        }
        if bytes > limit {
            error!(bytes, limit, instances, "heartbeat too large for the NATS server (max_payload), health managers will miss it");
        }
        self.send_on(subjects::DEA_HEARTBEAT, payload);
    }

    /// Answers on a reply subject. [`Answer::Varz`] and [`Answer::Files`] are never asked for over the bus.
    pub(crate) fn reply(&self, subject: &str, answer: &Answer) {
        match answer {
            Answer::Found(found) => self.put(subject, found),
            Answer::Status(status) => self.put(subject, status),
            Answer::Setup(setup) => self.put(subject, setup),
            Answer::Staged(staged) => self.put(subject, staged),
            Answer::Component(component) => self.put(subject, component),
            Answer::Varz(_) | Answer::Files(_) => debug!(subject, "answer is not for the bus"),
        }
    }

    fn put<T: Serialize>(&self, subject: &str, message: &T) {
        if let Some(payload) = json(subject, message) {
            self.send_on(subject, payload);
        }
    }

    fn send_on(&self, subject: &str, payload: Vec<u8>) {
        self.send(Outgoing { subject: subject.to_owned(), reply_to: None, payload: payload.into() });
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
    while let Some(Outgoing { subject, reply_to, payload }) = outgoing.recv().await {
        loop {
            match bus.publish_raw(&subject, reply_to.as_deref(), payload.clone()) {
                Ok(()) => break,
                Err(BusError::QueueFull { .. }) => tokio::time::sleep(PAUSE).await,
                // Everything that peers must know is said again once the bus is back.
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
}
