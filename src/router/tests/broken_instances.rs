//! Instances that refuse, break off, lie about lengths or send what nobody asked for.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};

use crate::stage::{App, Stage, Wire, bare_instance, dead_address, fetch, header, in_time, open, text};

#[tokio::test]
async fn a_refused_connection_is_tried_elsewhere_with_the_body_intact() {
    let stage = Stage::set().await;
    let app = App::start(|request: Request<hyper::body::Incoming>| async move { http::Response::new(request.into_body()) }).await;
    stage.register(&["a.example"], dead_address()).await;
    stage.register(&["a.example"], dead_address()).await;
    stage.register(&["a.example"], app.address).await;
    for round in 0..12 {
        let sent = format!("body {round}").repeat(1000);
        let request = Request::post("/").header("host", "a.example").body(Full::new(Bytes::from(sent.clone()))).unwrap();
        let response = fetch(stage.router, request).await;
        assert_eq!((response.status().as_u16(), text(response)), (200, sent));
    }
}

#[tokio::test]
async fn an_endpoint_that_refused_is_left_alone_for_a_while() {
    let stage = Stage::set().await;
    let dead = dead_address();
    let app = App::named("alive").await;
    stage.register(&["a.example"], dead).await;
    stage.register(&["a.example"], app.address).await;
    for _ in 0..3 {
        assert_eq!(stage.get("a.example", "/").await.status(), 200);
    }
    // It comes to life, but nobody looks there yet.
    let listener = tokio::net::TcpListener::bind(dead).await.unwrap();
    for _ in 0..6 {
        assert_eq!(stage.get("a.example", "/").await.status(), 200);
    }
    let visited = tokio::time::timeout(Duration::from_millis(100), listener.accept()).await;
    assert!(visited.is_err(), "the endpoint that failed was asked again");
}

#[tokio::test]
async fn when_every_endpoint_refuses_it_is_a_bad_gateway() {
    let stage = Stage::set().await;
    for _ in 0..4 {
        stage.register(&["a.example"], dead_address()).await;
    }
    let response = stage.get("a.example", "/").await;
    assert_eq!((response.status().as_u16(), header(&response, "x-cf-routererror")), (502, "endpoint_failure"));
    assert_eq!(text(response), "502 Bad Gateway: Registered endpoint failed to handle the request.\n");
    assert_eq!(stage.varz().await["bad_gateways"], 1);
}

#[tokio::test]
async fn one_that_lives_among_many_that_died_together_is_found() {
    let stage = Stage::set().await;
    for _ in 0..20 {
        stage.register(&["a.example"], dead_address()).await;
    }
    let app = App::named("alive").await;
    stage.register(&["a.example"], app.address).await;
    for _ in 0..3 {
        assert_eq!(stage.get("a.example", "/").await.status(), 200);
    }
}

#[tokio::test]
async fn connections_to_an_instance_are_used_again() {
    let stage = Stage::set().await;
    let app = App::named("app").await;
    stage.register(&["a.example"], app.address).await;
    // By one client, because each of the router's threads has connections of its own.
    let mut client = stage.connect().await;
    for _ in 0..10 {
        client.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
        assert!(client.head().await.starts_with("HTTP/1.1 200"));
        client.exactly(3).await;
    }
    assert_eq!((app.requests(), app.connections()), (10, 1));
}

#[tokio::test]
async fn no_more_connections_are_kept_than_allowed_and_not_for_longer() {
    let stage = Stage::set_with(|config| {
        config.endpoints.max_idle = 0;
    })
    .await;
    let app = App::named("app").await;
    stage.register(&["a.example"], app.address).await;
    for _ in 0..3 {
        stage.get("a.example", "/").await;
    }
    assert_eq!(app.connections(), 3);

    let stage = Stage::set_with(|config| {
        config.endpoints.idle_timeout = Duration::from_millis(50);
        config.prune_interval = Duration::from_millis(50);
    })
    .await;
    let address = bare_instance(|mut wire: Wire, _| async move {
        while !wire.head().await.is_empty() {
            wire.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        }
        CLOSED.fetch_add(1, Ordering::SeqCst);
    })
    .await;
    static CLOSED: AtomicUsize = AtomicUsize::new(0);
    stage.register(&["a.example"], address).await;
    assert_eq!(stage.get("a.example", "/").await.status(), 200);
    crate::stage::eventually("closing the idle connection", async || (CLOSED.load(Ordering::SeqCst) == 1).then_some(())).await;
}

/// An instance that closes each connection on its second request without an answer.
async fn second_request_breaks(seen: Arc<AtomicUsize>) -> std::net::SocketAddr {
    bare_instance(move |mut wire: Wire, _| {
        let seen = Arc::clone(&seen);
        async move {
            wire.head().await;
            seen.fetch_add(1, Ordering::SeqCst);
            wire.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            wire.head().await;
            seen.fetch_add(1, Ordering::SeqCst);
        }
    })
    .await
}

#[tokio::test]
async fn a_stale_connection_costs_no_get() {
    let stage = Stage::set().await;
    let seen = Arc::<AtomicUsize>::default();
    stage.register(&["a.example"], second_request_breaks(Arc::clone(&seen)).await).await;
    let mut client = stage.connect().await;
    for _ in 0..6 {
        client.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
        client.head().await;
        assert_eq!(client.exactly(2).await, b"ok");
    }
    assert!(seen.load(Ordering::SeqCst) > 6, "no connection was stale");
}

#[tokio::test]
async fn a_post_that_may_have_been_worked_on_is_not_sent_again() {
    let stage = Stage::set().await;
    let seen = Arc::<AtomicUsize>::default();
    stage.register(&["a.example"], second_request_breaks(Arc::clone(&seen)).await).await;
    let post = "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 0\r\n\r\n";
    let mut client = stage.connect().await;
    client.send(post).await;
    assert!(client.head().await.starts_with("HTTP/1.1 200"));
    client.exactly(2).await;
    client.send(post).await;
    let broken = client.head().await;
    assert!(broken.starts_with("HTTP/1.1 502") && broken.contains("x-cf-routererror: endpoint_failure"), "{broken}");
    assert_eq!(seen.load(Ordering::SeqCst), 2, "the instance saw the second request once");
}

const POISON: &str = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nPOISON";

/// An instance that ends its first response on a connection with its head, sends a body all the same, and answers a second request
/// on that connection with poison. Whatever comes by a further connection gets the true answer.
async fn surplus_body(head: &'static str, surplus: &'static str) -> (std::net::SocketAddr, Arc<AtomicUsize>) {
    let connections = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&connections);
    let address = bare_instance(move |mut wire: Wire, number| {
        count.fetch_add(1, Ordering::SeqCst);
        async move {
            if number > 0 {
                wire.head().await;
                wire.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nreal").await;
                wire.head().await;
                return;
            }
            wire.head().await;
            wire.send([head, surplus].concat()).await;
            if !wire.head().await.is_empty() {
                wire.send(POISON).await;
            }
        }
    })
    .await;
    (address, connections)
}

#[tokio::test]
async fn a_body_that_must_not_be_neither_reaches_the_client_nor_spoils_the_next_answer() {
    for (method, head) in [
        ("GET", "HTTP/1.1 204 No Content\r\nContent-Length: 47\r\n\r\n"),
        ("GET", "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n"),
        ("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 47\r\n\r\n"),
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 47\r\n\r\n"),
        ("HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
    ] {
        // At once with the head; or only when the next request comes, when it would be taken for the answer to that.
        for surplus in [POISON, ""] {
            let stage = Stage::set().await;
            let (address, connections) = surplus_body(head, surplus).await;
            stage.register(&["a.example"], address).await;
            let mut client = stage.connect().await;
            client.send(format!("{method} / HTTP/1.1\r\nHost: a.example\r\n\r\n")).await;
            let first = client.head().await;
            assert_eq!(first.split(' ').nth(1), head.split(' ').nth(1), "{method} {head:?}");
            assert!(!first.contains("transfer-encoding"), "{first}");
            assert_eq!(first.contains("content-length: 47"), method == "HEAD" && head.contains("47"), "{first}");
            client.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
            let second = client.head().await;
            assert!(second.starts_with("HTTP/1.1 200 OK\r\n"), "{method} {head:?} {surplus:?}: {second}");
            assert_eq!(client.exactly(4).await, b"real", "{method} {head:?} {surplus:?}");
            assert_eq!(connections.load(Ordering::SeqCst), 2);
        }
    }
}

#[tokio::test]
async fn a_connection_is_used_again_after_an_answer_that_announces_no_body() {
    for (method, head) in [
        ("GET", "HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n"),
        ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    ] {
        let stage = Stage::set().await;
        let connections = Arc::<AtomicUsize>::default();
        let count = Arc::clone(&connections);
        let address = bare_instance(move |mut wire: Wire, _| {
            count.fetch_add(1, Ordering::SeqCst);
            async move {
                while !wire.head().await.is_empty() {
                    wire.send(head).await;
                }
            }
        })
        .await;
        stage.register(&["a.example"], address).await;
        let mut client = stage.connect().await;
        for _ in 0..3 {
            client.send(format!("{method} / HTTP/1.1\r\nHost: a.example\r\n\r\n")).await;
            assert_eq!(client.head().await.split(' ').nth(1), head.split(' ').nth(1));
        }
        assert_eq!(connections.load(Ordering::SeqCst), 1, "{method} {head:?}");

        // What comes with such a head all the same spoils the connection.
        let (address, connections) = surplus_body(head, POISON).await;
        stage.register(&["b.example"], address).await;
        client.send(format!("{method} / HTTP/1.1\r\nHost: b.example\r\n\r\n")).await;
        client.head().await;
        assert_eq!(text(stage.get("b.example", "/").await), "real", "{method} {head:?}");
        assert_eq!(connections.load(Ordering::SeqCst), 2);
    }
}

#[tokio::test]
async fn surplus_after_an_announced_length_is_dropped_with_the_connection() {
    let stage = Stage::set().await;
    let (address, _) = surplus_body("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirst", POISON).await;
    stage.register(&["a.example"], address).await;
    assert_eq!(text(stage.get("a.example", "/").await), "first");
    assert_eq!(text(stage.get("a.example", "/").await), "real");
}

#[tokio::test]
async fn lengths_that_contradict_each_other_never_reach_the_client() {
    let both = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let twice = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 7\r\n\r\nhello!!";
    let negative = "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello";
    let unknown = "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let folded = "HTTP/1.1 200 OK\r\nX-A: a\r\n b\r\nContent-Length: 5\r\n\r\nhello";
    let nonsense = "SSH-2.0-OpenSSH_9.2\r\n\r\n";
    let bomb: &'static str = format!("HTTP/1.1 200 OK\r\nX-A: {}\r\nContent-Length: 5\r\n\r\nhello", "a".repeat(100_000)).leak();
    for (answer, status) in [(both, 200), (twice, 502), (negative, 502), (unknown, 502), (folded, 502), (nonsense, 502), (bomb, 502)] {
        let stage = Stage::set().await;
        let address = bare_instance(move |mut wire: Wire, _| async move {
            wire.head().await;
            wire.send(answer).await;
            wire.head().await;
        })
        .await;
        stage.register(&["a.example"], address).await;
        let response = stage.get("a.example", "/").await;
        assert_eq!(response.status(), status, "{:.80}", answer);
        assert!(!(response.headers().contains_key("content-length") && response.headers().contains_key("transfer-encoding")));
        if status == 200 {
            assert_eq!(text(response), "hello");
        }
    }
}

#[tokio::test]
async fn a_response_that_breaks_off_does_not_look_complete() {
    for start in
        ["HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"]
    {
        let stage = Stage::set().await;
        let address = bare_instance(move |mut wire: Wire, _| async move {
            wire.head().await;
            wire.send(start).await;
        })
        .await;
        stage.register(&["a.example"], address).await;
        let response = open(stage.router, Request::get("/").header("host", "a.example").body(Full::<Bytes>::default()).unwrap()).await;
        let body = in_time("the body", response.into_body().collect()).await;
        assert!(body.is_err(), "{start:?} was passed off as complete");
    }
}

#[tokio::test]
async fn a_response_that_ends_with_its_connection_is_complete() {
    let stage = Stage::set().await;
    let address = bare_instance(|mut wire: Wire, _| async move {
        wire.head().await;
        wire.send("HTTP/1.0 200 OK\r\n\r\nold but whole").await;
    })
    .await;
    stage.register(&["a.example"], address).await;
    for _ in 0..2 {
        assert_eq!(text(stage.get("a.example", "/").await), "old but whole");
    }
}

#[tokio::test]
async fn an_instance_that_does_not_answer_times_out_but_not_while_the_client_sends() {
    let stage = Stage::set_with(|config| config.endpoints.response_timeout = Duration::from_secs(3)).await;
    let address = bare_instance(|mut wire: Wire, _| async move {
        let head = wire.head().await;
        if head.contains("content-length: 8") {
            wire.exactly(8).await;
            wire.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        }
        wire.head().await;
    })
    .await;
    stage.register(&["a.example"], address).await;
    let late = stage.get("a.example", "/").await;
    assert_eq!((late.status().as_u16(), header(&late, "x-cf-routererror")), (504, "endpoint_failure"));

    let mut client = stage.connect().await;
    client.send("POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 8\r\n\r\n").await;
    // More than the instance's time in all, never as much between two pieces.
    for piece in ["1", "2", "3", "4", "5", "6", "7", "8"] {
        tokio::time::sleep(Duration::from_millis(500)).await;
        client.send(piece).await;
    }
    assert!(client.head().await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn an_instance_that_falls_silent_within_its_response_is_cut_off() {
    let stage = Stage::set_with(|config| config.endpoints.response_timeout = Duration::from_secs(1)).await;
    let address = bare_instance(|mut wire: Wire, _| async move {
        wire.head().await;
        wire.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").await;
        wire.closed().await;
    })
    .await;
    stage.register(&["a.example"], address).await;
    let mut client = stage.connect().await;
    client.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    client.head().await;
    assert_eq!(client.closed().await, "half");
}

#[tokio::test]
async fn an_endpoint_has_no_more_requests_than_it_may() {
    let stage = Stage::set_with(|config| config.routes.max_in_flight = 2).await;
    let address = bare_instance(|mut wire: Wire, _| async move {
        wire.head().await;
        wire.closed().await;
    })
    .await;
    stage.register(&["a.example"], address).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut client = stage.connect().await;
        client.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
        held.push(client);
    }
    crate::stage::eventually("two requests in flight", async || (stage.routes().await["a.example"][0]["in_flight"] == 2).then_some(()))
        .await;
    let refused = stage.get("a.example", "/").await;
    assert_eq!((refused.status().as_u16(), header(&refused, "x-cf-routererror")), (503, "Connection Limit Reached"));
    drop(held);
    crate::stage::eventually("no request in flight", async || (stage.routes().await["a.example"][0]["in_flight"] == 0).then_some(())).await;
}

#[tokio::test]
async fn a_connection_with_an_unfinished_body_is_not_used_again() {
    let stage = Stage::set().await;
    let address = bare_instance(|mut wire: Wire, _| async move {
        let head = wire.head().await;
        wire.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        if head.starts_with("POST") {
            wire.closed().await;
        }
    })
    .await;
    stage.register(&["a.example"], address).await;
    let mut early = stage.connect().await;
    early.send("POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 100\r\n\r\nhalf").await;
    assert!(early.head().await.starts_with("HTTP/1.1 200"));
    let since = std::time::Instant::now();
    assert_eq!(text(stage.get("a.example", "/").await), "ok");
    assert!(since.elapsed() < Duration::from_secs(20), "the answer waited for a connection that was not free: {:?}", since.elapsed());
}
