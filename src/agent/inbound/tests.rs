use std::collections::BTreeSet;

use super::*;

const START: &str = r#"{
    "droplet": 7, "index": 0, "version": "v1", "name": "shop", "uris": ["shop.example.net"],
    "sha1": "0123456789abcdef0123456789abcdef01234567", "executableUri": "http://user:hunter2@cc/droplet", "cc_partition": "default",
    "limits": {"mem": 64, "disk": 128, "fds": 16}, "services": [], "env": ["PASSWORD=hunter2"]
}"#;

const STAGING: &str = r#"{
    "app_id": "7", "task_id": "t", "download_uri": "http://cc/package", "upload_uri": "http://cc/droplet", "start_message": {}
}"#;

fn understood(topic: Topic, payload: &str) -> Inbound {
    decode(topic, payload.as_bytes()).unwrap_or_else(|malformed| panic!("{topic:?} {payload}: {malformed}"))
}

fn complaint(topic: Topic, payload: &str) -> String {
    decode(topic, payload.as_bytes()).expect_err(payload).to_string()
}

#[test]
fn every_topic_becomes_its_request() {
    let is = |topic, payload, wanted: fn(&Request) -> bool| match understood(topic, payload) {
        Inbound::Cell(request) => assert!(wanted(&request), "{topic:?} became {request:?}"),
        other => panic!("{topic:?} became {other:?}"),
    };
    is(Topic::Start, START, |request| matches!(request, Request::StartInstance(start) if start.app_id.as_str() == "7"));
    is(Topic::Stop, r#"{"droplet": "7"}"#, |request| matches!(request, Request::StopInstances(stop) if stop.whole_app));
    is(Topic::Update, r#"{"droplet": "7", "uris": ["a"]}"#, |request| matches!(request, Request::UpdateApp(_)));
    let find = r#"{"droplet": "7", "include_stats": true}"#;
    is(Topic::FindDroplet, find, |request| matches!(request, Request::FindInstances(find) if find.include_stats));
    is(Topic::Stage, STAGING, |request| matches!(request, Request::Stage(message) if message.start_message.is_none()));
    is(Topic::StagingStop, r#"{"app_id": "7"}"#, |request| matches!(request, Request::StopStaging(_)));
    is(
        Topic::RouterStart,
        r#"{"minimumRegisterIntervalInSeconds": 5}"#,
        |request| matches!(request, Request::RegisterRoutes(start) if start.minimum_register_interval_seconds == Some(5)),
    );
    assert_eq!(
        understood(Topic::Logs, r#"{"droplet": "7", "tail": 3}"#),
        Inbound::Logs(LogRequest { app_id: "7".into(), tail: 3, follow_seconds: 0 })
    );
    let buildpacks = understood(Topic::Buildpacks, r#"[{"url": "http://up:secret@cc/b.zip", "key": "k1"}]"#);
    let Inbound::Buildpacks(buildpacks) = buildpacks else { panic!("{buildpacks:?}") };
    assert_eq!((buildpacks.len(), buildpacks[0].key.as_str()), (1, "k1"));
}

#[test]
fn where_no_data_is_needed_none_is_looked_at() {
    let topics = [
        (Topic::Status, Request::ReportStatus),
        (Topic::Locate, Request::Locate),
        (Topic::StagingLocate, Request::LocateStager),
        (Topic::HealthManagerStart, Request::ReportHeartbeat),
        (Topic::Discover, Request::DiscoverComponent),
    ];
    for (topic, request) in topics {
        for payload in ["", "{}", "null", "nonsense"] {
            assert_eq!(understood(topic, payload), Inbound::Cell(request.clone()));
        }
    }
    for payload in ["", "null", "{}"] {
        assert_eq!(understood(Topic::RouterStart, payload), Inbound::Cell(Request::RegisterRoutes(RouterStart::default())));
    }
}

#[test]
fn a_complaint_names_the_field_and_never_the_value() {
    let cases = [
        (Topic::Start, START.replace(r#""mem": 64"#, r#""mem": "hunter2""#), "`limits.mem`: not i64"),
        (Topic::Start, START.replace(r#""fds": 16"#, r#""fds": -1"#), "`limits.fds`: not u32"),
        (Topic::Start, START.replace(r#""name": "shop","#, ""), "missing field `name`"),
        (Topic::Start, START.replace(r#", "fds": 16"#, ""), "`limits`: missing field `fds`"),
        (Topic::Start, START.replace("0123456789abcdef", "hunter2"), "`sha1`: not a digest of 40 lower-case hex digits"),
        (Topic::Start, START.replace(r#"["PASSWORD=hunter2"]"#, r#"[{"PASSWORD": "hunter2"}]"#), "`env[0]`: not a string"),
        (Topic::Start, START.replace("\"v1\"", "{\"a, expected hunter2\": 1}"), "`version`: not a string"),
        (Topic::Stop, r#"{"droplet": "7", "indices": ["hunter2"]}"#.to_owned(), "`indices[0]`: not u32"),
        (Topic::Update, r#"{"uris": ["hunter2"]}"#.to_owned(), "missing field `droplet`"),
        (Topic::FindDroplet, r#"{"droplet": ["hunter2"]}"#.to_owned(), "`droplet`: not an application id (a string or an integer)"),
        (Topic::Stage, STAGING.replace(r#""t""#, "1"), "`task_id`: not a string"),
        (Topic::Stage, STAGING.replace("{}", r#"{"droplet": 1}"#), "`start_message`: missing field `index`"),
        (Topic::StagingStop, "{}".to_owned(), "missing field `app_id`"),
        (Topic::Logs, r#"{"droplet": "7", "tail": -1}"#.to_owned(), "`tail`: not u32"),
    ];
    for (topic, payload, wanted) in cases {
        let complaint = complaint(topic, &payload);
        assert_eq!(complaint, wanted, "{payload}");
        assert!(!complaint.contains("hunter2"));
    }
}

#[test]
fn what_is_no_json_or_too_much_is_told_as_such() {
    assert_eq!(complaint(Topic::Stop, ""), "not JSON, at line 1 column 0");
    assert_eq!(complaint(Topic::Start, "{\"droplet\": hunter2"), "`droplet`: not JSON, at line 1 column 13");
    assert_eq!(complaint(Topic::Stop, "{} {}"), "not JSON, at line 1 column 4");
    assert_eq!(complaint(Topic::Stop, &" ".repeat(MAX_MESSAGE_BYTES + 1)), "1048577 bytes, more than the 1048576 that are read");
    let deep = format!(r#"{{"droplet": {}"#, "[".repeat(100_000));
    assert!(decode(Topic::Stop, deep.as_bytes()).is_err(), "a deep nesting must not exhaust the stack");
    assert!(decode(Topic::Stop, &[0xff, 0xfe]).is_err());
}

#[test]
fn levels_are_counted_where_they_are_levels() {
    for (text, levels) in
        [("7", 0), ("{}", 1), (r#"{"a": [[], {"b": []}], "c": {}}"#, 4), (r#"["[[[{{", "\"[[", "\\", []]"#, 2), ("]]}[", 1)]
    {
        assert_eq!(nesting(text.as_bytes()), levels, "{text}");
    }
    let many = format!(r#"{{"droplet": "7", "uris": [{}"#, "[],".repeat(1000)) + "[]]}";
    assert_eq!(complaint(Topic::Update, &many), "`uris[0]`: not a string", "many are not deep");
}

#[test]
fn an_agent_listens_to_what_its_configuration_says() {
    let subjects = |yaml: &str| -> BTreeSet<String> {
        let (config, _) = AgentConfig::from_yaml(&format!("base_dir: /tmp/agent\nnats_uri: nats://localhost\n{yaml}")).unwrap();
        let interests = interests(&config, &"me".into(), "_INBOX.1");
        interests.into_iter().map(|interest| [interest.subject.as_str(), interest.group.unwrap_or_default()].join(" ")).collect()
    };
    let set = |subjects: &[&str]| -> BTreeSet<String> { subjects.iter().map(|subject| (*subject).to_owned()).collect() };
    let core = set(&["router.start ", "_INBOX.1 ", "dea.me.start ", "dea.stop ", "dea.update ", "dea.find.droplet ", "dewar.logs "]);
    let legacy = set(&["healthmanager.start ", "dea.status ", "dea.locate "]);
    let component = set(&["vcap.component.discover "]);
    let staging = set(&["staging.me.start ", "staging.stop ", "staging.locate ", "buildpacks ", "staging staging"]);
    assert_eq!(subjects("compat: { legacy_subjects: false, component: false }\n"), core);
    assert_eq!(subjects(""), &(&core | &legacy) | &component);
    assert_eq!(subjects("staging: { enabled: true }\n"), &(&(&core | &legacy) | &component) | &staging);
}
