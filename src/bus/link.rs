//! What is known of the connection, and how its ups and downs are told.
//!
//! async-nats reports through a bounded channel that drops events when it is full, so an event is only a nudge here: a task
//! compares the connection's own state and its count of connects with what it has told last. Nothing is lost by a lost event.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, ClientError, Event, Server, ServerError};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// How often the state is looked at without any event.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How often it is looked at between an event and the change of state that it announces.
const LOOK_INTERVAL_AFTER_EVENT: Duration = Duration::from_millis(5);

/// How many transitions wait for a receiver that does not look. Beyond them a down and the up after it are merged into nothing.
pub(crate) const EVENT_QUEUE: usize = 16;

/// The connection came or went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BusEvent {
    /// There is a connection, all subscriptions are in place again.
    Up,
    /// The connection is lost; reconnecting has begun.
    Down,
}

/// What callbacks of async-nats leave behind, for the client and its watching task. Holds no `Client`: async-nats holds it.
#[derive(Debug, Default)]
pub(crate) struct Link {
    nudge: Notify,
    /// What the last event said; the state follows within moments.
    announced_up: AtomicBool,
    cause: Mutex<Option<String>>,
    /// Messages that async-nats itself had to drop for a slow subscription.
    pub(crate) slow_consumer: AtomicU64,
    /// Cancelled when the last [`crate::Bus`] is gone.
    pub(crate) closed: CancellationToken,
}

impl Link {
    /// Takes note of an event. Never waits, so that async-nats' queue of events stays short.
    pub(crate) fn observe(&self, event: Event) {
        match event {
            Event::Connected => self.announced_up.store(true, Ordering::Release),
            Event::Disconnected => self.announced_up.store(false, Ordering::Release),
            Event::SlowConsumer(subscription) => {
                self.slow_consumer.fetch_add(1, Ordering::Relaxed);
                debug!(subscription, "message for slow subscription dropped");
            }
            Event::ServerError(ServerError::Other(error)) => warn!(%error, "bus server reports an error"),
            Event::ServerError(error) => self.note_cause(error.to_string()),
            Event::ClientError(ClientError::Other(error)) => self.note_cause(error),
            Event::ClientError(error) => self.note_cause(error.to_string()),
            Event::LameDuckMode => info!("bus server is about to stop"),
            Event::Draining | Event::Closed => {}
        }
        self.nudge.notify_one();
    }

    /// Takes note of why servers could not be reached; called before each round of attempts.
    pub(crate) fn note_failures(&self, servers: &[Server]) {
        let causes: Vec<String> = servers
            .iter()
            .filter_map(|server| {
                let error = server.last_error.as_ref()?;
                Some(format!("{}:{}: {error}", server.addr.host(), server.addr.port()))
            })
            .collect();
        if !causes.is_empty() {
            self.note_cause(causes.join("; "));
        }
    }

    /// The last cause, logged when it is a new one: retries of one failure stay quiet.
    fn note_cause(&self, cause: String) {
        let mut last = self.cause.lock().unwrap_or_else(PoisonError::into_inner);
        // async-nats also reports the bare kind of an error ("nats: IO error") of which the detailed form is already here.
        let kind = cause.strip_prefix("nats: ").unwrap_or(&cause);
        if last.as_ref().is_some_and(|last| last.contains(kind)) {
            return;
        }
        warn!(%cause, "cannot connect to the bus");
        *last = Some(cause);
    }

    /// Why there is no connection, as far as it is known.
    pub(crate) fn cause(&self) -> String {
        let last = self.cause.lock().unwrap_or_else(PoisonError::into_inner);
        last.clone().unwrap_or_else(|| "still connecting".to_owned())
    }

    fn forget_cause(&self) {
        self.cause.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// Tells every change of `client`'s connection until the link closes. `up` always has the newest state; `events` gets each
/// transition in order, and lags when its receiver does.
pub(crate) async fn watch(client: Client, link: Arc<Link>, servers: String, up: watch::Sender<bool>, events: mpsc::Sender<BusEvent>) {
    let statistics = client.statistics();
    let mut story = Story::default();
    // The receiver may be gone: a client that does not care.
    let mut heard = true;
    loop {
        let connects = statistics.connects.load(Ordering::Acquire);
        let up_now = client.connection_state() == State::Connected;
        for event in story.see(connects, up_now) {
            match event {
                BusEvent::Up => {
                    info!(%servers, "bus is up");
                    link.forget_cause();
                }
                BusEvent::Down => warn!(%servers, "bus is down"),
            }
        }
        up.send_replace(up_now);
        let settled = link.announced_up.load(Ordering::Acquire) == up_now;
        let look = if settled { LOOK_INTERVAL } else { LOOK_INTERVAL_AFTER_EVENT };
        tokio::select! {
            () = link.closed.cancelled() => return,
            () = link.nudge.notified() => {}
            () = tokio::time::sleep(look) => {}
            permit = events.reserve(), if heard && story.untold().is_some() => match (permit, story.untold()) {
                (Ok(permit), Some(event)) => permit.send(story.tell(event)),
                (Ok(_), None) => {}
                (Err(_), _) => heard = false,
            },
        }
    }
}

/// What has happened to the connection, and how much of it the receiver has been told.
#[derive(Default)]
struct Story {
    connects: u64,
    up: bool,
    told_up: bool,
    /// The connection was lost since the receiver was told that it is up.
    lost: bool,
}

impl Story {
    /// Takes in the state and number of connects; returns what has happened since the last time. More connects mean a loss between
    /// them, even if nobody was looking when the connection was down.
    fn see(&mut self, connects: u64, up: bool) -> Vec<BusEvent> {
        let lost = self.up && (connects != self.connects || !up);
        let won = up && (connects != self.connects || !self.up);
        self.lost |= lost;
        (self.connects, self.up) = (connects, up);
        [lost.then_some(BusEvent::Down), won.then_some(BusEvent::Up)].into_iter().flatten().collect()
    }

    /// What the receiver is to be told next.
    fn untold(&self) -> Option<BusEvent> {
        match (self.told_up, self.up) {
            (true, false) => Some(BusEvent::Down),
            (true, true) => self.lost.then_some(BusEvent::Down),
            (false, true) => Some(BusEvent::Up),
            (false, false) => None,
        }
    }

    fn tell(&mut self, event: BusEvent) -> BusEvent {
        self.told_up = event == BusEvent::Up;
        self.lost = false;
        event
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything that a receiver is told who looks now.
    fn all_untold(story: &mut Story) -> Vec<BusEvent> {
        std::iter::from_fn(|| story.untold().map(|event| story.tell(event))).take(10).collect()
    }

    #[test]
    fn transitions_alternate_and_end_in_the_newest_state() {
        use BusEvent::{Down, Up};
        // Connects and state as they are seen, what has happened, and what a receiver is told who looks each time.
        let seen = [
            (0, false, vec![]),
            (1, true, vec![Up]),
            (1, true, vec![]),
            (1, false, vec![Down]),
            (1, false, vec![]),
            (2, true, vec![Up]),
            (3, true, vec![Down, Up]),
            (4, false, vec![Down]),
        ];
        let mut story = Story::default();
        for (connects, up, expected) in &seen {
            assert_eq!(story.see(*connects, *up), *expected, "connect {connects}");
            assert_eq!(all_untold(&mut story), *expected, "connect {connects}");
        }
        // A receiver that looks only at the end is told a shorter story with the same end.
        let mut story = Story::default();
        for (connects, up, _) in &seen[..7] {
            story.see(*connects, *up);
        }
        assert_eq!(all_untold(&mut story), [Up]);
        story.see(4, true);
        story.see(5, true);
        assert_eq!(all_untold(&mut story), [Down, Up]);
    }

    #[test]
    fn the_detailed_cause_outlives_its_bare_kind() {
        let link = Link::default();
        assert_eq!(link.cause(), "still connecting");
        link.observe(Event::ClientError(ClientError::Other("IO error".to_owned())));
        assert_eq!(link.cause(), "IO error");
        link.note_cause("127.0.0.1:1: IO error: Connection refused".to_owned());
        link.observe(Event::ClientError(ClientError::Other("IO error".to_owned())));
        assert_eq!(link.cause(), "127.0.0.1:1: IO error: Connection refused");
        link.observe(Event::ServerError(ServerError::AuthorizationViolation));
        assert_eq!(link.cause(), "nats: authorization violation");
    }
}
