//! What an instance uses, from one measurement to the next.

use crate::{Mono, Sample};

/// The last measurement, and what follows from the one before.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Usage {
    last: Option<(Mono, Sample)>,
    cpu: f64,
}

impl Usage {
    pub(crate) fn measure(&mut self, now: Mono, sample: Sample) {
        if let Some((then, before)) = self.last {
            let elapsed = now - then;
            if elapsed.is_zero() {
                return;
            }
            self.cpu = sample.cpu.saturating_sub(before.cpu).as_secs_f64() / elapsed.as_secs_f64();
        }
        self.last = Some((now, sample));
    }

    /// Nothing before the first measurement.
    pub(crate) fn last(&self) -> Sample {
        self.last.map(|(_, sample)| sample).unwrap_or_default()
    }

    /// Fraction of one core between the last two measurements; 0 before there are two.
    pub(crate) fn cpu(&self) -> f64 {
        self.cpu
    }
}
