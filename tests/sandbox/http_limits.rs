//! What a `wasi:http` droplet and its clients may take, and how a hostile one fares beside a well-behaved neighbour.

use std::time::{Duration, Instant};

use dewar_protocol::Bytes as Size;
use futures::future::join_all;
use libtest_mimic::Trial;

use crate::fixture::{PATIENCE, Plan, test};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        test("limits::who_finds_the_queue_full_is_told_to_come_back", busy),
        test("limits::a_guest_that_takes_too_long_is_cut_off", too_long),
        test("limits::waiting_too_long_three_times_is_a_crash", late_crash),
        test("limits::an_answer_has_to_end", endless_answer),
        test("limits::a_tight_budget_makes_requests_wait", tight_memory),
        test("limits::idle_stores_give_way_to_a_growing_one", idle_gives_way),
        test("limits::bodies_have_an_end", bodies),
        test("limits::streams_go_through_in_both_directions", streams),
        test("limits::a_well_behaved_neighbour_is_served_all_the_while", neighbours),
        test("limits::handles_have_an_end", handles),
    ]
}

async fn busy() {
    let limited = |limits: &mut dewar_sandbox::HttpLimits| (limits.concurrent_requests, limits.queued_requests) = (1, 2);
    let app = Plan::of("tests/http-driver").await.http(limited).start().await;
    let mut answers = join_all((0..6).map(|_| app.get("/sleep?ms=1500"))).await;
    answers.sort_by_key(|answer| answer.status);
    let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [200, 200, 200, 503, 503, 503]);
    assert_eq!(answers[5].headers["retry-after"], "1");
    assert_eq!(app.ok("/").await, "http-driver");
}

async fn too_long() {
    let app = Plan::of("tests/http-driver").await.http(|limits| limits.response_timeout = Duration::from_millis(1500)).start().await;
    for path in ["/spin", "/never"] {
        let start = Instant::now();
        assert_eq!(app.get(path).await.status, 504, "{path}");
        assert!(start.elapsed() < Duration::from_secs(20), "{path}: {:?}", start.elapsed());
        assert_eq!(app.ok("/").await, "http-driver");
    }
    // One that computes tells where it was, unless the machine is so busy that it does not get there in time.
    let start = Instant::now();
    while !app.lines.all().contains("still computing") && start.elapsed() < PATIENCE {
        assert_eq!((app.get("/spin").await.status, app.ok("/").await.as_str()), (504, "http-driver"));
    }
    let told = app.lines.all();
    assert!(told.contains("still computing") && told.contains("misbehaviour::spin"), "where it was: {told}");
    assert!(told.contains("no answer within 1.5s"), "{told}");
}

async fn late_crash() {
    let app = Plan::of("tests/http-driver").await.http(|limits| limits.response_timeout = Duration::from_millis(200)).start().await;
    for _ in 0..3 {
        // The third may find the instance gone.
        let _ = app.try_send("GET", "/never", "".into()).await;
    }
    assert_eq!(app.exit().await.description, "no answer within 200ms");
}

async fn endless_answer() {
    let app = Plan::of("tests/http-driver")
        .await
        .http(|limits| (limits.response_timeout, limits.total_timeout) = (Duration::from_millis(1500), Duration::from_millis(2000)))
        .start()
        .await;
    let start = Instant::now();
    let answer = app.try_send("GET", "/stream?chunks=1000&bytes=10&pause_ms=50", "".into()).await;
    assert!(answer.is_err(), "{answer:?}");
    assert!(start.elapsed() > Duration::from_millis(1700) && start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    assert_eq!(app.ok("/").await, "http-driver");
}

async fn tight_memory() {
    // Room for one store at work beside one that is idle.
    let app = Plan::of("tests/http-driver").await.quota(|quota| quota.memory = Size(4 << 20)).start().await;
    let answers = join_all((0..12).map(|_| app.get("/sleep?ms=100"))).await;
    let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [200; 12], "{}", app.lines.all());
    assert!(app.sandbox.usage().memory <= Size(4 << 20), "{:?}", app.sandbox.usage());
}

async fn idle_gives_way() {
    let app = Plan::of("tests/http-driver").await.quota(|quota| quota.memory = Size(32 << 20)).start().await;
    let stores = join_all((0..8).map(|_| app.ok("/sleep?ms=1500"))).await;
    assert_eq!(stores.len(), 8);
    let before = app.sandbox.usage().memory;
    assert!(before > Size(8 << 20), "eight stores: {before:?}");
    assert_eq!(app.ok("/grow?bytes=22000000").await, "22000000");
}

async fn bodies() {
    let app = Plan::of("tests/http-driver")
        .await
        .http(|limits| (limits.request_body, limits.response_body) = (Size(100_000), Size(200_000)))
        .start()
        .await;
    assert_eq!(app.send("POST", "/drain", vec![b'x'; 100_000]).await.text(), "100000");
    assert_eq!(app.send("POST", "/drain", vec![b'x'; 100_001]).await.status, 413);
    assert_eq!(app.get("/bytes?count=200000").await.body.len(), 200_000);
    assert!(app.try_send("GET", "/bytes?count=200001", "".into()).await.is_err());
    assert!(app.lines.all().contains("larger than it may be"), "{}", app.lines.all());
    assert_eq!(app.send("POST", "/ignore-body", vec![b'x'; 100_000]).await.text(), "ignored");
}

async fn streams() {
    let app = Plan::of("tests/http-driver").await.start().await;
    let body: Vec<u8> = (0..5_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let echoed = app.send("POST", "/echo", body.clone()).await;
    assert!(echoed.body == body, "{} of {} bytes came back", echoed.body.len(), body.len());
    assert_eq!(app.get("/stream?chunks=20&bytes=1000&pause_ms=5").await.body.len(), 20_000);
}

async fn neighbours() {
    let hostile = Plan::of("tests/http-driver").await.start().await;
    let good = Plan::of("examples/hello").await.start().await;
    let paths = ["/spin", "/spin", "/spin", "/spin", "/hog", "/flood?lines=10000000&bytes=200", "/overflow", "/never"];
    let attacks: Vec<_> = paths.iter().map(|path| hostile.try_send("GET", path, "".into())).collect();
    let service = async {
        let mut slowest = Duration::ZERO;
        for _ in 0..50 {
            let start = Instant::now();
            assert_eq!(good.get("/").await.status, 200);
            slowest = slowest.max(start.elapsed());
        }
        slowest
    };
    let slowest = tokio::select! {
        slowest = service => slowest,
        _ = join_all(attacks) => panic!("the attacks ended first"),
    };
    assert!(slowest < Duration::from_secs(20), "a neighbour waited {slowest:?}");
}

async fn handles() {
    let app = Plan::of("tests/http-driver").await.quota(|quota| quota.open_files = 10).start().await;
    app.send("POST", "/fs/write?path=/tmp/file", "x").await;
    let answer = app.get("/fs/open-many?path=/tmp/file&count=5").await;
    assert_eq!(answer.text().lines().next(), Some("5"), "{}", answer.text());
    // Beyond its handles a guest traps: WASI has no error for it.
    let many = app.get("/fs/open-many?path=/tmp/file&count=100000").await;
    assert!(many.status == 500 || many.text().lines().next().unwrap().parse::<u32>().unwrap() < 1000, "{}", many.text());
    assert_eq!(app.ok("/").await, "http-driver");
}
