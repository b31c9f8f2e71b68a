//! The stores of an http instance, made when needed and used again, by several requests at a time where the guest can ([`Service`]).
//!
//! All of them live within the instance's memory budget. A store that lies idle is dropped when another needs its memory, or
//! when it has not been used for [`IDLE`]. The last one stays for longer ([`HttpLimits::store_idle_timeout`]), and where start-up code
//! takes its time for good, unless another instance finds no place for a store ([`Crowd`]).
//!
//! Where each request is to have a store of its own ([`Instances::Fresh`]), up to [`PREPARED`] are made ahead, and those that have
//! answered are dropped, off the way of requests.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use wasmtime::{Engine, Error, PoolConcurrencyLimitError, Store};
use wasmtime_wasi_http::handler::{Proxy, ProxyPre};
use wasmtime_wasi_http::p2::bindings::http::types::Scheme;
use wasmtime_wasi_http::{WasiBody, WasiHttpView, p2};

use crate::alarm::TRAP_GRACE;
use crate::answer::Answering;
use crate::core_dump::CoreDumps;
use crate::cpu::CpuAccount;
use crate::crowd::{Crowd, Idle};
use crate::guest::{Blueprint, Guest};
use crate::limits::{Reclaim, Refused};
use crate::service::{Seat, Service};
use crate::{HttpLimits, Instances, engine, service};

/// How long a store may lie idle.
const IDLE: Duration = Duration::from_secs(30);

/// How many stores wait for requests that each need a fresh one, and how many that are used up wait for their end.
const PREPARED: usize = 16;

/// Makes stores, keeps those that are idle.
pub(crate) struct Pool {
    pre: Arc<ProxyPre<Guest>>,
    blueprint: Blueprint,
    core_dumps: Arc<CoreDumps>,
    cpu: Arc<CpuAccount>,
    startup_timeout: Duration,
    requests_per_store: u32,
    /// Whether a store takes more than one request at a time.
    shares: bool,
    last_idle: Duration,
    /// Whether the last store may go, since another is made quickly.
    starts_quickly: AtomicBool,
    live: Arc<AtomicUsize>,
    idle: Mutex<Vec<Worker>>,
    /// Those that take requests while they are at work on others.
    services: Mutex<Vec<Arc<Service>>>,
    /// Used up, to be dropped by [`Self::prepare`].
    spent: Mutex<Vec<Worker>>,
    instances: Instances,
    /// What the last store was charged when it was made, a call included.
    store_bytes: AtomicU64,
    /// There is something for [`Self::prepare`] to do.
    taken: Notify,
    /// Somebody gave a store back, or dropped one.
    released: Arc<Notify>,
    /// With whom the engine's places are shared.
    crowd: Arc<Crowd>,
}

/// Where a request is answered.
pub(crate) enum Place {
    /// In a store of which it is the first request.
    Store(Worker),
    /// Beside others.
    Seat(Seat),
}

/// Why there is no store.
pub(crate) enum NoStore {
    /// The start-up code failed; how, and whether memory had been refused.
    Failed(Arc<Error>, Option<Refused>),
    /// The start-up code waits for something.
    Waits(Duration),
}

impl Pool {
    pub(crate) fn new(
        pre: Arc<ProxyPre<Guest>>,
        blueprint: Blueprint,
        core_dumps: Arc<CoreDumps>,
        cpu: Arc<CpuAccount>,
        limits: &HttpLimits,
        crowd: Arc<Crowd>,
    ) -> Arc<Self> {
        let pool = Arc::new(Self {
            shares: limits.instances == Instances::Reuse && limits.concurrent_requests_per_store > 1 && matches!(*pre, ProxyPre::P3(_)),
            last_idle: limits.store_idle_timeout,
            starts_quickly: AtomicBool::new(false),
            pre,
            blueprint,
            core_dumps,
            cpu,
            startup_timeout: limits.startup_timeout,
            requests_per_store: if limits.instances == Instances::Fresh { 1 } else { limits.requests_per_store },
            instances: limits.instances,
            spent: Mutex::new(Vec::new()),
            store_bytes: AtomicU64::new(0),
            taken: Notify::new(),
            live: Arc::default(),
            idle: Mutex::new(Vec::new()),
            services: Mutex::new(Vec::new()),
            released: Arc::default(),
            crowd,
        });
        let idle: Weak<dyn Reclaim> = Arc::downgrade(&(pool.clone() as Arc<dyn Reclaim>));
        pool.blueprint.memory.reclaim_from(idle);
        let idle: Weak<dyn Idle> = Arc::downgrade(&(pool.clone() as Arc<dyn Idle>));
        pool.crowd.join(idle);
        pool
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Worker>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spent(&self) -> MutexGuard<'_, Vec<Worker>> {
        self.spent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn services(&self) -> MutexGuard<'_, Vec<Arc<Service>>> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place beside others, an idle store, or a new one. Waits for one of them when there is no memory for another store.
    pub(crate) async fn take(&self) -> Result<Place, NoStore> {
        self.find(|| self.join().map(Place::Seat).or_else(|| self.take_idle().map(Place::Store)), Place::Store).await
    }

    /// A store for nobody else, idle or new. Waits as well.
    pub(crate) async fn take_store(&self) -> Result<Worker, NoStore> {
        self.find(|| self.take_idle(), |worker| worker).await
    }

    async fn find<P>(&self, at_hand: impl Fn() -> Option<P>, new: impl FnOnce(Worker) -> P) -> Result<P, NoStore> {
        if let Some(place) = at_hand() {
            return Ok(place);
        }
        loop {
            let mut released = pin!(self.released.notified());
            // Before looking, so that what is given back meanwhile is not missed.
            released.as_mut().enable();
            if let Some(place) = at_hand() {
                return Ok(place);
            }
            match self.make().await {
                Err(NoStore::Failed(error, None)) if error.is::<PoolConcurrencyLimitError>() && self.crowd.make_room(self.engine()) => {}
                Err(NoStore::Failed(error, refused)) if refused.is_some() || error.is::<PoolConcurrencyLimitError>() => {
                    if self.live.load(Ordering::Relaxed) == 0 {
                        return Err(NoStore::Failed(error, refused));
                    }
                    released.await;
                }
                made => return made.map(new),
            }
        }
    }

    /// A place beside others.
    fn join(&self) -> Option<Seat> {
        if !self.shares {
            return None;
        }
        self.services().iter().find_map(|service| service.join(&self.blueprint.memory))
    }

    /// Whether a store takes more than one request at a time.
    pub(crate) fn shares(&self) -> bool {
        self.shares
    }

    /// A store that is at work takes requests.
    pub(crate) fn began(&self, service: Arc<Service>) {
        self.services().push(service);
    }

    /// It does so no more.
    pub(crate) fn over(&self, service: &Arc<Service>) {
        self.services().retain(|other| !Arc::ptr_eq(other, service));
    }

    /// What tells those who wait that there may be a place.
    pub(crate) fn released(&self) -> Arc<Notify> {
        self.released.clone()
    }

    fn take_idle(&self) -> Option<Worker> {
        let mut worker = self.idle().pop()?;
        if self.instances == Instances::Fresh {
            self.taken.notify_one();
        }
        // One that has grown until there is no memory for a call into it makes way for a new one.
        worker.store.data_mut().memory().begin_call().ok()?;
        Some(worker)
    }

    async fn make(&self) -> Result<Worker, NoStore> {
        // It counts while it is made: its memory is not there for others, who are to wait and not to give up.
        let live = Live::new(&self.live, &self.released);
        let started = self.start().await;
        match started {
            Ok((store, proxy)) => Ok(Worker { store, proxy, served: 0, idle_since: Instant::now(), _live: live }),
            Err(cause) => {
                live.never_was();
                Err(cause)
            }
        }
    }

    async fn start(&self) -> Result<(Store<Guest>, Proxy), NoStore> {
        let refused = |error: Error| {
            let refused = error.downcast_ref::<Refused>().copied();
            NoStore::Failed(error.into(), refused)
        };
        let mut store = self.blueprint.store(self.engine()).map_err(refused)?;
        store.data_mut().memory().begin_call().map_err(|error| refused(error.into()))?;
        store.data().alarm().set(Instant::now() + self.startup_timeout);
        let pre = self.pre.clone();
        let starting = self.cpu.schedule(async move {
            let started = pre.instantiate_async(&mut store).await;
            (store, started)
        });
        match tokio::time::timeout(self.startup_timeout + TRAP_GRACE, starting).await {
            Ok((mut store, Ok(proxy))) => {
                self.store_bytes.store(store.data_mut().memory().charged(), Ordering::Relaxed);
                Ok((store, proxy))
            }
            Ok((mut store, Err(error))) => {
                let (error, refused) = (Arc::new(error), store.data_mut().take_refused_memory());
                // Where there is no memory it may be tried again.
                if refused.is_none() && self.core_dumps.is_due(&error) {
                    self.core_dumps.clone().make(store, error.clone()).await;
                }
                Err(NoStore::Failed(error, refused))
            }
            Err(_) => Err(NoStore::Waits(self.startup_timeout)),
        }
    }

    /// Gives a store back that has answered what it was given.
    pub(crate) fn give_back(&self, mut worker: Worker) {
        // What was refused to this request is no excuse for the next.
        worker.store.data_mut().take_refused_memory();
        worker.store.data_mut().memory().end_call();
        // A guest that has left more with the host than there is room for gets a fresh store.
        if worker.served < self.requests_per_store {
            if worker.store.data_mut().settle_held().is_ok() {
                self.keep(worker);
            }
        } else if self.instances == Instances::Fresh {
            self.discard(worker);
        }
    }

    /// Drops a store later, when nobody waits for it.
    fn discard(&self, worker: Worker) {
        let mut spent = self.spent();
        if spent.len() < PREPARED {
            spent.push(worker);
            self.taken.notify_one();
        }
    }

    /// Makes stores ahead and drops those that are used up.
    pub(crate) async fn prepare(&self) -> Infallible {
        loop {
            self.taken.notified().await;
            loop {
                let used_up = self.spent().pop();
                let was_spent = used_up.is_some();
                drop(used_up);
                if self.may_prepare() {
                    // Why it cannot be made the next request finds out for itself.
                    let Ok(worker) = self.make().await else { break };
                    self.keep(worker);
                } else if !was_spent {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
    }

    /// Whether there is room for a store that nobody has asked for: requests that grow come first, and so do other instances.
    fn may_prepare(&self) -> bool {
        let room = self.blueprint.memory.room();
        self.idle().len() < PREPARED && room / 2 > self.store_bytes.load(Ordering::Relaxed) && engine::has_room(self.engine())
    }

    fn engine(&self) -> &Engine {
        match &*self.pre {
            ProxyPre::P2(pre) => pre.engine(),
            ProxyPre::P3(pre) => pre.engine(),
        }
    }

    /// Keeps a store for later.
    pub(crate) fn keep(&self, mut worker: Worker) {
        worker.idle_since = Instant::now();
        worker.store.data_mut().memory().end_call();
        self.idle().push(worker);
        self.released.notify_one();
    }

    /// Notes that start-up code takes next to no time.
    pub(crate) fn starts_quickly(&self) {
        self.starts_quickly.store(true, Ordering::Relaxed);
    }

    /// Drops stores that have lain idle for long.
    pub(crate) fn trim(&self) {
        let mut expired = Vec::new();
        let mut idle = self.idle();
        // The one used last is at the end.
        while let Some(oldest) = idle.first() {
            let patience = match idle.len() {
                1 if !self.starts_quickly.load(Ordering::Relaxed) => break,
                1 => self.last_idle,
                _ => self.last_idle.min(IDLE),
            };
            if oldest.idle_since.elapsed() <= patience {
                break;
            }
            expired.push(idle.remove(0));
        }
        drop(idle);
    }
}

impl Reclaim for Pool {
    fn reclaim(&self) -> bool {
        let spent = self.spent().pop();
        if spent.is_some() {
            return true;
        }
        let mut idle = self.idle();
        let oldest = if idle.is_empty() { None } else { Some(idle.remove(0)) };
        drop(idle);
        oldest.is_some()
    }
}

impl Idle for Pool {
    fn is_in(&self, engine: &Engine) -> bool {
        Engine::same(self.engine(), engine)
    }

    fn idle_since(&self) -> Option<Instant> {
        self.idle().first().map(|worker| worker.idle_since)
    }

    fn give_way(&self) -> bool {
        self.reclaim()
    }
}

/// Counts a store for as long as it lives.
struct Live {
    count: Arc<AtomicUsize>,
    released: Option<Arc<Notify>>,
}

impl Live {
    fn new(count: &Arc<AtomicUsize>, released: &Arc<Notify>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self { count: count.clone(), released: Some(released.clone()) }
    }

    /// Ends without telling those who wait: there is nothing for them, and one of them may be the very one that tried.
    fn never_was(mut self) {
        self.released = None;
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
        if let Some(released) = &self.released {
            released.notify_one();
        }
    }
}

/// A store, and what calls go into.
pub(crate) struct Worker {
    pub(crate) store: Store<Guest>,
    pub(crate) proxy: Proxy,
    /// How many requests it has been given.
    pub(crate) served: u32,
    idle_since: Instant,
    /// Last, so that the memory is free when those who wait for it hear of it.
    _live: Live,
}

impl Worker {
    /// Has the guest answer a request. Ends when the guest is done with it, which may be long after the answer began.
    pub(crate) async fn call(&mut self, request: http::Request<WasiBody>, answering: Answering) -> Result<(), Error> {
        self.served += 1;
        match &self.proxy {
            Proxy::P2(proxy) => call_p2(&mut self.store, proxy, request, answering).await,
            Proxy::P3(guest) => service::call::alone(&mut self.store, guest, request, answering).await,
        }
    }

    /// Has a core dump made of a store whose call ended in this error.
    pub(crate) async fn dump(self, error: Error, core_dumps: Arc<CoreDumps>) {
        let Self { store, _live, .. } = self;
        core_dumps.make(store, Arc::new(error)).await;
    }
}

async fn call_p2(
    store: &mut Store<Guest>,
    proxy: &p2::bindings::Proxy,
    request: http::Request<WasiBody>,
    answering: Answering,
) -> Result<(), Error> {
    let mut http = store.data_mut().http();
    let request = http.new_incoming_request(Scheme::Http, request)?;
    let answer = http.new_response_outparam_from_callback(move |answer| {
        // A client that went away meanwhile needs no answer.
        let _ = answering.send(answer.map_err(|code| format!("{code:?}")));
    })?;
    proxy.wasi_http_incoming_handler().call_handle(store, request, answer).await
}
