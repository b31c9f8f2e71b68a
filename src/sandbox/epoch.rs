//! Time slices: the ticks of the engines' epoch, and what a guest that computes at one is to do.
//!
//! The engine interrupts a guest at the first tick after it began to run. A guest that has not yet computed for [`SLICE`] goes on
//! until the next. What decides is the thread's own CPU time: on a busy host a tick says nothing about how long a guest had a core.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use wasmtime::{Engine, EngineWeak, UpdateDeadline};

/// From one tick to the next.
pub(crate) const TICK: Duration = Duration::from_millis(2);
/// CPU time after which a guest is put aside at the next tick.
const SLICE: Duration = Duration::from_millis(1);

/// Counts ticks. A clock that costs one load to read.
#[derive(Debug, Default)]
pub(crate) struct Ticks(AtomicU64);

impl Ticks {
    pub(crate) fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The engines' clock: a thread of the operating system, since a task of the runtime would starve just when it is needed.
#[derive(Debug)]
pub(crate) struct Ticker {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    /// Ticks until it is dropped, or all engines are gone.
    pub(crate) fn start(engines: Vec<EngineWeak>, ticks: Arc<Ticks>) -> std::io::Result<Self> {
        let (stop, stopped) = channel::<()>();
        let thread = std::thread::Builder::new().name("dewar-epoch".into()).spawn(move || {
            while stopped.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                ticks.0.fetch_add(1, Ordering::Relaxed);
                let running: Vec<Engine> = engines.iter().filter_map(EngineWeak::upgrade).collect();
                if running.is_empty() {
                    return;
                }
                running.iter().for_each(Engine::increment_epoch);
            }
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // The thread cannot panic, and a drop could not report it.
            let _ = thread.join();
        }
    }
}

thread_local! {
    /// What the guest that this thread runs has had of its slice.
    static SLICE_NOW: Cell<SliceNow> = const { Cell::new(SliceNow::Unknown) };
}

#[derive(Debug, Clone, Copy)]
enum SliceNow {
    /// Nobody has looked at the thread's clock yet.
    Unknown,
    /// The thread's CPU time at a moment of the slice, and the time on the clock.
    Since(Duration, Instant),
    Over(Duration, Instant),
}

/// A slice of a guest's, from its begin to its end on one thread.
pub(crate) struct Slice(Instant);

/// What became of a slice.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spent {
    /// CPU time; where nobody looked at the thread's clock, the time on the wall.
    pub(crate) cpu: Duration,
    /// The guest was put aside.
    pub(crate) over: bool,
}

impl Slice {
    /// Without a system call: the thread's clock is first looked at when a tick comes.
    pub(crate) fn begin() -> Self {
        SLICE_NOW.set(SliceNow::Unknown);
        Self(Instant::now())
    }

    /// For one that is measured exactly.
    pub(crate) fn begin_exactly() -> Self {
        let start = Instant::now();
        SLICE_NOW.set(SliceNow::Since(thread_time(), start));
        Self(start)
    }

    pub(crate) fn end(self) -> Spent {
        let now = SLICE_NOW.replace(SliceNow::Unknown);
        match now {
            SliceNow::Unknown => Spent { cpu: self.0.elapsed(), over: false },
            SliceNow::Since(cpu, at) | SliceNow::Over(cpu, at) => {
                let before = at.saturating_duration_since(self.0);
                Spent { cpu: before + thread_time().saturating_sub(cpu), over: matches!(now, SliceNow::Over(..)) }
            }
        }
    }
}

/// Whether the guest that this thread has just run in a slice was put aside while it computed.
pub(crate) fn is_slice_over() -> bool {
    matches!(SLICE_NOW.get(), SliceNow::Over(..))
}

/// What a guest is to do at a tick.
pub(crate) fn at_tick() -> UpdateDeadline {
    let (cpu, at) = match SLICE_NOW.get() {
        SliceNow::Unknown => (thread_time(), Instant::now()),
        SliceNow::Since(cpu, at) if thread_time().saturating_sub(cpu) < SLICE => (cpu, at),
        SliceNow::Since(cpu, at) | SliceNow::Over(cpu, at) => {
            SLICE_NOW.set(SliceNow::Over(cpu, at));
            return UpdateDeadline::Yield(1);
        }
    };
    SLICE_NOW.set(SliceNow::Since(cpu, at));
    UpdateDeadline::Continue(1)
}

/// CPU time of this thread.
fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}
