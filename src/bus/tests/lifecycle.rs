//! Connections come and go.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dewar_bus::broker::BrokerConfig;
use dewar_bus::{BusAuth, BusConfig, BusError, BusEvent, Subscribe};
use dewar_protocol::Secret;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::fixtures::{NatsServer, PATIENCE, Raw, TestBroker, any_port, connect, connect_with, eventually, next_event};
use crate::free_port::free_port;

fn to(url: String) -> BusConfig {
    BusConfig { servers: vec![url], name: "test".to_owned(), ..BusConfig::default() }
}

fn a_closed_port() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()))
}

/// Publishing while the bus is down must fail at once, however often it is tried.
fn assert_publishing_fails_at_once(bus: &dewar_bus::Bus) {
    let (before, started) = (bus.counters().dropped, Instant::now());
    for _ in 0..10_000 {
        let error = bus.publish("dea.heartbeat", &json!({})).unwrap_err();
        assert!(matches!(error, BusError::Down { .. }), "{error}");
    }
    assert!(started.elapsed() < Duration::from_secs(5), "took {:?}", started.elapsed());
    assert_eq!(bus.counters().dropped, before + 10_000);
}

#[tokio::test]
async fn without_a_server_nothing_blocks_and_the_cause_is_told() {
    let address = a_closed_port();
    let (bus, _events) = connect_with(to(format!("nats://cf:hunter2@{address}"))).await;
    assert_publishing_fails_at_once(&bus);
    eventually("the refusal is known", || !bus.is_up()).await;
    let error = loop {
        match bus.wait_up(Duration::from_millis(200)).await.unwrap_err() {
            BusError::Unreachable { cause, .. } if cause.contains("connecting") => {}
            error => break error,
        }
    };
    let shown = error.to_string();
    assert!(shown.contains(&format!("nats://{address}")) && shown.contains("refused"), "{shown}");
    assert!(!shown.contains("hunter2") && !format!("{bus:?}").contains("hunter2"), "{shown} {bus:?}");
    let error = bus.request("a", &json!({}), PATIENCE).await.unwrap_err();
    assert!(matches!(error, BusError::Down { .. }), "{error}");
    let error = bus.flush(PATIENCE).await.unwrap_err();
    assert!(matches!(error, BusError::Down { .. }), "{error}");
}

#[tokio::test]
async fn a_server_that_comes_late_finds_the_subscriptions() {
    let address = a_closed_port();
    let (bus, mut events) = connect_with(to(format!("nats://{address}"))).await;
    let mut subscription = bus.subscribe("early").await.unwrap();
    let broker = TestBroker::start(BrokerConfig { listen: address, ..any_port() }).await;
    assert_eq!(next_event(&mut events).await, BusEvent::Up);
    let other = connect(&broker.url()).await;
    bus.flush(PATIENCE).await.unwrap();
    other.publish("early", &1).unwrap();
    assert_eq!(timeout(PATIENCE, subscription.next()).await.unwrap().unwrap().payload, "1");
}

/// Down and up, with whatever server stops and starts again on the same address.
async fn survives_a_restart<S, Stop: Future<Output = ()>, Start: Future<Output = S>>(
    url: String,
    stop: impl FnOnce() -> Stop,
    start: impl FnOnce() -> Start,
) -> S {
    let (bus, mut events) = connect_with(to(url.clone())).await;
    assert_eq!(next_event(&mut events).await, BusEvent::Up);
    let mut plain = bus.subscribe("news.*").await.unwrap();
    let mut grouped = bus.subscribe_all(&[Subscribe { subject: "work", group: Some("group") }]).await.unwrap();
    bus.flush(PATIENCE).await.unwrap();

    stop().await;
    assert_eq!(next_event(&mut events).await, BusEvent::Down);
    assert_publishing_fails_at_once(&bus);

    let server = start().await;
    assert_eq!(next_event(&mut events).await, BusEvent::Up);
    bus.wait_up(PATIENCE).await.unwrap();
    bus.flush(PATIENCE).await.unwrap();
    let other = connect(&url).await;
    other.publish("news.today", &"n").unwrap();
    other.publish("work", &"w").unwrap();
    assert_eq!(timeout(PATIENCE, plain.next()).await.unwrap().unwrap().subject, "news.today");
    assert_eq!(timeout(PATIENCE, grouped.next()).await.unwrap().unwrap().subject, "work");
    assert!(events.try_recv().is_err(), "nothing else has happened");
    server
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_broker_stops_and_starts_again() {
    let broker = TestBroker::start(any_port()).await;
    let (address, url) = (broker.address, broker.url());
    let again = || TestBroker::start(BrokerConfig { listen: address, ..any_port() });
    let again = survives_a_restart(url, || broker.stop(), again).await;
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nats_server_is_killed_and_starts_again() {
    let server = NatsServer::start("").await;
    let (port, url) = (server.address.port(), server.url());
    let kill = async || {
        server.kill();
    };
    survives_a_restart(url, kill, || NatsServer::start_on(port, "")).await;
}

#[tokio::test]
async fn transitions_that_nobody_reads_do_not_get_in_the_way() {
    let mut broker = TestBroker::start(any_port()).await;
    let (bus, mut events) = connect_with(to(broker.url())).await;
    for _ in 0..3 {
        bus.wait_up(PATIENCE).await.unwrap();
        let address = broker.address;
        broker.stop().await;
        eventually("the loss is noticed", || !bus.is_up()).await;
        broker = TestBroker::start(BrokerConfig { listen: address, ..any_port() }).await;
    }
    bus.wait_up(PATIENCE).await.unwrap();
    let mut last = next_event(&mut events).await;
    assert_eq!(last, BusEvent::Up);
    for _ in 0..6 {
        let event = next_event(&mut events).await;
        assert_ne!(event, last, "they alternate");
        last = event;
    }
    assert_eq!(last, BusEvent::Up);
    drop(events);
    bus.flush(PATIENCE).await.unwrap();
}

#[tokio::test]
async fn a_stopping_broker_says_so_and_closes() {
    let broker = TestBroker::start(BrokerConfig { lame_duck: PATIENCE, ..any_port() }).await;
    let mut modern = Raw::join(broker.address, ",\"protocol\":1").await;
    let mut old = Raw::join(broker.address, "").await;
    broker.begin_stop();
    let heard = {
        let mut reader = BufReader::new(&mut modern.stream);
        let mut line = String::new();
        timeout(PATIENCE, reader.read_line(&mut line)).await.unwrap().unwrap();
        line
    };
    assert!(heard.starts_with("INFO {") && heard.contains("\"ldm\":true"), "{heard:?}");
    assert_eq!(modern.sync().await, "", "it still serves");
    assert_eq!(old.sync().await, "", "an old client is not confused by a second INFO");
    assert!(tokio::net::TcpStream::connect(broker.address).await.is_err(), "it takes nobody in");
    drop(modern);
    drop(old);
    broker.stop().await;
}

#[tokio::test]
async fn a_stopping_broker_does_not_wait_for_ever() {
    let broker = TestBroker::start(BrokerConfig { lame_duck: Duration::from_millis(50), ..any_port() }).await;
    let mut client = Raw::join(broker.address, "").await;
    client.say(b"SUB last 1\r\n").await;
    client.sync().await;
    client.say(b"PUB last 5\r\nwords\r\n").await;
    assert_eq!(client.hear_until("words\r\n").await, "MSG last 1 5\r\nwords\r\n");
    let started = Instant::now();
    broker.stop().await;
    assert!(started.elapsed() < PATIENCE / 2, "took {:?}", started.elapsed());
    assert_eq!(client.hear_all().await, "");
}

/// A server that greets and then reads nothing: the client's queue fills, publishing fails, and nothing waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_does_not_read_fills_the_queue() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    let (bus, _events) = connect_with(to(url)).await;
    let (stream, _) = listener.accept().await.unwrap();
    let mut stream = BufReader::new(stream);
    stream.write_all(b"INFO {\"server_id\":\"x\",\"max_payload\":1048576,\"proto\":1,\"headers\":true}\r\n").await.unwrap();
    let mut line = String::new();
    while !line.ends_with("PING\r\n") {
        stream.read_line(&mut line).await.unwrap();
    }
    stream.write_all(b"PONG\r\n").await.unwrap();
    bus.wait_up(PATIENCE).await.unwrap();
    let payload = Bytes::from(vec![0; 100_000]);
    let started = Instant::now();
    let refused = loop {
        match bus.publish_raw("stuck", None, payload.clone()) {
            Ok(()) => assert!(bus.counters().published < 20_000, "nothing bounds the queue"),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, BusError::QueueFull { .. }), "{refused}");
    assert!(started.elapsed() < Duration::from_secs(10), "took {:?}", started.elapsed());
    let error = bus.flush(Duration::from_millis(100)).await.unwrap_err();
    assert!(matches!(error, BusError::QueueFull { .. } | BusError::Timeout { .. }), "{error}");
}

#[tokio::test]
async fn a_dropped_client_leaves() {
    let broker = TestBroker::start(BrokerConfig { lame_duck: PATIENCE * 2, ..any_port() }).await;
    let bus = connect(&broker.url()).await;
    let subscription = bus.subscribe("a").await.unwrap();
    bus.flush(PATIENCE).await.unwrap();
    drop(bus);
    drop(subscription);
    // It would wait twice as long for a client that stays.
    broker.stop().await;
}

#[tokio::test]
async fn wrong_credentials_are_the_cause_that_is_told() {
    let auth = dewar_bus::broker::BrokerAuth::Token(Secret("right".to_owned()));
    let broker = TestBroker::start(BrokerConfig { auth, ..any_port() }).await;
    let config = BusConfig { auth: BusAuth::Token(Secret("hunter2".to_owned())), ..to(broker.url()) };
    let (bus, _events) = connect_with(config).await;
    let error = loop {
        match bus.wait_up(Duration::from_millis(200)).await.unwrap_err() {
            BusError::Unreachable { cause, .. } if cause.contains("connecting") => {}
            error => break error.to_string(),
        }
    };
    assert!(error.to_lowercase().contains("authorization violation") && !error.contains("hunter2"), "{error}");
}
