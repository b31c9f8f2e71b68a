//! Stagings that end before they are done, and stagings at the same time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dewar_protocol::LogStream;
use dewar_sandbox::Output as _;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::test_server::Answer;
use crate::world::{Log, PATIENCE, World, eventually, spec};

/// Starts a staging, stops it once `at` is so, and checks that it ends at once.
async fn stop_when(world: &World, message: &Value, at: impl Fn() -> bool) {
    let stop = CancellationToken::new();
    let mut stopped_at = None;
    let (outcome, ()) = {
        let staging = async {
            let (outcome, _) = world.stage_until(message, stop.clone()).await;
            outcome
        };
        tokio::join!(staging, async {
            eventually("the moment to stop", &at).await;
            stop.cancel();
            stopped_at = Some(Instant::now());
        })
    };
    assert_eq!(outcome.unwrap_err().error.message, "Error staging: task stopped");
    assert!(stopped_at.unwrap().elapsed() < Duration::from_secs(20), "it ends at once");
}

pub(crate) async fn a_staging_that_is_stopped_leaves_nothing() {
    let world = World::new().await;
    let message = world.driven("");
    let asked_for = |path: &'static str| {
        let requests = &world.controller;
        move || requests.requests().iter().any(|request| request.target.starts_with(path))
    };
    world.answer("/package", Answer::Stall { announced: 1 << 20, body: vec![0; 1000] });
    stop_when(&world, &message, asked_for("/package")).await;

    // A file in the cache tells that the buildpack has begun.
    let has_begun = |world: &World| {
        let base = world.base.join("staging");
        move || walkdir::WalkDir::new(&base).into_iter().filter_map(Result::ok).any(|entry| entry.file_name() == "begun")
    };
    for order in ["spin", "sleep 3600000"] {
        let message = world.driven(&format!("compile: write /cache/begun x\ncompile: {order}\n"));
        stop_when(&world, &message, has_begun(&world)).await;
    }

    world.answer("/droplet", Answer::Hang);
    stop_when(&world, &world.driven(""), asked_for("/droplet")).await;
    world.answer("/droplet", Answer::ok(""));
    world.staged(&world.driven("")).await;

    let stop = CancellationToken::new();
    stop.cancel();
    let (outcome, _) = world.stage_until(&world.driven("compile: print never\n"), stop).await;
    assert_eq!(outcome.unwrap_err().error.message, "Error staging: task stopped");
}

pub(crate) async fn a_staging_that_is_dropped_leaves_nothing() {
    let world = World::new().await;
    let message = world.driven("compile: print begun\ncompile: spin\n");
    let log = Arc::new(Log::default());
    let (spec, sink) = (spec(&message), log.clone());
    let staging = world.stager.run(&spec, sink, |_| (), CancellationToken::new());
    let begun = eventually("the buildpack to begin", || log.has("begun"));
    tokio::select! {
        outcome = staging => panic!("{outcome:?}"),
        () = begun => {}
    }
    eventually("the directory to go", || world.names("staging").is_empty()).await;
}

pub(crate) async fn what_a_killed_process_left_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    for left in ["staging/abc/app/file", "admin_buildpacks/.partial/x", "droplets/.partial/y"] {
        let path = dir.path().join(left);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "left").unwrap();
    }
    let world = World::at(dir.path().to_owned(), PATIENCE).await;
    for dir in ["staging", "admin_buildpacks/.partial", "droplets/.partial"] {
        assert_eq!(world.names(dir), Vec::<String>::new());
    }
}

pub(crate) async fn two_pushes_of_one_app_at_once() {
    let world = World::new().await;
    let message = world.driven("compile: print compiled\ncompile: count /cache/runs\ncompile: sleep 2000\n");
    let stage = || async {
        let log = Arc::new(Log::default());
        log.line(LogStream::Out, "begins");
        let outcome = world.stager.run(&spec(&message), log.clone(), |_| (), CancellationToken::new()).await;
        (outcome.unwrap(), log)
    };
    let ((one, log_of_one), (two, log_of_two)) = tokio::join!(stage(), stage());
    assert_eq!(one, two);
    assert!([log_of_one, log_of_two].iter().all(|log| log.has("run 1")), "they share no cache");
    assert_eq!(world.names("staging"), Vec::<String>::new());
    assert_eq!(world.posted("/droplet").len(), 2);
}
