//! The directory of one staging: `<base>/staging/<random>/`, gone with the staging however it ends.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::warn;

use crate::removal::remove_tree;

/// How often removing the directory is tried, and the pause between.
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(50);

/// The directories of all stagings.
#[derive(Debug)]
pub(crate) struct Workspaces {
    dir: PathBuf,
    /// Names of those whose staging has not ended.
    live: Mutex<HashSet<OsString>>,
}

/// The directory of one staging. Work on other threads holds it too, so that it goes only when nobody writes into it any more.
#[derive(Debug)]
pub(super) struct Workspace {
    dir: PathBuf,
    all: Arc<Workspaces>,
}

impl Workspaces {
    /// Makes the directory, and removes what a process that was killed left there.
    pub(crate) fn prepare(dir: PathBuf) -> io::Result<Arc<Self>> {
        match remove_tree(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => fs::create_dir_all(&dir)?,
        }
        Ok(Arc::new(Self { dir, live: Mutex::default() }))
    }

    /// Whether a staging that has not ended has the directory of this name.
    pub(crate) fn owns(&self, name: &str) -> bool {
        self.live().contains(OsStr::new(name))
    }

    fn live(&self) -> MutexGuard<'_, HashSet<OsString>> {
        // The set is whole after every operation on it.
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Workspace {
    /// A buildpack that was interrupted may have a last file to make, so it takes more than one attempt at times. What is left
    /// after all of them belongs to nobody, and goes as such.
    fn drop(&mut self) {
        for attempt in 1..=ATTEMPTS {
            match remove_tree(&self.dir) {
                Err(error) if error.kind() != io::ErrorKind::NotFound && attempt == ATTEMPTS => {
                    warn!(path = %self.dir.display(), %error, "staging directory not removed");
                }
                Err(error) if error.kind() != io::ErrorKind::NotFound => std::thread::sleep(PAUSE),
                _ => break,
            }
        }
        self.dir.file_name().map(|name| self.all.live().remove(name));
    }
}

impl Workspace {
    pub(super) fn create(all: &Arc<Workspaces>) -> io::Result<Self> {
        let workspace = {
            // Whoever sees the new directory must see its owner, too.
            let mut live = all.live();
            let dir = tempfile::Builder::new().prefix("").rand_bytes(16).tempdir_in(&all.dir)?.keep();
            live.extend(dir.file_name().map(OsStr::to_owned));
            Self { dir, all: Arc::clone(all) }
        };
        for dir in [workspace.downloads(), workspace.app(), workspace.droplet()] {
            fs::create_dir(dir)?;
        }
        Ok(workspace)
    }

    /// What is fetched.
    pub(super) fn downloads(&self) -> PathBuf {
        self.dir.join("downloads")
    }

    /// The unpacked package.
    pub(super) fn app(&self) -> PathBuf {
        self.dir.join("app")
    }

    /// The buildpack's cache; not there at first.
    pub(super) fn cache(&self) -> PathBuf {
        self.dir.join("cache")
    }

    /// The unpacked caches of all buildpacks of the app, where a Cloud Controller keeps them; not there at first.
    pub(super) fn fetched_caches(&self) -> PathBuf {
        self.dir.join("fetched-caches")
    }

    /// What the buildpack writes.
    pub(super) fn droplet(&self) -> PathBuf {
        self.dir.join("droplet")
    }

    pub(super) fn droplet_archive(&self) -> PathBuf {
        self.dir.join("droplet.tgz")
    }

    pub(super) fn cache_archive(&self) -> PathBuf {
        self.dir.join("buildpack_cache.tgz")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_an_owner_until_it_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let all = Workspaces::prepare(dir.path().join("staging")).unwrap();
        let workspace = Workspace::create(&all).unwrap();
        let name = workspace.dir.file_name().unwrap().to_str().unwrap().to_owned();
        assert!(all.owns(&name) && workspace.app().is_dir());
        assert!(!all.owns("another"));
        drop(workspace);
        assert!(!all.owns(&name) && fs::read_dir(dir.path().join("staging")).unwrap().next().is_none());
    }
}
