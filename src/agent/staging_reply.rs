//! Which keys the replies to a staging request have: Cloud Controllers of each era know theirs, and most take all.

use dewar_protocol::{SetupReply, StagingReply};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::config::StagingReplyKeys;

/// What both replies had until 2014.
const CLASSIC: [&str; 5] = ["task_id", "task_streaming_log_url", "detected_buildpack", "error", "droplet_sha1"];

/// What the first reply has had since.
const MODERN_SETUP: [&str; 3] = ["task_id", "task_streaming_log_url", "error"];

/// The first reply.
pub(crate) fn setup(keys: StagingReplyKeys, reply: &SetupReply) -> Value {
    match keys {
        StagingReplyKeys::Superset => tree(reply),
        StagingReplyKeys::Modern => only(&MODERN_SETUP, reply),
        StagingReplyKeys::Classic => only(&CLASSIC, reply),
    }
}

/// The second reply.
pub(crate) fn staged(keys: StagingReplyKeys, reply: &StagingReply) -> Value {
    match keys {
        StagingReplyKeys::Superset => tree(reply),
        StagingReplyKeys::Classic => only(&CLASSIC, reply),
        StagingReplyKeys::Modern => {
            let mut tree = tree(reply);
            if let Value::Object(keys) = &mut tree {
                keys.remove("task_streaming_log_url");
                if reply.error.is_none() {
                    keys.remove("error");
                }
            }
            tree
        }
    }
}

fn tree<T: Serialize>(reply: &T) -> Value {
    serde_json::to_value(reply).expect("a message of texts has a JSON form")
}

fn only<T: Serialize>(keys: &[&str], reply: &T) -> Value {
    let Value::Object(tree) = tree(reply) else { return Value::Null };
    Value::Object(tree.into_iter().filter(|(key, _)| keys.contains(&key.as_str())).collect::<Map<_, _>>())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use dewar_protocol::{DropletSha1, Secret};
    use serde_json::json;

    use super::*;

    const SHA1: &str = "2fd4e1c67a2d28fced849ee1bb76e7391b93eb12";

    fn set_up() -> SetupReply {
        let task_streaming_log_url = Some(Secret("http://files/log".to_owned()));
        SetupReply { task_id: "t1".into(), task_streaming_log_url, detected_buildpack: None, error: None, droplet_sha1: None }
    }

    fn reply(error: Option<&str>) -> StagingReply {
        StagingReply {
            task_id: "t1".into(),
            task_streaming_log_url: None,
            detected_buildpack: Some("Ruby".to_owned()),
            buildpack_key: Some("key".to_owned()),
            droplet_sha1: Some(DropletSha1::parse(SHA1).unwrap()),
            detected_start_command: Some("run".to_owned()),
            procfile: Some(BTreeMap::from([("web".to_owned(), "run".to_owned())])),
            app_id: Some("shop".into()),
            error: error.map(str::to_owned),
            error_info: None,
        }
    }

    #[test]
    fn late_controllers_get_what_they_know() {
        let setup = setup(StagingReplyKeys::Modern, &set_up());
        assert_eq!(setup, json!({ "task_id": "t1", "task_streaming_log_url": "http://files/log", "error": null }));
        let mut expected = json!({
            "task_id": "t1", "detected_buildpack": "Ruby", "buildpack_key": "key", "droplet_sha1": SHA1,
            "detected_start_command": "run", "procfile": { "web": "run" }, "app_id": "shop",
        });
        assert_eq!(staged(StagingReplyKeys::Modern, &reply(None)), expected);
        expected["error"] = json!("no");
        assert_eq!(staged(StagingReplyKeys::Modern, &reply(Some("no"))), expected);
    }

    #[test]
    fn early_controllers_get_the_same_five_keys_twice() {
        let mut expected = json!({
            "task_id": "t1", "task_streaming_log_url": "http://files/log", "detected_buildpack": null, "error": null, "droplet_sha1": null,
        });
        assert_eq!(setup(StagingReplyKeys::Classic, &set_up()), expected);
        expected["task_streaming_log_url"] = Value::Null;
        (expected["detected_buildpack"], expected["droplet_sha1"]) = (json!("Ruby"), json!(SHA1));
        assert_eq!(staged(StagingReplyKeys::Classic, &reply(None)), expected);
    }

    #[test]
    fn who_is_not_known_gets_all() {
        let keys = |value: Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        let mut classic = CLASSIC.map(str::to_owned).to_vec();
        classic.sort();
        assert_eq!(keys(setup(StagingReplyKeys::Superset, &set_up())), classic);
        let superset = staged(StagingReplyKeys::Superset, &reply(None));
        for reply in [staged(StagingReplyKeys::Classic, &reply(None)), staged(StagingReplyKeys::Modern, &reply(None))] {
            assert!(keys(reply).iter().all(|key| superset.get(key).is_some()));
        }
        assert_eq!((superset.get("error"), superset.get("error_info")), (Some(&Value::Null), None));
    }
}
