//! One app of a developer, from its first push until the end.

use std::sync::Arc;
use std::time::Duration;

use dewar_client::{AppName, AppRecord, Client, ClientError, CrashWatch, PushEvent, PushOptions};
use dewar_protocol::DropletExited;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::dev::restarts::Restarts;
use crate::dev::screen::{DevEvent, DevScreen};
use crate::dev::watcher::Watcher;
use crate::failure::Failure;

/// How many lines an app may have written before anybody listened.
const EARLY_LINES: u32 = 200;

/// The loop of one app: push; then wait for a change (push again) or a crash (start again).
pub(crate) struct DevApp {
    client: Client,
    options: PushOptions,
    http_port: u16,
    screen: Arc<DevScreen>,
    stop: CancellationToken,
    started_at: Instant,
    restarts: Restarts,
    /// When to start again what has crashed.
    restart_at: Option<Instant>,
    /// Prints what the app writes.
    log: Option<JoinHandle<()>>,
}

/// What the loop does next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Job {
    Push,
    Restart,
}

impl DevApp {
    pub(crate) fn new(client: Client, options: PushOptions, http_port: u16, screen: Arc<DevScreen>, stop: CancellationToken) -> Self {
        let (restarts, started_at) = (Restarts::default(), Instant::now());
        Self { client, options, http_port, screen, stop, started_at, restarts, restart_at: None, log: None }
    }

    /// Ends on `stop`; without a watcher also when the app could not even be staged.
    pub(crate) async fn run(mut self, mut watcher: Option<Watcher>) -> Result<(), Failure> {
        let mut crashes = self.client.watch_crashes().await?;
        let mut job = Job::Push;
        loop {
            let outcome = self.carry_out(job, watcher.as_mut()).await?;
            if self.stop.is_cancelled() {
                return Ok(());
            }
            job = match outcome {
                None => Job::Push,
                Some(done) => {
                    let hopeless = self.report(job, done).await?;
                    if let (Some(failure), None) = (hopeless, &watcher) {
                        return Err(failure);
                    }
                    match self.next_job(watcher.as_mut(), &mut crashes).await? {
                        Some(job) => job,
                        None => return Ok(()),
                    }
                }
            };
            if job == Job::Push {
                self.restarts.reset();
                self.screen.show(&DevEvent::Changed { app: &self.options.name });
            }
        }
    }

    /// A change of files while this goes on ends it, since what it works with is old: `None`.
    async fn carry_out(&mut self, job: Job, watcher: Option<&mut Watcher>) -> Result<Option<Result<AppRecord, ClientError>>, Failure> {
        self.restart_at = None;
        let stop = self.stop.child_token();
        let (client, options, screen) = (&self.client, &self.options, &self.screen);
        let mut report = |event: PushEvent| screen.push_event(&event);
        let mut work = std::pin::pin!(async {
            match job {
                Job::Push => client.push(options, &mut report, &stop).await,
                Job::Restart => client.start(&options.name, &mut report, &stop).await,
            }
        });
        let changed = tokio::select! {
            done = &mut work => return Ok(Some(done)),
            changed = next_change(watcher) => changed,
        };
        stop.cancel();
        match work.await {
            // It was faster; the change is next.
            Ok(_) | Err(ClientError::Interrupted) => {}
            Err(error) => tracing::debug!(error = %error, "an overtaken push failed"),
        }
        changed.map(|()| None)
    }

    /// Tells how it went. A failure that leaves nothing to be brought up again comes back.
    async fn report(&mut self, job: Job, done: Result<AppRecord, ClientError>) -> Result<Option<Failure>, Failure> {
        let known = self.client.record(&self.options.name)?;
        if let (None, Some(app)) = (&self.log, &known) {
            let follower = self.client.follow_logs(&app.id, EARLY_LINES).await?;
            self.log = Some(tokio::spawn(print_lines(follower, self.options.name.clone(), Arc::clone(&self.screen), self.stop.clone())));
        }
        match done {
            Ok(app) => {
                let urls = app.uris.iter().map(|uri| format!("http://{uri}:{}", self.http_port)).collect();
                self.screen.show(&DevEvent::Ready { app: &app.name, urls });
                Ok(None)
            }
            Err(error) => {
                let still_serving = job == Job::Push && known.as_ref().is_some_and(|app| app.phase == dewar_client::Phase::Started);
                let crashed = matches!(error, ClientError::Crashed { .. });
                let failure = Failure::from(error);
                let (error, hint) = (failure.error.clone(), failure.hint.clone());
                self.screen.show(&DevEvent::Failed { app: &self.options.name, error, hint, still_serving });
                if known.is_some() && !still_serving && !crashed {
                    // A crash comes as a message of its own, and says when to try again.
                    self.restart_at = Some(Instant::now() + self.pause());
                }
                Ok(known.is_none().then_some(failure))
            }
        }
    }

    /// `None`: it is over.
    async fn next_job(&mut self, mut watcher: Option<&mut Watcher>, crashes: &mut CrashWatch) -> Result<Option<Job>, Failure> {
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return Ok(None),
                changed = next_change(watcher.as_deref_mut()) => return changed.map(|()| Some(Job::Push)),
                () = sleep_until(self.restart_at.unwrap_or_else(Instant::now)), if self.restart_at.is_some() => return Ok(Some(Job::Restart)),
                crash = crashes.next() => match crash {
                    Some(crash) => self.crashed(&crash)?,
                    None => return Ok(None),
                },
            }
        }
    }

    fn crashed(&mut self, crash: &DropletExited) -> Result<(), Failure> {
        let app = self.client.record(&self.options.name)?;
        let current = app.is_some_and(|app| app.id == crash.app_id && app.release.version == crash.version);
        if !current {
            return Ok(());
        }
        let pause = self.pause();
        self.screen.show(&DevEvent::Crashed {
            app: &self.options.name,
            index: crash.index,
            exit_status: crash.exit_status,
            exit_description: &crash.exit_description,
            restart_in_seconds: pause.as_secs(),
        });
        self.restart_at = Some(Instant::now() + pause);
        Ok(())
    }

    fn pause(&mut self) -> Duration {
        self.restarts.crashed(self.started_at.elapsed())
    }
}

/// Never, for an app that is not watched.
async fn next_change(watcher: Option<&mut Watcher>) -> Result<(), Failure> {
    match watcher {
        Some(watcher) => watcher.changed().await,
        None => std::future::pending().await,
    }
}

async fn print_lines(mut follower: dewar_client::LogFollower, app: AppName, screen: Arc<DevScreen>, stop: CancellationToken) {
    while let Some(Some(line)) = stop.run_until_cancelled(follower.next()).await {
        screen.log(&app, line);
    }
}
