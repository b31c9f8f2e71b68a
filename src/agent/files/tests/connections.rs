//! What one reader leaves to others.

use std::sync::Arc;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use futures::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Response, StatusCode};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::super::server::{self, Body};
use super::*;

/// More than sockets hold.
const MUCH: usize = 64 << 20;

/// A request of which only the beginning of the answer is read.
fn begin(address: SocketAddr, target: &str, more: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(format!("GET {target} HTTP/1.1\r\nhost: files\r\n{more}\r\n").as_bytes()).unwrap();
    let mut status = [0; 12];
    stream.read_exact(&mut status).unwrap();
    (stream, String::from_utf8(status.to_vec()).unwrap())
}

fn eventually(what: &str, probe: impl Fn() -> bool) {
    let start = Instant::now();
    while !probe() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A server of these responses, and where it is.
async fn serve(longest: Duration, respond: impl Fn() -> Response<Body> + Clone + Send + 'static) -> (SocketAddr, CancellationToken) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
    let respond = move |_: hyper::Request<Incoming>| std::future::ready(respond());
    tokio::spawn(server::serve(listener, longest, respond, TaskTracker::new(), stop.clone()));
    (address, stop)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_instance_has_its_share_of_responses_and_no_more() {
    let world = World::new(FilesSettings { v1_port: Some(0), ..settings() }).await;
    let v1 = world.told.v1.clone().unwrap();
    let work = move || {
        fs::File::create(world.shop("app/big")).unwrap().set_len(MUCH as u64).unwrap();
        let (user, password) = v1.credentials.expose();
        let authorization = format!("authorization: Basic {}\r\n", BASE64.encode(format!("{user}:{password}")));
        let old: SocketAddr = v1.uri.strip_prefix("http://").unwrap().strip_suffix("/instances").unwrap().parse().unwrap();
        let (big, small) = (world.url("shop", Some("/app/big")), world.url("shop", Some("/app/note.txt")));
        let mut readers: Vec<_> = (0..15).map(|_| begin(world.address, &big, "")).collect();
        readers.push(begin(old, "/instances/shop/app/big", &authorization));
        assert!(readers.iter().all(|(_, status)| status == "HTTP/1.1 200"));
        for (address, target) in [(world.address, small.as_str()), (old, "/instances/shop/app/note.txt")] {
            assert_eq!(begin(address, target, &authorization).1, "HTTP/1.1 503", "{target}");
        }
        for (address, target) in [(world.address, world.url("sad", None).as_str()), (old, "/instances/sad/logs")] {
            assert_eq!(begin(address, target, &authorization).1, "HTTP/1.1 200", "{target}");
        }
        readers.pop();
        eventually("its place is not given back", || begin(world.address, &small, "").1 == "HTTP/1.1 200");
    };
    tokio::task::spawn_blocking(work).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_share_is_kept_until_all_is_read_and_not_only_written() {
    let share = Arc::new(Semaphore::new(1));
    let taken = Arc::clone(&share);
    let respond = move || {
        let mut response = server::full(StatusCode::OK, vec![0; MUCH]);
        server::keep(&mut response, Arc::clone(&taken).try_acquire_owned().unwrap());
        response
    };
    let (address, _stop) = serve(PATIENCE, respond).await;
    let work = move || {
        let reader = begin(address, "/", "");
        assert_eq!(share.available_permits(), 0);
        drop(reader);
        eventually("the share is not given back", || share.available_permits() == 1);
    };
    tokio::task::spawn_blocking(work).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_takes_too_long_is_broken_off() {
    let respond = || {
        let endless = stream::repeat_with(|| Ok(Frame::data(Bytes::from_static(&[0; 1024]))));
        Response::new(StreamBody::new(endless).boxed_unsync())
    };
    let (address, _stop) = serve(Duration::from_secs(2), respond).await;
    let work = move || {
        let (mut reader, _) = begin(address, "/", "");
        let start = Instant::now();
        let mut last = [0; 4096];
        let mut end = Vec::new();
        loop {
            assert!(start.elapsed() < PATIENCE, "it goes on");
            match reader.read(&mut last).map(|count| last[..count].to_vec()) {
                Ok(bytes) if !bytes.is_empty() => end = bytes,
                _ => break,
            }
        }
        assert!(!end.ends_with(b"0\r\n\r\n"), "nobody takes it for the whole");
    };
    tokio::task::spawn_blocking(work).await.unwrap();
}
