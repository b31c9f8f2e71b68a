//! Memory and disk: how much there is, how much is promised, whether one more fits.
//!
//! What is promised is always a sum over what is registered. The registries carry that sum along as [`Reservation`]s enter and
//! leave, so that admission does not walk them; their tests compare it with the sum made afresh.

use std::ops::{Add, Sub};

use dewar_protocol::Mib;

/// What a cell can promise, overcommitment included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Memory.
    pub memory: Mib,
    /// Disk.
    pub disk: Mib,
}

impl Capacity {
    /// So many times what the machine has, rounded down.
    #[must_use]
    pub fn overcommitted(memory: Mib, memory_factor: f64, disk: Mib, disk_factor: f64) -> Self {
        Self { memory: scaled(memory, memory_factor), disk: scaled(disk, disk_factor) }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "a float-to-integer cast saturates, which is what is wanted"
)]
fn scaled(amount: Mib, factor: f64) -> Mib {
    Mib((amount.0 as f64 * factor).floor() as i64)
}

/// Memory and disk promised to somebody. Never negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Reservation {
    pub(crate) memory: Mib,
    pub(crate) disk: Mib,
}

impl Add for Reservation {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self { memory: Mib(self.memory.0.saturating_add(other.memory.0)), disk: Mib(self.disk.0.saturating_add(other.disk.0)) }
    }
}

impl Sub for Reservation {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self { memory: Mib(self.memory.0.saturating_sub(other.memory.0)), disk: Mib(self.disk.0.saturating_sub(other.disk.0)) }
    }
}

/// What does not suffice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resource {
    Memory,
    Disk,
}

impl Resource {
    /// Its name in the texts that peers know.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Disk => "disk",
        }
    }
}

/// What is left to promise, and questions about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Remaining(Reservation);

impl Remaining {
    pub(crate) fn of(capacity: Capacity, reserved: Reservation) -> Self {
        Self(Reservation { memory: capacity.memory, disk: capacity.disk } - reserved)
    }

    pub(crate) fn memory(self) -> Mib {
        self.0.memory
    }

    pub(crate) fn disk(self) -> Mib {
        self.0.disk
    }

    /// What stands in the way of this reservation; disk is asked first.
    pub(crate) fn constrained(self, wanted: Reservation) -> Option<Resource> {
        if self.0.disk < wanted.disk {
            Some(Resource::Disk)
        } else if self.0.memory < wanted.memory {
            Some(Resource::Memory)
        } else {
            None
        }
    }

    /// How many such reservations would fit; none of one that wants no memory or no disk.
    pub(crate) fn reservable(self, each: Reservation) -> u64 {
        let fit = |left: Mib, each: Mib| left.0.checked_div(each.0).and_then(|times| u64::try_from(times).ok()).unwrap_or(0);
        fit(self.0.memory, each.memory).min(fit(self.0.disk, each.disk))
    }

    /// The free part of memory and of disk, 1 being all of it; below 0 where too much is promised.
    #[expect(clippy::cast_precision_loss, reason = "a ratio for dashboards")]
    pub(crate) fn ratios(self, capacity: Capacity) -> (f64, f64) {
        let ratio = |left: Mib, all: Mib| if all.0 == 0 { 0.0 } else { left.0 as f64 / all.0 as f64 };
        (ratio(self.0.memory, capacity.memory), ratio(self.0.disk, capacity.disk))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mib(memory: i64, disk: i64) -> Reservation {
        Reservation { memory: Mib(memory), disk: Mib(disk) }
    }

    #[test]
    fn overcommitment_rounds_down() {
        let capacity = |memory, factor| Capacity::overcommitted(Mib(memory), factor, Mib(100), 1.0).memory.0;
        assert_eq!(capacity(600, 4.0), 2400);
        assert_eq!(capacity(1001, 1.5), 1501);
        assert_eq!(capacity(8192, 1.0), 8192);
        assert_eq!(capacity(i64::MAX, 10.0), i64::MAX);
    }

    #[test]
    fn what_fits() {
        let remaining = Remaining::of(Capacity { memory: Mib(600), disk: Mib(4000) }, Reservation::default());
        let cases = [
            (mib(600, 4000), None),
            (mib(601, 4000), Some(Resource::Memory)),
            (mib(600, 4001), Some(Resource::Disk)),
            (mib(601, 4001), Some(Resource::Disk)),
            (mib(i64::MAX, 0), Some(Resource::Memory)),
            (mib(0, 0), None),
        ];
        for (wanted, constrained) in cases {
            assert_eq!(remaining.constrained(wanted), constrained, "{wanted:?}");
        }
        let nothing = Remaining::of(Capacity { memory: Mib(10), disk: Mib(10) }, mib(11, 10));
        assert_eq!(nothing.memory(), Mib(-1), "what remains may be negative");
        assert_eq!(nothing.constrained(mib(0, 0)), Some(Resource::Memory));
    }

    #[test]
    fn how_many_would_fit() {
        let remaining = Remaining::of(Capacity { memory: Mib(600), disk: Mib(4000) }, Reservation::default());
        let cases = [
            (mib(10_000, 1), 0),
            (mib(1, 10_000), 0),
            (mib(500, 3000), 1),
            (mib(200, 1500), 2),
            (mib(200, 1000), 3),
            (mib(0, 0), 0),
            (mib(1, 0), 0),
        ];
        for (each, times) in cases {
            assert_eq!(remaining.reservable(each), times, "{each:?}");
        }
        let overbooked = Remaining::of(Capacity { memory: Mib(10), disk: Mib(10) }, mib(20, 0));
        assert_eq!(overbooked.reservable(mib(1, 1)), 0);
    }

    #[test]
    fn ratios() {
        let capacity = Capacity { memory: Mib(400), disk: Mib(0) };
        assert_eq!(Remaining::of(capacity, mib(100, 0)).ratios(capacity), (0.75, 0.0));
    }
}
