use super::{
    Counter, Gauge, Histogram, SharedCounter, SharedHistogram, escape_help, escape_label,
    histogram::{Cells, Sum},
};
use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
};

/// Registrations between two sweeps for series without handles, where nobody scrapes.
const SWEEP_EVERY: u32 = 1_024;

/// All metrics of a process. Clones share them.
#[derive(Clone, Default)]
pub struct Registry(Arc<Mutex<Families>>);

#[derive(Default)]
struct Families {
    by_name: BTreeMap<String, Family>,
    registrations: u32,
}

struct Family {
    help: String,
    series: Kind,
}

/// By rendered labels.
enum Kind {
    Counter(BTreeMap<String, Series<AtomicU64, u64>>),
    Gauge(BTreeMap<String, Series<AtomicI64, i64>>),
    Histogram(BTreeMap<String, Series<Cells, Sum>>),
    Asked(BTreeMap<String, Box<dyn Fn() -> f64 + Send + Sync>>),
}

/// The cells of live handles, and what dropped handles had counted.
struct Series<C, S> {
    cells: Vec<Arc<C>>,
    retired: S,
}

impl Registry {
    pub fn new() -> Self {
        Self::default()
    }

    /// Counters are named `..._total`.
    pub fn counter(&self, name: &str, help: &str, labels: &[(&str, &str)]) -> Counter {
        Counter::of(self.counter_cell(name, help, labels))
    }

    pub fn shared_counter(&self, name: &str, help: &str, labels: &[(&str, &str)]) -> SharedCounter {
        SharedCounter(self.counter_cell(name, help, labels))
    }

    pub fn gauge(&self, name: &str, help: &str, labels: &[(&str, &str)]) -> Gauge {
        let cell = Arc::new(AtomicI64::new(0));
        match &mut self.family(name, help, || Kind::Gauge(BTreeMap::new())).kind(name) {
            // A dropped handle has no part in the value any more.
            Some(Kind::Gauge(series)) => register(series, labels, &cell, |_, _| {}),
            _ => clash(name),
        }
        Gauge(cell)
    }

    /// A value that is asked for at each scrape (an age, a size); the last registration of a series holds. It must not
    /// use the registry.
    pub fn asked(
        &self,
        name: &str,
        help: &str,
        labels: &[(&str, &str)],
        value: impl Fn() -> f64 + Send + Sync + 'static,
    ) {
        match &mut self.family(name, help, || Kind::Asked(BTreeMap::new())).kind(name) {
            Some(Kind::Asked(series)) => drop(series.insert(render(labels), Box::new(value))),
            _ => clash(name),
        }
    }

    /// Durations, shown in seconds; named `..._seconds`.
    pub fn histogram(&self, name: &str, help: &str, labels: &[(&str, &str)]) -> Histogram {
        Histogram::of(self.histogram_cell(name, help, labels))
    }

    pub fn shared_histogram(&self, name: &str, help: &str, labels: &[(&str, &str)]) -> SharedHistogram {
        SharedHistogram::of(self.histogram_cell(name, help, labels))
    }

    /// The Prometheus text format, version 0.0.4 (`text/plain; version=0.0.4`).
    pub fn text(&self) -> String {
        let mut families = self.lock();
        let mut out = String::new();
        for (name, family) in &mut families.by_name {
            family.write(name, &mut out);
        }
        families.sweep();
        out
    }

    fn counter_cell(&self, name: &str, help: &str, labels: &[(&str, &str)]) -> Arc<AtomicU64> {
        let cell = Arc::new(AtomicU64::new(0));
        match &mut self.family(name, help, || Kind::Counter(BTreeMap::new())).kind(name) {
            Some(Kind::Counter(series)) => {
                register(series, labels, &cell, |retired, cell| *retired += cell.load(Relaxed))
            }
            _ => clash(name),
        }
        cell
    }

    fn histogram_cell(&self, name: &str, help: &str, labels: &[(&str, &str)]) -> Arc<Cells> {
        let cell = Arc::new(Cells::default());
        match &mut self.family(name, help, || Kind::Histogram(BTreeMap::new())).kind(name) {
            Some(Kind::Histogram(series)) => {
                register(series, labels, &cell, |retired, cell| retired.add(cell))
            }
            _ => clash(name),
        }
        cell
    }

    fn family(&self, name: &str, help: &str, kind: impl FnOnce() -> Kind) -> Guard<'_> {
        let mut families = self.lock();
        families.registrations += 1;
        if families.registrations >= SWEEP_EVERY {
            families.registrations = 0;
            families.sweep();
        }
        families
            .by_name
            .entry(name.to_owned())
            .or_insert_with(|| Family { help: help.to_owned(), series: kind() });
        Guard(families)
    }

    fn lock(&self) -> MutexGuard<'_, Families> {
        // A panic while the lock is held leaves counts that are merely old.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("families", &self.lock().by_name.len()).finish()
    }
}

struct Guard<'a>(MutexGuard<'a, Families>);

impl Guard<'_> {
    fn kind(&mut self, name: &str) -> Option<&mut Kind> {
        self.0.by_name.get_mut(name).map(|family| &mut family.series)
    }
}

impl Families {
    fn sweep(&mut self) {
        for family in self.by_name.values_mut() {
            match &mut family.series {
                Kind::Counter(series) => series.retain(|_, series| series.is_alive()),
                Kind::Gauge(series) => series.retain(|_, series| series.is_alive()),
                Kind::Histogram(series) => series.retain(|_, series| series.is_alive()),
                Kind::Asked(_) => {}
            }
        }
    }
}

impl<C, S: Default> Series<C, S> {
    fn is_alive(&self) -> bool {
        self.cells.iter().any(|cell| Arc::strong_count(cell) > 1)
    }

    /// Moves the counts of dropped handles to `retired`.
    fn retire(&mut self, add: impl Fn(&mut S, &C)) {
        let retired = &mut self.retired;
        self.cells.retain_mut(|cell| match Arc::get_mut(cell) {
            // `get_mut` sees all that the last handle wrote; `strong_count` alone would not.
            Some(cell) => {
                add(retired, cell);
                false
            }
            None => true,
        });
    }
}

fn register<C, S: Default>(
    series: &mut BTreeMap<String, Series<C, S>>,
    labels: &[(&str, &str)],
    cell: &Arc<C>,
    add: impl Fn(&mut S, &C),
) {
    let entry =
        series.entry(render(labels)).or_insert_with(|| Series { cells: Vec::new(), retired: S::default() });
    entry.retire(add);
    entry.cells.push(Arc::clone(cell));
}

impl Family {
    fn write(&mut self, name: &str, out: &mut String) {
        let kind = match &self.series {
            Kind::Counter(_) => "counter",
            Kind::Gauge(_) | Kind::Asked(_) => "gauge",
            Kind::Histogram(_) => "histogram",
        };
        let help = escape_help(&self.help);
        // Writing to a String can't fail.
        let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        match &self.series {
            Kind::Counter(series) => {
                for (labels, series) in series {
                    let live: u64 = series.cells.iter().map(|cell| cell.load(Relaxed)).sum();
                    let _ = writeln!(out, "{name}{} {}", braced(labels), series.retired + live);
                }
            }
            Kind::Gauge(series) => {
                for (labels, series) in series {
                    // What a dropped handle said of its own part is no longer so.
                    let live = series.cells.iter().filter(|cell| Arc::strong_count(cell) > 1);
                    let _ = writeln!(
                        out,
                        "{name}{} {}",
                        braced(labels),
                        live.map(|cell| cell.load(Relaxed)).sum::<i64>()
                    );
                }
            }
            Kind::Asked(series) => {
                for (labels, value) in series {
                    let _ = writeln!(out, "{name}{} {}", braced(labels), value());
                }
            }
            Kind::Histogram(series) => {
                for (labels, series) in series {
                    write_histogram(name, labels, series, out);
                }
            }
        }
    }
}

fn write_histogram(name: &str, labels: &str, series: &Series<Cells, Sum>, out: &mut String) {
    let mut sum = series.retired.clone();
    series.cells.iter().for_each(|cells| sum.add(cells));
    let comma = if labels.is_empty() { "" } else { "," };
    for (bound, below) in sum.shown() {
        let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {below}");
    }
    let count = sum.count();
    let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {count}");
    let _ = writeln!(out, "{name}_sum{} {}", braced(labels), sum.sum_seconds());
    let _ = writeln!(out, "{name}_count{} {count}", braced(labels));
}

/// A name used for two kinds of metric is a mistake in the program; the second is not shown.
fn clash(name: &str) {
    tracing::error!(name, "metric registered as two kinds; the second is not shown");
}

/// `a="b",c="d"`: sorted, so that the order at the call does not make another series.
fn render(labels: &[(&str, &str)]) -> String {
    let mut sorted = labels.to_vec();
    sorted.sort_unstable();
    let parts: Vec<String> =
        sorted.iter().map(|(key, value)| format!("{key}=\"{}\"", escape_label(value))).collect();
    parts.join(",")
}

fn braced(labels: &str) -> String {
    if labels.is_empty() { String::new() } else { format!("{{{labels}}}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_scrape_sums_the_cells_of_all_workers() {
        let registry = Registry::new();
        let workers: Vec<_> = (0..4)
            .map(|_| {
                let counter = registry.counter("meridian_requests_total", "Requests.", &[("service", "web")]);
                std::thread::spawn(move || {
                    (0..1_000).for_each(|_| counter.inc());
                    counter
                })
            })
            .collect();
        let handles: Vec<_> = workers.into_iter().map(|worker| worker.join().unwrap()).collect();
        let text = registry.text();
        assert!(text.contains("meridian_requests_total{service=\"web\"} 4000\n"), "{text}");
        assert!(text.contains("# TYPE meridian_requests_total counter\n"), "{text}");
        drop(handles);
    }

    #[test]
    fn a_replaced_handle_loses_no_count_and_a_dead_series_goes() {
        let registry = Registry::new();
        let old = registry.counter("c_total", "C.", &[]);
        old.add(5);
        let new = registry.counter("c_total", "C.", &[]);
        drop(old);
        new.inc();
        assert!(registry.text().contains("c_total 6\n"));
        let newest = registry.counter("c_total", "C.", &[]);
        drop(new);
        newest.inc();
        assert!(registry.text().contains("c_total 7\n"));
        drop(newest);
        assert!(registry.text().contains("c_total 7\n"), "shown once more");
        assert!(!registry.text().contains("c_total 7\n"), "then forgotten");
    }

    #[test]
    fn series_without_scrapes_do_not_pile_up() {
        let registry = Registry::new();
        for i in 0..3 * SWEEP_EVERY {
            drop(registry.counter("c_total", "C.", &[("destination", &i.to_string())]));
        }
        let Some(Kind::Counter(series)) =
            registry.lock().by_name.remove("c_total").map(|family| family.series)
        else {
            panic!("no counter");
        };
        assert!(series.len() <= SWEEP_EVERY as usize + 1, "{}", series.len());
    }

    #[test]
    fn gauges_add_up_and_labels_are_escaped_and_sorted() {
        let registry = Registry::new();
        let one = registry.gauge("open", "Open\nconnections.", &[("b", "x\"y\\z\n"), ("a", "1")]);
        let two = registry.gauge("open", "Open\nconnections.", &[("a", "1"), ("b", "x\"y\\z\n")]);
        one.set(3);
        two.add(5);
        two.sub(1);
        let text = registry.text();
        assert!(text.contains("# HELP open Open\\nconnections.\n"), "{text}");
        assert!(text.contains("open{a=\"1\",b=\"x\\\"y\\\\z\\n\"} 7\n"), "{text}");
        drop(two);
        assert!(registry.text().contains("} 3\n"), "a dropped handle has no part");
    }

    #[test]
    fn histograms_are_cumulative_and_in_seconds() {
        let registry = Registry::new();
        let histogram = registry.histogram("t_seconds", "T.", &[("x", "y")]);
        histogram.record(Duration::from_millis(10));
        histogram.record(Duration::from_secs(1_000));
        let text = registry.text();
        assert!(text.contains("t_seconds_bucket{x=\"y\",le=\"0.000064\"} 0\n"), "{text}");
        assert!(text.contains("t_seconds_bucket{x=\"y\",le=\"67.108864\"} 1\n"), "{text}");
        assert!(text.contains("t_seconds_bucket{x=\"y\",le=\"+Inf\"} 2\n"), "{text}");
        assert!(text.contains("t_seconds_sum{x=\"y\"} 1000.01\n"), "{text}");
        assert!(text.contains("t_seconds_count{x=\"y\"} 2\n"), "{text}");
    }

    #[test]
    fn a_name_of_two_kinds_keeps_the_first() {
        let registry = Registry::new();
        let counter = registry.counter("x_total", "X.", &[]);
        counter.inc();
        registry.gauge("x_total", "X.", &[]).set(9);
        assert!(registry.text().contains("x_total 1\n"));
    }

    #[test]
    fn asked_values_are_asked_at_each_scrape() {
        let registry = Registry::new();
        let age = Arc::new(AtomicU64::new(1));
        let seen = Arc::clone(&age);
        registry.asked("age_seconds", "Age.", &[], move || seen.load(Relaxed) as f64);
        assert!(registry.text().contains("age_seconds 1\n"));
        age.store(2, Relaxed);
        assert!(registry.text().contains("age_seconds 2\n"));
    }
}
