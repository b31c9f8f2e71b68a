//! The listening side, and what all connections share.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use rand::RngExt;
use serde::Serialize;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use super::BrokerConfig;
use super::connection::serve;
use super::interest::Interest;
use super::parser::Violation;
use super::peer::Subscription;

/// What INFO gives as the server's version. Clients turn features on by it: headers from 2.2 on, nothing of 2.10 that is not core.
const VERSION: &str = "2.10.0";

/// How long the broker waits when it cannot accept a connection, say for lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a client in excess may take to be told so.
const REFUSAL_DEADLINE: Duration = Duration::from_millis(100);

/// A broker that listens, and serves once it runs.
#[derive(Debug)]
pub struct Broker {
    listener: TcpListener,
    address: SocketAddr,
    shared: Arc<Shared>,
}

/// What all connections share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: BrokerConfig,
    address: SocketAddr,
    server_id: String,
    clients: AtomicU64,
    /// Read for every message, written for every subscription. Outboxes are locked under it, nothing else.
    interest: RwLock<Interest<Subscription>>,
}

/// The broker's life as its connections see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Serving,
    /// Clients are asked to go.
    LameDuck,
    /// Connections end now.
    Closing,
}

impl Broker {
    /// Takes the port; clients that connect from now on wait until the broker runs.
    ///
    /// # Errors
    /// When the address cannot be listened on, or when limits contradict each other: what may wait for a client must hold at least one
    /// message.
    pub async fn bind(config: BrokerConfig) -> io::Result<Broker> {
        if config.max_pending < config.max_payload.saturating_add(config.max_control_line.saturating_mul(2)) {
            let error = format!("max_pending {} is too small for max_payload {}", config.max_pending, config.max_payload);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, error));
        }
        let listener = TcpListener::bind(config.listen).await?;
        let address = listener.local_addr()?;
        let shared = Shared { config, address, server_id: new_server_id(), clients: AtomicU64::new(0), interest: RwLock::default() };
        Ok(Broker { listener, address, shared: Arc::new(shared) })
    }

    /// Where it listens, with the port that was taken for port 0.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop`. Then it no longer listens, tells clients (an INFO with `ldm`), gives them [`BrokerConfig::lame_duck`] to
    /// leave, and closes the connections that are left, each after what waits for it or a second. Ends when all are closed.
    pub async fn run(self, stop: CancellationToken) {
        info!(address = %self.address, "broker is listening");
        let lame_duck = self.shared.config.lame_duck;
        let (phase, _) = watch::channel(Phase::Serving);
        let connections = TaskTracker::new();
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.accept_all(&connections, &phase) => {}
        }
        drop(self.listener);
        connections.close();
        phase.send_replace(Phase::LameDuck);
        if timeout(lame_duck, connections.wait()).await.is_err() {
            debug!(connections = connections.len(), "closing connections");
            phase.send_replace(Phase::Closing);
            connections.wait().await;
        }
        info!(address = %self.address, "broker has stopped");
    }

    async fn accept_all(&self, connections: &TaskTracker, phase: &watch::Sender<Phase>) {
        let mut failing = false;
        loop {
            match self.listener.accept().await {
                Ok((stream, address)) => {
                    failing = false;
                    self.admit(stream, address, connections, phase).await;
                }
                Err(error) => {
                    if !failing {
                        warn!(%error, "broker cannot accept connections");
                    }
                    failing = true;
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn admit(&self, mut stream: TcpStream, address: SocketAddr, connections: &TaskTracker, phase: &watch::Sender<Phase>) {
        if connections.len() >= self.shared.config.max_connections {
            warn!(%address, connections = connections.len(), "too many clients, one refused");
            let refusal = format!("-ERR '{}'\r\n", Violation::TooManyConnections);
            // A client that cannot be told is closed all the same.
            let _ = timeout(REFUSAL_DEADLINE, stream.write_all(refusal.as_bytes())).await;
            return;
        }
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%address, %error, "client has gone");
            return;
        }
        connections.spawn(serve(Arc::clone(&self.shared), stream, address, phase.subscribe()));
    }
}

impl Shared {
    pub(super) fn new_client_id(&self) -> u64 {
        self.clients.fetch_add(1, Ordering::Relaxed) + 1
    }

    // A panic while the index is locked can only come from an allocation that failed, which leaves a subscription out at most.

    pub(super) fn interest(&self) -> RwLockReadGuard<'_, Interest<Subscription>> {
        self.interest.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn interest_mut(&self) -> RwLockWriteGuard<'_, Interest<Subscription>> {
        self.interest.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends a subscription, its own client's or another's.
    pub(super) fn remove(&self, subscription: &Arc<Subscription>) {
        self.interest_mut().remove(subscription);
        subscription.peer().take(subscription);
    }

    /// The INFO line for a client.
    pub(super) fn info(&self, client_id: u64, client: SocketAddr, phase: Phase) -> Vec<u8> {
        let info = Info {
            server_id: &self.server_id,
            server_name: "dewar",
            version: VERSION,
            proto: 1,
            host: self.address.ip().to_string(),
            port: self.address.port(),
            headers: true,
            auth_required: self.config.auth.is_required(),
            max_payload: self.config.max_payload,
            jetstream: false,
            client_id,
            client_ip: client.ip().to_string(),
            ldm: phase != Phase::Serving,
        };
        let json = serde_json::to_string(&info).expect("strings, numbers and booleans have a JSON form");
        format!("INFO {json} \r\n").into_bytes()
    }
}

/// What the broker says of itself. `auth_required` is always there: old clients look at nothing else to decide whether to log in.
#[derive(Serialize)]
struct Info<'a> {
    server_id: &'a str,
    server_name: &'a str,
    version: &'a str,
    proto: u8,
    host: String,
    port: u16,
    headers: bool,
    auth_required: bool,
    max_payload: usize,
    jetstream: bool,
    client_id: u64,
    client_ip: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    ldm: bool,
}

/// Looks like the public key of a server, as clients are used to.
fn new_server_id() -> String {
    const BASE32: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let mut rng = rand::rng();
    std::iter::once('N').chain((0..55).map(|_| char::from(BASE32[rng.random_range(0..BASE32.len())]))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn clients_that_leave_take_their_subscriptions_with_them() {
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let broker = Broker::bind(BrokerConfig { listen, ..BrokerConfig::default() }).await.unwrap();
        let (address, shared, stop) = (broker.local_addr(), Arc::clone(&broker.shared), CancellationToken::new());
        let running = tokio::spawn(broker.run(stop.clone()));
        let eventually = async |empty: bool| {
            let waited = timeout(Duration::from_secs(20), async {
                while shared.interest().is_empty() != empty {
                    sleep(Duration::from_millis(5)).await;
                }
            });
            waited.await.expect("the index follows");
        };
        for last_words in ["", "NONSENSE\r\n"] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let subscriptions: String = (0..600).map(|number| format!("SUB a.{number}.* {number}\r\nSUB b g {number}x\r\n")).collect();
            stream.write_all(subscriptions.as_bytes()).await.unwrap();
            eventually(false).await;
            stream.write_all(last_words.as_bytes()).await.unwrap();
            drop(stream);
            eventually(true).await;
        }
        stop.cancel();
        running.await.unwrap();
    }
}
