//! Real sockets and files; the cell's answers come from a table.

mod connections;
mod hostile;
mod old_server;
mod startup;
mod tails;

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use dewar_core::{Answer, FilesAt, Request, TaskKey};
use dewar_protocol::{FilesOf, InstanceId, STAGING_LOG, TaskId};
use http_body_util::BodyExt as _;
use tempfile::TempDir;

use super::*;
use crate::base_dir::BaseDir;
use crate::effects::Asker;

const PATIENCE: Duration = Duration::from_secs(30);

/// A file server with an instance `shop`, whose files `shop-…` have, too, a crash `sad` and a staging task `task`.
struct World {
    dir: TempDir,
    address: SocketAddr,
    told: FilesConfig,
    stop: CancellationToken,
    _base: BaseDir,
}

#[derive(Debug)]
struct Reply {
    status: u16,
    head: String,
    body: String,
    /// Whether the body came to the end that its head announced.
    whole: bool,
}

impl Reply {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().filter_map(|line| line.split_once(": ")).find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

impl World {
    async fn new(more: FilesSettings) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let base = BaseDir::claim(dir.path()).unwrap();
        let paths = base.paths().clone();
        let mut number = 0_u128;
        let fresh_id = || {
            number += 1;
            format!("{number:032x}")
        };
        let servers = FileServers::bind(&more, [127, 0, 0, 1].into(), fresh_id).await.unwrap();
        let (address, told) = (servers.v2.local_addr().unwrap(), servers.told().clone());
        let (shop, sad) = (InstanceId::from("shop-files"), InstanceId::from("sad"));
        for (root, names) in [(paths.instance(&shop), &["app", "logs", "tmp"][..]), (paths.crash(&sad), &["logs"])] {
            for name in names {
                fs::create_dir_all(root.join(name)).unwrap();
                fs::write(root.join(name).join("note.txt"), format!("{name} of a guest")).unwrap();
            }
        }
        let log = paths.staging_log(TaskKey(7)).join(STAGING_LOG.trim_start_matches('/'));
        fs::create_dir_all(log.parent().unwrap()).unwrap();
        fs::write(&log, "-----> Downloaded\n").unwrap();
        let (requests, mut asked) = mpsc::channel::<Asked>(1);
        tokio::spawn(async move {
            let instance = |id: &str| FilesOf::Instance(InstanceId::from(id));
            let task = |id: &str| FilesOf::StagingTask(TaskId::from(id));
            while let Some(Asked { request, asker }) = asked.recv().await {
                let (Request::LocateFiles(of), Asker::Here(sender)) = (request, asker) else { panic!("an odd question") };
                let at = match of {
                    FilesOf::Instance(id) if id.0.starts_with("shop") => FilesAt::Instance(shop.clone()),
                    of if of == instance("sad") => FilesAt::Crash(sad.clone()),
                    of if of == instance("never") => FilesAt::Crash(InstanceId::from("never")),
                    of if of == instance("new") || of == task("new") => FilesAt::Unavailable,
                    of if of == task("task") => FilesAt::StagingTask(TaskKey(7)),
                    of if of == instance("mute") => continue,
                    _ => FilesAt::Unknown,
                };
                let _ = sender.send(Answer::Files(at));
            }
        });
        let stop = CancellationToken::new();
        servers.run(paths, requests, &TaskTracker::new(), &stop);
        Self { dir, address, told, stop, _base: base }
    }

    fn shop(&self, path: &str) -> PathBuf {
        self.dir.path().join("instances/shop-files").join(path)
    }

    /// Path and query of a URL for a file of the instance `id`.
    fn url(&self, id: &str, file: Option<&str>) -> String {
        self.url_of(&FilesOf::Instance(InstanceId::from(id)), file, now())
    }

    fn url_of(&self, of: &FilesOf, file: Option<&str>, timestamp: i64) -> String {
        let url = self.told.urls.sign(of, file, timestamp);
        url.expose().strip_prefix(&format!("http://{}", self.address)).unwrap().to_owned()
    }

    async fn get(&self, target: &str) -> Reply {
        ask(self.address, "GET", target, "").await
    }

    /// Status and body of a file of `shop`.
    async fn file(&self, path: &str) -> (u16, String) {
        let reply = self.get(&self.url("shop", Some(path))).await;
        (reply.status, reply.body)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn settings() -> FilesSettings {
    FilesSettings { domain: None, scheme: "http", v2_port: 0, v1_port: None, streaming_timeout: PATIENCE }
}

fn now() -> i64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs().try_into().unwrap()
}

/// One request on a connection of its own, read to its end.
async fn ask(address: SocketAddr, method: &str, target: &str, more: &str) -> Reply {
    let request = format!("{method} {target} HTTP/1.1\r\nhost: files\r\n{more}\r\n");
    let method = method.to_owned();
    let exchange = move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut raw = Vec::new();
        // A connection that is broken off may end in an error.
        let _ = stream.read_to_end(&mut raw);
        parsed(&String::from_utf8_lossy(&raw), method == "HEAD")
    };
    tokio::task::spawn_blocking(exchange).await.unwrap()
}

fn parsed(raw: &str, bodiless: bool) -> Reply {
    let (head, rest) = raw.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head in {raw:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let mut reply = Reply { status, head: head.to_owned(), body: rest.to_owned(), whole: true };
    if reply.header("transfer-encoding").is_some() && !bodiless {
        (reply.body, reply.whole) = unchunked(rest);
    } else if let Some(length) = reply.header("content-length") {
        reply.whole = bodiless || length.parse::<usize>().unwrap() == rest.len();
    }
    reply
}

/// What came, and whether the final chunk did.
fn unchunked(mut rest: &str) -> (String, bool) {
    let mut body = String::new();
    while let Some((size, tail)) = rest.split_once("\r\n") {
        match usize::from_str_radix(size, 16).unwrap() {
            0 => return (body, true),
            size => {
                body.push_str(&tail[..size]);
                rest = &tail[size + 2..];
            }
        }
    }
    (body, false)
}

#[tokio::test]
async fn each_reason_not_to_show_a_file_has_its_status_and_text() {
    let world = World::new(settings()).await;
    let instance = |id: &str| FilesOf::Instance(InstanceId::from(id));
    let task = |id: &str| FilesOf::StagingTask(TaskId::from(id));
    let good = world.url("shop", Some("/app/note.txt"));
    let bare = good.split('?').next().unwrap();
    let url = |of: FilesOf, file: &str| world.url_of(&of, Some(file), now());
    let cases = [
        (bare.to_owned(), 400, r#"{"error":"path is missing"}"#),
        (format!("{bare}?hmac=00&path=x"), 400, r#"{"error":"timestamp is missing"}"#),
        (format!("{bare}?hmac=00&path=x&timestamp=noon"), 400, r#"{"error":"timestamp is invalid"}"#),
        (format!("{bare}?path=x&timestamp=1"), 401, r#"{"error":"Invalid HMAC"}"#),
        (format!("{bare}?hmac=&path=x&timestamp=1"), 401, r#"{"error":"Invalid HMAC"}"#),
        (good.replace("note", "vote"), 401, r#"{"error":"Invalid HMAC"}"#),
        (good.replace("shop", "sad"), 401, r#"{"error":"Invalid HMAC"}"#),
        (world.url_of(&instance("shop"), None, now() - 3700), 400, r#"{"error":"Url expired"}"#),
        (url(instance("nobody"), "x"), 404, r#"{"error":"Unknown instance"}"#),
        (url(instance("new"), "x"), 503, r#"{"error":"Instance unavailable"}"#),
        (url(instance("never"), "x"), 503, r#"{"error":"Instance unavailable"}"#),
        (url(instance("shop"), "/app/missing"), 404, r#"{"error":"Entity not found"}"#),
        (url(instance("shop"), "/app/note.txt/x"), 404, r#"{"error":"Entity not found"}"#),
        (url(instance("shop"), "/app/\0"), 404, r#"{"error":"Entity not found"}"#),
        (url(instance("shop"), "/../shop-files/app/note.txt"), 403, r#"{"error":"Not accessible"}"#),
        (url(instance("shop"), "app/../../../agent.lock"), 403, r#"{"error":"Not accessible"}"#),
        (format!("{}x", url(task("task"), STAGING_LOG)), 400, r#"{"error":"timestamp is invalid"}"#),
        (url(task("task"), STAGING_LOG).replace("hmac=", "hmac=00"), 401, r#"{"error":"Invalid HMAC"}"#),
        (world.url_of(&task("task"), None, now() - 3700), 400, r#"{"error":"Url expired"}"#),
        (url(task("other"), STAGING_LOG), 404, r#"{"error":"Unknown staging task"}"#),
        (url(task("new"), STAGING_LOG), 503, r#"{"error":"Staging task unavailable"}"#),
        (url(task("task"), "/tmp/unstaged"), 404, r#"{"error":"Entity not found"}"#),
        (url(task("task"), "/tmp/../tmp/staged/logs/staging_task.log"), 403, r#"{"error":"Not accessible"}"#),
        ("/".to_owned(), 404, r#"{"error":"Not Found"}"#),
        ("/instance_paths/".to_owned(), 404, r#"{"error":"Not Found"}"#),
    ];
    for (target, status, body) in cases {
        let reply = world.get(&target).await;
        assert_eq!((reply.status, reply.body.as_str()), (status, body), "{target}");
        assert_eq!(reply.header("content-type"), Some("application/json"), "{target}");
    }
    let mute = world.get(&world.url("mute", None)).await;
    assert_eq!((mute.status, mute.body.as_str()), (500, "DEA is unreachable\n"));
}

#[tokio::test]
async fn what_vanishes_between_opening_and_reading_is_told_as_the_original_did() {
    let response = refusal::Refusal::Vanished.into_response();
    assert_eq!(response.status(), 400);
    assert_eq!(
        (&response.headers()["content-type"], &response.headers()["x-cascade"]),
        (&"text/plain".parse().unwrap(), &"pass".parse().unwrap())
    );
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "Entity not found.\n");
}

#[tokio::test]
async fn files_and_directories_are_shown() {
    let world = World::new(settings()).await;
    assert_eq!(world.file("/app/note.txt").await, (200, "app of a guest".to_owned()));
    assert_eq!(world.file("app/../logs/note.txt").await, (200, "logs of a guest".to_owned()), "within the root");
    let root = "app/                                         -\nlogs/                                        -\ntmp/                                         -\n";
    for path in [None, Some(""), Some("/"), Some("app/..")] {
        let listed = world.get(&world.url("shop", path)).await;
        assert_eq!((listed.status, listed.body.as_str()), (200, root), "{path:?}");
        assert!(listed.header("content-type").unwrap().starts_with("text/plain"));
        assert_eq!(listed.header("x-dewar-kind"), Some("directory"));
    }
    fs::write(world.shop("app/big.bin"), vec![0; 10_000]).unwrap();
    let listed = "big.bin                                   9.8K\nnote.txt                                   14B\n";
    assert_eq!(world.file("/app").await, (200, listed.to_owned()));
    let crash = world.get(&world.url("sad", Some("/logs/note.txt"))).await;
    assert_eq!((crash.status, crash.body.as_str()), (200, "logs of a guest"));
    let log = world.url_of(&FilesOf::StagingTask(TaskId::from("task")), Some(STAGING_LOG), now());
    assert_eq!(world.get(&log).await.body, "-----> Downloaded\n");
    let without_slash = world.url_of(&FilesOf::StagingTask(TaskId::from("task")), Some(&STAGING_LOG[1..]), now());
    assert_eq!(world.get(&without_slash).await.body, "-----> Downloaded\n");
    let root = world.url_of(&FilesOf::StagingTask(TaskId::from("task")), None, now());
    assert_eq!(world.get(&root).await.body, "tmp/                                         -\n");
}

#[tokio::test]
async fn parts_of_a_file_and_what_is_known_of_it() {
    let world = World::new(settings()).await;
    let content: String = (0..1000).map(|number| char::from(b'a' + u8::try_from(number % 26).unwrap())).collect();
    fs::write(world.shop("app/file"), &content).unwrap();
    fs::write(world.shop("app/data.json"), "{}").unwrap();
    fs::write(world.shop("app/image"), b"\x89PNG\r\n\x1a\n\0\0").unwrap();
    let url = world.url("shop", Some("/app/file"));
    let whole = world.get(&url).await;
    assert_eq!((whole.status, &whole.body), (200, &content));
    assert_eq!((whole.header("content-length"), whole.header("content-type")), (Some("1000"), Some("text/plain; charset=utf-8")));
    let modified = whole.header("last-modified").unwrap();

    let with = async |method: &str, more: &str| ask(world.address, method, &url, more).await;
    let part = with("GET", "range: bytes=5-10\r\n").await;
    assert_eq!((part.status, part.body.as_str(), part.header("content-range")), (206, "fghijk", Some("bytes 5-10/1000")));
    assert_eq!(with("GET", "range: bytes=-3\r\n").await.body, content[997..]);
    let beyond = with("GET", "range: bytes=1000-\r\n").await;
    assert_eq!((beyond.status, beyond.header("content-range"), beyond.body.as_str()), (416, Some("bytes */1000"), ""));
    let known = with("GET", &format!("if-modified-since: {modified}\r\n")).await;
    assert_eq!((known.status, known.body.as_str()), (304, ""));
    assert_eq!(with("GET", "if-unmodified-since: Wed, 16 Oct 2013 14:03:22 GMT\r\n").await.status, 412);
    let head = with("HEAD", "").await;
    assert_eq!((head.status, head.header("content-length"), head.body.as_str()), (200, Some("1000"), ""));
    let posted = with("POST", "content-length: 0\r\n").await;
    assert_eq!((posted.status, posted.body.len()), (200, 1000), "all methods are the same");

    let kind = async |path| world.get(&world.url("shop", Some(path))).await.header("content-type").unwrap().to_owned();
    assert_eq!(kind("/app/data.json").await, "application/json");
    assert_eq!(kind("/app/note.txt").await, "text/plain; charset=utf-8");
    assert_eq!(kind("/app/image").await, "application/octet-stream");
    let big = "0123456789".repeat(100_000);
    fs::write(world.shop("app/big"), &big).unwrap();
    assert!(world.file("/app/big").await == (200, big), "in many pieces");
}

#[tokio::test]
async fn urls_lead_to_the_server_itself_or_through_a_router() {
    let world = World::new(settings()).await;
    assert_eq!(world.told.route, None);
    let routed = |domain: &str, scheme| FilesSettings { domain: Some(domain.to_owned()), scheme, ..settings() };
    for (domain, scheme, host) in [("apps.example.net", "https", "apps.example.net"), ("localhost:8080", "http", "localhost")] {
        let servers = FileServers::bind(&routed(domain, scheme), [127, 0, 0, 1].into(), || "8e1c".to_owned()).await.unwrap();
        let route = servers.told().route.clone().unwrap();
        assert_eq!((route.host_name, route.port), (format!("8e1c.{host}"), servers.v2.local_addr().unwrap().port()));
        let url = servers.told().urls.sign(&FilesOf::Instance(InstanceId::from("x")), None, 1);
        assert!(url.expose().starts_with(&format!("{scheme}://8e1c.{domain}/instance_paths/x?hmac=")), "{}", url.expose());
    }
    let taken = FilesSettings { v2_port: world.address.port(), ..settings() };
    let refused = FileServers::bind(&taken, [127, 0, 0, 1].into(), String::new).await.unwrap_err();
    assert_eq!((refused.address, refused.source.kind()), (world.address, io::ErrorKind::AddrInUse));
}
