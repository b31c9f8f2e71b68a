//! Ends that nobody wanted, and starts that come to nothing.

use std::net::TcpListener;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::timeout;

use crate::free_port::{free_port, is_free};
use crate::world::{World, eventually, guest, next, next_where};

fn worker(world: &World, command: &str) -> Value {
    let mut message = world.start_message(&guest("tests/command-driver"), "worker");
    message["uris"] = json!([]);
    message["start_command"] = json!(command);
    message
}

fn description(exited: &Value) -> &str {
    exited["exit_description"].as_str().unwrap()
}

pub(crate) async fn a_crash_is_told_with_its_backtrace() {
    let world = World::new("").await;
    let mut exited = world.subscribe("droplet.exited").await;
    world.start(&worker(&world, "driver 'warn:about to go' trap"));
    let message = next(&mut exited).await;
    assert_eq!((&message["reason"], &message["index"]), (&json!("CRASHED"), &json!(0)));
    assert!(message["crash_timestamp"].is_i64());
    let description = description(&message);
    assert!(description.contains("unreachable") && description.contains("command_driver"), "{description}");
    // The logs of the crash stay, the rest does not.
    let logs = world.base.path().join("crashes").join(message["instance"].as_str().unwrap()).join("logs");
    eventually("the log of the crash", async || {
        std::fs::read_to_string(logs.join("stderr.log")).ok().filter(|text| text.contains("about to go"))
    })
    .await;
    assert_eq!(world.names("instances"), Vec::<String>::new());
    let found = world.found("worker").await;
    assert_eq!((&found["state"], &found["crash"]["last_lines"]), (&json!("CRASHED"), &json!(["about to go"])));
    assert_eq!(found["crash"]["exit_description"], message["exit_description"]);
    // A Rust function by its name, not by the symbol that the compiler made of it.
    assert!(!description.contains("_ZN") && !description.contains("_R"), "{description}");

    world.start(&worker(&world, "driver exit:3"));
    let message = next(&mut exited).await;
    assert_eq!((&message["reason"], &message["exit_status"]), (&json!("CRASHED"), &json!(3)));
}

pub(crate) async fn a_core_dump_is_kept_with_the_logs_of_its_crash() {
    let world = World::new("instance: {core_dumps: true}").await;
    let mut exited = world.subscribe("droplet.exited").await;
    world.start(&worker(&world, "driver trap"));
    let message = next(&mut exited).await;
    let logs = world.base.path().join("crashes").join(message["instance"].as_str().unwrap()).join("logs");
    eventually("the files of the crash", async || logs.exists().then_some(())).await;
    let dump = std::fs::read(logs.join("core.wasm")).unwrap();
    assert!(dump.starts_with(b"\0asm") && dump.windows(9).any(|window| window == b"corestack"), "{} bytes", dump.len());
    eventually("a word of it in the log", async || {
        std::fs::read_to_string(logs.join("stderr.log")).ok().filter(|text| text.contains("[core dump kept as logs/core.wasm]"))
    })
    .await;
}

pub(crate) async fn an_app_that_never_listens_is_unhealthy() {
    let world = World::new("").await;
    let mut exited = world.subscribe("droplet.exited").await;
    let mut message = worker(&world, "driver sleep:600000");
    message["uris"] = json!(["worker.example.net"]);
    message["health_check_timeout"] = json!(1);
    world.start(&message);
    let message = next(&mut exited).await;
    assert_eq!(description(&message), "failed to accept connections within health check timeout");
    assert_eq!(message["reason"], "CRASHED");
    eventually("the sandbox's end", async || world.names("instances").is_empty().then_some(())).await;
    let kept = world.base.path().join("crashes").join(message["instance"].as_str().unwrap()).join("logs");
    assert!(kept.is_dir(), "a start that fails is a crash like others");
}

pub(crate) async fn a_command_without_a_command_line_does_not_start() {
    let world = World::new("").await;
    let mut exited = world.subscribe("droplet.exited").await;
    world.start(&worker(&world, ""));
    assert_eq!(description(&next(&mut exited).await), "missing start command");
    world.start(&worker(&world, "driver 'print:no end"));
    assert_eq!(description(&next(&mut exited).await), "failed to start");
}

pub(crate) async fn a_droplet_that_cannot_be_had_fails_the_start() {
    let world = World::new("").await;
    let mut exited = world.subscribe("droplet.exited").await;
    let mut message = worker(&world, "driver");
    message["sha1"] = json!("0123456789abcdef0123456789abcdef01234567");
    world.start(&message);
    let told = next(&mut exited).await;
    assert_eq!((description(&told), &told["exit_status"]), ("failed to start", &json!(-1)));
    message["executableUri"] = Value::Null;
    world.start(&message);
    assert_eq!(description(&next(&mut exited).await), "failed to start");
    // Something that is no component at all gets as far as the compiler.
    world.start(&world.start_message(&guest("tests/does-not-validate"), "broken"));
    assert_eq!(description(&next(&mut exited).await), "failed to start");
    let log = json!({ "droplet": "broken", "tail": 10 });
    let told = eventually("the cause in the app's log", async || {
        let lines = world.bus.request_many("dewar.logs", &log, Duration::from_millis(300)).await.unwrap();
        let lines = lines.iter().map(|line| serde_json::from_slice::<Value>(&line.payload).unwrap()["text"].to_string());
        lines.into_iter().find(|text| text.contains("failed to start: compile component"))
    })
    .await;
    assert!(told.contains("Instance (index 0)"), "{told}");
}

pub(crate) async fn a_taken_port_is_skipped_and_none_left_is_an_error() {
    let (taken, free) = loop {
        let (port, next) = (free_port(), free_port());
        if next == port + 1 {
            break (TcpListener::bind(("127.0.0.1", port)).unwrap(), next);
        }
    };
    let world = World::new(&format!("instance: {{ ports: {{ first: {}, last: {free} }} }}\n", free - 1)).await;
    let mut exited = world.subscribe("droplet.exited").await;
    let mut registered = world.subscribe("router.register").await;
    world.start(&world.start_message(&guest("tests/http-driver"), "shop"));
    assert_eq!(next(&mut registered).await["port"], free);
    let mut second = world.start_message(&guest("tests/http-driver"), "shop");
    second["index"] = json!(1);
    world.start(&second);
    let message = next(&mut exited).await;
    assert_eq!((description(&message), &message["index"]), ("failed to start", &json!(1)));
    drop(taken);
    eventually("the port's end", async || is_free(free - 1).then_some(())).await;
    // The port that is free now is found.
    world.start(&second);
    let registration = next_where(&mut registered, "for the other port", |route| route["port"] == free - 1).await;
    assert_eq!(registration["app"], "shop");
}

pub(crate) async fn stopping_while_starting_leaves_nothing() {
    let world = World::new("").await;
    let mut exited = world.subscribe("droplet.exited").await;
    let mut message = world.start_message(&guest("tests/http-driver"), "sleeper");
    message["env"] = json!(["DRIVER_START=sleep:600000"]);
    // With each round the stop comes at another moment: while the droplet is fetched, unpacked, compiled, while its start-up code runs.
    for round in 0..8 {
        world.start(&message);
        world.found("sleeper").await;
        tokio::time::sleep(Duration::from_millis(round * 40)).await;
        assert_eq!(world.found("sleeper").await["state"], "STARTING");
        world.publish("dea.stop", &json!({ "droplet": "sleeper" }));
        assert_eq!(next(&mut exited).await["reason"], "STOPPED");
        eventually("its end", async || world.find("sleeper").await.is_none().then_some(())).await;
    }
    eventually("the end of all files", async || (world.names("instances").is_empty() && world.names("crashes").is_empty()).then_some(()))
        .await;
    assert!(world.find("sleeper").await.is_none());
}

pub(crate) async fn a_port_is_free_once_its_routes_are_withdrawn() {
    let port = free_port();
    let world = World::new(&format!("instance: {{ ports: {{ first: {port}, last: {port} }} }}\n")).await;
    let mut routes = world.subscribe("router.*").await;
    // So many that it takes a while to remove them.
    let names: Vec<String> = (0..3000).map(|number| format!("app/{number}")).collect();
    let files: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), b"".as_slice())).collect();
    let mut first = world.start_message_with(&guest("tests/command-driver"), "first", &files);
    (first["health_check_type"], first["start_command"]) = (json!("process"), json!("driver sleep:1000 exit:3"));
    world.start(&first);
    next_where(&mut routes, "of the first", |route| route["app"] == "first").await;
    let second = world.start_message(&guest("tests/http-driver"), "second");
    let (subject, route) = loop {
        world.start(&second);
        let Ok(Some(told)) = timeout(Duration::from_millis(10), routes.next()).await else { continue };
        let route: Value = serde_json::from_slice(&told.payload).unwrap();
        if (told.subject.as_str(), &route["app"]) != ("router.register", &json!("first")) {
            break (told.subject, route);
        }
    };
    assert_eq!((subject.as_str(), &route["app"], &route["port"]), ("router.unregister", &json!("first"), &json!(port)));
}
