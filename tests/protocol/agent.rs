//! Agents about themselves and their instances, and what they are asked.

use dewar_protocol::{
    Advertise, AppCounts, AppId, Bytes, CellId, Crash, DropletExited, ExitReason, FindDroplet, FoundInstance, Heartbeat, HeartbeatEntry,
    Hello, InstanceFilter, InstanceId, InstanceState, InstanceStats, InstanceUsage, Mib, PROTOCOL_VERSION, PlacementProperties, Secret,
    Shutdown, Status, Stop, UnixSeconds, Update,
};

use crate::{decode, golden, refused, understood};

fn cell() -> CellId {
    CellId::from("2-5b0c7a3e")
}

fn version() -> String {
    PROTOCOL_VERSION.to_owned()
}

#[test]
fn hello_and_farewell() {
    let hello = Hello { id: cell(), ip: "10.0.16.23".to_owned(), version: version() };
    golden("§1.3", r#"{"id":"2-5b0c7a3e","ip":"10.0.16.23","version":"0.0.1"}"#, &hello);
    let counts = AppCounts::from([(AppId::from("7b1d9c52"), 2)]);
    let shutdown = Shutdown { id: cell(), ip: "10.0.16.23".to_owned(), version: version(), app_id_to_count: counts };
    golden("§1.17", r#"{"id":"2-5b0c7a3e","ip":"10.0.16.23","version":"0.0.1","app_id_to_count":{"7b1d9c52":2}}"#, &shutdown);
}

#[test]
fn status() {
    let status = Status {
        id: cell(),
        ip: "10.0.16.23".to_owned(),
        version: version(),
        max_memory: Mib(16384),
        reserved_memory: Mib(2304),
        used_memory: Mib(811),
        num_clients: None,
    };
    let text = r#"{"id":"2-5b0c7a3e","ip":"10.0.16.23","version":"0.0.1",
        "max_memory":16384,"reserved_memory":2304,"used_memory":811,"num_clients":null}"#;
    golden("§1.4", text, &status);
}

#[test]
fn advertise() {
    let advertise = Advertise {
        id: CellId::from("0c8f4e1a"),
        stacks: vec!["lucid64".to_owned(), "cflinuxfs2".to_owned()],
        available_memory: Mib(5888),
        available_disk: Mib(-1),
        app_id_to_count: AppCounts::from([(AppId::from("7b1d9c52"), 2)]),
        placement_properties: PlacementProperties { zone: "z1".to_owned() },
        url: None,
    };
    let text = r#"{"id":"0c8f4e1a","stacks":["lucid64","cflinuxfs2"],"available_memory":5888,"available_disk":-1,
        "app_id_to_count":{"7b1d9c52":2},"placement_properties":{"zone":"z1"},"url":null}"#;
    golden("§1.7", text, &advertise);
    let of_2013 = r#"{"id":"0c8f4e1a","stacks":["lucid64"],"available_memory":5888,"prod":false}"#;
    let expected = Advertise {
        stacks: vec!["lucid64".to_owned()],
        available_disk: Mib(0),
        app_id_to_count: AppCounts::new(),
        placement_properties: PlacementProperties { zone: "default".to_owned() },
        ..advertise
    };
    understood("§1.7", of_2013, &expected);
}

fn filter(app_id: &str) -> InstanceFilter {
    InstanceFilter { app_id: Some(AppId::from(app_id)), ..InstanceFilter::default() }
}

#[test]
fn stop() {
    let scaled_down = InstanceFilter { version: Some("e0a4".to_owned()), indices: Some(vec![2, 3]), ..filter("7b1d") };
    let text = r#"{"droplet":"7b1d","version":"e0a4","indices":[2,3]}"#;
    golden("§1.9", text, &Stop { filter: scaled_down, whole_app: false });
    let some = InstanceFilter { instances: Some(vec![]), instance_ids: Some(vec!["3c9a".into()]), ..filter("7b1d") };
    golden("§1.2", r#"{"droplet":"7b1d","instances":[],"instance_ids":["3c9a"]}"#, &Stop { filter: some, whole_app: false });
    understood("§1.2", r#"{"droplet":"7b1d","version":null,"indices":null}"#, &Stop { filter: filter("7b1d"), whole_app: false });
}

#[test]
fn stop_of_a_whole_app_has_one_key() {
    let whole = |text: &str| decode::<Stop>(text).unwrap().whole_app;
    assert_eq!(decode::<Stop>(r#"{"droplet":7}"#).unwrap(), Stop { filter: filter("7"), whole_app: true });
    assert!(!whole(r#"{"droplet":"x","version":"y"}"#));
    assert!(!whole(r#"{"droplet":"x","version":null}"#));
    assert!(!whole(r#"{"droplet":"x","from_the_future":1}"#));
    assert!(!whole(r#"{"version":"y"}"#));
    assert!(!whole(r#"{"droplet":null}"#));
    assert!(!whole("{}"));
    assert_eq!(serde_json::to_string(&Stop { filter: filter("7"), whole_app: true }).unwrap(), r#"{"droplet":"7"}"#);
    let cases = [
        ("[]", "invalid type: sequence, expected an object"),
        ("null", "invalid type: null, expected an object"),
        (r#"{"droplet":"x","indices":["2"]}"#, "indices[0]: invalid type: string"),
        (r#"{"droplet":"x","instances":"3c9a"}"#, "instances: invalid type: string"),
        (r#"{"droplet":["x"]}"#, "droplet: invalid type: sequence, expected an application id"),
        (r#"{"droplet":"x","droplet":"y"}"#, "duplicate field `droplet`"),
    ];
    refused::<Stop>("§1.9", &cases);
}

#[test]
fn update() {
    let update = Update {
        app_id: AppId::from("7b1d"),
        uris: Some(vec!["shop.apps.example.net".to_owned(), "www.example.net".to_owned()]),
        version: Some("52f1".to_owned()),
    };
    golden("§1.10", r#"{"droplet":"7b1d","uris":["shop.apps.example.net","www.example.net"],"version":"52f1"}"#, &update);
    understood("§1.10", r#"{"droplet":"7b1d"}"#, &Update { app_id: AppId::from("7b1d"), uris: None, version: None });
    refused::<Update>("§1.10", &[(r#"{"droplet":"7b1d","uris":"www"}"#, "uris: invalid type: string"), ("{}", "missing field `droplet`")]);
}

#[test]
fn find_droplet() {
    let all = FindDroplet { app_id: Some(AppId::from("7b1d")), ..FindDroplet::default() };
    golden("§1.11", r#"{"droplet":"7b1d"}"#, &all);
    let states = Some(vec!["RUNNING".to_owned(), "starting".to_owned()]);
    let one = FindDroplet { states, indices: Some(vec![0]), include_stats: true, path: Some(Some("/logs".to_owned())), ..all.clone() };
    let text = r#"{"droplet":"7b1d","indices":[0],"states":["RUNNING","starting"],"path":"/logs","include_stats":true}"#;
    golden("§1.11", text, &one);
    let root = FindDroplet { path: Some(None), ..all.clone() };
    golden("§1.11: the key is there, even with null", r#"{"droplet":"7b1d","path":null}"#, &root);
    understood("§1.11", r#"{"droplet":"7b1d","include_stats":null,"states":null}"#, &all);
    refused::<FindDroplet>("§1.11", &[(r#"{"droplet":"x","states":"RUNNING"}"#, "states: invalid type: string")]);
}

fn found() -> FoundInstance {
    FoundInstance {
        dea: CellId::from("0c8f"),
        app_id: AppId::from("7b1d"),
        version: "e0a4".to_owned(),
        instance_id: InstanceId::from("3c9a"),
        index: 0,
        state: InstanceState::Running,
        state_timestamp: UnixSeconds(1381932202.517),
        staged: "/3c9a".to_owned(),
        file_uri: None,
        credentials: None,
        file_uri_v2: None,
        stats: None,
        crash: None,
    }
}

#[test]
fn found_instance() {
    let text = r#"{"dea":"0c8f","droplet":"7b1d","version":"e0a4","instance":"3c9a","index":0,"state":"RUNNING",
        "state_timestamp":1381932202.517,"staged":"/3c9a"}"#;
    golden("§1.11", text, &found());
    let stats = InstanceStats {
        name: "shop".to_owned(),
        uris: vec!["shop.apps.example.net".to_owned()],
        host: "10.0.16.23".to_owned(),
        port: Some(61004),
        uptime: 93,
        mem_quota: Bytes(268_435_456),
        disk_quota: Bytes(1_073_741_824),
        fds_quota: 16384,
        usage: InstanceUsage { time: "2013-10-16 14:03:22 +0000".to_owned(), cpu: 0.0173, mem: Bytes(48_234_496), disk: Bytes(61_341_696) },
    };
    let text = text.trim_end_matches('}').to_owned()
        + r#","file_uri":"http://10.0.16.23:12345/instances","credentials":["ad0f","77c1"],
        "file_uri_v2":"http://8e1c.apps.example.net/instance_paths/3c9a?hmac=9f",
        "stats":{"name":"shop","uris":["shop.apps.example.net"],"host":"10.0.16.23","port":61004,"uptime":93,
        "mem_quota":268435456,"disk_quota":1073741824,"fds_quota":16384,
        "usage":{"time":"2013-10-16 14:03:22 +0000","cpu":0.0173,"mem":48234496,"disk":61341696}}}"#;
    let full = FoundInstance {
        file_uri: Some("http://10.0.16.23:12345/instances".to_owned()),
        credentials: Some(Secret(("ad0f".to_owned(), "77c1".to_owned()))),
        file_uri_v2: Some(Secret("http://8e1c.apps.example.net/instance_paths/3c9a?hmac=9f".to_owned())),
        stats: Some(stats),
        ..found()
    };
    golden("§1.11", &text, &full);
    let crash = Crash {
        exit_status: -1,
        exit_description: "wasm trap: unreachable\n    0: shop!main".to_owned(),
        last_lines: vec!["about to go".to_owned()],
    };
    let text = r#"{"dea":"0c8f","droplet":"7b1d","version":"e0a4","instance":"3c9a","index":0,"state":"CRASHED",
        "state_timestamp":1381932202.517,"staged":"/3c9a",
        "crash":{"exit_status":-1,"exit_description":"wasm trap: unreachable\n    0: shop!main","last_lines":["about to go"]}}"#;
    golden("ours", text, &FoundInstance { state: InstanceState::Crashed, crash: Some(crash), ..found() });
}

#[test]
fn heartbeat() {
    let entry = |id: &str, index, state, timestamp| HeartbeatEntry {
        cc_partition: "default".to_owned(),
        app_id: AppId::from("7b1d"),
        version: "e0a4".to_owned(),
        instance_id: InstanceId::from(id),
        index,
        state,
        state_timestamp: UnixSeconds(timestamp),
    };
    let droplets =
        vec![entry("3c9a", 0, InstanceState::Running, 1381932202.517), entry("aa0b", 1, InstanceState::Starting, 1381932250.031)];
    let text = r#"{"droplets":[
        {"cc_partition":"default","droplet":"7b1d","version":"e0a4","instance":"3c9a","index":0,"state":"RUNNING","state_timestamp":1381932202.517},
        {"cc_partition":"default","droplet":"7b1d","version":"e0a4","instance":"aa0b","index":1,"state":"STARTING","state_timestamp":1381932250.031}],
        "dea":"0c8f"}"#;
    golden("§5", text, &Heartbeat { droplets, dea: CellId::from("0c8f") });
    golden("§5: sent even when empty", r#"{"droplets":[],"dea":"0c8f"}"#, &Heartbeat { droplets: vec![], dea: CellId::from("0c8f") });
}

#[test]
fn droplet_exited() {
    let exited = DropletExited {
        cc_partition: "default".to_owned(),
        app_id: AppId::from("7b1d"),
        version: "e0a4".to_owned(),
        instance_id: InstanceId::from("3c9a"),
        index: 0,
        reason: ExitReason::Crashed,
        exit_status: 137,
        exit_description: "out of memory".to_owned(),
        crash_timestamp: Some(1_381_932_841),
    };
    let text = r#"{"cc_partition":"default","droplet":"7b1d","version":"e0a4","instance":"3c9a","index":0,"reason":"CRASHED",
        "exit_status":137,"exit_description":"out of memory","crash_timestamp":1381932841}"#;
    golden("§1.15", text, &exited);
    for (reason, name) in
        [(ExitReason::Stopped, "STOPPED"), (ExitReason::DeaShutdown, "DEA_SHUTDOWN"), (ExitReason::DeaEvacuation, "DEA_EVACUATION")]
    {
        let text = format!(
            r#"{{"cc_partition":"default","droplet":"7b1d","version":"e0a4","instance":"3c9a","index":0,"reason":"{name}",
            "exit_status":-1,"exit_description":""}}"#
        );
        let exit_description = String::new();
        golden("§1.15", &text, &DropletExited { reason, exit_status: -1, exit_description, crash_timestamp: None, ..exited.clone() });
    }
}

#[test]
fn states() {
    let all = [
        (InstanceState::Born, "BORN"),
        (InstanceState::Starting, "STARTING"),
        (InstanceState::Running, "RUNNING"),
        (InstanceState::Stopping, "STOPPING"),
        (InstanceState::Stopped, "STOPPED"),
        (InstanceState::Crashed, "CRASHED"),
        (InstanceState::Resuming, "RESUMING"),
        (InstanceState::Evacuating, "EVACUATING"),
    ];
    for (state, name) in all {
        assert_eq!(serde_json::to_string(&state).unwrap(), format!("\"{name}\""), "§4.1");
        assert_eq!(state.to_string(), name);
        assert_eq!(name.parse(), Ok(state));
        assert_eq!(name.to_lowercase().parse(), Ok(state), "§1.2: case is ignored");
    }
    assert_eq!("Dying".parse::<InstanceState>().unwrap_err().to_string(), "Unknown state: Dying", "§1.2");
}
