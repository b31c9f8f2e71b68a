//! CPU time: who gets how much of it, what is counted, and what a neighbour feels of those who want all of it.

#![expect(clippy::print_stdout, reason = "figures to compare")]

use std::time::{Duration, Instant};

use bytes::Bytes;
use dewar_protocol::Bytes as Size;
use dewar_sandbox::{CpuQuota, Quota};
use futures::future::join_all;
use libtest_mimic::Trial;
use tokio_util::task::AbortOnDropHandle;

use crate::fixture::{Instance, PATIENCE, Plan, eventually, test};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        test("cpu::one_spinning_request_costs_a_neighbour_no_time", || beside(1)),
        test("cpu::a_hundred_spinning_requests_cost_a_neighbour_no_time", || beside(100)),
        test("cpu::a_spinning_command_costs_a_neighbour_no_time", beside_command),
        test("cpu::spinning_start_up_code_costs_a_neighbour_no_time", beside_start),
        test("cpu::many_short_computations_leave_a_neighbour_its_share", beside_short),
        test("cpu::shares_divide_what_there_is", shares),
        test("cpu::a_cap_holds", cap),
        test("cpu::a_capped_instance_still_answers", capped_answers),
        test("cpu::a_client_that_goes_away_ends_its_spinning_request", cancelled),
        test("cpu::a_spinning_instance_is_gone_when_it_says_so", gone),
        test("cpu::no_more_is_counted_than_was_used", counted),
    ]
}

/// Requests whose latency makes one figure.
const SAMPLE: usize = 300;
/// What nobody would notice, and a loaded machine does to any request.
const UNNOTICED: Duration = Duration::from_millis(3);
/// How often a machine that is busy with other things may spoil the measurement.
const ROUNDS: usize = 10;

async fn p99(app: &Instance) -> Duration {
    let mut latencies = Vec::with_capacity(SAMPLE);
    for _ in 0..SAMPLE {
        let start = Instant::now();
        assert_eq!(app.get("/").await.status, 200);
        latencies.push(start.elapsed());
    }
    latencies.sort_unstable();
    latencies[SAMPLE * 99 / 100]
}

async fn neighbour() -> Instance {
    let neighbour = Plan::of("examples/hello").await.start().await;
    // Its first requests make its stores.
    p99(&neighbour).await;
    neighbour
}

/// Held by tests of this file that keep the cores busy: what one calls quiet must not be another's attack.
static CORES: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// A neighbour's 99th percentile beside somebody who computes must stay within three times what it is without.
async fn unharmed<A, F: Future<Output = A>>(what: String, neighbour: &Instance, mut attack: impl FnMut() -> F) {
    let _cores = CORES.lock().await;
    let mut figures = Vec::new();
    for _ in 0..ROUNDS {
        let quiet = p99(neighbour).await;
        let attacker = attack().await;
        let beside = p99(neighbour).await;
        drop(attacker);
        println!("{what}: quiet p99 {quiet:?}, beside it {beside:?}");
        if beside <= (3 * quiet).max(UNNOTICED) {
            return;
        }
        figures.push((quiet, beside));
    }
    panic!("{what}: quiet and beside it {figures:?}");
}

/// Room for a hundred stores.
fn roomy(quota: &mut Quota) {
    quota.memory = Size(512 << 20);
}

async fn spinner(requests: usize) -> (Instance, Vec<AbortOnDropHandle<()>>) {
    let app = Plan::of("tests/http-driver").await.quota(roomy).start().await;
    let handles = spin(&app, requests, "/spin");
    eventually("it computes", || app.sandbox.usage().cpu > Duration::from_millis(100)).await;
    (app, handles)
}

/// Clients that ask for this over and over until they are dropped.
fn spin(app: &Instance, clients: usize, path: &'static str) -> Vec<AbortOnDropHandle<()>> {
    (0..clients)
        .map(|_| {
            let client = app.client();
            let asking = async move { while client.try_send("GET", path, Bytes::new()).await.is_ok() {} };
            AbortOnDropHandle::new(tokio::spawn(asking))
        })
        .collect()
}

async fn beside(requests: usize) {
    let neighbour = neighbour().await;
    unharmed(format!("{requests} spinning requests"), &neighbour, || spinner(requests)).await;
}

async fn beside_command() {
    let neighbour = neighbour().await;
    unharmed("a spinning command".to_owned(), &neighbour, || async {
        let commands = join_all((0..4).map(async |_| Plan::of("tests/command-driver").await.args(&["spin"]).start().await)).await;
        eventually("they compute", || commands.iter().all(|command| command.sandbox.usage().cpu > Duration::from_millis(20))).await;
        commands
    })
    .await;
}

async fn beside_start() {
    let neighbour = neighbour().await;
    unharmed("spinning start-up code".to_owned(), &neighbour, || async {
        let start = async || Plan::of("tests/http-driver").await.env("DRIVER_START", "spin").try_start().await.is_ok();
        let starting: Vec<_> = (0..4).map(|_| AbortOnDropHandle::new(tokio::spawn(start()))).collect();
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(starting.iter().all(|start| !start.is_finished()), "they spin");
        starting
    })
    .await;
}

async fn beside_short() {
    let neighbour = neighbour().await;
    unharmed("a flood of short computations".to_owned(), &neighbour, || async {
        let app = Plan::of("tests/http-driver").await.quota(roomy).start().await;
        let handles = spin(&app, 50, "/spin?ms=1");
        eventually("it computes", || app.sandbox.usage().cpu > Duration::from_millis(300)).await;
        (app, handles)
    })
    .await;
}

async fn shares() {
    let _cores = CORES.lock().await;
    let start = async |shares| Plan::of("tests/http-driver").await.quota(|quota| quota.cpu = CpuQuota { shares, cap: None }).start().await;
    let (small, large) = (start(10).await, start(30).await);
    let handles = (spin(&small, 8, "/spin"), spin(&large, 8, "/spin"));
    let used = || (small.sandbox.usage().cpu, large.sandbox.usage().cpu);
    eventually("both compute", || used().0.min(used().1) > Duration::from_millis(100)).await;
    let mut ratios = Vec::new();
    for _ in 0..ROUNDS {
        let before = used();
        eventually("they have used a second", || used().0 + used().1 > before.0 + before.1 + Duration::from_secs(1)).await;
        let after = used();
        ratios.push((after.1 - before.1).as_secs_f64() / (after.0 - before.0).as_secs_f64());
        // A machine that stands still in the middle of somebody's slice charges it with that.
        if ratios.last().is_some_and(|ratio| (2.5..3.5).contains(ratio)) {
            break;
        }
    }
    drop(handles);
    println!("3 shares to 1 got {ratios:.2?} times as much");
    assert!(ratios.last().is_some_and(|ratio| (2.5..3.5).contains(ratio)), "{ratios:?}");
}

async fn cap() {
    let _cores = CORES.lock().await;
    let capped = |quota: &mut Quota| quota.cpu.cap = Some(20);
    let app = Plan::of("tests/http-driver").await.quota(capped).start().await;
    let handles = spin(&app, 6, "/spin");
    eventually("it computes", || app.sandbox.usage().cpu > Duration::from_millis(50)).await;
    let mut parts = Vec::new();
    for _ in 0..ROUNDS {
        let (start, before) = (Instant::now(), app.sandbox.usage().cpu);
        tokio::time::sleep(Duration::from_millis(2000)).await;
        parts.push(app.sandbox.usage().cpu.saturating_sub(before).as_secs_f64() / start.elapsed().as_secs_f64());
        // A machine that is busy with other things gives it less, and charges it with what it was kept waiting in a slice.
        if parts.last().is_some_and(|part| (0.08..0.24).contains(part)) {
            break;
        }
    }
    drop(handles);
    println!("capped at 0.20 of a core it got {parts:.3?}");
    assert!(parts.last().is_some_and(|part| (0.08..0.24).contains(part)), "{parts:?}");
}

async fn capped_answers() {
    let _cores = CORES.lock().await;
    let capped = |quota: &mut Quota| quota.cpu.cap = Some(10);
    let app = Plan::of("tests/http-driver").await.quota(capped).start().await;
    let mut figures = Vec::new();
    for _ in 0..ROUNDS {
        let (start, before) = (Instant::now(), app.sandbox.usage().cpu);
        assert_eq!(app.get("/spin?ms=100").await.status, 200);
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
        figures.push(app.sandbox.usage().cpu - before);
        // Its clock goes on while it waits.
        if figures.last().is_some_and(|used| *used < Duration::from_millis(60)) {
            break;
        }
    }
    assert!(figures.last().is_some_and(|used| *used < Duration::from_millis(60)), "{figures:?}");
    assert_eq!(app.ok("/").await, "http-driver");
}

async fn cancelled() {
    let _cores = CORES.lock().await;
    let one = |limits: &mut dewar_sandbox::HttpLimits| (limits.concurrent_requests, limits.queued_requests) = (1, 1);
    let app = Plan::of("tests/http-driver").await.http(one).start().await;
    for _ in 0..5 {
        let handles = spin(&app, 1, "/spin");
        let before = app.sandbox.usage().cpu;
        eventually("it computes", || app.sandbox.usage().cpu > before + Duration::from_millis(20)).await;
        drop(handles);
        let start = Instant::now();
        assert_eq!(app.ok("/").await, "http-driver");
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
        let after = app.sandbox.usage().cpu;
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(app.sandbox.usage().cpu < after + Duration::from_millis(20), "it computes on");
    }
}

async fn gone() {
    let _cores = CORES.lock().await;
    for requests in [1, 20] {
        let (app, handles) = spinner(requests).await;
        app.sandbox.kill();
        assert_eq!(app.exit().await.description, "killed");
        let after = app.sandbox.usage();
        assert_eq!(after.memory, Size(0), "nothing is left");
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(app.sandbox.usage().cpu, after.cpu);
        drop(handles);
    }
}

async fn counted() {
    let _cores = CORES.lock().await;
    let app = Plan::of("tests/http-driver").await.start().await;
    for _ in 0..20 {
        app.ok("/").await;
    }
    // The last of them may have had something to do after its answer.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let idle = app.sandbox.usage().cpu;
        assert!(idle > Duration::ZERO);
        tokio::time::sleep(Duration::from_millis(100)).await;
        if app.sandbox.usage().cpu == idle {
            break;
        }
        assert!(Instant::now() < deadline, "waiting is counted");
    }
    let mut figures = Vec::new();
    for _ in 0..ROUNDS {
        let (process, before) = (process_time(), app.sandbox.usage().cpu);
        assert_eq!(join_all((0..6).map(|_| app.get("/spin?ms=400"))).await.iter().filter(|answer| answer.status == 200).count(), 6);
        let used = app.sandbox.usage().cpu - before;
        let process = process_time() - process;
        println!("six requests that spun for 400 ms of the clock used {used:?}, the process {process:?}");
        // They spin for a time on the clock, and get what the machine has left for them. Up to its first tick a slice is measured by
        // the clock on the wall, which goes on while the machine stands still.
        if (Duration::from_millis(100)..=process).contains(&used) {
            return;
        }
        figures.push((used, process));
    }
    panic!("counted, and used by the process: {figures:?}");
}

fn process_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap(), time.tv_nsec.try_into().unwrap())
}
