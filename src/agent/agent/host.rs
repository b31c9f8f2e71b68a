//! What an agent needs of its host and process before the bus matters.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use dewar_core::{CellConfig, ComponentFacts, Wall};
use dewar_protocol::{CellId, Secret, Snapshot};
use dewar_sandbox::{NetworkConfig, SandboxConfig, Sandboxes};
use rand::rngs::{StdRng, SysRng};
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::AgentError;
use crate::base_dir::{BaseDir, PidFile};
use crate::complaints::Complaints;
use crate::config::AgentConfig;
use crate::controller::{self, Controller};
use crate::descriptors;
use crate::droplet_store::DropletStore;
use crate::effects::{Droplets, Effects};
use crate::files::{FileServers, NotBound};
use crate::housekeeping::Housekeeper;
use crate::http;
use crate::instances::{Instances, Means};
use crate::logs::Logs;
use crate::outbox::Outbox;
use crate::ports::Ports;
use crate::snapshot::{self, Saver};
use crate::staging::{Stager, StagerConfig};
use crate::stagings::Stagings;
use crate::telemetry::{Facts, Loggregator, Telemetry};
use crate::transfer::{TransferConfig, Transfers};

/// The image of this very process, also after the file that it came from was replaced: code must be compiled by the same version.
const OWN_EXECUTABLE: &str = "/proc/self/exe";

/// Everything about this host and process that has to be there before the bus matters.
pub(super) struct Host {
    pub(super) base_dir: BaseDir,
    pub(super) pid_file: Option<PidFile>,
    pub(super) rng: StdRng,
    ip: IpAddr,
    pub(super) status_listener: tokio::net::TcpListener,
    pub(super) status_addr: SocketAddr,
    pub(super) facts: Facts,
    sandboxes: Sandboxes,
    droplets: DropletStore,
    stager: Option<Stager>,
    pub(super) telemetry: Telemetry,
    /// Where the HTTPS API is to listen.
    pub(super) api_listener: Option<tokio::net::TcpListener>,
    /// What is advertised of it.
    api_url: Option<String>,
    /// To the Cloud Controller.
    client: Option<reqwest::Client>,
    first_port: u16,
    pub(super) files: Option<FileServers>,
    /// What an earlier process has left.
    pub(super) left: Option<Snapshot>,
}

impl Host {
    /// # Errors
    /// See [`AgentError`]; nothing is left running.
    pub(super) async fn prepare(config: &AgentConfig) -> Result<Self, AgentError> {
        descriptors::raise_limit(config.instance.ports.len());
        let base_dir = BaseDir::claim(&config.base_dir)?;
        let pid_file = config.pid_file.as_deref().map(PidFile::create).transpose()?;
        let left = snapshot::load(base_dir.paths());
        base_dir.sweep(left.as_ref())?;
        let mut rng = StdRng::try_from_rng(&mut SysRng).map_err(AgentError::Random)?;
        let ip = config.local_ip.map_or_else(local_ip, Ok).map_err(AgentError::LocalIp)?;
        let id = CellId(format!("{}-{}", config.index, hex(&mut rng)));
        let wanted = SocketAddr::new(ip, config.status.port);
        let bound = http::bind(ip, config.status.port).await.and_then(|listener| Ok((listener.local_addr()?, listener)));
        let (status_addr, status_listener) = bound.map_err(|source| AgentError::Status { address: wanted, source })?;
        let user = config.status.user.clone().unwrap_or_else(|| hex(&mut rng));
        let password = config.status.password.clone().map_or_else(|| hex(&mut rng), |password| password.0);
        let (api_listener, api_url) = api(config, ip).await?;
        let client = config.controller.as_ref().map(|controller| controller::client(&controller.tls)).transpose()?;
        let transfers = Transfers::new(TransferConfig::default())?;
        let sandboxes = Sandboxes::new(SandboxConfig {
            state_dir: base_dir.paths().artifacts(),
            compiler: config.compiler.clone().unwrap_or_else(|| PathBuf::from(OWN_EXECUTABLE)),
            compile_limits: config.compile,
            artifact_bytes: config.artifact_bytes,
            network: NetworkConfig { ca_file: config.egress.ca_file.clone(), ..NetworkConfig::default() },
            core_dumps: config.instance.core_dumps,
        })?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let facts = Facts {
            id,
            index: config.index,
            host: status_addr.to_string(),
            credentials: Secret((user, password)),
            start: Wall(now).to_utc_text(),
            started: Instant::now(),
            sandbox_allocation: sandboxes.allocation().to_string(),
            hardening: config.in_force.to_json(),
        };
        let path = base_dir.paths().droplets();
        let droplets = DropletStore::open(&path, transfers.clone()).map_err(|source| AgentError::Droplets { path, source })?;
        let instances = left.iter().flat_map(|left| &left.instances);
        droplets.take_over(instances.filter_map(|instance| instance.droplet_sha1.clone()));
        let stager = config.staging.enabled.then(|| stager(config, &base_dir, &sandboxes, &droplets, transfers)).transpose()?;
        let loggregator = match &config.loggregator {
            Some(loggregator) => Some(Loggregator::new(loggregator, config.index).await?),
            None => None,
        };
        let telemetry = Telemetry::new(loggregator);
        let first_port = rng.random_range(config.instance.ports.clone());
        let files = files(config, ip, &mut rng).await?;
        Ok(Self {
            base_dir,
            pid_file,
            rng,
            ip,
            status_listener,
            status_addr,
            facts,
            sandboxes,
            droplets,
            stager,
            telemetry,
            api_listener,
            api_url,
            client,
            first_port,
            files,
            left,
        })
    }

    pub(super) fn cell_config(&self, config: &AgentConfig) -> CellConfig {
        let component =
            ComponentFacts { host: self.facts.host.clone(), credentials: self.facts.credentials.clone(), start: self.facts.start.clone() };
        let cell = CellConfig::new(self.facts.id.clone(), self.ip.to_string(), component);
        CellConfig {
            index: config.index,
            stacks: config.stacks.clone(),
            zone: config.zone.clone(),
            capacity: config.capacity,
            intervals: config.intervals,
            url: self.api_url.clone(),
            heartbeats_without_bus: config.hm9000.is_some(),
            health_check_timeout: config.health_check_timeout,
            staging: config.staging.to_cell(config.compat.start_before_upload),
            crash_lifetime: config.crash_lifetime,
            crash_disk: config.crash_disk,
            droplet_budget: config.droplet_budget,
            exited_reasons: config.compat.exited_reasons,
            whole_heartbeats: !config.compat.split_heartbeats,
            legacy_messages: config.compat.legacy_subjects,
            announces_component: config.compat.component,
            empty_heartbeats: config.compat.empty_heartbeat,
            evacuation: config.compat.evacuation,
            files: self.files.as_ref().map(|files| files.told().clone()),
            ..cell
        }
    }

    pub(super) fn effects(
        &self,
        config: &AgentConfig,
        outbox: &Outbox,
        logs: &Logs,
        reports: mpsc::Sender<dewar_core::Input>,
        tasks: &TaskTracker,
        listening: &CancellationToken,
    ) -> Effects {
        let instances = Instances::new(Means {
            sandboxes: self.sandboxes.clone(),
            droplets: self.droplets.clone(),
            ports: Ports::new(self.ip, config.instance.ports.clone(), self.first_port),
            logs: logs.clone(),
            telemetry: self.telemetry.clone(),
            paths: self.base_dir.paths().clone(),
            ip: self.ip,
            settings: config.instance.clone(),
            egress: config.egress.clone(),
            // Starting is a mix of disk and processor work; twice the cores keep both busy.
            concurrent_starts: 2 * std::thread::available_parallelism().map_or(2, usize::from),
            reports: reports.clone(),
            tasks: tasks.clone(),
        });
        let workspaces = self.stager.as_ref().map(Stager::workspaces);
        let (paths, store) = (self.base_dir.paths().clone(), self.droplets.clone());
        let housekeeper = Housekeeper::new(paths.clone(), store, workspaces, reports.clone(), tasks.clone());
        let saver = Saver::start(paths.clone(), reports.clone(), tasks);
        let stagings = self
            .stager
            .clone()
            .map(|stager| Stagings::new(stager, logs.clone(), paths, reports.clone(), tasks.clone(), self.telemetry.clone()));
        let controller = config
            .controller
            .as_ref()
            .zip(self.client.clone())
            .map(|(controller, client)| Controller::new(controller, client, self.facts.id.clone(), reports.clone(), tasks.clone()));
        let droplets = Droplets::new(self.droplets.clone(), reports, tasks.clone(), self.telemetry.clone());
        let (outbox, logs, telemetry) = (outbox.clone(), logs.clone(), self.telemetry.clone());
        Effects {
            outbox,
            instances,
            stagings,
            controller,
            droplets,
            housekeeper,
            logs,
            telemetry,
            saver,
            listening: listening.clone(),
            complaints: Complaints::new(),
        }
    }
}

/// Takes the ports of the file servers, if there are to be any.
async fn files(config: &AgentConfig, ip: IpAddr, rng: &mut StdRng) -> Result<Option<FileServers>, AgentError> {
    let Some(settings) = &config.files else { return Ok(None) };
    let bound = FileServers::bind(settings, ip, || hex(rng)).await;
    bound.map(Some).map_err(|NotBound { address, source }| AgentError::Files { address, source })
}

/// The socket of the HTTPS API, on all addresses of the host, and its address as Cloud Controllers are told: that host may have any.
async fn api(config: &AgentConfig, ip: IpAddr) -> Result<(Option<tokio::net::TcpListener>, Option<String>), AgentError> {
    let Some(api) = &config.https_api else { return Ok((None, None)) };
    let any = match ip {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let address = SocketAddr::new(any, api.port);
    let bound = http::bind(any, api.port).await.and_then(|listener| Ok((listener.local_addr()?.port(), listener)));
    let (port, listener) = bound.map_err(|source| AgentError::HttpsApi { address, source })?;
    if api.tls.mutual {
        info!(port, "HTTPS API opened to clients with a certificate");
    } else {
        warn!(port, "HTTPS API opened to all who reach it, `ssl.ca_file` is not configured");
    }
    Ok((Some(listener), api.advertised_host.as_ref().map(|host| format!("https://{host}:{port}"))))
}

fn stager(
    config: &AgentConfig,
    base_dir: &BaseDir,
    sandboxes: &Sandboxes,
    droplets: &DropletStore,
    transfers: Transfers,
) -> Result<Stager, AgentError> {
    let path = base_dir.paths().base().to_owned();
    let settings = StagerConfig {
        base_dir: path.clone(),
        stacks: config.stacks.clone(),
        max_duration: config.staging.duration,
        inodes: config.staging.inodes,
        egress: config.egress.operator.clone(),
    };
    let stager = Stager::new(settings, sandboxes.clone(), droplets.clone(), transfers);
    stager.map_err(|source| AgentError::Staging { path, source })
}

/// The address that packets to the world would have; none is sent.
fn local_ip() -> io::Result<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect((Ipv4Addr::new(1, 2, 3, 4), 1))?;
    Ok(socket.local_addr()?.ip())
}

/// 32 hex digits.
fn hex(rng: &mut StdRng) -> String {
    format!("{:032x}", rng.random::<u128>())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::TcpListener;

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;
    use crate::config::HttpsApiConfig;
    use crate::log_counts::LogCounts;
    use crate::test_authority::Authority;
    use crate::tls::{KeyPair, ServerTls};

    #[test]
    fn the_own_address_can_be_bound() {
        match local_ip() {
            Ok(ip) => assert_ne!(TcpListener::bind((ip, 0)).unwrap().local_addr().unwrap().port(), 0),
            // A host without any network has none to be found.
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::NetworkUnreachable),
        }
    }

    #[tokio::test]
    async fn an_api_is_at_all_addresses_and_who_lets_everybody_in_is_warned() {
        let (authority, yaml) = (Authority::new(), "base_dir: /tmp/agent\nnats_servers: [nats://127.0.0.1:4222]\n");
        let (certificate, key) = authority.signs();
        let own = KeyPair { certificates: certificate.into_bytes(), key: Secret(key.into_bytes()) };
        let (mut config, _) = AgentConfig::from_yaml(yaml).unwrap();
        for (authorities, level) in [(None, "warn"), (Some(authority.pem()), "info")] {
            let tls = ServerTls::new(&own, authorities.as_ref().map(String::as_bytes)).unwrap();
            config.https_api = Some(HttpsApiConfig { port: 0, tls, advertised_host: None });
            let counts = LogCounts::default();
            let _logged = tracing::subscriber::set_default(tracing_subscriber::registry().with(counts.clone()));
            let (listener, _) = api(&config, Ipv4Addr::LOCALHOST.into()).await.unwrap();
            assert!(listener.unwrap().local_addr().unwrap().ip().is_unspecified());
            assert_eq!(counts.by_level(), BTreeMap::from([(level, 1)]));
        }
    }
}
