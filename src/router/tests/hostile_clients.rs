//! Clients that smuggle, dawdle, bomb or hoard.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::stream;
use http::Response;
use http_body_util::StreamBody;
use hyper::body::Frame;

use crate::stage::{App, Stage, eventually};

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or("none")
}

#[tokio::test]
async fn an_ambiguous_request_is_refused() {
    let stage = Stage::set().await;
    let app = App::named("reached").await;
    stage.register(&["a.example"], app.address).await;
    for (lines, expected) in [
        ("Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", "none or 400"),
        ("Content-Length: 5, 6\r\n\r\nhello!", "none or 400"),
        ("Content-Length: +5\r\n\r\nhello", "none or 400"),
        ("Content-Length: 0x5\r\n\r\nhello", "none or 400"),
        ("Content-Length: 99999999999999999999\r\n\r\nhello", "none or 400"),
        ("Transfer-Encoding: gzip\r\n\r\nhello", "none or 400"),
        ("Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", "none or 400"),
        ("Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "501"),
        ("Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "501"),
        ("Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", "none or 400"),
        ("Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", "none or 400"),
        ("X-A: a\r\n folded\r\n\r\n", "none or 400"),
        ("X-A: a\rContent-Length: 5\r\n\r\nhello", "none or 400"),
        ("X\0A: a\r\n\r\n", "none or 400"),
        (": a\r\n\r\n", "none or 400"),
    ] {
        let answer = stage.talk(format!("POST / HTTP/1.1\r\nHost: a.example\r\n{lines}").as_bytes()).await;
        let answered = status(&answer);
        assert!(expected.split(" or ").any(|expected| expected == answered), "{lines:?}: {answer}");
    }
    let old = stage.talk(b"POST / HTTP/1.0\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n").await;
    assert!(matches!(status(&old), "none" | "400"), "{old}");
    assert_eq!(app.requests(), 0, "an instance saw one of them");
}

#[tokio::test]
async fn nothing_after_a_refused_framing_is_a_request() {
    let stage = Stage::set().await;
    let app = App::named("reached").await;
    stage.register(&["a.example"], app.address).await;
    let next = "GET /next HTTP/1.1\r\nHost: a.example\r\n\r\n";
    for lines in ["Host: a.example\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "Transfer-Encoding: chunked\r\n"] {
        let answer = stage.talk(format!("POST / HTTP/1.1\r\n{lines}\r\n0\r\n\r\n{next}").as_bytes()).await;
        assert!(matches!(status(&answer), "400" | "501"), "{answer}");
        assert!(answer.contains("connection: close") && answer.matches("HTTP/1.1 ").count() == 1, "{answer}");
    }
    assert_eq!(app.requests(), 0, "what follows was taken for a request");
}

#[tokio::test]
async fn two_lengths_smuggle_no_second_request() {
    let stage = Stage::set().await;
    let app = App::mirror().await;
    stage.register(&["a.example"], app.address).await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a.example\r\n\r\n";
    for lengths in [
        format!("Content-Length: {}\r\nTransfer-Encoding: chunked\r\n", 5 + smuggled.len()),
        format!("Transfer-Encoding: chunked\r\nContent-Length: {}\r\n", 5 + smuggled.len()),
    ] {
        let before = app.requests();
        let answer = stage.talk(format!("POST /first HTTP/1.1\r\nHost: a.example\r\n{lengths}\r\n0\r\n\r\n{smuggled}").as_bytes()).await;
        assert_eq!(status(&answer), "200", "{answer}");
        assert!(answer.contains("POST /first") && !answer.contains("content-length: 4"), "{answer}");
        assert!(answer.contains("connection: close"), "{answer}");
        assert!(!answer.contains("/smuggled"), "what follows is not taken for a request: {answer}");
        assert_eq!(app.requests(), before + 1);
    }
}

#[tokio::test]
async fn a_client_cannot_talk_the_router_out_of_its_own_headers() {
    let stage = Stage::set().await;
    let app = App::mirror().await;
    stage.register(&["a.example"], app.address).await;
    let answer = stage
        .talk(
            b"POST / HTTP/1.1\r\nConnection: Host, Content-Length, X-Forwarded-For, X-Vcap-Request-Id, X-CF-InstanceID, Transfer-Encoding\r\n\
              Host: a.example\r\nContent-Length: 5\r\n\r\nhello",
        )
        .await;
    for line in ["host: a.example", "content-length: 5", "x-forwarded-for: 127.0.0.1", "x-cf-instanceid: i-"] {
        assert!(answer.contains(line), "{line} is not in {answer}");
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let stage = Stage::set().await;
    let app = App::mirror().await;
    stage.register(&["a.example"], app.address).await;
    let requests: String = (0..5).map(|n| format!("GET /{n} HTTP/1.1\r\nHost: a.example\r\n\r\n")).collect();
    let answer = stage.talk(requests.as_bytes()).await;
    let order: Vec<_> = answer.lines().filter_map(|line| line.strip_prefix("GET /")).collect();
    assert_eq!(order, ["0", "1", "2", "3", "4"]);
}

/// How long the router bears it.
async fn patience(since: Instant, mut client: crate::stage::Wire) -> Duration {
    client.closed().await;
    since.elapsed()
}

const SHORT: Duration = Duration::from_secs(1);
/// What a busy machine may add.
const SLACK: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_client_that_says_nothing_or_never_ends_its_head_is_cut_off() {
    let stage = Stage::set_with(|config| {
        config.clients.header_timeout = SHORT;
        config.clients.idle_timeout = Duration::from_secs(3600);
    })
    .await;
    let since = Instant::now();
    let borne = patience(since, stage.connect().await).await;
    assert!((SHORT / 2..SHORT + SLACK).contains(&borne), "{borne:?}");

    let since = Instant::now();
    let mut trickling = stage.connect().await;
    trickling.send("GET / HTTP/1.1\r\nHost: a.example\r\n").await;
    let (mut reader, mut writer) = trickling.stream.into_split();
    let trickle = tokio::spawn(async move {
        use tokio::io::AsyncWriteExt;
        // A byte at a time keeps a mere idle timeout from ever going off.
        while writer.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let mut seen = Vec::new();
    // A reset is an end as well.
    let _ = crate::stage::in_time("the cut", tokio::io::AsyncReadExt::read_to_end(&mut reader, &mut seen)).await;
    let borne = since.elapsed();
    assert!((SHORT / 2..SHORT + SLACK).contains(&borne), "{borne:?}");
    trickle.abort();
}

#[tokio::test]
async fn a_connection_may_rest_between_requests_but_not_for_ever() {
    let stage = Stage::set_with(|config| {
        config.clients.header_timeout = Duration::from_secs(2);
        config.clients.idle_timeout = Duration::from_secs(6);
    })
    .await;
    // Slower than any clock that was set before the request: it must be set anew afterwards.
    let app = App::start(|_| async {
        tokio::time::sleep(Duration::from_millis(2200)).await;
        Response::new(http_body_util::Full::new(Bytes::from_static(b"app")))
    })
    .await;
    stage.register(&["a.example"], app.address).await;
    let mut client = stage.connect().await;
    for _ in 0..2 {
        client.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
        client.head().await;
        client.exactly(3).await;
        // Longer than a head may take.
        tokio::time::sleep(Duration::from_millis(2500)).await;
    }
    let borne = patience(Instant::now(), client).await;
    assert!(borne < SLACK, "{borne:?}");

    // A head that is begun after a rest has the time of a head, not what is left of the rest.
    let mut client = stage.connect().await;
    client.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    client.head().await;
    client.exactly(3).await;
    client.send("GET / HT").await;
    let borne = patience(Instant::now(), client).await;
    assert!(borne < Duration::from_millis(5500), "{borne:?}");
}

#[tokio::test]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let stage = Stage::set_with(|config| config.clients.stall_timeout = SHORT).await;
    let app = App::start(|request: http::Request<hyper::body::Incoming>| async move { Response::new(request.into_body()) }).await;
    let reader = App::start(|request: http::Request<hyper::body::Incoming>| async move {
        use http_body_util::BodyExt;
        let length = request.into_body().collect().await.map_or(0, |body| body.to_bytes().len());
        Response::new(http_body_util::Full::new(Bytes::from(length.to_string())))
    })
    .await;
    stage.register(&["echo.example"], app.address).await;
    stage.register(&["read.example"], reader.address).await;
    let mut client = stage.connect().await;
    client.send("POST / HTTP/1.1\r\nHost: read.example\r\nContent-Length: 100\r\n\r\nhalf").await;
    let answer = client.closed().await;
    assert_eq!(status(&answer), "408", "{answer}");

    // When the answer has begun already, it is broken off.
    let mut client = stage.connect().await;
    let since = Instant::now();
    client.send("POST / HTTP/1.1\r\nHost: echo.example\r\nContent-Length: 100\r\n\r\nhalf").await;
    let answer = client.closed().await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("half"), "{answer}");
    assert!(since.elapsed() < SHORT + SLACK);
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_cut_off() {
    let stage = Stage::set_with(|config| config.clients.stall_timeout = SHORT).await;
    let produced = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&produced);
    let app = App::start(move |_| {
        let count = Arc::clone(&count);
        async move {
            Response::new(StreamBody::new(stream::repeat_with(move || {
                count.fetch_add(1, Ordering::SeqCst);
                Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from(vec![0; 64 << 10])))
            })))
        }
    })
    .await;
    stage.register(&["a.example"], app.address).await;
    let mut client = stage.connect().await;
    client.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    eventually("some of the response", async || (produced.load(Ordering::SeqCst) > 0).then_some(())).await;
    eventually("the cut", async || (stage.varz().await["requests_in_flight"] == 0).then_some(())).await;
    drop(client);
}

#[tokio::test]
async fn a_head_has_its_bounds() {
    let stage = Stage::set().await;
    let app = App::named("reached").await;
    stage.register(&["a.example"], app.address).await;
    let many: String = (0..200).map(|n| format!("X-{n}: a\r\n")).collect();
    let large = format!("X-Large: {}\r\n", "a".repeat(100 << 10));
    for (lines, path) in [(many, "/".to_owned()), (large, "/".to_owned()), (String::new(), format!("/{}", "a".repeat(70_000)))] {
        let mut client = stage.connect().await;
        // It may close before everything is sent.
        let request = format!("GET {path} HTTP/1.1\r\nHost: a.example\r\n{lines}\r\n");
        let _ = tokio::io::AsyncWriteExt::write_all(&mut client.stream, request.as_bytes()).await;
        let answer = client.closed().await;
        assert!(matches!(status(&answer), "414" | "431"), "{:.100}", answer);
    }
    let fits: String = (0..90).map(|n| format!("X-{n}: {}\r\n", "a".repeat(500))).collect();
    let answer = stage.talk(format!("GET / HTTP/1.1\r\nHost: a.example\r\n{fits}\r\n").as_bytes()).await;
    assert_eq!(status(&answer), "200", "{:.100}", answer);
    assert_eq!(app.requests(), 1);
}

#[tokio::test]
async fn a_configured_bound_of_headers_holds() {
    let stage = Stage::set_with(|config| config.clients.max_headers = 10).await;
    let app = App::named("reached").await;
    stage.register(&["a.example"], app.address).await;
    for (count, expected) in [(9, "200"), (11, "431")] {
        let lines: String = (0..count).map(|n| format!("X-{n}: a\r\n")).collect();
        let answer = stage.talk(format!("GET / HTTP/1.1\r\nHost: a.example\r\n{lines}\r\n").as_bytes()).await;
        assert_eq!(status(&answer), expected, "{answer}");
    }
}

#[tokio::test]
async fn a_connection_beyond_the_limit_waits_for_a_place() {
    let stage = Stage::set_with(|config| config.clients.max_connections = 2).await;
    let app = App::named("app").await;
    stage.register(&["a.example"], app.address).await;
    let ask = "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n";
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut client = stage.connect().await;
        client.send(ask).await;
        client.head().await;
        held.push(client);
    }
    let mut waiting = stage.connect().await;
    waiting.send(ask).await;
    assert!(waiting.rest(Duration::from_millis(300)).await.is_empty(), "the third connection is served");
    held.pop();
    assert_eq!(status(&waiting.head().await), "200");
}
