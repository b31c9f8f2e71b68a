//! Native code on disk.
//!
//! Loading an artifact runs whatever machine code it holds, so each is kept with a MAC under a key of this host: a file is
//! `HMAC-SHA256(key, name ‖ artifact) ‖ artifact`, its name being the component's digest and the engine's ABI. One that fails the
//! check, whoever wrote it, is refused, logged, removed and compiled again.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use dewar_protocol::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use tracing::{debug, warn};

use crate::EngineError;

const KEY_FILE: &str = "artifact.key";
const KEY_BYTES: usize = 32;
const MAC_BYTES: usize = 32;

/// The cache of native code in a private directory.
pub(crate) struct Artifacts {
    directory: PathBuf,
    key: [u8; KEY_BYTES],
    /// Bytes kept; the least recently used goes first. A single larger artifact is still kept until the next one comes.
    limit: u64,
    evicting: Mutex<()>,
}

impl Artifacts {
    pub(crate) fn open(state_dir: &Path, limit: Bytes) -> Result<Self, EngineError> {
        let directory = state_dir.join("artifacts");
        let failed = |source| EngineError::StateDir { path: state_dir.to_owned(), source };
        make_private(state_dir).map_err(failed)?;
        make_private(&directory).map_err(failed)?;
        let key = load_key(&state_dir.join(KEY_FILE)).map_err(failed)?;
        Ok(Self { directory, key, limit: limit.0, evicting: Mutex::new(()) })
    }

    /// The artifact of this name, verified; `None` when there is none that can be trusted.
    pub(crate) fn load(&self, name: &str) -> Option<Vec<u8>> {
        let path = self.directory.join(name);
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return None,
            Err(error) => {
                warn!(path = %path.display(), %error, "cannot open native code");
                return None;
            }
        };
        let mut mac = [0; MAC_BYTES];
        let mut artifact = Vec::new();
        let read = file.read_exact(&mut mac).and_then(|()| file.read_to_end(&mut artifact));
        if read.is_ok() && self.mac(name, &artifact).verify_slice(&mac).is_ok() {
            // Its time of change is its time of last use. When that cannot be set it is evicted earlier, no more.
            if let Err(error) = file.set_modified(SystemTime::now()) {
                debug!(path = %path.display(), %error, "cannot mark native code as used");
            }
            return Some(artifact);
        }
        warn!(path = %path.display(), "refused native code: its authentication code does not match");
        if let Err(error) = fs::remove_file(&path) {
            warn!(path = %path.display(), %error, "cannot remove refused native code");
        }
        None
    }

    /// Keeps an artifact. It is there whole or not at all.
    pub(crate) fn store(&self, name: &str, artifact: &[u8]) -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(&self.directory)?;
        file.write_all(&self.mac(name, artifact).finalize().into_bytes())?;
        file.write_all(artifact)?;
        file.as_file().sync_all()?;
        file.persist(self.directory.join(name))?;
        self.evict(name)
    }

    fn mac(&self, name: &str, artifact: &[u8]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).expect("a key of any length will do");
        mac.update(name.as_bytes());
        mac.update(b"\0");
        mac.update(artifact);
        mac
    }

    /// Removes what was not used for longest until the rest fits, sparing the newest.
    fn evict(&self, newest: &str) -> io::Result<()> {
        let _one_at_a_time = self.evicting.lock().unwrap_or_else(PoisonError::into_inner);
        let mut kept = Vec::new();
        let mut bytes = 0;
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            // Another process may have removed it meanwhile.
            let Ok(metadata) = entry.metadata() else { continue };
            bytes += metadata.len();
            if entry.file_name() != newest {
                kept.push((metadata.modified()?, metadata.len(), entry.path()));
            }
        }
        kept.sort();
        for (_, length, path) in kept {
            if bytes <= self.limit {
                break;
            }
            fs::remove_file(&path)?;
            bytes -= length;
        }
        Ok(())
    }
}

/// Makes a directory that only we can enter, or makes sure that it is one.
fn make_private(directory: &Path) -> io::Result<()> {
    match DirBuilder::new().recursive(true).mode(0o700).create(directory) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let metadata = fs::metadata(directory)?;
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::Error::new(ErrorKind::PermissionDenied, "the directory belongs to somebody else"));
    }
    if metadata.mode() & 0o077 != 0 {
        fs::set_permissions(directory, Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// Reads the host's key, making it first where there is none. Of several processes that do so at once one wins.
fn load_key(path: &Path) -> io::Result<[u8; KEY_BYTES]> {
    if !path.try_exists()? {
        let directory = path.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::Builder::new().permissions(Permissions::from_mode(0o600)).tempfile_in(directory)?;
        file.write_all(&rand::random::<[u8; KEY_BYTES]>())?;
        file.as_file().sync_all()?;
        match file.persist_noclobber(path) {
            Err(lost) if lost.error.kind() != ErrorKind::AlreadyExists => return Err(lost.error),
            Ok(_) | Err(_) => {}
        }
    }
    let mut file = OpenOptions::new().read(true).custom_flags(nofollow()).open(path)?;
    let metadata = file.metadata()?;
    if metadata.mode() & 0o077 != 0 || metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::Error::new(ErrorKind::PermissionDenied, format!("{} can be read by somebody else", path.display())));
    }
    let mut key = [0; KEY_BYTES];
    if metadata.len() != KEY_BYTES as u64 {
        return Err(io::Error::new(ErrorKind::InvalidData, format!("{} is no key", path.display())));
    }
    file.read_exact(&mut key)?;
    Ok(key)
}

fn nofollow() -> i32 {
    rustix::fs::OFlags::NOFOLLOW.bits().cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(state: &Path, limit: u64) -> Artifacts {
        Artifacts::open(state, Bytes(limit)).unwrap()
    }

    #[test]
    fn what_was_kept_comes_back_also_to_the_next_process() {
        let state = tempfile::tempdir().unwrap();
        open(state.path(), 1 << 20).store("a", b"code").unwrap();
        assert_eq!(open(state.path(), 1 << 20).load("a").as_deref(), Some(&b"code"[..]));
        assert_eq!(open(state.path(), 1 << 20).load("b"), None);
        for (path, mode) in [("", 0o700), ("artifacts", 0o700), (KEY_FILE, 0o600), ("artifacts/a", 0o600)] {
            let found = fs::metadata(state.path().join(path)).unwrap().mode() & 0o777;
            assert_eq!(found, mode, "{path:?} has mode {found:o}");
        }
    }

    #[test]
    fn altered_foreign_and_renamed_artifacts_are_refused_and_removed() {
        let state = tempfile::tempdir().unwrap();
        let artifacts = open(state.path(), 1 << 20);
        let path = |name: &str| state.path().join("artifacts").join(name);
        let refused = |name: &str| {
            assert_eq!(artifacts.load(name), None, "{name}");
            assert!(!path(name).exists(), "{name}");
        };
        artifacts.store("altered", b"code").unwrap();
        let mut bytes = fs::read(path("altered")).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(path("altered"), &bytes).unwrap();
        refused("altered");

        fs::write(path("short"), b"").unwrap();
        refused("short");

        artifacts.store("one", b"code").unwrap();
        fs::rename(path("one"), path("other")).unwrap();
        refused("other");

        let elsewhere = tempfile::tempdir().unwrap();
        open(elsewhere.path(), 1 << 20).store("foreign", b"code").unwrap();
        fs::copy(elsewhere.path().join("artifacts/foreign"), path("foreign")).unwrap();
        refused("foreign");
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let state = tempfile::tempdir().unwrap();
        let artifacts = open(state.path(), 3 * 132);
        let age = |name: &str, seconds: u64| {
            let file = File::options().write(true).open(state.path().join("artifacts").join(name)).unwrap();
            file.set_modified(SystemTime::now() - std::time::Duration::from_secs(seconds)).unwrap();
        };
        for (name, seconds) in [("oldest", 30), ("used", 40), ("young", 10)] {
            artifacts.store(name, &[0; 100]).unwrap();
            age(name, seconds);
        }
        assert!(artifacts.load("used").is_some());
        artifacts.store("new", &[0; 100]).unwrap();
        assert!(artifacts.load("oldest").is_none());
        assert!(["used", "young", "new"].iter().all(|name| artifacts.load(name).is_some()));
    }

    #[test]
    fn a_key_that_others_can_read_is_not_used() {
        let state = tempfile::tempdir().unwrap();
        drop(open(state.path(), 1));
        fs::set_permissions(state.path().join(KEY_FILE), Permissions::from_mode(0o644)).unwrap();
        assert!(Artifacts::open(state.path(), Bytes(1)).is_err());
    }
}
