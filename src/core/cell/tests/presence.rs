//! The bus, periodic messages, routers.

use dewar_protocol::RouterStart;
use expect_test::expect;

use super::*;

#[test]
fn the_first_connection() {
    let mut scene = Scene::offline(config());
    scene.at(3).check(
        Input::Bus(BusEvent::Up),
        expect![[r#"
        router.greet
        vcap.component.announce DEA 2 10.0.16.23:49871
        dea.start cell 10.0.16.23
        dea.advertise memory 1000M disk 4000M apps none
        staging.advertise memory 1000M disk 4000M
        dea.heartbeat
    "#]],
    );
    assert_eq!(scene.next_wake(), Some(8));
    scene.at(7).check(Input::Wake, expect![[""]]);
    scene.at(8).check(
        Input::Wake,
        expect![[r#"
        dea.advertise memory 1000M disk 4000M apps none
        staging.advertise memory 1000M disk 4000M
    "#]],
    );
    assert_eq!(scene.next_wake(), Some(13));
    scene.at(13).check(
        Input::Wake,
        expect![[r#"
        dea.heartbeat
        dea.advertise memory 1000M disk 4000M apps none
        staging.advertise memory 1000M disk 4000M
    "#]],
    );
}

#[test]
fn advertisements_come_at_the_interval_that_is_configured() {
    let mut config = config();
    config.intervals.advertise = std::time::Duration::from_secs(4);
    config.intervals.heartbeat = std::time::Duration::from_secs(100);
    let mut scene = Scene::new(config);
    for seconds in [4, 8, 12] {
        assert_eq!(scene.next_wake(), Some(seconds));
        scene.at(seconds).check(
            Input::Wake,
            expect![[r#"
            dea.advertise memory 1000M disk 4000M apps none
            staging.advertise memory 1000M disk 4000M
        "#]],
        );
    }
}

#[test]
fn while_the_bus_is_down_there_is_no_backlog_and_when_it_is_back_everything_is_told_anew() {
    let mut scene = Scene::new(config());
    scene.run(start_message("shop", 0));
    scene.run(start_message("shop", 1));
    scene.take(started(start_message("shop", 2)));
    scene.at(1).check(Input::Bus(BusEvent::Down), expect![[""]]);
    assert_eq!(scene.next_wake(), Some(900), "nothing but the start's own deadline");
    scene.at(100).check(Input::Wake, expect![[""]]);
    scene.check(request(Request::ReportHeartbeat), expect![[""]]);
    scene.check(request(Request::Locate), expect![[""]]);
    scene.take(droplet_ready());
    scene.take(launched(3));
    scene.check(
        ready(3),
        expect![[r#"
        shop/2 (3) STARTING → RUNNING
    "#]],
    );
    scene.check(
        exited(2, 1, "trap"),
        expect![[r#"
        shop/1 (2) RUNNING → CRASHED: trap
        router.unregister shop.example.net → 10.0.16.23:61002 of shop by dea-2
        log of shop/1 Err: Instance (index 1) crashed: trap
        droplet.exited shop/1 Crashed 1 "trap" at 100
    "#]],
    );
    scene.at(200).check(
        Input::Bus(BusEvent::Up),
        expect![[r#"
        dea.heartbeat shop/0 v1 RUNNING since 0, shop/1 v1 CRASHED since 100, shop/2 v1 RUNNING since 100
        router.register shop.example.net → 10.0.16.23:61001 of shop by dea-2
        router.register shop.example.net → 10.0.16.23:61003 of shop by dea-2
        dea.advertise memory 800M disk 3400M apps shop:3
        staging.advertise memory 800M disk 3400M
        router.greet
    "#]],
    );
    assert_eq!(scene.next_wake(), Some(205));
}

fn router(seconds: Option<u32>) -> Input {
    request(Request::RegisterRoutes(RouterStart { minimum_register_interval_seconds: seconds, ..RouterStart::default() }))
}

/// When routes are registered up to then.
fn registrations(scene: &mut Scene, until: u64) -> Vec<u64> {
    let mut seen = Vec::new();
    while let Some(next) = scene.next_wake().filter(|next| *next <= until) {
        let effects = scene.at(next).take(Input::Wake);
        if effects.iter().any(|effect| matches!(effect, Effect::Publish(Publication::RouterRegister(_)))) {
            seen.push(next);
        }
    }
    seen
}

#[test]
fn routes_are_registered_periodically_and_as_often_as_a_router_wants() {
    let mut scene = Scene::new(config());
    scene.run(start_message("shop", 0));
    assert_eq!(registrations(&mut scene, 50), [20, 40]);
    let now = ["router.register shop.example.net → 10.0.16.23:61001 of shop by dea-2\n"];
    assert_eq!([shown(&scene.at(51).take(router(Some(3))))], now);
    assert_eq!(registrations(&mut scene, 60), [54, 57, 60], "from now on");
    assert_eq!([shown(&scene.at(61).take(router(None)))], now);
    assert_eq!(registrations(&mut scene, 66), [64], "who says nothing changes nothing");
    assert_eq!([shown(&scene.at(66).take(router(Some(60))))], now);
    assert_eq!(registrations(&mut scene, 110), [86, 106], "seldom is as configured");
    assert_eq!([shown(&scene.at(110).take(router(Some(0))))], now);
    assert_eq!(registrations(&mut scene, 113), [111, 112, 113], "at most once a second");
}

#[test]
fn an_agent_that_does_not_stage_does_not_advertise_it() {
    let mut config = config();
    config.staging.enabled = false;
    let mut scene = Scene::offline(config);
    let effects = scene.take(Input::Bus(BusEvent::Up));
    assert!(!shown(&effects).contains("staging.advertise"));
    scene.check(request(Request::LocateStager), expect![[""]]);
    scene.check(
        request(Request::Locate),
        expect![[r#"
        dea.advertise memory 1000M disk 4000M apps none
    "#]],
    );
}

#[test]
fn locate_is_answered_by_advertisements() {
    let mut scene = Scene::new(config());
    scene.run(start_message("shop", 0));
    scene.check(
        request(Request::Locate),
        expect![[r#"
        dea.advertise memory 900M disk 3800M apps shop:1
    "#]],
    );
    scene.check(
        request(Request::LocateStager),
        expect![[r#"
        staging.advertise memory 900M disk 3800M
    "#]],
    );
}

/// Takes so many instances to RUNNING, each of an app of its own; gives everything that is said meanwhile.
fn run_many(scene: &mut Scene, count: u64) -> Vec<Effect> {
    let mut effects = Vec::new();
    for number in 0..count {
        let mut start = start_message(&format!("app-{number}"), 0);
        (start.limits.mem, start.limits.disk) = (dewar_protocol::Mib(0), dewar_protocol::Mib(0));
        effects.extend(scene.take(started(start)));
        effects.extend(scene.take(droplet_ready()));
        let key = InstanceKey(scene.cell.last_key);
        effects.extend(scene.take(Input::Sandbox(key, SandboxEvent::Launched { port: Some(1), state_file: false })));
        effects.extend(scene.take(Input::Sandbox(key, SandboxEvent::Ready)));
    }
    effects
}

/// How many instances each heartbeat tells of.
fn heartbeats(effects: &[Effect]) -> Vec<usize> {
    let told = effects.iter().filter_map(|effect| match effect {
        Effect::Publish(Publication::Heartbeat(heartbeat)) => Some(heartbeat.droplets.len()),
        _ => None,
    });
    told.collect()
}

#[test]
fn the_first_change_is_told_at_once_and_those_that_follow_together() {
    let mut scene = Scene::new(config());
    scene.at(3);
    let effects = run_many(&mut scene, 500);
    assert_eq!(heartbeats(&effects), [1]);
    let next = scene.cell.next_wake().unwrap();
    assert_eq!(next.0, std::time::Duration::from_millis(3250));
    let now = crate::Now { mono: next, ..at(3) };
    assert_eq!(heartbeats(&scene.cell.handle(now, Input::Wake)), [500]);
    assert_eq!(heartbeats(&scene.cell.handle(now, Input::Wake)), [] as [usize; 0]);
    assert_eq!(scene.next_wake(), Some(5), "nothing more to tell before the advertisement");
    assert_eq!(heartbeats(&scene.at(10).take(Input::Wake)), [500], "and the periodic ones keep their time");
}

#[test]
fn health_managers_that_ask_in_a_flood_are_answered_together() {
    let mut scene = Scene::new(config());
    scene.at(1);
    let effects: Vec<_> = (0..100).flat_map(|_| scene.take(request(Request::ReportHeartbeat))).collect();
    assert_eq!(heartbeats(&effects), [0]);
    assert_eq!(heartbeats(&scene.at(2).take(Input::Wake)), [0]);
}

#[test]
fn many_routes_are_spread_over_the_interval_and_each_is_registered_once() {
    let mut scene = Scene::new(config());
    run_many(&mut scene, 5000);
    for sweep in [20_000, 40_000] {
        let (mut longest, mut seen) = (0, std::collections::BTreeMap::new());
        while let Some(next) = scene.cell.next_wake().filter(|next| next.0.as_millis() < sweep + 19_000) {
            let now = crate::Now { mono: next, ..at(0) };
            let effects = scene.cell.handle(now, Input::Wake);
            let apps: Vec<_> = effects
                .into_iter()
                .filter_map(|effect| match effect {
                    Effect::Publish(Publication::RouterRegister(registration)) => registration.app,
                    _ => None,
                })
                .collect();
            assert!(apps.is_empty() || (sweep..sweep + 17_000).contains(&next.0.as_millis()), "at {next:?}");
            longest = longest.max(apps.len());
            for app in apps {
                *seen.entry(app).or_insert(0) += 1;
            }
        }
        assert!(longest <= 64, "{longest} at once");
        assert_eq!((seen.len(), seen.values().max()), (5000, Some(&1)), "from {sweep} on");
    }
}

#[test]
fn no_more_instances_are_taken_than_a_heartbeat_can_tell_of() {
    let mut scene = Scene::offline(config());
    scene.take(Input::Bus(BusEvent::Limit(4096)));
    scene.take(Input::Bus(BusEvent::Up));
    let effects = run_many(&mut scene, 100);
    let refused = effects.iter().filter(|effect| matches!(effect, Effect::Refused { .. })).count();
    let taken = scene.cell.registry.len();
    assert_eq!((taken + refused, taken > 10), (100, true), "{taken} taken");
    let effects = scene.at(10).take(Input::Wake);
    let longest = effects.iter().find_map(|effect| match effect {
        Effect::Publish(Publication::Heartbeat(heartbeat)) => serde_json::to_vec(heartbeat).ok(),
        _ => None,
    });
    let longest = longest.unwrap().len();
    assert!((2048..=4096).contains(&longest), "{longest} bytes");
    assert!(shown(&effects).contains("dea.advertise memory 0M "), "a full agent is not to be chosen: {}", shown(&effects));

    // A server that takes more, and a health manager that takes parts, make room.
    scene.take(Input::Bus(BusEvent::Limit(8192)));
    run_many(&mut scene, 1);
    assert_eq!(scene.cell.registry.len(), taken + 1);
    let mut scene = Scene::offline(crate::CellConfig { whole_heartbeats: false, ..config() });
    scene.take(Input::Bus(BusEvent::Limit(4096)));
    run_many(&mut scene, 100);
    assert_eq!(scene.cell.registry.len(), 100);
}

#[test]
fn health_managers_that_are_told_another_way_are_told_without_a_bus_too() {
    let mut config = config();
    config.heartbeats_without_bus = true;
    let mut scene = Scene::offline(config);
    assert_eq!(scene.next_wake(), Some(10));
    let beats = |effects: Vec<Effect>| effects.iter().filter(|effect| matches!(effect, Effect::Publish(Publication::Heartbeat(_)))).count();
    assert_eq!(beats(scene.at(10).take(Input::Wake)), 1, "before there has been any bus");
    scene.take(Input::Bus(BusEvent::Up));
    scene.take(Input::Bus(BusEvent::Down));
    assert_eq!(beats(scene.at(20).take(Input::Wake)), 1, "while it is down");
    assert_eq!(scene.next_wake(), Some(30));
}

#[test]
fn the_address_of_the_https_api_is_advertised_where_there_is_one() {
    let advertised = |config| {
        let effects = Scene::new(config).take(request(Request::Locate));
        let [Effect::Publish(Publication::Advertise(advertise))] = &effects[..] else { panic!("{effects:?}") };
        advertise.url.clone()
    };
    assert_eq!(advertised(config()), None);
    let url = "https://dea.service:1234".to_owned();
    assert_eq!(advertised(CellConfig { url: Some(url.clone()), ..config() }), Some(url));
}
