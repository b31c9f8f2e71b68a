//! Spans of what takes long, on their way from where they end to where they are told.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracerProvider, Span, SpanData, SpanProcessor};
use tokio::sync::mpsc;
use tracing::Subscriber;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

/// Spans with this target are told; others are for the log only.
pub(crate) const TARGET: &str = "dewar::trace";

/// Spans that wait to be told; one more is dropped and counted.
pub(super) const QUEUE: usize = 4096;

/// A queue of spans that have ended. Clones share it: one is added as a layer to the process's subscriber, the agent empties it.
#[derive(Debug, Clone)]
pub struct Spans(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    queue: mpsc::Sender<SpanData>,
    ended: Mutex<Option<mpsc::Receiver<SpanData>>>,
    dropped: AtomicU64,
}

impl Default for Spans {
    fn default() -> Self {
        let (queue, ended) = mpsc::channel(QUEUE);
        Self(Arc::new(Inner { queue, ended: Mutex::new(Some(ended)), dropped: AtomicU64::new(0) }))
    }
}

impl Spans {
    /// What puts the agent's spans into the queue. Costs nothing where it is not added.
    #[must_use]
    pub fn layer<S>(&self) -> Box<dyn Layer<S> + Send + Sync>
    where
        S: Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
    {
        let provider = SdkTracerProvider::builder().with_span_processor(Processor(self.clone())).build();
        let layer = tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("dewar"))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false);
        layer.with_filter(filter_fn(|metadata| metadata.is_span() && metadata.target() == TARGET)).boxed()
    }

    /// Spans that were not told: too many waited, or nobody took them.
    pub(super) fn dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }

    pub(super) fn drop_some(&self, spans: usize) {
        self.0.dropped.fetch_add(u64::try_from(spans).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// The end of the queue. There is one.
    pub(super) fn ended(&self) -> Option<mpsc::Receiver<SpanData>> {
        self.0.ended.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

#[derive(Debug)]
struct Processor(Spans);

impl SpanProcessor for Processor {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if self.0.0.queue.try_send(span).is_err() {
            self.0.drop_some(1);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tracing::info_span;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[test]
    fn spans_are_queued_with_their_parents_and_dropped_beyond_the_bound() {
        let spans = Spans::default();
        let mut ended = spans.ended().unwrap();
        assert!(spans.ended().is_none(), "two would tell half of the spans each");
        tracing::subscriber::with_default(tracing_subscriber::registry().with(spans.layer()), || {
            let outer = info_span!(target: TARGET, "outer", app_id = "shop");
            let _entered = outer.enter();
            let _log_only = info_span!("log only").entered();
            drop(info_span!(target: TARGET, "inner"));
        });
        let (inner, outer) = (ended.try_recv().unwrap(), ended.try_recv().unwrap());
        assert_eq!((inner.name.as_ref(), outer.name.as_ref()), ("inner", "outer"));
        assert_eq!(inner.parent_span_id, outer.span_context.span_id());
        assert!(outer.attributes.iter().any(|field| field.key.as_str() == "app_id" && field.value.as_str() == "shop"));
        assert!(ended.try_recv().is_err());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(spans.layer()), || {
            for _ in 0..QUEUE + 3 {
                drop(info_span!(target: TARGET, "one of many"));
            }
        });
        assert_eq!((ended.len(), spans.dropped()), (QUEUE, 3));
    }
}
