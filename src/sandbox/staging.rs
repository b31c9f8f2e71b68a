//! Runs buildpacks: components of the world `dewar:buildpack`, each step in a store of its own.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dewar_protocol::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use wasmtime::Store;
use wasmtime_wasi::FsPerms;

use self::bindings::BuildpackPre;
use self::bindings::exports::dewar::buildpack::lifecycle::World as WitWorld;
use crate::alarm::TRAP_GRACE;
use crate::cpu::{CpuAccount, CpuQuota};
use crate::given::{Given, Mount};
use crate::guest::{Blueprint, Guest};
use crate::handles::Handles;
use crate::ledger::{DiskLimit, Ledger};
use crate::limits::{Mebibytes, MemoryBudget, Refused};
use crate::network::{InstanceNetwork, Sockets};
use crate::outbound::Outbound;
use crate::output::Log;
use crate::program::Compiled;
use crate::sandboxes::{Loaded, Shared};
use crate::{EgressPolicy, OutputSink, ProgramError, World, trap};

mod bindings {
    wasmtime::component::bindgen!({
        path: "../../guest-sdk/wit",
        world: "dewar:buildpack/buildpack",
        exports: { default: async },
    });
}

/// Descriptors, streams and other handles that a buildpack may hold at a time.
const OPEN_FILES: u32 = 1024;
/// Of the CPU, as the DEA gives to a staging task by default: twice what an instance has at most.
const CPU_SHARES: u32 = 512;

/// A buildpack, ready to run. Cheap to clone.
#[derive(Clone)]
pub struct Buildpack(Arc<Linked>);

struct Linked {
    digest: String,
    pre: BuildpackPre<Guest>,
    shared: Arc<Shared>,
    /// Others who ask for the component while this buildpack lives share its native code.
    _loaded: Arc<Loaded>,
}

impl fmt::Debug for Buildpack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buildpack").field("digest", &self.0.digest).finish_non_exhaustive()
    }
}

/// What one step of a buildpack may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BuildpackLimits {
    /// Linear memories and tables.
    pub memory: Bytes,
    /// Bytes in cache and droplet together; what is there at the start counts.
    pub disk: Bytes,
    /// Files and directories in cache and droplet together.
    pub inodes: u64,
    /// Time on the clock.
    pub wall: Duration,
}

/// One step of a buildpack. What is mounted how follows from the step.
#[derive(Clone)]
pub struct BuildpackRun {
    /// The package, seen read-only as `/app`.
    pub app_dir: PathBuf,
    /// Seen as `/cache` by compile (writable); not by detect and release.
    pub cache_dir: Option<PathBuf>,
    /// Seen as `/droplet` by compile (writable) and release (read-only); not by detect.
    pub droplet_dir: Option<PathBuf>,
    /// Environment.
    pub environment: Vec<(String, String)>,
    /// What it may use.
    pub limits: BuildpackLimits,
    /// Whom it may talk to.
    pub egress: EgressPolicy,
    /// Where its lines go: the staging log.
    pub output: OutputSink,
    /// Ends the step early.
    pub stop: CancellationToken,
}

/// How to run what a buildpack made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Release {
    /// Process name to command.
    pub process_types: BTreeMap<String, String>,
    /// Which world to call; `None`: whichever there is, http first.
    pub world: Option<World>,
}

/// Why a step of a buildpack failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BuildpackError {
    /// The buildpack itself says so, in words for the developer.
    #[error("{0}")]
    Refused(String),
    /// It trapped; the text has the message and a backtrace.
    #[error("run the buildpack: {0}")]
    Trapped(String),
    /// It called `exit`.
    #[error("run the buildpack: it exited with status {0} instead of returning")]
    Exited(i32),
    /// It took too long.
    #[error("run the buildpack within {0:?}")]
    TimedOut(Duration),
    /// It needs more memory than it may use; the text has the numbers.
    #[error("run the buildpack: {0}")]
    OutOfMemory(String),
    /// It failed after it had used up the disk quota or the number of files.
    #[error("run the buildpack: disk quota of {} used up", Mebibytes(*limit))]
    DiskFull {
        /// The quota.
        limit: Bytes,
    },
    /// Somebody cancelled it.
    #[error("run the buildpack: cancelled")]
    Cancelled,
    /// The agent could not set the step up.
    #[error("set up the buildpack: {0}")]
    Setup(String),
}

impl Buildpack {
    pub(crate) fn link(shared: Arc<Shared>, digest: String, compiled: &Compiled, loaded: Arc<Loaded>) -> Result<Self, ProgramError> {
        let pre = BuildpackPre::new(compiled.pre.clone()).map_err(|error| ProgramError::NoBuildpack(format!("{error:#}")))?;
        Ok(Self(Arc::new(Linked { digest, pre, shared, _loaded: loaded })))
    }

    /// SHA-256 of the component's bytes in lower-case hex.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.0.digest
    }

    /// Whether the buildpack is for this package: the name under which the developer shall see it, or none.
    ///
    /// # Errors
    /// See [`BuildpackError`].
    pub async fn detect(&self, run: BuildpackRun) -> Result<Option<String>, BuildpackError> {
        let mounts = vec![package(&run)];
        self.step(run, mounts, |buildpack, store| buildpack.dewar_buildpack_lifecycle().call_detect(store).boxed()).await
    }

    /// Writes the droplet.
    ///
    /// # Errors
    /// See [`BuildpackError`].
    pub async fn compile(&self, run: BuildpackRun) -> Result<(), BuildpackError> {
        let cache = run.cache_dir.clone().map(|host| Mount { host, guest: "/cache", perms: FsPerms::ReadWrite });
        let droplet = run.droplet_dir.clone().map(|host| Mount { host, guest: "/droplet", perms: FsPerms::ReadWrite });
        let mounts = [package(&run)].into_iter().chain(cache).chain(droplet).collect();
        self.step(run, mounts, |buildpack, store| buildpack.dewar_buildpack_lifecycle().call_compile(store).boxed()).await
    }

    /// How to run what `compile` wrote.
    ///
    /// # Errors
    /// See [`BuildpackError`].
    pub async fn release(&self, run: BuildpackRun) -> Result<Release, BuildpackError> {
        let droplet = run.droplet_dir.clone().map(|host| Mount { host, guest: "/droplet", perms: FsPerms::ReadOnly });
        let mounts = [package(&run)].into_iter().chain(droplet).collect();
        let info = self.step(run, mounts, |buildpack, store| buildpack.dewar_buildpack_lifecycle().call_release(store).boxed()).await?;
        Ok(Release {
            process_types: info.process_types.into_iter().map(|process| (process.name, process.command)).collect(),
            world: info.world.map(|world| match world {
                WitWorld::Http => World::Http,
                WitWorld::Command => World::Command,
            }),
        })
    }

    /// Runs one step on the guests' threads. A caller that goes away ends it.
    async fn step<T: Send + 'static>(&self, run: BuildpackRun, mounts: Vec<Mount>, call: Call<T>) -> Result<T, BuildpackError> {
        let running = self.0.shared.threads.handle().spawn(run_step(self.0.clone(), run, mounts, call));
        AbortOnDropHandle::new(running).await.unwrap_or_else(|panic| Err(BuildpackError::Setup(format!("the sandbox failed: {panic}"))))
    }
}

impl Linked {
    async fn run<T>(&self, store: &mut Store<Guest>, call: Call<T>) -> wasmtime::Result<Result<T, String>> {
        let buildpack = self.pre.instantiate_async(&mut *store).await?;
        call(&buildpack, store).await
    }
}

/// Calls one function of a buildpack.
type Call<T> = for<'a> fn(&'a bindings::Buildpack, &'a mut Store<Guest>) -> BoxFuture<'a, wasmtime::Result<Result<T, String>>>;

async fn run_step<T: Send + 'static>(
    linked: Arc<Linked>,
    run: BuildpackRun,
    mounts: Vec<Mount>,
    call: Call<T>,
) -> Result<T, BuildpackError> {
    let limits = run.limits;
    let setup = |error: &dyn fmt::Display| BuildpackError::Setup(format!("{error:#}"));
    let writable: Vec<PathBuf> = mounts.iter().filter(|mount| mount.perms == FsPerms::ReadWrite).map(|mount| mount.host.clone()).collect();
    let limit = DiskLimit { bytes: limits.disk.0, inodes: limits.inodes };
    let surveyed = tokio::task::spawn_blocking(move || Ledger::open(writable.iter().map(PathBuf::as_path), limit)).await;
    let ledger = surveyed.map_err(|stopped| setup(&stopped))?.map_err(|error| setup(&error))?;
    let log = Log::new(run.output);
    ledger.tell(log.clone());
    let network = InstanceNetwork::new(linked.shared.networks.alone(), run.egress);
    let blueprint = Blueprint {
        given: Given::new(Vec::new(), run.environment, mounts),
        sockets: Sockets { serve: None, network: network.clone() },
        outbound: Outbound::new(network, log.clone()),
        log: log.clone(),
        memory: MemoryBudget::new(limits.memory),
        ledger: ledger.clone(),
        handles: Handles::new(OPEN_FILES, log),
    };
    let out_of_memory = |refused: Refused| BuildpackError::OutOfMemory(refused.to_string());
    let mut store = blueprint.store(linked.pre.engine()).map_err(|error| match error.downcast::<Refused>() {
        Ok(refused) => out_of_memory(refused),
        Err(error) => setup(&error),
    })?;
    store.data_mut().memory().begin_call().map_err(out_of_memory)?;
    store.data().alarm().set(Instant::now() + limits.wall);
    let cpu = CpuAccount::new(linked.shared.threads.slow(), CpuQuota { shares: CPU_SHARES, cap: None });
    let work = cpu.schedule({
        let linked = linked.clone();
        async move {
            let outcome = linked.run(&mut store, call).await;
            (store, outcome)
        }
    });
    let (mut store, outcome) = tokio::select! {
        biased;
        () = run.stop.cancelled() => return Err(BuildpackError::Cancelled),
        outcome = tokio::time::timeout(limits.wall + TRAP_GRACE, work) => outcome.map_err(|_| BuildpackError::TimedOut(limits.wall))?,
    };
    let failure = match outcome {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(text)) => BuildpackError::Refused(text),
        Err(error) => match (trap::exit_status(&error), store.data_mut().take_refused_memory()) {
            (Some(status), _) => BuildpackError::Exited(status),
            (None, Some(refused)) => BuildpackError::OutOfMemory(refused.to_string()),
            (None, None) if store.data().alarm().has_gone() => BuildpackError::TimedOut(limits.wall),
            (None, None) => BuildpackError::Trapped(trap::describe(&error)),
        },
    };
    // Whatever it says itself, this is why.
    if ledger.has_refused() { Err(BuildpackError::DiskFull { limit: limits.disk }) } else { Err(failure) }
}

fn package(run: &BuildpackRun) -> Mount {
    Mount { host: run.app_dir.clone(), guest: "/app", perms: FsPerms::ReadOnly }
}
