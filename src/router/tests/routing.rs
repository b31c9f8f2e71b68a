//! From a registration to an answer: tables, headers, what cannot be routed.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use dewar_protocol::{RouteRegistration, RouterStart, subjects};
use dewar_router::ForwardedProto;
use http::Request;
use http_body_util::Full;
use serde_json::json;

use crate::stage::{App, PATIENCE, Stage, dead_address, eventually, fetch, header, registration, text};

#[tokio::test]
async fn a_registered_host_is_served_whatever_its_case_and_port() {
    let stage = Stage::set().await;
    let app = App::named("shop").await;
    stage.register(&["shop.example", "*.wild.example"], app.address).await;
    for host in ["shop.example", "SHOP.example", "shop.example:8080", "shop.example.", "a.wild.example", "b.a.wild.example"] {
        let response = stage.get(host, "/").await;
        assert_eq!((response.status().as_u16(), text(response).as_str()), (200, "shop"), "{host}");
    }
}

#[tokio::test]
async fn an_instance_sees_the_request_and_where_it_came_from() {
    let stage = Stage::set().await;
    let app = App::mirror().await;
    stage.register(&["shop.example"], app.address).await;
    let request = Request::post("/cart/1?item=2")
        .header("host", "shop.example")
        .header("cookie", "a=b")
        .header("x-forwarded-for", "203.0.113.7")
        .header("x-forwarded-proto", "https")
        .header("x-vcap-request-id", "chosen-by-the-client")
        .header("x-cf-instanceid", "forged")
        .header("connection", "keep-alive, X-Secret")
        .header("x-secret", "for this hop")
        .header("keep-alive", "timeout=5")
        .header("proxy-authorization", "Basic abc")
        .header("te", "trailers")
        .body(Full::new(Bytes::from_static(b"12345")))
        .unwrap();
    let response = fetch(stage.router, request).await;
    let request_id = header(&response, "x-vcap-request-id").to_owned();
    let seen = text(response);
    assert!(seen.starts_with("POST /cart/1?item=2\n"), "{seen}");
    let port = app.address.port();
    for line in [
        "host: shop.example".to_owned(),
        "cookie: a=b".to_owned(),
        "x-forwarded-for: 203.0.113.7, 127.0.0.1".to_owned(),
        "x-forwarded-proto: http".to_owned(),
        format!("x-vcap-request-id: {request_id}"),
        "x-cf-applicationid: an-app".to_owned(),
        format!("x-cf-instanceid: i-{port}"),
        "x-cf-instanceindex: 0".to_owned(),
        "te: trailers".to_owned(),
        "content-length: 5".to_owned(),
    ] {
        assert!(seen.lines().any(|seen| seen == line), "{line} is not in\n{seen}");
    }
    for name in ["x-secret", "keep-alive", "proxy-authorization", "connection"] {
        assert!(!seen.contains(&format!("\n{name}:")), "{name} is in\n{seen}");
    }
    assert_ne!(request_id, "chosen-by-the-client");
    assert_eq!(request_id.len(), 36);
    let start = seen.lines().find_map(|line| line.strip_prefix("x-request-start: ")).unwrap();
    let age = jiff::Timestamp::now().as_millisecond() - start.parse::<i64>().unwrap();
    assert!((0..60_000).contains(&age), "{start}");
}

#[tokio::test]
async fn what_is_not_known_of_an_instance_is_not_forged_by_a_client() {
    let stage = Stage::set().await;
    let app = App::mirror().await;
    let anonymous = RouteRegistration {
        app: None,
        private_instance_id: None,
        private_instance_index: None,
        ..registration(&["a.example"], app.address)
    };
    stage.register_as(anonymous).await;
    let request = Request::get("/").header("host", "a.example").header("x-cf-applicationid", "forged").header("x-cf-instanceindex", "7");
    let seen = text(fetch(stage.router, request.body(Full::default()).unwrap()).await);
    assert!(!seen.contains("forged") && !seen.contains("x-cf-instanceindex"), "{seen}");
    assert!(seen.contains(&format!("x-cf-instanceid: {}", app.address)), "{seen}");
}

#[tokio::test]
async fn x_forwarded_proto_follows_the_configuration() {
    for (proto, sent, seen) in [
        (ForwardedProto::Keep, Some("https"), "https"),
        (ForwardedProto::Keep, None, "http"),
        (ForwardedProto::ForceHttps, Some("http"), "https"),
        (ForwardedProto::Sanitize, Some("https"), "http"),
    ] {
        let stage = Stage::set_with(|config| config.forwarded_proto = proto).await;
        let app = App::mirror().await;
        stage.register(&["a.example"], app.address).await;
        let mut request = Request::get("/").header("host", "a.example");
        if let Some(sent) = sent {
            request = request.header("x-forwarded-proto", sent);
        }
        let head = text(fetch(stage.router, request.body(Full::default()).unwrap()).await);
        assert!(head.contains(&format!("x-forwarded-proto: {seen}\n")), "{proto:?} {sent:?}: {head}");
    }
}

#[tokio::test]
async fn a_request_that_leads_nowhere_is_told_why() {
    let stage = Stage::set().await;
    let response = stage.get("nobody.example", "/").await;
    assert_eq!(response.status(), 404);
    assert_eq!(header(&response, "x-cf-routererror"), "unknown_route");
    assert_eq!(text(response), "404 Not Found: Requested route ('nobody.example') does not exist.\n");

    for (request, status, code) in [
        ("GET / HTTP/1.1\r\n\r\n", "400", "empty_host"),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n", "400", "empty_host"),
        ("GET / HTTP/1.0\r\n\r\n", "400", "empty_host"),
        ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", "400", ""),
        ("GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", "400", ""),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "400", ""),
        ("GET http://nobody.example/ HTTP/1.1\r\nHost: nobody.example\r\n\r\n", "400", ""),
        ("CONNECT nobody.example:80 HTTP/1.1\r\nHost: nobody.example:80\r\n\r\n", "400", ""),
        ("GET / HTTP/1.1\r\nHost: nobody.example\r\nX-CF-App-Instance: nonsense\r\n\r\n", "400", "invalid_cf_app_instance_header"),
    ] {
        let answer = stage.talk(request.as_bytes()).await;
        assert_eq!(answer.split(' ').nth(1), Some(status), "{request:?}: {answer}");
        assert_eq!(answer.contains("x-cf-routererror: "), !code.is_empty(), "{request:?}: {answer}");
        assert!(answer.contains(code), "{request:?}: {answer}");
    }
}

#[tokio::test]
async fn endpoints_take_turns_and_one_can_be_asked_for() {
    let stage = Stage::set().await;
    let apps = [App::named("zero").await, App::named("one").await, App::named("two").await];
    for (index, app) in apps.iter().enumerate() {
        let one = RouteRegistration { private_instance_index: Some(index.to_string()), ..registration(&["a.example"], app.address) };
        stage.register_as(one).await;
    }
    let mut counts = BTreeMap::new();
    for _ in 0..30 {
        *counts.entry(text(stage.get("a.example", "/").await)).or_insert(0) += 1;
    }
    assert_eq!(counts, BTreeMap::from([("zero".into(), 10), ("one".into(), 10), ("two".into(), 10)]));

    let ask = async |instance: &str| {
        let request = Request::get("/").header("host", "a.example").header("x-cf-app-instance", instance);
        fetch(stage.router, request.body(Full::default()).unwrap()).await
    };
    for _ in 0..4 {
        assert_eq!(text(ask("an-app:1").await), "one");
    }
    let missing = ask("an-app:7").await;
    assert_eq!((missing.status().as_u16(), header(&missing, "x-cf-routererror")), (400, "unknown_route"));
}

#[tokio::test]
async fn an_unregistered_host_is_unknown_and_its_neighbours_stay() {
    let stage = Stage::set().await;
    let app = App::named("app").await;
    stage.register(&["a.example", "b.example"], app.address).await;
    stage.publish(subjects::ROUTER_UNREGISTER, &registration(&["a.example"], app.address));
    let gone = eventually("the end of a route", async || Some(stage.get("a.example", "/").await).filter(|r| r.status() == 404)).await;
    assert_eq!(header(&gone, "x-cf-routererror"), "unknown_route");
    assert_eq!(stage.get("b.example", "/").await.status(), 200);
}

#[tokio::test]
async fn registrations_take_effect_in_the_order_they_were_sent_in() {
    let stage = Stage::set().await;
    let address = dead_address();
    // Always ends registered; two subscriptions that raced would sometimes end otherwise.
    for round in 0..50 {
        let host = format!("h{round}.example");
        for _ in 0..20 {
            stage.publish(subjects::ROUTER_REGISTER, &registration(&[&host], address));
            stage.publish(subjects::ROUTER_UNREGISTER, &registration(&[&host], address));
        }
        stage.publish(subjects::ROUTER_REGISTER, &registration(&[&host], address));
    }
    stage.register(&["last.example"], address).await;
    assert_eq!(stage.routes().await.as_object().unwrap().len(), 51);
}

#[tokio::test]
async fn a_silent_route_is_pruned_but_not_while_the_bus_is_down() {
    let mut stage = Stage::set_with(|config| {
        config.routes.stale_after = Duration::from_secs(4);
        config.routes.empty_pool_timeout = Duration::from_secs(4);
        config.register_interval = Duration::from_secs(1);
        config.prune_interval = Duration::from_millis(50);
    })
    .await;
    let app = App::named("app").await;
    stage.register(&["a.example"], app.address).await;

    stage.broker.stop().await;
    // Longer than the threshold without a bus, looked at all the time.
    let down = std::time::Instant::now();
    while down.elapsed() < Duration::from_secs(6) {
        assert_eq!(stage.get("a.example", "/").await.status(), 200, "after {:?}", down.elapsed());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    stage.broker.start_again().await;
    stage.wait_for_greeting().await;
    assert_eq!(stage.get("a.example", "/").await.status(), 200, "the route is fresh when the bus is back");

    let pruned = eventually("pruning", async || Some(stage.get("a.example", "/").await).filter(|r| r.status() == 503)).await;
    assert_eq!(header(&pruned, "x-cf-routererror"), "no_endpoints");
    assert_eq!(text(pruned), "503 Service Unavailable: Requested route ('a.example') has no available endpoints.\n");
    eventually("forgetting the host", async || (stage.get("a.example", "/").await.status() == 404).then_some(())).await;
}

#[tokio::test]
async fn the_router_makes_itself_known() {
    let mut stage = Stage::set_with(|config| config.index = 3).await;
    let greeting = stage.bus.request(subjects::ROUTER_GREET, &json!({}), PATIENCE).await.unwrap();
    let greeting: RouterStart = serde_json::from_slice(&greeting.payload).unwrap();
    assert!(greeting.id.as_deref().unwrap().starts_with("3-"));
    assert_eq!(greeting.hosts, ["127.0.0.1"]);
    assert_eq!((greeting.minimum_register_interval_seconds, greeting.prune_threshold_seconds), (Some(20), Some(120)));

    let discovered = stage.bus.request(subjects::COMPONENT_DISCOVER, &json!({}), PATIENCE).await.unwrap();
    let discovered: serde_json::Value = serde_json::from_slice(&discovered.payload).unwrap();
    assert_eq!(discovered["type"], "Router");
    assert_eq!(discovered["index"], 3);
    assert_eq!(discovered["uuid"], greeting.id.clone().unwrap());
    assert_eq!(discovered["host"], stage.status.to_string());
    assert!(discovered["uptime"].as_str().unwrap().starts_with("0d:0h:0m:"));
    let credentials = discovered["credentials"].as_array().unwrap();
    assert_eq!(format!("{}:{}", credentials[0].as_str().unwrap(), credentials[1].as_str().unwrap()), stage.credentials);

    // A bus that comes back hears both again.
    stage.broker.stop().await;
    stage.broker.start_again().await;
    let listener = stage.broker.client().await;
    let mut starts = listener.subscribe(subjects::ROUTER_START).await.unwrap();
    let mut announcements = listener.subscribe(subjects::COMPONENT_ANNOUNCE).await.unwrap();
    let start = crate::stage::in_time("router.start", starts.next()).await.unwrap();
    let start: RouterStart = serde_json::from_slice(&start.payload).unwrap();
    assert_eq!(start.id, greeting.id);
    let announced = crate::stage::in_time("vcap.component.announce", announcements.next()).await.unwrap();
    let announced: serde_json::Value = serde_json::from_slice(&announced.payload).unwrap();
    assert_eq!((announced["type"].as_str(), announced.get("uptime")), (Some("Router"), None));
}

#[tokio::test]
async fn nonsense_on_the_bus_does_no_harm() {
    let stage = Stage::set().await;
    let app = App::named("app").await;
    stage.register(&["a.example"], app.address).await;
    for subject in [subjects::ROUTER_REGISTER, subjects::ROUTER_UNREGISTER, subjects::ROUTER_GREET, subjects::COMPONENT_DISCOVER] {
        for payload in ["", "null", "[]", "{", "{\"uris\":5}", "{\"host\":\"x\",\"port\":99999999}", "\u{0}\u{1}"] {
            stage.bus.publish_raw(subject, None, Bytes::from_static(payload.as_bytes())).unwrap();
        }
    }
    for bad in [
        json!({"host": "169.254.1.1", "port": 0, "uris": ["evil.example"]}),
        json!({"host": "db.internal", "port": 80, "uris": ["evil.example"]}),
        json!({"host": "127.0.0.1", "port": 80, "uris": ["evil.example"], "private_instance_id": "a\r\nb: c"}),
        json!({"host": "127.0.0.1", "port": 80, "uris": vec!["evil.example"; 1001]}),
        json!({"host": "127.0.0.1", "port": 80, "uris": ["evil host", "x".repeat(3000)]}),
    ] {
        stage.bus.publish(subjects::ROUTER_REGISTER, &bad).unwrap();
    }
    stage.register(&["b.example"], app.address).await;
    let routes = stage.routes().await;
    assert_eq!(routes.as_object().unwrap().keys().collect::<Vec<_>>(), ["a.example", "b.example"]);
    assert_eq!(stage.get("a.example", "/").await.status(), 200);
}
