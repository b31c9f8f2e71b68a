//! An app's log lines off the bus.

use std::time::Duration;

use dewar_bus::{Bus, Subscription};
use dewar_protocol::{AppId, LogLine, LogRequest, LogSource, LogStream, UnixSeconds, subjects};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, timeout_at};

use crate::client::{ANSWER_WINDOW, Client, Target, decode};
use crate::error::ClientError;

/// How long agents send lines without being asked again.
const LEASE_SECONDS: u32 = 60;
/// How often they are asked again: twice may be lost.
const RENEWAL: Duration = Duration::from_secs(20);
/// Collecting lines of the past ends after this long at the latest.
const RECENT_MAX: Duration = Duration::from_secs(5);

/// Bytes of each log file that are looked at for lines of the past: all of it, as agents bound them.
const FILE_BYTES: u64 = 512 << 10;

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

    /// The last lines of an app, at most `tail`: those that agents kept, and before them, where these are too few, what the log files
    /// of its instances hold, crashed ones included. Of those lines only the last one's time is known; all are given it.
    ///
    /// # Errors
    /// When the bus refuses.
    pub async fn past_logs(&self, target: &Target, tail: u32) -> Result<Vec<LogLine>, ClientError> {
        let kept = self.recent_logs(&target.id, tail).await?;
        let wanted = usize::try_from(tail).unwrap_or(usize::MAX);
        if kept.len() >= wanted {
            return Ok(kept);
        }
        let streams = [(LogStream::Out, "/logs/stdout.log"), (LogStream::Err, "/logs/stderr.log")];
        let (out, err) = futures::join!(self.log_files(target, streams[0].1, FILE_BYTES), self.log_files(target, streams[1].1, FILE_BYTES));
        let mut older = Vec::new();
        for (stream, files) in [(LogStream::Out, out?), (LogStream::Err, err?)] {
            for file in files {
                let known: Vec<&str> = kept
                    .iter()
                    .filter(|line| line.source == LogSource::App && line.index == Some(file.index) && line.stream == stream)
                    .map(|line| line.text.as_str())
                    .collect();
                let timestamp = UnixSeconds(file.modified.unwrap_or(0.0));
                let both = if file.crashed { overlap_anywhere(&file.lines, &known) } else { overlap(&file.lines, &known) };
                let new = file.lines.len() - both;
                older.extend(file.lines.into_iter().take(new).map(|text| LogLine {
                    app_id: target.id.clone(),
                    source: LogSource::App,
                    index: Some(file.index),
                    stream,
                    timestamp,
                    text,
                }));
            }
        }
        older.sort_by(|a, b| a.timestamp.0.total_cmp(&b.timestamp.0));
        let mut lines = older.split_off(older.len().saturating_sub(wanted - kept.len()));
        lines.extend(kept);
        Ok(lines)
    }
}

/// How many lines at the end of a file are those that an agent kept: agents write each line to both.
fn overlap(file: &[String], kept: &[&str]) -> usize {
    file.iter().rev().zip(kept.iter().rev()).take_while(|(line, kept)| line == *kept).count()
}

/// As [`overlap`], where lines of another instance may follow those of the file.
fn overlap_anywhere(file: &[String], kept: &[&str]) -> usize {
    (0..=kept.len()).map(|end| overlap(file, &kept[..end])).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_agents_kept_are_not_told_twice() {
        let file = ["one", "two", "three"].map(str::to_owned);
        assert_eq!(overlap(&file, &["two", "three"]), 2);
        assert_eq!(overlap(&file, &["zero", "one", "two", "three"]), 3);
        assert_eq!(overlap(&file, &[]), 0);
        assert_eq!(overlap(&file, &["other"]), 0);
        assert_eq!(overlap(&file, &["three", "other"]), 0);
        assert_eq!(overlap(&[], &["one"]), 0);
    }

    #[test]
    fn lines_of_a_crashed_instance_are_known_before_those_of_the_next() {
        let file = ["one", "two", "three"].map(str::to_owned);
        assert_eq!(overlap_anywhere(&file, &["two", "three", "next"]), 2);
        assert_eq!(overlap_anywhere(&file, &["three", "one", "two", "three", "next", "three"]), 3, "the most of what fits");
        assert_eq!(overlap_anywhere(&file, &["one", "two"]), 0);
        assert_eq!(overlap_anywhere(&file, &[]), 0);
    }
}
