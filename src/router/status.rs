//! `/healthz`, `/varz` and `/routes` for collectors and operators, behind basic authentication.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1::Builder;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::identity::{Identity, Uptime};
use crate::proxy::Proxy;

/// Clients of the status pages at one time; further ones wait.
const MAX_CONNECTIONS: usize = 64;

/// A status connection is served for this long at most: whoever polls comes again.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);

/// After a failure to accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

pub(crate) struct Status {
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) identity: Arc<Identity>,
}

/// Serves until `stop`; requests in flight are then cut.
pub(crate) async fn serve(status: Arc<Status>, listener: TcpListener, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let accepting = async {
        loop {
            // Closed never: the semaphore lives as long as this loop.
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let status = Arc::clone(&status);
                    let stop = stop.clone();
                    tokio::spawn(async move {
                        let _place = place;
                        stop.run_until_cancelled(serve_connection(status, TokioIo::new(stream))).await;
                    });
                }
                Err(error) => {
                    warn!(%error, "status client cannot be accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    stop.run_until_cancelled(accepting).await;
}

async fn serve_connection(status: Arc<Status>, io: TokioIo<tokio::net::TcpStream>) {
    let service = service_fn(|request: Request<Incoming>| {
        let response = status.answer(&request);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = Builder::new().timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(10)).serve_connection(io, service);
    match timeout(CONNECTION_TIMEOUT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "status connection failed"),
        Err(_) => debug!("status connection was cut"),
    }
}

impl Status {
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if !self.is_admitted(request.headers().get(AUTHORIZATION)) {
            let mut response = text(StatusCode::UNAUTHORIZED, "Not authorized\n");
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"router\""));
            return response;
        }
        match (request.method(), request.uri().path()) {
            (&http::Method::GET, "/healthz") => text(StatusCode::OK, "ok\n"),
            (&http::Method::GET, "/varz") => document(&self.varz()),
            (&http::Method::GET, "/routes") => document(&self.routes()),
            _ => text(StatusCode::NOT_FOUND, "Not found\n"),
        }
    }

    fn is_admitted(&self, authorization: Option<&HeaderValue>) -> bool {
        let decoded = authorization
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("basic"))
            .and_then(|(_, encoded)| STANDARD.decode(encoded.trim()).ok());
        let Some(decoded) = decoded else { return false };
        let mut parts = decoded.splitn(2, |&b| b == b':');
        let (user, password) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        self.identity.admits(user, password)
    }

    /// The announcement without its credentials, what gorouter's varz has, and what else we count.
    fn varz(&self) -> Value {
        let mut varz = json!(self.identity.announcement(Uptime::Current));
        let Some(fields) = varz.as_object_mut() else { return varz };
        fields.remove("credentials");
        for (name, value) in self.proxy.metrics.values() {
            fields.insert(name.to_owned(), value.into());
        }
        let memory = resident_bytes();
        let table = self.proxy.table.read();
        for (name, value) in [
            ("urls", table.host_count() as u64),
            ("droplets", table.endpoint_count() as u64),
            ("ms_since_last_registry_update", u64::try_from(self.proxy.table.since_last_update().as_millis()).unwrap_or(u64::MAX)),
            ("access_log_dropped", self.proxy.access_log.dropped()),
            ("connections", self.proxy.tasks.len() as u64),
            ("num_cores", std::thread::available_parallelism().map_or(1, usize::from) as u64),
            ("mem", memory / 1024),
            ("mem_bytes", memory),
        ] {
            fields.insert(name.to_owned(), value.into());
        }
        varz
    }

    /// Host → its endpoints, as gorouter's `/routes`.
    fn routes(&self) -> Value {
        let now = self.proxy.table.now();
        let mut hosts: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        for (key, endpoint, age) in self.proxy.table.read().routes(now) {
            let info = &endpoint.info;
            hosts.entry(key.to_string()).or_default().push(json!({
                "address": info.address.to_string(),
                "ttl": age.stale_after.saturating_sub(age.refreshed_ago).as_secs(),
                "app": info.app,
                "private_instance_id": info.instance_id,
                "private_instance_index": info.index,
                "tags": info.tags,
                "in_flight": endpoint.in_flight(),
            }));
        }
        json!(hosts)
    }
}

/// Zero where the system does not tell.
fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").ok().and_then(|statm| statm.split(' ').nth(1)?.parse::<u64>().ok());
    pages.unwrap_or(0) * rustix::param::page_size() as u64
}

fn text(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

fn document(value: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(value.to_string())));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
