//! Buildpacks that mean no good: what the package's orders say, in a step of their own.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dewar_protocol::Bytes;
use dewar_sandbox::{BuildpackLimits, BuildpackRun, EgressPolicy};
use tokio_util::sync::CancellationToken;

use crate::attack::{Attack, assert_fits, attack};
use crate::evidence::{assert_log_within_rate, held};
use crate::fixture::{Lines, guest, sandboxes};

const LIMITS: BuildpackLimits =
    BuildpackLimits { memory: Bytes(32 << 20), disk: Bytes(1 << 20), inodes: 50, wall: Duration::from_secs(20) };

/// A buildpack that ends so, `done` where nothing went wrong; within its limits in any case.
fn ends(name: &'static str, held_by: &'static str, orders: &'static str, wall: Duration, words: &'static str) -> Attack {
    attack(name, held_by, move || run(orders.to_owned(), wall, words))
}

async fn run(orders: String, wall: Duration, words: &'static str) {
    let directory = tempfile::tempdir().unwrap();
    let place = |name: &str| directory.path().join(name);
    for name in ["app", "cache", "droplet"] {
        fs::create_dir(place(name)).unwrap();
    }
    fs::write(place("app/orders"), &orders).unwrap();
    fs::write(place("app/app.wasm"), "component").unwrap();
    let lines = Arc::new(Lines::default());
    let step = BuildpackRun {
        app_dir: place("app"),
        cache_dir: Some(place("cache")),
        droplet_dir: Some(place("droplet")),
        environment: Vec::new(),
        limits: BuildpackLimits { wall, ..LIMITS },
        egress: EgressPolicy::default(),
        output: lines.clone(),
        stop: CancellationToken::new(),
    };
    let buildpack = sandboxes().buildpack(&fs::read(guest("tests/buildpack-driver")).unwrap()).await.unwrap();
    let began = Instant::now();
    let outcome = match orders.split(':').next().unwrap() {
        "detect" => buildpack.detect(step).await.map(drop),
        "compile" => buildpack.compile(step).await,
        _ => buildpack.release(step).await.map(drop),
    };
    assert_fits(words, &outcome.map_or_else(|error| error.to_string(), |()| "done".to_owned()), &orders[..orders.len().min(100)]);
    assert_log_within_rate(&lines, began.elapsed());
    assert!(!lines.all().contains("connected"), "{}", lines.all());
    let (bytes, names) = held(&[place("cache"), place("droplet")]);
    assert!(bytes <= LIMITS.disk && names <= LIMITS.inodes, "{bytes:?} in {names} files");
    let mut there: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    there.sort();
    assert_eq!(there, ["app", "cache", "droplet"], "nothing is made beside its directories");
    assert_eq!(fs::read_dir(place("app")).unwrap().count(), 2, "the package is as it was");
}

const SHORT: Duration = Duration::from_millis(300);
const LONG: Duration = LIMITS.wall;
const TIME: &str = "a step has a deadline, kept by epochs and by the clock";
const QUOTA: &str = "a step has the quotas that an instance has";
const MOUNTS: &str = "a step sees its directories, and writes those it is to write";

pub(crate) fn attacks() -> Vec<Attack> {
    vec![
        ends("buildpacks::spin_in_detect", TIME, "detect: spin\n", SHORT, "run the buildpack within 300ms"),
        ends("buildpacks::spin_in_compile", TIME, "compile: spin\n", SHORT, "run the buildpack within 300ms"),
        ends("buildpacks::sleep_in_release", TIME, "release: sleep 3600000\n", SHORT, "run the buildpack within 300ms"),
        ends("buildpacks::hog_memory", QUOTA, "compile: hog\n", LONG, "run the buildpack: out of memory (used "),
        ends(
            "buildpacks::fill_the_droplet",
            QUOTA,
            "compile: fill /droplet/large\n",
            LONG,
            "run the buildpack: disk quota of 1 MiB used up",
        ),
        ends(
            "buildpacks::fill_the_cache_with_files",
            QUOTA,
            "compile: fill-inodes /cache\n",
            LONG,
            "run the buildpack: disk quota of 1 MiB used up",
        ),
        ends("buildpacks::flood_the_log", QUOTA, "compile: flood 100000\n", LONG, "done"),
        ends(
            "buildpacks::exit_instead_of_returning",
            "a step returns; exit is a failure",
            "compile: exit 0\n",
            LONG,
            "run the buildpack: it exited with status 0",
        ),
        ends("buildpacks::trap_in_detect", "a trap is the step's failure", "detect: trap\n", LONG, "run the buildpack: wasm trap: "),
        ends("buildpacks::write_the_package", MOUNTS, "compile: write /app/evil x\n", LONG, "/app/evil: "),
        ends("buildpacks::write_beside_everything", MOUNTS, "compile: write /etc/evil x\n", LONG, "/etc/evil: "),
        ends("buildpacks::write_in_detect", MOUNTS, "detect: write /droplet/evil x\n", LONG, "/droplet/evil: "),
        ends("buildpacks::write_in_release", MOUNTS, "release: write /droplet/evil x\n", LONG, "/droplet/evil: "),
        ends("buildpacks::write_through_dots", MOUNTS, "compile: write /droplet/../../evil x\n", LONG, "/droplet/../../evil: "),
        ends(
            "buildpacks::write_through_a_link",
            "links lead nowhere but inside",
            "compile: symlink ../../.. /droplet/up\ncompile: write /droplet/up/evil x\n",
            LONG,
            "/droplet/up|/droplet: |…not permitted",
        ),
        ends("buildpacks::talk_to_the_host", "no rule, no connection", "compile: connect 127.0.0.1:22\n", LONG, "done|…"),
        attack("buildpacks::a_release_of_many_megabytes", "what a step returns has a limit", || {
            run("release: process web COMMAND\n".replace("COMMAND", &"x".repeat(1000)).repeat(15_000), LONG, "run the buildpack: ")
        }),
        attack("buildpacks::an_error_of_many_megabytes", "the same", || {
            run(format!("compile: refuse {}\n", "x".repeat(12 << 20)), LONG, "run the buildpack: ")
        }),
    ]
}
