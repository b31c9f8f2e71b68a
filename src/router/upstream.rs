//! Connections to an instance: kept for the next request, made when there is none.
//!
//! A connection has no task of its own. Whoever waits for its answer carries it on ([`Connection::poll_drive`]), so a request passes
//! through the router in the one task of its client, and no thread wakes another on the way.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use dewar_core::routes::EndpointInfo;
use http::{HeaderValue, Method, Request, Response};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::time::timeout;
use tracing::debug;

use crate::body::RequestBody;
use crate::client_io::Activity;
use crate::config::EndpointConfig;
use crate::workers::WorkerId;

/// Bounds what is buffered of a response: hyper reads no more from the instance until the client has taken some of it.
const BUFFER_BYTES: usize = 64 << 10;

/// The largest response head.
const MAX_HEAD_BYTES: usize = 64 << 10;

/// A connection that can carry a request, and what carries it on.
pub(crate) struct Connection {
    sender: SendRequest<RequestBody>,
    /// `None`: it has ended.
    driver: Option<Driver>,
}

type Driver = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Connection {
    /// Sends and receives what can be without waiting; to be asked whenever something is awaited of the connection.
    pub(crate) fn poll_drive(&mut self, cx: &mut Context<'_>) {
        if let Some(driver) = &mut self.driver
            && driver.as_mut().poll(cx).is_ready()
        {
            self.driver = None;
        }
    }

    /// Lets it go on by itself, where nobody waits for an answer any more: the rest of a request's body, or a tunnel.
    pub(crate) fn detach(self) {
        // Without a runtime the process is ending, and so does the connection.
        if let (Some(driver), Ok(runtime)) = (self.driver, Handle::try_current()) {
            runtime.spawn(driver);
        }
    }

    /// Whether it can take a request now: the last exchange is over, and the instance has neither closed nor said more since.
    async fn is_usable(&mut self) -> bool {
        poll_fn(|cx| {
            self.poll_drive(cx);
            Poll::Ready(self.driver.is_some() && self.sender.is_ready())
        })
        .await
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("open", &self.driver.is_some()).finish_non_exhaustive()
    }
}

/// What the router keeps with an endpoint.
#[derive(Debug, Default)]
pub(crate) struct Upstream {
    /// `X-CF-ApplicationID`.
    pub(crate) app: Option<HeaderValue>,
    /// `X-CF-InstanceID`: the address where the registration names no instance, as in gorouter.
    pub(crate) instance_id: Option<HeaderValue>,
    /// `X-CF-InstanceIndex`.
    pub(crate) index: Option<HeaderValue>,
    /// Each thread has its own among them. The last one back is the first one out, so that those which are not needed grow old.
    idle: Mutex<Vec<Idle>>,
}

#[derive(Debug)]
struct Idle {
    connection: Connection,
    /// The thread whose runtime knows its socket.
    worker: Option<WorkerId>,
    since: Instant,
}

/// Why an instance gave no answer.
#[derive(Debug)]
pub(crate) enum SendError {
    /// There is no connection; nothing was sent.
    Unreachable { request: Box<Request<RequestBody>>, cause: io::Error },
    /// The connection broke before the response. `replay` is the request where it may be sent again without harm.
    Broken { replay: Option<Box<Request<RequestBody>>>, cause: hyper::Error },
    /// No response within the time allowed.
    TimedOut,
}

impl Upstream {
    pub(crate) fn new(info: &EndpointInfo) -> Self {
        // A registration's fields are printable, so all of them can stand in a header.
        let header = |text: &str| HeaderValue::from_str(text).ok();
        Self {
            app: info.app.as_ref().and_then(|app| header(app.as_str())),
            instance_id: info.instance_id.as_deref().and_then(header).or_else(|| header(&info.address.to_string())),
            index: info.index.as_deref().and_then(header),
            idle: Mutex::default(),
        }
    }

    /// A connection that has served its request and may serve another. More than `max_idle` are not kept.
    pub(crate) fn give_back(&self, connection: Connection, max_idle: usize) {
        if connection.driver.is_none() {
            return;
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < max_idle {
            idle.push(Idle { connection, worker: WorkerId::current(), since: Instant::now() });
        }
    }

    /// Closes connections that have been idle for longer than `limit`. One that the instance has closed is noticed here or when it
    /// would be used, whichever comes first.
    pub(crate) fn close_idle(&self, limit: Duration) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|idle| idle.since.elapsed() <= limit);
    }

    fn take_idle(&self, limit: Duration) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let worker = WorkerId::current();
        let newest = idle.iter().rposition(|idle| idle.worker == worker)?;
        let Idle { connection, since, .. } = idle.remove(newest);
        if since.elapsed() <= limit {
            return Some(connection);
        }
        // Those below are older still.
        idle.drain(..newest);
        None
    }

    /// Sends a request and waits for the head of the response.
    ///
    /// An idle connection may have been closed by the instance while the request was on its way. Where hyper has not begun to write the
    /// request, it goes out again on another connection; where it has, only a request without a body whose method makes repeating harmless.
    pub(crate) async fn send(
        &self,
        info: &EndpointInfo,
        mut request: Request<RequestBody>,
        config: &EndpointConfig,
        activity: &Activity,
    ) -> Result<(Response<Incoming>, Connection), SendError> {
        while let Some(mut connection) = self.take_idle(config.idle_timeout) {
            if !connection.is_usable().await {
                continue;
            }
            match send_on(&mut connection, request, config, activity).await {
                Ok(response) => return Ok((response, connection)),
                Err(SendError::Broken { replay: Some(again), cause }) => {
                    debug!(address = %info.address, error = %cause, "idle connection was stale");
                    request = *again;
                }
                Err(error) => return Err(error),
            }
        }
        let mut connection = match dial(info, config).await {
            Ok(connection) => connection,
            Err(cause) => return Err(SendError::Unreachable { request: Box::new(request), cause }),
        };
        let response = send_on(&mut connection, request, config, activity).await?;
        Ok((response, connection))
    }
}

async fn dial(info: &EndpointInfo, config: &EndpointConfig) -> io::Result<Connection> {
    let stream =
        timeout(config.dial_timeout, TcpStream::connect(info.address)).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    stream.set_nodelay(true)?;
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(BUFFER_BYTES)
        .max_header_size(MAX_HEAD_BYTES)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    let address = info.address;
    let driver = Box::pin(async move {
        if let Err(error) = connection.with_upgrades().await {
            debug!(%address, %error, "connection to instance failed");
        }
    });
    Ok(Connection { sender, driver: Some(driver) })
}

async fn send_on(
    connection: &mut Connection,
    request: Request<RequestBody>,
    config: &EndpointConfig,
    activity: &Activity,
) -> Result<Response<Incoming>, SendError> {
    let copy = is_repeatable(&request).then(|| copy_of(&request));
    let mut sending = pin!(connection.sender.try_send_request(request));
    let mut answer = pin!(poll_fn(|cx| {
        connection.poll_drive(cx);
        sending.as_mut().poll(cx)
    }));
    let mut wait = config.response_timeout;
    let outcome = loop {
        match timeout(wait, answer.as_mut()).await {
            Ok(outcome) => break outcome,
            // The instance's time begins when the client has sent its body.
            Err(_) => match activity.since_body_progress().and_then(|since| config.response_timeout.checked_sub(since)) {
                Some(rest) if !rest.is_zero() => wait = rest,
                Some(_) | None => return Err(SendError::TimedOut),
            },
        }
    };
    outcome.map_err(|mut error| {
        let unsent = error.take_message();
        let cause = error.into_error();
        // A response that is no HTTP was an answer of sorts: asking again would not make it better.
        let replay = unsent.or(if cause.is_parse() { None } else { copy });
        SendError::Broken { replay: replay.map(Box::new), cause }
    })
}

fn is_repeatable(request: &Request<RequestBody>) -> bool {
    matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS) && request.body().is_end_stream()
}

fn copy_of(request: &Request<RequestBody>) -> Request<RequestBody> {
    let mut copy = Request::new(RequestBody::Empty);
    copy.method_mut().clone_from(request.method());
    copy.uri_mut().clone_from(request.uri());
    copy.headers_mut().clone_from(request.headers());
    copy
}
