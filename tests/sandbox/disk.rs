//! The disk quota: what a guest holds is what the ledger says, and it cannot hold more.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use dewar_protocol::Bytes as Size;
use dewar_sandbox::Quota;
use libtest_mimic::Trial;

use crate::fixture::{Instance, Plan, eventually, is_full, test};

const BLOCK: u64 = 4096;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        test("disk::what_is_there_at_the_start_counts", at_the_start),
        test("disk::a_full_disk_takes_what_fits_and_says_so", full),
        test("disk::removing_makes_room", removing),
        test("disk::a_file_without_a_name_counts_until_it_is_closed", unlinked),
        test("disk::a_hard_link_costs_a_name_but_no_bytes", hard_links),
        test("disk::holes_are_not_free", holes),
        test("disk::names_are_counted", names),
        test("disk::app_and_tmp_share_one_quota", one_quota),
        test("disk::an_instance_that_starts_again_counts_what_is_there", again),
        test("disk::an_instance_that_starts_over_its_quota_can_only_remove", over_quota),
        test("disk::nothing_else_can_be_reached", escapes),
        test("disk::no_name_leads_out", names_that_lead_out),
        test("disk::no_race_between_stores_leads_out", races),
        test("disk::any_sequence_of_operations_leaves_the_ledger_right", any_sequence),
        test("disk::also_when_stores_work_side_by_side", side_by_side),
    ]
}

/// What a directory holds, counted as the documentation says, independently of the ledger's own walk.
fn held(directory: &Path, seen: &mut HashSet<u64>) -> u64 {
    std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let metadata = std::fs::symlink_metadata(&path).unwrap();
            match () {
                () if metadata.is_dir() => BLOCK + held(&path, seen),
                () if !metadata.is_file() => BLOCK,
                () if seen.insert(metadata.ino()) => metadata.len().div_ceil(BLOCK) * BLOCK,
                () => 0,
            }
        })
        .sum()
}

impl Instance {
    fn held(&self) -> Size {
        let mut seen = HashSet::new();
        Size(held(&self.app_dir(), &mut seen) + held(&self.tmp_dir(), &mut seen))
    }

    fn assert_right(&self, after: &str) {
        assert_eq!(self.sandbox.usage().disk, self.held(), "after {after}");
    }
}

async fn driver(change: impl FnOnce(&mut Quota)) -> Instance {
    Plan::of("tests/http-driver").await.quota(change).start().await
}

async fn at_the_start() {
    let mut plan = Plan::of("tests/http-driver").await;
    plan.files = vec![("a", vec![0; 10_000]), ("b", vec![0; 1])];
    let app = plan.start().await;
    assert_eq!(app.sandbox.usage().disk, Size(4 * BLOCK));
    app.assert_right("the start");
    assert_eq!(app.get("/fs/write?path=/app/c&bytes=1048576").await.status, 422);
}

async fn full() {
    let app = driver(|quota| quota.disk = Size(100 * BLOCK)).await;
    let filled = app.ok("/fs/fill?path=/tmp/full&chunk=3000").await;
    let (taken, error) = filled.split_once('\n').unwrap();
    assert!(is_full(error), "{error}");
    assert!(taken.parse::<u64>().unwrap() <= 100 * BLOCK && taken.parse::<u64>().unwrap() > 98 * BLOCK, "{taken}");
    app.assert_right("filling");
    assert!(app.sandbox.usage().disk <= Size(100 * BLOCK));
    let refused = app.get("/fs/append?path=/tmp/full&bytes=100000").await;
    assert!(refused.text().starts_with("StorageFull"), "when nothing fits at all: {}", refused.text());
    // What is there can be overwritten.
    assert_eq!(app.ok("/fs/write-at?path=/tmp/full&offset=10&bytes=1000").await, "1000");
    app.assert_right("overwriting");
}

async fn removing() {
    let app = driver(|quota| quota.disk = Size(100 * BLOCK)).await;
    for round in 0..5 {
        assert_eq!(app.ok("/fs/write?path=/tmp/a&bytes=400000").await, "400000", "round {round}");
        assert_eq!(app.get("/fs/write?path=/tmp/b&bytes=400000").await.status, 422);
        match round {
            0 => drop(app.ok("/fs/remove?path=/tmp/a").await),
            1 => drop(app.ok("/fs/truncate?path=/tmp/a&size=0").await),
            2 => drop(app.ok("/fs/rename?path=/tmp/b&to=/tmp/a").await),
            3 => drop(app.ok("/fs/write?path=/tmp/a&bytes=0").await),
            _ => {}
        }
        app.ok("/fs/write?path=/tmp/b&bytes=0").await;
        app.assert_right(&format!("round {round}"));
    }
}

async fn unlinked() {
    // With one turn there is one store, and it is the one that holds the file which gets to release it.
    let plan = Plan::of("tests/http-driver").await.quota(|quota| quota.disk = Size(100 * BLOCK));
    let app = plan.http(|http| http.concurrent_requests = 1).start().await;
    app.ok("/fs/hold?path=/tmp/held&bytes=300000").await;
    assert_eq!(app.held(), Size(0), "it has no name");
    assert_eq!(app.sandbox.usage().disk, Size(74 * BLOCK));
    assert_eq!(app.get("/fs/write?path=/tmp/other&bytes=300000").await.status, 422);
    app.ok("/fs/release").await;
    app.ok("/fs/remove?path=/tmp/other").await;
    assert_eq!(app.sandbox.usage().disk, Size(0));
    assert_eq!(app.ok("/fs/write?path=/tmp/other&bytes=300000").await, "300000");
    app.assert_right("the release");
}

async fn hard_links() {
    let app = driver(|quota| quota.inodes = 6).await;
    app.ok("/fs/write?path=/tmp/a&bytes=10000").await;
    for name in 1..=5 {
        app.ok(&format!("/fs/hard-link?path=/tmp/a&to=/tmp/{name}")).await;
    }
    assert_eq!(app.sandbox.usage().disk, Size(3 * BLOCK));
    let refused = app.get("/fs/hard-link?path=/tmp/a&to=/tmp/6").await;
    assert!(refused.text().starts_with("StorageFull"), "{}", refused.text());
    // One name of a file onto another name of it is nothing.
    app.ok("/fs/rename?path=/tmp/1&to=/tmp/2").await;
    app.ok("/fs/append?path=/tmp/3&bytes=10000").await;
    app.assert_right("appending through another name");
    for name in ["a", "1", "2", "3", "4"] {
        app.ok(&format!("/fs/remove?path=/tmp/{name}")).await;
    }
    assert_eq!(app.sandbox.usage().disk, Size(5 * BLOCK), "the last name is left");
    app.ok("/fs/remove?path=/tmp/5").await;
    assert_eq!(app.sandbox.usage().disk, Size(0));
    assert!(app.ok("/fs/fill-inodes?path=/tmp&limit=100").await.starts_with("6\nStorageFull"));
}

async fn holes() {
    let app = driver(|quota| quota.disk = Size(100 * BLOCK)).await;
    app.ok("/fs/write?path=/tmp/sparse&bytes=1").await;
    for operation in ["/fs/truncate?path=/tmp/sparse&size=1000000000000", "/fs/write-at?path=/tmp/sparse&offset=10000000000&bytes=1"] {
        let refused = app.get(operation).await;
        assert!(is_full(&refused.text()), "{operation}: {}", refused.text());
        app.assert_right(operation);
    }
    assert_eq!(app.ok("/fs/truncate?path=/tmp/sparse&size=409600").await, "done");
    app.assert_right("a hole that fits");
    assert_eq!(app.get("/fs/truncate?path=/tmp/sparse&size=409601").await.status, 422);
}

async fn names() {
    let app = driver(|quota| quota.inodes = 20).await;
    app.ok("/fs/create-dir?path=/tmp/d").await;
    let made = app.ok("/fs/fill-inodes?path=/tmp/d&limit=100").await;
    assert!(made.starts_with("19\nStorageFull"), "{made}");
    for path in ["/fs/create-dir?path=/tmp/e", "/fs/symlink?path=x&to=/tmp/l", "/fs/write?path=/tmp/f&bytes=1"] {
        let refused = app.get(path).await;
        assert!(refused.text().starts_with("StorageFull"), "{path}: {}", refused.text());
    }
    for file in 0..19 {
        app.ok(&format!("/fs/remove?path=/tmp/d/{file}")).await;
    }
    app.ok("/fs/remove-dir?path=/tmp/d").await;
    assert_eq!(app.sandbox.usage().disk, Size(0));
    assert!(app.ok("/fs/fill-inodes?path=/app&limit=100").await.starts_with("20\n"));
}

async fn one_quota() {
    let app = driver(|quota| quota.disk = Size(100 * BLOCK)).await;
    app.ok("/fs/write?path=/app/a&bytes=200000").await;
    app.ok("/fs/write?path=/tmp/a&bytes=200000").await;
    assert_eq!(app.get("/fs/write?path=/tmp/b&bytes=20000").await.status, 422);
    app.ok("/fs/rename?path=/tmp/a&to=/app/a").await;
    app.ok("/fs/write?path=/tmp/b&bytes=20000").await;
    app.assert_right("a rename over");
}

async fn escapes() {
    let app = driver(|_| {}).await;
    for path in ["/etc/passwd", "/app/../../etc/passwd", "/tmp/../../../etc/passwd", "../etc/passwd", "/proc/self/environ"] {
        assert_eq!(app.get(&format!("/fs/read?path={path}")).await.status, 422, "{path}");
    }
    app.ok("/fs/symlink?path=../../../../../../etc/passwd&to=/tmp/link").await;
    app.get("/fs/symlink?path=/etc/passwd&to=/tmp/absolute").await;
    std::os::unix::fs::symlink("/etc/passwd", app.tmp_dir().join("planted")).unwrap();
    for path in ["/tmp/link", "/tmp/absolute", "/tmp/planted", "/tmp/link/"] {
        let answer = app.get(&format!("/fs/read?path={path}")).await;
        assert_eq!(answer.status, 422, "{path}: {}", answer.text());
    }
}

/// Starts the same program on the same directories, after what ran there before has ended.
async fn restart(before: Instance, change: impl FnOnce(&mut Quota)) -> Instance {
    before.sandbox.kill();
    before.exit().await;
    Plan::of("tests/http-driver").await.quota(change).start_in(before.into_directory()).await
}

async fn again() {
    let app = driver(|_| {}).await;
    app.ok("/fs/create-dir?path=/tmp/d").await;
    app.ok("/fs/write?path=/tmp/d/a&bytes=10000").await;
    app.ok("/fs/hard-link?path=/tmp/d/a&to=/tmp/b").await;
    app.ok("/fs/hard-link?path=/tmp/d/a&to=/app/c").await;
    app.ok("/fs/symlink?path=d/a&to=/tmp/link").await;
    app.ok("/fs/write?path=/app/sparse&bytes=1").await;
    app.ok("/fs/truncate?path=/app/sparse&size=500000").await;
    app.ok("/fs/hold?path=/tmp/nameless&bytes=5000").await;
    let before = app.sandbox.usage();
    let app = restart(app, |_| {}).await;
    let after = app.sandbox.usage();
    assert_eq!((after.disk, after.inodes), (Size(before.disk.0 - 2 * BLOCK), before.inodes), "but for what had no name any more");
    app.ok("/fs/remove?path=/tmp/d/a").await;
    app.ok("/fs/remove?path=/tmp/b").await;
    assert_eq!(app.sandbox.usage().disk, after.disk, "one name is left");
    app.ok("/fs/remove?path=/app/c").await;
    assert_eq!(app.sandbox.usage().disk, Size(after.disk.0 - 3 * BLOCK));
}

async fn over_quota() {
    let app = driver(|_| {}).await;
    app.ok("/fs/write?path=/tmp/a&bytes=100000").await;
    let app = restart(app, |quota| quota.disk = Size(10 * BLOCK)).await;
    assert_eq!(app.sandbox.usage().disk, Size(25 * BLOCK), "it counts what is there");
    for refused in [
        "/fs/write?path=/tmp/b&bytes=0",
        "/fs/create-dir?path=/tmp/d",
        "/fs/symlink?path=a&to=/tmp/l",
        "/fs/hard-link?path=/tmp/a&to=/tmp/b",
    ] {
        let answer = app.get(refused).await;
        assert!(answer.text().starts_with("StorageFull"), "{refused}: {}", answer.text());
    }
    assert_eq!(app.ok("/fs/read?path=/tmp/a").await.len(), 100_000);
    app.ok("/fs/truncate?path=/tmp/a&size=10000").await;
    assert_eq!(app.ok("/fs/write?path=/tmp/b&bytes=100").await, "100");
    app.assert_right("making room");
}

/// What is beside the instance's directories, and must stay as it is.
fn plant_secret(app: &Instance) -> std::path::PathBuf {
    let secret = app.app_dir().parent().unwrap().join("secret");
    std::fs::create_dir(&secret).unwrap();
    std::fs::write(secret.join("file"), "not for guests").unwrap();
    secret
}

fn assert_untouched(secret: &Path, after: &str) {
    let names: Vec<_> = std::fs::read_dir(secret).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["file"], "after {after}");
    assert_eq!(std::fs::read_to_string(secret.join("file")).unwrap(), "not for guests", "after {after}");
    let beside = std::fs::read_dir(secret.parent().unwrap()).unwrap().count();
    assert_eq!(beside, 3, "app, tmp and secret, after {after}");
}

async fn names_that_lead_out() {
    let app = driver(|_| {}).await;
    let secret = plant_secret(&app);
    let absolute = secret.to_str().unwrap().to_owned();
    app.ok("/fs/create-dir?path=/tmp/d").await;
    app.ok("/fs/write?path=/tmp/mine&bytes=10").await;
    // A guest may or may not be let make such links; none of them leads anywhere.
    for (target, link) in
        [("../secret", "/tmp/up"), ("../../secret/file", "/tmp/d/file"), ("d/../../secret", "/tmp/round"), (&absolute, "/tmp/root")]
    {
        app.get(&format!("/fs/symlink?path={target}&to={link}")).await;
    }
    std::os::unix::fs::symlink(&secret, app.tmp_dir().join("planted")).unwrap();
    let out = [
        "../secret".to_owned(),
        "/tmp/../secret".into(),
        "/tmp/d/../../secret".into(),
        "/tmp/../tmp/../secret".into(),
        "/app/..".into(),
        absolute.clone(),
        format!("/tmp/{absolute}"),
        "/tmp/up".into(),
        "/tmp/round".into(),
        "/tmp/root".into(),
        "/tmp/planted".into(),
        "/tmp/d/../planted".into(),
    ];
    for path in out.iter().flat_map(|path| [format!("{path}/file"), format!("{path}/file/"), format!("{path}/new"), format!("{path}/new/")])
    {
        let operations = [
            format!("/fs/read?path={path}"),
            format!("/fs/stat?path={path}"),
            format!("/fs/write?path={path}&bytes=5"),
            format!("/fs/append?path={path}&bytes=5"),
            format!("/fs/truncate?path={path}&size=0"),
            format!("/fs/remove?path={path}"),
            format!("/fs/create-dir?path={path}"),
            format!("/fs/remove-dir?path={path}"),
            format!("/fs/rename?path=/tmp/mine&to={path}"),
            format!("/fs/rename?path={path}&to=/tmp/stolen"),
            format!("/fs/hard-link?path=/tmp/mine&to={path}"),
            format!("/fs/hard-link?path={path}&to=/tmp/stolen"),
            format!("/fs/symlink?path=mine&to={path}"),
        ];
        for operation in operations {
            let answer = app.get(&operation).await;
            assert_eq!(answer.status, 422, "{operation}: {}", answer.text());
            assert!(!answer.text().contains("not for guests"), "{operation}");
        }
    }
    // A trailing slash makes a link its target; moved, the link must stay a link.
    for link in ["up", "round", "root", "planted"] {
        for to in ["/tmp/moved/", "/tmp/d/moved/", "/app/moved/"] {
            app.get(&format!("/fs/rename?path=/tmp/{link}/&to={to}")).await;
            app.get(&format!("/fs/remove-dir?path=/tmp/{link}/")).await;
            assert_untouched(&secret, &format!("moving {link}/ to {to}"));
        }
    }
    assert_untouched(&secret, "everything");
    // It came from the host, so the ledger does not know it.
    std::fs::remove_file(app.tmp_dir().join("planted")).unwrap();
    app.assert_right("all that was refused");
}

/// One store swaps a directory for a link that leads out, and back, while others go through it.
async fn races() {
    let app = driver(|quota| (quota.disk, quota.inodes) = (Size(4 << 20), 500)).await;
    let secret = plant_secret(&app);
    let (tmp_dir, target) = (app.tmp_dir(), secret.clone());
    app.ok("/fs/create-dir?path=/tmp/door").await;
    // The link is made by the host: a guest is not let make one as good as this.
    std::os::unix::fs::symlink(&target, tmp_dir.join("link")).unwrap();
    let swaps = async {
        for _ in 0..60 {
            for (from, to) in [("door", "aside"), ("link", "door"), ("door", "link"), ("aside", "door")] {
                app.get(&format!("/fs/rename?path=/tmp/{from}&to=/tmp/{to}")).await;
            }
        }
    };
    let entries = |operation: &'static str| {
        let app = &app;
        async move {
            for _ in 0..120 {
                let answer = app.get(operation).await;
                assert!(!answer.text().contains("not for guests"), "{operation}: {}", answer.text());
            }
        }
    };
    futures::join!(
        swaps,
        entries("/fs/read?path=/tmp/door/file"),
        entries("/fs/write?path=/tmp/door/new&bytes=10"),
        entries("/fs/remove?path=/tmp/door/file"),
        entries("/fs/rename?path=/tmp/door/file&to=/tmp/stolen"),
    );
    assert_untouched(&secret, "the races");
    std::fs::remove_file(tmp_dir.join("link")).or_else(|_| std::fs::remove_file(tmp_dir.join("door"))).unwrap();
}

/// A generator that gives the same numbers for the same seed.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    fn operation(&mut self, names: u64) -> String {
        let root = ["/app", "/tmp"];
        let mut path = || format!("{}/{}", root[usize::try_from(self.below(2)).unwrap()], self.below(names));
        let (path, to) = (path(), path());
        let bytes = self.below(60_000);
        match self.below(14) {
            0 | 1 => format!("/fs/write?path={path}&bytes={bytes}"),
            2 => format!("/fs/append?path={path}&bytes={bytes}"),
            3 => format!("/fs/write-at?path={path}&offset={}&bytes={bytes}", self.below(100_000)),
            4 => format!("/fs/truncate?path={path}&size={bytes}"),
            5 => format!("/fs/create-dir?path={path}"),
            6 => format!("/fs/remove-dir?path={path}"),
            7 => format!("/fs/remove?path={path}"),
            8 | 9 => format!("/fs/rename?path={path}&to={to}"),
            10 => format!("/fs/hard-link?path={path}&to={to}"),
            11 => format!("/fs/symlink?path={}&to={to}", self.below(names)),
            12 => format!("/fs/write?path={path}/inner&bytes={bytes}"),
            _ => format!("/fs/remove?path={path}/inner"),
        }
    }
}

async fn any_sequence() {
    for seed in 0..8 {
        // With one turn a file is closed when the next request comes, which may remove it.
        let plan = Plan::of("tests/http-driver").await.quota(|quota| (quota.disk, quota.inodes) = (Size(60 * BLOCK), 12));
        let app = plan.http(|http| http.concurrent_requests = 1).start().await;
        let mut numbers = Numbers(seed);
        let (mut done, mut full) = (0, 0);
        for step in 0..150 {
            let operation = numbers.operation(6);
            let answer = app.get(&operation).await;
            assert!(answer.status == 200 || answer.status == 422, "seed {seed} step {step} {operation}: {}", answer.text());
            done += u32::from(answer.status == 200);
            full += u32::from(is_full(&answer.text()));
            app.assert_right(&format!("seed {seed} step {step} {operation}: {}", answer.text()));
            assert!(app.sandbox.usage().disk <= Size(60 * BLOCK));
        }
        assert!(done > 30 && full > 0, "seed {seed}: {done} operations worked, {full} met a full disk");
    }
}

async fn side_by_side() {
    let app = driver(|quota| (quota.disk, quota.inodes) = (Size(60 * BLOCK), 12)).await;
    for round in 0..20 {
        let mut numbers = Numbers(round + 1000);
        let operations: Vec<String> = (0..12).map(|_| numbers.operation(3)).collect();
        let answers = futures::future::join_all(operations.iter().map(|operation| app.get(operation))).await;
        assert!(answers.iter().all(|answer| answer.status == 200 || answer.status == 422));
        // A guest may close its files a moment after it has answered.
        eventually(&format!("the ledger is right after round {round}: {operations:?}"), || app.sandbox.usage().disk == app.held()).await;
    }
}
