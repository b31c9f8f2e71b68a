//! The sandbox against real guests: what it promises, and what it keeps them from.
//!
//! This binary is also the compiler of its own sandboxes (`compile-component`), as `dewar` is.

mod fixture;
mod http;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("compile-component") {
        return dewar_sandbox::compile_child();
    }
    let mut arguments = Arguments::from_args();
    // Each test keeps a core busy now and then; more at a time only make their deadlines meaningless.
    arguments.test_threads.get_or_insert(2);
    let trials: Vec<Trial> = [http::trials()].into_iter().flatten().collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
