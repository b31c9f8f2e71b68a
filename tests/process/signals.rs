//! What a service manager tells an agent by signals.

use std::io::{ErrorKind, Read as _, Write as _};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::bare_protocol::World;
use crate::harness::{PATIENCE, get_until, loopback};

#[test]
fn term_int_and_quit_end_an_agent_and_take_its_pid_file_along() {
    for signal in ["-TERM", "-INT", "-QUIT"] {
        let mut world = World::start_by(&[], "");
        let pid_file = world.dir.path().join("base.pid");
        assert_eq!(std::fs::read_to_string(&pid_file).unwrap().trim(), world.agent.id().to_string());
        world.agent.signal(signal);
        world.nats.expect("dea.shutdown", |bye| bye.json["id"] == world.dea.as_str());
        assert_eq!(world.agent.exit().code(), Some(0), "{signal}");
        assert!(!pid_file.exists(), "{signal}");
    }
}

#[test]
fn usr1_takes_it_out_of_placement_as_often_as_it_comes_and_usr2_ends_it_when_it_is_empty() {
    let mut world = World::start_by(&[], "");
    for _ in 0..2 {
        world.agent.signal("-USR1");
        world.nats.expect("dea.shutdown", |_| true);
    }
    world.nats.forget();
    world.nats.publish("dea.locate", &json!({}));
    for _ in 0..3 {
        world.nats.expect("dea.heartbeat", |_| true);
    }
    assert_eq!(world.nats.count_within("dea.advertise", Duration::from_millis(10)), 0);
    world.agent.signal("-USR2");
    world.nats.expect("dea.shutdown", |_| true);
    assert_eq!(world.agent.exit().code(), Some(0));
}

#[test]
fn a_second_signal_insists() {
    let mut world = World::start_by(&[], "");
    let sha1 = world.stage("t1", World::package())["droplet_sha1"].clone();
    let start = world.start_message(0, &sha1);
    world.nats.publish(&format!("dea.{}.start", world.dea), &start);
    let route = world.nats.expect("router.register", |_| true).json;
    let instance = loopback(u16::try_from(route["port"].as_u64().unwrap()).unwrap());
    let mut client = std::net::TcpStream::connect(instance).unwrap();
    client.write_all(b"GET /sleep?ms=60000 HTTP/1.1\r\nhost: shop.example.net\r\n\r\n").unwrap();
    // Who comes later is answered, so that the first request is in work.
    get_until(instance, "shop.example.net", "/", 200);
    world.agent.signal("-TERM");
    world.agent.line("stopping");
    let began = Instant::now();
    world.agent.signal("-QUIT");
    assert_eq!(world.agent.exit().code(), Some(130));
    assert!(began.elapsed() < Duration::from_secs(9), "it did not wait for the instance, which has ten seconds");
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let noticed = client.read(&mut [0; 100]);
    assert!(!noticed.as_ref().is_err_and(|error| error.kind() == ErrorKind::WouldBlock), "{noticed:?}");
}
