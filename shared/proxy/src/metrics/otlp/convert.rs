//! From a page of metrics to OpenTelemetry's messages.

use super::client;
use crate::{
    access_log::key_value as pair,
    metrics::exposition::{Exposition, Family, Kind, Part, Sample},
};
use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest,
    common::v1::KeyValue,
    metrics::v1::{
        AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint,
        ResourceMetrics, ScopeMetrics, Sum, Summary, SummaryDataPoint, metric::Data, number_data_point,
        summary_data_point::ValueAtQuantile,
    },
    resource::v1::Resource,
};
use prost::Message;
use std::{collections::BTreeMap, mem};

/// Points of one message: mostly some hundred KiB.
const MAX_POINTS: usize = 2_000;
/// Bytes of one message, where points are large: gRPC servers take 4 MiB, and what is around the points needs room, too.
const MAX_BYTES: usize = 2 << 20;
/// Bytes of a help text, which every part of a large family repeats. What is longer helps nobody and is left out.
const MAX_HELP: usize = 4 << 10;
/// Bytes that say how long a point is, and what it is.
const FRAME: usize = 8;

const CUMULATIVE: i32 = AggregationTemporality::Cumulative as i32;

/// Nanoseconds since 1970.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// Of this process: since when it counts.
    pub started: u64,
    pub now: u64,
}

/// The messages that say a page. None is larger than a collector takes, unless a single point is.
pub fn messages(
    page: Exposition,
    identity: &[(&'static str, String)],
    clock: Clock,
) -> Vec<ExportMetricsServiceRequest> {
    let mut messages = Vec::new();
    let (mut metrics, mut size) = (Vec::new(), Size::default());
    for (name, family) in page.families {
        for (metric, its) in convert(&name, family, clock) {
            if size.plus(its).is_too_large() && !metrics.is_empty() {
                messages.push(message(mem::take(&mut metrics), identity));
                size = Size::default();
            }
            metrics.push(metric);
            size = size.plus(its);
        }
    }
    if !metrics.is_empty() {
        messages.push(message(metrics, identity));
    }
    messages
}

/// Of what goes into a message.
#[derive(Clone, Copy, Default)]
struct Size {
    points: usize,
    bytes: usize,
}

impl Size {
    fn of(points: usize, encoded: &impl Message) -> Self {
        Self { points, bytes: encoded.encoded_len() + FRAME }
    }

    fn plus(self, other: Self) -> Self {
        Self { points: self.points + other.points, bytes: self.bytes + other.bytes }
    }

    fn is_too_large(self) -> bool {
        self.points > MAX_POINTS || self.bytes > MAX_BYTES
    }
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
    let scope = client::scope();
    ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics {
            resource: Some(Resource { attributes, ..Resource::default() }),
            scope_metrics: vec![ScopeMetrics { scope: Some(scope), metrics, schema_url: String::new() }],
            schema_url: String::new(),
        }],
    }
}

/// A family as one metric, or as several where it has more points than a message takes.
fn convert(name: &str, family: Family, clock: Clock) -> Vec<(Metric, Size)> {
    let Family { kind, mut help, samples } = family;
    if help.len() > MAX_HELP {
        help.clear();
    }
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

fn chunks<T: Message>(points: Vec<T>, metric: impl Fn(Vec<T>) -> Metric) -> Vec<(Metric, Size)> {
    // Its name and help.
    let empty = Size::of(0, &metric(Vec::new()));
    let (mut chunk, mut size) = (Vec::new(), empty);
    let mut out = Vec::new();
    for point in points {
        let its = Size::of(1, &point);
        if size.plus(its).is_too_large() && !chunk.is_empty() {
            out.push((metric(mem::take(&mut chunk)), size));
            size = empty;
        }
        chunk.push(point);
        size = size.plus(its);
    }
    if !chunk.is_empty() {
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

    /// How many points a collector got, and of the largest message how many bytes.
    fn sizes(all: &[ExportMetricsServiceRequest]) -> (usize, usize) {
        let scopes = all.iter().flat_map(|it| &it.resource_metrics).flat_map(|it| &it.scope_metrics);
        let points = scopes.flat_map(|it| &it.metrics).map(|metric| match &metric.data {
            Some(Data::Gauge(gauge)) => gauge.data_points.len(),
            other => panic!("{other:?}"),
        });
        (points.sum(), all.iter().map(Message::encoded_len).max().unwrap())
    }

    #[test]
    fn a_message_has_so_many_bytes_at_most() {
        let long = "x".repeat(4_096);
        // In one family, and in many.
        for several in [false, true] {
            let line =
                |i: usize| format!("a{}{{i=\"{i}\",long=\"{long}\"}} 1\n", if several { i } else { 0 });
            let page: String = (0..MAX_POINTS / 2).map(line).collect();
            let all = messages(parse(&page).unwrap(), &[("mesh", "default".to_owned())], CLOCK);
            let (points, bytes) = sizes(&all);
            assert_eq!(points, MAX_POINTS / 2);
            assert!(bytes <= MAX_BYTES + 1_024 && all.len() <= 3, "{bytes} {}", all.len());
        }
    }

    #[test]
    fn what_is_too_large_alone_is_alone() {
        let page = format!("a 1\nb{{c=\"{}\"}} 2\nd 3\n", "x".repeat(2 * MAX_BYTES));
        let all = messages(parse(&page).unwrap(), &[], CLOCK);
        let sizes: Vec<bool> = all.iter().map(|message| message.encoded_len() > MAX_BYTES).collect();
        assert_eq!(sizes, [false, true, false]);
    }

    #[test]
    fn a_help_that_is_a_book_is_left_out() {
        let page = format!("# HELP a {}\na 1\n", "x".repeat(MAX_HELP + 1));
        assert_eq!(metrics(&page)[0].description, "");
    }
}
