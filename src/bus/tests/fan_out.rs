//! One publisher and a thousand subscriptions, some of whose owners do not keep up: the others lose nothing, those are cut off. The
//! same on a real nats-server.

use std::net::SocketAddr;

use dewar_bus::broker::BrokerConfig;

use crate::fixtures::{NatsServer, Raw, TestBroker, any_port};

/// A thousand subscriptions by few enough sockets for the usual limit of 1024 descriptors.
const CLIENTS: usize = 250;
const SUBSCRIPTIONS: usize = 4;
const LAGGARDS: usize = 3;
const MESSAGES: usize = 60;

/// For a client that does not read: less than what is sent to the laggards beyond all that sockets hold.
const MAX_PENDING: usize = 2 << 20;
const LOAD_BYTES: usize = 64 << 10;
const LOADS_PER_MESSAGE: usize = 6;

/// Ends each message, and nothing else does.
const END: char = '#';

/// The numbers of the messages that each subscription got, in order.
fn numbers(heard: &str) -> [Vec<usize>; SUBSCRIPTIONS] {
    let mut seen = [const { Vec::new() }; SUBSCRIPTIONS];
    let mut lines = heard.split("\r\n").filter(|line| !line.is_empty());
    while let (Some(line), Some(body)) = (lines.next(), lines.next()) {
        let words: Vec<&str> = line.split(' ').collect();
        let ["MSG", "fan", sid, _] = words[..] else { panic!("{line:?} is no message") };
        seen[sid.parse::<usize>().unwrap()].push(body.trim_start().trim_end_matches(END).parse().unwrap());
    }
    seen
}

async fn everybody_gets_everything_but_those_who_do_not_read(address: SocketAddr) {
    let mut laggards = Vec::new();
    for _ in 0..LAGGARDS {
        let mut raw = Raw::join(address, "").await;
        raw.say(b"SUB fan 0\r\nSUB load 1\r\n").await;
        raw.sync().await;
        laggards.push(raw);
    }
    let mut readers = Vec::new();
    for _ in 0..CLIENTS {
        let mut raw = Raw::join(address, "").await;
        let subscribe: String = (0..SUBSCRIPTIONS).map(|sid| format!("SUB fan {sid}\r\n")).collect();
        raw.say(subscribe.as_bytes()).await;
        raw.sync().await;
        readers.push(tokio::spawn(async move { raw.hear_count(&format!("{END}\r\n"), MESSAGES * SUBSCRIPTIONS).await }));
    }
    let mut publisher = Raw::join(address, "").await;
    let load = [format!("PUB load {LOAD_BYTES}\r\n").as_bytes(), &vec![b'x'; LOAD_BYTES], b"\r\n"].concat();
    for number in 0..MESSAGES {
        publisher.say(format!("PUB fan 5\r\n{number:4}{END}\r\n").as_bytes()).await;
        for _ in 0..LOADS_PER_MESSAGE {
            publisher.say(&load).await;
        }
    }
    publisher.sync().await;
    let all: Vec<usize> = (0..MESSAGES).collect();
    for reader in readers {
        for seen in numbers(&reader.await.unwrap()) {
            assert_eq!(seen, all, "a subscription lost or doubled messages");
        }
    }
    for mut laggard in laggards {
        // What was under way still arrives, then the end.
        let heard = laggard.hear_all().await;
        assert!(heard.len() < MESSAGES * LOADS_PER_MESSAGE * LOAD_BYTES, "served, not cut off: {} bytes", heard.len());
    }
    assert!(!publisher.closed, "the publisher broke no rule");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_subscriptions_on_the_broker() {
    let broker = TestBroker::start(BrokerConfig { max_pending: MAX_PENDING, ..any_port() }).await;
    everybody_gets_everything_but_those_who_do_not_read(broker.address).await;
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_subscriptions_on_nats_server() {
    let server = NatsServer::start(&format!("max_pending: {MAX_PENDING}")).await;
    everybody_gets_everything_but_those_who_do_not_read(server.address).await;
}
