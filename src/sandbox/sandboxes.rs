//! What all sandboxes of a process share.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use dewar_protocol::Bytes;

use crate::{Buildpack, Exit, InstanceSpec, Program, ProgramError, Sandbox};

/// What compiling one component may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompileLimits {
    /// Address space of the compiler.
    pub memory: Bytes,
    /// CPU time of the compiler.
    pub cpu: Duration,
    /// Time on the clock.
    pub wall: Duration,
    /// Size of the component.
    pub component: Bytes,
}

impl Default for CompileLimits {
    fn default() -> Self {
        Self { memory: Bytes(4 << 30), cpu: Duration::from_secs(120), wall: Duration::from_secs(120), component: Bytes(64 << 20) }
    }
}

/// Settings of [`Sandboxes`].
#[derive(Debug, Clone)]
pub struct SandboxConfig {
    /// Private directory for native code and its key; made with mode 0700.
    pub state_dir: PathBuf,
    /// Executable whose hidden sub-command `compile-component` calls [`compile_child`].
    pub compiler: PathBuf,
    /// Limits on compiling.
    pub compile_limits: CompileLimits,
    /// Bytes of native code kept on disk; the least recently used goes first.
    pub artifact_bytes: Bytes,
}

/// Why there can be no sandboxes.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The engine refuses its configuration or the host.
    #[error("make the wasm engine: {0}")]
    Engine(String),
    /// The state directory cannot be used.
    #[error("use {path} for native code")]
    StateDir {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Engine, linker and native code, shared by all sandboxes of the process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Sandboxes {}

impl Sandboxes {
    /// Makes the engine and opens the cache of native code.
    ///
    /// # Errors
    /// When the host cannot run wasm, or `state_dir` cannot be used.
    pub fn new(_config: SandboxConfig) -> Result<Self, EngineError> {
        todo!()
    }

    /// Checks and compiles a component, or takes its native code from the cache. Callers that ask for the same component at the
    /// same time wait for one compilation.
    ///
    /// # Errors
    /// See [`ProgramError`].
    pub async fn program(&self, _wasm: &Path) -> Result<Program, ProgramError> {
        todo!()
    }

    /// Runs a program. Returns when its start-up code has run (http) or begins to run (command).
    ///
    /// # Errors
    /// An instance that cannot start has ended.
    pub async fn start(&self, _spec: InstanceSpec) -> Result<Sandbox, Exit> {
        todo!()
    }

    /// Checks and compiles a buildpack.
    ///
    /// # Errors
    /// See [`ProgramError`].
    pub async fn buildpack(&self, _wasm: &[u8]) -> Result<Buildpack, ProgramError> {
        todo!()
    }
}

/// The body of the hidden sub-command `compile-component`.
#[must_use]
pub fn compile_child() -> ExitCode {
    todo!()
}
