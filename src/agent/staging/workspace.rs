//! The directory of one staging: `<base>/staging/<random>/`, gone with the staging however it ends.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing::warn;

use crate::removal::remove_tree;

/// How often removing the directory is tried, and the pause between.
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(50);

/// The directory of one staging. Work on other threads holds it too, so that it goes only when nobody writes into it any more.
#[derive(Debug)]
pub(super) struct Workspace(PathBuf);

impl Drop for Workspace {
    /// A buildpack that was interrupted may have a last file to make, so it takes more than one attempt at times. What is left
    /// after all of them goes when the next process starts.
    fn drop(&mut self) {
        for _ in 0..ATTEMPTS {
            match remove_tree(&self.0) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    warn!(path = %self.0.display(), %error, "staging directory not removed")
                }
                _ => return,
            }
            std::thread::sleep(PAUSE);
        }
    }
}

impl Workspace {
    /// Makes the directory `staging`, and removes what a process that was killed left there.
    pub(super) fn prepare(staging: &Path) -> io::Result<()> {
        match remove_tree(staging) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => fs::create_dir_all(staging),
        }
    }

    pub(super) fn create(staging: &Path) -> io::Result<Self> {
        let dir = tempfile::Builder::new().prefix("").rand_bytes(16).tempdir_in(staging)?;
        let workspace = Self(dir.keep());
        for dir in [workspace.downloads(), workspace.app(), workspace.droplet()] {
            fs::create_dir(dir)?;
        }
        Ok(workspace)
    }

    /// What is fetched.
    pub(super) fn downloads(&self) -> PathBuf {
        self.0.join("downloads")
    }

    /// The unpacked package.
    pub(super) fn app(&self) -> PathBuf {
        self.0.join("app")
    }

    /// The buildpack's cache; not there at first.
    pub(super) fn cache(&self) -> PathBuf {
        self.0.join("cache")
    }

    /// The unpacked caches of all buildpacks of the app, where a Cloud Controller keeps them; not there at first.
    pub(super) fn fetched_caches(&self) -> PathBuf {
        self.0.join("fetched-caches")
    }

    /// What the buildpack writes.
    pub(super) fn droplet(&self) -> PathBuf {
        self.0.join("droplet")
    }

    pub(super) fn droplet_archive(&self) -> PathBuf {
        self.0.join("droplet.tgz")
    }

    pub(super) fn cache_archive(&self) -> PathBuf {
        self.0.join("buildpack_cache.tgz")
    }
}
