//! Messages that anybody may send: decoding never panics, a refusal names the field that is to blame, and what is understood means the
//! same when it is written and read again.

use std::fmt::Debug;

use dewar_protocol::{
    Advertise, ComponentAnnounce, DropletExited, FindDroplet, FoundInstance, Heartbeat, Hello, LogLine, LogRequest, RouteRegistration,
    RouterStart, SetupReply, Shutdown, Snapshot, StagingAdvertise, StagingMessage, StagingReply, StagingStop, StartMessage, Status, Stop,
    Update,
};
use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::decode;

/// Up to here a whole number that is written as a floating-point number, with its `.0`, is read as the same: all its digits together
/// are less than 2⁵³.
const EXACT: i64 = 1 << 49;

/// Any JSON of little depth. Fractions are binary ones for the same reason.
fn any_json() -> impl Strategy<Value = Value> {
    let numbers = prop_oneof![
        (-EXACT..=EXACT).prop_map(Value::from),
        (-1000..1000_i32).prop_map(|eighths| Value::from(f64::from(eighths) / 8.0)),
        prop::sample::select(vec![json!(0), json!(-1), json!(1), json!(65_536), json!(4_294_967_296_u64)]),
    ];
    let texts = prop_oneof!["[a-z0-9./:-]{0,12}", any::<String>(), Just("RUNNING".to_owned()), Just("a".repeat(40))];
    let leaf = prop_oneof![Just(Value::Null), any::<bool>().prop_map(Value::from), numbers, texts.prop_map(Value::from)];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z_]{0,8}", inner, 0..4).prop_map(|map| Value::Object(map.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// What is done to one place of a message.
#[derive(Debug, Clone)]
enum Change {
    Replace(Value),
    Remove,
    Add(String, Value),
}

fn any_change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => any_json().prop_map(Change::Replace),
        1 => Just(Change::Remove),
        1 => ("[a-z_]{1,12}", any_json()).prop_map(|(key, value)| Change::Add(key, value)),
    ]
}

/// Changes one place below `value` and returns the key of the outermost object that leads there.
fn change(value: &mut Value, path: &[prop::sample::Index], change: Change) -> Option<String> {
    let Value::Object(fields) = value else { return None };
    if let Change::Add(key, added) = change {
        fields.insert(key.clone(), added);
        return Some(key);
    }
    let keys: Vec<String> = fields.keys().cloned().collect();
    let (first, rest) = path.split_first()?;
    let key = first.get(&keys).clone();
    change_below(fields, &key, rest, change);
    Some(key)
}

fn change_below(fields: &mut Map<String, Value>, key: &str, path: &[prop::sample::Index], change: Change) {
    let deeper = fields.get_mut(key).and_then(|value| match value {
        Value::Object(inner) if !inner.is_empty() => Some(inner),
        Value::Array(items) => items.iter_mut().find_map(Value::as_object_mut).filter(|inner| !inner.is_empty()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => None,
    });
    if let (Some(inner), Some((first, rest))) = (deeper, path.split_first()) {
        let keys: Vec<String> = inner.keys().cloned().collect();
        let key: &String = first.get(&keys);
        return change_below(inner, key, rest, change);
    }
    match change {
        Change::Replace(new) => drop(fields.insert(key.to_owned(), new)),
        Change::Remove | Change::Add(..) => drop(fields.remove(key)),
    }
}

fn survives<T: Serialize + DeserializeOwned + PartialEq + Debug>(text: &str) -> Result<Result<(), String>, TestCaseError> {
    let message = match decode::<T>(text) {
        Ok(message) => message,
        Err(error) => return Ok(Err(error)),
    };
    let written = serde_json::to_string(&message).map_err(|error| TestCaseError::fail(error.to_string()))?;
    let again = decode::<T>(&written).map_err(|error| TestCaseError::fail(format!("{written}: {error}")))?;
    prop_assert_eq!(&again, &message, "{} became {}", text, written);
    prop_assert_eq!(serde_json::to_string(&again).unwrap_or_default(), written, "it is written the same");
    Ok(Ok(()))
}

/// The sample is a message, and so is what becomes of it under any change, or the refusal names the place.
fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(
    sample: &Value,
    path: &[prop::sample::Index],
    how: &Change,
    anything: &Value,
) -> Result<(), TestCaseError> {
    if let Err(error) = survives::<T>(&sample.to_string())? {
        return Err(TestCaseError::fail(format!("the sample is refused: {error}")));
    }
    let mut changed = sample.clone();
    if let Some(key) = change(&mut changed, path, how.clone())
        && let Err(error) = survives::<T>(&changed.to_string())?
    {
        prop_assert!(error.contains(&key), "{changed}: the refusal does not name `{key}`: {error}");
    }
    // Whether it is refused does not matter here, only that it is decided.
    let _ = survives::<T>(&anything.to_string())?;
    Ok(())
}

fn start() -> Value {
    json!({
        "droplet": "7b1d", "index": 0, "version": "v1", "name": "shop", "uris": ["shop.example.net"], "sha1": "a".repeat(40),
        "executableUri": "http://u:p@10.0.0.1/d", "cc_partition": "default", "limits": {"mem": 64, "disk": 64, "fds": 64},
        "services": [{"name": "db", "label": "pg", "credentials": {"uri": "pg://"}, "plan": "free", "tags": ["sql"]}], "env": ["A=b"],
        "start_command": "run", "health_check_timeout": 30, "vcap_application": {"name": "shop"},
        "egress_network_rules": [{"protocol": "tcp", "destination": "10.0.0.0/8", "ports": "80,443", "log": true}], "stack": "wasi",
    })
}

macro_rules! messages {
    ($($name:ident: $message:ty = $sample:expr;)*) => {
        proptest! {
            $(
                #[test]
                fn $name(
                    path in prop::collection::vec(any::<prop::sample::Index>(), 1..4),
                    how in any_change(),
                    anything in any_json(),
                ) {
                    check::<$message>(&$sample, &path, &how, &anything)?;
                }
            )*
        }
    };
}

messages! {
    hello: Hello = json!({"id": "0-a", "ip": "10.0.0.1", "version": "0.0.1"});
    status: Status = json!({"id": "0-a", "ip": "10.0.0.1", "version": "0.0.1", "max_memory": 1, "reserved_memory": 1, "used_memory": 1,
        "num_clients": null});
    advertise: Advertise = json!({"id": "0-a", "stacks": ["wasi"], "available_memory": 1, "available_disk": -1,
        "app_id_to_count": {"a": 2}, "placement_properties": {"zone": "z1"}, "url": null});
    shutdown: Shutdown = json!({"id": "0-a", "ip": "10.0.0.1", "version": "0.0.1", "app_id_to_count": {"a": 2}});
    stop: Stop = json!({"droplet": "7b1d", "version": "v", "instances": ["i"], "instance_ids": ["i"], "indices": [1], "states": ["RUNNING"]});
    stop_of_an_app: Stop = json!({"droplet": "7b1d"});
    update: Update = json!({"droplet": "7b1d", "uris": ["a.b"], "version": "v"});
    find_droplet: FindDroplet = json!({"droplet": "7b1d", "version": "v", "indices": [1], "states": ["RUNNING"], "path": null,
        "include_stats": true});
    found_instance: FoundInstance = json!({"dea": "0-a", "droplet": "7b1d", "version": "v", "instance": "i", "index": 0, "state": "RUNNING",
        "state_timestamp": 1.5, "staged": "/", "file_uri_v2": "http://", "stats": {"name": "n", "uris": ["a"], "host": "h", "port": 1,
        "uptime": 1, "mem_quota": 1, "disk_quota": 1, "fds_quota": 1, "usage": {"time": "t", "cpu": 0.5, "mem": 1, "disk": 1}}});
    heartbeat: Heartbeat = json!({"dea": "0-a", "droplets": [{"cc_partition": "default", "droplet": "7b1d", "version": "v", "instance": "i",
        "index": 0, "state": "CRASHED", "state_timestamp": 2.25}]});
    droplet_exited: DropletExited = json!({"cc_partition": "default", "droplet": "7b1d", "version": "v", "instance": "i", "index": 0,
        "reason": "CRASHED", "exit_status": 1, "exit_description": "d", "crash_timestamp": 5});
    component: ComponentAnnounce = json!({"type": "DEA", "index": 0, "uuid": "u", "host": "h:1", "credentials": ["u", "p"], "start": "s",
        "uptime": "0d"});
    log_request: LogRequest = json!({"droplet": "7b1d", "tail": 1, "follow_seconds": 1});
    log_line: LogLine = json!({"droplet": "7b1d", "source": "APP", "index": 0, "stream": "out", "timestamp": 1.5, "text": "t"});
    route: RouteRegistration = json!({"dea": "0-a", "app": "7b1d", "uris": ["a.b"], "host": "10.0.0.1", "port": 80, "tags": {"a": "b"},
        "private_instance_id": "i", "private_instance_index": "0", "stale_threshold_in_seconds": 120});
    router_start: RouterStart = json!({"id": "r", "hosts": ["10.0.0.1"], "minimumRegisterIntervalInSeconds": 20,
        "pruneThresholdInSeconds": 120});
    staging_advertise: StagingAdvertise = json!({"id": "0-a", "stacks": ["wasi"], "available_memory": 1, "available_disk": 1});
    staging: StagingMessage = json!({"app_id": "7b1d", "task_id": "t", "properties": {"services": [], "environment": ["A=b"],
        "meta": {"command": "c"}, "buildpack": "b"}, "download_uri": "http://", "upload_uri": "http://",
        "buildpack_cache_download_uri": "http://", "admin_buildpacks": [{"url": "http://", "key": "k"}], "start_message": start(),
        "stack": "wasi", "egress_network_rules": [], "memory_limit": 64, "disk_limit": 64});
    staging_setup: SetupReply = json!({"task_id": "t", "task_streaming_log_url": null, "detected_buildpack": null, "error": null,
        "droplet_sha1": null});
    staging_reply: StagingReply = json!({"task_id": "t", "task_streaming_log_url": null, "detected_buildpack": "b", "buildpack_key": "k",
        "droplet_sha1": "a".repeat(40), "detected_start_command": "c", "procfile": {"web": "run"}, "app_id": "7b1d", "error": "e",
        "error_info": {"type": "StagingError", "message": "m"}});
    staging_stop: StagingStop = json!({"app_id": "7b1d"});
    start_message: StartMessage = start();
    snapshot: Snapshot = serde_json::from_str::<Value>(include_str!("snapshot_v1.json")).unwrap();
}
