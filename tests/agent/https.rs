//! The HTTPS API, reports to the Cloud Controller, and heartbeats to a health manager that wants them over HTTPS.

use std::path::Path;
use std::sync::Arc;

use reqwest::{Certificate, Client, Identity};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::staging::staging_message;
use crate::test_authority::Authority;
use crate::test_server::{Answer, Request, Server};
use crate::world::{PATIENCE, World, eventually, guest, next_where};

/// Certificates as an agent's configuration names them, and a client that it lets in.
struct Trust {
    authority: Authority,
    files: TempDir,
}

impl Trust {
    fn new() -> Self {
        let (authority, files) = (Authority::new(), tempfile::tempdir().unwrap());
        let (certificate, key) = authority.signs();
        for (name, content) in [("ca.pem", authority.pem()), ("cert.pem", certificate), ("key.pem", key)] {
            std::fs::write(files.path().join(name), content).unwrap();
        }
        Self { authority, files }
    }

    fn keys(&self) -> String {
        let dir = self.files.path().display();
        format!("key_file: {dir}/key.pem, cert_file: {dir}/cert.pem, ca_file: {dir}/ca.pem")
    }

    fn api(&self, controller: &Server) -> String {
        let controller = controller.address;
        format!("service_name: localhost\nssl: {{ port: 0, {} }}\ncc_url: 'http://me:hunter2@{controller}'\n", self.keys())
    }

    fn client(&self) -> Client {
        let (certificate, key) = self.authority.signs();
        self.stranger().identity(Identity::from_pem(format!("{certificate}\n{key}").as_bytes()).unwrap()).build().unwrap()
    }

    /// Trusts the agent, and has nothing to show.
    fn stranger(&self) -> reqwest::ClientBuilder {
        Client::builder().no_proxy().timeout(PATIENCE).tls_certs_only([Certificate::from_pem(self.authority.pem().as_bytes()).unwrap()])
    }
}

/// Where the agent says that its API is.
async fn advertised(world: &World) -> String {
    let mut advertised = world.subscribe("dea.advertise").await;
    let advertise = next_where(&mut advertised, "with a URL", |advertise| advertise["url"].is_string()).await;
    advertise["url"].as_str().unwrap().to_owned()
}

async fn post(client: &Client, url: &str, body: impl Into<reqwest::Body>) -> (u16, String) {
    let response = client.post(url).header("content-type", "application/json").body(body).send().await.unwrap();
    (response.status().as_u16(), response.text().await.unwrap())
}

pub(crate) async fn an_app_is_started_over_https() {
    let (trust, controller) = (Trust::new(), Server::start(|_| Answer::status(404, "")).await);
    let world = World::new(&trust.api(&controller)).await;
    let (url, client) = (advertised(&world).await, trust.client());
    let (apps, message) = (format!("{url}/v1/apps"), world.start_message(&guest("tests/http-driver"), "shop"));
    assert_eq!(post(&client, &apps, message.to_string()).await.0, 202);
    world.in_state("shop", "RUNNING").await;

    let mut wrong = message.clone();
    wrong["index"] = json!("hunter2");
    assert_eq!(post(&client, &apps, wrong.to_string()).await, (400, "`index`: not u32\n".to_owned()));
    assert_eq!(post(&client, &apps, "{").await, (400, "not JSON, at line 1 column 1\n".to_owned()));
    assert_eq!(post(&client, &apps, vec![b' '; (1 << 20) + 1]).await.0, 413);
    assert_eq!(post(&client, &format!("{url}/v1/other"), "{}").await.0, 404);
    let read = client.get(&apps).send().await.unwrap();
    assert_eq!((read.status().as_u16(), &read.headers()["allow"]), (405, &reqwest::header::HeaderValue::from_static("POST")));
    let staging = staging_message(&world, "tests/http-driver", "shop");
    assert_eq!(post(&client, &format!("{url}/v1/stage"), staging.to_string()).await, (503, "this agent does not stage\n".to_owned()));
}

pub(crate) async fn strangers_are_not_let_in() {
    let (trust, controller) = (Trust::new(), Server::start(|_| Answer::status(404, "")).await);
    let world = World::new(&trust.api(&controller)).await;
    let apps = format!("{}/v1/apps", advertised(&world).await);
    let message = world.start_message(&guest("tests/http-driver"), "shop").to_string();
    let (certificate, key) = Authority::new().signs();
    let forged = Identity::from_pem(format!("{certificate}\n{key}").as_bytes()).unwrap();
    for client in [trust.stranger().build().unwrap(), trust.stranger().identity(forged).build().unwrap()] {
        client.post(&apps).body(message.clone()).send().await.unwrap_err();
    }
    let plain = Client::builder().no_proxy().build().unwrap();
    plain.post(apps.replace("https:", "http:")).body(message.clone()).send().await.unwrap_err();
    // Who says nothing does not keep others out.
    let port: u16 = apps.split([':', '/']).filter_map(|part| part.parse().ok()).next().unwrap();
    let _silent: Vec<_> = (0..20).map(|_| std::net::TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
    assert_eq!(post(&trust.client(), &apps, message).await.0, 202);
    world.found("shop").await;
}

/// A Cloud Controller that takes reports, refusing the first, and names one buildpack, which is none.
async fn controller() -> Server {
    let refused = std::sync::atomic::AtomicBool::new(false);
    Server::start(move |request: &Request| match request.target.as_str() {
        "/internal/buildpacks" => {
            let url = format!("http://{}/buildpack", request.header("host").unwrap());
            Answer::ok(json!([{ "key": "k1", "url": url }, { "key": "../k2", "url": url }]).to_string())
        }
        "/buildpack" => Answer::ok(std::fs::read(guest("tests/buildpack-driver")).unwrap()),
        _ if refused.swap(true, std::sync::atomic::Ordering::Relaxed) => Answer::ok(""),
        _ => Answer::status(500, ""),
    })
    .await
}

async fn reports(controller: &Server, app: &str, wanted: usize) -> Vec<Value> {
    let target = format!("/internal/dea/staging/{app}/completed");
    eventually("a report", async || {
        let requests = controller.requests();
        let found: Vec<&Request> = requests.iter().filter(|request| request.target == target).collect();
        (found.len() >= wanted).then(|| found.iter().map(|request| serde_json::from_slice(&request.body).unwrap()).collect())
    })
    .await
}

pub(crate) async fn a_staging_over_https_is_reported_and_then_started() {
    let (trust, controller) = (Trust::new(), controller().await);
    let world = World::new(&format!("staging: {{ enabled: true }}\n{}", trust.api(&controller))).await;
    let (stage, client) = (format!("{}/v1/stage", advertised(&world).await), trust.client());
    let message = staging_message(&world, "tests/http-driver", "shop");
    assert_eq!(post(&client, &stage, message.to_string()).await.0, 202);
    let reports = reports(&controller, "shop", 2).await;
    assert_eq!(reports[0], reports[1], "the same is told again");
    assert_eq!((&reports[0]["task_id"], &reports[0]["dea_id"]), (&json!("task-1"), &json!(world.agent.id())));
    assert_eq!(reports[0]["droplet_sha1"].as_str().map(str::len), Some(40));
    world.in_state("shop", "RUNNING").await;

    let mut missing = message.clone();
    missing["download_uri"] = json!(format!("http://{}/missing", world.file_server));
    missing["app_id"] = json!("blog");
    assert_eq!(post(&client, &stage, missing.to_string()).await.0, 202);
    let report = self::reports(&controller, "blog", 1).await.remove(0);
    assert!(report["error"].as_str().unwrap().contains("404"), "{report}");
}

pub(crate) async fn buildpacks_are_fetched_before_they_are_needed() {
    let (trust, controller) = (Trust::new(), controller().await);
    let world = World::new(&format!("staging: {{ enabled: true }}\n{}", trust.api(&controller))).await;
    let there = |key: &str| world.base.path().join("admin_buildpacks").join(key).is_dir().then_some(());
    eventually("a buildpack", async || there("k1")).await;
    eventually("another one", async || {
        // What comes while others are being fetched is left for the staging that needs it.
        world.publish("buildpacks", &json!([{ "key": "k3", "url": controller.url("/buildpack") }]));
        there("k3")
    })
    .await;
    assert!(!world.base.path().join("k2").exists(), "a key leads nowhere else");
    let listed = controller.requests().iter().filter(|request| request.target == "/internal/buildpacks").count();
    assert_eq!(listed, 1);
}

pub(crate) async fn an_agent_that_does_not_stage_asks_for_no_buildpacks() {
    let (trust, controller) = (Trust::new(), controller().await);
    let world = World::new(&trust.api(&controller)).await;
    advertised(&world).await;
    assert!(controller.requests().is_empty());
}

/// A health manager; what it is sent comes out of the channel.
async fn health_manager(trust: &Trust) -> (u16, mpsc::UnboundedReceiver<String>) {
    let read = |name: &str| std::fs::read(Path::new(trust.files.path()).join(name)).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&read("ca.pem")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::clone(&provider)).build().unwrap();
    let builder = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let certificate = CertificateDer::from_pem_slice(&read("cert.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_slice(&read("key.pem")).unwrap();
    let config = builder.with_client_cert_verifier(verifier).with_single_cert(vec![certificate], key).unwrap();
    let (acceptor, listener) = (TlsAcceptor::from(Arc::new(config)), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let port = listener.local_addr().unwrap().port();
    let (tell, told) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let tell = tell.clone();
            tokio::spawn(async move {
                let mut request = Vec::new();
                let mut piece = [0; 4096];
                while let Ok(length @ 1..) = stream.read(&mut piece).await {
                    request.extend_from_slice(&piece[..length]);
                    if request.ends_with(b"}") {
                        let answer = b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n";
                        if tell.send(String::from_utf8(std::mem::take(&mut request)).unwrap()).is_err() {
                            return;
                        }
                        stream.write_all(answer).await.unwrap();
                    }
                }
            });
        }
    });
    (port, told)
}

pub(crate) async fn heartbeats_reach_a_health_manager_over_https_also_without_a_bus() {
    let trust = Trust::new();
    let (port, mut told) = health_manager(&trust).await;
    let world = World::new(&format!("hm9000: {{ listener_uri: 'https://localhost:{port}', {} }}\n", trust.keys())).await;
    assert_eq!(beat(&mut told).await, json!({ "droplets": [], "dea": world.agent.id() }));
    let mut on_the_bus = world.subscribe("dea.heartbeat").await;
    next_where(&mut on_the_bus, "as well", |heartbeat| heartbeat["dea"] == json!(world.agent.id())).await;
    world.start(&world.start_message(&guest("tests/http-driver"), "shop"));
    world.in_state("shop", "RUNNING").await;
    world.broker.end().await;
    while told.try_recv().is_ok() {}
    for _ in 0..3 {
        assert_eq!(beat(&mut told).await["droplets"][0]["state"], "RUNNING");
    }
}

async fn beat(told: &mut mpsc::UnboundedReceiver<String>) -> Value {
    let request = timeout(PATIENCE, told.recv()).await.expect("no heartbeat").unwrap();
    assert!(request.starts_with("POST /dea/heartbeat HTTP/1.1\r\n"), "{request}");
    serde_json::from_str(request.split_once("\r\n\r\n").unwrap().1).unwrap()
}
