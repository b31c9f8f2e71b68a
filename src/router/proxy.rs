//! The way of a request: checked, given to an endpoint (another one if that refuses the connection), its answer passed back.

use std::error::Error;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;

use dewar_core::routes::{Lease, Pick, Wish};
use http::header::{CONNECTION, HeaderValue, UPGRADE};
use http::{Extensions, Method, Request, Response, StatusCode, Version};
use hyper::body::{Body, Incoming};
use hyper::upgrade::OnUpgrade;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info};

use crate::access_log::{AccessLog, RequestFacts};
use crate::body::{BodyError, RequestBody, ResponseBody};
use crate::client_io::Activity;
use crate::config::RouterConfig;
use crate::exchange::Exchange;
use crate::headers::{self, Forwarding, X_CF_APP_INSTANCE};
use crate::identity::random_uuid;
use crate::metrics::Metrics;
use crate::refusal::Refusal;
use crate::table::Table;
use crate::upstream::{Connection, SendError, Upstream};
use crate::{sticky, tunnel};

/// Endpoints that are tried for one request, without those that refuse the connection at once.
const MAX_ATTEMPTS: usize = 3;

/// Endpoints that are tried at all. With an agent many of an app's instances die at a time, and each of them refuses.
const MAX_TRIED: usize = 64;

/// What all requests share.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) config: RouterConfig,
    pub(crate) table: Table,
    pub(crate) metrics: Metrics,
    pub(crate) access_log: AccessLog,
    /// Connections and tunnels.
    pub(crate) tasks: TaskTracker,
    /// Cancelled when those that are left have had their time.
    pub(crate) kill: CancellationToken,
}

/// One connection of a client. It lives until the last request (or tunnel) on it is over, and so does its place among the connections.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) address: SocketAddr,
    pub(crate) activity: Arc<Activity>,
    pub(crate) _place: OwnedSemaphorePermit,
}

/// An instance's answer, and what it came by.
struct Answer {
    response: Response<Incoming>,
    lease: Lease<Upstream>,
    connection: Connection,
    question: Question,
}

/// What is still needed of a request once it has been sent.
struct Question {
    method: Method,
    wished_instance: Option<String>,
    upgrade: Option<Upgrade>,
}

struct Upgrade {
    protocol: HeaderValue,
    client: OnUpgrade,
}

/// An app and one of its instances, as `X-CF-App-Instance` names them.
struct AppInstance<'a> {
    app: &'a str,
    index: &'a str,
}

impl Client {
    /// Answers one request.
    pub(crate) async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<ResponseBody> {
        let request_id = HeaderValue::try_from(random_uuid()).unwrap_or_else(|_| HeaderValue::from_static("-"));
        let facts = self.proxy.access_log.is_on().then(|| Box::new(RequestFacts::of(&request, self.address, &request_id)));
        let mut exchange = Exchange::begin(Arc::clone(&self), facts);
        match self.ask_instance(request, &mut exchange, &request_id).await {
            Ok(answer) => self.pass_back(answer, exchange, request_id),
            Err(refusal) => self.refuse(refusal, exchange, request_id),
        }
    }

    fn refuse(&self, refusal: Refusal, exchange: Exchange, request_id: HeaderValue) -> Response<ResponseBody> {
        if matches!(refusal, Refusal::EndpointFailure | Refusal::EndpointTimeout) {
            self.proxy.metrics.bad_gateway();
        } else {
            self.proxy.metrics.bad_request();
        }
        refusal.into_response(exchange, request_id)
    }

    async fn ask_instance(&self, mut request: Request<Incoming>, exchange: &mut Exchange, id: &HeaderValue) -> Result<Answer, Refusal> {
        let config = &self.proxy.config;
        let host = headers::check_request(&request)?.into_owned();
        let app_instance = request.headers().get(X_CF_APP_INSTANCE).cloned();
        let app_instance = app_instance.as_ref().map(parse_app_instance).transpose()?;
        let wished_instance = sticky::wished_instance(request.headers(), &config.sticky).map(str::to_owned);
        let protocol = headers::wanted_upgrade(&request);
        let upgrade = protocol.map(|protocol| Upgrade { protocol, client: hyper::upgrade::on(&mut request) });
        let forwarding = Forwarding {
            client: self.address.ip(),
            proto: config.forwarded_proto,
            request_id: id.clone(),
            upgrade: upgrade.as_ref().map(|upgrade| &upgrade.protocol),
        };
        let (mut head, incoming) = request.into_parts();
        headers::forward_request(&mut head.headers, forwarding);
        exchange.forwarded(&head.headers);
        head.extensions = Extensions::new();
        head.version = Version::HTTP_11;
        let question = Question { method: head.method.clone(), wished_instance, upgrade };
        let body = RequestBody::new(incoming, &self.activity, config.clients.stall_timeout);
        let wish = match (&app_instance, &question.wished_instance) {
            (Some(AppInstance { app, index }), _) => Wish::Instance { app, index },
            (None, Some(id)) => Wish::Sticky(id),
            (None, None) => Wish::Any,
        };
        let (response, lease, connection) = self.send(Request::from_parts(head, body), &host, wish).await?;
        Ok(Answer { response, lease, connection, question })
    }

    /// Sends a request to an endpoint of its host, and to others as long as no endpoint has begun to work on it.
    async fn send(
        &self,
        mut request: Request<RequestBody>,
        host: &str,
        wish: Wish<'_>,
    ) -> Result<(Response<Incoming>, Lease<Upstream>, Connection), Refusal> {
        let Proxy { config, table, .. } = &*self.proxy;
        let (mut tried, mut attempts) = (Vec::new(), 0);
        while attempts < MAX_ATTEMPTS && tried.len() < MAX_TRIED {
            let lease = match table.pick(host, wish, &tried) {
                Pick::Endpoint(lease) => lease,
                Pick::UnknownHost => return Err(Refusal::UnknownRoute { host: host.to_owned() }),
                Pick::UnknownInstance => return Err(Refusal::UnknownInstance { host: host.to_owned() }),
                Pick::NoEndpoints => return Err(Refusal::NoEndpoints { host: host.to_owned() }),
                Pick::Overloaded => return Err(Refusal::Overloaded { host: host.to_owned() }),
                Pick::Exhausted => break,
            };
            headers::name_instance(request.headers_mut(), &lease.attachment);
            let address = lease.info.address;
            match lease.attachment.send(&lease.info, request, &config.endpoints, &self.activity).await {
                Ok((response, connection)) => {
                    lease.mark_alive();
                    return Ok((response, lease, connection));
                }
                Err(SendError::Unreachable { request: unsent, cause }) => {
                    info!(%address, host, error = %cause, "endpoint is not reachable");
                    lease.mark_failed(table.now(), config.endpoints.failure_pause);
                    attempts += usize::from(cause.kind() != ErrorKind::ConnectionRefused);
                    request = *unsent;
                }
                Err(SendError::Broken { replay, cause }) => {
                    if let Some(refusal) = fault_of_client(&cause) {
                        return Err(refusal);
                    }
                    info!(%address, host, error = %cause, "endpoint broke off");
                    attempts += 1;
                    request = *replay.ok_or(Refusal::EndpointFailure)?;
                }
                Err(SendError::TimedOut) => {
                    info!(%address, host, "endpoint did not answer in time");
                    return Err(Refusal::EndpointTimeout);
                }
            }
            tried.push(address);
        }
        Err(Refusal::EndpointFailure)
    }

    fn pass_back(&self, answer: Answer, mut exchange: Exchange, request_id: HeaderValue) -> Response<ResponseBody> {
        let Answer { response, lease, connection, question } = answer;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return self.switch_protocols(Answer { response, lease, connection, question }, exchange, request_id);
        }
        let config = &self.proxy.config;
        let (mut head, incoming) = response.into_parts();
        let announces_body = headers::announces_body(&head.headers);
        if let Err(refusal) = headers::forward_response(&mut head.headers, &question.method, request_id.clone()) {
            return self.refuse(refusal, exchange, request_id);
        }
        sticky::bind(&mut head.headers, question.wished_instance.as_deref(), &lease.info, &config.sticky);
        head.version = Version::HTTP_11;
        // An instance that sends a body where there can be none sends it after hyper has taken the response for complete: on a connection
        // that is used again it would be the answer to the next request. hyper notices what has arrived by then, but not what comes
        // later. So such a connection is used again only when the head announces no body either.
        let bodiless = headers::is_bodiless(&question.method, head.status);
        if !(bodiless && announces_body) {
            exchange.connection_is_reusable();
        }
        exchange.answered(head.status, lease, self.unless_sending(connection));
        let body = if bodiless || incoming.is_end_stream() {
            ResponseBody::empty(Some(exchange))
        } else {
            ResponseBody::instance(incoming, config.endpoints.response_timeout, exchange)
        };
        Response::from_parts(head, body)
    }

    /// While the request's body is still being sent, both directions must go on even when the other stands still.
    fn unless_sending(&self, connection: Connection) -> Option<Connection> {
        if !self.activity.is_body_unfinished() {
            return Some(connection);
        }
        connection.detach();
        None
    }

    fn switch_protocols(&self, answer: Answer, mut exchange: Exchange, request_id: HeaderValue) -> Response<ResponseBody> {
        let Answer { mut response, lease, connection, question } = answer;
        let switched_to = response.headers().get(UPGRADE);
        let agreed = question
            .upgrade
            .filter(|upgrade| switched_to.is_some_and(|protocol| protocol.as_bytes().eq_ignore_ascii_case(upgrade.protocol.as_bytes())));
        let Some(upgrade) = agreed else {
            info!(address = %lease.info.address, "endpoint switched to a protocol that nobody asked for");
            return self.refuse(Refusal::EndpointFailure, exchange, request_id);
        };
        let instance = hyper::upgrade::on(&mut response);
        let (mut head, _no_body) = response.into_parts();
        if let Err(refusal) = headers::forward_response(&mut head.headers, &question.method, request_id.clone()) {
            return self.refuse(refusal, exchange, request_id);
        }
        head.headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        head.headers.insert(UPGRADE, upgrade.protocol);
        head.version = Version::HTTP_11;
        exchange.answered(head.status, lease, None);
        // It hands its socket over to the tunnel.
        connection.detach();
        self.proxy.metrics.tunnel();
        let limit = self.proxy.config.clients.tunnel_idle_timeout;
        self.proxy.tasks.spawn(tunnel::run(upgrade.client, instance, exchange, limit, self.proxy.kill.clone()));
        Response::from_parts(head, ResponseBody::empty(None))
    }
}

fn parse_app_instance(header: &HeaderValue) -> Result<AppInstance<'_>, Refusal> {
    let text = header.to_str().map_err(|_| Refusal::InvalidAppInstance)?;
    let (app, index) = text.split_once(':').ok_or(Refusal::InvalidAppInstance)?;
    let valid = !app.is_empty() && !index.is_empty() && index.bytes().all(|b| b.is_ascii_digit());
    if valid { Ok(AppInstance { app, index }) } else { Err(Refusal::InvalidAppInstance) }
}

/// Whether sending failed because the client did not send.
fn fault_of_client(cause: &hyper::Error) -> Option<Refusal> {
    let mut source = cause.source();
    while let Some(error) = source {
        match error.downcast_ref::<BodyError>() {
            Some(BodyError::Stalled(limit)) => {
                debug!(?limit, "client stalled");
                return Some(Refusal::RequestTimeout);
            }
            Some(BodyError::Read(_)) => return Some(Refusal::BadRequest("The request's body broke off or was malformed")),
            None => source = error.source(),
        }
    }
    None
}
