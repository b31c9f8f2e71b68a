//! What every app goes through.

use dewar_client::ClientError;

use crate::platform::{Platform, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn push_serve_scale_crash_restart_stop() {
    let world = Platform::start().await;
    let folder = world.driver();
    std::fs::write(folder.join("note.txt"), "kept").unwrap();
    let name = "shop".parse().unwrap();

    world.push("shop", &folder, &["COLOUR=blue"]).await.unwrap();
    assert_eq!(world.until("shop", "/env?name=COLOUR", 200).await, "blue");
    assert_eq!(world.until("shop", "/fs/read?path=/app/note.txt", 200).await, "kept");

    let mut crashes = world.client.watch_crashes().await.unwrap();
    world.client.scale(&name, 3, &mut |_| {}, &world.stop).await.unwrap();
    world.until_running(&name, 3).await;
    eventually("three instances to answer in turn", async || {
        let mut seen = Vec::new();
        for _ in 0..6 {
            seen.push(world.until("shop", "/env?name=CF_INSTANCE_INDEX", 200).await);
        }
        seen.sort();
        (seen == ["0", "0", "1", "1", "2", "2"]).then_some(())
    })
    .await;

    // One instance ends; its two siblings go on, and no request finds the dead one.
    world.get("shop", "/exit?status=3").await;
    let crash = crashes.next().await.unwrap();
    assert_eq!(crash.exit_status, 3);
    eventually("the dead instance's route to go", async || {
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..4 {
            seen.insert(world.get("shop", "/env?name=CF_INSTANCE_INDEX").await.filter(|(status, _)| *status == 200)?.1);
        }
        (seen.len() == 2 && !seen.contains(&crash.index.to_string())).then_some(())
    })
    .await;

    world.client.restart(&name, &mut |_| {}, &world.stop).await.unwrap();
    world.until_running(&name, 3).await;

    world.client.stop(&name).await.unwrap();
    world.until("shop", "/", 404).await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_crashes_leaves_the_old_one_serving() {
    let world = Platform::start().await;
    let folder = world.driver();
    world.push("shop", &folder, &["RELEASE=one"]).await.unwrap();
    assert_eq!(world.until("shop", "/env?name=RELEASE", 200).await, "one");

    let refused = world.push("shop", &folder, &["RELEASE=two", "DRIVER_START=trap"]).await;
    match refused {
        Err(ClientError::Crashed { .. }) => {}
        other => panic!("a crash was expected, not {other:?}"),
    }
    assert_eq!(world.until("shop", "/env?name=RELEASE", 200).await, "one");

    std::fs::write(folder.join("driver.wasm"), "no wasm").unwrap();
    assert!(world.push("shop", &folder, &["RELEASE=three"]).await.is_err());
    assert_eq!(world.until("shop", "/env?name=RELEASE", 200).await, "one");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_stay_within_the_instance_and_its_disk_quota() {
    let world = Platform::start().await;
    let folder = world.driver();
    world.push("one", &folder, &[]).await.unwrap();
    world.push("two", &folder, &[]).await.unwrap();
    world.until("one", "/fs/write?path=/app/mine&bytes=10", 200).await;
    world.until("two", "/fs/read?path=/app/mine", 422).await;
    let filled = world.until("one", "/fs/fill?path=/tmp/fat&chunk=65536", 200).await;
    let taken: u64 = filled.lines().next().unwrap().parse().unwrap();
    assert!((24 << 20..=32 << 20).contains(&taken), "{filled}");
    // What the guest's own libc makes of "no space left" differs from one toolchain to the next; that it hears of it does not.
    assert!(filled.contains("StorageFull") || filled.contains("I/O error"), "{filled}");
    world.until("two", "/fs/write?path=/tmp/still&bytes=1000", 200).await;
    world.end().await;
}
