//! `/healthz` and `/varz`: whether the agent lives, and what it holds. Behind basic authentication.

mod process;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use dewar_bus::Bus;
use dewar_core::{Answer, Request, Varz, VarzInstance};
use dewar_protocol::{CellId, Secret};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use hyper::service::service_fn;
use hyper::{Method, Request as HttpRequest, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Map, Value, json};
use subtle::ConstantTimeEq as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::driver::Asked;
use crate::effects::Asker;
use crate::log_counts::LogCounts;
use crate::logs::Logs;
use crate::outbox::Outbox;

/// Connections at a time; one more waits to be accepted.
const CONNECTIONS: usize = 64;
/// For a request's head to arrive.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// For everything on one connection.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
/// For the driver to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of a request's head.
const HEAD_BYTES: usize = 16 << 10;
/// Pause after a failed accept, which mostly means that the process has no more file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the server tells about, beyond what the cell knows.
pub(crate) struct StatusServer {
    pub(crate) listener: TcpListener,
    pub(crate) facts: Facts,
    pub(crate) requests: mpsc::Sender<Asked>,
    pub(crate) bus: Bus,
    pub(crate) outbox: Outbox,
    pub(crate) logs: Logs,
    pub(crate) log_counts: LogCounts,
}

/// What does not change while the agent runs.
pub(crate) struct Facts {
    pub(crate) id: CellId,
    pub(crate) index: u32,
    /// As announced.
    pub(crate) host: String,
    pub(crate) credentials: Secret<(String, String)>,
    /// When the process started, as announced.
    pub(crate) start: String,
    pub(crate) started: Instant,
    /// How sandboxes get their memory.
    pub(crate) sandbox_allocation: String,
    /// What the process has taken from itself.
    pub(crate) hardening: Value,
}

/// Binds the address of `/varz` and `/healthz`.
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
        match (request.method(), request.uri().path()) {
            (&Method::GET | &Method::HEAD, "/healthz") => text(StatusCode::OK, "ok\n"),
            (&Method::GET | &Method::HEAD, "/varz") => match self.varz().await {
                Some(varz) => json_response(&varz),
                None => text(StatusCode::SERVICE_UNAVAILABLE, "The agent does not answer\n"),
            },
            _ => text(StatusCode::NOT_FOUND, "Not found\n"),
        }
    }

    fn authorizes(&self, header: Option<&HeaderValue>) -> bool {
        let (user, password) = self.facts.credentials.expose();
        let given = header.and_then(|header| {
            let (scheme, credentials) = header.to_str().ok()?.split_once(' ')?;
            scheme.eq_ignore_ascii_case("basic").then(|| BASE64.decode(credentials.trim()).ok())?
        });
        given.is_some_and(|given| given.ct_eq(format!("{user}:{password}").as_bytes()).into())
    }

    async fn varz(&self) -> Option<Value> {
        let (sender, answer) = oneshot::channel();
        let asked = Asked { request: Request::ReportVarz, asker: Asker::Here(sender) };
        let answer = timeout(ANSWER_TIMEOUT, async {
            self.requests.send(asked).await.ok()?;
            answer.await.ok()
        });
        let Ok(Some(Answer::Varz(varz))) = answer.await else { return None };
        Some(self.varz_object(&varz))
    }

    fn varz_object(&self, varz: &Varz) -> Value {
        let counters = self.bus.counters();
        let mut object = json!({
            "type": "DEA",
            "index": self.facts.index,
            "uuid": self.facts.id,
            "host": self.facts.host,
            "start": self.facts.start,
            "uptime": uptime(self.facts.started.elapsed()),
            "num_cores": std::thread::available_parallelism().map_or(1, usize::from),
            "log_counts": self.log_counts.by_level(),
            "stacks": varz.stacks,
            "can_stage": u8::from(varz.reservable_stagers > 0),
            "reservable_stagers": varz.reservable_stagers,
            "available_memory_ratio": varz.available_memory_ratio,
            "available_disk_ratio": varz.available_disk_ratio,
            "instance_registry": instance_registry(&varz.instances),
            "staging_tasks": varz.staging_tasks,
            "bus": {
                "up": self.bus.is_up(),
                "published": counters.published,
                "dropped": counters.dropped.saturating_add(self.outbox.dropped()),
                "received": counters.received,
                "slow_consumer": counters.slow_consumer,
            },
            "sandbox_allocation": self.facts.sandbox_allocation,
            "hardening": self.facts.hardening,
            "app_log_lines_dropped": self.logs.dropped(),
        });
        if let Value::Object(object) = &mut object {
            object.extend(process::numbers(self.facts.started.elapsed()));
        }
        object
    }
}

/// Application id → instance id → attributes. Never environment, services or credentials.
fn instance_registry(instances: &[VarzInstance]) -> BTreeMap<&str, Map<String, Value>> {
    let mut registry: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for instance in instances {
        let attributes = json!({
            "application_id": instance.app_id,
            "application_name": instance.app_name,
            "application_version": instance.version,
            "application_uris": instance.uris,
            "instance_id": instance.instance_id,
            "instance_index": instance.index,
            "state": instance.state,
            "state_timestamp": instance.state_since.to_unix(),
            "used_memory_in_bytes": instance.usage.memory,
            "used_disk_in_bytes": instance.usage.disk,
            "computed_pcpu": instance.cpu,
        });
        registry.entry(instance.app_id.as_str()).or_default().insert(instance.instance_id.to_string(), attributes);
    }
    registry
}

/// `<d>d:<h>h:<m>m:<s>s`.
fn uptime(since: Duration) -> String {
    let seconds = since.as_secs();
    format!("{}d:{}h:{}m:{}s", seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60)
}

fn text(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(body.as_bytes())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

fn json_response(body: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.to_string().into()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
