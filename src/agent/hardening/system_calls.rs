//! System calls that fail from now on.
//!
//! A list of what is forbidden, not of what is allowed: the libraries of a host and wasmtime may come to use any harmless new call,
//! and an agent must not break by that. The list holds what looks into other processes, changes the host, loads code into the kernel
//! or makes namespaces (where most of what once was root's can be had by anybody).

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, apply_filter,
};

/// Forbidden with any arguments.
const FORBIDDEN: &[libc::c_long] = &[
    // Other processes.
    libc::SYS_kcmp,
    libc::SYS_pidfd_getfd,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    // Mounts, roots, namespaces.
    libc::SYS_chroot,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_pivot_root,
    libc::SYS_setns,
    libc::SYS_umount2,
    libc::SYS_unshare,
    // Files by handle, which go round Landlock; device nodes are made by nobody here.
    libc::SYS_fanotify_init,
    libc::SYS_mknodat,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_quotactl,
    // Code in the kernel, and what looks into it.
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_delete_module,
    libc::SYS_finit_module,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_perf_event_open,
    libc::SYS_request_key,
    libc::SYS_syslog,
    libc::SYS_userfaultfd,
    libc::SYS_vmsplice,
    // The host.
    libc::SYS_acct,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_personality,
    libc::SYS_reboot,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_vhangup,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mknod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
];

/// Flags of `clone` that make a namespace.
const NAMESPACES: &[libc::c_int] = &[
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWUTS,
];

/// Kinds of sockets that remain; netlink is how the C library asks for the host's addresses.
const FAMILIES: &[libc::c_int] = &[libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];

/// Why system calls cannot be forbidden.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("no filter for this processor: {0}")]
    Filter(#[from] BackendError),
    #[error(transparent)]
    Kernel(#[from] seccompiler::Error),
}

/// Forbids them to the calling thread and those that it starts from now on.
pub(super) fn forbid() -> Result<(), Refused> {
    apply_filter(&forbidden()?)?;
    Ok(apply_filter(&clone3()?)?)
}

fn forbidden() -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = FORBIDDEN.iter().map(|number| (*number, Vec::new())).collect();
    let flagged = |flag: &libc::c_int| SeccompRule::new(vec![is(0, SeccompCmpOp::MaskedEq(bits(*flag)), bits(*flag))?]);
    rules.insert(libc::SYS_clone, NAMESPACES.iter().map(flagged).collect::<Result<_, _>>()?);
    let strange = FAMILIES.iter().map(|family| is(0, SeccompCmpOp::Ne, bits(*family))).collect::<Result<_, _>>()?;
    rules.insert(libc::SYS_socket, vec![SeccompRule::new(strange)?]);
    // Types into the terminal that the agent was started from.
    rules.insert(libc::SYS_ioctl, vec![SeccompRule::new(vec![is(1, SeccompCmpOp::Eq, libc::TIOCSTI)?])?]);
    program(rules, libc::EPERM)
}

/// The flags of `clone3` lie in memory, out of a filter's sight. Where it does not exist, C libraries use `clone`.
fn clone3() -> Result<BpfProgram, BackendError> {
    program(BTreeMap::from([(libc::SYS_clone3, Vec::new())]), libc::ENOSYS)
}

fn program(rules: BTreeMap<i64, Vec<SeccompRule>>, errno: libc::c_int) -> Result<BpfProgram, BackendError> {
    let refuse = SeccompAction::Errno(errno.unsigned_abs());
    SeccompFilter::new(rules, SeccompAction::Allow, refuse, std::env::consts::ARCH.try_into()?)?.try_into()
}

/// A condition on the lower half of an argument, which is all that the kernel looks at for those above.
fn is(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
}

fn bits(number: libc::c_int) -> u64 {
    u64::from(number.unsigned_abs())
}
