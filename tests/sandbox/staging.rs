//! Buildpacks.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dewar_protocol::Bytes as Size;
use dewar_sandbox::{Buildpack, BuildpackError, BuildpackLimits, BuildpackRun, EgressPolicy, World};
use libtest_mimic::Trial;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::fixture::{Lines, eventually, guest, sandboxes, test};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        test("staging::a_buildpack_makes_a_droplet", droplet),
        test("staging::it_can_decline_and_refuse", decline_and_refuse),
        test("staging::each_way_to_fail_is_told_apart", failures),
        test("staging::it_has_an_end_in_time", time),
        test("staging::it_can_be_cancelled", cancelled),
        test("staging::cache_and_droplet_share_a_quota", quota),
        test("staging::each_step_sees_what_it_may", mounts),
        test("staging::it_talks_to_nobody", network),
        test("staging::its_log_does_not_hold_it_up", log),
    ]
}

/// A package and the directories of its staging.
struct Staging {
    directory: TempDir,
    lines: Arc<Lines>,
    stop: CancellationToken,
    limits: BuildpackLimits,
}

impl Staging {
    fn of(orders: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in ["app", "cache", "droplet"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        fs::write(directory.path().join("app/orders"), orders).unwrap();
        fs::write(directory.path().join("app/app.wasm"), "component").unwrap();
        let limits = BuildpackLimits { memory: Size(32 << 20), disk: Size(1 << 20), inodes: 50, wall: Duration::from_secs(20) };
        Self { directory, lines: Arc::default(), stop: CancellationToken::new(), limits }
    }

    fn run(&self) -> BuildpackRun {
        BuildpackRun {
            app_dir: self.directory.path().join("app"),
            cache_dir: Some(self.directory.path().join("cache")),
            droplet_dir: Some(self.directory.path().join("droplet")),
            environment: vec![("STACK".into(), "wasi".into())],
            limits: self.limits,
            egress: EgressPolicy::default(),
            output: self.lines.clone(),
            stop: self.stop.clone(),
        }
    }

    fn droplet(&self, path: &str) -> String {
        fs::read_to_string(self.directory.path().join("droplet").join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }
}

async fn driver() -> Buildpack {
    sandboxes().buildpack(&fs::read(guest("tests/buildpack-driver")).unwrap()).await.unwrap()
}

async fn compile(orders: &str) -> (Result<(), BuildpackError>, Staging) {
    let staging = Staging::of(orders);
    (driver().await.compile(staging.run()).await, staging)
}

async fn droplet() {
    let buildpack = driver().await;
    let staging = Staging::of(
        "detect: print looking\ncompile: print compiling\ncompile: env STACK\nrelease: process web app.wasm --port 1\nrelease: process worker app.wasm\nrelease: world command\n",
    );
    assert_eq!(buildpack.detect(staging.run()).await, Ok(Some("Driver".into())));
    assert_eq!(buildpack.compile(staging.run()).await, Ok(()));
    assert_eq!(staging.droplet("droplet.wasm"), "component");
    assert!(staging.droplet("app/orders").starts_with("detect"));
    let release = buildpack.release(staging.run()).await.unwrap();
    let processes: Vec<(&str, &str)> = release.process_types.iter().map(|(name, command)| (name.as_str(), command.as_str())).collect();
    assert_eq!((processes, release.world), (vec![("web", "app.wasm --port 1"), ("worker", "app.wasm")], Some(World::Command)));
    assert_eq!(staging.lines.all(), "looking\ncompiling\nSTACK=wasi\n");
    assert_eq!(buildpack.digest().len(), 64);
}

async fn decline_and_refuse() {
    let buildpack = driver().await;
    assert_eq!(buildpack.detect(Staging::of("detect: decline\n").run()).await, Ok(None));
    let staging = Staging::of("");
    fs::remove_file(staging.directory.path().join("app/orders")).unwrap();
    assert_eq!(buildpack.detect(staging.run()).await, Ok(None));
    let refused = buildpack.detect(Staging::of("detect: refuse nothing to build here\n").run()).await;
    assert_eq!(refused, Err(BuildpackError::Refused("nothing to build here".into())));
    assert_eq!(refused.unwrap_err().to_string(), "nothing to build here");
}

async fn failures() {
    let (trapped, _) = compile("compile: trap\n").await;
    match trapped {
        Err(BuildpackError::Trapped(text)) => {
            assert!(text.starts_with("wasm trap: wasm `unreachable`") && text.contains("buildpack_driver::"), "{text}");
        }
        other => panic!("{other:?}"),
    }
    let (panicked, staging) = compile("compile: panic what now\n").await;
    assert!(matches!(panicked, Err(BuildpackError::Trapped(_))), "{panicked:?}");
    assert!(staging.lines.all().contains("what now"));
    let (hog, _) = compile("compile: hog\n").await;
    assert!(matches!(&hog, Err(BuildpackError::OutOfMemory(text)) if text.starts_with("out of memory (used ")), "{hog:?}");
    let (exited, _) = compile("compile: exit 3\n").await;
    assert_eq!(exited, Err(BuildpackError::Exited(3)));
}

async fn time() {
    for order in ["spin", "sleep 60000"] {
        let mut staging = Staging::of(&format!("compile: {order}\n"));
        staging.limits.wall = Duration::from_millis(300);
        let buildpack = driver().await;
        let start = Instant::now();
        assert_eq!(buildpack.compile(staging.run()).await, Err(BuildpackError::TimedOut(Duration::from_millis(300))), "{order}");
        assert!(start.elapsed() < Duration::from_secs(20), "{order}: {:?}", start.elapsed());
    }
}

async fn cancelled() {
    for order in ["spin", "sleep 60000"] {
        let staging = Staging::of(&format!("compile: print going\ncompile: {order}\n"));
        let buildpack = driver().await;
        let (outcome, ()) = tokio::join!(buildpack.compile(staging.run()), async {
            eventually("it runs", || staging.lines.all() == "going\n").await;
            staging.stop.cancel();
        });
        assert_eq!(outcome, Err(BuildpackError::Cancelled), "{order}");
    }
}

async fn quota() {
    for order in ["fill /droplet/large", "fill /cache/large", "fill-inodes /droplet", "fill-inodes /cache"] {
        let (outcome, staging) = compile(&format!("compile: {order}\n")).await;
        assert_eq!(outcome, Err(BuildpackError::DiskFull { limit: Size(1 << 20) }), "{order}");
        let large = staging.directory.path().join(order.split(' ').nth(1).unwrap().trim_start_matches('/'));
        assert!(fs::metadata(large).unwrap().len() <= 1 << 20);
    }
    assert_eq!(BuildpackError::DiskFull { limit: Size(1 << 20) }.to_string(), "run the buildpack: disk quota of 1 MiB used up");
    // What the cache has kept from before counts.
    let staging = Staging::of("compile: write /droplet/file text\n");
    fs::write(staging.directory.path().join("cache/old"), vec![0; 1 << 20]).unwrap();
    assert_eq!(driver().await.compile(staging.run()).await, Err(BuildpackError::DiskFull { limit: Size(1 << 20) }));
}

async fn mounts() {
    let refused = |outcome: Result<(), BuildpackError>| matches!(outcome, Err(BuildpackError::Refused(_)));
    assert!(refused(compile("compile: write /app/file text\n").await.0), "the package is read-only");
    assert!(refused(compile("compile: write /etc/file text\n").await.0), "nothing else is there");
    let buildpack = driver().await;
    for path in ["/cache/file", "/droplet/file"] {
        let outcome = buildpack.detect(Staging::of(&format!("detect: write {path} text\n")).run()).await;
        assert!(matches!(outcome, Err(BuildpackError::Refused(_))), "{path} in detect: {outcome:?}");
        let outcome = buildpack.release(Staging::of(&format!("release: write {path} text\n")).run()).await;
        assert!(matches!(outcome, Err(BuildpackError::Refused(_))), "{path} in release: {outcome:?}");
    }
    let staging = Staging::of("compile: count /cache/runs\n");
    for run in ["run 1", "run 2"] {
        assert_eq!(buildpack.compile(staging.run()).await, Ok(()));
        assert!(staging.lines.all().trim_end().ends_with(run), "{}", staging.lines.all());
    }
}

async fn network() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let order = format!("compile: connect {}\n", listener.local_addr().unwrap());
    let (outcome, staging) = compile(&order).await;
    assert!(!staging.lines.all().contains("connected"), "{outcome:?} {}", staging.lines.all());
}

async fn log() {
    let start = Instant::now();
    let (outcome, staging) = compile("compile: flood 100000\n").await;
    assert_eq!(outcome, Ok(()));
    assert!(start.elapsed() < Duration::from_secs(40), "{:?}", start.elapsed());
    let lines = staging.lines.all();
    assert!(lines.lines().count() < 50_000 && lines.contains("lines lost"), "{} lines", lines.lines().count());
}
