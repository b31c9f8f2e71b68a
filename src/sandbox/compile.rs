//! Component to native code, in a process of its own.
//!
//! What a compiler takes is in the hands of who wrote its input. So the agent never compiles: it starts itself again as
//! `compile-component MEMORY CPU_SECONDS COMPONENT_BYTES CONCURRENT`, writes the component to the child's standard input and reads the
//! artifact from its standard output. The child limits its own address space and CPU time, may write no file, and dies with its
//! parent; the parent limits the time on the clock and what it reads.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use dewar_protocol::Bytes;
use rustix::process::{Resource, Rlimit, Signal, set_parent_process_death_signal, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use crate::ProgramError;
use crate::engine::{self, Calls};
use crate::limits::Mebibytes;

/// The hidden sub-command.
const SUB_COMMAND: &str = "compile-component";
/// Threads of one compilation.
const THREADS: &str = "2";
/// Bytes of an artifact for each byte of its component, at most, and what even the smallest may have.
const ARTIFACT_RATIO: u64 = 32;
const ARTIFACT_BYTES: u64 = 64 << 20;
/// Bytes of an error message that are read.
const MESSAGE_BYTES: u64 = 16 << 10;
/// The child's exit status when the component is at fault.
const INVALID: u8 = 65;

/// What compiling one component may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompileLimits {
    /// Address space of the compiler.
    pub memory: Bytes,
    /// CPU time of the compiler, whole seconds.
    pub cpu: Duration,
    /// Time on the clock.
    pub wall: Duration,
    /// Size of the component.
    pub component: Bytes,
}

impl Default for CompileLimits {
    fn default() -> Self {
        Self { memory: Bytes(4 << 30), cpu: Duration::from_secs(120), wall: Duration::from_secs(120), component: Bytes(64 << 20) }
    }
}

/// Compiles a component in a child process.
pub(crate) async fn compile(compiler: &Path, limits: &CompileLimits, calls: Calls, wasm: &[u8]) -> Result<Vec<u8>, ProgramError> {
    let failed = |error: std::io::Error| ProgramError::Compiler(format!("{}: {error}", compiler.display()));
    let mut child = Command::new(compiler)
        .arg(SUB_COMMAND)
        .arg(limits.memory.0.to_string())
        .arg(limits.cpu.as_secs().max(1).to_string())
        .arg(limits.component.0.to_string())
        .arg(u64::from(calls == Calls::Concurrent).to_string())
        .env_clear()
        .env("RAYON_NUM_THREADS", THREADS)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (Some(mut stdin), Some(stdout), Some(stderr)) = (stdin, stdout, stderr) else {
        return Err(ProgramError::Compiler("the compiler has no pipes".into()));
    };
    let most = (wasm.len() as u64).saturating_mul(ARTIFACT_RATIO).max(ARTIFACT_BYTES);
    let (mut artifact, mut message) = (Vec::new(), Vec::new());
    let feed = async {
        // A child that stops reading says why when it ends.
        let _ = stdin.write_all(wasm).await;
        drop(stdin);
    };
    let work = async {
        let mut stdout = stdout.take(most + 1);
        let mut stderr = stderr.take(MESSAGE_BYTES);
        let (read, told, ()) = tokio::join!(stdout.read_to_end(&mut artifact), stderr.read_to_end(&mut message), feed);
        read?;
        told?;
        // Having read enough, the child may not write on for ever.
        drop((stdout, stderr));
        child.wait().await
    };
    let status = tokio::time::timeout(limits.wall, work).await.map_err(|_| ProgramError::TooSlow(limits.wall))?.map_err(failed)?;
    if artifact.len() as u64 > most {
        return Err(ProgramError::TooCostly(format!("{} of native code", Mebibytes(Bytes(most)))));
    }
    verdict(status, limits, &String::from_utf8_lossy(&message)).map(|()| artifact)
}

/// What a child's end says about the component.
fn verdict(status: ExitStatus, limits: &CompileLimits, message: &str) -> Result<(), ProgramError> {
    use std::os::unix::process::ExitStatusExt;
    let message = message.trim();
    if status.success() {
        return Ok(());
    }
    let signal = status.signal().unwrap_or(0);
    let out_of_cpu = [Signal::XCPU, Signal::KILL].iter().any(|limit| limit.as_raw() == signal);
    let out_of_memory =
        ["memory allocation of", "out of memory", "Cannot allocate memory", "failed to allocate", "Resource temporarily unavailable"];
    if out_of_memory.iter().any(|hint| message.contains(hint)) {
        Err(ProgramError::TooCostly(format!("{} of memory", Mebibytes(limits.memory))))
    } else if out_of_cpu {
        Err(ProgramError::TooCostly(format!("{:?} of CPU time", limits.cpu)))
    } else if status.code() == Some(i32::from(INVALID)) {
        Err(ProgramError::Invalid(message.to_owned()))
    } else {
        Err(ProgramError::Compiler(format!("{status}: {message}")))
    }
}

/// The body of the hidden sub-command: reads its orders from the command line, limits itself, reads the component from standard
/// input and writes the artifact to standard output, or says on standard error why there is none.
#[must_use]
pub fn compile_child() -> ExitCode {
    let orders: Option<Vec<u64>> =
        std::env::args().skip_while(|argument| argument != SUB_COMMAND).skip(1).map(|number| number.parse().ok()).collect();
    let Some([memory, cpu, component, concurrent]) = orders.as_deref() else {
        return fail(2, "this sub-command is for dewar itself");
    };
    if let Err(error) = limit_self(*memory, *cpu) {
        return fail(1, &format!("cannot limit the compiler: {error}"));
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
    let hard = |limit: u64| Rlimit { current: Some(limit), maximum: Some(limit) };
    setrlimit(Resource::As, hard(memory))?;
    setrlimit(Resource::Cpu, hard(cpu))?;
    setrlimit(Resource::Core, hard(0))?;
    setrlimit(Resource::Fsize, hard(0))
}
