//! Looks at the disk from time to time, for what is left over and what is too much. What belongs to whom only the cell knows: it is
//! told what was found and says what goes.
//!
//! | pass | how often | what is done about what it finds |
//! |---|---|---|
//! | room for crashes | 10 s | reported; the oldest crash goes while there is too little |
//! | `crashes` | 10 s | a directory without an instance, seen in two passes in a row, is deleted |
//! | `instances`, `staging`, `tmp` | at the start, then every 600 s | likewise |
//! | `droplets` | at the start, then every 60 s | unused ones beyond the budget are removed |
//!
//! Directories of instances and stagings go with them. One without an owner is what could not be removed then, or was made by
//! nobody here.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dewar_core::{DiskUse, Input};
use dewar_protocol::{DropletSha1, InstanceId};
use rustix::fs::statvfs;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, info, info_span, warn};

use crate::base_dir::Paths;
use crate::blocking;
use crate::droplet_store::DropletStore;
use crate::removal::remove_left_over;
use crate::staging::Workspaces;

/// How often which pass comes.
#[derive(Debug, Clone, Copy)]
struct Periods {
    /// Between two looks at the crashes, and their disk.
    crashes: Duration,
    /// Every so many of these: droplets.
    droplets: u32,
    /// Every so many of these: everything else.
    rest: u32,
}

const PERIODS: Periods = Periods { crashes: Duration::from_secs(10), droplets: 6, rest: 60 };

/// Keeps the agent's directory tidy. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Housekeeper(Arc<House>);

#[derive(Debug)]
struct House {
    paths: Paths,
    droplets: DropletStore,
    /// Where the agent stages; without, whatever is there is nobody's.
    workspaces: Option<Arc<Workspaces>>,
    /// To the driver, which always takes what comes.
    reports: mpsc::Sender<Input>,
    tasks: TaskTracker,
    /// How many crashes are being deleted, after which the disk is measured anyway.
    making_room: AtomicUsize,
}

/// What was there in the pass before.
#[derive(Debug, Default)]
struct Sightings(BTreeSet<String>);

impl Sightings {
    /// Which of these were there before, too.
    fn again(&mut self, names: BTreeSet<String>) -> Vec<String> {
        let twice = names.intersection(&self.0).cloned().collect();
        self.0 = names;
        twice
    }
}

/// What was seen in each directory.
#[derive(Debug, Default)]
struct Seen {
    crashes: Sightings,
    instances: Sightings,
    staging: Sightings,
    tmp: Sightings,
}

impl Housekeeper {
    pub(crate) fn new(
        paths: Paths,
        droplets: DropletStore,
        workspaces: Option<Arc<Workspaces>>,
        reports: mpsc::Sender<Input>,
        tasks: TaskTracker,
    ) -> Self {
        Self(Arc::new(House { paths, droplets, workspaces, reports, tasks, making_room: AtomicUsize::new(0) }))
    }

    /// Goes its rounds until `stop` is cancelled.
    pub(crate) fn start(&self, stop: CancellationToken) {
        let house = Arc::clone(&self.0);
        self.0.tasks.spawn(async move { stop.run_until_cancelled(house.run(PERIODS)).await });
    }

    /// Deletes what a crash left, and reports how full the disk is then.
    pub(crate) fn make_room(&self, crash: &InstanceId) {
        let house = Arc::clone(&self.0);
        let dirs = [house.paths.instance(crash), house.paths.crash(crash)];
        house.making_room.fetch_add(1, Ordering::Relaxed);
        self.0.tasks.spawn(async move {
            blocking::run(move || dirs.iter().for_each(|dir| remove_left_over(dir))).await;
            house.making_room.fetch_sub(1, Ordering::Relaxed);
            house.measure().await;
        });
    }

    /// Removes a droplet in the background, unless it is needed again before.
    pub(crate) fn evict(&self, sha1: DropletSha1) {
        self.0.droplets.condemn(&sha1);
        let droplets = self.0.droplets.clone();
        let span = info_span!("droplet", %sha1);
        self.0.tasks.spawn(
            async move {
                if let Err(error) = droplets.evict(&sha1).await {
                    warn!(%error, "droplet that nobody uses not removed");
                }
            }
            .instrument(span),
        );
    }
}

impl House {
    async fn run(&self, periods: Periods) {
        let mut rounds = interval(periods.crashes);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut seen = Seen::default();
        let mut round: u32 = 0;
        loop {
            rounds.tick().await;
            if self.making_room.load(Ordering::Relaxed) == 0 {
                self.measure().await;
            }
            self.report_strays("crashes", &mut seen.crashes).await;
            if round.is_multiple_of(periods.droplets) {
                self.report_droplets().await;
            }
            if round.is_multiple_of(periods.rest) {
                self.report_strays("instances", &mut seen.instances).await;
                let workspaces = self.workspaces.clone();
                let is_live = move |name: &str| workspaces.as_ref().is_some_and(|workspaces| workspaces.owns(name));
                self.remove_strays("staging", &mut seen.staging, is_live).await;
                self.remove_strays("tmp", &mut seen.tmp, |_| false).await;
            }
            round = round.wrapping_add(1);
        }
    }

    /// Tells the cell how full the disk of the crashes is. One that cannot be measured is not full.
    async fn measure(&self) {
        let crashes = self.dir("crashes");
        let measured = blocking::run(move || statvfs(&crashes).map_err(|error| (crashes, error))).await;
        match measured {
            Ok(stat) => {
                let used = DiskUse { blocks: part(stat.f_blocks, stat.f_bfree), inodes: part(stat.f_files, stat.f_ffree) };
                self.send(Input::CrashDisk(used)).await;
            }
            Err((path, error)) => warn!(path = %path.display(), %error, "disk not measured"),
        }
    }

    async fn report_strays(&self, dir: &'static str, seen: &mut Sightings) {
        let strays: Vec<_> = self.twice(dir, seen).await.into_iter().map(InstanceId).collect();
        if !strays.is_empty() {
            self.send(Input::Strays(strays)).await;
        }
    }

    async fn remove_strays(&self, dir: &'static str, seen: &mut Sightings, is_live: impl Fn(&str) -> bool) {
        let dir_path = self.dir(dir);
        let strays: Vec<PathBuf> =
            self.twice(dir, seen).await.into_iter().filter(|name| !is_live(name)).map(|name| dir_path.join(name)).collect();
        if !strays.is_empty() {
            info!(dir = %dir_path.display(), count = strays.len(), "left-overs removed");
            blocking::run(move || strays.iter().for_each(|path| remove_left_over(path))).await;
        }
    }

    /// What is in a directory in this pass and was in the one before. A directory that cannot be read is left alone for this time.
    async fn twice(&self, dir: &'static str, seen: &mut Sightings) -> Vec<String> {
        let path = self.dir(dir);
        match blocking::run(move || names(&path)).await {
            Ok(names) => seen.again(names),
            Err(error) => {
                warn!(dir = %self.dir(dir).display(), %error, "left-overs not looked for");
                Vec::new()
            }
        }
    }

    async fn report_droplets(&self) {
        match self.droplets.survey().await {
            Ok(droplets) => self.send(Input::Droplets(droplets)).await,
            Err(error) => warn!(%error, "unused droplets not looked for"),
        }
    }

    async fn send(&self, input: Input) {
        // The driver is gone only when the agent ends, and then nobody wants to know.
        let _ = self.reports.send(input).await;
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.paths.base().join(name)
    }
}

/// Names in a directory. What is not text was made by nobody here, and stays.
fn names(dir: &Path) -> io::Result<BTreeSet<String>> {
    let names = std::fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().into_string().ok()));
    names.filter_map(Result::transpose).collect()
}

/// The part that is in use; nothing of nothing is.
#[expect(clippy::cast_precision_loss, reason = "a ratio, compared with one that has a digit or two")]
fn part(total: u64, free: u64) -> f64 {
    if total == 0 { 0.0 } else { total.saturating_sub(free) as f64 / total as f64 }
}

#[cfg(test)]
mod tests;
