use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dewar_protocol::{Bytes, DropletSha1, Secret};
use dewar_sandbox::World;
use flate2::write::GzEncoder;

use super::{DropletStore, InstanceLimits};
use crate::staging::StagingInfo;
use crate::test_server::{Answer, Server};
use crate::transfer::{TransferConfig, Transfers};

pub(super) const ROOMY: InstanceLimits = InstanceLimits { disk: Bytes(1 << 20), inodes: 100 };

fn open(dir: &Path) -> DropletStore {
    let config = TransferConfig { pause: Duration::from_millis(1), ..TransferConfig::default() };
    DropletStore::open(&dir.join("droplets"), Transfers::new(config).unwrap()).unwrap()
}

pub(super) fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        if path.ends_with('/') {
            header.set_entry_type(tar::EntryType::Directory);
        }
        archive.append_data(&mut header, path, *content).unwrap();
    }
    archive.into_inner().unwrap().finish().unwrap()
}

pub(super) fn droplet() -> Vec<u8> {
    let info = b"start_command: run\nworld: http\neffective_procfile:\n  web: run\n";
    archive(&[("app/index.html", b"<p>"), ("app/sub/x", b"x"), ("droplet.wasm", b"\0asm"), ("logs/", b""), ("staging_info.yml", info)])
}

/// Puts an archive where a test can adopt it.
fn place(dir: &Path, archive: &[u8]) -> PathBuf {
    let path = dir.join("incoming");
    fs::write(&path, archive).unwrap();
    path
}

pub(super) async fn adopt(store: &DropletStore, dir: &Path, archive: &[u8]) -> DropletSha1 {
    store.adopt(&place(dir, archive)).await.unwrap().sha1().clone()
}

pub(super) fn sha1_of(bytes: &[u8]) -> DropletSha1 {
    use sha1::{Digest as _, Sha1};
    crate::digest::sha1(Sha1::new_with_prefix(bytes))
}

#[tokio::test]
async fn a_droplet_is_fetched_once_however_many_want_it() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|_| Answer::ok(droplet())).await;
    let store = open(dir.path());
    let (sha1, uri) = (sha1_of(&droplet()), Secret(server.url("/droplet")));
    let wants = (0..8).map(|_| store.fetch(&sha1, Some(&uri)));
    futures::future::try_join_all(wants).await.unwrap();
    store.fetch(&sha1, None).await.unwrap();
    assert_eq!(server.requests().len(), 1);
    assert_eq!(fs::read(dir.path().join(format!("droplets/{sha1}/droplet.tgz"))).unwrap(), droplet());
    open(dir.path()).fetch(&sha1, None).await.unwrap();
}

#[tokio::test]
async fn a_droplet_with_another_digest_is_refused_and_nothing_stays() {
    let dir = tempfile::tempdir().unwrap();
    let server =
        Server::start(|request| if request.target == "/404" { Answer::status(404, "") } else { Answer::ok("something else") }).await;
    let store = open(dir.path());
    let sha1 = sha1_of(&droplet());
    let fetch = async |path: &str| {
        let uri = Secret(format!("http://up:secret@{}{path}", server.address));
        store.fetch(&sha1, Some(&uri)).await.unwrap_err().to_string()
    };
    assert_eq!(fetch("/droplet").await, "Error downloading: SHA1 mismatch");
    assert!(fetch("/404").await.starts_with("Error downloading: HTTP status: 404 "));
    assert!(store.fetch(&sha1, None).await.unwrap_err().to_string().contains("no URL"));
    let left: Vec<_> = walkdir::WalkDir::new(dir.path().join("droplets"))
        .into_iter()
        .filter(|entry| entry.as_ref().unwrap().file_type().is_file())
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn a_blobstore_that_misbehaves_leaves_nothing_and_the_next_fetch_succeeds() {
    let dir = tempfile::tempdir().unwrap();
    let droplet = droplet();
    let (half, mut altered) = (droplet[..droplet.len() / 2].to_vec(), droplet.clone());
    altered[20] ^= 1;
    let transport = "Error downloading: Response status: unknown, Error: ";
    let cases = [
        (Answer::Cut { announced: droplet.len(), body: half.clone() }, transport),
        (Answer::Close, transport),
        (Answer::ok(half), "Error downloading: SHA1 mismatch"),
        (Answer::ok(altered), "Error downloading: SHA1 mismatch"),
        (Answer::ok(""), "Error downloading: SHA1 mismatch"),
        (Answer::status(500, ""), "Error downloading: HTTP status: 500 "),
        (Answer::status(206, droplet.clone()), "Error downloading: HTTP status: 206 "),
    ];
    let slow = [
        (Answer::Stall { announced: droplet.len(), body: droplet[..droplet.len() / 2].to_vec() }, transport),
        (Answer::Drip { body: droplet.clone(), pause: 200 }, transport),
        (Answer::Hang, transport),
    ];
    let patient = TransferConfig { pause: Duration::from_millis(1), ..TransferConfig::default() };
    let hasty = TransferConfig { inactivity_timeout: Duration::from_millis(300), total_timeout: Duration::from_secs(2), ..patient };
    let store = |config| DropletStore::open(&dir.path().join("droplets"), Transfers::new(config).unwrap()).unwrap();
    let sha1 = sha1_of(&droplet);
    let cases = cases.map(|(answer, expected)| (&patient, answer, expected)).into_iter();
    for (config, answer, expected) in cases.chain(slow.map(|(answer, expected)| (&hasty, answer, expected))) {
        let store = store(*config);
        let shown = format!("{answer:?}");
        let shown = &shown[..shown.len().min(40)];
        let server = Server::start(move |_| answer.clone()).await;
        let uri = Secret(format!("http://up:secret@{}/droplet?sig=secret", server.address));
        let error = store.fetch(&sha1, Some(&uri)).await.unwrap_err().to_string();
        assert!(error.starts_with(expected) && !error.contains("secret"), "{shown}: {error}");
        assert!(!store.archive(&sha1).exists() && store.hold(&sha1).await.unwrap().is_none(), "{shown}");
        assert_eq!(fs::read_dir(dir.path().join("droplets/.partial")).unwrap().count(), 0, "{shown}: nothing stays");
    }
    let (good, store) = (Server::start(move |_| Answer::ok(droplet.clone())).await, store(patient));
    store.fetch(&sha1, Some(&Secret(good.url("/")))).await.unwrap();
    assert!(store.hold(&sha1).await.unwrap().is_some());
}

#[tokio::test]
async fn a_droplet_that_was_changed_on_disk_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|_| Answer::ok(droplet())).await;
    let store = open(dir.path());
    let sha1 = adopt(&store, dir.path(), &droplet()).await;
    store.unpack(&sha1, &dir.path().join("one"), ROOMY).await.unwrap();
    let path = store.archive(&sha1);
    let mut changed = droplet();
    *changed.last_mut().unwrap() ^= 1;
    fs::write(&path, &changed).unwrap();
    assert!(store.hold(&sha1).await.unwrap().is_none());
    assert!(!path.exists());
    let error = store.unpack(&sha1, &dir.path().join("two"), ROOMY).await.unwrap_err();
    assert_eq!(error.to_string(), format!("unpack droplet {sha1}: it is not here"));
    store.fetch(&sha1, Some(&Secret(server.url("/")))).await.unwrap();
    store.unpack(&sha1, &dir.path().join("three"), ROOMY).await.unwrap();
}

#[tokio::test]
async fn an_archive_that_is_moved_in_is_there_under_its_digest() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let sha1 = adopt(&store, dir.path(), &droplet()).await;
    assert_eq!(sha1, sha1_of(&droplet()));
    assert!(store.hold(&sha1).await.unwrap().is_some());
    assert_eq!(adopt(&store, dir.path(), &droplet()).await, sha1, "a second time changes nothing");
}

#[tokio::test]
async fn instances_get_private_copies_and_share_the_component() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let sha1 = adopt(&store, dir.path(), &droplet()).await;
    let (one, two) = (dir.path().join("instances/one"), dir.path().join("instances/two"));
    let unpacked = store.unpack(&sha1, &one, ROOMY).await.unwrap();
    assert_eq!(fs::read(one.join("app/sub/x")).unwrap(), b"x");
    assert!(one.join("logs").is_dir() && one.join("tmp").is_dir() && !one.join("droplet.wasm").exists());
    assert_eq!(
        unpacked.info,
        StagingInfo {
            start_command: Some("run".to_owned()),
            effective_procfile: BTreeMap::from([("web".to_owned(), "run".to_owned())]),
            world: Some(World::Http),
            ..StagingInfo::default()
        }
    );
    assert_eq!(fs::read(&unpacked.wasm).unwrap(), b"\0asm");
    fs::write(one.join("app/sub/x"), "changed").unwrap();
    fs::write(one.join("app/new"), "new").unwrap();
    let again = store.unpack(&sha1, &two, ROOMY).await.unwrap();
    assert_eq!(again, unpacked);
    assert_eq!(fs::read(two.join("app/sub/x")).unwrap(), b"x");
    assert!(!two.join("app/new").exists());
}

#[tokio::test]
async fn copies_have_links_and_permissions_and_are_whole() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut droplet = tar::Builder::new(GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    for (path, mode) in [("app/bin/run", 0o755), ("droplet.wasm", 0o644)] {
        let mut header = tar::Header::new_gnu();
        header.set_mode(mode);
        header.set_size(0);
        droplet.append_data(&mut header, path, &b""[..]).unwrap();
    }
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    droplet.append_link(&mut header, "app/link", "bin/run").unwrap();
    let droplet = droplet.into_inner().unwrap().finish().unwrap();
    let sha1 = adopt(&store, dir.path(), &droplet).await;
    let one = dir.path().join("one");
    let unpacked = store.unpack(&sha1, &one, ROOMY).await.unwrap();
    assert_eq!(fs::read_link(one.join("app/link")).unwrap(), Path::new("bin/run"));
    assert_eq!(fs::metadata(one.join("app/link")).unwrap().permissions().mode() & 0o777, 0o755);
    fs::remove_file(unpacked.wasm.parent().unwrap().join("app/link")).unwrap();
    let error = store.unpack(&sha1, &dir.path().join("two"), ROOMY).await.unwrap_err().to_string();
    assert!(error.ends_with("it is not what it was when it was unpacked"), "{error}");
}

#[tokio::test]
async fn a_copy_that_was_cut_off_is_not_taken_for_an_instances_files() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let sha1 = adopt(&store, dir.path(), &droplet()).await;
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    store.unpack(&sha1, &one, ROOMY).await.unwrap();
    let last = dir.path().join(format!("droplets/{sha1}/unpacked/app/sub/x"));
    fs::rename(&last, dir.path().join("x")).unwrap();
    store.unpack(&sha1, &two, ROOMY).await.unwrap_err();
    assert!(two.join("app/index.html").exists() && store.reopen(&sha1, &two).await.is_none());
    assert!(store.reopen(&sha1, &one).await.is_some());
    fs::rename(dir.path().join("x"), &last).unwrap();
    store.unpack_again(&sha1, &two, ROOMY).await.unwrap();
    assert_eq!(fs::read(two.join("app/sub/x")).unwrap(), b"x");
}

#[tokio::test]
async fn many_starts_at_once_unpack_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let sha1 = adopt(&store, dir.path(), &droplet()).await;
    let starts = (0..16).map(|number| {
        let (store, sha1, dir) = (store.clone(), sha1.clone(), dir.path().join(format!("i/{number}")));
        async move { store.unpack(&sha1, &dir, ROOMY).await.map(|droplet| droplet.wasm) }
    });
    let components = futures::future::try_join_all(starts).await.unwrap();
    assert!(components.iter().all(|path| path == &components[0] && path.is_file()));
    assert_eq!(fs::read_dir(dir.path().join("droplets/.partial")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_tree_that_another_process_left_is_not_trusted() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let sha1 = adopt(&store, dir.path(), &droplet()).await;
    let unpacked = store.unpack(&sha1, &dir.path().join("one"), ROOMY).await.unwrap();
    drop(store);
    fs::write(&unpacked.wasm, "half").unwrap();
    let again = open(dir.path()).unpack(&sha1, &dir.path().join("two"), ROOMY).await.unwrap();
    assert_eq!(fs::read(again.wasm).unwrap(), b"\0asm");
}

#[tokio::test]
async fn an_app_larger_than_the_quota_is_refused_and_fits_a_larger_one() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let big = archive(&[("app/big", &[7; 2000]), ("droplet.wasm", &[0; 5000])]);
    let sha1 = adopt(&store, dir.path(), &big).await;
    let limits = |disk, inodes| InstanceLimits { disk: Bytes(disk), inodes };
    for (number, refused) in [limits(1999, 10), limits(2000, 0)].into_iter().enumerate() {
        let error = store.unpack(&sha1, &dir.path().join(number.to_string()), refused).await.unwrap_err();
        let expected = format!(
            "unpack droplet {sha1}: its app has 2000 bytes in 1 files and directories, and the instance may have {} in {}",
            refused.disk.0, refused.inodes
        );
        assert_eq!(error.to_string(), expected);
    }
    store.unpack(&sha1, &dir.path().join("fits"), limits(2000, 1)).await.unwrap();
}

#[tokio::test]
async fn hostile_droplets_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut evil = tar::Builder::new(GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    let mut header = tar::Header::new_gnu();
    header.as_gnu_mut().unwrap().name[..13].copy_from_slice(b"app/../../out");
    header.set_mode(0o644);
    header.set_size(0);
    header.set_cksum();
    evil.append(&header, &b""[..]).unwrap();
    let evil = evil.into_inner().unwrap().finish().unwrap();
    let mut bomb = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut header = tar::Header::new_gnu();
    header.set_path("app/zeros").unwrap();
    header.set_mode(0o644);
    header.set_size(64 << 20);
    header.set_cksum();
    bomb.write_all(header.as_bytes()).unwrap();
    bomb.write_all(&vec![0; 64 << 20]).unwrap();
    for (archive, expected) in [
        (evil, "failed to take entry \"app/../../out\": its path leads out of the tree"),
        (bomb.finish().unwrap(), "this looks like a bomb"),
        (b"no archive".to_vec(), "failed to recognise an archive"),
        (archive(&[("app/x", b"")]), "there is no droplet.wasm in it"),
        (archive(&[("droplet.wasm/x", b"")]), "there is no droplet.wasm in it"),
        (archive(&[("droplet.wasm", b""), ("staging_info.yml", b"world: moon")]), "unknown world"),
    ] {
        let sha1 = adopt(&store, dir.path(), &archive).await;
        let error = store.unpack(&sha1, &dir.path().join("instance"), ROOMY).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(!dir.path().join("instance").exists());
        assert_eq!(fs::read_dir(dir.path().join("droplets/.partial")).unwrap().count(), 0, "nothing stays");
    }
}

#[tokio::test]
async fn what_was_not_complete_is_removed_when_the_store_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    fs::write(dir.path().join("droplets/.partial/rest"), "rest").unwrap();
    drop(open(dir.path()));
    assert_eq!(fs::read_dir(dir.path().join("droplets/.partial")).unwrap().count(), 0);
}
