//! The two indexes that the registry of instances and that of staging tasks have in common.

use std::collections::{BTreeMap, BTreeSet};

use dewar_protocol::{AppCounts, AppId};

use crate::Mono;

/// Which keys belong to an app.
#[derive(Debug)]
pub(crate) struct AppIndex<K>(BTreeMap<AppId, BTreeSet<K>>);

impl<K> Default for AppIndex<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord + Copy> AppIndex<K> {
    pub(crate) fn insert(&mut self, app_id: &AppId, key: K) {
        self.0.entry(app_id.clone()).or_default().insert(key);
    }

    pub(crate) fn remove(&mut self, app_id: &AppId, key: K) {
        if let Some(keys) = self.0.get_mut(app_id) {
            keys.remove(&key);
            if keys.is_empty() {
                self.0.remove(app_id);
            }
        }
    }

    /// In the order of registration.
    pub(crate) fn of(&self, app_id: &AppId) -> impl Iterator<Item = K> {
        self.0.get(app_id).into_iter().flatten().copied()
    }

    pub(crate) fn counts(&self) -> AppCounts {
        self.0.iter().map(|(app_id, keys)| (app_id.clone(), keys.len())).collect()
    }
}

/// Who wants to be woken when, soonest first. Each key is in it once at most.
#[derive(Debug)]
pub(crate) struct Deadlines<K>(BTreeSet<(Mono, K)>);

impl<K> Default for Deadlines<K> {
    fn default() -> Self {
        Self(BTreeSet::new())
    }
}

impl<K: Ord + Copy> Deadlines<K> {
    pub(crate) fn replace(&mut self, key: K, before: Option<Mono>, after: Option<Mono>) {
        if before == after {
            return;
        }
        if let Some(before) = before {
            self.0.remove(&(before, key));
        }
        if let Some(after) = after {
            self.0.insert((after, key));
        }
    }

    pub(crate) fn next(&self) -> Option<Mono> {
        self.0.first().map(|(deadline, _)| *deadline)
    }

    /// The soonest, if its time has come.
    pub(crate) fn due(&self, now: Mono) -> Option<K> {
        self.0.first().filter(|(deadline, _)| *deadline <= now).map(|(_, key)| *key)
    }
}
