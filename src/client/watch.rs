//! What becomes of an app's instances, from three sources at once: agents' answers, heartbeats and exit messages.

use std::time::Duration;

use dewar_bus::{Bus, Subscription};
use dewar_protocol::{AppId, DropletExited, ExitReason, FindDroplet, FoundInstance, Heartbeat, subjects};
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::client::{Client, FLUSH_TIMEOUT, decode};
use crate::error::ClientError;

/// How often agents are asked when nothing else happens.
const POLL: Duration = Duration::from_millis(250);

/// Something seen of the app's instances.
#[derive(Debug)]
pub(crate) enum Sight {
    /// An agent has this instance, in this state. An answer that says RUNNING comes after the agent has registered the routes.
    Found(Box<FoundInstance>),
    /// An instance has ended.
    Exited(DropletExited),
    /// Nothing for a while.
    Tick,
}

/// Watches one app, or one version of it.
#[derive(Debug)]
pub(crate) struct InstanceWatch {
    bus: Bus,
    question: FindDroplet,
    inbox: String,
    answers: Subscription,
    heartbeats: Subscription,
    exits: Subscription,
    poll: Interval,
}

impl InstanceWatch {
    /// Starts watching; what happens after this returns is seen.
    pub(crate) async fn open(client: &Client, app: &AppId, version: Option<&str>) -> Result<Self, ClientError> {
        let bus = client.bus.clone();
        let inbox = bus.new_inbox();
        let answers = bus.subscribe(&inbox).await?;
        let heartbeats = bus.subscribe(subjects::DEA_HEARTBEAT).await?;
        let exits = bus.subscribe(subjects::DROPLET_EXITED).await?;
        bus.flush(FLUSH_TIMEOUT).await?;
        let question = FindDroplet { app_id: Some(app.clone()), version: version.map(str::to_owned), ..FindDroplet::default() };
        let mut poll = interval(POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self { bus, question, inbox, answers, heartbeats, exits, poll })
    }

    /// The next sight. Cancel safe. Fails when the bus client is closed.
    pub(crate) async fn next(&mut self) -> Result<Sight, ClientError> {
        loop {
            // In this order: an exit message explains a CRASHED that an answer tells.
            tokio::select! {
                biased;
                exited = self.exits.next() => {
                    let exited: Option<DropletExited> = decode(&exited.ok_or_else(Self::closed)?.payload);
                    if let Some(exited) = exited.filter(|e| self.is_ours(&e.app_id, &e.version)) {
                        return Ok(Sight::Exited(exited));
                    }
                }
                answer = self.answers.next() => {
                    if let Some(found) = decode(&answer.ok_or_else(Self::closed)?.payload) {
                        return Ok(Sight::Found(Box::new(found)));
                    }
                }
                heartbeat = self.heartbeats.next() => {
                    let heartbeat: Option<Heartbeat> = decode(&heartbeat.ok_or_else(Self::closed)?.payload);
                    if heartbeat.is_some_and(|h| h.droplets.iter().any(|d| self.is_ours(&d.app_id, &d.version))) {
                        self.ask();
                    }
                }
                _ = self.poll.tick() => {
                    self.ask();
                    return Ok(Sight::Tick);
                }
            }
        }
    }

    fn is_ours(&self, app: &AppId, version: &str) -> bool {
        self.question.app_id.as_ref() == Some(app) && self.question.version.as_deref().is_none_or(|wanted| wanted == version)
    }

    fn ask(&self) {
        if let Err(error) = self.bus.publish_reply(subjects::DEA_FIND_DROPLET, &self.inbox, &self.question) {
            tracing::debug!(error = %error, "cannot ask for instances, will ask again");
        }
    }

    fn closed() -> ClientError {
        ClientError::Bus(dewar_bus::BusError::Closed { subject: subjects::DEA_FIND_DROPLET.to_owned() })
    }
}

/// Crashes of any app on the bus, as agents tell them.
#[derive(Debug)]
pub struct CrashWatch {
    exits: Subscription,
}

impl CrashWatch {
    /// The next crash; `None` once the bus client is closed. Cancel safe.
    pub async fn next(&mut self) -> Option<DropletExited> {
        loop {
            let exited: Option<DropletExited> = decode(&self.exits.next().await?.payload);
            if let Some(exited) = exited.filter(|exited| exited.reason == ExitReason::Crashed) {
                return Some(exited);
            }
        }
    }
}

impl Client {
    /// Watches for crashes from now on. Some thousand may wait to be looked at; beyond that the newest are lost.
    ///
    /// # Errors
    /// When the bus refuses.
    pub async fn watch_crashes(&self) -> Result<CrashWatch, ClientError> {
        Ok(CrashWatch { exits: self.bus.subscribe(subjects::DROPLET_EXITED).await? })
    }
}
