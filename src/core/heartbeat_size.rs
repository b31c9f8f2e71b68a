//! How large a heartbeat is, and how many instances one has room for.
//!
//! A heartbeat tells of every instance: a health manager takes what is missing in it for lost, and starts it elsewhere. So it cannot
//! be sent in parts, and one that is larger than the NATS server takes is not sent at all. To be taken for lost as a whole is worse
//! than to refuse a start, so no more instances are taken than a heartbeat can tell of: with nats-server's default of 1 MiB about
//! 4000. (A health manager that accepts parts, and an operator who says so, lift the bound.)

use dewar_protocol::HeartbeatEntry;

use crate::instance::Instance;

/// An entry with the longest values that are not texts, and its comma.
const ENTRY: &str = r#"{"cc_partition":,"droplet":,"version":,"instance":,"index":4294967295,"state":"EVACUATING","state_timestamp":9223372036854775807.123456789},"#;

/// Everything around the entries; an agent's id is shorter than 256 bytes.
const AROUND: usize = 300;

/// What the largest ordinary entry takes: with less room than this an agent is full.
const ORDINARY: usize = 512;

/// Bytes of a heartbeat with these entries, at most.
pub(crate) fn whole(entries: usize) -> usize {
    entries.saturating_add(AROUND)
}

/// Whether a heartbeat has room for one more ordinary entry.
pub(crate) fn has_room(entries: usize, limit: usize) -> bool {
    whole(entries.saturating_add(ORDINARY)) <= limit
}

/// Bytes of an instance in a heartbeat, at most, whatever becomes of its state.
pub(crate) fn of(instance: &Instance) -> usize {
    let HeartbeatEntry { cc_partition, app_id, version, instance_id, .. } = &instance.heartbeat_entry();
    ENTRY.len() + [cc_partition, app_id.as_str(), version, instance_id.as_str()].map(json_length).iter().sum::<usize>()
}

/// Bytes of a text in JSON, with its quotes, at most.
fn json_length(text: &str) -> usize {
    let bytes = text.bytes().map(|byte| match byte {
        0..=0x1f | 0x7f => 6,
        b'"' | b'\\' => 2,
        _ => 1,
    });
    2 + bytes.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use dewar_protocol::{AppId, InstanceId};
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{at, start_message};
    use crate::{InstanceKey, Mono, Now, Wall};

    proptest! {
        #[test]
        fn no_entry_is_longer(app in any::<String>(), version in any::<String>(), partition in any::<String>(), index in any::<u32>(),
            nanos in any::<u64>()) {
            let mut start = start_message("", index);
            (start.app_id, start.version, start.cc_partition) = (AppId::from(app.as_str()), version, partition);
            let wall = Wall(std::time::Duration::from_nanos(nanos));
            let id = InstanceId::from("0123456789abcdef0123456789abcdef");
            let born = Instance::new(InstanceKey(1), Arc::new(start), id, String::new(), Now { mono: Mono::default(), ..at(0) }.wall);
            let mut entry = born.heartbeat_entry();
            entry.state_timestamp = wall.to_unix();
            let length = serde_json::to_vec(&entry).unwrap().len() + 1;
            prop_assert!(length <= of(&born), "{length} bytes, and {} are counted", of(&born));
        }
    }
}
