use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

const DROPLET: &str = "2fd4e1c67a2d28fced849ee1bb76e7391b93eb12";

fn name() -> AppName {
    "hello".parse().unwrap()
}

fn record() -> AppRecord {
    AppRecord {
        name: name(),
        id: AppId::from("guid"),
        release: Release {
            version: "v1".to_owned(),
            droplet: DropletSha1::parse(DROPLET).unwrap(),
            detected_buildpack: Some("wasm".to_owned()),
            detected_start_command: None,
        },
        phase: Phase::Started,
        instances: 2,
        uris: vec!["hello.localhost".to_owned()],
        memory: Mib(64),
        disk: Mib(64),
        environment: vec![Secret("PASSWORD=hunter2".to_owned())],
        start_command: None,
        health_check: None,
        buildpack: None,
        package: PathBuf::from("/src/hello"),
    }
}

fn saved(home: &Path) -> (Records, PathBuf) {
    let records = Records::new(home, "127.0.0.1_4222");
    records.lock(&name()).unwrap().save(&record()).unwrap();
    (records, home.join("apps/127.0.0.1_4222/hello/app.json"))
}

#[test]
fn a_record_comes_back_as_it_was_and_only_the_owner_may_read_it() {
    let home = tempfile::tempdir().unwrap();
    let (records, path) = saved(home.path());
    assert_eq!(records.read(&name()).unwrap(), Some(record()));
    assert_eq!(records.all().unwrap(), [record()]);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(fs::read_to_string(&path).unwrap().contains("hunter2"));
    assert!(!format!("{:?}", record()).contains("hunter2"), "the environment does not reach a log");
}

#[test]
fn another_bus_has_other_apps() {
    let home = tempfile::tempdir().unwrap();
    saved(home.path());
    let other = Records::new(home.path(), "10.0.0.1_4222");
    assert_eq!(other.read(&name()).unwrap(), None);
    assert_eq!(other.all().unwrap(), []);
}

#[test]
fn a_torn_or_strange_record_is_refused_by_name_and_left_alone() {
    let home = tempfile::tempdir().unwrap();
    let (records, path) = saved(home.path());
    let whole = fs::read_to_string(&path).unwrap();
    for torn in ["", "{", &whole[..whole.len() / 2], "{\"format\": 1}", "{\"format\": 1, \"app\": {\"name\": \"../x\"}}", "[]"] {
        fs::write(&path, torn).unwrap();
        for error in [records.read(&name()).unwrap_err(), records.all().unwrap_err()] {
            assert!(matches!(error, RecordError::Damaged { .. }), "{torn:?}: {error}");
            assert!(error.to_string().contains("hello/app.json"), "{error}");
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), torn);
    }
}

#[test]
fn a_record_of_the_future_is_refused_and_left_alone() {
    let home = tempfile::tempdir().unwrap();
    let (records, path) = saved(home.path());
    fs::write(&path, "{\"format\": 2, \"apps\": [\"something else\"]}").unwrap();
    let error = records.read(&name()).unwrap_err();
    assert!(matches!(error, RecordError::TooNew { found: 2, .. }), "{error}");
    assert!(fs::read_to_string(&path).unwrap().contains("something else"));
}

#[test]
fn the_second_command_on_an_app_is_told_at_once() {
    let home = tempfile::tempdir().unwrap();
    let records = Records::new(home.path(), "bus");
    let first = records.lock(&name()).unwrap();
    assert!(matches!(records.lock(&name()), Err(RecordError::Busy(busy)) if busy == name()));
    records.lock(&"other".parse().unwrap()).unwrap();
    drop(first);
    records.lock(&name()).unwrap();
}

#[test]
fn only_the_referenced_droplet_is_kept_and_leftovers_go() {
    let home = tempfile::tempdir().unwrap();
    let records = Records::new(home.path(), "bus");
    let app = records.lock(&name()).unwrap();
    app.prepare().unwrap();
    let old = DropletSha1::parse(&"0".repeat(40)).unwrap();
    let new = record().release.droplet;
    fs::write(app.droplet_path(&old), "old").unwrap();
    fs::write(app.droplet_path(&new), "new").unwrap();
    app.save(&record()).unwrap();
    assert!(!app.droplet_path(&old).exists() && app.droplet_path(&new).exists());

    let leftover = app.droplet_path(&new).parent().unwrap().join(".tmpAbCdEf");
    let torn_record = home.path().join("apps/bus/hello/.tmpXyZ");
    fs::write(&leftover, "half").unwrap();
    fs::write(&torn_record, "half").unwrap();
    app.prepare().unwrap();
    assert!(!leftover.exists() && !torn_record.exists() && app.droplet_path(&new).exists());

    app.forget().unwrap();
    assert_eq!(records.read(&name()).unwrap(), None);
    assert!(!home.path().join("apps/bus/hello").exists());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases / 2, ..ProptestConfig::default() })]

    /// A record that was damaged on disk is read as a record or refused with its path; never anything else, and it stays where it is.
    #[test]
    fn no_damage_to_a_record_is_more_than_an_error(
        damages in prop::collection::vec((any::<Index>(), 0..20_usize, prop::collection::vec(any::<u8>(), 0..8)), 1..4),
    ) {
        let home = tempfile::tempdir().unwrap();
        let (records, path) = saved(home.path());
        let mut bytes = fs::read(&path).unwrap();
        for (at, cut, put) in damages {
            let at = at.index(bytes.len().max(1)).min(bytes.len());
            let end = (at + cut).min(bytes.len());
            drop(bytes.splice(at..end, put));
        }
        fs::write(&path, &bytes).unwrap();
        match records.read(&name()) {
            Ok(record) => prop_assert!(record.is_some()),
            Err(error) => {
                let told = error.to_string();
                prop_assert!(told.contains("app.json"), "{told}");
                prop_assert!(!told.contains("hunter2"), "{told}");
            }
        }
        prop_assert_eq!(fs::read(&path).unwrap(), bytes);
    }
}
