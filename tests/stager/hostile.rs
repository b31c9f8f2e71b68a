//! Packages, buildpacks, components and controllers that mean no good, or do badly.

use std::collections::BTreeSet;
use std::io::{Cursor, Write as _};
use std::process::Command;
use std::time::{Duration, Instant};

use dewar_protocol::StagingFailure;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::test_server::Answer;
use crate::world::{PATIENCE, World, guest, orders, sandboxes, zip};

pub(crate) async fn packages_that_are_none() {
    let world = World::new().await;
    let mut bomb = zip::ZipWriter::new(Cursor::new(Vec::new()));
    bomb.start_file("zeros", zip::write::SimpleFileOptions::default()).unwrap();
    bomb.write_all(&vec![0; 64 << 20]).unwrap();
    let many: Vec<String> = (0..1001).map(|number| format!("{number}")).collect();
    let many: Vec<(&str, &[u8])> = many.iter().map(|name| (name.as_str(), &b""[..])).collect();
    for (package, expected) in [
        (b"not a zip".to_vec(), "failed to recognise an archive: neither zip nor tar nor tar.gz"),
        (zip(&[("../evil", b"x")]), "failed to take entry \"../evil\": its path leads out of the tree"),
        (zip(&[("/etc/evil", b"x")]), "failed to take entry \"/etc/evil\": its path is absolute"),
        (bomb.finish().unwrap().into_inner(), "this looks like a bomb"),
        (zip(&many), "failed to take more than 1000 files and directories"),
    ] {
        world.serve("/package", package);
        let (error, _) = world.failed(&world.message()).await;
        assert!(error.message.starts_with("Error staging: app package: failed to "), "{}", error.message);
        assert!(error.message.contains(expected), "{}", error.message);
        assert_eq!(error.info.unwrap().kind, StagingFailure::StagingError);
    }
    assert_eq!(world.posted("/droplet"), Vec::<Vec<u8>>::new());
}

pub(crate) async fn no_buildpack_detects_the_app() {
    let world = World::new().await;
    world.serve("/package", zip(&[("main.py", b"print()")]));
    let (error, _) = world.failed(&world.message()).await;
    assert_eq!(error.message, "An application could not be detected by any available buildpack");
    assert_eq!(error.info.unwrap().kind, StagingFailure::NoAppDetectedError);
}

pub(crate) async fn buildpacks_that_fail() {
    let world = World::new().await;
    for (orders, kind, texts) in [
        ("compile: refuse no Gemfile\n", StagingFailure::BuildpackCompileFailed, &["Buildpack compilation step failed: no Gemfile"][..]),
        ("compile: trap\n", StagingFailure::BuildpackCompileFailed, &["Buildpack compilation step failed: failed to run the buildpack: "]),
        ("compile: hog\n", StagingFailure::BuildpackCompileFailed, &["Buildpack compilation step failed: ", "memory"]),
        ("compile: fill /droplet/big\n", StagingFailure::BuildpackCompileFailed, &["Buildpack compilation step failed: ", "quota"]),
        ("compile: fill-inodes /droplet\n", StagingFailure::BuildpackCompileFailed, &["Buildpack compilation step failed: ", "quota"]),
        ("compile: fill /cache/big\n", StagingFailure::BuildpackCompileFailed, &["Buildpack compilation step failed: ", "quota"]),
        ("compile: exit 7\n", StagingFailure::BuildpackCompileFailed, &["Buildpack compilation step failed: ", "exited with status 7"]),
        ("release: refuse no idea\n", StagingFailure::BuildpackReleaseFailed, &["Release info failed:\nno idea"]),
        ("release: trap\n", StagingFailure::BuildpackReleaseFailed, &["Release info failed:\nfailed to run the buildpack: "]),
    ] {
        let (error, _) = world.failed(&world.driven(orders)).await;
        assert!(texts.iter().all(|text| error.message.contains(text)), "{orders} {}", error.message);
        assert_eq!(error.info.unwrap().kind, kind, "{orders}");
    }
    for step in ["compile", "release"] {
        let (error, log) = world.failed(&world.driven(&format!("{step}: refuse {}\n", "ü".repeat(400_000)))).await;
        assert!((16_000..17_000).contains(&error.message.len()), "{} bytes", error.message.len());
        assert_eq!(error.info.unwrap().message, error.message);
        assert!(log.lines().iter().all(|line| line.len() < 20_000));
    }
    let (error, _) = world.failed(&world.driven(&format!("release: process web {}\n", "x".repeat(40_000)))).await;
    assert!(error.message.starts_with("The droplet is of no use: its staging_info.yml "), "{}", error.message);
    assert_eq!(error.info.unwrap().kind, StagingFailure::StagingError);
    assert_eq!(world.posted("/droplet"), Vec::<Vec<u8>>::new(), "what failed is not uploaded");
    let mut message = world.driven("");
    world.serve("/no-buildpack", guest("tests/command-driver"));
    message["properties"]["buildpack"] = json!(world.controller.url("/no-buildpack"));
    let (error, _) = world.failed(&message).await;
    let expected = format!("Buildpack {} is of no use: failed to ", world.controller.url("/no-buildpack"));
    assert!(error.message.starts_with(&expected), "{}", error.message);
}

pub(crate) async fn buildpacks_that_never_end() {
    let world = World::lasting(Duration::from_secs(3)).await;
    // Compiling the buildpack itself is not what this is about.
    sandboxes().buildpack(&guest("tests/buildpack-driver")).await.unwrap();
    for orders in ["compile: spin\n", "compile: sleep 3600000\n", "release: spin\n"] {
        let began = Instant::now();
        let (error, _) = world.failed(&world.driven(orders)).await;
        assert_eq!(error.message, "Staging in container timed out");
        assert_eq!(error.info, None);
        assert!(began.elapsed() < Duration::from_secs(30), "{orders}");
    }
}

pub(crate) async fn components_that_cannot_run() {
    let world = World::new().await;
    for (component, expected) in [
        ("tests/does-not-validate", "failed to compile component: "),
        ("tests/unknown-import", "failed to link component: example:secrets/vault@1.0.0 is not granted"),
        ("tests/no-known-world", "failed to find a world to run: "),
        ("tests/core-without-exports", "failed to compile component: "),
    ] {
        let message = world.driven("");
        world.serve("/package", zip(&[("orders", b""), ("app.wasm", &guest(component))]));
        let (error, _) = world.failed(&message).await;
        assert!(error.message.starts_with(&format!("The droplet is of no use: {expected}")), "{component}: {}", error.message);
        assert_eq!(error.info.unwrap().kind, StagingFailure::StagingError);
    }
    for (orders, expected) in [
        ("compile: nothing\n", "The buildpack wrote no droplet.wasm"),
        ("compile: garbage\n", "The droplet is of no use: failed to compile component: "),
        ("release: world http\n", "The droplet is of no use: the buildpack wants it run as http, which it does not export"),
    ] {
        let (error, _) = world.failed(&world.driven(orders)).await;
        assert!(error.message.starts_with(expected), "{orders} {}", error.message);
    }
    assert_eq!(world.names("droplets"), [".partial"], "none of them was kept");
}

pub(crate) async fn uploads_that_are_refused() {
    let world = World::new().await;
    let message = world.driven("compile: print compiled\n");
    for (answer, expected) in [
        (Answer::status(500, "oops"), "Error uploading: (Upload failed - status 500)"),
        (Answer::Hang, "Error uploading: (Upload failed - status 0; error: timed out)"),
        (Answer::Close, "Error uploading: (Upload failed - status 0; error: "),
        (Answer::Cut { announced: 100, body: b"{".to_vec() }, "Error uploading: (Upload failed - status 200; error: "),
        (Answer::ok("no json with a url"), "Error uploading: (invalid json)"),
    ] {
        world.answer("/droplet", answer);
        let (error, _) = world.failed(&message).await;
        assert!(error.message.starts_with(expected), "{}", error.message);
        assert_eq!(error.info, None);
    }
    world.answer("/droplet", Answer::ok(""));
    let (_, log) = world.staged(&message).await;
    assert!(!log.has("compiled"), "nothing was lost: the droplet is here and only has to be sent");
}

/// A file system of its own, with so many bytes.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(bytes: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "none"]).arg(dir.path()).status();
        assert!(mount.unwrap().success(), "this test mounts a small file system");
        Self(dir)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: what is still open in it goes when it is closed.
        let unmount = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
        assert!(unmount.unwrap().success(), "the small file system is to be unmounted");
    }
}

/// Only root may mount, but anybody may be root in a namespace of their own.
pub(crate) async fn a_full_disk() {
    if rustix::process::geteuid().is_root() {
        return fill_the_disk().await;
    }
    let mut namespace = Command::new("unshare");
    namespace.args(["--map-root-user", "--mount"]).arg(std::env::current_exe().unwrap()).args(["--exact", "hostile::a_full_disk"]);
    let outcome = namespace.output().unwrap();
    assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stdout));
}

/// Disks of all sizes from one that has no room for the buildpack to one that has room for everything.
async fn fill_the_disk() {
    sandboxes().buildpack(&guest("tests/buildpack-driver")).await.unwrap();
    let noise: Vec<u8> = (0..40_000_u32).flat_map(|number| Sha256::digest(number.to_le_bytes())).collect();
    let package = zip(&[("orders", b""), ("app.wasm", &guest("tests/command-driver")), ("noise", &noise)]);
    let mut failures = BTreeSet::new();
    for room in (100_000..).step_by(300_000) {
        let disk = SmallDisk::new(room);
        let world = World::at(disk.0.path().to_owned(), PATIENCE).await;
        let message = world.driven("");
        world.serve("/package", package.clone());
        let (outcome, _) = world.stage(&message).await;
        let Err(failed) = outcome else { break };
        let text = failed.error.message;
        assert!(text.contains("No space left on device"), "{text}");
        assert_eq!(failed.error.info, None, "the developer cannot mend it");
        let places = ["buildpack http", "app package: Error downloading", "of the app package", "run the buildpack", "write the archive"];
        failures.extend(places.into_iter().filter(|place| text.contains(place)));
        if failed.during_setup {
            continue;
        }
        world.serve("/package", orders("compile: nothing\n"));
        let (error, _) = world.failed(&message).await;
        assert_eq!(error.message, "The buildpack wrote no droplet.wasm", "there is room again, so nothing was left behind");
    }
    assert_eq!(failures.len(), 5, "the disk was not full at every step: {failures:?}");
}
