//! What an agent leaves for the next one.

use dewar_protocol::{
    AppId, DropletSha1, EgressRule, Environment, InstanceId, InstanceState, Limits, Mib, SNAPSHOT_VERSION, Secret, Service, Snapshot,
    SnapshotInstance, SnapshotTask, StagingMessage, StagingProperties, StagingReply, StartMessage, TaskId, UnixSeconds,
};
use serde_json::json;

use crate::{refused, understood};

/// As the first version wrote it: every later one must resume from it, so this text never changes.
const VERSION_1: &str = include_str!("snapshot_v1.json");

const APP: &str = "7b1d9c52-3f0e-4a86-b2c4-95e1d0a7f3c8";

fn services() -> Vec<Service> {
    vec![Service {
        name: "logs".to_owned(),
        label: "user-provided".to_owned(),
        credentials: Some(Secret(json!({"uri": "amqp://u:p@10.0.30.4"}))),
        plan: None,
        plan_option: None,
        tags: None,
        syslog_drain_url: Some(Secret("syslog://10.0.30.5:514".to_owned())),
    }]
}

fn start_message() -> StartMessage {
    StartMessage {
        app_id: AppId::from(APP),
        version: "v1".to_owned(),
        uris: vec!["shop.example.net".to_owned()],
        sha1: Some(sha1()),
        droplet_uri: Some(Secret("http://up:secret@cc.internal/droplet".to_owned())),
        limits: limits(),
        services: services(),
        env: vec![Secret("GREETING=good day".to_owned()), Secret("LATER=$GREETING, Sir".to_owned())],
        health_check_timeout: Some(120),
        vcap_application: json!({"application_name": "shop"}).as_object().cloned(),
        egress_network_rules: vec![EgressRule {
            protocol: "tcp".to_owned(),
            destination: "10.0.30.0/24".to_owned(),
            ports: Some("5672".to_owned()),
            icmp_type: None,
            code: None,
            log: None,
        }],
        stack: Some("cflinuxfs2".to_owned()),
        ..crate::start::minimal()
    }
}

fn limits() -> Limits {
    Limits { mem: Mib(64), disk: Mib(64), fds: 256 }
}

fn sha1() -> DropletSha1 {
    DropletSha1::parse("2fd4e1c67a2d28fced849ee1bb76e7391b93eb12").expect("forty hexadecimal digits")
}

fn instance() -> SnapshotInstance {
    let start = start_message();
    SnapshotInstance {
        cc_partition: "default".to_owned(),
        instance_id: InstanceId::from("3c9a7e5f1b2d4860a1c3e5f708192a3b"),
        instance_index: 0,
        private_instance_id: "c1d2".repeat(16),
        warden_handle: InstanceId::from("17a0b2c4d6e8f00112233445566778aa"),
        limits: limits(),
        environment: Environment::of(&start.env),
        services: services(),
        health_check_timeout: Some(120),
        application_id: AppId::from(APP),
        application_version: "v2".to_owned(),
        application_name: "shop".to_owned(),
        application_uris: vec!["shop.example.net".to_owned(), "www.example.net".to_owned()],
        droplet_sha1: Some(sha1()),
        droplet_uri: start.droplet_uri.clone(),
        start_command: None,
        state: InstanceState::Running,
        warden_job_id: None,
        warden_container_path: Some("/var/vcap/data/dea_next/instances/17a0b2c4d6e8f00112233445566778aa".to_owned()),
        warden_host_ip: Some("127.0.0.1".to_owned()),
        warden_container_ip: Some("127.0.0.1".to_owned()),
        instance_host_port: Some(61_004),
        instance_container_port: Some(61_004),
        syslog_drain_urls: vec![Secret("syslog://10.0.30.5:514".to_owned())],
        state_starting_timestamp: Some(UnixSeconds(1_381_932_197.125)),
        state_timestamp: UnixSeconds(1_381_932_200.5),
        start_message: start,
    }
}

fn task() -> SnapshotTask {
    SnapshotTask {
        staging_message: StagingMessage {
            app_id: AppId::from("9a8b"),
            task_id: TaskId::from("b5d3"),
            properties: StagingProperties { environment: vec![Secret("A=b".to_owned())], ..StagingProperties::default() },
            download_uri: Secret("http://cc.internal/bits".to_owned()),
            upload_uri: Secret("http://cc.internal/droplet".to_owned()),
            buildpack_cache_download_uri: None,
            buildpack_cache_upload_uri: None,
            admin_buildpacks: vec![],
            start_message: None,
            stack: Some("cflinuxfs2".to_owned()),
            egress_network_rules: vec![],
            memory_limit: Some(Mib(256)),
            disk_limit: Some(Mib(512)),
        },
        warden_container_path: None,
        warden_job_id: None,
        syslog_drain_urls: vec![],
        by_http: false,
        reply_to: Some("bus/inbox.staging".to_owned()),
        reply: None,
    }
}

#[test]
fn the_first_version_is_understood() {
    let snapshot = Snapshot { version: 1, time: UnixSeconds(1_381_932_300.25), instances: vec![instance()], staging_tasks: vec![task()] };
    understood("§8", VERSION_1, &snapshot);
    let shown = format!("{snapshot:?}");
    for secret in ["good day", "amqp://", "secret@", "syslog://"] {
        assert!(!shown.contains(secret), "{secret} is in {shown}");
    }
}

/// What the original wrote, and what its log agent reads, is there under the same name and of the same type.
#[test]
fn every_key_of_the_original_is_written() {
    let snapshot = Snapshot {
        version: SNAPSHOT_VERSION,
        time: UnixSeconds(1_381_932_300.25),
        instances: vec![instance()],
        staging_tasks: vec![task()],
    };
    let written = serde_json::to_value(&snapshot).unwrap();
    assert_eq!(written["time"], 1_381_932_300.25);
    let original = json!({
        "cc_partition": "default", "instance_id": "3c9a7e5f1b2d4860a1c3e5f708192a3b", "instance_index": 0,
        "private_instance_id": "c1d2".repeat(16), "warden_handle": "17a0b2c4d6e8f00112233445566778aa",
        "limits": {"mem": 64, "disk": 64, "fds": 256}, "health_check_timeout": 120,
        "environment": {"GREETING": "good day", "LATER": "$GREETING, Sir"}, "services": services(),
        "application_id": APP, "application_version": "v2", "application_name": "shop",
        "application_uris": ["shop.example.net", "www.example.net"],
        "droplet_sha1": "2fd4e1c67a2d28fced849ee1bb76e7391b93eb12", "droplet_uri": "http://up:secret@cc.internal/droplet",
        "start_command": null, "state": "RUNNING", "warden_job_id": null,
        "warden_container_path": "/var/vcap/data/dea_next/instances/17a0b2c4d6e8f00112233445566778aa",
        "warden_host_ip": "127.0.0.1", "warden_container_ip": "127.0.0.1", "instance_host_port": 61004,
        "instance_container_port": 61004, "syslog_drain_urls": ["syslog://10.0.30.5:514"],
        "state_starting_timestamp": 1_381_932_197.125,
    });
    for (key, value) in original.as_object().unwrap() {
        assert_eq!(written["instances"][0].get(key), Some(value), "{key}");
    }
    let task = &written["staging_tasks"][0];
    assert_eq!(task["staging_message"]["app_id"], "9a8b");
    for key in ["warden_container_path", "warden_job_id", "syslog_drain_urls"] {
        assert!(task.get(key).is_some(), "{key}");
    }
    let read: Snapshot = serde_json::from_value(written).unwrap();
    assert_eq!(read, snapshot);
}

#[test]
fn variables_keep_their_order_and_their_repetitions() {
    let list = ["A=1", "B=$A=x", "A=2", "EMPTY"].map(|variable| Secret(variable.to_owned()));
    let environment = Environment::of(&list);
    let text = serde_json::to_string(&environment).unwrap();
    assert_eq!(text, r#"{"A":"1","B":"$A=x","A":"2","EMPTY":""}"#);
    assert_eq!(serde_json::from_str::<Environment>(&text).unwrap(), environment);
}

#[test]
fn what_must_be_there() {
    let task = r#"{"warden_container_path":null,"warden_job_id":null,"syslog_drain_urls":[],"by_http":false,"reply_to":null}"#;
    refused::<SnapshotTask>("§8", &[(task, "missing field `staging_message`")]);
    let cases = [
        (r#"{"time":1.5,"instances":[],"staging_tasks":[]}"#, "missing field `version`"),
        (r#"{"version":1,"time":1.5,"staging_tasks":[]}"#, "missing field `instances`"),
        (r#"{"version":1,"time":1.5,"instances":[{}],"staging_tasks":[]}"#, "instances[0]: missing field"),
        (r#"{"version":1,"time":1.5,"instances":[],"staging_tasks":[{}]}"#, "staging_tasks[0]: missing field"),
    ];
    refused::<Snapshot>("§8", &cases);
}

#[test]
fn a_reply_is_saved_as_it_is_told() {
    let text = r#"{"task_id":"b5d3","task_streaming_log_url":null,"detected_buildpack":"wasm","buildpack_key":null,
        "droplet_sha1":"2fd4e1c67a2d28fced849ee1bb76e7391b93eb12","detected_start_command":"run","procfile":{"web":"run"},
        "app_id":"9a8b","error":null}"#;
    let reply: StagingReply = serde_json::from_str(text).unwrap();
    let told = SnapshotTask { by_http: true, reply_to: None, reply: Some(reply.clone()), ..task() };
    let written = serde_json::to_value(&told).unwrap();
    assert_eq!(written["reply"], serde_json::to_value(reply).unwrap());
    assert_eq!(serde_json::from_value::<SnapshotTask>(written).unwrap(), told);
    assert_eq!(serde_json::to_value(task()).unwrap().get("reply"), None, "absent before the end");
}
