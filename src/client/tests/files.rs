//! Files of scripted agents, served over real HTTP.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use dewar_protocol::{AppId, FoundInstance, InstanceId, InstanceState, LogLine, LogSource, LogStream, UnixSeconds};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::{FileChoice, Target};

/// Instances' files by `/instance/path`. A file that is followed is moved as soon as it was read.
#[derive(Clone)]
struct FileServer {
    address: SocketAddr,
    files: Arc<Mutex<HashMap<String, String>>>,
    /// How often there was none.
    missed: Arc<Mutex<usize>>,
}

impl FileServer {
    async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let server = Self { address: listener.local_addr().unwrap(), files: Arc::default(), missed: Arc::default() };
        let serving = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serving.clone().answer(stream));
            }
        });
        server
    }

    async fn answer(self, mut stream: TcpStream) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        let (method, target) = head.split_once(' ').unwrap();
        let (path, query) = target.split(' ').next().unwrap().split_once('?').unwrap();
        let offset = query.rsplit_once("tail_offset=").map_or(0, |(_, offset)| offset.parse().unwrap());
        let found = self.files.lock().unwrap().get(path).cloned();
        let answer = match found {
            None => {
                *self.missed.lock().unwrap() += 1;
                "HTTP/1.1 404 Not Found\r\nconnection: close\r\ncontent-length: 0\r\n\r\n".to_owned()
            }
            Some(text) if method == "HEAD" => format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", text.len()),
            Some(text) => format!("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{}", text.get(offset..).unwrap_or_default()),
        };
        stream.write_all(answer.as_bytes()).await.unwrap();
    }

    fn put(&self, path: &str, text: &str) {
        self.files.lock().unwrap().insert(path.to_owned(), text.to_owned());
    }

    /// Takes a file away, and waits until somebody has missed it.
    async fn remove(&self, path: &str) {
        self.files.lock().unwrap().remove(path);
        let before = *self.missed.lock().unwrap();
        until("somebody asks for it", || *self.missed.lock().unwrap() > before).await;
    }

    fn instance(&self, id: &str, index: u32, state: InstanceState) -> FoundInstance {
        FoundInstance {
            dea: "agent-1".into(),
            app_id: target().id,
            version: "1".to_owned(),
            instance_id: InstanceId::from(id),
            index,
            state,
            state_timestamp: UnixSeconds(1.0),
            staged: "/".to_owned(),
            file_uri: None,
            credentials: None,
            file_uri_v2: Some(Secret(format!("http://{}/{id}", self.address))),
            stats: None,
            crash: None,
        }
    }
}

async fn until(what: &str, probe: impl Fn() -> bool) {
    let seen = async {
        while !probe() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, seen).await.unwrap_or_else(|_| panic!("in vain: {what}"));
}

fn target() -> Target {
    Target { name: name(), id: AppId::from("the-app"), record: None }
}

/// What comes next from a follower, read meanwhile.
fn next(mut follower: crate::FileFollower) -> tokio::task::JoinHandle<(crate::FileFollower, Option<String>)> {
    tokio::spawn(async move {
        let bytes = timeout(PATIENCE, follower.next()).await.expect("something comes").unwrap();
        (follower, bytes.map(|bytes| String::from_utf8(bytes.to_vec()).unwrap()))
    })
}

#[tokio::test]
async fn a_followed_file_that_was_moved_is_waited_for() {
    let (world, server) = (World::start().await, FileServer::start().await);
    let agent = world.agent(Staging::Works).await;
    agent.with(|state| state.instances = vec![server.instance("a", 0, InstanceState::Running)]);
    server.put("/a/log", "was full");
    let choice = FileChoice { instance: None, path: "/log".to_owned(), last: None, router: None };
    let opened = world.client.open_file(&target(), &choice).await.unwrap();
    let (follower, text) = next(world.client.follow_file(&target(), &choice, &opened, 4)).await.unwrap();
    assert_eq!(text.as_deref(), Some("full"));
    let more = next(follower);
    server.remove("/a/log").await;
    server.put("/a/log", "new");
    let (follower, text) = more.await.unwrap();
    assert_eq!(text.as_deref(), Some("new"), "from its start");
    let end = next(follower);
    server.remove("/a/log").await;
    assert_eq!(end.await.unwrap().1, None, "not forever");
}

#[tokio::test]
async fn a_follower_stays_with_its_index_and_reads_another_instance_from_the_start() {
    let (world, server) = (World::start().await, FileServer::start().await);
    let agent = world.agent(Staging::Works).await;
    let others = server.instance("b", 1, InstanceState::Running);
    agent.with(|state| state.instances = vec![server.instance("a", 0, InstanceState::Running), others.clone()]);
    for (path, text) in [("/a/log", "of a"), ("/b/log", "of another index"), ("/c/log", "of its successor")] {
        server.put(path, text);
    }
    let choice = FileChoice { instance: None, path: "/log".to_owned(), last: None, router: None };
    let opened = world.client.open_file(&target(), &choice).await.unwrap();
    let (follower, text) = next(world.client.follow_file(&target(), &choice, &opened, 0)).await.unwrap();
    assert_eq!(text.as_deref(), Some("of a"));

    agent.with(|state| state.instances[0].state = InstanceState::Crashed);
    server.put("/a/log", "of a: last words");
    let (follower, text) = next(follower).await.unwrap();
    assert_eq!(text.as_deref(), Some(": last words"), "it goes on with what is left of a crash");

    let before = agent.with(|state| {
        state.instances = vec![others.clone()];
        state.finds
    });
    let more = next(follower);
    until("it is asked for again", || agent.with(|state| state.finds) > before).await;
    agent.with(|state| state.instances = vec![others, server.instance("c", 0, InstanceState::Running)]);
    assert_eq!(more.await.unwrap().1.as_deref(), Some("of its successor"));
}

#[tokio::test]
async fn lines_of_a_crash_and_of_what_came_after_are_told_once() {
    let (world, server) = (World::start().await, FileServer::start().await);
    let agent = world.agent(Staging::Works).await;
    server.put("/crash/logs/stdout.log", "forgotten\none\ntwo\n");
    server.put("/next/logs/stdout.log", "three\n");
    let kept = |(number, text): (u8, &str)| LogLine {
        app_id: target().id,
        source: LogSource::App,
        index: Some(0),
        stream: LogStream::Out,
        timestamp: UnixSeconds(1e9 + f64::from(number)),
        text: text.to_owned(),
    };
    agent.with(|state| {
        state.instances = vec![server.instance("crash", 0, InstanceState::Crashed), server.instance("next", 0, InstanceState::Running)];
        state.kept = [(1, "one"), (2, "two"), (3, "three")].map(kept).to_vec();
    });
    let lines = world.client.past_logs(&target(), 100).await.unwrap();
    assert_eq!(lines.iter().map(|line| line.text.as_str()).collect::<Vec<_>>(), ["forgotten", "one", "two", "three", "last words"]);
}
