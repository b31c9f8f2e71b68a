//! Requests of a guest and the connections they go over.

use std::net::Ipv4Addr;
use std::sync::Arc;

use dewar_protocol::{Bytes as Size, EgressRule};
use dewar_sandbox::EgressPolicy;
use futures::future::join_all;
use libtest_mimic::Trial;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::origin::{Origin, Reply, times_looked_up};
use super::{driver, rule};
use crate::fixture::{Instance, Plan, eventually, test};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        test("network::requests::an_app_uses_a_connection_again", again),
        test("network::requests::instances_share_connections_and_apps_do_not", shared),
        test("network::requests::rules_hold_on_a_connection_that_is_there", rules_of_each),
        test("network::requests::a_stale_connection_is_replaced_once", stale),
        test("network::requests::a_post_is_not_repeated", stale_post),
        test("network::requests::idle_connections_are_bounded", idle),
        test("network::requests::a_response_that_is_left_closes_its_connection", left),
        test("network::requests::a_name_is_pinned", pinned),
        test("network::requests::a_silent_origin_costs_time_that_is_bounded", silent),
        test("network::requests::a_response_is_bounded", bounded),
        test("network::requests::redirects_are_not_followed", redirect),
        test("network::requests::of_wasi_0_3_are_no_other", preview_3),
    ]
}

async fn of_app(app: &str, rules: &[EgressRule]) -> Instance {
    let mut plan = Plan::of("tests/http-driver").await;
    plan.app = app.to_owned();
    plan.egress = EgressPolicy::new(rules).unwrap();
    plan.start().await
}

fn loopback() -> [EgressRule; 1] {
    [rule("tcp", "127.0.0.1", None)]
}

async fn again() {
    let origin = Origin::plain(|connection, request, _| Reply::text(&format!("{connection}/{request}"))).await;
    let app = driver(&loopback()).await;
    assert_eq!(app.ok(&format!("/fetch?url={}&times=5", origin.url("/"))).await, "ok 5\n");
    assert_eq!(app.ok(&format!("/fetch?url={}", origin.url("/"))).await, "200\n0/5");
    assert_eq!(app.ok(&format!("/fetch?method=POST&body=x&url={}", origin.url("/"))).await, "200\n0/6");
}

async fn shared() {
    let origin = Origin::plain(|connection, _, _| Reply::text(&connection.to_string())).await;
    let (one, other, stranger) =
        (of_app("shared", &loopback()).await, of_app("shared", &loopback()).await, of_app("stranger", &loopback()).await);
    let fetch = format!("/fetch?url={}", origin.url("/"));
    assert_eq!(one.ok(&fetch).await, "200\n0");
    assert_eq!(other.ok(&fetch).await, "200\n0");
    assert_eq!(stranger.ok(&fetch).await, "200\n1");
    // The pool goes with the last instance of its app.
    drop(one);
    assert_eq!(other.ok(&fetch).await, "200\n0");
    drop((other, stranger));
    origin.left_alone().await;
}

async fn rules_of_each() {
    let (first, port) = listening_on(Ipv4Addr::LOCALHOST, 0).await;
    let (second, _) = listening_on(Ipv4Addr::new(127, 0, 0, 2), port).await;
    let (first, second) =
        (Origin::on(first, None, |_, _, _| Reply::text("first")), Origin::on(second, None, |_, _, _| Reply::text("second")));
    let old = of_app("rules", &[rule("tcp", "127.0.0.1", None)]).await;
    let new = of_app("rules", &[rule("tcp", "127.0.0.2", None)]).await;
    let none = of_app("rules", &[rule("tcp", "127.0.0.3", None)]).await;
    let fetch = format!("/fetch?url=http://two.test:{port}/");
    assert_eq!(old.ok(&fetch).await, "200\nfirst");
    // It is there, and idle, and not for the others.
    assert_eq!((first.open(), new.ok(&fetch).await), (1, "200\nsecond".to_owned()));
    assert!(none.get(&fetch).await.text().contains("DestinationIpProhibited"));
    assert_eq!((first.accepted(), second.accepted()), (1, 1));
}

async fn listening_on(address: Ipv4Addr, port: u16) -> (TcpListener, u16) {
    let listener = TcpListener::bind((address, port)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// Answers the first request on each connection, and closes when a second one comes.
async fn forgetful() -> Origin {
    Origin::plain(|connection, request, _| match request {
        0 => Reply::text(&connection.to_string()),
        _ => Reply::bytes("").and_close(),
    })
    .await
}

async fn stale() {
    let origin = forgetful().await;
    let app = driver(&loopback()).await;
    let fetch = format!("/fetch?url={}", origin.url("/"));
    assert_eq!(app.ok(&fetch).await, "200\n0");
    assert_eq!(app.ok(&fetch).await, "200\n1");
    assert_eq!(origin.requests().len(), 3);
    // An origin that never answers is not asked for ever.
    let deaf = Origin::plain(|_, _, _| Reply::bytes("").and_close()).await;
    assert_eq!(app.get(&format!("/fetch?url={}", deaf.url("/"))).await.status, 422);
    assert_eq!(deaf.requests().len(), 1);
}

async fn stale_post() {
    let origin = forgetful().await;
    let app = driver(&loopback()).await;
    let post = format!("/fetch?method=POST&body=order&url={}", origin.url("/"));
    assert_eq!(app.ok(&post).await, "200\n0");
    assert_eq!(app.get(&post).await.status, 422);
    assert_eq!(origin.requests().len(), 2);
}

async fn idle() {
    const AT_ONCE: usize = 24;
    let gate = Arc::new(Semaphore::new(0));
    let closed = gate.clone();
    let origin = Origin::plain(move |_, _, _| Reply::text("").behind(&closed)).await;
    let mut plan = Plan::of("tests/http-driver").await.quota(|quota| quota.memory = Size(512 << 20));
    plan.egress = EgressPolicy::new(&loopback()).unwrap();
    let app = plan.start().await;
    let fetch = format!("/fetch?url={}", origin.url("/"));
    let fetching = join_all((0..AT_ONCE).map(|_| app.ok(&fetch)));
    let opening = async {
        eventually("all requests there", || origin.requests().len() == AT_ONCE).await;
        gate.close();
    };
    let (answers, ()) = futures::future::join(fetching, opening).await;
    assert!(answers.iter().all(|answer| answer == "200\n"), "{answers:?}");
    assert_eq!(origin.accepted(), AT_ONCE);
    eventually("what is too many closed", || origin.open() == 16).await;
}

async fn left() {
    let origin = Origin::plain(|_, _, _| Reply::bytes("HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\nstart").and_hang()).await;
    let app = driver(&loopback()).await;
    let fetch = format!("/fetch?between_bytes_ms=200&url={}", origin.url("/"));
    assert_ne!(app.get(&fetch).await.status, 200);
    origin.left_alone().await;
    assert_ne!(app.get(&fetch).await.status, 200);
    assert_eq!(origin.accepted(), 2);
}

async fn pinned() {
    let (first, port) = listening_on(Ipv4Addr::LOCALHOST, 0).await;
    let (second, _) = listening_on(Ipv4Addr::new(127, 0, 0, 2), port).await;
    let (_first, second) =
        (Origin::on(first, None, |_, _, _| Reply::text("meant").and_close()), Origin::on(second, None, |_, _, _| Reply::text("secret")));
    let app = driver(&[rule("tcp", "127.0.0.1", None)]).await;
    for _ in 0..3 {
        assert_eq!(app.ok(&format!("/fetch?url=http://rebinding.test:{port}/")).await, "200\nmeant");
    }
    assert_eq!(app.ok("/resolve?name=rebinding.test").await, "127.0.0.1\n");
    assert_eq!((times_looked_up("rebinding.test"), second.accepted()), (1, 0));
}

async fn silent() {
    let origin = Origin::plain(|_, _, head| match head.contains("/never") {
        true => Reply::bytes("").and_hang(),
        false => Reply::bytes("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").and_hang(),
    })
    .await;
    let app = driver(&loopback()).await;
    let head = app.get(&format!("/fetch?first_byte_ms=200&url={}", origin.url("/never"))).await;
    assert!(head.text().contains("ConnectionReadTimeout"), "{}", head.text());
    let body = app.get(&format!("/fetch?between_bytes_ms=200&url={}", origin.url("/half"))).await;
    assert_eq!(body.status, 422, "{}", body.text());
    // Neither is left to be used again.
    origin.left_alone().await;
}

async fn bounded() {
    let fields: String = (0..200).map(|number| format!("x-{number}: y\r\n")).collect();
    let long = "y".repeat(100 << 10);
    let origin = Origin::plain(move |_, _, head| match head.split(' ').nth(1) {
        Some("/length") => Reply::bytes("HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\nstart"),
        Some("/fields") => Reply::bytes(format!("HTTP/1.1 200 OK\r\n{fields}content-length: 0\r\n\r\n")),
        Some("/head") => Reply::bytes(format!("HTTP/1.1 200 OK\r\nx: {long}\r\ncontent-length: 0\r\n\r\n")),
        Some("/twice") => Reply::bytes("HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab"),
        Some("/both") => Reply::bytes("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n"),
        _ => Reply::bytes("SSH-2.0-OpenSSH_9.7\r\n"),
    })
    .await;
    let app = driver(&loopback()).await;
    for (path, code) in [
        ("/length", "HttpResponseBodySize"),
        ("/fields", "HttpResponseHeaderSectionSize"),
        ("/head", "HttpResponseHeaderSectionSize"),
        ("/twice", "HttpProtocolError"),
        ("/both", "HttpUpgradeFailed"),
        ("/no-http", "HttpProtocolError"),
    ] {
        let answer = app.get(&format!("/fetch?url={}", origin.url(path))).await;
        assert!(answer.status == 422 && answer.text().contains(code), "{path}: {} {}", answer.status, answer.text());
    }
    origin.left_alone().await;
}

async fn redirect() {
    let secret = Origin::plain(|_, _, _| Reply::text("secret")).await;
    let to = secret.url("/");
    let origin =
        Origin::plain(move |_, _, _| Reply::bytes(format!("HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n"))).await;
    let app = driver(&[rule("tcp", "127.0.0.1", Some(origin.port))]).await;
    assert_eq!(app.ok(&format!("/fetch?url={}", origin.url("/"))).await, "302\n");
    assert_eq!(secret.accepted(), 0);
}

async fn preview_3() {
    let origin = Origin::plain(|connection, _, _| Reply::text(&format!("on {connection}"))).await;
    let mut plan = Plan::of("tests/service-hello").await;
    plan.egress = EgressPolicy::new(&[rule("tcp", "127.0.0.1", Some(origin.port))]).unwrap();
    let app = plan.start().await;
    for _ in 0..3 {
        assert_eq!(app.ok(&format!("/fetch?url={}", origin.url("/"))).await, "on 0");
    }
    let head = origin.requests().remove(0);
    assert!(head.starts_with("GET / HTTP/1.1\r\n") && head.contains(&format!("host: 127.0.0.1:{}\r\n", origin.port)), "{head}");
    for (url, code) in [
        (format!("http://127.0.0.2:{}/", origin.port), "DestinationIpProhibited"),
        ("http://metadata.test/".to_owned(), "DestinationIpProhibited"),
    ] {
        let answer = app.get(&format!("/fetch?url={url}")).await;
        assert!(answer.status == 422 && answer.text().contains(code), "{url}: {}", answer.text());
    }
}
