//! The start message: what one instance is to be.
//!
//! Received on `dea.<id>.start`, and inside a staging message as `start_message`. Source: dea_ng `lib/dea/starting/start_message.rb`
//! and `instance.rb` (translation and schema).

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{AppId, DropletSha1, Mib, Secret};

/// A request to start one instance of an app. Unknown keys are ignored, null counts as absent where a default exists.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StartMessage {
    /// Application id.
    #[serde(rename = "droplet")]
    pub app_id: AppId,
    /// Index of the instance within the app, from 0.
    pub index: u32,
    /// Application version, opaque, compared for equality only.
    pub version: String,
    /// Application name.
    pub name: String,
    /// Routes: host names, maybe with a path.
    #[serde(default, deserialize_with = "null_is_default")]
    pub uris: Vec<String>,
    /// Digest of the droplet archive. Null passes decoding (the start then fails), as in the original.
    #[serde(default)]
    pub sha1: Option<DropletSha1>,
    /// Where the droplet archive can be fetched; may carry credentials.
    #[serde(default, rename = "executableUri")]
    pub droplet_uri: Option<Secret<String>>,
    /// Echoed in heartbeats and exit messages.
    pub cc_partition: String,
    /// What the instance may use.
    pub limits: Limits,
    /// Bound services. Must be present, may be empty.
    pub services: Vec<Service>,
    /// User environment, each `NAME=value`.
    #[serde(default, deserialize_with = "null_is_default")]
    pub env: Vec<Secret<String>>,
    /// Overrides the command found in the droplet.
    #[serde(default)]
    pub start_command: Option<String>,
    /// Seconds to wait for the port; absent: the agent's default.
    #[serde(default)]
    pub health_check_timeout: Option<u32>,
    /// What makes the instance healthy, as Cloud Controllers after the original agent's time say it: `port`, `http`, `process` or
    /// `none`. Absent, or anything else: the agent decides by the droplet and its routes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check_type: Option<String>,
    /// The path that `http` asks for; absent: `/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check_http_endpoint: Option<String>,
    /// Base of `VCAP_APPLICATION`.
    #[serde(default)]
    pub vcap_application: Option<Map<String, Value>>,
    /// Who the instance may talk to.
    #[serde(default, deserialize_with = "null_is_default")]
    pub egress_network_rules: Vec<EgressRule>,
    /// Stack name; absent: the agent's first stack.
    #[serde(default)]
    pub stack: Option<String>,
}

/// The quotas of one instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Memory.
    pub mem: Mib,
    /// Disk.
    pub disk: Mib,
    /// Open files.
    pub fds: u32,
}

/// A bound service as it reaches `VCAP_SERVICES`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Service {
    /// Name of the service instance.
    pub name: String,
    /// Groups services in `VCAP_SERVICES`, such as `mysql-5.5`.
    pub label: String,
    /// Passed through; `credentials.uri` drives `DATABASE_URL`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<Secret<Value>>,
    /// Plan name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<String>,
    /// Plan option.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan_option: Option<String>,
    /// Passed through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags: Option<Value>,
    /// Where the app's logs are to be drained to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub syslog_drain_url: Option<Secret<String>>,
}

/// One rule of who an instance may talk to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressRule {
    /// `tcp`, `udp`, `icmp` or `all`; the agent refuses anything else with the original's text.
    pub protocol: String,
    /// IPv4 address, CIDR, or range `a-b`.
    pub destination: String,
    /// tcp and udp: one port, a comma-separated list, or ranges `a-b`. Absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<String>,
    /// icmp type.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub icmp_type: Option<i32>,
    /// icmp code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
    /// Log matching packets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<bool>,
}

/// Decodes null as the type's default, as Ruby's `|| []` did.
pub(crate) fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}
