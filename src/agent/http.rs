//! `/healthz`, `/varz` and `/metrics`: whether the agent lives, what it holds, and what it has done. Behind basic authentication, all
//! of them: names of apps and routes are nobody else's business.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use hyper::service::service_fn;
use hyper::{Method, Request as HttpRequest, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use subtle::ConstantTimeEq as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::telemetry::{OPEN_METRICS, Sources, open_metrics, varz};

/// Connections at a time; one more waits to be accepted.
const CONNECTIONS: usize = 64;
/// For a request's head to arrive.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// For everything on one connection.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes of a request's head.
const HEAD_BYTES: usize = 16 << 10;
/// Pause after a failed accept, which mostly means that the process has no more file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A server of what there is to tell.
pub(crate) struct StatusServer {
    pub(crate) listener: TcpListener,
    pub(crate) sources: Arc<Sources>,
}

/// Binds the address of the status server.
///
/// # Errors
/// When it is taken, or not one of this host's.
pub(crate) async fn bind(ip: IpAddr, port: u16) -> std::io::Result<TcpListener> {
    TcpListener::bind(SocketAddr::new(ip, port)).await
}

impl StatusServer {
    /// Serves until `stop` is cancelled; connections then end by themselves, within [`CONNECTION_TIMEOUT`].
    pub(crate) async fn run(self, tasks: TaskTracker, stop: CancellationToken) {
        let server = Arc::new(self);
        let slots = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = server.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    let (server, stop) = (Arc::clone(&server), stop.clone());
                    tasks.spawn(async move {
                        tokio::select! {
                            () = stop.cancelled() => {}
                            () = server.serve(stream) => {}
                        }
                        drop(slot);
                    });
                }
                Err(error) => {
                    warn!(%error, "status connection not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn serve(self: Arc<Self>, stream: TcpStream) {
        let service = service_fn(|request| {
            let server = Arc::clone(&self);
            async move { Ok::<_, Infallible>(server.respond(&request).await) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(HEAD_BYTES)
            .serve_connection(TokioIo::new(stream), service);
        match timeout(CONNECTION_TIMEOUT, connection).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(%error, "status connection failed"),
            Err(_) => debug!("status connection closed, it took too long"),
        }
    }

    async fn respond(&self, request: &HttpRequest<Incoming>) -> Response<Full<Bytes>> {
        if !self.authorizes(request.headers().get(AUTHORIZATION)) {
            let mut response = text(StatusCode::UNAUTHORIZED, "Not authorized\n");
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"dewar\""));
            return response;
        }
        if ![Method::GET, Method::HEAD].contains(request.method()) {
            return not_found();
        }
        match request.uri().path() {
            "/healthz" => match self.sources.is_alive().await {
                true => text(StatusCode::OK, "ok\n"),
                false => no_answer(),
            },
            "/varz" => match self.sources.report().await {
                Some(report) => document("application/json", varz(&report).to_string()),
                None => no_answer(),
            },
            "/metrics" => match self.sources.report().await {
                Some(report) => document(OPEN_METRICS, open_metrics(&report)),
                None => no_answer(),
            },
            _ => not_found(),
        }
    }

    fn authorizes(&self, header: Option<&HeaderValue>) -> bool {
        let (user, password) = self.sources.facts.credentials.expose();
        let given = header.and_then(|header| {
            let (scheme, credentials) = header.to_str().ok()?.split_once(' ')?;
            scheme.eq_ignore_ascii_case("basic").then(|| BASE64.decode(credentials.trim()).ok())?
        });
        given.is_some_and(|given| given.ct_eq(format!("{user}:{password}").as_bytes()).into())
    }
}

fn not_found() -> Response<Full<Bytes>> {
    text(StatusCode::NOT_FOUND, "Not found\n")
}

/// The driver is stuck, or has more to do than it can.
fn no_answer() -> Response<Full<Bytes>> {
    text(StatusCode::SERVICE_UNAVAILABLE, "The agent does not answer\n")
}

fn text(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(body.as_bytes())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

fn document(kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
