use std::net::SocketAddr;

use dewar_bus::broker::{Broker, BrokerConfig};
use dewar_bus::{BusConfig, Subscription};
use dewar_protocol::{HeartbeatEntry, InstanceState, UnixSeconds};
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::free_port::free_port;

const PATIENCE: Duration = Duration::from_secs(60);
const MAX_PAYLOAD: usize = 4096;

fn heartbeat(instances: u32) -> Heartbeat {
    let entry = |index| HeartbeatEntry {
        cc_partition: "default".to_owned(),
        app_id: "app".into(),
        version: "v1".to_owned(),
        instance_id: "instance".into(),
        index,
        state: InstanceState::Running,
        state_timestamp: UnixSeconds(1_400_000_000.0),
    };
    Heartbeat { droplets: (0..instances).map(entry).collect(), dea: "0-a".into() }
}

/// A server that takes little at a time.
async fn serve(listen: SocketAddr) -> (SocketAddr, CancellationToken) {
    let broker = Broker::bind(BrokerConfig { listen, max_payload: MAX_PAYLOAD, ..BrokerConfig::default() }).await.unwrap();
    let (address, stop) = (broker.local_addr(), CancellationToken::new());
    tokio::spawn(broker.run(stop.clone()));
    (address, stop)
}

/// An outbox on a bus, and who listens to heartbeats there.
async fn outbox(split_heartbeats: bool) -> (Outbox, Subscription, CancellationToken) {
    let (address, stop) = serve(SocketAddr::from(([127, 0, 0, 1], free_port()))).await;
    let (outbox, heard) = outbox_at(address, split_heartbeats).await;
    (outbox, heard, stop)
}

async fn outbox_at(address: SocketAddr, split_heartbeats: bool) -> (Outbox, Subscription) {
    let config = BusConfig { servers: vec![format!("nats://{address}")], ..BusConfig::default() };
    let (bus, _) = Bus::connect(config).await.unwrap();
    bus.wait_up(PATIENCE).await.unwrap();
    let heard = bus.subscribe(subjects::DEA_HEARTBEAT).await.unwrap();
    bus.flush(PATIENCE).await.unwrap();
    let manners = Manners { split_heartbeats, greeting_inbox: "inbox".to_owned(), reply_keys: StagingReplyKeys::Superset, hm9000: None };
    let (outbox, sender) = Outbox::new(bus, manners);
    tokio::spawn(sender);
    (outbox, heard)
}

async fn next(heard: &mut Subscription) -> Vec<u32> {
    let message = timeout(PATIENCE, heard.next()).await.expect("no heartbeat").unwrap();
    assert!(message.payload.len() <= MAX_PAYLOAD);
    let heartbeat: Heartbeat = serde_json::from_slice(&message.payload).unwrap();
    heartbeat.droplets.iter().map(|entry| entry.index).collect()
}

#[tokio::test]
async fn a_heartbeat_that_is_too_large_goes_in_parts_where_it_may() {
    let (outbox, mut heard, stop) = outbox(true).await;
    outbox.publish(&Publication::Heartbeat(heartbeat(100)));
    let (mut told, mut parts) = (Vec::new(), 0);
    while told.len() < 100 {
        told.extend(next(&mut heard).await);
        parts += 1;
    }
    assert_eq!(told, (0..100).collect::<Vec<_>>());
    assert!(parts > 1);
    stop.cancel();
}

#[tokio::test]
async fn elsewhere_it_goes_whole_or_not_at_all() {
    let (outbox, mut heard, stop) = outbox(false).await;
    outbox.publish(&Publication::Heartbeat(heartbeat(100)));
    outbox.publish(&Publication::Heartbeat(heartbeat(3)));
    assert_eq!(next(&mut heard).await, [0, 1, 2]);
    stop.cancel();
}

#[tokio::test]
async fn replies_wait_for_the_bus_in_their_order_and_what_is_said_again_does_not() {
    let (address, stop) = serve(SocketAddr::from(([127, 0, 0, 1], free_port()))).await;
    let (outbox, mut heard) = outbox_at(address, false).await;
    let mut asker = outbox.bus.subscribe("asker").await.unwrap();
    stop.cancel();
    let lost = async {
        while outbox.bus.is_up() {
            tokio::time::sleep(PAUSE).await
        }
    };
    timeout(PATIENCE, lost).await.expect("the bus is still up");
    let setup = json!({ "task_id": "t1", "task_streaming_log_url": null, "detected_buildpack": null, "error": null, "droplet_sha1": null });
    let mut staged = setup.clone();
    staged["error"] = json!("no");
    outbox.publish(&Publication::Heartbeat(heartbeat(1)));
    outbox.reply("asker", &Answer::Setup(serde_json::from_value(setup).unwrap()));
    outbox.reply("asker", &Answer::Staged(Box::new(serde_json::from_value(staged).unwrap())));
    let (_, stop) = serve(address).await;
    outbox.bus.wait_up(PATIENCE).await.unwrap();
    outbox.publish(&Publication::Heartbeat(heartbeat(2)));
    assert_eq!(next(&mut heard).await, [0, 1], "the first heartbeat has had its time");
    let mut errors = Vec::new();
    for _ in 0..2 {
        let reply = timeout(PATIENCE, asker.next()).await.expect("a reply is lost").unwrap();
        errors.push(serde_json::from_slice::<Value>(&reply.payload).unwrap()["error"].clone());
    }
    assert_eq!(errors, [Value::Null, json!("no")]);
    stop.cancel();
}
