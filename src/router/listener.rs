//! Accepts clients, serves each on a task of its own, and at the end sees all of them off.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1::Builder;
use hyper::service::service_fn;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::client_io::{Activity, ClientIo};
use crate::config::ClientConfig;
use crate::proxy::{Client, Proxy};
use crate::workers::Workers;

/// hyper's own bound, which it keeps on the stack.
const HYPER_MAX_HEADERS: usize = 100;

/// After a failure to accept, which mostly means that the process has no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Tasks that were told to end now do so within this time.
const KILL_GRACE: Duration = Duration::from_secs(5);

/// Serves until `stop`, then lets requests in flight finish for as long as the configuration allows.
pub(crate) async fn serve(proxy: Arc<Proxy>, workers: &Workers, listener: TcpListener, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(proxy.config.clients.max_connections.min(Semaphore::MAX_PERMITS)));
    let builder = http_builder(&proxy.config.clients);
    let accepting = async {
        loop {
            // Closed never: the semaphore lives as long as this loop.
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, address)) => {
                    // Registered with this thread's runtime, it has to move to its own.
                    match stream.into_std() {
                        Ok(stream) => {
                            let connection = serve_client(Arc::clone(&proxy), builder.clone(), stream, address, place, stop.clone());
                            workers.spawn(proxy.tasks.track_future(connection));
                        }
                        Err(error) => debug!(%address, %error, "client was gone at once"),
                    }
                }
                Err(error) => {
                    warn!(%error, "client cannot be accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    tokio::select! {
        () = accepting => {}
        () = stop.cancelled() => {}
    }
    drop(listener);
    drain(&proxy).await;
}

fn http_builder(config: &ClientConfig) -> Builder {
    let mut builder = Builder::new();
    builder.max_buf_size(config.max_header_bytes).max_header_size(config.max_header_bytes);
    if config.max_headers != HYPER_MAX_HEADERS {
        builder.max_headers(config.max_headers);
    }
    builder
}

async fn serve_client(
    proxy: Arc<Proxy>,
    builder: Builder,
    stream: std::net::TcpStream,
    address: SocketAddr,
    place: OwnedSemaphorePermit,
    stop: CancellationToken,
) {
    let stream = match stream.set_nodelay(true).and_then(|()| TcpStream::from_std(stream)) {
        Ok(stream) => stream,
        Err(error) => return debug!(%address, %error, "client was gone at once"),
    };
    let activity = Arc::new(Activity::new());
    let io = ClientIo::new(stream, Arc::clone(&activity), &proxy.config.clients);
    let kill = proxy.kill.clone();
    let client = Arc::new(Client { proxy, address, activity, _place: place });
    let service = service_fn(move |request| {
        let client = Arc::clone(&client);
        async move { Ok::<_, Infallible>(client.answer(request).await) }
    });
    let mut connection = std::pin::pin!(builder.serve_connection(io, service).with_upgrades());
    let mut served = tokio::select! {
        biased;
        served = connection.as_mut() => Some(served),
        () = stop.cancelled() => None,
    };
    if served.is_none() {
        connection.as_mut().graceful_shutdown();
        served = tokio::select! {
            served = connection => Some(served),
            () = kill.cancelled() => None,
        };
    }
    match served {
        Some(Ok(())) => {}
        Some(Err(error)) => debug!(%address, %error, "connection of client failed"),
        None => debug!(%address, "connection of client was cut"),
    }
}

async fn drain(proxy: &Proxy) {
    let limit = proxy.config.clients.drain_timeout;
    proxy.tasks.close();
    info!(connections = proxy.tasks.len(), ?limit, "router is draining");
    if timeout(limit, proxy.tasks.wait()).await.is_ok() {
        return;
    }
    warn!(connections = proxy.tasks.len(), "connections are cut");
    proxy.kill.cancel();
    if timeout(KILL_GRACE, proxy.tasks.wait()).await.is_err() {
        warn!(connections = proxy.tasks.len(), "connections did not end");
    }
}
