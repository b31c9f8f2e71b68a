//! What the agent tells of itself, once gathered and told in several ways.
//!
//! ```text
//! what happens  → Telemetry (counters) ─┐
//! the cell      → Varz ─────────────────┤→ Report → /varz
//! bus, logs, operating system ──────────┘        → families → /metrics, OTLP
//!                                                → value and container metrics → loggregator
//! spans of starts and stagings → a queue → OTLP
//! ```
//!
//! Nothing here is waited for by what it is about: counters are atomic, datagrams are sent or dropped, spans are queued or dropped.

mod counters;
mod families;
mod histogram;
mod loggregator;
mod otlp;
mod process;
mod prometheus;
mod report;
mod reporter;
mod spans;
mod varz;

use std::sync::Arc;
use std::time::Duration;

use dewar_core::{InstanceKey, Sample};
use dewar_protocol::{AppId, InstanceState};
use tokio::time::Instant;

use self::counters::Counters;
pub(crate) use self::counters::Outcome;
pub(crate) use self::loggregator::Loggregator;
pub use self::loggregator::LoggregatorError;
pub(crate) use self::otlp::Exporter;
pub(crate) use self::prometheus::{CONTENT_TYPE as OPEN_METRICS, text as open_metrics};
pub(crate) use self::report::{Facts, Sources};
pub(crate) use self::reporter::report_to;
pub use self::spans::Spans;
pub(crate) use self::spans::TARGET;
pub(crate) use self::varz::varz;

/// Where what happens is counted. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Telemetry {
    counters: Arc<Counters>,
    loggregator: Option<Loggregator>,
}

impl Telemetry {
    pub(crate) fn new(loggregator: Option<Loggregator>) -> Self {
        Self { counters: Arc::default(), loggregator }
    }

    /// Where events are emitted, if anywhere.
    pub(crate) fn loggregator(&self) -> Option<&Loggregator> {
        self.loggregator.as_ref()
    }

    /// An instance changed its state.
    pub(crate) fn transition(&self, key: InstanceKey, to: InstanceState) {
        self.counters.transition(Instant::now(), key, to);
    }

    /// A staging task has ended.
    pub(crate) fn staged(&self, took: Duration, outcome: Outcome) {
        self.counters.stagings.count(took, outcome);
    }

    /// A droplet has come, or not.
    pub(crate) fn fetched(&self, took: Duration, outcome: Outcome) {
        self.counters.fetches.count(took, outcome);
    }

    /// A sandbox was asked to do something, and has done it or not.
    pub(crate) fn sandbox_call(&self, took: Duration, outcome: Outcome) {
        self.counters.sandbox_calls.count(took, outcome);
        if let Some(loggregator) = &self.loggregator {
            loggregator.counter("total_warden_response_time_in_ms", u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
            loggregator.counter("warden_request_count", 1);
            if outcome == Outcome::Failed {
                loggregator.counter("warden_error_response_count", 1);
            }
        }
    }

    /// What an instance uses was measured for the first time. There is no CPU fraction yet.
    pub(crate) fn first_sample(&self, app_id: &AppId, index: u32, sample: Sample) {
        if let Some(loggregator) = &self.loggregator {
            loggregator.container(app_id, index, 0.0, sample);
        }
    }
}
