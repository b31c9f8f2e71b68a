//! That the tests of this folder can fail: each kind of harm, done on purpose, is noticed.

use std::time::Duration;

use dewar_protocol::{Bytes, LogStream};
use dewar_sandbox::Output as _;
use libtest_mimic::Trial;

use crate::attack::{Attack, driver};
use crate::evidence::log_objection;
use crate::fixture::{Lines, Plan, test};
use crate::neighbour::Neighbour;
use crate::process;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        test("harness::notices_memory_beyond_a_quota", || fails(over_memory(), "of memory, of ")),
        test("harness::notices_disk_beyond_a_quota", || fails(over_disk(), "its directories have ")),
        test("harness::notices_an_answer_that_was_not_expected", || fails(driver("", "").asks("/", "500").serves_on(), "was expected")),
        test("harness::notices_an_instance_that_does_not_die", || {
            fails(driver("", "").asks_at_once(3, "/trap", "500|none").dies("app instance exited"), "was expected")
        }),
        test("harness::notices_a_neighbour_that_fails", || neighbour("/status?code=500&text=x", Duration::from_secs(30), "500")),
        test("harness::notices_a_neighbour_that_is_slow", || neighbour("/sleep?ms=500", Duration::from_millis(100), "no answer within")),
        test("harness::notices_a_file_that_stays_open", open_file),
        test("harness::notices_a_socket_that_stays", socket),
        test("harness::notices_a_log_beyond_its_rate", log),
    ]
}

fn over_memory() -> Attack {
    driver("", "").judged_by(|quota| quota.memory = Bytes(4 << 20)).asks("/grow?bytes=8000000", "200").serves_on()
}

fn over_disk() -> Attack {
    driver("", "").judged_by(|quota| quota.disk = Bytes(4096)).asks("/fs/write?path=/tmp/a&bytes=8000", "200").serves_on()
}

async fn fails(attack: Attack, because: &str) {
    let panic = tokio::spawn(attack.run()).await.expect_err("nothing was noticed").into_panic();
    let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
    assert!(text.contains(because), "{text}");
}

async fn neighbour(path: &'static str, patience: Duration, because: &str) {
    let app = Plan::of("tests/http-driver").await.start().await;
    let (neighbour, clients) = Neighbour::start(app, path, patience);
    let harm = neighbour.watch().end().await.expect_err("nothing was noticed");
    assert!(harm.starts_with("the neighbour failed ") && harm.contains(because), "{harm}");
    drop(neighbour);
    tokio::task::spawn_blocking(|| clients.join().unwrap()).await.unwrap();
}

async fn open_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(directory.path().join("open")).unwrap();
    std::fs::remove_file(directory.path().join("open")).unwrap();
    assert_eq!(process::open_below(directory.path()).len(), 1);
    drop(file);
    assert_eq!(process::open_below(directory.path()).len(), 0);
}

async fn socket() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    assert_eq!(process::listening_on(port).len(), 1);
    drop(listener);
    assert_eq!(process::listening_on(port).len(), 0);
}

async fn log() {
    let lines = Lines::default();
    assert_eq!(log_objection(&lines, Duration::ZERO), None);
    for _ in 0..20_000 {
        lines.line(LogStream::Out, "line");
    }
    assert!(log_objection(&lines, Duration::from_secs(1)).is_some());
    let lines = Lines::default();
    lines.line(LogStream::Err, &"x".repeat(10_000));
    assert!(log_objection(&lines, Duration::from_secs(1)).is_some());
}
