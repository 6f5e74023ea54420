//! What all that speaks OTLP has in common: metrics here, log records and spans in [`crate::telemetry`].

use meridian_proxy_config::Collector;
use opentelemetry_proto::tonic::common::v1::InstrumentationScope;
use std::time::Duration;
use tonic::transport::{Endpoint, Error};

/// For a connection to a collector, addresses and all: longer than a lost SYN that is sent again twice.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// For one message: OTLP's own default for an export.
const EXPORT_LIMIT: Duration = Duration::from_secs(10);

/// The form of bodies over HTTP.
pub(crate) const PROTOBUF: &str = "application/x-protobuf";

/// A collector, as logs and metrics name it.
pub(crate) fn name(collector: &Collector) -> String {
    match &collector.http_path {
        Some(path) => format!("http://{}{path}", collector.endpoint),
        None => collector.endpoint.clone(),
    }
}

/// Where `logs`, `traces` or `metrics` are posted to; `None`: the collector is spoken to over gRPC.
pub(crate) fn http_url(collector: &Collector, signal: &str) -> Option<String> {
    collector.http_path.as_ref().map(|path| format!("http://{}{path}/v1/{signal}", collector.endpoint))
}

/// A collector at `HOST:PORT`, in plaintext.
///
/// # Errors
/// It is no `HOST:PORT`.
pub(crate) fn endpoint(authority: &str) -> Result<Endpoint, Error> {
    let endpoint = Endpoint::from_shared(format!("http://{authority}"))?;
    Ok(endpoint.connect_timeout(CONNECT_LIMIT).timeout(EXPORT_LIMIT))
}

/// Who counted and saw.
pub(crate) fn scope() -> InstrumentationScope {
    InstrumentationScope {
        name: "meridian".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    }
}
