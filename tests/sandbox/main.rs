//! The sandbox against real guests: what it promises, and what it keeps them from.
//!
//! This binary is also the compiler of its own sandboxes (`compile-component`), as `dewar` is.

#![expect(clippy::unwrap_used, reason = "what fails to unwrap fails its test")]

mod bombs;
mod command;
mod core_dumps;
mod cpu;
mod disk;
#[path = "../http/faults.rs"]
mod faults;
mod fixture;
mod http;
mod http_limits;
mod mutations;
mod network;
mod panics;
mod programs;
mod quotas;
mod services;
mod staging;
#[path = "../http/strict.rs"]
mod strict;
mod wire;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("compile-component") {
        return dewar_sandbox::compile_child();
    }
    let mut arguments = Arguments::from_args();
    // Some tests keep a core busy; more at a time would only make deadlines meaningless.
    arguments.test_threads.get_or_insert(2);
    let suites = [
        bombs::trials(),
        command::trials(),
        core_dumps::trials(),
        cpu::trials(),
        disk::trials(),
        http::trials(),
        http_limits::trials(),
        mutations::trials(),
        network::trials(),
        panics::trials(),
        programs::trials(),
        quotas::trials(),
        services::trials(),
        staging::trials(),
        wire::trials(),
    ];
    let trials: Vec<Trial> = suites.into_iter().flatten().collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
