use super::{
    deliver::{Export, deliver},
    file, otlp,
    post::{Post, Posted, http_uri},
    queue::{Batch, Counts, Sender, queue},
    tcp,
};
use crate::{
    metrics::otlp::client,
    trace::{self, Span},
};
use futures::future::join_all;
use meridian_proxy_config::{Collector, TraceBackend, ZipkinFormat};
use meridian_telemetry::metrics::escape_label;
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use std::{
    collections::{BTreeMap, HashMap},
    fmt::{self, Write},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, atomic::Ordering},
    time::Duration,
};
use tokio::runtime::{Builder, Handle, Runtime};

/// At the end of the process, backends have so long to take what waits for them.
pub const FLUSH_LIMIT: Duration = Duration::from_secs(5);

/// Who reads a file or a stream is a person or an agent that follows it.
const LINES: Batch = Batch { entries: 4_096, bytes: 1 << 20, linger: Duration::from_millis(20) };
/// Collectors take at most 4 MiB a message by default, and an encoded entry may be larger than its text.
const COLLECTED: Batch = Batch { entries: 512, bytes: 512 << 10, linger: Duration::from_millis(500) };

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum LineKey {
    File(PathBuf),
    /// `HOST:PORT`
    Tcp(String),
}

/// Where spans go.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SpanKey {
    Otlp(Collector),
    ZipkinJson(String),
    ZipkinProtobuf(String),
    Datadog(String),
}

/// The backends of a process: one task each, while something names it.
#[derive(Default)]
pub struct Sinks(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    runtime: Option<Runtime>,
    lines: HashMap<LineKey, Weak<Sender<Vec<u8>>>>,
    records: HashMap<Collector, Weak<Sender<otlp::Of<LogRecord>>>>,
    spans: HashMap<SpanKey, Weak<Sender<Span>>>,
    /// By name; they go on while the process lives.
    counts: BTreeMap<String, Arc<Counts>>,
}

impl Sinks {
    /// `None`: no thread could be had for it.
    pub fn lines(&self, key: &LineKey) -> Option<Arc<Sender<Vec<u8>>>> {
        let mut inner = self.inner();
        if let Some(there) = inner.lines.get(key).and_then(Weak::upgrade) {
            return Some(there);
        }
        let sender = match key {
            LineKey::File(path) => {
                inner.start(format!("file:{}", path.display()), file::Lines::new(path.clone()), LINES)
            }
            LineKey::Tcp(address) => {
                inner.start(format!("tcp:{address}"), tcp::Lines::new(address.clone()), LINES)
            }
        }?;
        inner.lines.retain(|_, sender| sender.strong_count() > 0);
        inner.lines.insert(key.clone(), Arc::downgrade(&sender));
        Some(sender)
    }

    /// OTLP log records; `None`: the collector's address can't be used.
    pub fn records(&self, collector: &Collector) -> Option<Arc<Sender<otlp::Of<LogRecord>>>> {
        let mut inner = self.inner();
        if let Some(there) = inner.records.get(collector).and_then(Weak::upgrade) {
            return Some(there);
        }
        let sender = inner.start_records(collector);
        let sender = sender.inspect_err(|error| tracing::warn!(%error, "no log backend")).ok()??;
        inner.records.retain(|_, sender| sender.strong_count() > 0);
        inner.records.insert(collector.clone(), Arc::downgrade(&sender));
        Some(sender)
    }

    /// `None`: its URL can't be used.
    pub fn spans(&self, key: &SpanKey) -> Option<Arc<Sender<Span>>> {
        let mut inner = self.inner();
        if let Some(there) = inner.spans.get(key).and_then(Weak::upgrade) {
            return Some(there);
        }
        let sender = inner.start_spans(key);
        let sender = sender.inspect_err(|error| tracing::warn!(%error, "no backend for spans")).ok()??;
        inner.spans.retain(|_, sender| sender.strong_count() > 0);
        inner.spans.insert(key.clone(), Arc::downgrade(&sender));
        Some(sender)
    }

    /// Waits until everything that was handed over is written, for at most `limit`. Whether it is.
    pub async fn flush(&self, limit: Duration) -> bool {
        let (lines, records, spans) = {
            let inner = self.inner();
            let lines: Vec<_> = inner.lines.values().filter_map(Weak::upgrade).collect();
            let records: Vec<_> = inner.records.values().filter_map(Weak::upgrade).collect();
            let spans: Vec<_> = inner.spans.values().filter_map(Weak::upgrade).collect();
            (lines, records, spans)
        };
        let all = async {
            tokio::join!(
                join_all(lines.iter().map(|sender| sender.flush())),
                join_all(records.iter().map(|sender| sender.flush())),
                join_all(spans.iter().map(|sender| sender.flush())),
            )
        };
        tokio::time::timeout(limit, all).await.is_ok()
    }

    /// Writes what became of entries in Prometheus' text format.
    ///
    /// # Errors
    /// Only what the writer itself says.
    pub fn render(&self, out: &mut String) -> fmt::Result {
        let counts: Vec<_> =
            self.inner().counts.iter().map(|(name, counts)| (name.clone(), counts.clone())).collect();
        for (name, help, read) in SERIES {
            writeln!(out, "# HELP meridian_proxy_{name} {help}\n# TYPE meridian_proxy_{name} counter")?;
            for (backend, counts) in &counts {
                let backend = escape_label(backend);
                writeln!(out, "meridian_proxy_{name}{{backend=\"{backend}\"}} {}", read(counts))?;
            }
        }
        Ok(())
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Series = (&'static str, &'static str, fn(&Counts) -> u64);

const SERIES: [Series; 3] = [
    ("telemetry_written_total", "Lines, records and spans that a backend took.", |c| {
        c.written.load(Ordering::Relaxed)
    }),
    ("telemetry_dropped_total", "Lines, records and spans that were lost.", |c| {
        c.dropped.load(Ordering::Relaxed)
    }),
    ("telemetry_failures_total", "Attempts to write to a backend that failed.", |c| {
        c.failures.load(Ordering::Relaxed)
    }),
];

impl SpanKey {
    pub fn of(backend: &TraceBackend) -> Self {
        match backend {
            TraceBackend::OpenTelemetry { collector } => Self::Otlp(collector.clone()),
            TraceBackend::Datadog { url, .. } => Self::Datadog(url.clone()),
            TraceBackend::Zipkin { url, format: ZipkinFormat::Json, .. } => Self::ZipkinJson(url.clone()),
            TraceBackend::Zipkin { url, format: ZipkinFormat::Protobuf, .. } => {
                Self::ZipkinProtobuf(url.clone())
            }
        }
    }
}

impl Inner {
    fn start<E: Export>(&mut self, name: String, export: E, batch: Batch) -> Option<Arc<Sender<E::Entry>>> {
        let runtime = self.runtime()?;
        let counts = self.counts.entry(name.clone()).or_default().clone();
        let (sender, entries) = queue(counts);
        runtime.spawn(deliver(name, entries, export, batch));
        Some(Arc::new(sender))
    }

    fn start_records(
        &mut self,
        collector: &Collector,
    ) -> Result<Option<Arc<Sender<otlp::Of<LogRecord>>>>, String> {
        let name = format!("otlp-logs:{}", client::name(collector));
        if let Some(url) = client::http_url(collector, "logs") {
            let post = Post::new(http_uri(&url)?, client::PROTOBUF);
            return Ok(self.start(name, Posted { post, encode: otlp::encode_logs }, COLLECTED));
        }
        let Some(runtime) = self.runtime() else { return Ok(None) };
        let logs = {
            // A channel is bound to the runtime that it is made in.
            let _entered = runtime.enter();
            otlp::Logs::new(&collector.endpoint).map_err(|error| format!("{name}: {error}"))?
        };
        Ok(self.start(name, logs, COLLECTED))
    }

    fn start_spans(&mut self, key: &SpanKey) -> Result<Option<Arc<Sender<Span>>>, String> {
        let zipkin = |url: &str, content_type, encode| {
            http_uri(url).map(|uri| Posted { post: Post::new(uri, content_type), encode })
        };
        Ok(match key {
            SpanKey::Otlp(collector) => {
                let name = format!("otlp-spans:{}", client::name(collector));
                if let Some(url) = client::http_url(collector, "traces") {
                    let post = Post::new(http_uri(&url)?, client::PROTOBUF);
                    return Ok(self.start(name, Posted { post, encode: otlp::encode_spans }, COLLECTED));
                }
                let Some(runtime) = self.runtime() else { return Ok(None) };
                let spans = {
                    // A channel is bound to the runtime that it is made in.
                    let _entered = runtime.enter();
                    otlp::Spans::new(&collector.endpoint).map_err(|error| format!("{name}: {error}"))?
                };
                self.start(name, spans, COLLECTED)
            }
            SpanKey::ZipkinJson(url) => {
                let post = zipkin(url, "application/json", trace::encode_json)?;
                self.start(format!("zipkin:{url}"), post, COLLECTED)
            }
            SpanKey::ZipkinProtobuf(url) => {
                let post = zipkin(url, "application/x-protobuf", trace::encode_protobuf)?;
                self.start(format!("zipkin:{url}"), post, COLLECTED)
            }
            SpanKey::Datadog(url) => {
                let uri = http_uri(&format!("{}{}", url.trim_end_matches('/'), trace::DATADOG_PATH))?;
                let post = Post::new(uri, trace::DATADOG_TYPE).counting("x-datadog-trace-count");
                let posted = Posted { post, encode: trace::encode_datadog };
                self.start(format!("datadog:{url}"), posted, COLLECTED)
            }
        })
    }

    /// The thread that writes; started by the first backend.
    fn runtime(&mut self) -> Option<Handle> {
        if self.runtime.is_none() {
            let built = Builder::new_multi_thread()
                .worker_threads(1)
                .max_blocking_threads(BLOCKING_THREADS)
                .thread_name("telemetry")
                .enable_all()
                .build();
            match built {
                Ok(runtime) => self.runtime = Some(runtime),
                Err(error) => tracing::error!(%error, "nothing can be logged or traced"),
            }
        }
        self.runtime.as_ref().map(|runtime| runtime.handle().clone())
    }
}

/// For files and host names, which block: one that hangs must not hold up the others.
const BLOCKING_THREADS: usize = 8;

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Dropped, it would wait for a write that may hang.
            runtime.shutdown_background();
        }
    }
}
