//! The agent's connection to the bus breaks.

use std::time::Duration;

use crate::platform::{PATIENCE, Platform, eventually, start_agent};
use crate::proxy::Fault;

/// Whatever happened: the app is served, its agent is found, and it can be scaled.
async fn all_is_well(world: &Platform, instances: u32) {
    let name = "shop".parse().unwrap();
    // A message to an agent that is away is lost, as ever on NATS: who wants a number of instances says so until there are as many.
    eventually("the app to be found and scaled", async || {
        world.client.scale(&name, instances, &mut |_| {}, &world.stop).await.ok()?;
        let report = world.client.describe_app(&name).await.ok()?;
        (report.instances.len() == instances as usize).then_some(())
    })
    .await;
    world.until("shop", "/", 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_in_the_middle_of_a_message_it_comes_back() {
    let world = Platform::start().await;
    world.push("shop", &world.driver(), &[]).await.unwrap();
    for (round, bytes) in [1, 7, 40, 333].into_iter().enumerate() {
        world.proxy.set(Fault::CutAfter(bytes));
        // Asking for agents makes them send, and so reach the cut; whether this answer still passes is not the question.
        let _ = world.client.agents().await;
        assert_eq!(world.get("shop", "/").await.unwrap().0, 200, "requests do not need the bus");
        world.proxy.set(Fault::None);
        all_is_well(&world, u32::try_from(round % 2 + 1).unwrap()).await;
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn held_and_slowed_it_catches_up() {
    let world = Platform::start().await;
    world.push("shop", &world.driver(), &[]).await.unwrap();
    world.proxy.set(Fault::Hold);
    for _ in 0..10 {
        assert_eq!(world.get("shop", "/").await.unwrap().0, 200, "requests do not need the bus");
    }
    world.proxy.set(Fault::Delay(Duration::from_millis(50)));
    all_is_well(&world, 2).await;
    world.proxy.set(Fault::None);
    all_is_well(&world, 1).await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_ends_in_time_though_its_bus_is_dead() {
    let world = Platform::start().await;
    world.push("shop", &world.driver(), &[]).await.unwrap();
    world.proxy.set(Fault::Hold);
    world.stop_agent.cancel();
    tokio::time::timeout(PATIENCE, world.agent.wait()).await.expect("the agent ends without its bus");
    world.stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_agents_share_an_app() {
    let world = Platform::start().await;
    let stop = world.stop.child_token();
    let second = start_agent(&world.dir.path().join("second"), world.proxy.address, stop.clone()).await;
    world.push("shop", &world.driver(), &[]).await.unwrap();
    let name = "shop".parse().unwrap();
    // An agent that says too late that it is there gets none this time.
    eventually("four instances on two agents", async || {
        world.client.scale(&name, 1, &mut |_| {}, &world.stop).await.ok()?;
        world.client.scale(&name, 4, &mut |_| {}, &world.stop).await.ok()?;
        let report = world.client.describe_app(&name).await.ok()?;
        let agents: std::collections::BTreeSet<_> = report.instances.iter().map(|instance| instance.agent.clone()).collect();
        ((report.instances.len(), agents.len()) == (4, 2)).then_some(())
    })
    .await;
    // One agent goes in order; the other's instances serve on.
    stop.cancel();
    assert_eq!(tokio::time::timeout(PATIENCE, second.wait()).await.expect("the agent ends"), 0);
    for _ in 0..8 {
        assert_eq!(world.get("shop", "/").await.unwrap().0, 200);
    }
    world.end().await;
}
