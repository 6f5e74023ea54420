//! Zipkin's two encodings of version 2: JSON, and protobuf (`zipkin.proto3`).

use super::{Kind, Span};
use prost::Message;
use serde::Serialize;
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

const NANOS_A_MICRO: u64 = 1_000;

/// # Errors
/// None in fact: all that it writes is text and numbers.
pub(crate) fn encode_json(spans: &[Span]) -> Result<(Vec<u8>, usize), String> {
    let list: Vec<JsonSpan<'_>> = spans.iter().map(JsonSpan::of).collect();
    let body = serde_json::to_vec(&list).map_err(|error| error.to_string())?;
    Ok((body, spans.len()))
}

/// # Errors
/// None: the form is the other encoding's.
pub(crate) fn encode_protobuf(spans: &[Span]) -> Result<(Vec<u8>, usize), String> {
    let list = ListOfSpans { spans: spans.iter().map(WireSpan::of).collect() };
    Ok((list.encode_to_vec(), spans.len()))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JsonSpan<'a> {
    trace_id: String,
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_id: Option<String>,
    kind: &'static str,
    name: &'a str,
    timestamp: u64,
    duration: u64,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    shared: bool,
    local_endpoint: JsonEndpoint<'a>,
    remote_endpoint: JsonEndpoint<'a>,
    tags: BTreeMap<&'a str, &'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JsonEndpoint<'a> {
    service_name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    ipv4: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ipv6: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
}

impl<'a> JsonSpan<'a> {
    fn of(span: &'a Span) -> Self {
        let wide = u64::try_from(span.trace).is_err();
        Self {
            trace_id: if wide { format!("{:032x}", span.trace) } else { format!("{:016x}", span.trace) },
            id: format!("{:016x}", span.id),
            parent_id: span.parent.map(|id| format!("{id:016x}")),
            kind: match span.kind {
                Kind::Client => "CLIENT",
                Kind::Server => "SERVER",
            },
            name: &span.name,
            timestamp: span.start_nanos / NANOS_A_MICRO,
            duration: micros(span),
            shared: span.shared,
            local_endpoint: JsonEndpoint::of(&span.service, Some(span.own_address)),
            remote_endpoint: JsonEndpoint::of(&span.peer, span.peer_address),
            tags: span.tags.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect(),
        }
    }
}

/// Zipkin takes 0 for unknown.
fn micros(span: &Span) -> u64 {
    (span.nanos / NANOS_A_MICRO).max(1)
}

impl<'a> JsonEndpoint<'a> {
    fn of(service_name: &'a str, address: Option<SocketAddr>) -> Self {
        let ip = address.map(|address| address.ip());
        Self {
            service_name,
            ipv4: ip.filter(IpAddr::is_ipv4).map(|ip| ip.to_string()),
            ipv6: ip.filter(IpAddr::is_ipv6).map(|ip| ip.to_string()),
            port: address.map(|address| address.port()).filter(|port| *port != 0),
        }
    }
}

#[derive(Clone, PartialEq, Message)]
struct ListOfSpans {
    #[prost(message, repeated, tag = "1")]
    spans: Vec<WireSpan>,
}

#[derive(Clone, PartialEq, Message)]
struct WireSpan {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    parent_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    id: Vec<u8>,
    /// 1: client, 2: server.
    #[prost(int32, tag = "4")]
    kind: i32,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(fixed64, tag = "6")]
    timestamp: u64,
    #[prost(uint64, tag = "7")]
    duration: u64,
    #[prost(message, optional, tag = "8")]
    local_endpoint: Option<WireEndpoint>,
    #[prost(message, optional, tag = "9")]
    remote_endpoint: Option<WireEndpoint>,
    #[prost(btree_map = "string, string", tag = "11")]
    tags: BTreeMap<String, String>,
    #[prost(bool, tag = "13")]
    shared: bool,
}

#[derive(Clone, PartialEq, Message)]
struct WireEndpoint {
    #[prost(string, tag = "1")]
    service_name: String,
    #[prost(bytes = "vec", tag = "2")]
    ipv4: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    ipv6: Vec<u8>,
    #[prost(int32, tag = "4")]
    port: i32,
}

impl WireSpan {
    fn of(span: &Span) -> Self {
        let trace_id = match u64::try_from(span.trace) {
            Ok(short) => short.to_be_bytes().to_vec(),
            Err(_) => span.trace.to_be_bytes().to_vec(),
        };
        Self {
            trace_id,
            parent_id: span.parent.map(|id| id.to_be_bytes().to_vec()).unwrap_or_default(),
            id: span.id.to_be_bytes().to_vec(),
            kind: match span.kind {
                Kind::Client => 1,
                Kind::Server => 2,
            },
            name: span.name.clone(),
            timestamp: span.start_nanos / NANOS_A_MICRO,
            duration: micros(span),
            local_endpoint: Some(WireEndpoint::of(&span.service, Some(span.own_address))),
            remote_endpoint: Some(WireEndpoint::of(&span.peer, span.peer_address)),
            tags: span.tags.iter().cloned().collect(),
            shared: span.shared,
        }
    }
}

impl WireEndpoint {
    fn of(service_name: &str, address: Option<SocketAddr>) -> Self {
        let (mut ipv4, mut ipv6) = (Vec::new(), Vec::new());
        match address.map(|address| address.ip()) {
            Some(IpAddr::V4(ip)) => ipv4 = ip.octets().to_vec(),
            Some(IpAddr::V6(ip)) => ipv6 = ip.octets().to_vec(),
            None => {}
        }
        let port = address.map_or(0, |address| i32::from(address.port()));
        Self { service_name: service_name.to_owned(), ipv4, ipv6, port }
    }
}
