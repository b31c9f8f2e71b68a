//! From the start message to the end.

use expect_test::expect;

use super::*;

#[test]
fn start_to_running_to_stopped() {
    let mut scene = Scene::new(config());
    scene.at(1).check(
        started(start_message("shop", 0)),
        expect![[r#"
        log of shop/0 Out: Starting app instance (index 0) with guid shop
        shop/0 (1) BORN → STARTING
        fetch droplet a… from http://cc/droplet
    "#]],
    );
    scene.at(2).check(
        droplet_ready(),
        expect![[r#"
        start sandbox 1 for shop/0 with droplet a…
    "#]],
    );
    scene.at(3).check(launched(1), expect![[""]]);
    scene.at(4).check(
        ready(1),
        expect![[r#"
        shop/0 (1) STARTING → RUNNING
        dea.heartbeat shop/0 v1 RUNNING since 4
        router.register shop.example.net → 10.0.16.23:61001 of shop by dea-2
    "#]],
    );
    scene.at(5).check(
        stop(r#"{"droplet":"shop"}"#),
        expect![[r#"
        shop/0 (1) RUNNING → STOPPING
        router.unregister shop.example.net → 10.0.16.23:61001 of shop by dea-2
        droplet.exited shop/0 Stopped -1 ""
        stop sandbox 1
    "#]],
    );
    scene.at(6).check(
        exited(1, 255, "app instance exited"),
        expect![[r#"
        shop/0 (1) STOPPING → STOPPED
        log of shop/0 Out: Stopping app instance (index 0) with guid shop
        log of shop/0 Out: Stopped app instance (index 0) with guid shop
        delete instance files
    "#]],
    );
    for late in [launched(1), ready(1), exited(1, 0, ""), stop(r#"{"droplet":"shop"}"#)] {
        scene.check(late, expect![[""]]);
    }
}

#[test]
fn modern_health_managers_hear_of_crashes_only() {
    let mut scene = Scene::new(CellConfig { exited_reasons: crate::ExitedReasons::Modern, ..config() });
    scene.run(start_message("shop", 0));
    scene.check(
        stop(r#"{"droplet":"shop"}"#),
        expect![[r#"
        shop/0 (1) RUNNING → STOPPING
        router.unregister shop.example.net → 10.0.16.23:61001 of shop by dea-2
        stop sandbox 1
    "#]],
    );
}

#[test]
fn any_exit_of_a_running_app_is_a_crash() {
    let mut scene = Scene::new(config());
    scene.run(start_message("shop", 0));
    scene.at(9).check(
        exited(1, 0, "app instance exited"),
        expect![[r#"
        shop/0 (1) RUNNING → CRASHED: app instance exited
        router.unregister shop.example.net → 10.0.16.23:61001 of shop by dea-2
        log of shop/0 Err: Instance (index 0) crashed: app instance exited
        droplet.exited shop/0 Crashed 0 "app instance exited" at 9
    "#]],
    );
    for late in [exited(1, 1, "again"), ready(1), stop(r#"{"droplet":"shop"}"#)] {
        scene.check(late, expect![[""]]);
    }
    scene.check(
        request(Request::ReportHeartbeat),
        expect![[r#"
        dea.heartbeat shop/0 v1 CRASHED since 9
    "#]],
    );
}

#[test]
fn a_trap_is_told_with_its_backtrace_but_not_without_end() {
    let mut scene = Scene::new(config());
    scene.run(start_message("shop", 0));
    let backtrace: String = (0..100).map(|frame| format!("\n  {frame}: f")).collect();
    let effects = scene.take(exited(1, 134, &format!("unreachable{backtrace}")));
    let logged: Vec<_> = effects.iter().filter(|effect| matches!(effect, Effect::AppLog { .. })).map(show).collect();
    assert_eq!(logged.len(), 40);
    assert_eq!(logged[0], "log of shop/0 Err: Instance (index 0) crashed: unreachable");
    assert_eq!(logged[2], "log of shop/0 Err:   1: f");
}

#[test]
fn an_app_that_ends_before_its_port_opens_crashes_once() {
    let mut scene = Scene::new(config());
    scene.take(started(start_message("shop", 0)));
    scene.take(droplet_ready());
    scene.take(launched(1));
    scene.at(3).check(
        exited(1, 137, "out of memory"),
        expect![[r#"
        shop/0 (1) STARTING → CRASHED: out of memory
        router.unregister shop.example.net → 10.0.16.23:61001 of shop by dea-2
        log of shop/0 Err: Instance (index 0) crashed: out of memory
        droplet.exited shop/0 Crashed 137 "out of memory" at 3
    "#]],
    );
    assert_eq!(scene.wake_until(100), [], "no second crash when the health check would have timed out");
}

#[test]
fn an_app_that_never_opens_its_port_is_killed() {
    let mut scene = Scene::new(config());
    scene.take(started(StartMessage { health_check_timeout: Some(30), ..start_message("shop", 0) }));
    scene.take(droplet_ready());
    scene.at(10).take(launched(1));
    assert_eq!(scene.wake_until(39), []);
    let effects = scene.wake_until(40);
    expect![[r#"
        log of shop/0 Err: Instance (index 0) failed to start accepting connections
        shop/0 (1) STARTING → CRASHED: failed to accept connections within health check timeout
        router.unregister shop.example.net → 10.0.16.23:61001 of shop by dea-2
        log of shop/0 Err: Instance (index 0) crashed: failed to accept connections within health check timeout
        droplet.exited shop/0 Crashed -1 "failed to accept connections within health check timeout" at 40
        kill sandbox 1
    "#]]
    .assert_eq(&shown(&effects));
    scene.at(41).check(exited(1, 255, "killed"), expect![[""]]);
    assert_eq!(scene.wake_until(100), []);
}

#[test]
fn a_sandbox_that_does_not_end_is_killed_again_and_its_crash_kept_until_it_does() {
    let mut scene = Scene::new(CellConfig { crash_lifetime: std::time::Duration::from_secs(5), ..config() });
    scene.take(started(start_message("shop", 0)));
    scene.take(droplet_ready());
    scene.take(launched(1));
    scene.wake_until(60);
    expect![[r#"
        kill sandbox 1
        kill sandbox 1
        kill sandbox 1
    "#]]
    .assert_eq(&shown(&scene.wake_until(95)));
    scene.take(exited(1, 255, ""));
    expect![[r#"
        log of shop/0 Out: Removing crash for app with id shop
        log of shop/0 Out: Stopping app instance (index 0) with guid shop
        log of shop/0 Out: Stopped app instance (index 0) with guid shop
        delete instance files
    "#]]
    .assert_eq(&shown(&scene.wake_until(96)));
}

#[test]
fn starts_that_cannot_succeed_crash_as_failed_to_start() {
    let rule = |protocol: &str| dewar_protocol::EgressRule {
        protocol: protocol.to_owned(),
        destination: "10.0.0.1".to_owned(),
        ports: None,
        icmp_type: None,
        code: None,
        log: None,
    };
    let base = || start_message("shop", 0);
    let cases = [
        (StartMessage { sha1: None, ..base() }, "the start message names no droplet"),
        (StartMessage { stack: Some("windows".to_owned()), ..base() }, "Stack windows does not exist"),
        (StartMessage { egress_network_rules: vec![rule("sctp")], ..base() }, "Invalid protocol in egress rule: sctp"),
    ];
    for (start, why) in cases {
        let mut scene = Scene::new(config());
        let expected = format!(
            "log of shop/0 Out: Starting app instance (index 0) with guid shop\n\
             shop/0 (1) BORN → STARTING\n\
             shop/0 (1) STARTING → CRASHED: {why}\n\
             log of shop/0 Err: Instance (index 0) crashed: failed to start\n\
             droplet.exited shop/0 Crashed -1 \"failed to start\" at 0\n"
        );
        assert_eq!(shown(&scene.take(started(start))), expected);
    }
    let mut scene = Scene::new(config());
    let fine = StartMessage { stack: Some("lucid64".to_owned()), egress_network_rules: vec![rule("udp")], ..base() };
    scene.check(
        started(fine),
        expect![[r#"
        log of shop/0 Out: Starting app instance (index 0) with guid shop
        shop/0 (1) BORN → STARTING
        fetch droplet a… from http://cc/droplet
    "#]],
    );
    scene.check(
        Input::Droplet(sha1('a'), DropletEvent::Failed("HTTP status 404".to_owned())),
        expect![[r#"
        shop/0 (1) STARTING → CRASHED: HTTP status 404
        log of shop/0 Err: Instance (index 0) crashed: failed to start
        droplet.exited shop/0 Crashed -1 "failed to start" at 0
    "#]],
    );
}

#[test]
fn what_takes_too_long_to_prepare_fails() {
    let mut scene = Scene::new(config());
    scene.take(started(start_message("shop", 0)));
    scene.take(started(StartMessage { sha1: Some(sha1('b')), ..start_message("shop", 1) }));
    scene.take(Input::Droplet(sha1('b'), DropletEvent::Ready));
    expect![[r#"
        shop/0 (1) STARTING → CRASHED: the droplet did not come in time
        log of shop/0 Err: Instance (index 0) crashed: failed to start
        droplet.exited shop/0 Crashed -1 "failed to start" at 900
        shop/1 (2) STARTING → CRASHED: the sandbox was not made in time
        log of shop/1 Err: Instance (index 1) crashed: failed to start
        droplet.exited shop/1 Crashed -1 "failed to start" at 900
        kill sandbox 2
    "#]]
    .assert_eq(&shown(&scene.wake_until(900)));
}

#[test]
fn what_does_not_fit_crashes_without_being_started() {
    let mut scene = Scene::new(config());
    let start = |index, mem, disk| {
        let mut start = start_message("shop", index);
        (start.limits.mem, start.limits.disk) = (dewar_protocol::Mib(mem), dewar_protocol::Mib(disk));
        started(start)
    };
    scene.take(start(0, 600, 3000));
    scene.at(1).check(
        start(1, 401, 1001),
        expect![[r#"
        log of shop/1 Out: Starting app instance (index 1) with guid shop
        shop/1 (2) BORN → CRASHED: Not enough disk resource available.
        log of shop/1 Err: Instance (index 1) crashed: Not enough disk resource available.
        droplet.exited shop/1 Crashed -1 "Not enough disk resource available." at 1
    "#]],
    );
    scene.check(
        start(2, 401, 1000),
        expect![[r#"
        log of shop/2 Out: Starting app instance (index 2) with guid shop
        shop/2 (3) BORN → CRASHED: Not enough memory resource available.
        log of shop/2 Err: Instance (index 2) crashed: Not enough memory resource available.
        droplet.exited shop/2 Crashed -1 "Not enough memory resource available." at 1
    "#]],
    );
    scene.check(
        request(Request::Locate),
        expect![[r#"
        dea.advertise memory 400M disk 1000M apps shop:3
    "#]],
    );
    scene.check(
        start(3, 400, 1000),
        expect![[r#"
        log of shop/3 Out: Starting app instance (index 3) with guid shop
        shop/3 (4) BORN → STARTING
    "#]],
    );
    scene.check(
        request(Request::Locate),
        expect![[r#"
        dea.advertise memory 0M disk 0M apps shop:4
    "#]],
    );
    scene.check(
        start(4, i64::MAX, i64::MAX),
        expect![[r#"
        log of shop/4 Out: Starting app instance (index 4) with guid shop
        shop/4 (5) BORN → CRASHED: Not enough disk resource available.
        log of shop/4 Err: Instance (index 4) crashed: Not enough disk resource available.
        droplet.exited shop/4 Crashed -1 "Not enough disk resource available." at 1
    "#]],
    );
    scene.check(
        start(5, -1, 0),
        expect![[r#"
        refused dea.<id>.start: app shop: a limit is negative
    "#]],
    );
}

#[test]
fn the_registry_is_bounded() {
    let mut scene = Scene::new(CellConfig { max_instances: 1, ..config() });
    let mut start = start_message("shop", 0);
    (start.limits.mem, start.limits.disk) = (dewar_protocol::Mib(0), dewar_protocol::Mib(0));
    scene.take(started(start.clone()));
    scene.check(
        started(start),
        expect![[r#"
        refused dea.<id>.start: app shop: 1 instances are registered, no more are taken
    "#]],
    );
}

#[test]
fn one_fetch_for_many_and_the_same_message_twice_starts_twice() {
    let mut scene = Scene::new(config());
    scene.take(started(start_message("shop", 0)));
    scene.check(
        started(start_message("shop", 0)),
        expect![[r#"
        log of shop/0 Out: Starting app instance (index 0) with guid shop
        shop/0 (2) BORN → STARTING
    "#]],
    );
    scene.check(
        droplet_ready(),
        expect![[r#"
        start sandbox 1 for shop/0 with droplet a…
        start sandbox 2 for shop/0 with droplet a…
    "#]],
    );
}

#[test]
fn stop_while_starting_cancels_everything() {
    let mut scene = Scene::new(config());
    for index in 0..3 {
        scene.take(started(StartMessage { sha1: Some(sha1(if index == 0 { 'b' } else { 'a' })), ..start_message("shop", index) }));
    }
    scene.take(droplet_ready());
    scene.take(launched(3));
    scene.check(
        stop(r#"{"droplet":"shop"}"#),
        expect![[r#"
        shop/0 (1) STARTING → STOPPING
        droplet.exited shop/0 Stopped -1 ""
        shop/0 (1) STOPPING → STOPPED
        log of shop/0 Out: Stopping app instance (index 0) with guid shop
        log of shop/0 Out: Stopped app instance (index 0) with guid shop
        delete instance files
        shop/1 (2) STARTING → STOPPING
        droplet.exited shop/1 Stopped -1 ""
        kill sandbox 2
        shop/2 (3) STARTING → STOPPING
        router.unregister shop.example.net → 10.0.16.23:61003 of shop by dea-2
        droplet.exited shop/2 Stopped -1 ""
        stop sandbox 3
    "#]],
    );
    for late in [Input::Droplet(sha1('b'), DropletEvent::Ready), launched(2), ready(3)] {
        scene.check(late, expect![[""]]);
    }
    let effects = scene.take(exited(2, 255, ""));
    assert!(shown(&effects).starts_with("shop/1 (2) STOPPING → STOPPED\n"));
    assert_eq!(scene.wake_until(59), [], "no health check fails any more");
    expect![[r#"
        kill sandbox 3
    "#]]
    .assert_eq(&shown(&scene.wake_until(60)));
}

#[test]
fn a_second_stop_asks_again_and_says_nothing() {
    let mut scene = Scene::new(config());
    scene.run(start_message("shop", 0));
    scene.take(stop(r#"{"droplet":"shop"}"#));
    scene.check(
        stop(r#"{"droplet":"shop"}"#),
        expect![[r#"
        stop sandbox 1
    "#]],
    );
}

#[test]
fn stop_means_what_its_filter_says() {
    let mut scene = Scene::new(config());
    for index in 0..3 {
        scene.run(start_message("shop", index));
    }
    scene.check(stop(r#"{"droplet":"shop","instances":[]}"#), expect![[""]]);
    scene.check(
        stop(r#"{"droplet":"shop","states":["DYING"]}"#),
        expect![[r#"
        refused dea.stop: Unknown state: DYING
    "#]],
    );
    let effects = scene.take(stop(r#"{"droplet":"shop","version":"v1","indices":[2,0]}"#));
    let stops: Vec<_> = effects.iter().filter(|effect| matches!(effect, Effect::StopSandbox(_))).map(show).collect();
    assert_eq!(stops, ["stop sandbox 1", "stop sandbox 3"], "in the order of registration");
}

#[test]
fn the_newest_crash_of_an_app_is_kept_for_its_time() {
    let mut scene = Scene::new(config());
    for index in 0..3 {
        scene.run(start_message(if index == 2 { "blog" } else { "shop" }, index));
    }
    scene.at(100).take(exited(1, 1, "first"));
    scene.at(200).take(exited(3, 1, "of another app"));
    scene.at(300).take(exited(2, 1, "second"));
    assert_eq!(scene.wake_until(309), []);
    expect![[r#"
        log of shop/0 Out: Removing crash for app with id shop
        log of shop/0 Out: Stopping app instance (index 0) with guid shop
        log of shop/0 Out: Stopped app instance (index 0) with guid shop
        delete instance files
    "#]]
    .assert_eq(&shown(&scene.wake_until(310)));
    scene.check(
        request(Request::Locate),
        expect![[r#"
        dea.advertise memory 1000M disk 3600M apps blog:1 shop:1
    "#]],
    );
    let reaped = |effects: &[Effect]| effects.iter().filter(|effect| matches!(effect, Effect::DeleteInstanceFiles(_))).count();
    assert_eq!(reaped(&scene.wake_until(3799)), 0);
    assert_eq!(reaped(&scene.wake_until(3800)), 1);
    assert_eq!(reaped(&scene.wake_until(3900)), 1);
    scene.check(
        request(Request::Locate),
        expect![[r#"
        dea.advertise memory 1000M disk 4000M apps none
    "#]],
    );
}

#[test]
fn apps_without_routes_or_port_run_without_registration() {
    let mut scene = Scene::new(config());
    scene.take(started(StartMessage { uris: vec![], ..start_message("worker", 0) }));
    scene.take(droplet_ready());
    scene.at(1).check(
        launched(1),
        expect![[r#"
        worker/0 (1) STARTING → RUNNING
        dea.heartbeat worker/0 v1 RUNNING since 1
    "#]],
    );
    scene.check(ready(1), expect![[""]]);
    scene.take(started(start_message("job", 0)));
    scene.take(droplet_ready());
    scene.at(2).check(
        Input::Sandbox(InstanceKey(2), SandboxEvent::Launched { port: None, state_file: false }),
        expect![[r#"
        job/0 (2) STARTING → RUNNING
        dea.heartbeat worker/0 v1 RUNNING since 1, job/0 v1 RUNNING since 2
    "#]],
    );
    scene.check(
        stop(r#"{"droplet":"job"}"#),
        expect![[r#"
        job/0 (2) RUNNING → STOPPING
        droplet.exited job/0 Stopped -1 ""
        stop sandbox 2
    "#]],
    );
}
