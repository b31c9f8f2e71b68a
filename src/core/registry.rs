//! The instances of this cell, and everything that must be found or known about them without walking over them all.

mod index;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Bound;

use dewar_protocol::{AppCounts, AppId, InstanceId};

pub(crate) use self::index::{AppIndex, Deadlines};
use crate::filter::Filter;
use crate::heartbeat_size;
use crate::instance::Instance;
use crate::resources::Reservation;
use crate::{InstanceKey, Mono};

/// Every registered instance, in the order of registration.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    instances: BTreeMap<InstanceKey, Instance>,
    by_app: AppIndex<InstanceKey>,
    by_id: HashMap<InstanceId, InstanceKey>,
    /// What the files of each are called, or would be.
    files: HashSet<InstanceId>,
    deadlines: Deadlines<InstanceKey>,
    totals: Totals,
}

/// Sums over all instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Totals {
    pub(crate) reserved: Reservation,
    /// Bytes of memory, as last measured.
    pub(crate) used_memory: u64,
    /// How many have something left to do.
    pub(crate) active: usize,
    /// Bytes in a heartbeat, at most.
    pub(crate) told: usize,
}

/// What one instance adds to the sums, and when it wants to be woken.
#[derive(Clone, Copy, Default)]
struct Share {
    totals: Totals,
    deadline: Option<Mono>,
}

impl Share {
    fn of(instance: &Instance) -> Self {
        let totals = Totals {
            reserved: instance.reservation(),
            used_memory: instance.usage().last().memory.0,
            active: usize::from(instance.is_active()),
            told: heartbeat_size::of(instance),
        };
        Self { totals, deadline: instance.deadline() }
    }
}

impl Totals {
    fn replace(&mut self, before: Self, after: Self) {
        self.reserved = self.reserved - before.reserved + after.reserved;
        self.used_memory = self.used_memory.saturating_sub(before.used_memory).saturating_add(after.used_memory);
        self.active = self.active - before.active + after.active;
        self.told = self.told - before.told + after.told;
    }
}

impl Registry {
    pub(crate) fn insert(&mut self, instance: Instance) {
        let key = instance.key;
        self.by_app.insert(&instance.start.app_id, key);
        self.by_id.insert(instance.instance_id.clone(), key);
        self.files.insert(instance.files_name().clone());
        self.account(key, Share::default(), Share::of(&instance));
        self.instances.insert(key, instance);
    }

    pub(crate) fn remove(&mut self, key: InstanceKey) -> Option<Instance> {
        let instance = self.instances.remove(&key)?;
        self.by_app.remove(&instance.start.app_id, key);
        self.by_id.remove(&instance.instance_id);
        self.files.remove(instance.files_name());
        self.account(key, Share::of(&instance), Share::default());
        Some(instance)
    }

    pub(crate) fn get(&self, key: InstanceKey) -> Option<&Instance> {
        self.instances.get(&key)
    }

    /// By its id on the wire.
    pub(crate) fn by_id(&self, instance_id: &InstanceId) -> Option<&Instance> {
        self.by_id.get(instance_id).and_then(|key| self.instances.get(key))
    }

    /// Changes an instance in any way but its id; `None` if there is no such instance.
    pub(crate) fn update<R>(&mut self, key: InstanceKey, change: impl FnOnce(&mut Instance) -> R) -> Option<R> {
        let instance = self.instances.get_mut(&key)?;
        let before = Share::of(instance);
        let result = change(instance);
        let after = Share::of(instance);
        self.account(key, before, after);
        Some(result)
    }

    /// Gives an instance a new id; it is no longer found by the old one.
    pub(crate) fn rename(&mut self, key: InstanceKey, instance_id: InstanceId) {
        if let Some(instance) = self.instances.get_mut(&key) {
            let before = Share::of(instance);
            let old = std::mem::replace(&mut instance.instance_id, instance_id.clone());
            let after = Share::of(instance);
            self.by_id.remove(&old);
            self.by_id.insert(instance_id, key);
            self.account(key, before, after);
        }
    }

    fn account(&mut self, key: InstanceKey, before: Share, after: Share) {
        self.totals.replace(before.totals, after.totals);
        self.deadlines.replace(key, before.deadline, after.deadline);
    }

    pub(crate) fn len(&self) -> usize {
        self.instances.len()
    }

    pub(crate) fn totals(&self) -> Totals {
        self.totals
    }

    pub(crate) fn deadlines(&self) -> &Deadlines<InstanceKey> {
        &self.deadlines
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Instance> {
        self.instances.values()
    }

    /// Those that were registered after this one.
    pub(crate) fn after(&self, key: InstanceKey) -> impl Iterator<Item = &Instance> {
        self.instances.range((Bound::Excluded(key), Bound::Unbounded)).map(|(_, instance)| instance)
    }

    /// Whether files of this name belong to anybody.
    pub(crate) fn has_files(&self, name: &InstanceId) -> bool {
        self.files.contains(name)
    }

    pub(crate) fn keys(&self) -> Vec<InstanceKey> {
        self.instances.keys().copied().collect()
    }

    pub(crate) fn of_app(&self, app_id: &AppId) -> Vec<InstanceKey> {
        self.by_app.of(app_id).collect()
    }

    pub(crate) fn app_counts(&self) -> AppCounts {
        self.by_app.counts()
    }

    /// The instances that a filter means, in the order of registration.
    pub(crate) fn select(&self, filter: &Filter) -> Vec<InstanceKey> {
        let Some(app_id) = &filter.app_id else { return Vec::new() };
        let mut keys: Vec<_> = match &filter.ids {
            Some(ids) => ids.iter().filter_map(|id| self.by_id.get(id).copied()).collect(),
            None => self.by_app.of(app_id).collect(),
        };
        keys.retain(|key| self.instances.get(key).is_some_and(|instance| filter.matches(instance)));
        keys.sort_unstable();
        keys
    }
}

#[cfg(test)]
mod tests;
