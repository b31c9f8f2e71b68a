//! The router's table: hosts, their endpoints, which to pick and when to forget.
//!
//! Registrations come from anyone on the bus, so each is checked and everything has a bound ([`RouteLimits`]). An endpoint is
//! an address; every host that leads to it shares one [`Endpoint`]. A host that was unregistered is unknown at once; a host whose
//! endpoints were all pruned stays known, without endpoints, for a while: its owner has not said that it is gone.
//!
//! [`RouteTable::pick`] takes `&self`: a request needs shared access only, and what it changes (turn, requests in flight, failures)
//! is atomic. Everything else takes `&mut self` and is rare.

mod endpoint;
mod host;
mod pool;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use dewar_protocol::RouteRegistration;

pub use endpoint::{Endpoint, EndpointInfo, Lease, MAX_FIELD_LENGTH, MAX_TAGS};
pub use host::{MAX_HOST_LENGTH, MAX_URI_LENGTH, RouteKey, UriRefused, request_host};

use crate::Mono;
use pool::{Member, Pool};

/// The most uris that one message may name.
pub const MAX_URIS: usize = 1000;

/// The bounds of a table and its spans of time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteLimits {
    /// A route that is not refreshed for this long is stale; a registration may ask for less, never for more.
    pub stale_after: Duration,
    /// How long a host stays known after its last endpoint was pruned.
    pub empty_pool_timeout: Duration,
    /// Pairs of host and endpoint; a registration beyond is refused.
    pub max_routes: usize,
    /// Endpoints of one host; a registration beyond is refused.
    pub max_endpoints_per_host: usize,
    /// Requests in flight at one endpoint; beyond, others are picked, and if all are full the request is refused.
    pub max_in_flight: usize,
    /// How the next endpoint is chosen.
    pub balancing: Balancing,
}

impl Default for RouteLimits {
    /// The spans of gorouter, and room for 100,000 routes.
    fn default() -> Self {
        Self {
            stale_after: Duration::from_secs(120),
            empty_pool_timeout: Duration::from_secs(120),
            max_routes: 100_000,
            max_endpoints_per_host: 4096,
            max_in_flight: usize::MAX,
            balancing: Balancing::RoundRobin,
        }
    }
}

/// How the next endpoint is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Balancing {
    /// Each in its turn.
    RoundRobin,
    /// The one with the fewest requests in flight; in turn among equals.
    LeastConnections,
}

/// What a request asks for besides its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish<'a> {
    /// Any endpoint.
    Any,
    /// The instance with this id while it exists, else any.
    Sticky(&'a str),
    /// This instance and no other.
    Instance {
        /// Application id.
        app: &'a str,
        /// Instance index.
        index: &'a str,
    },
}

/// The answer to "where does this request go?"
#[derive(Debug)]
pub enum Pick<A> {
    /// There.
    Endpoint(Lease<A>),
    /// No route has this host.
    UnknownHost,
    /// The host is known, the wished instance is not.
    UnknownInstance,
    /// The host is known, but all its endpoints were pruned.
    NoEndpoints,
    /// Every endpoint has as many requests in flight as it may.
    Overloaded,
    /// Every endpoint has been tried.
    Exhausted,
}

/// Why a registration, or a part of it, was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// `host` is no IP address that can be connected to, or the port is 0. Names are not looked up.
    #[error("host {0:?} and port {1} are no address of an instance")]
    Address(String, u16),
    /// Not printable ASCII, or too long.
    #[error("field {0} is longer than {MAX_FIELD_LENGTH} bytes or holds characters that cannot stand in a header")]
    Field(&'static str),
    /// Too many, or too long.
    #[error("more than {MAX_TAGS} tags, or a tag longer than {MAX_FIELD_LENGTH} bytes")]
    Tags,
    /// The whole message is refused.
    #[error("{0} uris in one message, more than {MAX_URIS}")]
    TooManyUris(usize),
    /// This uri is passed over.
    #[error(transparent)]
    Uri(#[from] UriRefused),
    /// The table has no room for the rest of the message.
    #[error("the table holds {0} routes already")]
    TableFull(usize),
    /// The host has no room for another endpoint.
    #[error("host {0} has {1} endpoints already")]
    HostFull(String, usize),
}

/// A registration (or its end) that has been checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    info: EndpointInfo,
    keys: Vec<RouteKey>,
    stale_after: Option<Duration>,
    /// The first of the uris that were passed over.
    pub passed_over: Option<UriRefused>,
}

impl Registration {
    /// Checks a message from the bus.
    ///
    /// # Errors
    /// When the message as a whole is unusable. A single bad uri is passed over, so that it does not take the good ones down.
    pub fn check(message: &RouteRegistration) -> Result<Self, Refusal> {
        if message.uris.len() > MAX_URIS {
            return Err(Refusal::TooManyUris(message.uris.len()));
        }
        let info = EndpointInfo::check(message)?;
        let mut keys = Vec::with_capacity(message.uris.len());
        let mut passed_over = None;
        for uri in &message.uris {
            match RouteKey::parse(uri) {
                Ok(key) => keys.push(key),
                Err(refused) => passed_over = passed_over.or(Some(refused)),
            }
        }
        let stale_after = message.stale_threshold_in_seconds.filter(|&s| s > 0).map(|s| Duration::from_secs(s.into()));
        Ok(Self { info, keys, stale_after, passed_over })
    }
}

/// Hosts and the endpoints they lead to. `A` is what the edge keeps with each endpoint.
#[derive(Debug)]
pub struct RouteTable<A> {
    limits: RouteLimits,
    pools: HashMap<RouteKey, Pool<A>>,
    /// The same pools' endpoints by address, with the routes that lead there.
    holdings: HashMap<SocketAddr, Holding<A>>,
    routes: usize,
    pruning: Pruning,
}

#[derive(Debug)]
struct Holding<A> {
    endpoint: Arc<Endpoint<A>>,
    keys: BTreeSet<RouteKey>,
}

/// Silence from a dead bus is no news about routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pruning {
    Suspended,
    Active,
}

impl<A> RouteTable<A> {
    /// An empty table that prunes nothing until [`bus_up`](Self::bus_up).
    #[must_use]
    pub fn new(limits: RouteLimits) -> Self {
        Self { limits, pools: HashMap::new(), holdings: HashMap::new(), routes: 0, pruning: Pruning::Suspended }
    }

    /// Takes or refreshes the routes of a registration. `attach` makes what the edge keeps with a new endpoint.
    ///
    /// # Errors
    /// When the table or a host is full; what came before in the message has been taken.
    pub fn register(&mut self, now: Mono, registration: Registration, attach: impl FnOnce(&EndpointInfo) -> A) -> Result<(), Refusal> {
        let Registration { info, keys, stale_after, .. } = registration;
        if keys.is_empty() {
            return Ok(());
        }
        let address = info.address;
        let stale_after = stale_after.map_or(self.limits.stale_after, |asked| asked.min(self.limits.stale_after));
        let endpoint = self.endpoint(info, attach);
        let mut outcome = Ok(());
        for key in keys {
            outcome = self.lead(now, key, &endpoint, stale_after);
            if outcome.is_err() {
                break;
            }
        }
        if self.holdings.get(&address).is_some_and(|holding| holding.keys.is_empty()) {
            self.holdings.remove(&address);
        }
        outcome
    }

    /// The endpoint at an address, made or brought up to date.
    fn endpoint(&mut self, info: EndpointInfo, attach: impl FnOnce(&EndpointInfo) -> A) -> Arc<Endpoint<A>> {
        let address = info.address;
        let known = self.holdings.get(&address).map(|holding| Arc::clone(&holding.endpoint));
        if let Some(known) = known {
            if known.info == info {
                return known;
            }
            if info.contradicts(&known.info) {
                self.forget(address);
            }
        }
        let attachment = attach(&info);
        let endpoint = Arc::new(Endpoint::new(info, attachment));
        let holding = self.holdings.entry(address).or_insert_with(|| Holding { endpoint: Arc::clone(&endpoint), keys: BTreeSet::new() });
        holding.endpoint = Arc::clone(&endpoint);
        for key in &holding.keys {
            if let Some(member) = self.pools.get_mut(key).and_then(|pool| pool.member_mut(address)) {
                member.endpoint = Arc::clone(&endpoint);
            }
        }
        endpoint
    }

    fn lead(&mut self, now: Mono, key: RouteKey, endpoint: &Arc<Endpoint<A>>, stale_after: Duration) -> Result<(), Refusal> {
        let address = endpoint.info.address;
        if let Some(pool) = self.pools.get_mut(&key) {
            if let Some(member) = pool.member_mut(address) {
                member.refreshed = now;
                member.stale_after = stale_after;
                return Ok(());
            }
            if pool.members.len() >= self.limits.max_endpoints_per_host {
                return Err(Refusal::HostFull(key.to_string(), pool.members.len()));
            }
        }
        if self.routes >= self.limits.max_routes {
            return Err(Refusal::TableFull(self.routes));
        }
        let pool = self.pools.entry(key.clone()).or_default();
        pool.members.push(Member { address, endpoint: Arc::clone(endpoint), refreshed: now, stale_after });
        pool.empty_since = None;
        self.routes += 1;
        if let Some(holding) = self.holdings.get_mut(&address) {
            holding.keys.insert(key);
        }
        Ok(())
    }

    /// Ends these routes to this address; a host that loses its last endpoint is unknown from now on. What is not there is ignored.
    pub fn unregister(&mut self, registration: &Registration) {
        for key in &registration.keys {
            self.cut(key, registration.info.address);
        }
    }

    fn cut(&mut self, key: &RouteKey, address: SocketAddr) {
        let Some(pool) = self.pools.get_mut(key) else { return };
        if !pool.remove(address) {
            return;
        }
        self.routes -= 1;
        if pool.members.is_empty() {
            self.pools.remove(key);
        }
        self.drop_key(key, address);
    }

    fn drop_key(&mut self, key: &RouteKey, address: SocketAddr) {
        if let Some(holding) = self.holdings.get_mut(&address) {
            holding.keys.remove(key);
            if holding.keys.is_empty() {
                self.holdings.remove(&address);
            }
        }
    }

    fn forget(&mut self, address: SocketAddr) {
        let keys = self.holdings.get(&address).map(|holding| holding.keys.clone()).unwrap_or_default();
        for key in keys {
            self.cut(&key, address);
        }
    }

    /// The bus is gone: nothing is pruned until it is back.
    pub fn bus_down(&mut self) {
        self.pruning = Pruning::Suspended;
    }

    /// The bus is back: every route counts as refreshed now, so that each agent has a full threshold to register again.
    pub fn bus_up(&mut self, now: Mono) {
        for pool in self.pools.values_mut() {
            for member in &mut pool.members {
                member.refreshed = now;
            }
        }
        self.pruning = Pruning::Active;
    }

    /// Drops what is stale and forgets hosts that have been empty for long. Returns how many routes it dropped.
    ///
    /// It walks the whole table, which is why the edge calls it every half minute and not more often.
    pub fn prune(&mut self, now: Mono) -> usize {
        if self.pruning == Pruning::Suspended {
            return 0;
        }
        let mut stale = Vec::new();
        let timeout = self.limits.empty_pool_timeout;
        self.pools.retain(|key, pool| {
            let before = stale.len();
            pool.members.retain(|member| {
                let fresh = now - member.refreshed <= member.stale_after;
                if !fresh {
                    stale.push((key.clone(), member.address));
                }
                fresh
            });
            if pool.members.is_empty() && stale.len() > before {
                pool.empty_since = Some(now);
            }
            !is_forgotten(pool, now, timeout)
        });
        self.routes -= stale.len();
        for (key, address) in &stale {
            self.drop_key(key, *address);
        }
        stale.len()
    }

    /// Where a request goes. `host` is in the form of [`request_host`]; `tried` are the addresses that have failed this request.
    #[must_use]
    pub fn pick(&self, now: Mono, host: &str, wish: Wish<'_>, tried: &[SocketAddr]) -> Pick<A> {
        match self.pool(now, host) {
            Some(pool) => pool.pick(now, wish, tried, self.limits.balancing, self.limits.max_in_flight),
            None => Pick::UnknownHost,
        }
    }

    /// The pool of the host itself, else of the closest wildcard above it.
    fn pool(&self, now: Mono, host: &str) -> Option<&Pool<A>> {
        let known = |pool: &&Pool<A>| !is_forgotten(pool, now, self.limits.empty_pool_timeout);
        host::lookups(host).find_map(|key| self.pools.get(key).filter(known))
    }

    /// Pairs of host and endpoint.
    #[must_use]
    pub fn route_count(&self) -> usize {
        self.routes
    }

    /// Hosts and wildcards, those without endpoints included.
    #[must_use]
    pub fn host_count(&self) -> usize {
        self.pools.len()
    }

    /// Distinct addresses.
    #[must_use]
    pub fn endpoint_count(&self) -> usize {
        self.holdings.len()
    }

    /// Every route, in no particular order, with how long ago it was refreshed and when it would be stale.
    pub fn routes(&self, now: Mono) -> impl Iterator<Item = (&RouteKey, &Endpoint<A>, RouteAge)> {
        self.pools.iter().flat_map(move |(key, pool)| {
            let age = move |member: &Member<A>| RouteAge { refreshed_ago: now - member.refreshed, stale_after: member.stale_after };
            pool.members.iter().map(move |member| (key, &*member.endpoint, age(member)))
        })
    }
}

/// How fresh a route is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteAge {
    /// Since the last registration.
    pub refreshed_ago: Duration,
    /// The age at which it is pruned.
    pub stale_after: Duration,
}

fn is_forgotten<A>(pool: &Pool<A>, now: Mono, timeout: Duration) -> bool {
    pool.members.is_empty() && pool.empty_since.is_none_or(|since| now - since >= timeout)
}
