//! When the snapshot is saved: right after a change, and then not sooner than after a pause that grows with what saving takes.

use std::time::Duration;

use super::Cell;
use crate::instance::Instance;
use crate::{Effect, Mono, Now, SnapshotImage, TaskImage};

/// The pause after a save is so many times as long as the save took: the disk has at most a fifth of the time to do with it.
const PAUSE_FACTOR: u32 = 4;

/// The pause is at least this long, and at most. So a change is on its way to the disk after 5 s at the latest; with few instances
/// after 50 ms.
const LEAST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The pause after a failure.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// What is known of the saved snapshot.
#[derive(Debug, Default)]
pub(super) struct Saves {
    /// Something is otherwise than in what was saved last.
    changed: bool,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, Default)]
enum Phase {
    /// What an earlier process has left is not known yet: to save now would be to forget it.
    #[default]
    NotLoaded,
    /// Nothing is under way; the next may be from then on.
    Idle { next: Mono },
    /// One is under way.
    Writing { since: Mono },
}

impl Saves {
    pub(super) fn change(&mut self) {
        self.changed = true;
    }

    pub(super) fn loaded(&mut self, now: Mono) {
        self.phase = Phase::Idle { next: now };
    }

    pub(super) fn next(&self) -> Option<Mono> {
        match self.phase {
            Phase::Idle { next } if self.changed => Some(next),
            Phase::NotLoaded | Phase::Idle { .. } | Phase::Writing { .. } => None,
        }
    }

    /// The one that was under way has ended.
    pub(super) fn ended(&mut self, now: Mono, ok: bool) {
        let Phase::Writing { since } = self.phase else { return };
        let pause = if ok { (now - since).saturating_mul(PAUSE_FACTOR).clamp(LEAST_PAUSE, LONGEST_PAUSE) } else { RETRY_PAUSE };
        self.changed |= !ok;
        self.phase = Phase::Idle { next: now + pause };
    }

    /// Whether to begin one now, which the caller then does.
    fn begin(&mut self, now: Mono) -> bool {
        let due = self.next().is_some_and(|next| next <= now);
        if due {
            (self.changed, self.phase) = (false, Phase::Writing { since: now });
        }
        due
    }

    /// Whether to begin a last one, whatever is under way.
    fn begin_last(&mut self) -> bool {
        let loaded = !matches!(self.phase, Phase::NotLoaded);
        *self = Self::default();
        loaded
    }
}

impl Cell {
    /// After each input.
    pub(super) fn save_when_due(&mut self, now: Now, out: &mut Vec<Effect>) {
        if self.saves.begin(now.mono) {
            out.push(self.save(now));
        }
    }

    /// What is left when the process ends.
    pub(super) fn save_at_last(&mut self, now: Now, out: &mut Vec<Effect>) {
        if self.saves.begin_last() {
            out.push(self.save(now));
        }
    }

    fn save(&self, now: Now) -> Effect {
        let tasks = self.tasks.iter().map(|task| TaskImage {
            message: task.message.clone(),
            requester: task.requester.clone(),
            reply: task.reply().cloned(),
        });
        Effect::SaveSnapshot(Box::new(SnapshotImage {
            taken: now.wall,
            ip: self.config.ip.clone(),
            instances: self.registry.iter().filter_map(Instance::image).collect(),
            tasks: tasks.chain(self.legacy.tasks().iter().cloned()).collect(),
        }))
    }
}
