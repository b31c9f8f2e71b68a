//! Hundreds of starts at once, with stops among them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::world::{PATIENCE, World, eventually, get, guest, next};

/// Of each of two apps: one stays, the other is stopped again and again.
const INSTANCES: usize = 250;
const BETWEEN_STOPS: usize = 50;

pub(crate) async fn all_that_shall_run_run_and_all_that_shall_end_end() {
    let world =
        World::new("resources: { memory_mb: 1000000, disk_mb: 1000000 }\ninstance: { ports: { first: 61001, last: 63000 } }\n").await;
    let mut heartbeats = world.subscribe("dea.heartbeat").await;
    let mut registered = world.subscribe("router.register").await;
    let [stays, goes] = ["stays", "goes"].map(|app| world.start_message(&guest("tests/http-driver"), app));
    let began = Instant::now();
    for index in 0..INSTANCES {
        start(&world, &stays, index);
        start(&world, &goes, index);
        if (index + 1) % BETWEEN_STOPS == 0 {
            world.publish("dea.stop", &json!({ "droplet": "goes" }));
        }
    }
    let mut routes: BTreeMap<String, SocketAddr> = BTreeMap::new();
    while routes.len() < INSTANCES {
        let route = next(&mut registered).await;
        let host = route["uris"][0].as_str().unwrap().to_owned();
        if host.ends_with(".stays.example.net") {
            routes.insert(host, format!("127.0.0.1:{}", route["port"]).parse().unwrap());
        }
    }
    let mut count = 0;
    loop {
        count += 1;
        let heartbeat = next(&mut heartbeats).await;
        if running(&heartbeat) == [("stays", INSTANCES)] {
            break;
        }
        // A stop may overtake starts that were sent before it.
        world.publish("dea.stop", &json!({ "droplet": "goes" }));
    }
    // One a change would be hundreds; there are the periodic ones (every 300 ms here) and one in 250 ms for all changes.
    let most = 5 + began.elapsed().as_millis() / 300 + began.elapsed().as_millis() / 250;
    assert!(count <= most, "{count} heartbeats in {:?}", began.elapsed());
    let addresses: BTreeSet<_> = routes.values().collect();
    assert_eq!(addresses.len(), INSTANCES, "each has a port of its own");
    for address in addresses {
        assert_eq!(get(*address, "/", None).await.unwrap(), (200, "http-driver".to_owned()));
    }
    eventually("the end of those that were stopped", async || (world.names("instances").len() == INSTANCES).then_some(())).await;

    world.publish("dea.stop", &json!({ "droplet": "stays" }));
    eventually("the end of all", async || (reserved(&world).await == 0 && world.names("instances").is_empty()).then_some(())).await;
    assert!(world.names("crashes").is_empty(), "none has crashed");
    let (code, _) = world.shut_down().await;
    assert_eq!(code, 0);
}

fn start(world: &World, message: &Value, index: usize) {
    let mut message = message.clone();
    message["uris"] = json!([format!("{index}.{}.example.net", message["droplet"].as_str().unwrap())]);
    message["index"] = json!(index);
    message["limits"] = json!({ "mem": 16, "disk": 1, "fds": 16 });
    world.start(&message);
}

/// How many instances of each app a heartbeat tells of as running. It tells of each once.
fn running(heartbeat: &Value) -> Vec<(&str, usize)> {
    let entries = heartbeat["droplets"].as_array().unwrap();
    let instances: BTreeSet<&str> = entries.iter().map(|entry| entry["instance"].as_str().unwrap()).collect();
    assert_eq!(instances.len(), entries.len(), "an instance is told of twice");
    let mut apps: BTreeMap<&str, usize> = BTreeMap::new();
    for entry in entries.iter().filter(|entry| entry["state"] == "RUNNING") {
        *apps.entry(entry["droplet"].as_str().unwrap()).or_default() += 1;
    }
    apps.into_iter().collect()
}

/// MiB.
async fn reserved(world: &World) -> u64 {
    let status = world.bus.request("dea.status", &json!({}), PATIENCE.min(Duration::from_secs(30))).await.unwrap();
    serde_json::from_slice::<Value>(&status.payload).unwrap()["reserved_memory"].as_u64().unwrap()
}
