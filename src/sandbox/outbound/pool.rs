//! Connections of an app to origins: kept for the next request, of whichever instance, and bounded.
//!
//! What may be taken is for the taker to say: it gives the addresses that its own rules allow, and gets no connection to another.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use hyper::client::conn::http1::SendRequest;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout};
use wasmtime_wasi_http::{Error, WasiBody};

use super::target::Origin;

/// Connections of an app with a request on them, in all and to one origin; one more waits for its turn.
const BUSY: usize = 256;
const BUSY_PER_ORIGIN: usize = 64;
/// Requests of an app that wait; one more is refused.
const WAITING: usize = 256;
/// Connections of an app without a request, in all and to one origin; one more is closed.
const IDLE: usize = 64;
const IDLE_PER_ORIGIN: usize = 16;
/// How long a connection is kept without a request.
const IDLE_TIME: Duration = Duration::from_secs(30);
/// How often those are closed that have been idle for too long.
const SWEEP: Duration = Duration::from_secs(10);
/// How long a connection whose last exchange is over may take to be ready for another.
const READY: Duration = Duration::from_millis(100);

pub(super) type Sender = SendRequest<WasiBody>;

/// A connection and where it goes to.
pub(super) struct Connection {
    pub(super) sender: Sender,
    pub(super) address: SocketAddr,
}

/// See the module.
pub(crate) struct Pool {
    busy: Arc<Semaphore>,
    waiting: Semaphore,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    origins: HashMap<Origin, AtOrigin>,
    idle: usize,
    /// Whether a task closes what is idle for too long.
    swept: bool,
}

/// Kept for as long as it has connections or somebody wants one.
struct AtOrigin {
    busy: Arc<Semaphore>,
    /// The last one back is the first one out, so that those which are not needed grow old.
    idle: Vec<(Connection, Instant)>,
}

impl Default for Pool {
    fn default() -> Self {
        Self { busy: Arc::new(Semaphore::new(BUSY)), waiting: Semaphore::new(WAITING), state: Mutex::default() }
    }
}

/// The right to have a connection to an origin.
pub(super) struct Turn {
    pool: Arc<Pool>,
    origin: Origin,
    _permits: [OwnedSemaphorePermit; 2],
}

impl Pool {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a turn.
    pub(super) async fn turn(self: &Arc<Self>, origin: Origin, patience: Duration) -> Result<Turn, Error> {
        let at_origin = self.state().at(&origin).busy.clone();
        let waiting = async {
            let _place = self.waiting.try_acquire().ok()?;
            // First the scarcer one: who waits for an origin must not keep others from theirs.
            let at_origin = at_origin.acquire_owned().await.ok()?;
            Some([at_origin, self.busy.clone().acquire_owned().await.ok()?])
        };
        let permits = timeout(patience, waiting).await.map_err(|_| Error::ConnectionTimeout)?;
        Ok(Turn { pool: self.clone(), origin, _permits: permits.ok_or(Error::ConnectionLimitReached)? })
    }

    fn start_sweeping(self: &Arc<Self>) {
        let pool = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                sleep(SWEEP).await;
                // Nobody else has it any more, or nothing is left to close.
                if !Weak::upgrade(&pool).is_some_and(|pool| pool.state().sweep()) {
                    return;
                }
            }
        });
    }
}

impl State {
    fn at(&mut self, origin: &Origin) -> &mut AtOrigin {
        if !self.origins.contains_key(origin) {
            // Whoever is in use is bounded by the turns and the places to wait, so the map is too.
            self.origins.retain(|_, at| at.is_in_use());
        }
        let new = || AtOrigin { busy: Arc::new(Semaphore::new(BUSY_PER_ORIGIN)), idle: Vec::new() };
        self.origins.entry(origin.clone()).or_insert_with(new)
    }

    /// Closes what has been idle for too long; says whether anything is left.
    fn sweep(&mut self) -> bool {
        let is_fresh = |(connection, since): &(Connection, Instant)| since.elapsed() < IDLE_TIME && !connection.sender.is_closed();
        for at in self.origins.values_mut() {
            at.idle.retain(is_fresh);
        }
        self.origins.retain(|_, at| at.is_in_use());
        self.idle = self.origins.values().map(|at| at.idle.len()).sum();
        self.swept = self.idle > 0;
        self.swept
    }
}

impl AtOrigin {
    fn is_in_use(&self) -> bool {
        !self.idle.is_empty() || Arc::strong_count(&self.busy) > 1
    }
}

impl Turn {
    /// An idle connection to one of these addresses.
    pub(super) async fn take_idle(&self, allowed: &[SocketAddr]) -> Option<Connection> {
        loop {
            let mut connection = self.pop_idle(allowed)?;
            if matches!(timeout(READY, connection.sender.ready()).await, Ok(Ok(()))) {
                return Some(connection);
            }
        }
    }

    fn pop_idle(&self, allowed: &[SocketAddr]) -> Option<Connection> {
        let mut state = self.pool.state();
        let idle = &mut state.at(&self.origin).idle;
        let found = idle.iter().rposition(|(connection, since)| allowed.contains(&connection.address) && since.elapsed() < IDLE_TIME)?;
        let (connection, _) = idle.remove(found);
        state.idle -= 1;
        Some(connection)
    }

    /// A connection whose exchange is over.
    pub(super) fn give_back(self, connection: Connection) {
        if connection.sender.is_closed() {
            return;
        }
        let mut state = self.pool.state();
        let in_all = state.idle;
        let idle = &mut state.at(&self.origin).idle;
        if in_all >= IDLE || idle.len() >= IDLE_PER_ORIGIN {
            return;
        }
        idle.push((connection, Instant::now()));
        state.idle += 1;
        if !std::mem::replace(&mut state.swept, true) {
            self.pool.start_sweeping();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::future::join_all;
    use hyper::client::conn::http1;
    use hyper_util::rt::TokioIo;
    use tokio::io::{DuplexStream, duplex};
    use url::Host;

    use super::*;

    const SOON: Duration = Duration::from_millis(20);

    fn origin(number: usize) -> Origin {
        Origin { tls: false, host: Host::Domain(number.to_string()), port: 80 }
    }

    fn address(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, last], 80))
    }

    async fn connection(last: u8) -> (Connection, DuplexStream) {
        let (ours, theirs) = duplex(1024);
        let (sender, driver) = http1::handshake(TokioIo::new(ours)).await.unwrap();
        tokio::spawn(driver);
        (Connection { sender, address: address(last) }, theirs)
    }

    #[tokio::test]
    async fn an_origin_has_so_many_turns_and_no_more() {
        let pool = Arc::new(Pool::default());
        let turns = join_all((0..BUSY_PER_ORIGIN).map(|_| pool.turn(origin(0), SOON))).await;
        let mut turns = turns.into_iter().collect::<Result<Vec<_>, _>>().unwrap();
        assert!(matches!(pool.turn(origin(0), SOON).await, Err(Error::ConnectionTimeout)));
        assert!(pool.turn(origin(1), SOON).await.is_ok(), "another origin");
        turns.pop();
        assert!(pool.turn(origin(0), SOON).await.is_ok(), "the next one's turn");
    }

    #[tokio::test]
    async fn an_app_has_so_many_turns_and_so_many_may_wait() {
        let pool = Arc::new(Pool::default());
        let patience = Duration::from_secs(60);
        let _turns = join_all((0..BUSY).map(|number| pool.turn(origin(number), patience))).await;
        let waiting: Vec<_> = (0..WAITING)
            .map(|number| {
                let pool = pool.clone();
                tokio::spawn(async move { pool.turn(origin(number), patience).await.is_ok() })
            })
            .collect();
        while pool.waiting.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert!(matches!(pool.turn(origin(0), patience).await, Err(Error::ConnectionLimitReached)));
        waiting.iter().for_each(tokio::task::JoinHandle::abort);
    }

    #[tokio::test]
    async fn an_idle_connection_is_for_whom_it_is_allowed() {
        let pool = Arc::new(Pool::default());
        let (kept, _theirs) = connection(1).await;
        pool.turn(origin(0), SOON).await.unwrap().give_back(kept);
        let turn = pool.turn(origin(0), SOON).await.unwrap();
        assert!(turn.take_idle(&[address(2)]).await.is_none());
        assert!(pool.turn(origin(1), SOON).await.unwrap().take_idle(&[address(1)]).await.is_none());
        let taken = turn.take_idle(&[address(2), address(1)]).await.unwrap();
        assert_eq!((taken.address, pool.state().idle), (address(1), 0));
    }

    #[tokio::test]
    async fn what_is_idle_is_bounded_in_number_and_time() {
        let pool = Arc::new(Pool::default());
        let mut theirs = Vec::new();
        for number in 0..10 * IDLE_PER_ORIGIN {
            let (kept, their) = connection(1).await;
            theirs.push(their);
            pool.turn(origin(number / (2 * IDLE_PER_ORIGIN)), SOON).await.unwrap().give_back(kept);
        }
        let per_origin: Vec<usize> = pool.state().origins.values().map(|at| at.idle.len()).collect();
        assert_eq!(per_origin.iter().sum::<usize>(), IDLE);
        assert!(per_origin.iter().all(|idle| *idle <= IDLE_PER_ORIGIN), "{per_origin:?}");
        assert!(pool.state().sweep(), "none of them is old");
        let long_ago = Instant::now().checked_sub(IDLE_TIME).unwrap();
        pool.state().origins.values_mut().flat_map(|at| &mut at.idle).for_each(|(_, since)| *since = long_ago);
        assert!(!pool.state().sweep());
        let state = pool.state();
        assert_eq!((state.idle, state.origins.len()), (0, 0));
    }
}
