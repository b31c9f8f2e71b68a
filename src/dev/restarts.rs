//! When an app that crashed is started again, pure.

use std::time::Duration;

/// Pause after the first crash of a row; each further one doubles it.
const FIRST: Duration = Duration::from_secs(1);
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(30);
/// An app without a crash for this long has recovered: the next one is a first one.
const RECOVERED: Duration = Duration::from_secs(60);

/// Crashes of one app in a row.
#[derive(Debug, Default)]
pub(crate) struct Restarts {
    in_a_row: u32,
    last: Option<Duration>,
}

impl Restarts {
    /// An instance has crashed at `now` (since any fixed moment); when to start it again, from now.
    pub(crate) fn crashed(&mut self, now: Duration) -> Duration {
        let recovered = self.last.is_some_and(|last| now.saturating_sub(last) >= RECOVERED);
        self.in_a_row = if recovered { 1 } else { self.in_a_row.saturating_add(1) };
        self.last = Some(now);
        FIRST.saturating_mul(1 << (self.in_a_row - 1).min(16)).min(LONGEST)
    }

    /// The app was changed; what its earlier self did does not count.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_until_the_app_recovers() {
        let mut restarts = Restarts::default();
        let at = Duration::from_secs;
        let pauses: Vec<u64> = (0..7).map(|second| restarts.crashed(at(second)).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(restarts.crashed(at(65)), at(30));
        assert_eq!(restarts.crashed(at(125)), at(1));
        restarts.crashed(at(126));
        restarts.reset();
        assert_eq!(restarts.crashed(at(127)), at(1));
        let mut constant = Restarts::default();
        for _ in 0..100 {
            assert!(constant.crashed(at(0)) <= LONGEST);
        }
    }
}
