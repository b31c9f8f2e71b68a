//! What the bus cannot tell: the little that the client remembers of each app, on disk.
//!
//! ```text
//! <home>/apps/<bus>/<name>/app.json           what was pushed, 0600: it holds the app's environment
//! <home>/apps/<bus>/<name>/droplets/<sha1>    the archive, served to agents that lack it; only what app.json refers to
//! <home>/apps/<bus>/<name>/cache              what the buildpack wants to find again
//! <home>/apps/<bus>/<name>.lock               held while a command changes the app
//! ```

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use dewar_protocol::{AppId, DropletSha1, Mib, Secret};
use serde::{Deserialize, Serialize};

use crate::app_name::AppName;
use crate::health::AppHealthCheck;

/// Version of the file's form. Raised when an older program would misread it.
const FORMAT: u32 = 1;
/// Most bytes of a record that are read; more is an error.
const RECORD_BYTES_MAX: u64 = 4 << 20;

/// One app as this client pushed it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AppRecord {
    /// Its name here.
    pub name: AppName,
    /// Its id on the bus.
    pub id: AppId,
    /// What is to run.
    pub release: Release,
    /// Whether it is running, as far as this client knows.
    pub phase: Phase,
    /// How many instances are wanted.
    pub instances: u32,
    /// Routes.
    pub uris: Vec<String>,
    /// Memory of each instance.
    pub memory: Mib,
    /// Disk of each instance.
    pub disk: Mib,
    /// `NAME=value` each.
    pub environment: Vec<Secret<String>>,
    /// Overrides the droplet's own start command.
    pub start_command: Option<String>,
    /// What makes its instances healthy; `None`: agents decide.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<AppHealthCheck>,
    /// The buildpack asked for.
    pub buildpack: Option<String>,
    /// Where the package came from.
    pub package: PathBuf,
}

/// One version of an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// Version on the bus; new for every start of a full set of instances.
    pub version: String,
    /// Its droplet.
    pub droplet: DropletSha1,
    /// What the buildpack called it.
    pub detected_buildpack: Option<String>,
    /// The droplet's own start command.
    pub detected_start_command: Option<String>,
}

/// What has become of the release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Staged, never started; an older version may be running.
    Staged,
    /// Started.
    Started,
    /// Stopped.
    Stopped,
}

/// Why the records cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file system.
    #[error("cannot {action} {}", .path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Not what we write: torn, or edited.
    #[error("{} is damaged: {why}", .path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Written by a later version of this program.
    #[error("{} was written by a newer dewar (its format is {found}, this program knows {FORMAT})", .path.display())]
    TooNew {
        /// Which file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// Another command is at it.
    #[error("another command is changing `{0}` right now")]
    Busy(AppName),
}

/// The records of one bus.
#[derive(Debug, Clone)]
pub struct Records {
    dir: PathBuf,
}

/// The right to change one app's record; nobody else has it until this value is dropped.
#[derive(Debug)]
pub struct LockedApp {
    name: AppName,
    dir: PathBuf,
    _lock: File,
}

#[derive(Serialize, Deserialize)]
struct RecordFile<T> {
    format: u32,
    app: T,
}

/// Read first: a later format may have moved everything else.
#[derive(Deserialize)]
struct FormatOnly {
    format: u32,
}

impl Records {
    /// Those under `home` for the bus whose file name is `bus_key`. Nothing is touched yet.
    #[must_use]
    pub fn new(home: &Path, bus_key: &str) -> Self {
        Self { dir: home.join("apps").join(bus_key) }
    }

    /// One app's record, if there is one.
    ///
    /// # Errors
    /// When there is one that cannot be read or understood.
    pub fn read(&self, name: &AppName) -> Result<Option<AppRecord>, RecordError> {
        read_record(&self.dir.join(name.as_str()).join("app.json"))
    }

    /// Every record, by name.
    ///
    /// # Errors
    /// When one cannot be read or understood.
    pub fn all(&self) -> Result<Vec<AppRecord>, RecordError> {
        let folders = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            folders => folders.map_err(io_error("list", &self.dir))?,
        };
        let mut records = Vec::new();
        for folder in folders {
            let path = folder.map_err(io_error("list", &self.dir))?.path();
            if path.is_dir() {
                records.extend(read_record(&path.join("app.json"))?);
            }
        }
        records.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(records)
    }

    /// Takes the lock of an app, whether there is a record or not.
    ///
    /// # Errors
    /// [`RecordError::Busy`] at once when somebody else has it.
    pub fn lock(&self, name: &AppName) -> Result<LockedApp, RecordError> {
        private_dir(&self.dir)?;
        let path = self.dir.join(format!("{name}.lock"));
        let lock = File::options().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let lock = lock.map_err(io_error("open", &path))?;
        match lock.try_lock() {
            Ok(()) => Ok(LockedApp { name: name.clone(), dir: self.dir.join(name.as_str()), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(RecordError::Busy(name.clone())),
            Err(TryLockError::Error(error)) => Err(io_error("lock", &path)(error)),
        }
    }
}

impl LockedApp {
    /// The record, if there is one.
    ///
    /// # Errors
    /// As [`Records::read`].
    pub fn read(&self) -> Result<Option<AppRecord>, RecordError> {
        read_record(&self.dir.join("app.json"))
    }

    /// Writes the record, all or nothing, and deletes the droplets that it does not refer to.
    ///
    /// # Errors
    /// When the file system refuses; the old record is then still whole.
    pub fn save(&self, record: &AppRecord) -> Result<(), RecordError> {
        private_dir(&self.dir)?;
        let path = self.dir.join("app.json");
        let text = serde_json::to_vec_pretty(&RecordFile { format: FORMAT, app: record })
            .map_err(|error| io_error("write", &path)(error.into()))?;
        // A temporary file of this library is 0600 from its creation on.
        let mut file = tempfile::NamedTempFile::new_in(&self.dir).map_err(io_error("write", &path))?;
        file.write_all(&text).and_then(|()| file.as_file().sync_all()).map_err(io_error("write", &path))?;
        file.persist(&path).map_err(|error| io_error("write", &path)(error.error))?;
        self.delete_droplets_except(Some(&record.release.droplet))
    }

    /// Forgets the app: record, droplets and buildpack cache.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn forget(self) -> Result<(), RecordError> {
        match fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("delete", &self.dir)(error)),
            _ => Ok(()),
        }
    }

    /// The name that is locked.
    #[must_use]
    pub fn name(&self) -> &AppName {
        &self.name
    }

    /// Where droplets are kept and received; [`LockedApp::prepare`] makes the folder.
    #[must_use]
    pub fn droplets_dir(&self) -> PathBuf {
        self.dir.join("droplets")
    }

    /// Where one droplet is kept.
    #[must_use]
    pub fn droplet_path(&self, sha1: &DropletSha1) -> PathBuf {
        self.droplets_dir().join(sha1.as_str())
    }

    /// Where the buildpack cache is kept.
    #[must_use]
    pub fn cache_path(&self) -> PathBuf {
        self.dir.join("cache")
    }

    /// Makes the folders that a droplet and a cache are received in, and clears what an earlier, killed command left there.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn prepare(&self) -> Result<(), RecordError> {
        private_dir(&self.droplets_dir())?;
        for leftover in list(&self.dir)?.into_iter().filter(|path| is_temporary(path)) {
            fs::remove_file(&leftover).map_err(io_error("delete", &leftover))?;
        }
        let kept = self.read()?.map(|record| record.release.droplet);
        self.delete_droplets_except(kept.as_ref())
    }

    fn delete_droplets_except(&self, kept: Option<&DropletSha1>) -> Result<(), RecordError> {
        for path in list(&self.droplets_dir())? {
            if path.file_name().and_then(|name| name.to_str()) != kept.map(DropletSha1::as_str) {
                fs::remove_file(&path).map_err(io_error("delete", &path))?;
            }
        }
        Ok(())
    }
}

/// Temporary files are named `.tmp…` by the library that makes them.
fn is_temporary(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".tmp")) && path.is_file()
}

fn list(dir: &Path) -> Result<Vec<PathBuf>, RecordError> {
    match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries.and_then(|entries| entries.map(|e| e.map(|e| e.path())).collect()).map_err(io_error("list", dir)),
    }
}

fn private_dir(dir: &Path) -> Result<(), RecordError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io_error("make", dir))
}

fn read_record(path: &Path) -> Result<Option<AppRecord>, RecordError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(io_error("read", path))?,
    };
    let mut text = Vec::new();
    file.take(RECORD_BYTES_MAX + 1).read_to_end(&mut text).map_err(io_error("read", path))?;
    let damaged = |why: String| RecordError::Damaged { path: path.to_owned(), why };
    if text.len() as u64 > RECORD_BYTES_MAX {
        return Err(damaged(format!("it is longer than {} MiB", RECORD_BYTES_MAX >> 20)));
    }
    let format = serde_json::from_slice::<FormatOnly>(&text).map_err(|error| damaged(error.to_string()))?.format;
    if format > FORMAT {
        return Err(RecordError::TooNew { path: path.to_owned(), found: format });
    }
    let file: RecordFile<AppRecord> = serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
    Ok(Some(file.app))
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RecordError {
    let path = path.to_owned();
    move |source| RecordError::Io { action, path, source }
}

#[cfg(test)]
mod tests;
