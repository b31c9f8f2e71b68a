//! Bodies pass through piece by piece, in both directions, with bounded memory and to the last byte.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http::{HeaderMap, Request, Response};
use http_body_util::channel::Channel;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use tokio::sync::{Notify, mpsc};

use crate::stage::{App, Stage, Wire, bare_instance, eventually, fetch, header, in_time, open};

const TEN_MIB: usize = 10 << 20;

/// What two sockets, their kernel buffers and the router may hold of a body that nobody takes. Linux lets a loopback socket grow to
/// about 10 MiB; a router that collected the body would hold all of it.
const HELD_MAX: u64 = 48 << 20;
const MUCH: u64 = 256 << 20;

fn pieces(total: u64, counted: Arc<AtomicU64>) -> impl http_body::Body<Data = Bytes, Error = Infallible> + Send {
    let piece = Bytes::from(vec![7; 64 << 10]);
    StreamBody::new(stream::unfold(0, move |sent| {
        let (piece, counted) = (piece.clone(), Arc::clone(&counted));
        async move {
            (sent < total).then(|| {
                counted.fetch_add(piece.len() as u64, Ordering::SeqCst);
                let next = sent + piece.len() as u64;
                (Ok(Frame::data(piece)), next)
            })
        }
    }))
}

/// Different at every offset that matters, so that a lost or doubled piece shows.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from((at ^ (at >> 8) ^ (at >> 16)) & 0xff).unwrap()).collect()
}

#[tokio::test]
async fn ten_mebibytes_come_through_both_ways_with_and_without_a_length() {
    let stage = Stage::set().await;
    let app = App::start(|request: Request<Incoming>| async move {
        let announced = request.headers().contains_key("content-length");
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let mut response = Response::new(Full::new(body));
        response.headers_mut().insert("x-announced", announced.to_string().parse().unwrap());
        response
    })
    .await;
    stage.register(&["a.example"], app.address).await;
    let sent = Bytes::from(pattern(TEN_MIB));

    let request = Request::put("/").header("host", "a.example").body(Full::new(sent.clone())).unwrap();
    let response = fetch(stage.router, request).await;
    assert_eq!((header(&response, "x-announced"), header(&response, "content-length")), ("true", "10485760"));
    assert!(response.into_body() == sent);

    let frames = sent.chunks(100_000).map(|piece| Ok::<_, Infallible>(Frame::data(Bytes::copy_from_slice(piece)))).collect::<Vec<_>>();
    let request = Request::put("/").header("host", "a.example").body(StreamBody::new(stream::iter(frames))).unwrap();
    let response = open(stage.router, request).await;
    assert_eq!(header(&response, "x-announced"), "false");
    assert!(response.into_body().collect().await.unwrap().to_bytes() == sent);
}

#[tokio::test]
async fn a_response_without_a_length_is_chunked_and_complete() {
    let stage = Stage::set().await;
    let app = App::start(|_| async { Response::new(pieces(TEN_MIB as u64, Arc::default())) }).await;
    stage.register(&["a.example"], app.address).await;
    let response = stage.get("a.example", "/").await;
    assert_eq!(header(&response, "transfer-encoding"), "chunked");
    assert_eq!(response.into_body().len(), TEN_MIB);
}

/// The count when it has stopped growing.
async fn settled(count: &AtomicU64) -> u64 {
    eventually("a count that stands still", async || {
        let before = count.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(300)).await;
        (before > 0 && count.load(Ordering::SeqCst) == before).then_some(before)
    })
    .await
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_its_instance_back() {
    let stage = Stage::set().await;
    let produced = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&produced);
    let app = App::start(move |_| {
        let count = Arc::clone(&count);
        async move { Response::new(pieces(MUCH, count)) }
    })
    .await;
    stage.register(&["a.example"], app.address).await;
    let mut client = stage.connect().await;
    client.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    let held = settled(&produced).await;
    assert!(held < HELD_MAX, "{held} bytes of {MUCH} are on their way to a client that takes none");
    let resident = stage.varz().await["mem_bytes"].as_u64().unwrap();
    assert!(resident < 200 << 20, "{resident} bytes of memory");
    // How much has to be taken for that is for the kernel to say: it does not open a window for every byte.
    let taking = async {
        while produced.load(Ordering::SeqCst) <= held {
            client.exactly(64 << 10).await;
        }
    };
    in_time("the instance going on", taking).await;
}

#[tokio::test]
async fn an_instance_that_does_not_read_holds_its_client_back() {
    let stage = Stage::set().await;
    let address = bare_instance(|mut wire: Wire, _| async move {
        wire.head().await;
        std::future::pending::<()>().await;
    })
    .await;
    stage.register(&["a.example"], address).await;
    let produced = Arc::new(AtomicU64::new(0));
    let request = Request::post("/").header("host", "a.example").body(pieces(MUCH, Arc::clone(&produced))).unwrap();
    let asking = tokio::spawn(open(stage.router, request));
    let held = settled(&produced).await;
    assert!(held < HELD_MAX, "{held} bytes of {MUCH} are on their way to an instance that takes none");
    asking.abort();
}

#[tokio::test]
async fn each_piece_arrives_before_the_next_is_sent() {
    let stage = Stage::set().await;
    let (sender, receiver) = mpsc::channel::<Channel<Bytes, Infallible>>(1);
    let receiver = Arc::new(tokio::sync::Mutex::new(receiver));
    let app = App::start(move |_| {
        let receiver = Arc::clone(&receiver);
        async move { Response::new(receiver.lock().await.recv().await.unwrap()) }
    })
    .await;
    stage.register(&["a.example"], app.address).await;
    let (mut events, body) = Channel::new(1);
    sender.send(body).await.unwrap();
    let mut client = stage.connect().await;
    client.send("GET /events HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    client.head().await;
    for event in ["one", "two", "three"] {
        events.send_data(Bytes::from(event)).await.unwrap();
        assert!(client.until(event).await.ends_with(event));
    }
    drop(events);
    assert!(client.until("0\r\n\r\n").await.ends_with("0\r\n\r\n"));
}

#[tokio::test]
async fn both_directions_flow_at_the_same_time() {
    let stage = Stage::set().await;
    let app = App::start(|request: Request<Incoming>| async move { Response::new(request.into_body()) }).await;
    stage.register(&["a.example"], app.address).await;
    let (mut ours, body) = Channel::<Bytes, Infallible>::new(1);
    ours.send_data(Bytes::from_static(b"zero")).await.unwrap();
    let mut echo = open(stage.router, Request::post("/").header("host", "a.example").body(body).unwrap()).await.into_body();
    let mut next = async || in_time("an echo", echo.frame()).await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(next().await, "zero");
    for word in ["one", "two", "three"] {
        ours.send_data(Bytes::from(word)).await.unwrap();
        assert_eq!(next().await, word);
    }
}

#[tokio::test]
async fn a_get_may_have_a_body_without_a_length() {
    let stage = Stage::set().await;
    let app = App::start(|request: Request<Incoming>| async move { Response::new(request.into_body()) }).await;
    stage.register(&["a.example"], app.address).await;
    let answer = stage.talk(b"GET / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n").await;
    assert!(answer.contains("hello"), "{answer}");
}

#[tokio::test]
async fn trailers_come_through_both_ways() {
    let stage = Stage::set().await;
    let app = App::start(|request: Request<Incoming>| async move {
        let body = request.into_body().collect().await.unwrap();
        let seen = body.trailers().and_then(|trailers| trailers.get("x-sum")).cloned();
        let frames = [
            Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"body"))),
            Ok(Frame::trailers(HeaderMap::from_iter([("x-echo".parse().unwrap(), seen.unwrap())]))),
        ];
        let mut response = Response::new(StreamBody::new(stream::iter(frames)));
        response.headers_mut().insert("trailer", "x-echo".parse().unwrap());
        response
    })
    .await;
    stage.register(&["a.example"], app.address).await;
    let answer = stage
        .talk(b"POST / HTTP/1.1\r\nHost: a.example\r\nTE: trailers\r\nTrailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nx-sum: 42\r\n\r\n")
        .await;
    assert!(answer.contains("body") && answer.ends_with("x-echo: 42\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn a_client_that_waits_for_100_gets_it() {
    let stage = Stage::set().await;
    let app = App::start(|request: Request<Incoming>| async move { Response::new(request.into_body()) }).await;
    stage.register(&["a.example"], app.address).await;
    let mut client = stage.connect().await;
    client.send("POST / HTTP/1.1\r\nHost: a.example\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n").await;
    assert_eq!(client.head().await, "HTTP/1.1 100 Continue\r\n\r\n");
    client.send("hello").await;
    assert!(client.head().await.starts_with("HTTP/1.1 200"));
    assert_eq!(client.exactly(5).await, b"hello");
}

/// Tells when it is dropped.
struct Bell(Arc<AtomicBool>);

impl Drop for Bell {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_request_with_it() {
    let stage = Stage::set().await;
    let (begun, dropped) = (Arc::new(Notify::new()), Arc::new(AtomicBool::new(false)));
    let (begins, drops) = (Arc::clone(&begun), Arc::clone(&dropped));
    let app = App::start(move |_| {
        let (begins, bell) = (Arc::clone(&begins), Bell(Arc::clone(&drops)));
        async move {
            let _bell = bell;
            begins.notify_one();
            std::future::pending::<Response<Full<Bytes>>>().await
        }
    })
    .await;
    stage.register(&["a.example"], app.address).await;
    let mut client = stage.connect().await;
    client.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    in_time("the request's arrival", begun.notified()).await;
    assert!(!dropped.load(Ordering::SeqCst));
    drop(client);
    eventually("the end of the request at the instance", async || dropped.load(Ordering::SeqCst).then_some(())).await;
    eventually("the count of requests in flight", async || (stage.varz().await["requests_in_flight"] == 0).then_some(())).await;
    assert_eq!(stage.varz().await["responses_xxx"], 1);
}

#[tokio::test]
async fn a_client_that_leaves_within_the_response_stops_it() {
    let stage = Stage::set().await;
    let produced = Arc::new(AtomicU64::new(0));
    let dropped = Arc::new(AtomicBool::new(false));
    let (count, drops) = (Arc::clone(&produced), Arc::clone(&dropped));
    let app = App::start(move |_| {
        let (count, bell) = (Arc::clone(&count), Bell(Arc::clone(&drops)));
        async move {
            Response::new(pieces(u64::MAX, count).map_frame(move |frame| {
                let _kept = &bell;
                frame
            }))
        }
    })
    .await;
    stage.register(&["a.example"], app.address).await;
    let mut client = stage.connect().await;
    client.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    client.exactly(1 << 20).await;
    drop(client);
    eventually("the end of the response at the instance", async || dropped.load(Ordering::SeqCst).then_some(())).await;
}
