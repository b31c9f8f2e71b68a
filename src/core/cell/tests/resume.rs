//! What an earlier process has left, and what is saved for the next one.

use std::time::Duration;

use dewar_protocol::{InstanceState, Snapshot};
use expect_test::expect;

use super::staging::{failed, finished};
use super::*;
use crate::testing::staging_message;
use crate::{Mono, SnapshotImage, StagedDroplet};

/// A cell that saves, connected.
fn saving() -> Scene {
    let mut scene = Scene::offline(config());
    scene.resume(None);
    scene.take(Input::SnapshotSaved { ok: true });
    scene.take(Input::Bus(BusEvent::Up));
    scene.at(1).take(Input::Wake);
    scene
}

impl Scene {
    fn resume(&mut self, snapshot: Option<Snapshot>) -> Vec<Effect> {
        self.cell.resume(at(self.seconds), snapshot)
    }
}

fn images(effects: &[Effect]) -> Vec<&SnapshotImage> {
    fn image(effect: &Effect) -> Option<&SnapshotImage> {
        match effect {
            Effect::SaveSnapshot(image) => Some(image),
            _ => None,
        }
    }
    effects.iter().filter_map(image).collect()
}

fn snapshot(effects: &[Effect]) -> Option<Snapshot> {
    let images = images(effects);
    assert!(images.len() < 2, "two at a time");
    images.first().map(|image| image.snapshot(|files, state| format!("/base/{state}/{files}")))
}

/// What the next process finds: taken through JSON, as it is in truth.
fn left(scene: &mut Scene) -> Snapshot {
    scene.cell.saves.change();
    scene.cell.saves.loaded(at(scene.seconds).mono);
    let saved = snapshot(&scene.take(Input::Wake)).expect("a snapshot");
    serde_json::from_str(&serde_json::to_string(&saved).unwrap()).unwrap()
}

fn without_save(effects: &[Effect]) -> String {
    shown(effects).lines().filter(|line| *line != "save snapshot").map(|line| format!("{line}\n")).collect()
}

/// One instance of each kind, and a staging, as an agent leaves them that is killed.
fn troubled() -> Snapshot {
    let mut scene = saving();
    scene.run(start_message("running", 0));
    scene.take(started(start_message("starting", 1)));
    let crashed = scene.run(start_message("crashed", 2));
    scene.at(5).take(exited(crashed.0, 134, "wasm trap"));
    scene.run(start_message("stopping", 3));
    scene.take(stop(r#"{"droplet":"stopping"}"#));
    scene.take(asked(Request::Stage(Box::new(staging_message("staged", "t1")))));
    left(&mut scene)
}

#[test]
fn what_is_saved() {
    let saved = troubled();
    let states: Vec<_> = saved.instances.iter().map(|instance| (instance.application_name.as_str(), instance.state)).collect();
    use InstanceState::{Crashed, Running, Starting, Stopping};
    assert_eq!(states, [("running", Running), ("starting", Starting), ("crashed", Crashed), ("stopping", Stopping)]);
    let running = &saved.instances[0];
    assert_eq!((running.instance_host_port, running.instance_container_port), (Some(61_001), Some(61_001)));
    assert_eq!(running.warden_host_ip.as_deref(), Some("10.0.16.23"));
    assert_eq!(running.warden_container_path, Some(format!("/base/RUNNING/{}", running.warden_handle)));
    assert_eq!(running.start_message, start_message("running", 0));
    assert!(running.state_starting_timestamp.is_some());
    assert_eq!(saved.staging_tasks[0].staging_message, staging_message("staged", "t1"));
    assert_eq!(saved.staging_tasks[0].reply_to.as_deref(), Some("asker"));
}

#[test]
fn every_saved_state_has_its_resumption() {
    let saved = troubled();
    let mut scene = Scene::offline(config());
    scene.at(100);
    let effects = scene.resume(Some(saved));
    expect![[r#"
        running/0 (1) BORN → RESUMING
        start sandbox 1 for running/0 with droplet a…
        starting/1 (2) BORN → RESUMING
        starting/1 (2) RESUMING → CRASHED: the agent was restarted while the instance was starting
        log of starting/1 Err: Instance (index 1) crashed: the agent was restarted while the instance was starting
        crashed/2 (3) BORN → RESUMING
        crashed/2 (3) RESUMING → CRASHED
        stopping/3 (4) BORN → RESUMING
        stopping/3 (4) RESUMING → STOPPING
        stopping/3 (4) STOPPING → STOPPED
        log of stopping/3 Out: Stopping app instance (index 3) with guid stopping
        log of stopping/3 Out: Stopped app instance (index 3) with guid stopping
        delete instance files
        save snapshot
    "#]]
    .assert_eq(&shown(&effects));
    let spec = effects.iter().find_map(|effect| match effect {
        Effect::StartSandbox(spec) => Some(spec),
        _ => None,
    });
    assert_eq!(spec.unwrap().resumed, Some(crate::Resumed { port: Some(61_001) }));

    // The rest of the world is told once there is a way to tell it.
    scene.at(101).check(
        Input::Bus(BusEvent::Up),
        expect![[r#"
            to asker: staging of t1: Error staging: task stopped, the agent was restarted, no droplet
            droplet.exited starting/1 Crashed -1 "the agent was restarted while the instance was starting" at 100
            router.unregister stopping.example.net → 10.0.16.23:61004 of stopping by dea-2
            router.greet
            vcap.component.announce DEA 2 10.0.16.23:49871
            dea.start cell 10.0.16.23
            dea.advertise memory 900M disk 3400M apps crashed:1 running:1 starting:1
            staging.advertise memory 900M disk 3400M
            dea.heartbeat running/0 v1 RUNNING since 1, starting/1 v1 CRASHED since 100, crashed/2 v1 CRASHED since 5
        "#]],
    );
    scene.take(launched(1));
    scene.at(102).check(
        ready(1),
        expect![[r#"
            running/0 (1) RESUMING → RUNNING
            dea.heartbeat running/0 v1 RUNNING since 1, starting/1 v1 CRASHED since 100, crashed/2 v1 CRASHED since 5
            router.register running.example.net → 10.0.16.23:61001 of running by dea-2
        "#]],
    );
}

#[test]
fn nobody_is_told_twice_and_nothing_is_forgotten_before_it_is_told() {
    let mut first = Scene::offline(config());
    first.resume(Some(troubled()));
    let again = left(&mut first);
    let states: Vec<_> = again.instances.iter().map(|instance| instance.state).collect();
    assert_eq!(states, [InstanceState::Running, InstanceState::Starting, InstanceState::Crashed], "its end was told nobody");
    assert_eq!(again.staging_tasks.len(), 1);

    let mut second = Scene::offline(config());
    second.resume(Some(again));
    let told = shown(&second.take(Input::Bus(BusEvent::Up)));
    assert_eq!((told.matches("droplet.exited").count(), told.matches("to asker").count()), (1, 1), "{told}");
    let told = left(&mut second);
    assert_eq!(told.instances[1].state, InstanceState::Crashed);
    assert_eq!(told.staging_tasks, []);

    let mut third = Scene::offline(config());
    third.resume(Some(told));
    let told = shown(&third.take(Input::Bus(BusEvent::Up)));
    assert!(!told.contains("droplet.exited") && !told.contains("to asker"), "{told}");
}

#[test]
fn a_resumed_instance_is_the_same_instance() {
    let mut scene = saving();
    let key = scene.run(start_message("shop", 0));
    let id = |scene: &Scene, key| scene.cell.registry.get(key).unwrap().instance_id.clone();
    let first = id(&scene, key);
    scene.at(10).take(request(Request::UpdateApp(serde_json::from_str(r#"{"droplet":"shop","version":"v2","uris":["a","b"]}"#).unwrap())));
    let renamed = id(&scene, key);
    assert_ne!(first, renamed);
    let saved = left(&mut scene);
    assert_eq!((&saved.instances[0].warden_handle, &saved.instances[0].instance_id), (&first, &renamed));

    let mut next = Scene::offline(config());
    next.at(40);
    let effects = next.resume(Some(saved));
    let files = effects.iter().find_map(|effect| match effect {
        Effect::StartSandbox(spec) => Some(spec.instance_id.clone()),
        _ => None,
    });
    assert_eq!((files, id(&next, InstanceKey(1))), (Some(first), renamed));
    next.take(Input::Bus(BusEvent::Up));
    let question = r#"{"droplet":"shop","states":["RUNNING"],"include_stats":true}"#;
    let found = next.at(41).take(asked(Request::FindInstances(serde_json::from_str(question).unwrap())));
    let [Effect::Reply(_, Answer::Found(found))] = &found[..] else { panic!("{found:?}") };
    assert_eq!((found.version.as_str(), found.state), ("v2", InstanceState::Running), "to others it never was away");
    assert_eq!(found.stats.as_ref().unwrap().uptime, 40, "its time goes on");
    next.take(launched(1));
    next.check(
        ready(1),
        expect![[r#"
            shop/0 (1) RESUMING → RUNNING
            dea.heartbeat shop/0 v2 RUNNING since 1
            router.register a b → 10.0.16.23:61001 of shop by dea-2
        "#]],
    );
    // Its end is noticed like any other's.
    next.check(
        exited(1, 3, "trap"),
        expect![[r#"
            shop/0 (1) RUNNING → CRASHED: trap
            router.unregister a b → 10.0.16.23:61001 of shop by dea-2
            log of shop/0 Err: Instance (index 0) crashed: trap
            droplet.exited shop/0 Crashed 3 "trap" at 41
        "#]],
    );
}

/// A cell that is about to run one instance again.
fn resuming() -> Scene {
    let mut before = saving();
    before.run(start_message("shop", 0));
    let saved = left(&mut before);
    let mut scene = Scene::offline(config());
    scene.resume(Some(saved));
    scene.take(Input::SnapshotSaved { ok: true });
    scene.take(Input::Bus(BusEvent::Up));
    scene.at(1).take(Input::Wake);
    scene
}

#[test]
fn another_port_takes_the_routes_off_the_old_one() {
    let moved = Input::Sandbox(InstanceKey(1), SandboxEvent::Launched { port: Some(62_000), state_file: false });
    let effects = resuming().take(moved);
    assert_eq!(without_save(&effects), "router.unregister shop.example.net → 10.0.16.23:61001 of shop by dea-2\n");
}

#[test]
fn what_does_not_run_again_has_crashed() {
    let effects = resuming().take(exited(1, -1, "failed to start"));
    expect![[r#"
        shop/0 (1) RESUMING → CRASHED: failed to start
        router.unregister shop.example.net → 10.0.16.23:61001 of shop by dea-2
        log of shop/0 Err: Instance (index 0) crashed: failed to start
        droplet.exited shop/0 Crashed -1 "failed to start" at 1
    "#]]
    .assert_eq(&without_save(&effects));
    let mut late = resuming();
    let effects = late.wake_until(901);
    assert!(without_save(&effects).contains("RESUMING → CRASHED: the sandbox was not made in time"), "{}", shown(&effects));
}

#[test]
fn a_stop_and_an_update_find_what_is_resuming() {
    let mut scene = resuming();
    let update = request(Request::UpdateApp(serde_json::from_str(r#"{"droplet":"shop","uris":["other"]}"#).unwrap()));
    let effects = scene.take(update);
    expect![[r#"
        router.unregister shop.example.net → 10.0.16.23:61001 of shop by dea-2
        dea.heartbeat shop/0 v1 RUNNING since 1
    "#]]
    .assert_eq(&without_save(&effects));
    let mut evacuated = resuming();
    evacuated.take(Input::Signal(Signal::Evacuate));
    let effects =
        shown(&evacuated.take(request(Request::UpdateApp(serde_json::from_str(r#"{"droplet":"shop","uris":["other"]}"#).unwrap()))));
    assert!(effects.starts_with("router.unregister shop.example.net → 10.0.16.23:61001 of shop by dea-2\n"), "{effects}");
    let effects = scene.take(stop(r#"{"droplet":"shop"}"#));
    expect![[r#"
        shop/0 (1) RESUMING → STOPPING
        router.unregister other → 10.0.16.23:61001 of shop by dea-2
        droplet.exited shop/0 Stopped -1 ""
        kill sandbox 1
    "#]]
    .assert_eq(&without_save(&effects));
}

#[test]
fn an_evacuation_reaches_what_is_resuming() {
    let mut scene = resuming();
    let effects = scene.take(Input::Signal(Signal::Evacuate));
    expect![[r#"
        dea.shutdown apps shop:1
        shop/0 (1) RESUMING → EVACUATING
        droplet.exited shop/0 DeaEvacuation -1 ""
        dea.heartbeat shop/0 v1 EVACUATING since 1
    "#]]
    .assert_eq(&without_save(&effects));
    scene.take(launched(1));
    let effects = scene.take(ready(1));
    expect![[r#"
        router.register shop.example.net → 10.0.16.23:61001 of shop by dea-2
    "#]]
    .assert_eq(&without_save(&effects));
}

#[test]
fn what_no_longer_fits_crashes_and_no_more_is_promised_than_there_is() {
    let mut before = saving();
    for index in 0..3 {
        before.run(start_message("shop", index));
    }
    let saved = left(&mut before);
    let mut small = config();
    small.capacity.memory = dewar_protocol::Mib(250);
    let mut scene = Scene::offline(small);
    let effects = shown(&scene.resume(Some(saved)));
    assert_eq!(effects.matches("start sandbox").count(), 2, "{effects}");
    assert!(effects.contains("shop/2 (3) RESUMING → CRASHED: Not enough memory resource available."), "{effects}");
    assert_eq!(scene.cell.remaining().memory(), dewar_protocol::Mib(50));
}

#[test]
fn the_time_of_a_crash_begins_anew() {
    let mut before = saving();
    let key = before.run(start_message("shop", 0));
    before.at(10).take(exited(key.0, 1, "trap"));
    let saved = left(&mut before);
    let mut scene = Scene::offline(config());
    scene.at(2000).resume(Some(saved));
    assert_eq!(scene.cell.registry.deadlines().next(), Some(Mono(Duration::from_secs(5600))));
}

/// What an input has saved, everything before it being saved already and its pause over.
fn saved_by(scene: &mut Scene, input: Input) -> Option<Snapshot> {
    scene.take(Input::SnapshotSaved { ok: true });
    while scene.cell.saves.next().is_some() {
        scene.at(scene.seconds + 6).take(Input::Wake);
        scene.take(Input::SnapshotSaved { ok: true });
    }
    snapshot(&scene.at(scene.seconds + 6).take(input))
}

#[test]
fn every_change_that_matters_is_saved_when_it_comes() {
    fn instances(scene: &mut Scene, input: Input) -> String {
        let saved = saved_by(scene, input).expect("it is saved");
        let shown = saved.instances.iter().map(|instance| {
            let (name, index) = (&instance.application_name, instance.instance_index);
            format!("{name}/{index} {} {} {:?}", instance.application_version, instance.application_uris.join(" "), instance.state)
        });
        shown.collect::<Vec<_>>().join(", ")
    }
    let mut scene = saving();
    let mut large = start_message("large", 0);
    large.limits.mem = dewar_protocol::Mib(5000);
    assert_eq!(instances(&mut scene, started(large)), "large/0 v1 large.example.net Crashed");

    let mut scene = saving();
    assert_eq!(instances(&mut scene, started(start_message("shop", 0))), "shop/0 v1 shop.example.net Starting");
    scene.take(droplet_ready());
    let launched = saved_by(&mut scene, launched(1)).expect("its port is saved");
    assert_eq!(launched.instances[0].instance_host_port, Some(61_001));
    assert_eq!(instances(&mut scene, ready(1)), "shop/0 v1 shop.example.net Running");
    let update = |wire: &str| request(Request::UpdateApp(serde_json::from_str(wire).unwrap()));
    assert_eq!(instances(&mut scene, update(r#"{"droplet":"shop","uris":["old","new"]}"#)), "shop/0 v1 old new Running");
    assert_eq!(instances(&mut scene, update(r#"{"droplet":"shop","uris":["new","old"]}"#)), "shop/0 v1 new old Running");
    assert_eq!(instances(&mut scene, update(r#"{"droplet":"shop","uris":["new"]}"#)), "shop/0 v1 new Running");
    assert_eq!(instances(&mut scene, update(r#"{"droplet":"shop","version":"v2"}"#)), "shop/0 v2 new Running");
    assert_eq!(saved_by(&mut scene, update(r#"{"droplet":"shop","version":"v2"}"#)), None, "nothing has changed");
    assert_eq!(instances(&mut scene, exited(1, 1, "")), "shop/0 v2 new Crashed");

    let mut scene = saving();
    scene.take(started(start_message("slow", 0)));
    scene.take(droplet_ready());
    assert_eq!(instances(&mut scene, exited(1, 1, "")), "slow/0 v1 slow.example.net Crashed");

    let mut scene = saving();
    let key = scene.run(start_message("shop", 0)).0;
    assert_eq!(instances(&mut scene, stop(r#"{"droplet":"shop"}"#)), "shop/0 v1 shop.example.net Stopping");
    assert_eq!(instances(&mut scene, exited(key, 255, "")), "");

    let mut scene = saving();
    scene.run(start_message("shop", 0));
    assert_eq!(instances(&mut scene, Input::Signal(Signal::Evacuate)), "shop/0 v1 shop.example.net Evacuating");
    assert_eq!(instances(&mut scene, stop(r#"{"droplet":"shop"}"#)), "shop/0 v1 shop.example.net Stopping");
}

#[test]
fn the_beginning_and_every_end_of_a_staging_are_saved_when_they_come() {
    let mut scene = saving();
    let stopped = || request(Request::StopStaging(serde_json::from_str(r#"{"app_id":"staged"}"#).unwrap()));
    for end in [finished(1), failed(2), stopped()] {
        let begun = saved_by(&mut scene, asked(Request::Stage(Box::new(staging_message("staged", "t1"))))).expect("a task is saved");
        assert_eq!(begun.staging_tasks[0].staging_message, staging_message("staged", "t1"));
        let ended = saved_by(&mut scene, end.clone()).unwrap_or_else(|| panic!("not saved: {end:?}"));
        assert_eq!(ended.staging_tasks, [], "{end:?}");
    }
}

#[test]
fn saves_are_one_at_a_time_and_together() {
    let mut scene = saving();
    let first = scene.take(started(start_message("shop", 0)));
    assert_eq!(images(&first).len(), 1, "the first change is saved at once");
    let more = (1..5).flat_map(|index| scene.take(started(start_message("shop", index)))).collect::<Vec<_>>();
    assert_eq!(images(&more).len(), 0, "one is under way");
    scene.at(11);
    assert_eq!(images(&scene.take(Input::SnapshotSaved { ok: true })).len(), 0, "and then there is a pause");
    assert_eq!(scene.cell.saves.next(), Some(at(16).mono), "of four times what it took, and 5 s at most");
    let next = scene.at(16).take(Input::Wake);
    assert_eq!(images(&next)[0].instances.len(), 5, "all that has changed since");
    scene.take(Input::SnapshotSaved { ok: true });
    assert_eq!(scene.cell.saves.next(), None, "what has not changed is not saved");
    scene.at(17).take(stop(r#"{"droplet":"shop","indices":[0]}"#));
    let failed = scene.take(Input::SnapshotSaved { ok: false });
    assert_eq!((images(&failed).len(), scene.cell.saves.next()), (0, Some(at(18).mono)), "what could not be saved is saved later");
    assert_eq!(images(&scene.at(18).take(Input::Wake)).len(), 1);
}

#[test]
fn nothing_is_saved_before_the_load_and_a_shutdown_saves_at_last() {
    let mut scene = Scene::new(config());
    let effects = scene.take(started(start_message("shop", 0)));
    assert!(images(&effects).is_empty(), "it would forget what an earlier process has left");

    let mut scene = saving();
    let key = scene.run(start_message("shop", 0));
    scene.take(Input::Signal(Signal::Shutdown));
    let end = scene.take(exited(key.0, 255, "app instance exited"));
    let lines = shown(&end);
    assert!(lines.ends_with("save snapshot\nexit 0\n"), "{lines}");
    assert_eq!(images(&end)[0].instances, []);
}

#[test]
fn only_services_with_a_drain_have_one() {
    let mut start = start_message("shop", 0);
    start.services = serde_json::from_str(
        r#"[{"name":"a","label":"logs","syslog_drain_url":"syslog://a"},{"name":"b","label":"db"},{"name":"c","label":"db","syslog_drain_url":null}]"#,
    )
    .unwrap();
    let mut staging = staging_message("staged", "t1");
    staging.properties.services = start.services.clone();
    let mut scene = saving();
    scene.run(start);
    scene.take(asked(Request::Stage(Box::new(staging))));
    let saved = left(&mut scene);
    for drains in [&saved.instances[0].syslog_drain_urls, &saved.staging_tasks[0].syslog_drain_urls] {
        assert_eq!(drains.iter().map(|url| url.expose().as_str()).collect::<Vec<_>>(), ["syslog://a"]);
    }
}

#[test]
fn who_asked_over_http_is_told_over_http_until_it_is_heard() {
    let mut before = saving();
    before.take(asked(Request::StageByHttp(Box::new(staging_message("staged", "t1")))));
    let saved = left(&mut before);
    assert!(saved.staging_tasks[0].by_http);
    let mut scene = Scene::offline(config());
    let effects = scene.resume(Some(saved));
    let Some(Effect::ReportStaging { task, reply }) = effects.first() else { panic!("{effects:?}") };
    assert_eq!(reply.error.as_deref(), Some("Error staging: task stopped, the agent was restarted"));
    assert_eq!(left(&mut scene).staging_tasks.len(), 1, "it may not have been heard yet");
    scene.take(Input::Staging(*task, StagingEvent::Reported));
    assert_eq!(left(&mut scene).staging_tasks, []);
}

#[test]
fn what_may_have_been_reported_is_reported_again_and_the_app_started() {
    let mut before = saving();
    let start = dewar_protocol::StartMessage { sha1: None, ..start_message("staged", 0) };
    let message = dewar_protocol::StagingMessage { start_message: Some(start), ..staging_message("staged", "t1") };
    before.take(asked(Request::StageByHttp(Box::new(message))));
    let droplet = StagedDroplet {
        sha1: sha1('b'),
        detected_buildpack: Some("wasm".to_owned()),
        buildpack_key: None,
        start_command: None,
        process_types: BTreeMap::new(),
    };
    let finished = Input::Staging(TaskKey(1), StagingEvent::Finished(Ok(Box::new(droplet))));
    let saved = saved_by(&mut before, finished).expect("it is saved when it is to be reported");
    let reported = saved.staging_tasks[0].reply.clone();

    let mut next = Scene::offline(config());
    let effects = next.resume(Some(saved));
    let Some(Effect::ReportStaging { task, reply }) = effects.first() else { panic!("{effects:?}") };
    assert_eq!((reply.droplet_sha1.as_ref(), Some(&**reply)), (Some(&sha1('b')), reported.as_ref()));
    assert_eq!(left(&mut next).staging_tasks[0].reply, reported, "it may not have been heard yet");
    let effects = next.take(Input::Staging(*task, StagingEvent::Reported));
    assert!(shown(&effects).contains("fetch droplet b… from http://cc/droplet"), "{}", shown(&effects));
    assert_eq!(left(&mut next).staging_tasks, []);
}
