//! What goes wrong around a platform: servers that come late or go, bad configurations, two agents in one place.

use std::time::Duration;

use serde_json::json;

use crate::harness::{Client, Process, eventually, free_port, get, get_until, loopback, nats_server};
use crate::nats::Nats;
use crate::three_processes::{Broker, Platform, start_agent};

#[test]
fn a_server_that_comes_late_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let agent = start_agent(dir.path(), port);
    agent.line("127.0.0.1");
    let _server = nats_server(port);
    let mut nats = Nats::connect(loopback(port));
    nats.subscribe("dea.advertise");
    let advertised = nats.expect("dea.advertise", |_| true).json;
    assert_eq!(advertised["available_memory"], 4096);
}

#[test]
fn a_lost_server_costs_no_instance_and_no_route() {
    let mut platform = Platform::start(Broker::NatsServer);
    let package = platform.driver_package();
    platform.client.must(&["push", "shop", "-p", &package, "-m", "64M", "-k", "32M", "--route", "shop.example.net"]);
    assert_eq!(platform.body("shop.example.net", "/"), "http-driver");

    platform.broker.signal("-KILL");
    platform.broker.exit();
    for _ in 0..20 {
        let response = get(loopback(platform.router_port), "shop.example.net", "/").expect("the router answers");
        assert_eq!(response.status, 200, "routes stay while the bus is away");
    }

    platform.broker = nats_server(platform.nats_port);
    let mut nats = Nats::connect(loopback(platform.nats_port));
    for subject in ["dea.heartbeat", "router.register", "dea.advertise"] {
        nats.subscribe(subject);
    }
    nats.expect("dea.heartbeat", |beat| beat.json["droplets"][0]["state"] == "RUNNING");
    nats.expect("router.register", |route| route.json["uris"] == json!(["shop.example.net"]));
    assert_eq!(platform.body("shop.example.net", "/"), "http-driver");
    platform.client.must(&["scale", "shop", "-i", "2"]);
}

#[test]
fn a_bad_configuration_names_every_key_and_ends_with_64() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("agent.yml");
    std::fs::write(&config, "base_dir: 7\nresources: {memory_mb: plenty}\nintervals: {heartbeat: -1}\n").unwrap();
    let mut agent = Process::dewar(&["agent", "--config", config.to_str().unwrap()]);
    assert_eq!(agent.exit().code(), Some(64));
    let printed = eventually("the errors", || Some(agent.printed()).filter(|printed| printed.contains("intervals.heartbeat")));
    assert!(printed.contains("resources.memory_mb"), "{printed}");
}

#[test]
fn two_agents_cannot_share_a_base_directory() {
    let platform = Platform::start(Broker::Embedded);
    platform.client.must(&["agents"]);
    let mut second = start_agent(platform.dir.path(), platform.nats_port);
    assert_ne!(second.exit().code(), Some(0));
    let base = platform.dir.path().join("base").display().to_string();
    eventually("the cause", || Some(()).filter(|()| second.printed().contains(&base)));
}

#[test]
fn a_client_without_a_bus_says_so_at_once_with_a_hint() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let client = Client { nats: format!("nats://someone:sesame@127.0.0.1:{port}"), home: dir.path().to_owned() };
    let began = std::time::Instant::now();
    let done = client.run(&["apps"]);
    assert_ne!(done.code, 0);
    assert!(done.stderr.contains(&format!("127.0.0.1:{port}")) && done.stderr.contains("hint"), "{}", done.stderr);
    assert!(!done.stderr.contains("sesame"), "{}", done.stderr);
    assert!(began.elapsed() < Duration::from_secs(30));
}

#[test]
fn a_hostile_app_leaves_its_neighbour_alone() {
    let platform = Platform::start(Broker::Embedded);
    let package = platform.driver_package();
    for app in ["good", "evil"] {
        let host = format!("{app}.example.net");
        platform.client.must(&["push", app, "-p", &package, "-m", "64M", "-k", "16M", "--route", &host]);
    }
    let router = loopback(platform.router_port);
    std::thread::scope(|scope| {
        for attack in [
            "/spin?ms=2000",
            "/hog",
            "/fs/fill?path=/tmp/fat&chunk=65536",
            "/flood?lines=100000&bytes=100",
            "/overflow",
            "/grow?bytes=99999999",
        ] {
            scope.spawn(move || get(router, "evil.example.net", attack));
        }
        for _ in 0..50 {
            let answer = get(router, "good.example.net", "/").expect("the router answers");
            assert_eq!((answer.status, answer.body.as_str()), (200, "http-driver"));
        }
    });
    get_until(router, "good.example.net", "/", 200);
}
