//! What an instance finds that has run in an earlier process: its own files, and what that process had unpacked of its droplet.
//!
//! Neither is checked against the archive again. They are in a directory that only this user can write to, and a component that is not
//! what it was is compiled anew, by its own digest. It is what lets a thousand instances run again within a second.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use dewar_protocol::DropletSha1;

use super::{COMPONENT, DropletError, DropletStore, INFO, InstanceLimits, MANIFEST, UNPACKED, UnpackedDroplet, at, lock, manifest};
use crate::blocking;
use crate::removal::remove_tree;
use crate::staging::StagingInfo;
use rustix::fs::{CWD, RenameFlags, renameat_with};

/// Of each instance.
const DIRECTORIES: [&str; 3] = ["app", "tmp", "logs"];

impl DropletStore {
    /// What an earlier process had unpacked of these stays for [`DropletStore::reopen`], as long as the droplets themselves stay.
    pub fn take_over(&self, droplets: impl IntoIterator<Item = DropletSha1>) {
        lock(&self.0.taken_over).extend(droplets);
    }

    /// The droplet of an instance whose files are in `instance_dir`; `None` where something is missing.
    pub async fn reopen(&self, sha1: &DropletSha1, instance_dir: &Path) -> Option<UnpackedDroplet> {
        let (shared, instance_dir) = (self.0.dir.join(sha1.as_str()).join(UNPACKED), instance_dir.to_owned());
        blocking::run(move || if is_whole(&instance_dir) { droplet(&shared) } else { None }).await
    }

    /// As [`DropletStore::unpack`], but where an instance has its files they stay.
    ///
    /// # Errors
    /// See [`DropletError`].
    pub async fn unpack_again(
        &self,
        sha1: &DropletSha1,
        instance_dir: &Path,
        limits: InstanceLimits,
    ) -> Result<UnpackedDroplet, DropletError> {
        if is_whole(instance_dir) {
            self.unpack_shared(sha1, limits).await?;
            return self.reopen(sha1, instance_dir).await.ok_or_else(|| DropletError::Missing(sha1.clone()));
        }
        let left: [PathBuf; 3] = DIRECTORIES.map(|name| instance_dir.join(name));
        blocking::run(move || {
            for path in left {
                match remove_tree(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&path)(error)),
                    _ => {}
                }
            }
            Ok(())
        })
        .await?;
        self.unpack(sha1, instance_dir, limits).await
    }
}

fn droplet(shared: &Path) -> Option<UnpackedDroplet> {
    let (wasm, info) = (shared.join(COMPONENT), shared.join(INFO));
    if !fs::symlink_metadata(&wasm).ok()?.is_file() {
        return None;
    }
    let info = match fs::symlink_metadata(&info) {
        Ok(file) if file.is_file() => StagingInfo::read(&info).ok()?,
        _ => StagingInfo::default(),
    };
    let manifest = shared.join(MANIFEST);
    let state_file = match fs::symlink_metadata(&manifest) {
        Ok(file) if file.is_file() => manifest::state_file(&manifest).ok()?,
        _ => None,
    };
    Some(UnpackedDroplet { wasm, info, state_file })
}

/// `logs` is made last and removed first, so what it stands beside is neither half copied nor half removed.
fn is_whole(instance_dir: &Path) -> bool {
    DIRECTORIES.iter().all(|name| is_directory(&instance_dir.join(name)))
}

fn is_directory(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|file| file.is_dir())
}

/// Puts a tree in the place of another one, if there is one. Somebody may read that at this moment, and this process may be killed:
/// there is always one of the two, where the file system can exchange them.
pub(super) fn replace(tree: &Path, fresh: &Path, partial: &Path) -> io::Result<()> {
    if renameat_with(CWD, fresh, CWD, tree, RenameFlags::EXCHANGE).is_ok() {
        return Ok(());
    }
    let old = tempfile::tempdir_in(partial)?;
    match fs::rename(tree, old.path()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => fs::rename(fresh, tree),
    }
}
