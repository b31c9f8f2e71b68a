//! `/metrics`: families in OpenMetrics text, which Prometheus scrapes.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit as PrometheusUnit};

use super::families::{Family, Labels, Points, Unit, families};
use super::histogram::BOUNDS;
use super::report::Report;

/// The media type of [`text`].
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A report as a scrape's answer.
pub(crate) fn text(report: &Report<'_>) -> String {
    text_of(families(report))
}

fn text_of(families: Vec<Family>) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Families(families)));
    let mut text = String::new();
    encode(&mut text, &registry).expect("a string takes everything");
    text
}

#[derive(Debug)]
struct Families(Vec<Family>);

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        self.0.iter().try_for_each(|family| family.encode(&mut encoder))
    }
}

impl Family {
    fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let kind = match &self.points {
            Points::Gauge(_) => MetricType::Gauge,
            Points::Counter(_) => MetricType::Counter,
            Points::Histogram(_) => MetricType::Histogram,
        };
        let unit = match self.unit {
            Unit::None => None,
            Unit::Seconds => Some(PrometheusUnit::Seconds),
            Unit::Bytes => Some(PrometheusUnit::Bytes),
            Unit::Ratio => Some(PrometheusUnit::Other("ratio".to_owned())),
        };
        let mut metric = encoder.encode_descriptor(self.name, self.help, unit.as_ref(), kind)?;
        self.points.encode(&mut metric)
    }
}

impl Points {
    fn encode(&self, metric: &mut MetricEncoder<'_>) -> Result<(), fmt::Error> {
        match self {
            Self::Gauge(points) => points.iter().try_for_each(|(labels, value)| with(metric, labels, |metric| metric.encode_gauge(value))),
            Self::Counter(points) => points
                .iter()
                .try_for_each(|(labels, value)| with(metric, labels, |metric| metric.encode_counter::<NoLabelSet, f64, u64>(value, None))),
            Self::Histogram(durations) => {
                let bounds = BOUNDS.into_iter().chain([f64::INFINITY]);
                let buckets: Vec<_> = bounds.zip(durations.buckets).collect();
                metric.encode_histogram::<NoLabelSet>(durations.sum, durations.count(), &buckets, None)
            }
        }
    }
}

/// Without the braces where there is nothing between them.
fn with(
    metric: &mut MetricEncoder<'_>,
    labels: &Labels,
    encode: impl FnOnce(&mut MetricEncoder<'_>) -> Result<(), fmt::Error>,
) -> Result<(), fmt::Error> {
    if labels.is_empty() { encode(metric) } else { encode(&mut metric.encode_family(labels)?) }
}
