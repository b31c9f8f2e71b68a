//! Time as the core sees it: two readings that the edge takes once per input.

use std::ops::{Add, Sub};
use std::time::Duration;

use dewar_protocol::UnixSeconds;

/// The moment of an input. Deadlines use `mono`, timestamps on the wire use `wall`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Never goes back.
    pub mono: Mono,
    /// May jump.
    pub wall: Wall,
}

/// Time since the process started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mono(pub Duration);

impl Add<Duration> for Mono {
    type Output = Mono;
    fn add(self, span: Duration) -> Mono {
        Mono(self.0.saturating_add(span))
    }
}

impl Sub for Mono {
    type Output = Duration;
    /// Zero where `earlier` is in fact later.
    fn sub(self, earlier: Mono) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// Time since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Wall(pub Duration);

impl Wall {
    /// As the protocol's fractional seconds.
    #[must_use]
    pub fn to_unix(self) -> UnixSeconds {
        UnixSeconds(self.0.as_secs_f64())
    }

    /// Whole seconds.
    #[must_use]
    pub fn whole_seconds(self) -> i64 {
        i64::try_from(self.0.as_secs()).unwrap_or(i64::MAX)
    }
}
