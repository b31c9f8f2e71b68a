//! The edge of a sandbox: from a droplet on disk to a running, healthy instance, and to its end.
//!
//! Each instance has one task. Whatever happens in it, a panic included, it reports exactly one [`SandboxEvent::Exited`], and last:
//!
//! ```text
//! unpack the droplet → load its program → take a port → start → Launched → probe → Ready → wait → clean up → Exited
//! ```
//!
//! One that has run in an earlier process finds its files as they were, and takes its old port where it can.
//!
//! In `<base>/instances/<instance id>` an instance has `app`, `tmp` and `logs`. When it was asked to stop, all of it is deleted;
//! otherwise `logs` moves to `<base>/crashes/<instance id>`, until the cell wants that deleted, too.

mod end;
mod health;
mod launch;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use dewar_core::{Exit, HealthCheck, Input, InstanceKey, Sample, SandboxEvent, SandboxSpec};
use dewar_protocol::{InstanceId, LogStream};
use dewar_sandbox::{Sandbox, Sandboxes};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, Span, error, field, info_span, warn};

use self::end::{in_time, seen_to_its_end};
use self::health::Probe;
use self::launch::{Launched, StartError};
use crate::base_dir::Paths;
use crate::config::{EgressConfig, InstanceConfig};
use crate::driver::at;
use crate::droplet_store::DropletStore;
use crate::logs::{LastLines, Logs};
use crate::ports::{PortLease, Ports};
use crate::removal::remove_left_over;
use crate::telemetry::{TARGET, Telemetry};

/// How long an instance that was asked to end may take, the time that the original gave between TERM and KILL.
const GRACE: Duration = Duration::from_secs(10);

/// How long an instance that is asked to end goes on taking requests: for routers to learn that it is no longer to be asked. The message
/// to them has been sent before.
const LINGER: Duration = Duration::from_secs(1);

/// How long a killed sandbox may take to be gone. Its epoch trap comes within milliseconds; after this the instance is given up.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// All instances of an agent. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Instances(Arc<Shared>);

struct Shared {
    means: Means,
    /// How many droplets are unpacked, or programs started, at a time; the others wait, in the order in which they came.
    starts: Semaphore,
    live: Mutex<HashMap<InstanceKey, Arc<Live>>>,
}

/// What instances are made with.
pub(crate) struct Means {
    pub(crate) sandboxes: Sandboxes,
    pub(crate) droplets: DropletStore,
    pub(crate) ports: Ports,
    pub(crate) logs: Logs,
    pub(crate) telemetry: Telemetry,
    pub(crate) paths: Paths,
    pub(crate) ip: IpAddr,
    pub(crate) settings: InstanceConfig,
    /// Whom they may talk to.
    pub(crate) egress: EgressConfig,
    pub(crate) concurrent_starts: usize,
    /// To the driver, which always takes what comes.
    pub(crate) reports: mpsc::Sender<Input>,
    pub(crate) tasks: TaskTracker,
}

/// What can be done to an instance from outside of its task.
#[derive(Default)]
struct Live {
    stop: CancellationToken,
    kill: CancellationToken,
    sandbox: OnceLock<Sandbox>,
    /// Nobody else gets it before the end of this instance is reported: routers must hear of that first.
    port: Mutex<Option<PortLease>>,
    last_lines: Arc<LastLines>,
}

impl Instances {
    pub(crate) fn new(means: Means) -> Self {
        let starts = Semaphore::new(means.concurrent_starts);
        Self(Arc::new(Shared { means, starts, live: Mutex::default() }))
    }

    /// Starts an instance in a task of its own.
    pub(crate) fn start(&self, spec: Box<SandboxSpec>) {
        // At once, before an instance that is started later can take it.
        let held = spec.resumed.and_then(|resumed| self.0.means.ports.hold(resumed.port?));
        let live = Arc::new(Live { port: Mutex::new(held), ..Live::default() });
        self.live().insert(spec.key, Arc::clone(&live));
        let span = info_span!("instance", app_id = %spec.start.app_id, instance_id = %spec.instance_id, index = spec.start.index);
        let instances = self.clone();
        self.0.means.tasks.spawn(async move { instances.supervise(&spec, &live).await }.instrument(span));
    }

    /// Asks an instance to end; one that is still being prepared ends there.
    pub(crate) fn stop(&self, key: InstanceKey) {
        if let Some(live) = self.live().get(&key) {
            live.stop.cancel();
        }
    }

    /// Ends an instance now.
    pub(crate) fn kill(&self, key: InstanceKey) {
        if let Some(live) = self.live().get(&key) {
            live.kill.cancel();
        }
    }

    /// Ends all instances now.
    pub(crate) fn kill_all(&self) {
        for live in self.live().values() {
            live.kill.cancel();
        }
    }

    /// What every running instance uses.
    pub(crate) fn usage(&self) -> Vec<(InstanceKey, Sample)> {
        self.live().iter().filter_map(|(key, live)| Some((*key, sample(live.sandbox.get()?)))).collect()
    }

    /// Deletes what an instance that has ended left behind, in the background.
    pub(crate) fn delete_files(&self, id: &InstanceId) {
        let dirs = [self.0.means.paths.instance(id), self.0.means.paths.crash(id)];
        self.0.means.tasks.spawn_blocking(move || dirs.iter().for_each(|dir| remove_left_over(dir)));
    }

    async fn supervise(&self, spec: &SandboxSpec, live: &Live) {
        // In a place of its own: whoever watches over it would keep room for it twice, for as long as the instance lives.
        let exit = seen_to_its_end(Box::pin(self.run(spec, live))).await;
        self.clean_up(&spec.instance_id, live.stop.is_cancelled()).await;
        self.live().remove(&spec.key);
        let lines = live.last_lines.take();
        if !lines.is_empty() {
            self.report(spec.key, SandboxEvent::Wrote(lines)).await;
        }
        self.report(spec.key, SandboxEvent::Exited(exit)).await;
    }

    async fn run(&self, spec: &SandboxSpec, live: &Live) -> Exit {
        let (app_id, instance_id, index) = (&spec.start.app_id, &spec.instance_id, spec.start.index);
        let start = info_span!(target: TARGET, "start", %app_id, %instance_id, index, otel.status_code = field::Empty);
        // What a launch needs is there no longer than that: thousands that merely run are to be small.
        let launch = Box::pin(self.launch(spec, live));
        match launch.instrument(info_span!(target: TARGET, parent: &start, "launch")).await {
            Ok(launched) => self.watch(spec, live, launched, start).await,
            Err(StartError::Cancelled) => StartError::Cancelled.into_exit(),
            Err(error) => {
                start.record("otel.status_code", "ERROR");
                let cause = chain(&error);
                warn!(cause, "instance failed to start");
                let text = format!("Instance (index {}) failed to start: {cause}", spec.start.index);
                self.0.means.logs.say(&spec.start.app_id, Some(spec.start.index), LogStream::Err, &text);
                error.into_exit()
            }
        }
    }

    /// Reports that the instance is launched and ready, carries out what it is asked, and waits for its end.
    /// `start` is the span of its start, which ends when it is ready.
    async fn watch(&self, spec: &SandboxSpec, live: &Live, launched: Launched, start: Span) -> Exit {
        let Launched { sandbox, port, state_file } = launched;
        // Only this task sets it, once.
        let _ = live.sandbox.set(sandbox.clone());
        self.report(spec.key, SandboxEvent::Launched { port: Some(port), state_file: state_file.is_some() }).await;
        let tell = |text: &str| self.0.means.logs.say(&spec.start.app_id, Some(spec.start.index), LogStream::Err, text);
        let probe = Probe {
            start: &spec.start,
            address: SocketAddr::new(self.0.means.ip, port),
            dir: self.0.means.paths.instance(&spec.instance_id),
            tell: &tell,
        };
        let check = HealthCheck::of(&spec.start, true, state_file.is_some());
        // The block is there so that the span ends with the check, and not with the instance.
        let health_check = info_span!(target: TARGET, parent: &start, "health check");
        let mut healthy = std::pin::pin!(async { probe.until_healthy(check, state_file).instrument(health_check).await });
        let (mut start, mut ready, mut stop_at, mut kill_at) = (Some(start), false, None, None);
        loop {
            tokio::select! {
                biased;
                exit = exited(&sandbox) => return exit,
                () = live.kill.cancelled() => return killed(&sandbox).await,
                () = at(kill_at) => return killed(&sandbox).await,
                () = live.stop.cancelled(), if kill_at.is_none() => {
                    sandbox.wind_down();
                    let now = Instant::now();
                    // Routers know only of what has been ready.
                    stop_at = Some(if ready { now + LINGER } else { now });
                    kill_at = Some(now + GRACE);
                }
                () = at(stop_at) => {
                    stop_at = None;
                    sandbox.stop();
                }
                () = &mut healthy, if !ready && kill_at.is_none() => {
                    ready = true;
                    drop(start.take());
                    self.report(spec.key, SandboxEvent::Ready).await;
                    let sample = sample(&sandbox);
                    self.0.means.telemetry.first_sample(&spec.start.app_id, spec.start.index, sample);
                    self.send(Input::Usage(vec![(spec.key, sample)])).await;
                }
            }
        }
    }

    async fn clean_up(&self, id: &InstanceId, stopped: bool) {
        let (dir, crash) = (self.0.means.paths.instance(id), self.0.means.paths.crash(id));
        let cleaning = self.0.means.tasks.spawn_blocking(move || {
            let logs = dir.join("logs");
            if !stopped && logs.is_dir() {
                let moved = std::fs::create_dir_all(&crash).and_then(|()| std::fs::rename(&logs, crash.join("logs")));
                if let Err(error) = moved {
                    warn!(path = %logs.display(), %error, "crashed instance's logs not kept");
                }
            }
            remove_files(&dir);
        });
        if let Err(error) = cleaning.await {
            error!(%error, "instance's files not cleaned up");
        }
    }

    async fn report(&self, key: InstanceKey, event: SandboxEvent) {
        self.send(Input::Sandbox(key, event)).await;
    }

    async fn send(&self, input: Input) {
        // The driver is gone only when the agent ends, and then nobody wants to know.
        let _ = self.0.means.reports.send(input).await;
    }

    fn live(&self) -> MutexGuard<'_, HashMap<InstanceKey, Arc<Live>>> {
        // The map is whole after every operation on it, so a panic elsewhere cannot have left it half-changed.
        self.0.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes an instance's directory, `logs` first: when this process is killed meanwhile, the next one must not take what is left for
/// an instance's files.
fn remove_files(dir: &Path) {
    remove_left_over(&dir.join("logs"));
    remove_left_over(dir);
}

impl Live {
    fn port(&self) -> MutexGuard<'_, Option<PortLease>> {
        // A lease is moved in or out in one step.
        self.port.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_ended(&self) -> bool {
        self.stop.is_cancelled() || self.kill.is_cancelled()
    }

    async fn unless_ended<T>(&self, work: impl Future<Output = T>) -> Result<T, StartError> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(StartError::Cancelled),
            () = self.kill.cancelled() => Err(StartError::Cancelled),
            done = work => Ok(done),
        }
    }
}

async fn killed(sandbox: &Sandbox) -> Exit {
    sandbox.kill();
    in_time(KILL_LIMIT, exited(sandbox)).await
}

async fn exited(sandbox: &Sandbox) -> Exit {
    let exit = sandbox.exited().await;
    Exit { status: exit.status, description: exit.description }
}

fn sample(sandbox: &Sandbox) -> Sample {
    let usage = sandbox.usage();
    Sample { cpu: usage.cpu, memory: usage.memory, disk: usage.disk }
}

/// An error with its causes, `what: why: why that`.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
mod tests;
