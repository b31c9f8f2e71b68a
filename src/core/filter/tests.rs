use std::sync::Arc;

use super::*;
use crate::InstanceKey;
use crate::registry::Registry;
use crate::testing::{at, start_message};

/// Instances 1 to 4 of `shop`, 1 and 2 of version v1 and the others of v2, and one of another app; all BORN.
fn registry() -> Registry {
    let mut registry = Registry::default();
    for (key, app) in [(1, "shop"), (2, "shop"), (3, "shop"), (4, "shop"), (5, "blog")] {
        let mut start = start_message(app, 10 * u32::try_from(key).unwrap());
        start.version = if key < 3 { "v1" } else { "v2" }.to_owned();
        let id = InstanceId(format!("i{key}"));
        registry.insert(Instance::new(InstanceKey(key), Arc::new(start), id, String::new(), at(0).wall));
    }
    registry
}

/// What matches, or the complaint; given as the JSON that comes over the bus.
fn matches(empty_list: EmptyList, wire: &str) -> Result<Vec<u64>, String> {
    let wire: InstanceFilter = serde_json::from_str(wire).unwrap();
    let filter = Filter::new(wire, empty_list).map_err(|error| error.to_string())?;
    Ok(registry().select(&filter).into_iter().map(|key| key.0).collect())
}

#[test]
fn conditions_hold_together() {
    let cases: [(&str, &[u64]); 15] = [
        (r#"{"droplet":"shop"}"#, &[1, 2, 3, 4]),
        (r#"{"droplet":"nobody"}"#, &[]),
        ("{}", &[]),
        (r#"{"version":"v1"}"#, &[]),
        (r#"{"droplet":"shop","version":"v2"}"#, &[3, 4]),
        (r#"{"droplet":"shop","version":null,"indices":null,"states":null,"instances":null}"#, &[1, 2, 3, 4]),
        (r#"{"droplet":"shop","indices":[40,10,99]}"#, &[1, 4]),
        (r#"{"droplet":"shop","instances":["i4","i2","nobody"]}"#, &[2, 4]),
        (r#"{"droplet":"shop","instances":["i2"],"instance_ids":["i3"]}"#, &[2, 3]),
        (r#"{"droplet":"shop","instance_ids":["i3"]}"#, &[3]),
        (r#"{"droplet":"shop","instances":["i5"]}"#, &[]),
        (r#"{"droplet":"shop","states":["born","RUNNING"]}"#, &[1, 2, 3, 4]),
        (r#"{"droplet":"shop","states":["RUNNING"]}"#, &[]),
        (r#"{"droplet":"shop","states":["deleted"]}"#, &[]),
        (r#"{"droplet":"shop","version":"v1","indices":[10,30],"instances":["i1","i3"],"states":["BORN"]}"#, &[1]),
    ];
    for (wire, expected) in cases {
        for empty_list in [EmptyList::NoCondition, EmptyList::MatchesNothing] {
            assert_eq!(matches(empty_list, wire).as_deref(), Ok(expected), "{wire} {empty_list:?}");
        }
    }
}

#[test]
fn an_empty_list_in_an_order_matches_nothing_and_in_a_question_everything() {
    for key in ["instances", "instance_ids", "indices", "states"] {
        let wire = format!(r#"{{"droplet":"shop","{key}":[]}}"#);
        assert_eq!(matches(EmptyList::MatchesNothing, &wire).as_deref(), Ok(&[][..]), "{key}");
        assert_eq!(matches(EmptyList::NoCondition, &wire).as_deref(), Ok(&[1, 2, 3, 4][..]), "{key}");
    }
    let both = r#"{"droplet":"shop","instances":[],"instance_ids":["i1"]}"#;
    assert_eq!(matches(EmptyList::MatchesNothing, both).as_deref(), Ok(&[1][..]), "joined, they are not empty");
}

#[test]
fn an_unknown_state_is_an_error() {
    for wire in [r#"{"droplet":"shop","states":["RUNNING","Dying"]}"#, r#"{"droplet":"nobody","states":["Dying"]}"#] {
        assert_eq!(matches(EmptyList::NoCondition, wire), Err("Unknown state: Dying".to_owned()));
    }
}
