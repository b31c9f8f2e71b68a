//! What an operator decides: a file in the DEA's own YAML, checked as a whole before anything happens.
//!
//! A `dea.yml` is accepted as it is. Keys that only Warden, Ruby or later additions needed are taken note of and do nothing; unknown
//! keys are a warning. Dewar adds keys of its own: `nats.*`, `local_ip`, `hardening`, `instance.ports.*`, `instance.http.*`,
//! `instance.cpu_cap`, `instance.core_dumps`, `compile.*`, `droplets.*`, `compat.*`, `directory_server.enabled`, `logging.format`, limits
//! under `staging.*`, `metrics.*`, `otlp.*`, and `egress.*`: `egress.allow` (rules for all apps, added to their own), `egress.deny`
//! (networks that no rule opens), `egress.deny_names` (host names that are not looked up) and `egress.ca_file` (authorities that guests
//! trust for `https` besides the host's).

mod check;
mod compat;
mod egress;
mod files;
mod https;
mod ignored;
mod instance;
mod keys;
mod logging;
mod nats;
mod reader;
mod reaping;
mod resources;
mod staging;
mod telemetry;

#[cfg(test)]
mod mutations;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dewar_bus::BusConfig;
use dewar_core::{Capacity, DiskUse, Evacuation, ExitedReasons, Intervals};
use dewar_protocol::{Bytes, Secret};
use dewar_sandbox::{CompileLimits, CpuQuota, HttpLimits, OperatorEgress};
use serde_json::{Value, json};
use tracing::level_filters::LevelFilter;

pub use self::https::{ControllerConfig, Hm9000Config, HttpsApiConfig};
pub use self::telemetry::{LoggregatorConfig, MetricsConfig, OtlpConfig};
use crate::hardening::{Hardening, InForce};
use crate::log_counts::LogCounts;
use crate::telemetry::Spans;

/// The configuration of an agent, complete and checked.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// Work directory; made with mode 0700, used by one agent at a time.
    pub base_dir: PathBuf,
    /// Job index.
    pub index: u32,
    /// The address under which peers reach this host; `None`: the one that the default route goes out from.
    pub local_ip: Option<IpAddr>,
    /// Holds the process id while the agent runs.
    pub pid_file: Option<PathBuf>,
    /// What is logged and where to.
    pub logging: LoggingConfig,
    /// NATS servers and credentials.
    pub bus: BusConfig,
    /// The server of `/varz` and `/healthz`.
    pub status: StatusConfig,
    /// How often things are published.
    pub intervals: Intervals,
    /// What can be promised, after overcommit.
    pub capacity: Capacity,
    /// Names of the stacks, best first.
    pub stacks: Vec<String>,
    /// Availability zone.
    pub zone: String,
    /// From launch to an open port, where the start message does not say.
    pub health_check_timeout: Duration,
    /// How long a crash is kept.
    pub crash_lifetime: Duration,
    /// While more than this is in use of their disk, the oldest crash goes.
    pub crash_disk: DiskUse,
    /// Bytes of droplets that are kept though nobody uses them.
    pub droplet_budget: Bytes,
    /// What instances may use and where they are reached.
    pub instance: InstanceConfig,
    /// Whom instances and buildpacks may talk to.
    pub egress: EgressConfig,
    /// How files are reached; `None`: not at all.
    pub files: Option<FilesSettings>,
    /// Whether and how this agent stages.
    pub staging: StagingSettings,
    /// What metrics there are.
    pub metrics: MetricsConfig,
    /// Where lines of apps and metrics are emitted; `None`: nowhere.
    pub loggregator: Option<LoggregatorConfig>,
    /// Where traces and metrics go to; `None`: nowhere.
    pub otlp: Option<OtlpConfig>,
    /// Holds spans for OTLP; a layer of it is to be added to the subscriber where that is configured.
    pub spans: Spans,
    /// The server that takes work over HTTPS; `None`: there is none.
    pub https_api: Option<HttpsApiConfig>,
    /// The Cloud Controller's internal API; `None`: it is not used.
    pub controller: Option<ControllerConfig>,
    /// Where heartbeats go besides the bus.
    pub hm9000: Option<Hm9000Config>,
    /// Limits on compiling components.
    pub compile: CompileLimits,
    /// Bytes of native code kept on disk.
    pub artifact_bytes: Bytes,
    /// Executable whose hidden sub-command compiles components; `None`: the running one.
    pub compiler: Option<PathBuf>,
    /// How much of each era of the protocol is spoken.
    pub compat: CompatConfig,
    /// Whether the process restricts itself.
    pub hardening: Hardening,
    /// What came of that, for `/varz`.
    pub in_force: InForce,
    effective: Value,
}

/// What is logged and where to.
#[derive(Debug, Clone)]
pub struct LoggingConfig {
    /// The least important level that is logged.
    pub level: LevelFilter,
    /// How a line looks.
    pub format: LogFormat,
    /// Appended to; `None`: standard output.
    pub file: Option<PathBuf>,
    /// Counts lines by level, for `/varz`; a layer to add to the subscriber.
    pub counts: LogCounts,
}

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The server of `/varz` and `/healthz`.
#[derive(Debug, Clone)]
pub struct StatusConfig {
    /// Port; 0: any.
    pub port: u16,
    /// Basic-auth user; `None`: drawn at start.
    pub user: Option<String>,
    /// Basic-auth password; `None`: drawn at start.
    pub password: Option<Secret<String>>,
}

/// What instances may use and where they are reached.
#[derive(Debug, Clone)]
pub struct InstanceConfig {
    /// Ports; one per live instance.
    pub ports: RangeInclusive<u16>,
    /// Files and directories of one instance.
    pub inodes: u64,
    /// CPU time of one instance.
    pub cpu: CpuConfig,
    /// Limits on what reaches an http instance.
    pub http: HttpLimits,
    /// Whether the memory of one that traps is kept with its files.
    pub core_dumps: bool,
}

/// Whom instances and buildpacks may talk to.
#[derive(Debug, Clone, Default)]
pub struct EgressConfig {
    /// What is allowed to all and denied to all.
    pub operator: OperatorEgress,
    /// PEM file with certificates of authorities that are trusted for `https` besides those that the host trusts.
    pub ca_file: Option<PathBuf>,
}

/// What an instance may use of the CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuConfig {
    /// How many MiB of its memory quota are worth one share.
    pub mib_per_share: u32,
    /// The least shares of an instance.
    pub min_shares: u32,
    /// The most shares of an instance.
    pub max_shares: u32,
    /// Percent of one core that an instance gets at most; `None`: all there is.
    pub cap: Option<u32>,
}

impl CpuConfig {
    /// What an instance of this memory quota may use.
    #[must_use]
    pub fn quota(&self, memory: Bytes) -> CpuQuota {
        let shares = (memory.0 >> 20) / u64::from(self.mib_per_share.max(1));
        let shares = u32::try_from(shares).unwrap_or(u32::MAX);
        CpuQuota { shares: shares.min(self.max_shares).max(self.min_shares), cap: self.cap }
    }
}

/// How files of instances and staging tasks are reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilesSettings {
    /// What the host name of URLs ends in, maybe with a port: requests come through a router. `None`: URLs have the server's own
    /// address, and no router is told.
    pub domain: Option<String>,
    /// `http` or `https` of URLs with a domain: what routers, or what stands before them, speak. The server itself speaks `http`.
    pub scheme: &'static str,
    /// Port of the server; 0: any.
    pub v2_port: u16,
    /// Port of the server of before 2013-12; 0: any. `None`: there is none.
    pub v1_port: Option<u16>,
    /// How long a followed file may be silent until the response is broken off.
    pub streaming_timeout: Duration,
}

/// Whether and how an agent stages.
#[derive(Debug, Clone)]
pub struct StagingSettings {
    /// Whether it stages at all.
    pub enabled: bool,
    /// For all buildpacks of a task together.
    pub duration: Duration,
    /// The least memory a task gets, in MiB.
    pub memory_mib: u32,
    /// The least disk a task gets, in MiB.
    pub disk_mib: u32,
    /// Files and directories a task may make.
    pub inodes: u64,
}

/// How much of each era of the protocol is spoken.
#[derive(Debug, Clone, Copy)]
pub struct CompatConfig {
    /// Subjects that late versions of the original dropped: `dea.start`, `dea.status`, `dea.locate`, `healthmanager.start`,
    /// `router.greet`, `staging`, `staging.locate`, `staging.advertise`.
    pub legacy_subjects: bool,
    /// `vcap.component.announce` and `vcap.component.discover`.
    pub component: bool,
    /// Which `droplet.exited` messages there are.
    pub exited_reasons: ExitedReasons,
    /// Heartbeats that are larger than the NATS server takes are sent in parts, for health managers that do not take an instance
    /// for lost which a heartbeat does not tell of. HM9000 does. Without this no more instances are taken than one has room for.
    pub split_heartbeats: bool,
    /// Heartbeats are sent also when there is no instance to tell of.
    pub empty_heartbeat: bool,
    /// How instances are moved elsewhere when the agent is told to leave.
    pub evacuation: Evacuation,
    /// Which keys the replies to a staging request have.
    pub staging_reply_keys: StagingReplyKeys,
    /// An app that is to start when it is staged does so before its droplet is uploaded, and stays when that fails.
    pub start_before_upload: bool,
}

/// Which keys the replies to a staging request have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StagingReplyKeys {
    /// All that any Cloud Controller has known.
    Superset,
    /// What those of 2016 and later know.
    Modern,
    /// The five keys that those of 2013 know, in both replies.
    Classic,
}

/// One mistake in a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// Dotted path of the key; empty where the file as a whole is meant.
    pub key: String,
    /// What is wrong, to be read after the key.
    pub problem: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.key.is_empty() { f.write_str(&self.problem) } else { write!(f, "`{}` {}", self.key, self.problem) }
    }
}

impl std::error::Error for ConfigError {}

/// What `dewar dev` decides about its agent; everything else is the default.
#[derive(Debug, Clone)]
pub struct DevAgent<'a> {
    /// Work directory.
    pub base_dir: &'a Path,
    /// The embedded broker.
    pub nats_url: &'a str,
    /// Where everything listens.
    pub local_ip: IpAddr,
    /// Whether code is compiled by another executable than the running one.
    pub compiler: Option<PathBuf>,
    /// Whom the apps may talk to, one rule each: `tcp 127.0.0.1 5432`.
    pub allow_egress: &'a [String],
    /// Authorities that they trust for `https` besides the host's.
    pub egress_ca: Option<&'a Path>,
}

impl AgentConfig {
    /// The configuration in a YAML text, and warnings: which of its keys are unknown, which have no effect.
    ///
    /// # Errors
    /// Every mistake in it, each naming its key.
    pub fn from_yaml(text: &str) -> Result<(Self, Vec<String>), Vec<ConfigError>> {
        let tree = serde_saphyr::from_str(text).map_err(|error| {
            vec![ConfigError { key: String::new(), problem: format!("the file is not YAML: {}", error.without_snippet()) }]
        })?;
        check::check(tree)
    }

    /// The configuration of a developer's own agent: it stages, takes its limits from the defaults and answers on `local_ip` only.
    ///
    /// # Errors
    /// When `nats_url`, a rule or the authorities' file is none that a configuration file could hold.
    pub fn for_dev(dev: &DevAgent<'_>) -> Result<Self, Vec<ConfigError>> {
        let tree = json!({
            "base_dir": dev.base_dir.display().to_string(),
            "nats_servers": [dev.nats_url],
            "local_ip": dev.local_ip.to_string(),
            "staging": { "enabled": true },
            "egress": { "allow": dev.allow_egress, "ca_file": dev.egress_ca.map(|path| path.display().to_string()) },
        });
        let (config, _) = check::check(tree)?;
        // The text above stands in for a path that may not be text.
        Ok(Self { base_dir: dev.base_dir.to_owned(), compiler: dev.compiler.clone(), ..config })
    }

    /// A configuration file with every key that has an effect: its meaning, its default, or an example in a comment. It is one that
    /// an agent would take.
    #[must_use]
    pub fn annotated_defaults() -> String {
        let (least, _) = Self::from_yaml(keys::LEAST).expect("a configuration without a mistake");
        keys::annotated(&least.effective, check::WITHOUT_EFFECT)
    }

    /// All values in effect, given or by default, as YAML; secrets are hidden.
    #[must_use]
    pub fn effective_yaml(&self) -> String {
        serde_saphyr::to_string(&self.effective).expect("a tree of plain values has a YAML form")
    }
}
