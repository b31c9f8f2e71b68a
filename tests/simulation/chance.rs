//! Where chance comes from: one generator, seeded.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

pub(crate) struct Chance(StdRng);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }

    /// A generator for somebody else.
    pub(crate) fn fork(&mut self) -> StdRng {
        StdRng::seed_from_u64(self.0.random())
    }

    /// True so many times in a hundred.
    pub(crate) fn percent(&mut self, times: u32) -> bool {
        self.0.random_ratio(times, 100)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0.random_range(0..bound)
    }

    /// From nothing up to this.
    pub(crate) fn pause(&mut self, longest: Duration) -> Duration {
        longest.mul_f64(self.0.random())
    }

    pub(crate) fn seconds(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_secs(from) + self.pause(Duration::from_secs(to - from))
    }

    pub(crate) fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }
}
