//! Memory and handles of an instance, over all its stores and in the host; what it is told when they are used up.

use dewar_protocol::{Bytes as Size, LogStream};
use futures::future::join_all;
use libtest_mimic::Trial;

use crate::fixture::{CALL, Instance, Plan, eventually, guest, sandboxes, test};

/// What a store is charged for besides its memories and tables, as documented.
const STORE: u64 = 128 << 10;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        test("quotas::a_store_and_a_call_cost_memory", stores_and_calls),
        test("quotas::what_the_host_keeps_for_a_guest_is_memory_of_the_instance", hoarding),
        test("quotas::an_instance_too_small_for_one_store_says_so", too_small),
        test("quotas::the_environment_counts_as_memory", environment),
        test("quotas::a_refused_growth_is_the_guests_to_handle_and_running_out_ends_it", growth),
        test("quotas::there_is_no_heap_but_linear_memory", no_gc),
        test("quotas::open_files_are_counted_over_all_stores", open_files),
        test("quotas::a_stream_keeps_its_file_open", streams),
        test("quotas::a_full_disk_is_told_once", full_disk),
        test("quotas::a_path_has_an_end", long_path),
    ]
}

async fn stores_and_calls() {
    let app = Plan::of("tests/http-driver").await.start().await;
    let idle = app.sandbox.usage().memory;
    let asleep = app.get("/sleep?ms=2000");
    let seen = async {
        eventually("the call is charged", || app.sandbox.usage().memory >= Size(idle.0 + CALL)).await;
    };
    let (answer, ()) = futures::join!(asleep, seen);
    assert_eq!(answer.status, 200);
    eventually("the call is over", || app.sandbox.usage().memory < Size(idle.0 + CALL)).await;
    let usage = app.sandbox.usage();
    assert!(usage.memory_peak >= Size(idle.0 + CALL) && usage.memory >= Size(STORE), "{usage:?}");
}

async fn hoarding() {
    let quota = Size(8 << 20);
    let app = Plan::of("tests/http-hoard-fields").await.quota(|quota| quota.memory = Size(8 << 20)).start().await;
    for _ in 0..3 {
        // The third may find the instance gone.
        let _ = app.try_send("GET", "/", "".into()).await;
    }
    let exit = app.exit().await;
    // How much it had piled up when it was noticed is a matter of time.
    assert!(exit.description.starts_with("out of memory (used ") && exit.description.contains(" of 8 MiB, wanted "), "{exit:?}");
    assert!(exit.description.contains("its handles, fields and bodies take ") && exit.description.contains(" of the host"), "{exit:?}");
    let usage = app.sandbox.usage();
    assert!(usage.memory == Size(0) && usage.memory_peak <= quota, "{usage:?}");
    // With room for it the same guest just computes until its time is up.
    let roomy =
        Plan::of("tests/http-hoard-fields").await.http(|limits| limits.response_timeout = std::time::Duration::from_secs(4)).start().await;
    assert_eq!(roomy.get("/").await.status, 504);
    assert!(roomy.sandbox.usage().memory_peak > quota, "{:?}", roomy.sandbox.usage());
}

async fn too_small() {
    let plan = Plan::of("tests/http-driver").await.quota(|quota| quota.memory = Size(1 << 20));
    let Err((exit, _)) = plan.try_start().await else { panic!("there is no room for a call") };
    assert_eq!(exit.description, "out of memory (used 0.1 MiB of 1 MiB, wanted 1.8 MiB more)");
}

async fn environment() {
    let plain = Plan::of("tests/http-driver").await.start().await;
    let loaded = Plan::of("tests/http-driver").await.env("BULK", &"x".repeat(100_000)).start().await;
    // One that was not asked yet has no store.
    assert_eq!((plain.get("/").await.status, loaded.get("/").await.status), (200, 200));
    let more = || loaded.sandbox.usage().memory.0.saturating_sub(plain.sandbox.usage().memory.0);
    // The guest may have a copy of its own. Either may be at work for a moment after its answer.
    eventually("the bulk is charged, and no more", || (100_000..800_000).contains(&more())).await;
}

async fn growth() {
    let app = Plan::of("tests/http-driver").await.quota(|quota| quota.memory = Size(16 << 20)).start().await;
    let refused = app.get("/grow?bytes=30000000").await;
    assert!(refused.status == 422 && refused.text().starts_with("OutOfMemory"), "{}", refused.text());
    assert_eq!(app.ok("/grow?bytes=1000000").await, "1000000", "it goes on");
    for _ in 0..3 {
        let _ = app.try_send("GET", "/hog", "".into()).await;
    }
    let exit = app.exit().await;
    assert!(exit.description.starts_with("out of memory (used ") && exit.description.contains(" of 16 MiB, wanted "), "{exit:?}");
    assert!(app.sandbox.usage().memory_peak <= Size(16 << 20));
}

async fn no_gc() {
    let error = sandboxes().program(&guest("tests/gc")).await.expect_err("it needs a heap").to_string();
    assert!(error.starts_with("compile component: ") && error.contains("gc"), "{error}");
}

/// Keeps a store busy for as long as another request takes, so that this one has a store of its own.
async fn beside(app: &Instance, path: &str) -> String {
    let before = app.sandbox.usage().memory;
    let (asleep, answer) = futures::join!(app.get("/sleep?ms=2000"), async {
        app.is_at_work(before).await;
        app.get(path).await
    });
    assert_eq!(asleep.status, 200);
    answer.text()
}

/// Waits until none of so many stores is at work: one that is not has less than what a call costs.
async fn at_rest(app: &Instance, stores: u64) {
    eventually("all are at rest", || app.sandbox.usage().memory < Size(stores * CALL)).await;
}

async fn open_files() {
    let app = Plan::of("tests/http-driver").await.quota(|quota| quota.open_files = 10).start().await;
    app.send("POST", "/fs/write?path=/tmp/file", "x").await;
    for name in 0..4 {
        at_rest(&app, 1).await;
        app.ok(&format!("/fs/hold?path=/tmp/held{name}&bytes=1")).await;
    }
    at_rest(&app, 1).await;
    assert_eq!(app.sandbox.usage().open_files, 4);
    let other = beside(&app, "/fs/open-many?path=/tmp/file&count=100").await;
    let (opened, error) = other.split_once('\n').unwrap();
    assert_eq!(opened, "6", "what the first store leaves: {error}");
    assert!(error.starts_with("QuotaExceeded"), "{error}");
    let told: Vec<String> = app.lines.of(LogStream::Err).into_iter().filter(|line| line.contains("open files")).collect();
    assert_eq!(told, ["[open files quota reached: 10 at a time]"]);
    // The store that was given back last is the first to be used again: that which slept, and holds the files.
    at_rest(&app, 2).await;
    app.ok("/fs/release").await;
    eventually("all are closed", || app.sandbox.usage().open_files == 0).await;
}

async fn streams() {
    let app = Plan::of("tests/http-driver").await.quota(|quota| quota.open_files = 8).start().await;
    app.send("POST", "/fs/write?path=/tmp/file", "x").await;
    // Many at a time, each through streams, in many stores: at no time more than the quota, and in the end none.
    let answers = join_all((0..32).map(|_| app.get("/fs/read?path=/tmp/file"))).await;
    assert!(answers.iter().all(|answer| answer.status == 200 || answer.text().starts_with("QuotaExceeded")), "{answers:?}");
    eventually("all are closed", || app.sandbox.usage().open_files == 0).await;
}

async fn full_disk() {
    let app = Plan::of("tests/http-driver").await.quota(|quota| quota.inodes = 3).start().await;
    for _ in 0..5 {
        app.ok("/fs/fill-inodes?path=/tmp&limit=10").await;
    }
    let told: Vec<String> = app.lines.of(LogStream::Err).into_iter().filter(|line| line.contains("disk quota")).collect();
    assert_eq!(told, ["[disk quota reached: 0 MiB of 1 MiB in use, 3 of 3 files]"]);
    assert_eq!((app.sandbox.usage().inodes, app.sandbox.usage().disk), (3, Size(0)));
}

async fn long_path() {
    let app = Plan::of("tests/http-driver").await.start().await;
    let long = format!("/tmp/{}", "x/".repeat(3000));
    for operation in ["read", "write", "create-dir", "remove", "stat"] {
        let refused = app.get(&format!("/fs/{operation}?path={long}&bytes=1")).await;
        assert!(refused.status == 422 && refused.text().starts_with("InvalidFilename"), "{operation}: {}", refused.text());
    }
}
