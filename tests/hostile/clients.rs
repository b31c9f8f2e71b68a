//! Clients of an app that mean no good, byte by byte.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::attack::{AppAttack, Attack, assert_fits, driver, wire};
use crate::cpu::SOON;
use crate::fixture::{Instance, PATIENCE, eventually};

/// A connection that is kept open ends soon after its last request.
fn upon(name: &'static str, held_by: &'static str) -> AppAttack {
    driver(name, held_by).http(|limits| limits.head_timeout = SOON)
}

/// With one request at a time, so that one that does not end would be in the way of the next.
fn upon_one_turn(name: &'static str, held_by: &'static str) -> AppAttack {
    upon(name, held_by).http(|limits| {
        (limits.concurrent_requests, limits.response_timeout, limits.total_timeout) = (1, 3 * SOON, 4 * SOON);
    })
}

const REFUSED: &str = "HTTP/1.1 400|HTTP/1.0 400|HTTP/1.1 405|HTTP/1.1 501";

pub(crate) fn attacks() -> Vec<Attack> {
    vec![
        upon("clients::a_head_byte_by_byte", "the whole head has a deadline").does(slow_head).serves_on(),
        upon("clients::connections_without_a_word", "so many connections at a time, each with a deadline for its first head")
            .http(|limits| limits.connections = 20)
            .does(silent_connections)
            .serves_on(),
        upon_one_turn("clients::a_body_byte_by_byte", "the deadline of the answer, while a guest waits for the body")
            .does(|app| slow_body(app, "/drain"))
            .serves_on(),
        upon_one_turn("clients::a_body_byte_by_byte_that_is_echoed", "the deadline of the whole exchange")
            .does(|app| slow_body(app, "/echo"))
            .serves_on(),
        upon_one_turn("clients::an_answer_that_nobody_reads", "the deadline of the whole exchange, also while nothing can be sent")
            .does(|app| slow_reader(app, None))
            .serves_on(),
        upon_one_turn("clients::an_answer_that_is_read_slowly", "the same, however much is read")
            .does(|app| slow_reader(app, Some(Duration::from_millis(20))))
            .serves_on(),
        upon("clients::a_thousand_requests_at_once", "a connection's requests are answered one after the other").does(pipeline).serves_on(),
        upon("clients::a_head_of_a_megabyte", "a head has so many bytes, 431")
            .wires(format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "x".repeat(1 << 20)), "HTTP/1.1 431|")
            .wires(format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "x".repeat(1 << 20)), "HTTP/1.1 431|HTTP/1.1 414|")
            .serves_on(),
        upon("clients::a_head_of_ten_thousand_fields", "a head has so many fields, 431")
            .wires(format!("GET / HTTP/1.1\r\nhost: a\r\n{}\r\n", "x: y\r\n".repeat(10_000)), "HTTP/1.1 431|")
            .serves_on(),
        upon("clients::two_lengths", "lengths that differ are refused, 400")
            .wires("POST /drain HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcdef", REFUSED)
            .wires("POST /drain HTTP/1.1\r\nhost: a\r\ncontent-length: 5, 6\r\n\r\nabcdef", REFUSED)
            .wires("POST /drain HTTP/1.1\r\nhost: a\r\ncontent-length: +5\r\n\r\nabcde", REFUSED)
            .wires("POST /drain HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n", REFUSED)
            .wires("POST /drain HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999999999999999\r\n\r\n", "HTTP/1.1 4")
            .serves_on(),
        upon("clients::a_length_and_chunks", "chunks count, and the connection ends with the request: what follows is nobody's")
            .does(|app| smuggle(app, "content-length: 6\r\ntransfer-encoding: chunked\r\n"))
            .does(|app| smuggle(app, "transfer-encoding: chunked\r\ncontent-length: 6\r\n"))
            .serves_on(),
        upon("clients::codings_that_are_none", "chunked is the last coding or the request is refused")
            .wires("POST /drain HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n", REFUSED)
            .wires("POST /drain HTTP/1.1\r\nhost: a\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n", REFUSED)
            .wires("POST /drain HTTP/1.1\r\nhost: a\r\ntransfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n", REFUSED)
            .wires("POST /drain HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", REFUSED)
            .serves_on(),
        upon(
            "clients::chunks_of_all_sizes",
            "a chunk's size is a number that fits, and its extensions have a limit; what never comes has a deadline",
        )
        .http(|limits| limits.response_timeout = SOON)
        .does(|app| chunks(app, "ffffffffffffffff\r\nx".into()))
        .does(|app| chunks(app, "fffffffffffffffff\r\nx".into()))
        .does(|app| chunks(app, "-1\r\nx\r\n0\r\n\r\n".into()))
        .does(|app| chunks(app, format!("1;{}\r\nx\r\n0\r\n\r\n", "e=f;".repeat(100_000))))
        .does(|app| chunks(app, "1;a\nx\r\n0\r\n\r\n".into()))
        .serves_on(),
        upon("clients::heads_that_break_the_rules", "what the grammar has not is refused, 400")
            .wires("GET / HTTP/1.1\r\nhost: a\r\n folded: x\r\n\r\n", REFUSED)
            .wires("GET / HTTP/1.1\r\nhost : a\r\n\r\n", REFUSED)
            .wires("GET / HTTP/1.1\r\nhost: a\r\nx\0y: z\r\n\r\n", REFUSED)
            .wires("GET / HTTP/1.1\r\nhost: a\r\nx: \0\r\n\r\n", REFUSED)
            .wires("GET /\0 HTTP/1.1\r\nhost: a\r\n\r\n", REFUSED)
            .wires("GET / HTTP/1.1\r\nhost: a\r\nx: y\rz: b\r\n\r\n", REFUSED)
            .wires("GET / HTTP/9.9\r\nhost: a\r\n\r\n", "HTTP/1.1 400|HTTP/1.1 505")
            .serves_on(),
        upon("clients::hosts_that_are_none_or_two", "one host to a request")
            .wires("GET / HTTP/1.1\r\n\r\n", REFUSED)
            .wires("GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", REFUSED)
            .serves_on(),
        upon("clients::targets_in_absolute_form", "the target's host counts, and nothing is fetched for anybody")
            .wires(
                "GET http://other.test/headers HTTP/1.1\r\nhost: app.test\r\nconnection: close\r\n\r\n",
                "HTTP/1.1 200 OK…host: other.test",
            )
            .wires("CONNECT other.test:443 HTTP/1.1\r\nhost: other.test:443\r\n\r\n", REFUSED)
            .serves_on(),
        upon("clients::other_protocols", "what is not HTTP/1 is refused, and nothing is upgraded")
            .wires("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP/1.1 400|HTTP/1.1 505|")
            .wires(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".repeat(20), "HTTP/1.1 400|")
            .wires("GET /\r\n\r\n", REFUSED)
            .wires(
                "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n\r\n",
                "HTTP/1.1 200",
            )
            .wires("GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n", "HTTP/1.1 200")
            .serves_on(),
        upon("clients::trace", "it is a method like others, and the app's own words come back")
            .wires("TRACE / HTTP/1.1\r\nhost: a\r\ncookie: secret\r\nconnection: close\r\n\r\n", "HTTP/1.1 200")
            .does(no_trace)
            .serves_on(),
        upon("clients::fields_of_the_connection", "fields of one connection and those it names do not reach the guest")
            .does(hop_by_hop)
            .serves_on(),
        upon("clients::trailers_that_pass_for_a_head", "trailers are no head").does(trailers).serves_on(),
        upon("clients::half_a_connection", "a client that sends no more has gone, and its request with it").does(half_closed).serves_on(),
        upon_one_turn("clients::resets_in_the_middle", "a connection that is gone takes its request along").does(resets).serves_on(),
        upon("clients::a_queue_of_those_who_have_gone", "who waits and goes away leaves the queue")
            .http(|limits| (limits.concurrent_requests, limits.queued_requests) = (1, 4))
            .does(gone_from_the_queue)
            .serves_on(),
        upon("clients::expectations_without_a_body", "the same deadlines")
            .wires(
                "POST /ignore-body HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 1000000\r\n\r\n",
                "HTTP/1.1 200…ignored|HTTP/1.1 100…ignored",
            )
            .serves_on(),
    ]
}

async fn connect(app: &Instance) -> TcpStream {
    timeout(PATIENCE, TcpStream::connect(app.address)).await.unwrap().unwrap()
}

/// Reads until the server closes.
async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    // A connection that is reset has ended too.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("the server closes the connection");
    String::from_utf8_lossy(&answer).into_owned()
}

async fn slow_head(app: Arc<Instance>) {
    let mut stream = connect(&app).await;
    let head = format!("GET / HTTP/1.1\r\nhost: a\r\n{}", "x: y\r\n".repeat(50));
    for byte in head.as_bytes() {
        if stream.write_all(&[*byte]).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_fits("|HTTP/1.1 408", &read_to_end(&mut stream).await, "a slow head");
}

async fn silent_connections(app: Arc<Instance>) {
    let mut streams = join_all((0..60).map(|_| connect(&app))).await;
    for stream in &mut streams {
        assert_fits("|HTTP/1.1 408", &read_to_end(stream).await, "a silent connection");
    }
}

/// Asks again and again until there is a turn; every answer before is that there is none.
async fn turn_is_free(app: &Instance) {
    let asking = async {
        while app.get("/").await.status != 200 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, asking).await.expect("the request still has its turn");
}

async fn slow_body(app: Arc<Instance>, path: &'static str) {
    let (mut from, mut to) = connect(&app).await.into_split();
    let slowly = tokio::spawn(async move {
        let _ = to.write_all(format!("POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\n").as_bytes()).await;
        while to.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    turn_is_free(&app).await;
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, from.read_to_end(&mut answer)).await.expect("the server closes the connection");
    slowly.abort();
}

/// Asks for more than all buffers hold, and reads a little now and then, or nothing.
async fn slow_reader(app: Arc<Instance>, pause: Option<Duration>) {
    let mut stream = connect(&app).await;
    stream.write_all(b"GET /bytes?count=100000000 HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let (mut from, _to) = stream.into_split();
    let slowly = tokio::spawn(async move {
        let Some(pause) = pause else { return std::future::pending().await };
        let mut little = [0; 64 << 10];
        while from.read_exact(&mut little).await.is_ok() {
            tokio::time::sleep(pause).await;
        }
    });
    eventually("the answer begins", || app.sandbox.usage().cpu > Duration::ZERO).await;
    turn_is_free(&app).await;
    slowly.abort();
}

async fn pipeline(app: Arc<Instance>) {
    let request = "GET / HTTP/1.1\r\nhost: a\r\n\r\n".repeat(1000);
    let answers = wire(&app, request.as_bytes()).await;
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 1000);
}

/// A request that ends by its chunks, and one behind it that only a length would hide.
async fn smuggle(app: Arc<Instance>, lengths: &'static str) {
    let request = format!("POST /drain HTTP/1.1\r\nhost: a\r\n{lengths}\r\n0\r\n\r\nGET /counter HTTP/1.1\r\nhost: a\r\n\r\n");
    let answers = wire(&app, request.as_bytes()).await;
    assert_eq!(answers.matches("HTTP/1.1").count(), 1, "{answers}");
}

async fn chunks(app: Arc<Instance>, body: String) {
    let request = format!("POST /drain HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{body}");
    let answer = wire(&app, request.as_bytes()).await;
    assert!(!answer.starts_with("HTTP/1.1 200"), "{}: {answer}", &body[..body.len().min(40)]);
}

async fn no_trace(app: Arc<Instance>) {
    let answer = wire(&app, b"TRACE / HTTP/1.1\r\nhost: a\r\ncookie: secret\r\nconnection: close\r\n\r\n").await;
    assert!(!answer.contains("secret"), "{answer}");
}

async fn hop_by_hop(app: Arc<Instance>) {
    let fields = "connection: close, x-named, host, content-length\r\nx-named: no\r\nkeep-alive: 5\r\nproxy-connection: x\r\n\
        proxy-authorization: x\r\nte: trailers\r\ntrailer: x\r\nupgrade: h2c\r\n";
    let answer = wire(&app, format!("GET /headers HTTP/1.1\r\nhost: a\r\n{fields}\r\n").as_bytes()).await.to_lowercase();
    let seen = answer.split("\r\n\r\n").nth(1).unwrap();
    assert_eq!(seen.trim(), "host: a");
}

async fn trailers(app: Arc<Instance>) {
    let request = "POST /headers HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n\
        1\r\nx\r\n0\r\nhost: evil\r\nx-late: evil\r\ncontent-length: 7\r\n\r\n";
    let answer = wire(&app, request.as_bytes()).await;
    assert!(!answer.contains("evil"), "{answer}");
}

async fn half_closed(app: Arc<Instance>) {
    for path in ["/", "/sleep?ms=50", "/never"] {
        let mut stream = connect(&app).await;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        assert_fits("|HTTP/1.1 200", &read_to_end(&mut stream).await, path);
    }
}

async fn resets(app: Arc<Instance>) {
    for path in ["/never", "/spin", "/stream?chunks=1000000&bytes=1000", "/bytes?count=100000000"] {
        for part in ["GET ", "GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\nxxx"] {
            let mut stream = connect(&app).await;
            stream.write_all(part.as_bytes()).await.unwrap();
            reset(stream);
        }
        let mut stream = connect(&app).await;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        reset(stream);
        turn_is_free(&app).await;
    }
}

fn reset(stream: TcpStream) {
    rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    drop(stream);
}

async fn gone_from_the_queue(app: Arc<Instance>) {
    let first = tokio_util::task::AbortOnDropHandle::new(tokio::spawn({
        let app = app.clone();
        async move { app.try_send("GET", "/never", bytes::Bytes::new()).await.map(drop) }
    }));
    eventually("the first is in work", || app.sandbox.usage().cpu > Duration::ZERO).await;
    for round in 0..5 {
        // That somebody has gone takes a moment to be noticed.
        timeout(PATIENCE, async { while !four_may_wait(&app).await {} })
            .await
            .unwrap_or_else(|_| panic!("round {round}: the queue stays full"));
    }
    drop(first);
    turn_is_free(&app).await;
}

/// Whether the queue has room for four, who go away again.
async fn four_may_wait(app: &Instance) -> bool {
    let waiting = (0..4).map(|_| timeout(Duration::from_millis(100), app.try_send("GET", "/", bytes::Bytes::new())));
    join_all(waiting).await.iter().all(Result::is_err)
}
