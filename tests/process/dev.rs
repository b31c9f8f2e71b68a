//! `dewar dev`: one process, edit, reload, Ctrl-C.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::harness::{Process, eventually, free_port, get, get_until, guest, loopback};

struct Dev {
    process: Process,
    port: u16,
    nats_port: u16,
    dir: tempfile::TempDir,
}

impl Dev {
    /// Serves a folder named `site` that `prepare` fills.
    fn start(arguments: &[&str], prepare: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let site = dir.path().join("site");
        std::fs::create_dir(&site).unwrap();
        prepare(&site);
        std::fs::create_dir(dir.path().join("tmp")).unwrap();
        let (port, nats_port) = (free_port(), free_port());
        let mut command = Command::new(env!("CARGO_BIN_EXE_dewar"));
        command
            .args(["dev", site.to_str().unwrap(), "--port", &port.to_string(), "--nats-port", &nats_port.to_string()])
            .args(arguments)
            .env("DEWAR_HOME", dir.path().join("home"))
            .env("TMPDIR", dir.path().join("tmp"))
            .env("NO_COLOR", "1");
        Self { process: Process::spawn("dev", &mut command), port, nats_port, dir }
    }

    fn write(&self, name: &str, content: &[u8]) {
        std::fs::write(self.dir.path().join("site").join(name), content).unwrap();
    }
}

#[test]
fn serves_reloads_without_a_failed_request_and_leaves_nothing() {
    let mut dev = Dev::start(&[], |site| std::fs::write(site.join("index.html"), "<h1>one</h1>").unwrap());
    dev.process.line(&format!("site → http://site.localhost:{}", dev.port));
    let address = loopback(dev.port);
    let first = get_until(address, "site.localhost", "/", 200);
    assert_eq!(first.body, "<h1>one</h1>");
    assert!(first.headers["content-type"].starts_with("text/html"));

    let done = AtomicBool::new(false);
    let failures = std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut failures = Vec::new();
            while !done.load(Ordering::Relaxed) {
                match get(address, "site.localhost", "/") {
                    Some(response) if response.status == 200 => {}
                    other => failures.push(other),
                }
            }
            failures
        });
        dev.write("index.html", b"<h1>two</h1>");
        eventually("the new version", || get(address, "site.localhost", "/").filter(|response| response.body == "<h1>two</h1>"));
        done.store(true, Ordering::Relaxed);
        load.join().unwrap()
    });
    assert!(failures.is_empty(), "{} requests failed while reloading: {:?}", failures.len(), failures[0]);

    dev.process.signal("-INT");
    assert_eq!(dev.process.exit().code(), Some(0));
    assert!(TcpStream::connect(address).is_err() && TcpStream::connect(loopback(dev.nats_port)).is_err());
    let left: Vec<_> = std::fs::read_dir(dev.dir.path().join("tmp")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

#[test]
fn a_failed_staging_leaves_the_old_version_up_and_says_why() {
    let dev = Dev::start(&[], |site| {
        std::fs::copy(guest("tests/http-driver"), site.join("app.wasm")).unwrap();
    });
    let address = loopback(dev.port);
    assert_eq!(get_until(address, "site.localhost", "/", 200).body, "http-driver");
    dev.write("app.wasm", b"no wasm at all");
    dev.process.line("app.wasm");
    assert_eq!(get(address, "site.localhost", "/").unwrap().body, "http-driver");
    std::fs::copy(guest("tests/http-driver"), dev.dir.path().join("site/app.wasm")).unwrap();
    dev.write("note.txt", b"mended");
    eventually("the mended version", || {
        get(address, "site.localhost", "/fs/read?path=/app/note.txt").filter(|response| response.body == "mended")
    });
}

#[test]
fn the_app_prints_under_its_name_and_comes_back_after_a_crash() {
    let dev = Dev::start(&["--env", "COLOUR=green", "-m", "64M", "-k", "16M"], |site| {
        std::fs::copy(guest("tests/http-driver"), site.join("app.wasm")).unwrap();
    });
    let address = loopback(dev.port);
    get_until(address, "site.localhost", "/log?text=a-line-of-mine", 200);
    let line = dev.process.line("a-line-of-mine");
    assert!(line.contains("site/0"), "{line}");
    assert_eq!(get_until(address, "site.localhost", "/env?name=COLOUR", 200).body.trim_end(), "green");
    // Whatever it answers, the instance is gone afterwards.
    let _ = get(address, "site.localhost", "/exit?status=3");
    dev.process.line("crashed");
    get_until(address, "site.localhost", "/", 200);
}

#[test]
fn a_taken_router_port_is_a_clear_error_and_a_taken_nats_port_a_note() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let mut dev = Dev::start(&["--port", &port], |site| std::fs::write(site.join("index.html"), "x").unwrap());
    assert_ne!(dev.process.exit().code(), Some(0));
    assert!(dev.process.printed().contains(&port), "{}", dev.process.printed());
}

#[test]
fn events_for_machines_are_one_json_object_a_line() {
    let dev = Dev::start(&["--json", "--once"], |site| std::fs::write(site.join("index.html"), "x").unwrap());
    let url = format!("http://site.localhost:{}", dev.port);
    dev.process.line(&url);
    get_until(loopback(dev.port), "site.localhost", "/", 200);
    let printed = dev.process.printed();
    let events: Vec<serde_json::Value> = printed
        .lines()
        .filter(|line| line.starts_with('{'))
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}")))
        .collect();
    assert!(events.iter().any(|event| event.to_string().contains(&url)), "{printed}");
}
