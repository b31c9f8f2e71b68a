use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use dewar_protocol::AppId;

use super::BuildpackCaches;
use crate::staging::buildpacks::Origin;

const WASM: Origin = Origin::BuiltIn("wasm");

fn content(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_cache_comes_back_to_its_app_and_buildpack_only() {
    let dir = tempfile::tempdir().unwrap();
    let work = tempfile::tempdir().unwrap();
    let caches = BuildpackCaches::open(dir.path().join("caches")).unwrap();
    let place = |number: u32| work.path().join(number.to_string());
    caches.take(&AppId::from("app"), &WASM, &place(1)).unwrap();
    assert!(content(&place(1)).is_empty(), "there is always a directory");
    fs::write(place(1).join("kept"), "1").unwrap();
    caches.keep(&AppId::from("app"), &WASM, &place(1));
    caches.take(&AppId::from("other"), &WASM, &place(2)).unwrap();
    caches.take(&AppId::from("app"), &Origin::BuiltIn("static"), &place(3)).unwrap();
    caches.take(&AppId::from("app"), &Origin::Admin("wasm".to_owned()), &place(4)).unwrap();
    for number in 2..5 {
        assert!(content(&place(number)).is_empty());
    }
    caches.take(&AppId::from("app"), &WASM, &place(5)).unwrap();
    assert_eq!(content(&place(5)), ["kept"]);
    caches.take(&AppId::from("app"), &WASM, &place(6)).unwrap();
    assert!(content(&place(6)).is_empty(), "a second staging at the same time has its own");
    fs::write(place(6).join("newer"), "2").unwrap();
    caches.keep(&AppId::from("app"), &WASM, &place(6));
    caches.keep(&AppId::from("app"), &WASM, &place(5));
    caches.take(&AppId::from("app"), &WASM, &place(7)).unwrap();
    assert_eq!(content(&place(7)), ["kept"], "the last one stays, whole");
}

#[test]
fn no_cache_is_seen_half_deleted() {
    const FILES: usize = 2000;
    let dir = tempfile::tempdir().unwrap();
    let work = tempfile::tempdir().unwrap();
    let caches = BuildpackCaches { dir: dir.path().to_owned(), max_caches: 0, max_bytes: 1 << 20 };
    let cache = caches.place(&AppId::from("app"), &WASM);
    for round in 0..3 {
        fs::create_dir(&cache).unwrap();
        (0..FILES).for_each(|file| fs::write(cache.join(file.to_string()), "").unwrap());
        let into = work.path().join(round.to_string());
        std::thread::scope(|scope| {
            let trimming = scope.spawn(|| caches.trim());
            while fs::read_dir(&cache).is_ok_and(|files| files.count() == FILES) {}
            caches.take(&AppId::from("app"), &WASM, &into).unwrap();
            assert_eq!(content(&into).len(), 0, "round {round}");
            trimming.join().unwrap().unwrap();
        });
        assert!(content(dir.path()).is_empty());
    }
}

#[test]
fn what_a_killed_process_did_not_get_to_delete_is_deleted() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join(".deleted.1/deep/er")).unwrap();
    fs::create_dir_all(dir.path().join("cache")).unwrap();
    let caches = BuildpackCaches { dir: dir.path().to_owned(), max_caches: 1, max_bytes: 1 << 20 };
    caches.trim().unwrap();
    assert_eq!(content(dir.path()), [".deleted.1", "cache"], "what is being deleted takes no cache's place");
    BuildpackCaches::open(dir.path().to_owned()).unwrap();
    assert_eq!(content(dir.path()), ["cache"]);
}

#[test]
fn caches_are_bounded_in_size_and_number() {
    let dir = tempfile::tempdir().unwrap();
    let work = tempfile::tempdir().unwrap();
    let caches = BuildpackCaches { dir: dir.path().to_owned(), max_caches: 2, max_bytes: 1 << 20 };
    let keep = |app: &str, bytes: usize| {
        let place = work.path().join(app);
        fs::create_dir(&place).unwrap();
        fs::write(place.join("file"), vec![0; bytes]).unwrap();
        caches.keep(&AppId::from(app), &WASM, &place);
    };
    keep("large", (1 << 20) + 1);
    assert!(content(dir.path()).is_empty());
    for (age, app) in [(30, "oldest"), (20, "older")] {
        keep(app, 1);
        let place = caches.place(&AppId::from(app), &WASM);
        fs::File::open(place).unwrap().set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
    }
    keep("new", 1);
    assert_eq!(content(dir.path()).len(), 2);
    assert!(!caches.place(&AppId::from("oldest"), &WASM).exists());
}
