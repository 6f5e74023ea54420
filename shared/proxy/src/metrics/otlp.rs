//! Sends a sidecar's metrics to a collector, by OTLP over gRPC.
//!
//! Rejected: OpenTelemetry's SDK. It counts in its own instruments, and exports from threads of its own; what is counted
//! here is counted already, and one task that wakes once an interval is enough. What could not be sent is not kept: the numbers are
//! cumulative, so the next message says all that the lost one did.

use super::{
    exposition::Exposition,
    gather::{Gatherer, Publication},
};
use crate::shared::Shared;
use hyper_util::rt::TokioIo;
use meridian_proxy_config::{Host, metrics::OpenTelemetry};
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_client::MetricsServiceClient;
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
    collector: OpenTelemetry,
    gatherer: Gatherer,
    publication: watch::Receiver<Option<Arc<Publication>>>,
) {
    let name = authority(&collector);
    let scrapes = &gatherer.shared.scrapes;
    let _gone = Gone { shared: gatherer.shared.clone(), name: name.clone() };
    let channel = match channel(&collector, &name, gatherer.shared.clone()) {
        Ok(channel) => channel,
        Err(error) => {
            scrapes.set_collector(&name, Some(error.to_string()));
            // Said as long as the policy names it.
            return std::future::pending().await;
        }
    };
    let mut client = MetricsServiceClient::new(channel);
    let interval = Duration::from_millis(collector.interval_millis.get());
    let mut ticks = tokio::time::interval_at(Instant::now() + interval, interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(publication) = publication.borrow().clone() else { continue };
        let deadline = Instant::now() + GATHER_LIMIT.min(interval);
        let page = gatherer.gather(&publication, deadline).await;
        let failed = export(&mut client, &gatherer, page).await.err();
        // In our words: what the collector says of it may be of any length and form.
        let reason = failed.map(|code| code.description().to_owned());
        if let Some(reason) = &reason {
            tracing::debug!(collector = name, reason, "metrics were not taken");
        }
        scrapes.set_collector(&name, reason);
    }
}

/// Sends a page. A message that is refused does not keep the others back: an application may have made it so.
///
/// # Errors
/// The last failure of a message.
async fn export(
    client: &mut MetricsServiceClient<Channel>,
    gatherer: &Gatherer,
    page: Exposition,
) -> Result<(), Code> {
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
            Ok(taken) => {
                let partial = taken.into_inner().partial_success;
                if let Some(partial) = partial.filter(|partial| partial.rejected_data_points > 0) {
                    tracing::debug!(
                        points = partial.rejected_data_points,
                        "the collector refuses some metrics"
                    );
                }
            }
            Err(status) if is_gone(status.code()) => return Err(status.code()),
            Err(status) => all = Err(status.code()),
        }
    }
    all
}

/// Whether it is the collector that fails, and not a message: each further one would only wait as long as this did.
fn is_gone(code: Code) -> bool {
    // tonic calls its own time limit `Cancelled`.
    matches!(code, Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled)
}

/// What is said of a collector ends with it.
struct Gone {
    shared: Arc<Shared>,
    name: String,
}

impl Drop for Gone {
    fn drop(&mut self) {
        self.shared.scrapes.set_collector(&self.name, None);
    }
}

fn authority(collector: &OpenTelemetry) -> String {
    match &collector.host {
        Host::Ip(address) => std::net::SocketAddr::new(*address, collector.port.get()).to_string(),
        Host::Name(name) => format!("{name}:{}", collector.port),
    }
}

/// Connects when it is first used, and again when that connection is lost.
fn channel(
    collector: &OpenTelemetry,
    authority: &str,
    shared: Arc<Shared>,
) -> Result<Channel, tonic::transport::Error> {
    let endpoint = client::endpoint(authority)?;
    let (host, port) = (collector.host.clone(), collector.port.get());
    let connector = tower::service_fn(move |_: Uri| {
        let (shared, host) = (shared.clone(), host.clone());
        async move { connect(&shared, &host, port).await.map(TokioIo::new) }
    });
    Ok(endpoint.connect_with_connector_lazy(connector))
}

async fn connect(shared: &Shared, host: &Host, port: u16) -> io::Result<TcpStream> {
    let addresses = match host {
        Host::Ip(address) => vec![*address],
        Host::Name(name) => shared.resolver.lookup(name).await?,
    };
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in addresses {
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
