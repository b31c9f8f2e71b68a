//! What peers rely on beyond the ordinary: sums that agree, filters, and what comes too late.

use expect_test::expect;

use super::*;

fn find(wire: &str) -> Input {
    asked(Request::FindInstances(serde_json::from_str(wire).unwrap()))
}

#[test]
fn stopping_frees_exactly_what_was_promised() {
    let mut scene = Scene::new(config());
    scene.run(start_message("shop", 0));
    scene.run(start_message("blog", 0));
    scene.check(
        request(Request::Locate),
        expect![[r#"
            dea.advertise memory 800M disk 3600M apps blog:1 shop:1
        "#]],
    );
    scene.take(stop(r#"{"droplet":"shop"}"#));
    scene.check(
        request(Request::Locate),
        expect![[r#"
            dea.advertise memory 800M disk 3600M apps blog:1 shop:1
        "#]],
    );
    scene.take(exited(1, 0, ""));
    scene.check(
        request(Request::Locate),
        expect![[r#"
            dea.advertise memory 900M disk 3800M apps blog:1
        "#]],
    );
}

#[test]
fn a_crash_counts_until_it_is_reaped_and_the_farewell_counts_as_advertisements_do() {
    let mut scene = Scene::new(config());
    scene.run(start_message("shop", 0));
    scene.run(start_message("shop", 1));
    scene.take(exited(1, 1, "trap"));
    scene.check(
        request(Request::Locate),
        expect![[r#"
            dea.advertise memory 900M disk 3600M apps shop:2
        "#]],
    );
    scene.check(
        Input::Signal(Signal::Drain),
        expect![[r#"
            dea.shutdown apps shop:2
        "#]],
    );
}

#[test]
fn questions_are_answered_by_version_index_state_and_several_of_each() {
    let mut scene = Scene::new(config());
    for (index, version) in [(0, "v1"), (1, "v1"), (2, "v2")] {
        scene.run(StartMessage { version: version.to_owned(), ..start_message("shop", index) });
    }
    scene.take(exited(1, 1, "trap"));
    let cases = [
        (r#"{"droplet":"shop","version":"v2"}"#, "2"),
        (r#"{"droplet":"shop","indices":[1]}"#, "1"),
        (r#"{"droplet":"shop","indices":[0,2,7]}"#, "0 2"),
        (r#"{"droplet":"shop","states":["CRASHED"]}"#, "0"),
        (r#"{"droplet":"shop","states":["crashed","RUNNING"],"version":"v1"}"#, "0 1"),
        (r#"{"droplet":"shop","states":[],"instances":[],"version":null}"#, "0 1 2"),
        (r#"{"droplet":"shop","states":["Sleeping"]}"#, ""),
        (r#"{"droplet":"nobody"}"#, ""),
    ];
    for (question, expected) in cases {
        let answers = scene.take(find(question)).into_iter().filter_map(|effect| match effect {
            Effect::Reply(_, Answer::Found(found)) => Some(found.index.to_string()),
            _ => None,
        });
        assert_eq!(answers.collect::<Vec<_>>().join(" "), expected, "{question}");
    }
}

#[test]
fn nothing_is_said_of_one_that_has_been_stopped() {
    let mut scene = Scene::new(config());
    scene.take(started(start_message("shop", 0)));
    scene.take(droplet_ready());
    scene.take(launched(1));
    scene.take(stop(r#"{"droplet":"shop"}"#));
    scene.take(exited(1, 255, "killed"));
    for late in [ready(1), launched(1), exited(1, 1, "trap"), droplet_ready()] {
        scene.check(late, expect![[""]]);
    }
    assert_eq!(scene.wake_until(1000), [], "its health check's time-out does not come");
}

#[test]
fn a_stop_reaches_every_state_but_those_that_have_ended() {
    let mut scene = Scene::new(config());
    scene.run(start_message("shop", 0));
    scene.run(start_message("shop", 1));
    scene.run(start_message("shop", 2));
    scene.take(started(start_message("shop", 3)));
    scene.take(exited(1, 1, "trap"));
    scene.take(stop(r#"{"droplet":"shop","indices":[1]}"#));
    scene.check(
        stop(r#"{"droplet":"shop","version":"v1"}"#),
        expect![[r#"
            stop sandbox 2
            shop/2 (3) RUNNING → STOPPING
            router.unregister shop.example.net → 10.0.16.23:61003 of shop by dea-2
            droplet.exited shop/2 Stopped -1 ""
            stop sandbox 3
            shop/3 (4) STARTING → STOPPING
            droplet.exited shop/3 Stopped -1 ""
            shop/3 (4) STOPPING → STOPPED
            log of shop/3 Out: Stopping app instance (index 3) with guid shop
            log of shop/3 Out: Stopped app instance (index 3) with guid shop
            delete instance files
        "#]],
    );
    scene.check(stop(r#"{"version":"v1"}"#), expect![[""]]);
}

#[test]
fn heartbeats_and_exits_name_the_partition_of_the_start_message() {
    let mut scene = Scene::new(config());
    scene.run(StartMessage { cc_partition: "north".to_owned(), ..start_message("shop", 0) });
    let mut told = scene.at(10).take(Input::Wake);
    told.extend(scene.take(exited(1, 1, "trap")));
    let partitions = told.iter().filter_map(|effect| match effect {
        Effect::Publish(Publication::Heartbeat(heartbeat)) => Some(("heartbeat", heartbeat.droplets[0].cc_partition.as_str())),
        Effect::Publish(Publication::DropletExited(exited)) => Some(("exit", exited.cc_partition.as_str())),
        _ => None,
    });
    assert_eq!(partitions.collect::<Vec<_>>(), [("heartbeat", "north"), ("exit", "north")]);
}
