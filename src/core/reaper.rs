//! Which crashes to keep.
//!
//! The newest crash of each app is kept for the crash lifetime, because its files tell the developer what went wrong. An older one
//! is kept only until a pass of the original's reaper would have come by. The deadlines themselves are the instances' own.

use std::collections::HashMap;
use std::time::Duration;

use dewar_protocol::AppId;

use crate::InstanceKey;

/// How long a crash stays after a newer one of the same app: long enough for one heartbeat to tell of it.
pub(crate) const SUPERSEDED_LIFETIME: Duration = Duration::from_secs(10);

/// The newest crash of each app that has any.
#[derive(Debug, Default)]
pub(crate) struct Crashes {
    newest: HashMap<AppId, InstanceKey>,
}

impl Crashes {
    /// An instance has crashed: the crash that it supersedes.
    pub(crate) fn add(&mut self, app_id: &AppId, key: InstanceKey) -> Option<InstanceKey> {
        self.newest.insert(app_id.clone(), key)
    }

    /// An instance is no longer registered.
    pub(crate) fn forget(&mut self, app_id: &AppId, key: InstanceKey) {
        if self.newest.get(app_id) == Some(&key) {
            self.newest.remove(app_id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_newest_crash_of_an_app_is_remembered() {
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
}
