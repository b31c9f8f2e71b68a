//! How durations are spread.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the buckets in seconds: from a warm start to the longest staging. What is longer has a bucket of its own.
pub(super) const BOUNDS: [f64; 14] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0];

/// Durations, counted as they come.
#[derive(Debug, Default)]
pub(super) struct Histogram {
    /// Not cumulative; the last is for what exceeds all bounds.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    sum_micros: AtomicU64,
}

/// A [`Histogram`] at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Distribution {
    /// Not cumulative; the last is for what exceeds all [`BOUNDS`].
    pub(super) buckets: [u64; BOUNDS.len() + 1],
    /// Seconds.
    pub(super) sum: f64,
}

impl Histogram {
    pub(super) fn observe(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS.len());
        if let Some(count) = self.buckets.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.sum_micros.fetch_add(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> Distribution {
        let buckets = std::array::from_fn(|bucket| self.buckets.get(bucket).map_or(0, |count| count.load(Ordering::Relaxed)));
        Distribution { buckets, sum: Duration::from_micros(self.sum_micros.load(Ordering::Relaxed)).as_secs_f64() }
    }
}

impl Distribution {
    pub(super) fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_fall_into_the_bucket_whose_bound_they_do_not_exceed() {
        let histogram = Histogram::default();
        for millis in [0, 10, 11, 100, 901_000] {
            histogram.observe(Duration::from_millis(millis));
        }
        let read = histogram.read();
        assert_eq!((read.buckets[0], read.buckets[1], read.buckets[3], read.buckets[BOUNDS.len()]), (2, 1, 1, 1));
        assert_eq!((read.count(), read.sum), (5, 901.121));
    }
}
