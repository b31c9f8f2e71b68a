//! What an operator decides about a cell.

use std::time::Duration;

use dewar_protocol::{Bytes, CellId, FileUrls, Mib, Secret};

use crate::reaper::DiskUse;
use crate::resources::Capacity;

/// Everything a cell is told when it is made.
#[derive(Debug, Clone, PartialEq)]
pub struct CellConfig {
    /// New at every process start.
    pub id: CellId,
    /// Job index; routers see it as `dea-<index>`.
    pub index: u32,
    /// The agent's address, as peers reach it.
    pub ip: String,
    /// Names of the stacks, best first: an app that names none gets the first. A start that names another one fails.
    pub stacks: Vec<String>,
    /// Availability zone, for placement.
    pub zone: String,
    /// What can be promised.
    pub capacity: Capacity,
    /// Instances registered at once, in any state. A start beyond it is refused without a trace on the bus: quotas of zero must
    /// not make the registry endless.
    pub max_instances: usize,
    /// How often things are published.
    pub intervals: Intervals,
    /// Base of the HTTPS API, for `dea.advertise`; `None`: Cloud Controllers are to use the bus.
    pub url: Option<String>,
    /// Whether heartbeats go another way too, so that they are due also while there is no bus.
    pub heartbeats_without_bus: bool,
    /// From launch to an open port, where the start message does not say.
    pub health_check_timeout: Duration,
    /// From the start message to launch: fetching and unpacking the droplet, making the sandbox. The edge keeps tighter limits;
    /// this one is for what slips through them.
    pub preparation_limit: Duration,
    /// Whether and how this agent stages.
    pub staging: StagingConfig,
    /// How long the newest crash of an app stays registered, and its files stay.
    pub crash_lifetime: Duration,
    /// While more than this is in use of the disk that crashes are kept on, the oldest crash goes.
    pub crash_disk: DiskUse,
    /// Bytes of droplets that no instance uses any more, kept because they may be used again. 0: they go at once, as the
    /// original's did.
    pub droplet_budget: Bytes,
    /// Which `droplet.exited` messages there are.
    pub exited_reasons: ExitedReasons,
    /// Whether the messages are sent that late versions of the original dropped: `dea.start`, `router.greet`, `staging.advertise`.
    pub legacy_messages: bool,
    /// Whether the agent announces itself as a component.
    pub announces_component: bool,
    /// Whether heartbeats are sent when there is no instance to tell of. Without them a health manager does not know the agent.
    pub empty_heartbeats: bool,
    /// How instances are moved elsewhere when the agent is told to leave.
    pub evacuation: Evacuation,
    /// Whether one heartbeat has to tell of all instances. Then no more are taken than it has room for in the largest message that
    /// the NATS server takes. Otherwise the edge may send it in parts.
    pub whole_heartbeats: bool,
    /// What the announcement as a component says.
    pub component: ComponentFacts,
    /// How files are reached; `None`: not at all.
    pub files: Option<FilesConfig>,
    /// After this long a shutdown ends whatever still runs.
    pub shutdown_limit: Duration,
}

impl CellConfig {
    /// A cell with the defaults of the original agent, which stages, and has one stack and 8 GiB of memory.
    #[must_use]
    pub fn new(id: CellId, ip: String, component: ComponentFacts) -> Self {
        Self {
            id,
            index: 0,
            ip,
            stacks: vec!["cflinuxfs2".to_owned()],
            zone: "default".to_owned(),
            capacity: Capacity { memory: Mib(8192), disk: Mib(16 * 1024 * 1024) },
            max_instances: 16_384,
            intervals: Intervals::default(),
            url: None,
            heartbeats_without_bus: false,
            health_check_timeout: Duration::from_secs(60),
            preparation_limit: Duration::from_secs(15 * 60),
            staging: StagingConfig::default(),
            crash_lifetime: Duration::from_secs(3600),
            crash_disk: DiskUse { blocks: 0.8, inodes: 0.8 },
            droplet_budget: Bytes(10 << 30),
            exited_reasons: ExitedReasons::Classic,
            legacy_messages: true,
            announces_component: true,
            empty_heartbeats: true,
            evacuation: Evacuation::default(),
            whole_heartbeats: true,
            component,
            files: None,
            shutdown_limit: Duration::from_secs(30),
        }
    }
}

/// How often things are published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Intervals {
    /// `dea.heartbeat`. Health managers call an agent lost after 30 s without one.
    pub heartbeat: Duration,
    /// `dea.advertise` and `staging.advertise`. A Cloud Controller forgets an agent after 10 s without one.
    pub advertise: Duration,
    /// `router.register` of every route; a router that wants it more often gets it more often.
    pub router_register: Duration,
}

impl Default for Intervals {
    fn default() -> Self {
        Self { heartbeat: Duration::from_secs(10), advertise: Duration::from_secs(5), router_register: Duration::from_secs(20) }
    }
}

/// Whether and how an agent stages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StagingConfig {
    /// Whether it stages at all.
    pub enabled: bool,
    /// The least memory a task reserves; positive, or nothing bounds the number of tasks.
    pub memory: Mib,
    /// The least disk a task reserves.
    pub disk: Mib,
    /// From the request to the second reply. The stager keeps tighter limits on each step (15 minutes for buildpacks by default, 5
    /// for each upload); this one is for what slips through them, and must be longer than what buildpacks have.
    pub time_limit: Duration,
    /// Whether the app is started as soon as its droplet is stored here, as the original did until 2013, instead of when the
    /// Cloud Controller has it and knows.
    pub start_before_upload: bool,
}

impl Default for StagingConfig {
    fn default() -> Self {
        Self { enabled: true, memory: Mib(1024), disk: Mib(2048), time_limit: Duration::from_secs(45 * 60), start_before_upload: false }
    }
}

/// How instances are moved elsewhere when an agent is told to leave. They serve meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evacuation {
    /// Heartbeats call them EVACUATING, upon which a health manager such as HM9000 starts replacements and has them stopped. The
    /// agent leaves when none is left and nothing is staged any more, at the latest after the bail-out time. Health managers up to 2013
    /// do not know this state; with [`ExitedReasons::Classic`] they hear of `DEA_EVACUATION`, too.
    Deterministic {
        /// To wait at most, to be followed by a shutdown.
        bail_out: Duration,
    },
    /// Health managers get no heartbeat any more, hear of `DEA_EVACUATION` where exits have classic reasons, and the agent leaves after
    /// this time.
    FixedDelay {
        /// From the signal to the shutdown.
        delay: Duration,
    },
}

impl Default for Evacuation {
    fn default() -> Self {
        Self::Deterministic { bail_out: Duration::from_secs(600) }
    }
}

/// Which `droplet.exited` messages there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitedReasons {
    /// `CRASHED`, `STOPPED`, `DEA_SHUTDOWN` and `DEA_EVACUATION`, as health managers up to 2013 want.
    Classic,
    /// `CRASHED` only.
    Modern,
}

/// How files of instances and staging tasks are reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilesConfig {
    /// Signs URLs for the file server.
    pub urls: FileUrls,
    /// What routers are told of it; `None`: its URLs carry its address.
    pub route: Option<FilesRoute>,
    /// The file server of before 2013-12, if it runs.
    pub v1: Option<FilesV1>,
}

/// A route to the file server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilesRoute {
    /// The host name of its URLs, new at every process start.
    pub host_name: String,
    /// Its port.
    pub port: u16,
}

/// The file server of before 2013-12.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilesV1 {
    /// Where it has instances.
    pub uri: String,
    /// Basic-auth user and password for it, new at every process start.
    pub credentials: Secret<(String, String)>,
}

/// What the announcement as a component says, beyond what the cell knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComponentFacts {
    /// `<ip>:<port>` of `/varz` and `/healthz`.
    pub host: String,
    /// Basic-auth user and password for them.
    pub credentials: Secret<(String, String)>,
    /// When the process started, local time, `YYYY-MM-DD HH:MM:SS ±ZZZZ`.
    pub start: String,
}
