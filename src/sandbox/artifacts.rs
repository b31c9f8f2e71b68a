//! Native code on disk.
//!
//! Loading an artifact runs whatever machine code it holds, so each is kept with a MAC under a key of this host: a file is
//! `HMAC-SHA256(key, name ‖ artifact) ‖ artifact`, its name being `DIGEST-ABI`, of the component's digest and the engine's ABI. One
//! that fails the check, whoever wrote it, is refused, logged, removed and compiled again. What an engine left behind that is not in
//! use any more is removed at the start. A key that others may have seen is replaced, and with it everything that it vouched for.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use dewar_protocol::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use tracing::{debug, warn};

use crate::EngineError;

const KEY_FILE: &str = "artifact.key";
/// Hexadecimal digits of a component's digest, and of an ABI, in an artifact's name.
const DIGEST_DIGITS: usize = 64;
pub(crate) const ABI_DIGITS: usize = 16;
/// The largest file that is read. One as large was never written: compilers' output ends before.
const FILE_BYTES: u64 = 4 << 30;
/// How old a file must be whose writer was killed before it had a name, to be removed.
const ABANDONED: Duration = Duration::from_secs(3600);
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

    /// Removes what other engines than those of these ABIs made, and what killed processes left half-written.
    pub(crate) fn sweep(&self, abis: &[&str]) -> io::Result<()> {
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let name = entry.file_name();
            let outdated = name.to_str().and_then(abi_of).is_some_and(|abi| !abis.contains(&abi));
            let abandoned = || name.as_encoded_bytes().starts_with(b".tmp") && is_older(&entry, ABANDONED);
            if outdated || abandoned() {
                debug!(?name, "removed native code of no use any more");
                // Another process may have done so meanwhile.
                match fs::remove_file(entry.path()) {
                    Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                    Ok(()) | Err(_) => {}
                }
            }
        }
        Ok(())
    }

    /// The artifact of this name, verified; `None` when there is none that can be trusted.
    pub(crate) fn load(&self, name: &str) -> Option<Vec<u8>> {
        let path = self.directory.join(name);
        let error = match self.read(&path, name) {
            Ok(artifact) => return Some(artifact),
            Err(error) if error.kind() == ErrorKind::NotFound => return None,
            Err(error) => error,
        };
        warn!(path = %path.display(), %error, "refused native code");
        if error.kind() == ErrorKind::InvalidData
            && let Err(error) = fs::remove_file(&path)
        {
            warn!(path = %path.display(), %error, "cannot remove refused native code");
        }
        None
    }

    /// Fails with [`ErrorKind::InvalidData`] where there is something else than we wrote.
    fn read(&self, path: &Path, name: &str) -> io::Result<Vec<u8>> {
        let altered = |what: &str| io::Error::new(ErrorKind::InvalidData, what);
        let mut file = open_own(path).map_err(|error| if is_link(path) { altered("it is a symbolic link") } else { error })?;
        let metadata = file.metadata()?;
        if !metadata.is_file() || metadata.len() > FILE_BYTES {
            return Err(altered("it is no file that we wrote"));
        }
        let mut mac = [0; MAC_BYTES];
        let mut artifact = Vec::new();
        file.read_exact(&mut mac).map_err(|_| altered("it is cut off"))?;
        (&file).take(FILE_BYTES).read_to_end(&mut artifact)?;
        self.mac(name, &artifact).verify_slice(&mac).map_err(|_| altered("its authentication code does not match"))?;
        // Its time of change is its time of last use. When that cannot be set it is evicted earlier, no more.
        if let Err(error) = file.set_modified(SystemTime::now()) {
            debug!(path = %path.display(), %error, "cannot mark native code as used");
        }
        Ok(artifact)
    }

    /// Keeps an artifact. It is there whole or not at all.
    pub(crate) fn store(&self, name: &str, artifact: &[u8]) -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(&self.directory)?;
        file.write_all(&self.mac(name, artifact).finalize().into_bytes())?;
        file.write_all(artifact)?;
        // Nobody waits for the disk: one that the host's end has cut off is told by its MAC, and compiled again.
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

/// The ABI in an artifact's name; `None` for names of anything else.
fn abi_of(name: &str) -> Option<&str> {
    let is_hex = |text: &str, digits: usize| text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let (digest, abi) = name.split_once('-')?;
    (is_hex(digest, DIGEST_DIGITS) && is_hex(abi, ABI_DIGITS)).then_some(abi)
}

fn is_older(entry: &fs::DirEntry, age: Duration) -> bool {
    let modified = entry.metadata().and_then(|metadata| metadata.modified());
    modified.is_ok_and(|modified| modified.elapsed().is_ok_and(|since| since > age))
}

fn is_link(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink())
}

/// Opens a file for reading, but nothing that a link leads to, and without waiting for what may be there instead of a file.
fn open_own(path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)
}

/// The host's key. Where there is none, or none that only we know, there is a new one. Of several processes one at a time does so.
fn load_key(path: &Path) -> io::Result<[u8; KEY_BYTES]> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let turn = File::open(directory)?;
    turn.lock()?;
    match read_key(path) {
        Ok(key) => return Ok(key),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => warn!(path = %path.display(), %error, "replaced the key of native code, all of which is to be made anew"),
    }
    let mut file = tempfile::Builder::new().permissions(Permissions::from_mode(0o600)).tempfile_in(directory)?;
    file.write_all(&rand::random::<[u8; KEY_BYTES]>())?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    read_key(path)
}

/// Fails when there is none, or one that somebody else may have read or written.
fn read_key(path: &Path) -> io::Result<[u8; KEY_BYTES]> {
    let mut file = open_own(path)?;
    let metadata = file.metadata()?;
    if metadata.mode() & 0o077 != 0 || metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::Error::new(ErrorKind::PermissionDenied, "somebody else could read it"));
    }
    let mut key = [0; KEY_BYTES];
    if !metadata.is_file() || metadata.len() != KEY_BYTES as u64 {
        return Err(io::Error::new(ErrorKind::InvalidData, "it is no key"));
    }
    file.read_exact(&mut key)?;
    Ok(key)
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
        let bytes = fs::read(path("altered")).unwrap();
        for position in 0..bytes.len() {
            let mut altered = bytes.clone();
            altered[position] ^= 1 << (position % 8);
            fs::write(path("altered"), &altered).unwrap();
            refused("altered");
            fs::write(path("altered"), &bytes[..position]).unwrap();
            refused("altered");
        }
        fs::write(path("altered"), [&bytes[..], b"more"].concat()).unwrap();
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
    fn what_is_no_file_is_refused_without_waiting() {
        let state = tempfile::tempdir().unwrap();
        let artifacts = open(state.path(), 1 << 20);
        let path = |name: &str| state.path().join("artifacts").join(name);
        artifacts.store("code", b"code").unwrap();
        fs::rename(path("code"), state.path().join("elsewhere")).unwrap();
        std::os::unix::fs::symlink(state.path().join("elsewhere"), path("code")).unwrap();
        assert_eq!(artifacts.load("code"), None);
        assert!(!is_link(&path("code")) && state.path().join("elsewhere").exists());
        rustix::fs::mknodat(rustix::fs::CWD, path("pipe"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        assert_eq!(artifacts.load("pipe"), None);
        let huge = File::create(path("huge")).unwrap();
        huge.set_len(FILE_BYTES + 1).unwrap();
        assert_eq!(artifacts.load("huge"), None);
    }

    #[test]
    fn another_engines_code_is_swept_and_nothing_else() {
        let state = tempfile::tempdir().unwrap();
        let artifacts = open(state.path(), 1 << 20);
        let digest = "ab".repeat(32);
        let (current, second, old) =
            (format!("{digest}-{}", "0".repeat(16)), format!("{digest}-{}", "1".repeat(16)), format!("{digest}-{}", "2".repeat(16)));
        for name in [&*current, &*second, &*old, "of-somebody-else", ".tmpfresh", ".tmpstale"] {
            artifacts.store(name, b"code").unwrap();
        }
        let stale = File::options().write(true).open(state.path().join("artifacts/.tmpstale")).unwrap();
        stale.set_modified(SystemTime::now() - 2 * ABANDONED).unwrap();
        artifacts.sweep(&["0000000000000000", "1111111111111111"]).unwrap();
        let kept = [&*current, &*second, &*old, "of-somebody-else", ".tmpfresh", ".tmpstale"].map(|name| artifacts.load(name).is_some());
        assert_eq!(kept, [true, true, false, true, true, false]);
    }

    #[test]
    fn a_key_that_others_may_know_is_replaced_with_all_it_vouched_for() {
        let spoil: [fn(&Path); 4] = [
            |key| fs::set_permissions(key, Permissions::from_mode(0o644)).unwrap(),
            |key| fs::write(key, b"short").unwrap(),
            |key| {
                fs::rename(key, key.with_extension("away")).unwrap();
                std::os::unix::fs::symlink(key.with_extension("away"), key).unwrap();
            },
            |key| fs::remove_file(key).unwrap(),
        ];
        for (case, spoil) in spoil.into_iter().enumerate() {
            let state = tempfile::tempdir().unwrap();
            open(state.path(), 1 << 20).store("code", b"code").unwrap();
            spoil(&state.path().join(KEY_FILE));
            let renewed = open(state.path(), 1 << 20);
            assert_eq!(renewed.load("code"), None, "case {case}");
            let key = fs::symlink_metadata(state.path().join(KEY_FILE)).unwrap();
            assert!(key.is_file() && key.mode() & 0o777 == 0o600, "case {case}");
            renewed.store("code", b"code").unwrap();
            assert!(open(state.path(), 1 << 20).load("code").is_some(), "case {case}");
        }
    }

    #[test]
    fn several_at_once_share_one_key() {
        let state = tempfile::tempdir().unwrap();
        let open_all = || {
            let openers: Vec<_> = (0..8)
                .map(|_| {
                    let path = state.path().to_owned();
                    std::thread::spawn(move || open(&path, 1 << 20))
                })
                .collect();
            openers.into_iter().map(|opener| opener.join().unwrap()).collect::<Vec<_>>()
        };
        for _ in 0..20 {
            let all = open_all();
            all[0].store("code", b"code").unwrap();
            assert!(all.iter().all(|artifacts| artifacts.load("code").is_some()));
            fs::set_permissions(state.path().join(KEY_FILE), Permissions::from_mode(0o644)).unwrap();
        }
    }
}
