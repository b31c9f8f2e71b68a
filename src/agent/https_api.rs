//! The HTTPS API: what a Cloud Controller of 2016 and later asks for with a `POST` instead of a message on the bus.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `POST /v1/apps` | start message | 202; 503 while no work is taken |
//! | `POST /v1/stage` | staging message | 202, and later a report to the Cloud Controller; 503 likewise |
//!
//! 202 means no more than that the message was understood; what becomes of it is told as it is on the bus.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use dewar_core::{Answer, Request};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request as HttpRequest, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::de::DeserializeOwned;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::complaints::{Complaint, Complaints};
use crate::driver::Asked;
use crate::effects::Asker;
use crate::inbound::{MAX_MESSAGE_BYTES, json};
use crate::tls::ServerTls;

#[cfg(test)]
mod tests;

/// Connections at a time; one more waits to be accepted.
const CONNECTIONS: usize = 256;
/// For a client to prove who it is.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// For a request's head to arrive; also how long a connection may be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// For a request's body to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// For everything on one connection; a request that has begun by then may end.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(300);
/// For the driver to take a request, and then to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of a request's head.
const HEAD_BYTES: usize = 16 << 10;
/// Pause after a failed accept, which mostly means that the process has no more file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The server.
pub(crate) struct HttpsApi {
    listener: TcpListener,
    tls: TlsAcceptor,
    requests: mpsc::Sender<Asked>,
    complaints: Mutex<Complaints>,
}

type Reply = Response<Full<Bytes>>;

impl HttpsApi {
    pub(crate) fn new(listener: TcpListener, tls: &ServerTls, requests: mpsc::Sender<Asked>) -> Self {
        Self { listener, tls: TlsAcceptor::from(Arc::clone(&tls.config)), requests, complaints: Mutex::new(Complaints::new()) }
    }

    /// Serves until `stop` is cancelled, which ends all connections.
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
                Ok((stream, peer)) => {
                    let (server, stop) = (Arc::clone(&server), stop.clone());
                    tasks.spawn(async move {
                        stop.run_until_cancelled(server.serve(stream, peer)).await;
                        drop(slot);
                    });
                }
                Err(error) => {
                    warn!(%error, "HTTPS connection not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn serve(self: Arc<Self>, stream: TcpStream, peer: SocketAddr) {
        let stream = match timeout(HANDSHAKE_TIMEOUT, self.tls.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return debug!(%peer, %error, "TLS handshake failed"),
            Err(_) => return debug!(%peer, "TLS handshake takes too long"),
        };
        let service = service_fn(|request| {
            let server = Arc::clone(&self);
            async move { Ok::<_, Infallible>(server.respond(request).await) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(HEAD_BYTES)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = pin!(connection);
        let mut ended = timeout(CONNECTION_TIMEOUT, connection.as_mut()).await;
        if ended.is_err() {
            connection.as_mut().graceful_shutdown();
            ended = timeout(BODY_TIMEOUT + 2 * ANSWER_TIMEOUT, connection).await;
        }
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(%peer, %error, "HTTPS connection failed"),
            Err(_) => debug!(%peer, "HTTPS connection closed, it took too long"),
        }
    }

    async fn respond(&self, request: HttpRequest<Incoming>) -> Reply {
        let path = request.uri().path().to_owned();
        if !matches!(path.as_str(), "/v1/apps" | "/v1/stage") {
            return text(StatusCode::NOT_FOUND, "Not found\n");
        }
        if request.method() != Method::POST {
            let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, "Only POST is allowed\n");
            refused.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
            return refused;
        }
        let understood = match body(request).await {
            Ok(body) if path == "/v1/apps" => decode(&body).map(Request::StartInstanceByHttp),
            Ok(body) => decode(&body).map(Request::StageByHttp),
            Err(refused) => return refused,
        };
        match understood {
            Ok(request) => self.ask(request).await,
            Err(why) => {
                self.complain(&path, &why);
                text(StatusCode::BAD_REQUEST, format!("{why}\n"))
            }
        }
    }

    fn complain(&self, path: &str, why: &str) {
        let complaint = self.complaints.lock().unwrap_or_else(PoisonError::into_inner).about(&why);
        if let Some(Complaint { cause, suppressed }) = complaint {
            warn!(path, why = cause, suppressed, "request not understood");
        }
    }

    async fn ask(&self, request: Request) -> Reply {
        let unavailable = |why: &str| text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n"));
        let Ok(Ok(place)) = timeout(ANSWER_TIMEOUT, self.requests.reserve()).await else {
            return unavailable("the agent is busy");
        };
        let (sender, answer) = oneshot::channel();
        place.send(Asked { request, asker: Asker::Here(sender) });
        match timeout(ANSWER_TIMEOUT, answer).await {
            Ok(Ok(Answer::Accepted)) => text(StatusCode::ACCEPTED, "Accepted\n"),
            Ok(Ok(Answer::Unavailable(why))) => unavailable(why),
            _ => unavailable("the agent does not answer"),
        }
    }
}

/// The body of a request, or why it cannot be had.
async fn body(request: HttpRequest<Incoming>) -> Result<Bytes, Reply> {
    let body = timeout(BODY_TIMEOUT, Limited::new(request.into_body(), MAX_MESSAGE_BYTES).collect()).await;
    match body {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(text(StatusCode::PAYLOAD_TOO_LARGE, format!("More than {MAX_MESSAGE_BYTES} bytes\n")))
        }
        Ok(Err(_)) => Err(text(StatusCode::BAD_REQUEST, "The body ends too early\n")),
        Err(_) => Err(text(StatusCode::REQUEST_TIMEOUT, "The body takes too long\n")),
    }
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<Box<T>, String> {
    json(body).map(Box::new).map_err(|malformed| malformed.to_string())
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Reply {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}
