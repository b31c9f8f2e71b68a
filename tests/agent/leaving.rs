//! The end of an instance and of an agent, as those see it who are being served.

use std::time::Duration;

use dewar_agent::Signal;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use crate::lifecycle::{address, lines};
use crate::world::{PATIENCE, World, eventually, get, guest, next, next_where};

pub(crate) async fn who_has_not_heard_of_a_stop_yet_is_answered() {
    let world = World::new("").await;
    let mut registered = world.subscribe("router.register").await;
    let mut unregistered = world.subscribe("router.unregister").await;
    let mut message = world.start_message(&guest("tests/http-driver"), "shop");
    let instance = loop {
        world.start(&message);
        let instance = address(&next(&mut registered).await);
        let slow = tokio::spawn(get(instance, "/sleep?ms=1500", None));
        world.in_use("shop").await;
        let asked = Instant::now();
        world.publish("dea.stop", &json!({ "droplet": "shop" }));
        assert_eq!(address(&next(&mut unregistered).await), instance, "routers hear of it first");
        let late = get(instance, "/log?text=farewell", None).await;
        // It listens for a second yet, which may be over where the machine stands still meanwhile.
        if late.is_ok() || asked.elapsed() < Duration::from_secs(1) {
            assert_eq!(late.unwrap().0, 200, "a router that has not heard of it yet");
            assert_eq!(slow.await.unwrap().unwrap(), (200, "slept".to_owned()), "a request that was in work");
            break instance;
        }
        message["index"] = json!(message["index"].as_u64().unwrap() + 1);
    };
    eventually("its port's end", async || std::net::TcpStream::connect(instance).is_err().then_some(())).await;
    eventually("its last line", async || {
        let told = lines(&world.bus, &json!({ "droplet": "shop", "tail": 100 })).await;
        told.iter().any(|line| line["text"] == "farewell" && line["source"] == "APP").then_some(())
    })
    .await;
}

pub(crate) async fn an_evacuated_instance_serves_until_it_is_stopped() {
    let world = World::new("").await;
    let mut heartbeats = world.subscribe("dea.heartbeat").await;
    let mut registered = world.subscribe("router.register").await;
    let mut exited = world.subscribe("droplet.exited").await;
    let mut farewells = world.subscribe("dea.shutdown").await;
    world.start(&world.start_message(&guest("tests/http-driver"), "shop"));
    let instance = address(&next(&mut registered).await);

    world.agent.signals().send(Signal::Evacuate).await.unwrap();
    assert_eq!(next(&mut farewells).await["app_id_to_count"], json!({ "shop": 1 }));
    assert_eq!(next(&mut exited).await["reason"], "DEA_EVACUATION");
    let is_evacuated = |heartbeat: &Value| heartbeat["droplets"][0]["state"] == "EVACUATING";
    let heartbeat = next_where(&mut heartbeats, "that says EVACUATING", is_evacuated).await;
    assert_eq!(get(instance, "/", None).await.unwrap().0, 200);
    assert_eq!(address(&next(&mut registered).await), instance, "its route is told again as ever");

    let message = world.start_message(&guest("tests/http-driver"), "blog");
    world.start(&message);
    let ids = [&heartbeat["droplets"][0]["instance"]];
    world.publish("dea.stop", &json!({ "droplet": "shop", "version": "v1", "instances": ids }));
    next(&mut farewells).await;
    assert_eq!(timeout(PATIENCE, world.agent.wait()).await.expect("the agent does not end"), 0);
    let nothing = timeout(Duration::from_millis(50), exited.next()).await;
    assert!(!matches!(nothing, Ok(Some(_))), "an end was told twice: {nothing:?}");
    let nothing = timeout(Duration::from_millis(50), registered.next()).await;
    assert!(!matches!(nothing, Ok(Some(_))), "something was started: {nothing:?}");
}

pub(crate) async fn out_of_placement_instances_run_on() {
    let world = World::new("").await;
    let mut registered = world.subscribe("router.register").await;
    let mut advertised = world.subscribe("dea.advertise").await;
    let mut farewells = world.subscribe("dea.shutdown").await;
    next(&mut advertised).await;
    for _ in 0..2 {
        world.agent.signals().send(Signal::Drain).await.unwrap();
        next(&mut farewells).await;
    }
    // What was sent before the first of them has come before it.
    while timeout(Duration::from_millis(20), advertised.next()).await.is_ok() {}
    world.start(&world.start_message(&guest("tests/http-driver"), "shop"));
    let instance = address(&next(&mut registered).await);
    world.publish("dea.locate", &json!({}));
    world.publish("staging.locate", &json!({}));
    assert_eq!(get(instance, "/", None).await.unwrap().0, 200);
    let nothing = timeout(Duration::from_secs(1), advertised.next()).await;
    assert!(nothing.is_err(), "it advertises itself: {nothing:?}");
    assert_eq!(world.shut_down().await.0, 0);
}

pub(crate) async fn switched_off_subjects_are_silent() {
    let broker = crate::world::EmbeddedBroker::start(0).await;
    let bus = crate::world::client(broker.addr).await;
    let mut silent = Vec::new();
    for subject in ["dea.start", "router.greet", "staging.advertise", "vcap.component.announce", "dea.heartbeat"] {
        silent.push(bus.subscribe(subject).await.unwrap());
    }
    let mut advertised = bus.subscribe("dea.advertise").await.unwrap();
    bus.flush(PATIENCE).await.unwrap();
    let base = tempfile::tempdir().unwrap();
    let yaml = "staging: { enabled: true }\ncompat: { legacy_subjects: false, component: false, empty_heartbeat: false }\n";
    let stop = tokio_util::sync::CancellationToken::new();
    let config = crate::world::config(base.path(), broker.addr, yaml);
    let agent = dewar_agent::Agent::start(config, stop.clone()).await.unwrap();
    next(&mut advertised).await;
    for subject in ["dea.locate", "staging.locate", "dea.status", "healthmanager.start", "vcap.component.discover"] {
        let answer = bus.request(subject, &json!({}), Duration::from_millis(100)).await;
        assert!(answer.is_err(), "{subject} is answered: {answer:?}");
    }
    for _ in 0..3 {
        next(&mut advertised).await;
    }
    for subscription in &mut silent {
        let nothing = timeout(Duration::from_millis(10), subscription.next()).await;
        assert!(nothing.is_err(), "{nothing:?}");
    }
    stop.cancel();
    assert_eq!(timeout(PATIENCE, agent.wait()).await.expect("the agent does not end"), 0);
}
