//! What all sandboxes of a process share.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use dewar_protocol::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::{OnceCell, Semaphore};
use tracing::{info, warn};
use wasmtime::Engine;
use wasmtime::component::{Component, Linker};

use crate::artifacts::{ABI_DIGITS, Artifacts};
use crate::compile::{CompileLimits, Compilers};
use crate::core_dump;
use crate::crowd::Crowd;
use crate::engine::{self, Allocation, Calls, hex};
use crate::epoch::Ticker;
use crate::guest::{self, Guest};
use crate::lanes::GuestThreads;
use crate::network::{NetworkConfig, NetworkError, Networks};
use crate::program::Compiled;
use crate::{Buildpack, Exit, InstanceSpec, Program, ProgramError, Sandbox, instance};

/// Settings of [`Sandboxes`].
#[derive(Debug, Clone)]
pub struct SandboxConfig {
    /// Private directory for native code and its key; made with mode 0700.
    pub state_dir: PathBuf,
    /// Executable whose hidden sub-command `compile-component` calls [`crate::compile_child`].
    pub compiler: PathBuf,
    /// Limits on compiling.
    pub compile_limits: CompileLimits,
    /// Bytes of native code kept on disk; the least recently used goes first.
    pub artifact_bytes: Bytes,
    /// How guests reach the network.
    pub network: NetworkConfig,
    /// Whether the outputs of instances get a core dump when a guest traps.
    pub core_dumps: bool,
}

/// Why there can be no sandboxes.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The engine refuses its configuration or the host.
    #[error("make the wasm engine: {0}")]
    Engine(String),
    /// The threads that guests run on cannot be made.
    #[error("start threads for guests")]
    Threads(#[source] std::io::Error),
    /// The state directory cannot be used.
    #[error("use {path} for native code")]
    StateDir {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Guests cannot have a network.
    #[error(transparent)]
    Network(#[from] NetworkError),
}

/// Engines, linkers and native code, shared by all sandboxes of the process. Cheap to clone; when the last clone and the last
/// sandbox are gone, the threads end.
#[derive(Clone)]
pub struct Sandboxes(pub(crate) Arc<Shared>);

pub(crate) struct Shared {
    blocking: Machine,
    concurrent: Machine,
    artifacts: Artifacts,
    compilers: Compilers,
    /// By digest: everybody who asks for the same component at the same time waits for the same cell.
    loading: Mutex<HashMap<[u8; 32], Weak<Loaded>>>,
    pub(crate) networks: Networks,
    pub(crate) crowd: Arc<Crowd>,
    /// Of those who make core dumps.
    pub(crate) core_dump_turns: Arc<Semaphore>,
    _ticker: Ticker,
    pub(crate) threads: GuestThreads,
}

/// An engine, and what guests in it are granted.
struct Machine {
    engine: Engine,
    allocation: Allocation,
    linker: Linker<Guest>,
    /// Names the engine's native code.
    abi: String,
}

impl Machine {
    fn new(calls: Calls, core_dumps: bool) -> Result<Self, EngineError> {
        let broken = |error: wasmtime::Error| EngineError::Engine(format!("{error:#}"));
        let (engine, allocation) = engine::running(calls, core_dumps).map_err(broken)?;
        let linker = guest::linker(&engine, calls).map_err(broken)?;
        Ok(Self { abi: engine::artifact_abi(&engine), engine, allocation, linker })
    }
}

/// The outcome for one component, kept for as long as somebody holds its native code or waits for it.
pub(crate) type Loaded = OnceCell<Result<Compiled, ProgramError>>;

impl fmt::Debug for Sandboxes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sandboxes").field("allocation", &self.allocation()).finish_non_exhaustive()
    }
}

impl Sandboxes {
    /// Makes the engines and opens the cache of native code.
    ///
    /// # Errors
    /// When the host cannot run wasm, or `state_dir` cannot be used.
    pub fn new(config: SandboxConfig) -> Result<Self, EngineError> {
        let artifacts = Artifacts::open(&config.state_dir, config.artifact_bytes)?;
        let networks = Networks::new(&config.network)?;
        let machine = |calls| Machine::new(calls, config.core_dumps);
        let (blocking, concurrent) = (machine(Calls::Blocking)?, machine(Calls::Concurrent)?);
        let ticks = Arc::default();
        let ticker =
            Ticker::start(vec![blocking.engine.weak(), concurrent.engine.weak()], Arc::clone(&ticks)).map_err(EngineError::Threads)?;
        let threads = GuestThreads::start(ticks).map_err(EngineError::Threads)?;
        info!(allocation = %blocking.allocation, "wasm engines ready");
        if let Err(error) = artifacts.sweep(&[&blocking.abi[..ABI_DIGITS], &concurrent.abi[..ABI_DIGITS]]) {
            warn!(%error, "cannot remove native code of other engines");
        }
        Ok(Self(Arc::new(Shared {
            blocking,
            concurrent,
            artifacts,
            compilers: Compilers::new(config.compiler, config.compile_limits),
            loading: Mutex::new(HashMap::new()),
            networks,
            crowd: Arc::default(),
            core_dump_turns: Arc::new(Semaphore::new(core_dump::AT_A_TIME)),
            _ticker: ticker,
            threads,
        })))
    }

    /// How memories of most guests, those of WASI 0.2, are allocated on this host.
    #[must_use]
    pub fn allocation(&self) -> Allocation {
        self.0.blocking.allocation
    }

    /// Checks and compiles a component, or takes its native code from the cache. Callers that ask for the same component at the
    /// same time wait for one compilation.
    ///
    /// # Errors
    /// See [`ProgramError`].
    pub async fn program(&self, wasm: &Path) -> Result<Program, ProgramError> {
        let unreadable = |source| ProgramError::Read { path: wasm.to_owned(), source: Arc::new(source) };
        let size = tokio::fs::metadata(wasm).await.map_err(unreadable)?.len();
        self.check_size(size)?;
        let bytes = tokio::fs::read(wasm).await.map_err(unreadable)?;
        let (digest, compiled, loaded) = self.load(bytes.into()).await?;
        Program::link(digest, &compiled, loaded)
    }

    /// Runs a program. Returns when its start-up code has run, and for [`crate::World::Http`] requests can come.
    ///
    /// # Errors
    /// An instance that cannot start has ended.
    pub async fn start(&self, spec: InstanceSpec) -> Result<Sandbox, Exit> {
        instance::start(&self.0, spec).await
    }

    /// Checks and compiles a buildpack.
    ///
    /// # Errors
    /// See [`ProgramError`].
    pub async fn buildpack(&self, wasm: &[u8]) -> Result<Buildpack, ProgramError> {
        let (digest, compiled, loaded) = self.load(wasm.into()).await?;
        Buildpack::link(self.0.clone(), digest, &compiled, loaded)
    }

    fn check_size(&self, size: u64) -> Result<(), ProgramError> {
        let limit = self.0.compilers.limits().component;
        if size > limit.0 { Err(ProgramError::TooLarge { size: Bytes(size), limit }) } else { Ok(()) }
    }

    /// Digest and native code of a component, and what to hold so that the native code stays shared.
    async fn load(&self, wasm: Arc<[u8]>) -> Result<(String, Compiled, Arc<Loaded>), ProgramError> {
        self.check_size(wasm.len() as u64)?;
        let key: [u8; 32] = Sha256::digest(&wasm).into();
        let digest = hex(&key);
        let cell = self.0.cell(key);
        let (shared, producing) = (self.0.clone(), cell.clone());
        let name = digest.clone();
        // In a task of its own: a caller that goes away takes nothing from those who wait with it.
        let loading = self.0.threads.handle().spawn(async move { producing.get_or_init(|| shared.produce(&name, wasm)).await.clone() });
        let compiled = loading.await.map_err(|stopped| ProgramError::Compiler(stopped.to_string()))??;
        Ok((digest, compiled, cell))
    }
}

impl Shared {
    fn cell(&self, key: [u8; 32]) -> Arc<Loaded> {
        let mut loading = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        loading.retain(|_, cell| cell.strong_count() > 0);
        if let Some(cell) = loading.get(&key).and_then(Weak::upgrade) {
            return cell;
        }
        let cell = Arc::new(Loaded::new());
        loading.insert(key, Arc::downgrade(&cell));
        cell
    }

    fn machine(&self, calls: Calls) -> &Machine {
        match calls {
            Calls::Blocking => &self.blocking,
            Calls::Concurrent => &self.concurrent,
        }
    }

    async fn produce(self: &Arc<Self>, digest: &str, wasm: Arc<[u8]>) -> Result<Compiled, ProgramError> {
        let calls = Calls::needed_by(&wasm);
        match self.produce_for(calls, digest, &wasm).await {
            // It may be made of what only the other engine knows, and no name in it says so.
            Err(ProgramError::Invalid(_)) if calls == Calls::Blocking => self.produce_for(Calls::Concurrent, digest, &wasm).await,
            produced => produced,
        }
    }

    async fn produce_for(self: &Arc<Self>, calls: Calls, digest: &str, wasm: &[u8]) -> Result<Compiled, ProgramError> {
        let name = format!("{digest}-{}", &self.machine(calls).abi[..ABI_DIGITS]);
        if let Some(artifact) = self
            .aside({
                let name = name.clone();
                move |shared| shared.artifacts.load(&name)
            })
            .await?
        {
            match self.instantiate(calls, artifact).await {
                // It was ours and the engine still refuses it: compiled again, it may fit.
                Err(ProgramError::Invalid(error)) => warn!(name, error, "native code cannot be loaded"),
                loaded => return loaded,
            }
        }
        let artifact = self.compilers.compile(&name, calls, wasm).await?;
        let artifact = self
            .aside(move |shared| {
                // Without the cache it still runs, only the next start is slower.
                if let Err(error) = shared.artifacts.store(&name, &artifact) {
                    warn!(name, %error, "cannot keep native code");
                }
                artifact
            })
            .await?;
        self.instantiate(calls, artifact).await
    }

    async fn instantiate(self: &Arc<Self>, calls: Calls, artifact: Vec<u8>) -> Result<Compiled, ProgramError> {
        self.aside(move |shared| {
            let machine = shared.machine(calls);
            // SAFETY: these bytes, in memory that nobody else can write, either came from our own compiler just now or carried a
            // MAC under a key that only this user can read, made over what our own compiler produced for the same ABI.
            #[expect(unsafe_code, reason = "loading native code is what this crate is for")]
            let component = unsafe { Component::deserialize(&machine.engine, artifact) };
            Compiled::new(&machine.linker, component.map_err(|error| ProgramError::Invalid(format!("{error:#}")))?)
        })
        .await?
    }

    /// Does what would block a thread of the guests on another.
    async fn aside<T: Send + 'static>(self: &Arc<Self>, work: impl FnOnce(&Self) -> T + Send + 'static) -> Result<T, ProgramError> {
        let shared = self.clone();
        tokio::task::spawn_blocking(move || work(&shared)).await.map_err(|stopped| ProgramError::Compiler(stopped.to_string()))
    }
}
