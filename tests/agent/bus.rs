//! The bus: messages that make no sense, too many of them, and no bus at all.

use std::net::SocketAddr;
use std::time::Duration;

use dewar_agent::Agent;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::free_port::free_port;
use crate::world::{EmbeddedBroker, PATIENCE, World, client, config, eventually, guest, next};

pub(crate) async fn a_malformed_message_does_no_harm() {
    let world = World::new("staging: { enabled: true }\n").await;
    let id = world.agent.id();
    let subjects = ["dea.stop", "dea.update", "dea.find.droplet", "dea.status", "dea.locate", "router.start", "healthmanager.start"];
    let staging = ["staging", "staging.stop", "staging.locate", "vcap.component.discover", "dewar.logs"];
    let directed = [format!("dea.{id}.start"), format!("staging.{id}.start")];
    for subject in subjects.iter().chain(&staging).copied().chain(directed.iter().map(String::as_str)) {
        for payload in ["", "{", "null", "7", "[]", "\"text\"", "{\"droplet\":{}}", "\u{0}", "{\"droplet\":\"a\",\"states\":[\"NONE\"]}"] {
            world.bus.publish_raw(subject, Some("nowhere"), payload.as_bytes().to_vec().into()).unwrap();
        }
    }
    let mut message = world.start_message(&guest("tests/command-driver"), "worker");
    message["uris"] = json!([]);
    message["start_command"] = json!("driver sleep:600000");
    let mut without_limits = message.clone();
    without_limits.as_object_mut().unwrap().remove("limits");
    world.start(&without_limits);
    world.start(&message);
    world.in_state("worker", "RUNNING").await;
}

pub(crate) async fn a_burst_of_starts_does_not_block_the_agent() {
    let world = World::new("resources: { memory_mb: 1000000, disk_mb: 1000000 }\n").await;
    let mut message = world.start_message(&guest("tests/command-driver"), "burst");
    message["uris"] = json!([]);
    message["start_command"] = json!("driver sleep:600000");
    message["limits"] = json!({ "mem": 1, "disk": 1, "fds": 16 });
    // Nobody has this droplet: each start ends by itself, after a download that was tried.
    message["sha1"] = json!("0123456789abcdef0123456789abcdef01234567");
    for index in 0..1000 {
        message["index"] = json!(index);
        world.start(&message);
    }
    let asked = Instant::now();
    let status = world.bus.request("dea.status", &json!({}), PATIENCE).await.unwrap();
    let waited = asked.elapsed();
    assert!(waited < Duration::from_secs(5), "the agent took {waited:?} to answer");
    let status: Value = serde_json::from_slice(&status.payload).unwrap();
    assert_eq!(status["id"], world.agent.id().as_str());
}

pub(crate) async fn after_an_outage_everything_is_announced_again() {
    let mut world = World::new("").await;
    let mut registered = world.subscribe("router.register").await;
    world.start(&world.start_message(&guest("tests/http-driver"), "shop"));
    let before = next(&mut registered).await;
    let address = world.broker.addr;
    let replacement = async {
        let old = std::mem::replace(&mut world.broker, EmbeddedBroker::start(0).await);
        old.end().await;
        EmbeddedBroker::start(address.port()).await
    };
    let new_broker = replacement.await;
    let bus = client(new_broker.addr).await;
    let mut registered = bus.subscribe("router.register").await.unwrap();
    let mut heartbeats = bus.subscribe("dea.heartbeat").await.unwrap();
    let mut advertised = bus.subscribe("dea.advertise").await.unwrap();
    assert_eq!(next(&mut registered).await["port"], before["port"]);
    assert_eq!(next(&mut heartbeats).await["droplets"][0]["state"], "RUNNING");
    assert_eq!(next(&mut advertised).await["app_id_to_count"]["shop"], 1);
    // Requests arrive as before.
    let found = eventually("an answer", async || {
        bus.request("dea.find.droplet", &json!({ "droplet": "shop" }), Duration::from_millis(500)).await.ok()
    })
    .await;
    assert!(!found.payload.is_empty());
}

pub(crate) async fn an_agent_waits_for_its_server() {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let base = tempfile::tempdir().unwrap();
    let stop = CancellationToken::new();
    let agent = Agent::start(config(base.path(), address, ""), stop.clone()).await.unwrap();
    let _broker = EmbeddedBroker::start(address.port()).await;
    let bus = client(address).await;
    let mut advertised = bus.subscribe("dea.advertise").await.unwrap();
    assert_eq!(next(&mut advertised).await["id"], agent.id().as_str());
    stop.cancel();
    assert_eq!(agent.wait().await, 0);
}

pub(crate) async fn routers_that_answer_the_greeting_get_all_routes() {
    let world = World::new("").await;
    let mut registered = world.subscribe("router.register").await;
    world.start(&world.start_message(&guest("tests/http-driver"), "shop"));
    next(&mut registered).await;
    // The agent's own interval is 5 s; a router that wants a route every second gets it at once and every second.
    let asked = Instant::now();
    world.publish(&world.greeting_inbox, &json!({ "id": "router", "minimumRegisterIntervalInSeconds": 1 }));
    for _ in 0..5 {
        assert_eq!(next(&mut registered).await["app"], "shop");
    }
    let waited = asked.elapsed();
    assert!(waited < Duration::from_secs(14), "five registrations took {waited:?}");
}

pub(crate) async fn an_agent_ends_without_its_server() {
    let World { agent, broker, stop, base, .. } = World::new("").await;
    broker.end().await;
    stop.cancel();
    let asked = Instant::now();
    assert_eq!(agent.wait().await, 0);
    let waited = asked.elapsed();
    assert!(waited < Duration::from_secs(9), "it took {waited:?}");
    assert_eq!(std::fs::read_dir(base.path().join("instances")).unwrap().count(), 0);
}
