//! When a guest that still computes is to trap, so that a backtrace tells where it was.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use wasmtime::component::GuestTaskId;

/// How long after its deadline a guest that computes is given to trap by itself, since a trap says where it was.
pub(crate) const TRAP_GRACE: Duration = Duration::from_millis(100);

/// The time for all that a store does. Never, to begin with.
#[derive(Debug, Default)]
pub(crate) struct Alarm(Mutex<Option<Instant>>);

impl Alarm {
    pub(crate) fn set(&self, time: Instant) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(time);
    }

    pub(crate) fn clear(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(crate) fn has_gone(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|time| Instant::now() >= time)
    }
}

/// The same for each of several calls into one store. Calls that are not here go by the store's [`Alarm`].
#[derive(Debug, Default)]
pub(crate) struct CallDeadlines(Vec<(GuestTaskId, Instant)>);

impl CallDeadlines {
    pub(crate) fn set(&mut self, call: GuestTaskId, time: Instant) {
        self.remove(call);
        self.0.push((call, time));
    }

    pub(crate) fn remove(&mut self, call: GuestTaskId) {
        self.0.retain(|(other, _)| *other != call);
    }

    /// Whether there is one whose time is up.
    pub(crate) fn one_is_due(&self) -> bool {
        !self.0.is_empty() && {
            let now = Instant::now();
            self.0.iter().any(|(_, time)| now >= *time)
        }
    }

    pub(crate) fn is_due(&self, call: GuestTaskId) -> Option<bool> {
        self.0.iter().find(|(other, _)| *other == call).map(|(_, time)| Instant::now() >= *time)
    }
}
