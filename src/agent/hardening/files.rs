//! What remains of the file system.
//!
//! Rules name files and directories that are there when they are made; what replaces a file by renaming is another one. So where
//! something may be replaced while the agent runs, its directory is named. That is so for libraries. It is so for `/etc` unless the
//! agent is root: what everybody may read there holds no secrets, and `resolv.conf` changes with the network. An agent of root gets
//! only the files it needs in `/etc`, and must be started again when one of them was replaced.

use std::fs::{DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use dewar_bus::{BusAuth, BusConfig};
use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, LandlockStatus, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError,
    RulesetStatus, Scope, make_bitflags, path_beneath_rules,
};

use crate::base_dir::{BaseDirError, DIRECTORIES};
use crate::config::AgentConfig;

/// The least that keeps its word: without the third version files can still be cut to nothing (Linux 6.2).
const LEAST: ABI = ABI::V3;
/// The newest that is asked for; an older kernel gives what it knows (Linux 6.12).
const NEWEST: ABI = ABI::V6;

/// Libraries and what finds them, of the C library's resolver too.
const LIBRARIES: &[&str] = &["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib"];
/// Certificate authorities, and what their links point to.
const AUTHORITIES: &[&str] = &[
    "/etc/ca-certificates",
    "/etc/pki",
    "/etc/ssl",
    "/usr/local/share/ca-certificates",
    "/usr/share/ca-certificates",
    "/usr/share/pki",
    "/var/lib/ca-certificates",
];
/// Where the resolver is told, and by environment where authorities are.
const RESOLV_CONF: &str = "/etc/resolv.conf";
const AUTHORITY_VARIABLES: &[&str] = &["SSL_CERT_FILE", "SSL_CERT_DIR"];
/// What an agent of root may read in `/etc`.
const ETC: &[&str] = &[
    "/etc/gai.conf",
    "/etc/host.conf",
    "/etc/hosts",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/nsswitch.conf",
    RESOLV_CONF,
    "/etc/services",
];
/// What the kernel tells about this process and the host.
const KERNEL: &[&str] = &[
    "/proc/cpuinfo",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/self",
    "/proc/stat",
    "/proc/sys/vm",
    "/sys/devices/system/cpu",
    "/sys/fs/cgroup",
    "/dev/urandom",
];

/// Paths and what may be done below each; those that are not there are left out.
pub(super) struct Rules(Vec<(PathBuf, BitFlags<AccessFs>)>);

/// Why files cannot be restricted.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("the kernel was built without Landlock")]
    Missing,
    #[error("Landlock is switched off (kernel parameter `lsm=`)")]
    SwitchedOff,
    #[error("the kernel has abi {0} of Landlock, and {least} is the least that will do", least = LEAST as i32)]
    Old(i32),
    #[error(transparent)]
    Rules(#[from] RulesetError),
}

impl Rules {
    /// What an agent needs.
    pub(super) fn of(config: &AgentConfig) -> Result<Self, BaseDirError> {
        let read = make_bitflags!(AccessFs::{ReadFile | ReadDir});
        let run = read | AccessFs::Execute;
        let mut rules = Self(Vec::new());
        rules.work_directory(&config.base_dir)?;
        rules.pid_file(config.pid_file.as_deref());
        rules.add(["/dev/null"], make_bitflags!(AccessFs::{ReadFile | WriteFile}));
        // The compiler is this very file, whatever has become of its path, or the one that is configured.
        rules.add(config.compiler.as_deref().or(Some(Path::new("/proc/self/exe"))), run);
        rules.add(loaders(), run);
        rules.add([LIBRARIES, AUTHORITIES, KERNEL].concat(), read);
        rules.add(AUTHORITY_VARIABLES.iter().filter_map(std::env::var_os), read);
        rules.add(if rustix::process::geteuid().is_root() { ETC } else { &["/etc"] }, read);
        // systemd and others keep the file elsewhere and replace it there.
        let resolver = Path::new(RESOLV_CONF).canonicalize().ok();
        rules.add(resolver.as_deref().and_then(Path::parent).filter(|dir| *dir != Path::new("/etc")), read);
        rules.add(credentials(&config.bus), read);
        rules.add(config.egress.ca_file.as_deref(), read);
        Ok(rules)
    }

    fn add<P: AsRef<Path>>(&mut self, paths: impl IntoIterator<Item = P>, access: BitFlags<AccessFs>) {
        self.0.extend(paths.into_iter().map(|path| (path.as_ref().to_owned(), access)));
    }

    /// Everything but to run what is there, and to make devices and sockets.
    fn work_directory(&mut self, base: &Path) -> Result<(), BaseDirError> {
        let failed = |source: io::Error| BaseDirError::Disk { path: base.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(base).map_err(failed)?;
        let access = make_bitflags!(AccessFs::{
            ReadFile | ReadDir | WriteFile | Truncate | MakeReg | MakeDir | MakeSym | RemoveFile | RemoveDir | Refer
        });
        self.add([base], access);
        // A part of it may be a link to another disk.
        let linked = DIRECTORIES.iter().map(|name| base.join(name)).filter(|path| path.is_symlink());
        self.add(linked.collect::<Vec<_>>(), access);
        Ok(())
    }

    /// The file itself, and its directory only to remove it there: it could not be made later without a right to make any.
    fn pid_file(&mut self, path: Option<&Path>) {
        let Some(path) = path else { return };
        let directory = path.parent().map(|parent| if parent.as_os_str().is_empty() { Path::new(".") } else { parent });
        // What is wrong with it is found out, and told, when it is written.
        let _ = OpenOptions::new().write(true).create(true).truncate(false).mode(0o644).open(path);
        self.add([path], make_bitflags!(AccessFs::{ReadFile | WriteFile | Truncate}));
        self.add(directory, AccessFs::RemoveFile.into());
    }

    /// Puts the rules in force for the calling thread and those that it starts from now on; gives the version of Landlock.
    pub(super) fn enforce(&self) -> Result<i32, Refused> {
        let ruleset = Ruleset::default()
            // All of this or nothing.
            .set_compatibility(CompatLevel::SoftRequirement)
            .handle_access(AccessFs::from_all(LEAST))?
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(NEWEST))?
            .scope(Scope::from_all(NEWEST))?;
        let mut created = ruleset.create()?;
        for (path, access) in &self.0 {
            created = created.add_rules(path_beneath_rules([path], *access))?;
        }
        let status = created.restrict_self()?;
        match status.landlock {
            LandlockStatus::NotImplemented => Err(Refused::Missing),
            LandlockStatus::NotEnabled => Err(Refused::SwitchedOff),
            LandlockStatus::Available { effective_abi, .. } => {
                let abi = effective_abi as i32;
                if status.ruleset == RulesetStatus::NotEnforced { Err(Refused::Old(abi)) } else { Ok(abi) }
            }
        }
    }
}

/// Directories of the libraries that this process has loaded, the loader among them, which the compiler's process loads again. Empty
/// for an executable without any.
fn loaders() -> Vec<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let own = std::env::current_exe().ok();
    // `7f…-7f… r-xp 00026000 fe:01 4242    /usr/lib/x86_64-linux-gnu/libc.so.6`
    let executable = maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|rights| rights.contains('x')));
    let files = executable.filter_map(|line| line.find('/').map(|start| PathBuf::from(&line[start..])));
    let mut directories: Vec<PathBuf> =
        files.filter(|file| Some(file) != own.as_ref()).filter_map(|file| file.parent().map(Path::to_owned)).collect();
    directories.sort();
    directories.dedup();
    directories
}

/// Files that the bus reads when it connects.
fn credentials(bus: &BusConfig) -> Vec<PathBuf> {
    let credentials = match &bus.auth {
        BusAuth::CredentialsFile(path) => Some(path.clone()),
        BusAuth::None | BusAuth::UserPassword { .. } | BusAuth::Token(_) | BusAuth::NkeySeed(_) => None,
    };
    let tls = bus.tls.iter().flat_map(|tls| [&tls.ca_file, &tls.cert_file, &tls.key_file]).flatten().cloned();
    credentials.into_iter().chain(tls).collect()
}
