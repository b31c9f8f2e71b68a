//! Clients that do what they must not, on the embedded broker; their neighbours must not notice.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use dewar_bus::Bus;
use dewar_bus::broker::{BrokerAuth, BrokerConfig};
use dewar_protocol::Secret;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use crate::fixtures::{PATIENCE, Raw, TestBroker, any_port, connect};

/// Two well-behaved clients that keep talking.
struct Neighbours {
    one: Bus,
    other: Bus,
}

impl Neighbours {
    async fn of(broker: &TestBroker) -> Self {
        Self { one: connect(&broker.url()).await, other: connect(&broker.url()).await }
    }

    async fn talk(&self) {
        let mut news = self.one.subscribe("neighbours.news").await.unwrap();
        self.one.flush(PATIENCE).await.unwrap();
        for number in 0..50 {
            self.other.publish("neighbours.news", &number).unwrap();
        }
        for number in 0..50 {
            let message = timeout(PATIENCE, news.next()).await.expect("neighbours hear each other").unwrap();
            assert_eq!(serde_json::from_slice::<u32>(&message.payload).unwrap(), number);
        }
    }
}

/// Says `bytes` right after connecting; returns what it is told before the broker closes.
async fn cut_off(address: SocketAddr, bytes: &[u8]) -> String {
    let (mut raw, _) = Raw::connect(address).await;
    raw.say(bytes).await;
    raw.hear_all().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_is_cut_off_and_told_why() {
    let broker = TestBroker::start(any_port()).await;
    let neighbours = Neighbours::of(&broker).await;
    let long_line = [b"SUB ", &*vec![b'a'; 100_000]].concat();
    let noise: Vec<u8> = (0..100_000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    let flood_after_error = [b"NOPE\r\n", &*vec![b'x'; 3 << 20]].concat();
    let table: [(&[u8], &str); 9] = [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "Unknown Protocol Operation"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "Unknown Protocol Operation"),
        (b"\0\0\0\0", "Unknown Protocol Operation"),
        (b"PUB a 99999999999999999999\r\n", "Unknown Protocol Operation"),
        (b"PUB a 1048577\r\n", "Maximum Payload Violation"),
        (b"HPUB a 5 999999999\r\n", "Maximum Payload Violation"),
        (&long_line, "maximum control line exceeded"),
        (&noise, "Unknown Protocol Operation"),
        (&flood_after_error, "Unknown Protocol Operation"),
    ];
    for (bytes, reason) in table {
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned();
        let told = cut_off(broker.address, bytes).await;
        assert!(told.ends_with(&format!("-ERR '{reason}'\r\n")), "{shown:?}: {told:?}");
        neighbours.talk().await;
    }
    for json in ["", "{", "[]", "7", "{\"verbose\":\"yes\"}", "{\"user\":[1]}", &"[".repeat(4000)] {
        let told = cut_off(broker.address, format!("CONNECT {json}\r\n").as_bytes()).await;
        assert_eq!(told, "-ERR 'Unknown Protocol Operation'\r\n", "{json}");
    }
    broker.stop().await;
}

/// Closing a socket with unread bytes in it would throw away what the client has not read yet, the reason among it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_reason_is_heard_even_late() {
    let broker = TestBroker::start(any_port()).await;
    let mut raw = Raw::join(broker.address, "").await;
    raw.say(b"SUB big 1\r\nPUB big 1000000\r\n").await;
    raw.say(&vec![b'x'; 1_000_000]).await;
    raw.say(b"\r\nNONSENSE\r\n").await;
    raw.say(&vec![b'y'; 1_000_000]).await;
    let heard = raw.hear_all().await;
    assert!(heard.len() > 1_000_000, "{} bytes", heard.len());
    assert!(heard.ends_with("-ERR 'Unknown Protocol Operation'\r\n"));
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_messages_wait_without_harm() {
    let broker = TestBroker::start(any_port()).await;
    let neighbours = Neighbours::of(&broker).await;
    let mut halves = Vec::new();
    for half in ["P", "PUB a 1048576\r\n", "PUB a 10\r\nhalf", "CONNECT {\"verb", "SUB neigh", "HPUB a 12 14\r\nNATS"] {
        let (mut raw, _) = Raw::connect(broker.address).await;
        raw.say(half.as_bytes()).await;
        halves.push(raw);
    }
    neighbours.talk().await;
    let mut half = halves.remove(2);
    half.say(b" done!\r\n").await;
    assert_eq!(half.hear_until("+OK\r\n").await, "+OK\r\n", "the other half may come later");
    for half in &mut halves {
        half.stream.shutdown().await.unwrap();
        assert_eq!(half.hear_all().await, "");
    }
    neighbours.talk().await;
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_stops_reading_is_cut_off() {
    let config = BrokerConfig { max_pending: 4 << 20, write_deadline: Duration::from_secs(60), ..any_port() };
    let broker = TestBroker::start(config).await;
    let neighbours = Neighbours::of(&broker).await;
    let mut slow = Raw::join(broker.address, "").await;
    slow.say(b"SUB flood 1\r\n").await;
    slow.sync().await;
    let mut flooder = Raw::join(broker.address, "").await;
    let message = [&b"PUB flood 65536\r\n"[..], &vec![b'x'; 65536], b"\r\n"].concat();
    // More than the broker's bound and everything that sockets hold.
    for _ in 0..400 {
        flooder.say(&message).await;
    }
    flooder.sync().await;
    neighbours.talk().await;
    assert!(!flooder.closed, "the flooder itself broke no rule");
    // What was underway still arrives, then the end.
    let heard = slow.hear_all().await;
    assert!(heard.len() < 400 * 65536, "it was cut off, not served: {} bytes", heard.len());
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_takes_too_long_is_the_end() {
    let config = BrokerConfig { write_deadline: Duration::from_millis(200), ..any_port() };
    let broker = TestBroker::start(config).await;
    let mut slow = Raw::join(broker.address, "").await;
    slow.say(b"SUB flood 1\r\n").await;
    slow.sync().await;
    let mut flooder = Raw::join(broker.address, "").await;
    let message = [&b"PUB flood 65536\r\n"[..], &vec![b'x'; 65536], b"\r\n"].concat();
    // Far below the bound on waiting bytes, above what sockets hold.
    for _ in 0..300 {
        flooder.say(&message).await;
    }
    flooder.sync().await;
    let gone = timeout(PATIENCE, async {
        let mut observer = Raw::join(broker.address, ",\"headers\":true,\"no_responders\":true").await;
        observer.say(b"SUB me 1\r\n").await;
        loop {
            observer.say(b"PUB flood me 0\r\n\r\n").await;
            if observer.sync().await.contains("503") {
                return;
            }
        }
    });
    gone.await.expect("the slow reader is gone");
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_never_reads_its_answers_is_cut_off() {
    let config = BrokerConfig { max_pending: 2 << 20, ..any_port() };
    let broker = TestBroker::start(config).await;
    let neighbours = Neighbours::of(&broker).await;
    let (mut raw, _) = Raw::connect(broker.address).await;
    let pings = b"PING\r\n".repeat(10_000);
    let started = Instant::now();
    while !raw.closed && started.elapsed() < PATIENCE {
        raw.say(&pings).await;
    }
    assert!(raw.closed, "pings without end are taken in");
    neighbours.talk().await;
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_leaves_room_for_others() {
    let broker = TestBroker::start(any_port()).await;
    let neighbours = Neighbours::of(&broker).await;
    let address = broker.address;
    let flooders: Vec<_> = (0..4)
        .map(|_| {
            tokio::spawn(async move {
                let mut raw = Raw::join(address, "").await;
                let messages = b"PUB nobody.listens 8\r\nflooding\r\n".repeat(2000);
                loop {
                    raw.stream.write_all(&messages).await.unwrap();
                }
            })
        })
        .collect();
    let started = Instant::now();
    for _ in 0..5 {
        neighbours.talk().await;
    }
    assert!(started.elapsed() < PATIENCE, "took {:?}", started.elapsed());
    for flooder in &flooders {
        assert!(!flooder.is_finished(), "flooding breaks no rule");
        flooder.abort();
    }
}

#[tokio::test]
async fn numbers_of_clients_and_subscriptions_are_bounded() {
    let broker = TestBroker::start(BrokerConfig { max_connections: 3, max_subscriptions: 2, ..any_port() }).await;
    let mut first = Raw::join(broker.address, "").await;
    let second = Raw::join(broker.address, "").await;
    let third = Raw::join(broker.address, "").await;
    let mut fourth = Raw::connect_silently(broker.address).await;
    assert_eq!(fourth.hear_all().await, "-ERR 'maximum connections exceeded'\r\n");
    drop((second, third));
    timeout(PATIENCE, async { while Raw::connect_silently(broker.address).await.hear_until("\r\n").await.starts_with("-ERR") {} })
        .await
        .expect("there is room again");

    first.say(b"SUB a 1\r\nSUB b 2\r\nSUB c 3\r\n").await;
    assert_eq!(first.sync().await, "-ERR 'maximum subscriptions exceeded'\r\n");
    first.say(b"UNSUB 1\r\nSUB c 3\r\nPUB a 1\r\nx\r\nPUB c 1\r\ny\r\n").await;
    assert_eq!(first.sync().await, "MSG c 3 1\r\ny\r\n", "one given up makes room for another");
    // Subscriptions that have run out make room, too.
    for number in 10..20 {
        first.say(format!("UNSUB 2\r\nSUB b {number}\r\nUNSUB {number} 1\r\nPUB b 1\r\nz\r\n").as_bytes()).await;
        assert_eq!(first.sync().await, format!("MSG b {number} 1\r\nz\r\n"));
    }
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_counted_subscription_gets_no_more_from_many_at_once() {
    let broker = TestBroker::start(any_port()).await;
    let mut counted = Raw::join(broker.address, "").await;
    for round in 0..20 {
        counted.say(format!("SUB race {round}\r\nUNSUB {round} 100\r\n").as_bytes()).await;
        counted.sync().await;
        let mut publishers = tokio::task::JoinSet::new();
        for _ in 0..4 {
            let mut raw = Raw::join(broker.address, "").await;
            publishers.spawn(async move {
                raw.say(&b"PUB race 1\r\nx\r\n".repeat(200)).await;
                raw.sync().await;
            });
        }
        publishers.join_all().await;
        assert_eq!(counted.sync().await.matches("MSG race").count(), 100, "round {round}");
    }
    broker.stop().await;
}

#[tokio::test]
async fn the_silent_are_pinged_and_then_given_up() {
    let config = BrokerConfig { ping_interval: Duration::from_millis(100), ..any_port() };
    let broker = TestBroker::start(config).await;
    let mut dead = Raw::join(broker.address, "").await;
    dead.hears_pings = true;
    let alive = connect(&broker.url()).await;
    let heard = dead.hear_all().await;
    assert_eq!(heard, "PING\r\nPING\r\n-ERR 'Stale Connection'\r\n");
    assert!(alive.is_up());
    alive.flush(PATIENCE).await.unwrap();
    broker.stop().await;
}

#[tokio::test]
async fn credentials_are_demanded_first_and_soon() {
    let auth = BrokerAuth::UserPassword { user: "cf".to_owned(), password: Secret("pw".to_owned()) };
    let demanding = |auth_timeout| BrokerConfig { auth: auth.clone(), auth_timeout, ..any_port() };
    let soon = Duration::from_millis(200);
    let hasty = TestBroker::start(demanding(soon)).await;
    let (mut silent, info) = Raw::connect(hasty.address).await;
    assert_eq!(info["auth_required"], json!(true));
    assert_eq!(silent.hear_all().await, "-ERR 'Authentication Timeout'\r\n");
    let credentials = ",\"user\":\"cf\",\"pass\":\"pw\"";
    // One that is late itself comes again.
    let mut client = loop {
        let client = Raw::join(hasty.address, credentials).await;
        if !client.closed {
            break client;
        }
    };
    tokio::time::sleep(2 * soon).await;
    assert_eq!(client.sync().await, "", "who has logged in may stay");
    hasty.stop().await;

    let broker = TestBroker::start(demanding(PATIENCE)).await;
    for first in ["PING\r\n", "SUB > 1\r\n", "CONNECT {\"user\":\"cf\",\"pass\":\"wrong\"}\r\n", "CONNECT {}\r\n"] {
        assert_eq!(cut_off(broker.address, first.as_bytes()).await, "-ERR 'Authorization Violation'\r\n", "{first}");
    }
    let mut client = Raw::join(broker.address, credentials).await;
    client.say(b"SUB a 1\r\nPUB a 1\r\nx\r\n").await;
    assert_eq!(client.sync().await, "MSG a 1 1\r\nx\r\n");
    broker.stop().await;
}

#[tokio::test]
async fn limits_that_contradict_each_other_are_refused() {
    let error = dewar_bus::broker::Broker::bind(BrokerConfig { max_pending: 1000, ..any_port() }).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
}
