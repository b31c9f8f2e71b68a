//! Puts an agent together, in the order in which things depend on each other, and takes it apart again.

mod host;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dewar_bus::{Bus, BusError};
use dewar_core::{Cell, Signal};
use dewar_protocol::CellId;
use dewar_sandbox::EngineError;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, info};

use self::host::Host;
use crate::base_dir::{BaseDir, BaseDirError, PidFile, PidFileError};
use crate::config::AgentConfig;
use crate::driver::{Driver, REPORTS, REQUESTS};
use crate::hm9000::Hm9000;
use crate::http::StatusServer;
use crate::https_api::HttpsApi;
use crate::inbound::interests;
use crate::listener::Listener;
use crate::logs::Logs;
use crate::outbox::{Manners, Outbox};
use crate::stagings::Stagings;
use crate::telemetry::{Exporter, LoggregatorError, Sources, report_to};
use crate::transfer::NoTransfers;

/// For the last messages to reach the server.
const FLUSH_LIMIT: Duration = Duration::from_secs(5);

/// For tasks to end after the cell has said that all is over.
const TASKS_LIMIT: Duration = Duration::from_secs(10);

/// Signals that wait for the driver, which takes them before everything else.
const SIGNALS: usize = 4;

/// The exit code after a mistake of our own: `EX_SOFTWARE`.
const EXIT_MISTAKE: u8 = 70;

/// The daemon.
#[derive(Debug)]
pub struct Agent;

/// A running agent. It runs on when this is dropped, until its token is cancelled.
#[derive(Debug)]
pub struct AgentHandle {
    id: CellId,
    status_addr: SocketAddr,
    signals: mpsc::Sender<Signal>,
    done: JoinHandle<u8>,
}

/// Why an agent did not start. Nothing is left running.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Its directory cannot be used.
    #[error(transparent)]
    BaseDir(#[from] BaseDirError),
    /// Its pid file cannot be written.
    #[error(transparent)]
    PidFile(#[from] PidFileError),
    /// Nobody knows under which address peers reach it.
    #[error("find this host's address (`local_ip` can name it)")]
    LocalIp(#[source] io::Error),
    /// The operating system has no randomness.
    #[error("draw random numbers")]
    Random(#[source] rand::rngs::SysError),
    /// The address of `/varz` and `/healthz` cannot be bound.
    #[error("bind the status server to {address}")]
    Status {
        /// Which.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The address of a file server cannot be bound.
    #[error("bind a file server to {address}")]
    Files {
        /// Which.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The address of the HTTPS API cannot be bound.
    #[error("bind the HTTPS API to {address}")]
    HttpsApi {
        /// Which.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No HTTP clients.
    #[error(transparent)]
    Transfers(#[from] NoTransfers),
    /// No sandboxes.
    #[error(transparent)]
    Sandboxes(#[from] EngineError),
    /// The droplets on disk cannot be used.
    #[error("open the droplets in {path}")]
    Droplets {
        /// Their directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The directories for staging cannot be used.
    #[error("make room for staging in {path}")]
    Staging {
        /// Below which directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No thread for the apps' logs.
    #[error("start a thread")]
    Thread(#[source] io::Error),
    /// Loggregator is configured and cannot be emitted to.
    #[error(transparent)]
    Loggregator(#[from] LoggregatorError),
    /// The bus does not accept its configuration.
    #[error("use the bus")]
    Bus(#[from] BusError),
}

impl AgentHandle {
    /// Where `/varz` and `/healthz` are.
    #[must_use]
    pub fn status_addr(&self) -> SocketAddr {
        self.status_addr
    }

    /// Where to tell the agent what its operator wants. Sending waits while a few others are not taken yet, and fails when the agent
    /// has ended.
    #[must_use]
    pub fn signals(&self) -> mpsc::Sender<Signal> {
        self.signals.clone()
    }

    /// The agent's id on the bus.
    #[must_use]
    pub fn id(&self) -> &CellId {
        &self.id
    }

    /// Waits until the agent has ended, by its token or a signal, and returns the process's exit code. A shutdown takes as long as the
    /// instances need to stop, at most the cell's limit of 30 s and some seconds to clean up.
    pub async fn wait(self) -> u8 {
        self.done.await.unwrap_or(EXIT_MISTAKE)
    }
}

impl Agent {
    /// Starts an agent, which runs until `stop` is cancelled. A NATS server need not be there yet.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn start(config: AgentConfig, stop: CancellationToken) -> Result<AgentHandle, AgentError> {
        let host = Host::prepare(&config).await?;
        let (id, status_addr) = (host.facts.id.clone(), host.status_addr);
        let telemetry = host.telemetry.clone();
        let loggregator = telemetry.loggregator().cloned();
        let (bus, bus_events) = Bus::connect(config.bus.clone()).await?;
        let greeting_inbox = bus.new_inbox();
        let interests = interests(&config, &id, &greeting_inbox);

        let tasks = TaskTracker::new();
        let (ended, listening) = (CancellationToken::new(), CancellationToken::new());
        let (requests, asked) = mpsc::channel(REQUESTS);
        let (reports, reported) = mpsc::channel(REPORTS);
        let logs = Logs::start(bus.clone(), loggregator.clone(), &tasks).map_err(AgentError::Thread)?;
        let (outbox, sender) = Outbox::new(bus.clone(), manners(&config, greeting_inbox, &tasks)?);
        let effects = host.effects(&config, &outbox, &logs, reports, &tasks, &listening);
        let cell = Cell::new(host.cell_config(&config), host.rng);
        let (signals, signalled) = mpsc::channel(SIGNALS);
        let left = host.left;
        let driver =
            Driver { cell, left, effects, requests: asked, reports: reported, bus: bus.clone(), bus_events, stop, signals: signalled };
        if let (Some(stagings), Some(controller)) = (&driver.effects.stagings, &driver.effects.controller) {
            stagings.fetch_ahead_from(controller.clone());
        }
        let api = config.https_api.as_ref().zip(host.api_listener);
        let api = api.map(|(api, listener)| HttpsApi::new(listener, &api.tls, requests.clone()));
        let sources = Arc::new(Sources {
            facts: host.facts,
            metrics: config.metrics,
            requests: requests.clone(),
            bus: bus.clone(),
            outbox,
            logs: logs.clone(),
            log_counts: config.logging.counts.clone(),
            telemetry,
            spans: config.spans.clone(),
        });
        let exporter = config.otlp.map(|otlp| Exporter::new(otlp, &sources.facts, Arc::clone(&sources))).transpose()?;

        if let Some(files) = host.files {
            files.run(host.base_dir.paths().clone(), requests.clone(), &tasks, &ended);
        }
        let stagings = driver.effects.stagings.clone();
        let subscribed = Listener::new(requests, logs, stagings).listen(&bus, interests, &tasks, &listening).await;
        subscribed.inspect_err(|_| listening.cancel())?;
        let sender = tokio::spawn(sender);
        if let Some(loggregator) = loggregator {
            tasks.spawn(ended.clone().run_until_cancelled_owned(report_to(loggregator, Arc::clone(&sources))));
        }
        if let Some(exporter) = exporter {
            tasks.spawn(exporter.run(ended.clone()));
        }
        tasks.spawn(StatusServer { listener: host.status_listener, sources }.run(tasks.clone(), ended.clone()));
        driver.effects.housekeeper.start(ended.clone());
        api.into_iter().for_each(|api| drop(tasks.spawn(api.run(tasks.clone(), ended.clone()))));
        info!(%id, base_dir = %host.base_dir.paths().base().display(), status = %status_addr, "agent started");
        let running = Running { bus, tasks, ended, listening, sender, _base_dir: host.base_dir, _pid_file: host.pid_file };
        Ok(AgentHandle { id, status_addr, signals, done: tokio::spawn(running.until_end(driver)) })
    }
}

fn manners(config: &AgentConfig, greeting_inbox: String, tasks: &TaskTracker) -> Result<Manners, AgentError> {
    let hm9000 = config.hm9000.as_ref().map(|hm9000| Hm9000::new(hm9000, config.intervals.heartbeat, tasks.clone())).transpose()?;
    let (split_heartbeats, reply_keys) = (config.compat.split_heartbeats, config.compat.staging_reply_keys);
    Ok(Manners { split_heartbeats, greeting_inbox, reply_keys, hm9000 })
}

/// What lives as long as the agent, and what is needed to end it.
struct Running {
    bus: Bus,
    tasks: TaskTracker,
    /// Ends the servers.
    ended: CancellationToken,
    /// Ends the subscriptions.
    listening: CancellationToken,
    /// The outbox's task.
    sender: JoinHandle<()>,
    _base_dir: BaseDir,
    _pid_file: Option<PidFile>,
}

impl Running {
    async fn until_end(self, driver: Driver) -> u8 {
        let instances = driver.effects.instances.clone();
        let stagings = driver.effects.stagings.clone();
        let code = tokio::spawn(driver.run()).await.unwrap_or_else(|error| {
            error!(%error, "driver failed");
            EXIT_MISTAKE
        });
        self.listening.cancel();
        self.ended.cancel();
        instances.kill_all();
        stagings.iter().for_each(Stagings::cancel_all);
        drop((instances, stagings));
        self.tasks.close();
        if timeout(TASKS_LIMIT, self.tasks.wait()).await.is_err() {
            error!(tasks = self.tasks.len(), "tasks do not end, they are given up");
        }
        // With the driver and the status server the outbox's last owners are gone.
        let sent = timeout(FLUSH_LIMIT, async {
            if let Err(error) = self.sender.await {
                error!(%error, "outbox failed");
            }
            self.bus.flush(FLUSH_LIMIT).await
        });
        match sent.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(%error, "bus not flushed"),
            Err(_) => error!(limit = ?FLUSH_LIMIT, "messages do not reach the bus, they are given up"),
        }
        info!(code, "agent ended");
        code
    }
}
