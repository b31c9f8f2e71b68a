//! How fast an instance may use the network, so that none scans ports, floods others or keeps the host's resolver to itself.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

/// Connections that an instance may try to open in a second for as long as it likes, by sockets and for requests together, and at
/// once. One more is refused.
const CONNECTIONS_PER_SECOND: f64 = 50.0;
const CONNECTIONS_AT_ONCE: f64 = 200.0;
/// Datagrams it may send, likewise.
const DATAGRAMS_PER_SECOND: f64 = 2_000.0;
const DATAGRAMS_AT_ONCE: f64 = 4_000.0;
/// Names it may look up that are not known already, likewise.
const LOOKUPS_PER_SECOND: f64 = 20.0;
const LOOKUPS_AT_ONCE: f64 = 60.0;
/// Look-ups under way; one more waits for its turn.
const CONCURRENT_LOOKUPS: usize = 8;
/// Requests under way; one more is refused.
const CONCURRENT_REQUESTS: usize = 64;

/// What an instance has left of the network.
pub(crate) struct Allowance {
    pub(crate) connections: Bucket,
    pub(crate) datagrams: Bucket,
    pub(crate) lookups: Bucket,
    pub(crate) concurrent_lookups: Arc<Semaphore>,
    pub(crate) concurrent_requests: Arc<Semaphore>,
}

impl Default for Allowance {
    fn default() -> Self {
        Self {
            connections: Bucket::new(CONNECTIONS_PER_SECOND, CONNECTIONS_AT_ONCE),
            datagrams: Bucket::new(DATAGRAMS_PER_SECOND, DATAGRAMS_AT_ONCE),
            lookups: Bucket::new(LOOKUPS_PER_SECOND, LOOKUPS_AT_ONCE),
            concurrent_lookups: Arc::new(Semaphore::new(CONCURRENT_LOOKUPS)),
            concurrent_requests: Arc::new(Semaphore::new(CONCURRENT_REQUESTS)),
        }
    }
}

/// A token bucket.
pub(crate) struct Bucket {
    per_second: f64,
    at_once: f64,
    level: Mutex<Level>,
}

struct Level {
    tokens: f64,
    since: Instant,
}

impl Bucket {
    fn new(per_second: f64, at_once: f64) -> Self {
        Self { per_second, at_once, level: Mutex::new(Level { tokens: at_once, since: Instant::now() }) }
    }

    /// Takes one, unless there is none.
    pub(crate) fn take(&self) -> bool {
        self.take_at(Instant::now())
    }

    fn take_at(&self, now: Instant) -> bool {
        let mut level = self.level.lock().unwrap_or_else(PoisonError::into_inner);
        // An hour fills any bucket.
        let passed = now.saturating_duration_since(level.since).min(Duration::from_secs(3600)).as_secs_f64();
        level.since = now.max(level.since);
        level.tokens = (level.tokens + passed * self.per_second).min(self.at_once);
        if level.tokens < 1.0 {
            return false;
        }
        level.tokens -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_so_many_at_once_and_then_so_many_a_second() {
        let bucket = Bucket::new(2.0, 3.0);
        let start = Instant::now();
        let taken = |seconds: f64| (0..10).filter(|_| bucket.take_at(start + Duration::from_secs_f64(seconds))).count();
        assert_eq!((taken(0.1), taken(0.2), taken(1.2), taken(0.0), taken(100.0)), (3, 0, 2, 0, 3));
    }
}
