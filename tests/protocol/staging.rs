//! Staging.

use std::collections::BTreeMap;

use dewar_protocol::{
    AdminBuildpack, AppId, CellId, DropletSha1, EgressRule, ErrorInfo, Mib, Secret, SetupReply, StagingAdvertise, StagingFailure,
    StagingMessage, StagingMeta, StagingProperties, StagingReply, StagingStop, TaskId,
};

use crate::start::{MINIMAL, minimal};
use crate::{golden, refused, understood};

#[test]
fn advertise() {
    let advertise = StagingAdvertise {
        id: CellId::from("0c8f"),
        stacks: vec!["lucid64".to_owned()],
        available_memory: Mib(5888),
        available_disk: Mib(30208),
    };
    golden("§1.21", r#"{"id":"0c8f","stacks":["lucid64"],"available_memory":5888,"available_disk":30208}"#, &advertise);
    let of_2013 = r#"{"id":"0c8f","stacks":["lucid64"],"available_memory":5888}"#;
    understood("§1.21", of_2013, &StagingAdvertise { available_disk: Mib(0), ..advertise });
}

const SMALLEST: &str = r#"{"app_id":"7b1d","task_id":"b5d3","download_uri":"http://cc/bits","upload_uri":"http://cc/droplet"}"#;

fn smallest() -> StagingMessage {
    StagingMessage {
        app_id: AppId::from("7b1d"),
        task_id: TaskId::from("b5d3"),
        properties: StagingProperties::default(),
        download_uri: Secret("http://cc/bits".to_owned()),
        upload_uri: Secret("http://cc/droplet".to_owned()),
        buildpack_cache_download_uri: None,
        buildpack_cache_upload_uri: None,
        admin_buildpacks: vec![],
        start_message: None,
        stack: None,
        egress_network_rules: vec![],
        memory_limit: None,
        disk_limit: None,
    }
}

#[test]
fn request_as_a_cloud_controller_sends_it() {
    let text = format!(
        r#"{{"app_id":"7b1d","task_id":"b5d3",
        "properties":{{"services":[],"resources":{{"memory":256,"disk":1024,"fds":16384}},"environment":["BUNDLE_WITHOUT=test"],
            "meta":{{"command":null}},"buildpack_key":null}},
        "download_uri":"http://cc/bits","upload_uri":"http://cc/droplet",
        "buildpack_cache_download_uri":"http://cc/cache/down","buildpack_cache_upload_uri":"http://cc/cache/up",
        "admin_buildpacks":[{{"url":"http://up:secret@cc/buildpack","key":"91f2_aa07"}}],
        "start_message":{MINIMAL},"stack":"lucid64","accepts_http":true,
        "egress_network_rules":[{{"protocol":"all","destination":"10.0.0.1"}}],"memory_limit":1024,"disk_limit":4096}}"#
    );
    let message = StagingMessage {
        properties: StagingProperties { environment: vec![Secret("BUNDLE_WITHOUT=test".to_owned())], ..StagingProperties::default() },
        buildpack_cache_download_uri: Some(Secret("http://cc/cache/down".to_owned())),
        buildpack_cache_upload_uri: Some(Secret("http://cc/cache/up".to_owned())),
        admin_buildpacks: vec![AdminBuildpack { url: Secret("http://up:secret@cc/buildpack".to_owned()), key: "91f2_aa07".to_owned() }],
        start_message: Some(minimal()),
        stack: Some("lucid64".to_owned()),
        egress_network_rules: vec![EgressRule {
            protocol: "all".to_owned(),
            destination: "10.0.0.1".to_owned(),
            ports: None,
            icmp_type: None,
            code: None,
            log: None,
        }],
        memory_limit: Some(Mib(1024)),
        disk_limit: Some(Mib(4096)),
        ..smallest()
    };
    understood("§3.2", &text, &message);
    let shown = format!("{message:?}");
    assert!(!shown.contains("http://") && !shown.contains("BUNDLE"), "{shown}");
}

#[test]
fn request_as_we_send_it() {
    let properties = StagingProperties {
        meta: StagingMeta { command: Some("serve --all".to_owned()) },
        buildpack: Some("static".to_owned()),
        ..StagingProperties::default()
    };
    let text = r#"{"app_id":"7b1d","task_id":"b5d3",
        "properties":{"services":[],"environment":[],"meta":{"command":"serve --all"},"buildpack":"static"},
        "download_uri":"http://cc/bits","upload_uri":"http://cc/droplet","buildpack_cache_download_uri":null,
        "buildpack_cache_upload_uri":null,"admin_buildpacks":[],"start_message":null,"stack":null,"egress_network_rules":[],
        "memory_limit":null,"disk_limit":null}"#;
    golden("§3.2", text, &StagingMessage { properties, ..smallest() });
}

#[test]
fn request_with_much_left_out() {
    understood("§3.2", SMALLEST, &smallest());
    for empty in ["null", "{}", "{ }"] {
        understood("§3.2", &SMALLEST.replacen('{', &format!(r#"{{"start_message":{empty},"#), 1), &smallest());
    }
    let nulls = r#"{"properties":null,"admin_buildpacks":null,"egress_network_rules":null,"#;
    understood("§3.2", &SMALLEST.replacen('{', nulls, 1), &smallest());
    let nulls = r#"{"properties":{"services":null,"environment":null,"meta":null,"buildpack":null,"buildpack_git_url":null},"#;
    understood("§3.2", &SMALLEST.replacen('{', nulls, 1), &smallest());
}

#[test]
fn request_that_cannot_be_understood() {
    for key in ["app_id", "task_id", "download_uri", "upload_uri"] {
        let mut keys: serde_json::Value = serde_json::from_str(SMALLEST).unwrap();
        keys.as_object_mut().unwrap().remove(key);
        refused::<StagingMessage>("§3.2", &[(&keys.to_string(), &format!("missing field `{key}`"))]);
    }
    let with = |more: &str| SMALLEST.replacen('{', &format!("{{{more},"), 1);
    let cases = [
        (with(r#""start_message":{"droplet":"x"}"#), "start_message: missing field `index`"),
        (with(r#""start_message":{"droplet":"x","index":"one"}"#), "start_message.index: invalid type: string"),
        (with(r#""start_message":[]"#), "start_message: invalid type: sequence, expected an object or null"),
        (with(r#""admin_buildpacks":[{"url":"u"}]"#), "admin_buildpacks[0]: missing field `key`"),
        (with(r#""properties":{"environment":{"A":"b"}}"#), "properties.environment: invalid type: map"),
        (with(r#""memory_limit":"1G""#), "memory_limit: invalid type: string"),
    ];
    for (text, complaint) in cases {
        refused::<StagingMessage>("§3.2", &[(&text, complaint)]);
    }
    assert_eq!(crate::decode::<StagingMessage>(&with(&format!(r#""start_message":{MINIMAL}"#))).unwrap().start_message, Some(minimal()));
}

#[test]
fn first_reply() {
    let reply = SetupReply {
        task_id: TaskId::from("b5d3"),
        task_streaming_log_url: None,
        detected_buildpack: None,
        error: None,
        droplet_sha1: None,
    };
    let text = r#"{"task_id":"b5d3","task_streaming_log_url":null,"detected_buildpack":null,"error":null,"droplet_sha1":null}"#;
    golden("§3.5, the five keys of 2013", text, &reply);
    let of_late = r#"{"task_id":"b5d3","task_streaming_log_url":"http://8e1c/log","error":"no such buildpack"}"#;
    let url = Some(Secret("http://8e1c/log".to_owned()));
    understood("§3.5", of_late, &SetupReply { task_streaming_log_url: url, error: Some("no such buildpack".to_owned()), ..reply });
}

fn second_reply() -> StagingReply {
    StagingReply {
        task_id: TaskId::from("b5d3"),
        task_streaming_log_url: None,
        detected_buildpack: None,
        buildpack_key: None,
        droplet_sha1: None,
        detected_start_command: None,
        procfile: None,
        app_id: Some(AppId::from("7b1d")),
        error: None,
        error_info: None,
    }
}

#[test]
fn second_reply_of_success() {
    let reply = StagingReply {
        detected_buildpack: Some("Ruby/Rack".to_owned()),
        buildpack_key: Some("91f2_aa07".to_owned()),
        droplet_sha1: Some(DropletSha1::parse("2fd4e1c67a2d28fced849ee1bb76e7391b93eb12").unwrap()),
        detected_start_command: Some("bundle exec rackup -p $PORT".to_owned()),
        procfile: Some(BTreeMap::from([("web".to_owned(), "bundle exec rackup -p $PORT".to_owned())])),
        ..second_reply()
    };
    let text = r#"{"task_id":"b5d3","task_streaming_log_url":null,"detected_buildpack":"Ruby/Rack","buildpack_key":"91f2_aa07",
        "droplet_sha1":"2fd4e1c67a2d28fced849ee1bb76e7391b93eb12","detected_start_command":"bundle exec rackup -p $PORT",
        "procfile":{"web":"bundle exec rackup -p $PORT"},"app_id":"7b1d","error":null}"#;
    golden("§3.5: `error` is there, `error_info` is not", text, &reply);
}

#[test]
fn second_reply_of_failure() {
    let message = "An application could not be detected by any available buildpack".to_owned();
    let reply = StagingReply {
        error: Some("Script exited with status 1".to_owned()),
        error_info: Some(ErrorInfo { kind: StagingFailure::NoAppDetectedError, message }),
        ..second_reply()
    };
    let text = r#"{"task_id":"b5d3","task_streaming_log_url":null,"detected_buildpack":null,"buildpack_key":null,"droplet_sha1":null,
        "detected_start_command":null,"procfile":null,"app_id":"7b1d","error":"Script exited with status 1",
        "error_info":{"type":"NoAppDetectedError","message":"An application could not be detected by any available buildpack"}}"#;
    golden("§3.5", text, &reply);
    let stopped = r#"{"task_id":"b5d3","error":"Error staging: task stopped"}"#;
    understood("§3.10", stopped, &StagingReply { error: Some("Error staging: task stopped".to_owned()), app_id: None, ..second_reply() });
    let names = [
        (StagingFailure::NoAppDetectedError, "NoAppDetectedError"),
        (StagingFailure::BuildpackCompileFailed, "BuildpackCompileFailed"),
        (StagingFailure::BuildpackReleaseFailed, "BuildpackReleaseFailed"),
        (StagingFailure::StagingError, "StagingError"),
    ];
    for (kind, name) in names {
        let info = ErrorInfo { kind, message: String::new() };
        golden("§3.5", &format!(r#"{{"type":"{name}","message":""}}"#), &info);
    }
}

#[test]
fn stop() {
    golden("§3.10", r#"{"app_id":"7b1d"}"#, &StagingStop { app_id: AppId::from("7b1d") });
    refused::<StagingStop>("§3.10", &[("{}", "missing field `app_id`"), (r#"{"app_id":null}"#, "app_id: invalid type: null")]);
}
