//! The route table as requests and registrations share it.
//!
//! It stands behind a `RwLock` of the standard library: a request holds it shared for one hash lookup and the choice of an endpoint
//! (well under a microsecond, nothing is awaited), a registration holds it alone for about as long, and there are a few hundred of
//! those a second even with ten thousand instances. A table that is copied for each change would cost far more to write than this costs to read.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use dewar_core::Mono;
use dewar_core::routes::{Pick, Refusal, Registration, RouteLimits, RouteTable, Wish};

use crate::upstream::Upstream;

#[derive(Debug)]
pub(crate) struct Table {
    routes: RwLock<RouteTable<Upstream>>,
    started: Instant,
    /// Milliseconds after `started`.
    last_update: AtomicU64,
}

impl Table {
    pub(crate) fn new(limits: RouteLimits) -> Self {
        Self { routes: RwLock::new(RouteTable::new(limits)), started: Instant::now(), last_update: AtomicU64::new(0) }
    }

    pub(crate) fn now(&self) -> Mono {
        Mono(self.started.elapsed())
    }

    // The table stays whole whatever panics: a change to it is never left half done by anything that could.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, RouteTable<Upstream>> {
        self.routes.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, RouteTable<Upstream>> {
        self.routes.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn pick(&self, host: &str, wish: Wish<'_>, tried: &[SocketAddr]) -> Pick<Upstream> {
        let now = self.now();
        self.read().pick(now, host, wish, tried)
    }

    pub(crate) fn register(&self, registration: Registration) -> Result<(), Refusal> {
        let now = self.now();
        self.last_update.store(millis(now.0), Ordering::Relaxed);
        self.write().register(now, registration, Upstream::new)
    }

    pub(crate) fn unregister(&self, registration: &Registration) {
        self.last_update.store(millis(self.now().0), Ordering::Relaxed);
        self.write().unregister(registration);
    }

    pub(crate) fn bus_up(&self) {
        let now = self.now();
        self.write().bus_up(now);
    }

    pub(crate) fn bus_down(&self) {
        self.write().bus_down();
    }

    /// Drops stale routes, and connections that nobody has used for `idle_timeout`.
    pub(crate) fn prune(&self, idle_timeout: Duration) -> usize {
        let now = self.now();
        let pruned = self.write().prune(now);
        for (_, endpoint, _) in self.read().routes(now) {
            endpoint.attachment.close_idle(idle_timeout);
        }
        pruned
    }

    pub(crate) fn since_last_update(&self) -> Duration {
        self.now().0.saturating_sub(Duration::from_millis(self.last_update.load(Ordering::Relaxed)))
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
