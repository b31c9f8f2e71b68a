//! Lines of apps: kept for a while, sent to who asks, written to files.
//!
//! Guests, buildpacks and the agent write through sinks that never block: a line goes into one bounded queue or is dropped and
//! counted. One thread owns everything behind the queue: the last lines of each app, the leases of those who follow, and the
//! instances' `logs/stdout.log` and `logs/stderr.log`, and the files of staging logs.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use dewar_bus::Bus;
use dewar_protocol::{AppId, LogLine, LogRequest, LogSource, LogStream, UnixSeconds};
use dewar_sandbox::{Output, OutputSink};
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

pub(crate) use self::files::InstanceLogFiles;
use self::files::LogWriter;
pub(crate) use self::last_lines::LastLines;
use self::ring::Ring;
pub(crate) use self::staging::StagingLog;
use crate::telemetry::Loggregator;

mod core_dump;
mod files;
mod last_lines;
mod ring;
mod staging;

/// Lines and requests under way to the thread; one more line is dropped and counted.
const QUEUE: usize = 16 << 10;
/// Apps whose lines are kept; the one that was silent the longest goes first.
const APPS: usize = 2048;
/// Who may follow at a time, over all apps; one more is refused.
const LEASES: usize = 1024;
/// The longest lease.
const LONGEST_LEASE: Duration = Duration::from_secs(3600);
/// Bytes of the longest line that the agent itself or a buildpack may write; guests' lines come already cut.
const LINE_BYTES: usize = 16 << 10;

/// Where lines enter. Cheap to clone; the thread ends when the last clone is gone.
#[derive(Debug, Clone)]
pub(crate) struct Logs {
    queue: mpsc::Sender<Entry>,
    dropped: Arc<AtomicU64>,
}

enum Entry {
    Line(LogLine, Files),
    /// The task has written its last line.
    EndStaging(Arc<StagingLog>),
    Follow(LogRequest, String),
}

/// Where a line is written to.
#[derive(Clone)]
enum Files {
    None,
    Instance(Arc<InstanceLogFiles>),
    Staging(Arc<StagingLog>),
}

impl Logs {
    /// Starts the thread, which sends what is asked for over `bus`, and every line to `loggregator`; `tasks` wait for its end.
    ///
    /// # Errors
    /// When the operating system has no thread left.
    pub(crate) fn start(bus: Bus, loggregator: Option<Loggregator>, tasks: &TaskTracker) -> io::Result<Self> {
        let (queue, entries) = mpsc::channel(QUEUE);
        let hub = Hub { bus, loggregator, files: LogWriter::new(), apps: HashMap::new(), leases: HashMap::new() };
        let token = tasks.token();
        std::thread::Builder::new().name("app-logs".to_owned()).spawn(move || {
            hub.run(entries);
            drop(token);
        })?;
        Ok(Self { queue, dropped: Arc::default() })
    }

    /// Lines that were dropped because the thread did not keep up.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Sends past lines, and new ones as long as the lease lasts, to `reply_to`. Dropped where the thread does not keep up.
    pub(crate) fn follow(&self, request: LogRequest, reply_to: String) {
        if self.queue.try_send(Entry::Follow(request, reply_to)).is_err() {
            debug!("log request dropped");
        }
    }

    /// One line of the agent about an app. Line ends within it separate lines.
    pub(crate) fn say(&self, app_id: &AppId, index: Option<u32>, stream: LogStream, text: &str) {
        for line in text.lines() {
            self.send(app_id, LogSource::Dea, index, stream, line, &Files::None);
        }
    }

    /// Where an instance writes.
    pub(crate) fn instance(&self, app_id: &AppId, index: u32, files: InstanceLogFiles) -> OutputSink {
        Arc::new(Sink {
            logs: self.clone(),
            app_id: app_id.clone(),
            source: LogSource::App,
            index: Some(index),
            files: Files::Instance(Arc::new(files)),
        })
    }

    /// Where a staging task and its buildpacks write.
    pub(crate) fn staging(&self, app_id: &AppId, log: Option<Arc<StagingLog>>) -> OutputSink {
        let files = log.map_or(Files::None, Files::Staging);
        Arc::new(Sink { logs: self.clone(), app_id: app_id.clone(), source: LogSource::Stg, index: None, files })
    }

    /// Removes the file of a staging log once all lines before this call are in it.
    pub(crate) async fn end_staging(&self, log: Arc<StagingLog>) {
        // The thread is gone only when the agent ends; the next start removes what is left.
        let _ = self.queue.send(Entry::EndStaging(log)).await;
    }

    fn send(&self, app_id: &AppId, source: LogSource, index: Option<u32>, stream: LogStream, text: &str, files: &Files) {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let timestamp = UnixSeconds(since_epoch.as_secs_f64());
        let line = LogLine { app_id: app_id.clone(), source, index, stream, timestamp, text: cut(text) };
        if self.queue.try_send(Entry::Line(line, files.clone())).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn cut(text: &str) -> String {
    if text.len() <= LINE_BYTES { text.to_owned() } else { format!("{} [cut]", &text[..text.floor_char_boundary(LINE_BYTES)]) }
}

struct Sink {
    logs: Logs,
    app_id: AppId,
    source: LogSource,
    index: Option<u32>,
    files: Files,
}

impl Output for Sink {
    fn line(&self, stream: LogStream, text: &str) {
        self.logs.send(&self.app_id, self.source, self.index, stream, text, &self.files);
    }

    fn core_dump(&self, dump: &[u8]) {
        let Files::Instance(files) = &self.files else { return };
        self.line(LogStream::Err, core_dump::keep(dump, &files.logs));
    }
}

struct Hub {
    bus: Bus,
    loggregator: Option<Loggregator>,
    files: LogWriter,
    apps: HashMap<AppId, Ring>,
    /// By application, then by reply subject: until when.
    leases: HashMap<AppId, HashMap<String, Instant>>,
}

impl Hub {
    fn run(mut self, mut entries: mpsc::Receiver<Entry>) {
        while let Some(entry) = entries.blocking_recv() {
            match entry {
                Entry::Line(line, files) => {
                    match files {
                        Files::None => {}
                        Files::Instance(files) => self.files.write(&files, line.stream, &line.text),
                        Files::Staging(log) => log.write(&line.text),
                    }
                    if let Some(loggregator) = &self.loggregator {
                        loggregator.line(&line);
                    }
                    self.forward(&line);
                    self.keep(line);
                }
                Entry::EndStaging(log) => log.remove(),
                Entry::Follow(request, reply_to) => self.follow(&request, reply_to),
            }
        }
    }

    fn forward(&mut self, line: &LogLine) {
        let Some(leases) = self.leases.get_mut(&line.app_id) else { return };
        let now = Instant::now();
        leases.retain(|_, until| *until > now);
        for reply_to in leases.keys() {
            publish(&self.bus, reply_to, line);
        }
        if leases.is_empty() {
            self.leases.remove(&line.app_id);
        }
    }

    fn keep(&mut self, line: LogLine) {
        if !self.apps.contains_key(&line.app_id) && self.apps.len() >= APPS {
            let silent = self.apps.iter().min_by_key(|(_, ring)| ring.last_written()).map(|(app_id, _)| app_id.clone());
            silent.and_then(|app_id| self.apps.remove(&app_id));
        }
        self.apps.entry(line.app_id.clone()).or_default().push(line);
    }

    fn follow(&mut self, request: &LogRequest, reply_to: String) {
        let tail = usize::try_from(request.tail).unwrap_or(usize::MAX);
        for line in self.apps.get(&request.app_id).into_iter().flat_map(|ring| ring.tail(tail)) {
            publish(&self.bus, &reply_to, line);
        }
        let lease = Duration::from_secs(request.follow_seconds.into()).min(LONGEST_LEASE);
        if lease.is_zero() {
            return;
        }
        let now = Instant::now();
        if self.leases.values().map(HashMap::len).sum::<usize>() >= LEASES {
            self.leases.retain(|_, leases| {
                leases.retain(|_, until| *until > now);
                !leases.is_empty()
            });
        }
        let others = self.leases.values().map(HashMap::len).sum::<usize>();
        let leases = self.leases.entry(request.app_id.clone()).or_default();
        if others < LEASES || leases.contains_key(&reply_to) {
            leases.insert(reply_to, now + lease);
        } else {
            warn!(app_id = %request.app_id, leases = LEASES, "too many follow logs, one more is refused");
        }
    }
}

fn publish(bus: &Bus, reply_to: &str, line: &LogLine) {
    if let Err(error) = bus.publish(reply_to, line) {
        // The bus counts what it drops; a follower that needs every line is better served by a log drain.
        debug!(%error, "log line dropped");
    }
}
