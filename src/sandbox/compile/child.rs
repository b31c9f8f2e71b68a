//! The compiler's own process.

use std::io::{Read, Write};
use std::process::ExitCode;

use rustix::process::{Resource, Rlimit, Signal, nice, set_parent_process_death_signal, setrlimit};

use super::{INVALID, SUB_COMMAND, confinement};
use crate::engine::{self, Calls};

/// Added to the niceness: instances come first, and where they leave room it is as fast as ever.
const NICENESS: i32 = 10;
/// CPU seconds between the signal that names the limit and the one that cannot be withstood.
const CPU_GRACE: u64 = 2;

/// The body of the hidden sub-command: reads its orders from the command line, limits itself, reads the component from standard
/// input and writes the artifact to standard output, or says on standard error why there is none.
#[must_use]
pub fn compile_child() -> ExitCode {
    let orders: Option<Vec<u64>> =
        std::env::args().skip_while(|argument| argument != SUB_COMMAND).skip(1).map(|number| number.parse().ok()).collect();
    let Some([memory, cpu, component, confined, concurrent]) = orders.as_deref() else {
        return fail(2, "this sub-command is for dewar itself");
    };
    if let Err(error) = limit_self(*memory, *cpu) {
        return fail(1, &format!("cannot limit the compiler: {error}"));
    }
    if *confined != 0
        && let Err(error) = confinement::confine()
    {
        return fail(1, &format!("cannot confine the compiler: {error}"));
    }
    let mut wasm = Vec::new();
    match std::io::stdin().lock().take(*component + 1).read_to_end(&mut wasm) {
        Err(error) => return fail(1, &format!("cannot read the component: {error}")),
        Ok(length) if length as u64 > *component => return fail(INVALID, "the component is too large"),
        Ok(_) => {}
    }
    let calls = if *concurrent == 0 { Calls::Blocking } else { Calls::Concurrent };
    match engine::compiling(calls).and_then(|engine| engine.precompile_component(&wasm)) {
        Err(error) => fail(INVALID, &format!("{error:#}")),
        Ok(artifact) => match std::io::stdout().lock().write_all(&artifact) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(1, &format!("cannot write the artifact: {error}")),
        },
    }
}

fn fail(status: u8, message: &str) -> ExitCode {
    // With standard error gone there is nobody to tell; the status tells enough.
    let _ = writeln!(std::io::stderr(), "{message}");
    ExitCode::from(status)
}

fn limit_self(memory: u64, cpu: u64) -> rustix::io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    nice(NICENESS)?;
    let limit = |current: u64, maximum: u64| Rlimit { current: Some(current), maximum: Some(maximum) };
    setrlimit(Resource::As, limit(memory, memory))?;
    setrlimit(Resource::Cpu, limit(cpu, cpu.saturating_add(CPU_GRACE)))?;
    setrlimit(Resource::Core, limit(0, 0))?;
    setrlimit(Resource::Fsize, limit(0, 0))
}
