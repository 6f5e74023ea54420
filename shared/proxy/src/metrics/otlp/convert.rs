//! From a page of metrics to OpenTelemetry's messages.

use crate::metrics::exposition::{Exposition, Family, Kind, Part, Sample};
use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest,
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value},
    metrics::v1::{
        AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint,
        ResourceMetrics, ScopeMetrics, Sum, Summary, SummaryDataPoint, metric::Data, number_data_point,
        summary_data_point::ValueAtQuantile,
    },
    resource::v1::Resource,
};
use std::collections::BTreeMap;

/// Points of one message: some hundred KiB, far below the 4 MiB that gRPC servers take.
const MAX_POINTS: usize = 2_000;

const CUMULATIVE: i32 = AggregationTemporality::Cumulative as i32;

/// Nanoseconds since 1970.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// Of this process: since when it counts.
    pub started: u64,
    pub now: u64,
}

/// The messages that say a page.
pub fn messages(
    page: Exposition,
    identity: &[(&'static str, String)],
    clock: Clock,
) -> Vec<ExportMetricsServiceRequest> {
    let mut messages = Vec::new();
    let (mut metrics, mut points) = (Vec::new(), 0);
    for (name, family) in page.families {
        for (metric, size) in convert(&name, family, clock) {
            if points + size > MAX_POINTS && !metrics.is_empty() {
                messages.push(message(std::mem::take(&mut metrics), identity));
                points = 0;
            }
            metrics.push(metric);
            points += size;
        }
    }
    if !metrics.is_empty() {
        messages.push(message(metrics, identity));
    }
    messages
}

fn message(metrics: Vec<Metric>, identity: &[(&'static str, String)]) -> ExportMetricsServiceRequest {
    let attribute = |(name, value): &(&'static str, String)| match *name {
        "kuma_io_service" => Some(pair("service.name", value)),
        "dataplane" => Some(pair("service.instance.id", value)),
        "mesh" => Some(pair("kuma.mesh", value)),
        "kuma_io_zone" => Some(pair("kuma.zone", value)),
        _ => None,
    };
    let attributes = identity.iter().filter_map(attribute).collect();
    let scope = InstrumentationScope {
        name: "meridian".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    };
    ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics {
            resource: Some(Resource { attributes, ..Resource::default() }),
            scope_metrics: vec![ScopeMetrics { scope: Some(scope), metrics, schema_url: String::new() }],
            schema_url: String::new(),
        }],
    }
}

fn pair(key: &str, value: &str) -> KeyValue {
    let value = AnyValue { value: Some(any_value::Value::StringValue(value.to_owned())) };
    KeyValue { key: key.to_owned(), value: Some(value), ..KeyValue::default() }
}

/// A family as one metric, or as several where it has more points than a message takes; with the number of points.
fn convert(name: &str, family: Family, clock: Clock) -> Vec<(Metric, usize)> {
    let Family { kind, help, samples } = family;
    let metric = |data: Data| Metric {
        name: name.to_owned(),
        description: help.clone(),
        data: Some(data),
        ..Metric::default()
    };
    match kind {
        Kind::Counter => {
            let points = samples.into_iter().map(|sample| number(sample, true, clock)).collect();
            chunks(points, |data_points| {
                metric(Data::Sum(Sum {
                    data_points,
                    aggregation_temporality: CUMULATIVE,
                    is_monotonic: true,
                }))
            })
        }
        Kind::Gauge | Kind::Untyped => {
            let points = samples.into_iter().map(|sample| number(sample, false, clock)).collect();
            chunks(points, |data_points| metric(Data::Gauge(Gauge { data_points })))
        }
        Kind::Histogram => {
            let points = grouped(samples, "le").into_iter().map(|group| group.histogram(clock)).collect();
            chunks(points, |data_points| {
                metric(Data::Histogram(Histogram { data_points, aggregation_temporality: CUMULATIVE }))
            })
        }
        Kind::Summary => {
            let points = grouped(samples, "quantile").into_iter().map(|group| group.summary(clock)).collect();
            chunks(points, |data_points| metric(Data::Summary(Summary { data_points })))
        }
    }
}

fn chunks<T>(points: Vec<T>, metric: impl Fn(Vec<T>) -> Metric) -> Vec<(Metric, usize)> {
    let mut points = points.into_iter().peekable();
    let mut out = Vec::new();
    while points.peek().is_some() {
        let chunk: Vec<T> = points.by_ref().take(MAX_POINTS).collect();
        let size = chunk.len();
        out.push((metric(chunk), size));
    }
    out
}

fn number(sample: Sample, counts: bool, clock: Clock) -> NumberDataPoint {
    NumberDataPoint {
        start_time_unix_nano: if counts { began(&sample.labels, clock) } else { 0 },
        time_unix_nano: time(sample.timestamp, clock),
        attributes: attributes(&sample.labels),
        value: Some(number_data_point::Value::AsDouble(sample.value)),
        ..NumberDataPoint::default()
    }
}

/// Since when is counted; 0 says that nobody knows: an application began when it did.
fn began(labels: &BTreeMap<String, String>, clock: Clock) -> u64 {
    if labels.contains_key("application") { 0 } else { clock.started }
}

fn time(timestamp: Option<i64>, clock: Clock) -> u64 {
    let millis = timestamp.and_then(|millis| u64::try_from(millis).ok());
    millis.and_then(|millis| millis.checked_mul(1_000_000)).unwrap_or(clock.now)
}

fn attributes(labels: &BTreeMap<String, String>) -> Vec<KeyValue> {
    labels.iter().map(|(name, value)| pair(name, value)).collect()
}

/// The samples of one histogram or summary.
struct Group {
    labels: BTreeMap<String, String>,
    timestamp: Option<i64>,
    /// Bound or quantile, and value; by the first.
    parts: Vec<(f64, f64)>,
    sum: Option<f64>,
    count: Option<f64>,
}

fn grouped(samples: Vec<Sample>, by: &str) -> Vec<Group> {
    let mut groups: BTreeMap<BTreeMap<String, String>, Group> = BTreeMap::new();
    for Sample { part, mut labels, value, timestamp } in samples {
        let of = labels.remove(by).and_then(|text| text.parse::<f64>().ok());
        let group = groups.entry(labels).or_insert_with_key(|labels| Group {
            labels: labels.clone(),
            timestamp,
            parts: Vec::new(),
            sum: None,
            count: None,
        });
        match (part, of) {
            (Part::Sum, _) => group.sum = Some(value),
            (Part::Count, _) => group.count = Some(value),
            (Part::Bucket | Part::Value, Some(of)) => group.parts.push((of, value)),
            (Part::Bucket | Part::Value, None) => {}
        }
    }
    let mut groups: Vec<Group> = groups.into_values().collect();
    groups.iter_mut().for_each(|group| group.parts.sort_by(|(a, _), (b, _)| a.total_cmp(b)));
    groups
}

impl Group {
    /// Buckets of OpenTelemetry hold what lies between two bounds, Prometheus' all that lies below.
    fn histogram(self, clock: Clock) -> HistogramDataPoint {
        let last = self.parts.iter().find(|(bound, _)| *bound == f64::INFINITY).map(|(_, below)| *below);
        let count = whole(self.count.or(last).unwrap_or_default());
        let (mut explicit_bounds, mut bucket_counts, mut before) = (Vec::new(), Vec::new(), 0);
        for (bound, below) in self.parts.iter().filter(|(bound, _)| bound.is_finite()) {
            let below = whole(*below).clamp(before, count.max(before));
            explicit_bounds.push(*bound);
            bucket_counts.push(below - before);
            before = below;
        }
        bucket_counts.push(count.saturating_sub(before));
        HistogramDataPoint {
            start_time_unix_nano: began(&self.labels, clock),
            time_unix_nano: time(self.timestamp, clock),
            attributes: attributes(&self.labels),
            count,
            sum: self.sum,
            bucket_counts,
            explicit_bounds,
            ..HistogramDataPoint::default()
        }
    }

    fn summary(self, clock: Clock) -> SummaryDataPoint {
        let quantile = |(quantile, value): (f64, f64)| ValueAtQuantile { quantile, value };
        SummaryDataPoint {
            start_time_unix_nano: began(&self.labels, clock),
            time_unix_nano: time(self.timestamp, clock),
            attributes: attributes(&self.labels),
            count: whole(self.count.unwrap_or_default()),
            sum: self.sum.unwrap_or_default(),
            quantile_values: self.parts.into_iter().map(quantile).collect(),
            ..SummaryDataPoint::default()
        }
    }
}

/// A count. What is no number, or below zero, counts nothing.
fn whole(value: f64) -> u64 {
    value as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::exposition::parse;

    const CLOCK: Clock = Clock { started: 5, now: 9 };

    fn metrics(page: &str) -> Vec<Metric> {
        let all = messages(parse(page).unwrap(), &[("kuma_io_service", "web".to_owned())], CLOCK);
        let attributes = &all[0].resource_metrics[0].resource.as_ref().unwrap().attributes;
        assert_eq!(attributes, &[pair("service.name", "web")]);
        let scopes = all.into_iter().flat_map(|it| it.resource_metrics).flat_map(|it| it.scope_metrics);
        scopes.flat_map(|it| it.metrics).collect()
    }

    #[test]
    fn counters_know_since_when_they_count_if_they_are_the_proxys() {
        let all =
            metrics("# TYPE a counter\n# HELP a A.\na{b=\"c\"} 3\na{application=\"x\"} 4 1700000000000\n");
        let Some(Data::Sum(sum)) = &all[0].data else { panic!("{all:?}") };
        assert!(sum.is_monotonic && sum.aggregation_temporality == CUMULATIVE);
        assert_eq!((all[0].name.as_str(), all[0].description.as_str()), ("a", "A."));
        let [own, its] = &sum.data_points[..] else { panic!("{sum:?}") };
        assert_eq!((own.start_time_unix_nano, own.time_unix_nano), (5, 9));
        assert_eq!((its.start_time_unix_nano, its.time_unix_nano), (0, 1_700_000_000_000_000_000));
        assert_eq!(own.attributes, [pair("b", "c")]);
    }

    #[test]
    fn buckets_hold_what_lies_between_bounds() {
        let all = metrics(
            "# TYPE h histogram\nh_bucket{le=\"+Inf\"} 9\nh_bucket{le=\"2\"} 5\nh_bucket{le=\"1\"} 2\nh_sum 12.5\nh_count 9\n",
        );
        let Some(Data::Histogram(histogram)) = &all[0].data else { panic!("{all:?}") };
        let point = &histogram.data_points[0];
        assert_eq!(
            (point.explicit_bounds.as_slice(), point.bucket_counts.as_slice()),
            (&[1.0, 2.0][..], &[2, 3, 4][..])
        );
        assert_eq!((point.count, point.sum), (9, Some(12.5)));
        // What contradicts itself makes no negative number.
        let all = metrics("# TYPE h histogram\nh_bucket{le=\"1\"} 7\nh_bucket{le=\"2\"} NaN\nh_count 3\n");
        let Some(Data::Histogram(histogram)) = &all[0].data else { panic!("{all:?}") };
        assert_eq!(histogram.data_points[0].bucket_counts, [3, 0, 0]);
    }

    #[test]
    fn summaries_have_their_quantiles() {
        let all = metrics("# TYPE s summary\ns{quantile=\"0.5\"} 3\ns_sum 7\ns_count 2\n");
        let Some(Data::Summary(summary)) = &all[0].data else { panic!("{all:?}") };
        let point = &summary.data_points[0];
        assert_eq!((point.count, point.sum, point.quantile_values.len()), (2, 7.0, 1));
    }

    #[test]
    fn a_message_has_so_many_points_at_most() {
        let page: String = (0..2 * MAX_POINTS + 1).map(|i| format!("a{{i=\"{i}\"}} 1\n")).collect();
        let all = messages(parse(&page).unwrap(), &[], CLOCK);
        assert_eq!(all.len(), 3);
    }
}
