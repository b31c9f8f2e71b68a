//! Starting, stopping, and what the router tells about itself.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dewar_bus::BusConfig;
use dewar_router::{AccessLogTarget, Router, RouterConfig, RouterError};
use http::{Request, Response};
use http_body_util::Full;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::stage::{App, Stage, Wire, eventually, fetch, header, in_time, text};

/// An instance whose answers wait for a permit.
async fn held_app() -> (App, Arc<Notify>, Arc<Semaphore>) {
    let (begun, release) = (Arc::new(Notify::new()), Arc::new(Semaphore::new(0)));
    let (begins, released) = (Arc::clone(&begun), Arc::clone(&release));
    let app = App::start(move |_| {
        let (begins, released) = (Arc::clone(&begins), Arc::clone(&released));
        async move {
            begins.notify_one();
            released.acquire().await.unwrap().forget();
            Response::new(Full::new(Bytes::from_static(b"finished")))
        }
    })
    .await;
    (app, begun, release)
}

#[tokio::test]
async fn requests_in_flight_finish_and_nothing_new_begins() {
    let stage = Stage::set_with(|config| config.clients.drain_timeout = Duration::from_secs(60)).await;
    let (app, begun, release) = held_app().await;
    stage.register(&["a.example"], app.address).await;
    let mut busy = stage.connect().await;
    busy.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    in_time("the request's arrival", begun.notified()).await;
    let mut resting = stage.connect().await;
    resting.send("GET / HTTP/1.1\r\nHost: nobody.example\r\n\r\n").await;
    resting.until("does not exist.\n").await;

    stage.stop.cancel();
    assert_eq!(resting.closed().await, "", "a connection at rest is closed at once");
    eventually("the end of listening", async || TcpStream::connect(stage.router).await.is_err().then_some(())).await;
    assert!(!stage.task.is_finished());
    release.add_permits(1);
    let answer = busy.closed().await;
    // Whether its head announces the close depends on who was first, the answer or the word to this connection's thread.
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("finished"), "{answer}");
    in_time("the router's end", stage.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn draining_has_an_end() {
    let stage = Stage::set_with(|config| config.clients.drain_timeout = Duration::from_millis(300)).await;
    let (app, begun, _release) = held_app().await;
    stage.register(&["a.example"], app.address).await;
    let mut busy = stage.connect().await;
    busy.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    in_time("the request's arrival", begun.notified()).await;
    let since = Instant::now();
    stage.stop.cancel();
    in_time("the router's end", stage.task).await.unwrap().unwrap();
    assert!(since.elapsed() >= Duration::from_millis(300));
    assert_eq!(busy.closed().await, "");
}

#[tokio::test]
async fn a_tunnel_does_not_outlive_the_router() {
    let stage = Stage::set_with(|config| config.clients.drain_timeout = Duration::from_millis(300)).await;
    let address = crate::stage::bare_instance(|mut wire: Wire, _| async move {
        wire.head().await;
        wire.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").await;
        wire.closed().await;
    })
    .await;
    stage.register(&["a.example"], address).await;
    let mut client = stage.connect().await;
    client.send("GET / HTTP/1.1\r\nHost: a.example\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n").await;
    assert!(client.head().await.starts_with("HTTP/1.1 101"));
    stage.stop.cancel();
    assert_eq!(client.closed().await, "");
    in_time("the router's end", stage.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_taken_port_is_an_error_that_names_it() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();
    let error = Router::bind(RouterConfig::default_for(address)).await.unwrap_err();
    assert!(matches!(&error, RouterError::Listen { .. }));
    assert_eq!(error.to_string(), format!("failed to listen on {address}"));
}

#[tokio::test]
async fn an_unusable_bus_is_an_error_and_an_absent_one_is_not() {
    let anywhere = "127.0.0.1:0".parse().unwrap();
    let router = Router::bind(RouterConfig::default_for(anywhere)).await.unwrap();
    let error = router.run(BusConfig::default(), CancellationToken::new()).await.unwrap_err();
    assert!(matches!(error, RouterError::Bus(_)), "{error}");

    let nobody = crate::stage::dead_address();
    let router = Router::bind(RouterConfig::default_for(anywhere)).await.unwrap();
    let (address, stop) = (router.http_addr(), CancellationToken::new());
    let bus = BusConfig { servers: vec![format!("nats://{nobody}")], ..BusConfig::default() };
    let task = tokio::spawn(router.run(bus, stop.clone()));
    let request = Request::get("/").header("host", "a.example").body(Full::default()).unwrap();
    assert_eq!(fetch(address, request).await.status(), 404);
    stop.cancel();
    in_time("the router's end", task).await.unwrap().unwrap();
}

#[tokio::test]
async fn the_status_pages_want_a_password() {
    let mut stage = Stage::set().await;
    let app = App::named("app").await;
    stage.register(&["a.example", "*.b.example"], app.address).await;
    let healthy = stage.status_page("/healthz").await;
    assert_eq!((header(&healthy, "content-type"), healthy.body().as_ref()), ("text/plain", b"ok\n".as_slice()));
    assert_eq!(stage.status_page("/other").await.status(), 404);
    stage.get("a.example", "/").await;
    stage.get("nobody.example", "/").await;
    let varz = stage.varz().await;
    for (name, value) in [("requests", 2), ("bad_requests", 1), ("responses_2xx", 1), ("responses_4xx", 1), ("urls", 2), ("droplets", 1)] {
        assert_eq!(varz[name], value, "{name} in {varz}");
    }
    assert_eq!(varz["type"], "Router");
    assert!(varz["mem"].as_u64().unwrap() > 1000 && varz["uptime"].is_string(), "{varz}");
    assert!(varz.get("credentials").is_none());
    let routes = stage.routes().await;
    assert_eq!(routes["a.example"][0]["address"], app.address.to_string());
    assert_eq!(routes["*.b.example"][0]["private_instance_id"], format!("i-{}", app.address.port()));

    for wrong in ["", "user:pass", ":"] {
        wrong.clone_into(&mut stage.credentials);
        for path in ["/healthz", "/varz", "/routes", "/other"] {
            let refused = stage.status_page(path).await;
            assert_eq!(refused.status(), 401, "{wrong:?} {path}");
            assert!(header(&refused, "www-authenticate").starts_with("Basic"));
        }
    }
    let bare = fetch(stage.status, Request::get("/varz").header("host", "a").body(Full::default()).unwrap()).await;
    assert_eq!(bare.status(), 401);
}

#[tokio::test]
async fn each_request_is_a_line_in_the_access_log() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("access.log");
    let target = AccessLogTarget::File(path.clone());
    let stage = Stage::set_with(|config| config.access_log = target).await;
    let app = App::named("shop").await;
    stage.register(&["a.example"], app.address).await;
    let request =
        Request::post("/buy?what=1").header("host", "a.example").header("user-agent", "a \"test\"").header("referer", "http://b/");
    assert_eq!(text(fetch(stage.router, request.body(Full::new(Bytes::from_static(b"12345"))).unwrap()).await), "shop");
    stage.get("nobody.example", "/").await;
    let mut gone = stage.connect().await;
    let (held, begun, _release) = held_app().await;
    stage.register(&["held.example"], held.address).await;
    gone.send("GET /gone HTTP/1.1\r\nHost: held.example\r\n\r\n").await;
    in_time("the request's arrival", begun.notified()).await;
    drop(gone);

    let read = || std::fs::read_to_string(&path).unwrap();
    let log = eventually("three lines", async || Some(read()).filter(|log| log.lines().count() == 3)).await;
    let line = |what: &str| log.lines().find(|line| line.contains(what)).unwrap_or_else(|| panic!("{what} is not in\n{log}"));
    let bought = line("/buy");
    for part in [
        "a.example - [20",
        "\"POST /buy?what=1 HTTP/1.1\" 200 5 4 \"http://b/\" \"a \\\"test\\\"\" \"127.0.0.1:",
        &format!("\"{}\"", app.address),
        "x_forwarded_for:\"127.0.0.1\" x_forwarded_proto:\"http\" vcap_request_id:\"",
        "app_id:\"an-app\" app_index:\"0\" instance_id:\"i-",
        "x_cf_routererror:\"-\"",
    ] {
        assert!(bought.contains(part), "{part} is not in {bought}");
    }
    assert!(line("nobody").contains(" 404 ") && line("nobody").ends_with("x_cf_routererror:\"unknown_route\""));
    assert!(line("/gone").contains(" 499 0 0 "), "{}", line("/gone"));

    stage.stop.cancel();
    in_time("the router's end", stage.task).await.unwrap().unwrap();
    assert_eq!(read().lines().count(), 3);
}

#[tokio::test]
async fn an_access_log_that_cannot_be_opened_is_an_error() {
    let mut config = RouterConfig::default_for("127.0.0.1:0".parse().unwrap());
    config.access_log = AccessLogTarget::File("/does/not/exist/access.log".into());
    let error = Router::bind(config).await.unwrap_err();
    assert_eq!(error.to_string(), "failed to open the access log /does/not/exist/access.log");
}
