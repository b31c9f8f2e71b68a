//! Who runs next: weighted fair queueing among instances, and a cap on one of them. Pure: no clock, no threads.
//!
//! Each instance is a flow with a virtual time, which advances by CPU time divided by the instance's shares. The flow that is
//! least far gets the next slice, so that flows with work to do get CPU time in proportion to their shares (start-time fair
//! queueing). Within a flow jobs take turns.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

#[cfg(test)]
mod tests;

/// Names a flow. Numbers are never used again.
pub(crate) type FlowId = u64;

/// Jobs that want to run. As long as the flows that are not forgotten, and the jobs in them, which their makers bound.
pub(crate) struct FairQueue<T> {
    flows: HashMap<FlowId, Flow<T>>,
    /// Flows with jobs that may run, the least far first.
    ready: BTreeSet<(u128, FlowId)>,
    /// Flows that wait for a moment, the nearest first.
    held: BTreeSet<(Instant, FlowId)>,
    /// Virtual time of the flow that ran last.
    clock: u128,
}

struct Flow<T> {
    shares: u32,
    /// Nanoseconds of CPU time, times [`SCALE`], by share.
    time: u128,
    jobs: VecDeque<T>,
    place: Place,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// It has no jobs.
    Idle,
    Ready,
    Held(Instant),
}

/// Keeps the division by shares exact enough.
const SCALE: u128 = 1 << 16;

impl<T> FairQueue<T> {
    pub(crate) fn new() -> Self {
        Self { flows: HashMap::new(), ready: BTreeSet::new(), held: BTreeSet::new(), clock: 0 }
    }

    /// Adds a job at the end of its flow. A flow that was idle has saved nothing up: it starts where the others are.
    pub(crate) fn push(&mut self, id: FlowId, shares: u32, job: T) {
        let flow =
            self.flows.entry(id).or_insert_with(|| Flow { shares: shares.max(1), time: 0, jobs: VecDeque::new(), place: Place::Idle });
        flow.jobs.push_back(job);
        if flow.place == Place::Idle {
            flow.place = Place::Ready;
            flow.time = flow.time.max(self.clock);
            self.ready.insert((flow.time, id));
        }
    }

    /// The job that is to run now.
    pub(crate) fn pop(&mut self, now: Instant) -> Option<(FlowId, T)> {
        self.release(now);
        while let Some((time, id)) = self.ready.first().copied() {
            let flow = self.flows.get_mut(&id);
            let job = flow.and_then(|flow| {
                let job = flow.jobs.pop_front();
                if flow.jobs.is_empty() {
                    self.ready.remove(&(time, id));
                    flow.place = Place::Idle;
                }
                job
            });
            if let Some(job) = job {
                self.clock = self.clock.max(time);
                return Some((id, job));
            }
        }
        None
    }

    /// Gives back a job that was popped: neither it nor the rest of its flow may run before `until`.
    pub(crate) fn hold(&mut self, id: FlowId, job: T, until: Instant) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        flow.jobs.push_front(job);
        match flow.place {
            Place::Held(earlier) => drop(self.held.remove(&(earlier, id))),
            Place::Ready => drop(self.ready.remove(&(flow.time, id))),
            Place::Idle => {}
        }
        flow.place = Place::Held(until);
        self.held.insert((until, id));
    }

    /// When the next held flow may run again.
    pub(crate) fn next_release(&self) -> Option<Instant> {
        self.held.first().map(|(until, _)| *until)
    }

    /// A job of this flow has used CPU time.
    pub(crate) fn charge(&mut self, id: FlowId, used: Duration) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        let before = flow.time;
        flow.time += used.as_nanos() * SCALE / u128::from(flow.shares);
        if flow.place == Place::Ready {
            self.ready.remove(&(before, id));
            self.ready.insert((flow.time, id));
        }
    }

    /// Drops a flow with all its jobs.
    pub(crate) fn forget(&mut self, id: FlowId) {
        if let Some(flow) = self.flows.remove(&id) {
            self.ready.remove(&(flow.time, id));
            if let Place::Held(until) = flow.place {
                self.held.remove(&(until, id));
            }
        }
    }

    fn release(&mut self, now: Instant) {
        while let Some((until, id)) = self.held.first().copied().filter(|(until, _)| *until <= now) {
            self.held.remove(&(until, id));
            if let Some(flow) = self.flows.get_mut(&id) {
                flow.place = Place::Ready;
                flow.time = flow.time.max(self.clock);
                self.ready.insert((flow.time, id));
            }
        }
    }
}

/// What a cap allows to be used at once after a rest.
const CAP_SPAN: Duration = Duration::from_millis(100);

/// A hard cap on CPU time: a token bucket that fills at so many percent of one core and holds what comes in [`CAP_SPAN`].
#[derive(Debug)]
pub(crate) struct Cap {
    percent: u32,
    /// Nanoseconds; below zero: overdrawn.
    level: i64,
    filled: Instant,
}

impl Cap {
    pub(crate) fn new(percent: u32, now: Instant) -> Self {
        let mut cap = Self { percent: percent.max(1), level: 0, filled: now };
        cap.level = cap.part_of(CAP_SPAN);
        cap
    }

    /// So much CPU time was used up to now.
    pub(crate) fn charge(&mut self, used: Duration, now: Instant) {
        self.fill(now);
        self.level = self.level.saturating_sub(nanos(used));
    }

    /// Until when nothing may run; `None`: it may now.
    pub(crate) fn held_until(&mut self, now: Instant) -> Option<Instant> {
        self.fill(now);
        let missing = u64::try_from(1_i64.saturating_sub(self.level)).ok().filter(|missing| *missing > 0)?;
        Some(now + Duration::from_nanos(missing.saturating_mul(100).div_ceil(u64::from(self.percent))))
    }

    fn fill(&mut self, now: Instant) {
        let gain = self.part_of(now.saturating_duration_since(self.filled));
        // What is less than a nanosecond is not lost: it comes with the next.
        if gain > 0 {
            self.level = self.level.saturating_add(gain).min(self.part_of(CAP_SPAN));
            self.filled = now;
        }
    }

    fn part_of(&self, span: Duration) -> i64 {
        nanos(span).saturating_mul(i64::from(self.percent)) / 100
    }
}

fn nanos(span: Duration) -> i64 {
    i64::try_from(span.as_nanos()).unwrap_or(i64::MAX)
}
