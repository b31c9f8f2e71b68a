//! Outbound requests of a guest by `wasi:http` 0.2 and 0.3: our own client, so that the egress policy cannot be gone round.
//!
//! A name is resolved once, each of its addresses is checked, and the connection goes to an address that passed: a name that
//! resolves differently the next moment changes nothing. The same holds for a connection that was made for an earlier request.
//! Redirects are the guest's to follow, which makes them requests like any other.

mod body;
mod dial;
mod failure;
pub(crate) mod handler;
pub(crate) mod pool;
mod target;
pub(crate) mod tls;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use dewar_protocol::LogStream;
use http::{Method, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout};
use wasmtime_wasi_http::p2::bindings::http::types::ErrorCode as CodeP2;
use wasmtime_wasi_http::p3::bindings::http::types::ErrorCode as CodeP3;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

use body::{Exchange, ResponseBody};
use dial::{DialError, dial};
use pool::{Connection, Turn};
use target::Origin;

use crate::egress::Transport;
use crate::network::InstanceNetwork;
use crate::output::Log;

/// Addresses of a name that are tried.
const ADDRESSES: usize = 4;
/// What a guest that asks for no or for longer timeouts gets: for a connection with its TLS, the wait for a turn before it
/// likewise; for the head of the response; for the next part of its body.
const CONNECT: Duration = Duration::from_secs(30);
const FIRST_BYTE: Duration = Duration::from_secs(120);
const BETWEEN_BYTES: Duration = Duration::from_secs(60);
/// From the request to the last byte of its response.
const TOTAL: Duration = Duration::from_secs(900);
/// Bytes of what the developer is told about a failure.
const DETAIL_BYTES: usize = 500;
/// Most that a guest may write at once into a body.
const CHUNK: usize = 64 << 10;
/// Writes that are taken before the first is on its way: a guest with a small answer is done without having to wait.
const BUFFERED_CHUNKS: usize = 4;
/// What there can be of a body that nobody has fetched yet: wasmtime takes one write more.
pub(crate) const BUFFERED_BYTES: u64 = (BUFFERED_CHUNKS as u64 + 1) * CHUNK as u64;

/// The client of one instance's stores.
#[derive(Clone)]
pub(crate) struct Outbound {
    network: Arc<InstanceNetwork>,
    log: Arc<Log>,
}

type Answer = (Response<WasiBody>, Box<dyn Future<Output = Result<(), Error>> + Send>);

impl Outbound {
    pub(crate) fn new(network: Arc<InstanceNetwork>, log: Arc<Log>) -> Self {
        Self { network, log }
    }

    pub(crate) fn network(&self) -> Arc<InstanceNetwork> {
        self.network.clone()
    }
}

impl WasiHttpHooks for Outbound {
    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _processed: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Box<dyn Future<Output = Result<Answer, Error>> + Send> {
        let permit = self.network.allowance.concurrent_requests.clone().try_acquire_owned();
        let client = self.clone();
        Box::new(async move {
            let permit = permit.map_err(|_| Error::ConnectionLimitReached)?;
            let response = client.send(permit, request, Timeouts::new(options.unwrap_or_default())).await?;
            Ok((response.map(BodyExt::boxed_unsync), Box::new(std::future::ready(Ok(()))) as _))
        })
    }

    fn set_host_header(&mut self) -> bool {
        // The guest's spelling is not what is sent.
        false
    }

    fn p2_outgoing_body_buffer_chunks(&mut self) -> usize {
        BUFFERED_CHUNKS
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        CHUNK
    }

    fn p3_outgoing_body_chunk_size(&mut self) -> usize {
        CHUNK
    }

    // The defaults write to the operator's log, which guests could fill.
    fn p2_error_from_hyper(&mut self, _: &hyper::Error) -> CodeP2 {
        CodeP2::HttpProtocolError
    }

    fn p3_error_from_hyper(&mut self, _: &hyper::Error) -> CodeP3 {
        CodeP3::HttpProtocolError
    }
}

/// How long a request may take.
struct Timeouts {
    connect: Duration,
    first_byte: Duration,
    between_bytes: Duration,
    end: Instant,
}

impl Timeouts {
    fn new(wanted: RequestOptions) -> Self {
        let at_most = |wanted: Option<Duration>, limit: Duration| wanted.map_or(limit, |wanted| wanted.min(limit));
        Self {
            connect: at_most(wanted.connect_timeout, CONNECT),
            first_byte: at_most(wanted.first_byte_timeout, FIRST_BYTE),
            between_bytes: at_most(wanted.between_bytes_timeout, BETWEEN_BYTES),
            end: Instant::now() + TOTAL,
        }
    }
}

/// An exchange without a response.
struct Broken {
    /// The request, where it may be sent again without harm.
    again: Option<Request<WasiBody>>,
    error: Error,
}

impl Outbound {
    async fn send(
        &self,
        permit: OwnedSemaphorePermit,
        mut request: Request<WasiBody>,
        timeouts: Timeouts,
    ) -> Result<Response<ResponseBody>, Error> {
        if !self.network.egress.allows_any(Transport::Tcp) {
            return Err(Error::HttpRequestDenied);
        }
        let origin = Origin::take(&mut request)?;
        let addresses = self.allowed_addresses(&origin).await?;
        let turn = self.network.app.pool.turn(origin.clone(), timeouts.connect).await?;
        let request = request.map(body::of_request);
        let (response, connection) = self.exchange(&origin, &turn, &addresses, request, &timeouts).await?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Err(Error::HttpUpgradeFailed);
        }
        let (head, body) = response.into_parts();
        let exchange = Exchange { connection, turn, permit };
        Ok(Response::from_parts(head, ResponseBody::new(body, timeouts.between_bytes, timeouts.end, exchange)?))
    }

    /// The addresses of an origin that the policy allows.
    async fn allowed_addresses(&self, origin: &Origin) -> Result<Vec<SocketAddr>, Error> {
        let found = self.network.addresses(&origin.host).await.map_err(failure::of_lookup)?;
        let addresses = found.iter().map(|address| SocketAddr::new(*address, origin.port));
        let allowed: Vec<_> = addresses.filter(|address| self.network.egress.allows(Transport::Tcp, *address)).take(ADDRESSES).collect();
        if allowed.is_empty() { Err(Error::DestinationIpProhibited) } else { Ok(allowed) }
    }

    /// Sends a request on an idle connection or a new one. The origin may have closed an idle one while the request was on its way:
    /// then it goes out once more, on a new one.
    async fn exchange(
        &self,
        origin: &Origin,
        turn: &Turn,
        addresses: &[SocketAddr],
        mut request: Request<WasiBody>,
        timeouts: &Timeouts,
    ) -> Result<(Response<Incoming>, Connection), Error> {
        if let Some(mut connection) = turn.take_idle(addresses).await {
            match send_on(&mut connection, request, timeouts).await {
                Ok(response) => return Ok((response, connection)),
                Err(Broken { again: Some(again), .. }) => request = again,
                Err(Broken { again: None, error }) => return Err(error),
            }
        }
        let mut connection = dial(&self.network, origin, addresses, timeouts.connect).await.map_err(|error| self.told(origin, error))?;
        let response = send_on(&mut connection, request, timeouts).await.map_err(|broken| broken.error)?;
        Ok((response, connection))
    }

    /// The code for the guest, once the developer can read in the app's log what it does not say.
    fn told(&self, origin: &Origin, error: DialError) -> Error {
        if let Some(mut detail) = error.detail {
            // It may quote a certificate, which can be as long as its owner likes.
            detail.truncate(detail.floor_char_boundary(DETAIL_BYTES));
            self.log.line(LogStream::Err, &format!("[request to {origin} failed: {detail}]"));
        }
        error.code
    }
}

async fn send_on(connection: &mut Connection, request: Request<WasiBody>, timeouts: &Timeouts) -> Result<Response<Incoming>, Broken> {
    let copy = copy_of(&request);
    match timeout(timeouts.first_byte, connection.sender.try_send_request(request)).await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(mut failed)) => {
            let unsent = failed.take_message();
            let cause = failed.into_error();
            // A response that is no HTTP was an answer of sorts: asking again would not make it better.
            let again = unsent.or(if cause.is_parse() { None } else { copy });
            Err(Broken { again, error: failure::of_exchange(&cause) })
        }
        Err(_) => Err(Broken { again: None, error: Error::ConnectionReadTimeout }),
    }
}

/// A request that may be sent twice: its method makes it harmless, and it has no body.
fn copy_of(request: &Request<WasiBody>) -> Option<Request<WasiBody>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS) || !request.body().is_end_stream() {
        return None;
    }
    let mut copy = Request::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
    copy.method_mut().clone_from(request.method());
    copy.uri_mut().clone_from(request.uri());
    copy.headers_mut().clone_from(request.headers());
    Some(copy)
}
