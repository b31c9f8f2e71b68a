//! The client against scripted agents, over the embedded broker.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use dewar_bus::BusConfig;
use dewar_bus::broker::{Broker, BrokerConfig};
use dewar_protocol::{Mib, Secret};
use tempfile::TempDir;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::tests::agent::{Agent, Running, Staging};
use crate::{
    AdvertiseHost, AfterStaging, AppHealthCheck, AppName, Client, ClientError, PackageSource, Phase, PushEvent, PushOptions, RecordError,
    exit_code, nats_url,
};

mod agent;
mod files;

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

struct World {
    client: Client,
    config: BusConfig,
    package: TempDir,
    home: TempDir,
    _stops_broker: DropGuard,
}

impl World {
    async fn start() -> Self {
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let broker = Broker::bind(BrokerConfig { listen, ..BrokerConfig::default() }).await.unwrap();
        let config = BusConfig { servers: vec![nats_url(broker.local_addr())], name: "test".to_owned(), ..BusConfig::default() };
        let stop = CancellationToken::new();
        tokio::spawn(broker.run(stop.clone()));
        let (home, package) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(package.path().join("index.html"), "hello").unwrap();
        let client = Client::connect(config.clone(), home.path(), AdvertiseHost::Loopback).await.unwrap();
        Self { client, config, package, home, _stops_broker: stop.drop_guard() }
    }

    async fn agent(&self, staging: Staging) -> Agent {
        Agent::start("agent-1", self.config.clone(), staging).await
    }

    fn options(&self) -> PushOptions {
        PushOptions::new(name(), PackageSource::at(self.package.path()).unwrap())
    }

    async fn push(&self, options: &PushOptions) -> (Result<crate::AppRecord, ClientError>, Vec<PushEvent>) {
        let mut events = Vec::new();
        let stop = CancellationToken::new();
        let pushed = timeout(PATIENCE, self.client.push(options, &mut |event| events.push(event), &stop)).await;
        (pushed.expect("a push ends"), events)
    }
}

fn name() -> AppName {
    "hello".parse().unwrap()
}

#[tokio::test]
async fn a_push_stages_starts_and_remembers() {
    let world = World::start().await;
    let agent = world.agent(Staging::Works).await;
    let options = PushOptions { instances: Some(2), memory: Some(Mib(32)), environment: vec![Secret("A=1".to_owned())], ..world.options() };
    let options = PushOptions { health_check: Some(AppHealthCheck::Http("/ready".to_owned())), ..options };
    let (pushed, events) = world.push(&options).await;
    let app = pushed.unwrap();
    assert_eq!(agent.history(), ["staging.stop", "stage", "start 0", "start 1"]);
    let start = agent.with(|state| state.starts[0].clone());
    assert_eq!((start.app_id, start.version, start.sha1), (app.id.clone(), app.release.version.clone(), Some(app.release.droplet.clone())));
    assert_eq!((start.uris, start.limits.mem, start.limits.disk), (vec!["hello.localhost".to_owned()], Mib(32), Mib(64)));
    assert_eq!(start.env, [Secret("A=1".to_owned())]);
    assert_eq!((start.health_check_type.as_deref(), start.health_check_http_endpoint.as_deref()), (Some("http"), Some("/ready")));
    assert_eq!(world.client.record(&name()).unwrap(), Some(app.clone()));
    assert_eq!((app.phase, app.release.detected_buildpack.as_deref()), (Phase::Started, Some("scripted")));
    let running = events.iter().filter(|event| matches!(event, PushEvent::Running { .. })).count();
    assert_eq!(running, 2, "{events:?}");
    let kept = walk(world.home.path(), app.release.droplet.as_str());
    assert_eq!(kept, 1, "the droplet is kept for agents that come later");
}

fn walk(dir: &std::path::Path, name: &str) -> usize {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| if path.is_dir() { walk(&path, name) } else { usize::from(path.ends_with(name)) }).sum()
}

#[tokio::test]
async fn the_old_version_goes_only_when_the_new_one_runs() {
    let world = World::start().await;
    let agent = world.agent(Staging::Works).await;
    let first = world.push(&world.options()).await.0.unwrap();
    fs::write(world.package.path().join("index.html"), "changed").unwrap();
    let second = world.push(&world.options()).await.0.unwrap();
    assert_eq!(agent.history()[3..], ["staging.stop", "stage", "start 0", "stop"]);
    assert_eq!(first.id, second.id);
    assert_ne!(first.release, second.release);
    let left: Vec<_> = agent.with(|state| state.instances.iter().map(|instance| instance.version.clone()).collect());
    assert_eq!(left, [second.release.version]);
    assert_eq!(walk(world.home.path(), first.release.droplet.as_str()), 0, "the old droplet is not kept");
}

#[tokio::test]
async fn a_failed_staging_changes_nothing() {
    let world = World::start().await;
    let agent = world.agent(Staging::Works).await;
    let first = world.push(&world.options()).await.0.unwrap();
    for (staging, text) in [(Staging::Fails, "the buildpack is unhappy"), (Staging::Lies, "0000000000")] {
        agent.with(|state| (state.staging, state.history) = (staging, vec![]));
        let error = world.push(&world.options()).await.0.unwrap_err();
        assert!(error.to_string().contains(text), "{error}");
        assert_eq!(error.exit_code(), exit_code::APP);
        assert_eq!(agent.history(), ["staging.stop", "stage"]);
        assert_eq!(world.client.record(&name()).unwrap(), Some(first.clone()));
    }
}

#[tokio::test]
async fn a_crash_while_starting_leaves_the_old_version_and_tells_the_last_lines() {
    let world = World::start().await;
    let agent = world.agent(Staging::Works).await;
    let first = world.push(&world.options()).await.0.unwrap();
    agent.with(|state| (state.running, state.history) = (Running::Crashes, vec![]));
    let (pushed, events) = world.push(&world.options()).await;
    let error = pushed.unwrap_err();
    assert_eq!(error.one_line(), "instance 0 crashed: wasm trap: unreachable (exit status 7)");
    assert!(error.hint().is_some());
    assert_eq!(agent.history(), ["staging.stop", "stage", "start 0", "stop [0]"]);
    assert!(events.iter().any(|event| matches!(event, PushEvent::Log { line, .. } if line.text == "last words")), "{events:?}");
    assert_eq!(world.client.record(&name()).unwrap(), Some(first));
}

#[tokio::test]
async fn a_first_version_that_crashes_can_be_started_again() {
    let world = World::start().await;
    let agent = world.agent(Staging::Works).await;
    agent.with(|state| state.running = Running::Crashes);
    assert!(matches!(world.push(&world.options()).await.0, Err(ClientError::Crashed { index: 0, .. })));
    assert_eq!(world.client.record(&name()).unwrap().unwrap().phase, Phase::Stopped);
    agent.with(|state| state.running = Running::Healthy);
    let started = world.client.start(&name(), &mut |_| {}, &CancellationToken::new()).await.unwrap();
    assert_eq!(started.phase, Phase::Started);
}

#[tokio::test]
async fn nobody_to_stage_no_room_and_a_deaf_stager_are_told_apart() {
    let world = World::start().await;
    let error = world.push(&world.options()).await.0.unwrap_err();
    assert!(matches!(error, ClientError::NoStager { .. }), "{error}");
    assert_eq!(error.exit_code(), exit_code::UNAVAILABLE);
    assert!(world.client.record(&name()).unwrap().is_none());

    let deaf = world.agent(Staging::Deaf).await;
    let error = world.push(&world.options()).await.0.unwrap_err();
    assert!(matches!(error, ClientError::StagerSilent { .. }), "{error}");
    drop(deaf);

    let world = World::start().await;
    let full = world.agent(Staging::Works).await;
    full.with(|state| state.memory = Mib(100));
    let error = world.push(&PushOptions { instances: Some(2), ..world.options() }).await.0.unwrap_err();
    assert!(matches!(error, ClientError::NoRoom { index: 1, roomiest: Mib(100), .. }), "{error}");
    assert!(full.with(|state| state.starts.is_empty()), "all or none");
}

#[tokio::test]
async fn a_second_push_is_refused_and_an_interrupt_ends_the_first() {
    let world = World::start().await;
    let agent = world.agent(Staging::Hangs).await;
    let (client, options, stop) = (world.client.clone(), world.options(), CancellationToken::new());
    let first = tokio::spawn({
        let stop = stop.clone();
        async move { client.push(&options, &mut |_| {}, &stop).await }
    });
    timeout(PATIENCE, async {
        while !agent.history().contains(&"stage".to_owned()) {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the first push stages");
    let second = world.push(&world.options()).await.0.unwrap_err();
    assert!(matches!(second, ClientError::Records(RecordError::Busy(_))), "{second}");
    assert_eq!(second.exit_code(), exit_code::TEMPORARY);
    stop.cancel();
    let interrupted = timeout(PATIENCE, first).await.expect("an interrupted push ends").unwrap();
    assert!(matches!(interrupted, Err(ClientError::Interrupted)), "{interrupted:?}");
    // That the push has ended does not say that the agent has read its last word.
    timeout(PATIENCE, async {
        while agent.history().len() < 3 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the agent is told");
    assert_eq!(agent.history(), ["staging.stop", "stage", "staging.stop"]);
}

#[tokio::test]
async fn scale_stop_and_delete_say_what_they_mean() {
    let world = World::start().await;
    let agent = world.agent(Staging::Works).await;
    let app = world.push(&world.options()).await.0.unwrap();
    let (client, stop) = (&world.client, CancellationToken::new());
    agent.with(|state| state.history.clear());
    client.scale(&name(), 3, &mut |_| {}, &stop).await.unwrap();
    client.scale(&name(), 1, &mut |_| {}, &stop).await.unwrap();
    assert_eq!(agent.history(), ["start 1", "start 2", "stop [1, 2]"]);
    assert_eq!(client.record(&name()).unwrap().unwrap().instances, 1);

    agent.with(|state| state.history.clear());
    client.stop(&name()).await.unwrap();
    assert_eq!((agent.history(), agent.count(&app.id)), (vec!["stop all".to_owned()], 0));
    client.scale(&name(), 2, &mut |_| {}, &stop).await.unwrap();
    assert_eq!(agent.count(&app.id), 0, "a stopped app stays stopped");
    client.start(&name(), &mut |_| {}, &stop).await.unwrap();
    assert_eq!(agent.count(&app.id), 2);

    client.delete(&name()).await.unwrap();
    assert_eq!(agent.count(&app.id), 0);
    assert!(matches!(client.delete(&name()).await, Err(ClientError::UnknownApp(_))));
}

#[tokio::test]
async fn a_staged_version_waits_for_a_restart() {
    let world = World::start().await;
    let agent = world.agent(Staging::Works).await;
    let first = world.push(&world.options()).await.0.unwrap();
    let staged = world.push(&PushOptions { after_staging: AfterStaging::Keep, ..world.options() }).await.0.unwrap();
    assert_eq!(staged.phase, Phase::Staged);
    assert_eq!(agent.with(|state| state.instances[0].version.clone()), first.release.version);
    let stop = CancellationToken::new();
    let error = world.client.scale(&name(), 2, &mut |_| {}, &stop).await.unwrap_err();
    assert!(matches!(error, ClientError::OnlyStaged(_)), "{error}");
    let restarted = world.client.restart(&name(), &mut |_| {}, &stop).await.unwrap();
    let left: Vec<_> = agent.with(|state| state.instances.iter().map(|instance| instance.version.clone()).collect());
    assert_eq!(left, [restarted.release.version]);
}
