//! Agents and routers.

use std::collections::BTreeMap;

use dewar_protocol::{AppId, CellId, RouteRegistration, RouterStart};

use crate::{golden, refused, understood};

#[test]
fn register() {
    let registration = RouteRegistration {
        dea: Some(CellId::from("0c8f")),
        app: Some(AppId::from("7b1d")),
        uris: vec!["shop.apps.example.net".to_owned()],
        host: "10.0.16.23".to_owned(),
        port: 61004,
        tags: BTreeMap::from([("component".to_owned(), "dea-2".to_owned())]),
        private_instance_id: Some("c1d2e3f4".to_owned()),
        private_instance_index: None,
        stale_threshold_in_seconds: None,
    };
    let text = r#"{"dea":"0c8f","app":"7b1d","uris":["shop.apps.example.net"],"host":"10.0.16.23","port":61004,
        "tags":{"component":"dea-2"},"private_instance_id":"c1d2e3f4"}"#;
    golden("§1.20", text, &registration);
    let later =
        RouteRegistration { private_instance_index: Some("0".to_owned()), stale_threshold_in_seconds: Some(30), ..registration.clone() };
    let text = text.trim_end_matches('}').to_owned() + r#","private_instance_index":"0","stale_threshold_in_seconds":30}"#;
    golden("§1.20, as other components send it", &text, &later);
    let server = RouteRegistration {
        dea: None,
        app: None,
        uris: vec!["8e1c.apps.example.net".to_owned()],
        tags: BTreeMap::from([("component".to_owned(), "directory-server-2".to_owned())]),
        private_instance_id: None,
        ..registration
    };
    let text = r#"{"uris":["8e1c.apps.example.net"],"host":"10.0.16.23","port":61004,"tags":{"component":"directory-server-2"}}"#;
    golden("§1.20", text, &server);
    let cases = [
        (r#"{"host":"h","port":65536}"#, "port: invalid value: integer `65536`, expected u16"),
        (r#"{"host":"h","port":null}"#, "port: invalid type: null"),
        (r#"{"port":1}"#, "missing field `host`"),
        (r#"{"host":"h","port":1,"uris":[7]}"#, "uris[0]: invalid type: integer"),
    ];
    refused::<RouteRegistration>("§1.20", &cases);
}

#[test]
fn router_start() {
    let start = RouterStart {
        id: Some("b2f7c0de".to_owned()),
        hosts: vec!["10.0.8.5".to_owned()],
        minimum_register_interval_seconds: Some(20),
        prune_threshold_seconds: Some(120),
    };
    let text = r#"{"id":"b2f7c0de","hosts":["10.0.8.5"],"minimumRegisterIntervalInSeconds":20,"pruneThresholdInSeconds":120}"#;
    golden("§1.18", text, &start);
    understood("§1.18", "{}", &RouterStart::default());
    let cases = [(r#"{"minimumRegisterIntervalInSeconds":"20"}"#, "minimumRegisterIntervalInSeconds: invalid type: string")];
    refused::<RouterStart>("§1.18", &cases);
}
