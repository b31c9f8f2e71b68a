//! Staging tasks under way: each is a task that reports what happens to it and ends in exactly one final event.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dewar_core::{Input, StagingError, StagingEvent, StagingSpec, TaskKey};
use dewar_protocol::AdminBuildpack;
use futures::FutureExt as _;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, Span, debug, error, field, info, info_span, warn};

use crate::base_dir::Paths;
use crate::blocking;
use crate::controller::Controller;
use crate::logs::{Logs, StagingLog};
use crate::staging::{Progress, Stager, StagingFailed};
use crate::telemetry::{Outcome, TARGET, Telemetry};

/// All staging tasks of an agent. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Stagings {
    stager: Stager,
    logs: Logs,
    paths: Paths,
    /// To the driver, which always takes what comes.
    reports: mpsc::Sender<Input>,
    tasks: TaskTracker,
    telemetry: Telemetry,
    live: Arc<Mutex<HashMap<TaskKey, CancellationToken>>>,
    fetching_ahead: Arc<Semaphore>,
    /// Cancelled when all is over.
    ended: CancellationToken,
}

fn event(progress: Progress) -> StagingEvent {
    match progress {
        Progress::SetUp => StagingEvent::SetUp,
        Progress::Stored(sha1) => StagingEvent::Stored(sha1),
    }
}

impl Stagings {
    pub(crate) fn new(
        stager: Stager,
        logs: Logs,
        paths: Paths,
        reports: mpsc::Sender<Input>,
        tasks: TaskTracker,
        telemetry: Telemetry,
    ) -> Self {
        let (fetching_ahead, ended) = (Arc::new(Semaphore::new(1)), CancellationToken::new());
        Self { stager, logs, paths, reports, tasks, telemetry, live: Arc::default(), fetching_ahead, ended }
    }

    /// Starts a staging in a task of its own.
    pub(crate) fn start(&self, spec: Box<StagingSpec>) {
        let stop = CancellationToken::new();
        self.live().insert(spec.key, stop.clone());
        let (task_id, app_id) = (&spec.message.task_id, &spec.message.app_id);
        let span = info_span!(target: TARGET, "staging", %task_id, %app_id, otel.status_code = field::Empty);
        let stagings = self.clone();
        self.tasks.spawn(async move { stagings.supervise(&spec, stop).await }.instrument(span));
    }

    /// Ends a staging now.
    pub(crate) fn cancel(&self, key: TaskKey) {
        if let Some(stop) = self.live().get(&key) {
            stop.cancel();
        }
    }

    /// Ends all stagings now, and what is fetched ahead.
    pub(crate) fn cancel_all(&self) {
        self.ended.cancel();
        for stop in self.live().values() {
            stop.cancel();
        }
    }

    /// Fetches the operator's buildpacks before a staging needs them. While that goes on, another list is left out.
    pub(crate) fn fetch_ahead(&self, buildpacks: Vec<AdminBuildpack>) {
        let Ok(turn) = Arc::clone(&self.fetching_ahead).try_acquire_owned() else {
            debug!("list of buildpacks left out, another is being fetched");
            return;
        };
        let (stager, ended) = (self.stager.clone(), self.ended.clone());
        self.tasks.spawn(async move {
            stager.fetch_ahead(&buildpacks, &ended).await;
            drop(turn);
        });
    }

    /// Asks the Cloud Controller for the operator's buildpacks, and fetches them. Nothing depends on it.
    pub(crate) fn fetch_ahead_from(&self, controller: Controller) {
        let stagings = self.clone();
        let asking = async move {
            match controller.buildpacks().await {
                Ok(buildpacks) => stagings.fetch_ahead(buildpacks),
                Err(error) => info!(%error, "the Cloud Controller names no buildpacks to fetch ahead"),
            }
        };
        let ended = self.ended.clone();
        self.tasks.spawn(async move { ended.run_until_cancelled(asking).await });
    }

    async fn supervise(&self, spec: &StagingSpec, stop: CancellationToken) {
        let begun = Instant::now();
        // Room for all there is, so that none is lost.
        let (tell, mut told) = mpsc::channel(2);
        let tell = move |progress| {
            // The receiver lives until the end of this function.
            let _ = tell.try_send(progress);
        };
        let file = self.log_file(spec.key).await;
        let log = self.logs.staging(&spec.message.app_id, file.clone());
        let mut staging = std::pin::pin!(AssertUnwindSafe(self.stager.run(spec, log, tell, stop)).catch_unwind());
        let outcome = loop {
            tokio::select! {
                biased;
                Some(progress) = told.recv() => self.report(spec.key, event(progress)).await,
                outcome = &mut staging => break outcome,
            }
        };
        while let Ok(progress) = told.try_recv() {
            self.report(spec.key, event(progress)).await;
        }
        self.live().remove(&spec.key);
        let outcome = outcome.unwrap_or_else(|_| {
            error!("staging task panicked");
            let error = StagingError { message: "the stager failed".to_owned(), info: None };
            Err(StagingFailed { during_setup: false, error })
        });
        self.telemetry.staged(begun.elapsed(), Outcome::of(&outcome));
        if outcome.is_err() {
            Span::current().record("otel.status_code", "ERROR");
        }
        self.report(
            spec.key,
            match outcome {
                Ok(droplet) => StagingEvent::Finished(Ok(Box::new(droplet))),
                Err(StagingFailed { during_setup: true, error }) => StagingEvent::SetupFailed(error.message),
                Err(StagingFailed { during_setup: false, error }) => StagingEvent::Finished(Err(error)),
            },
        )
        .await;
        // Only now, so that who finds no log any more knows that the task has ended.
        if let Some(file) = file {
            self.logs.end_staging(file).await;
        }
    }

    /// A task goes on without one: nobody can read along then.
    async fn log_file(&self, key: TaskKey) -> Option<Arc<StagingLog>> {
        let root = self.paths.staging_log(key);
        let created = blocking::run(move || StagingLog::create(&root)).await;
        created.inspect_err(|error| warn!(%error, "staging log cannot be written")).ok().map(Arc::new)
    }

    async fn report(&self, key: TaskKey, event: StagingEvent) {
        // The driver is gone only when the agent ends, and then nobody wants to know.
        let _ = self.reports.send(Input::Staging(key, event)).await;
    }

    fn live(&self) -> MutexGuard<'_, HashMap<TaskKey, CancellationToken>> {
        // The map is whole after every operation on it, so a panic elsewhere cannot have left it half-changed.
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
