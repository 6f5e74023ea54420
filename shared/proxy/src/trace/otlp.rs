use super::{Kind, Span};
use crate::access_log::{key_value, resource_of};
use opentelemetry_proto::tonic::{
    common::v1::InstrumentationScope,
    trace::v1::{self as wire, ResourceSpans, ScopeSpans, Status, span::SpanKind, status::StatusCode},
};
use std::sync::Arc;

// W3C's flag of a sampled trace.
const SAMPLED: u32 = 1;

/// Spans as OTLP has them, by the proxy that they are from.
pub fn resource_spans(spans: &[Span], scope: &InstrumentationScope) -> Vec<ResourceSpans> {
    let by_proxy = spans.chunk_by(|a, b| Arc::ptr_eq(&a.proxy, &b.proxy) && a.service == b.service);
    let of = |spans: &[Span]| {
        let first = spans.first()?;
        let scope_spans = vec![ScopeSpans {
            scope: Some(scope.clone()),
            spans: spans.iter().map(span).collect(),
            ..ScopeSpans::default()
        }];
        let resource = Some(resource_of(&first.proxy, &first.service));
        Some(ResourceSpans { resource, scope_spans, ..ResourceSpans::default() })
    };
    by_proxy.filter_map(of).collect()
}

fn span(span: &Span) -> wire::Span {
    let kind = match span.kind {
        Kind::Client => SpanKind::Client,
        Kind::Server => SpanKind::Server,
    };
    let status = span.error.then(|| Status { code: StatusCode::Error.into(), ..Status::default() });
    wire::Span {
        trace_id: span.trace.to_be_bytes().to_vec(),
        span_id: span.id.to_be_bytes().to_vec(),
        parent_span_id: span.parent.map(|id| id.to_be_bytes().to_vec()).unwrap_or_default(),
        flags: SAMPLED,
        name: span.name.clone(),
        kind: kind.into(),
        start_time_unix_nano: span.start_nanos,
        end_time_unix_nano: span.start_nanos.saturating_add(span.nanos),
        attributes: span
            .tags
            .iter()
            .map(|(name, value)| key_value(name, value))
            .chain([key_value("peer.service", &span.peer)])
            .collect(),
        status,
        ..wire::Span::default()
    }
}
