//! Leaving: out of placement, evacuated in two ways, and what still works meanwhile.

use expect_test::expect;

use super::*;
use crate::testing::staging_message;
use crate::{Evacuation, ExitedReasons, StagedDroplet};

const EVACUATE: Input = Input::Signal(Signal::Evacuate);

/// One instance runs, one is being launched, one has crashed.
fn scene(config: CellConfig) -> Scene {
    let mut scene = Scene::new(config);
    scene.run(start_message("shop", 0));
    scene.run(start_message("shop", 1));
    scene.take(exited(2, 1, "trap"));
    scene.take(started(start_message("blog", 0)));
    scene.take(droplet_ready());
    scene
}

/// Heartbeats and what else is told while time goes on, one line each with its second.
fn told_until(scene: &mut Scene, seconds: u64) -> String {
    let mut told = String::new();
    while let Some(next) = scene.next_wake().filter(|next| *next <= seconds) {
        for line in shown(&scene.at(next).take(Input::Wake)).lines() {
            writeln!(told, "{next}: {line}").unwrap();
        }
    }
    scene.at(seconds);
    told
}

#[test]
fn what_runs_is_kept_until_it_is_stopped_from_outside() {
    let mut scene = scene(config());
    scene.at(7).check(
        EVACUATE,
        expect![[r#"
            dea.shutdown apps blog:1 shop:2
            shop/0 (1) RUNNING → EVACUATING
            droplet.exited shop/0 DeaEvacuation -1 ""
            blog/0 (3) STARTING → EVACUATING
            droplet.exited blog/0 DeaEvacuation -1 ""
            dea.heartbeat shop/0 v1 EVACUATING since 7, shop/1 v1 CRASHED since 0, blog/0 v1 EVACUATING since 7
        "#]],
    );
    scene.check(EVACUATE, expect![[""]]);
    // Every pass tells of what is left; the periodic heartbeat is silent, and so are advertisements. Routes are told as ever.
    expect![[r#"
        12: dea.heartbeat shop/0 v1 EVACUATING since 7, shop/1 v1 CRASHED since 0, blog/0 v1 EVACUATING since 7
        17: dea.heartbeat shop/0 v1 EVACUATING since 7, shop/1 v1 CRASHED since 0, blog/0 v1 EVACUATING since 7
        20: router.register shop.example.net → 10.0.16.23:61001 of shop by dea-2
        22: dea.heartbeat shop/0 v1 EVACUATING since 7, shop/1 v1 CRASHED since 0, blog/0 v1 EVACUATING since 7
    "#]]
    .assert_eq(&told_until(&mut scene, 24));
    for silent in [Request::Locate, Request::LocateStager] {
        scene.check(request(silent), expect![[""]]);
    }
    scene.at(24).check(
        stop(r#"{"droplet":"shop","states":["EVACUATING"]}"#),
        expect![[r#"
            shop/0 (1) EVACUATING → STOPPING
            router.unregister shop.example.net → 10.0.16.23:61001 of shop by dea-2
            stop sandbox 1
        "#]],
    );
    scene.take(stop(r#"{"droplet":"blog"}"#));
    scene.take(exited(1, 0, ""));
    // What is stopping is waited for by the shutdown itself.
    expect![[r#"
        27: dea.heartbeat shop/1 v1 CRASHED since 0
        27: dea.shutdown apps blog:1 shop:1
        27: unsubscribe
        27: stop sandbox 3
    "#]]
    .assert_eq(&told_until(&mut scene, 28));
    scene.check(
        exited(3, 0, ""),
        expect![[r#"
            blog/0 (3) STOPPING → STOPPED
            log of blog/0 Out: Stopping app instance (index 0) with guid blog
            log of blog/0 Out: Stopped app instance (index 0) with guid blog
            delete instance files
            exit 0
        "#]],
    );
}

#[test]
fn an_empty_agent_leaves_on_the_first_pass_and_a_crash_holds_it_back_no_more() {
    let told = r#"
        dea.shutdown apps none
        dea.heartbeat
        dea.shutdown apps none
        unsubscribe
        exit 0
    "#;
    let lines = |text: &str| text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(lines(&shown(&Scene::new(config()).take(EVACUATE))), lines(told));
    let mut crashed = Scene::new(config());
    crashed.run(start_message("shop", 0));
    crashed.take(exited(1, 1, "trap"));
    assert!(shown(&crashed.take(EVACUATE)).ends_with("exit 0\n"));
}

#[test]
fn one_that_gets_healthy_meanwhile_is_routed_and_stays_what_it_is() {
    let mut scene = scene(config());
    scene.at(7).take(EVACUATE);
    scene.check(launched(3), expect![[""]]);
    scene.check(
        request(Request::RegisterRoutes(dewar_protocol::RouterStart::default())),
        expect![[r#"
            router.register shop.example.net → 10.0.16.23:61001 of shop by dea-2
        "#]],
    );
    scene.check(
        ready(3),
        expect![[r#"
            router.register blog.example.net → 10.0.16.23:61003 of blog by dea-2
        "#]],
    );
    scene.check(
        asked(Request::FindInstances(serde_json::from_str(r#"{"droplet":"blog","states":["evacuating"]}"#).unwrap())),
        expect![[r#"
            to asker: blog/0 v1 EVACUATING
        "#]],
    );
    scene.check(
        request(Request::UpdateApp(serde_json::from_str(r#"{"droplet":"blog","uris":["new.example.net"]}"#).unwrap())),
        expect![[r#"
            router.register new.example.net → 10.0.16.23:61003 of blog by dea-2
            router.unregister blog.example.net → 10.0.16.23:61003 of blog by dea-2
        "#]],
    );
}

#[test]
fn one_that_waits_for_its_droplet_goes_on_and_an_unhealthy_one_crashes() {
    let mut scene = Scene::new(config());
    scene.take(started(start_message("shop", 0)));
    scene.at(1).take(EVACUATE);
    scene.check(
        droplet_ready(),
        expect![[r#"
            start sandbox 1 for shop/0 with droplet a…
        "#]],
    );
    scene.take(launched(1));
    let effects = scene.wake_until(61);
    expect![[r#"
        log of shop/0 Err: Instance (index 0) failed to start accepting connections
        shop/0 (1) EVACUATING → CRASHED: failed to accept connections within health check timeout
        router.unregister shop.example.net → 10.0.16.23:61001 of shop by dea-2
        log of shop/0 Err: Instance (index 0) crashed: failed to accept connections within health check timeout
        droplet.exited shop/0 Crashed -1 "failed to accept connections within health check timeout" at 61
        kill sandbox 1
        dea.shutdown apps shop:1
        unsubscribe
        exit 0
    "#]]
    .assert_eq(&shown(&effects));
}

#[test]
fn one_that_exits_meanwhile_has_crashed() {
    let mut scene = scene(config());
    scene.at(7).take(EVACUATE);
    scene.check(
        exited(1, 3, "app instance exited"),
        expect![[r#"
            shop/0 (1) EVACUATING → CRASHED: app instance exited
            router.unregister shop.example.net → 10.0.16.23:61001 of shop by dea-2
            log of shop/0 Err: Instance (index 0) crashed: app instance exited
            droplet.exited shop/0 Crashed 3 "app instance exited" at 7
        "#]],
    );
}

#[test]
fn nothing_new_is_taken_and_memory_stays_reserved() {
    let mut scene = scene(config());
    scene.take(EVACUATE);
    assert_eq!(scene.cell.remaining().memory(), dewar_protocol::Mib(800));
    scene.check(
        started(start_message("shop", 5)),
        expect![[r#"
            refused dea.<id>.start: this agent is being evacuated
        "#]],
    );
    scene.check(
        asked(Request::Stage(Box::new(staging_message("shop", "t1")))),
        expect![[r#"
            refused staging.<id>.start: this agent is being evacuated
            to asker: staging of t1: Error staging: this agent is being evacuated, no droplet
        "#]],
    );
}

#[test]
fn a_staging_under_way_is_finished_and_answered_but_not_started() {
    let mut scene = Scene::new(config());
    let message = dewar_protocol::StagingMessage { start_message: Some(start_message("shop", 0)), ..staging_message("shop", "t1") };
    scene.take(asked(Request::Stage(Box::new(message))));
    scene.take(Input::Staging(TaskKey(1), StagingEvent::SetUp));
    scene.take(EVACUATE);
    expect![[r#"
        5: dea.heartbeat
        10: dea.heartbeat
    "#]]
    .assert_eq(&told_until(&mut scene, 12));
    let droplet = StagedDroplet {
        sha1: sha1('b'),
        detected_buildpack: None,
        buildpack_key: None,
        start_command: None,
        process_types: BTreeMap::new(),
    };
    scene.check(
        Input::Staging(TaskKey(1), StagingEvent::Finished(Ok(Box::new(droplet)))),
        expect![[r#"
            to asker: staging of t1: ok, b
        "#]],
    );
    expect![[r#"
        15: dea.heartbeat
        15: dea.shutdown apps none
        15: unsubscribe
        15: exit 0
    "#]]
    .assert_eq(&told_until(&mut scene, 20));
}

#[test]
fn nobody_is_waited_for_beyond_the_bail_out_time() {
    let evacuation = Evacuation::Deterministic { bail_out: std::time::Duration::from_secs(12) };
    let mut scene = Scene::new(CellConfig { evacuation, ..config() });
    scene.run(start_message("shop", 0));
    scene.at(1).take(EVACUATE);
    // Nothing is said of an end that was foretold.
    expect![[r#"
        6: dea.heartbeat shop/0 v1 EVACUATING since 1
        11: dea.heartbeat shop/0 v1 EVACUATING since 1
        13: dea.heartbeat shop/0 v1 EVACUATING since 1
        13: dea.shutdown apps shop:1
        13: unsubscribe
        13: shop/0 (1) EVACUATING → STOPPING
        13: router.unregister shop.example.net → 10.0.16.23:61001 of shop by dea-2
        13: stop sandbox 1
        43: kill sandbox 1
        43: exit 1
    "#]]
    .assert_eq(&told_until(&mut scene, 50));
}

#[test]
fn a_shutdown_does_not_wait_for_the_evacuation() {
    let mut scene = Scene::new(config());
    scene.run(start_message("shop", 0));
    scene.take(EVACUATE);
    scene.at(1).check(
        Input::Signal(Signal::Shutdown),
        expect![[r#"
            dea.shutdown apps shop:1
            unsubscribe
            shop/0 (1) EVACUATING → STOPPING
            router.unregister shop.example.net → 10.0.16.23:61001 of shop by dea-2
            stop sandbox 1
        "#]],
    );
    scene.check(EVACUATE, expect![[""]]);
}

#[test]
fn modern_health_managers_hear_of_it_by_heartbeats_alone() {
    let mut scene = Scene::new(CellConfig { exited_reasons: ExitedReasons::Modern, ..config() });
    scene.run(start_message("shop", 0));
    scene.check(
        EVACUATE,
        expect![[r#"
            dea.shutdown apps shop:1
            shop/0 (1) RUNNING → EVACUATING
            dea.heartbeat shop/0 v1 EVACUATING since 0
        "#]],
    );
}

#[test]
fn with_a_fixed_delay_instances_count_as_lost_from_the_beginning() {
    let evacuation = Evacuation::FixedDelay { delay: std::time::Duration::from_secs(30) };
    let mut scene = scene(CellConfig { evacuation, ..config() });
    scene.at(7).check(
        EVACUATE,
        expect![[r#"
            dea.shutdown apps blog:1 shop:2
            droplet.exited shop/0 DeaEvacuation -1 ""
            droplet.exited blog/0 DeaEvacuation -1 ""
        "#]],
    );
    scene.check(EVACUATE, expect![[""]]);
    scene.check(request(Request::ReportHeartbeat), expect![[""]]);
    scene.take(launched(3));
    scene.check(
        ready(3),
        expect![[r#"
            blog/0 (3) STARTING → RUNNING
            router.register blog.example.net → 10.0.16.23:61003 of blog by dea-2
        "#]],
    );
    scene.take(Input::Bus(BusEvent::Down));
    scene.check(
        Input::Bus(BusEvent::Up),
        expect![[r#"
            router.register shop.example.net → 10.0.16.23:61001 of shop by dea-2
            router.register blog.example.net → 10.0.16.23:61003 of blog by dea-2
            router.greet
        "#]],
    );
    // One that is stopped meanwhile has been told of already.
    scene.check(
        stop(r#"{"droplet":"blog"}"#),
        expect![[r#"
            blog/0 (3) RUNNING → STOPPING
            router.unregister blog.example.net → 10.0.16.23:61003 of blog by dea-2
            stop sandbox 3
        "#]],
    );
    scene.take(exited(3, 0, ""));
    expect![[r#"
        27: router.register shop.example.net → 10.0.16.23:61001 of shop by dea-2
        37: unsubscribe
        37: shop/0 (1) RUNNING → STOPPING
        37: router.unregister shop.example.net → 10.0.16.23:61001 of shop by dea-2
        37: stop sandbox 1
    "#]]
    .assert_eq(&told_until(&mut scene, 38));
}

#[test]
fn out_of_placement_an_agent_goes_on_as_before() {
    let mut scene = Scene::new(config());
    scene.run(start_message("shop", 0));
    for _ in 0..2 {
        scene.check(
            Input::Signal(Signal::Drain),
            expect![[r#"
                dea.shutdown apps shop:1
            "#]],
        );
    }
    for silent in [Request::Locate, Request::LocateStager] {
        scene.check(request(silent), expect![[""]]);
    }
    expect![[r#"
        1: dea.heartbeat shop/0 v1 RUNNING since 0
        10: dea.heartbeat shop/0 v1 RUNNING since 0
        20: dea.heartbeat shop/0 v1 RUNNING since 0
        20: router.register shop.example.net → 10.0.16.23:61001 of shop by dea-2
    "#]]
    .assert_eq(&told_until(&mut scene, 21));
    scene.take(Input::Bus(BusEvent::Down));
    scene.check(
        Input::Bus(BusEvent::Up),
        expect![[r#"
            dea.heartbeat shop/0 v1 RUNNING since 0
            router.register shop.example.net → 10.0.16.23:61001 of shop by dea-2
            router.greet
        "#]],
    );
    // Whoever still sends a start, because the news crossed, is served.
    scene.take(started(start_message("shop", 1)));
    assert_eq!(scene.cell.registry.len(), 2);
    assert!(shown(&scene.take(EVACUATE)).contains("shop/1 (2) STARTING → EVACUATING"), "other signals still work");
}
