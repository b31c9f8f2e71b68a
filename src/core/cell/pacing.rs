//! When things go out that are long, or many: heartbeats not too close to each other, routes not all in one moment.

use std::time::Duration;

use crate::{InstanceKey, Mono};

/// A heartbeat that a change asks for comes no sooner than this after the last one. A heartbeat tells of every instance, so
/// thousands of starts in a burst would otherwise cost the square of their number.
pub(super) const HEARTBEAT_GAP: Duration = Duration::from_millis(250);

/// Pause between two parts of the routes.
pub(super) const SWEEP_STEP: Duration = Duration::from_millis(100);

/// Instances in the smallest part: fewer than these are told of in one go.
const SWEEP_LEAST: usize = 64;

/// When heartbeats go out: at every interval, and soon after a change.
#[derive(Debug, Default)]
pub(super) struct Heartbeats {
    periodic: Option<Mono>,
    /// A change that is not told yet, because the last heartbeat went out a moment ago.
    delayed: Option<Mono>,
    last: Option<Mono>,
}

impl Heartbeats {
    /// The next periodic one.
    pub(super) fn arm(&mut self, at: Mono) {
        self.periodic = Some(at);
    }

    pub(super) fn disarm(&mut self) {
        (self.periodic, self.delayed) = (None, None);
    }

    pub(super) fn next(&self) -> Option<Mono> {
        self.periodic.into_iter().chain(self.delayed).min()
    }

    /// Something has changed: whether to tell it now. If not, one heartbeat will tell it with everything that changes until then.
    pub(super) fn change(&mut self, now: Mono) -> bool {
        let earliest = self.last.map(|last| last + HEARTBEAT_GAP).filter(|earliest| *earliest > now);
        self.delayed = self.delayed.or(earliest);
        earliest.is_none()
    }

    /// Whether one is to go out by now. The periodic ones keep their time, whatever was told between them.
    pub(super) fn is_due(&mut self, now: Mono, interval: Duration) -> bool {
        let periodic = self.periodic.is_some_and(|at| at <= now);
        if periodic {
            self.periodic = Some(now + interval);
        }
        periodic || self.delayed.is_some_and(|at| at <= now)
    }

    /// One goes out.
    pub(super) fn told(&mut self, now: Mono) {
        (self.last, self.delayed) = (Some(now), None);
    }
}

/// When routes are registered again: all of them once in every interval. Where there are many, they are spread over four fifths of
/// it, so that neither the bus nor the routers get them at once.
#[derive(Debug, Default)]
pub(super) struct Sweeps {
    next: Option<Mono>,
    under_way: Option<Sweep>,
}

/// A walk over all instances, a part at a time.
#[derive(Debug, Clone, Copy)]
struct Sweep {
    began: Mono,
    /// Instances in each part.
    part: usize,
    /// The last of the part before.
    after: InstanceKey,
}

/// A part of the routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) after: InstanceKey,
    pub(super) instances: usize,
}

impl Sweeps {
    /// The next one begins then; one that is under way is given up.
    pub(super) fn arm(&mut self, at: Mono) {
        *self = Self { next: Some(at), under_way: None };
    }

    pub(super) fn disarm(&mut self) {
        *self = Self::default();
    }

    pub(super) fn next(&self) -> Option<Mono> {
        self.next
    }

    /// The part whose turn it is, if it is one's turn; [`Sweeps::done`] says how it went.
    pub(super) fn due(&mut self, now: Mono, interval: Duration, instances: usize) -> Option<Part> {
        self.next.filter(|at| *at <= now)?;
        let sweep = self.under_way.get_or_insert_with(|| {
            let steps = (interval * 4 / 5).as_millis() / SWEEP_STEP.as_millis();
            let steps = usize::try_from(steps).unwrap_or(usize::MAX).max(1);
            Sweep { began: now, part: instances.div_ceil(steps).max(SWEEP_LEAST), after: InstanceKey(0) }
        });
        Some(Part { after: sweep.after, instances: sweep.part })
    }

    /// The part ended with this instance; `None`: there were fewer than it had room for.
    pub(super) fn done(&mut self, now: Mono, interval: Duration, last: Option<InstanceKey>) {
        let Some(sweep) = &mut self.under_way else { return };
        match last {
            Some(last) => {
                sweep.after = last;
                self.next = Some(now + SWEEP_STEP);
            }
            None => {
                let next = sweep.began + interval;
                self.arm(next.max(now + SWEEP_STEP));
            }
        }
    }
}
