//! What a proxy changes about the heads of messages on their way through.

use std::borrow::Cow;
use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE,
    TRANSFER_ENCODING, UPGRADE,
};
use http::{Method, Request, StatusCode, Version};
use hyper::body::{Body, Incoming};

use crate::config::ForwardedProto;
use crate::refusal::Refusal;
use crate::upstream::Upstream;

pub(crate) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(crate) const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub(crate) const X_VCAP_REQUEST_ID: HeaderName = HeaderName::from_static("x-vcap-request-id");
pub(crate) const X_CF_ROUTER_ERROR: HeaderName = HeaderName::from_static("x-cf-routererror");
pub(crate) const X_CF_APP_INSTANCE: HeaderName = HeaderName::from_static("x-cf-app-instance");
const X_REQUEST_START: HeaderName = HeaderName::from_static("x-request-start");
const X_CF_APPLICATION_ID: HeaderName = HeaderName::from_static("x-cf-applicationid");
const X_CF_INSTANCE_ID: HeaderName = HeaderName::from_static("x-cf-instanceid");
const X_CF_INSTANCE_INDEX: HeaderName = HeaderName::from_static("x-cf-instanceindex");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

const HOP_BY_HOP: [HeaderName; 9] =
    [CONNECTION, KEEP_ALIVE, PROXY_CONNECTION, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE, HTTP2_SETTINGS];

/// The host that a request is for, in the form of the route table.
///
/// # Errors
/// When the request is one that a router must not pass on. What hyper makes of ambiguous lengths is safe already: it refuses
/// differing `Content-Length`s, and where `Transfer-Encoding` comes with a `Content-Length` it drops the latter and the
/// connection after the response.
pub(crate) fn check_request(request: &Request<Incoming>) -> Result<Cow<'_, str>, Refusal> {
    if request.method() == Method::CONNECT {
        return Err(Refusal::BadRequest("CONNECT is not supported"));
    }
    // `GET http://other/` names a host twice, and instances do not agree which one counts.
    if request.uri().scheme().is_some() || request.uri().authority().is_some() {
        return Err(Refusal::BadRequest("The request target must be a path"));
    }
    let mut encodings = request.headers().get_all(TRANSFER_ENCODING).iter();
    if let Some(encoding) = encodings.next()
        && (!encoding.as_bytes().eq_ignore_ascii_case(b"chunked") || encodings.next().is_some())
    {
        return Err(Refusal::UnsupportedEncoding);
    }
    let mut hosts = request.headers().get_all(HOST).iter();
    let host = hosts.next().filter(|host| !host.is_empty()).ok_or(Refusal::EmptyHost)?;
    if hosts.next().is_some() {
        return Err(Refusal::BadRequest("Request had more than one Host header"));
    }
    let text = host.to_str().map_err(|_| Refusal::BadRequest("Request had an invalid Host header"))?;
    dewar_core::routes::request_host(text).ok_or(Refusal::BadRequest("Request had an invalid Host header"))
}

/// The protocol that a request asks to switch to. Switching to HTTP/2 is not offered: what would be said in it is out of our sight.
pub(crate) fn wanted_upgrade(request: &Request<Incoming>) -> Option<HeaderValue> {
    let mut protocols = request.headers().get_all(UPGRADE).iter();
    let protocol = protocols.next()?;
    let asked = request.version() == Version::HTTP_11
        && protocols.next().is_none()
        && request.body().is_end_stream()
        && connection_tokens(request.headers()).any(|token| token.eq_ignore_ascii_case(b"upgrade"))
        && !protocol.as_bytes().windows(3).any(|part| part.eq_ignore_ascii_case(b"h2c"));
    asked.then(|| protocol.clone())
}

/// What of a request depends on its client and on us.
#[derive(Debug)]
pub(crate) struct Forwarding<'a> {
    pub(crate) client: IpAddr,
    pub(crate) proto: ForwardedProto,
    pub(crate) request_id: HeaderValue,
    pub(crate) upgrade: Option<&'a HeaderValue>,
}

/// Makes a client's headers those that an instance sees, save for what names the instance.
pub(crate) fn forward_request(headers: &mut HeaderMap, forwarding: Forwarding<'_>) {
    let chunked = headers.contains_key(TRANSFER_ENCODING);
    let trailers = headers.get_all(TE).iter().any(|value| value.as_bytes().eq_ignore_ascii_case(b"trailers"));
    remove_hop_by_hop(headers);
    if chunked {
        // Said outright, because hyper would take a GET without a length for one without a body.
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    // It was for us: asking for the body sends the 100.
    headers.remove(EXPECT);
    if let Some(protocol) = forwarding.upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, protocol.clone());
    }
    append_forwarded_for(headers, forwarding.client);
    match forwarding.proto {
        ForwardedProto::Keep if headers.contains_key(X_FORWARDED_PROTO) => {}
        ForwardedProto::Keep | ForwardedProto::Sanitize => {
            headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("http"));
        }
        ForwardedProto::ForceHttps => {
            headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("https"));
        }
    }
    if !headers.contains_key(X_REQUEST_START) {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        headers.insert(X_REQUEST_START, HeaderValue::from(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)));
    }
    headers.insert(X_VCAP_REQUEST_ID, forwarding.request_id);
}

/// Tells an instance who it is. A client's claims about that never pass.
pub(crate) fn name_instance(headers: &mut HeaderMap, upstream: &Upstream) {
    for (name, value) in
        [(X_CF_APPLICATION_ID, &upstream.app), (X_CF_INSTANCE_ID, &upstream.instance_id), (X_CF_INSTANCE_INDEX, &upstream.index)]
    {
        match value {
            Some(value) => {
                headers.insert(name, value.clone());
            }
            None => {
                headers.remove(name);
            }
        }
    }
}

/// Whether a response to this method with this status ends with its head, whatever the head says.
pub(crate) fn is_bodiless(method: &Method, status: StatusCode) -> bool {
    method == Method::HEAD || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

/// Whether a response's head, as the instance sent it, speaks of a body that is not empty.
pub(crate) fn announces_body(headers: &HeaderMap) -> bool {
    headers.contains_key(TRANSFER_ENCODING) || headers.get(CONTENT_LENGTH).is_some_and(|length| length != "0")
}

/// Makes an instance's headers those that a client sees.
///
/// The length is left to hyper, which knows what it has decoded; a HEAD response alone keeps the length that it announces.
///
/// # Errors
/// When the body is in an encoding that we would have to undo.
pub(crate) fn forward_response(headers: &mut HeaderMap, method: &Method, request_id: HeaderValue) -> Result<(), Refusal> {
    let mut encodings = headers.get_all(TRANSFER_ENCODING).iter();
    let chunked = match encodings.next() {
        None => false,
        Some(encoding) if encoding.as_bytes().eq_ignore_ascii_case(b"chunked") && encodings.next().is_none() => true,
        Some(_) => return Err(Refusal::EndpointFailure),
    };
    remove_hop_by_hop(headers);
    let length = headers.remove(CONTENT_LENGTH);
    if let (Some(length), &Method::HEAD, false) = (length, method, chunked)
        && !length.is_empty()
        && length.as_bytes().iter().all(u8::is_ascii_digit)
    {
        headers.insert(CONTENT_LENGTH, length);
    }
    headers.insert(X_VCAP_REQUEST_ID, request_id);
    Ok(())
}

fn append_forwarded_for(headers: &mut HeaderMap, client: IpAddr) {
    let mut list = String::new();
    for earlier in headers.get_all(X_FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok()) {
        list.push_str(earlier);
        list.push_str(", ");
    }
    list.push_str(&client.to_string());
    if let Ok(value) = HeaderValue::try_from(list) {
        headers.insert(X_FORWARDED_FOR, value);
    }
}

fn connection_tokens(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    headers.get_all(CONNECTION).iter().flat_map(|value| value.as_bytes().split(|&b| b == b',').map(<[u8]>::trim_ascii))
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let mut named: Vec<HeaderName> = Vec::new();
    for token in connection_tokens(headers) {
        let usual = token.is_empty() || token.eq_ignore_ascii_case(b"keep-alive") || token.eq_ignore_ascii_case(b"close");
        if !usual && let Ok(name) = HeaderName::from_bytes(token) {
            named.push(name);
        }
    }
    for name in named {
        // These say where a message goes and where it ends. No client may talk us out of them.
        if name != HOST && name != CONTENT_LENGTH {
            headers.remove(name);
        }
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}
