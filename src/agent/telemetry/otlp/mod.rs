//! Traces and metrics for an OpenTelemetry collector, over OTLP/HTTP with protobuf.
//!
//! One task posts, at each interval, the spans that have ended and the metrics as they are. A collector that is away costs spans,
//! which are counted, and points of metrics, whose counters go on from where they were.

mod messages;

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use dewar_protocol::Secret;
use opentelemetry_sdk::trace::SpanData;
use prost::Message;
use reqwest::header::{CONTENT_TYPE, HeaderMap};
use reqwest::{Client, Url, redirect};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::messages::Resource;
use super::report::{Facts, Sources};
use super::spans::QUEUE;
use crate::config::OtlpConfig;
use crate::tls::install_provider;
use crate::transfer::{NoTransfers, build};

#[cfg(test)]
mod tests;

/// Spans in one request.
const BATCH: usize = 512;
/// Requests with spans, one after the other, before it is the metrics' turn: what the queue holds. What ends meanwhile waits.
const BATCHES: usize = QUEUE / BATCH;
/// For a connection to the collector.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// For one request, its answer included.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// For what is being told, and what is left to tell, when the agent ends.
const FAREWELL: Duration = Duration::from_secs(2);

/// What posts to a collector.
pub(crate) struct Exporter {
    config: OtlpConfig,
    client: Client,
    resource: Resource,
    sources: Arc<Sources>,
    spans: Option<mpsc::Receiver<SpanData>>,
    /// Whether the last request failed: only the first of a row is logged.
    is_failing: bool,
}

/// Why the collector did not take what it was sent.
#[derive(Debug, thiserror::Error)]
enum Refused {
    /// Without the URL, which may hold a key.
    #[error("{0}")]
    Network(String),
    #[error("HTTP status {0}")]
    Status(u16),
}

impl Exporter {
    /// # Errors
    /// When there is no HTTP client.
    pub(crate) fn new(config: OtlpConfig, facts: &Facts, sources: Arc<Sources>) -> Result<Self, NoTransfers> {
        install_provider();
        let plain = || Client::builder().no_proxy().referer(false).redirect(redirect::Policy::none());
        let client = build(|| plain().connect_timeout(CONNECT_TIMEOUT).timeout(REQUEST_TIMEOUT))?;
        let spans = sources.spans.ended();
        Ok(Self { config, client, resource: Resource::of(facts), sources, spans, is_failing: false })
    }

    /// Posts until `stop` is cancelled, and what has ended by then, within [`FAREWELL`].
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let too_late = async {
            stop.cancelled().await;
            sleep(FAREWELL).await;
        };
        tokio::select! {
            () = too_late => warn!(limit = ?FAREWELL, "spans not told before the end"),
            () = self.export(&stop) => {}
        }
    }

    async fn export(&mut self, stop: &CancellationToken) {
        let period = self.config.interval;
        let mut ticks = interval_at(Instant::now() + period, period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            self.export_spans().await;
            stop.run_until_cancelled(self.export_metrics()).await;
        }
        self.export_spans().await;
    }

    async fn export_spans(&mut self) {
        for _ in 0..BATCHES {
            let Some(batch) = self.spans.as_mut().map(next_batch).filter(|batch| !batch.is_empty()) else { return };
            let spans = batch.len();
            let request = messages::traces(batch, &self.resource);
            if !self.post(&self.config.traces.expose().clone(), &request).await {
                self.sources.spans.drop_some(spans);
            }
        }
    }

    async fn export_metrics(&mut self) {
        let sources = Arc::clone(&self.sources);
        let Some(report) = sources.report().await else {
            warn!("metrics not gathered, the agent does not answer");
            return;
        };
        let request = messages::metrics(&report, &self.resource);
        self.post(&self.config.metrics.expose().clone(), &request).await;
    }

    async fn post<M: Message>(&mut self, url: &Url, request: &M) -> bool {
        let posted = send(&self.client, url, &self.config.headers, request).await;
        match (&posted, self.is_failing) {
            (Err(error), false) => warn!(%error, "OTLP collector cannot be told"),
            (Ok(()), true) => info!("OTLP collector is told again"),
            (Err(_), true) | (Ok(()), false) => {}
        }
        self.is_failing = posted.is_err();
        posted.is_ok()
    }
}

async fn send<M: Message>(client: &Client, url: &Url, headers: &Secret<HeaderMap>, request: &M) -> Result<(), Refused> {
    let request = client
        .post(url.clone())
        .headers(headers.expose().clone())
        .header(CONTENT_TYPE, "application/x-protobuf")
        .body(request.encode_to_vec());
    let answer = request.send().await.map_err(|error| Refused::Network(causes(&error.without_url())))?;
    if answer.status().is_success() { Ok(()) } else { Err(Refused::Status(answer.status().as_u16())) }
}

/// What has ended, as far as one request takes it.
fn next_batch(spans: &mut mpsc::Receiver<SpanData>) -> Vec<SpanData> {
    std::iter::from_fn(|| spans.try_recv().ok()).take(BATCH).collect()
}

fn causes(error: &dyn Error) -> String {
    let causes = std::iter::successors(error.source(), |cause: &&dyn Error| (*cause).source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
