//! Families and spans as the messages of OTLP.

use std::time::{SystemTime, UNIX_EPOCH};

use opentelemetry::KeyValue as Attribute;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value as Number;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum,
};
use opentelemetry_proto::tonic::resource::v1::Resource as ResourceMessage;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::Resource as SdkResource;
use opentelemetry_sdk::trace::SpanData;

use super::super::families::{Family, Labels, Points, Unit, families};
use super::super::histogram::{BOUNDS, Distribution};
use super::super::report::{Facts, Report};

/// Who all of this is about.
pub(super) struct Resource(ResourceAttributesWithSchema);

impl Resource {
    pub(super) fn of(facts: &Facts) -> Self {
        let attributes = [
            Attribute::new("service.name", "dewar-agent"),
            Attribute::new("service.version", env!("CARGO_PKG_VERSION")),
            Attribute::new("service.instance.id", facts.id.to_string()),
        ];
        Self((&SdkResource::builder_empty().with_attributes(attributes).build()).into())
    }
}

pub(super) fn traces(spans: Vec<SpanData>, resource: &Resource) -> ExportTraceServiceRequest {
    ExportTraceServiceRequest { resource_spans: group_spans_by_resource_and_scope(spans, &resource.0) }
}

pub(super) fn metrics(report: &Report<'_>, resource: &Resource) -> ExportMetricsServiceRequest {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let nanoseconds = |duration: std::time::Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    let times = Times { start: nanoseconds(now.saturating_sub(report.uptime)), now: nanoseconds(now) };
    let metrics = families(report).into_iter().map(|family| family.into_metric(times)).collect();
    let scope = InstrumentationScope { name: "dewar".to_owned(), ..InstrumentationScope::default() };
    let scope_metrics = vec![ScopeMetrics { scope: Some(scope), metrics, schema_url: String::new() }];
    let resource = ResourceMessage { attributes: resource.0.attributes.0.clone(), ..ResourceMessage::default() };
    ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics { resource: Some(resource), scope_metrics, schema_url: String::new() }],
    }
}

/// Nanoseconds since the epoch.
#[derive(Clone, Copy)]
struct Times {
    /// When counting began.
    start: u64,
    now: u64,
}

impl Family {
    fn into_metric(self, times: Times) -> Metric {
        let unit = match self.unit {
            Unit::None => "",
            Unit::Seconds => "s",
            Unit::Bytes => "By",
            Unit::Ratio => "1",
        };
        let data = match self.points {
            Points::Gauge(points) => Data::Gauge(Gauge { data_points: numbers(points, times) }),
            Points::Counter(points) => Data::Sum(Sum {
                data_points: numbers(points, times),
                aggregation_temporality: AggregationTemporality::Cumulative.into(),
                is_monotonic: true,
            }),
            Points::Histogram(durations) => Data::Histogram(Histogram {
                data_points: vec![spread(durations, times)],
                aggregation_temporality: AggregationTemporality::Cumulative.into(),
            }),
        };
        Metric {
            name: self.name.to_owned(),
            description: self.help.to_owned(),
            unit: unit.to_owned(),
            metadata: Vec::new(),
            data: Some(data),
        }
    }
}

fn numbers(points: Vec<(Labels, f64)>, times: Times) -> Vec<NumberDataPoint> {
    let point = |(labels, value): (Labels, f64)| NumberDataPoint {
        attributes: labels.into_iter().map(|(name, value)| attribute(name, value)).collect(),
        start_time_unix_nano: times.start,
        time_unix_nano: times.now,
        value: Some(Number::AsDouble(value)),
        ..NumberDataPoint::default()
    };
    points.into_iter().map(point).collect()
}

fn spread(durations: Distribution, times: Times) -> HistogramDataPoint {
    HistogramDataPoint {
        start_time_unix_nano: times.start,
        time_unix_nano: times.now,
        count: durations.count(),
        sum: Some(durations.sum),
        bucket_counts: durations.buckets.into(),
        explicit_bounds: BOUNDS.into(),
        ..HistogramDataPoint::default()
    }
}

fn attribute(name: &str, value: String) -> KeyValue {
    KeyValue { key: name.to_owned(), value: Some(AnyValue { value: Some(Value::StringValue(value)) }), ..KeyValue::default() }
}
