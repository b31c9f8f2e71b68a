//! Which instances a message means.
//!
//! All conditions hold together. Null is no condition. An empty list is no condition in a question (`dea.find.droplet`), but
//! matches nothing in an order (`dea.stop`): an empty list must not become "stop everything".

use std::collections::BTreeSet;

use dewar_protocol::{AppId, InstanceFilter, InstanceId, InstanceState, UnknownState};

use crate::instance::Instance;

/// What an empty list means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EmptyList {
    NoCondition,
    MatchesNothing,
}

/// A filter, understood.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Filter {
    /// Without one nothing matches.
    pub(crate) app_id: Option<AppId>,
    /// One of these, if there are any conditions on ids.
    pub(crate) ids: Option<BTreeSet<InstanceId>>,
    version: Option<String>,
    indices: Option<BTreeSet<u32>>,
    states: Option<BTreeSet<InstanceState>>,
}

impl Filter {
    /// # Errors
    /// When a state is none, nor `DELETED`, which once was one.
    pub(crate) fn new(wire: InstanceFilter, empty_list: EmptyList) -> Result<Self, UnknownState> {
        let InstanceFilter { app_id, version, instances, instance_ids, indices, states } = wire;
        let ids = match (instances, instance_ids) {
            (Some(instances), Some(more)) => Some([instances, more].concat()),
            (ids, None) | (None, ids) => ids,
        };
        Ok(Self {
            app_id,
            version,
            ids: ids.and_then(|ids| condition(ids, empty_list)),
            indices: indices.and_then(|indices| condition(indices, empty_list)),
            states: match states.and_then(|states| condition(states, empty_list)) {
                Some(names) => Some(names.iter().filter_map(|name| known_state(name).transpose()).collect::<Result<_, _>>()?),
                None => None,
            },
        })
    }

    pub(crate) fn matches(&self, instance: &Instance) -> bool {
        self.app_id.as_ref() == Some(&instance.start.app_id)
            && self.version.as_ref().is_none_or(|version| *version == instance.version)
            && self.ids.as_ref().is_none_or(|ids| ids.contains(&instance.instance_id))
            && self.indices.as_ref().is_none_or(|indices| indices.contains(&instance.start.index))
            && self.states.as_ref().is_none_or(|states| states.contains(&instance.told_state()))
    }
}

fn condition<T: Ord>(list: Vec<T>, empty_list: EmptyList) -> Option<BTreeSet<T>> {
    match empty_list {
        EmptyList::NoCondition if list.is_empty() => None,
        EmptyList::NoCondition | EmptyList::MatchesNothing => Some(list.into_iter().collect()),
    }
}

/// `None` for the state that no longer exists.
fn known_state(name: &str) -> Result<Option<InstanceState>, UnknownState> {
    if name.eq_ignore_ascii_case("DELETED") { Ok(None) } else { name.parse().map(Some) }
}

#[cfg(test)]
mod tests;
