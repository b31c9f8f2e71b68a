//! Questions.

use std::time::Duration;

use dewar_protocol::{Bytes, FoundInstance, InstanceUsage, Mib};
use expect_test::expect;

use super::*;
use crate::Sample;

fn find(wire: &str) -> Input {
    asked(Request::FindInstances(serde_json::from_str(wire).unwrap()))
}

fn found(scene: &mut Scene, wire: &str) -> Vec<FoundInstance> {
    let only_answers = |effect| match effect {
        Effect::Reply(_, Answer::Found(found)) => *found,
        other => panic!("{other:?}"),
    };
    scene.take(find(wire)).into_iter().map(only_answers).collect()
}

#[test]
fn one_answer_per_match() {
    let mut scene = Scene::new(config());
    scene.run(start_message("shop", 0));
    scene.run(start_message("shop", 1));
    scene.take(started(start_message("shop", 2)));
    scene.take(exited(1, 1, ""));
    scene.check(
        find(r#"{"droplet":"shop"}"#),
        expect![[r#"
        to asker: shop/0 v1 CRASHED
        to asker: shop/1 v1 RUNNING
        to asker: shop/2 v1 STARTING
    "#]],
    );
    scene.check(
        find(r#"{"droplet":"shop","states":["running"],"indices":[]}"#),
        expect![[r#"
        to asker: shop/1 v1 RUNNING
    "#]],
    );
    scene.check(find(r#"{"droplet":"nobody"}"#), expect![[""]]);
    scene.check(find("{}"), expect![[""]]);
    scene.check(
        find(r#"{"droplet":"shop","states":["odd"]}"#),
        expect![[r#"
        refused dea.find.droplet: Unknown state: odd
    "#]],
    );
    scene.check(request(Request::FindInstances(serde_json::from_str(r#"{"droplet":"shop"}"#).unwrap())), expect![[""]]);
}

#[test]
fn a_crash_is_told_to_those_who_want_statistics() {
    let mut scene = Scene::new(config());
    let key = scene.run(start_message("shop", 0));
    let lines = vec!["about to go".to_owned()];
    assert_eq!(scene.take(Input::Sandbox(key, SandboxEvent::Wrote(lines.clone()))), []);
    scene.take(exited(1, 134, "unreachable\n  0: main"));
    let all = found(&mut scene, r#"{"droplet":"shop","include_stats":true}"#);
    let crash = all[0].crash.clone().unwrap();
    assert_eq!((crash.exit_status, crash.exit_description.as_str(), crash.last_lines), (134, "unreachable\n  0: main", lines));
    let plain = found(&mut scene, r#"{"droplet":"shop"}"#);
    assert_eq!(plain[0].crash, None, "what the original did not say is said to nobody who does not ask");
}

#[test]
fn statistics_of_running_instances() {
    let mut scene = Scene::new(config());
    let key = scene.at(10).run(start_message("shop", 0));
    scene.take(started(start_message("shop", 1)));
    let sample = |cpu, memory, disk| Sample { cpu: Duration::from_millis(cpu), memory: Bytes(memory), disk: Bytes(disk) };
    scene.at(20).take(Input::Usage(vec![(key, sample(1000, 1 << 20, 5))]));
    scene.at(30).take(Input::Usage(vec![(key, sample(3500, 3 << 20, 6))]));
    let instances = found(scene.at(40), r#"{"droplet":"shop","include_stats":true}"#);
    assert_eq!((instances[0].dea.as_str(), instances[0].state_timestamp), ("cell", UnixSeconds((EPOCH + 10) as f64)));
    let stats = instances[0].stats.clone().unwrap();
    assert_eq!((stats.name.as_str(), stats.host.as_str(), stats.port), ("shop", "10.0.16.23", Some(61_001)));
    assert_eq!(stats.uris, ["shop.example.net"]);
    assert_eq!(stats.uptime, 30, "since STARTING");
    assert_eq!((stats.mem_quota, stats.disk_quota, stats.fds_quota), (Bytes(100 << 20), Bytes(200 << 20), 16));
    let usage = InstanceUsage { time: "2013-10-16 14:00:40 +0000".to_owned(), cpu: 0.25, mem: Bytes(3 << 20), disk: Bytes(6) };
    assert_eq!(stats.usage, usage);
    assert_eq!(instances[1].stats, None, "not running");
    assert_eq!(instances[0].staged, format!("/{}", instances[0].instance_id));
    assert!(found(&mut scene, r#"{"droplet":"shop"}"#).iter().all(|found| found.stats.is_none()), "not asked for");
    scene.check(
        asked(Request::ReportStatus),
        expect![[r#"
        to asker: max 1000M reserved 200M used 3M
    "#]],
    );
}

#[test]
fn varz_counts_what_could_be_staged() {
    let mut scene = Scene::new(config());
    scene.run(start_message("shop", 0));
    let effects = scene.take(asked(Request::ReportVarz));
    let [Effect::Reply(_, Answer::Varz(varz))] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!((varz.reservable_stagers, varz.staging_tasks), (3, 0));
    assert_eq!((varz.available_memory_ratio, varz.available_disk_ratio), (0.9, 0.95));
    assert_eq!((varz.capacity.memory, varz.remaining.memory), (Mib(1000), Mib(900)));
    assert_eq!((varz.capacity.disk, varz.remaining.disk), (Mib(4000), Mib(3800)));
    let shop = &varz.instances[0];
    assert_eq!((shop.app_name.as_str(), shop.index, shop.state), ("shop", 0, dewar_protocol::InstanceState::Running));
    assert_eq!(varz.stacks, ["wasm", "lucid64"]);
}

#[test]
fn a_handle_is_listed_as_long_as_there_is_a_sandbox() {
    let mut scene = Scene::new(config());
    let handles = |scene: &mut Scene| {
        let effects = scene.take(asked(Request::ReportVarz));
        let [Effect::Reply(_, Answer::Varz(varz))] = &effects[..] else { panic!("{effects:?}") };
        varz.instances.iter().map(|instance| instance.handle.is_some()).collect::<Vec<_>>()
    };
    assert!(handles(&mut scene).is_empty());
    scene.take(started(start_message("shop", 0)));
    assert_eq!(handles(&mut scene), [false], "it waits for its droplet");
    scene.run(start_message("shop", 1));
    assert_eq!(handles(&mut scene), [true, true]);
    scene.take(exited(2, 1, ""));
    assert_eq!(handles(&mut scene), [true, false]);
}

#[test]
fn statistics_start_at_nothing_and_keep_their_values_without_samples() {
    let mut scene = Scene::new(config());
    let key = scene.run(start_message("shop", 0));
    let usage = |scene: &mut Scene| {
        let instances = found(scene, r#"{"droplet":"shop","include_stats":true}"#);
        let InstanceUsage { cpu, mem, disk, .. } = instances[0].stats.clone().unwrap().usage;
        (cpu, mem.0, disk.0)
    };
    assert_eq!(usage(&mut scene), (0.0, 0, 0));
    let sample = |cpu, memory, disk| Sample { cpu: Duration::from_secs(cpu), memory: Bytes(memory), disk: Bytes(disk) };
    scene.at(10).take(Input::Usage(vec![(key, sample(1, 100, 0))]));
    assert_eq!(usage(&mut scene), (0.0, 100, 0), "one sample gives no fraction");
    scene.at(20).take(Input::Usage(vec![(key, sample(6, 200, 0))]));
    assert_eq!(usage(&mut scene), (0.5, 200, 0), "no disk, and yet a fraction");
    scene.at(20).take(Input::Usage(vec![(key, sample(9, 300, 0))]));
    assert_eq!(usage(&mut scene), (0.5, 200, 0), "no time has passed");
    scene.at(30).take(Input::Usage(Vec::new()));
    assert_eq!(usage(&mut scene), (0.5, 200, 0), "not measured");
}

#[test]
fn a_component_says_how_long_it_is_up() {
    let mut scene = Scene::new(config());
    scene.at(2 * 86_400 + 3 * 3600 + 4 * 60 + 5).check(
        asked(Request::DiscoverComponent),
        expect![[r#"
        to asker: component up 2d:3h:4m:5s
    "#]],
    );
    scene.check(request(Request::DiscoverComponent), expect![[""]]);
    scene.check(request(Request::ReportStatus), expect![[""]]);
}
