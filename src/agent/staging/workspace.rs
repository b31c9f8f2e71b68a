//! The directory of one staging: `<base>/staging/<random>/`, gone with the staging however it ends.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// The directory of one staging. Work on other threads holds it too, so that it goes only when nobody writes into it any more.
#[derive(Debug)]
pub(super) struct Workspace(TempDir);

impl Workspace {
    /// Makes the directory `staging`, and removes what a process that was killed left there.
    pub(super) fn prepare(staging: &Path) -> io::Result<()> {
        match fs::remove_dir_all(staging) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => fs::create_dir_all(staging),
        }
    }

    pub(super) fn create(staging: &Path) -> io::Result<Self> {
        let workspace = Self(tempfile::Builder::new().prefix("").rand_bytes(16).tempdir_in(staging)?);
        for dir in [workspace.downloads(), workspace.app(), workspace.droplet()] {
            fs::create_dir(dir)?;
        }
        Ok(workspace)
    }

    /// What is fetched.
    pub(super) fn downloads(&self) -> PathBuf {
        self.0.path().join("downloads")
    }

    /// The unpacked package.
    pub(super) fn app(&self) -> PathBuf {
        self.0.path().join("app")
    }

    /// The buildpack's cache; not there at first.
    pub(super) fn cache(&self) -> PathBuf {
        self.0.path().join("cache")
    }

    /// The unpacked caches of all buildpacks of the app, where a Cloud Controller keeps them; not there at first.
    pub(super) fn fetched_caches(&self) -> PathBuf {
        self.0.path().join("fetched-caches")
    }

    /// What the buildpack writes.
    pub(super) fn droplet(&self) -> PathBuf {
        self.0.path().join("droplet")
    }

    pub(super) fn droplet_archive(&self) -> PathBuf {
        self.0.path().join("droplet.tgz")
    }

    pub(super) fn cache_archive(&self) -> PathBuf {
        self.0.path().join("buildpack_cache.tgz")
    }
}
