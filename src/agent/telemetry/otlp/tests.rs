use std::time::Duration;

use tracing::info_span;
use tracing::subscriber::with_default;
use tracing_subscriber::layer::SubscriberExt as _;

use super::super::report::tests::sources;
use super::super::spans::{Spans, TARGET};
use super::*;
use crate::test_server::{Answer, Server};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

fn end_a_span(spans: &Spans) {
    with_default(tracing_subscriber::registry().with(spans.layer()), || drop(info_span!(target: TARGET, "one")));
}

/// Posts to this collector all the time, for an agent without a driver, one of whose spans has ended.
async fn exporter(collector: &Server, spans: Spans) -> Exporter {
    let (mut sources, _) = sources().await;
    end_a_span(&spans);
    sources.spans = spans;
    let url = |path| Secret(Url::parse(&collector.url(path)).unwrap());
    let interval = Duration::from_millis(10);
    let config = OtlpConfig { traces: url("/v1/traces"), metrics: url("/v1/metrics"), headers: Secret::default(), interval };
    let sources = Arc::new(sources);
    Exporter::new(config, &sources.facts, Arc::clone(&sources)).unwrap()
}

#[tokio::test]
async fn a_collector_that_hangs_does_not_hold_up_the_end() {
    let collector = Server::start(|_| Answer::Hang).await;
    let exporter = exporter(&collector, Spans::default()).await;
    let sources = Arc::clone(&exporter.sources);
    let stop = CancellationToken::new();
    let running = tokio::spawn(exporter.run(stop.clone()));
    let asked = async {
        while collector.requests().is_empty() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.expect("nothing is posted");
    // To be told in the end.
    end_a_span(&sources.spans);
    let stopped = Instant::now();
    stop.cancel();
    running.await.unwrap();
    assert!(stopped.elapsed() < REQUEST_TIMEOUT, "the collector was waited for");
    assert_eq!(Arc::strong_count(&sources), 1, "the agent's end waits for whoever holds these");
}

#[tokio::test]
async fn spans_that_end_all_the_time_leave_a_turn_to_the_metrics() {
    let spans = Spans::default();
    let more = spans.clone();
    let collector = Server::start(move |_| {
        end_a_span(&more);
        Answer::ok("")
    })
    .await;
    let mut exporter = exporter(&collector, spans).await;
    tokio::time::timeout(PATIENCE, exporter.export_spans()).await.expect("there is no end of spans");
    assert_eq!(collector.requests().len(), BATCHES);
}
