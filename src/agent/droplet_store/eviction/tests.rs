use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use dewar_protocol::{DropletSha1, Secret};

use super::super::tests::{ROOMY, adopt, archive, droplet, sha1_of};
use super::super::{DropletStore, Uses};
use crate::test_server::{Answer, Server};
use crate::transfer::{TransferConfig, Transfers};

fn open(dir: &Path, uses: Uses) -> DropletStore {
    let droplets = dir.join("droplets");
    let transfers = Transfers::new(TransferConfig::default()).unwrap();
    DropletStore::open(&droplets, transfers.clone()).unwrap();
    DropletStore::with(&droplets, transfers, uses)
}

async fn evict(store: &DropletStore, sha1: &DropletSha1) -> bool {
    store.condemn(sha1);
    store.evict(sha1).await.unwrap()
}

/// What is in the directory of droplets.
fn entries(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir.join("droplets")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut entries: Vec<_> = entries.filter(|name| name != ".partial").collect();
    entries.sort();
    entries
}

/// A droplet that differs from others of another name.
fn named(name: &str) -> Vec<u8> {
    archive(&[("app/name", name.as_bytes()), ("droplet.wasm", b"\0asm")])
}

#[tokio::test]
async fn an_evicted_droplet_is_gone_and_can_be_had_again() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|_| Answer::ok(droplet())).await;
    let store = open(dir.path(), Uses::without_rest());
    let sha1 = adopt(&store, dir.path(), &droplet()).await;
    store.unpack(&sha1, &dir.path().join("one"), ROOMY).await.unwrap();
    assert!(evict(&store, &sha1).await);
    assert_eq!(entries(dir.path()), Vec::<String>::new());
    evict(&store, &sha1).await;
    assert_eq!(entries(dir.path()), Vec::<String>::new(), "one that is not here is no error");
    assert!(store.unpack(&sha1, &dir.path().join("two"), ROOMY).await.is_err());
    store.fetch(&sha1, Some(&Secret(server.url("/")))).await.unwrap();
    store.unpack(&sha1, &dir.path().join("three"), ROOMY).await.unwrap();
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn what_is_held_used_a_moment_ago_or_reprieved_stays() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), Uses::without_rest());
    let path = dir.path().join("incoming");
    fs::write(&path, droplet()).unwrap();
    let held = store.adopt(&path).await.unwrap();
    let sha1 = held.sha1().clone();
    let again = store.hold(&sha1).await.unwrap().unwrap();
    assert!(!evict(&store, &sha1).await);
    drop(held);
    assert!(!evict(&store, &sha1).await, "somebody else holds it, too");
    drop(again);
    store.condemn(&sha1);
    store.reprieve(&sha1);
    assert!(!store.evict(&sha1).await.unwrap(), "a start has come between");
    assert!(evict(&store, &sha1).await);

    let careful = open(dir.path(), Uses::default());
    let sha1 = adopt(&careful, dir.path(), &droplet()).await;
    assert!(!evict(&careful, &sha1).await, "it was used a moment ago");
    let next_process = open(dir.path(), Uses::default());
    assert!(evict(&next_process, &sha1).await);
}

#[tokio::test]
async fn a_survey_tells_sizes_in_the_order_of_use_also_to_the_next_process() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), Uses::default());
    let mut droplets = Vec::new();
    for (name, age) in [("one", 30), ("two", 20), ("three", 10)] {
        let sha1 = adopt(&store, dir.path(), &named(name)).await;
        let used = SystemTime::now() - Duration::from_secs(age);
        fs::File::open(dir.path().join("droplets").join(sha1.as_str())).unwrap().set_modified(used).unwrap();
        droplets.push(sha1);
    }
    let surveyed = async |store: &DropletStore| store.survey().await.unwrap().into_iter().map(|kept| kept.sha1).collect::<Vec<_>>();
    assert_eq!(surveyed(&store).await, droplets);
    store.unpack(&droplets[0], &dir.path().join("instance"), ROOMY).await.unwrap();
    store.fetch(&droplets[1], None).await.unwrap();
    let used = [droplets[2].clone(), droplets[0].clone(), droplets[1].clone()];
    assert_eq!(surveyed(&store).await, used);
    assert_eq!(surveyed(&open(dir.path(), Uses::default())).await, used);

    drop(store);
    let store = open(dir.path(), Uses::default());
    let size = |kept: Vec<dewar_core::KeptDroplet>| kept.iter().find(|kept| kept.sha1 == droplets[0]).unwrap().size.0;
    let packed = named("one").len() as u64;
    let unpacked = b"one".len() as u64 + 4 + 3 * super::super::ENTRY;
    assert_eq!(size(store.survey().await.unwrap()), packed, "another process has removed the unpacked tree");
    store.unpack(&droplets[0], &dir.path().join("another"), ROOMY).await.unwrap();
    assert_eq!(size(store.survey().await.unwrap()), packed + unpacked);
}

#[tokio::test]
async fn a_survey_removes_what_is_no_droplet() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path(), Uses::default());
    let sha1 = adopt(&first, dir.path(), &droplet()).await;
    let unpacked = first.unpack(&sha1, &dir.path().join("instance"), ROOMY).await.unwrap().wasm;
    drop(first);
    let droplets = dir.path().join("droplets");
    for left in [format!("{sha1}.deleted.1381932000"), format!("{}.deleted.1", "0".repeat(40)), "junk".to_owned()] {
        fs::create_dir_all(droplets.join(left).join("deep/er")).unwrap();
    }
    fs::write(droplets.join("file"), "").unwrap();
    fs::write(droplets.join(".partial/on-its-way"), "").unwrap();
    let store = DropletStore::with(&droplets, Transfers::new(TransferConfig::default()).unwrap(), Uses::default());
    store.survey().await.unwrap();
    assert_eq!(entries(dir.path()), [sha1.to_string()], "nothing is renamed once more, all of it is gone");
    assert!(!unpacked.exists(), "nobody would trust what another process has unpacked");
    assert!(droplets.join(".partial/on-its-way").exists());
    store.unpack(&sha1, &dir.path().join("again"), ROOMY).await.unwrap();
    store.survey().await.unwrap();
    assert!(unpacked.exists(), "what this process has unpacked stays");
}

#[tokio::test]
async fn a_droplet_that_cannot_be_moved_away_is_named_and_stays_what_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), Uses::without_rest());
    let sha1 = adopt(&store, dir.path(), &droplet()).await;
    // A file in the place of the directory: nothing below it can be renamed.
    let (droplets, away) = (dir.path().join("droplets"), dir.path().join("away"));
    fs::rename(&droplets, &away).unwrap();
    fs::write(&droplets, "").unwrap();
    store.condemn(&sha1);
    let error = store.evict(&sha1).await.unwrap_err().to_string();
    assert!(error.contains(sha1.as_str()), "{error}");
    fs::remove_file(&droplets).unwrap();
    fs::rename(&away, &droplets).unwrap();
    store.unpack(&sha1, &dir.path().join("one"), ROOMY).await.unwrap();
    assert!(evict(&store, &sha1).await, "it is tried again with the next pass");
}

/// In the order of the driver: nothing is condemned that anybody needs, and a start takes the droplet back before it is fetched.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_start_ever_misses_a_droplet_that_is_evicted_all_the_time() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|_| Answer::ok(droplet())).await;
    let store = open(dir.path(), Uses::without_rest());
    let (sha1, uri) = (sha1_of(&droplet()), Secret(server.url("/")));
    let mut evictions = tokio::task::JoinSet::new();
    let (mut evicted, mut spared) = (0, 0);
    // Until each of both has come first.
    for round in 0.. {
        while let Some(gone) = evictions.try_join_next() {
            *(if gone.unwrap() { &mut evicted } else { &mut spared }) += 1;
        }
        if round >= 40 && evicted > 0 && spared > 0 {
            break;
        }
        assert!(round < 10_000, "{evicted} droplets were evicted, {spared} spared: there was no race");
        // Nobody uses it now.
        store.condemn(&sha1);
        let (evicting, condemned) = (store.clone(), sha1.clone());
        evictions.spawn(async move { evicting.evict(&condemned).await.unwrap() });
        // A start comes at once, or when the eviction has got further.
        if round % 2 == 0 {
            tokio::time::sleep(Duration::from_micros(round % 40 * 50)).await;
        }
        let starts = (0..2).map(|number| {
            store.reprieve(&sha1);
            let (store, sha1, uri) = (store.clone(), sha1.clone(), uri.clone());
            let instance = dir.path().join(format!("{round}-{number}"));
            tokio::spawn(async move {
                store.fetch(&sha1, Some(&uri)).await.unwrap();
                store.unpack(&sha1, &instance, ROOMY).await.unwrap_or_else(|error| panic!("round {round}: {error}"));
            })
        });
        for start in starts.collect::<Vec<_>>() {
            start.await.unwrap();
        }
    }
    // Whoever still is under way must not fail either.
    evictions.join_all().await;
}
