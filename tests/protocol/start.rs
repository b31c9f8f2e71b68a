//! The start message.

use dewar_protocol::{AppId, DropletSha1, EgressRule, Limits, Mib, Secret, Service, StartMessage};
use serde_json::{Value, json};

use crate::{golden, refused, understood};

/// The smallest start message that is understood.
pub(crate) fn minimal() -> StartMessage {
    StartMessage {
        app_id: AppId::from("7b1d9c52"),
        index: 0,
        version: "e0a4c6b8".to_owned(),
        name: "shop".to_owned(),
        uris: vec![],
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

pub(crate) const MINIMAL: &str = r#"{"droplet":"7b1d9c52","index":0,"version":"e0a4c6b8","name":"shop","cc_partition":"default",
    "limits":{"mem":256,"disk":1024,"fds":16384},"services":[]}"#;

#[test]
fn as_a_cloud_controller_sends_it() {
    let message = StartMessage {
        uris: vec!["shop.apps.example.net".to_owned()],
        sha1: Some(DropletSha1::parse("2fd4e1c67a2d28fced849ee1bb76e7391b93eb12").unwrap()),
        droplet_uri: Some(Secret("http://up:secret@cc.internal:9022/staging/droplets/7b1d9c52/download".to_owned())),
        services: vec![Service {
            name: "orders-db".to_owned(),
            label: "mysql-5.5".to_owned(),
            credentials: Some(Secret(json!({"uri": "mysql://u:p@10.0.30.4:3306/d81", "hostname": "10.0.30.4"}))),
            plan: Some("free".to_owned()),
            plan_option: None,
            tags: Some(json!(["relational"])),
            syslog_drain_url: None,
        }],
        env: vec![Secret("LOG_LEVEL=info".to_owned()), Secret("FLAGS=a=1;b=2".to_owned())],
        health_check_timeout: Some(120),
        stack: Some("lucid64".to_owned()),
        vcap_application: json!({"application_name": "shop", "users": null}).as_object().cloned(),
        egress_network_rules: vec![
            EgressRule {
                protocol: "tcp".to_owned(),
                destination: "10.0.30.0/24".to_owned(),
                ports: Some("3306,8000-8100".to_owned()),
                icmp_type: None,
                code: None,
                log: None,
            },
            EgressRule {
                protocol: "icmp".to_owned(),
                destination: "0.0.0.0/0".to_owned(),
                ports: None,
                icmp_type: Some(8),
                code: Some(0),
                log: Some(true),
            },
        ],
        ..minimal()
    };
    let text = r#"{"droplet":"7b1d9c52","name":"shop","uris":["shop.apps.example.net"],"prod":false,
        "sha1":"2fd4e1c67a2d28fced849ee1bb76e7391b93eb12","executableFile":"deprecated",
        "executableUri":"http://up:secret@cc.internal:9022/staging/droplets/7b1d9c52/download",
        "version":"e0a4c6b8","cc_partition":"default","index":0,"limits":{"mem":256,"disk":1024,"fds":16384},
        "services":[{"name":"orders-db","label":"mysql-5.5","plan":"free","tags":["relational"],"options":{},
            "credentials":{"uri":"mysql://u:p@10.0.30.4:3306/d81","hostname":"10.0.30.4"},"syslog_drain_url":null}],
        "env":["LOG_LEVEL=info","FLAGS=a=1;b=2"],"debug":null,"console":false,"start_command":null,
        "health_check_timeout":120,"stack":"lucid64","vcap_application":{"application_name":"shop","users":null},
        "egress_network_rules":[{"protocol":"tcp","destination":"10.0.30.0/24","ports":"3306,8000-8100"},
            {"protocol":"icmp","destination":"0.0.0.0/0","type":8,"code":0,"log":true}]}"#;
    understood("§2.7", text, &message);
    let shown = format!("{message:?}");
    for secret in ["secret@", "mysql://", "LOG_LEVEL"] {
        assert!(!shown.contains(secret), "{secret} is in {shown}");
    }
}

#[test]
fn as_we_send_it() {
    let text = r#"{"droplet":"7b1d9c52","index":0,"version":"e0a4c6b8","name":"shop","uris":[],"sha1":null,"executableUri":null,
        "cc_partition":"default","limits":{"mem":256,"disk":1024,"fds":16384},"services":[],"env":[],"start_command":null,
        "health_check_timeout":null,"vcap_application":null,"egress_network_rules":[],"stack":null}"#;
    golden("§2.1", text, &minimal());
}

#[test]
fn with_a_health_check_as_later_cloud_controllers_say_it() {
    let text = r#"{"droplet":"7b1d9c52","index":0,"version":"e0a4c6b8","name":"shop","uris":[],"sha1":null,"executableUri":null,
        "cc_partition":"default","limits":{"mem":256,"disk":1024,"fds":16384},"services":[],"env":[],"start_command":null,
        "health_check_timeout":5,"health_check_type":"http","health_check_http_endpoint":"/ready","vcap_application":null,
        "egress_network_rules":[],"stack":null}"#;
    let message = StartMessage {
        health_check_timeout: Some(5),
        health_check_type: Some("http".to_owned()),
        health_check_http_endpoint: Some("/ready".to_owned()),
        ..minimal()
    };
    golden("§2.1", text, &message);
}

#[test]
fn what_may_be_absent() {
    understood("§2.1", MINIMAL, &minimal());
    let nulls = MINIMAL.replacen('{', r#"{"uris":null,"env":null,"egress_network_rules":null,"sha1":null,"stack":null,"#, 1);
    understood("§2.1", &nulls, &minimal());
    let number = MINIMAL.replace(r#""7b1d9c52""#, "42");
    understood("§0.3", &number, &StartMessage { app_id: AppId::from("42"), ..minimal() });
}

#[test]
fn what_may_not_be_absent_or_otherwise() {
    for key in ["droplet", "index", "version", "name", "cc_partition", "limits", "services"] {
        let mut keys: Value = serde_json::from_str(MINIMAL).unwrap();
        keys.as_object_mut().unwrap().remove(key);
        refused::<StartMessage>("§2.5", &[(&keys.to_string(), &format!("missing field `{key}`"))]);
    }
    refused::<StartMessage>("§2.5", &[("null", "invalid type: null"), ("[]", "invalid length 0"), ("7", "invalid type: integer")]);
    let with = |key: &str, value: Value| {
        let mut keys: Value = serde_json::from_str(MINIMAL).unwrap();
        keys[key] = value;
        keys.to_string()
    };
    let cases = [
        (with("uris", json!("shop.apps.example.net")), "uris: invalid type: string"),
        (with("index", json!("0")), "index: invalid type: string"),
        (with("index", json!(-1)), "index: invalid value: integer `-1`"),
        (with("version", json!(3)), "version: invalid type: integer"),
        (with("droplet", json!(null)), "droplet: invalid type: null"),
        (with("droplet", json!(1.5)), "droplet: invalid type: floating point"),
        (with("sha1", json!("../../etc")), "sha1: not a digest of 40 lower-case hex digits"),
        (with("sha1", json!("2FD4E1C67A2D28FCED849EE1BB76E7391B93EB12")), "sha1: not a digest"),
        (with("limits", json!(null)), "limits: invalid type: null"),
        (with("limits", json!({"mem": 1, "disk": 1})), "limits: missing field `fds`"),
        (with("limits", json!({"mem": "1", "disk": 1, "fds": 1})), "limits.mem: invalid type: string"),
        (with("services", json!([{"name": "x"}])), "services[0]: missing field `label`"),
        (with("services", json!([{"name": "x", "label": "y", "plan": 1}])), "services[0].plan: invalid type: integer"),
        (with("env", json!(["A=b", 7])), "env[1]: invalid type: integer"),
        (with("egress_network_rules", json!([{"protocol": "tcp"}])), "egress_network_rules[0]: missing field `destination`"),
    ];
    for (text, complaint) in cases {
        refused::<StartMessage>("§2.5", &[(&text, complaint)]);
    }
}

#[test]
fn nothing_that_is_printed_of_it_is_secret() {
    let message = StartMessage {
        droplet_uri: Some(Secret("http://up:hunter2@cc.internal/droplet".to_owned())),
        env: vec![Secret("PASSWORD=hunter2".to_owned())],
        services: vec![Service {
            credentials: Some(Secret(json!({ "uri": "mysql://u:hunter2@db" }))),
            syslog_drain_url: Some(Secret("syslog://hunter2".to_owned())),
            name: "db".to_owned(),
            label: "sql".to_owned(),
            plan: None,
            plan_option: None,
            tags: None,
        }],
        ..minimal()
    };
    let printed = format!("{message:?}");
    assert!(printed.contains("sql") && !printed.contains("hunter2"), "{printed}");
}
