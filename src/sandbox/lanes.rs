//! The threads that guests run on, in two lanes.
//!
//! *Fast*: a tokio runtime at normal priority. Connections live there, and guests run there for as long as they compute little at
//! a time. *Slow*: as many threads at a lower priority. A guest that has computed for a whole slice is handed over to them, and
//! so is every guest of an instance that has lost the fast lane, until it waits for something (see [`crate::scheduled`]). So the
//! operating system itself takes the core from a spinning guest the moment that anything wakes in the fast lane, and no number of
//! spinning guests stands in the way of a neighbour's requests. Among themselves the guests in the slow lane are served by
//! [`crate::fair`], a slice at a time.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Handle, Runtime};
use tracing::error;
use wasmtime::Engine;

use crate::cpu::{Activity, CpuAccount};
use crate::epoch::Ticks;
use crate::fair::{FairQueue, FlowId};

/// After how many polled tasks a guest thread looks for new input and expired timers. Tokio's default of 61 would let a few
/// busy guests delay everybody's input by 61 slices.
const EVENT_INTERVAL: u32 = 8;
/// How much nicer the slow lane is than the rest of the agent: a tenth of its weight, so that it gives way at once, and yet a
/// fast lane that is always busy leaves it a tenth of a core. No privilege is needed to become nicer.
const NICENESS: i32 = 10;

/// The threads that guests run on. Dropping it from within a runtime is fine.
#[derive(Debug)]
pub(crate) struct GuestThreads {
    fast: Option<Runtime>,
    /// Where guests in the slow lane wait for input and timers, and what they let do in the background.
    background: Option<Runtime>,
    slow: SlowLane,
}

impl GuestThreads {
    pub(crate) fn start(ticks: Arc<Ticks>) -> std::io::Result<Self> {
        let fast = Builder::new_multi_thread()
            .thread_name("dewar-guest")
            .event_interval(EVENT_INTERVAL)
            .on_thread_start(Engine::tls_eager_initialize)
            .enable_all()
            .build()?;
        // A runtime of its own: threads for blocking calls are started by whoever needs one more, and have its priority.
        let background = Builder::new_multi_thread().thread_name("dewar-slow-io").worker_threads(1).enable_all().build()?;
        let cores = std::thread::available_parallelism()?.get();
        let threads =
            Self { fast: Some(fast), background: Some(background), slow: SlowLane(Arc::new(Lane::new(Activity::new(ticks, cores)))) };
        for _ in 0..cores {
            let (lane, io) = (threads.slow.0.clone(), threads.background().clone());
            std::thread::Builder::new().name("dewar-slow".into()).spawn(move || lane.work(&io))?;
        }
        Ok(threads)
    }

    pub(crate) fn handle(&self) -> &Handle {
        self.fast.as_ref().expect("only drop takes the runtime").handle()
    }

    pub(crate) fn slow(&self) -> SlowLane {
        self.slow.clone()
    }

    fn background(&self) -> &Handle {
        self.background.as_ref().expect("only drop takes the runtime").handle()
    }
}

impl Drop for GuestThreads {
    fn drop(&mut self) {
        self.slow.0.close();
        for runtime in [self.fast.take(), self.background.take()].into_iter().flatten() {
            runtime.shutdown_background();
        }
    }
}

/// The slow lane. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct SlowLane(Arc<Lane>);

/// A guest that runs in the slow lane.
pub(crate) trait Job: Send + Sync {
    /// Whose it is.
    fn account(&self) -> &Arc<CpuAccount>;
    /// Runs it for a slice. Gives the CPU time that it took, and itself when it wants another slice at once.
    fn run(self: Arc<Self>) -> (Duration, Option<Arc<dyn Job>>);
}

impl SlowLane {
    /// Lets a job run when its turn comes.
    pub(crate) fn push(&self, job: Arc<dyn Job>) {
        let (flow, shares) = (job.account().flow(), job.account().shares());
        if let Some(queue) = &mut *self.0.queue() {
            queue.push(flow, shares, job);
        }
        self.0.pushed.notify_one();
    }

    /// An instance is gone.
    pub(crate) fn forget(&self, flow: FlowId) {
        if let Some(queue) = &mut *self.0.queue() {
            queue.forget(flow);
        }
    }

    /// Its threads have been told to end: nothing in it runs any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.0.queue().is_none()
    }

    pub(crate) fn activity(&self) -> &Activity {
        &self.0.activity
    }
}

struct Lane {
    /// `None` when it is closed.
    queue: Mutex<Option<FairQueue<Arc<dyn Job>>>>,
    pushed: Condvar,
    activity: Activity,
}

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lane").finish_non_exhaustive()
    }
}

impl Lane {
    fn new(activity: Activity) -> Self {
        Self { queue: Mutex::new(Some(FairQueue::new())), pushed: Condvar::new(), activity }
    }

    fn queue(&self) -> MutexGuard<'_, Option<FairQueue<Arc<dyn Job>>>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        let queue = self.queue().take();
        self.pushed.notify_all();
        // Not under the lock: jobs hold guests.
        drop(queue);
    }

    /// What a thread of the lane does, until the lane is closed.
    fn work(&self, background: &Handle) {
        if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
            error!(%error, "cannot lower the priority of guests that compute");
        }
        Engine::tls_eager_initialize();
        let _context = background.enter();
        while let Some((flow, job)) = self.next() {
            // Guests' panics are caught where they run. This is for one in their destructors.
            let (used, again) = catch_unwind(AssertUnwindSafe(|| job.run())).unwrap_or_else(|_| {
                error!("a guest panicked while it was dropped");
                (Duration::ZERO, None)
            });
            let mut queue = self.queue();
            let Some(queue) = &mut *queue else { return };
            queue.charge(flow, used);
            if let Some(job) = again {
                queue.push(flow, job.account().shares(), job);
            }
        }
    }

    /// Waits for a job that may run; `None` when the lane is closed.
    fn next(&self) -> Option<(FlowId, Arc<dyn Job>)> {
        let mut queue = self.queue();
        loop {
            let jobs = queue.as_mut()?;
            let now = Instant::now();
            if let Some((flow, job)) = jobs.pop(now) {
                match job.account().held_until() {
                    Some(until) => jobs.hold(flow, job, until),
                    None => return Some((flow, job)),
                }
                continue;
            }
            queue = match jobs.next_release() {
                Some(until) => {
                    let waited = self.pushed.wait_timeout(queue, until.saturating_duration_since(now));
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.pushed.wait(queue).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}
