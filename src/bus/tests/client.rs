//! What the client promises, on the embedded broker and on a real nats-server alike.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dewar_bus::{Bus, BusError, Message, Reply, SUBSCRIPTION_QUEUE, Subscribe, Subscription};
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::fixtures::{NatsServer, PATIENCE, Raw, TestBroker, any_port, connect, eventually};

/// Runs each scenario on both servers.
macro_rules! on_both_servers {
    ($($scenario:ident),* $(,)?) => {
        mod on_the_broker {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $scenario() {
                    let broker = TestBroker::start(any_port()).await;
                    super::$scenario(&broker.url()).await;
                    broker.stop().await;
                }
            )*
        }
        mod on_nats_server {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $scenario() {
                    let server = NatsServer::start("").await;
                    super::$scenario(&server.url()).await;
                }
            )*
        }
    };
}

on_both_servers!(
    typed_messages_arrive_in_order,
    a_subject_of_precedence_is_never_overtaken,
    requests_are_answered,
    silence_and_absence_are_told_apart,
    all_answers_within_a_window,
    a_flush_is_confirmed_by_the_server,
    a_queue_group_shares_the_work,
    an_ended_subscription_gets_nothing_more,
    headers_reach_those_who_know_them,
    payloads_up_to_the_limit,
    a_subscription_that_is_not_read_loses_only_its_own,
);

async fn next(subscription: &mut Subscription) -> Message {
    timeout(PATIENCE, subscription.next()).await.expect("a message comes").expect("the client lives")
}

fn json_of(message: &Message) -> Value {
    serde_json::from_slice(&message.payload).unwrap()
}

/// Answers requests to `subject` with the number `answer`, for as long as the client lives.
async fn responder(bus: &Bus, subject: &str, answer: u32) {
    let mut requests = bus.subscribe(subject).await.unwrap();
    let bus = bus.clone();
    bus.flush(PATIENCE).await.unwrap();
    tokio::spawn(async move {
        while let Some(request) = requests.next().await {
            bus.publish(&request.reply_to.unwrap(), &answer).unwrap();
        }
    });
}

async fn typed_messages_arrive_in_order(url: &str) {
    let (sender, receiver) = (connect(url).await, connect(url).await);
    let mut all = receiver.subscribe("dea.>").await.unwrap();
    let mut starts = receiver.subscribe("dea.*.start").await.unwrap();
    receiver.flush(PATIENCE).await.unwrap();
    for index in 0..500 {
        sender.publish("dea.1.start", &json!({ "index": index })).unwrap();
    }
    sender.publish_reply("dea.locate", "answer.here", &json!({})).unwrap();
    for index in 0..500 {
        assert_eq!(json_of(&next(&mut all).await), json!({ "index": index }));
        assert_eq!(json_of(&next(&mut starts).await), json!({ "index": index }));
    }
    let last = next(&mut all).await;
    assert_eq!((last.subject.as_str(), last.reply_to.as_deref()), ("dea.locate", Some("answer.here")));
    assert_eq!(sender.counters().published, 501);
    assert_eq!(sender.counters().dropped, 0);
    eventually("all are counted", || receiver.counters().received == 501 + 500 + 1).await;
}

async fn a_subject_of_precedence_is_never_overtaken(url: &str) {
    let (near, far) = (connect(url).await, connect(url).await);
    let plain = |subject| Subscribe { subject, group: None };
    let shared = Subscribe { subject: "work", group: Some("workers") };
    let mut both = near.subscribe_all(&[plain("stop"), plain("start"), shared]).await.unwrap();
    near.flush(PATIENCE).await.unwrap();
    let rounds = 500;
    for round in 0..rounds {
        far.publish("stop", &round).unwrap();
        far.publish("start", &round).unwrap();
        far.publish("work", &round).unwrap();
    }
    let (mut stops, mut starts) = (0, 0);
    for _ in 0..3 * rounds {
        let message = next(&mut both).await;
        match message.subject.as_str() {
            "stop" => stops += 1,
            "start" => {
                assert!(json_of(&message) == json!(starts) && stops > starts, "start {starts} came after {stops} stops");
                starts += 1;
            }
            _ => assert!(json_of(&message).as_u64().unwrap() < starts, "work overtook its start"),
        }
    }
    assert_eq!((stops, starts), (rounds, rounds));
}

async fn requests_are_answered(url: &str) {
    let (client, agent) = (connect(url).await, connect(url).await);
    responder(&agent, "dea.status", 7).await;
    for _ in 0..50 {
        let answer = client.request("dea.status", &json!({}), PATIENCE).await.unwrap();
        assert_eq!(json_of(&answer), json!(7));
    }
}

async fn silence_and_absence_are_told_apart(url: &str) {
    let bus = connect(url).await;
    let started = Instant::now();
    let error = bus.request("nobody.here", &json!({}), PATIENCE).await.unwrap_err();
    assert!(matches!(&error, BusError::NoResponders { subject } if subject == "nobody.here"), "{error}");
    assert!(started.elapsed() < PATIENCE);
    let _silent = bus.subscribe("silent").await.unwrap();
    let error = bus.request("silent", &json!({}), Duration::from_millis(50)).await.unwrap_err();
    assert!(matches!(&error, BusError::Timeout { subject, .. } if subject == "silent"), "{error}");

    let inbox = bus.new_inbox();
    let mut answers = bus.subscribe(&inbox).await.unwrap();
    bus.publish_reply("nobody.here", &inbox, &json!({})).unwrap();
    assert_eq!(timeout(PATIENCE, answers.next_reply()).await.unwrap(), Some(Reply::NoResponders));
    bus.publish_reply("nobody.here", &inbox, &json!({})).unwrap();
    bus.publish(&inbox, &json!("a message")).unwrap();
    assert_eq!(json_of(&next(&mut answers).await), json!("a message"), "`next` passes over what is no message");
}

async fn all_answers_within_a_window(url: &str) {
    let bus = connect(url).await;
    let agents = [connect(url).await, connect(url).await, connect(url).await];
    for (answer, agent) in (0..).zip(&agents) {
        responder(agent, "dea.locate", answer).await;
    }
    // On a busy machine somebody may answer too late for a narrow one.
    let mut window = Duration::from_millis(800);
    let numbers = loop {
        let answers = bus.request_many("dea.locate", &json!({}), window).await.unwrap();
        let mut numbers: Vec<u64> = answers.iter().map(|answer| json_of(answer).as_u64().unwrap()).collect();
        numbers.sort_unstable();
        if numbers.len() >= agents.len() || window > PATIENCE {
            break numbers;
        }
        window *= 4;
    };
    assert_eq!(numbers, [0, 1, 2]);
    let started = Instant::now();
    assert_eq!(bus.request_many("nobody.here", &json!({}), PATIENCE).await.unwrap(), []);
    assert!(started.elapsed() < PATIENCE, "no need to wait for nobody");
}

async fn a_flush_is_confirmed_by_the_server(url: &str) {
    let (one, other) = (connect(url).await, connect(url).await);
    for round in 0..100 {
        let subject = format!("round.{round}");
        let mut subscription = one.subscribe(&subject).await.unwrap();
        one.flush(PATIENCE).await.unwrap();
        other.publish(&subject, &round).unwrap();
        assert_eq!(json_of(&next(&mut subscription).await), json!(round));
    }
}

fn in_group(subject: &str) -> Subscribe<'_> {
    Subscribe { subject, group: Some("staging") }
}

async fn a_queue_group_shares_the_work(url: &str) {
    const MESSAGES: usize = 600;
    let bus = connect(url).await;
    let members = [connect(url).await, connect(url).await, connect(url).await];
    let mut subscriptions = Vec::new();
    for member in &members {
        subscriptions.push(member.subscribe_all(&[in_group("staging")]).await.unwrap());
        member.flush(PATIENCE).await.unwrap();
    }
    // The same group under another subject that matches too: still one delivery a message.
    subscriptions.push(members[0].subscribe_all(&[in_group("*")]).await.unwrap());
    members[0].flush(PATIENCE).await.unwrap();
    let mut everything = bus.subscribe("staging").await.unwrap();
    for number in 0..MESSAGES {
        bus.publish("staging", &number).unwrap();
    }
    for number in 0..MESSAGES {
        assert_eq!(json_of(&next(&mut everything).await), json!(number));
    }
    let received = || members.iter().map(|member| usize::try_from(member.counters().received).unwrap());
    // One answer to every flush so far is among them.
    eventually("every message has arrived once", || received().sum::<usize>() == MESSAGES + 4).await;
    for member in &members {
        member.flush(PATIENCE).await.unwrap();
    }
    assert_eq!(received().sum::<usize>(), MESSAGES + 4 + 3, "no message has arrived twice");
    for (position, share) in received().enumerate() {
        assert!(share > MESSAGES / 10, "member {position} got {share} of {MESSAGES}");
    }
}

async fn an_ended_subscription_gets_nothing_more(url: &str) {
    let ((bus, other), started) = ((connect(url).await, connect(url).await), Instant::now());
    let first = bus.subscribe("news").await.unwrap();
    let second = bus.subscribe("news").await.unwrap();
    let third = bus.subscribe("news").await.unwrap();
    first.unsubscribe().await;
    drop(second);
    eventually("the dropped one is gone", || bus.counters().received == 0).await;
    bus.flush(PATIENCE).await.unwrap();
    third.unsubscribe().await;
    bus.flush(PATIENCE).await.unwrap();
    // The word that one was dropped may still be on its way.
    let error = loop {
        match other.request("news", &json!({}), Duration::from_millis(500)).await.unwrap_err() {
            BusError::Timeout { .. } if started.elapsed() < PATIENCE => {}
            error => break error,
        }
    };
    assert!(matches!(error, BusError::NoResponders { .. }), "{error}");
}

async fn headers_reach_those_who_know_them(url: &str) {
    let client = async_nats::connect(url).await.unwrap();
    let address = url.strip_prefix("nats://").unwrap().parse().unwrap();
    let mut plain = Raw::join(address, "").await;
    plain.say(b"SUB with.headers 9\r\n").await;
    plain.sync().await;
    let mut subscriber = client.subscribe("with.headers").await.unwrap();
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("X-Vcap-Request-Id", "abc");
    client.publish_with_headers("with.headers", headers, "body".into()).await.unwrap();
    let message = timeout(PATIENCE, subscriber.next()).await.unwrap().unwrap();
    assert_eq!(message.headers.unwrap().get("X-Vcap-Request-Id").unwrap().as_str(), "abc");
    assert_eq!(&message.payload[..], b"body");
    assert_eq!(plain.hear_until("body\r\n").await, "MSG with.headers 9 4\r\nbody\r\n");
}

async fn payloads_up_to_the_limit(url: &str) {
    let bus = connect(url).await;
    let mut subscription = bus.subscribe("large").await.unwrap();
    let mut sent = BTreeMap::new();
    for size in [0, 1, 4096, 8191, 8192, 65_536, 1 << 20] {
        let payload: Bytes = (0..size).map(|position| u8::try_from(position % 251).unwrap()).collect();
        bus.publish_raw("large", None, payload.clone()).unwrap();
        sent.insert(size, payload);
    }
    for (size, payload) in sent {
        assert!(next(&mut subscription).await.payload == payload, "payload of {size} bytes");
    }
    let error = bus.publish_raw("large", None, vec![0; (1 << 20) + 1].into()).unwrap_err();
    assert!(matches!(error, BusError::TooLarge { size: 1_048_577, max: 1_048_576, .. }), "{error}");
    assert_eq!(bus.max_payload(), Some(1 << 20));
    for wrong in ["", "with space", "line\r\nend"] {
        let error = bus.publish_raw(wrong, None, Bytes::new()).unwrap_err();
        assert!(matches!(error, BusError::InvalidSubject { .. }), "{error}");
        let error = bus.subscribe(wrong).await.unwrap_err();
        assert!(matches!(error, BusError::InvalidSubject { .. }), "{error}");
    }
    assert_eq!(bus.counters().dropped, 4);
    bus.flush(PATIENCE).await.unwrap();
}

async fn a_subscription_that_is_not_read_loses_only_its_own(url: &str) {
    let (sender, receiver) = (connect(url).await, connect(url).await);
    let mut lazy = receiver.subscribe("flood").await.unwrap();
    let mut eager = receiver.subscribe("flood").await.unwrap();
    receiver.flush(PATIENCE).await.unwrap();
    let total = SUBSCRIPTION_QUEUE + 2000;
    for chunk in (0..total).collect::<Vec<_>>().chunks(1000) {
        for number in chunk {
            sender.publish("flood", number).unwrap();
        }
        for number in chunk {
            assert_eq!(json_of(&next(&mut eager).await), json!(number));
        }
    }
    eventually("what does not fit is counted", || receiver.counters().slow_consumer == 2000).await;
    for number in 0..SUBSCRIPTION_QUEUE {
        assert_eq!(json_of(&next(&mut lazy).await), json!(number), "the oldest are kept");
    }
    sender.publish("flood", &"after").unwrap();
    assert_eq!(json_of(&next(&mut lazy).await), json!("after"), "it has recovered");
}
