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

    /// As `YYYY-MM-DD HH:MM:SS +0000`, in UTC. From the year 10000 on the year has more digits.
    #[must_use]
    pub fn to_utc_text(self) -> String {
        let seconds = self.0.as_secs();
        let (year, month, day) = civil_date(seconds / 86_400);
        let of_day = seconds % 86_400;
        format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} +0000", of_day / 3600, of_day / 60 % 60, of_day % 60)
    }
}

/// Year, month and day of the Gregorian calendar, so many days after 1970-01-01.
///
/// Counted in years that begin in March, so that the day which comes and goes is a year's last, within eras of 400 years, after
/// which the calendar repeats.
fn civil_date(days_since_epoch: u64) -> (u64, u64, u64) {
    const DAYS_TO_EPOCH: u64 = 719_468; // from 0000-03-01
    const DAYS_PER_ERA: u64 = 146_097;
    let days = days_since_epoch + DAYS_TO_EPOCH;
    let (era, of_era) = (days / DAYS_PER_ERA, days % DAYS_PER_ERA);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let months_since_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * months_since_march + 2) / 5 + 1;
    let (month, next_year) = if months_since_march < 10 { (months_since_march + 3, 0) } else { (months_since_march - 9, 1) };
    (era * 400 + year_of_era + next_year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_time_as_text() {
        let cases = [
            (0, "1970-01-01 00:00:00 +0000"),
            (951_782_399, "2000-02-28 23:59:59 +0000"),
            (951_782_400, "2000-02-29 00:00:00 +0000"),
            (951_868_800, "2000-03-01 00:00:00 +0000"),
            (1_381_932_202, "2013-10-16 14:03:22 +0000"),
            (4_107_542_399, "2100-02-28 23:59:59 +0000"),
            (4_107_542_400, "2100-03-01 00:00:00 +0000"),
            (253_402_300_799, "9999-12-31 23:59:59 +0000"),
        ];
        for (seconds, text) in cases {
            assert_eq!(Wall(Duration::from_secs(seconds)).to_utc_text(), text);
        }
        assert!(!Wall(Duration::MAX).to_utc_text().is_empty());
    }
}
