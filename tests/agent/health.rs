//! What makes an instance RUNNING, and what it is told when it does not.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};

use crate::free_port::free_port;
use crate::world::{World, eventually, get, guest, next};

/// A world in which the only instance has this address, so that a test can reach it before it is routed.
async fn world_with_one_port() -> (World, SocketAddr) {
    let port = free_port();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    (World::new(&format!("instance: {{ ports: {{ first: {port}, last: {port} }} }}\n")).await, address)
}

/// Waits until the instance answers, and so is past its launch.
async fn answers(instance: SocketAddr) {
    eventually("an answer", async || get(instance, "/", None).await.ok()).await;
}

async fn state(world: &World) -> Value {
    world.found("shop").await["state"].clone()
}

pub(crate) async fn an_http_check_waits_for_a_200() {
    let (world, instance) = world_with_one_port().await;
    let mut message = world.start_message(&guest("tests/http-driver"), "shop");
    message["health_check_type"] = json!("http");
    message["health_check_http_endpoint"] = json!("/fs/read?path=/app/ready");
    world.start(&message);
    answers(instance).await;
    assert_eq!(state(&world).await, "STARTING", "it listens, but is not ready");
    assert_eq!(get(instance, "/fs/write?path=/app/ready&bytes=1", None).await.unwrap().0, 200);
    world.in_state("shop", "RUNNING").await;
}

pub(crate) async fn a_path_that_never_answers_200_is_told_to_the_developer() {
    let world = World::new("").await;
    let mut exited = world.subscribe("droplet.exited").await;
    let mut message = world.start_message(&guest("tests/http-driver"), "shop");
    message["health_check_type"] = json!("http");
    message["health_check_http_endpoint"] = json!("/status?code=503");
    // Long enough for one answer of an instance that is slow.
    message["health_check_timeout"] = json!(5);
    world.start(&message);
    assert_eq!(next(&mut exited).await["exit_description"], "failed to accept connections within health check timeout");
    let log = json!({ "droplet": "shop", "tail": 20 });
    for wanted in ["health check GET /status?code=503 answered 503", "failed to answer 200 to GET /status?code=503"] {
        eventually(wanted, async || {
            let lines = world.bus.request_many("dewar.logs", &log, Duration::from_millis(300)).await.unwrap();
            lines.iter().any(|line| String::from_utf8_lossy(&line.payload).contains(wanted)).then_some(())
        })
        .await;
    }
    message["health_check_http_endpoint"] = json!("no path");
    world.start(&message);
    assert_eq!(next(&mut exited).await["exit_description"], "failed to start");
}

pub(crate) async fn a_state_file_has_to_say_running() {
    let (world, instance) = world_with_one_port().await;
    let files = [("droplet.yaml", b"state_file: app/state.json".as_slice()), ("app/ready.json", br#"{"state": "RUNNING"}"#)];
    world.start(&world.start_message_with(&guest("tests/http-driver"), "shop", &files));
    answers(instance).await;
    assert_eq!(state(&world).await, "STARTING", "it listens, but its file is missing");
    assert_eq!(get(instance, "/fs/rename?path=/app/ready.json&to=/app/state.json", None).await.unwrap().0, 200);
    world.in_state("shop", "RUNNING").await;
}

pub(crate) async fn no_check_is_running_at_once() {
    let world = World::new("").await;
    let mut message = world.start_message(&guest("tests/command-driver"), "shop");
    message["start_command"] = json!("driver sleep:600000");
    message["health_check_type"] = json!("process");
    world.start(&message);
    world.in_state("shop", "RUNNING").await;
}
