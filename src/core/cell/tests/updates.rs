//! `dea.update`.

use dewar_protocol::{InstanceId, Update};
use expect_test::expect;

use super::*;

fn update(wire: &str) -> Input {
    request(Request::UpdateApp(serde_json::from_str::<Update>(wire).unwrap()))
}

fn id_of(scene: &Scene, key: u64) -> InstanceId {
    scene.cell.registry.get(InstanceKey(key)).unwrap().instance_id.clone()
}

#[test]
fn routes_come_and_go() {
    let mut scene = Scene::new(config());
    scene.run(StartMessage { uris: vec!["a".to_owned(), "b".to_owned()], ..start_message("shop", 0) });
    scene.run(StartMessage { uris: vec!["c".to_owned(), "b".to_owned(), "d".to_owned()], ..start_message("shop", 1) });
    scene.run(start_message("blog", 0));
    let before = id_of(&scene, 1);
    scene.at(1).check(
        update(r#"{"droplet":"shop","uris":["d","b","c"]}"#),
        expect![[r#"
        router.register d c → 10.0.16.23:61001 of shop by dea-2
        router.unregister a → 10.0.16.23:61001 of shop by dea-2
        dea.heartbeat shop/0 v1 RUNNING since 0, shop/1 v1 RUNNING since 0, blog/0 v1 RUNNING since 0
    "#]],
    );
    scene.check(update(r#"{"droplet":"shop","uris":["d","b","c"]}"#), expect![[""]]);
    scene.check(update(r#"{"droplet":"nobody","uris":["d"]}"#), expect![[""]]);
    scene.check(
        request(Request::RegisterRoutes(Default::default())),
        expect![[r#"
        router.register d b c → 10.0.16.23:61001 of shop by dea-2
        router.register d b c → 10.0.16.23:61002 of shop by dea-2
        router.register blog.example.net → 10.0.16.23:61003 of blog by dea-2
    "#]],
    );
    scene.at(2).check(
        update(r#"{"droplet":"shop","uris":[]}"#),
        expect![[r#"
        router.unregister d b c → 10.0.16.23:61001 of shop by dea-2
        router.unregister d b c → 10.0.16.23:61002 of shop by dea-2
        dea.heartbeat shop/0 v1 RUNNING since 0, shop/1 v1 RUNNING since 0, blog/0 v1 RUNNING since 0
    "#]],
    );
    assert_eq!(id_of(&scene, 1), before, "without another version it keeps its id");
}

#[test]
fn a_new_version_brings_a_new_id_and_nothing_else() {
    let mut scene = Scene::new(config());
    scene.run(start_message("shop", 0));
    let (before, private) = (id_of(&scene, 1), private_id(&mut scene));
    assert!(private.len() == 64 && private.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')), "{private}");
    scene.check(update(r#"{"droplet":"shop"}"#), expect![[""]]);
    scene.check(update(r#"{"droplet":"shop","uris":null,"version":null}"#), expect![[""]]);
    scene.check(update(r#"{"droplet":"shop","version":"v1"}"#), expect![[""]]);
    assert_eq!(id_of(&scene, 1), before);
    scene.at(1).check(
        update(r#"{"droplet":"shop","version":"v2"}"#),
        expect![[r#"
        dea.heartbeat shop/0 v2 RUNNING since 0
    "#]],
    );
    assert_ne!(id_of(&scene, 1), before);
    assert_eq!(private_id(&mut scene), private);
    scene.check(stop(&format!(r#"{{"droplet":"shop","instances":["{before}"]}}"#)), expect![[""]]);
    let (after, effects) = (id_of(&scene, 1), scene.take(stop(r#"{"droplet":"shop","version":"v2"}"#)));
    assert!(effects.iter().any(|effect| matches!(effect,
        Effect::Publish(Publication::DropletExited(exited)) if exited.instance_id == after && exited.version == "v2")));
    let effects = scene.take(exited(1, 0, ""));
    assert!(effects.contains(&Effect::DeleteInstanceFiles(before)), "files are named by the id at the start: {effects:?}");
}

fn private_id(scene: &mut Scene) -> String {
    let told = scene.take(request(Request::RegisterRoutes(Default::default()))).into_iter().find_map(|effect| match effect {
        Effect::Publish(Publication::RouterRegister(registration)) => registration.private_instance_id,
        _ => None,
    });
    told.expect("a registration with a private id")
}

#[test]
fn a_starting_instance_takes_the_new_routes_and_registers_them_when_it_runs() {
    let mut scene = Scene::new(config());
    scene.take(started(start_message("shop", 0)));
    scene.at(1).check(
        update(r#"{"droplet":"shop","uris":["new"],"version":"v2"}"#),
        expect![[r#"
        dea.heartbeat shop/0 v2 STARTING since 0
    "#]],
    );
    scene.take(droplet_ready());
    scene.take(launched(1));
    scene.at(2).check(
        ready(1),
        expect![[r#"
        shop/0 (1) STARTING → RUNNING
        dea.heartbeat shop/0 v2 RUNNING since 2
        router.register new → 10.0.16.23:61001 of shop by dea-2
    "#]],
    );
}

#[test]
fn what_has_ended_is_left_alone() {
    let mut scene = Scene::new(config());
    scene.run(start_message("shop", 0));
    scene.run(start_message("shop", 1));
    scene.take(exited(1, 1, ""));
    scene.take(stop(r#"{"droplet":"shop","indices":[1]}"#));
    scene.check(update(r#"{"droplet":"shop","uris":["new"],"version":"v2"}"#), expect![[""]]);
}
