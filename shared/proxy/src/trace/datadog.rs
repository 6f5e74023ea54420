//! Datadog's agent, version 0.4 of its traces: MessagePack, spans by their trace.

use super::{Kind, Span};
use serde::Serialize;
use std::collections::BTreeMap;

pub(crate) const PATH: &str = "/v0.4/traces";
pub(crate) const CONTENT_TYPE: &str = "application/msgpack";

#[derive(Serialize)]
struct WireSpan<'a> {
    trace_id: u64,
    span_id: u64,
    parent_id: u64,
    name: &'static str,
    resource: &'a str,
    service: &'a str,
    r#type: &'static str,
    /// Nanoseconds.
    start: i64,
    duration: i64,
    error: i32,
    meta: BTreeMap<&'a str, String>,
    metrics: BTreeMap<&'static str, f64>,
}

/// # Errors
/// None in fact: all that it writes is text and numbers.
pub(crate) fn encode(spans: &[Span]) -> Result<(Vec<u8>, usize), String> {
    let mut traces: BTreeMap<u128, Vec<WireSpan<'_>>> = BTreeMap::new();
    for span in spans {
        traces.entry(span.trace).or_default().push(WireSpan::of(span));
    }
    let traces: Vec<Vec<WireSpan<'_>>> = traces.into_values().collect();
    let body = rmp_serde::to_vec_named(&traces).map_err(|error| error.to_string())?;
    Ok((body, traces.len()))
}

impl<'a> WireSpan<'a> {
    fn of(span: &'a Span) -> Self {
        let mut meta: BTreeMap<&str, String> =
            span.tags.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
        let kind = match span.kind {
            Kind::Client => "client",
            Kind::Server => "server",
        };
        meta.insert("span.kind", kind.to_owned());
        meta.insert("peer.service", span.peer.clone());
        let low = span.trace & u128::from(u64::MAX);
        let high = span.trace >> 64;
        if high != 0 {
            meta.insert("_dd.p.tid", format!("{high:016x}"));
        }
        let signed = |nanos: u64| i64::try_from(nanos).unwrap_or(i64::MAX);
        Self {
            trace_id: u64::try_from(low).unwrap_or_default(),
            span_id: span.id,
            parent_id: span.parent.unwrap_or_default(),
            name: "meridian.proxy",
            resource: &span.name,
            service: &span.service,
            r#type: if span.kind == Kind::Server { "web" } else { "http" },
            start: signed(span.start_nanos),
            duration: signed(span.nanos),
            error: i32::from(span.error),
            meta,
            metrics: [("_sampling_priority_v1", 1.0)].into(),
        }
    }
}
