//! What outlives a process: the last snapshot that reached its disk.

use std::collections::BTreeMap;

use dewar_core::{Effect, InstanceKey, Mono, Now, ReplyTo, SnapshotImage, Varz};
use dewar_protocol::{InstanceId, InstanceState, Snapshot};

use crate::agent::{Later, Luck, Plans};
use crate::chance::Chance;
use crate::ledger::Ledger;

/// How long a change may be missing on disk: the longest pause, and some failures on end.
const DELAY: std::time::Duration = std::time::Duration::from_secs(30);

/// The disk of an agent.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    saved: Option<Snapshot>,
    /// Being written: it is there whole, or not at all.
    pending: Option<Snapshot>,
    /// What was registered when that was last looked at.
    is: Names,
    /// The oldest change that is not on disk, and the oldest that is not even on its way.
    stale: Option<Mono>,
    to_come: Option<Mono>,
}

impl Disk {
    pub(crate) fn with(saved: Option<Snapshot>) -> Self {
        Self { saved, ..Self::default() }
    }

    pub(crate) fn save(&mut self, image: &SnapshotImage, luck: Luck, chance: &mut Chance) -> Plans {
        let snapshot = image.snapshot(|files, _| format!("instances/{files}"));
        self.pending = Some(snapshot);
        let ok = !(luck == Luck::Bad && chance.percent(10));
        vec![(chance.seconds(0, 2), Later::Saved { ok })]
    }

    pub(crate) fn saved(&mut self, ok: bool) {
        let written = self.pending.take();
        if ok {
            (self.saved, self.stale) = (written, self.to_come);
        }
    }

    /// What is under way is waited for.
    pub(crate) fn flush(&mut self) {
        self.saved(self.pending.is_some());
    }

    /// What a process finds after another one was killed.
    pub(crate) fn after_a_kill(&mut self, chance: &mut Chance) -> Option<Snapshot> {
        if chance.percent(50) {
            self.flush();
        }
        let text = serde_json::to_string(&self.saved.take()?).expect("a snapshot has a JSON form");
        Some(serde_json::from_str(&text).expect("a snapshot is understood"))
    }

    /// What the last effects want to be saved is what there is, and it is on disk soon.
    pub(crate) fn check(&mut self, now: Now, seen: &Varz, effects: &[Effect]) {
        let is = registered(seen);
        if is != self.is {
            self.stale = self.stale.or(Some(now.mono));
            self.to_come = self.to_come.or(Some(now.mono));
            self.is = is;
        }
        for effect in effects {
            if let Effect::SaveSnapshot(image) = effect {
                assert_eq!(names(&image.snapshot(|_, _| String::new())), self.is, "what is saved is not what is");
                self.to_come = None;
            }
        }
        assert!(self.stale.is_none_or(|since| now.mono - since < DELAY), "not saved: {:?}", self.is);
    }

    /// After a resumption: every instance is there that was, once, and runs again if it did.
    pub(crate) fn assert_nothing_is_lost_or_doubled(&self, seen: &Varz) {
        let saved = self.saved.iter().flat_map(|saved| &saved.instances).filter(|instance| instance.state != InstanceState::Stopping);
        let was: BTreeMap<_, _> = saved.map(|instance| (&instance.instance_id, instance.state)).collect();
        let is: BTreeMap<_, _> = seen.instances.iter().map(|instance| (&instance.instance_id, instance.state)).collect();
        assert_eq!(is.len(), seen.instances.len(), "an instance is there twice");
        assert!(was.keys().eq(is.keys()), "{was:?} became {is:?}");
        for (id, state) in was {
            let ran = matches!(state, InstanceState::Running | InstanceState::Evacuating);
            let expected = if ran { InstanceState::Resuming } else { InstanceState::Crashed };
            assert_eq!(is[id], expected, "{id} was {state}");
        }
    }
}

/// By id: routes and version.
type Names = BTreeMap<InstanceId, (Vec<String>, String)>;

fn registered(seen: &Varz) -> Names {
    seen.instances.iter().map(|it| (it.instance_id.clone(), (it.uris.clone(), it.version.clone()))).collect()
}

fn names(snapshot: &Snapshot) -> Names {
    let name =
        |it: &dewar_protocol::SnapshotInstance| (it.instance_id.clone(), (it.application_uris.clone(), it.application_version.clone()));
    snapshot.instances.iter().map(name).collect()
}

impl Ledger {
    /// What a process is to know that begins with this.
    pub(crate) fn succeed(&mut self, left: Option<&Snapshot>) {
        let Some(left) = left else { return };
        for (instance, key) in left.instances.iter().zip(1..) {
            if instance.state_starting_timestamp.is_some() {
                self.files.insert(instance.warden_handle.clone(), InstanceKey(key));
            }
            if matches!(instance.state, InstanceState::Crashed | InstanceState::Stopping) {
                self.ended.insert(instance.instance_id.clone());
            }
        }
        self.accepted += left.staging_tasks.iter().filter(|task| task.by_http).count();
        let waiting = left.staging_tasks.iter().filter_map(|task| task.reply_to.as_deref());
        self.stagings.extend(waiting.map(|to| (ReplyTo(to.into()), (0, 0))));
    }
}
