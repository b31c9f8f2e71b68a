//! What happens, counted as it happens.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use dewar_core::InstanceKey;
use dewar_protocol::InstanceState;
use tokio::time::Instant;

use super::histogram::{Distribution, Histogram};

/// How something ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    Failed,
}

impl Outcome {
    pub(crate) fn of<T, E>(result: &Result<T, E>) -> Self {
        if result.is_ok() { Self::Done } else { Self::Failed }
    }
}

/// Counts since the agent's start.
#[derive(Debug, Default)]
pub(super) struct Counters {
    starts: AtomicU64,
    crashes: AtomicU64,
    /// Since when those that are STARTING are; as many entries as there are such instances.
    starting: Mutex<HashMap<InstanceKey, Instant>>,
    /// From STARTING to RUNNING.
    start_times: Histogram,
    pub(super) stagings: Attempts,
    pub(super) fetches: Attempts,
    pub(super) sandbox_calls: Attempts,
}

/// Things that take time, and end well or not.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    failed: AtomicU64,
    times: Histogram,
}

/// [`Counters`] at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Counts {
    pub(super) starts: u64,
    pub(super) crashes: u64,
    pub(super) start_times: Distribution,
    pub(super) stagings: Attempted,
    pub(super) fetches: Attempted,
    pub(super) sandbox_calls: Attempted,
}

/// [`Attempts`] at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Attempted {
    pub(super) failed: u64,
    /// Of all, failed or not.
    pub(super) times: Distribution,
}

impl Attempts {
    pub(super) fn count(&self, took: Duration, outcome: Outcome) {
        if outcome == Outcome::Failed {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
        self.times.observe(took);
    }

    fn read(&self) -> Attempted {
        // In this order there are never more failures than attempts.
        let failed = self.failed.load(Ordering::Relaxed);
        Attempted { failed, times: self.times.read() }
    }
}

impl Attempted {
    pub(super) fn done(&self) -> u64 {
        self.times.count().saturating_sub(self.failed)
    }
}

impl Counters {
    pub(super) fn transition(&self, now: Instant, key: InstanceKey, to: InstanceState) {
        use InstanceState::{Born, Crashed, Evacuating, Resuming, Running, Starting, Stopped, Stopping};
        // The map is whole after every operation on it.
        let mut starting = self.starting.lock().unwrap_or_else(PoisonError::into_inner);
        match to {
            Starting => {
                self.starts.fetch_add(1, Ordering::Relaxed);
                starting.insert(key, now);
            }
            Running => {
                if let Some(since) = starting.remove(&key) {
                    self.start_times.observe(now - since);
                }
            }
            Crashed => {
                self.crashes.fetch_add(1, Ordering::Relaxed);
                starting.remove(&key);
            }
            Born | Stopping | Stopped | Resuming | Evacuating => {
                starting.remove(&key);
            }
        }
    }

    pub(super) fn read(&self) -> Counts {
        Counts {
            starts: self.starts.load(Ordering::Relaxed),
            crashes: self.crashes.load(Ordering::Relaxed),
            start_times: self.start_times.read(),
            stagings: self.stagings.read(),
            fetches: self.fetches.read(),
            sandbox_calls: self.sandbox_calls.read(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_is_timed_until_the_instance_runs() {
        use InstanceState::{Crashed, Running, Starting, Stopping};
        let (counters, then) = (Counters::default(), Instant::now());
        for key in [1, 2, 3] {
            counters.transition(then, InstanceKey(key), Starting);
        }
        let now = then + Duration::from_secs(2);
        counters.transition(now, InstanceKey(1), Running);
        counters.transition(now, InstanceKey(2), Crashed);
        counters.transition(now, InstanceKey(3), Stopping);
        // Resumed, so never started here.
        counters.transition(now, InstanceKey(4), Running);
        let counts = counters.read();
        assert_eq!((counts.starts, counts.crashes), (3, 1));
        assert_eq!((counts.start_times.count(), counts.start_times.sum), (1, 2.0));
        assert!(counters.starting.lock().unwrap().is_empty());
    }

    #[test]
    fn failures_count_among_the_attempts() {
        let attempts = Attempts::default();
        attempts.count(Duration::from_secs(1), Outcome::Done);
        attempts.count(Duration::from_secs(2), Outcome::Failed);
        let read = attempts.read();
        assert_eq!((read.done(), read.failed, read.times.count(), read.times.sum), (1, 1, 2, 3.0));
    }
}
