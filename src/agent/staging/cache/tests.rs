use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, SystemTime};

use dewar_core::StagedDroplet;
use dewar_protocol::{DropletSha1, Fingerprint};

use super::{Outcome, OutcomeCache};

fn fingerprint(number: u32) -> Fingerprint {
    Fingerprint::parse(&format!("{number:064x}")).unwrap()
}

fn droplet() -> StagedDroplet {
    StagedDroplet {
        sha1: DropletSha1::parse(&"a".repeat(40)).unwrap(),
        detected_buildpack: Some("Static files".to_owned()),
        buildpack_key: Some("key_1".to_owned()),
        start_command: None,
        process_types: BTreeMap::from([("web".to_owned(), "run \"it\"".to_owned())]),
    }
}

#[test]
fn an_outcome_is_found_again_by_another_process() {
    let dir = tempfile::tempdir().unwrap();
    let cache = OutcomeCache::open(dir.path().join("cache")).unwrap();
    assert_eq!(cache.get(&fingerprint(1)), None);
    cache.put(&fingerprint(1), &Outcome::new(&droplet(), 1_700_000_000));
    let again = OutcomeCache::open(dir.path().join("cache")).unwrap();
    let outcome = again.get(&fingerprint(1)).unwrap();
    assert_eq!(outcome.staged_at, 1_700_000_000);
    assert_eq!(outcome.into_droplet(), droplet());
    assert_eq!(again.get(&fingerprint(2)), None);
}

#[test]
fn an_entry_that_is_none_is_removed_and_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let cache = OutcomeCache::open(dir.path().to_owned()).unwrap();
    let path = dir.path().join(fingerprint(1).as_str());
    let good = {
        cache.put(&fingerprint(1), &Outcome::new(&droplet(), 1));
        fs::read_to_string(&path).unwrap()
    };
    let huge = good.replace("Static files", &"x".repeat(300 << 10));
    for bad in ["", "{", "null", &good[..good.len() - 1], &good.replace("aaaa", "../."), &huge] {
        fs::write(&path, bad).unwrap();
        assert_eq!(cache.get(&fingerprint(1)), None, "{}", &bad[..bad.len().min(80)]);
        assert!(!path.exists());
    }
}

#[test]
fn the_entry_that_was_not_used_for_longest_goes() {
    let dir = tempfile::tempdir().unwrap();
    let cache = OutcomeCache { dir: dir.path().to_owned(), max_entries: 3 };
    for number in 0..3 {
        cache.put(&fingerprint(number), &Outcome::new(&droplet(), 1));
        let file = fs::File::open(dir.path().join(fingerprint(number).as_str())).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(100 - u64::from(number))).unwrap();
    }
    assert!(cache.get(&fingerprint(0)).is_some(), "and by being used it becomes the newest");
    cache.put(&fingerprint(3), &Outcome::new(&droplet(), 1));
    let left: Vec<bool> = (0..4).map(|number| cache.get(&fingerprint(number)).is_some()).collect();
    assert_eq!(left, [true, false, true, true]);
}
