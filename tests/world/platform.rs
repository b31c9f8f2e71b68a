//! The platform under test, and what is asked of it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dewar_agent::{Agent, AgentConfig, AgentHandle, DevAgent};
use dewar_bus::BusConfig;
use dewar_bus::broker::{Broker, BrokerConfig};
use dewar_client::{AdvertiseHost, AppName, AppRecord, Client, ClientError, PackageSource, PushEvent, PushOptions};
use dewar_protocol::{InstanceState, Mib, Secret};
use dewar_router::{Router, RouterConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::proxy::Proxy;

/// How long anything may take here.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

pub(crate) struct Platform {
    pub(crate) client: Client,
    pub(crate) proxy: Proxy,
    pub(crate) router: SocketAddr,
    pub(crate) agent: AgentHandle,
    pub(crate) stop_agent: CancellationToken,
    pub(crate) stop: CancellationToken,
    pub(crate) dir: tempfile::TempDir,
}

impl Platform {
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let stop = CancellationToken::new();
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        let broker = Broker::bind(BrokerConfig { listen: any_port, ..BrokerConfig::default() }).await.unwrap();
        let nats = broker.local_addr();
        tokio::spawn(broker.run(stop.clone()));
        let proxy = Proxy::to(nats).await;
        let router = Router::bind(RouterConfig::default_for(any_port)).await.unwrap();
        let router_address = router.http_addr();
        tokio::spawn(router.run(bus(nats), stop.clone()));
        let stop_agent = stop.child_token();
        let agent = start_agent(&dir.path().join("agent"), proxy.address, stop_agent.clone()).await;
        let client = Client::connect(bus(nats), &dir.path().join("home"), AdvertiseHost::Loopback).await.unwrap();
        // A client gives up soon where there is no agent.
        eventually("an agent", async || client.agents().await.ok()).await;
        Self { client, proxy, router: router_address, agent, stop_agent, stop, dir }
    }

    /// A package folder with the app that does what requests tell it.
    pub(crate) fn driver(&self) -> PathBuf {
        let folder = self.dir.path().join("driver");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::copy(guest("tests/http-driver"), folder.join("driver.wasm")).unwrap();
        folder
    }

    pub(crate) async fn push(&self, name: &str, folder: &Path, environment: &[&str]) -> Result<AppRecord, ClientError> {
        let mut options = PushOptions::new(name.parse::<AppName>().unwrap(), PackageSource::at(folder).unwrap());
        (options.memory, options.disk) = (Some(Mib(64)), Some(Mib(32)));
        options.environment = environment.iter().map(|pair| Secret((*pair).to_owned())).collect();
        self.client.push(&options, &mut |_: PushEvent| {}, &self.stop).await
    }

    /// Waits until so many instances are known to run. An agent that is busy may answer too late to be heard at once.
    pub(crate) async fn until_running(&self, app: &AppName, count: usize) {
        eventually(&format!("{count} running instances"), async || {
            let report = self.client.describe_app(app).await.ok()?;
            let running = report.instances.iter().filter(|instance| instance.state == InstanceState::Running);
            (running.count() == count).then_some(())
        })
        .await;
    }

    /// One GET through the router, on a connection of its own.
    pub(crate) async fn get(&self, app: &str, path: &str) -> Option<(u16, String)> {
        get(self.router, &format!("{app}.localhost"), path).await
    }

    /// Waits for this answer.
    pub(crate) async fn until(&self, app: &str, path: &str, status: u16) -> String {
        let what = format!("{status} from {app}{path}");
        eventually(&what, async || self.get(app, path).await.filter(|(code, _)| *code == status)).await.1
    }

    pub(crate) async fn end(self) {
        self.stop_agent.cancel();
        assert_eq!(tokio::time::timeout(PATIENCE, self.agent.wait()).await.expect("the agent ends"), 0);
        self.stop.cancel();
    }
}

fn bus(server: SocketAddr) -> BusConfig {
    BusConfig { servers: vec![format!("nats://{server}")], name: "world".to_owned(), ..BusConfig::default() }
}

pub(crate) async fn start_agent(base_dir: &Path, nats: SocketAddr, stop: CancellationToken) -> AgentHandle {
    let wanted = DevAgent {
        allow_egress: &[],
        egress_ca: None,
        base_dir,
        nats_url: &format!("nats://{nats}"),
        local_ip: [127, 0, 0, 1].into(),
        compiler: Some(env!("CARGO_BIN_EXE_dewar").into()),
    };
    Agent::start(AgentConfig::for_dev(&wanted).unwrap(), stop).await.unwrap()
}

pub(crate) fn guest(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/guests").join(format!("{name}.wasm"));
    assert!(path.exists(), "{} is missing: run `sh guest-sdk/build.sh` first", path.display());
    path
}

/// Waits until `probe` yields something; level-triggered and bounded.
pub(crate) async fn eventually<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "gave up waiting for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn get(address: SocketAddr, host: &str, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let request = format!("GET {path} HTTP/1.0\r\nhost: {host}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let status = answer.split(' ').nth(1)?.parse().ok()?;
    Some((status, answer.split_once("\r\n\r\n")?.1.trim_end().to_owned()))
}
