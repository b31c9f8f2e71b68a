//! WebSocket and other upgrades.

use std::time::Duration;

use tokio::io::AsyncWriteExt;

use crate::stage::{App, Stage, Wire, bare_instance, eventually, text};

const ASK: &str = "GET /chat HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: abc\r\n\r\n";

/// Switches and then sends everything back.
async fn echo_server() -> std::net::SocketAddr {
    bare_instance(|mut wire: Wire, _| async move {
        let head = wire.head().await;
        assert!(head.contains("connection: Upgrade\r\n") && head.contains("upgrade: websocket\r\n"), "{head}");
        assert!(head.contains("sec-websocket-key: abc\r\n"), "{head}");
        // The first words of the new protocol may come in one piece with the head.
        wire.send(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Accept: xyz\r\n\r\nwelcome",
        )
        .await;
        let (mut from, mut to) = wire.stream.split();
        // The test ends by closing: whichever way that looks here is fine.
        let _ = tokio::io::copy(&mut from, &mut to).await;
        let _ = to.shutdown().await;
    })
    .await
}

#[tokio::test]
async fn a_websocket_is_carried_both_ways() {
    let stage = Stage::set().await;
    stage.register(&["a.example"], echo_server().await).await;
    let mut client = stage.connect().await;
    // Here too: the client does not wait for the answer.
    client.send([ASK, "early"].concat()).await;
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
    for line in ["connection: Upgrade", "upgrade: websocket", "sec-websocket-accept: xyz"] {
        assert!(head.lines().any(|seen| seen == line), "{line} is not in {head}");
    }
    assert_eq!(client.exactly(12).await, b"welcomeearly");
    for size in [1, 1000, 1_000_000] {
        let sent = vec![b'x'; size];
        client.send(&sent).await;
        assert_eq!(client.exactly(size).await, sent);
    }
    assert_eq!(stage.varz().await["tunnels"], 1);
    assert_eq!(stage.routes().await["a.example"][0]["in_flight"], 1);
    client.stream.shutdown().await.unwrap();
    assert_eq!(client.closed().await, "", "the end of one side reaches the other and comes back");
    eventually("the end of the tunnel", async || (stage.varz().await["requests_in_flight"] == 0).then_some(())).await;
    assert_eq!(stage.routes().await["a.example"][0]["in_flight"], 0);
}

#[tokio::test]
async fn a_refused_upgrade_is_an_ordinary_answer() {
    let stage = Stage::set().await;
    let app = App::named("no sockets here").await;
    stage.register(&["a.example"], app.address).await;
    let mut client = stage.connect().await;
    client.send(ASK).await;
    assert!(client.head().await.starts_with("HTTP/1.1 200"));
    assert_eq!(client.exactly(15).await, b"no sockets here");
    client.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    assert!(client.head().await.starts_with("HTTP/1.1 200"), "the connection goes on");
}

#[tokio::test]
async fn what_is_no_upgrade_is_not_passed_on_as_one() {
    let stage = Stage::set().await;
    let app = App::mirror().await;
    stage.register(&["a.example"], app.address).await;
    for ask in [
        "GET / HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.example\r\nUpgrade: websocket\r\n\r\n",
        "GET / HTTP/1.0\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 1\r\n\r\nx",
    ] {
        let seen = stage.talk(ask.as_bytes()).await;
        let (_, body) = seen.split_once("\r\n\r\n").unwrap();
        assert!(!body.contains("upgrade:") && !body.contains("http2-settings:"), "{ask:?}: {body}");
    }
}

#[tokio::test]
async fn a_switch_that_nobody_asked_for_is_a_bad_gateway() {
    let stage = Stage::set().await;
    let address = bare_instance(|mut wire: Wire, _| async move {
        wire.head().await;
        wire.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\n").await;
        wire.closed().await;
    })
    .await;
    stage.register(&["a.example"], address).await;
    assert_eq!(stage.get("a.example", "/").await.status(), 502);
    assert!(stage.talk(ASK.as_bytes()).await.starts_with("HTTP/1.1 502"));
}

#[tokio::test]
async fn a_tunnel_in_which_nothing_moves_is_closed() {
    let stage = Stage::set_with(|config| config.clients.tunnel_idle_timeout = Duration::from_secs(2)).await;
    stage.register(&["a.example"], echo_server().await).await;
    let mut client = stage.connect().await;
    client.send(ASK).await;
    client.head().await;
    client.exactly(7).await;
    // Longer than the limit in all, with something moving all the time.
    for _ in 0..10 {
        client.send("x").await;
        client.exactly(1).await;
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    assert_eq!(client.closed().await, "");
}

#[tokio::test]
async fn ordinary_requests_go_on_beside_a_tunnel() {
    let stage = Stage::set().await;
    let app = App::named("beside").await;
    stage.register(&["a.example"], echo_server().await).await;
    stage.register(&["b.example"], app.address).await;
    let mut client = stage.connect().await;
    client.send(ASK).await;
    client.head().await;
    assert_eq!(text(stage.get("b.example", "/").await), "beside");
}
