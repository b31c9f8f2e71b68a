//! The agent runs out of file descriptors, and gets some again.

use std::fs;
use std::net::TcpStream;

use serde_json::json;

use crate::bare_protocol::World;
use crate::harness::{eventually, get_until, loopback};

/// Enough for a start and for staging, and less than one instance takes connections.
const LIMIT: u32 = 160;

#[test]
fn an_agent_without_descriptors_lives_refuses_and_recovers() {
    let limited = format!("ulimit -n {LIMIT}; exec \"$@\"");
    let mut world = World::start_by(&["sh", "-c", &limited, "sh"], "");
    world.agent.line("the limit on open files (RLIMIT_NOFILE) is too low");
    let sha1 = world.stage("first", World::package())["droplet_sha1"].clone();
    let subject = format!("dea.{}.start", world.dea);
    world.nats.publish(&subject, &world.start_message(0, &sha1));
    let route = world.nats.expect("router.register", |_| true).json;
    let instance = loopback(u16::try_from(route["port"].as_u64().unwrap()).unwrap());
    assert_eq!(get_until(instance, "shop.example.net", "/", 200).body, "http-driver");

    let held: Vec<TcpStream> = (0..LIMIT).map(|_| TcpStream::connect(instance).unwrap()).collect();
    world.agent.line("cannot accept a connection for an instance");
    let descriptors = format!("/proc/{}/fd", world.agent.id());
    let open = || fs::read_dir(&descriptors).unwrap().count();
    eventually("all descriptors to be taken", || (open() > LIMIT as usize - 10).then_some(()));

    world.nats.publish(&subject, &world.start_message(1, &sha1));
    let exited = world.nats.expect("droplet.exited", |_| true).json;
    assert_eq!((&exited["reason"], &exited["index"]), (&json!("CRASHED"), &json!(1)));
    let refused = world.agent.line("instance failed to start");
    assert!(refused.contains("Too many open files"), "{refused}");
    let reply = world.try_stage("second", World::package());
    assert!(reply["error"].as_str().unwrap().contains("Too many open files"), "{reply}");
    let is_told = |beat: &crate::nats::Message| {
        let states: Vec<_> = beat.json["droplets"].as_array().unwrap().iter().map(|entry| entry["state"].clone()).collect();
        states == ["RUNNING", "CRASHED"]
    };
    world.nats.expect("dea.heartbeat", is_told);

    drop(held);
    eventually("descriptors to be free again", || (open() < LIMIT as usize / 2).then_some(()));
    assert_eq!(get_until(instance, "shop.example.net", "/", 200).body, "http-driver");
    world.stage("third", World::package());
    world.nats.publish(&subject, &world.start_message(2, &sha1));
    world.nats.expect("router.register", |it| it.json["port"] != route["port"]);
    world.agent.signal("-TERM");
    assert_eq!(world.agent.exit().code(), Some(0));
}
