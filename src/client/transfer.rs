//! The Cloud Controller's part over HTTP, for as long as one command runs: hands out the package and the droplet, takes in what
//! staging made. Every request needs a URL that this server has signed; everything else is refused.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{fmt, io};

use dewar_protocol::Secret;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::signature::{Access, Signer};

mod answer;
mod intake;

pub(crate) use intake::Intake;

/// How long a signed URL is good. Longer than any staging may take.
const URL_LIFETIME: Duration = Duration::from_secs(3600);
/// Connections served at a time; more wait to be accepted.
const CONNECTIONS_MAX: usize = 64;
/// A connection is cut after this long, whatever it does.
const CONNECTION_LIFETIME: Duration = Duration::from_secs(900);
/// A request's head must come within this time.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long [`TransferServer::close`] waits for requests in flight.
const CLOSE_GRACE: Duration = Duration::from_secs(2);

/// Under which name agents reach this client.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum AdvertiseHost {
    /// Only agents on this machine: the server listens on 127.0.0.1.
    #[default]
    Loopback,
    /// Agents anywhere: the server listens on all addresses.
    Named {
        /// Host name or address, as agents see it.
        host: String,
        /// A fixed port, for firewalls; 0: any.
        port: u16,
    },
}

impl std::str::FromStr for AdvertiseHost {
    type Err = String;

    /// Reads `HOST` or `HOST:PORT`; an IPv6 address stands in brackets.
    fn from_str(text: &str) -> Result<Self, String> {
        let authority: http::uri::Authority = text.parse().map_err(|_| format!("`{text}` is neither HOST nor HOST:PORT"))?;
        if authority.as_str().contains('@') || authority.host().is_empty() {
            return Err(format!("`{text}` is neither HOST nor HOST:PORT"));
        }
        let port = match authority.as_str().strip_prefix(authority.host()) {
            Some("") => 0,
            _ => authority.port_u16().ok_or_else(|| format!("`{text}` has no good port"))?,
        };
        Ok(Self::Named { host: authority.host().to_owned(), port })
    }
}

/// How often a file may be fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Uses {
    /// Until it has been sent whole once.
    Once,
    /// While the URL is good.
    Many,
}

/// The server. Dropping it stops it at once.
pub(crate) struct TransferServer {
    origin: String,
    shared: Arc<Shared>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

struct Shared {
    signer: Signer,
    resources: Mutex<HashMap<String, Resource>>,
}

#[derive(Clone)]
enum Resource {
    File { path: PathBuf, sent: Arc<AtomicBool>, uses: Uses },
    Intake(Arc<Intake>),
}

impl TransferServer {
    /// Binds and serves.
    ///
    /// # Errors
    /// When the address cannot be bound, or there is no randomness for the key.
    pub(crate) async fn start(advertise: &AdvertiseHost) -> io::Result<Self> {
        let listener = match advertise {
            AdvertiseHost::Loopback => TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await?,
            AdvertiseHost::Named { port, .. } => bind_everywhere(*port).await?,
        };
        let port = listener.local_addr()?.port();
        let origin = match advertise {
            AdvertiseHost::Loopback => format!("http://127.0.0.1:{port}"),
            AdvertiseHost::Named { host, .. } => format!("http://{host}:{port}"),
        };
        let shared = Arc::new(Shared { signer: Signer::new()?, resources: Mutex::default() });
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        tasks.spawn(accept(listener, Arc::clone(&shared), stop.clone(), tasks.clone()));
        Ok(Self { origin, shared, stop, tasks })
    }

    /// Offers a file under `/<name>`; a later offer of the same name replaces it. The URL is as good as the file itself.
    pub(crate) fn offer(&self, name: &str, file: &Path, uses: Uses) -> Secret<String> {
        let resource = Resource::File { path: file.to_owned(), sent: Arc::default(), uses };
        self.shared.put(name, resource);
        self.url(Access::Read, name)
    }

    /// Takes in uploads under `/<name>`, into temporary files in `dir` of at most `bytes_max`; the last complete one counts.
    pub(crate) fn take_in(&self, name: &str, dir: &Path, bytes_max: u64) -> (Secret<String>, Arc<Intake>) {
        let intake = Arc::new(Intake::new(dir.to_owned(), bytes_max));
        self.shared.put(name, Resource::Intake(Arc::clone(&intake)));
        (self.url(Access::Write, name), intake)
    }

    /// Stops accepting and waits a little for requests in flight.
    pub(crate) async fn close(self) {
        self.stop.cancel();
        self.tasks.close();
        // Whoever is still at it after the grace time is cut off when the runtime or the connection's own lifetime ends.
        let _ = timeout(CLOSE_GRACE, self.tasks.wait()).await;
    }

    fn url(&self, access: Access, name: &str) -> Secret<String> {
        let expires = since_epoch() + URL_LIFETIME;
        Secret(format!("{}{}", self.origin, self.shared.signer.sign(access, &format!("/{name}"), expires)))
    }
}

impl Drop for TransferServer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl fmt::Debug for TransferServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransferServer").field("origin", &self.origin).finish_non_exhaustive()
    }
}

impl Shared {
    fn put(&self, name: &str, resource: Resource) {
        self.resources.lock().unwrap_or_else(PoisonError::into_inner).insert(format!("/{name}"), resource);
    }

    fn get(&self, path: &str) -> Option<Resource> {
        self.resources.lock().unwrap_or_else(PoisonError::into_inner).get(path).cloned()
    }
}

impl Resource {
    fn is_used_up(&self) -> bool {
        matches!(self, Self::File { sent, uses: Uses::Once, .. } if sent.load(Ordering::Acquire))
    }
}

/// On both families where the machine has both.
async fn bind_everywhere(port: u16) -> io::Result<TcpListener> {
    match TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).await {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(error),
        Err(_) => TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))).await,
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, stop: CancellationToken, tasks: TaskTracker) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    while let Some(accepted) = stop.run_until_cancelled(next_connection(&listener, &connections)).await {
        let (stream, permit) = accepted;
        let (shared, stop) = (Arc::clone(&shared), stop.clone());
        tasks.spawn(async move {
            let served = timeout(CONNECTION_LIFETIME, serve(stream, shared, stop)).await;
            match served {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(error = %error, "transfer connection failed"),
                Err(_) => tracing::debug!("transfer connection lived too long"),
            }
            drop(permit);
        });
    }
}

async fn next_connection(listener: &TcpListener, connections: &Arc<Semaphore>) -> (TcpStream, tokio::sync::OwnedSemaphorePermit) {
    let permit = Arc::clone(connections).acquire_owned().await.expect("the semaphore is never closed");
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, permit),
            Err(error) => {
                tracing::debug!(error = %error, "cannot accept a transfer connection");
                // Out of file descriptors, most likely: others must end first.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>, stop: CancellationToken) -> Result<(), hyper::Error> {
    let service = service_fn(|request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, std::convert::Infallible>(answer::answer(&shared, request).await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    let mut connection = std::pin::pin!(http.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests;
