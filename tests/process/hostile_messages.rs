//! Ten thousand messages that mean no good, on every subject that an agent listens to.
//!
//! Each is a well-formed message that was damaged, or none at all. Whatever would start or stage something lacks a field that is
//! needed, or has one of the wrong type, so that nothing may come of it; the others are about apps that the agent does not have.

use std::time::Instant;

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use serde_json::{Map, Value, json};

use crate::bare_protocol::World;
use crate::harness::{Process, connections, get, get_until, loopback};

const MESSAGES: usize = 10_000;

/// Messages until the agent is asked whether it still answers: fewer than wait for it before the first is dropped.
const AT_ONCE: usize = 250;

/// What the agent may hold after the flood that it did not before.
const GROWTH_KIB: u64 = 96 << 10;

/// Where answers are to go: to nobody, to everybody, to the agent itself.
const REPLY_SUBJECTS: &[&str] = &["nowhere", ">", "*.*", "$SYS.REQ", "dea.status", "router.start", "dea.stop", "a..b", ".", "staging"];

/// No JSON, or none that any field takes.
const BAD_TOKENS: &[&str] =
    &["1e999", "-1e999", "123456789012345678901234567890e9", "01", "0x10", "NaN", "'text'", "\"\\ud800\"", "", "{]"];

/// What may be done to a message.
#[derive(Debug, Clone)]
enum Damage {
    /// A field gets a value that no field has.
    Mistype(Value),
    /// A field's value is no JSON.
    Garble(&'static str),
    Nest(usize),
    Remove,
    /// It ends too early.
    Cut(prop::sample::Index),
    /// One byte is none of UTF-8.
    Blot(prop::sample::Index, u8),
    Noise(Vec<u8>),
    Other(Value),
    /// It is as large as a server lets pass, with a field of the wrong type.
    Swell,
}

fn any_damage() -> impl Strategy<Value = Damage> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    let any_json = leaf.prop_recursive(4, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map("\\PC{0,8}", inner, 0..6).prop_map(|map| Value::Object(map.into_iter().collect::<Map<_, _>>())),
        ]
    });
    let no_field = prop_oneof![
        any::<bool>().prop_map(Value::from),
        any::<f64>().prop_map(|number| json!([number])),
        "\\PC{0,2000}".prop_map(|text| json!([text])),
        any_json.clone().prop_map(|json| json!([[json]])),
        any_json.clone().prop_map(|json| json!([{ "": json }])),
    ];
    prop_oneof![
        6 => no_field.prop_map(Damage::Mistype),
        4 => prop::sample::select(BAD_TOKENS).prop_map(Damage::Garble),
        2 => prop_oneof![100_usize..300, 20_000_usize..50_000].prop_map(Damage::Nest),
        3 => Just(Damage::Remove),
        3 => any::<prop::sample::Index>().prop_map(Damage::Cut),
        3 => (any::<prop::sample::Index>(), prop::sample::select(&[0xff, 0xc0, 0x80, 0x00][..])).prop_map(|(at, byte)| Damage::Blot(at, byte)),
        3 => prop::collection::vec(any::<u8>(), 0..64).prop_map(Damage::Noise),
        3 => any_json.prop_map(Damage::Other),
    ]
}

/// A message before it is damaged, and the fields without which it is none.
fn sample(subject: &str) -> (Value, &'static [&'static str]) {
    match subject.split('.').collect::<Vec<_>>().as_slice() {
        ["dea", _, "start"] => {
            let message = json!({
                "droplet": "intruder", "index": 0, "version": "v1", "name": "intruder", "uris": ["intruder.example.net"],
                "sha1": "0".repeat(40), "executableUri": "http://127.0.0.1:9/", "cc_partition": "default",
                "limits": {"mem": 1, "disk": 1, "fds": 1}, "services": [], "env": ["A=b"],
            });
            (message, &["droplet", "index", "version", "name", "cc_partition", "limits", "services"])
        }
        ["staging"] | ["staging", _, "start"] => {
            let message = json!({"app_id": "intruder", "task_id": "t", "properties": {}, "download_uri": "http://127.0.0.1:9/",
                "upload_uri": "http://127.0.0.1:9/", "stack": "cflinuxfs2"});
            (message, &["app_id", "download_uri", "upload_uri"])
        }
        ["staging", "stop"] => (json!({"app_id": "intruder"}), &["app_id"]),
        ["router", "start"] => {
            (json!({"id": "r", "hosts": ["10.0.0.1"], "minimumRegisterIntervalInSeconds": 20}), &["minimumRegisterIntervalInSeconds"])
        }
        ["dewar", "logs"] => (json!({"droplet": "intruder", "tail": 1, "follow_seconds": 1}), &["droplet", "tail"]),
        _ => {
            let message = json!({"droplet": "intruder", "version": "v", "instances": ["i"], "indices": [0], "states": ["RUNNING"],
                "uris": ["intruder.example.net"], "include_stats": true});
            (message, &["droplet", "version", "instances", "indices", "states", "uris"])
        }
    }
}

fn payload(subject: &str, field: prop::sample::Index, damage: Damage) -> Vec<u8> {
    const PLACE: &str = "\"@place@\"";
    let (mut message, needed) = sample(subject);
    let field = *field.get(needed);
    let with = |mut message: Value, token: &str| {
        message[field] = json!("@place@");
        message.to_string().replace(PLACE, token).into_bytes()
    };
    match damage {
        Damage::Mistype(value) => with(message, &value.to_string()),
        Damage::Garble(token) => with(message, token),
        Damage::Nest(depth) => with(message, &("[".repeat(depth) + &"]".repeat(depth))),
        Damage::Swell => {
            message["padding"] = json!("x".repeat(1_000_000));
            with(message, "[[]]")
        }
        Damage::Remove => {
            message.as_object_mut().unwrap().remove(field);
            message.to_string().into_bytes()
        }
        Damage::Cut(at) => {
            let text = message.to_string();
            text.as_bytes()[..at.index(text.len())].to_vec()
        }
        Damage::Blot(at, byte) => {
            let mut text = message.to_string().into_bytes();
            let at = at.index(text.len());
            text[at] = byte;
            text
        }
        Damage::Noise(bytes) => bytes,
        Damage::Other(json) => json.to_string().into_bytes(),
    }
}

/// What the agent is subscribed to, as the server tells, without its inboxes.
fn subscriptions(world: &World) -> Vec<String> {
    let connections = connections(&world.server);
    let directed = json!(format!("dea.{}.start", world.dea));
    let lists = connections.iter().filter_map(|connection| connection["subscriptions_list"].as_array());
    let list = lists.into_iter().find(|list| list.contains(&directed)).expect("the agent is connected");
    let mut subjects: Vec<String> = list.iter().map(|subject| subject.as_str().unwrap().to_owned()).collect();
    subjects.retain(|subject| !subject.starts_with("_INBOX"));
    subjects.sort();
    subjects
}

/// Resident memory of a process.
fn resident_kib(process: &Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// What the agent has promised, in MiB: nothing may have been added to it.
fn reserved(world: &mut World, inbox: &str) -> Value {
    world.nats.ask("dea.status", inbox, &Value::Null);
    world.nats.expect(inbox, |_| true).json["reserved_memory"].clone()
}

#[test]
fn ten_thousand_hostile_messages_harm_nobody() {
    let mut world = World::start_by(&[], "");
    let sha1 = world.stage("before", World::package())["droplet_sha1"].clone();
    let start = world.start_message(0, &sha1);
    world.nats.publish(&format!("dea.{}.start", world.dea), &start);
    let route = world.nats.expect("router.register", |_| true).json;
    let neighbour = loopback(u16::try_from(route["port"].as_u64().unwrap()).unwrap());
    get_until(neighbour, "shop.example.net", "/", 200);
    let subjects = subscriptions(&world);
    assert!(subjects.len() >= 13, "{subjects:?}");
    let (memory, began, told) = (resident_kib(&world.agent), Instant::now(), world.agent.printed().lines().count());

    let mut runner = TestRunner::deterministic();
    let strategy =
        (prop::sample::select(subjects.clone()), prop::sample::select(REPLY_SUBJECTS), any::<prop::sample::Index>(), any_damage());
    // Well-formed, and refused for what it says: of these a log could be filled as well.
    let odd = json!({"droplet": "intruder", "states": ["x".repeat(3000)]});
    for number in 1..=MESSAGES {
        if number % 20 == 0 {
            world.nats.publish("dea.stop", &odd);
        }
        let (subject, reply_to, field, damage) = strategy.new_tree(&mut runner).unwrap().current();
        let damage = if number % 400 == 0 { Damage::Swell } else { damage };
        world.nats.publish_bytes(&subject, reply_to, &payload(&subject, field, damage));
        if number % AT_ONCE == 0 {
            assert_eq!(reserved(&mut world, &format!("inbox.status.{number}")), 64, "after {number} messages");
            assert_eq!(get(neighbour, "shop.example.net", "/").unwrap().status, 200, "after {number} messages");
        }
    }

    let grown = resident_kib(&world.agent).saturating_sub(memory);
    assert!(grown < GROWTH_KIB, "the agent has grown by {grown} KiB");
    assert_eq!(subscriptions(&world), subjects);
    assert_complaints_are_bounded(&world, told, began);
    assert_all_subjects_are_served(&mut world, &sha1);
}

/// Two kinds of complaints, each of which comes 20 times at once, and once a second.
fn assert_complaints_are_bounded(world: &World, told: usize, began: Instant) {
    let printed = world.agent.printed();
    let complaints = printed.lines().skip(told).filter(|line| line.contains("message ignored") || line.contains("request refused"));
    let most = 2 * (20 + began.elapsed().as_secs() + 2);
    let (count, bytes) = complaints.fold((0, 0), |(count, bytes), line| (count + 1, bytes + line.len() as u64));
    assert!((20..=most).contains(&count), "{count} complaints, {most} are expected at most");
    assert!(bytes < 1000 * count, "{bytes} bytes of {count} complaints");
    assert!(!printed.contains("panicked"), "{printed}");
}

/// One honest message to each subject has its effect.
fn assert_all_subjects_are_served(world: &mut World, sha1: &Value) {
    let app = world.start_message(0, sha1)["droplet"].clone();
    let answered = [("dea.find.droplet", json!({"droplet": app})), ("vcap.component.discover", json!(null))];
    for (subject, message) in answered {
        let inbox = format!("inbox.after.{subject}");
        world.nats.ask(subject, &inbox, &message);
        world.nats.expect(&inbox, |_| true);
    }
    world.nats.subscribe("staging.advertise");
    let told = [("dea.locate", "dea.advertise"), ("staging.locate", "staging.advertise"), ("healthmanager.start", "dea.heartbeat")];
    for (subject, answer) in told {
        world.nats.publish(subject, &json!({}));
        let text = world.nats.expect(answer, |_| true).json.to_string();
        assert!(!text.contains("intruder"), "{answer}: {text}");
    }
    world.nats.publish("dea.update", &json!({"droplet": app, "uris": ["new.example.net"]}));
    world.nats.expect("router.register", |message| message.json["uris"] == json!(["new.example.net"]));
    world.nats.publish("router.start", &json!({}));
    world.nats.expect("router.register", |message| message.json["uris"] == json!(["new.example.net"]));
    world.nats.publish("dea.stop", &json!({"droplet": app}));
    world.nats.expect("droplet.exited", |message| message.json["droplet"] == app);
    // Sends `staging.stop` first.
    world.stage("after", World::package());
    let start = world.start_message(1, sha1);
    world.nats.publish(&format!("dea.{}.start", world.dea), &start);
    world.nats.expect("router.register", |message| message.json["uris"] == start["uris"]);
}
