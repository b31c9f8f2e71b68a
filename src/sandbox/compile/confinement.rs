//! What keeps a compiler that its input has taken over from doing anything but compute.
//!
//! Landlock takes all files, TCP and signals to others; seccomp leaves only the system calls that computing on some threads with
//! pipes already open needs, and no memory that is both written and run. Either does alone where the kernel lacks the other.

use std::collections::BTreeMap;

use landlock::{ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetError, Scope};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, apply_filter,
};

/// Newest restrictions asked for; an older kernel gives those that it knows.
const LANDLOCK: ABI = ABI::V6;

/// System calls allowed with any arguments.
const PLAIN: &[libc::c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_ppoll,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_sysinfo,
    libc::SYS_write,
    libc::SYS_writev,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
];

/// Why a compiler cannot be confined.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unconfined {
    #[error("landlock: {0}")]
    Landlock(#[from] RulesetError),
    #[error("seccomp: {0}")]
    Filter(#[from] BackendError),
    #[error("seccomp: {0}")]
    Seccomp(#[from] seccompiler::Error),
}

/// Confines the calling thread and those that it will start, for good. What the kernel does not offer is left out.
pub(super) fn confine() -> Result<(), Unconfined> {
    Ruleset::default()
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .handle_access(AccessNet::from_all(LANDLOCK))?
        .scope(Scope::from_all(LANDLOCK))?
        .create()?
        .restrict_self()?;
    match apply_filter(&filter()?) {
        // The kernel was built without it.
        Err(seccompiler::Error::Seccomp(error)) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EINVAL)) => Ok(()),
        applied => Ok(applied?),
    }
}

/// What is not allowed does not exist: `ENOSYS` also has glibc fall back to the calls whose arguments can be judged.
fn filter() -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = PLAIN.iter().map(|number| (*number, Vec::new())).collect();
    let own = u64::from(std::process::id());
    let not_run = || only_if(2, SeccompCmpOp::MaskedEq(bits(libc::PROT_EXEC)), 0);
    rules.insert(libc::SYS_mmap, vec![not_run()?]);
    rules.insert(libc::SYS_mprotect, vec![not_run()?]);
    // Threads, but no processes.
    rules.insert(libc::SYS_clone, vec![only_if(0, SeccompCmpOp::MaskedEq(bits(libc::CLONE_THREAD)), bits(libc::CLONE_THREAD))?]);
    // To abort.
    rules.insert(libc::SYS_tgkill, vec![only_if(0, SeccompCmpOp::Eq, own)?]);
    // To read limits, not to change them, which root could.
    rules.insert(libc::SYS_prlimit64, vec![only_if(2, SeccompCmpOp::Eq, 0)?]);
    rules.insert(libc::SYS_prctl, vec![only_if(0, SeccompCmpOp::Eq, bits(libc::PR_SET_NAME))?]);
    let refuse = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    SeccompFilter::new(rules, refuse, SeccompAction::Allow, std::env::consts::ARCH.try_into()?)?.try_into()
}

fn only_if(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(argument, SeccompCmpArgLen::Qword, operator, value)?])
}

fn bits(flag: libc::c_int) -> u64 {
    u64::from(flag.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::net::{TcpListener, UdpSocket};
    use std::process::Command;

    use super::*;

    /// What a confined thread can do. Confinement is the thread's own, so that the other tests go on freely.
    fn confined<T: Send + 'static>(deed: impl FnOnce() -> T + Send + 'static) -> T {
        let thread = std::thread::spawn(move || {
            confine().unwrap();
            deed()
        });
        thread.join().unwrap()
    }

    #[test]
    fn a_confined_compiler_reaches_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let ways = confined(move || {
            [
                ("read", File::open("/etc/passwd").is_err()),
                ("write", File::options().write(true).open(file).is_err()),
                ("make", fs::create_dir(dir.path().join("made")).is_err()),
                ("list", fs::read_dir("/").is_err()),
                ("listen", TcpListener::bind("127.0.0.1:0").is_err()),
                ("send", UdpSocket::bind("127.0.0.1:0").is_err()),
                ("run", Command::new("/bin/true").spawn().is_err()),
                ("trace", rustix::process::test_kill_process(rustix::process::Pid::INIT).is_err()),
            ]
        });
        let open: Vec<_> = ways.iter().filter(|(_, closed)| !closed).map(|(way, _)| way).collect();
        assert!(open.is_empty(), "{open:?}");
    }

    #[test]
    fn a_confined_compiler_can_compute_on_threads() {
        let sum = confined(|| {
            let parts: Vec<_> = (0..4_u64).map(|part| std::thread::spawn(move || vec![part; 1 << 20].into_iter().sum::<u64>())).collect();
            parts.into_iter().map(|part| part.join().unwrap()).sum::<u64>()
        });
        assert_eq!(sum, 6 << 20);
    }

    #[test]
    #[expect(unsafe_code, reason = "only a mapping of its own can be made executable")]
    fn a_confined_compiler_runs_no_memory_that_it_wrote() {
        use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect};
        let refused = confined(|| {
            // SAFETY: a fresh mapping, which nobody else knows of.
            let mapped = unsafe { mmap_anonymous(std::ptr::null_mut(), 4096, ProtFlags::READ | ProtFlags::EXEC, MapFlags::PRIVATE) };
            // SAFETY: as above.
            let data = unsafe { mmap_anonymous(std::ptr::null_mut(), 4096, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE) };
            // SAFETY: nothing lies in this mapping.
            let changed = unsafe { mprotect(data.unwrap(), 4096, MprotectFlags::READ | MprotectFlags::EXEC) };
            (mapped.is_err(), changed.is_err())
        });
        assert_eq!(refused, (true, true));
    }
}
