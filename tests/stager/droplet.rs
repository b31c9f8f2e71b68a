//! What a droplet is made of.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;

use dewar_agent::droplet_store::InstanceLimits;
use dewar_protocol::Bytes;
use dewar_sandbox::World as Kind;
use serde_json::json;

use crate::world::{World, guest, zip};

/// The files of a droplet; directories have no content.
fn files(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(archive));
    let files = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        (String::from_utf8(entry.path_bytes().into_owned()).unwrap(), content)
    });
    files.collect()
}

const LIMITS: InstanceLimits = InstanceLimits { disk: Bytes(64 << 20), inodes: 1000 };

pub(crate) async fn a_component_becomes_a_droplet() {
    let world = World::new().await;
    world.serve("/package", zip(&[("hello.wasm", &guest("examples/hello")), ("data.txt", b"data")]));
    let (droplet, log) = world.staged(&world.message()).await;
    assert!(droplet.detected_buildpack.is_some() && droplet.buildpack_key.is_none());
    assert_eq!(droplet.start_command.as_deref(), Some("hello.wasm"));
    assert_eq!(droplet.process_types, BTreeMap::from([("web".to_owned(), "hello.wasm".to_owned())]));
    let lines = log.lines();
    assert!(lines[0].starts_with("-----> Downloaded app package (") && lines[0].ends_with("K)"), "{lines:?}");
    assert!(lines.contains(&"-----> Detected WebAssembly (buildpack wasm)".to_owned()), "{lines:?}");
    assert!(lines.last().unwrap().starts_with("-----> Uploading droplet ("), "{lines:?}");
    let archive = std::fs::read(world.droplets.archive(&droplet.sha1)).unwrap();
    assert!(world.posted("/droplet") == std::slice::from_ref(&archive), "what is stored is what was sent");
    let files = files(&archive);
    assert!(files["./droplet.wasm"].starts_with(b"\0asm") && files["./app/data.txt"] == b"data");
    assert!(["./logs/", "./tmp/", "./app/"].iter().all(|dir| files.contains_key(*dir)));
    let unpacked = world.droplets.unpack(&droplet.sha1, &world.base.join("instance"), LIMITS).await.unwrap();
    assert_eq!(unpacked.info.start_command, droplet.start_command);
    assert_eq!(unpacked.info.effective_procfile, droplet.process_types);
    assert_eq!(unpacked.info.detected_buildpack, droplet.detected_buildpack);
    assert_eq!(unpacked.info.buildpack_path.as_deref(), Some("wasm"));
    let program = crate::world::sandboxes().program(&unpacked.wasm).await.unwrap();
    assert!(program.worlds().contains(&Kind::Http));
}

pub(crate) async fn a_site_becomes_a_droplet() {
    let world = World::new().await;
    world.serve("/package", zip(&[("index.html", b"<p>hello"), ("css/a.css", b"p {}")]));
    let (droplet, _) = world.staged(&world.message()).await;
    let instance = world.base.join("instance");
    let unpacked = world.droplets.unpack(&droplet.sha1, &instance, LIMITS).await.unwrap();
    assert_eq!(unpacked.info.buildpack_path.as_deref(), Some("static"));
    let has = |end: &str| walkdir::WalkDir::new(instance.join("app")).into_iter().any(|entry| entry.unwrap().path().ends_with(end));
    assert!(has("index.html") && has(Path::new("css").join("a.css").to_str().unwrap()));
}

pub(crate) async fn the_same_input_gives_the_same_bytes_anywhere() {
    let mut droplets = Vec::new();
    for _ in 0..2 {
        let world = World::new().await;
        let mut message = world.driven("compile: write /droplet/left-over x\nrelease: process worker work\nrelease: world command\n");
        message["admin_buildpacks"] = json!([{ "key": "driver_1", "url": message["properties"]["buildpack"] }]);
        message["properties"]["buildpack"] = json!("driver_1");
        let (droplet, _) = world.staged(&message).await;
        assert!(droplet.detected_buildpack.is_none());
        droplets.push((droplet.sha1, world.posted("/droplet").remove(0)));
    }
    assert_eq!(droplets[0].0, droplets[1].0);
    assert!(droplets[0] == droplets[1]);
}

pub(crate) async fn buildpacks_see_their_environment() {
    let world = World::new().await;
    let mut message = world.driven(
        "compile: env MEMORY_LIMIT\ncompile: env STAGING_TIMEOUT\ncompile: env VCAP_SERVICES\ncompile: env VCAP_APPLICATION\n\
         compile: env GREETING\ncompile: env PATH\n",
    );
    message["memory_limit"] = json!(64);
    message["properties"]["environment"] = json!(["NAME=world", "GREETING=hello $NAME"]);
    message["properties"]["services"] = json!([{ "name": "db", "label": "sql-1", "credentials": { "uri": "x" } }]);
    let (_, log) = world.staged(&message).await;
    for line in ["MEMORY_LIMIT=64m", "STAGING_TIMEOUT=100.0", "VCAP_APPLICATION={}", "GREETING=hello world"] {
        assert!(log.has(line), "{line} is not in {:?}", log.lines());
    }
    assert!(log.has(r#"VCAP_SERVICES={"sql-1":[{"credentials":{"uri":"x"},"label":"sql-1","name":"db"}]}"#), "{:?}", log.lines());
    assert!(log.has("PATH=environment variable not found"), "nothing of ours leaks");
}

pub(crate) async fn the_start_command_comes_from_whoever_has_the_say() {
    let world = World::new().await;
    let orders = "release: process web released\nrelease: process worker work\n";
    let (droplet, _) = world.staged(&world.driven(orders)).await;
    assert_eq!(droplet.start_command.as_deref(), Some("released"));
    assert_eq!(droplet.process_types["worker"], "work");

    let app = guest("tests/command-driver");
    let message = world.driven("");
    world.serve("/package", zip(&[("orders", orders.as_bytes()), ("app.wasm", &app), ("Procfile", b"web: of procfile\nother: x\n")]));
    let (droplet, _) = world.staged(&message).await;
    assert_eq!(droplet.start_command.as_deref(), Some("of procfile"));
    let names: Vec<&String> = droplet.process_types.keys().collect();
    assert_eq!(names, ["other", "web"], "the Procfile replaces what the buildpack says");

    let mut asked = message.clone();
    asked["properties"]["meta"] = json!({ "command": "as asked" });
    let (droplet, _) = world.staged(&asked).await;
    assert_eq!(droplet.start_command.as_deref(), Some("as asked"));

    world.serve("/package", zip(&[("orders", b""), ("app.wasm", &app), ("Procfile", b"just words")]));
    let (error, _) = world.failed(&message).await;
    assert_eq!(error.message, "Invalid Procfile format. Please ensure it is a valid YAML hash");
}

pub(crate) async fn a_buildpack_cannot_reach_out_of_its_directories() {
    let world = World::new().await;
    let outside = world.base.join("outside");
    std::fs::write(&outside, "untouched").unwrap();
    for place in ["/app/new", "/app/orders", "/outside", "/droplet/../../outside", "/cache/../../../outside"] {
        let (error, _) = world.failed(&world.driven(&format!("compile: write {place} x\n"))).await;
        assert!(error.message.starts_with("Buildpack compilation step failed: "), "{place}: {}", error.message);
    }
    assert_eq!(std::fs::read_to_string(&outside).unwrap(), "untouched");
    // Where a link may be made at all, it is not followed by us.
    let link = "compile: symlink ../../../outside /droplet/droplet.wasm\ncompile: nothing\n";
    let (error, _) = world.failed(&world.driven(link)).await;
    assert_eq!(error.message, "The buildpack wrote no droplet.wasm");
    let link = "compile: symlink ../../../../outside /droplet/app\ncompile: nothing\n";
    let (error, _) = world.failed(&world.driven(link)).await;
    assert_eq!(error.message, "The buildpack wrote no droplet.wasm");
}

pub(crate) async fn a_buildpack_reaches_the_network_only_where_it_may() {
    let world = World::new().await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut message = world.driven(&format!("compile: connect {address}\n"));
    let (_, log) = world.staged(&message).await;
    assert!(!log.has("connected"), "{:?}", log.lines());
    message["egress_network_rules"] = json!([{ "protocol": "tcp", "destination": "127.0.0.1", "ports": address.port().to_string() }]);
    let (_, log) = world.staged(&message).await;
    assert!(log.has("connected"), "{:?}", log.lines());
    message["egress_network_rules"] = json!([{ "protocol": "carrier pigeon", "destination": "127.0.0.1" }]);
    assert!(world.failed_setup(&message).await.starts_with("Error staging: failed to "));
}
