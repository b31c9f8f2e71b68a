//! Puts an agent together, in the order in which things depend on each other, and takes it apart again.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dewar_bus::{Bus, BusError};
use dewar_core::{Cell, CellConfig, ComponentFacts, StagingConfig, Wall};
use dewar_protocol::{CellId, Mib, Secret};
use dewar_sandbox::{EngineError, SandboxConfig, Sandboxes};
use rand::rngs::{StdRng, SysRng};
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, info};

use crate::base_dir::{BaseDir, BaseDirError, PidFile, PidFileError};
use crate::config::AgentConfig;
use crate::driver::{Driver, REPORTS, REQUESTS};
use crate::droplet_store::DropletStore;
use crate::effects::{Droplets, Effects};
use crate::http::{self, Facts, StatusServer};
use crate::inbound::interests;
use crate::instances::{Instances, Means};
use crate::listener::Listener;
use crate::logs::Logs;
use crate::outbox::Outbox;
use crate::ports::Ports;
use crate::staging::{Stager, StagerConfig};
use crate::stagings::Stagings;
use crate::transfer::{NoTransfers, TransferConfig, Transfers};

/// For the last messages to reach the server.
const FLUSH_LIMIT: Duration = Duration::from_secs(5);

/// For tasks to end after the cell has said that all is over.
const TASKS_LIMIT: Duration = Duration::from_secs(10);

/// The exit code after a mistake of our own: `EX_SOFTWARE`.
const EXIT_MISTAKE: u8 = 70;

/// The image of this very process, also after the file that it came from was replaced: code must be compiled by the same version.
const OWN_EXECUTABLE: &str = "/proc/self/exe";

/// The daemon.
#[derive(Debug)]
pub struct Agent;

/// A running agent. It runs on when this is dropped, until its token is cancelled.
#[derive(Debug)]
pub struct AgentHandle {
    id: CellId,
    status_addr: SocketAddr,
    done: JoinHandle<u8>,
}

/// Why an agent did not start. Nothing is left running.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Its directory cannot be used.
    #[error(transparent)]
    BaseDir(#[from] BaseDirError),
    /// Its pid file cannot be written.
    #[error(transparent)]
    PidFile(#[from] PidFileError),
    /// Nobody knows under which address peers reach it.
    #[error("find this host's address (`local_ip` can name it)")]
    LocalIp(#[source] io::Error),
    /// The operating system has no randomness.
    #[error("draw random numbers")]
    Random(#[source] rand::rngs::SysError),
    /// The address of `/varz` and `/healthz` cannot be bound.
    #[error("bind the status server to {address}")]
    Status {
        /// Which.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No HTTP clients.
    #[error(transparent)]
    Transfers(#[from] NoTransfers),
    /// No sandboxes.
    #[error(transparent)]
    Sandboxes(#[from] EngineError),
    /// The droplets on disk cannot be used.
    #[error("open the droplets in {path}")]
    Droplets {
        /// Their directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The directories for staging cannot be used.
    #[error("make room for staging in {path}")]
    Staging {
        /// Below which directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No thread for the apps' logs.
    #[error("start a thread")]
    Thread(#[source] io::Error),
    /// The bus does not accept its configuration.
    #[error("use the bus")]
    Bus(#[from] BusError),
}

impl AgentHandle {
    /// Where `/varz` and `/healthz` are.
    #[must_use]
    pub fn status_addr(&self) -> SocketAddr {
        self.status_addr
    }

    /// The agent's id on the bus.
    #[must_use]
    pub fn id(&self) -> &CellId {
        &self.id
    }

    /// Waits until the agent has ended, and returns the process's exit code. After the token is cancelled this takes as long as the
    /// instances need to stop, at most the cell's limit of 30 s and some seconds to clean up.
    pub async fn wait(self) -> u8 {
        self.done.await.unwrap_or(EXIT_MISTAKE)
    }
}

impl Agent {
    /// Starts an agent, which runs until `stop` is cancelled. A NATS server need not be there yet.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn start(config: AgentConfig, stop: CancellationToken) -> Result<AgentHandle, AgentError> {
        let host = Host::prepare(&config).await?;
        let (id, status_addr) = (host.facts.id.clone(), host.status_addr);
        let (bus, bus_events) = Bus::connect(config.bus.clone()).await?;
        let greeting_inbox = bus.new_inbox();
        let interests = interests(&config, &id, &greeting_inbox);

        let tasks = TaskTracker::new();
        let (ended, listening) = (CancellationToken::new(), CancellationToken::new());
        let (requests, asked) = mpsc::channel(REQUESTS);
        let (reports, reported) = mpsc::channel(REPORTS);
        let logs = Logs::start(bus.clone(), &tasks).map_err(AgentError::Thread)?;
        let (outbox, sender) = Outbox::new(bus.clone(), greeting_inbox);
        let effects = host.effects(&config, &outbox, &logs, reports, &tasks, &listening);
        let driver =
            Driver { cell: Cell::new(host.cell_config(&config), host.rng), effects, requests: asked, reports: reported, bus_events, stop };
        let status = StatusServer {
            listener: host.status_listener,
            facts: host.facts,
            requests: requests.clone(),
            bus: bus.clone(),
            outbox,
            logs: logs.clone(),
            log_counts: config.logging.counts.clone(),
        };

        let subscribed = Listener::new(requests, logs).listen(&bus, interests, &tasks, &listening).await;
        subscribed.inspect_err(|_| listening.cancel())?;
        let sender = tokio::spawn(sender);
        tasks.spawn(status.run(tasks.clone(), ended.clone()));
        info!(%id, base_dir = %host.base_dir.paths().base().display(), status = %status_addr, "agent started");
        let running = Running { bus, tasks, ended, listening, sender, _base_dir: host.base_dir, _pid_file: host.pid_file };
        Ok(AgentHandle { id, status_addr, done: tokio::spawn(running.until_end(driver)) })
    }
}

/// Everything about this host and process that has to be there before the bus matters.
struct Host {
    base_dir: BaseDir,
    pid_file: Option<PidFile>,
    rng: StdRng,
    ip: IpAddr,
    status_listener: tokio::net::TcpListener,
    status_addr: SocketAddr,
    facts: Facts,
    sandboxes: Sandboxes,
    droplets: DropletStore,
    stager: Option<Stager>,
    first_port: u16,
}

impl Host {
    async fn prepare(config: &AgentConfig) -> Result<Self, AgentError> {
        let base_dir = BaseDir::claim(&config.base_dir)?;
        let pid_file = config.pid_file.as_deref().map(PidFile::create).transpose()?;
        let mut rng = StdRng::try_from_rng(&mut SysRng).map_err(AgentError::Random)?;
        let ip = config.local_ip.map_or_else(local_ip, Ok).map_err(AgentError::LocalIp)?;
        let id = CellId(format!("{}-{}", config.index, hex(&mut rng)));
        let wanted = SocketAddr::new(ip, config.status.port);
        let bound = http::bind(ip, config.status.port).await.and_then(|listener| Ok((listener.local_addr()?, listener)));
        let (status_addr, status_listener) = bound.map_err(|source| AgentError::Status { address: wanted, source })?;
        let user = config.status.user.clone().unwrap_or_else(|| hex(&mut rng));
        let password = config.status.password.clone().map_or_else(|| hex(&mut rng), |password| password.0);
        let transfers = Transfers::new(TransferConfig::default())?;
        let sandboxes = Sandboxes::new(SandboxConfig {
            state_dir: base_dir.paths().artifacts(),
            compiler: config.compiler.clone().unwrap_or_else(|| PathBuf::from(OWN_EXECUTABLE)),
            compile_limits: config.compile,
            artifact_bytes: config.artifact_bytes,
        })?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let facts = Facts {
            id,
            index: config.index,
            host: status_addr.to_string(),
            credentials: Secret((user, password)),
            start: Wall(now).to_utc_text(),
            started: Instant::now(),
            sandbox_allocation: sandboxes.allocation().to_string(),
        };
        let path = base_dir.paths().droplets();
        let droplets = DropletStore::open(&path, transfers.clone()).map_err(|source| AgentError::Droplets { path, source })?;
        let stager = config.staging.enabled.then(|| stager(config, &base_dir, &sandboxes, &droplets, transfers)).transpose()?;
        let first_port = rng.random_range(config.instance.ports.clone());
        Ok(Self { base_dir, pid_file, rng, ip, status_listener, status_addr, facts, sandboxes, droplets, stager, first_port })
    }

    fn cell_config(&self, config: &AgentConfig) -> CellConfig {
        let component =
            ComponentFacts { host: self.facts.host.clone(), credentials: self.facts.credentials.clone(), start: self.facts.start.clone() };
        let cell = CellConfig::new(self.facts.id.clone(), self.ip.to_string(), component);
        CellConfig {
            index: config.index,
            stacks: config.stacks.clone(),
            zone: config.zone.clone(),
            capacity: config.capacity,
            intervals: config.intervals,
            health_check_timeout: config.health_check_timeout,
            staging: StagingConfig {
                enabled: config.staging.enabled,
                memory: Mib(config.staging.memory_mib.into()),
                disk: Mib(config.staging.disk_mib.into()),
                ..cell.staging
            },
            crash_lifetime: config.crash_lifetime,
            exited_reasons: config.compat.exited_reasons,
            ..cell
        }
    }

    fn effects(
        &self,
        config: &AgentConfig,
        outbox: &Outbox,
        logs: &Logs,
        reports: mpsc::Sender<dewar_core::Input>,
        tasks: &TaskTracker,
        listening: &CancellationToken,
    ) -> Effects {
        let instances = Instances::new(Means {
            sandboxes: self.sandboxes.clone(),
            droplets: self.droplets.clone(),
            ports: Ports::new(self.ip, config.instance.ports.clone(), self.first_port),
            logs: logs.clone(),
            paths: self.base_dir.paths().clone(),
            ip: self.ip,
            settings: config.instance.clone(),
            // Starting is a mix of disk and processor work; twice the cores keep both busy.
            concurrent_starts: 2 * std::thread::available_parallelism().map_or(2, usize::from),
            reports: reports.clone(),
            tasks: tasks.clone(),
        });
        let stagings = self.stager.clone().map(|stager| Stagings::new(stager, logs.clone(), reports.clone(), tasks.clone()));
        let droplets = Droplets::new(self.droplets.clone(), reports, tasks.clone());
        Effects { outbox: outbox.clone(), instances, stagings, droplets, logs: logs.clone(), listening: listening.clone() }
    }
}

fn stager(
    config: &AgentConfig,
    base_dir: &BaseDir,
    sandboxes: &Sandboxes,
    droplets: &DropletStore,
    transfers: Transfers,
) -> Result<Stager, AgentError> {
    let path = base_dir.paths().base().to_owned();
    let settings = StagerConfig {
        base_dir: path.clone(),
        stacks: config.stacks.clone(),
        max_duration: config.staging.duration,
        inodes: config.staging.inodes,
    };
    let stager = Stager::new(settings, sandboxes.clone(), droplets.clone(), transfers);
    stager.map_err(|source| AgentError::Staging { path, source })
}

/// What lives as long as the agent, and what is needed to end it.
struct Running {
    bus: Bus,
    tasks: TaskTracker,
    /// Ends the status server.
    ended: CancellationToken,
    /// Ends the subscriptions.
    listening: CancellationToken,
    /// The outbox's task.
    sender: JoinHandle<()>,
    _base_dir: BaseDir,
    _pid_file: Option<PidFile>,
}

impl Running {
    async fn until_end(self, driver: Driver) -> u8 {
        let instances = driver.effects.instances.clone();
        let stagings = driver.effects.stagings.clone();
        let code = tokio::spawn(driver.run()).await.unwrap_or_else(|error| {
            error!(%error, "driver failed");
            EXIT_MISTAKE
        });
        self.listening.cancel();
        self.ended.cancel();
        instances.kill_all();
        stagings.iter().for_each(Stagings::cancel_all);
        drop((instances, stagings));
        self.tasks.close();
        if timeout(TASKS_LIMIT, self.tasks.wait()).await.is_err() {
            error!(tasks = self.tasks.len(), "tasks do not end, they are given up");
        }
        // With the driver and the status server the outbox's last owners are gone.
        let sent = timeout(FLUSH_LIMIT, async {
            if let Err(error) = self.sender.await {
                error!(%error, "outbox failed");
            }
            self.bus.flush(FLUSH_LIMIT).await
        });
        match sent.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(%error, "bus not flushed"),
            Err(_) => error!(limit = ?FLUSH_LIMIT, "messages do not reach the bus, they are given up"),
        }
        info!(code, "agent ended");
        code
    }
}

/// The address that packets to the world would have; none is sent.
fn local_ip() -> io::Result<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect((Ipv4Addr::new(1, 2, 3, 4), 1))?;
    Ok(socket.local_addr()?.ip())
}

/// 32 hex digits.
fn hex(rng: &mut StdRng) -> String {
    format!("{:032x}", rng.random::<u128>())
}
