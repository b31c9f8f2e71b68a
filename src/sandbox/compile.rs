//! Component to native code, in a process of its own.
//!
//! What a compiler takes is in the hands of who wrote its input. So the agent never compiles: it starts itself again as
//! `compile-component MEMORY CPU_SECONDS COMPONENT_BYTES CONFINED CONCURRENT`, writes the component to the child's standard input and reads the
//! artifact from its standard output. The child ([`child`]) limits its own address space, CPU time and priority, keeps itself from
//! files, network and other processes ([`confinement`]), and dies with its parent; the parent limits the time on the clock, what it
//! reads, how many compile at a time and how many wait ([`Compilers`]).

mod child;
mod confinement;
mod refusals;

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use dewar_protocol::Bytes;
use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::sync::Semaphore;

pub use self::child::compile_child;
use self::refusals::Refusals;
use crate::ProgramError;
use crate::engine::Calls;
use crate::limits::Mebibytes;

/// The hidden sub-command.
const SUB_COMMAND: &str = "compile-component";
/// Compilers at a time; each may take what [`CompileLimits`] allow.
const COMPILERS: usize = 2;
/// Components that wait for a compiler, in memory; one more is refused.
const WAITING: usize = 64;
/// Threads of one compilation.
const THREADS: &str = "2";
/// Each of glibc's arenas reserves 64 MiB of address space, used or not.
const ARENAS: &str = "2";
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
    /// Address space of the compiler: some 60 MiB for itself, for real components 30 to 40 MiB for each MiB of their code.
    pub memory: Bytes,
    /// CPU time of the compiler, whole seconds.
    pub cpu: Duration,
    /// Time on the clock.
    pub wall: Duration,
    /// Size of the component.
    pub component: Bytes,
    /// Whether the compiler keeps itself from files, network and other processes, as far as the kernel lets it.
    pub confined: bool,
}

impl Default for CompileLimits {
    fn default() -> Self {
        Self {
            memory: Bytes(1 << 30),
            cpu: Duration::from_secs(120),
            wall: Duration::from_secs(120),
            component: Bytes(64 << 20),
            confined: true,
        }
    }
}

/// Whoever compiles, a few at a time.
pub(crate) struct Compilers {
    executable: PathBuf,
    limits: CompileLimits,
    /// For everybody who compiles or waits.
    places: Semaphore,
    turns: Semaphore,
    refusals: Refusals,
}

impl Compilers {
    pub(crate) fn new(executable: PathBuf, limits: CompileLimits) -> Self {
        Self {
            executable,
            limits,
            places: Semaphore::new(COMPILERS + WAITING),
            turns: Semaphore::new(COMPILERS),
            refusals: Refusals::default(),
        }
    }

    pub(crate) fn limits(&self) -> &CompileLimits {
        &self.limits
    }

    /// Compiles a component in a child process when there is a turn. One that took too much a while ago, under the same name, is
    /// refused as it was then, so that the same bomb does not keep compilers busy again and again.
    pub(crate) async fn compile(&self, name: &str, calls: Calls, wasm: &[u8]) -> Result<Vec<u8>, ProgramError> {
        self.refusals.check(name)?;
        let Ok(_place) = self.places.try_acquire() else { return Err(ProgramError::Busy { waiting: WAITING }) };
        let _turn = self.turns.acquire().await.map_err(|closed| ProgramError::Compiler(closed.to_string()))?;
        let compiled = compile(&self.executable, &self.limits, calls, wasm).await;
        if let Err(error) = &compiled {
            self.refusals.note(name, error);
        }
        compiled
    }
}

/// Compiles a component in a child process.
async fn compile(compiler: &Path, limits: &CompileLimits, calls: Calls, wasm: &[u8]) -> Result<Vec<u8>, ProgramError> {
    let failed = |error: std::io::Error| ProgramError::Compiler(format!("{}: {error}", compiler.display()));
    let mut child = Command::new(compiler)
        .arg(SUB_COMMAND)
        .arg(limits.memory.0.to_string())
        .arg(limits.cpu.as_secs().max(1).to_string())
        .arg(limits.component.0.to_string())
        .arg(u8::from(limits.confined).to_string())
        .arg(u8::from(calls == Calls::Concurrent).to_string())
        .env_clear()
        .env("RAYON_NUM_THREADS", THREADS)
        .env("MALLOC_ARENA_MAX", ARENAS)
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

/// What allocators, the kernel and the standard library say when there is no more address space.
const OUT_OF_MEMORY: [&str; 5] =
    ["memory allocation of", "out of memory", "Cannot allocate memory", "failed to allocate", "Resource temporarily unavailable"];

/// What a child's end says about the component.
fn verdict(status: ExitStatus, limits: &CompileLimits, message: &str) -> Result<(), ProgramError> {
    use std::os::unix::process::ExitStatusExt;
    let message = message.trim();
    if status.success() {
        return Ok(());
    }
    let ended_by = |signal: Signal| status.signal() == Some(signal.as_raw());
    if OUT_OF_MEMORY.iter().any(|hint| message.contains(hint)) {
        Err(ProgramError::TooCostly(format!("{} of memory", Mebibytes(limits.memory))))
    } else if ended_by(Signal::XCPU) {
        Err(ProgramError::TooCostly(format!("{:?} of CPU time", limits.cpu)))
    } else if message.contains("has overflowed its stack") {
        Err(ProgramError::TooCostly("the compiler's stack: it nests too deeply".into()))
    } else if ended_by(Signal::KILL) {
        // Not by us, who would not be here: our own limits end it otherwise.
        Err(ProgramError::Compiler("it was killed, as the kernel does when the host is out of memory".into()))
    } else if status.code() == Some(i32::from(INVALID)) {
        Err(ProgramError::Invalid(message.to_owned()))
    } else {
        Err(ProgramError::Compiler(format!("{status}: {message}")))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn an_end_names_the_limit_that_was_met() {
        let limits = CompileLimits::default();
        let signal = |signal: Signal| ExitStatus::from_raw(signal.as_raw());
        let code = |code: i32| ExitStatus::from_raw(code << 8);
        let text = |status, message: &str| verdict(status, &limits, message).unwrap_err().to_string();
        assert!(verdict(code(0), &limits, "a warning").is_ok());
        assert_eq!(text(signal(Signal::XCPU), ""), "compile component: it takes more than 120s of CPU time");
        assert!(text(signal(Signal::ABORT), "memory allocation of 64 bytes failed").ends_with("MiB of memory"));
        assert!(text(signal(Signal::ABORT), "thread 'main' has overflowed its stack").contains("nests too deeply"));
        assert!(text(signal(Signal::KILL), "").starts_with("run the compiler: it was killed"));
        assert_eq!(text(code(65), " invalid magic \n"), "compile component: invalid magic");
        assert!(text(code(1), "cannot limit the compiler").starts_with("run the compiler: "));
    }
}
