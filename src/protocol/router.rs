//! Between agents and routers.
//!
//! Source: dea_ng `lib/dea/router_client.rb`; gorouter `mbus/subscriber.go`, `registry_message.go`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::start::null_is_default;
use crate::{AppId, CellId};

/// `router.register` and `router.unregister`: these host names lead (or no longer lead) to this address.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RouteRegistration {
    /// Agent id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dea: Option<CellId>,
    /// Application id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<AppId>,
    /// The routes concerned.
    #[serde(default, deserialize_with = "null_is_default")]
    pub uris: Vec<String>,
    /// Address of the agent.
    pub host: String,
    /// Port of the instance.
    pub port: u16,
    /// `component` is `dea-<index>`: the collector relies on the prefix.
    #[serde(default, deserialize_with = "null_is_default")]
    pub tags: BTreeMap<String, String>,
    /// 64 hex digits; the sticky-session cookie holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub private_instance_id: Option<String>,
    /// Instance index as text; gorouter understands it, dea_ng never sent it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub private_instance_index: Option<String>,
    /// Seconds without a refresh after which this route alone is stale; gorouter understands it, dea_ng never sent it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale_threshold_in_seconds: Option<u32>,
}

/// `router.start`, and a router's reply to `router.greet`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RouterStart {
    /// Router id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Its addresses.
    #[serde(default, deserialize_with = "null_is_default")]
    pub hosts: Vec<String>,
    /// Agents must register at least this often.
    #[serde(default, rename = "minimumRegisterIntervalInSeconds", skip_serializing_if = "Option::is_none")]
    pub minimum_register_interval_seconds: Option<u32>,
    /// A route is dropped after this long without a refresh.
    #[serde(default, rename = "pruneThresholdInSeconds", skip_serializing_if = "Option::is_none")]
    pub prune_threshold_seconds: Option<u32>,
}
