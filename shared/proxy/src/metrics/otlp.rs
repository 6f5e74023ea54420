//! Sends a sidecar's metrics to a collector, by OTLP over gRPC or HTTP.
//!
//! Rejected: OpenTelemetry's SDK. It counts in its own instruments, and exports from threads of its own; what is counted
//! here is counted already, and one task that wakes once an interval is enough. What could not be sent is not kept: the numbers are
//! cumulative, so the next message says all that the lost one did.

use super::{
    exposition::Exposition,
    gather::{Gatherer, Publication},
};
use crate::{
    shared::Shared,
    telemetry::{Failure, Post, http_uri},
};
use hyper_util::rt::TokioIo;
use meridian_proxy_config::{Collector, metrics::OpenTelemetry};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, metrics_service_client::MetricsServiceClient,
};
use prost::Message;
use std::{
    io,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{
    net::TcpStream,
    sync::watch,
    time::{Instant, MissedTickBehavior},
};
use tonic::{
    Code,
    transport::{Channel, Uri},
};

pub(crate) mod client;
mod convert;

pub use convert::{Clock, messages};

/// Applications have so long, or an interval if that is shorter.
const GATHER_LIMIT: Duration = Duration::from_secs(10);

/// Sends what there is once an interval, until dropped.
pub async fn send(
    backend: OpenTelemetry,
    gatherer: Gatherer,
    publication: watch::Receiver<Option<Arc<Publication>>>,
) {
    let name = client::name(&backend.collector);
    let scrapes = &gatherer.shared.scrapes;
    // What is said of one backend of a policy, and not of another with the same collector.
    let key = (name.clone(), backend.interval_millis.get());
    let _gone = Gone { shared: gatherer.shared.clone(), key: key.clone() };
    let mut client = match Client::new(&backend.collector, gatherer.shared.clone()) {
        Ok(client) => client,
        Err(error) => {
            scrapes.set_collector(&key, Some(error));
            // Said as long as the policy names it.
            return std::future::pending().await;
        }
    };
    let interval = Duration::from_millis(backend.interval_millis.get());
    let mut ticks = tokio::time::interval_at(Instant::now() + interval, interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(publication) = publication.borrow().clone() else { continue };
        let deadline = Instant::now() + GATHER_LIMIT.min(interval);
        let page = gatherer.gather(&publication, deadline).await;
        let reason = export(&mut client, &gatherer, page).await.err();
        if let Some(reason) = &reason {
            tracing::debug!(collector = name, reason, "metrics were not taken");
        }
        scrapes.set_collector(&key, reason);
    }
}

/// Sends a page. A message that is refused does not keep the others back: an application may have made it so.
///
/// # Errors
/// The last failure of a message.
async fn export(client: &mut Client, gatherer: &Gatherer, page: Exposition) -> Result<(), String> {
    let now = SystemTime::now();
    let nanos = |time: SystemTime| {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    };
    let started = now.checked_sub(gatherer.started.elapsed()).unwrap_or(UNIX_EPOCH);
    let clock = Clock { started: nanos(started), now: nanos(now) };
    let mut all = Ok(());
    for message in messages(page, &gatherer.identity(), clock) {
        match client.export(message).await {
            Ok(()) => {}
            // Each further one would only wait as long as this did.
            Err(Failure::Again(reason)) => return Err(reason),
            Err(Failure::Rejected(reason)) => all = Err(reason),
        }
    }
    all
}

/// A way to a collector: it connects when it is first used, and again when that connection is lost.
enum Client {
    Grpc(MetricsServiceClient<Channel>),
    Http(Post),
}

impl Client {
    /// # Errors
    /// The collector's address can't be used.
    fn new(collector: &Collector, shared: Arc<Shared>) -> Result<Self, String> {
        match client::http_url(collector, "metrics") {
            Some(url) => Ok(Self::Http(Post::new(http_uri(&url)?, client::PROTOBUF))),
            None => {
                let channel = channel(&collector.endpoint, shared).map_err(|error| error.to_string())?;
                Ok(Self::Grpc(MetricsServiceClient::new(channel)))
            }
        }
    }

    /// # Errors
    /// The collector fails, or refuses the message. In our words: its own may be of any length and form.
    async fn export(&mut self, message: ExportMetricsServiceRequest) -> Result<(), Failure> {
        let client = match self {
            Self::Http(post) => return post.send(message.encode_to_vec(), 1).await,
            Self::Grpc(client) => client,
        };
        let taken = client.export(message).await.map_err(|status| {
            let reason = status.code().description().to_owned();
            if is_gone(status.code()) { Failure::Again(reason) } else { Failure::Rejected(reason) }
        })?;
        let partial = taken.into_inner().partial_success;
        if let Some(partial) = partial.filter(|partial| partial.rejected_data_points > 0) {
            tracing::debug!(points = partial.rejected_data_points, "the collector refuses some metrics");
        }
        Ok(())
    }
}

/// Whether it is the collector that fails, and not a message.
fn is_gone(code: Code) -> bool {
    // tonic calls its own time limit `Cancelled`.
    matches!(code, Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled)
}

/// What is said of a collector ends with it.
struct Gone {
    shared: Arc<Shared>,
    key: (String, u64),
}

impl Drop for Gone {
    fn drop(&mut self) {
        self.shared.scrapes.set_collector(&self.key, None);
    }
}

fn channel(endpoint: &str, shared: Arc<Shared>) -> Result<Channel, tonic::transport::Error> {
    let (host, port) = endpoint.rsplit_once(':').unwrap_or((endpoint, ""));
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = port.parse().unwrap_or_default();
    let connector = tower::service_fn(move |_: Uri| {
        let (shared, host) = (shared.clone(), host.clone());
        async move { connect(&shared, &host, port).await.map(TokioIo::new) }
    });
    Ok(client::endpoint(endpoint)?.connect_with_connector_lazy(connector))
}

async fn connect(shared: &Shared, host: &str, port: u16) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in shared.resolver.lookup(host).await? {
        match TcpStream::connect((address, port)).await {
            Ok(stream) => {
                crate::io::tune(&stream);
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}
