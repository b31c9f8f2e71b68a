//! Servers that say what no NATS server says: the client neither panics nor gives up, and finds the true server afterwards.

use std::net::SocketAddr;
use std::time::Duration;

use dewar_bus::BusConfig;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::fixtures::{PATIENCE, TestBroker, any_port, connect_with, until_bound};

/// A reconnect costs a tenth of a second: an eighth of the cases that other properties get. `PROPTEST_CASES` raises both.
fn cases(runner: &TestRunner) -> u32 {
    runner.config().cases / 8
}

const INFO: &str =
    "INFO {\"server_id\":\"A\",\"version\":\"2.10.0\",\"proto\":1,\"headers\":true,\"max_payload\":1048576,\"host\":\"h\",\"port\":1}\r\n";

/// What a server may say after its INFO, and what it may not. A bare `-ERR` is left out: async-nats 0.51 panics on it.
const SAYINGS: [&str; 15] = [
    "PING\r\n",
    "PONG\r\n",
    "+OK\r\n",
    "-ERR 'Stale Connection'\r\n",
    "MSG news 1 5\r\nhello\r\n",
    "MSG news 1 reply 5\r\nhello\r\n",
    "MSG news 99 5\r\nhello\r\n",
    "MSG news 1 99999999999999999999\r\n",
    "MSG news 1 -1\r\n",
    "HMSG news 1 12 17\r\nNATS/1.0\r\n\r\nhello\r\n",
    "HMSG news 1 17 12\r\nNATS/1.0\r\n\r\nhello\r\n",
    "HMSG news 1 4 4\r\nNATS\r\n",
    "HMSG news 1 12 12\r\nNATS/1.0 503\r\n\r\n",
    INFO,
    "INFO {\"max_payload\":-1}\r\n",
];

fn speech() -> impl Strategy<Value = Vec<u8>> {
    let sayings =
        prop::collection::vec(prop::sample::select(SAYINGS.to_vec()), 0..8).prop_map(|sayings| [INFO, &sayings.concat()].concat());
    let faults = prop::collection::vec((any::<Index>(), 0..6_usize, prop::collection::vec(any::<u8>(), 0..6)), 0..4);
    (sayings, faults).prop_map(|(text, faults)| {
        let mut bytes = text.into_bytes();
        for (at, cut, put) in faults {
            let at = at.index(bytes.len().max(1)).min(bytes.len());
            let end = (at + cut).min(bytes.len());
            drop(bytes.splice(at..end, put));
        }
        bytes
    })
}

/// Says its part to one client and hangs up.
async fn speak(address: SocketAddr, bytes: &[u8]) {
    let listener = until_bound(async || TcpListener::bind(address).await).await;
    let (mut stream, _) = timeout(PATIENCE, listener.accept()).await.expect("the client comes").unwrap();
    // The client may hang up first.
    let _ = stream.write_all(bytes).await;
    // Time to take it in and to object.
    let _ = timeout(Duration::from_millis(20), stream.read_to_end(&mut Vec::new())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_server_does_the_client_no_harm() {
    let broker = TestBroker::start(any_port()).await;
    let address = broker.address;
    broker.stop().await;
    let mut runner = TestRunner::default();
    for _ in 0..cases(&runner) {
        let bytes = speech().new_tree(&mut runner).unwrap().current();
        let config = BusConfig { servers: vec![format!("nats://{address}")], name: "test".to_owned(), ..BusConfig::default() };
        let (bus, _events) = connect_with(config).await;
        let mut news = bus.subscribe("news").await.unwrap();
        speak(address, &bytes).await;
        let broker = TestBroker::start(dewar_bus::broker::BrokerConfig { listen: address, ..any_port() }).await;
        let shown = String::from_utf8_lossy(&bytes).into_owned();
        let works = timeout(PATIENCE, async {
            // Up may still be the word about the hostile server.
            while bus.flush(Duration::from_secs(1)).await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            bus.publish("news", &"true").unwrap();
            while news.next().await.unwrap().payload != b"\"true\""[..] {}
        });
        assert!(works.await.is_ok(), "after {shown:?} the client does not find the true server");
        drop((bus, news));
        broker.stop().await;
    }
}
