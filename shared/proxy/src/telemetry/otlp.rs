//! OTLP: log records and spans, over gRPC; and their messages as bodies for HTTP.

use super::deliver::{Export, Failure, Seldom};
use crate::{
    access_log::resource_of,
    metrics::otlp::client::{self, scope},
    trace::{Span, resource_spans},
};
use meridian_proxy_config::Proxy;
use opentelemetry_proto::tonic::{
    collector::{
        logs::v1::{ExportLogsServiceRequest, logs_service_client::LogsServiceClient},
        trace::v1::{ExportTraceServiceRequest, trace_service_client::TraceServiceClient},
    },
    logs::v1::{LogRecord, ResourceLogs, ScopeLogs},
};
use prost::Message;
use std::sync::Arc;
use tokio::time::Instant;
use tonic::{Code, transport::Channel};

/// Characters of what a collector says, as far as a log line has room for somebody else's words.
const MAX_REASON: usize = 200;

/// An entry, and who says it.
pub struct Of<T> {
    pub proxy: Arc<Proxy>,
    pub entry: T,
}

pub(super) struct Logs {
    client: LogsServiceClient<Channel>,
    refusals: Seldom,
}

pub(super) struct Spans {
    client: TraceServiceClient<Channel>,
    refusals: Seldom,
}

impl Logs {
    /// # Errors
    /// `endpoint` is no `HOST:PORT`.
    pub(super) fn new(endpoint: &str) -> Result<Self, tonic::transport::Error> {
        let client = LogsServiceClient::new(channel(endpoint)?);
        Ok(Self { client, refusals: Seldom::default() })
    }
}

impl Spans {
    /// # Errors
    /// `endpoint` is no `HOST:PORT`.
    pub(super) fn new(endpoint: &str) -> Result<Self, tonic::transport::Error> {
        let client = TraceServiceClient::new(channel(endpoint)?);
        Ok(Self { client, refusals: Seldom::default() })
    }
}

fn channel(endpoint: &str) -> Result<Channel, tonic::transport::Error> {
    Ok(client::endpoint(endpoint)?.connect_lazy())
}

/// OTLP's own list of what may be tried again, and what a connection that broke off is told as. In our words: a collector's
/// own may have any length and form, and would stand in a line of our log.
fn failure(code: Code) -> Failure {
    let text = code.description().to_owned();
    match code {
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
        let answer = self.client.export(logs(batch)).await.map_err(|status| failure(status.code()))?;
        if let Some(partial) = answer.into_inner().partial_success {
            let count = partial.rejected_log_records;
            refused("log records", count, &partial.error_message, &mut self.refusals);
        }
        Ok(())
    }
}

impl Export for Spans {
    type Entry = Span;

    async fn send(&mut self, batch: &[Span]) -> Result<(), Failure> {
        let answer = self.client.export(spans(batch)).await.map_err(|status| failure(status.code()))?;
        if let Some(partial) = answer.into_inner().partial_success {
            refused("spans", partial.rejected_spans, &partial.error_message, &mut self.refusals);
        }
        Ok(())
    }
}

fn logs(batch: &[Of<LogRecord>]) -> ExportLogsServiceRequest {
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
    ExportLogsServiceRequest { resource_logs: resource_logs.collect() }
}

fn spans(batch: &[Span]) -> ExportTraceServiceRequest {
    ExportTraceServiceRequest { resource_spans: resource_spans(batch, &scope()) }
}

/// # Errors
/// None in fact: memory is all that it needs.
pub(super) fn encode_logs(batch: &[Of<LogRecord>]) -> Result<(Vec<u8>, usize), String> {
    Ok((logs(batch).encode_to_vec(), batch.len()))
}

/// # Errors
/// As [`encode_logs`].
pub(super) fn encode_spans(batch: &[Span]) -> Result<(Vec<u8>, usize), String> {
    Ok((spans(batch).encode_to_vec(), batch.len()))
}

/// A collector may take a message and refuse some of what is in it: it would do so again.
fn refused(what: &str, count: i64, reason: &str, refusals: &mut Seldom) {
    if count > 0 && refusals.may(Instant::now()) {
        tracing::warn!(what, count, reason = one_line(reason), "the collector refuses some");
    }
}

/// Somebody else's words, as far as they fit into a line.
fn one_line(text: &str) -> String {
    text.chars().map(|char| if char.is_control() { ' ' } else { char }).take(MAX_REASON).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Status;

    #[test]
    fn a_collectors_words_make_no_lines() {
        assert_eq!(one_line("too old\nERROR\r\u{1b}[31m"), "too old ERROR  [31m");
        assert_eq!(one_line(&"ä".repeat(10 * MAX_REASON)).chars().count(), MAX_REASON);
        assert_eq!(one_line(""), "");
    }

    #[test]
    fn what_failed_is_told_in_our_words() {
        let said = |status: Status| match failure(status.code()) {
            Failure::Again(text) => (true, text),
            Failure::Rejected(text) => (false, text),
        };
        let liar = "gone\n2026-01-01 INFO all is well";
        for (status, again) in [(Status::unavailable(liar), true), (Status::invalid_argument(liar), false)] {
            assert_eq!(said(status.clone()), (again, status.code().description().to_owned()));
        }
    }
}
