//! Where a route leads: the address of one instance and what is known about it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use dewar_protocol::{AppId, RouteRegistration};

use super::Refusal;
use crate::Mono;

/// The longest application id, instance id, index, tag name or tag value that a registration may carry.
pub const MAX_FIELD_LENGTH: usize = 256;

/// The most tags that a registration may carry.
pub const MAX_TAGS: usize = 32;

/// What a registration says about an address. Every text in it is short and printable, so that it may become a header or a cookie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointInfo {
    /// Identity of an endpoint.
    pub address: SocketAddr,
    /// Application id.
    pub app: Option<AppId>,
    /// `private_instance_id`: what the sticky-session cookie holds.
    pub instance_id: Option<String>,
    /// Instance index, as text.
    pub index: Option<String>,
    /// For the collector.
    pub tags: BTreeMap<String, String>,
}

impl EndpointInfo {
    pub(super) fn check(registration: &RouteRegistration) -> Result<Self, Refusal> {
        let address = address(&registration.host, registration.port)?;
        let app = printable("app", registration.app.as_ref().map(AppId::as_str))?.map(AppId::from);
        let instance_id = printable("private_instance_id", registration.private_instance_id.as_deref())?.map(str::to_owned);
        let index = printable("private_instance_index", registration.private_instance_index.as_deref())?.map(str::to_owned);
        let tags = registration.tags.clone();
        let too_long = |text: &String| text.len() > MAX_FIELD_LENGTH;
        if tags.len() > MAX_TAGS || tags.iter().any(|(name, value)| too_long(name) || too_long(value)) {
            return Err(Refusal::Tags);
        }
        Ok(Self { address, app, instance_id, index, tags })
    }

    /// Whether the address has changed hands: a port is given to another instance once the first one is gone, and no route of
    /// the first may lead to the second. A registration that does not say whose it is contradicts nothing.
    pub(super) fn contradicts(&self, earlier: &Self) -> bool {
        let differ = |a: Option<&str>, b: Option<&str>| matches!((a, b), (Some(a), Some(b)) if a != b);
        differ(self.instance_id.as_deref(), earlier.instance_id.as_deref())
            || differ(self.app.as_ref().map(AppId::as_str), earlier.app.as_ref().map(AppId::as_str))
    }
}

pub(super) fn address(host: &str, port: u16) -> Result<SocketAddr, Refusal> {
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    let ip: IpAddr = bare.parse().map_err(|_| Refusal::Address(host.chars().take(MAX_FIELD_LENGTH).collect(), port))?;
    if port == 0 || ip.is_unspecified() || ip.is_multicast() {
        return Err(Refusal::Address(host.to_owned(), port));
    }
    Ok(SocketAddr::new(ip, port))
}

/// Empty counts as absent: some registrars send empty strings for what they do not know.
fn printable<'a>(field: &'static str, text: Option<&'a str>) -> Result<Option<&'a str>, Refusal> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
    let allowed = |b: u8| b.is_ascii_graphic() && !matches!(b, b'"' | b',' | b';' | b'\\');
    if text.len() <= MAX_FIELD_LENGTH && text.bytes().all(allowed) { Ok(Some(text)) } else { Err(Refusal::Field(field)) }
}

/// One address, shared by every host that leads to it. `A` is what the edge keeps with it (its pool of connections).
///
/// The counters are atomic so that picking an endpoint needs no more than shared access to the table.
#[derive(Debug)]
pub struct Endpoint<A> {
    /// What its registration said.
    pub info: EndpointInfo,
    /// The edge's own.
    pub attachment: A,
    in_flight: AtomicUsize,
    /// Milliseconds of [`Mono`]; 0 means that it is not known to fail.
    failed_until: AtomicU64,
}

impl<A> Endpoint<A> {
    pub(super) fn new(info: EndpointInfo, attachment: A) -> Self {
        Self { info, attachment, in_flight: AtomicUsize::new(0), failed_until: AtomicU64::new(0) }
    }

    /// Requests that it is answering right now.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// It refused a connection: prefer others for `span`.
    pub fn mark_failed(&self, now: Mono, span: Duration) {
        self.failed_until.store(millis(now + span).max(1), Ordering::Relaxed);
    }

    /// It accepted a connection.
    pub fn mark_alive(&self) {
        // A plain load keeps the cache line shared while nothing fails.
        if self.failed_until.load(Ordering::Relaxed) != 0 {
            self.failed_until.store(0, Ordering::Relaxed);
        }
    }

    /// Whether it refused a connection a short while ago.
    #[must_use]
    pub fn is_failed(&self, now: Mono) -> bool {
        millis(now) < self.failed_until.load(Ordering::Relaxed)
    }
}

fn millis(at: Mono) -> u64 {
    u64::try_from(at.0.as_millis()).unwrap_or(u64::MAX)
}

/// The right to send one request to an endpoint; the endpoint counts it until it is dropped.
#[derive(Debug)]
pub struct Lease<A>(Arc<Endpoint<A>>);

impl<A> Lease<A> {
    /// `None` when the endpoint has `limit` requests in flight already.
    pub(super) fn take(endpoint: &Arc<Endpoint<A>>, limit: usize) -> Option<Self> {
        let more = |count: usize| (count < limit).then_some(count + 1);
        endpoint.in_flight.try_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Self(Arc::clone(endpoint)))
    }
}

impl<A> Deref for Lease<A> {
    type Target = Endpoint<A>;
    fn deref(&self) -> &Endpoint<A> {
        &self.0
    }
}

impl<A> Drop for Lease<A> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
