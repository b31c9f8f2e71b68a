//! Puts a router together: sockets first, then the bus; at the end the reverse.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use dewar_bus::{Bus, BusConfig, BusError};
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::access_log::AccessLog;
use crate::config::{AccessLogTarget, RouterConfig};
use crate::identity::Identity;
use crate::metrics::Metrics;
use crate::proxy::Proxy;
use crate::registrar::Registrar;
use crate::status::Status;
use crate::table::Table;
use crate::workers::Workers;
use crate::{listener, status};

/// How long the access log may take to write its last lines.
const LOG_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a router cannot run.
#[derive(Debug, thiserror::Error)]
pub enum RouterError {
    /// The address is taken or not ours.
    #[error("failed to listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The access log cannot be opened for appending.
    #[error("failed to open the access log {path}", path = .path.display())]
    AccessLog {
        /// Its file, or `-` for standard output.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The system has no room for the threads that serve clients.
    #[error("failed to start the router's threads")]
    Threads(#[source] io::Error),
    /// The bus configuration cannot be used. A server that is away is no error.
    #[error("failed to set up the bus")]
    Bus(#[source] BusError),
}

/// A router whose sockets are open and which does not serve yet.
#[derive(Debug)]
pub struct Router {
    config: RouterConfig,
    http: TcpListener,
    http_addr: SocketAddr,
    status: TcpListener,
    status_addr: SocketAddr,
    access_log: AccessLog,
    log_writer: Option<JoinHandle<()>>,
}

impl Router {
    /// Opens the sockets and the access log.
    ///
    /// # Errors
    /// When one of them cannot be opened.
    pub async fn bind(config: RouterConfig) -> Result<Self, RouterError> {
        let (http, http_addr) = listen(config.listen).await?;
        let (status, status_addr) = listen(config.status.listen).await?;
        let (access_log, log_writer) = AccessLog::open(&config.access_log).map_err(|source| {
            let path = match &config.access_log {
                AccessLogTarget::File(path) => path.clone(),
                AccessLogTarget::Stdout | AccessLogTarget::Off => PathBuf::from("-"),
            };
            RouterError::AccessLog { path, source }
        })?;
        Ok(Self { config, http, http_addr, status, status_addr, access_log, log_writer })
    }

    /// Where requests are taken.
    #[must_use]
    pub fn http_addr(&self) -> SocketAddr {
        self.http_addr
    }

    /// Where the status pages are.
    #[must_use]
    pub fn status_addr(&self) -> SocketAddr {
        self.status_addr
    }

    /// Serves until `stop`, then drains and returns. The bus may come and go meanwhile; requests are served with the routes that are known.
    ///
    /// # Errors
    /// When threads cannot be started or the bus configuration cannot be used. Nothing is served then.
    pub async fn run(self, bus: BusConfig, stop: CancellationToken) -> Result<(), RouterError> {
        let Self { config, http, http_addr, status, status_addr, access_log, log_writer } = self;
        let workers = Workers::start().map_err(RouterError::Threads)?;
        let identity = Arc::new(Identity::new(&config, status_addr));
        let proxy = Arc::new(Proxy {
            table: Table::new(config.routes.clone()),
            config,
            metrics: Metrics::default(),
            access_log,
            tasks: TaskTracker::new(),
            kill: CancellationToken::new(),
        });
        let (bus, events) = Bus::connect(bus).await.map_err(RouterError::Bus)?;
        let registrar = Registrar::start(Arc::clone(&proxy), Arc::clone(&identity), bus, events).await.map_err(RouterError::Bus)?;
        info!(id = identity.id(), http = %http_addr, status = %status_addr, "router serves");
        let status_page = Arc::new(Status { proxy: Arc::clone(&proxy), identity });
        // The status pages and the bus go on while requests are drained: routes may still move.
        let drained = CancellationToken::new();
        let serving = async {
            listener::serve(Arc::clone(&proxy), &workers, http, stop).await;
            drained.cancel();
        };
        tokio::join!(serving, registrar.run(drained.clone()), status::serve(status_page, status, drained.clone()));
        drop(proxy);
        close_log(log_writer).await;
        Ok(())
    }
}

async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), RouterError> {
    let failed = |source| RouterError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

/// The writer ends once nobody can write any more; a task that was cut but still holds the log must not keep the process.
async fn close_log(writer: Option<JoinHandle<()>>) {
    let Some(writer) = writer else { return };
    let joined = timeout(LOG_TIMEOUT, tokio::task::spawn_blocking(|| writer.join())).await;
    if !matches!(joined, Ok(Ok(Ok(())))) {
        warn!("access log may lack its last lines");
    }
}
