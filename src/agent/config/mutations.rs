//! Configurations with arbitrary mistakes in them: each mistake is told with its key, and nothing panics.

use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Map, Value};

use super::tests::DEA_YML;
use super::{AgentConfig, ConfigError};

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        prop::sample::select(vec!["1s", "-1", "1e400", "", "::1", "a:b@c", "tls://x", "/dev/null", "nats://"]).prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map("[a-z]{0,5}", inner, 0..3).prop_map(|map| Value::Object(map.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// Puts a value in some place; the outermost key of the place.
fn misplace(tree: &mut Value, path: (Index, Index), value: Value) -> String {
    let Value::Object(fields) = tree else { return String::new() };
    let keys: Vec<String> = fields.keys().cloned().collect();
    let key = path.0.get(&keys).clone();
    match fields.get_mut(&key) {
        Some(Value::Object(inner)) if path.1.index(3) > 0 && !inner.is_empty() => {
            let keys: Vec<String> = inner.keys().cloned().collect();
            inner.insert(path.1.get(&keys).clone(), value);
        }
        Some(place) => *place = value,
        None => {}
    }
    key
}

/// The original's own sample as a tree.
fn sound() -> Value {
    serde_saphyr::from_str(DEA_YML).expect("the sample is YAML")
}

/// The errors, each of which names a key or says that the file as a whole is none.
fn errors(yaml: &str) -> Result<Vec<ConfigError>, TestCaseError> {
    let Err(errors) = AgentConfig::from_yaml(yaml) else { return Ok(Vec::new()) };
    prop_assert!(!errors.is_empty(), "refused without a reason: {yaml}");
    for error in &errors {
        prop_assert!(!error.problem.is_empty(), "{error:?}\n{yaml}");
        prop_assert!(!error.key.is_empty() || error.problem.starts_with("the file "), "{error:?}\n{yaml}");
    }
    Ok(errors)
}

proptest! {
    #[test]
    fn one_wrong_value_is_told_by_its_key(path in any::<(Index, Index)>(), value in any_value()) {
        let mut tree = sound();
        let key = misplace(&mut tree, path, value);
        // JSON is YAML.
        let yaml = tree.to_string();
        let told = errors(&yaml)?;
        // Two spellings of one thing are told by the first.
        let about_bus = key.starts_with("nats") && told.iter().any(|error| error.key.starts_with("nats"));
        let named = told.iter().any(|error| error.key.split('.').next() == Some(key.as_str()));
        prop_assert!(told.is_empty() || named || about_bus, "`{key}` is wrong, told is {told:?}\n{yaml}");
    }

    #[test]
    fn several_mistakes_and_no_panic(mistakes in prop::collection::vec((any::<(Index, Index)>(), any_value()), 2..6)) {
        let mut tree = sound();
        for (path, value) in mistakes {
            misplace(&mut tree, path, value);
        }
        errors(&tree.to_string())?;
    }

    #[test]
    fn any_text_is_read_or_refused(text in prop_oneof![any::<String>(), "([a-z&*!<:>|%@{}\\[\\],#'\"\n -]|base_dir|nats_uri: ){0,60}"]) {
        errors(&text)?;
    }
}
