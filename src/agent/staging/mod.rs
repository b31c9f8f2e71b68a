//! From package to droplet.
//!
//! ```text
//! setup:    the operator's buildpacks · the app's own · package and buildpack cache        (then the first reply)
//! staging:  unpack → fingerprint → known? ─ yes ──────────────────────────────────────────────────┐
//!                                     └ no → detect → compile → release → check, pack → store ──┴→ upload
//! ```
//!
//! Each staging has a directory of its own and shares nothing with others but what is named by its content. It ends at once when
//! it is stopped, and whatever its end, its directory is gone.

mod ahead;
mod build;
mod buildpack_cache;
mod buildpacks;
mod cache;
mod droplet;
mod failure;
mod fingerprint;
mod info;
mod loaded;
mod size;
mod task;
mod upload;
mod workspace;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dewar_core::{StagedDroplet, StagingError, StagingSpec};
use dewar_protocol::{AdminBuildpack, DropletSha1, LogStream};
use dewar_sandbox::{OperatorEgress, OutputSink, Sandboxes};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::buildpack_cache::BuildpackCaches;
use self::buildpacks::AdminBuildpacks;
use self::cache::OutcomeCache;
pub(crate) use self::info::read_text;
pub use self::info::{InvalidInfo, StagingInfo};
use self::loaded::LoadedBuildpacks;
use self::task::{Phase, Task};
pub(crate) use self::workspace::Workspaces;
use crate::droplet_store::DropletStore;
use crate::transfer::Transfers;

/// Settings of a [`Stager`].
#[derive(Debug, Clone)]
pub struct StagerConfig {
    /// The agent's own directory: `staging`, `admin_buildpacks`, `buildpack_caches` and `staging_cache` are made in it. The droplet
    /// store must be on the same file system.
    pub base_dir: PathBuf,
    /// Names of the stacks that can be staged for; the first is the default.
    pub stacks: Vec<String>,
    /// For all of unpacking and running buildpacks; downloads and uploads have bounds of their own.
    pub max_duration: Duration,
    /// Files and directories of package, cache and droplet together.
    pub inodes: u64,
    /// Whom buildpacks may talk to besides what a task's own rules allow, and whom never.
    pub egress: OperatorEgress,
}

/// Why staging failed.
#[derive(Debug, Clone, PartialEq)]
pub struct StagingFailed {
    /// Before [`Progress::SetUp`].
    pub during_setup: bool,
    /// For the reply.
    pub error: StagingError,
}

/// What a staging has got to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// The buildpacks are about to run.
    SetUp,
    /// The droplet is stored here, and is about to be uploaded.
    Stored(DropletSha1),
}

/// Turns packages into droplets. Cheap to clone; any number of stagings at a time, of one app or of many.
#[derive(Debug, Clone)]
pub struct Stager(Arc<Means>);

/// What all stagings share.
#[derive(Debug)]
struct Means {
    config: StagerConfig,
    workspaces: Arc<Workspaces>,
    sandboxes: Sandboxes,
    droplets: DropletStore,
    transfers: Transfers,
    admin_buildpacks: AdminBuildpacks,
    buildpack_caches: BuildpackCaches,
    outcomes: OutcomeCache,
    loaded: LoadedBuildpacks,
}

/// The directory of a staging, for tests of others.
#[cfg(test)]
pub(crate) fn test_workspace(all: &Arc<Workspaces>) -> impl Drop + use<> {
    workspace::Workspace::create(all).unwrap()
}

impl Stager {
    /// Makes the directories that staging needs, and removes what a previous process left behind.
    ///
    /// # Errors
    /// When a directory cannot be made or emptied.
    pub fn new(config: StagerConfig, sandboxes: Sandboxes, droplets: DropletStore, transfers: Transfers) -> io::Result<Self> {
        let workspaces = Workspaces::prepare(config.base_dir.join("staging"))?;
        let admin_buildpacks = AdminBuildpacks::open(config.base_dir.join("admin_buildpacks"))?;
        let buildpack_caches = BuildpackCaches::open(config.base_dir.join("buildpack_caches"))?;
        let outcomes = OutcomeCache::open(config.base_dir.join("staging_cache"))?;
        let loaded = LoadedBuildpacks::default();
        let means = Means { config, workspaces, sandboxes, droplets, transfers, admin_buildpacks, buildpack_caches, outcomes, loaded };
        Ok(Self(Arc::new(means)))
    }

    /// The directories of stagings under way.
    pub(crate) fn workspaces(&self) -> Arc<Workspaces> {
        Arc::clone(&self.0.workspaces)
    }

    /// Fetches those of the operator's buildpacks that are not here yet, until `stop` is cancelled. What fails is logged, and left to
    /// the staging that needs it.
    pub async fn fetch_ahead(&self, buildpacks: &[AdminBuildpack], stop: &CancellationToken) {
        self.0.admin_buildpacks.fetch_ahead(buildpacks, &self.0.transfers, stop).await;
    }

    /// Stages, and tells each [`Progress`] once, in its order. On success the droplet is in the store, and uploaded.
    ///
    /// # Errors
    /// See [`StagingFailed`]. Once `stop` is cancelled the text is `Error staging: task stopped`.
    pub async fn run(
        &self,
        spec: &StagingSpec,
        log: OutputSink,
        tell: impl Fn(Progress) + Send + Sync,
        stop: CancellationToken,
    ) -> Result<StagedDroplet, StagingFailed> {
        // What runs on other threads is told to end also when this future is dropped.
        let stop = stop.child_token();
        let stop_with_this = stop.clone().drop_guard();
        let mut task = Task::new(Arc::clone(&self.0), spec, Arc::clone(&log), stop);
        let outcome = task.run(&tell).await;
        let during_setup = task.phase() == Phase::Setup;
        drop(stop_with_this);
        task.clean_up().await;
        outcome
            .map_err(|failure| {
                let error = StagingError::from(failure);
                warn!(cause = error.message, during_setup, "staging failed");
                log.line(LogStream::Err, &format!("Staging failed: {}", error.message));
                StagingFailed { during_setup, error }
            })
            .inspect(|droplet| info!(droplet_sha1 = %droplet.sha1, "staged"))
    }
}
