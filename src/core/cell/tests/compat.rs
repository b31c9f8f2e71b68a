//! Switches: what is not said, and not repeated, when it is switched off.

use expect_test::expect;

use super::*;

#[test]
fn messages_of_early_versions_can_be_left_out() {
    let mut scene = Scene::offline(CellConfig { legacy_messages: false, ..config() });
    for input in [Input::Bus(BusEvent::Up), Input::Wake, Input::Bus(BusEvent::Down), Input::Bus(BusEvent::Up)] {
        let told = shown(&scene.take(input));
        for legacy in ["dea.start", "router.greet", "staging.advertise"] {
            assert!(!told.contains(legacy), "{told}");
        }
    }
    scene.at(5).check(
        Input::Wake,
        expect![[r#"
            dea.advertise memory 1000M disk 4000M apps none
        "#]],
    );
    scene.check(request(Request::LocateStager), expect![[""]]);
}

#[test]
fn the_component_is_announced_only_where_it_is_wanted() {
    let announced = |announces_component| {
        let mut scene = Scene::offline(CellConfig { announces_component, ..config() });
        shown(&scene.take(Input::Bus(BusEvent::Up))).contains("vcap.component.announce")
    };
    assert!(announced(true) && !announced(false));
}

#[test]
fn a_heartbeat_of_nothing_can_be_left_out() {
    let mut scene = Scene::offline(CellConfig { empty_heartbeats: false, ..config() });
    assert!(!shown(&scene.take(Input::Bus(BusEvent::Up))).contains("dea.heartbeat"));
    scene.check(request(Request::ReportHeartbeat), expect![[""]]);
    for second in 1..=30 {
        assert!(!shown(&scene.at(second).take(Input::Wake)).contains("dea.heartbeat"));
    }
    assert_eq!(scene.next_wake(), Some(35), "an unsent heartbeat is not tried again at once");
    scene.run(start_message("shop", 0));
    scene.at(31).check(
        request(Request::ReportHeartbeat),
        expect![[r#"
            dea.heartbeat shop/0 v1 RUNNING since 30
        "#]],
    );
}
