//! The agent's directory on disk: who may use it, what is in it, what a previous process left there. And the pid file.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use dewar_core::TaskKey;
use dewar_protocol::{InstanceId, InstanceState, Snapshot};
use tracing::{info, warn};

use crate::removal::remove_tree;

/// What is in it, besides the lock.
pub(crate) const DIRECTORIES: [&str; 8] = ["db", "instances", "crashes", "tmp", "staging", "staging_logs", "droplets", "artifacts"];

/// A directory that belongs to this process as long as the value lives.
#[derive(Debug)]
pub(crate) struct BaseDir {
    paths: Paths,
    /// Locked; the lock goes with the process, however it ends.
    lock: File,
}

/// Where things are. Cheap enough to clone.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    base: PathBuf,
}

/// Why a directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BaseDirError {
    /// Another agent works in it.
    #[error("use {path}: another agent works in this directory")]
    InUse {
        /// Which directory.
        path: PathBuf,
    },
    /// The disk says no.
    #[error("use {path}")]
    Disk {
        /// Which file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Paths {
    pub(crate) fn base(&self) -> &Path {
        &self.base
    }

    pub(crate) fn droplets(&self) -> PathBuf {
        self.base.join("droplets")
    }

    pub(crate) fn artifacts(&self) -> PathBuf {
        self.base.join("artifacts")
    }

    /// An instance's own directory, with `app`, `tmp` and `logs` in it.
    pub(crate) fn instance(&self, id: &InstanceId) -> PathBuf {
        self.base.join("instances").join(id.as_str())
    }

    /// What the next process has to know.
    pub(crate) fn db(&self) -> PathBuf {
        self.base.join("db")
    }

    /// What is kept of a crash: `logs`.
    pub(crate) fn crash(&self, id: &InstanceId) -> PathBuf {
        self.base.join("crashes").join(id.as_str())
    }

    /// What is to be seen of a staging task: its log.
    pub(crate) fn staging_log(&self, task: TaskKey) -> PathBuf {
        self.base.join("staging_logs").join(task.0.to_string())
    }
}

impl BaseDir {
    /// Makes the directory where it is missing, and takes it for this process.
    ///
    /// # Errors
    /// When another agent has it, or the disk fails.
    pub(crate) fn claim(base: &Path) -> Result<Self, BaseDirError> {
        fn disk(path: &Path) -> impl FnOnce(io::Error) -> BaseDirError {
            let path = path.to_owned();
            move |source| BaseDirError::Disk { path, source }
        }
        private_dir(base).map_err(disk(base))?;
        fs::set_permissions(base, fs::Permissions::from_mode(0o700)).map_err(disk(base))?;
        // Sandboxes are told absolute paths, which stay right wherever the process goes.
        let base = base.canonicalize().map_err(disk(base))?;
        let lock_path = base.join("agent.lock");
        let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&lock_path).map_err(disk(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(BaseDirError::InUse { path: base }),
            Err(TryLockError::Error(source)) => return Err(BaseDirError::Disk { path: lock_path, source }),
        }
        for name in DIRECTORIES {
            let dir = base.join(name);
            private_dir(&dir).map_err(disk(&dir))?;
        }
        Ok(Self { paths: Paths { base }, lock })
    }

    pub(crate) fn paths(&self) -> &Paths {
        &self.paths
    }

    /// Removes what an earlier process has left and nobody will ask for. Of what the snapshot names, the files of instances that are to
    /// run again stay as they are, and the logs of those that have ended. Without a snapshot nothing of either stays.
    ///
    /// # Errors
    /// When the disk fails.
    pub(crate) fn sweep(&self, snapshot: Option<&Snapshot>) -> Result<(), BaseDirError> {
        let disk = |path: &Path| {
            let path = path.to_owned();
            move |source| BaseDirError::Disk { path, source }
        };
        let (mut living, mut ended) = (HashSet::new(), HashSet::new());
        for instance in snapshot.into_iter().flat_map(|snapshot| &snapshot.instances) {
            let handle = &instance.warden_handle;
            match instance.state {
                InstanceState::Running | InstanceState::Evacuating | InstanceState::Resuming => drop(living.insert(handle.as_str())),
                InstanceState::Starting | InstanceState::Crashed => {
                    keep_logs(&self.paths, handle).map_err(disk(&self.paths.crash(handle)))?;
                    ended.insert(handle.as_str());
                }
                InstanceState::Born | InstanceState::Stopping | InstanceState::Stopped => {}
            }
        }
        let nothing = HashSet::new();
        for (name, kept) in
            [("instances", &living), ("crashes", &ended), ("tmp", &nothing), ("staging", &nothing), ("staging_logs", &nothing)]
        {
            let dir = self.paths.base.join(name);
            sweep(&dir, kept).map_err(disk(&dir))?;
        }
        Ok(())
    }
}

/// An instance has ended, and its process with it: its logs become those of a crash, unless they are that already.
fn keep_logs(paths: &Paths, handle: &InstanceId) -> io::Result<()> {
    let (logs, crash) = (paths.instance(handle).join("logs"), paths.crash(handle));
    if !logs.is_dir() || crash.join("logs").exists() {
        return Ok(());
    }
    private_dir(&crash)?;
    fs::rename(&logs, crash.join("logs"))
}

impl Drop for BaseDir {
    fn drop(&mut self) {
        // To close the file is not enough while a child process that is just being started has it, too.
        if let Err(error) = self.lock.unlock() {
            warn!(base_dir = %self.paths.base.display(), %error, "directory not given back before the end of the process");
        }
    }
}

fn private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn sweep(dir: &Path, kept: &HashSet<&str>) -> io::Result<()> {
    let mut count = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_str().is_none_or(|name| !kept.contains(name)) {
            remove_tree(&entry.path())?;
            count += 1;
        }
    }
    if count > 0 {
        info!(dir = %dir.display(), count, "left-overs removed");
    }
    Ok(())
}

/// A file with this process's id. It is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct PidFile {
    path: PathBuf,
}

/// Why there is no pid file.
#[derive(Debug, thiserror::Error)]
pub enum PidFileError {
    /// The process that it names lives.
    #[error("Process already running (pid={pid}).")]
    Running {
        /// Its id.
        pid: i32,
    },
    /// The disk says no.
    #[error("Cannot create pid file at {path} ({reason})")]
    Disk {
        /// Where.
        path: PathBuf,
        /// Why.
        reason: io::Error,
    },
}

/// Bytes that are read of an old pid file; a pid has fewer.
const PID_FILE_BYTES: u64 = 32;

impl PidFile {
    /// Writes the file. An old one that names no process, a dead one, or this one, is overwritten. The directory must exist.
    ///
    /// # Errors
    /// When the process it names lives, or the disk fails.
    pub(crate) fn create(path: &Path) -> Result<Self, PidFileError> {
        let disk = |reason| PidFileError::Disk { path: path.to_owned(), reason };
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o644).open(path).map_err(disk)?;
        file.lock().map_err(disk)?;
        let mut old = String::new();
        // What is no number names no process.
        let old = (&file).take(PID_FILE_BYTES).read_to_string(&mut old).ok().and_then(|_| old.trim().parse().ok());
        let own = std::process::id();
        if let Some(pid) = old.filter(|pid: &i32| u32::try_from(*pid) != Ok(own) && is_alive(*pid)) {
            return Err(PidFileError::Running { pid });
        }
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{own}")).map_err(disk)?;
        Ok(Self { path: path.to_owned() })
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            warn!(path = %self.path.display(), %error, "pid file not removed");
        }
    }
}

fn is_alive(pid: i32) -> bool {
    rustix::process::Pid::from_raw(pid).is_some_and(|pid| {
        // A process of another user cannot be signalled, but lives.
        matches!(rustix::process::test_kill_process(pid), Ok(()) | Err(rustix::io::Errno::PERM))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_private_and_has_one_agent() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("a/b");
        let claimed = BaseDir::claim(&base).unwrap();
        assert_eq!(fs::metadata(&base).unwrap().permissions().mode() & 0o777, 0o700);
        let error = BaseDir::claim(&base).unwrap_err();
        assert!(error.to_string().ends_with("another agent works in this directory"), "{error}");
        drop(claimed);
        BaseDir::claim(&base).unwrap();
    }

    /// Operators' scripts know them.
    #[test]
    fn it_has_the_directories_that_a_dea_had() {
        let dir = tempfile::tempdir().unwrap();
        let _claimed = BaseDir::claim(dir.path()).unwrap();
        for name in ["db", "droplets", "instances", "tmp", "staging", "crashes"] {
            assert!(dir.path().join(name).is_dir(), "{name}");
        }
    }

    #[test]
    fn left_overs_go_and_droplets_stay() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["instances/1/app", "crashes/2/logs", "staging_logs/4/tmp", "droplets/3"] {
            fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        let claimed = BaseDir::claim(dir.path()).unwrap();
        claimed.sweep(None).unwrap();
        let there = ["instances/1", "crashes/2", "staging_logs/4", "droplets/3"].map(|path| dir.path().join(path).exists());
        assert_eq!(there, [false, false, false, true]);
    }

    #[test]
    fn a_file_in_the_way_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("file");
        fs::write(&base, "").unwrap();
        assert_eq!(BaseDir::claim(&base).unwrap_err().to_string(), format!("use {}", base.display()));
    }

    #[test]
    fn a_pid_file_refuses_the_living_and_replaces_the_dead() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.pid");
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        fs::write(&path, format!("{}\n", child.id())).unwrap();
        let error = PidFile::create(&path).unwrap_err();
        assert_eq!(error.to_string(), format!("Process already running (pid={}).", child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
        for old in [format!("{}\n", child.id()), "0".to_owned(), "nonsense".to_owned(), format!("{}", std::process::id())] {
            fs::write(&path, old).unwrap();
            let file = PidFile::create(&path).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
            drop(file);
            assert!(!path.exists());
        }
    }

    #[test]
    fn a_pid_file_without_its_directory_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let error = PidFile::create(&dir.path().join("missing/agent.pid")).unwrap_err();
        assert!(error.to_string().starts_with("Cannot create pid file at "), "{error}");
    }
}
