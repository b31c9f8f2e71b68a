//! What an agent remembers of its instances and staging tasks, for the process that takes its place.
//!
//! Source: dea_ng `lib/dea/snapshot.rb`, `Instance#attributes` and `StagingTask#snapshot_attributes`. The original's keys are there for
//! whoever else reads the file, as its log agent did. The keys beyond them (`version`, `start_message`, `state_timestamp`, `by_http`, `reply_to`)
//! are what a new process needs that has to start its sandboxes anew: in the original these outlived it.
//!
//! The file holds environments, credentials and signed URLs in the clear.

use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::ser::SerializeMap as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{
    AppId, DropletSha1, InstanceId, InstanceState, Limits, Secret, Service, StagingMessage, StagingReply, StartMessage, UnixSeconds,
};

/// The version of [`Snapshot`] that is written. It goes up when a process that knows only the one before could not resume from it.
pub const SNAPSHOT_VERSION: u32 = 1;

/// The whole file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// At most [`SNAPSHOT_VERSION`], or it cannot be understood. A file without it is not Dewar's.
    pub version: u32,
    /// When it was taken.
    pub time: UnixSeconds,
    /// In the order in which they were registered.
    pub instances: Vec<SnapshotInstance>,
    /// Those under way.
    pub staging_tasks: Vec<SnapshotTask>,
}

/// One instance that is starting, runs, is being stopped, or has crashed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SnapshotInstance {
    /// From the start message.
    pub cc_partition: String,
    /// Its id on the wire now.
    pub instance_id: InstanceId,
    /// From the start message.
    pub instance_index: u32,
    /// Never changes.
    pub private_instance_id: String,
    /// Names its sandbox and files: its first instance id.
    pub warden_handle: InstanceId,
    /// From the start message.
    pub limits: Limits,
    /// From the start message.
    pub environment: Environment,
    /// From the start message.
    pub services: Vec<Service>,
    /// From the start message.
    pub health_check_timeout: Option<u32>,
    /// From the start message.
    pub application_id: AppId,
    /// The last that a start or update message gave it.
    pub application_version: String,
    /// From the start message.
    pub application_name: String,
    /// The last that a start or update message gave it.
    pub application_uris: Vec<String>,
    /// From the start message.
    pub droplet_sha1: Option<DropletSha1>,
    /// From the start message.
    pub droplet_uri: Option<Secret<String>>,
    /// From the start message.
    pub start_command: Option<String>,
    /// One of `STARTING`, `RUNNING`, `STOPPING`, `CRASHED`, `EVACUATING`.
    pub state: InstanceState,
    /// Always null here: there are no jobs in a sandbox.
    pub warden_job_id: Option<u64>,
    /// Where its files are; null once they are gone.
    pub warden_container_path: Option<String>,
    /// The agent's address.
    pub warden_host_ip: Option<String>,
    /// The same: a sandbox has no address of its own.
    pub warden_container_ip: Option<String>,
    /// Null until it is launched.
    pub instance_host_port: Option<u16>,
    /// The same.
    pub instance_container_port: Option<u16>,
    /// Those of its services that have one.
    pub syslog_drain_urls: Vec<Secret<String>>,
    /// When it entered STARTING; null if it never did.
    pub state_starting_timestamp: Option<UnixSeconds>,
    /// When it entered its state.
    pub state_timestamp: UnixSeconds,
    /// All of it, as it came.
    pub start_message: StartMessage,
}

/// One staging task under way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SnapshotTask {
    /// As it came.
    pub staging_message: StagingMessage,
    /// Always null here: a staging's directory does not outlive its process.
    pub warden_container_path: Option<String>,
    /// Always null here.
    pub warden_job_id: Option<u64>,
    /// Those of its services that have one.
    pub syslog_drain_urls: Vec<Secret<String>>,
    /// Whether a Cloud Controller asked over HTTP, and is to be told so.
    pub by_http: bool,
    /// Who waits for the second reply otherwise, as the agent names it; null: nobody.
    pub reply_to: Option<String>,
    /// What a Cloud Controller is being told over HTTP, and may have been told already; absent before the end of the staging.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<StagingReply>,
}

/// Variables in their order, an object in JSON. Of several with the same name all are kept: the last counts, but those between may
/// refer to the first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Environment(pub Vec<(String, Secret<String>)>);

impl Environment {
    /// From `NAME=value` each; without `=` the value is empty.
    #[must_use]
    pub fn of(assignments: &[Secret<String>]) -> Self {
        let pair = |assignment: &Secret<String>| {
            let (name, value) = assignment.expose().split_once('=').unwrap_or((assignment.expose(), ""));
            (name.to_owned(), Secret(value.to_owned()))
        };
        Self(assignments.iter().map(pair).collect())
    }
}

impl Serialize for Environment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Environment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Environment;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Environment, A::Error> {
                let mut variables = Vec::new();
                while let Some(variable) = map.next_entry()? {
                    variables.push(variable);
                }
                Ok(Environment(variables))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}
