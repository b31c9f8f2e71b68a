//! The daemon: one driver task around the core.
//!
//! ```text
//! bus → inbound → driver ⇄ core::Cell
//!                   ↓ ↑
//!                 effects → outbox → bus
//!                         → instances → sandbox
//!                         → stagings  → staging
//! ```
//!
//! [`AgentConfig`] is what the operator decides, [`Agent::start`] puts everything together, [`AgentHandle`] waits for its end.

pub mod droplet_store;
pub mod staging;
pub mod transfer;

mod agent;
mod archive;
mod base_dir;
mod blocking;
mod complaints;
mod config;
mod controller;
mod descriptors;
mod digest;
mod driver;
mod effects;
mod files;
mod hardening;
mod hm9000;
mod housekeeping;
mod http;
mod https_api;
mod inbound;
mod instances;
mod listener;
mod log_counts;
mod logs;
mod outbox;
mod ports;
mod removal;
mod snapshot;
mod staging_reply;
mod stagings;
mod telemetry;
mod tls;
mod tree;

#[cfg(test)]
#[path = "../../tests/free_port.rs"]
mod free_port;
#[cfg(test)]
mod test_authority;
#[cfg(test)]
mod test_server;

pub use agent::{Agent, AgentError, AgentHandle};
pub use base_dir::{BaseDirError, PidFileError};
pub use config::{
    AgentConfig, CompatConfig, ConfigError, ControllerConfig, CpuConfig, DevAgent, EgressConfig, FilesSettings, Hm9000Config,
    HttpsApiConfig, InstanceConfig, LogFormat, LoggingConfig, LoggregatorConfig, MetricsConfig, OtlpConfig, StagingReplyKeys,
    StagingSettings, StatusConfig,
};
/// What an operator can ask of an agent.
pub use dewar_core::Signal;
pub use hardening::{Hardening, HardeningError, InForce, harden_all_but_files};
pub use log_counts::LogCounts;
pub use telemetry::{LoggregatorError, Spans};
pub use tls::{ClientTls, ServerTls};
