//! The same bytes to the embedded broker and to a real nats-server: the same answers.

use std::net::SocketAddr;
use std::time::Duration;

use dewar_bus::broker::{BrokerAuth, BrokerConfig};
use dewar_protocol::Secret;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::fixtures::{NatsServer, Raw, TestBroker, any_port};

/// A CONNECT of a modern client, as far as it matters.
const MODERN: &str = "CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true,\"no_responders\":true,\"protocol\":1}\r\n";
const PEDANTIC: &str = "CONNECT {\"verbose\":false,\"pedantic\":true}\r\n";
const VERBOSE: &str = "CONNECT {\"verbose\":true,\"pedantic\":false}\r\n";
const QUIET: &str = "CONNECT {\"verbose\":false,\"pedantic\":false,\"echo\":false}\r\n";

/// What a server says to `bytes`, up to as many PONGs as they hold PINGs or until it closes, and whether it closes.
async fn conversation(address: SocketAddr, bytes: &[u8]) -> (String, bool) {
    let (mut raw, _) = Raw::connect(address).await;
    raw.say(bytes).await;
    let pings = memchr::memmem::find_iter(&bytes.to_ascii_uppercase(), "PING").count();
    let heard = if pings == 0 { raw.hear_all().await } else { raw.hear_count("PONG\r\n", pings).await };
    (normalized(&heard), raw.closed)
}

/// Newer servers name the subject in a 503; the broker says what all versions since 2.2 say.
fn normalized(heard: &str) -> String {
    let Some(start) = heard.find("NATS/1.0 503\r\nNats-Subject: ") else { return heard.to_owned() };
    let line = heard[..start - 2].rfind("\r\n").map_or(0, |end| end + 2);
    let words: Vec<&str> = heard[line..start].split_whitespace().collect();
    let end = start + heard[start..].find("\r\n\r\n").unwrap() + 4;
    format!("{}{} {} {} 16 16\r\nNATS/1.0 503\r\n\r\n{}", &heard[..line], words[0], words[1], words[2], normalized(&heard[end..]))
}

async fn same_on_both(broker: &TestBroker, server: &NatsServer, bytes: &[u8]) {
    let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(300)]).into_owned();
    let expected = conversation(server.address, bytes).await;
    assert_eq!(conversation(broker.address, bytes).await, expected, "after {shown:?}");
}

#[tokio::test]
async fn operations() {
    let (broker, server) = (TestBroker::start(any_port()).await, NatsServer::start("").await);
    let table = [
        // Before and without CONNECT: an old client that talks at once.
        "SUB foo 1\r\nPUB foo 2\r\nhi\r\nPING\r\n",
        "PUB foo.* 1\r\nx\r\nPING\r\n",
        "CONNECT {}\r\nSUB a..b 1\r\nPING\r\n",
        &format!("{VERBOSE}SUB foo 1\r\nPUB foo 1\r\na\r\nUNSUB 1\r\nUNSUB 99\r\nSUB .x 3\r\nPING\r\nPONG\r\nPING\r\n"),
        &format!("{MODERN}{VERBOSE}PING\r\n"),
        // Lines and words.
        &format!("{MODERN}sub\tfoo\t1\r\npUb  foo   2  \r\nhi\r\nping\r\n"),
        &format!("{MODERN}SUB foo 1\nPUB foo 2\nhi\r\nPING\n"),
        &format!("{MODERN}PING foo\r\nPONG bar\r\nPING\r\n"),
        &format!("{MODERN}SUB foo abc-XYZ_9\r\nPUB foo 0\r\n\r\nPING\r\n"),
        &format!("{MODERN}SUB foo 1\r\nPUB foo 10\r\nPUB a 1\r\n\r\r\nPING\r\n"),
        // Wildcards, and subjects that are none.
        &format!("{MODERN}SUB foo.* 1\r\nSUB foo.bar 2\r\nPUB foo.* 2\r\nhi\r\nPUB foo.> 1\r\nx\r\nPING\r\n"),
        &format!("{MODERN}SUB > 1\r\nSUB foo.*.bar 2\r\nPUB foo..bar 2\r\nhi\r\nPUB .foo 1\r\nx\r\nPUB foo. 1\r\ny\r\nPING\r\n"),
        &format!("{MODERN}SUB foo..bar 1\r\nSUB .a 2\r\nSUB a. 3\r\nSUB a.>.b 4\r\nSUB a.b*c 5\r\nPUB a.b*c 1\r\nx\r\nPING\r\n"),
        &format!("{MODERN}SUB a>b 1\r\nPUB a>b 1\r\nx\r\nSUB foo a.* 2\r\nPUB foo b.* 1\r\ny\r\nPING\r\n"),
        &format!("{PEDANTIC}SUB foo.* 1\r\nPUB foo.* 2\r\nhi\r\nPUB foo..bar 1\r\nx\r\nSUB foo 2\r\nPUB foo b.* 1\r\ny\r\nPING\r\n"),
        // Counted and repeated subscriptions.
        &format!("{MODERN}SUB foo 1\r\nUNSUB 1 2\r\nPUB foo 1\r\na\r\nPUB foo 1\r\nb\r\nPUB foo 1\r\nc\r\nPING\r\n"),
        &format!("{MODERN}SUB foo 1\r\nPUB foo 1\r\na\r\nPUB foo 1\r\nb\r\nUNSUB 1 1\r\nPUB foo 1\r\nc\r\nPING\r\n"),
        &format!("{MODERN}SUB foo 1\r\nPUB foo 1\r\na\r\nUNSUB 1 3\r\nPUB foo 1\r\nb\r\nPUB foo 1\r\nc\r\nPUB foo 1\r\nd\r\nPING\r\n"),
        &format!("{MODERN}SUB foo 1\r\nUNSUB 1 1\r\nPUB foo 1\r\na\r\nSUB foo 1\r\nPUB foo 1\r\nb\r\nPING\r\n"),
        &format!("{MODERN}SUB foo 1\r\nUNSUB 1 0\r\nPUB foo 1\r\na\r\nSUB bar 2\r\nUNSUB 2 -5\r\nPUB bar 1\r\na\r\nPING\r\n"),
        &format!("{MODERN}SUB foo 1\r\nUNSUB 1 x\r\nPUB foo 1\r\na\r\nPING\r\n"),
        &format!("{MODERN}SUB foo 1\r\nSUB bar 1\r\nPUB foo 1\r\na\r\nPUB bar 1\r\nb\r\nPING\r\n"),
        // Echo, headers, nobody there.
        &format!("{QUIET}SUB foo 1\r\nSUB foo group 2\r\nPUB foo 1\r\na\r\nPING\r\n"),
        &format!(
            "{MODERN}SUB foo 1\r\nHPUB foo re 12 14\r\nNATS/1.0\r\n\r\nhi\r\nHPUB foo 3 5\r\nabchi\r\nHPUB foo 12 12\r\nNATS/1.0\r\n\r\n\r\nPING\r\n"
        ),
        &format!("{MODERN}SUB inbox.* 7\r\nPUB nobody inbox.1 2\r\nhi\r\nPUB nobody 2\r\nhi\r\nPUB nobody other.1 2\r\nhi\r\nPING\r\n"),
        &format!("{MODERN}SUB inbox.1 group 8\r\nPUB nobody inbox.1 0\r\n\r\nPING\r\n"),
        &format!("{VERBOSE}SUB inbox.* 7\r\nPUB nobody inbox.1 2\r\nhi\r\nPING\r\n"),
        "CONNECT {\"verbose\":false,\"no_responders\":true}\r\n",
    ];
    for script in table {
        same_on_both(&broker, &server, script.as_bytes()).await;
    }
    same_on_both(&broker, &server, b"CONNECT {\"verbose\":false}\r\nSUB \xff\x00\xfe 1\r\nPUB \xff\x00\xfe 3\r\n\xff\x00\r\r\nPING\r\n")
        .await;
    broker.stop().await;
}

#[tokio::test]
async fn what_ends_a_connection() {
    let (broker, server) = (TestBroker::start(any_port()).await, NatsServer::start("").await);
    let long = format!("PUB {} 1\r\nx\r\n", "a".repeat(5000));
    let same_words: [&str; 14] = [
        "FOO\r\n",
        "PUBX foo 1\r\na\r\n",
        "\r\n",
        "MSG foo 1 2\r\nhi\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "SUB\r\n",
        "UNSUB\r\n",
        "PUB foo 2\r\nhix\r\n",
        "PUB foo 2\r\nhi\nPING",
        "PUB foo 1048577\r\nx",
        "HPUB foo 12 1048577\r\nx",
        &long,
        &long[..4500],
        "SUB foo 1\r\nPUB foo 1\r\na\r\nNOPE\r\n",
    ];
    for end in same_words {
        let bytes = format!("{MODERN}{end}");
        let (expected, closed) = conversation_until_closed(server.address, bytes.as_bytes()).await;
        assert!(closed && expected.contains("-ERR"), "{end:?}: {expected:?}");
        assert_eq!(conversation_until_closed(broker.address, bytes.as_bytes()).await, (expected, true), "after {end:?}");
    }
    // Here nats-server closes without a word; the broker gives its usual one.
    let silent: [&str; 13] = [
        "CONNECT {xx\r\n",
        "CONNECT\r\n",
        "SUB foo\r\n",
        "SUB foo a b c\r\n",
        "PUB foo\r\n",
        "PUB foo a b 3\r\nabc\r\n",
        "PUB foo x\r\n\r\n",
        "PUB foo -1\r\n\r\n",
        "PUB foo 99999999999999999999\r\n\r\n",
        "HPUB foo 15 14\r\nNATS/1.0\r\n\r\nhi\r\n",
        "HPUB foo 15\r\nNATS/1.0\r\n\r\nhi\r\n",
        "UNSUB 1 2 3\r\n",
        "HPUB foo 12 14\r\nNATS/1.0\r\n\r\nhi\r\n",
    ];
    for end in silent {
        // A client that has not said that it knows headers.
        let bytes = format!("CONNECT {{\"verbose\":false}}\r\n{end}");
        let (expected, closed) = conversation_until_closed(server.address, bytes.as_bytes()).await;
        assert_eq!((expected.as_str(), closed), ("", true), "nats-server after {end:?}");
        let (heard, closed) = conversation_until_closed(broker.address, bytes.as_bytes()).await;
        assert!(heard.starts_with("-ERR '") && closed, "{end:?}: {heard:?}");
    }
    broker.stop().await;
}

async fn conversation_until_closed(address: SocketAddr, bytes: &[u8]) -> (String, bool) {
    let (mut raw, _) = Raw::connect(address).await;
    raw.say(bytes).await;
    (raw.hear_all().await, raw.closed)
}

/// Several clients; a step is what one of them says. Afterwards, what each has heard.
async fn scene(address: SocketAddr, clients: &[&str], steps: &[(usize, &str)]) -> Vec<String> {
    let mut raws = Vec::new();
    for options in clients {
        raws.push((Raw::join(address, options).await, String::new()));
    }
    for (client, bytes) in steps {
        let (raw, heard) = &mut raws[*client];
        raw.say(bytes.as_bytes()).await;
        heard.push_str(&raw.sync().await);
    }
    let mut all = Vec::new();
    for (mut raw, mut heard) in raws {
        heard.push_str(&raw.sync().await);
        all.push(heard);
    }
    all
}

#[tokio::test]
async fn between_clients() {
    let (broker, server) = (TestBroker::start(any_port()).await, NatsServer::start("").await);
    let (modern, old, quiet) = (",\"headers\":true,\"no_responders\":true", "", ",\"echo\":false");
    type Scene<'a> = (&'a [&'a str], &'a [(usize, &'a str)]);
    let scenes: [Scene<'_>; 7] = [
        (&[old, old], &[(0, "SUB a 1\r\n"), (1, "SUB a 1\r\nPUB a re 2\r\nhi\r\n"), (0, "PUB a 0\r\n\r\n")]),
        (&[modern, old], &[(0, "SUB a 1\r\n"), (1, "SUB a 5\r\n"), (0, "HPUB a re 12 14\r\nNATS/1.0\r\n\r\nhi\r\n")]),
        (&[modern, old], &[(1, "SUB a 5\r\n"), (0, "HPUB a 12 12\r\nNATS/1.0\r\n\r\n\r\nPUB a 1\r\nx\r\n")]),
        (&[quiet, old], &[(0, "SUB a 1\r\n"), (1, "SUB a 1\r\n"), (0, "PUB a 1\r\nx\r\n"), (1, "PUB a 1\r\ny\r\n")]),
        // A quiet member of a group passes over to the other.
        (&[quiet, old], &[(0, "SUB a g 1\r\n"), (1, "SUB a g 1\r\n"), (0, "PUB a 1\r\nx\r\nPUB a 1\r\ny\r\nPUB a 1\r\nz\r\n")]),
        (
            &[modern, modern],
            &[(0, "SUB me 1\r\n"), (1, "SUB a 1\r\n"), (0, "PUB a me 0\r\n\r\n"), (1, "UNSUB 1\r\n"), (0, "PUB a me 0\r\n\r\n")],
        ),
        (
            &[old, old],
            &[
                (0, "SUB a.> 1\r\nUNSUB 1 2\r\n"),
                (1, "PUB a.b 1\r\nx\r\nPUB a.c.d 1\r\ny\r\nPUB a.e 1\r\nz\r\n"),
                (0, "SUB a.> 1\r\n"),
                (1, "PUB a.f 1\r\nw\r\n"),
            ],
        ),
    ];
    for (clients, steps) in scenes {
        let expected: Vec<String> = scene(server.address, clients, steps).await.iter().map(|heard| normalized(heard)).collect();
        assert_eq!(scene(broker.address, clients, steps).await, expected, "{steps:?}");
    }
    broker.stop().await;
}

#[tokio::test]
async fn what_a_group_gets() {
    let (broker, server) = (TestBroker::start(any_port()).await, NatsServer::start("").await);
    let subscribe = "SUB foo g 1\r\nSUB * g 2\r\nSUB foo h 3\r\nSUB foo 4\r\n";
    let publish = "PUB foo 1\r\nx\r\n".repeat(100);
    for address in [server.address, broker.address] {
        let heard = scene(address, &["", ""], &[(0, subscribe), (1, "SUB > g 1\r\n"), (0, &publish)]).await;
        let count = |client: usize, sid: &str| heard[client].matches(&format!("MSG foo {sid} 1\r\n")).count();
        let shares = [count(0, "1"), count(0, "2"), count(1, "1")];
        assert_eq!(shares.iter().sum::<usize>(), 100, "one member of g each, {shares:?} on {address}");
        assert!(shares.iter().all(|share| *share > 5), "every member gets some, {shares:?} on {address}");
        assert_eq!((count(0, "3"), count(0, "4")), (100, 100), "h and the plain one get all on {address}");
    }
    broker.stop().await;
}

#[tokio::test]
async fn greeting_and_limits() {
    let config = BrokerConfig {
        max_payload: 1000,
        max_connections: 1,
        auth: BrokerAuth::UserPassword { user: "cf".to_owned(), password: Secret("pw".to_owned()) },
        ..any_port()
    };
    let broker = TestBroker::start(config).await;
    let server = NatsServer::start("max_payload: 1000, max_connections: 1, authorization { user: cf, password: pw }").await;
    let mut heard = Vec::new();
    for address in [server.address, broker.address] {
        let (mut first, info) = Raw::connect(address).await;
        first.say(b"CONNECT {\"user\":\"cf\",\"pass\":\"pw\"}\r\n").await;
        // From then on it certainly has the only place.
        first.sync().await;
        let excess = objection(address).await;
        drop(first);
        // Its place is free a moment later.
        let stranger = loop {
            match objection(address).await {
                objection if objection == excess => sleep(Duration::from_millis(5)).await,
                objection => break objection,
            }
        };
        heard.push((essentials(&info, address), excess, stranger));
    }
    assert_eq!(heard[0], heard[1]);
    broker.stop().await;
}

/// What is said to somebody who says nothing of himself.
async fn objection(address: SocketAddr) -> String {
    let mut stranger = Raw::connect_silently(address).await;
    stranger.say(b"PING\r\n").await;
    stranger.hear_all().await.lines().filter(|line| !line.starts_with("INFO")).collect()
}

/// What clients act on in an INFO.
fn essentials(info: &Value, address: SocketAddr) -> Value {
    assert_eq!(info["server_id"].as_str().unwrap().len(), 56);
    assert!(info["client_id"].as_u64().unwrap() > 0);
    assert!(info["version"].as_str().unwrap().starts_with("2."));
    assert_eq!(info["port"], json!(address.port()));
    ["proto", "host", "headers", "auth_required", "max_payload", "client_ip", "tls_required", "nonce"]
        .into_iter()
        .map(|key| (key.to_owned(), info[key].clone()))
        .collect::<serde_json::Map<_, _>>()
        .into()
}
