//! Which crashes to keep.
//!
//! The newest crash of each app is kept for the crash lifetime, because its files tell the developer what went wrong. An older one
//! is kept only until a pass of the original's reaper would have come by. The deadlines themselves are the instances' own. When the
//! disk that crashes are kept on gets full, the oldest of all goes first, and the disk is measured again before the next one does.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use dewar_protocol::AppId;

use crate::InstanceKey;

/// How long a crash stays after a newer one of the same app: long enough for one heartbeat to tell of it.
pub(crate) const SUPERSEDED_LIFETIME: Duration = Duration::from_secs(10);

/// The part of a disk that is in use, 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DiskUse {
    /// Of its blocks.
    pub blocks: f64,
    /// Of its inodes; 0 where the file system makes as many as it wants.
    pub inodes: f64,
}

impl DiskUse {
    /// Whether more is in use than crashes may stay for.
    pub(crate) fn exceeds(self, limits: Self) -> bool {
        self.blocks > limits.blocks || self.inodes > limits.inodes
    }
}

/// Every crash, in the order of crashing.
#[derive(Debug, Default)]
pub(crate) struct Crashes {
    newest: HashMap<AppId, InstanceKey>,
    by_age: BTreeMap<u64, InstanceKey>,
    ages: HashMap<InstanceKey, u64>,
    last: u64,
}

impl Crashes {
    /// An instance has crashed: the crash that it supersedes.
    pub(crate) fn add(&mut self, app_id: &AppId, key: InstanceKey) -> Option<InstanceKey> {
        self.last += 1;
        self.by_age.insert(self.last, key);
        self.ages.insert(key, self.last);
        self.newest.insert(app_id.clone(), key)
    }

    /// An instance is no longer registered.
    pub(crate) fn forget(&mut self, app_id: &AppId, key: InstanceKey) {
        if let Some(age) = self.ages.remove(&key) {
            self.by_age.remove(&age);
        }
        if self.newest.get(app_id) == Some(&key) {
            self.newest.remove(app_id);
        }
    }

    /// The oldest first.
    pub(crate) fn by_age(&self) -> impl Iterator<Item = InstanceKey> {
        self.by_age.values().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_newest_crash_of_an_app_is_remembered_as_such() {
        let (shop, blog) = (AppId::from("shop"), AppId::from("blog"));
        let mut crashes = Crashes::default();
        assert_eq!(crashes.add(&shop, InstanceKey(1)), None);
        assert_eq!(crashes.add(&blog, InstanceKey(2)), None);
        assert_eq!(crashes.add(&shop, InstanceKey(3)), Some(InstanceKey(1)));
        crashes.forget(&shop, InstanceKey(1));
        assert_eq!(crashes.add(&shop, InstanceKey(4)), Some(InstanceKey(3)), "forgetting an older one changes nothing");
        crashes.forget(&shop, InstanceKey(4));
        assert_eq!(crashes.add(&shop, InstanceKey(5)), None);
    }

    #[test]
    fn crashes_are_told_by_age_whatever_the_order_of_registration() {
        let app = AppId::from("shop");
        let mut crashes = Crashes::default();
        for key in [3, 1, 2] {
            crashes.add(&app, InstanceKey(key));
        }
        assert_eq!(crashes.by_age().map(|key| key.0).collect::<Vec<_>>(), [3, 1, 2]);
        crashes.forget(&app, InstanceKey(1));
        crashes.forget(&app, InstanceKey(7));
        assert_eq!(crashes.by_age().map(|key| key.0).collect::<Vec<_>>(), [3, 2]);
    }

    #[test]
    fn a_disk_is_full_above_either_limit() {
        let limits = DiskUse { blocks: 0.8, inodes: 0.5 };
        let full = |blocks, inodes| DiskUse { blocks, inodes }.exceeds(limits);
        assert_eq!([full(0.8, 0.5), full(0.81, 0.1), full(0.1, 0.51), full(0.9, 0.9)], [false, true, true, true]);
    }
}
