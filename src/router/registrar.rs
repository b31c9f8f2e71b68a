//! The router on the bus: takes registrations, makes itself known, prunes what has gone silent.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dewar_bus::{Bus, BusError, BusEvent, Message, Subscription};
use dewar_core::routes::Registration;
use dewar_protocol::{RouteRegistration, subjects};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::identity::{Identity, Uptime};
use crate::proxy::Proxy;

/// Registrations, their ends and greetings come by one subscription: an agent's messages must be taken in the order that it sent them in.
const ROUTER_SUBJECTS: &str = "router.*";

/// Complaints about one subject within [`COMPLAINT_WINDOW`]; further ones are only counted.
const MAX_COMPLAINTS: u32 = 10;
const COMPLAINT_WINDOW: Duration = Duration::from_secs(10);

/// How long the bus has to take the last message in at the end.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

pub(crate) struct Registrar {
    proxy: Arc<Proxy>,
    identity: Arc<Identity>,
    bus: Bus,
    events: mpsc::Receiver<BusEvent>,
    routes: Subscription,
    discoveries: Subscription,
    complaints: Complaints,
}

impl Registrar {
    /// Subscribes; does not wait for a server to be there.
    pub(crate) async fn start(
        proxy: Arc<Proxy>,
        identity: Arc<Identity>,
        bus: Bus,
        events: mpsc::Receiver<BusEvent>,
    ) -> Result<Self, BusError> {
        let routes = bus.subscribe(ROUTER_SUBJECTS).await?;
        let discoveries = bus.subscribe(subjects::COMPONENT_DISCOVER).await?;
        Ok(Self { proxy, identity, bus, events, routes, discoveries, complaints: Complaints::default() })
    }

    /// Runs until `stop`, or until the bus client has ended.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut sweep = interval(self.proxy.config.prune_interval);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                event = self.events.recv() => match event {
                    Some(event) => self.bus_changed(event),
                    None => break,
                },
                message = self.routes.next() => match message {
                    Some(message) => self.route_message(&message),
                    None => break,
                },
                message = self.discoveries.next() => match message {
                    Some(message) => self.reply(&message, &self.identity.announcement(Uptime::Current)),
                    None => break,
                },
                _ = sweep.tick() => self.sweep(),
            }
        }
        if !stop.is_cancelled() {
            error!("bus client has ended, routes are kept as they are");
        }
        self.routes.unsubscribe().await;
        self.discoveries.unsubscribe().await;
        if let Err(error) = self.bus.flush(FLUSH_TIMEOUT).await {
            debug!(%error, "bus did not confirm the end");
        }
    }

    fn bus_changed(&self, event: BusEvent) {
        match event {
            BusEvent::Up => {
                info!("bus is up");
                self.proxy.table.bus_up();
                self.publish(subjects::ROUTER_START, &self.identity.start_message());
                self.publish(subjects::COMPONENT_ANNOUNCE, &self.identity.announcement(Uptime::Omitted));
            }
            BusEvent::Down => {
                warn!("bus is down, routes are kept");
                self.proxy.table.bus_down();
            }
        }
    }

    fn route_message(&mut self, message: &Message) {
        match message.subject.as_str() {
            subjects::ROUTER_GREET => self.reply(message, &self.identity.start_message()),
            subjects::ROUTER_REGISTER => self.with_registration(message, |proxy, registration| {
                proxy.table.register(registration).map_err(|refusal| refusal.to_string())
            }),
            subjects::ROUTER_UNREGISTER => self.with_registration(message, |proxy, registration| {
                proxy.table.unregister(&registration);
                Ok(())
            }),
            // `router.start` is what routers say; what else may be under `router.` is not for us.
            _ => {}
        }
    }

    fn with_registration(&mut self, message: &Message, act: impl FnOnce(&Proxy, Registration) -> Result<(), String>) {
        let decoded = serde_json::from_slice::<RouteRegistration>(&message.payload).map_err(|error| error.to_string());
        let outcome = decoded.and_then(|decoded| {
            let registration = Registration::check(&decoded).map_err(|refusal| refusal.to_string())?;
            let passed_over = registration.passed_over.as_ref().map(ToString::to_string);
            act(&self.proxy, registration)?;
            passed_over.map_or(Ok(()), Err)
        });
        if let Err(cause) = outcome {
            self.complaints.about(&message.subject, &cause);
        }
    }

    fn sweep(&self) {
        let pruned = self.proxy.table.prune(self.proxy.config.endpoints.idle_timeout);
        if pruned > 0 {
            info!(routes = pruned, "stale routes pruned");
        }
    }

    fn publish<T: Serialize>(&self, subject: &'static str, payload: &T) {
        if let Err(error) = self.bus.publish(subject, payload) {
            warn!(subject, %error, "message was not sent");
        }
    }

    fn reply<T: Serialize>(&self, message: &Message, payload: &T) {
        let Some(reply_to) = &message.reply_to else { return };
        if let Err(error) = self.bus.publish(reply_to, payload) {
            warn!(subject = %message.subject, %error, "reply was not sent");
        }
    }
}

/// Says what is wrong with messages, without letting whoever sends them fill the disk.
#[derive(Debug, Default)]
struct Complaints {
    /// By subject, of which there are two.
    windows: HashMap<String, Window>,
}

#[derive(Debug)]
struct Window {
    since: Instant,
    said: u32,
    unsaid: u64,
}

impl Complaints {
    fn about(&mut self, subject: &str, cause: &str) {
        let window = self.windows.entry(subject.to_owned()).or_insert_with(|| Window { since: Instant::now(), said: 0, unsaid: 0 });
        if window.since.elapsed() >= COMPLAINT_WINDOW {
            if window.unsaid > 0 {
                warn!(subject, messages = window.unsaid, "more messages were refused");
            }
            *window = Window { since: Instant::now(), said: 0, unsaid: 0 };
        }
        if window.said < MAX_COMPLAINTS {
            window.said += 1;
            warn!(subject, cause, "message was refused");
        } else {
            window.unsaid += 1;
        }
    }
}
