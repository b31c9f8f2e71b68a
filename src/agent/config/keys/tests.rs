use std::collections::BTreeSet;

use serde_json::{Map, json};

use super::*;
use crate::config::AgentConfig;
use crate::config::check::{WITHOUT_EFFECT, read};
use crate::config::ignored;
use crate::config::reader::{Findings, Reader};

/// Every key of the table with a value: its example, or its default.
fn everything() -> Value {
    let (least, _) = AgentConfig::from_yaml(LEAST).unwrap();
    let mut tree = least.effective.clone();
    for (path, example, _) in KEYS.iter().filter(|(_, example, _)| !example.is_empty()) {
        let mut place = &mut tree;
        for name in path.split('.') {
            place = place.as_object_mut().expect("a section").entry(name).or_insert_with(|| Value::Object(Map::new()));
        }
        *place = serde_saphyr::from_str(example).unwrap_or_else(|error| panic!("{path}: {error}"));
    }
    tree
}

#[test]
fn each_key_that_is_read_is_described_and_each_that_is_described_is_read() {
    let mut reader = Reader::new(everything());
    read(&mut reader);
    let described: BTreeSet<&str> = KEYS.iter().map(|(path, ..)| *path).collect();
    assert_eq!(described.len(), KEYS.len(), "a key is described twice");
    let missing: Vec<_> = reader.known().iter().filter(|key| !described.contains(*key)).collect();
    assert_eq!(missing, Vec::<&&str>::new(), "these keys are read, but not described in the table");
    let Findings { unread, effective, .. } = reader.finish();
    assert_eq!(unread, Vec::<String>::new(), "these keys are described, but nobody reads them");
    for (path, example, meaning) in KEYS {
        assert!(meaning.ends_with('.'), "{path}: what does it mean?");
        let value = path.split('.').try_fold(&effective, |value, name| value.get(name));
        assert!(value.is_some() || !example.is_empty(), "{path} has neither a default nor an example");
        assert!(!WITHOUT_EFFECT.contains(path), "{path} has an effect");
    }
}

#[test]
fn what_is_printed_is_a_configuration_with_nothing_but_defaults() {
    let printed = AgentConfig::annotated_defaults();
    let (config, warnings) = AgentConfig::from_yaml(&printed).unwrap_or_else(|errors| panic!("{errors:?} in\n{printed}"));
    assert_eq!(warnings, Vec::<String>::new());
    let (least, _) = AgentConfig::from_yaml(LEAST).unwrap();
    assert_eq!(config.effective_yaml(), least.effective_yaml());
    for text in
        ["\nintervals:\n  # Seconds between heartbeats;", "\n  heartbeat: 10.0\n", "\n# local_ip: 10.0.16.23\n", "\n  tls:\n    # Auth"]
    {
        assert!(printed.contains(text), "{text:?} is not in\n{printed}");
    }
    for (path, ..) in KEYS {
        let name = path.rsplit('.').next().unwrap();
        assert!(printed.contains(&format!(" {name}: ")) || printed.contains(&format!("\n{name}: ")), "{path} is missing");
    }
}

#[test]
fn keys_without_effect_still_have_to_be_what_the_dea_took() {
    let check = |tree: Value| {
        let mut reader = Reader::new(tree);
        let given = ignored::skip(&mut reader, &["hooks", "post_setup_hook", "bind_mounts", "instance.nproc_limit", "dea_ruby"]);
        let errors: Vec<String> = reader.finish().errors.iter().map(ToString::to_string).collect();
        (given, errors)
    };
    let good = json!({
        "hooks": { "before_start": "/hook" }, "post_setup_hook": "export A=1", "instance": { "nproc_limit": 512 }, "dea_ruby": null,
        "bind_mounts": [{ "src_path": "/a" }, { "src_path": "/b", "dst_path": "/c", "mode": "rw" }],
    });
    assert_eq!(check(good), (vec!["hooks", "post_setup_hook", "bind_mounts", "instance.nproc_limit"], vec![]));
    assert_eq!(check(json!({})), (vec![], vec![]));
    let bad = json!({
        "hooks": { "after_stop": 1 }, "post_setup_hook": ["x"], "instance": { "nproc_limit": "many" }, "dea_ruby": 1,
        "bind_mounts": [{ "src_path": "/a", "mode": "w" }],
    });
    assert_eq!(
        check(bad).1,
        [
            "`bind_mounts` must be a list of sections with `src_path`, maybe `dst_path`, and maybe `mode` ro or rw",
            "`dea_ruby` must be a text",
            "`hooks.after_stop` must be a text",
            "`instance.nproc_limit` must be a whole number",
            "`post_setup_hook` must be a text",
        ]
    );
}
