//! Every type that crosses a process border, and nothing else.
//!
//! The messages are those of Cloud Foundry's Droplet Execution Agent (`dea_ng`, 2012–2017): names and shapes on the wire are
//! kept to the letter through serde attributes, Rust names say what is meant (`droplet` on the wire *is* the application id).
//! "MB" on the wire always means MiB. Types carry no logic beyond what decoding needs, signed
//! URLs ([`FileUrls`]) included.

mod agent;
mod component;
mod counting_keys;
mod file_urls;
mod logs;
mod router;
mod snapshot;
mod staging;
mod start;
pub mod subjects;
mod units;

pub use agent::{
    Advertise, AppCounts, Crash, DropletExited, ExitReason, FindDroplet, FoundInstance, Heartbeat, HeartbeatEntry, Hello, InstanceFilter,
    InstanceState, InstanceStats, InstanceUsage, PROTOCOL_VERSION, PlacementProperties, Shutdown, Status, Stop, UnknownState, Update,
};
pub use component::ComponentAnnounce;
pub use file_urls::{FILE_URL_SECONDS, FileUrlError, FileUrls, FilesOf, STAGING_LOG};
pub use logs::{LogLine, LogRequest, LogSource, LogStream};
pub use router::{RouteRegistration, RouterStart};
pub use snapshot::{Environment, SNAPSHOT_VERSION, Snapshot, SnapshotInstance, SnapshotTask};
pub use staging::{
    AdminBuildpack, ErrorInfo, SetupReply, StagingAdvertise, StagingFailure, StagingMessage, StagingMeta, StagingProperties, StagingReply,
    StagingStop,
};
pub use start::{EgressRule, Limits, Service, StartMessage};
pub use units::{AppId, Bytes, CellId, DropletSha1, Fingerprint, InstanceId, InvalidDigest, Mib, Secret, TaskId, UnixSeconds};
