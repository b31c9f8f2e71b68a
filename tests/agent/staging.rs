//! Staging as a Cloud Controller sees it: two replies, then the app.

use std::io::Write as _;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio::time::timeout;
use zip::write::SimpleFileOptions;

use crate::world::{PATIENCE, World, eventually, get, guest, next, next_where};

const STAGES: &str = "staging: { enabled: true }\n";

/// A package with nothing but a component, offered as `package.zip`; returns a staging message for it.
pub(crate) fn staging_message(world: &World, wasm: &str, app: &str) -> Value {
    let package = std::fs::File::create(world.files.path().join("package.zip")).unwrap();
    let mut package = zip::ZipWriter::new(package);
    package.start_file("app.wasm", SimpleFileOptions::default()).unwrap();
    package.write_all(&std::fs::read(guest(wasm)).unwrap()).unwrap();
    package.finish().unwrap();
    let url = |name: &str| format!("http://me:hunter2@{}/{name}", world.file_server);
    json!({
        "app_id": app, "task_id": "task-1", "download_uri": url("package.zip"), "upload_uri": url("droplet.tgz"),
        "properties": { "services": [], "environment": ["A=b"], "meta": {} },
        "start_message": {
            "droplet": app, "index": 0, "version": "v1", "name": app, "uris": [format!("{app}.example.net")], "sha1": null,
            "executableUri": null, "cc_partition": "default", "limits": { "mem": 64, "disk": 64, "fds": 64 }, "services": [],
        },
    })
}

pub(crate) async fn a_package_becomes_a_running_app() {
    let world = World::new(STAGES).await;
    let mut registered = world.subscribe("router.register").await;
    let inbox = world.bus.new_inbox();
    let mut replies = world.subscribe(&inbox).await;
    let mut message = staging_message(&world, "tests/http-driver", "shop");
    message["start_message"]["env"] = json!(["GREETING=good day", "LATER=$GREETING, Sir"]);
    world.bus.publish_reply("staging", &inbox, &message).unwrap();
    let set_up = next(&mut replies).await;
    assert_eq!((&set_up["task_id"], &set_up["error"]), (&json!("task-1"), &Value::Null));
    let staged = next(&mut replies).await;
    assert_eq!((&staged["error"], &staged["app_id"]), (&Value::Null, &json!("shop")), "{staged}");
    assert_eq!(staged["droplet_sha1"].as_str().map(str::len), Some(40), "{staged}");
    assert!(std::fs::metadata(world.files.path().join("droplet.tgz")).unwrap().len() > 0, "nothing was uploaded");
    let route = next(&mut registered).await;
    let port = route["port"].as_u64().and_then(|port| u16::try_from(port).ok()).unwrap();
    let instance = ([127, 0, 0, 1], port).into();
    assert_eq!(get(instance, "/", None).await.unwrap(), (200, "http-driver".to_owned()));
    assert_eq!(get(instance, "/env?name=LATER", None).await.unwrap().1.trim(), "good day, Sir");
}

pub(crate) async fn a_package_that_cannot_be_had_fails_the_setup() {
    let world = World::new(STAGES).await;
    let inbox = world.bus.new_inbox();
    let mut replies = world.subscribe(&inbox).await;
    let mut message = staging_message(&world, "tests/http-driver", "shop");
    message["download_uri"] = json!(format!("http://me:hunter2@{}/missing", world.file_server));
    world.bus.publish_reply(&format!("staging.{}.start", world.agent.id()), &inbox, &message).unwrap();
    let reply = next(&mut replies).await;
    let error = reply["error"].as_str().unwrap();
    assert!(error.contains("404") && !error.contains("hunter2"), "{error}");
}

pub(crate) async fn a_stopped_app_is_no_longer_staged() {
    let world = World::new(STAGES).await;
    let inbox = world.bus.new_inbox();
    let mut replies = world.subscribe(&inbox).await;
    let mut advertised = world.subscribe("staging.advertise").await;
    let before = next(&mut advertised).await;
    // Somebody who takes connections and says nothing: the download waits.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut message = staging_message(&world, "tests/http-driver", "shop");
    message["download_uri"] = json!(format!("http://{}/package.zip", silent.local_addr().unwrap()));
    world.bus.publish_reply("staging", &inbox, &message).unwrap();
    let (mut download, _) = timeout(PATIENCE, silent.accept()).await.expect("no download").unwrap();
    next_where(&mut advertised, "with less memory", |now| now["available_memory"] != before["available_memory"]).await;
    world.publish("staging.stop", &json!({ "app_id": "shop" }));
    assert_eq!(next(&mut replies).await["error"], "Error staging: task stopped");
    // The request's head is there; what follows is the end of the connection, long before the 30 s after which a download that
    // does not move ends by itself.
    let mut head = Vec::new();
    timeout(Duration::from_secs(15), download.read_to_end(&mut head)).await.expect("the download goes on").unwrap();
    eventually("the memory's return", async || {
        (next(&mut advertised).await["available_memory"] == before["available_memory"]).then_some(())
    })
    .await;
}
