//! Between `wasi:http` and the types of the `http` crate.

use std::error::Error as StdError;
use std::fmt::Write as _;
use std::io::{self, Write};

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode, Uri};
use wasip2::http::types as wasi;
use wasip2::io::streams::{OutputStream, StreamError};

use crate::body::{Body, IncomingBody};

/// A request whose body has not been read yet.
pub type Request = http::Request<IncomingBody>;
/// A response; `content-length` is set where the length of the body is known.
pub type Response = http::Response<Body>;
/// Whatever goes wrong in a handler: answered with 500 and written to the app's log with its causes.
pub type Error = Box<dyn StdError>;

/// What a handler may return.
pub trait IntoResponse {
    fn into_response(self) -> Response;
}

impl IntoResponse for Response {
    fn into_response(self) -> Response {
        self
    }
}

impl IntoResponse for String {
    fn into_response(self) -> Response {
        let mut response = Response::new(self.into());
        response.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        response
    }
}

impl IntoResponse for &str {
    fn into_response(self) -> Response {
        self.to_owned().into_response()
    }
}

impl IntoResponse for StatusCode {
    fn into_response(self) -> Response {
        let reason = self.canonical_reason().unwrap_or("unknown status");
        (self, format!("{reason}\n")).into_response()
    }
}

impl<T: IntoResponse> IntoResponse for (StatusCode, T) {
    fn into_response(self) -> Response {
        let mut response = self.1.into_response();
        *response.status_mut() = self.0;
        response
    }
}

impl<T: IntoResponse, E: Into<Error>> IntoResponse for Result<T, E> {
    fn into_response(self) -> Response {
        match self {
            Ok(response) => response.into_response(),
            Err(error) => {
                eprintln!("{}", with_causes(error.into().as_ref()));
                StatusCode::INTERNAL_SERVER_ERROR.into_response()
            }
        }
    }
}

fn with_causes(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Writing to a string cannot fail.
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}

/// That a function can be what [`respond`] calls, for builds that export nothing.
pub const fn is_handler<R: IntoResponse>(_handle: fn(Request) -> R) {}

/// What `#[dewar_guest::http]` calls for each request.
pub fn respond<R: IntoResponse>(handle: impl FnOnce(Request) -> R, raw: wasi::IncomingRequest, out: wasi::ResponseOutparam) {
    let method = raw.method();
    let is_head = matches!(method, wasi::Method::Head);
    let mut response = match request_of(method, raw) {
        Ok(request) => handle(request).into_response(),
        Err(refusal) => refusal.into_response(),
    };
    if is_head {
        announce_only(&mut response);
    }
    if let Err(cause) = send(response, out) {
        eprintln!("response cut short: {cause}");
    }
}

fn request_of(method: wasi::Method, raw: wasi::IncomingRequest) -> Result<Request, (StatusCode, String)> {
    let bad = |what: &str| (StatusCode::BAD_REQUEST, format!("{what} cannot be understood\n"));

    let method = method_of(method).ok_or_else(|| bad("the method"))?;
    let path = raw.path_with_query().unwrap_or_else(|| "/".to_owned());
    let uri = Uri::try_from(path).map_err(|_| bad("the path"))?;

    let fields = raw.headers().entries();
    let mut headers = HeaderMap::try_with_capacity(fields.len()).map_err(|_| bad("so many headers"))?;
    for (name, value) in fields {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad("a header's name"))?;
        let value = HeaderValue::try_from(value).map_err(|_| bad("a header's value"))?;
        headers.try_append(name, value).map_err(|_| bad("so many headers"))?;
    }
    // Where a server keeps `host` apart from the headers, an app expects to find it among them all the same.
    if !headers.contains_key(http::header::HOST)
        && let Some(authority) = raw.authority()
        && let Ok(value) = HeaderValue::from_str(&authority)
    {
        headers.insert(http::header::HOST, value);
    }
    let mut request = Request::new(IncomingBody::of(raw));
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    Ok(request)
}

fn method_of(method: wasi::Method) -> Option<Method> {
    Some(match method {
        wasi::Method::Get => Method::GET,
        wasi::Method::Head => Method::HEAD,
        wasi::Method::Post => Method::POST,
        wasi::Method::Put => Method::PUT,
        wasi::Method::Delete => Method::DELETE,
        wasi::Method::Connect => Method::CONNECT,
        wasi::Method::Options => Method::OPTIONS,
        wasi::Method::Trace => Method::TRACE,
        wasi::Method::Patch => Method::PATCH,
        wasi::Method::Other(name) => Method::from_bytes(name.as_bytes()).ok()?,
    })
}

/// What a HEAD is answered with: the head of the same response, the length of its body included.
fn announce_only(response: &mut Response) {
    let body = std::mem::take(response.body_mut());
    if let Some(length) = body.len()
        && may_announce_length(response)
    {
        response.headers_mut().insert(http::header::CONTENT_LENGTH, length.into());
    }
}

fn send(mut response: Response, out: wasi::ResponseOutparam) -> Result<(), String> {
    let content = std::mem::take(response.body_mut());
    let length = content.len();
    if let Some(length) = length.filter(|length| *length > 0)
        && may_announce_length(&response)
    {
        response.headers_mut().insert(http::header::CONTENT_LENGTH, length.into());
    }
    let raw = match raw_response(&response) {
        Ok(raw) => raw,
        Err(cause) => {
            wasi::ResponseOutparam::set(out, Err(wasi::ErrorCode::InternalError(Some(cause.clone()))));
            return Err(cause);
        }
    };
    if length == Some(0) {
        // A body that is never asked for is empty, whatever length the head announces.
        wasi::ResponseOutparam::set(out, Ok(raw));
        return Ok(());
    }
    let body = raw.body().map_err(|()| "the response has no body".to_owned())?;
    wasi::ResponseOutparam::set(out, Ok(raw));

    // An unfinished body is dropped by the early return, which tells the host that the response is not whole.
    let stream = body.write().map_err(|()| "the body has no stream".to_owned())?;
    let mut writer = BodyWriter { stream: &stream, unflushed: false };
    content.write_to(&mut writer).map_err(|e| e.to_string())?;
    match writer.flush() {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error.to_string()),
        // With the last byte that the head has promised the host may close the stream: that is no failure.
        Ok(()) | Err(_) => {}
    }
    drop(stream);
    wasi::OutgoingBody::finish(body, None).map_err(|e| e.to_string())
}

fn raw_response(response: &Response) -> Result<wasi::OutgoingResponse, String> {
    let headers: Vec<_> = response.headers().iter().map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_owned())).collect();
    let fields = wasi::Fields::from_list(&headers).map_err(|e| {
        let alone = |header| wasi::Fields::from_list(std::slice::from_ref(header));
        let refused = headers.iter().find(|header| alone(header).is_err());
        refused.map_or_else(|| format!("the headers: {e}"), |(name, _)| format!("header {name}: {e}"))
    })?;
    let raw = wasi::OutgoingResponse::new(fields);
    // With 200 it begins.
    if response.status() != StatusCode::OK {
        raw.set_status_code(response.status().as_u16()).map_err(|()| format!("status {} was refused", response.status()))?;
    }
    Ok(raw)
}

/// An answer that never has a body must not announce one, and what the app has set stands.
fn may_announce_length(response: &Response) -> bool {
    let status = response.status();
    let bodiless = status.is_informational() || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let headers = response.headers();
    !bodiless && !headers.contains_key(http::header::CONTENT_LENGTH) && !headers.contains_key(http::header::TRANSFER_ENCODING)
}

/// What the host takes, flushes and waits for in a single call.
const SMALL_WRITE: usize = 4096;

/// Writes as much as the host takes at once, and waits when it takes none.
struct BodyWriter<'a> {
    stream: &'a OutputStream,
    unflushed: bool,
}

impl Write for BodyWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        if bytes.len() <= SMALL_WRITE {
            self.stream.blocking_write_and_flush(bytes).map_err(gone)?;
            self.unflushed = false;
            return Ok(bytes.len());
        }
        loop {
            let room = usize::try_from(self.stream.check_write().map_err(gone)?).unwrap_or(usize::MAX);
            if room > 0 {
                let length = bytes.len().min(room);
                self.stream.write(&bytes[..length]).map_err(gone)?;
                self.unflushed = true;
                return Ok(length);
            }
            self.stream.subscribe().block();
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.unflushed) { self.stream.blocking_flush().map_err(gone) } else { Ok(()) }
    }
}

fn gone(error: StreamError) -> io::Error {
    match error {
        StreamError::Closed => io::Error::new(io::ErrorKind::BrokenPipe, "the client has gone"),
        StreamError::LastOperationFailed(cause) => io::Error::other(cause.to_debug_string()),
    }
}
