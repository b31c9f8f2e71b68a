//! A corpus of attacks: guests, clients, packages, buildpacks and components that mean no good. See README.md.
//!
//! All of them share one process and one engine with a well-behaved neighbour, whose requests must all succeed meanwhile. This
//! binary is also the compiler of its own sandboxes (`compile-component`), as `dewar` is.

#![expect(clippy::unwrap_used, reason = "what fails to unwrap fails its test")]

mod answers;
mod attack;
mod buildpacks;
mod clients;
mod components;
mod cpu;
mod disk;
mod evidence;
mod handles;
mod harness;
mod log;
mod memory;
mod neighbour;
mod network;
mod packages;
mod paths;
mod process;
mod readme;
mod text;

#[path = "../sandbox/fixture.rs"]
#[expect(dead_code, reason = "these tests need a part of what it can do")]
mod fixture;
#[path = "../../src/agent/test_server.rs"]
#[expect(dead_code, reason = "as above")]
mod test_server;
#[path = "../stager/world.rs"]
#[expect(dead_code, reason = "as above")]
mod world;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

use crate::attack::Attack;

/// Attacks at a time. Most of them wait for a limit; those that compute have two cores to share with their neighbour.
const SIDE_BY_SIDE: usize = 3;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("compile-component") {
        return dewar_sandbox::compile_child();
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(SIDE_BY_SIDE);
    let attacks = corpus();
    let table = readme::table(&attacks);
    let mut trials: Vec<Trial> = attacks.into_iter().map(Attack::into_trial).collect();
    trials.push(Trial::test("readme::lists_every_attack", move || {
        readme::check(&table);
        Ok(())
    }));
    trials.extend(harness::trials());
    if arguments.list {
        return libtest_mimic::run(&arguments, trials).exit_code();
    }
    let before = process::Inventory::take_quiet();
    let outcome = libtest_mimic::run(&arguments, trials);
    neighbour::retire();
    if let Err(leaks) = before.compare() {
        eprintln!("the attacks left something behind:\n{leaks}");
        return ExitCode::FAILURE;
    }
    outcome.exit_code()
}

fn corpus() -> Vec<Attack> {
    let kinds = [
        cpu::attacks(),
        memory::attacks(),
        disk::attacks(),
        paths::attacks(),
        handles::attacks(),
        log::attacks(),
        network::attacks(),
        answers::attacks(),
        clients::attacks(),
        components::attacks(),
        packages::attacks(),
        buildpacks::attacks(),
    ];
    kinds.into_iter().flatten().collect()
}
