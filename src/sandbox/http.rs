//! Runs a `wasi:http` droplet: Dewar listens on the instance's address and hands requests to the guest.
//!
//! One request has one store to itself, or shares one with others where the guest is of WASI 0.3; a store that has answered is used
//! again. What goes wrong in a request ends its store and is told to the app's log with a backtrace. The instance as a whole has crashed when
//! - its start-up code fails, or a store cannot be made for want of memory while there is no other;
//! - the guest calls `exit`;
//! - our own code panics while it serves a request;
//! - [`FAILURES`] requests in a row trapped or ran out of time, without one that was answered between them.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dewar_protocol::LogStream;
use futures::FutureExt;
use http::HeaderValue;
use http::header::CONNECTION;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;
use wasmtime_wasi_http::handler::ProxyPre;

use crate::answer::Ended;
use crate::core_dump::CoreDumps;
use crate::cpu::CpuAccount;
use crate::guest::Guest;
use crate::instance::{Orders, Parts};
use crate::limits::Refused;
use crate::output::Log;
use crate::pool::{NoStore, Pool};
use crate::{Exit, HttpLimits, Instances, serve, trap};

/// So many failures in a row are a crash.
const FAILURES: u32 = 3;
/// Start-up code that takes no more CPU time than this may run again for the first request.
const CHEAP_START: Duration = Duration::from_millis(5);
/// Unless it waits: then it takes longer than this. One that only computes does not, even among thousands that start.
const PROMPT_START: Duration = Duration::from_millis(50);
/// How often idle stores are looked at, at the least.
const TRIM: Duration = Duration::from_secs(10);
/// How long to wait when no connection can be accepted, which is for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the connections of an instance share.
pub(crate) struct App {
    pub(crate) pool: Arc<Pool>,
    pub(crate) limits: HttpLimits,
    pub(crate) cpu: Arc<CpuAccount>,
    core_dumps: Arc<CoreDumps>,
    log: Arc<Log>,
    turns: Arc<Semaphore>,
    waiting: AtomicUsize,
    failures: AtomicU32,
    /// What guests do after their answers, and core dumps that are being made.
    tasks: TaskTracker,
    /// Why the instance ends; the first reason counts.
    crash: Mutex<Option<Exit>>,
    crashed: CancellationToken,
    /// Ends what runs on its own.
    ended: CancellationToken,
}

impl App {
    /// A turn among the concurrent requests; `None` when too many wait already.
    pub(crate) async fn turn(self: &Arc<Self>) -> Option<OwnedSemaphorePermit> {
        if let Ok(turn) = self.turns.clone().try_acquire_owned() {
            return Some(turn);
        }
        let _waiting = Waiting::begin(&self.waiting, self.limits.queued_requests)?;
        self.turns.clone().acquire_owned().await.ok()
    }

    /// Runs something for as long as the instance lives.
    pub(crate) fn spawn(self: &Arc<Self>, work: impl Future<Output = ()> + Send + 'static) {
        let app = self.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = app.ended.cancelled() => {}
                worked = AssertUnwindSafe(work).catch_unwind() => if let Err(panic) = worked {
                    app.crash(Exit::panicked(&*panic));
                }
            }
        });
    }

    /// A connection's own troubles are its client's, but a panic is ours, and nobody knows what it left behind.
    fn disconnected(&self, ended: Result<(), JoinError>) {
        if let Err(Ok(panic)) = ended.map_err(JoinError::try_into_panic) {
            self.crash(Exit::panicked(&*panic));
        }
    }

    /// Tells the app's developer.
    pub(crate) fn complain(&self, text: &str) {
        self.log.text(LogStream::Err, text);
    }

    /// A request failed with its store.
    pub(crate) fn failed(&self, text: &str) {
        self.complain(text);
        if self.failures.fetch_add(1, Ordering::Relaxed) + 1 >= FAILURES {
            self.crash(Exit::failed(text));
        }
    }

    /// A guest is done with a request, for better or worse.
    pub(crate) fn ended(&self, ended: Ended) {
        let Ended { mut worker, outcome } = ended;
        match outcome {
            Ok(()) => {
                self.failures.store(0, Ordering::Relaxed);
                self.pool.give_back(worker);
            }
            Err(error) => match trap::exit_status(&error) {
                Some(status) => self.crash(Exit::exited(status)),
                None => {
                    let text = blame(&error, worker.store.data_mut().take_refused_memory());
                    if self.core_dumps.is_due(&error) {
                        self.tasks.spawn(worker.dump(error, self.core_dumps.clone()));
                    }
                    self.failed(&text);
                }
            },
        }
    }

    /// There is no store for a request.
    pub(crate) fn no_store(&self, cause: &NoStore) {
        self.crash(exit_of(cause));
    }

    fn crash(&self, exit: Exit) {
        self.crash.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(exit);
        self.crashed.cancel();
    }
}

/// What to call the end of a guest that wanted more memory than it may have.
fn blame(error: &wasmtime::Error, refused: Option<Refused>) -> String {
    match refused {
        Some(refused) if !error.is::<Refused>() => format!("{refused}: {}", trap::describe(error)),
        Some(_) | None => trap::describe(error),
    }
}

fn exit_of(cause: &NoStore) -> Exit {
    match cause {
        NoStore::Failed(error, refused) => match trap::exit_status(error) {
            Some(status) => Exit::exited(status),
            None => Exit::failed(blame(error, *refused)),
        },
        NoStore::Waits(limit) => Exit::failed(format!("start-up code still waits after {limit:?}")),
    }
}

/// A place in the queue.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn begin(count: &'a AtomicUsize, limit: usize) -> Option<Self> {
        let joined = count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |waiting| (waiting < limit).then_some(waiting + 1));
        joined.ok().map(|_| Self(count))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Runs the start-up code; gives what serves requests.
pub(crate) async fn prepare(parts: Parts, pre: Arc<ProxyPre<Guest>>) -> Result<Pin<Box<dyn Future<Output = Exit> + Send>>, Exit> {
    let Parts { shared, blueprint, core_dumps, cpu, orders, limits, listener } = parts;
    let listener = listener.ok_or_else(|| Exit::failed("the instance has no address to serve on"))?;
    let unusable = |error: std::io::Error| Exit::failed(format!("cannot serve on the instance's address: {error}"));
    listener.set_nonblocking(true).map_err(unusable)?;
    let listener = TcpListener::from_std(listener).map_err(unusable)?;
    let log = blueprint.log.clone();
    let pool = Pool::new(pre, blueprint, core_dumps.clone(), cpu.clone(), &limits, shared.crowd.clone());
    let began = Instant::now();
    let first = pool.take_store().await.map_err(|cause| exit_of(&cause))?;
    if cpu.total() > CHEAP_START || began.elapsed() > PROMPT_START {
        pool.keep(first);
    } else {
        // Only a request leaves something behind in a store, so this one is as good as the one that the first request will make.
        // An instance that is not asked takes a third of the memory that way.
        drop(first);
        pool.starts_quickly();
    }
    let app = Arc::new(App {
        pool,
        turns: Arc::new(Semaphore::new(limits.concurrent_requests)),
        limits,
        cpu,
        core_dumps,
        log,
        waiting: AtomicUsize::new(0),
        failures: AtomicU32::new(0),
        tasks: TaskTracker::new(),
        crash: Mutex::new(None),
        crashed: CancellationToken::new(),
        ended: CancellationToken::new(),
    });
    Ok(Box::pin(async move {
        // The engine must outlive the stores' last calls.
        let _shared = shared;
        let mut connections = JoinSet::new();
        let exit = tokio::select! {
            biased;
            () = orders.kill.cancelled() => Exit::killed(),
            () = app.crashed.cancelled() => {
                let crash = app.crash.lock().unwrap_or_else(PoisonError::into_inner).clone();
                crash.unwrap_or_else(|| Exit::failed("crashed"))
            }
            () = run(listener, &app, &orders, &mut connections) => Exit::stopped(),
            never = app.pool.prepare(), if app.limits.instances == Instances::Fresh => match never {},
        };
        connections.shutdown().await;
        app.ended.cancel();
        app.tasks.close();
        app.tasks.wait().await;
        exit
    }))
}

/// Serves until told to stop and the last request is done.
async fn run(listener: TcpListener, app: &Arc<App>, orders: &Orders, connections: &mut JoinSet<()>) {
    let mut trim = tokio::time::interval(TRIM.min(app.limits.store_idle_timeout));
    // Told once for each time that there are no descriptors: thousands of instances may be short of them at once.
    let mut told = false;
    loop {
        let room = connections.len() < app.limits.connections;
        tokio::select! {
            () = orders.stop.cancelled() => break,
            accepted = listener.accept(), if room => match accepted {
                Ok((stream, _)) => {
                    told = false;
                    connections.spawn(connection(stream, app.clone(), orders.clone()));
                }
                Err(error) => {
                    if !std::mem::replace(&mut told, true) {
                        warn!(%error, "cannot accept a connection for an instance");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(ended) = connections.join_next() => app.disconnected(ended),
            _ = trim.tick() => app.pool.trim(),
        }
    }
    drop(listener);
    while let Some(ended) = connections.join_next().await {
        app.disconnected(ended);
    }
    app.tasks.close();
    app.tasks.wait().await;
}

async fn connection(stream: TcpStream, app: Arc<App>, orders: Orders) {
    let limits = &app.limits;
    // Without it answers are slower, no more.
    let _ = stream.set_nodelay(true);
    // A client that takes nothing any more must not hold its connection for ever. Without this it may, until the instance ends.
    let patience = u32::try_from(limits.head_timeout.as_millis()).unwrap_or(u32::MAX);
    let _ = rustix::net::sockopt::set_tcp_user_timeout(&stream, patience);
    let mut server = http1::Builder::new();
    server
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_timeout)
        .max_buf_size(limits.head_bytes.max(8 << 10))
        .max_headers(limits.headers);
    let (answering, last) = (app.clone(), orders.wind_down);
    let service = service_fn(move |request| {
        let (app, last) = (answering.clone(), last.clone());
        async move {
            let mut response = serve::answer(app, request).await?;
            if last.is_cancelled() {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        }
    });
    let mut connection = std::pin::pin!(server.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = orders.stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection to an instance ended");
    }
}
