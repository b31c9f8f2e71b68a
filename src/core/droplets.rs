//! Which droplets are on their way, and who waits for them.
//!
//! One fetch per digest at a time, and everybody who wants the same gets the same result. What has come is not remembered here:
//! the droplet registry on disk is asked at every start, so that a droplet which was damaged or deleted is fetched again.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use dewar_protocol::DropletSha1;

use crate::{InstanceKey, Mono};

/// The fetches under way: at most one per digest, and those only while somebody started wants it.
#[derive(Debug, Default)]
pub(crate) struct Droplets {
    fetches: HashMap<DropletSha1, Fetch>,
}

#[derive(Debug)]
struct Fetch {
    since: Mono,
    waiting: BTreeSet<InstanceKey>,
}

/// What a new wish for a droplet means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    /// It has to be fetched.
    Fetch,
    /// It is being fetched already.
    Wait,
}

impl Droplets {
    /// `key` wants this droplet. A fetch older than `limit` is taken for lost, and made anew.
    pub(crate) fn want(&mut self, sha1: &DropletSha1, key: InstanceKey, now: Mono, limit: Duration) -> Wish {
        let lost = self.fetches.get(sha1).is_none_or(|fetch| now - fetch.since > limit);
        let fetch = self.fetches.entry(sha1.clone()).or_insert_with(|| Fetch { since: now, waiting: BTreeSet::new() });
        fetch.waiting.insert(key);
        if lost {
            fetch.since = now;
            Wish::Fetch
        } else {
            Wish::Wait
        }
    }

    /// `key` no longer wants it; the fetch goes on, since it may be wanted again.
    pub(crate) fn abandon(&mut self, sha1: &DropletSha1, key: InstanceKey) {
        if let Some(fetch) = self.fetches.get_mut(sha1) {
            fetch.waiting.remove(&key);
        }
    }

    /// What is on its way.
    pub(crate) fn under_way(&self) -> impl Iterator<Item = &DropletSha1> {
        self.fetches.keys()
    }

    /// The fetch has ended: who waited for it, in the order of registration.
    pub(crate) fn settle(&mut self, sha1: &DropletSha1) -> BTreeSet<InstanceKey> {
        self.fetches.remove(sha1).map(|fetch| fetch.waiting).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(900);

    fn at(seconds: u64) -> Mono {
        Mono(Duration::from_secs(seconds))
    }

    #[test]
    fn one_fetch_serves_everybody_who_waits() {
        let sha1 = DropletSha1::parse(&"a".repeat(40)).unwrap();
        let mut droplets = Droplets::default();
        assert_eq!(droplets.want(&sha1, InstanceKey(1), at(0), LIMIT), Wish::Fetch);
        assert_eq!(droplets.want(&sha1, InstanceKey(2), at(1), LIMIT), Wish::Wait);
        assert_eq!(droplets.want(&sha1, InstanceKey(3), at(2), LIMIT), Wish::Wait);
        droplets.abandon(&sha1, InstanceKey(2));
        assert_eq!(droplets.settle(&sha1), BTreeSet::from([InstanceKey(1), InstanceKey(3)]));
        assert_eq!(droplets.settle(&sha1), BTreeSet::new());
        assert_eq!(droplets.want(&sha1, InstanceKey(4), at(3), LIMIT), Wish::Fetch);
    }

    #[test]
    fn a_fetch_that_nobody_waits_for_is_joined_not_repeated() {
        let sha1 = DropletSha1::parse(&"a".repeat(40)).unwrap();
        let mut droplets = Droplets::default();
        droplets.want(&sha1, InstanceKey(1), at(0), LIMIT);
        droplets.abandon(&sha1, InstanceKey(1));
        assert_eq!(droplets.want(&sha1, InstanceKey(2), at(900), LIMIT), Wish::Wait);
        assert_eq!(droplets.want(&sha1, InstanceKey(3), at(901), LIMIT), Wish::Fetch, "lost after the limit");
        assert_eq!(droplets.want(&sha1, InstanceKey(4), at(902), LIMIT), Wish::Wait);
    }
}
