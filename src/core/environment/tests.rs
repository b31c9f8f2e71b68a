use std::fmt::Write as _;

use dewar_protocol::{DropletSha1, Limits, Mib, StagingProperties, TaskId};
use expect_test::{Expect, expect};

use super::*;

fn start() -> StartMessage {
    StartMessage {
        app_id: "7b1d".into(),
        index: 2,
        version: "e0a4".to_owned(),
        name: "shop".to_owned(),
        uris: vec!["shop.example.net".to_owned()],
        sha1: None,
        droplet_uri: None,
        cc_partition: "default".to_owned(),
        limits: Limits { mem: Mib(256), disk: Mib(1024), fds: 16384 },
        services: vec![],
        env: vec![],
        start_command: None,
        health_check_timeout: None,
        health_check_type: None,
        health_check_http_endpoint: None,
        vcap_application: None,
        egress_network_rules: vec![],
        stack: None,
    }
}

fn service(name: &str, label: &str, credentials: Option<Value>) -> Service {
    Service {
        name: name.to_owned(),
        label: label.to_owned(),
        credentials: credentials.map(Secret),
        plan: None,
        plan_option: None,
        tags: None,
        syslog_drain_url: None,
    }
}

fn secrets(texts: &[&str]) -> Vec<Secret<String>> {
    texts.iter().map(|text| Secret((*text).to_owned())).collect()
}

fn run(start: &StartMessage, port: Option<u16>) -> Vec<(String, String)> {
    let facts = InstanceFacts {
        instance_id: &InstanceId::from("3c9a"),
        port,
        ip: "10.0.16.23",
        started_at: Wall(Duration::from_millis(1_381_932_202_517)),
        started_at_text: "2013-10-16 16:03:22 +0200",
    };
    running(start, &facts)
}

fn check(variables: &[(String, String)], expected: Expect) {
    let mut text = String::new();
    for (name, value) in variables {
        writeln!(text, "{name}={value}").unwrap();
    }
    expected.assert_eq(&text);
}

fn value<'a>(variables: &'a [(String, String)], name: &str) -> Option<&'a str> {
    variables.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

#[test]
fn of_an_app_as_late_controllers_want_it() {
    let mut start = start();
    start.vcap_application = json!({ "application_name": "shop", "users": null, "host": "overlaid" }).as_object().cloned();
    start.env = secrets(&["LOG_LEVEL=info", "FLAGS=a=1;b=2", "EMPTY="]);
    check(
        &run(&start, Some(61004)),
        expect![[r#"
        PWD=/app
        VCAP_APPLICATION={"application_id":"7b1d","application_name":"shop","host":"0.0.0.0","instance_id":"3c9a","instance_index":2,"port":61004,"start":"2013-10-16 16:03:22 +0200","started_at":"2013-10-16 16:03:22 +0200","started_at_timestamp":1381932202,"state_timestamp":1381932202,"users":null}
        VCAP_SERVICES={}
        MEMORY_LIMIT=256m
        HOME=/app
        TMPDIR=/tmp
        VCAP_APP_HOST=0.0.0.0
        VCAP_APP_PORT=61004
        PORT=61004
        CF_INSTANCE_INDEX=2
        CF_INSTANCE_IP=10.0.16.23
        CF_INSTANCE_PORT=61004
        CF_INSTANCE_ADDR=10.0.16.23:61004
        CF_INSTANCE_PORTS=[{"external":61004,"internal":61004}]
        LOG_LEVEL=info
        FLAGS=a=1;b=2
        EMPTY=
    "#]],
    );
}

#[test]
fn of_an_app_without_port_from_a_controller_of_2013() {
    check(
        &run(&start(), None),
        expect![[r#"
        PWD=/app
        VCAP_APPLICATION={"application_id":"7b1d","application_name":"shop","application_uris":["shop.example.net"],"application_version":"e0a4","host":"0.0.0.0","instance_id":"3c9a","instance_index":2,"limits":{"disk":1024,"fds":16384,"mem":256},"name":"shop","start":"2013-10-16 16:03:22 +0200","started_at":"2013-10-16 16:03:22 +0200","started_at_timestamp":1381932202,"state_timestamp":1381932202,"uris":["shop.example.net"],"users":null,"version":"e0a4"}
        VCAP_SERVICES={}
        MEMORY_LIMIT=256m
        HOME=/app
        TMPDIR=/tmp
        VCAP_APP_HOST=0.0.0.0
        CF_INSTANCE_INDEX=2
        CF_INSTANCE_IP=10.0.16.23
    "#]],
    );
}

#[test]
fn of_a_buildpack() {
    let message = StagingMessage {
        app_id: "7b1d".into(),
        task_id: TaskId::from("b5d3"),
        properties: StagingProperties {
            services: vec![service("orders", "mysql-5.5", Some(json!({ "uri": "mysql://u:p@db/d81" })))],
            environment: secrets(&["BUNDLE_WITHOUT=test", "LIMIT=$MEMORY_LIMIT"]),
            ..StagingProperties::default()
        },
        download_uri: Secret::default(),
        upload_uri: Secret::default(),
        buildpack_cache_download_uri: None,
        buildpack_cache_upload_uri: None,
        admin_buildpacks: vec![],
        start_message: Some(StartMessage {
            sha1: Some(DropletSha1::parse(&"0".repeat(40)).unwrap()),
            vcap_application: json!({ "name": "shop" }).as_object().cloned(),
            ..start()
        }),
        stack: None,
        egress_network_rules: vec![],
        memory_limit: None,
        disk_limit: None,
    };
    check(
        &staging(&message, Duration::from_secs(900)),
        expect![[r#"
        VCAP_APPLICATION={"name":"shop"}
        VCAP_SERVICES={"mysql-5.5":[{"credentials":{"uri":"mysql://u:p@db/d81"},"label":"mysql-5.5","name":"orders"}]}
        MEMORY_LIMIT=256m
        DATABASE_URL=mysql2://u:p@db/d81
        STAGING_TIMEOUT=900.0
        BUNDLE_WITHOUT=test
        LIMIT=256m
    "#]],
    );
    let alone = StagingMessage { start_message: None, memory_limit: Some(Mib(512)), ..message };
    let variables = staging(&alone, Duration::from_millis(1500));
    assert_eq!(value(&variables, "VCAP_APPLICATION"), Some("{}"));
    assert_eq!(value(&variables, "MEMORY_LIMIT"), Some("512m"));
    assert_eq!(value(&variables, "STAGING_TIMEOUT"), Some("1.5"));
}

#[test]
fn services_by_label_in_the_order_of_the_message() {
    let mut start = start();
    start.services = vec![
        service("b", "redis", Some(Value::Null)),
        Service {
            plan: Some("free".to_owned()),
            plan_option: Some("x".to_owned()),
            tags: Some(json!(["relational"])),
            syslog_drain_url: Some(Secret("syslog://h".to_owned())),
            ..service("db", "mysql", Some(json!({ "password": "a$HOME\"" })))
        },
        Service { tags: Some(Value::Bool(false)), ..service("a", "redis", None) },
    ];
    let services = run(&start, None);
    let expected = expect![[
        r#"{"mysql":[{"credentials":{"password":"a$HOME\""},"label":"mysql","name":"db","plan":"free","plan_option":"x","syslog_drain_url":"syslog://h","tags":["relational"]}],"redis":[{"label":"redis","name":"b"},{"label":"redis","name":"a"}]}"#
    ]];
    expected.assert_eq(value(&services, "VCAP_SERVICES").unwrap());
    assert_eq!(value(&services, "DATABASE_URL"), Some(""), "there are services, but none is a database");
}

#[test]
fn the_first_database_wins() {
    let cases = [
        ("mysql://u:p@h/d?x=1", Some("mysql2://u:p@h/d?x=1")),
        ("mysql2://h", Some("mysql2://h")),
        ("postgres://h", Some("postgres://h")),
        ("postgresql://h", Some("postgres://h")),
        ("db2://h", Some("ibmdb://h")),
        ("informix://h", Some("ibmdb://h")),
        ("mysql:not a uri at all", Some("mysql2:not a uri at all")),
        ("redis://h", None),
        ("MYSQL://h", None),
        ("mysql", None),
    ];
    for (uri, expected) in cases {
        let services = [service("x", "x", None), service("y", "y", Some(json!({ "uri": uri })))];
        assert_eq!(database::url(&services).as_deref(), expected, "{uri}");
    }
    let uri = |uri: Value| service("x", "x", Some(json!({ "uri": uri })));
    assert_eq!(database::url(&[uri(json!("mysql://a")), uri(json!("postgres://b"))]).as_deref(), Some("mysql2://a"));
    assert_eq!(database::url(&[]), None);
    assert_eq!(database::url(&[service("x", "x", None), service("y", "y", Some(Value::Null))]), None);
    assert_eq!(database::url(&[uri(json!(7)), service("y", "y", Some(json!("mysql://a")))]), None);
}

#[test]
fn what_a_shell_does_inside_double_quotes() {
    let cases = [
        ("plain", "plain"),
        ("$HOME/bin", "/app/bin"),
        ("${HOME}bin", "/appbin"),
        ("$HOMEbin", ""),
        ("$EARLIER-$HOME", "x-/app"),
        ("$NOBODY.", "."),
        ("$LATER", ""),
        (r"\$HOME", "$HOME"),
        (r"\\$HOME", r"\/app"),
        (r"C:\dir\name", r"C:\dir\name"),
        (r"a\`b", "a`b"),
        ("trailing\\", "trailing\\"),
        ("say \"hi\"", "say \"hi\""),
        ("$(rm -rf /)", "$(rm -rf /)"),
        ("`id`", "`id`"),
        ("100$", "100$"),
        ("$1 $$ $? $-", "$1 $$ $? $-"),
        ("${HOME:-x} ${ ${}", "${HOME:-x} ${ ${}"),
        ("${HOME", "${HOME"),
        ("grün $HOME ü$", "grün /app ü$"),
    ];
    for (text, expected) in cases {
        let mut start = start();
        start.env = secrets(&["EARLIER=x", &format!("TESTED={text}"), "LATER=y"]);
        assert_eq!(value(&run(&start, None), "TESTED"), Some(expected), "{text}");
    }
}

#[test]
fn what_the_agent_says_is_taken_literally() {
    let mut start = start();
    start.vcap_application = json!({ "name": "$HOME `id` \"x\"" }).as_object().cloned();
    start.services = vec![service("db", "mysql", Some(json!({ "uri": "mysql://u:p$HOME@h/d" })))];
    let variables = run(&start, None);
    let application: Value = serde_json::from_str(value(&variables, "VCAP_APPLICATION").unwrap()).unwrap();
    assert_eq!(application["name"], "$HOME `id` \"x\"");
    assert_eq!(value(&variables, "DATABASE_URL"), Some("mysql2://u:p$HOME@h/d"));
    assert!(value(&variables, "VCAP_SERVICES").unwrap().contains("mysql://u:p$HOME@h/d"));
    assert_eq!(value(&variables, "CF_INSTANCE_INDEX"), Some("2"), "a number is its decimal text");
}

#[test]
fn names_that_a_shell_would_refuse_are_left_out() {
    let mut start = start();
    start.env = secrets(&["=x", "a.b=x", "1A=x", "A B=x", "ü=x", "NUL\0=x", "ok_1=x", "_=x", "BARE"]);
    let variables = run(&start, None);
    let own: Vec<_> = variables.iter().skip_while(|(name, _)| name != "CF_INSTANCE_IP").skip(1).collect();
    assert_eq!(own, [&("ok_1".to_owned(), "x".to_owned()), &("_".to_owned(), "x".to_owned()), &("BARE".to_owned(), String::new())]);
}

#[test]
fn the_user_overrides_the_agent_and_the_later_the_earlier() {
    let mut start = start();
    start.env = secrets(&["A=1", "PORT=8080", "A=$A-2", "HOME=/elsewhere", "WHERE=$HOME"]);
    let variables = run(&start, Some(61004));
    assert_eq!(value(&variables, "PORT"), Some("8080"));
    assert_eq!(value(&variables, "A"), Some("1-2"));
    assert_eq!(value(&variables, "WHERE"), Some("/elsewhere"));
    let mut names: Vec<_> = variables.iter().map(|(name, _)| name).collect();
    let all = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), all, "each name once");
}
