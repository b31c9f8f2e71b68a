//! An agent that does not keep up with what is sent to it: messages are lost, which is told, and everything goes on.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::bare_protocol::World;
use crate::harness::{eventually, get_until, get_with, loopback};

/// A world with one running instance, and where that is.
fn serving() -> (World, SocketAddr) {
    let mut world = World::start_by(&[], "status: {user: me, password: word}\n");
    let sha1 = world.stage("t1", World::package())["droplet_sha1"].clone();
    let start = world.start_message(0, &sha1);
    world.nats.publish(&format!("dea.{}.start", world.dea), &start);
    let route = world.nats.expect("router.register", |_| true).json;
    (world, loopback(u16::try_from(route["port"].as_u64().unwrap()).unwrap()))
}

/// Messages that the agent says it has lost; none while it is too busy to say.
fn lost(status: SocketAddr) -> u64 {
    // "me:word" in base64.
    let response = get_with(status, "status", "/varz", "authorization: Basic bWU6d29yZA==\r\n").unwrap();
    if response.status == 503 {
        return 0;
    }
    serde_json::from_str::<Value>(&response.body).unwrap()["bus"]["slow_consumer"].as_u64().unwrap()
}

fn assert_all_is_well(world: &mut World, instance: SocketAddr) {
    get_until(instance, "shop.example.net", "/", 200);
    let app = world.start_message(0, &Value::Null)["droplet"].clone();
    // A question may be among what is lost.
    eventually("an answer", || {
        world.nats.ask("dea.find.droplet", "inbox.well", &json!({"droplet": app, "include_stats": true}));
        (world.nats.count_within("inbox.well", Duration::from_millis(200)) > 0).then_some(())
    });
    assert_eq!(world.nats.expect("inbox.well", |_| true).json["state"], "RUNNING");
    world.nats.forget();
    world.nats.expect("dea.heartbeat", |beat| beat.json["droplets"][0]["state"] == "RUNNING");
    world.nats.expect("dea.advertise", |_| true);
}

#[test]
fn more_requests_than_can_be_answered_are_dropped_counted_and_told() {
    let (mut world, instance) = serving();
    let announced = world.nats.expect("vcap.component.announce", |_| true).json;
    let status = announced["host"].as_str().unwrap().parse().unwrap();
    // Costly to read, cheap to send: while the agent reads one, hundreds of the others come.
    let ids: Vec<String> = (0..1000).map(|number| format!("{number:x}")).collect();
    let question = json!({"droplet": "nobody", "instances": ids}).to_string();
    // An agent that is quick has read them all before there are enough; then more are needed. But a server gives up on one that takes
    // nothing for 10 seconds, or has 64 MiB to take.
    let mut questions = 500;
    eventually("messages to be lost", || {
        questions = (questions * 2).min(6000);
        world.agent.signal("-STOP");
        world.nats.publish_many("dea.find.droplet", question.as_bytes(), questions);
        world.nats.publish_many("dea.find.droplet", b"{\"droplet\":\"nobody\"}", 24_000);
        world.agent.signal("-CONT");
        let deadline = Instant::now() + Duration::from_secs(10);
        while lost(status) == 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        (lost(status) > 0).then_some(())
    });
    world.agent.line("slow consumer, messages are being dropped");
    assert_all_is_well(&mut world, instance);
    world.agent.line("slow consumer has caught up");
}

#[test]
fn an_agent_that_its_server_has_thrown_out_comes_back() {
    let (mut world, instance) = serving();
    let junk = vec![b'x'; 1 << 20];
    world.agent.signal("-STOP");
    // More than a server holds back for anybody.
    for _ in 0..96 {
        world.nats.publish_bytes("dea.update", "nowhere", &junk);
    }
    world.server.line("Slow Consumer Detected");
    world.nats.forget();
    world.agent.signal("-CONT");
    // Whatever it had registered, it registers anew.
    let route = world.nats.expect("router.register", |_| true).json;
    assert_eq!(route["port"], instance.port());
    assert_all_is_well(&mut world, instance);
}
