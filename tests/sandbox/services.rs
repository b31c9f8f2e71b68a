//! Requests side by side in one store of WASI 0.3.

use std::sync::Arc;
use std::time::Duration;

use dewar_protocol::Bytes as Size;
use dewar_sandbox::HttpLimits;
use futures::future::join_all;
use libtest_mimic::Trial;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::fixture::{Answer, Instance, PATIENCE, Plan, eventually, test};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        test("services::requests_share_a_store", side_by_side),
        test("services::a_store_takes_no_more_than_it_may", limited),
        test("services::what_ends_one_ends_all_of_its_store_and_none_elsewhere", shared_end),
        test("services::a_body_that_its_store_left_unfinished_is_no_whole_one", unfinished),
        test("services::a_client_that_goes_away_takes_nobody_along", gone),
        test("services::who_computes_holds_up_only_those_beside_it", computes),
        test("services::who_waits_too_long_is_cut_off_alone", late),
        test("services::work_after_the_answer_is_done_or_cut_off", afterwards),
        test("services::an_instance_that_stops_finishes_what_it_has", stop),
    ]
}

/// What a call costs the host, as `src/sandbox/limits.rs` reckons it.
const CALL_BYTES: u64 = 1920 << 10;

/// An instance whose memory is enough for one store with two requests, and not for two stores.
async fn one_store(change: impl FnOnce(&mut HttpLimits)) -> Arc<Instance> {
    let large = Arc::new(Plan::of("tests/service-hello").await.start().await);
    let request = waits(&large, "/wait?ms=1").await;
    let store = large.sandbox.usage().memory_peak.0 - CALL_BYTES;
    assert_eq!(text(request).await, "200 1 of 1");
    let memory = Size(store + 2 * CALL_BYTES + store / 2);
    Arc::new(Plan::of("tests/service-hello").await.quota(|quota| quota.memory = memory).http(change).start().await)
}

fn ask(app: &Arc<Instance>, path: &'static str) -> JoinHandle<Answer> {
    let app = app.clone();
    tokio::spawn(async move { app.get(path).await })
}

/// Begins to wait beside those who do.
async fn waits(app: &Arc<Instance>, path: &'static str) -> JoinHandle<Answer> {
    let waiting = || app.lines.all().matches("waits").count();
    let before = waiting();
    let request = ask(app, path);
    eventually("the guest waits", || waiting() > before).await;
    request
}

async fn text(answer: JoinHandle<Answer>) -> String {
    let answer = answer.await.unwrap();
    format!("{} {}", answer.status, answer.text())
}

async fn side_by_side() {
    let app = one_store(|_| {}).await;
    let requests = join_all((0..12).map(|_| app.ok("/wait?ms=50"))).await;
    assert!(requests.iter().any(|text| text.starts_with("2 of")), "{requests:?}");
    assert!(requests.iter().all(|text| text.starts_with("1 of") || text.starts_with("2 of")), "there is memory for two: {requests:?}");
    assert_eq!(app.ok("/wait?ms=0").await, "1 of 13", "one store has answered all");
}

async fn limited() {
    let roomy = async |places| {
        let change = |limits: &mut HttpLimits| limits.concurrent_requests_per_store = places;
        Arc::new(Plan::of("tests/service-hello").await.http(change).start().await)
    };
    // Where there is memory for other stores, who comes while another computes gets one of them.
    let app = roomy(3).await;
    let mut most = 0;
    while most < 3 {
        let mut requests = Vec::new();
        for _ in 0..6 {
            requests.push(waits(&app, "/wait?ms=300").await);
        }
        for answer in join_all(requests.into_iter().map(text)).await {
            most = most.max(answer.strip_prefix("200 ").and_then(|text| text[..1].parse().ok()).unwrap());
        }
        assert!(most <= 3, "{most}");
    }
    let app = roomy(1).await;
    let beside: Vec<String> = join_all((0..4).map(|_| app.ok("/wait?ms=50"))).await;
    assert!(beside.iter().all(|text| text.starts_with("1 of")), "{beside:?}");

    let worn = one_store(|limits| limits.requests_per_store = 6).await;
    join_all((0..6).map(|_| worn.ok("/wait?ms=50"))).await;
    assert_eq!(worn.ok("/wait?ms=0").await, "1 of 1", "a store that has answered six makes way for another");
}

async fn shared_end() {
    let app = one_store(|_| {}).await;
    for round in 0..2 {
        let innocent = waits(&app, "/wait?ms=600000").await;
        let guilty = ask(&app, "/panic?ms=0");
        assert_eq!(text(guilty).await, "500 the app failed to answer");
        assert_eq!(text(innocent).await, "500 the app failed to answer", "round {round}");
        assert_eq!(app.ok("/wait?ms=0").await, "1 of 1");
    }
    let told = app.lines.all();
    assert_eq!(told.matches("wasm trap").count(), 2, "each end is told once: {told}");

    // Three failures in a row end an instance. One that ends several requests is one.
    let app = Arc::new(Plan::of("tests/service-hello").await.start().await);
    let mut innocent = Vec::new();
    for _ in 0..8 {
        innocent.push(waits(&app, "/wait?ms=600000").await);
    }
    while !innocent.iter().any(JoinHandle::is_finished) {
        assert_eq!(text(ask(&app, "/panic?ms=0")).await, "500 the app failed to answer");
        assert_eq!(app.ok("/").await, "Hello from WASI 0.3\n", "it lives on");
    }
    innocent.iter().for_each(JoinHandle::abort);
}

async fn unfinished() {
    let app = one_store(|_| {}).await;
    let mut stream = TcpStream::connect(app.address).await.unwrap();
    stream.write_all(b"GET /parts?ms=600000 HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut heard = Vec::new();
    while !heard.ends_with(b"one\r\n") {
        assert_ne!(stream.read_buf(&mut heard).await.unwrap(), 0, "{}", String::from_utf8_lossy(&heard));
    }
    assert_eq!(text(ask(&app, "/panic?ms=0")).await, "500 the app failed to answer");
    // A reset is an end as well.
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut heard)).await.expect("the end of the connection");
    assert!(!heard.ends_with(b"0\r\n\r\n"), "as if it were whole: {}", String::from_utf8_lossy(&heard));

    let whole = app.get("/parts?ms=1").await;
    assert_eq!((whole.status, whole.text().as_str()), (200, "onetwo"));
}

async fn gone() {
    let app = one_store(|_| {}).await;
    let stays = waits(&app, "/wait?ms=5000").await;
    let leaves = waits(&app, "/wait?ms=600000").await;
    leaves.abort();
    assert_eq!(text(stays).await, "200 2 of 2");
    // What the other would have waited for has ended with the store.
    assert_eq!(app.ok("/wait?ms=0").await, "1 of 1");

    // With nobody else there it ends at once, whatever the guests do.
    for paths in [&["/wait?ms=600000", "/wait?ms=600000"][..], &["/spin?ms=0"]] {
        let mut leave = Vec::new();
        for path in paths {
            leave.push(waits(&app, path).await);
        }
        leave.iter().for_each(JoinHandle::abort);
        assert_eq!(app.ok("/wait?ms=0").await, "1 of 1", "{paths:?}");
    }
    assert!(!app.lines.all().contains("wasm"), "no failure of the app: {}", app.lines.all());
}

async fn computes() {
    let change = |limits: &mut HttpLimits| limits.response_timeout = Duration::from_secs(5);
    let app = Arc::new(Plan::of("tests/service-hello").await.http(change).start().await);
    let mut beside = Vec::new();
    for _ in 0..8 {
        beside.push(waits(&app, "/wait?ms=2500").await);
    }
    // Their time is up before its own.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let guilty = waits(&app, "/spin?ms=100").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    for _ in 0..20 {
        assert_eq!(app.ok("/").await, "Hello from WASI 0.3\n", "there is another store for those who come");
    }
    assert!(text(guilty).await.starts_with("504"));
    for answer in join_all(beside.into_iter().map(text)).await {
        assert!(["504", "500", "200"].contains(&&answer[..3]), "{answer}");
    }
    // On a busy machine its clients may be told before it has trapped, and then it ends with them.
    let reasons = ["still computing when its time was up", "no answer within 5s"];
    eventually("why is told", || reasons.iter().any(|reason| app.lines.all().contains(reason))).await;
    assert_eq!(app.ok("/").await, "Hello from WASI 0.3\n", "so many who were late are no crash");
    let rests = || {
        let before = app.sandbox.usage().cpu;
        std::thread::sleep(Duration::from_millis(100));
        app.sandbox.usage().cpu == before
    };
    eventually("nothing computes any more", rests).await;
}

async fn late() {
    let app = one_store(|limits| limits.response_timeout = Duration::from_secs(10)).await;
    let late = waits(&app, "/wait?ms=600000").await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    let in_time = waits(&app, "/wait?ms=6000").await;
    assert_eq!(text(late).await, "504 the app took too long to answer");
    assert_eq!(text(in_time).await, "200 2 of 2");
    assert!(app.lines.all().contains("no answer within 10s"), "{}", app.lines.all());
    assert_eq!(app.ok("/wait?ms=0").await, "1 of 1", "the store has gone with the one that was late");
}

async fn afterwards() {
    let app = one_store(|_| {}).await;
    assert_eq!(app.ok("/later?ms=300").await, "later");
    assert_eq!(app.ok("/wait?ms=0").await, "1 of 1");
    eventually("what was to do is done", || app.lines.all().contains("done 300 ms later")).await;
    assert_eq!(app.ok("/wait?ms=0").await, "1 of 2", "in the same store");

    let short = one_store(|limits| limits.total_timeout = Duration::from_secs(2)).await;
    assert_eq!(short.ok("/later?ms=600000").await, "later");
    eventually("the end of the store", || short.sandbox.usage().memory == Size(0)).await;
    assert_eq!(short.ok("/wait?ms=0").await, "1 of 1");
    assert!(!short.lines.all().contains("later"), "{}", short.lines.all());
}

async fn stop() {
    let app = one_store(|_| {}).await;
    let requests = [waits(&app, "/wait?ms=500").await, waits(&app, "/wait?ms=600").await];
    app.sandbox.stop();
    for answer in join_all(requests.map(text)).await {
        assert!(answer.starts_with("200"), "{answer}");
    }
    assert_eq!(app.exit().await.description, "stopped");
}
