//! How a component makes itself known to a collector.
//!
//! Source: vcap-common `lib/vcap/component.rb`.

use serde::{Deserialize, Serialize};

use crate::Secret;

/// `vcap.component.announce`, and the reply to `vcap.component.discover` (there with `uptime`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComponentAnnounce {
    /// `DEA` or `Router`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Job index from the configuration.
    pub index: u32,
    /// Component id.
    pub uuid: String,
    /// `<ip>:<port>` of `/varz` and `/healthz`.
    pub host: String,
    /// Basic-auth user and password.
    pub credentials: Secret<(String, String)>,
    /// Start time, local, `YYYY-MM-DD HH:MM:SS ±ZZZZ`.
    pub start: String,
    /// `<d>d:<h>h:<m>m:<s>s`; only in the discover reply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uptime: Option<String>,
}
