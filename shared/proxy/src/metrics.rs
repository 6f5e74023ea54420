//! Counters without locks or look-ups on the request path.
//!
//! A series is resolved once, when a snapshot is compiled; it holds one cell a worker, which only that worker
//! writes. A scrape sums the cells.

use meridian_telemetry::metrics::escape_label;
use std::{
    collections::BTreeMap,
    fmt::{self, Write},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

pub mod applications;
pub mod envoy;
pub mod exposition;
pub mod gather;
pub mod otlp;
pub mod publish;
pub mod selection;

/// A counter with one writer.
#[derive(Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    pub fn inc(&self) {
        self.add(1);
    }

    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Upper bounds of the latency buckets, microseconds; one more bucket takes the rest.
const BOUNDS: [u64; 16] = [
    250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000, 60_000_000,
];

/// Time from a request's head to its answer's head.
#[derive(Default)]
pub struct Latency {
    buckets: [Counter; BOUNDS.len() + 1],
    sum_micros: Counter,
}

impl Latency {
    pub fn observe(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let index = BOUNDS.partition_point(|bound| *bound < micros);
        if let Some(bucket) = self.buckets.get(index) {
            bucket.inc();
        }
        self.sum_micros.add(micros);
    }
}

/// What one worker counts of one inbound, cluster or external entry.
#[derive(Default)]
pub struct TrafficCell {
    pub connections_opened: Counter,
    pub connections_closed: Counter,
    pub connect_failures: Counter,
    pub tls_failures: Counter,
    /// Requests and answers that a limit ended.
    pub timeouts: Counter,
    /// Repetitions of requests.
    pub retries: Counter,
    /// Repetitions that a limit or the budget did not allow.
    pub retries_over_budget: Counter,
    /// Repetitions that could not be, as too much of the body had passed.
    pub retries_unrepeatable: Counter,
    /// Requests and connections beyond a rate.
    pub rate_limited: Counter,
    /// Faults made on purpose.
    pub faults_delayed: Counter,
    pub faults_aborted: Counter,
    pub faults_slowed: Counter,
    /// Requests that a filter blocked, and those in which it found something and let them pass.
    pub filter_blocked: Counter,
    pub filter_observed: Counter,
    /// Scripts that failed or exceeded a limit, and requests that scripts answered.
    pub scripts_failed: Counter,
    pub scripts_answered: Counter,
    /// Requests and connections refused, as there was too much under way.
    pub overflows: Counter,
    /// Endpoints left out by outlier detection, each time.
    pub ejections: Counter,
    /// Health checks, those that failed, and endpoints that became unhealthy.
    pub health_checks: Counter,
    pub health_check_failures: Counter,
    pub health_losses: Counter,
    /// Copies of requests to here, and those that were left out or given up.
    pub mirrored: Counter,
    pub mirrors_dropped: Counter,
    pub bytes_in: Counter,
    pub bytes_out: Counter,
    /// By the first digit of the status, 1 to 5; 0: no answer.
    pub requests: [Counter; 6],
    pub latency: Latency,
}

impl TrafficCell {
    /// Counts an answered (or, with status 0, unanswered) request.
    pub fn request(&self, status: u16, took: Duration) {
        if let Some(counter) = self.requests.get(usize::from(status / 100)) {
            counter.inc();
        }
        self.latency.observe(took);
    }
}

/// Counts a connection as open until dropped.
pub struct Open<'a>(&'a TrafficCell);

impl<'a> Open<'a> {
    pub fn new(cell: &'a TrafficCell) -> Self {
        cell.connections_opened.inc();
        Self(cell)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.connections_closed.inc();
    }
}

/// One series, by direction and name.
pub struct Traffic {
    pub direction: &'static str,
    pub name: String,
    cells: Box<[TrafficCell]>,
}

impl Traffic {
    /// The cell that this worker alone writes.
    pub fn cell(&self, worker: usize) -> &TrafficCell {
        // The modulo keeps a wrong index harmless; there is at least one cell.
        #[expect(clippy::indexing_slicing, reason = "the index is below the length, which is never 0")]
        &self.cells[worker % self.cells.len()]
    }

    /// A number that is another one once somebody has called: connections, requests or bytes.
    pub fn activity(&self) -> u64 {
        let cells = self.cells.iter().map(|cell| {
            let counters = [&cell.connections_opened, &cell.bytes_in, &cell.bytes_out];
            counters.into_iter().chain(&cell.requests).map(Counter::value).fold(0, u64::wrapping_add)
        });
        cells.fold(0, u64::wrapping_add)
    }

    fn sum(&self, read: impl Fn(&TrafficCell) -> &Counter) -> u64 {
        self.cells.iter().map(|cell| read(cell).value()).sum()
    }
}

/// What a worker counts beside traffic.
#[derive(Default)]
pub struct WorkerMetrics {
    pub accepted: Counter,
    pub accept_errors: Counter,
    pub handshakes: Counter,
    pub handshake_failures: Counter,
    pub denials: Counter,
    /// Plaintext connections that a PERMISSIVE inbound let in.
    pub plaintext_admitted: Counter,
}

pub struct Metrics {
    workers: Box<[Arc<WorkerMetrics>]>,
    traffic: Mutex<BTreeMap<(&'static str, String), Arc<Traffic>>>,
}

type Series = (&'static str, &'static str, fn(&Traffic) -> u64);

const SERIES: [Series; 25] = [
    ("connections_opened_total", "Connections opened.", |t| t.sum(|c| &c.connections_opened)),
    ("connections_closed_total", "Connections closed.", |t| t.sum(|c| &c.connections_closed)),
    ("connect_failures_total", "Connections to the other side that failed.", |t| {
        t.sum(|c| &c.connect_failures)
    }),
    ("tls_failures_total", "TLS sessions to the other side that failed.", |t| t.sum(|c| &c.tls_failures)),
    ("timeouts_total", "Requests ended by a time limit.", |t| t.sum(|c| &c.timeouts)),
    ("retries_total", "Requests sent once more.", |t| t.sum(|c| &c.retries)),
    ("retries_over_budget_total", "Repetitions that a limit or the budget did not allow.", |t| {
        t.sum(|c| &c.retries_over_budget)
    }),
    ("retries_unrepeatable_total", "Repetitions that could not be: too much of the body had passed.", |t| {
        t.sum(|c| &c.retries_unrepeatable)
    }),
    ("rate_limited_total", "Requests and connections beyond a rate.", |t| t.sum(|c| &c.rate_limited)),
    ("faults_delayed_total", "Requests delayed on purpose.", |t| t.sum(|c| &c.faults_delayed)),
    ("faults_aborted_total", "Requests answered by a fault.", |t| t.sum(|c| &c.faults_aborted)),
    ("faults_slowed_total", "Answers slowed down on purpose.", |t| t.sum(|c| &c.faults_slowed)),
    ("filter_blocked_total", "Requests that a filter blocked.", |t| t.sum(|c| &c.filter_blocked)),
    ("filter_observed_total", "Findings of filters in requests that passed.", |t| {
        t.sum(|c| &c.filter_observed)
    }),
    ("scripts_failed_total", "Scripts that failed or exceeded a limit.", |t| t.sum(|c| &c.scripts_failed)),
    ("scripts_answered_total", "Requests that a script answered.", |t| t.sum(|c| &c.scripts_answered)),
    ("overflows_total", "Requests and connections refused: too much was under way.", |t| {
        t.sum(|c| &c.overflows)
    }),
    ("ejections_total", "Endpoints left out, as they failed too often.", |t| t.sum(|c| &c.ejections)),
    ("health_checks_total", "Health checks of endpoints.", |t| t.sum(|c| &c.health_checks)),
    ("health_check_failures_total", "Health checks that failed.", |t| t.sum(|c| &c.health_check_failures)),
    ("health_losses_total", "Endpoints that became unhealthy.", |t| t.sum(|c| &c.health_losses)),
    ("mirrored_total", "Copies of requests.", |t| t.sum(|c| &c.mirrored)),
    ("mirrors_dropped_total", "Copies of requests that were left out or given up.", |t| {
        t.sum(|c| &c.mirrors_dropped)
    }),
    ("received_bytes_total", "Bytes from downstream.", |t| t.sum(|c| &c.bytes_in)),
    ("sent_bytes_total", "Bytes to downstream.", |t| t.sum(|c| &c.bytes_out)),
];

type WorkerSeries = (&'static str, &'static str, fn(&WorkerMetrics) -> &Counter);

const WORKER_SERIES: [WorkerSeries; 6] = [
    ("accepted_total", "Connections accepted.", |w| &w.accepted),
    ("accept_errors_total", "Failed accepts.", |w| &w.accept_errors),
    ("tls_handshakes_total", "TLS sessions from peers.", |w| &w.handshakes),
    ("tls_handshake_failures_total", "TLS sessions from peers that failed.", |w| &w.handshake_failures),
    ("denied_total", "Refusals, as seen by workers.", |w| &w.denials),
    ("plaintext_admitted_total", "Plaintext connections let in by PERMISSIVE.", |w| &w.plaintext_admitted),
];

impl Metrics {
    pub fn new(workers: usize) -> Self {
        let workers = workers.max(1);
        Self { workers: (0..workers).map(|_| Arc::default()).collect(), traffic: Mutex::default() }
    }

    /// At least 1.
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    pub fn worker(&self, index: usize) -> Arc<WorkerMetrics> {
        self.workers.get(index).cloned().unwrap_or_default()
    }

    /// The series of one name; the same for as long as the process lives.
    pub fn traffic(&self, direction: &'static str, name: &str) -> Arc<Traffic> {
        let mut all = self.traffic.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry((direction, name.to_owned()))
            .or_insert_with(|| {
                let cells = self.workers.iter().map(|_| TrafficCell::default()).collect();
                Arc::new(Traffic { direction, name: name.to_owned(), cells })
            })
            .clone()
    }

    /// Every series of traffic that there is.
    pub fn all(&self) -> Vec<Arc<Traffic>> {
        self.traffic.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Writes all of it in Prometheus' text format.
    ///
    /// # Errors
    /// Only what the writer itself says.
    pub fn render(&self, out: &mut String) -> fmt::Result {
        for (name, help, read) in WORKER_SERIES {
            header(out, name, help, "counter")?;
            let sum: u64 = self.workers.iter().map(|worker| read(worker).value()).sum();
            writeln!(out, "meridian_proxy_{name} {sum}")?;
        }
        let traffic = self.all();
        for (name, help, read) in SERIES {
            header(out, name, help, "counter")?;
            for series in &traffic {
                writeln!(out, "meridian_proxy_{name}{{{}}} {}", labels(series), read(series))?;
            }
        }
        header(out, "requests_total", "HTTP requests by class of status; 0: no answer.", "counter")?;
        for series in &traffic {
            for class in 0..6 {
                let sum: u64 =
                    series.cells.iter().filter_map(|cell| cell.requests.get(class)).map(Counter::value).sum();
                if sum > 0 {
                    let labels = labels(series);
                    writeln!(out, "meridian_proxy_requests_total{{{labels},class=\"{class}xx\"}} {sum}")?;
                }
            }
        }
        header(out, "request_duration_seconds", "Head of request to head of answer.", "histogram")?;
        traffic.iter().try_for_each(|series| histogram(out, series))
    }
}

fn header(out: &mut String, name: &str, help: &str, kind: &str) -> fmt::Result {
    writeln!(out, "# HELP meridian_proxy_{name} {help}\n# TYPE meridian_proxy_{name} {kind}")
}

fn labels(series: &Traffic) -> String {
    let name = escape_label(&series.name);
    format!("direction=\"{}\",name=\"{name}\"", series.direction)
}

fn histogram(out: &mut String, series: &Traffic) -> fmt::Result {
    let labels = labels(series);
    let count = |index: usize| -> u64 {
        series.cells.iter().filter_map(|cell| cell.latency.buckets.get(index)).map(Counter::value).sum()
    };
    let total: u64 = (0..=BOUNDS.len()).map(count).sum();
    if total == 0 {
        return Ok(());
    }
    let mut sum = 0;
    for (index, bound) in BOUNDS.iter().enumerate() {
        sum += count(index);
        let le = *bound as f64 / 1e6;
        writeln!(out, "meridian_proxy_request_duration_seconds_bucket{{{labels},le=\"{le}\"}} {sum}")?;
    }
    let seconds = series.sum(|cell| &cell.latency.sum_micros) as f64 / 1e6;
    writeln!(out, "meridian_proxy_request_duration_seconds_bucket{{{labels},le=\"+Inf\"}} {total}")?;
    writeln!(out, "meridian_proxy_request_duration_seconds_sum{{{labels}}} {seconds}")?;
    writeln!(out, "meridian_proxy_request_duration_seconds_count{{{labels}}} {total}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrape_sums_the_workers() {
        let metrics = Metrics::new(2);
        let traffic = metrics.traffic("inbound", "we\"b");
        traffic.cell(0).request(200, Duration::from_micros(300));
        traffic.cell(1).request(204, Duration::from_millis(3));
        traffic.cell(1).request(503, Duration::from_secs(100));
        let mut text = String::new();
        metrics.render(&mut text).unwrap();
        for line in [
            r#"meridian_proxy_requests_total{direction="inbound",name="we\"b",class="2xx"} 2"#,
            r#"meridian_proxy_requests_total{direction="inbound",name="we\"b",class="5xx"} 1"#,
            r#"meridian_proxy_request_duration_seconds_bucket{direction="inbound",name="we\"b",le="0.0005"} 1"#,
            r#"meridian_proxy_request_duration_seconds_bucket{direction="inbound",name="we\"b",le="60"} 2"#,
            r#"meridian_proxy_request_duration_seconds_bucket{direction="inbound",name="we\"b",le="+Inf"} 3"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
}
