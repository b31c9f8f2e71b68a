//! The wasmtime edge: the only crate that names wasmtime.
//!
//! One [`Sandboxes`] per process holds the engine and the cache of native code. [`Sandboxes::program`] turns a component into a
//! [`Program`], [`Sandboxes::start`] runs one as an instance in a [`Sandbox`], [`Sandboxes::buildpack`] gives a [`Buildpack`].

mod egress;
mod instance;
mod output;
mod program;
mod sandboxes;
mod staging;

pub use egress::{EgressPolicy, InvalidEgressRule};
pub use instance::{Exit, HttpLimits, InstanceSpec, Quota, Sandbox, SandboxUsage};
pub use output::{Output, OutputSink};
pub use program::{Program, ProgramError, World};
pub use sandboxes::{CompileLimits, EngineError, SandboxConfig, Sandboxes, compile_child};
pub use staging::{Buildpack, BuildpackError, BuildpackLimits, BuildpackRun, Release};
