//! Configurations with arbitrary mistakes in them: each mistake is told with its key, and nothing panics.

use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Value, json};

use super::*;

fn sound() -> Value {
    json!({
        "status": {"port": 8082, "user": "admin", "pass": "1234"},
        "nats_servers": ["nats://a:4222"],
        "nats": {"user": "anna", "password": "s3cret", "tls": {"ca": "/ca.pem", "cert": "/cert.pem", "key": "/key.pem"}},
        "port": 8081, "ip": "10.0.16.2", "index": 3, "endpoint_timeout": 60, "endpoint_dial_timeout": "5s", "max_idle_conns_per_host": 10,
        "prune_stale_droplets_interval": "10s", "droplet_stale_threshold": "2m", "publish_start_message_interval": 15,
        "balancing_algorithm": "least-connection", "force_forwarded_proto_https": true, "sanitize_forwarded_proto": false,
        "secure_cookies": true, "sticky_session_cookie_names": ["a", "b"], "access_log": {"file": "/a.log", "enable_streaming": false},
        "backends": {"max_conns": 500}, "max_connections": 100, "max_headers": 10, "max_header_bytes": 10000, "max_routes": 10,
        "frontend_idle_timeout": 1.5, "tunnel_idle_timeout": "1h", "drain_timeout": "1m30s",
    })
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        prop::sample::select(vec!["1s", "-1s", "1e400", "999999999999h", "0", "::1", "a:b@c", "tls://x", "/dev/null", "nats://"])
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map("[a-z]{0,5}|host|port|user|pass", inner, 0..3)
                .prop_map(|map| Value::Object(map.into_iter().collect::<Map<_, _>>())),
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

fn check(yaml: &str) -> Result<(), TestCaseError> {
    if let Err(errors) = RouterConfig::from_yaml(yaml) {
        prop_assert!(!errors.is_empty(), "refused without a reason: {yaml}");
        for ConfigError { key, problem } in errors {
            prop_assert!(!key.is_empty() && !problem.is_empty(), "`{key}`: {problem}\n{yaml}");
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn one_wrong_value_is_told_by_its_key(path in any::<(Index, Index)>(), value in any_value()) {
        let mut tree = sound();
        let key = misplace(&mut tree, path, value);
        // JSON is YAML.
        let yaml = tree.to_string();
        check(&yaml)?;
        if let Err(errors) = RouterConfig::from_yaml(&yaml) {
            // A list of servers under `nats`, or none at all, is told as a lack of servers.
            let told = errors.iter().any(|error| error.key.starts_with(&key) || key.starts_with("nats"));
            let about_spans = matches!(key.as_str(), "droplet_stale_threshold" | "publish_start_message_interval");
            prop_assert!(told || about_spans, "`{key}` is wrong, told is {errors:?}\n{yaml}");
        }
    }

    #[test]
    fn several_mistakes_and_no_panic(mistakes in prop::collection::vec((any::<(Index, Index)>(), any_value()), 2..6)) {
        let mut tree = sound();
        for (path, value) in mistakes {
            misplace(&mut tree, path, value);
        }
        check(&tree.to_string())?;
    }

    #[test]
    fn any_text_is_read_or_refused(text in prop_oneof![any::<String>(), "([a-z&*!<:>|%@{}\\[\\],#'\"\n -]|nats|port: ){0,60}"]) {
        check(&text)?;
    }
}
