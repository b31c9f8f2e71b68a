//! From a start message to the end that somebody wanted.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use dewar_bus::Bus;
use serde_json::{Value, json};

use crate::world::{PATIENCE, World, eventually, get, guest, next, next_where};

pub(crate) fn address(registration: &Value) -> SocketAddr {
    let port = registration["port"].as_u64().and_then(|port| u16::try_from(port).ok()).expect("a port");
    SocketAddr::new(registration["host"].as_str().unwrap().parse().unwrap(), port)
}

pub(crate) async fn from_start_message_to_stop() {
    let world = World::new("").await;
    let mut heartbeats = world.subscribe("dea.heartbeat").await;
    let mut registered = world.subscribe("router.register").await;
    let mut unregistered = world.subscribe("router.unregister").await;
    let mut exited = world.subscribe("droplet.exited").await;
    world.start(&world.start_message(&guest("tests/http-driver"), "shop"));

    let registration = next(&mut registered).await;
    assert_eq!((&registration["uris"], &registration["app"]), (&json!(["shop.example.net"]), &json!("shop")));
    let instance = address(&registration);
    assert!((61_001..=65_535).contains(&instance.port()));
    let is_running = |heartbeat: &Value| heartbeat["droplets"][0]["state"] == "RUNNING";
    let heartbeat = next_where(&mut heartbeats, "that says RUNNING", is_running).await;
    let id = heartbeat["droplets"][0]["instance"].as_str().unwrap().to_owned();

    assert_eq!(get(instance, "/", None).await.unwrap(), (200, "http-driver".to_owned()));
    assert_eq!(get(instance, "/env?name=PORT", None).await.unwrap().1.trim(), instance.port().to_string());
    assert_eq!(get(instance, "/env?name=GREETING", None).await.unwrap().1.trim(), "hi");
    assert_eq!(get(instance, "/args", None).await.unwrap().1.trim(), "shop", "an app without a command is told its name");
    assert_eq!(get(instance, "/fs/read?path=/app/file.txt", None).await.unwrap(), (200, "text".to_owned()));

    let found = world.found("shop").await;
    assert_eq!((&found["state"], &found["instance"]), (&json!("RUNNING"), &json!(id)));
    let stats = &found["stats"];
    assert_eq!((&stats["port"], &stats["mem_quota"]), (&json!(instance.port()), &json!(64 << 20)));
    let used = world.in_use("shop").await;
    assert!(used["mem"].as_u64().unwrap() > 0 && used["disk"].as_u64().unwrap() > 0, "{used}");
    // It takes a second measurement to know how much one computes.
    assert_eq!(get(instance, "/spin?ms=100", None).await.unwrap().0, 200);
    eventually("another measurement", async || {
        let used = world.find("shop").await?["stats"]["usage"].clone();
        used["cpu"].as_f64().is_some_and(|cpu| cpu > 0.0).then_some(())
    })
    .await;
    assert_eq!(world.names("instances"), [id]);

    world.publish("dea.stop", &json!({ "droplet": "shop" }));
    assert_eq!(address(&next(&mut unregistered).await), instance);
    assert_eq!(next(&mut exited).await["reason"], "STOPPED");
    eventually("the end of the instance", async || (world.find("shop").await.is_none()).then_some(())).await;
    eventually("its files' end", async || (world.names("instances").is_empty() && world.names("crashes").is_empty()).then_some(())).await;
    eventually("its port's end", async || TcpStream::connect(instance).is_err().then_some(())).await;
}

pub(crate) async fn a_command_is_running_once_it_listens() {
    let world = World::new("").await;
    let mut registered = world.subscribe("router.register").await;
    let mut message = world.start_message(&guest("tests/command-driver"), "server");
    message["start_command"] = json!("driver sleep:300 serve");
    world.start(&message);
    let instance = address(&next(&mut registered).await);
    // Nobody retries here: RUNNING means that it answers.
    assert_eq!(get(instance, "/", None).await.unwrap(), (200, "command-driver\n".to_owned()));
    world.publish("dea.stop", &json!({ "droplet": "server" }));
    eventually("its port's end", async || TcpStream::connect(instance).is_err().then_some(())).await;
}

pub(crate) async fn an_app_without_routes_runs_at_once() {
    let world = World::new("").await;
    let mut registered = world.subscribe("router.register").await;
    let mut message = world.start_message(&guest("tests/command-driver"), "worker");
    message["uris"] = json!([]);
    message["start_command"] = json!("driver sleep:600000");
    world.start(&message);
    world.in_state("worker", "RUNNING").await;
    let (code, _) = world.shut_down().await;
    assert_eq!(code, 0);
    let nothing = tokio::time::timeout(Duration::from_millis(200), registered.next()).await;
    assert!(!matches!(nothing, Ok(Some(_))), "a route was registered: {nothing:?}");
}

/// What an app has written, as the bus tells it.
pub(crate) async fn lines(bus: &Bus, request: &Value) -> Vec<Value> {
    let answers = bus.request_many("dewar.logs", request, Duration::from_millis(300)).await.unwrap();
    answers.iter().map(|answer| serde_json::from_slice(&answer.payload).unwrap()).collect()
}

pub(crate) async fn log_lines_are_kept_and_followed() {
    let world = World::new("").await;
    let mut registered = world.subscribe("router.register").await;
    world.start(&world.start_message(&guest("tests/http-driver"), "shop"));
    let instance = address(&next(&mut registered).await);
    for text in ["one", "two"] {
        get(instance, &format!("/log?text={text}&stream=stderr"), None).await.unwrap();
    }
    let tail = eventually("two lines", async || {
        let lines = lines(&world.bus, &json!({ "droplet": "shop", "tail": 2 })).await;
        (lines.iter().map(|line| &line["text"]).eq(["one", "two"])).then_some(lines)
    })
    .await;
    assert_eq!((&tail[0]["source"], &tail[0]["index"], &tail[0]["stream"]), (&json!("APP"), &json!(0), &json!("err")));
    assert_eq!(lines(&world.bus, &json!({ "droplet": "other", "tail": 2 })).await, Vec::<Value>::new());

    let inbox = world.bus.new_inbox();
    let mut followed = world.subscribe(&inbox).await;
    world.bus.publish_reply("dewar.logs", &inbox, &json!({ "droplet": "shop", "follow_seconds": 60 })).unwrap();
    world.bus.flush(PATIENCE).await.unwrap();
    // The request and the next line take different ways to the agent, so the line is written until the lease is there.
    let line = eventually("a new line", async || {
        get(instance, "/log?text=three", None).await.unwrap();
        tokio::time::timeout(Duration::from_millis(100), next(&mut followed)).await.ok()
    })
    .await;
    assert_eq!((&line["text"], &line["stream"]), (&json!("three"), &json!("out")));

    let file = world.base.path().join("instances").join(&world.names("instances")[0]).join("logs/stderr.log");
    eventually("the log file", async || std::fs::read_to_string(&file).is_ok_and(|text| text == "one\ntwo\n").then_some(())).await;
}

pub(crate) async fn shutdown_stops_everything() {
    let world = World::new("").await;
    let bus = world.bus.clone();
    let mut goodbye = world.subscribe("dea.shutdown").await;
    let mut exited = world.subscribe("droplet.exited").await;
    let mut unregistered = world.subscribe("router.unregister").await;
    world.start(&world.start_message(&guest("tests/http-driver"), "shop"));
    world.in_state("shop", "RUNNING").await;
    let id = world.agent.id().clone();
    let (code, base) = world.shut_down().await;
    assert_eq!(code, 0);
    assert_eq!(next(&mut goodbye).await["id"], id.as_str());
    assert_eq!(next(&mut exited).await["reason"], "DEA_SHUTDOWN");
    assert_eq!(next(&mut unregistered).await["app"], "shop");
    assert_eq!(std::fs::read_dir(base.path().join("instances")).unwrap().count(), 0);
    let nobody = bus.request("dea.status", &json!({}), Duration::from_millis(300)).await;
    assert!(nobody.is_err(), "somebody still answers");
}
