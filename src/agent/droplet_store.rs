//! Droplets on disk.
//!
//! `<dir>/<sha1>/droplet.tgz` is the archive. Its digest is checked before the first use in this process and again whenever the
//! file is another one (device, inode, size or time of change), not at each start. `<dir>/<sha1>/unpacked/` is the archive unpacked,
//! once per process: instances get a private copy of its `app/`, which shares blocks where the file system can, and all use its
//! `droplet.wasm`. An instance that ran in an earlier process goes on with what that one had unpacked. `<dir>/.partial/` holds what is
//! not complete yet, and is emptied when the store is opened. Droplets that nobody uses stay as long as there is room for them: see
//! [`eviction`].
//!
//! A droplet is as hostile as a package: whoever can name a URL can send one.

mod copy;
mod eviction;
mod manifest;
mod reopen;

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use dewar_protocol::{Bytes, DropletSha1, Secret};
use sha1::{Digest as _, Sha1};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use self::copy::AppFiles;
pub use self::eviction::Held;
use self::eviction::Uses;
pub use self::manifest::InvalidManifest;
use crate::archive::{UnpackError, unpack};
use crate::blocking;
use crate::digest;
use crate::staging::{InvalidInfo, StagingInfo};
use crate::transfer::{DownloadError, Retry, Transfers};
use crate::tree::{Node, TreeLimits};

/// Bytes of the largest droplet archive that is fetched.
const MAX_ARCHIVE: Bytes = Bytes(2 << 30);

/// Bytes that a droplet may hold besides the app's files: its component above all.
const COMPONENT_ALLOWANCE: u64 = 256 << 20;

/// Bytes of disk that an entry takes besides its content: a block of a directory, at most.
const ENTRY: u64 = 4096;

/// Entries that a droplet may have besides the app's files.
const OTHER_ENTRIES: u64 = 1000;

const PARTIAL: &str = ".partial";
const ARCHIVE: &str = "droplet.tgz";
const UNPACKED: &str = "unpacked";
const COMPONENT: &str = "droplet.wasm";
const INFO: &str = "staging_info.yml";
const MANIFEST: &str = "droplet.yaml";

/// What one instance may unpack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InstanceLimits {
    /// Bytes of the app's files.
    pub disk: Bytes,
    /// The app's files and directories.
    pub inodes: u64,
}

/// A droplet made ready for one instance.
#[derive(Debug, Clone, PartialEq)]
pub struct UnpackedDroplet {
    /// The component, shared by all instances of the droplet: not to be changed.
    pub wasm: PathBuf,
    /// What staging found out.
    pub info: StagingInfo,
    /// Where the app tells its state, relative to the instance's directory; `None`: it does not.
    pub state_file: Option<String>,
}

/// Why a droplet is not there. The texts are the original's where it has one.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No URL to get it from.
    #[error("Error downloading: the droplet is not here, and there is no URL to get it from")]
    NoUri,
    /// It could not be downloaded.
    #[error(transparent)]
    Download(#[from] DownloadError),
    /// What came is something else.
    #[error("Error downloading: SHA1 mismatch")]
    Sha1Mismatch,
    /// The disk failed.
    #[error("Error downloading: cannot keep the droplet: {0}")]
    Disk(#[from] StoreError),
}

/// The disk failed the store.
#[derive(Debug, thiserror::Error)]
#[error("use {path}: {source}")]
pub struct StoreError {
    path: PathBuf,
    source: io::Error,
}

/// Why a droplet cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum DropletError {
    /// It was never fetched, or has been removed, or has been changed.
    #[error("unpack droplet {0}: it is not here")]
    Missing(DropletSha1),
    /// It is no archive, or one that is not safe.
    #[error("unpack droplet {sha1}: failed to {cause}")]
    Archive {
        /// Which.
        sha1: DropletSha1,
        /// Why.
        cause: String,
    },
    /// It is not made for this agent.
    #[error("unpack droplet {0}: there is no {COMPONENT} in it")]
    NoComponent(DropletSha1),
    /// `staging_info.yml` is not understood.
    #[error("unpack droplet {sha1}: {cause}")]
    Info {
        /// Which.
        sha1: DropletSha1,
        /// Why.
        cause: InvalidInfo,
    },
    /// `droplet.yaml` is not understood.
    #[error("unpack droplet {sha1}: {cause}")]
    Manifest {
        /// Which.
        sha1: DropletSha1,
        /// Why.
        cause: InvalidManifest,
    },
    /// There is no room for it.
    #[error("unpack droplet {sha1}: its app has {bytes} bytes in {inodes} files and directories, and the instance may have {} in {}",
        limits.disk.0, limits.inodes)]
    OverQuota {
        /// Which.
        sha1: DropletSha1,
        /// Bytes of its app's files.
        bytes: u64,
        /// Number of its app's files and directories.
        inodes: u64,
        /// What the instance may have.
        limits: InstanceLimits,
    },
    /// The disk failed.
    #[error("unpack droplet: {0}")]
    Disk(#[from] StoreError),
}

/// Droplets on disk, by digest. Cheap to clone; safe to use from any number of tasks.
#[derive(Debug, Clone)]
pub struct DropletStore(Arc<Store>);

#[derive(Debug)]
struct Store {
    dir: PathBuf,
    transfers: Transfers,
    /// Held while a droplet is fetched, moved in or unpacked, so that each is done once. Only what is held at the moment is here.
    busy: Mutex<HashMap<DropletSha1, Weak<tokio::sync::Mutex<()>>>>,
    /// What the file was when its digest was last found right. As many as there are droplets.
    verified: Mutex<HashMap<DropletSha1, FileIdentity>>,
    /// Those that instances of an earlier process run from again.
    taken_over: Mutex<HashSet<DropletSha1>>,
    /// The droplets that this process has unpacked.
    unpacked: Mutex<HashMap<DropletSha1, Arc<Unpacked>>>,
    uses: Uses,
}

#[derive(Debug)]
struct Unpacked {
    archive: FileIdentity,
    /// What it takes of the disk, about.
    bytes: u64,
    app: AppFiles,
    info: StagingInfo,
    state_file: Option<String>,
}

/// Tells whether a file may have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileIdentity {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl DropletStore {
    /// Opens the directory of droplets, making it where it is missing. One process at a time may have it open.
    ///
    /// # Errors
    /// When it cannot be made, or its `.partial` not emptied.
    pub fn open(dir: &Path, transfers: Transfers) -> io::Result<Self> {
        let partial = dir.join(PARTIAL);
        match fs::remove_dir_all(&partial) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => fs::create_dir_all(&partial)?,
        }
        Ok(Self::with(dir, transfers, Uses::default()))
    }

    fn with(dir: &Path, transfers: Transfers, uses: Uses) -> Self {
        let (busy, verified, taken_over, unpacked) = Default::default();
        Self(Arc::new(Store { dir: dir.to_owned(), transfers, busy, verified, taken_over, unpacked, uses }))
    }

    /// Gets a droplet here, unless it is here and its digest is right. Callers that want the same at the same time share one
    /// download.
    ///
    /// # Errors
    /// See [`FetchError`]; nothing of the droplet is here then.
    pub async fn fetch(&self, sha1: &DropletSha1, uri: Option<&Secret<String>>) -> Result<(), FetchError> {
        let busy = self.0.busy(sha1);
        let _busy = busy.lock().await;
        if self.verify(sha1).await? {
            self.0.touch(sha1);
            return Ok(());
        }
        let uri = uri.ok_or(FetchError::NoUri)?;
        let downloaded = self.0.transfers.download(uri, &self.0.dir.join(PARTIAL), MAX_ARCHIVE, Retry::Transient).await?;
        if downloaded.sha1 != *sha1 {
            return Err(FetchError::Sha1Mismatch);
        }
        let store = Arc::clone(&self.0);
        let sha1 = sha1.clone();
        Ok(blocking::run(move || store.place(&sha1, downloaded.file.path())).await?)
    }

    /// Takes hold of a droplet, if it is here and its digest is right.
    ///
    /// # Errors
    /// When the disk fails.
    pub async fn hold(&self, sha1: &DropletSha1) -> Result<Option<Held>, StoreError> {
        let busy = self.0.busy(sha1);
        let _busy = busy.lock().await;
        Ok(self.verify(sha1).await?.then(|| self.0.hold(sha1)))
    }

    /// Moves an archive in, which must be on the same file system, and takes hold of it.
    ///
    /// # Errors
    /// When the disk fails.
    pub async fn adopt(&self, archive: &Path) -> Result<Held, StoreError> {
        let path = archive.to_owned();
        let sha1 = blocking::run(move || hash_file(&path)).await?;
        let busy = self.0.busy(&sha1);
        let _busy = busy.lock().await;
        if !self.verify(&sha1).await? {
            let (store, sha1, archive) = (Arc::clone(&self.0), sha1.clone(), archive.to_owned());
            blocking::run(move || store.place(&sha1, &archive)).await?;
        }
        Ok(self.0.hold(&sha1))
    }

    /// Where a droplet's archive is, or would be.
    #[must_use]
    pub fn archive(&self, sha1: &DropletSha1) -> PathBuf {
        self.0.archive(sha1)
    }

    /// Makes `app`, `logs` and `tmp` in `instance_dir` (which is made where it is missing), `app` a private copy of the droplet's.
    ///
    /// # Errors
    /// See [`DropletError`]; what was made in `instance_dir` by then stays, for the caller removes it with the instance.
    pub async fn unpack(&self, sha1: &DropletSha1, instance_dir: &Path, limits: InstanceLimits) -> Result<UnpackedDroplet, DropletError> {
        let unpacked = match self.0.recall(sha1) {
            Some(unpacked) => unpacked,
            None => self.unpack_shared(sha1, limits).await?,
        };
        let (bytes, inodes) = (unpacked.app.bytes(), unpacked.app.inodes());
        if bytes > limits.disk.0 || inodes > limits.inodes {
            return Err(DropletError::OverQuota { sha1: sha1.clone(), bytes, inodes, limits });
        }
        let shared = self.0.dir.join(sha1.as_str()).join(UNPACKED);
        let droplet =
            UnpackedDroplet { wasm: shared.join(COMPONENT), info: unpacked.info.clone(), state_file: unpacked.state_file.clone() };
        let (store, sha1, instance_dir) = (Arc::clone(&self.0), sha1.clone(), instance_dir.to_owned());
        let copied = blocking::run(move || {
            store.touch(&sha1);
            unpacked.app.copy(&shared.join("app"), &instance_dir)
        });
        copied.await?;
        Ok(droplet)
    }

    /// Whether the archive is here with the right digest; the caller holds `busy`. One with a wrong digest is removed.
    async fn verify(&self, sha1: &DropletSha1) -> Result<bool, StoreError> {
        let Some(identity) = self.0.identity(sha1)? else { return Ok(false) };
        if lock(&self.0.verified).get(sha1) == Some(&identity) {
            return Ok(true);
        }
        let (store, sha1) = (Arc::clone(&self.0), sha1.clone());
        blocking::run(move || {
            if hash_file(&store.archive(&sha1))? == sha1 {
                lock(&store.verified).insert(sha1, identity);
                return Ok(true);
            }
            // Where the caller has not waited, there may be a better one by now.
            if store.identity(&sha1)? == Some(identity) {
                warn!(droplet_sha1 = %sha1, "droplet with a wrong digest removed");
                let dir = store.dir.join(sha1.as_str());
                fs::remove_dir_all(&dir).map_err(at(&dir))?;
            }
            Ok(false)
        })
        .await
    }

    async fn unpack_shared(&self, sha1: &DropletSha1, limits: InstanceLimits) -> Result<Arc<Unpacked>, DropletError> {
        let busy = self.0.busy(sha1);
        let _busy = busy.lock().await;
        if let Some(unpacked) = self.0.recall(sha1) {
            return Ok(unpacked);
        }
        if !self.verify(sha1).await? {
            return Err(DropletError::Missing(sha1.clone()));
        }
        let (store, sha1) = (Arc::clone(&self.0), sha1.clone());
        blocking::run(move || store.unpack(&sha1, limits)).await
    }
}

impl Store {
    fn archive(&self, sha1: &DropletSha1) -> PathBuf {
        self.dir.join(sha1.as_str()).join(ARCHIVE)
    }

    fn busy(&self, sha1: &DropletSha1) -> Arc<tokio::sync::Mutex<()>> {
        let mut busy = lock(&self.busy);
        busy.retain(|_, held| held.strong_count() > 0);
        if let Some(held) = busy.get(sha1).and_then(Weak::upgrade) {
            return held;
        }
        let new = Arc::default();
        busy.insert(sha1.clone(), Arc::downgrade(&new));
        new
    }

    /// `None` when the archive is not there.
    fn identity(&self, sha1: &DropletSha1) -> Result<Option<FileIdentity>, StoreError> {
        let path = self.archive(sha1);
        match fs::symlink_metadata(&path) {
            Ok(file) => {
                let changed = (file.mtime(), file.mtime_nsec());
                Ok(Some(FileIdentity { device: file.dev(), inode: file.ino(), size: file.len(), changed }))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(at(&path)(error)),
        }
    }

    /// The unpacked droplet, if this process has unpacked this very file.
    fn recall(&self, sha1: &DropletSha1) -> Option<Arc<Unpacked>> {
        let archive = self.identity(sha1).ok().flatten()?;
        lock(&self.unpacked).get(sha1).filter(|unpacked| unpacked.archive == archive).cloned()
    }

    /// Moves an archive, whose digest is known to be this one, to its place.
    fn place(&self, sha1: &DropletSha1, archive: &Path) -> Result<(), StoreError> {
        let dir = self.dir.join(sha1.as_str());
        fs::create_dir_all(&dir).map_err(at(&dir))?;
        let path = dir.join(ARCHIVE);
        fs::rename(archive, &path).map_err(at(&path))?;
        if let Some(identity) = self.identity(sha1)? {
            lock(&self.verified).insert(sha1.clone(), identity);
        }
        self.touch(sha1);
        Ok(())
    }

    /// Unpacks an archive, whose digest is known to be right, into the shared tree. What another process left there is not trusted.
    fn unpack(&self, sha1: &DropletSha1, limits: InstanceLimits) -> Result<Arc<Unpacked>, DropletError> {
        let partial = self.dir.join(PARTIAL);
        let fresh = tempfile::tempdir_in(&partial).map_err(at(&partial))?;
        let bounds = TreeLimits {
            bytes: Bytes(limits.disk.0.saturating_add(COMPONENT_ALLOWANCE)),
            entries: limits.inodes.saturating_add(OTHER_ENTRIES),
        };
        let archive = self.identity(sha1)?.ok_or_else(|| DropletError::Missing(sha1.clone()))?;
        let unbroken = |cause: UnpackError| DropletError::Archive { sha1: sha1.clone(), cause: cause.to_string() };
        let tree = unpack(&self.archive(sha1), fresh.path(), bounds, &CancellationToken::new()).map_err(unbroken)?;
        if !matches!(tree.nodes.get(COMPONENT), Some(Node::File { .. })) {
            return Err(DropletError::NoComponent(sha1.clone()));
        }
        let info = match tree.nodes.get(INFO) {
            Some(Node::File { .. }) => StagingInfo::read(&fresh.path().join(INFO)),
            _ => Ok(StagingInfo::default()),
        };
        let info = info.map_err(|cause| DropletError::Info { sha1: sha1.clone(), cause })?;
        let state_file = match tree.nodes.get(MANIFEST) {
            Some(Node::File { .. }) => manifest::state_file(&fresh.path().join(MANIFEST)),
            _ => Ok(None),
        };
        let state_file = state_file.map_err(|cause| DropletError::Manifest { sha1: sha1.clone(), cause })?;
        let shared = self.dir.join(sha1.as_str()).join(UNPACKED);
        reopen::replace(&shared, fresh.path(), &partial).map_err(at(&shared))?;
        let bytes = tree.bytes.saturating_add(ENTRY * tree.nodes.len() as u64);
        let unpacked = Arc::new(Unpacked { archive, bytes, app: AppFiles::of(&tree), info, state_file });
        lock(&self.unpacked).insert(sha1.clone(), Arc::clone(&unpacked));
        Ok(unpacked)
    }
}

fn hash_file(path: &Path) -> Result<DropletSha1, StoreError> {
    let mut file = File::open(path).map_err(at(path))?;
    let mut hash = Sha1::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer).map_err(at(path))? {
            0 => return Ok(digest::sha1(hash)),
            length => hash.update(&buffer[..length]),
        }
    }
}

/// Says which file an error is about.
fn at(path: &Path) -> impl Fn(io::Error) -> StoreError + use<> {
    let path = path.to_owned();
    move |source| StoreError { path: path.clone(), source }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // What is behind these locks is whole after each single statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
