//! Which buildpack makes the droplet.

use serde_json::{Value, json};

use crate::world::{World, guest, orders, zip};

/// Offers the driver and a buildpack that is for nothing, as the operator's, in this order.
fn offer(world: &World, keys: [&str; 2]) -> Value {
    let mut message = world.message();
    let path = |key: &str| if key.starts_with("driver") { "/driver.wasm" } else { "/never.zip" };
    world.serve("/never.zip", zip(&[("never.wasm", &guest("buildpacks/static"))]));
    message["admin_buildpacks"] = keys.map(|key| json!({ "key": key, "url": world.controller.url(path(key)) })).into();
    message
}

pub(crate) async fn the_first_that_detects_wins() {
    let world = World::new().await;
    world.serve("/package", orders("detect: name  My App \ndetect: print asked\n"));
    let (droplet, log) = world.staged(&offer(&world, ["never_1", "driver_1"])).await;
    assert_eq!((droplet.detected_buildpack.as_deref(), droplet.buildpack_key.as_deref()), (Some("My App"), Some("driver_1")));
    assert!(log.has("asked"));
    assert_eq!(world.names("admin_buildpacks"), [".partial", "driver_1", "never_1"]);
    // This package is for both of the operator's; the order is the message's.
    world.serve("/package", zip(&[("orders", b""), ("index.html", b""), ("app.wasm", &guest("tests/command-driver"))]));
    let (droplet, _) = world.staged(&offer(&world, ["never_1", "driver_1"])).await;
    assert_eq!(droplet.buildpack_key.as_deref(), Some("never_1"));
    let (droplet, _) = world.staged(&offer(&world, ["driver_1", "never_1"])).await;
    assert_eq!(droplet.buildpack_key.as_deref(), Some("driver_1"));
    world.staged(&world.message()).await;
    assert_eq!(world.names("admin_buildpacks"), [".partial"], "what no message names is gone");
}

pub(crate) async fn a_failing_detection_is_a_no() {
    let world = World::new().await;
    for order in ["trap", "refuse not today", "hog", "exit 3"] {
        let app = guest("tests/command-driver");
        world.serve("/package", zip(&[("orders", format!("detect: {order}\n").as_bytes()), ("app.wasm", &app)]));
        let (droplet, log) = world.staged(&offer(&world, ["driver_1", "never_1"])).await;
        assert_eq!(droplet.buildpack_key, None, "the built-in buildpack was next");
        assert!(log.begins("Failed to run buildpack detection script with error: "), "{order}: {:?}", log.lines());
    }
}

pub(crate) async fn a_buildpack_by_key_is_not_asked() {
    let world = World::new().await;
    world.serve("/package", orders("detect: print asked\ndetect: decline\n"));
    let mut message = offer(&world, ["never_1", "driver_1"]);
    message["properties"]["buildpack_key"] = json!("driver_1");
    let (droplet, log) = world.staged(&message).await;
    assert_eq!((droplet.detected_buildpack.as_deref(), droplet.buildpack_key.as_deref()), (None, Some("driver_1")));
    assert!(!log.has("asked"));
}

pub(crate) async fn a_buildpack_by_url_is_not_asked() {
    let world = World::new().await;
    let message = world.driven("detect: print asked\ndetect: decline\n");
    let (droplet, log) = world.staged(&message).await;
    assert_eq!((droplet.detected_buildpack, droplet.buildpack_key), (None, None));
    assert!(!log.has("asked"));
}

pub(crate) async fn setup_failures_say_what_is_wrong() {
    let world = World::new().await;
    let with = |change: &dyn Fn(&mut Value)| {
        let mut message = world.driven("");
        change(&mut message);
        message
    };
    let unknown_stack = with(&|message| message["stack"] = json!("lucid64"));
    assert_eq!(world.failed_setup(&unknown_stack).await, "Error staging: Stack lucid64 does not exist");
    let no_package = with(&|message| message["download_uri"] = json!(world.controller.url("/nothing?token=secret")));
    let expected = format!("Error staging: app package: Error downloading: HTTP status: 404 ({}?…)", world.controller.url("/nothing"));
    assert_eq!(world.failed_setup(&no_package).await, expected);
    let git = with(&|message| message["properties"]["buildpack"] = json!("https://example.net/ruby-buildpack.git"));
    assert!(world.failed_setup(&git).await.contains("buildpacks here are wasm components"));
    let unknown = with(&|message| message["properties"]["buildpack"] = json!("ruby"));
    assert!(world.failed_setup(&unknown).await.ends_with("there is none of this name; known are wasm, static"));
    let gone = with(&|message| message["admin_buildpacks"] = json!([{ "key": "k", "url": world.controller.url("/gone") }]));
    assert!(world.failed_setup(&gone).await.starts_with("Error staging: buildpack k: Error downloading: HTTP status: 404 "));
    let evil = with(&|message| message["admin_buildpacks"] = json!([{ "key": "../k", "url": world.controller.url("/driver.wasm") }]));
    assert!(world.failed_setup(&evil).await.contains("not to be used as the name of a directory"));
    let named = with(&|message| message["stack"] = json!("dewar"));
    world.staged(&named).await;
}
