//! CPU of one instance: what it has used, its shares among the others, its cap, and whether it may run in the fast lane.
//!
//! See [`crate::lanes`] for what the lanes are. An instance loses the fast lane
//! - for [`PENALTY`], when one of its requests computed for a whole slice;
//! - while its allowance is used up: it fills at half of what the instance's shares are worth among those that are active, so that
//!   even many instances that compute just below the slice leave half of the fast lane to the rest. One that is alone has no
//!   limit;
//! - while it is over its cap.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::epoch::{Spent, TICK, Ticks};
use crate::fair::{Cap, FlowId};
use crate::lanes::SlowLane;

/// What an instance may use of the CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuQuota {
    /// Shares: what it gets when others want CPU time too, in proportion to theirs. At least 1.
    pub shares: u32,
    /// Percent of one core that it gets at most, averaged over about 100 ms; `None`: all there is.
    pub cap: Option<u32>,
}

impl Default for CpuQuota {
    /// As much as others by default, no cap.
    fn default() -> Self {
        Self { shares: 64, cap: None }
    }
}

/// How long a request that computed for a whole slice keeps its instance out of the fast lane, in ticks.
const PENALTY: u64 = 500;
/// CPU time that an instance may use in the fast lane at once after a rest, in nanoseconds.
const BURST: i64 = 10_000_000;
/// Ticks for which an instance counts as active, at least.
const WINDOW: u64 = 64;

/// The shares of all that are active.
#[derive(Debug)]
pub(crate) struct Activity {
    pub(crate) ticks: Arc<Ticks>,
    cores: u64,
    /// The number of this window, the shares of those that ran in it, and of those that ran in the one before.
    window: AtomicU64,
    current: AtomicU64,
    previous: AtomicU64,
}

impl Activity {
    pub(crate) fn new(ticks: Arc<Ticks>, cores: usize) -> Self {
        let cores = u64::try_from(cores).unwrap_or(1);
        Self { ticks, cores, window: AtomicU64::new(0), current: AtomicU64::new(0), previous: AtomicU64::new(0) }
    }

    /// The window that a moment belongs to. Who comes first after another has ended closes it.
    fn window(&self, tick: u64) -> u64 {
        let window = tick / WINDOW + 1;
        let before = self.window.load(Ordering::Relaxed);
        if before < window && self.window.compare_exchange(before, window, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            let ended = self.current.swap(0, Ordering::Relaxed);
            self.previous.store(if before + 1 == window { ended } else { 0 }, Ordering::Relaxed);
        }
        window
    }

    /// Shares of all that are active, with those of the one that asks.
    fn shares(&self, own: u64) -> u64 {
        self.current.load(Ordering::Relaxed).max(self.previous.load(Ordering::Relaxed)).max(own)
    }
}

/// CPU of one instance.
pub(crate) struct CpuAccount {
    flow: FlowId,
    shares: u32,
    used: AtomicU64,
    /// When the allowance was last filled, and the window it was in.
    filled: AtomicU64,
    window: AtomicU64,
    allowance: AtomicI64,
    /// In ticks.
    slow_until: AtomicU64,
    cap: Option<Mutex<Cap>>,
    /// What of it is in the slow lane.
    lent: TaskTracker,
    lane: SlowLane,
}

impl CpuAccount {
    pub(crate) fn new(lane: SlowLane, quota: CpuQuota) -> Arc<Self> {
        /// Names the flows of all lanes of the process.
        static FLOWS: AtomicU64 = AtomicU64::new(0);
        let lent = TaskTracker::new();
        // It is waited for when the instance has ended.
        lent.close();
        Arc::new(Self {
            flow: FLOWS.fetch_add(1, Ordering::Relaxed),
            shares: quota.shares.max(1),
            used: AtomicU64::new(0),
            filled: AtomicU64::new(0),
            window: AtomicU64::new(0),
            allowance: AtomicI64::new(BURST),
            slow_until: AtomicU64::new(0),
            cap: quota.cap.map(|percent| Mutex::new(Cap::new(percent, Instant::now()))),
            lent,
            lane,
        })
    }

    /// CPU time since the start.
    pub(crate) fn total(&self) -> Duration {
        Duration::from_nanos(self.used.load(Ordering::Relaxed))
    }

    /// Waits until nothing of the instance is in the slow lane.
    pub(crate) async fn is_gone(&self) {
        self.lent.wait().await;
    }

    pub(crate) fn flow(&self) -> FlowId {
        self.flow
    }

    pub(crate) fn shares(&self) -> u32 {
        self.shares
    }

    pub(crate) fn lane(&self) -> &SlowLane {
        &self.lane
    }

    pub(crate) fn lend(&self) -> TaskTrackerToken {
        self.lent.token()
    }

    /// Whether a guest of this instance may run in the fast lane now.
    pub(crate) fn may_run_fast(&self) -> bool {
        let now = self.lane.activity().ticks.now();
        if self.filled.load(Ordering::Relaxed) != now {
            self.fill(now);
        }
        self.slow_until.load(Ordering::Relaxed) <= now && self.allowance.load(Ordering::Relaxed) > 0 && self.held_until().is_none()
    }

    /// Until when nothing of it may run in any lane, because of its cap.
    pub(crate) fn held_until(&self) -> Option<Instant> {
        let cap = self.cap.as_ref()?;
        cap.lock().unwrap_or_else(PoisonError::into_inner).held_until(Instant::now())
    }

    /// Counts a slice in the fast lane.
    pub(crate) fn charge_fast(&self, spent: Spent) {
        self.charge(spent.cpu);
        let nanos = i64::try_from(spent.cpu.as_nanos()).unwrap_or(i64::MAX);
        self.allowance.fetch_sub(nanos, Ordering::Relaxed);
        if spent.over {
            self.slow_until.store(self.lane.activity().ticks.now() + PENALTY, Ordering::Relaxed);
        }
    }

    /// Counts CPU time in any lane.
    pub(crate) fn charge(&self, cpu: Duration) {
        self.used.fetch_add(u64::try_from(cpu.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        if let Some(cap) = &self.cap {
            cap.lock().unwrap_or_else(PoisonError::into_inner).charge(cpu, Instant::now());
        }
    }

    /// Adds to the allowance what has come since the last time; once a tick.
    fn fill(&self, now: u64) {
        let then = self.filled.swap(now, Ordering::Relaxed);
        let activity = self.lane.activity();
        let window = activity.window(now);
        let own = u64::from(self.shares);
        if self.window.swap(window, Ordering::Relaxed) != window {
            activity.current.fetch_add(own, Ordering::Relaxed);
        }
        let gain = gain(now.saturating_sub(then), activity.cores, own, activity.shares(own));
        // It never fails: the closure always gives a value.
        let _ = self.allowance.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| Some(left.saturating_add(gain).min(BURST)));
    }
}

impl Drop for CpuAccount {
    fn drop(&mut self) {
        self.lane.forget(self.flow);
    }
}

/// Nanoseconds that an allowance gains in so many ticks, by own shares among all.
fn gain(ticks: u64, cores: u64, own: u64, all: u64) -> i64 {
    if all <= own {
        return i64::MAX;
    }
    let tick = u64::try_from(TICK.as_nanos()).unwrap_or(u64::MAX);
    let gain = u128::from(ticks) * u128::from(tick) * u128::from(cores) * u128::from(own) / u128::from(all) / 2;
    i64::try_from(gain).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: i64 = 1_000_000;

    #[test]
    fn an_allowance_is_half_of_a_share_and_boundless_alone() {
        assert_eq!(gain(10, 2, 1, 1), i64::MAX);
        assert_eq!(gain(10, 2, 1, 2), 10 * MS, "20 ms of two cores, half of them by share, half of that");
        assert_eq!(gain(10, 2, 3, 4), 15 * MS);
        assert_eq!(gain(0, 2, 3, 4), 0);
    }
}
