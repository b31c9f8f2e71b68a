//! What an agent says about itself and its instances, and what it is asked.
//!
//! Source: dea_ng `lib/dea/protocol.rb`, `lib/dea/responders/dea_locator.rb`, `lib/dea/bootstrap.rb`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::counting_keys;
use crate::start::null_is_default;
use crate::{AppId, Bytes, CellId, InstanceId, Mib, Secret, UnixSeconds};

/// The constant that `dea.start`, `dea.status` and `dea.shutdown` carry as `version`.
pub const PROTOCOL_VERSION: &str = "0.0.1";

/// Registered instances per app, in any state; apps without instances do not appear.
pub type AppCounts = BTreeMap<AppId, usize>;

/// `dea.advertise`: what this agent still has to offer. Sent at start, periodically, and on `dea.locate`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Advertise {
    /// Agent id.
    pub id: CellId,
    /// Names of the stacks it runs.
    #[serde(default)]
    pub stacks: Vec<String>,
    /// Remaining memory, rounded down; may be negative.
    pub available_memory: Mib,
    /// Remaining disk, rounded down; may be negative.
    #[serde(default)]
    pub available_disk: Mib,
    /// Instances per app.
    #[serde(default)]
    pub app_id_to_count: AppCounts,
    /// Where the agent stands.
    #[serde(default)]
    pub placement_properties: PlacementProperties,
    /// Base of the HTTPS API; null where there is none, or a late Cloud Controller would prefer it to NATS.
    #[serde(default)]
    pub url: Option<String>,
}

/// Where an agent stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacementProperties {
    /// Availability zone.
    pub zone: String,
}

impl Default for PlacementProperties {
    fn default() -> Self {
        Self { zone: "default".to_owned() }
    }
}

/// `dea.start`: an agent is up. Published once at the end of start-up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Agent id.
    pub id: CellId,
    /// Its address.
    pub ip: String,
    /// [`PROTOCOL_VERSION`].
    pub version: String,
}

/// Reply to `dea.status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Agent id.
    pub id: CellId,
    /// Its address.
    pub ip: String,
    /// [`PROTOCOL_VERSION`].
    pub version: String,
    /// Memory capacity after overcommit.
    pub max_memory: Mib,
    /// Memory promised to instances and staging tasks.
    pub reserved_memory: Mib,
    /// Memory measured over all instances.
    pub used_memory: Mib,
    /// Always null.
    pub num_clients: Option<u32>,
}

/// `dea.shutdown`: take this agent out of placement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shutdown {
    /// Agent id.
    pub id: CellId,
    /// Its address.
    pub ip: String,
    /// [`PROTOCOL_VERSION`].
    pub version: String,
    /// As in the advertisement.
    #[serde(default)]
    pub app_id_to_count: AppCounts,
}

/// The eight states of an instance, as they stand on the wire (upper case).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum InstanceState {
    /// Created, nothing done yet.
    Born,
    /// Droplet, sandbox and health check under way.
    Starting,
    /// Healthy.
    Running,
    /// Being stopped.
    Stopping,
    /// Gone.
    Stopped,
    /// Failed; kept for its logs.
    Crashed,
    /// Being restored from a snapshot.
    Resuming,
    /// Serving until its replacement does.
    Evacuating,
}

impl fmt::Display for InstanceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Born => "BORN",
            Self::Starting => "STARTING",
            Self::Running => "RUNNING",
            Self::Stopping => "STOPPING",
            Self::Stopped => "STOPPED",
            Self::Crashed => "CRASHED",
            Self::Resuming => "RESUMING",
            Self::Evacuating => "EVACUATING",
        })
    }
}

/// A filter named a state that does not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownState(pub String);

impl fmt::Display for UnknownState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Unknown state: {}", self.0)
    }
}

impl std::error::Error for UnknownState {}

impl FromStr for InstanceState {
    type Err = UnknownState;

    /// Case is ignored.
    fn from_str(text: &str) -> Result<Self, UnknownState> {
        match text.to_ascii_uppercase().as_str() {
            "BORN" => Ok(Self::Born),
            "STARTING" => Ok(Self::Starting),
            "RUNNING" => Ok(Self::Running),
            "STOPPING" => Ok(Self::Stopping),
            "STOPPED" => Ok(Self::Stopped),
            "CRASHED" => Ok(Self::Crashed),
            "RESUMING" => Ok(Self::Resuming),
            "EVACUATING" => Ok(Self::Evacuating),
            _ => Err(UnknownState(text.to_owned())),
        }
    }
}

/// Which instances of one app are meant (`dea.stop`, `dea.find.droplet`). All given conditions must hold.
///
/// `None` (absent or null) is no condition; what an empty list means is decided by the handler of each message.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct InstanceFilter {
    /// Application id; absent matches nothing.
    #[serde(default, rename = "droplet", skip_serializing_if = "Option::is_none")]
    pub app_id: Option<AppId>,
    /// Exact application version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Instance ids.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instances: Option<Vec<InstanceId>>,
    /// More instance ids, joined with `instances`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_ids: Option<Vec<InstanceId>>,
    /// Instance indices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub indices: Option<Vec<u32>>,
    /// State names as given, in any case; an unknown one is an error. `DELETED` is accepted and matches nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub states: Option<Vec<String>>,
}

/// `dea.stop`: stop the matching instances. No reply.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Stop {
    /// Which instances.
    pub filter: InstanceFilter,
    /// The message had the key `droplet` and no other: the app as a whole is meant, its staging tasks included.
    pub whole_app: bool,
}

impl<'de> Deserialize<'de> for Stop {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Filter;
        impl<'de> Visitor<'de> for Filter {
            type Value = Stop;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Stop, A::Error> {
                let (filter, keys) = counting_keys::object::<InstanceFilter, A>(map);
                let filter = filter?;
                Ok(Stop { whole_app: keys == 1 && filter.app_id.is_some(), filter })
            }
        }
        deserializer.deserialize_map(Filter)
    }
}

impl Serialize for Stop {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        /// A filter by the application alone that is not to stop the whole app: the second key says so.
        #[derive(Serialize)]
        struct NotWhole<'a> {
            droplet: &'a AppId,
            version: (),
        }
        match &self.filter {
            InstanceFilter { app_id: Some(droplet), version: None, instances: None, instance_ids: None, indices: None, states: None }
                if !self.whole_app =>
            {
                NotWhole { droplet, version: () }.serialize(serializer)
            }
            filter => filter.serialize(serializer),
        }
    }
}

/// `dea.update`: the complete new list of routes of an app, maybe a new version. No reply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Update {
    /// Application id.
    #[serde(rename = "droplet")]
    pub app_id: AppId,
    /// The new routes; absent or null: unchanged.
    #[serde(default)]
    pub uris: Option<Vec<String>>,
    /// The new version; absent or null: unchanged.
    #[serde(default)]
    pub version: Option<String>,
}

/// `dea.find.droplet`: one reply per matching instance, none when nothing matches.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct FindDroplet {
    /// Application id; absent matches nothing.
    #[serde(default, rename = "droplet", skip_serializing_if = "Option::is_none")]
    pub app_id: Option<AppId>,
    /// Exact application version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Instance ids.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instances: Option<Vec<InstanceId>>,
    /// More instance ids, joined with `instances`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_ids: Option<Vec<InstanceId>>,
    /// Instance indices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub indices: Option<Vec<u32>>,
    /// State names as given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub states: Option<Vec<String>>,
    /// `Some` when the key is there, even with null: the reply then carries a signed file URL.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub path: Option<Option<String>>,
    /// Whether replies of running instances carry statistics.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "std::ops::Not::not")]
    pub include_stats: bool,
}

impl FindDroplet {
    /// The part that selects instances.
    #[must_use]
    pub fn into_filter(self) -> InstanceFilter {
        let Self { app_id, version, instances, instance_ids, indices, states, path: _, include_stats: _ } = self;
        InstanceFilter { app_id, version, instances, instance_ids, indices, states }
    }
}

fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<String>>, D::Error> {
    Option::<String>::deserialize(deserializer).map(Some)
}

/// One reply to `dea.find.droplet`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FoundInstance {
    /// Agent id.
    pub dea: CellId,
    /// Application id.
    #[serde(rename = "droplet")]
    pub app_id: AppId,
    /// Application version.
    pub version: String,
    /// Instance id.
    #[serde(rename = "instance")]
    pub instance_id: InstanceId,
    /// Instance index.
    pub index: u32,
    /// State.
    pub state: InstanceState,
    /// When the state was entered.
    pub state_timestamp: UnixSeconds,
    /// `/` and the instance id.
    pub staged: String,
    /// Where the file server of before 2013-12 has `staged`; Cloud Controllers take it where `file_uri_v2` is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_uri: Option<String>,
    /// Its user and password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<Secret<(String, String)>>,
    /// Signed URL of the path asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_uri_v2: Option<Secret<String>>,
    /// Statistics, if asked for and the instance is running.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stats: Option<InstanceStats>,
    /// How it ended, if statistics are asked for and the instance has crashed. Dewar's own; others ignore it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crash: Option<Crash>,
}

/// How a crashed instance ended, for the app's developer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Crash {
    /// Exit status; −1 when there is none.
    pub exit_status: i32,
    /// As in `droplet.exited`: a line, maybe followed by a backtrace.
    pub exit_description: String,
    /// The last lines of its log: ten at most, of 2 KiB together.
    #[serde(default)]
    pub last_lines: Vec<String>,
}

/// What a running instance is, may use and uses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InstanceStats {
    /// Application name.
    pub name: String,
    /// Current routes.
    pub uris: Vec<String>,
    /// The agent's address.
    pub host: String,
    /// The instance's port; null where it was given none.
    pub port: Option<u16>,
    /// Whole seconds since entering STARTING.
    pub uptime: u64,
    /// Memory quota.
    pub mem_quota: Bytes,
    /// Disk quota.
    pub disk_quota: Bytes,
    /// Open-file quota.
    pub fds_quota: u32,
    /// What it uses.
    pub usage: InstanceUsage,
}

/// What a running instance uses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InstanceUsage {
    /// When this was measured, as `YYYY-MM-DD HH:MM:SS ±ZZZZ` in local time.
    pub time: String,
    /// Fraction of one core; 0 until two samples exist.
    pub cpu: f64,
    /// Memory.
    pub mem: Bytes,
    /// Disk.
    pub disk: Bytes,
}

/// `dea.heartbeat`: every instance in STARTING, RUNNING, CRASHED or EVACUATING, even when there is none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// One entry per instance.
    pub droplets: Vec<HeartbeatEntry>,
    /// Agent id.
    pub dea: CellId,
}

/// One instance in a heartbeat.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HeartbeatEntry {
    /// From the start message.
    pub cc_partition: String,
    /// Application id.
    #[serde(rename = "droplet")]
    pub app_id: AppId,
    /// Application version.
    pub version: String,
    /// Instance id.
    #[serde(rename = "instance")]
    pub instance_id: InstanceId,
    /// Instance index.
    pub index: u32,
    /// State.
    pub state: InstanceState,
    /// When the state was entered.
    pub state_timestamp: UnixSeconds,
}

/// Why `droplet.exited` is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ExitReason {
    /// The instance failed.
    Crashed,
    /// The instance was stopped.
    Stopped,
    /// The agent shuts down.
    DeaShutdown,
    /// The agent evacuates.
    DeaEvacuation,
}

/// `droplet.exited`: an instance has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropletExited {
    /// From the start message.
    pub cc_partition: String,
    /// Application id.
    #[serde(rename = "droplet")]
    pub app_id: AppId,
    /// Application version.
    pub version: String,
    /// Instance id.
    #[serde(rename = "instance")]
    pub instance_id: InstanceId,
    /// Instance index.
    pub index: u32,
    /// Why.
    pub reason: ExitReason,
    /// Exit status of the app; −1 when not known.
    pub exit_status: i32,
    /// Human-readable cause, may be empty.
    pub exit_description: String,
    /// Whole epoch seconds; only when the instance is in CRASHED.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crash_timestamp: Option<i64>,
}
