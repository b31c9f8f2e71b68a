//! A thousand starts of ten apps at once, with stops of single instances among them: each start has one end, and none leaves anything.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use dewar_bus::Subscription;
use serde_json::{Value, json};

use crate::world::{World, eventually, get, next};

const APPS: usize = 10;
const STARTS: usize = 1000;
/// So many starts before each stop.
const BETWEEN_STOPS: usize = 8;

/// App and index, of which each is started once.
type Name = (String, u64);

pub(crate) async fn a_thousand_starts_with_stops_among_them() {
    // Other ports than those of the burst, which runs at the same time: in the end nobody is to listen on one that was used here.
    let ports = "instance: { ports: { first: 63001, last: 65535 } }";
    let world = World::new(&format!("resources: {{ memory_mb: 1000000, disk_mb: 1000000 }}\n{ports}\n")).await;
    let wasm = world.files.path().join("hello.wasm");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/hello-wat/hello.wat");
    std::fs::write(&wasm, wat::parse_file(source).unwrap()).unwrap();
    let mut heartbeats = world.subscribe("dea.heartbeat").await;
    let mut registered = world.subscribe("router.register").await;
    let mut exited = world.subscribe("droplet.exited").await;

    let message = world.start_message(&wasm, "app");
    let mut stopped: BTreeSet<Name> = BTreeSet::new();
    for number in 0..STARTS {
        let (app, index) = name(number);
        let mut message = message.clone();
        message["droplet"] = json!(app);
        message["index"] = json!(index);
        message["uris"] = json!([format!("{index}.{app}.example.net")]);
        message["limits"] = json!({ "mem": 16, "disk": 1, "fds": 16 });
        world.start(&message);
        if number % BETWEEN_STOPS == 0 {
            let (app, index) = name(number / 2);
            world.publish("dea.stop", &json!({ "droplet": app, "indices": [index] }));
            stopped.insert((app, index));
        }
    }

    let ends = Ends::of_all(&mut heartbeats, &mut exited, &stopped).await;
    let mut addresses = BTreeMap::new();
    while !ends.running.iter().all(|name| addresses.contains_key(name)) {
        let route = next(&mut registered).await;
        let port = u16::try_from(route["port"].as_u64().unwrap()).unwrap();
        addresses.insert(of_route(&route), SocketAddr::from(([127, 0, 0, 1], port)));
    }
    let serving: BTreeSet<SocketAddr> = ends.running.iter().map(|name| addresses[name]).collect();
    assert_eq!(serving.len(), ends.running.len(), "each has a port of its own");
    let open = listening();
    assert!(serving.iter().all(|address| open.contains(&address.port())));
    for address in &serving {
        assert_eq!(get(*address, "/", None).await.unwrap().0, 200);
    }
    assert_eq!(world.names("instances").len(), ends.running.len());

    for app in 0..APPS {
        world.publish("dea.stop", &json!({ "droplet": format!("app-{app}") }));
    }
    let is_empty = |heartbeat: &Value| heartbeat["droplets"].as_array().is_some_and(Vec::is_empty);
    while !is_empty(&next(&mut heartbeats).await) {}
    eventually("the end of all files", async || world.names("instances").is_empty().then_some(())).await;
    assert_eq!(world.names("crashes"), Vec::<String>::new(), "none has crashed");
    let ports: BTreeSet<u16> = addresses.values().map(SocketAddr::port).collect();
    eventually("the end of all ports", async || listening().is_disjoint(&ports).then_some(())).await;
    assert_eq!(world.shut_down().await.0, 0);
}

fn name(number: usize) -> Name {
    (format!("app-{}", number % APPS), u64::try_from(number / APPS).unwrap())
}

fn of_entry(entry: &Value) -> Name {
    (entry["droplet"].as_str().unwrap().to_owned(), entry["index"].as_u64().unwrap())
}

fn of_route(route: &Value) -> Name {
    let index = route["uris"][0].as_str().and_then(|uri| uri.split_once('.')).and_then(|(index, _)| index.parse().ok());
    (route["app"].as_str().unwrap().to_owned(), index.unwrap())
}

/// Ports on which this process listens. Whether they are free for others depends on the others.
fn listening() -> BTreeSet<u16> {
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    let own: BTreeSet<String> = descriptors.map(|target| target.to_string_lossy().into_owned()).collect();
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    let sockets = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let listening = sockets.filter(|fields| fields[3] == "0A" && own.contains(&format!("socket:[{}]", fields[9])));
    listening.map(|fields| u16::from_str_radix(fields[1].rsplit(':').next().unwrap(), 16).unwrap()).collect()
}

/// What has become of each start.
struct Ends {
    running: BTreeSet<Name>,
}

impl Ends {
    /// Waits until each start either runs or was stopped. A stop may overtake the start that it is meant for; any other start must run.
    async fn of_all(heartbeats: &mut Subscription, exited: &mut Subscription, stopped: &BTreeSet<Name>) -> Self {
        let mut ended: BTreeSet<Name> = BTreeSet::new();
        loop {
            let heartbeat = next(heartbeats).await;
            let entries = heartbeat["droplets"].as_array().unwrap();
            let running: BTreeSet<Name> = entries.iter().filter(|entry| entry["state"] == "RUNNING").map(of_entry).collect();
            while let Ok(Some(message)) = tokio::time::timeout(std::time::Duration::ZERO, exited.next()).await {
                let message: Value = serde_json::from_slice(&message.payload).unwrap();
                assert_eq!(message["reason"], "STOPPED", "{message}");
                assert!(ended.insert(of_entry(&message)), "it ends twice: {message}");
            }
            // A heartbeat may be older than the exits that have just been read.
            if running.is_disjoint(&ended) && running.len() + ended.len() == STARTS && running.len() == entries.len() {
                assert!(ended.is_subset(stopped), "something has ended that nobody stopped");
                return Self { running };
            }
        }
    }
}
