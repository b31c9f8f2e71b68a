use std::sync::Arc;

use dewar_protocol::{Bytes, InstanceFilter};
use proptest::prelude::*;

use super::*;
use crate::filter::EmptyList;
use crate::instance::Event;
use crate::testing::{at, config, start_message};
use crate::{Exit, Sample};

fn instance(key: u64, app: &str, memory: i64) -> Instance {
    let mut start = start_message(app, 0);
    start.limits.mem = dewar_protocol::Mib(memory);
    let id = InstanceId(format!("id-{key}"));
    Instance::new(InstanceKey(key), Arc::new(start), id, String::new(), at(0).wall)
}

fn by_id(registry: &Registry, app: &str, id: &str) -> Vec<InstanceKey> {
    let wire = InstanceFilter { app_id: Some(app.into()), instances: Some(vec![id.into()]), ..InstanceFilter::default() };
    registry.select(&Filter::new(wire, EmptyList::MatchesNothing).unwrap())
}

#[test]
fn a_renamed_instance_is_found_by_its_new_id_only() {
    let mut registry = Registry::default();
    registry.insert(instance(1, "shop", 10));
    registry.insert(instance(2, "shop", 10));
    registry.rename(InstanceKey(1), "fresh".into());
    assert_eq!(by_id(&registry, "shop", "id-1"), []);
    assert_eq!(by_id(&registry, "shop", "fresh"), [InstanceKey(1)]);
    assert_eq!(by_id(&registry, "blog", "fresh"), [], "ids of other apps are not meant");
    registry.remove(InstanceKey(1));
    assert_eq!(by_id(&registry, "shop", "fresh"), []);
    registry.rename(InstanceKey(1), "too-late".into());
    assert_eq!(by_id(&registry, "shop", "too-late"), []);
    assert_eq!(by_id(&registry, "shop", "id-2"), [InstanceKey(2)]);
}

/// Everything that the registry keeps beside the instances, made afresh from them.
fn assert_consistent(registry: &Registry) {
    let mut totals = Totals::default();
    let mut counts = AppCounts::new();
    let mut deadlines = Vec::new();
    for instance in registry.iter() {
        totals.reserved = totals.reserved + instance.reservation();
        totals.used_memory += instance.usage().last().memory.0;
        totals.active += usize::from(instance.is_active());
        totals.told += crate::heartbeat_size::of(instance);
        *counts.entry(instance.start.app_id.clone()).or_default() += 1;
        deadlines.extend(instance.deadline().map(|deadline| (deadline, instance.key)));
        assert_eq!(by_id(registry, instance.start.app_id.as_str(), instance.instance_id.as_str()), [instance.key]);
        assert!(registry.of_app(&instance.start.app_id).contains(&instance.key));
    }
    assert_eq!(registry.totals(), totals);
    assert_eq!(registry.app_counts(), counts);
    assert_eq!(registry.by_id.len(), registry.len());
    deadlines.sort();
    assert_eq!(registry.deadlines().next(), deadlines.first().map(|(deadline, _)| *deadline));
    for seconds in [0, 100, 1000, 10_000] {
        let due = deadlines.first().filter(|(deadline, _)| *deadline <= at(seconds).mono).map(|(_, key)| *key);
        assert_eq!(registry.deadlines().due(at(seconds).mono), due);
    }
}

#[derive(Debug, Clone)]
enum Change {
    Insert { app: u8, memory: i64 },
    Remove(u64),
    Rename(u64),
    Handle(u64, Event),
    Measure(u64, u64),
}

fn any_change() -> impl Strategy<Value = Change> {
    let event = prop_oneof![
        Just(Event::Begin),
        Just(Event::Refuse(crate::resources::Resource::Disk)),
        Just(Event::DropletReady),
        Just(Event::Launched { port: Some(1), state_file: false }),
        Just(Event::Ready),
        Just(Event::Stop),
        Just(Event::Exited(Exit { status: 0, description: String::new() })),
        Just(Event::Deadline),
    ];
    prop_oneof![
        2 => (0u8..3, 0i64..1000).prop_map(|(app, memory)| Change::Insert { app, memory }),
        1 => (0u64..20).prop_map(Change::Remove),
        1 => (0u64..20).prop_map(Change::Rename),
        8 => (0u64..20, event).prop_map(|(key, event)| Change::Handle(key, event)),
        2 => (0u64..20, 0u64..1000).prop_map(|(key, memory)| Change::Measure(key, memory)),
    ]
}

proptest! {
    #[test]
    fn indexes_and_sums_follow_every_change(changes in proptest::collection::vec(any_change(), 0..80)) {
        let config = config();
        let mut registry = Registry::default();
        let mut last_key = 0;
        for (second, change) in (0u64..).zip(changes) {
            let now = at(second * 40);
            match change {
                Change::Insert { app, memory } => {
                    last_key += 1;
                    registry.insert(instance(last_key, &format!("app-{app}"), memory));
                }
                Change::Remove(key) => drop(registry.remove(InstanceKey(key))),
                Change::Rename(key) => registry.rename(InstanceKey(key), InstanceId(format!("renamed-{second}"))),
                Change::Handle(key, event) => drop(registry.update(InstanceKey(key), |instance| instance.handle(now, event, &config))),
                Change::Measure(key, memory) => {
                    let sample = Sample { memory: Bytes(memory), ..Sample::default() };
                    registry.update(InstanceKey(key), |instance| instance.measure(now.mono, sample));
                }
            }
            assert_consistent(&registry);
        }
        for key in registry.keys() {
            registry.remove(key);
        }
        assert_consistent(&registry);
        prop_assert_eq!(registry.totals(), Totals::default());
    }
}
