//! Which droplets are here, when each was used last, and how one goes.
//!
//! A droplet goes in three steps. [`DropletStore::condemn`] and [`DropletStore::reprieve`] are called in the order in which the cell
//! decided, before anything else happens: whoever starts an instance takes the droplet back from its fate. Then, while nobody
//! fetches, unpacks or moves it in, it is renamed to `<sha1>.deleted.<epoch seconds>`, unless it was taken back, a staging holds it,
//! or it was used a moment ago. At last what was renamed is deleted, however long that takes. So a start either finds a droplet
//! whole and keeps it, or finds none and fetches it.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use dewar_core::KeptDroplet;
use dewar_protocol::{Bytes, DropletSha1};
use tracing::{debug, info};

use super::{ARCHIVE, DropletStore, PARTIAL, Store, StoreError, UNPACKED, at, lock};
use crate::blocking;
use crate::removal::remove_left_over;

/// How long a droplet stays after its last use, whether there is room for it or not: what staging reports, and the start that
/// follows, are on their way meanwhile. It is the original's pause between two looks at its droplets.
const REST: Duration = Duration::from_secs(60);

/// When droplets were used, and by whom they are held. An entry for each droplet that was used by this process and is here.
#[derive(Debug)]
pub(super) struct Uses {
    rest: Duration,
    by_droplet: Mutex<HashMap<DropletSha1, Use>>,
    /// What is to go as soon as it can; nothing stays here longer than that takes.
    condemned: Mutex<HashSet<DropletSha1>>,
}

#[derive(Debug)]
struct Use {
    held: usize,
    last: Instant,
}

impl Default for Uses {
    fn default() -> Self {
        Self { rest: REST, by_droplet: Mutex::default(), condemned: Mutex::default() }
    }
}

impl Uses {
    #[cfg(test)]
    pub(super) fn without_rest() -> Self {
        Self { rest: Duration::ZERO, ..Self::default() }
    }

    fn change(&self, sha1: &DropletSha1, change: impl FnOnce(&mut Use)) {
        let mut uses = lock(&self.by_droplet);
        let used = uses.entry(sha1.clone()).or_insert(Use { held: 0, last: Instant::now() });
        used.last = Instant::now();
        change(used);
    }

    fn may_go(&self, sha1: &DropletSha1) -> bool {
        let rests = |used: &Use| used.held == 0 && used.last.elapsed() >= self.rest;
        lock(&self.by_droplet).get(sha1).is_none_or(rests)
    }
}

/// A droplet that stays as long as this lives.
#[derive(Debug)]
pub struct Held {
    sha1: DropletSha1,
    store: Arc<Store>,
}

impl Held {
    /// Which droplet.
    #[must_use]
    pub fn sha1(&self) -> &DropletSha1 {
        &self.sha1
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.store.uses.change(&self.sha1, |used| used.held = used.held.saturating_sub(1));
    }
}

impl Store {
    /// The caller has `busy`, and the droplet is here.
    pub(super) fn hold(self: &Arc<Self>, sha1: &DropletSha1) -> Held {
        self.uses.change(sha1, |used| used.held += 1);
        Held { sha1: sha1.clone(), store: Arc::clone(self) }
    }

    /// The droplet is used at this moment.
    pub(super) fn touch(&self, sha1: &DropletSha1) {
        self.uses.change(sha1, |_| ());
        self.mark(&self.dir.join(sha1.as_str()), SystemTime::now());
    }

    /// What is here, the least recently used first. Blocks. What is neither a droplet nor on its way to become one is removed: what
    /// evictions did not get to delete, and unpacked trees of earlier processes, which nobody trusts but those that run from them again.
    fn survey(&self) -> Result<Vec<KeptDroplet>, StoreError> {
        let mut kept = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(at(&self.dir))? {
            let entry = entry.map_err(at(&self.dir))?;
            let name = entry.file_name();
            if name == PARTIAL {
                continue;
            }
            let Some(sha1) = name.to_str().and_then(|name| DropletSha1::parse(name).ok()) else {
                remove_left_over(&entry.path());
                continue;
            };
            // One that goes at this moment is not here.
            let Ok(used) = entry.metadata().and_then(|dir| dir.modified()) else { continue };
            self.discard_untrusted(&sha1, used);
            let unpacked = lock(&self.unpacked).get(&sha1).map_or(0, |unpacked| unpacked.bytes);
            let archive = fs::symlink_metadata(entry.path().join(ARCHIVE)).map_or(0, |archive| archive.len());
            kept.push((used, KeptDroplet { sha1, size: Bytes(archive.saturating_add(unpacked)) }));
        }
        kept.sort_by_key(|(used, _)| *used);
        Ok(kept.into_iter().map(|(_, droplet)| droplet).collect())
    }

    /// Removes a tree that another process has unpacked, which is no use of the droplet.
    fn discard_untrusted(&self, sha1: &DropletSha1, used: SystemTime) {
        let busy = self.busy(sha1);
        let Ok(_busy) = busy.try_lock() else { return };
        let dir = self.dir.join(sha1.as_str());
        let untrusted = dir.join(UNPACKED);
        let trusted = lock(&self.unpacked).contains_key(sha1) || lock(&self.taken_over).contains(sha1);
        if !trusted && untrusted.exists() {
            remove_left_over(&untrusted);
            self.mark(&dir, used);
        }
    }

    /// The directory tells also the next process when the droplet was used. If it cannot, the droplet goes earlier there, no more.
    fn mark(&self, dir: &Path, used: SystemTime) {
        if let Err(error) = File::open(dir).and_then(|dir| dir.set_modified(used)) {
            debug!(path = %dir.display(), %error, "cannot mark a droplet as used");
        }
    }

    /// Takes a droplet out of the store; the caller has `busy`. Returns where its files are now.
    fn detach(&self, sha1: &DropletSha1) -> Result<PathBuf, StoreError> {
        let dir = self.dir.join(sha1.as_str());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let deleted = self.dir.join(format!("{sha1}.deleted.{}", now.as_secs()));
        // The clock may have been here before.
        remove_left_over(&deleted);
        match fs::rename(&dir, &deleted) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&dir)(error)),
            _ => {}
        }
        lock(&self.verified).remove(sha1);
        lock(&self.unpacked).remove(sha1);
        lock(&self.uses.by_droplet).remove(sha1);
        Ok(deleted)
    }
}

impl DropletStore {
    /// What is here, the least recently used first.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub async fn survey(&self) -> Result<Vec<KeptDroplet>, StoreError> {
        let store = Arc::clone(&self.0);
        blocking::run(move || store.survey()).await
    }

    /// Somebody is about to need this droplet.
    pub(crate) fn reprieve(&self, sha1: &DropletSha1) {
        lock(&self.0.uses.condemned).remove(sha1);
    }

    /// Nobody needs this droplet; [`DropletStore::evict`] is to follow.
    pub(crate) fn condemn(&self, sha1: &DropletSha1) {
        lock(&self.0.uses.condemned).insert(sha1.clone());
    }

    /// Removes a droplet that is condemned, if nothing has come between. Says whether it is gone.
    ///
    /// # Errors
    /// When it cannot be moved away; it stays what it was then.
    pub(crate) async fn evict(&self, sha1: &DropletSha1) -> Result<bool, StoreError> {
        let busy = self.0.busy(sha1);
        let guard = busy.lock().await;
        if !lock(&self.0.uses.condemned).remove(sha1) || !self.0.uses.may_go(sha1) {
            return Ok(false);
        }
        let (store, wanted) = (Arc::clone(&self.0), sha1.clone());
        let deleted = blocking::run(move || store.detach(&wanted)).await?;
        drop(guard);
        info!(droplet_sha1 = %sha1, "droplet that nobody uses removed");
        blocking::run(move || remove_left_over(&deleted)).await;
        Ok(true)
    }
}

#[cfg(test)]
mod tests;
