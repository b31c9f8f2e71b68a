//! Whom a guest may talk to.

mod forgery;
pub(crate) mod origin;
mod requests;
mod tls;

use std::net::Ipv4Addr;

use dewar_protocol::EgressRule;
use dewar_sandbox::EgressPolicy;
use libtest_mimic::Trial;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

use crate::fixture::{Instance, PATIENCE, Plan, test};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        test("network::nobody_by_default", nobody),
        test("network::who_is_named_can_be_reached", named),
        test("network::everybody_is_not_the_operators_own_network", everybody),
        test("network::an_http_guest_listens_nowhere", listening),
        test("network::a_command_listens_on_its_own_port_only", own_port),
        test("network::datagrams_follow_the_policy", datagrams),
        test("network::outbound_requests_follow_the_policy", outbound),
        test("network::a_look_up_shows_what_is_allowed_and_no_more", looked_up),
        test("network::metadata_services_have_no_name", metadata),
        test("network::a_port_scan_is_slow", port_scan),
        test("network::look_ups_are_rationed", many_look_ups),
        test("network::sockets_are_open_files_of_all_stores_together", sockets),
    ]
    .into_iter()
    .chain(requests::trials())
    .chain(tls::trials())
    .chain(forgery::trials())
    .collect()
}

fn rule(protocol: &str, destination: &str, ports: Option<u16>) -> EgressRule {
    EgressRule {
        protocol: protocol.into(),
        destination: destination.into(),
        ports: ports.map(|port| port.to_string()),
        icmp_type: None,
        code: None,
        log: None,
    }
}

async fn driver(rules: &[EgressRule]) -> Instance {
    // Room for as many requests at a time as any of these tests makes.
    let mut plan = Plan::of("tests/http-driver").await.quota(|quota| quota.memory = dewar_protocol::Bytes(128 << 20));
    plan.egress = EgressPolicy::new(rules).unwrap();
    plan.start().await
}

/// Somebody on loopback who answers every connection with these bytes.
async fn somebody(answer: &'static [u8]) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 4096];
                // A connection without a request gets no answer.
                if stream.read(&mut request).await.is_ok_and(|length| length > 0) {
                    let _ = stream.write_all(answer).await;
                }
            });
        }
    });
    port
}

const HELLO: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello";

async fn refused(app: &Instance, path: &str) {
    let answer = app.get(path).await;
    assert_eq!(answer.status, 422, "{path}: {}", answer.text());
}

async fn nobody() {
    let port = somebody(HELLO).await;
    let app = driver(&[]).await;
    refused(&app, &format!("/connect?to=127.0.0.1:{port}")).await;
    refused(&app, &format!("/fetch?url=http://127.0.0.1:{port}/")).await;
    refused(&app, &format!("/fetch?url=http://localhost:{port}/")).await;
    refused(&app, &format!("/udp?to=127.0.0.1:{port}")).await;
    refused(&app, "/resolve?name=localhost").await;
    refused(&app, "/connect?to=169.254.169.254:80").await;
}

async fn named() {
    let (port, other) = (somebody(HELLO).await, somebody(HELLO).await);
    let app = driver(&[rule("tcp", "127.0.0.1", Some(port))]).await;
    assert_eq!(app.ok(&format!("/connect?to=127.0.0.1:{port}")).await, "connected");
    refused(&app, &format!("/connect?to=127.0.0.1:{other}")).await;
    refused(&app, &format!("/connect?to=127.0.0.2:{port}")).await;
    assert!(app.ok("/resolve?name=localhost").await.contains("127.0.0.1"));
}

async fn everybody() {
    let port = somebody(HELLO).await;
    let app = driver(&[rule("all", "0.0.0.0/0", None), rule("all", "::/0", None)]).await;
    refused(&app, &format!("/connect?to=127.0.0.1:{port}")).await;
    refused(&app, &format!("/connect?to=[::ffff:127.0.0.1]:{port}")).await;
    refused(&app, &format!("/fetch?url=http://127.0.0.1:{port}/")).await;
    // A name that resolves to such an address does not help.
    refused(&app, &format!("/fetch?url=http://localhost:{port}/")).await;
    refused(&app, "/connect?to=169.254.169.254:80").await;
    refused(&app, "/connect?to=10.0.0.1:80").await;
}

async fn listening() {
    let app = driver(&[rule("tcp", "0.0.0.0/0", None)]).await;
    for address in [app.address.to_string(), "127.0.0.1:0".into(), "0.0.0.0:0".into(), "0.0.0.0:80".into()] {
        refused(&app, &format!("/bind?to={address}")).await;
    }
}

async fn own_port() {
    let plan =
        Plan::of("tests/command-driver").await.args(&["bind:0.0.0.0:0", "bind:127.0.0.1:8099", "connect:127.0.0.1:22", "print:done"]);
    let command = plan.start().await;
    assert_eq!(command.exit().await.status, 0);
    let lines = command.lines.all();
    assert!(!lines.contains("bound") && !lines.contains("connected") && lines.ends_with("done\n"), "{lines}");
}

async fn datagrams() {
    let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = receiver.local_addr().unwrap().port();
    let app = driver(&[rule("udp", "127.0.0.1", Some(port))]).await;
    assert_eq!(app.ok(&format!("/udp?to=127.0.0.1:{port}")).await, "sent");
    let mut datagram = [0; 64];
    let received = tokio::time::timeout(PATIENCE, receiver.recv(&mut datagram)).await.unwrap().unwrap();
    assert_eq!(&datagram[..received], b"http-driver");
    refused(&app, &format!("/udp?to=127.0.0.1:{}", port ^ 1)).await;
    refused(&app, &format!("/connect?to=127.0.0.1:{port}")).await;
}

async fn outbound() {
    let (port, other) = (somebody(HELLO).await, somebody(HELLO).await);
    let app = driver(&[rule("tcp", "127.0.0.1", Some(port))]).await;
    assert_eq!(app.ok(&format!("/fetch?url=http://127.0.0.1:{port}/x")).await, "200\nhello");
    assert_eq!(app.ok(&format!("/fetch?url=http://localhost:{port}/")).await, "200\nhello");
    refused(&app, &format!("/fetch?url=http://127.0.0.1:{other}/")).await;
}

async fn looked_up() {
    let app = driver(&[rule("udp", "127.0.0.0/8", Some(53))]).await;
    assert_eq!(app.ok("/resolve?name=mixed.test").await, "127.0.0.1\n");
    assert_eq!(app.ok("/resolve?name=127.0.0.7").await, "127.0.0.7\n");
    assert_eq!(app.ok("/resolve?name=Two.TEST").await, "127.0.0.1\n127.0.0.2\n");
    for (name, code) in [
        ("metadata.test", "access-denied"),
        ("10.0.0.1", "access-denied"),
        ("nobody.test", "name-unresolvable"),
        ("a%20b", "invalid-argument"),
    ] {
        let answer = app.get(&format!("/resolve?name={name}")).await;
        assert_eq!((answer.status, answer.text().starts_with(code)), (422, true), "{name}: {}", answer.text());
    }
}

async fn metadata() {
    let app = driver(&[rule("all", "0.0.0.0/0", None), rule("all", "127.0.0.0/8", None), rule("all", "169.254.0.0/16", None)]).await;
    refused(&app, "/resolve?name=metadata.google.internal").await;
    refused(&app, "/fetch?url=http://METADATA.google.internal./computeMetadata/v1/").await;
    assert_eq!(origin::times_looked_up("metadata.google.internal") + origin::times_looked_up("metadata.google.internal."), 0);
    // Nor an address, whatever the rules of the app are.
    refused(&app, "/connect?to=169.254.169.254:80").await;
    refused(&app, "/fetch?url=http://metadata.test/").await;
}

/// How often an outcome is said to have come.
fn count(outcomes: &str, name: &str) -> u64 {
    outcomes.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap_or(0)
}

async fn port_scan() {
    let port = somebody(HELLO).await;
    let app = driver(&[rule("tcp", "127.0.0.1", Some(port))]).await;
    let outcomes = app.ok(&format!("/connect?to=127.0.0.1:{port}&times=1000")).await;
    assert!(count(&outcomes, "ok") >= 200 && count(&outcomes, "access-denied") > 0, "{outcomes}");
    // Requests draw on the same allowance.
    let outcomes = app.ok(&format!("/fetch?url=http://127.0.0.1:{port}/&times=2000")).await;
    assert!(count(&outcomes, "ErrorCode::ConnectionLimitReached") > 0, "{outcomes}");
}

async fn sockets() {
    let mut plan = Plan::of("tests/http-driver").await.quota(|quota| quota.open_files = 50);
    plan.egress = EgressPolicy::new(&[rule("tcp", "127.0.0.1", None)]).unwrap();
    let app = plan.start().await;
    let answers = futures::future::join_all((0..3).map(|_| app.ok("/sockets?count=30"))).await;
    let made: Vec<u64> = answers.iter().map(|answer| answer.lines().next().unwrap().parse().unwrap()).collect();
    assert_eq!(made.iter().sum::<u64>(), 50, "{answers:?}");
    assert!(answers.iter().any(|answer| answer.ends_with("\nnew-socket-limit\n")), "{answers:?}");
    // What is closed is free again.
    let mut plan = Plan::of("tests/http-driver").await.quota(|quota| quota.open_files = 5);
    plan.egress = EgressPolicy::new(&[rule("tcp", "127.0.0.1", None)]).unwrap();
    let port = somebody(HELLO).await;
    assert_eq!(plan.start().await.ok(&format!("/connect?to=127.0.0.1:{port}&times=50")).await, "ok 50\n");
}

async fn many_look_ups() {
    let app = driver(&[rule("tcp", "127.0.0.1", None)]).await;
    let outcomes = app.ok("/resolve?name=ration-{}.test&times=400").await;
    assert!(count(&outcomes, "ok") >= 60 && count(&outcomes, "temporary-resolver-failure") > 0, "{outcomes}");
    // What is known needs no look-up.
    assert_eq!(app.ok("/resolve?name=ration-1.test&times=400").await, "ok 400\n");
}
