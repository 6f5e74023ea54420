//! OTLP over gRPC: log records and spans.

use super::deliver::{Export, Failure};
use crate::{
    access_log::resource_of,
    trace::{Span, resource_spans},
};
use meridian_proxy_config::Proxy;
use opentelemetry_proto::tonic::{
    collector::{
        logs::v1::{ExportLogsServiceRequest, logs_service_client::LogsServiceClient},
        trace::v1::{ExportTraceServiceRequest, trace_service_client::TraceServiceClient},
    },
    common::v1::InstrumentationScope,
    logs::v1::{LogRecord, ResourceLogs, ScopeLogs},
};
use std::{sync::Arc, time::Duration};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

/// Longer than a lost SYN that is sent again twice.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// OTLP's own default for an export.
const EXPORT_LIMIT: Duration = Duration::from_secs(10);

/// An entry, and who says it.
pub struct Of<T> {
    pub proxy: Arc<Proxy>,
    pub entry: T,
}

pub(super) struct Logs(LogsServiceClient<Channel>);

pub(super) struct Spans(TraceServiceClient<Channel>);

impl Logs {
    /// # Errors
    /// `endpoint` is no `HOST:PORT`.
    pub(super) fn new(endpoint: &str) -> Result<Self, tonic::transport::Error> {
        channel(endpoint).map(|channel| Self(LogsServiceClient::new(channel)))
    }
}

impl Spans {
    /// # Errors
    /// `endpoint` is no `HOST:PORT`.
    pub(super) fn new(endpoint: &str) -> Result<Self, tonic::transport::Error> {
        channel(endpoint).map(|channel| Self(TraceServiceClient::new(channel)))
    }
}

fn channel(endpoint: &str) -> Result<Channel, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(format!("http://{endpoint}"))?;
    Ok(endpoint.connect_timeout(CONNECT_LIMIT).timeout(EXPORT_LIMIT).connect_lazy())
}

fn scope() -> InstrumentationScope {
    InstrumentationScope {
        name: "meridian".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    }
}

/// OTLP's own list of what may be tried again, and what a connection that broke off is told as.
fn failure(status: &Status) -> Failure {
    let text = format!("{:?}: {}", status.code(), status.message());
    match status.code() {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss
        | Code::ResourceExhausted
        | Code::Unknown => Failure::Again(text),
        _ => Failure::Rejected(text),
    }
}

impl Export for Logs {
    type Entry = Of<LogRecord>;

    async fn send(&mut self, batch: &[Of<LogRecord>]) -> Result<(), Failure> {
        // In a batch there is nearly always one.
        let by_proxy = batch.chunk_by(|a, b| Arc::ptr_eq(&a.proxy, &b.proxy));
        let resource_logs = by_proxy.map(|entries| ResourceLogs {
            resource: entries.first().map(|of| resource_of(&of.proxy, &of.proxy.service)),
            scope_logs: vec![ScopeLogs {
                scope: Some(scope()),
                log_records: entries.iter().map(|of| of.entry.clone()).collect(),
                ..ScopeLogs::default()
            }],
            ..ResourceLogs::default()
        });
        let request = ExportLogsServiceRequest { resource_logs: resource_logs.collect() };
        self.0.export(request).await.map(drop).map_err(|status| failure(&status))
    }
}

impl Export for Spans {
    type Entry = Span;

    async fn send(&mut self, batch: &[Span]) -> Result<(), Failure> {
        let request = ExportTraceServiceRequest { resource_spans: resource_spans(batch, &scope()) };
        self.0.export(request).await.map(drop).map_err(|status| failure(&status))
    }
}
