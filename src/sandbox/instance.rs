//! One running program.

use std::any::Any;
use std::fmt;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dewar_protocol::Bytes;
use tokio::sync::watch;
use tokio::task::JoinError;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use wasmtime_wasi::FsPerms;

use crate::core_dump::CoreDumps;
use crate::cpu::{CpuAccount, CpuQuota};
use crate::given::{Given, Mount};
use crate::guest::Blueprint;
use crate::handles::Handles;
use crate::ledger::{DiskLimit, Ledger};
use crate::limits::MemoryBudget;
use crate::network::{InstanceNetwork, Sockets};
use crate::outbound::Outbound;
use crate::output::Log;
use crate::sandboxes::Shared;
use crate::{EgressPolicy, OutputSink, Program, World, command, http};

/// What one instance may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Linear memories and tables of all its stores together, and what the host holds for them.
    pub memory: Bytes,
    /// Bytes in `app_dir` and `tmp_dir` together; what is there at the start counts.
    pub disk: Bytes,
    /// Files and directories in both together.
    pub inodes: u64,
    /// Files and directories that it may have open at a time, all stores together. Each store may hold so many other handles too.
    pub open_files: u32,
    /// CPU time of all its stores together.
    pub cpu: CpuQuota,
}

/// Limits on what reaches an http instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpLimits {
    /// Requests in work at a time.
    pub concurrent_requests: usize,
    /// Requests waiting for one of them; one more is answered with 503.
    pub queued_requests: usize,
    /// Open connections; one more waits to be accepted.
    pub connections: usize,
    /// Bytes of a request's head.
    pub head_bytes: usize,
    /// Fields in a request's head.
    pub headers: usize,
    /// Bytes of a request's body.
    pub request_body: Bytes,
    /// Bytes of a response's body.
    pub response_body: Bytes,
    /// For the whole head to arrive; also how long a connection may be idle.
    pub head_timeout: Duration,
    /// For the start-up code of a store to run; that of a command too.
    pub startup_timeout: Duration,
    /// From the head's arrival to the response's head.
    pub response_timeout: Duration,
    /// From the head's arrival to the last byte of the response.
    pub total_timeout: Duration,
    /// Whether a store answers more than one request.
    pub instances: Instances,
    /// How many requests a store answers before it is replaced by a fresh one; of no meaning for [`Instances::Fresh`].
    pub requests_per_store: u32,
    /// How long the last store is kept without a request, and what the guest has in memory with it, where start-up code is quick; at
    /// least a millisecond.
    pub store_idle_timeout: Duration,
    /// How many requests a store of WASI 0.3 may have at a time, at least 1; of no meaning for 0.2, whose guests answer one after the
    /// other, and for [`Instances::Fresh`].
    pub concurrent_requests_per_store: usize,
}

/// What a request meets of those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Instances {
    /// The state that others left in memory: a store answers many requests, one after the other or, with WASI 0.3, side by side.
    #[default]
    Reuse,
    /// None: each request has a store that was never used. Costs more; stores are made ahead where memory allows.
    Fresh,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            concurrent_requests: 128,
            queued_requests: 256,
            connections: 1024,
            head_bytes: 64 << 10,
            headers: 100,
            request_body: Bytes(1 << 30),
            response_body: Bytes(1 << 30),
            head_timeout: Duration::from_secs(60),
            startup_timeout: Duration::from_secs(60),
            instances: Instances::default(),
            requests_per_store: 10_000,
            store_idle_timeout: Duration::from_secs(300),
            concurrent_requests_per_store: 16,
            response_timeout: Duration::from_secs(60),
            total_timeout: Duration::from_secs(900),
        }
    }
}

/// All that is needed to run a program.
pub struct InstanceSpec {
    /// What to run.
    pub program: Program,
    /// Which of its worlds; `None`: the first.
    pub world: Option<World>,
    /// Argument vector, the program's name first.
    pub arguments: Vec<String>,
    /// Environment.
    pub environment: Vec<(String, String)>,
    /// Seen as `/app`, writable.
    pub app_dir: PathBuf,
    /// Seen as `/tmp`, writable.
    pub tmp_dir: PathBuf,
    /// What it may use.
    pub quota: Quota,
    /// http: where to serve. command: dropped right before the guest may bind the same address.
    pub listener: Option<TcpListener>,
    /// The instance's address.
    pub address: SocketAddr,
    /// Of which app it is: instances of one app share their outgoing connections.
    pub app: String,
    /// Whom it may talk to.
    pub egress: EgressPolicy,
    /// Limits on what reaches it.
    pub http: HttpLimits,
    /// Where its lines go.
    pub output: OutputSink,
}

/// How an instance ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Exit status of the guest; −1 when there is none.
    pub status: i32,
    /// For the app's developer: one line, maybe followed by a backtrace.
    pub description: String,
}

/// What an instance uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SandboxUsage {
    /// CPU time since its start.
    pub cpu: Duration,
    /// Memory now.
    pub memory: Bytes,
    /// The most memory at a time since its start.
    pub memory_peak: Bytes,
    /// Disk now.
    pub disk: Bytes,
    /// Files and directories on it now.
    pub inodes: u64,
    /// Files and directories that are open now.
    pub open_files: u32,
}

impl Exit {
    pub(crate) fn failed(description: impl Into<String>) -> Self {
        Self { status: -1, description: description.into() }
    }

    /// A task of ours panicked, or was cut off.
    fn broken(cause: JoinError) -> Self {
        match cause.try_into_panic() {
            Ok(panic) => Self::panicked(&*panic),
            Err(cause) => Self::failed(format!("the sandbox failed: {cause}")),
        }
    }

    /// Our own code panicked.
    pub(crate) fn panicked(panic: &(dyn Any + Send)) -> Self {
        let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        let text = text.unwrap_or("it panicked");
        tracing::error!(text, "an instance's host code panicked");
        Self::failed(format!("the sandbox failed: {text}"))
    }

    /// The guest itself said it was done.
    pub(crate) fn exited(status: i32) -> Self {
        Self { status, description: "app instance exited".into() }
    }

    pub(crate) fn stopped() -> Self {
        Self { status: 0, description: "stopped".into() }
    }

    pub(crate) fn killed() -> Self {
        Self::failed("killed")
    }
}

/// A running instance. It is killed when the last clone is dropped. Cheap to clone.
#[derive(Clone)]
pub struct Sandbox(Arc<Running>);

struct Running {
    orders: Orders,
    meters: Meters,
    exit: watch::Receiver<Option<Exit>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.orders.kill.cancel();
    }
}

/// What an instance is told from outside.
#[derive(Clone, Default)]
pub(crate) struct Orders {
    pub(crate) wind_down: CancellationToken,
    pub(crate) stop: CancellationToken,
    pub(crate) kill: CancellationToken,
}

/// What an instance has used.
#[derive(Clone)]
pub(crate) struct Meters {
    pub(crate) cpu: Arc<CpuAccount>,
    pub(crate) memory: Arc<MemoryBudget>,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) handles: Arc<Handles>,
}

impl fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sandbox").field("exit", &*self.0.exit.borrow()).finish_non_exhaustive()
    }
}

impl Sandbox {
    /// What it uses, without touching the disk.
    #[must_use]
    pub fn usage(&self) -> SandboxUsage {
        let Meters { cpu, memory, ledger, handles } = &self.0.meters;
        SandboxUsage {
            cpu: cpu.total(),
            memory: memory.used(),
            memory_peak: memory.peak(),
            disk: ledger.bytes(),
            inodes: ledger.names(),
            open_files: handles.used(),
        }
    }

    /// Has an http instance close each connection after the answer that it gives next. It serves on, on new connections too: whoever has
    /// not heard yet that it is about to end gets answers. A command is left alone.
    pub fn wind_down(&self) {
        self.0.orders.wind_down.cancel();
    }

    /// Asks it to end: an http instance takes no more requests and finishes those in flight, however long they may take; a
    /// command, which cannot be asked, is interrupted.
    pub fn stop(&self) {
        self.0.orders.stop.cancel();
    }

    /// Ends it now. A guest that computes is stopped within a few milliseconds.
    pub fn kill(&self) {
        self.0.orders.kill.cancel();
    }

    /// Waits for its end, which comes once nothing of it runs any more. Any number of callers, at any time.
    pub async fn exited(&self) -> Exit {
        let mut exit = self.0.exit.clone();
        match exit.wait_for(Option::is_some).await.map(|exit| exit.clone()) {
            Ok(Some(exit)) => exit,
            // Its task is gone without a word: the guests' threads have been shut down.
            Ok(None) | Err(_) => Exit::killed(),
        }
    }
}

/// See [`crate::Sandboxes::start`].
pub(crate) async fn start(shared: &Arc<Shared>, spec: InstanceSpec) -> Result<Sandbox, Exit> {
    let (exited, exit) = watch::channel(None);
    let orders = Orders::default();
    let starting = shared.threads.handle().spawn(prepare(shared.clone(), spec, orders.clone()));
    // A caller that does not want it any more must not leave it running.
    let prepared = AbortOnDropHandle::new(starting).await.unwrap_or_else(|panic| Err(Exit::broken(panic)))?;
    let running = shared.threads.handle().spawn(prepared.run);
    let cpu = prepared.meters.cpu.clone();
    let keeping = shared.clone();
    shared.threads.handle().spawn(async move {
        let exit = running.await.unwrap_or_else(Exit::broken);
        cpu.is_gone().await;
        exited.send_replace(Some(exit));
        // Not before: with the last holder the threads end, and this task with them.
        drop(keeping);
    });
    Ok(Sandbox(Arc::new(Running { orders, meters: prepared.meters, exit })))
}

/// An instance whose start-up code has run.
struct Prepared {
    meters: Meters,
    run: std::pin::Pin<Box<dyn Future<Output = Exit> + Send>>,
}

async fn prepare(shared: Arc<Shared>, spec: InstanceSpec, orders: Orders) -> Result<Prepared, Exit> {
    let world = spec.world.or(spec.program.worlds().first().copied()).ok_or_else(|| Exit::failed("the droplet exports no world"))?;
    let limit = DiskLimit { bytes: spec.quota.disk.0, inodes: spec.quota.inodes };
    let directories = [spec.app_dir.clone(), spec.tmp_dir.clone()];
    let surveyed = tokio::task::spawn_blocking(move || Ledger::open(directories.iter().map(PathBuf::as_path), limit)).await;
    let ledger = surveyed.map_err(|stopped| Exit::failed(stopped.to_string()))?;
    let ledger = ledger.map_err(|error| Exit::failed(format!("the instance's directories cannot be read: {error}")))?;
    let log = Log::new(spec.output);
    ledger.tell(log.clone());
    let handles = Handles::new(spec.quota.open_files, log.clone());
    let cpu = CpuAccount::new(shared.threads.slow(), spec.quota.cpu);
    let meters = Meters { cpu, memory: MemoryBudget::new(spec.quota.memory), ledger, handles };
    let serve = (world == World::Command).then_some(spec.address);
    let network = InstanceNetwork::new(shared.networks.of_app(&spec.app), spec.egress);
    let mounts = vec![
        Mount { host: spec.app_dir, guest: "/app", perms: FsPerms::ReadWrite },
        Mount { host: spec.tmp_dir, guest: "/tmp", perms: FsPerms::ReadWrite },
    ];
    let name = spec.arguments.first().cloned().unwrap_or_default();
    let core_dumps = CoreDumps::new(name, log.clone(), shared.core_dump_turns.clone());
    let blueprint = Blueprint {
        given: Given::new(spec.arguments, spec.environment, mounts),
        sockets: Sockets { serve, network: network.clone() },
        outbound: Outbound::new(network, log.clone()),
        log,
        memory: meters.memory.clone(),
        ledger: meters.ledger.clone(),
        handles: meters.handles.clone(),
    };
    let cpu = meters.cpu.clone();
    let parts = Parts { shared, blueprint, core_dumps, cpu, orders, limits: spec.http, listener: spec.listener };
    let run = match world {
        World::Http => {
            let pre = spec.program.http().ok_or_else(|| Exit::failed("the droplet exports no wasi:http handler"))?;
            http::prepare(parts, pre.clone()).await?
        }
        World::Command => {
            let pre = spec.program.command().ok_or_else(|| Exit::failed("the droplet exports no wasi:cli/run"))?;
            command::prepare(parts, pre).await?
        }
    };
    Ok(Prepared { meters, run })
}

/// What the two worlds make an instance of.
pub(crate) struct Parts {
    pub(crate) shared: Arc<Shared>,
    pub(crate) blueprint: Blueprint,
    pub(crate) core_dumps: Arc<CoreDumps>,
    pub(crate) cpu: Arc<CpuAccount>,
    pub(crate) orders: Orders,
    pub(crate) limits: HttpLimits,
    pub(crate) listener: Option<TcpListener>,
}
