//! File access.

use dewar_protocol::{FileUrls, FilesOf, FoundInstance, InstanceId, RouterStart, Secret, SetupReply, TaskId, Update};
use expect_test::expect;

use super::*;
use crate::testing::staging_message;
use crate::{FilesAt, FilesConfig, FilesRoute, FilesV1};

const KEY: &str = "00112233445566778899aabbccddeeff";

fn with_files() -> CellConfig {
    let urls = FileUrls::new("http://8e1c.apps.example.net".to_owned(), Secret(KEY.to_owned()));
    let route = Some(FilesRoute { host_name: "8e1c.apps.example.net".to_owned(), port: 34_567 });
    CellConfig { files: Some(FilesConfig { urls, route, v1: None }), ..config() }
}

fn found(scene: &mut Scene, wire: &str) -> FoundInstance {
    let effects = scene.take(asked(Request::FindInstances(serde_json::from_str(wire).unwrap())));
    let [Effect::Reply(_, Answer::Found(found))] = &effects[..] else { panic!("{effects:?}") };
    *found.clone()
}

fn located(scene: &mut Scene, of: FilesOf) -> FilesAt {
    let effects = scene.take(asked(Request::LocateFiles(of)));
    let [Effect::Reply(_, Answer::Files(at))] = &effects[..] else { panic!("{effects:?}") };
    at.clone()
}

#[test]
fn answers_carry_a_signed_url_if_the_question_has_a_path() {
    let mut scene = Scene::new(with_files());
    scene.run(start_message("shop", 0));
    let without = found(&mut scene, r#"{"droplet":"shop"}"#);
    assert_eq!((without.file_uri_v2, without.file_uri, without.credentials), (None, None, None));
    let id = without.instance_id;
    for (wire, path) in [(r#""/logs/a b.log""#, "path=%2Flogs%2Fa+b.log"), ("null", "path"), (r#""""#, "path=")] {
        let url = found(scene.at(7), &format!(r#"{{"droplet":"shop","path":{wire}}}"#)).file_uri_v2.unwrap();
        let (before, query) = url.expose().split_once("?hmac=").unwrap();
        assert_eq!(before, format!("http://8e1c.apps.example.net/instance_paths/{id}"));
        let (hmac, rest) = query.split_once('&').unwrap();
        assert_eq!((hmac.len(), rest), (128, format!("{path}&timestamp={}", EPOCH + 7).as_str()));
        scene.seconds = 0;
    }
    let mut plain = Scene::new(config());
    plain.run(start_message("shop", 0));
    assert_eq!(found(&mut plain, r#"{"droplet":"shop","path":"/"}"#).file_uri_v2, None, "nobody serves files");
}

#[test]
fn the_old_server_and_its_credentials_are_told_where_it_runs() {
    let credentials = Secret(("ad0f".to_owned(), "77c1".to_owned()));
    let v1 = FilesV1 { uri: "http://10.0.16.23:12345/instances".to_owned(), credentials: credentials.clone() };
    let mut scene = Scene::new(CellConfig { files: with_files().files.map(|files| FilesConfig { v1: Some(v1), ..files }), ..config() });
    scene.run(start_message("shop", 0));
    let found = found(&mut scene, r#"{"droplet":"shop"}"#);
    assert_eq!((found.file_uri.as_deref(), found.credentials), (Some("http://10.0.16.23:12345/instances"), Some(credentials)));
}

#[test]
fn the_first_staging_reply_says_where_the_log_is() {
    let mut scene = Scene::new(with_files());
    scene.at(3).take(asked(Request::Stage(Box::new(staging_message("shop", "t/1")))));
    let effects = scene.take(Input::Staging(TaskKey(1), StagingEvent::SetUp));
    let [Effect::Reply(_, Answer::Setup(SetupReply { task_streaming_log_url: Some(url), .. }))] = &effects[..] else {
        panic!("{effects:?}")
    };
    assert!(url.expose().starts_with("http://8e1c.apps.example.net/staging_tasks/t%2F1/file_path?hmac="), "{}", url.expose());
    assert!(url.expose().ends_with(&format!("&path=%2Ftmp%2Fstaged%2Flogs%2Fstaging_task.log&timestamp={}", EPOCH + 3)));
}

#[test]
fn only_what_runs_or_has_crashed_has_files_to_show() {
    let mut scene = Scene::new(with_files());
    let of = |id: &InstanceId| FilesOf::Instance(id.clone());
    let ids = |scene: &mut Scene| found(scene, r#"{"droplet":"shop"}"#).instance_id;
    scene.take(started(start_message("shop", 0)));
    let first = ids(&mut scene);
    assert_eq!(located(&mut scene, of(&first)), FilesAt::Unavailable, "STARTING");
    scene.take(droplet_ready());
    scene.take(launched(1));
    scene.take(ready(1));
    assert_eq!(located(&mut scene, of(&first)), FilesAt::Instance(first.clone()));
    let update: Update = serde_json::from_str(r#"{"droplet":"shop","version":"v2"}"#).unwrap();
    scene.take(request(Request::UpdateApp(update)));
    let second = ids(&mut scene);
    assert_ne!(first, second);
    assert_eq!(located(&mut scene, of(&first)), FilesAt::Unknown, "the id of before");
    assert_eq!(located(&mut scene, of(&second)), FilesAt::Instance(first.clone()), "files keep their first name");
    scene.take(exited(1, 1, "trap"));
    assert_eq!(located(&mut scene, of(&second)), FilesAt::Crash(first));
    assert_eq!(located(&mut scene, FilesOf::Instance("nobody".into())), FilesAt::Unknown);

    let mut refusing = Scene::new(with_files());
    let mut fat = start_message("shop", 0);
    fat.limits.mem = dewar_protocol::Mib(5000);
    refusing.take(started(fat));
    let id = ids(&mut refusing);
    assert_eq!(located(&mut refusing, of(&id)), FilesAt::Unavailable, "a crash that never had files");
}

#[test]
fn a_staging_task_has_a_log_from_its_first_reply_to_its_last() {
    let mut scene = Scene::new(with_files());
    let of = |task: &str| FilesOf::StagingTask(TaskId::from(task));
    assert_eq!(located(&mut scene, of("t1")), FilesAt::Unknown);
    scene.take(asked(Request::Stage(Box::new(staging_message("shop", "t1")))));
    assert_eq!(located(&mut scene, of("t1")), FilesAt::Unavailable);
    scene.take(Input::Staging(TaskKey(1), StagingEvent::SetUp));
    assert_eq!(located(&mut scene, of("t1")), FilesAt::StagingTask(TaskKey(1)));
    assert_eq!(located(&mut scene, of("t2")), FilesAt::Unknown);
    scene.take(request(Request::StopStaging(serde_json::from_str(r#"{"app_id":"shop"}"#).unwrap())));
    assert_eq!(located(&mut scene, of("t1")), FilesAt::Unknown);
}

#[test]
fn routers_learn_of_the_file_server_and_of_its_end() {
    let mut scene = Scene::offline(with_files());
    let registered = "router.register 8e1c.apps.example.net → 10.0.16.23:34567 of  by directory-server-2\n";
    assert!(shown(&scene.take(Input::Bus(BusEvent::Up))).contains(registered), "at the start");
    scene.run(start_message("shop", 0));
    scene.at(20).check(
        Input::Wake,
        expect![[r#"
        dea.heartbeat shop/0 v1 RUNNING since 0
        dea.advertise memory 900M disk 3800M apps shop:1
        staging.advertise memory 900M disk 3800M
        router.register shop.example.net → 10.0.16.23:61001 of shop by dea-2
        router.register 8e1c.apps.example.net → 10.0.16.23:34567 of  by directory-server-2
    "#]],
    );
    scene.check(
        request(Request::RegisterRoutes(RouterStart::default())),
        expect![[r#"
        router.register shop.example.net → 10.0.16.23:61001 of shop by dea-2
        router.register 8e1c.apps.example.net → 10.0.16.23:34567 of  by directory-server-2
    "#]],
    );
    let told = shown(&scene.at(21).take(Input::Signal(Signal::Shutdown)));
    let gone = registered.replace("register", "unregister");
    let order = ["dea.shutdown", "unsubscribe", gone.trim_end(), "router.unregister shop"].map(|line| told.find(line));
    assert!(order.is_sorted() && order.iter().all(Option::is_some), "{told}");
    let again = shown(&scene.take(request(Request::RegisterRoutes(RouterStart::default()))));
    assert!(!again.contains("directory-server"), "{again}");
}
