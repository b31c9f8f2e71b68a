//! Every decision of the agent and the router, pure.
//!
//! The agent's `Cell` is a function of (state, now, input): it returns [`Effect`]s as plain values and never waits, reads a
//! clock, draws from the operating system's randomness, or fails. This file is its whole vocabulary.
//!
//! The contract with the edge that drives it:
//! - effects are carried out in the order given; those that take long run as tasks of their own;
//! - before any input comes what an earlier process has left, if there is such a thing: `Cell::resume`;
//! - [`Effect::FetchDroplet`], [`Effect::StartSandbox`], [`Effect::StartStaging`] and [`Effect::SaveSnapshot`] each end in exactly one
//!   final input ([`DropletEvent`], [`SandboxEvent::Exited`], [`StagingEvent::Finished`] or [`StagingEvent::SetupFailed`],
//!   [`Input::SnapshotSaved`]);
//! - a late or repeated input about something unknown is legal and ignored; a spurious [`Input::Wake`] changes nothing.

pub mod environment;
pub mod routes;

mod cell;
mod config;
mod droplets;
mod egress;
mod filter;
mod health;
mod heartbeat_size;
mod instance;
mod lifecycle;
mod reaper;
mod registry;
mod resources;
mod snapshot;
mod staging_task;
#[cfg(test)]
mod testing;
mod time;
mod vocabulary;

pub use cell::Cell;
pub use config::{CellConfig, ComponentFacts, Evacuation, ExitedReasons, FilesConfig, FilesRoute, FilesV1, Intervals, StagingConfig};
pub use health::HealthCheck;
pub use reaper::DiskUse;
pub use resources::Capacity;
pub use snapshot::{InstanceImage, SnapshotImage, TaskImage};
pub use time::{Mono, Now, Wall};
pub use vocabulary::{
    Answer, BusEvent, DropletEvent, Effect, Exit, FilesAt, Input, InstanceKey, KeptDroplet, Publication, ReplyTo, Request, Resumed, Sample,
    SandboxEvent, SandboxSpec, Signal, StagedDroplet, StagingError, StagingEvent, StagingSpec, TaskKey, Varz, VarzInstance,
};
