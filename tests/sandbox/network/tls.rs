//! `https`: whom guests trust, and what they are told of those whom they don't.

use dewar_protocol::LogStream;
use dewar_sandbox::EgressPolicy;
use libtest_mimic::Trial;

use super::origin::{Origin, Reply, authority, certified, new_authority};
use super::{driver, rule};
use crate::fixture::{Instance, Plan, test};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        test("network::tls::the_operators_authority_is_trusted", trusted),
        test("network::tls::a_certificate_must_be_good", refused),
        test("network::tls::what_is_no_tls_is_told", no_tls),
        test("network::tls::a_handshake_may_not_take_for_ever", stalled),
    ]
}

async fn app() -> Instance {
    driver(&[rule("tcp", "127.0.0.1", None)]).await
}

async fn trusted() {
    let config = certified(authority(), &["localhost", "127.0.0.1", "secure.test"], |_| {});
    let origin = Origin::tls(config, |connection, _, _| Reply::text(&connection.to_string())).await;
    let app = app().await;
    for (host, connection) in [("localhost", 0), ("localhost", 0), ("127.0.0.1", 1), ("Secure.TEST.", 2)] {
        let answer = app.ok(&format!("/fetch?url=https://{host}:{}/", origin.port)).await;
        assert_eq!(answer, format!("200\n{connection}"), "{host}");
    }
    let mut plan = Plan::of("tests/service-hello").await;
    plan.egress = EgressPolicy::new(&[rule("tcp", "127.0.0.1", None)]).unwrap();
    assert_eq!(plan.start().await.ok(&format!("/fetch?url=https://localhost:{}/", origin.port)).await, "3");
    // A connection with TLS is not one without.
    assert_ne!(app.get(&format!("/fetch?url=http://localhost:{}/", origin.port)).await.status, 200);
    assert_eq!(origin.accepted(), 5);
}

async fn refused() {
    let app = app().await;
    let stranger = new_authority("Stranger");
    let expired = |params: &mut rcgen::CertificateParams| params.not_after = rcgen::date_time_ymd(2001, 1, 1);
    for (what, config, told) in [
        ("a stranger's", certified(&stranger, &["localhost"], |_| {}), "UnknownIssuer"),
        ("another host's", certified(authority(), &["elsewhere.test"], |_| {}), "not valid for name"),
        ("an expired one", certified(authority(), &["localhost"], expired), "expired"),
    ] {
        let origin = Origin::tls(config, |_, _, _| Reply::text("secret")).await;
        let answer = app.get(&format!("/fetch?url=https://localhost:{}/", origin.port)).await;
        assert!(answer.status == 422 && answer.text().contains("TlsCertificateError"), "{what}: {}", answer.text());
        let line = app.lines.of(LogStream::Err).pop().unwrap_or_default();
        assert!(line.contains(told) && line.contains(&format!("https://localhost:{}", origin.port)), "{what}: {line}");
        assert_eq!(origin.bytes(), "", "{what}");
    }
}

async fn no_tls() {
    let origin = Origin::plain(|_, _, _| Reply::text("")).await;
    // It answers something that looks like a request and is none.
    let answer = app().await.get(&format!("/fetch?connect_ms=500&url=https://127.0.0.1:{}/", origin.port)).await;
    assert!(answer.status == 422 && answer.text().contains("ConnectionTimeout"), "{}", answer.text());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let ssh = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, b"SSH-2.0-OpenSSH_9.7\r\n").await.unwrap();
        stream
    });
    let answer = app().await.get(&format!("/fetch?url=https://127.0.0.1:{port}/")).await;
    assert!(answer.status == 422 && answer.text().contains("TlsProtocolError"), "{}", answer.text());
    drop(ssh.await.unwrap());
}

async fn stalled() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let answer = app().await.get(&format!("/fetch?connect_ms=300&url=https://127.0.0.1:{port}/")).await;
    assert!(answer.status == 422 && answer.text().contains("ConnectionTimeout"), "{}", answer.text());
}
