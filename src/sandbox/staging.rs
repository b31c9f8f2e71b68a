//! Runs buildpacks.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use dewar_protocol::Bytes;
use tokio_util::sync::CancellationToken;

use crate::{EgressPolicy, OutputSink, World};

/// A buildpack, ready to run. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Buildpack {
    digest: String,
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
    /// It failed after the disk quota was used up.
    #[error("run the buildpack: disk quota of {limit} bytes used up", limit = limit.0)]
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
    /// SHA-256 of the component's bytes in lower-case hex.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Whether the buildpack is for this package: the name under which the developer shall see it, or none.
    ///
    /// # Errors
    /// See [`BuildpackError`].
    pub async fn detect(&self, _run: BuildpackRun) -> Result<Option<String>, BuildpackError> {
        todo!()
    }

    /// Writes the droplet.
    ///
    /// # Errors
    /// See [`BuildpackError`].
    pub async fn compile(&self, _run: BuildpackRun) -> Result<(), BuildpackError> {
        todo!()
    }

    /// How to run what `compile` wrote.
    ///
    /// # Errors
    /// See [`BuildpackError`].
    pub async fn release(&self, _run: BuildpackRun) -> Result<Release, BuildpackError> {
        todo!()
    }
}
