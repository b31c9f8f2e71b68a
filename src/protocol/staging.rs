//! Turning a package into a droplet.
//!
//! Source: dea_ng `lib/dea/responders/staging.rb`, `lib/dea/staging/staging_message.rb`, `staging_task.rb`.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::counting_keys;
use crate::start::null_is_default;
use crate::{AppId, CellId, DropletSha1, EgressRule, Mib, Secret, Service, StartMessage, TaskId};

/// `staging.advertise`: this agent stages, and has this much to offer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StagingAdvertise {
    /// Agent id.
    pub id: CellId,
    /// Names of the stacks it stages for.
    #[serde(default)]
    pub stacks: Vec<String>,
    /// Remaining memory.
    pub available_memory: Mib,
    /// Remaining disk.
    #[serde(default)]
    pub available_disk: Mib,
}

/// `staging.<id>.start`, or `staging` for whichever stager comes first. Answered twice on the same reply subject.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StagingMessage {
    /// Application id.
    pub app_id: AppId,
    /// Unique per request; echoed.
    pub task_id: TaskId,
    /// What buildpacks get to know, and which to use.
    #[serde(default, deserialize_with = "null_is_default")]
    pub properties: StagingProperties,
    /// Where the package is.
    pub download_uri: Secret<String>,
    /// Where the droplet goes.
    pub upload_uri: Secret<String>,
    /// Where the buildpack cache is; absent: there is none yet.
    #[serde(default)]
    pub buildpack_cache_download_uri: Option<Secret<String>>,
    /// Where the buildpack cache goes. Late Cloud Controllers always send it; absent: it stays here.
    #[serde(default)]
    pub buildpack_cache_upload_uri: Option<Secret<String>>,
    /// The operator's buildpacks, in order.
    #[serde(default, deserialize_with = "null_is_default")]
    pub admin_buildpacks: Vec<AdminBuildpack>,
    /// Start this with the new droplet after a successful staging. `{}` counts as absent.
    #[serde(default, deserialize_with = "empty_is_absent")]
    pub start_message: Option<StartMessage>,
    /// Stack name; absent: that of the start message, else the agent's first.
    #[serde(default)]
    pub stack: Option<String>,
    /// Who buildpacks may talk to.
    #[serde(default, deserialize_with = "null_is_default")]
    pub egress_network_rules: Vec<EgressRule>,
    /// Memory for the task; the agent's own setting is the least it gets.
    #[serde(default)]
    pub memory_limit: Option<Mib>,
    /// Disk for the task; likewise.
    #[serde(default)]
    pub disk_limit: Option<Mib>,
}

/// What buildpacks get to know, and which to use.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct StagingProperties {
    /// Bound services.
    #[serde(default, deserialize_with = "null_is_default")]
    pub services: Vec<Service>,
    /// User environment, each `NAME=value`.
    #[serde(default, deserialize_with = "null_is_default")]
    pub environment: Vec<Secret<String>>,
    /// More about the app.
    #[serde(default, deserialize_with = "null_is_default")]
    pub meta: StagingMeta,
    /// A buildpack by URL or by name (the original's old key).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub buildpack: Option<String>,
    /// A buildpack by URL (the original cloned it with git).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub buildpack_git_url: Option<String>,
    /// One of the operator's buildpacks by its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub buildpack_key: Option<String>,
}

/// More about the app.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StagingMeta {
    /// Start command the user asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
}

/// One of the operator's buildpacks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminBuildpack {
    /// Where it can be fetched.
    pub url: Secret<String>,
    /// Names its content; used as a directory name.
    pub key: String,
}

/// First reply to a staging request: setup has succeeded or failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetupReply {
    /// Echo.
    pub task_id: TaskId,
    /// Signed URL of the task's log, to be read with `&tail&tail_offset=<bytes so far>` until it is not found any more; null where an
    /// agent serves no files.
    pub task_streaming_log_url: Option<Secret<String>>,
    /// Always null here; Cloud Controllers of 2013 want the key.
    pub detected_buildpack: Option<String>,
    /// What went wrong, null on success.
    pub error: Option<String>,
    /// Always null here; Cloud Controllers of 2013 want the key.
    pub droplet_sha1: Option<DropletSha1>,
}

/// Second reply to a staging request: staging has ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StagingReply {
    /// Echo.
    pub task_id: TaskId,
    /// Always null here; Cloud Controllers of 2013 want the key.
    #[serde(default)]
    pub task_streaming_log_url: Option<String>,
    /// What the detect step said; null when a buildpack was given.
    #[serde(default)]
    pub detected_buildpack: Option<String>,
    /// Key of the operator's buildpack that was used.
    #[serde(default)]
    pub buildpack_key: Option<String>,
    /// Digest of the droplet; null when there is none.
    #[serde(default)]
    pub droplet_sha1: Option<DropletSha1>,
    /// Start command of the droplet.
    #[serde(default)]
    pub detected_start_command: Option<String>,
    /// Process types in effect.
    #[serde(default)]
    pub procfile: Option<BTreeMap<String, String>>,
    /// Echo.
    #[serde(default)]
    pub app_id: Option<AppId>,
    /// What went wrong, null on success.
    #[serde(default)]
    pub error: Option<String>,
    /// Typed cause; the key is absent where there is none, because Cloud Controllers test for its presence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_info: Option<ErrorInfo>,
}

/// A staging failure that a Cloud Controller knows by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorInfo {
    /// Class name.
    #[serde(rename = "type")]
    pub kind: StagingFailure,
    /// What happened.
    pub message: String,
}

/// The error classes that a Cloud Controller knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StagingFailure {
    /// No buildpack detected the app.
    NoAppDetectedError,
    /// The compile step failed.
    BuildpackCompileFailed,
    /// The release step failed.
    BuildpackReleaseFailed,
    /// Anything else that is the user's to mend.
    StagingError,
}

/// `staging.stop`: give up staging this app. The message itself gets no reply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StagingStop {
    /// Application id.
    pub app_id: AppId,
}

/// Decodes `{}` and null as absent.
fn empty_is_absent<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<StartMessage>, D::Error> {
    struct MaybeStart;
    impl<'de> Visitor<'de> for MaybeStart {
        type Value = Option<StartMessage>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object or null")
        }
        fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }
        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
            match counting_keys::object::<StartMessage, A>(map) {
                (Err(_), 0) => Ok(None),
                (message, _) => message.map(Some),
            }
        }
    }
    deserializer.deserialize_any(MaybeStart)
}
