//! An app's log lines off the bus.

use std::time::Duration;

use dewar_bus::{Bus, Subscription};
use dewar_protocol::{AppId, LogLine, LogRequest, subjects};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, timeout_at};

use crate::client::{ANSWER_WINDOW, Client, decode};
use crate::error::ClientError;

/// How long agents send lines without being asked again.
const LEASE_SECONDS: u32 = 60;
/// How often they are asked again: twice may be lost.
const RENEWAL: Duration = Duration::from_secs(20);
/// Collecting lines of the past ends after this long at the latest.
const RECENT_MAX: Duration = Duration::from_secs(5);

/// Follows an app: lines as they are written, until it is dropped.
#[derive(Debug)]
pub struct LogFollower {
    bus: Bus,
    app: AppId,
    inbox: String,
    lines: Subscription,
    renewal: Interval,
}

impl LogFollower {
    /// The next line; `None` once the bus client is closed. Cancel safe.
    pub async fn next(&mut self) -> Option<LogLine> {
        loop {
            tokio::select! {
                message = self.lines.next() => {
                    if let Some(line) = decode(&message?.payload) {
                        return Some(line);
                    }
                }
                _ = self.renewal.tick() => self.ask(0),
            }
        }
    }

    fn ask(&self, tail: u32) {
        let request = LogRequest { app_id: self.app.clone(), tail, follow_seconds: LEASE_SECONDS };
        if let Err(error) = self.bus.publish_reply(subjects::LOGS, &self.inbox, &request) {
            tracing::debug!(error = %error, "cannot ask for log lines, will ask again");
        }
    }
}

impl Client {
    /// Follows an app from now on, after up to `tail` lines of its past. The app need not exist yet.
    ///
    /// # Errors
    /// When the bus refuses.
    pub async fn follow_logs(&self, app: &AppId, tail: u32) -> Result<LogFollower, ClientError> {
        let inbox = self.bus.new_inbox();
        let lines = self.bus.subscribe(&inbox).await?;
        let mut renewal = interval(RENEWAL);
        renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick comes at once; what it would ask is asked here, with the past.
        renewal.reset();
        let follower = LogFollower { bus: self.bus.clone(), app: app.clone(), inbox, lines, renewal };
        follower.ask(tail);
        Ok(follower)
    }

    /// The last lines that agents kept, at most `tail` from each, in order of time.
    ///
    /// # Errors
    /// When the bus refuses.
    pub async fn recent_logs(&self, app: &AppId, tail: u32) -> Result<Vec<LogLine>, ClientError> {
        let inbox = self.bus.new_inbox();
        let mut subscription = self.bus.subscribe(&inbox).await?;
        self.bus.publish_reply(subjects::LOGS, &inbox, &LogRequest { app_id: app.clone(), tail, follow_seconds: 0 })?;
        let mut lines: Vec<LogLine> = Vec::new();
        let end = Instant::now() + RECENT_MAX;
        // Agents send in one go: silence means that there is no more.
        while let Ok(Some(message)) = timeout_at(end.min(Instant::now() + ANSWER_WINDOW), subscription.next()).await {
            lines.extend(decode::<LogLine>(&message.payload));
        }
        lines.sort_by(|a, b| a.timestamp.0.total_cmp(&b.timestamp.0));
        let surplus = lines.len().saturating_sub(usize::try_from(tail).unwrap_or(usize::MAX));
        Ok(lines.split_off(surplus))
    }
}
