//! Load, and what came of it.

mod http1;
mod http2;
mod tcp;

use anyhow::{Result, ensure};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_rustls::rustls::ClientConfig;

/// Latencies beyond this are counted as this.
const LONGEST_MICROS: u64 = 60_000_000;
/// A day, in seconds.
const LONGEST_LOAD: f64 = 86_400.0;
/// Requests a second: one in a quarter of an hour, and more than any machine sends.
const RATES: RangeInclusive<f64> = 0.001..=1e8;
/// Idle connections are opened so many at a time: all at once would measure a storm, and each pool at its largest.
const OPENERS: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Protocol {
    /// HTTP/1.1, a connection for many requests
    Http1,
    /// HTTP/1.1, a connection for each request
    Http1Close,
    /// HTTP/2 without TLS
    Http2,
    /// Unary gRPC calls
    Grpc,
    /// gRPC streams that stay open: a message, its answer, the next message
    GrpcStream,
    /// HTTP/1.1 in TLS of the application's own
    Https,
    /// Reads what comes
    Tcp,
    /// Opens connections and leaves them alone
    Idle,
}

#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Options {
    #[arg(long)]
    pub(crate) target: SocketAddr,
    #[arg(long, value_enum)]
    pub(crate) protocol: Protocol,
    #[arg(long, default_value_t = 1)]
    pub(crate) connections: usize,
    /// At a time on each connection (HTTP/2, gRPC)
    #[arg(long, default_value_t = 1)]
    pub(crate) streams: usize,
    /// Bytes of each request's body
    #[arg(long, default_value_t = 0)]
    pub(crate) request_bytes: usize,
    /// Bytes of each answer's body
    #[arg(long, default_value_t = 65)]
    pub(crate) response_bytes: usize,
    /// Certificate that the server's must be signed by (PEM), for https
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// Whom HTTP/1.1 and TLS ask for
    #[arg(long, default_value = "bench")]
    pub(crate) host: String,
    #[arg(long)]
    pub(crate) seconds: f64,
    /// Seconds before those, in which connections are opened and nothing is counted but failures
    #[arg(long, default_value_t = 0.0)]
    pub(crate) warm_up: f64,
    /// Requests a second in all; without it as many as go. Latency then counts from when a request was due
    #[arg(long)]
    pub(crate) rate: Option<f64>,
}

/// What came of a load.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Outcome {
    pub(crate) seconds: f64,
    /// Answered as they should.
    pub(crate) requests: u64,
    pub(crate) failures: u64,
    pub(crate) bytes: u64,
    pub(crate) p50_micros: u64,
    pub(crate) p99_micros: u64,
    pub(crate) p999_micros: u64,
    pub(crate) max_micros: u64,
    /// The answer that came first.
    pub(crate) first_micros: u64,
}

/// What all connections of a load count together.
pub(crate) struct Tally {
    options: Options,
    began: Instant,
    counts: Instant,
    ends: Instant,
    /// So many requests have been given their times, where there is a rate.
    given: Cell<u64>,
    latencies: RefCell<Histogram<u64>>,
    /// The first latency, in µs; 0: there is none yet.
    first: Cell<u64>,
    failures: Cell<u64>,
    bytes: Cell<u64>,
    openers: Semaphore,
    /// Whom to believe, where the application speaks TLS itself.
    tls: Option<Arc<ClientConfig>>,
}

impl Tally {
    fn new(options: &Options) -> Result<Self> {
        let began = Instant::now();
        let counts = began + Duration::from_secs_f64(options.warm_up);
        Ok(Self {
            options: options.clone(),
            began,
            counts,
            ends: counts + Duration::from_secs_f64(options.seconds),
            given: Cell::new(0),
            latencies: RefCell::new(Histogram::new_with_bounds(1, LONGEST_MICROS, 3)?),
            first: Cell::new(0),
            failures: Cell::new(0),
            bytes: Cell::new(0),
            openers: Semaphore::new(OPENERS),
            tls: options.ca.as_deref().map(crate::external::client).transpose()?,
        })
    }

    /// When the next request begins, as its latency is counted; `None` when time is up.
    async fn turn(&self) -> Option<Instant> {
        let Some(rate) = self.options.rate else {
            let now = Instant::now();
            return (now < self.ends).then_some(now);
        };
        if self.is_over() {
            return None;
        }
        let due = self.due(self.given.replace(self.given.get() + 1), rate);
        if due > Instant::now() {
            tokio::time::sleep_until(due).await;
        }
        Some(due)
    }

    fn due(&self, number: u64, rate: f64) -> Instant {
        #[expect(clippy::cast_precision_loss, reason = "counts of requests are small")]
        let after = number as f64 / rate;
        self.began + Duration::from_secs_f64(after)
    }

    /// Whether no request will begin any more: at a rate when each has been given to a connection, which is before their times.
    fn is_over(&self) -> bool {
        let next = self.options.rate.map_or_else(Instant::now, |rate| self.due(self.given.get(), rate));
        next >= self.ends
    }

    fn answered(&self, start: Instant, bytes: usize) {
        let micros = u64::try_from(start.elapsed().as_micros()).unwrap_or(LONGEST_MICROS);
        if self.first.get() == 0 {
            self.first.set(micros.max(1));
        }
        if start < self.counts {
            return;
        }
        self.latencies.borrow_mut().saturating_record(micros.max(1));
        self.bytes.set(self.bytes.get() + bytes as u64);
    }

    fn failed(&self) {
        self.failures.set(self.failures.get() + 1);
    }

    fn outcome(&self) -> Outcome {
        let latencies = self.latencies.borrow();
        Outcome {
            seconds: self.counts.elapsed().min(Duration::from_secs_f64(self.options.seconds)).as_secs_f64(),
            requests: latencies.len(),
            failures: self.failures.get(),
            bytes: self.bytes.get(),
            p50_micros: latencies.value_at_quantile(0.5),
            p99_micros: latencies.value_at_quantile(0.99),
            p999_micros: latencies.value_at_quantile(0.999),
            max_micros: latencies.max(),
            first_micros: self.first.get(),
        }
    }
}

pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(options.connections > 0 && options.streams > 0, "there must be a connection and a stream");
    ensure!((options.protocol == Protocol::Https) == options.ca.is_some(), "--ca goes with https");
    ensure!(
        options.seconds > 0.0 && options.seconds <= LONGEST_LOAD,
        "--seconds must be more than 0 and at most {LONGEST_LOAD}"
    );
    ensure!((0.0..=LONGEST_LOAD).contains(&options.warm_up), "--warm-up must be 0 to {LONGEST_LOAD}");
    ensure!(
        options.rate.is_none_or(|rate| RATES.contains(&rate)),
        "--rate must be {} to {} requests a second",
        RATES.start(),
        RATES.end()
    );
    let outcome = super::on_one_thread(async {
        match options.protocol {
            Protocol::Http1 | Protocol::Http1Close | Protocol::Https => {
                load(options, http1::connection).await
            }
            Protocol::Http2 | Protocol::Grpc | Protocol::GrpcStream => load(options, http2::connection).await,
            Protocol::Tcp => load(options, tcp::connection).await,
            Protocol::Idle => load(options, tcp::idle).await,
        }
    })?;
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, &outcome)?;
    Ok(())
}

/// All connections of a load, to their end. A connection that fails is made anew: it may not end the load.
async fn load<F>(options: &Options, connection: impl Fn(Rc<Tally>) -> F) -> Result<Outcome>
where
    F: Future<Output = Result<()>> + 'static,
{
    let tally = Rc::new(Tally::new(options)?);
    let connections = (0..options.connections).map(|_| {
        let (tally, connection) = (tally.clone(), &connection);
        async move {
            while !tally.is_over() {
                if connection(tally.clone()).await.is_err() {
                    tally.failed();
                    tokio::task::yield_now().await;
                }
            }
        }
    });
    let all = futures::future::join_all(connections);
    // What is under way when time is up is not waited for: behind a proxy that hangs, that could be for ever.
    let grace = tally.ends + Duration::from_millis(200);
    let _ = tokio::time::timeout_at(grace, all).await;
    Ok(tally.outcome())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When the last time is given away, those that wait for theirs need the thread: a connection that has none must not begin again
    /// and again until the end.
    #[test]
    fn at_a_rate_a_connection_that_has_no_more_turns_is_over() {
        const CONNECTIONS: usize = 16;
        let options = Options {
            target: SocketAddr::from(([127, 0, 0, 1], 1)),
            protocol: Protocol::Http1,
            connections: CONNECTIONS,
            streams: 1,
            request_bytes: 0,
            response_bytes: 0,
            ca: None,
            host: String::new(),
            seconds: 0.2,
            warm_up: 0.0,
            rate: Some(200.0),
        };
        let (begun, turns) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let (counted, taken) = (begun.clone(), turns.clone());
        let connection = move |tally: Rc<Tally>| {
            let (begun, turns) = (counted.clone(), taken.clone());
            async move {
                begun.set(begun.get() + 1);
                while tally.turn().await.is_some() {
                    turns.set(turns.get() + 1);
                }
                Ok(())
            }
        };
        let _: Outcome = crate::on_one_thread(load(&options, connection)).unwrap();
        assert_eq!((begun.get(), turns.get()), (CONNECTIONS, 40));
    }
}
