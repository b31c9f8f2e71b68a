//! Files of instances and logs of staging tasks, as a Cloud Controller's users see them: by URLs out of messages, through the router.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};

use serde_json::{Value, json};

use crate::bare_protocol::World;
use crate::harness::{Client, PATIENCE, Process, Response, eventually, free_port, get, get_until, get_with, loopback};
use crate::three_processes::{Broker, Platform};

const YML: &str = "domain: apps.example.net\nhardening: required\ncompat: {directory_v1: true}\ndirectory_server: {streaming_timeout: 2}\n";

/// A URL of the file server: its host, and path with query.
fn parts(url: &Value) -> (String, String) {
    let rest = url.as_str().unwrap().strip_prefix("http://").unwrap();
    let (host, path) = rest.split_once('/').unwrap();
    (host.to_owned(), format!("/{path}"))
}

/// A router on the world's bus.
fn router(world: &World) -> (Process, SocketAddr) {
    let (port, config) = (free_port(), world.dir.path().join("router.yml"));
    let nats = format!("nats_servers: ['nats://127.0.0.1:{}']", world.nats_port);
    std::fs::write(&config, format!("ip: 127.0.0.1\nport: {port}\nstatus: {{port: 0}}\n{nats}\n")).unwrap();
    (Process::dewar(&["router", "--config", config.to_str().unwrap()]), loopback(port))
}

/// A response as it comes, chunk by chunk.
struct Tail(BufReader<TcpStream>);

impl Tail {
    /// `None`: there is no such file any more.
    fn start(address: SocketAddr, host: &str, path: &str) -> Option<Self> {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n").unwrap();
        let mut reader = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(reader.read_line(&mut head).unwrap(), 0, "{head}");
        }
        if head.starts_with("HTTP/1.1 404 ") {
            return None;
        }
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        assert!(head.to_lowercase().contains("transfer-encoding: chunked"), "{head}");
        Some(Self(reader))
    }

    /// The next chunk; the last is empty. `None`: broken off.
    fn chunk(&mut self) -> Option<String> {
        let mut size = String::new();
        if self.0.read_line(&mut size).ok()? == 0 {
            return None;
        }
        let mut chunk = vec![0; usize::from_str_radix(size.trim_end(), 16).unwrap() + 2];
        self.0.read_exact(&mut chunk).ok()?;
        chunk.truncate(chunk.len() - 2);
        Some(String::from_utf8(chunk).unwrap())
    }
}

/// A file that is followed as a client of 2013 does: whenever it is broken off it asks for what it has not got yet.
struct Followed {
    address: SocketAddr,
    host: String,
    path: String,
    tail: Tail,
    seen: String,
    breaks: usize,
}

impl Followed {
    fn start(address: SocketAddr, host: &str, path: &str) -> Self {
        let tail = Tail::start(address, host, &format!("{path}&tail&tail_offset=0")).expect("the file is there");
        Self { address, host: host.to_owned(), path: path.to_owned(), tail, seen: String::new(), breaks: 0 }
    }

    /// Takes what comes next. `None`: that was all, or the file is gone.
    fn advance(&mut self) -> Option<()> {
        match self.tail.chunk() {
            Some(chunk) if chunk.is_empty() => return None,
            Some(chunk) => self.seen += &chunk,
            None => {
                self.breaks += 1;
                let path = format!("{}&tail&tail_offset={}", self.path, self.seen.len());
                self.tail = Tail::start(self.address, &self.host, &path)?;
            }
        }
        Some(())
    }

    fn until(&mut self, wanted: impl Fn(&Self) -> bool) {
        while !wanted(self) {
            self.advance().unwrap_or_else(|| panic!("ended after {:?}", self.seen));
        }
    }
}

/// The answer to `dea.find.droplet` with this path.
fn find(world: &mut World, app: &Value, path: Value) -> Value {
    static ASKED: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let inbox = format!("inbox.find-{}", ASKED.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
    world.nats.ask("dea.find.droplet", &inbox, &json!({"droplet": app, "path": path}));
    world.nats.expect(&inbox, |_| true).json
}

#[test]
fn files_of_an_instance_are_read_by_signed_urls_through_the_router() {
    let mut world = World::start_by(&[], YML);
    world.agent.line("process hardened");
    let (_router, through) = router(&world);
    let is_files = |message: &crate::nats::Message| message.json["tags"]["component"] == "directory-server-3";
    let route = world.nats.expect("router.register", is_files).json;
    let keys: Vec<&String> = route.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["host", "port", "tags", "uris"]);
    let host = route["uris"][0].as_str().unwrap().to_owned();
    assert!(host.len() == 32 + ".apps.example.net".len() && host.ends_with(".apps.example.net"), "{host}");

    let sha1 = world.stage("t1", World::package())["droplet_sha1"].clone();
    let start = world.start_message(0, &sha1);
    world.nats.publish(&format!("dea.{}.start", world.dea), &start);
    world.nats.expect("router.register", |route| route.json["app"] == start["droplet"]);
    get_until(through, "shop.example.net", "/log?text=first-line", 200);

    let read = |found: &Value, more: &str| -> Response {
        let (host, path) = parts(&found["file_uri_v2"]);
        get_with(through, &host, &path, more).unwrap()
    };
    let root = find(&mut world, &start["droplet"], Value::Null);
    assert_eq!(parts(&root["file_uri_v2"]).0, host);
    get_until(through, &host, &parts(&root["file_uri_v2"]).1, 200);
    assert_eq!(
        read(&root, "").body,
        "app/                                         -\nlogs/                                        -\ntmp/                                         -\n"
    );
    let note = find(&mut world, &start["droplet"], json!("/app/note.txt"));
    let whole = read(&note, "");
    assert_eq!((whole.status, whole.body.as_str()), (200, "kept"));
    assert!(whole.headers["content-type"].starts_with("text/plain") && whole.headers.contains_key("last-modified"), "{whole:?}");
    let part = read(&note, "range: bytes=1-2\r\n");
    assert_eq!((part.status, part.body.as_str(), part.headers["content-range"].as_str()), (206, "ep", "bytes 1-2/4"));

    let log = find(&mut world, &start["droplet"], json!("/logs/stdout.log"));
    let (host, path) = parts(&log["file_uri_v2"]);
    let mut log_file = Followed::start(through, &host, &path);
    log_file.until(|file| file.seen == "first-line\n");
    get_until(through, "shop.example.net", "/log?text=second-line", 200);
    log_file.until(|file| file.seen == "first-line\nsecond-line\n");
    assert_eq!(log_file.tail.chunk(), None, "silence breaks it off, so that the client asks again");
    let forged = get(through, &host, &path.replace("stdout", "stderr")).unwrap();
    assert_eq!((forged.status, forged.body.as_str()), (401, r#"{"error":"Invalid HMAC"}"#));

    let client = Client { nats: format!("nats://127.0.0.1:{}", world.nats_port), home: world.dir.path().join("home") };
    let there = through.to_string();
    assert_eq!(client.must(&["files", "shop", "app/note.txt", "--router", &there]), "kept");
    assert_eq!(client.must(&["files", "shop", "app/note.txt", "--tail", "2", "--router", &there]), "pt");
    let lost = client.run(&["files", "shop", "--router", &loopback(free_port()).to_string()]);
    assert_eq!(lost.code, 69, "{}", lost.stderr);
    assert!(lost.stderr.contains("cannot reach the file server") && lost.stderr.contains("--router"), "{}", lost.stderr);
    assert!(!lost.stderr.contains("hmac"), "{}", lost.stderr);

    // The server of 2013 takes another way to the same.
    let (address, base) = parts(&log["file_uri"]);
    let v1 = format!("{base}{}/app/note.txt", log["staged"].as_str().unwrap());
    let credentials = [0, 1].map(|at| log["credentials"][at].as_str().unwrap().to_owned()).join(":");
    let authorization = format!("authorization: Basic {}\r\n", base64(credentials.as_bytes()));
    assert_eq!(get_with(address.parse().unwrap(), "v1", &v1, &authorization).unwrap().body, "kept");
    assert_eq!(get(address.parse().unwrap(), "v1", &v1).unwrap().status, 401);

    // What is kept of a crash.
    get(through, "shop.example.net", "/exit?status=3");
    world.nats.expect("droplet.exited", |_| true);
    let crashed = find(&mut world, &start["droplet"], json!("/logs/stdout.log"));
    assert_eq!(crashed["state"], "CRASHED");
    assert_eq!(read(&crashed, "").body, "first-line\nsecond-line\n");
    assert_eq!(read(&note, "").status, 404, "the rest is gone");

    world.agent.signal("-TERM");
    assert_eq!(world.nats.expect("router.unregister", is_files).json, route);
    assert_eq!(world.agent.exit().code(), Some(0));
}

#[test]
fn dewar_files_lists_prints_and_follows() {
    let platform = Platform::start(Broker::Embedded);
    let (client, package) = (&platform.client, platform.driver_package());
    std::fs::write(std::path::Path::new(&package).join("note.txt"), "kept").unwrap();
    client.must(&["push", "shop", "-p", &package, "-m", "64M", "-k", "32M", "--route", "shop.example.net"]);
    let router = loopback(platform.router_port);
    get_until(router, "shop.example.net", "/log?text=first-line", 200);

    let listed = client.must(&["files", "shop"]);
    assert!(listed.starts_with("app/    ") && listed.contains("\nlogs/   "), "{listed}");
    let listed: Value = serde_json::from_str(&client.must(&["files", "shop", "app", "--instance", "0", "--json"])).unwrap();
    assert_eq!((&listed["path"], &listed["instance"]), (&json!("app"), &json!(0)));
    assert!(listed["entries"].as_array().unwrap().contains(&json!({"name": "note.txt", "directory": false, "size": "4B"})), "{listed}");
    assert_eq!(client.must(&["files", "shop", "/app/note.txt"]), "kept");
    for (arguments, code, text) in [
        (&["files", "shop", "app/missing"][..], 1, "`dewar files shop` lists what there is"),
        (&["files", "shop", "../../agent.lock"], 1, "Not accessible"),
        (&["files", "shop", "-i", "7"], 1, "instance 7 of `shop` has no files to show"),
        (&["files", "nobody"], 1, "there is no app `nobody`"),
        (&["files", "shop", "app/note.txt", "--json"], 64, "--json is for directories"),
        (&["files", "shop", "logs", "-f"], 64, "cannot be followed"),
        (&["files", "shop", "logs", "-f", "-n", "100"], 64, "cannot be followed"),
    ] {
        let done = client.run(arguments);
        assert_eq!(done.code, code, "{arguments:?}: {}", done.stderr);
        assert!(done.stderr.contains(text), "{arguments:?}: {}", done.stderr);
    }

    let follow = |more: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_dewar"));
        command.args(["files", "shop", "logs/stdout.log", "-f"]).args(more);
        Process::spawn("files", command.env("DEWAR_NATS", &client.nats).env("DEWAR_HOME", &client.home))
    };
    let (whole, end) = (follow(&[]), follow(&["--tail", "5"]));
    whole.line("first-line");
    end.line("line");
    get_until(router, "shop.example.net", "/log?text=second-line", 200);
    assert_eq!((whole.line("second-line"), end.line("second-line")), ("second-line".to_owned(), "second-line".to_owned()));

    // More than the agent keeps in memory, and then a crash: the file still has it.
    for _ in 0..20 {
        get_until(router, "shop.example.net", "/flood?bytes=8000&lines=1", 200);
    }
    get(router, "shop.example.net", "/exit?status=3");
    let logs = eventually("the crash", || {
        let logs = client.must(&["logs", "shop", "-n", "1000"]);
        logs.contains("crashed").then_some(logs)
    });
    for line in ["first-line", "second-line"] {
        assert_eq!(logs.matches(line).count(), 1, "{line}");
    }
    let position = |text: &str| logs.find(text).unwrap();
    assert!(position("first-line") < position("second-line") && position("second-line") < position("crashed"), "in order");
    let file = client.must(&["files", "shop", "logs/stdout.log"]);
    assert!(file.starts_with("first-line\nsecond-line\nxxx"), "{}", &file[..100]);

    // A file that is full gives way to another, which is followed in its place.
    client.must(&["restart", "shop"]);
    get_until(router, "shop.example.net", "/log?text=third-line", 200);
    let on = follow(&[]);
    on.line("third-line");
    // The last of these lines makes it 512 KiB.
    for _ in 0..66 {
        get_until(router, "shop.example.net", "/flood?bytes=8000&lines=1", 200);
    }
    eventually("the next file", || client.must(&["files", "shop", "logs"]).contains("stdout.log.1 ").then_some(()));
    assert_eq!(client.must(&["files", "shop", "logs/stdout.log"]), "", "it is there before its first line");
    get_until(router, "shop.example.net", "/log?text=fourth-line", 200);
    on.line("fourth-line");
}

/// Takes uploads, and answers each only when it is told to.
fn withheld_uploads() -> (SocketAddr, Sender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (let_go, may): (Sender<()>, Receiver<()>) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut reader = BufReader::new(stream);
            let (mut length, mut line) = (0, String::new());
            while line != "\r\n" {
                line.clear();
                assert_ne!(reader.read_line(&mut line).unwrap(), 0);
                if let Some(value) = line.to_lowercase().strip_prefix("content-length: ") {
                    length = value.trim().parse().unwrap();
                }
            }
            reader.read_exact(&mut vec![0; length]).unwrap();
            if may.recv().is_err() {
                return;
            }
            let _ = reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}");
        }
    });
    (address, let_go)
}

#[test]
fn the_log_of_a_staging_task_is_followed_until_there_is_no_such_task() {
    let mut world = World::start_by(&[], YML);
    let (_router, through) = router(&world);
    let (uploads, let_go) = withheld_uploads();
    world.blobs.put("package", World::package());
    let message = json!({
        "app_id": "read-along", "task_id": "t/1", "properties": {}, "download_uri": world.blobs.url("package"),
        "upload_uri": format!("http://{uploads}/droplet"),
    });
    world.nats.ask(&format!("staging.{}.start", world.dea), "inbox.t1", &message);
    let first = world.nats.expect("inbox.t1", |_| true).json;
    let (host, path) = parts(&first["task_streaming_log_url"]);
    assert!(path.starts_with("/staging_tasks/t%2F1/file_path?hmac="), "{path}");

    eventually("the route", || get(through, &host, &path).filter(|response| response.status == 200));

    let mut log = Followed::start(through, &host, &path);
    log.until(|log| log.seen.contains("-----> Uploading droplet") && log.breaks > 0);
    assert!(log.seen.starts_with("-----> Downloaded app package ("), "{}", log.seen);
    assert_eq!(log.seen.matches("-----> Uploading droplet").count(), 1, "nothing comes twice: {}", log.seen);
    let_go.send(()).unwrap();
    let second = world.nats.expect("inbox.t1", |_| true).json;
    assert_eq!(second["error"], Value::Null, "{second}");
    while log.advance().is_some() {}
    assert_eq!(get_until(through, &host, &path, 404).body, r#"{"error":"Unknown staging task"}"#);
    let logs = world.dir.path().join("base/staging_logs");
    eventually("the end of its file", || std::fs::read_dir(&logs).unwrap().next().is_none().then_some(()));
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let number = (0..3).fold(0_usize, |number, at| number << 8 | usize::from(group.get(at).copied().unwrap_or(0)));
        for at in 0..4 {
            text.push(if at <= group.len() { char::from(DIGITS[number >> (18 - 6 * at) & 63]) } else { '=' });
        }
    }
    text
}
