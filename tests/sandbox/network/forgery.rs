//! Guests that want to reach whom they may not, or to say what is not theirs to say.

use libtest_mimic::Trial;

use super::origin::{Origin, Reply};
use super::{driver, rule};
use crate::fixture::test;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        test("network::forgery::no_spelling_of_loopback_gets_through", spellings),
        test("network::forgery::every_spelling_means_the_same", same),
        test("network::forgery::an_app_does_not_reach_its_own_port", own_port),
        test("network::forgery::fields_of_the_connection_are_not_the_guests", fields),
        test("network::forgery::host_is_what_is_connected_to", host),
        test("network::forgery::a_body_is_as_long_as_announced", lengths),
    ]
}

async fn spellings() {
    let origin = Origin::plain(|_, _, _| Reply::text("secret")).await;
    let app = driver(&[rule("all", "0.0.0.0/0", None), rule("all", "::/0", None)]).await;
    let hosts = [
        "127.0.0.1",
        "127.0.0.1.",
        "127.1",
        "127.0.0.2",
        "2130706433",
        "0x7f000001",
        "0x7f.0x0.0x0.0x1",
        "0177.0.0.1",
        "017700000001",
        "0",
        "0.0.0.0",
        "[::]",
        "[::1]",
        "[::127.0.0.1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "localhost",
        "LOCALHOST",
        "localhost.",
        "loopback.test",
        "user@127.0.0.1",
        "example.com@127.0.0.1",
        "example.com:80@127.0.0.1",
        "127.0.0.1%00.example.com",
    ];
    for host in hosts {
        let host = host.replace('%', "%25").replace('@', "%40");
        let answer = app.get(&format!("/fetch?url=http://{host}:{}/", origin.port)).await;
        let told = ["DestinationIpProhibited", "HttpRequestUriInvalid", "url: "].iter().any(|code| answer.text().contains(code));
        assert!(answer.status != 200 && told, "{host}: {} {}", answer.status, answer.text());
    }
    assert_eq!(origin.accepted(), 0);
}

async fn same() {
    let origin = Origin::plain(|connection, _, _| Reply::text(&connection.to_string())).await;
    let app = driver(&[rule("tcp", "127.0.0.1", Some(origin.port))]).await;
    for host in ["127.0.0.1", "2130706433", "0x7f.1", "0177.0.0.1"] {
        assert_eq!(app.ok(&format!("/fetch?url=http://{host}:{}/", origin.port)).await, "200\n0", "{host}");
    }
    let field = format!("host: 127.0.0.1:{}\r\n", origin.port);
    assert!(origin.requests().iter().all(|head| head.matches("host: ").count() == 1 && head.contains(&field)), "{:?}", origin.requests());
}

async fn own_port() {
    let app = driver(&[rule("all", "0.0.0.0/0", None)]).await;
    for url in [format!("http://{}/", app.address), format!("http://localhost:{}/", app.address.port())] {
        let answer = app.get(&format!("/fetch?url={url}")).await;
        assert!(answer.text().contains("DestinationIpProhibited"), "{url}: {}", answer.text());
    }
    assert_eq!(app.get(&format!("/connect?to={}", app.address)).await.status, 422);
}

async fn fields() {
    let origin = Origin::plain(|_, _, _| Reply::text("")).await;
    let app = driver(&[rule("tcp", "127.0.0.1", Some(origin.port))]).await;
    for name in ["Host", "connection", "Transfer-Encoding", "Upgrade", "keep-alive", "proxy-connection", "Proxy-Authorization"] {
        let answer = app.get(&format!("/fetch?name={name}&value=x&url={}", origin.url("/"))).await;
        assert!(answer.status == 422 && answer.text().contains("Forbidden"), "{name}: {}", answer.text());
    }
    for (name, value) in [("x", "a%0D%0Ahost:%20other"), ("x%0D%0Ay", "z"), ("content-length", "%2B1"), ("content-length", "1,%202")] {
        let answer = app.get(&format!("/fetch?name={name}&value={value}&url={}", origin.url("/"))).await;
        assert!(answer.status == 422 && answer.text().contains("InvalidSyntax"), "{name}: {}", answer.text());
    }
    for method in ["CONNECT", "GET%20/%20HTTP/1.1%0D%0A", ""] {
        assert_ne!(app.get(&format!("/fetch?method={method}&url={}", origin.url("/"))).await.status, 200, "{method}");
    }
    assert_eq!(origin.requests(), Vec::<String>::new());
}

async fn host() {
    let origin = Origin::plain(|_, _, _| Reply::text("")).await;
    let app = driver(&[rule("tcp", "127.0.0.1", Some(origin.port))]).await;
    app.ok(&format!("/fetch?url=http://LocalHost:{}/a%3Fb=c", origin.port)).await;
    app.ok(&format!("/fetch?url=http://localhost:{}//elsewhere/", origin.port)).await;
    let heads = origin.requests();
    assert!(heads[0].starts_with("GET /a?b=c HTTP/1.1\r\n") && heads[1].starts_with("GET //elsewhere/ HTTP/1.1\r\n"), "{heads:?}");
    for head in heads {
        assert!(head.contains(&format!("\r\nhost: localhost:{}\r\n", origin.port)) && head.matches("\r\nhost:").count() == 1, "{head}");
    }
}

async fn lengths() {
    let origin = Origin::plain(|_, _, _| Reply::text("")).await;
    let app = driver(&[rule("tcp", "127.0.0.1", Some(origin.port))]).await;
    let send = |length: &str, body: &str| {
        format!("/fetch?method=POST&first_byte_ms=1000&name=content-length&value={length}&body={body}&url={}", origin.url("/"))
    };
    // Longer than announced: the rest would be the next request.
    let smuggled = "x%0D%0A%0D%0AGET%20/smuggled%20HTTP/1.1%0D%0A%0D%0A";
    assert_ne!(app.get(&send("1", smuggled)).await.status, 200);
    // Shorter: the next request would be its rest.
    assert_ne!(app.get(&send("30", "x")).await.status, 200);
    origin.left_alone().await;
    app.ok(&format!("/fetch?url={}", origin.url("/next"))).await;
    let heads = origin.requests();
    assert!(heads.last().unwrap().starts_with("GET /next"), "{heads:?}");
    assert!(!origin.bytes().contains("smuggled"), "{}", origin.bytes());
}
