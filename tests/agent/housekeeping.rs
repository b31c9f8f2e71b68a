//! What goes by itself: crashes that there is no room for, directories that belong to nobody, droplets that nobody uses.

use std::fs;

use dewar_agent::Agent;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::world::{EmbeddedBroker, World, config, eventually, guest, next};

/// An app that has crashed; returns where what is left of it is.
async fn crashed(world: &World) -> std::path::PathBuf {
    let mut exited = world.subscribe("droplet.exited").await;
    let mut message = world.start_message(&guest("tests/command-driver"), "worker");
    message["uris"] = json!([]);
    message["start_command"] = json!("driver 'print:last words' exit:3");
    world.start(&message);
    let exited = next(&mut exited).await;
    assert_eq!(exited["reason"], "CRASHED");
    world.base.path().join("crashes").join(exited["instance"].as_str().unwrap())
}

pub(crate) async fn a_crash_that_there_is_no_room_for_goes() {
    // However little is in use, it is more than this.
    let world = World::new("crash_block_usage_ratio_threshold: 0\n").await;
    let kept = crashed(&world).await;
    eventually("the end of the crash", async || world.find("worker").await.is_none().then_some(())).await;
    eventually("the end of its files", async || (!kept.exists()).then_some(())).await;
}

pub(crate) async fn a_directory_that_belongs_to_nobody_goes_and_a_crash_stays() {
    let world = World::new("").await;
    let kept = crashed(&world).await;
    let nobodys = world.base.path().join("crashes/0123456789abcdef0123456789abcdef");
    fs::create_dir_all(nobodys.join("logs")).unwrap();
    eventually("the end of what is nobody's", async || (!nobodys.exists()).then_some(())).await;
    let log = kept.join("logs/stdout.log");
    eventually("its last words", async || fs::read_to_string(&log).is_ok_and(|text| text == "last words\n").then_some(())).await;
    assert_eq!(world.found("worker").await["state"], "CRASHED");
}

pub(crate) async fn droplets_that_nobody_uses_go_at_the_start_if_none_are_to_be_kept() {
    let broker = EmbeddedBroker::start(0).await;
    let base = tempfile::tempdir().unwrap();
    let droplets = base.path().join("droplets");
    for (budget, kept) in [(1, true), (0, false)] {
        let sha1 = "0123456789abcdef0123456789abcdef01234567";
        for name in [sha1.to_owned(), format!("{sha1}.deleted.1381932000")] {
            fs::create_dir_all(droplets.join(&name)).unwrap();
            fs::write(droplets.join(&name).join("droplet.tgz"), "something").unwrap();
        }
        let stop = CancellationToken::new();
        let yaml = format!("droplets: {{ cache_mb: {budget} }}\n");
        let agent = Agent::start(config(base.path(), broker.addr, &yaml), stop.clone()).await.unwrap();
        eventually("the left-over's end", async || (!droplets.join(format!("{sha1}.deleted.1381932000")).exists()).then_some(())).await;
        if !kept {
            eventually("the droplet's end", async || (!droplets.join(sha1).exists()).then_some(())).await;
        }
        stop.cancel();
        assert_eq!(agent.wait().await, 0);
        assert_eq!(droplets.join(sha1).exists(), kept);
    }
}
