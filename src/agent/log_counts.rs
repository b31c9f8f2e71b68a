//! Counts log lines by level, for `/varz`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// A sink that only counts. Clones share their counts: one is added as a layer to the process's subscriber, one is asked.
#[derive(Debug, Clone, Default)]
pub struct LogCounts(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    error: AtomicU64,
    warn: AtomicU64,
    info: AtomicU64,
    debug: AtomicU64,
    trace: AtomicU64,
}

impl LogCounts {
    /// Lines so far, by level; levels without lines are absent.
    #[must_use]
    pub fn by_level(&self) -> BTreeMap<&'static str, u64> {
        let Counts { error, warn, info, debug, trace } = &*self.0;
        let levels = [("error", error), ("warn", warn), ("info", info), ("debug", debug), ("trace", trace)];
        levels.into_iter().map(|(level, count)| (level, count.load(Ordering::Relaxed))).filter(|(_, count)| *count > 0).collect()
    }
}

impl<S: Subscriber> Layer<S> for LogCounts {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let count = match *event.metadata().level() {
            Level::ERROR => &self.0.error,
            Level::WARN => &self.0.warn,
            Level::INFO => &self.0.info,
            Level::DEBUG => &self.0.debug,
            Level::TRACE => &self.0.trace,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[test]
    fn counts_by_level() {
        let counts = LogCounts::default();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(counts.clone()), || {
            tracing::warn!("one");
            tracing::warn!("two");
            tracing::info!("three");
        });
        assert_eq!(counts.by_level(), BTreeMap::from([("info", 1), ("warn", 2)]));
    }
}
