//! The wasmtime edge: the only crate that names wasmtime.
//!
//! One [`Sandboxes`] per process holds the engine and the cache of native code. [`Sandboxes::program`] turns a component into a
//! [`Program`], [`Sandboxes::start`] runs one as an instance in a [`Sandbox`], [`Sandboxes::buildpack`] gives a [`Buildpack`].
//!
//! Whatever comes from a guest is hostile: memory, disk, handles, log, network, CPU and the size of everything that the host
//! holds for it are limited in the module that is named after them, and a guest's end is an [`Exit`], never an error of ours.

mod alarm;
mod answer;
mod artifacts;
mod command;
mod compile;
mod core_dump;
mod cpu;
mod crowd;
mod egress;
mod engine;
mod epoch;
mod fair;
mod filesystem;
mod given;
mod guest;
mod handles;
mod headroom;
mod held;
mod http;
mod instance;
mod lanes;
mod ledger;
mod limits;
mod network;
mod outbound;
mod output;
mod pool;
mod program;
mod refusals;
mod sandboxes;
mod scheduled;
mod serve;
mod service;
mod staging;
mod stream;
mod trap;

pub use compile::{CompileLimits, compile_child};
pub use cpu::CpuQuota;
pub use egress::{DENIED_NAMES, DENIED_NETWORKS, EgressPolicy, InvalidEgressRule, OperatorEgress};
pub use engine::Allocation;
pub use instance::{Exit, HttpLimits, InstanceSpec, Instances, Quota, Sandbox, SandboxUsage};
pub use network::{NetworkConfig, NetworkError, Resolve};
pub use output::{Output, OutputSink};
pub use program::{Program, ProgramError, World};
pub use sandboxes::{EngineError, SandboxConfig, Sandboxes};
pub use staging::{Buildpack, BuildpackError, BuildpackLimits, BuildpackRun, Release};
