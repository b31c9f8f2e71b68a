//! What is not done twice.

use std::io::{Cursor, Write as _};

use serde_json::json;
use zip::write::SimpleFileOptions;

use crate::test_server::Answer;
use crate::world::{World, guest};

/// The same files as the package of [`World::driven`], packed otherwise: another order, other times, not compressed.
fn packed_otherwise(orders: &str) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let time = zip::DateTime::from_date_and_time(2001, 2, 3, 4, 5, 6).unwrap();
    let options = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored).last_modified_time(time);
    for (name, content) in [("data", b"data".to_vec()), ("app.wasm", guest("tests/command-driver")), ("orders", orders.into())] {
        zip.start_file(name, options).unwrap();
        zip.write_all(&content).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

pub(crate) async fn the_same_package_is_not_staged_twice() {
    let world = World::new().await;
    let orders = "compile: print compiled\n";
    let message = world.driven(orders);
    let (first, log) = world.staged(&message).await;
    assert!(log.has("compiled"));
    world.serve("/package", packed_otherwise(orders));
    let (second, log) = world.staged(&message).await;
    assert_eq!(first, second);
    assert!(!log.has("compiled") && log.begins("-----> Unchanged since 20"), "{:?}", log.lines());
    assert_eq!(world.posted("/droplet").len(), 2, "the controller gets it each time");

    let mut other_environment = message.clone();
    other_environment["properties"]["environment"] = json!(["A=1"]);
    let other_package = || world.driven("compile: print compiled\ncompile: print more\n");
    for changed in [other_environment, other_package()] {
        let (_, log) = world.staged(&changed).await;
        assert!(log.has("compiled"));
    }
}

pub(crate) async fn a_lost_droplet_is_made_again() {
    let world = World::new().await;
    let message = world.driven("compile: print compiled\n");
    let (first, _) = world.staged(&message).await;
    std::fs::write(world.droplets.archive(&first.sha1), "changed").unwrap();
    let (second, log) = world.staged(&message).await;
    assert!(log.has("compiled") && first == second, "{:?}", log.lines());
    for entry in world.names("staging_cache") {
        std::fs::write(world.base.join("staging_cache").join(entry), "not an entry").unwrap();
    }
    let (third, log) = world.staged(&message).await;
    assert!(log.has("compiled") && first == third);
}

/// Orders that count stagings in the buildpack's cache; `change` makes the package another one.
fn counting(change: u32) -> String {
    format!("compile: print change {change}\ncompile: count /cache/runs\n")
}

pub(crate) async fn a_buildpack_cache_stays_with_its_app() {
    let world = World::new().await;
    for change in 1..=2 {
        let (_, log) = world.staged(&world.driven(&counting(change))).await;
        assert!(log.has(&format!("run {change}")), "{:?}", log.lines());
    }
    let (_, _) = world.failed(&world.driven("compile: count /cache/runs\ncompile: refuse it\n")).await;
    let (_, log) = world.staged(&world.driven(&counting(3))).await;
    assert!(log.has("run 1"), "what a failed staging left is not used: {:?}", log.lines());
    let mut other_app = world.driven(&counting(4));
    other_app["app_id"] = json!("other");
    let (_, log) = world.staged(&other_app).await;
    assert!(log.has("run 1"));
}

pub(crate) async fn a_controller_keeps_the_buildpack_cache() {
    let world = World::new().await;
    let ask = |change: u32| {
        let mut message = world.driven(&counting(change));
        message["buildpack_cache_download_uri"] = json!(world.controller.url("/cache/download"));
        message["buildpack_cache_upload_uri"] = json!(world.controller.url("/cache"));
        message
    };
    let (_, log) = world.staged(&ask(1)).await;
    assert!(log.has("run 1") && !log.begins("-----> Downloaded app buildpack cache"), "{:?}", log.lines());
    let posts = world.controller.requests().into_iter().filter(|request| request.method == "POST");
    let posts = posts.map(|post| post.target.split('?').next().unwrap().to_owned());
    assert_eq!(posts.collect::<Vec<_>>(), ["/droplet", "/cache"], "the droplet first");
    world.serve("/cache/download", world.posted("/cache").remove(0));
    let (_, log) = world.staged(&ask(2)).await;
    assert!(log.has("run 2") && log.begins("-----> Downloaded app buildpack cache ("), "{:?}", log.lines());
    assert_eq!(world.posted("/cache").len(), 2);
    assert_eq!(world.names("buildpack_caches"), Vec::<String>::new(), "none stays here");
    world.answer("/cache", Answer::status(500, ""));
    let (error, _) = world.failed(&ask(3)).await;
    assert_eq!(error.message, "Error uploading: (Upload failed - status 500)");
}

pub(crate) async fn a_buildpack_cache_that_cannot_be_kept_is_not() {
    let world = World::new().await;
    let mut message = world.driven("compile: symlink ../../outside /cache/link\n");
    message["buildpack_cache_upload_uri"] = json!(world.controller.url("/cache"));
    world.staged(&message).await;
    assert_eq!(world.posted("/cache").len(), 0, "a cache with a link that leads out of it");
}

pub(crate) async fn a_buildpack_cache_that_is_of_no_use_is_none() {
    let world = World::new().await;
    for (change, cache) in [Answer::ok("no archive"), Answer::status(500, ""), Answer::Close].into_iter().enumerate() {
        world.answer("/cache/download", cache);
        let mut message = world.driven(&counting(u32::try_from(change).unwrap()));
        message["buildpack_cache_download_uri"] = json!(world.controller.url("/cache/download"));
        message["buildpack_cache_upload_uri"] = json!(world.controller.url("/cache"));
        let (_, log) = world.staged(&message).await;
        assert!(log.has("run 1"), "{:?}", log.lines());
    }
}
