//! Broker, agent and router in this process.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::Path;
use std::time::Duration;

use dewar_agent::{Agent, AgentConfig, AgentHandle, DevAgent, InForce};
use dewar_bus::BusConfig;
use dewar_bus::broker::{Broker, BrokerConfig};
use dewar_client::{AdvertiseHost, Client, ClientError, exit_code, nats_url};
use dewar_router::{Router, RouterConfig};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::args::EgressArgs;
use crate::failure::Failure;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Where NATS clients look first.
const NATS_PORT: u16 = 4222;
/// Eight times NATS' own: here agent and broker are one, and the heartbeat of many instances is one message.
const MAX_PAYLOAD: usize = 8 << 20;
/// How long the agent may take to stop its instances, and router and broker to let go of their connections.
const AGENT_GRACE: Duration = Duration::from_secs(15);
const OTHERS_GRACE: Duration = Duration::from_secs(3);

/// Where to listen.
pub(crate) struct Ports {
    /// The router.
    pub(crate) router: u16,
    /// The broker; `None`: 4222, or any when it is taken.
    pub(crate) broker: Option<u16>,
}

/// Everything that apps need.
pub(crate) struct Platform {
    /// The agent's work directory, and the client's records of apps that end with this process.
    dir: TempDir,
    nats: SocketAddr,
    http: SocketAddr,
    note: Option<String>,
    agent: AgentHandle,
    router: JoinHandle<Result<(), dewar_router::RouterError>>,
    broker: JoinHandle<()>,
    stop_agent: CancellationToken,
    stop_router: CancellationToken,
    stop_broker: CancellationToken,
}

impl Platform {
    /// Takes the ports, then starts everything.
    pub(crate) async fn start(ports: &Ports, egress: &EgressArgs, home: &Path, in_force: InForce) -> Result<Self, Failure> {
        let router = bind_router(ports.router).await?;
        let (broker, note) = bind_broker(ports.broker).await?;
        let (nats, http) = (broker.local_addr(), router.http_addr());
        let dir = work_dir(home).map_err(|error| Failure::new(exit_code::IO, format!("cannot make a work directory: {error}")))?;
        let (stop_agent, stop_router, stop_broker) = (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
        let broker = tokio::spawn(broker.run(stop_broker.clone()));
        let router = tokio::spawn(router.run(bus(nats, "dewar dev router"), stop_router.clone()));
        let agent = start_agent(&dir, nats, egress, in_force, stop_agent.clone()).await;
        let agent = agent.inspect_err(|_| {
            stop_router.cancel();
            stop_broker.cancel();
        })?;
        Ok(Self { dir, nats, http, note, agent, router, broker, stop_agent, stop_router, stop_broker })
    }

    /// A client on this bus.
    pub(crate) async fn client(&self) -> Result<Client, ClientError> {
        Client::connect(bus(self.nats, "dewar dev"), self.dir.path(), AdvertiseHost::Loopback).await
    }

    /// For other clients, such as `dewar apps` in another terminal.
    pub(crate) fn nats_url(&self) -> String {
        nats_url(self.nats)
    }

    /// The router.
    pub(crate) fn http_url(&self) -> String {
        format!("http://{}", self.http)
    }

    /// The router's port.
    pub(crate) fn http_port(&self) -> u16 {
        self.http.port()
    }

    /// What the user should know about the start.
    pub(crate) fn note(&self) -> Option<String> {
        self.note.clone()
    }

    /// Stops in reverse order, each within its time.
    pub(crate) async fn stop(self) {
        self.stop_agent.cancel();
        if timeout(AGENT_GRACE, self.agent.wait()).await.is_err() {
            tracing::error!(seconds = AGENT_GRACE.as_secs(), "the agent did not stop in time");
        }
        self.stop_router.cancel();
        match timeout(OTHERS_GRACE, self.router).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => tracing::error!(error = %error, "router failed"),
            Ok(Err(error)) => tracing::error!(error = %error, "router failed"),
            Err(_) => tracing::error!("the router did not stop in time"),
        }
        self.stop_broker.cancel();
        if timeout(OTHERS_GRACE, self.broker).await.is_err() {
            tracing::error!("the broker did not stop in time");
        }
        if let Err(error) = self.dir.close() {
            tracing::error!(error = %error, "cannot remove the work directory");
        }
    }
}

fn bus(nats: SocketAddr, name: &str) -> BusConfig {
    BusConfig { servers: vec![nats_url(nats)], name: name.to_owned(), ..BusConfig::default() }
}

async fn bind_router(port: u16) -> Result<Router, Failure> {
    let listen = SocketAddr::new(LOOPBACK, port);
    Router::bind(RouterConfig::default_for(listen)).await.map_err(|error| {
        Failure::from_chain(exit_code::UNAVAILABLE, "cannot start the router", &error)
            .hint(format!("is another program on port {port}? choose another port with --port"))
    })
}

async fn bind_broker(port: Option<u16>) -> Result<(Broker, Option<String>), Failure> {
    let bind =
        |port| Broker::bind(BrokerConfig { listen: SocketAddr::new(LOOPBACK, port), max_payload: MAX_PAYLOAD, ..BrokerConfig::default() });
    let failed = |port: u16, error: &io::Error| {
        Failure::new(exit_code::UNAVAILABLE, format!("cannot start the broker on port {port}: {error}"))
            .hint("choose another port with --nats-port, or leave it to dewar")
    };
    match (bind(port.unwrap_or(NATS_PORT)).await, port) {
        (Ok(broker), _) => Ok((broker, None)),
        (Err(error), None) if error.kind() == io::ErrorKind::AddrInUse => {
            let broker = bind(0).await.map_err(|error| failed(0, &error))?;
            let note = format!("port {NATS_PORT} is taken, so the broker listens on {}", broker.local_addr());
            Ok((broker, Some(note)))
        }
        (Err(error), _) => Err(failed(port.unwrap_or(NATS_PORT), &error)),
    }
}

/// A temporary directory, save for native code: that is kept in the home directory, so that the next start need not compile again. The
/// cache is authenticated and bounded by the agent, and several processes may share it.
fn work_dir(home: &Path) -> io::Result<TempDir> {
    let dir = tempfile::Builder::new().prefix("dewar-dev-").tempdir()?;
    let cache = home.join("cache");
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&cache)?;
    let base_dir = base_dir(&dir);
    std::fs::DirBuilder::new().mode(0o700).create(&base_dir)?;
    symlink(cache.canonicalize()?, base_dir.join("artifacts"))?;
    Ok(dir)
}

fn base_dir(dir: &TempDir) -> std::path::PathBuf {
    dir.path().join("agent")
}

async fn start_agent(
    dir: &TempDir,
    nats: SocketAddr,
    egress: &EgressArgs,
    in_force: InForce,
    stop: CancellationToken,
) -> Result<AgentHandle, Failure> {
    let base_dir = base_dir(dir);
    let wanted = DevAgent {
        base_dir: &base_dir,
        nats_url: &nats_url(nats),
        local_ip: LOOPBACK,
        compiler: None,
        allow_egress: &egress.allow_egress,
        egress_ca: egress.egress_ca.as_deref(),
    };
    let mut config = AgentConfig::for_dev(&wanted).map_err(|mistakes| {
        let lines: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
        Failure::new(exit_code::USAGE, format!("cannot configure the agent: {}", lines.join("; ")))
    })?;
    config.in_force = in_force;
    Agent::start(config, stop).await.map_err(|error| Failure::from_chain(exit_code::APP, "cannot start the agent", &error))
}
