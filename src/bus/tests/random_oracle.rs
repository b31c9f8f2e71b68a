//! Random conversations of three clients with the embedded broker and with a real nats-server: everybody hears the same.

use std::fmt::Write;
use std::net::SocketAddr;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use crate::fixtures::{NatsServer, Raw, TestBroker, any_port};

const CASES: usize = 60;

const CLIENTS: [&str; 3] = [",\"headers\":true,\"no_responders\":true", "", ",\"echo\":false,\"headers\":true"];

fn subject() -> impl Strategy<Value = String> {
    let token = prop::sample::select(vec!["a", "b", "*", ">", ""]);
    prop::collection::vec(prop_oneof![9 => prop::sample::select(vec!["a", "b", "*"]), 1 => token], 1..4)
        .prop_map(|tokens| tokens.join("."))
        .prop_filter("a word of a line", |subject| !subject.is_empty())
}

/// What one client says. Groups are left out: chance decides there.
fn operation() -> impl Strategy<Value = String> {
    let sid = || 1..5_u8;
    prop_oneof![
        3 => (subject(), sid()).prop_map(|(subject, sid)| format!("SUB {subject} {sid}\r\n")),
        1 => (sid(), prop::option::of(0..4_u8)).prop_map(|(sid, max)| {
            let max = max.map_or(String::new(), |max| format!(" {max}"));
            format!("UNSUB {sid}{max}\r\n")
        }),
        5 => (subject(), prop::option::of(subject()), "[a-z]{0,5}").prop_map(|(subject, reply, body)| {
            format!("PUB {subject} {} {}\r\n{body}\r\n", reply.unwrap_or_default(), body.len())
        }),
    ]
}

/// What each client hears, step by step; several copies of one message in no particular order.
async fn play(address: SocketAddr, steps: &[(usize, String)]) -> String {
    let mut raws = Vec::new();
    for options in CLIENTS {
        raws.push(Raw::join(address, options).await);
    }
    let mut heard = String::new();
    for (client, bytes) in steps {
        raws[*client].say(bytes.as_bytes()).await;
        // The speaker first: once it is answered, the others' messages are on their way before any later answer.
        for offset in 0..raws.len() {
            let listener = (client + offset) % raws.len();
            let text = raws[listener].sync().await;
            let mut frames: Vec<&str> = text.split_inclusive("\r\n").collect();
            if !text.contains("503") {
                frames = text.split("MSG ").collect();
                frames.sort_unstable();
            }
            let shown = if text.contains("503") { "no responders".to_owned() } else { frames.concat() };
            writeln!(heard, "{client} says {bytes:?}: {listener} hears {shown:?}").unwrap();
        }
    }
    heard
}

#[tokio::test]
async fn everybody_hears_the_same() {
    let (broker, server) = (TestBroker::start(any_port()).await, NatsServer::start("").await);
    let mut runner = TestRunner::default();
    for case in 0..CASES {
        let steps = prop::collection::vec((0..CLIENTS.len(), operation()), 1..25).new_tree(&mut runner).unwrap().current();
        let expected = play(server.address, &steps).await;
        assert_eq!(play(broker.address, &steps).await, expected, "case {case}");
    }
    broker.stop().await;
}
