//! From a client's request to what is sent back: what a guest gets to see, and what of its answer reaches the wire.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, RETRY_AFTER, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use tokio::time::{Instant, timeout_at};
use wasmtime_wasi_http::{Error, WasiBody};

use crate::answer::{Content, Exchange, GuestBody, NoAnswer};
use crate::http::App;

/// Fields that concern one connection, in either direction (RFC 9110 §7.6.1), besides those that `Connection` names.
const HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("proxy-authenticate"),
    HeaderName::from_static("proxy-authorization"),
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// What we say instead of an app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    /// The request is at fault. The connection ends: where the next request begins may be in doubt, and a body that is refused is not read.
    Request(StatusCode, &'static str),
    /// There is no turn or no store for it in time.
    Busy,
    /// The app failed.
    Failed(&'static str),
    /// The app took too long.
    Late,
}

/// Answers one request. The error type says that there always is an answer.
pub(crate) async fn answer(app: Arc<App>, request: Request<Incoming>) -> Result<Response<Content>, Infallible> {
    Ok(try_answer(app, request).await.unwrap_or_else(Refusal::into_response))
}

async fn try_answer(app: Arc<App>, request: Request<Incoming>) -> Result<Response<Content>, Refusal> {
    let method = request.method().clone();
    let request = for_guest(request, app.limits.request_body.0)?;
    let start = Instant::now();
    let deadline = start + app.limits.response_timeout;
    let turn = timeout_at(deadline, app.turn()).await.ok().flatten().ok_or(Refusal::Busy)?;
    let place = timeout_at(deadline, app.pool.take()).await.map_err(|_| Refusal::Busy)?.map_err(|cause| {
        app.no_store(&cause);
        Refusal::Failed("the app cannot start")
    })?;
    let (mut exchange, head) = Exchange::begin(app.clone(), turn, place, request, start);
    let response = exchange.head(head).await.map_err(|cause| match cause {
        NoAnswer::Failed => Refusal::Failed("the app failed to answer"),
        NoAnswer::Late => Refusal::Late,
    })?;
    for_client(&app, &method, response, exchange)
}

/// What the guest gets to see of a request.
fn for_guest(request: Request<Incoming>, limit: u64) -> Result<Request<WasiBody>, Refusal> {
    let bad = |text| Refusal::Request(StatusCode::BAD_REQUEST, text);
    let (mut head, body) = request.into_parts();
    if head.method == Method::CONNECT {
        return Err(Refusal::Request(StatusCode::METHOD_NOT_ALLOWED, "an app is no proxy"));
    }
    // hyper goes by the last coding; who stands between may go by another, and then two disagree about where the body ends.
    let mut codings = head.headers.get_all(TRANSFER_ENCODING).iter();
    if codings.next().is_some_and(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"chunked")) || codings.next().is_some() {
        return Err(Refusal::Request(StatusCode::NOT_IMPLEMENTED, "a transfer coding other than chunked"));
    }
    // A target in absolute form overrides the host field (RFC 9112 §3.2.2); the guest sees one of the two.
    if let Some(authority) = head.uri.authority() {
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| bad("the target is no valid URI"))?;
        head.headers.insert(HOST, host);
        head.uri = head.uri.path_and_query().cloned().map_or_else(|| http::Uri::from_static("/"), Into::into);
    }
    let mut hosts = head.headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) if host.to_str().is_ok() => {}
        // HTTP/1.0 knows no host.
        (None, _) if head.version == http::Version::HTTP_10 => {
            head.headers.insert(HOST, HeaderValue::from_static("localhost"));
        }
        (Some(_) | None, _) => return Err(bad("one host field is needed")),
    }
    strip_hop_by_hop(&mut head.headers);
    if body.size_hint().lower() > limit {
        return Err(Refusal::Request(StatusCode::PAYLOAD_TOO_LARGE, "the request's body is larger than it may be"));
    }
    let limited = Limited::new(body, usize::try_from(limit).unwrap_or(usize::MAX)).map_err(move |error| {
        if error.is::<LengthLimitError>() {
            return Error::HttpRequestBodySize(Some(limit));
        }
        error.downcast::<hyper::Error>().map_or(Error::HttpProtocolError, |error| Error::Hyper(*error))
    });
    Ok(Request::from_parts(head, limited.boxed_unsync()))
}

fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        // What a request is about is not a matter of one connection, whoever says so.
        .filter(|name| *name != HOST && *name != CONTENT_LENGTH)
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// What of a guest's answer reaches the client.
fn for_client(app: &Arc<App>, method: &Method, response: Response<WasiBody>, exchange: Exchange) -> Result<Response<Content>, Refusal> {
    let (mut head, body) = response.into_parts();
    let refused = |text: &str| {
        app.complain(text);
        Refusal::Failed("the app gave an answer that cannot be sent")
    };
    if head.status.is_informational() {
        return Err(refused(&format!("the app answered with status {}, which is not for apps to send", head.status.as_u16())));
    }
    let announced = announced_length(&head.headers).map_err(refused)?;
    strip_hop_by_hop(&mut head.headers);
    let guest = GuestBody::new(body, exchange, announced);
    let no_content = head.status == StatusCode::NO_CONTENT;
    if no_content {
        head.headers.remove(CONTENT_LENGTH);
    }
    if *method == Method::HEAD || no_content || head.status == StatusCode::NOT_MODIFIED {
        guest.discard();
        return Ok(Response::from_parts(head, Content::Own(Full::default())));
    }
    Ok(Response::from_parts(head, Content::Guest(Box::new(guest))))
}

/// The one length that a guest announces; two that differ would let it smuggle a second answer past whoever is between.
fn announced_length(headers: &HeaderMap) -> Result<Option<u64>, &'static str> {
    let mut values = headers.get_all(CONTENT_LENGTH).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(_), Some(_)) => Err("the app announced more than one content-length"),
        (Some(value), None) => {
            let digits = value.to_str().ok().filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()));
            digits.and_then(|text| text.parse().ok()).map(Some).ok_or("the app announced a content-length that is no number")
        }
    }
}

impl Refusal {
    fn into_response(self) -> Response<Content> {
        let (status, text) = match self {
            Self::Request(status, text) => (status, text),
            Self::Busy => (StatusCode::SERVICE_UNAVAILABLE, "the app is busy"),
            Self::Failed(text) => (StatusCode::INTERNAL_SERVER_ERROR, text),
            Self::Late => (StatusCode::GATEWAY_TIMEOUT, "the app took too long to answer"),
        };
        let mut response = Response::new(Content::Own(Full::new(Bytes::from_static(text.as_bytes()))));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        match self {
            Self::Request(..) => drop(response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"))),
            Self::Busy => drop(response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"))),
            Self::Failed(_) | Self::Late => {}
        }
        response
    }
}
