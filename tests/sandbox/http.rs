//! `wasi:http` droplets: their life, their failures, and who is to blame.

use std::time::{Duration, Instant};

use dewar_protocol::{Bytes as Size, LogStream};
use dewar_sandbox::{HttpLimits, Instances, World};
use libtest_mimic::Trial;

use crate::fixture::{PATIENCE, Plan, eventually, test};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        test("http::hello_answers", hello_answers),
        test("http::an_app_sees_its_environment_and_arguments", environment),
        test("http::wasi_0_3_answers", wasi_0_3),
        test("http::of_both_worlds_http_is_the_first", both_worlds),
        test("http::a_store_is_used_again", stores_are_used_again),
        test("http::the_last_store_makes_way_after_a_while", idle),
        test("http::a_fresh_store_knows_nothing_of_others_before_it", fresh_stores),
        test("http::stores_made_ahead_stay_within_the_quota", fresh_within_quota),
        test("http::requests_run_side_by_side", side_by_side),
        test("http::a_trap_ends_its_request_only_and_is_told_with_names", trap_is_told),
        test("http::three_traps_in_a_row_are_a_crash", three_traps),
        test("http::a_panic_tells_its_message", panic_message),
        test("http::endless_recursion_is_a_trap", recursion),
        test("http::exit_ends_the_instance", exit),
        test("http::who_wants_too_much_memory_is_told_the_numbers", out_of_memory),
        test("http::a_refused_growth_is_no_crash", refused_growth),
        test("http::start_up_code_that_fails_is_no_start", start_up_fails),
        test("http::start_up_code_may_not_compute_for_ever", start_up_spins),
        test("http::winding_down_serves_on_but_keeps_no_connection", wind_down),
        test("http::stop_lets_requests_finish", stop),
        test("http::kill_ends_a_spinning_guest", kill),
        test("http::dropping_the_sandbox_kills", dropped),
        test("http::a_client_that_goes_away_takes_its_guest_along", client_gone),
        test("http::cpu_time_is_what_guests_compute", cpu_time),
        test("http::what_is_printed_comes_as_lines", output),
    ]
}

async fn hello_answers() {
    let app = Plan::of("examples/hello").await.start().await;
    let answer = app.get("/").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.text().starts_with("Hello"), "{}", answer.text());
    let usage = app.sandbox.usage();
    assert!(usage.memory > Size(1 << 16) && usage.memory <= Size(64 << 20), "{usage:?}");
}

async fn environment() {
    let app = Plan::of("tests/http-driver").await.env("GREETING", "good day").args(&["one", "two words"]).start().await;
    assert_eq!(app.ok("/env?name=GREETING").await, "good day");
    assert_eq!(app.ok("/args").await, "app\none\ntwo words\n");
    let nanos: u128 = app.ok("/clock").await.lines().next().unwrap().parse().unwrap();
    assert!(nanos > 1_600_000_000 * 1_000_000_000);
    assert_eq!(app.get("/random?bytes=32").await.body.len(), 32);
}

async fn wasi_0_3() {
    let app = Plan::of("tests/service-hello").await.start().await;
    for _ in 0..50 {
        assert_eq!(app.ok("/").await, "Hello from WASI 0.3\n");
    }
    let body = "x".repeat(1 << 20);
    let answer = app.send("POST", "/", body.clone()).await;
    assert_eq!((answer.status, answer.body.len(), answer.text() == body), (200, body.len(), true));
    app.sandbox.stop();
    assert_eq!(app.exit().await.description, "stopped");
}

async fn both_worlds() {
    let plan = Plan::of("tests/both-worlds").await;
    assert_eq!(plan.program.worlds(), [World::Http, World::Command]);
    assert_eq!(plan.start().await.ok("/").await, "http");

    let mut plan = Plan::of("tests/both-worlds").await;
    plan.world = Some(World::Command);
    let command = plan.start().await;
    assert_eq!((command.exit().await.status, command.lines.all().as_str()), (0, "command\n"));
}

async fn stores_are_used_again() {
    // With one turn a request comes when the guest is done with the one before; else it may be answered and need its store still.
    let app = Plan::of("tests/http-driver").await.http(|limits| limits.concurrent_requests = 1).start().await;
    for count in 1..=20 {
        assert_eq!(app.ok("/counter").await, count.to_string());
    }
    let app =
        Plan::of("tests/http-driver").await.http(|limits| (limits.requests_per_store, limits.concurrent_requests) = (2, 1)).start().await;
    let counts = [app.ok("/counter").await, app.ok("/counter").await, app.ok("/counter").await];
    assert_eq!(counts, ["1", "2", "1"]);
}

async fn fresh_stores() {
    let app = Plan::of("tests/http-driver").await.http(|limits| limits.instances = Instances::Fresh).start().await;
    for _ in 0..5 {
        let counts = futures::future::join_all((0..20).map(|_| app.ok("/counter"))).await;
        assert!(counts.iter().all(|count| count == "1"), "{counts:?}");
    }
    let body = "x".repeat(1 << 20);
    assert_eq!(app.send("POST", "/echo", body.clone()).await.text(), body);
    app.sandbox.stop();
    assert_eq!(app.exit().await.description, "stopped");
    assert_eq!(app.sandbox.usage().memory, Size(0));
}

async fn fresh_within_quota() {
    let quota = Size(24 << 20);
    let plan = Plan::of("tests/http-driver").await.quota(|limits| limits.memory = quota);
    let app = plan.http(|limits| limits.instances = Instances::Fresh).start().await;
    let one = app.sandbox.usage().memory.0;
    assert_eq!(app.ok("/counter").await, "1");
    // Without any more requests there are soon several, but there is always room for a request that needs its own.
    eventually("stores are made ahead", || app.sandbox.usage().memory.0 >= 3 * one).await;
    for _ in 0..10 {
        let counts = futures::future::join_all((0..30).map(|_| app.ok("/counter"))).await;
        assert!(counts.iter().all(|count| count == "1"), "{counts:?}");
        assert!(app.sandbox.usage().memory <= quota, "{:?}", app.sandbox.usage());
    }
    // What was made ahead gives way to a request that grows, once those that have been answered are done.
    let deadline = Instant::now() + PATIENCE;
    while app.get("/grow?bytes=16000000").await.status != 200 {
        assert!(Instant::now() < deadline, "{}", app.lines.all());
    }
}

async fn side_by_side() {
    let app = Plan::of("tests/http-driver").await.start().await;
    let start = Instant::now();
    let answers = futures::future::join_all((0..20).map(|_| app.ok("/sleep?ms=1000"))).await;
    assert!(answers.iter().all(|text| text == "slept"));
    assert!(start.elapsed() < Duration::from_secs(15), "one after the other: {:?}", start.elapsed());
}

async fn trap_is_told() {
    let app = Plan::of("tests/http-driver").await.start().await;
    for _ in 0..5 {
        let answer = app.get("/trap").await;
        assert_eq!((answer.status, answer.text().as_str()), (500, "the app failed to answer"));
        assert_eq!(app.ok("/").await, "http-driver");
    }
    let told = app.lines.of(LogStream::Err).join("\n");
    assert!(told.contains("wasm trap: wasm `unreachable` instruction executed"), "{told}");
    assert!(told.contains("http_driver::handle"), "a named backtrace: {told}");
}

async fn three_traps() {
    let app = Plan::of("tests/http-driver").await.start().await;
    for _ in 0..3 {
        // The third may find the instance gone.
        let _ = app.try_send("GET", "/trap", "".into()).await;
    }
    let exit = app.exit().await;
    assert_eq!(exit.status, -1);
    assert!(exit.description.starts_with("wasm trap: wasm `unreachable` instruction executed\n"), "{}", exit.description);
    assert!(exit.description.contains("http_driver::handle"), "{}", exit.description);
    assert_eq!(app.sandbox.usage().memory, Size(0));
}

async fn panic_message() {
    let app = Plan::of("tests/http-driver").await.start().await;
    assert_eq!(app.get("/panic?text=oh-no").await.status, 500);
    assert!(app.lines.all().contains("oh-no"), "{}", app.lines.all());
}

async fn recursion() {
    let app = Plan::of("tests/http-driver").await.start().await;
    assert_eq!(app.get("/overflow").await.status, 500);
    assert!(app.lines.all().contains("http_driver::misbehaviour::descend"), "{}", app.lines.all());
    assert_eq!(app.ok("/").await, "http-driver");
}

async fn exit() {
    let app = Plan::of("tests/http-driver").await.start().await;
    // The answer may be lost with the instance.
    let _ = app.try_send("GET", "/exit?status=7", "".into()).await;
    let exit = app.exit().await;
    assert_eq!((exit.status, exit.description.as_str()), (7, "app instance exited"));
}

async fn out_of_memory() {
    let app = Plan::of("tests/http-driver").await.quota(|quota| quota.memory = Size(16 << 20)).start().await;
    assert_eq!(app.get("/hog").await.status, 500);
    assert_eq!(app.ok("/").await, "http-driver");
    for _ in 0..3 {
        // The third may find the instance gone.
        let _ = app.try_send("GET", "/hog", "".into()).await;
    }
    let exit = app.exit().await;
    assert!(exit.description.starts_with("out of memory (used 1"), "{}", exit.description);
    assert!(exit.description.contains(" of 16 MiB, wanted "), "{}", exit.description);
}

async fn refused_growth() {
    let app = Plan::of("tests/http-driver").await.quota(|quota| quota.memory = Size(16 << 20)).start().await;
    assert_eq!(app.ok("/grow?bytes=8000000").await, "8000000");
    assert!(app.sandbox.usage().memory > Size(8_000_000), "{:?}", app.sandbox.usage());
    for _ in 0..5 {
        let refused = app.get("/grow?bytes=16000000").await;
        assert_eq!(refused.status, 422, "{}", refused.text());
        assert!(refused.text().starts_with("OutOfMemory"), "{}", refused.text());
    }
    assert_eq!(app.ok("/").await, "http-driver");
    assert!(app.sandbox.usage().memory <= Size(16 << 20));
}

async fn start_up_fails() {
    let (exit, _) = Plan::of("tests/http-trap-at-start").await.try_start().await.err().expect("it traps");
    assert_eq!(exit.status, -1);
    assert!(exit.description.starts_with("wasm trap: wasm `unreachable` instruction executed\n"), "{}", exit.description);
    assert!(exit.description.contains("broken") && exit.description.contains("start"), "a named backtrace: {}", exit.description);

    let tiny = Plan::of("tests/http-driver").await.quota(|quota| quota.memory = Size(1 << 16));
    let (exit, _) = tiny.try_start().await.err().expect("not even its first memory fits");
    assert!(exit.description.starts_with("out of memory (used 0 MiB of 0"), "{}", exit.description);
}

async fn start_up_spins() {
    let short = |limits: &mut dewar_sandbox::HttpLimits| limits.startup_timeout = Duration::from_millis(300);
    let mut start = Instant::now();
    let mut exit = None;
    // On a machine that is very busy it may not get to tell where it was.
    for _ in 0..5 {
        let plan = Plan::of("tests/http-spin-at-start").await.http(short);
        start = Instant::now();
        exit = plan.try_start().await.err();
        if exit.as_ref().is_some_and(|(exit, _)| exit.description.starts_with("still computing")) {
            break;
        }
    }
    let (exit, _) = exit.expect("it spins");
    assert!(exit.description.starts_with("still computing"), "{}", exit.description);
    assert!(exit.description.contains("busy"), "a named backtrace: {}", exit.description);
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

async fn idle() {
    let change = |limits: &mut HttpLimits| limits.store_idle_timeout = Duration::from_millis(200);
    let app = Plan::of("tests/http-driver").await.http(change).start().await;
    assert_eq!(app.ok("/counter").await, "1");
    eventually("the store has gone", || app.sandbox.usage().memory == Size(0)).await;
    assert_eq!(app.ok("/counter").await, "1", "in a new one");

    // Usually it takes longer.
    let app = Plan::of("tests/http-driver").await.start().await;
    assert_eq!(app.ok("/counter").await, "1");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(app.ok("/counter").await, "2");
}

async fn wind_down() {
    let app = Plan::of("tests/http-driver").await.start().await;
    let mut kept = app.client().keep().await;
    let before = kept.ask("/").await;
    assert_eq!((before.status(), before.headers().get("connection")), (http::StatusCode::OK, None));
    app.sandbox.wind_down();
    let last = kept.ask("/").await;
    assert_eq!((last.status(), last.headers()["connection"].as_bytes()), (http::StatusCode::OK, &b"close"[..]));
    kept.is_closed().await;
    let new = app.get("/").await;
    assert_eq!((new.status, new.headers["connection"].as_bytes()), (200, &b"close"[..]));
    app.sandbox.stop();
    assert_eq!(app.exit().await.description, "stopped");
}

async fn stop() {
    let app = Plan::of("tests/http-driver").await.start().await;
    let before = app.sandbox.usage().memory;
    let (answer, exit) = tokio::join!(app.ok("/sleep?ms=2000"), async {
        app.is_at_work(before).await;
        app.sandbox.stop();
        app.exit().await
    });
    assert_eq!(answer, "slept");
    assert_eq!((exit.status, exit.description.as_str()), (0, "stopped"));
    assert!(tokio::net::TcpStream::connect(app.address).await.is_err(), "nobody listens any more");
}

async fn kill() {
    let app = Plan::of("tests/http-driver").await.start().await;
    let (answer, ()) = tokio::join!(app.try_send("GET", "/spin", "".into()), async {
        eventually("it spins", || app.sandbox.usage().cpu > Duration::from_millis(100)).await;
        let killed = Instant::now();
        app.sandbox.kill();
        assert_eq!(app.exit().await.description, "killed");
        assert!(killed.elapsed() < Duration::from_secs(20), "{:?}", killed.elapsed());
    });
    assert!(answer.is_err(), "{answer:?}");
    let cpu = app.sandbox.usage().cpu;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(app.sandbox.usage().cpu, cpu, "it still computes");
}

async fn dropped() {
    let app = Plan::of("tests/http-driver").await.start().await;
    let address = app.address;
    drop(app);
    eventually("nobody listens any more", || std::net::TcpStream::connect(address).is_err()).await;
}

async fn client_gone() {
    let app = Plan::of("tests/http-driver").await.http(|limits| limits.concurrent_requests = 1).start().await;
    for path in ["/never", "/spin"] {
        let gone = tokio::time::timeout(Duration::from_millis(200), app.get(path)).await;
        assert!(gone.is_err(), "{path} answered");
        // With one turn only, this one waits for as long as the other has not ended.
        assert_eq!(tokio::time::timeout(Duration::from_secs(20), app.ok("/")).await.expect("a turn"), "http-driver");
    }
    assert!(!app.lines.all().contains("wasm"), "no failure of the app: {}", app.lines.all());
}

async fn cpu_time() {
    let app = Plan::of("tests/http-driver").await.start().await;
    let mut waited = Vec::new();
    // A machine that stands still in the middle of a slice charges it with that.
    while waited.last().is_none_or(|waited| *waited >= Duration::from_millis(200)) {
        assert!(waited.len() < 10, "waiting is not computing: {waited:?}");
        let before = app.sandbox.usage().cpu;
        app.ok("/sleep?ms=300").await;
        waited.push(app.sandbox.usage().cpu - before);
    }
    let (mut computed, start, waited) = (Duration::ZERO, Instant::now(), app.sandbox.usage().cpu);
    // It spins for a time on the clock, and gets what the machine has left for it.
    while computed <= Duration::from_millis(50) {
        app.ok("/spin?ms=300").await;
        computed = app.sandbox.usage().cpu.saturating_sub(waited);
        assert!(start.elapsed() < PATIENCE, "{computed:?}");
    }
    assert!(computed <= start.elapsed() + Duration::from_millis(100), "{computed:?} of {:?}", start.elapsed());
}

async fn output() {
    let app = Plan::of("tests/http-driver").await.start().await;
    app.ok("/log?text=to-stdout").await;
    app.ok("/log?text=to-stderr&stream=stderr").await;
    assert_eq!((app.lines.of(LogStream::Out), app.lines.of(LogStream::Err)), (vec!["to-stdout".into()], vec!["to-stderr".into()]));
    app.ok("/partial?text=half").await;
    app.ok("/log?text=-whole").await;
    assert_eq!(app.lines.of(LogStream::Out)[1], "half-whole");

    let start = Instant::now();
    app.ok("/flood?lines=50000&bytes=100").await;
    // At the rate of the log alone it would take 46 s.
    assert!(start.elapsed() < Duration::from_secs(20), "a guest waits for its log: {:?}", start.elapsed());
    let lines = app.lines.of(LogStream::Out);
    assert!(lines.len() < 30_000, "{} lines passed", lines.len());
    app.sandbox.kill();
    app.exit().await;
    drop(app.sandbox);
    eventually("the loss is told", || app.lines.of(LogStream::Err).iter().any(|line| line.contains("lines lost"))).await;
}
