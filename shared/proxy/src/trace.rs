//! MeshTrace: a span for each request that is sampled, on both sides of it.
//!
//! The caller's sidecar makes a client span below what the application sent along, the called one's a server span
//! below that; each writes its own context into the request, so that the application sees it and what it passes on joins the trace.
//! Whoever is first decides whether a trace is sampled; everybody after that keeps to it.

pub mod context;
mod datadog;
mod otlp;
mod sampling;
mod span;
mod zipkin;

pub use otlp::resource_spans;
pub use span::{Kind, Span};

pub(crate) use datadog::{CONTENT_TYPE as DATADOG_TYPE, PATH as DATADOG_PATH, encode as encode_datadog};
pub(crate) use zipkin::{encode_json, encode_protobuf};

use crate::{
    exchange::Facts,
    telemetry::{Sender, Sinks, SpanKey},
    worker::Direction,
};
use context::{Forms, Incoming, Outgoing};
use http::{HeaderMap, HeaderName, HeaderValue};
use meridian_proxy_config::{TagValue, Trace, TraceBackend};
use std::sync::{Arc, OnceLock};

static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Whoever sends it asks for a trace.
static CLIENT_TRACE_ID: HeaderName = HeaderName::from_static("x-client-trace-id");

const MILLION: u32 = 1_000_000;

/// What a sidecar traces.
pub struct Tracer {
    config: Arc<Trace>,
    key: SpanKey,
    tags: Vec<(String, Tag)>,
    /// Started by the first span.
    sender: OnceLock<Option<Arc<Sender<Span>>>>,
}

enum Tag {
    Literal(String),
    Header(HeaderName, Option<String>),
}

/// A request's place in its trace.
#[derive(Debug)]
pub struct Started {
    pub context: Outgoing,
    /// The other side's span is ours as well.
    shared: bool,
    /// Of the policy, where it is sampled.
    tags: Vec<(String, String)>,
    request_id: Option<HeaderValue>,
}

impl Started {
    /// Whether there is to be a span.
    pub fn is_sampled(&self) -> bool {
        self.context.sampled
    }
}

impl Tracer {
    pub fn compile(config: Arc<Trace>) -> Self {
        let key = SpanKey::of(&config.backend);
        let tag = |tag: &meridian_proxy_config::TraceTag| match &tag.value {
            TagValue::Literal(text) => Some((tag.name.clone(), Tag::Literal(text.clone()))),
            TagValue::Header { name, default } => {
                // A name that no header has finds none.
                let header = HeaderName::try_from(name.as_str()).ok();
                let found = header.map(|header| Tag::Header(header, default.clone()));
                let instead = || default.clone().map(Tag::Literal);
                Some((tag.name.clone(), found.or_else(instead)?))
            }
        };
        let tags = config.tags.iter().filter_map(tag).collect();
        Self { key, tags, config, sender: OnceLock::new() }
    }

    /// Joins the request's trace, or begins one; the request carries its new place on.
    pub fn begin(&self, direction: Direction, headers: &mut HeaderMap) -> Started {
        let own = self.own_form();
        let incoming = context::read(headers, own);
        let asked = headers.contains_key(&CLIENT_TRACE_ID);
        let draw = || rand::random_range(0..MILLION);
        let sampled = sampling::decide(&self.config.sampling, incoming.sampled, asked, draw);
        let server = direction == Direction::Inbound;
        let shared = server && self.shares() && incoming.ids.is_some();
        let context = self.next(&incoming, sampled, shared);
        let forms = if incoming.forms.is_empty() { own.and(Forms::W3C) } else { incoming.forms.and(own) };
        context::write(headers, forms, &context);
        if !headers.contains_key(&REQUEST_ID)
            && let Ok(id) = HeaderValue::try_from(uuid::Uuid::new_v4().to_string())
        {
            headers.insert(REQUEST_ID.clone(), id);
        }
        let tags = if sampled { self.tags(headers) } else { Vec::new() };
        Started { context, shared, tags, request_id: headers.get(&REQUEST_ID).cloned() }
    }

    /// As [`Tracer::begin`], where the request may be traced; with who makes its span, if there is to be one.
    pub fn join(
        tracer: Option<&Arc<Self>>,
        direction: Direction,
        headers: &mut HeaderMap,
    ) -> Option<(Arc<Self>, Started)> {
        let tracer = tracer?;
        Some((tracer.clone(), tracer.begin(direction, headers)))
    }

    /// Hands over the span of a request that has ended.
    pub fn finish(&self, sinks: &Sinks, started: &mut Started, facts: &Facts) {
        if !started.is_sampled() {
            return;
        }
        let Some(sender) = self.sender.get_or_init(|| sinks.spans(&self.key)) else { return };
        let mut tags = std::mem::take(&mut started.tags);
        if let Some(id) = started.request_id.as_ref().and_then(|id| id.to_str().ok()) {
            tags.push(("guid:x-request-id".to_owned(), id.to_owned()));
        }
        let span = Span::of(facts, &started.context, started.shared, tags, self.splits_service());
        let bytes = span.bytes();
        sender.offer(span, bytes);
    }

    fn next(&self, incoming: &Incoming, sampled: bool, shared: bool) -> Outgoing {
        let fresh = || rand::random_range(1..=u64::MAX);
        match incoming.ids {
            Some(ids) if shared => Outgoing { trace: ids.trace, span: ids.span, parent: ids.parent, sampled },
            Some(ids) => Outgoing { trace: ids.trace, span: fresh(), parent: Some(ids.span), sampled },
            None => {
                let low = u128::from(fresh());
                let high = if self.begins_wide() { u128::from(fresh()) << 64 } else { 0 };
                Outgoing { trace: high | low, span: fresh(), parent: None, sampled }
            }
        }
    }

    fn own_form(&self) -> Forms {
        match self.config.backend {
            TraceBackend::Zipkin { .. } => Forms::B3_MULTI,
            TraceBackend::Datadog { .. } => Forms::DATADOG,
            TraceBackend::OpenTelemetry { .. } => Forms::W3C,
        }
    }

    fn begins_wide(&self) -> bool {
        match self.config.backend {
            TraceBackend::Zipkin { wide_trace_ids, .. } => wide_trace_ids,
            TraceBackend::Datadog { .. } => false,
            TraceBackend::OpenTelemetry { .. } => true,
        }
    }

    fn shares(&self) -> bool {
        matches!(self.config.backend, TraceBackend::Zipkin { shared_spans: true, .. })
    }

    fn splits_service(&self) -> bool {
        matches!(self.config.backend, TraceBackend::Datadog { split_service: true, .. })
    }

    fn tags(&self, headers: &HeaderMap) -> Vec<(String, String)> {
        let value = |tag: &Tag| match tag {
            Tag::Literal(text) => Some(text.clone()),
            Tag::Header(name, default) => {
                let found =
                    headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
                found.or_else(|| default.clone())
            }
        };
        self.tags.iter().filter_map(|(name, tag)| Some((name.clone(), value(tag)?))).collect()
    }
}

#[cfg(test)]
mod tests;
