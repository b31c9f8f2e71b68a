//! Every way to identify oneself, against a real nats-server; and those that the embedded broker knows.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use dewar_bus::broker::{BrokerAuth, BrokerConfig};
use dewar_bus::{BusAuth, BusConfig, BusTls};
use dewar_protocol::Secret;
use nkeys::KeyPair;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa};
use serde_json::{Value, json};

use crate::fixtures::{NatsServer, PATIENCE, TestBroker, any_port, connect_with};

fn secret(text: &str) -> Secret<String> {
    Secret(text.to_owned())
}

async fn assert_admitted(config: BusConfig) {
    let (bus, _events) = connect_with(config).await;
    bus.wait_up(PATIENCE).await.unwrap();
    bus.flush(PATIENCE).await.unwrap();
}

/// Must not get in; returns the cause that is told.
async fn refused(config: BusConfig) -> String {
    let (bus, _events) = connect_with(config).await;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let cause = bus.wait_up(Duration::from_millis(50)).await.unwrap_err().to_string();
        if !cause.contains("still connecting") || Instant::now() > deadline {
            return cause;
        }
    }
}

fn with(url: &str, auth: BusAuth) -> BusConfig {
    BusConfig { servers: vec![url.to_owned()], auth, name: "test".to_owned(), ..BusConfig::default() }
}

fn user_password(password: &str) -> BusAuth {
    BusAuth::UserPassword { user: "cf".to_owned(), password: secret(password) }
}

async fn check_user_and_password(address: std::net::SocketAddr) {
    let url = format!("nats://{address}");
    assert_admitted(with(&url, user_password("p@ss:w/rd"))).await;
    assert_admitted(with(&format!("nats://cf:p%40ss%3Aw%2Frd@{address}"), BusAuth::None)).await;
    assert!(refused(with(&url, user_password("wrong"))).await.contains("authorization violation"));
    assert!(refused(with(&format!("nats://cf:wrong@{address}"), BusAuth::None)).await.contains("authorization violation"));
    assert!(refused(with(&url, BusAuth::None)).await.contains("authorization violation"));
    // What is configured goes before what is in an address.
    assert_admitted(with(&format!("nats://cf:wrong@{address}"), user_password("p@ss:w/rd"))).await;
}

#[tokio::test]
async fn user_and_password() {
    let server = NatsServer::start("authorization { timeout: 60, user: cf, password: \"p@ss:w/rd\" }").await;
    check_user_and_password(server.address).await;
    let auth = BrokerAuth::UserPassword { user: "cf".to_owned(), password: secret("p@ss:w/rd") };
    let broker = TestBroker::start(BrokerConfig { auth, ..any_port() }).await;
    check_user_and_password(broker.address).await;
    broker.stop().await;
}

async fn check_token(address: std::net::SocketAddr) {
    let url = format!("nats://{address}");
    assert_admitted(with(&url, BusAuth::Token(secret("s3cret")))).await;
    assert_admitted(with(&format!("nats://s3cret@{address}"), BusAuth::None)).await;
    assert!(refused(with(&url, BusAuth::Token(secret("wrong")))).await.contains("authorization violation"));
}

#[tokio::test]
async fn token() {
    let server = NatsServer::start("authorization { timeout: 60, token: s3cret }").await;
    check_token(server.address).await;
    let broker = TestBroker::start(BrokerConfig { auth: BrokerAuth::Token(secret("s3cret")), ..any_port() }).await;
    check_token(broker.address).await;
    broker.stop().await;
}

#[tokio::test]
async fn nkey() {
    let (user, stranger) = (KeyPair::new_user(), KeyPair::new_user());
    let server = NatsServer::start(&format!("authorization {{ timeout: 60, users: [ {{ nkey: {} }} ] }}", user.public_key())).await;
    assert_admitted(with(&server.url(), BusAuth::NkeySeed(secret(&user.seed().unwrap())))).await;
    let cause = refused(with(&server.url(), BusAuth::NkeySeed(secret(&stranger.seed().unwrap())))).await;
    assert!(cause.contains("authorization violation"), "{cause}");
}

/// A JWT in the form that NATS signs.
fn jwt(issuer: &KeyPair, subject: &KeyPair, name: &str, nats: &Value) -> String {
    let encode = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let header = encode(json!({ "typ": "JWT", "alg": "ed25519-nkey" }));
    let claims = encode(json!({
        "jti": name, "iat": 1_700_000_000, "iss": issuer.public_key(), "sub": subject.public_key(), "name": name, "nats": nats,
    }));
    let signed = format!("{header}.{claims}");
    let signature = URL_SAFE_NO_PAD.encode(issuer.sign(signed.as_bytes()).unwrap());
    format!("{signed}.{signature}")
}

fn write_credentials(path: &Path, user_jwt: &str, seed: &str) {
    let text = format!(
        "-----BEGIN NATS USER JWT-----\n{user_jwt}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    );
    std::fs::write(path, text).unwrap();
}

#[tokio::test]
async fn credentials_file() {
    let (operator, account, user) = (KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_user());
    let unlimited = json!({
        "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
    });
    let operator_jwt = jwt(&operator, &operator, "operator", &json!({ "type": "operator", "version": 2 }));
    let account_jwt = jwt(&operator, &account, "account", &json!({ "type": "account", "version": 2, "limits": unlimited }));
    let claims = json!({ "type": "user", "version": 2, "pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1 });
    let user_jwt = jwt(&account, &user, "user", &claims);
    let configuration =
        format!("operator: \"{operator_jwt}\"\nresolver: MEMORY\nresolver_preload: {{ {}: \"{account_jwt}\" }}", account.public_key());
    let server = NatsServer::start(&configuration).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("user.creds");
    write_credentials(&file, &user_jwt, &user.seed().unwrap());
    assert_admitted(with(&server.url(), BusAuth::CredentialsFile(file.clone()))).await;

    let forger = KeyPair::new_account();
    write_credentials(&file, &jwt(&forger, &user, "user", &claims), &user.seed().unwrap());
    let cause = refused(with(&server.url(), BusAuth::CredentialsFile(file))).await;
    assert!(cause.contains("authorization violation"), "{cause}");
}

/// A certificate authority with a server's and a client's certificate, as files.
struct Certificates {
    directory: tempfile::TempDir,
}

impl Certificates {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, rcgen::KeyPair::generate().unwrap()).unwrap();
        std::fs::write(directory.path().join("ca.pem"), authority.pem()).unwrap();
        for (name, host) in [("server", "127.0.0.1"), ("client", "client.test")] {
            let key = rcgen::KeyPair::generate().unwrap();
            let certificate = CertificateParams::new([host.to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
            std::fs::write(directory.path().join(format!("{name}.pem")), certificate.pem()).unwrap();
            std::fs::write(directory.path().join(format!("{name}.key")), key.serialize_pem()).unwrap();
        }
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn server_section(&self, more: &str) -> String {
        let file = |name: &str| self.path(name).display().to_string();
        format!(
            "tls {{ timeout: 60, cert_file: \"{}\", key_file: \"{}\", ca_file: \"{}\" {more} }}",
            file("server.pem"),
            file("server.key"),
            file("ca.pem")
        )
    }
}

#[tokio::test]
async fn tls_with_an_own_authority() {
    let certificates = Certificates::new();
    let server = NatsServer::start(&certificates.server_section("")).await;
    let trusting = BusTls { ca_file: Some(certificates.path("ca.pem")), ..BusTls::default() };
    let config = BusConfig { tls: Some(trusting), ..with(&server.url(), BusAuth::None) };
    assert_admitted(config.clone()).await;
    assert_admitted(BusConfig { servers: vec![format!("tls://{}", server.address)], ..config.clone() }).await;

    let strangers = Certificates::new();
    let distrusting = BusTls { ca_file: Some(strangers.path("ca.pem")), ..BusTls::default() };
    let cause = refused(BusConfig { tls: Some(distrusting), ..config.clone() }).await;
    assert!(cause.contains("certificate"), "{cause}");

    let plain = NatsServer::start("").await;
    let cause = refused(BusConfig { servers: vec![plain.url()], ..config }).await;
    assert!(cause.contains("corrupt message"), "a server without TLS is not good enough: {cause}");
}

#[tokio::test]
async fn tls_with_a_client_certificate() {
    let certificates = Certificates::new();
    let server = NatsServer::start(&certificates.server_section(", verify: true")).await;
    let full = BusTls {
        ca_file: Some(certificates.path("ca.pem")),
        cert_file: Some(certificates.path("client.pem")),
        key_file: Some(certificates.path("client.key")),
    };
    let config = |tls: BusTls| BusConfig { tls: Some(tls), ..with(&server.url(), BusAuth::None) };
    assert_admitted(config(full.clone())).await;
    let cause = refused(config(BusTls { cert_file: None, key_file: None, ..full })).await;
    assert!(cause.to_lowercase().contains("certificate"), "{cause}");
}
