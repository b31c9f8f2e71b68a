//! Outbound requests of a guest by `wasi:http`: our own client, so that the egress policy cannot be gone round.
//!
//! A name is resolved once, each of its addresses is checked, and the connection goes to an address that passed: a name that
//! resolves differently the next moment changes nothing. There is no TLS client: a request for `https` is refused with a text
//! that says so.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::uri::{PathAndQuery, Scheme};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep_until, timeout};
use wasmtime_wasi::runtime::{AbortOnDropJoinHandle, spawn};
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

use crate::EgressPolicy;
use crate::egress::Transport;

/// Requests of one instance under way at a time; one more is refused.
const CONCURRENT: usize = 64;
/// Bytes of a body, either way.
const BODY_BYTES: usize = 256 << 20;
/// Addresses of a name that are tried.
const ADDRESSES: usize = 4;
/// What a guest that asks for no or for longer timeouts gets.
const RESOLVE: Duration = Duration::from_secs(10);
const CONNECT: Duration = Duration::from_secs(30);
const FIRST_BYTE: Duration = Duration::from_secs(120);
const BETWEEN_BYTES: Duration = Duration::from_secs(60);
/// Most that a guest may write at once into a body.
const CHUNK: usize = 64 << 10;
/// Writes that are taken before the first is on its way: a guest with a small answer is done without having to wait.
const BUFFERED_CHUNKS: usize = 4;
/// What there can be of a body that nobody has fetched yet: wasmtime takes one write more.
pub(crate) const BUFFERED_BYTES: u64 = (BUFFERED_CHUNKS as u64 + 1) * CHUNK as u64;

/// The client of one instance's stores.
#[derive(Clone)]
pub(crate) struct Outbound {
    egress: EgressPolicy,
    permits: Arc<Semaphore>,
}

type Answer = (http::Response<WasiBody>, Box<dyn Future<Output = Result<(), Error>> + Send>);

impl Outbound {
    pub(crate) fn new(egress: EgressPolicy) -> Self {
        Self { egress, permits: Arc::new(Semaphore::new(CONCURRENT)) }
    }
}

impl WasiHttpHooks for Outbound {
    fn send_request(
        &mut self,
        request: http::Request<WasiBody>,
        options: Option<RequestOptions>,
        _processed: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Box<dyn Future<Output = Result<Answer, Error>> + Send> {
        let permit = self.permits.clone().try_acquire_owned().map_err(|_| Error::ConnectionLimitReached);
        let egress = self.egress.clone();
        Box::new(async move { send(egress, permit?, request, options.unwrap_or_default()).await })
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
}

async fn send(
    egress: EgressPolicy,
    permit: OwnedSemaphorePermit,
    mut request: http::Request<WasiBody>,
    options: RequestOptions,
) -> Result<Answer, Error> {
    if request.uri().scheme() != Some(&Scheme::HTTP) {
        return Err(Error::InternalError(Some("this agent offers no TLS to guests: only http can be requested".into())));
    }
    if !egress.allows_any(Transport::Tcp) {
        return Err(Error::HttpRequestDenied);
    }
    let at_most = |wanted: Option<Duration>, limit: Duration| wanted.map_or(limit, |wanted| wanted.min(limit));
    let addresses = resolve(&egress, request.uri()).await?;
    let connecting = timeout(at_most(options.connect_timeout, CONNECT), connect(&addresses));
    let stream = connecting.await.map_err(|_| Error::ConnectionTimeout)??;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = spawn(async move {
        let ended = connection.await;
        drop(permit);
        ended
    });

    // In the request line a target without scheme and authority: we talk to the origin, not to a proxy.
    let target = request.uri().path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    *request.uri_mut() = target.into();
    let request = request.map(|body| Limited::new(body, BODY_BYTES).map_err(|error| limit_error(error, Error::HttpRequestBodySize)));
    let answering = timeout(at_most(options.first_byte_timeout, FIRST_BYTE), sender.send_request(request.map(BodyExt::boxed_unsync)));
    let response = answering.await.map_err(|_| Error::ConnectionReadTimeout)??;
    let patience = at_most(options.between_bytes_timeout, BETWEEN_BYTES);
    let response = response.map(|body| {
        let limited = Limited::new(body, BODY_BYTES).map_err(|error| limit_error(error, Error::HttpResponseBodySize));
        Patient { inner: limited.boxed_unsync(), patience, deadline: None }.boxed_unsync()
    });
    Ok((response, Box::new(finish(connection))))
}

async fn finish(connection: AbortOnDropJoinHandle<Result<(), hyper::Error>>) -> Result<(), Error> {
    Ok(connection.await?)
}

/// The addresses of the request's host that the policy allows.
async fn resolve(egress: &EgressPolicy, uri: &http::Uri) -> Result<Vec<SocketAddr>, Error> {
    let authority = uri.authority().ok_or(Error::HttpRequestUriInvalid)?;
    let port = authority.port_u16().unwrap_or(80);
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    let found = timeout(RESOLVE, tokio::net::lookup_host((host, port))).await.map_err(|_| Error::DnsTimeout)?;
    let found = found.map_err(|_| Error::DnsError { rcode: Some("the name does not resolve".into()), info_code: None })?;
    let allowed: Vec<SocketAddr> = found.filter(|address| egress.allows(Transport::Tcp, *address)).take(ADDRESSES).collect();
    if allowed.is_empty() { Err(Error::HttpRequestDenied) } else { Ok(allowed) }
}

async fn connect(addresses: &[SocketAddr]) -> Result<TcpStream, Error> {
    let mut last = Error::DestinationUnavailable;
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => last = Error::ConnectionRefused,
            Err(error) => last = Error::Connect(error),
        }
    }
    Err(last)
}

/// The limit's own error, or that of the body below.
fn limit_error(error: Box<dyn std::error::Error + Send + Sync>, exceeded: fn(Option<u64>) -> Error) -> Error {
    if error.is::<LengthLimitError>() {
        return exceeded(Some(BODY_BYTES as u64));
    }
    match error.downcast::<hyper::Error>() {
        Ok(error) => Error::Hyper(*error),
        Err(error) => error.downcast::<Error>().map_or(Error::HttpProtocolError, |error| *error),
    }
}

/// A body that fails when its next frame takes too long.
struct Patient {
    inner: WasiBody,
    patience: Duration,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Body for Patient {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(cx) {
            this.deadline = None;
            return Poll::Ready(frame);
        }
        let patience = this.patience;
        let deadline = this.deadline.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + patience)));
        ready!(deadline.as_mut().poll(cx));
        Poll::Ready(Some(Err(Error::ConnectionReadTimeout)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
