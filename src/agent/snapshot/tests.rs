use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use dewar_core::{Capacity, Cell, CellConfig, ComponentFacts, Effect, Mono, Now, ReplyTo, Request, Wall};
use dewar_protocol::Mib;
use rand::SeedableRng as _;
use serde_json::{Value, json};

use super::*;
use crate::base_dir::BaseDir;
use crate::inbound::{Inbound, MAX_NESTING, Malformed, Topic, decode};

const ID: &str = "3c9a7e5f1b2d4860a1c3e5f708192a3b";

fn now() -> Now {
    Now { mono: Mono(Duration::from_secs(1)), wall: Wall(Duration::from_secs(1_381_932_300)) }
}

fn start() -> Value {
    json!({"droplet": "shop", "index": 0, "version": "v1", "name": "shop", "uris": ["shop.example.net"], "sha1": "a".repeat(40),
        "executableUri": "http://up:secret@cc/droplet", "cc_partition": "default", "limits": {"mem": 64, "disk": 64, "fds": 16},
        "services": [], "env": ["PASSWORD=sesame"]})
}

fn request(topic: Topic, message: &Value) -> Result<Request, Malformed> {
    match decode(topic, message.to_string().as_bytes())? {
        Inbound::Cell(request) => Ok(request),
        other => panic!("{other:?}"),
    }
}

/// What a cell wants saved that has one instance.
fn image() -> Box<SnapshotImage> {
    image_after([request(Topic::Start, &start()).unwrap()])
}

/// What a cell wants saved that was asked for this.
fn image_after<const N: usize>(requests: [Request; N]) -> Box<SnapshotImage> {
    let component = ComponentFacts { host: String::new(), credentials: dewar_protocol::Secret::default(), start: String::new() };
    let mut config = CellConfig::new("cell".into(), "10.0.0.1".to_owned(), component);
    config.capacity = Capacity { memory: Mib(1000), disk: Mib(1000) };
    (config.staging.memory, config.staging.disk) = (Mib(100), Mib(100));
    let mut cell = Cell::new(config, rand::rngs::StdRng::seed_from_u64(1));
    let loaded = cell.resume(now(), None);
    assert!(matches!(loaded[..], [Effect::SaveSnapshot(_)]), "once, when the load is complete: {loaded:?}");
    for request in requests {
        cell.handle(now(), Input::Request(request, Some(ReplyTo("asker".into()))));
    }
    cell.handle(now(), Input::SnapshotSaved { ok: true });
    let later = Now { mono: Mono(Duration::from_secs(2)), ..now() };
    let saved = cell.handle(later, Input::Wake).into_iter().find_map(|effect| match effect {
        Effect::SaveSnapshot(image) => Some(image),
        _ => None,
    });
    saved.expect("a start is saved")
}

fn directory() -> (tempfile::TempDir, BaseDir) {
    let dir = tempfile::tempdir().unwrap();
    let base = BaseDir::claim(dir.path()).unwrap();
    (dir, base)
}

fn names(db: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(db).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_is_written_is_loaded_and_private() {
    let (_dir, base) = directory();
    assert_eq!(load(base.paths()), None, "no file, nothing left");
    let image = image();
    write(base.paths(), &image).unwrap();
    let path = base.paths().db().join(FILE);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(names(&base.paths().db()), [FILE]);
    let loaded = load(base.paths()).unwrap();
    assert_eq!(loaded.instances.len(), 1);
    let instance = &loaded.instances[0];
    assert_eq!(instance.start_message, serde_json::from_value(start()).unwrap());
    assert_eq!(instance.warden_container_path, Some(base.paths().instance(&instance.warden_handle).display().to_string()));
    assert!(!format!("{loaded:?}").contains("sesame"), "nothing secret is shown");
}

/// A start and a staging message that are so deep, by what a developer may write into a service's credentials.
fn nested(levels: usize) -> [(Topic, Value); 2] {
    let with = |mut message: Value, outer: usize| {
        let deep = (outer..levels).fold(json!("deep"), |inner, _| json!([inner]));
        let services = json!([{"name": "db", "label": "user-provided", "credentials": deep}]);
        let at = if outer == 3 { &mut message } else { &mut message["properties"] };
        at["services"] = services;
        message
    };
    let staging = json!({"app_id": "shop", "task_id": "t1", "properties": {}, "download_uri": "http://cc/a", "upload_uri": "http://cc/b"});
    [(Topic::Start, with(start(), 3)), (Topic::Stage, with(staging, 4))]
}

#[test]
fn the_deepest_messages_that_are_taken_are_loaded_again() {
    let (_dir, base) = directory();
    let image = image_after(nested(MAX_NESTING).map(|(topic, message)| request(topic, &message).unwrap()));
    write(base.paths(), &image).unwrap();
    let loaded = load(base.paths()).expect("what was written is read");
    assert_eq!((loaded.instances.len(), loaded.staging_tasks.len()), (1, 1));
    for levels in [MAX_NESTING + 1, 127, 128] {
        for (topic, message) in nested(levels) {
            let refused = request(topic, &message).unwrap_err().to_string();
            assert_eq!(refused, "nested deeper than the 100 levels that are read");
        }
    }
}

#[test]
fn what_cannot_be_understood_is_kept_aside_and_nothing_is_loaded() {
    let (_dir, base) = directory();
    let db = base.paths().db();
    let good = || -> Value { serde_json::to_value(image().snapshot(|_, _| String::new())).unwrap() };
    let with = |change: fn(&mut Value)| {
        let mut snapshot = good();
        change(&mut snapshot);
        snapshot.to_string()
    };
    let torn = good().to_string();
    let cases = [
        (torn[..torn.len() / 2].to_owned(), "not JSON"),
        (String::new(), "not JSON"),
        ("garbage".to_owned(), "not JSON"),
        (r#"{"time": 1.5, "instances": [], "staging_tasks": []}"#.to_owned(), "no `version`"),
        (with(|it| it["version"] = json!(SNAPSHOT_VERSION + 1)), "version 2"),
        (with(|it| it["instances"][0]["warden_handle"] = json!("../../etc")), "instances[0]"),
        (with(|it| it["instances"] = json!([it["instances"][0], it["instances"][0]])), "instances[1]"),
        (with(|it| it["instances"][0]["start_message"]["env"] = json!("sesame")), "start_message.env"),
    ];
    for (text, cause) in cases {
        fs::write(db.join(FILE), &text).unwrap();
        let error = read(&db.join(FILE)).unwrap_err().to_string();
        assert!(error.contains(cause), "{error} should say {cause}");
        assert!(!error.contains("sesame"), "{error}");
        assert_eq!(load(base.paths()), None);
        assert!(!db.join(FILE).exists());
        let aside = names(&db);
        let kept = aside.last().unwrap();
        assert!(kept.starts_with(REFUSED), "{kept}");
        assert_eq!(fs::read_to_string(db.join(kept)).unwrap(), text, "it is kept as it was");
    }
}

#[test]
fn only_the_newest_refused_ones_are_kept() {
    let (_dir, base) = directory();
    let db = base.paths().db();
    for epoch in 1..10 {
        fs::write(db.join(format!("{REFUSED}{epoch}")), "").unwrap();
    }
    fs::write(db.join(FILE), "garbage").unwrap();
    load(base.paths());
    let left = names(&db);
    assert_eq!(left.len(), KEPT, "{left:?}");
    assert!(["7", "8", "9"].iter().all(|epoch| left.contains(&format!("{REFUSED}{epoch}"))), "{left:?}");
}

#[tokio::test]
async fn a_write_that_fails_is_reported_and_the_next_one_counts() {
    let (dir, base) = directory();
    let (reports, mut reported) = mpsc::channel(4);
    let tasks = TaskTracker::new();
    let saver = Saver::start(base.paths().clone(), reports, &tasks);
    fs::remove_dir(base.paths().db()).unwrap();
    saver.save(image());
    assert_eq!(reported.recv().await, Some(Input::SnapshotSaved { ok: false }));
    fs::create_dir(base.paths().db()).unwrap();
    saver.save(image());
    assert_eq!(reported.recv().await, Some(Input::SnapshotSaved { ok: true }));
    saver.save(image());
    drop((saver, reported));
    tasks.close();
    tasks.wait().await;
    assert!(dir.path().join("db").join(FILE).exists());
}

#[test]
fn an_error_is_told_once_until_it_changes() {
    let mut failing = None;
    tell(Some("full".to_owned()), &mut failing);
    assert_eq!(failing.as_deref(), Some("full"));
    tell(None, &mut failing);
    assert_eq!(failing, None);
}

/// What is left on disk after a sweep for these instances.
fn swept(states: &[(&str, InstanceState)]) -> Vec<String> {
    let (dir, base) = directory();
    let mut snapshot = image().snapshot(|_, _| String::new());
    let first = snapshot.instances.remove(0);
    for (handle, state) in states {
        for place in ["app", "logs"] {
            fs::create_dir_all(dir.path().join("instances").join(handle).join(place)).unwrap();
        }
        snapshot.instances.push(dewar_protocol::SnapshotInstance { warden_handle: (*handle).into(), state: *state, ..first.clone() });
    }
    for orphan in ["instances/0rphan/app", "crashes/0rphan/logs", "tmp/0rphan", "staging/0rphan/app", "droplets/kept"] {
        fs::create_dir_all(dir.path().join(orphan)).unwrap();
    }
    base.sweep(Some(&snapshot)).unwrap();
    let mut left = Vec::new();
    for place in ["instances", "crashes", "tmp", "staging", "droplets"] {
        for name in names(&dir.path().join(place)) {
            let within = names(&dir.path().join(place).join(&name)).join("+");
            left.push(format!("{place}/{name}:{within}"));
        }
    }
    left
}

#[test]
fn files_stay_with_those_who_need_them() {
    use InstanceState::{Crashed, Evacuating, Running, Starting, Stopping};
    assert_eq!(swept(&[]), ["droplets/kept:"]);
    let left = swept(&[("run", Running), ("evac", Evacuating), ("start", Starting), ("crash", Crashed), ("stop", Stopping)]);
    let expected = ["instances/evac:app+logs", "instances/run:app+logs", "crashes/crash:logs", "crashes/start:logs", "droplets/kept:"];
    assert_eq!(left, expected);
}

#[test]
fn ids_are_names() {
    let mut snapshot = image().snapshot(|_, _| String::new());
    snapshot.instances[0].warden_handle = ID.into();
    check_names(&snapshot).unwrap();
    for bad in ["", ".", "..", "a/b", "a\0b", "ä"] {
        snapshot.instances[0].warden_handle = bad.into();
        assert!(check_names(&snapshot).is_err(), "{bad:?}");
    }
}
