//! The threads that serve clients, each with a runtime of its own.
//!
//! A client's connection stays on one thread from its first byte to its last, and so do the connections to instances that its requests
//! go by. On a runtime whose threads share their tasks, a proxy of small requests spends most of its time waking those threads.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};

thread_local! {
    static WORKER: Cell<Option<WorkerId>> = const { Cell::new(None) };
}

/// Which thread a connection to an instance belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WorkerId(usize);

impl WorkerId {
    /// The thread that asks; `None`: it is none of ours.
    pub(crate) fn current() -> Option<Self> {
        WORKER.get()
    }
}

/// One thread for each processor. They end when this is dropped, and what is left on them ends with them.
#[derive(Debug)]
pub(crate) struct Workers {
    workers: Vec<Worker>,
    _ends_threads: DropGuard,
}

#[derive(Debug)]
struct Worker {
    runtime: Handle,
    /// Held once more by each connection on the thread.
    load: Arc<()>,
}

impl Workers {
    /// # Errors
    /// When the system has no more threads or descriptors.
    pub(crate) fn start() -> io::Result<Self> {
        let end = CancellationToken::new();
        let count = thread::available_parallelism().map_or(1, usize::from);
        let started: io::Result<Vec<Worker>> = (0..count).map(|number| Worker::start(WorkerId(number), end.clone())).collect();
        // The guard ends those that were started before one that was not.
        let _ends_threads = end.drop_guard();
        Ok(Self { workers: started?, _ends_threads })
    }

    /// Runs a connection on the thread that has the fewest of them.
    pub(crate) fn spawn(&self, connection: impl Future<Output = ()> + Send + 'static) {
        let Some(worker) = self.workers.iter().min_by_key(|worker| Arc::strong_count(&worker.load)) else { return };
        let load = Arc::clone(&worker.load);
        worker.runtime.spawn(async move {
            let _load = load;
            connection.await;
        });
    }
}

impl Worker {
    fn start(id: WorkerId, end: CancellationToken) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        thread::Builder::new().name(format!("router-{}", id.0)).spawn(move || {
            WORKER.set(Some(id));
            runtime.block_on(end.cancelled());
        })?;
        Ok(Self { runtime: handle, load: Arc::new(()) })
    }
}
