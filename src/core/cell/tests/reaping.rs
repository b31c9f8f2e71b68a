//! Crashes, directories and droplets that go.

use expect_test::expect;

use super::*;
use crate::testing::staging_message;
use crate::{DiskUse, KeptDroplet, StagedDroplet};

fn disk(blocks: f64, inodes: f64) -> Input {
    Input::CrashDisk(DiskUse { blocks, inodes })
}

const FULL: f64 = 0.81;

fn crash(scene: &mut Scene, app: &str, index: u32) -> InstanceKey {
    let key = scene.run(start_message(app, index));
    scene.take(exited(key.0, 1, "gone"));
    key
}

/// What is told of each instance, as `app/index STATE`.
fn registered(scene: &mut Scene) -> Vec<String> {
    let effects = scene.take(asked(Request::ReportVarz));
    let varz = effects.iter().find_map(|effect| match effect {
        Effect::Reply(_, Answer::Varz(varz)) => Some(varz.clone()),
        _ => None,
    });
    varz.unwrap().instances.iter().map(|it| format!("{}/{} {}", it.app_id, it.index, it.state)).collect()
}

#[test]
fn under_pressure_the_oldest_crash_of_all_goes_and_the_disk_is_measured_again() {
    let mut scene = Scene::new(config());
    for (second, app) in ["blog", "shop", "mail"].into_iter().enumerate() {
        scene.at(second as u64);
        crash(&mut scene, app, 0);
    }
    scene.run(start_message("chat", 0));
    for calm in [disk(0.8, 0.8), disk(0.0, 0.0)] {
        assert_eq!(scene.take(calm), []);
    }
    scene.check(
        disk(FULL, 0.1),
        expect![[r#"
        log of blog/0 Out: Removing crash for app with id blog
        log of blog/0 Out: Stopping app instance (index 0) with guid blog
        log of blog/0 Out: Stopped app instance (index 0) with guid blog
        delete instance files and measure the disk
    "#]],
    );
    scene.check(
        disk(0.1, FULL),
        expect![[r#"
        log of shop/0 Out: Removing crash for app with id shop
        log of shop/0 Out: Stopping app instance (index 0) with guid shop
        log of shop/0 Out: Stopped app instance (index 0) with guid shop
        delete instance files and measure the disk
    "#]],
    );
    assert_eq!(scene.take(disk(0.5, 0.5)), [], "the pressure is gone");
    assert_eq!(registered(&mut scene), ["mail/0 CRASHED", "chat/0 RUNNING"]);
    scene.take(disk(1.0, 1.0));
    assert_eq!(scene.take(disk(1.0, 1.0)), [], "what runs does not go");
    assert_eq!(registered(&mut scene), ["chat/0 RUNNING"]);
}

#[test]
fn a_crash_without_files_makes_no_room_and_the_next_goes_at_once() {
    let mut scene = Scene::new(config());
    let mut huge = start_message("huge", 0);
    huge.limits.disk = dewar_protocol::Mib(1 << 20);
    scene.take(started(huge));
    crash(&mut scene, "shop", 0);
    crash(&mut scene, "blog", 0);
    scene.take(disk(FULL, 0.0));
    assert_eq!(registered(&mut scene), ["blog/0 CRASHED"]);
}

#[test]
fn a_crash_whose_sandbox_is_still_there_is_not_touched() {
    let mut scene = Scene::new(config());
    scene.take(started(start_message("shop", 0)));
    scene.take(droplet_ready());
    scene.take(launched(1));
    scene.wake_until(60);
    assert_eq!(registered(&mut scene), ["shop/0 CRASHED"], "unhealthy, and being killed");
    assert_eq!(scene.take(disk(FULL, FULL)), []);
    scene.take(exited(1, 255, "killed"));
    assert_ne!(scene.take(disk(FULL, FULL)), []);
    assert_eq!(registered(&mut scene), Vec::<String>::new());
}

#[test]
fn a_stop_that_brings_no_end_is_repeated_by_force_after_a_minute_and_every_ten_seconds() {
    let mut scene = Scene::new(config());
    for (second, app) in [(0, "old"), (30, "young")] {
        scene.at(second).run(start_message(app, 0));
        scene.take(stop(&format!(r#"{{"droplet":"{app}"}}"#)));
    }
    let mut killed = Vec::new();
    for second in 30..=100 {
        killed.extend(scene.wake_until(second).iter().map(|effect| (second, show(effect))));
    }
    let expected = [(60, 1), (70, 1), (80, 1), (90, 1), (90, 2), (100, 1), (100, 2)];
    let mut expected: Vec<_> = expected.map(|(second, key)| (second, format!("kill sandbox {key}"))).into();
    killed.sort();
    expected.sort();
    assert_eq!(killed, expected);
    assert_eq!(registered(&mut scene), ["old/0 STOPPING", "young/0 STOPPING"]);
    scene.take(exited(1, 255, ""));
    scene.take(exited(2, 255, ""));
    assert_eq!(registered(&mut scene), Vec::<String>::new());
    assert_eq!(scene.wake_until(300), [], "nothing is left to be stopped");
}

#[test]
fn directories_that_belong_to_nobody_go() {
    let mut scene = Scene::new(config());
    let files = |scene: &Scene, key: InstanceKey| scene.cell.registry.get(key).unwrap().files_name().clone();
    let running = scene.run(start_message("shop", 0));
    let crashed = crash(&mut scene, "blog", 0);
    let (running_files, crashed_files) = (files(&scene, running), files(&scene, crashed));
    // A new version renames the instance, not its files.
    scene.take(request(Request::UpdateApp(serde_json::from_str(r#"{"droplet":"shop","uris":[],"version":"v2"}"#).unwrap())));
    assert_ne!(scene.cell.registry.get(running).unwrap().instance_id, running_files);
    let nobodys = dewar_protocol::InstanceId("0123456789abcdef0123456789abcdef".to_owned());
    let found = vec![running_files.clone(), nobodys.clone(), crashed_files.clone()];
    assert_eq!(scene.take(Input::Strays(found.clone())), [Effect::DeleteInstanceFiles(nobodys.clone())]);
    scene.take(stop(r#"{"droplet":"shop"}"#));
    assert_eq!(scene.take(Input::Strays(vec![running_files.clone()])), [], "it is stopping, and alive");
    scene.take(exited(running.0, 0, ""));
    assert_eq!(
        scene.take(Input::Strays(found)),
        [Effect::DeleteInstanceFiles(running_files), Effect::DeleteInstanceFiles(nobodys)],
        "what could not be deleted at the end is tried again"
    );
}

fn kept(droplets: &[(char, u64)]) -> Input {
    let kept = |(digit, size): &(char, u64)| KeptDroplet { sha1: sha1(*digit), size: dewar_protocol::Bytes(*size) };
    Input::Droplets(droplets.iter().map(kept).collect())
}

fn scene_with_budget(bytes: u64) -> Scene {
    Scene::new(CellConfig { droplet_budget: dewar_protocol::Bytes(bytes), ..config() })
}

#[test]
fn unused_droplets_beyond_the_budget_go_the_least_recently_used_first() {
    let mut scene = scene_with_budget(100);
    assert_eq!(scene.take(kept(&[('1', 50), ('2', 50)])), []);
    assert_eq!(shown(&scene.take(kept(&[('1', 10), ('2', 50), ('3', 50)]))), "evict droplet 1…\n");
    assert_eq!(shown(&scene.take(kept(&[('1', 1), ('2', 60), ('3', 60)]))), "evict droplet 1…\nevict droplet 2…\n");
    assert_eq!(shown(&scene.take(kept(&[('1', 101)]))), "evict droplet 1…\n", "one that is too large by itself");
    scene.run(StartMessage { sha1: Some(sha1('1')), ..start_message("shop", 0) });
    let effects = scene.take(kept(&[('1', u64::MAX), ('2', 60), ('3', 60)]));
    assert_eq!(shown(&effects), "evict droplet 2…\n", "what is in use costs nothing and stays");
}

#[test]
fn a_droplet_is_in_use_from_the_start_message_until_its_last_instance_is_forgotten() {
    let mut scene = scene_with_budget(0);
    let droplets = || kept(&[('a', 1), ('b', 0)]);
    assert_eq!(shown(&scene.take(droplets())), "evict droplet a…\nevict droplet b…\n", "without a budget all go that nobody uses");
    let stays = |scene: &mut Scene| assert_eq!(shown(&scene.take(droplets())), "evict droplet b…\n");
    scene.take(started(start_message("shop", 0)));
    stays(&mut scene);
    scene.take(droplet_ready());
    stays(&mut scene);
    scene.take(launched(1));
    scene.take(ready(1));
    stays(&mut scene);
    scene.take(exited(1, 1, "gone"));
    stays(&mut scene);
    scene.run(start_message("shop", 1));
    scene.take(disk(FULL, FULL));
    scene.take(stop(r#"{"droplet":"shop"}"#));
    stays(&mut scene);
    scene.take(exited(2, 0, ""));
    assert_eq!(shown(&scene.take(droplets())), "evict droplet a…\nevict droplet b…\n");
}

#[test]
fn a_droplet_on_its_way_is_in_use_though_nobody_waits_for_it_any_more() {
    let mut scene = scene_with_budget(0);
    scene.take(started(start_message("shop", 0)));
    scene.take(stop(r#"{"droplet":"shop"}"#));
    assert_eq!(registered(&mut scene), Vec::<String>::new());
    assert_eq!(scene.take(kept(&[('a', 1)])), []);
    scene.take(droplet_ready());
    assert_eq!(shown(&scene.take(kept(&[('a', 1)]))), "evict droplet a…\n");
}

#[test]
fn a_staged_droplet_is_in_use_until_the_controller_was_told() {
    let mut scene = scene_with_budget(0);
    scene.take(asked(Request::StageByHttp(Box::new(staging_message("shop", "t1")))));
    let droplet = StagedDroplet {
        sha1: sha1('b'),
        detected_buildpack: None,
        buildpack_key: None,
        start_command: None,
        process_types: BTreeMap::new(),
    };
    scene.take(Input::Staging(TaskKey(1), StagingEvent::Finished(Ok(Box::new(droplet)))));
    assert_eq!(shown(&scene.take(kept(&[('a', 1), ('b', 1)]))), "evict droplet a…\n");
    scene.take(Input::Staging(TaskKey(1), StagingEvent::Reported));
    assert_eq!(shown(&scene.take(kept(&[('b', 1)]))), "evict droplet b…\n");
}
