//! What buildpacks keep between stagings of an app.
//!
//! Where a Cloud Controller keeps it, it comes and goes as one tar.gz per app with one directory per buildpack. Where none does, it
//! stays here: `<base>/buildpack_caches/<hash of app and buildpack>/`. A staging takes the directory away and brings it back when it
//! has succeeded: so two stagings at once never share one, and what a failed one left half-done is never seen again. One that goes is
//! renamed first, so that none is ever seen half-deleted.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use dewar_protocol::AppId;
use sha2::{Digest as _, Sha256};
use tracing::{info, warn};
use walkdir::WalkDir;

use super::buildpacks::Origin;
use crate::digest::hex;
use crate::removal::remove_left_over;

/// How many caches are kept; the ones that were not used for longest go.
const MAX_CACHES: usize = 32;

/// Bytes of a cache that is kept.
const MAX_BYTES: u64 = 256 << 20;

/// How the names of those begin that are being deleted.
const DELETED: &str = ".deleted.";

/// The directory of a buildpack in the archive that a Cloud Controller keeps.
pub(super) fn directory_name(buildpack: &Origin) -> String {
    let kind = match buildpack {
        Origin::Admin(_) => "operator",
        Origin::BuiltIn(_) => "built-in",
        Origin::Url(_) => "url",
    };
    hex(&Sha256::digest(format!("{kind} {}", buildpack.name())))
}

/// The caches that stay here. All methods block.
#[derive(Debug, Clone)]
pub(super) struct BuildpackCaches {
    dir: PathBuf,
    max_caches: usize,
    max_bytes: u64,
}

impl BuildpackCaches {
    /// Opens the directory, making it where it is missing, and removes what another process did not get to delete.
    pub(super) fn open(dir: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&dir)?;
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            if is_deleted(&entry) {
                remove_left_over(&entry.path());
            }
        }
        Ok(Self { dir, max_caches: MAX_CACHES, max_bytes: MAX_BYTES })
    }

    /// Moves the cache of an app and a buildpack to `into`, or makes an empty directory there.
    pub(super) fn take(&self, app: &AppId, buildpack: &Origin, into: &Path) -> io::Result<()> {
        match fs::rename(self.place(app, buildpack), into) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => fs::create_dir(into),
            moved => moved,
        }
    }

    /// Moves a cache back, unless it is too large. Nothing depends on it, so a failure is no more than logged.
    pub(super) fn keep(&self, app: &AppId, buildpack: &Origin, from: &Path) {
        if let Err(error) = self.store(app, buildpack, from).and_then(|()| self.trim()) {
            warn!(app_id = %app, %error, "buildpack cache not kept");
        }
    }

    fn store(&self, app: &AppId, buildpack: &Origin, from: &Path) -> io::Result<()> {
        let mut bytes = 0;
        let mut empty = true;
        for entry in WalkDir::new(from).min_depth(1).follow_links(false) {
            bytes += entry?.metadata()?.len();
            empty = false;
        }
        if empty {
            return Ok(());
        }
        if bytes > self.max_bytes {
            info!(app_id = %app, bytes, limit = self.max_bytes, "buildpack cache is too large to be kept");
            return Ok(());
        }
        File::open(from)?.set_modified(SystemTime::now())?;
        let place = self.place(app, buildpack);
        self.remove(&place)?;
        fs::rename(from, &place)
    }

    /// Removes a cache, which need not be there.
    fn remove(&self, cache: &Path) -> io::Result<()> {
        let deleted = tempfile::Builder::new().prefix(DELETED).tempdir_in(&self.dir)?.keep();
        let moved = fs::rename(cache, &deleted);
        remove_left_over(&deleted);
        match moved {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn trim(&self) -> io::Result<()> {
        let mut caches = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            // Another staging may be taking it away at this moment.
            if let (Ok(metadata), false) = (entry.metadata(), is_deleted(&entry)) {
                caches.push((metadata.modified()?, entry.path()));
            }
        }
        let surplus = caches.len().saturating_sub(self.max_caches);
        caches.sort();
        for (_, path) in caches.iter().take(surplus) {
            self.remove(path)?;
        }
        Ok(())
    }

    fn place(&self, app: &AppId, buildpack: &Origin) -> PathBuf {
        self.dir.join(hex(&Sha256::digest(format!("{} {app}", directory_name(buildpack)))))
    }
}

fn is_deleted(entry: &fs::DirEntry) -> bool {
    entry.file_name().to_str().is_some_and(|name| name.starts_with(DELETED))
}

#[cfg(test)]
mod tests;
