//! `wasi:cli/run` droplets.

use std::time::{Duration, Instant};

use dewar_protocol::{Bytes as Size, LogStream};
use libtest_mimic::Trial;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::fixture::{Instance, PATIENCE, Plan, eventually, is_full, test};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        test("command::runs_to_its_end", to_the_end),
        test("command::its_status_is_the_exit_status", status),
        test("command::a_trap_comes_with_a_named_backtrace", trap),
        test("command::start_up_code_that_traps_is_no_start", start_up),
        test("command::who_wants_too_much_memory_is_told_the_numbers", memory),
        test("command::stop_and_kill_end_it_whatever_it_does", stop_and_kill),
        test("command::serves_on_its_own_port", serves),
        test("command::long_lines_are_cut", long_line),
        test("command::a_full_disk_is_an_error_it_sees", full_disk),
    ]
}

async fn run(arguments: &[&str]) -> Instance {
    Plan::of("tests/command-driver").await.args(arguments).env("COLOUR", "blue").start().await
}

async fn to_the_end() {
    let command = run(&["print:one", "env:COLOUR", "warn:two", "arguments"]).await;
    let exit = command.exit().await;
    assert_eq!((exit.status, exit.description.as_str()), (0, "app instance exited"));
    assert_eq!(command.lines.of(LogStream::Out)[..2], ["one", "blue"]);
    assert_eq!(command.lines.of(LogStream::Out)[2..], ["app", "print:one", "env:COLOUR", "warn:two", "arguments"]);
    assert_eq!(command.lines.of(LogStream::Err), ["two"]);
    assert_eq!(command.exit().await, exit, "asked again");
}

async fn status() {
    for (order, status) in [("exit:0", 0), ("exit:1", 1), ("exit:3", 3), ("exit:255", 255)] {
        let exit = run(&[order, "print:not reached"]).await.exit().await;
        assert_eq!((exit.status, exit.description.as_str()), (status, "app instance exited"), "{order}");
    }
}

async fn trap() {
    let exit = Plan::of("tests/deep-stack").await.start().await.exit().await;
    assert_eq!(exit.status, -1);
    let lines: Vec<&str> = exit.description.lines().collect();
    assert_eq!(lines[0], "wasm trap: wasm `unreachable` instruction executed");
    for (line, name) in lines[1..].iter().zip(["inner", "middle", "outer"]) {
        assert!(line.ends_with(name), "{name}: {line}");
    }
    let command = run(&["panic:on purpose"]).await;
    assert!(command.exit().await.description.starts_with("wasm trap"));
    assert!(command.lines.all().contains("on purpose"), "{}", command.lines.all());
}

async fn start_up() {
    let (exit, _) = Plan::of("tests/trap-at-start").await.try_start().await.err().expect("it traps");
    assert!(exit.description.starts_with("wasm trap: wasm `unreachable`"), "{}", exit.description);
}

async fn memory() {
    let small = |quota: &mut dewar_sandbox::Quota| quota.memory = Size(8 << 20);
    let command = Plan::of("tests/command-driver").await.args(&["grow:2000000", "grow:50000000", "hog"]).quota(small).start().await;
    let exit = command.exit().await;
    assert_eq!(command.lines.of(LogStream::Out), ["grown to 2000000", "refused at 50000000"]);
    assert!(exit.description.starts_with("out of memory (used ") && exit.description.contains("of 8 MiB"), "{}", exit.description);
    assert_eq!(command.sandbox.usage().memory, Size(0), "nothing is left");
}

async fn stop_and_kill() {
    for order in ["spin", "sleep:600000"] {
        let stopped = run(&["print:going", order]).await;
        eventually("it runs", || stopped.lines.all() == "going\n").await;
        let start = Instant::now();
        stopped.sandbox.stop();
        assert_eq!((stopped.exit().await.description.as_str(), stopped.exit().await.status), ("stopped", 0));
        let killed = run(&["print:going", order]).await;
        eventually("it runs", || killed.lines.all() == "going\n").await;
        killed.sandbox.kill();
        assert_eq!(killed.exit().await.description, "killed");
        assert!(start.elapsed() < Duration::from_secs(30), "{order}: {:?}", start.elapsed());
    }
}

/// Connects as soon as somebody listens.
async fn connect(app: &Instance) -> TcpStream {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match TcpStream::connect(app.address).await {
            Ok(stream) => return stream,
            Err(error) => assert!(Instant::now() < deadline, "{error}\n{}", app.lines.all()),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn serves() {
    let server = run(&["serve"]).await;
    drop(connect(&server).await);
    assert_eq!(server.ok("/").await, "command-driver\n");
    server.sandbox.stop();
    server.exit().await;
    assert!(TcpStream::connect(server.address).await.is_err());

    let echo = run(&["echo"]).await;
    let mut stream = connect(&echo).await;
    stream.write_all(b"there and back").await.unwrap();
    let mut back = [0; 14];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut back)).await.unwrap().unwrap();
    assert_eq!(&back, b"there and back");
}

async fn long_line() {
    let command = run(&["long-line:100000", "print:next"]).await;
    command.exit().await;
    let lines = command.lines.of(LogStream::Out);
    assert_eq!((lines.len(), lines[0].len(), lines[1].as_str()), (2, 8192, "next"));
    assert!(lines[0].ends_with("x [cut]"));
}

async fn full_disk() {
    let command = run(&["write:/tmp/small=1000", "write:/app/large=2000000", "read:/etc/passwd", "write:/escape=1"]).await;
    assert_eq!(command.exit().await.status, 0);
    let lines = command.lines.of(LogStream::Out);
    assert_eq!(lines[0], "wrote 1000");
    assert!(is_full(&lines[1]), "{lines:?}");
    assert!(lines[2].starts_with("NotFound") && lines[3].starts_with("NotFound"), "nothing but /app and /tmp is there: {lines:?}");
}
