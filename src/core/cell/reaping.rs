//! What goes because nobody needs it any more, or because there is no room for it: crashes, directories, droplets.
//!
//! The edge measures and lists; here is known what belongs to whom. As every start passes through the same hands, and effects are
//! carried out in order, nothing is given away that a start has been promised.

use std::collections::HashSet;

use dewar_protocol::{Bytes, DropletSha1, InstanceId};

use super::Cell;
use crate::reaper::DiskUse;
use crate::staging_task::StagingTask;
use crate::{Effect, InstanceKey, KeptDroplet};

impl Cell {
    /// The disk of the crashes was measured: under pressure the oldest one goes, and it is measured again.
    pub(super) fn on_crash_disk(&mut self, used: DiskUse, out: &mut Vec<Effect>) {
        while used.exceeds(self.config.crash_disk) {
            let Some(key) = self.oldest_crash() else { return };
            let makes_room = self.registry.get(key).is_some_and(|instance| instance.files().is_some());
            self.reap(key, Effect::MakeRoom, out);
            if makes_room {
                return;
            }
        }
    }

    /// Of those whose sandbox has ended.
    fn oldest_crash(&self) -> Option<InstanceKey> {
        self.crashes.by_age().find(|key| self.registry.get(*key).is_some_and(|instance| !instance.has_sandbox()))
    }

    /// Directories of instances were found: those that belong to no registered one go. An id is never given twice, so what has no
    /// owner now will never have one.
    pub(super) fn on_strays(&self, found: Vec<InstanceId>, out: &mut Vec<Effect>) {
        let ownerless = found.into_iter().filter(|id| !self.registry.has_files(id));
        out.extend(ownerless.map(Effect::DeleteInstanceFiles));
    }

    /// The droplets on disk, the least recently used first: of those that nobody uses, as many go as are beyond the budget.
    pub(super) fn on_droplets(&self, kept: Vec<KeptDroplet>, out: &mut Vec<Effect>) {
        let started = self.registry.iter().filter_map(|instance| instance.start.sha1.as_ref());
        let staged = self.tasks.iter().filter_map(StagingTask::droplet);
        let in_use: HashSet<&DropletSha1> = started.chain(staged).chain(self.droplets.under_way()).collect();
        let unused: Vec<KeptDroplet> = kept.into_iter().filter(|droplet| !in_use.contains(&droplet.sha1)).collect();
        let mut bytes: u64 = unused.iter().fold(0, |sum, droplet| sum.saturating_add(droplet.size.0));
        let Bytes(budget) = self.config.droplet_budget;
        for droplet in unused {
            // Without a budget even an empty one goes.
            if bytes <= budget && budget > 0 {
                return;
            }
            bytes = bytes.saturating_sub(droplet.size.0);
            out.push(Effect::EvictDroplet(droplet.sha1));
        }
    }
}
