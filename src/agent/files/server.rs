//! Connections to a file server: how many, how long, how patient.

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::stall::Stall;

/// Connections at a time, each for one request; one more waits to be accepted.
const CONNECTIONS: usize = 128;
/// The longest that a connection lasts, as long as a URL is good; then it is broken off.
pub(super) const LONGEST: Duration = Duration::from_secs(3600);
/// For a request's head to arrive.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// For a client that does not read; see [`Stall`].
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of a request's head.
const HEAD_BYTES: usize = 16 << 10;
/// Pause after a failed accept, which mostly means that the process has no more file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What is sent. An error breaks the connection off, so that nobody takes the part for the whole.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// What a response has of what is limited.
type Share = Arc<OwnedSemaphorePermit>;

/// Serves until `stop` is cancelled, which breaks all connections off. None lasts for longer than `longest`.
pub(super) async fn serve<F: Future<Output = Response<Body>> + Send + 'static>(
    listener: TcpListener,
    longest: Duration,
    respond: impl Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let respond = respond.clone();
                let share = Arc::new(OnceLock::<Share>::new());
                let held = Arc::clone(&share);
                let connection = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEAD_TIMEOUT)
                    .max_buf_size(HEAD_BYTES)
                    .keep_alive(false)
                    .serve_connection(
                        TokioIo::new(Stall::new(stream, STALL_TIMEOUT)),
                        service_fn(move |request| {
                            let (response, share) = (respond(request), Arc::clone(&share));
                            async move {
                                let mut response = response.await;
                                if let Some(taken) = response.extensions_mut().remove() {
                                    share.get_or_init(|| taken);
                                }
                                Ok::<_, Infallible>(response)
                            }
                        }),
                    );
                let stop = stop.clone();
                tasks.spawn(async move {
                    match stop.run_until_cancelled(timeout(longest, connection)).await {
                        Some(Ok(Err(error))) => debug!(%error, "file connection ended"),
                        Some(Err(_)) => debug!(?longest, "file connection took too long"),
                        Some(Ok(Ok(()))) | None => {}
                    }
                    drop((slot, held));
                });
            }
            Err(error) => {
                warn!(%error, "file connection not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Keeps a share until the response's connection ends. A body ends before: its last bytes may wait for long to be read.
pub(super) fn keep(response: &mut Response<Body>, share: OwnedSemaphorePermit) {
    response.extensions_mut().insert(Share::new(share));
}

/// A response that is known as a whole.
pub(super) fn full(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(body.into()).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    response
}

/// A response without a body.
pub(super) fn empty(status: StatusCode) -> Response<Body> {
    full(status, Bytes::new())
}
