//! The client: pushes apps and looks after them without a Cloud Controller, by playing its part on the bus.
//!
//! Live state is asked of the agents each time (`dea.locate`, `dea.find.droplet`, heartbeats); only what the bus cannot tell is
//! kept in a small file per app ([`Records`]). Packages and droplets travel over HTTP, from and to a server that lives as long as
//! one command and answers signed URLs only ([`TransferServer`]).
//!
//! Reading order: `push.rs` → `staging.rs` → `rollout.rs` → `launch.rs`; beside them `records.rs`, `transfer.rs`, `placement.rs`.

mod app_logs;
mod app_name;
mod bus_address;
mod client;
mod discovery;
mod error;
mod files;
mod health;
mod identifiers;
mod launch;
mod lifecycle;
mod manifest;
mod package;
mod package_files;
mod placement;
mod progress;
mod push;
mod push_event;
mod records;
mod report;
mod rollout;
mod screen;
mod signature;
mod size;
mod staging;
mod tables;
mod transfer;
mod watch;

pub use app_logs::LogFollower;
pub use app_name::{AppName, InvalidName};
pub use bus_address::{DEFAULT_BUS, bus_key, nats_url};
pub use client::{Client, Target};
pub use error::{ClientError, exit_code};
pub use files::{DirectoryEntry, FileChoice, FileFollower, OpenFile};
pub use health::{AppHealthCheck, InvalidHealthCheck};
pub use manifest::{MANIFEST_FILE, Manifest, ManifestError, app_name_of};
pub use package::{Package, PackageError, PackageSource};
pub use package_files::{Entry, EntryKind, IGNORE_FILE, Listing};
pub use push::{AfterStaging, PushOptions, Routes};
pub use push_event::{PushEvent, Reporter};
pub use records::{AppRecord, Phase, RecordError, Records, Release};
pub use report::{AppReport, AppSummary, InstanceReport};
pub use screen::{BOLD, DIM, GREEN, OutputFormat, RED, Screen, escape_controls, styled};
pub use size::{InvalidSize, parse_size};
pub use tables::{agents_table, app_table, apps_table};
pub use transfer::AdvertiseHost;
pub use watch::CrashWatch;

#[cfg(test)]
mod tests;
