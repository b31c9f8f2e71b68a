//! What `/varz` counts.

use std::sync::atomic::{AtomicU64, Ordering};

use http::StatusCode;

/// Counts since the start.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    requests: AtomicU64,
    in_flight: AtomicU64,
    bad_requests: AtomicU64,
    bad_gateways: AtomicU64,
    /// By the first digit of the status; those that were never answered are first.
    responses: [AtomicU64; 6],
    tunnels: AtomicU64,
}

impl Metrics {
    pub(crate) fn request_begins(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn request_ends(&self, status: Option<StatusCode>) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        let class = status.map_or(0, |status| usize::from(status.as_u16() / 100));
        if let Some(count) = self.responses.get(class) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A request that no route was found for, or that was refused.
    pub(crate) fn bad_request(&self) {
        self.bad_requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn bad_gateway(&self) {
        self.bad_gateways.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn tunnel(&self) {
        self.tunnels.fetch_add(1, Ordering::Relaxed);
    }

    /// Names and values, the names gorouter's where it has them.
    pub(crate) fn values(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let named = [
            ("requests", read(&self.requests)),
            ("requests_in_flight", read(&self.in_flight)),
            ("bad_requests", read(&self.bad_requests)),
            ("bad_gateways", read(&self.bad_gateways)),
            ("tunnels", read(&self.tunnels)),
        ];
        let classes = ["responses_xxx", "responses_1xx", "responses_2xx", "responses_3xx", "responses_4xx", "responses_5xx"];
        let responses: Vec<_> = classes.into_iter().zip(self.responses.iter().map(read)).collect();
        named.into_iter().chain(responses)
    }
}
