//! A broker, a place to get droplets from, an agent, and a client that plays Cloud Controller, router and health manager.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::Duration;

use bytes::Bytes;
use dewar_agent::{Agent, AgentConfig, AgentHandle};
use dewar_bus::broker::{Broker, BrokerConfig};
use dewar_bus::{Bus, BusConfig, Subscription};
use flate2::Compression;
use flate2::write::GzEncoder;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use sha1::{Digest as _, Sha1};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::free_port::free_port;

/// How long anything may take. Compiling a component in a debug build on a busy machine is the slowest.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

/// Runs a scenario to its end or its failure.
pub(crate) fn run(scenario: impl Future<Output = ()>) {
    static LOG: Once = Once::new();
    LOG.call_once(|| {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();
    });
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async { timeout(3 * PATIENCE, scenario).await.expect("the scenario takes too long") });
    runtime.shutdown_timeout(Duration::from_secs(1));
}

/// Waits until `probe` yields something.
pub(crate) async fn eventually<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(Instant::now() < deadline, "gave up waiting for {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) struct World {
    pub(crate) base: TempDir,
    pub(crate) agent: AgentHandle,
    pub(crate) bus: Bus,
    pub(crate) broker: EmbeddedBroker,
    /// Where the agent expects routers to answer its greeting.
    pub(crate) greeting_inbox: String,
    pub(crate) stop: CancellationToken,
    /// What `http://<file_server>/<name>` gives and takes.
    pub(crate) files: TempDir,
    pub(crate) file_server: SocketAddr,
}

impl World {
    /// A world in which the agent is up. `yaml` is added to its configuration.
    pub(crate) async fn new(yaml: &str) -> Self {
        let broker = EmbeddedBroker::start(free_port()).await;
        let bus = client(broker.addr).await;
        let mut hello = bus.subscribe("dea.start").await.unwrap();
        let mut greetings = bus.subscribe("router.greet").await.unwrap();
        bus.flush(PATIENCE).await.unwrap();
        let base = tempfile::tempdir().unwrap();
        let stop = CancellationToken::new();
        let agent = Agent::start(config(base.path(), broker.addr, yaml), stop.clone()).await.unwrap();
        next(&mut hello).await;
        let greeting = timeout(PATIENCE, greetings.next()).await.expect("no greeting").unwrap();
        let greeting_inbox = greeting.reply_to.expect("a greeting wants an answer");
        let files = tempfile::tempdir().unwrap();
        let file_server = serve_files(files.path().to_owned()).await;
        Self { base, agent, bus, broker, greeting_inbox, stop, files, file_server }
    }

    pub(crate) async fn subscribe(&self, subject: &str) -> Subscription {
        let subscription = self.bus.subscribe(subject).await.unwrap();
        self.bus.flush(PATIENCE).await.unwrap();
        subscription
    }

    pub(crate) fn publish(&self, subject: &str, message: &Value) {
        self.bus.publish(subject, message).unwrap();
    }

    /// Packs a droplet and offers it; returns a start message for it, to which the test adds what it is about.
    pub(crate) fn start_message(&self, wasm: &Path, app: &str) -> Value {
        self.start_message_with(wasm, app, &[])
    }

    /// The same with more files in the droplet.
    pub(crate) fn start_message_with(&self, wasm: &Path, app: &str, more: &[(&str, &[u8])]) -> Value {
        let archive = droplet(&std::fs::read(wasm).unwrap(), more);
        let sha1: String = Sha1::digest(&archive).iter().map(|byte| format!("{byte:02x}")).collect();
        std::fs::write(self.files.path().join(&sha1), archive).unwrap();
        json!({
            "droplet": app, "index": 0, "version": "v1", "name": app, "uris": [format!("{app}.example.net")], "sha1": sha1,
            "executableUri": format!("http://{}/{sha1}", self.file_server), "cc_partition": "default",
            "limits": { "mem": 64, "disk": 64, "fds": 64 }, "services": [], "env": ["GREETING=hi", "SECRET=hunter2"],
        })
    }

    pub(crate) fn start(&self, message: &Value) {
        self.publish(&format!("dea.{}.start", self.agent.id()), message);
    }

    /// The one instance of an app, as `dea.find.droplet` tells it.
    pub(crate) async fn find(&self, app: &str) -> Option<Value> {
        let request = json!({ "droplet": app, "include_stats": true });
        let found = self.bus.request("dea.find.droplet", &request, Duration::from_millis(500)).await.ok()?;
        Some(serde_json::from_slice(&found.payload).unwrap())
    }

    /// As [`World::find`], of an app that is there: an agent that is busy is asked again.
    pub(crate) async fn found(&self, app: &str) -> Value {
        eventually(&format!("word of {app}"), async || self.find(app).await).await
    }

    pub(crate) async fn in_state(&self, app: &str, state: &str) -> Value {
        eventually(&format!("{app} in {state}"), async || self.find(app).await.filter(|found| found["state"] == state)).await
    }

    /// What a running app uses, once it has been measured.
    pub(crate) async fn in_use(&self, app: &str) -> Value {
        eventually("a measurement", async || {
            let usage = self.find(app).await?["stats"]["usage"].clone();
            usage["mem"].as_u64().is_some_and(|bytes| bytes > 0).then_some(usage)
        })
        .await
    }

    /// Names in a directory below the agent's.
    pub(crate) fn names(&self, dir: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.base.path().join(dir)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
    }

    /// Shuts the agent down and returns its exit code, with the world that remains.
    pub(crate) async fn shut_down(self) -> (u8, TempDir) {
        self.stop.cancel();
        let code = timeout(PATIENCE, self.agent.wait()).await.expect("the agent does not end");
        (code, self.base)
    }
}

/// A guest that `guest-sdk/build.sh` has built.
pub(crate) fn guest(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guests").join(name).with_extension("wasm");
    assert!(path.exists(), "{} is missing, guest-sdk/build.sh makes it", path.display());
    path
}

pub(crate) fn config(base: &Path, broker: SocketAddr, yaml: &str) -> AgentConfig {
    let yaml = format!(
        "base_dir: {}\nnats_servers: ['nats://{broker}']\nlocal_ip: 127.0.0.1\n\
         intervals: {{ heartbeat: 0.3, advertise: 0.3, router_register_in_seconds: 5 }}\n{yaml}",
        base.display()
    );
    let (mut config, warnings) = AgentConfig::from_yaml(&yaml).unwrap();
    assert_eq!(warnings, Vec::<String>::new());
    config.compiler = Some(std::env::current_exe().unwrap());
    config
}

pub(crate) async fn client(broker: SocketAddr) -> Bus {
    let config = BusConfig { servers: vec![format!("nats://{broker}")], name: "test".to_owned(), ..BusConfig::default() };
    let (bus, _) = Bus::connect(config).await.unwrap();
    bus.wait_up(PATIENCE).await.unwrap();
    bus
}

/// The next message, as JSON.
pub(crate) async fn next(subscription: &mut Subscription) -> Value {
    let message = timeout(PATIENCE, subscription.next()).await.expect("no message").expect("the bus is closed");
    serde_json::from_slice(&message.payload).unwrap()
}

/// The first message from now on that is wanted.
pub(crate) async fn next_where(subscription: &mut Subscription, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let message = timeout_at(deadline, subscription.next()).await;
        let message = message.unwrap_or_else(|_| panic!("no message {what}")).expect("the bus is closed");
        let message = serde_json::from_slice(&message.payload).unwrap();
        if wanted(&message) {
            return message;
        }
    }
}

/// Status and body of a `GET`.
pub(crate) async fn get(address: SocketAddr, path: &str, authorization: Option<&str>) -> io::Result<(u16, String)> {
    let authorization = authorization.map(|value| format!("authorization: {value}\r\n")).unwrap_or_default();
    let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n{authorization}\r\n");
    let exchange = move || -> io::Result<(u16, String)> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(request.as_bytes())?;
        let mut response = String::new();
        stream.read_to_string(&mut response)?;
        let (head, body) = response.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
        Ok((status, body.to_owned()))
    };
    tokio::task::spawn_blocking(exchange).await.unwrap()
}

pub(crate) struct EmbeddedBroker {
    pub(crate) addr: SocketAddr,
    stop: CancellationToken,
    running: tokio::task::JoinHandle<()>,
}

impl EmbeddedBroker {
    pub(crate) async fn start(port: u16) -> Self {
        let broker = eventually("the broker's port", async || {
            let config = BrokerConfig { listen: SocketAddr::from(([127, 0, 0, 1], port)), ..BrokerConfig::default() };
            Broker::bind(config).await.ok()
        })
        .await;
        let (addr, stop) = (broker.local_addr(), CancellationToken::new());
        Self { addr, stop: stop.clone(), running: tokio::spawn(broker.run(stop)) }
    }

    pub(crate) async fn end(self) {
        self.stop.cancel();
        timeout(PATIENCE, self.running).await.expect("the broker does not end").unwrap();
    }
}

/// A droplet of little but a component.
fn droplet(wasm: &[u8], more: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    let mut directory = tar::Header::new_gnu();
    directory.set_entry_type(tar::EntryType::Directory);
    directory.set_mode(0o755);
    directory.set_size(0);
    for name in ["app/", "logs/"] {
        archive.append_data(&mut directory.clone(), name, io::empty()).unwrap();
    }
    let files = [("app/file.txt", b"text".as_slice()), ("droplet.wasm", wasm), ("staging_info.yml", b"{}")];
    for (name, content) in files.iter().chain(more) {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(u64::try_from(content.len()).unwrap());
        archive.append_data(&mut header, name, *content).unwrap();
    }
    archive.into_inner().unwrap().finish().unwrap()
}

/// Serves the files of a folder over HTTP; what is posted becomes a file there.
async fn serve_files(folder: PathBuf) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let respond = move |request: Request<Incoming>| {
        let path = folder.join(request.uri().path().trim_start_matches('/'));
        async move {
            let posted = request.method() == Method::POST;
            let body = request.into_body().collect().await?.to_bytes();
            let outcome = if posted { std::fs::write(&path, body).map(|()| Vec::new()) } else { std::fs::read(&path) };
            let (status, body) = outcome.map_or((StatusCode::NOT_FOUND, Vec::new()), |body| (StatusCode::OK, body));
            let mut response = Response::new(Full::new(Bytes::from(body)));
            *response.status_mut() = status;
            Ok::<_, hyper::Error>(response)
        }
    };
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(respond.clone());
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    address
}
