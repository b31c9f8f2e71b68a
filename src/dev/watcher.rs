//! Notices changes of what a package is made of, and of nothing else.
//!
//! Only folders that are packed are watched, so build output does not count. An event from the system is merely an occasion to look:
//! what decides is whether a new listing of the package differs from the last.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dewar_client::{ClientError, Listing, PackageError, PackageSource, exit_code};
use notify_debouncer_full::notify::{self, RecommendedWatcher, RecursiveMode};
use notify_debouncer_full::{DebounceEventResult, Debouncer, RecommendedCache, new_debouncer};
use tokio::sync::mpsc;

use crate::failure::Failure;

/// Events are collected until there was none for this long: editors write in several steps, compilers in many.
const QUIET: Duration = Duration::from_millis(150);
/// Folders that appear while others are being added to the watch are looked for this often.
const ROUNDS_MAX: usize = 8;

/// Watches one package.
pub(crate) struct Watcher {
    source: PackageSource,
    debouncer: Debouncer<RecommendedWatcher, RecommendedCache>,
    /// Holds at most one event: another would say nothing new.
    events: mpsc::Receiver<()>,
    watched: BTreeSet<PathBuf>,
    /// `None`: the package could not be listed.
    last: Option<Listing>,
}

impl Watcher {
    /// Starts watching; changes from now on are noticed.
    pub(crate) async fn start(source: PackageSource) -> Result<Self, Failure> {
        let (sender, events) = mpsc::channel(1);
        let debouncer = new_debouncer(QUIET, None, move |result: DebounceEventResult| {
            let worth_a_look = result.map_or(true, |events| events.iter().any(|event| !event.kind.is_access()));
            if worth_a_look {
                // Full: a look is due anyway. Closed: nobody looks any more.
                let _ = sender.try_send(());
            }
        });
        let debouncer = debouncer.map_err(|error| cannot_watch(source.path(), &error))?;
        let mut watcher = Self { source, debouncer, events, watched: BTreeSet::new(), last: None };
        watcher.last = watcher.look().await?.ok();
        Ok(watcher)
    }

    /// Waits until the package has changed, or can no longer be listed, which the next push then explains. Cancel safe: a change that is
    /// noticed while nobody waits is told to the next who does.
    pub(crate) async fn changed(&mut self) -> Result<(), Failure> {
        loop {
            if self.events.recv().await.is_none() {
                return Err(Failure::new(exit_code::IO, format!("nobody watches {} any more", self.source.path().display())));
            }
            let listing = self.look().await?.ok();
            if listing.is_none() || listing != self.last {
                self.last = listing;
                return Ok(());
            }
        }
    }

    /// Lists the package and watches folders that are new; listed again then, since something may have come into them before.
    async fn look(&mut self) -> Result<Result<Listing, PackageError>, Failure> {
        for _ in 0..ROUNDS_MAX {
            let source = self.source.clone();
            let listed = tokio::task::spawn_blocking(move || source.list()).await;
            let listed = listed.map_err(|error| Failure::new(exit_code::IO, format!("cannot list the package: {error}")))?;
            let wanted = match &listed {
                Ok(listing) => self.folders(listing),
                Err(_) => return Ok(listed),
            };
            if !self.watch_only(wanted)? {
                return Ok(listed);
            }
        }
        let path = self.source.path();
        Err(ClientError::Usage(format!("folders in {} come and go too fast to be watched", path.display())).into())
    }

    fn folders(&self, listing: &Listing) -> BTreeSet<PathBuf> {
        let path = self.source.path();
        match &self.source {
            PackageSource::Folder(root) => listing.folders().map(Path::to_owned).chain([root.clone()]).collect(),
            // A file that is replaced is another file; its folder stays.
            PackageSource::Module(_) | PackageSource::Archive(_) => {
                let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty());
                [folder.map_or_else(|| PathBuf::from("."), Path::to_owned)].into()
            }
        }
    }

    /// Whether any was new.
    fn watch_only(&mut self, wanted: BTreeSet<PathBuf>) -> Result<bool, Failure> {
        for gone in self.watched.difference(&wanted) {
            // The system has forgotten a deleted folder by itself.
            let _ = self.debouncer.unwatch(gone);
        }
        let mut any_new = false;
        for new in wanted.difference(&self.watched) {
            match self.debouncer.watch(new, RecursiveMode::NonRecursive) {
                Ok(()) => any_new = true,
                // It was there when it was listed; its parent tells what has become of it.
                Err(error) if matches!(error.kind, notify::ErrorKind::PathNotFound) => any_new = true,
                Err(error) => return Err(cannot_watch(new, &error)),
            }
        }
        self.watched = wanted;
        Ok(any_new)
    }
}

fn cannot_watch(path: &Path, error: &notify::Error) -> Failure {
    Failure::new(exit_code::IO, format!("cannot watch {}: {error}", path.display()))
        .hint("serve it without watching: --once; or leave folders out with .dewarignore")
}

#[cfg(test)]
mod tests;
