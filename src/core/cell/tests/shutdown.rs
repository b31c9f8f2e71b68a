//! The end.

use expect_test::expect;

use super::*;
use crate::testing::staging_message;

#[test]
fn an_idle_agent_exits_at_once() {
    let mut scene = Scene::new(config());
    scene.check(
        Input::Signal(Signal::Shutdown),
        expect![[r#"
        dea.shutdown apps none
        unsubscribe
        exit 0
    "#]],
    );
    assert_eq!(scene.next_wake(), None);
    scene.check(Input::Signal(Signal::Shutdown), expect![[""]]);
    scene.check(Input::Bus(BusEvent::Up), expect![[""]]);
    scene.check(started(start_message("shop", 0)), expect![[""]]);
}

#[test]
fn everything_is_stopped_first() {
    let mut scene = Scene::new(config());
    scene.run(start_message("shop", 0));
    scene.run(start_message("shop", 1));
    scene.take(started(start_message("shop", 2)));
    scene.take(exited(1, 1, "trap"));
    scene.take(asked(Request::Stage(Box::new(staging_message("blog", "t1")))));
    scene.at(5).check(
        Input::Signal(Signal::Shutdown),
        expect![[r#"
        dea.shutdown apps shop:3
        unsubscribe
        cancel staging 4
        to asker: staging of t1: Error staging: task stopped, no droplet
        shop/1 (2) RUNNING → STOPPING
        router.unregister shop.example.net → 10.0.16.23:61002 of shop by dea-2
        droplet.exited shop/1 DeaShutdown -1 ""
        stop sandbox 2
        shop/2 (3) STARTING → STOPPING
        droplet.exited shop/2 DeaShutdown -1 ""
        shop/2 (3) STOPPING → STOPPED
        log of shop/2 Out: Stopping app instance (index 2) with guid shop
        log of shop/2 Out: Stopped app instance (index 2) with guid shop
        delete instance files
    "#]],
    );
    scene.check(Input::Signal(Signal::Shutdown), expect![[""]]);
    scene.check(
        started(start_message("shop", 0)),
        expect![[r#"
        refused dea.<id>.start: this agent is shutting down
    "#]],
    );
    scene.check(
        asked(Request::Stage(Box::new(staging_message("shop", "t2")))),
        expect![[r#"
        refused staging.<id>.start: this agent is shutting down
        to asker: staging of t2: Error staging: this agent is shutting down, no droplet
    "#]],
    );
    for silent in [Request::Locate, Request::LocateStager] {
        scene.check(request(silent), expect![[""]]);
    }
    scene.at(6).check(
        exited(2, 0, ""),
        expect![[r#"
        shop/1 (2) STOPPING → STOPPED
        log of shop/1 Out: Stopping app instance (index 1) with guid shop
        log of shop/1 Out: Stopped app instance (index 1) with guid shop
        delete instance files
        exit 0
    "#]],
    );
}

#[test]
fn what_does_not_stop_in_time_is_killed() {
    let mut scene = Scene::new(config());
    scene.run(start_message("shop", 0));
    scene.run(start_message("shop", 1));
    scene.at(5).take(Input::Signal(Signal::Shutdown));
    scene.at(6).take(exited(1, 0, ""));
    assert_eq!(scene.wake_until(34), []);
    expect![[r#"
        kill sandbox 2
        exit 1
    "#]]
    .assert_eq(&shown(&scene.wake_until(35)));
    scene.check(exited(2, 0, ""), expect![[""]]);
}

#[test]
fn nothing_is_advertised_after_the_farewell() {
    let mut scene = Scene::new(config());
    scene.run(start_message("shop", 0));
    scene.take(Input::Signal(Signal::Shutdown));
    let mut told = String::new();
    while let Some(next) = scene.next_wake().filter(|next| *next < 30) {
        told += &shown(&scene.at(next).take(Input::Wake));
    }
    expect![[r#"
        dea.heartbeat
        dea.heartbeat
        dea.heartbeat
    "#]]
    .assert_eq(&told);
    scene.take(Input::Bus(BusEvent::Down));
    scene.check(
        Input::Bus(BusEvent::Up),
        expect![[r#"
        dea.heartbeat
    "#]],
    );
}
