use crate::Collector;
use serde::{Deserialize, Serialize};

/// Which requests of a sidecar become spans, and where these go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Trace {
    pub backend: TraceBackend,
    pub sampling: TraceSampling,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<TraceTag>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub enum TraceBackend {
    #[serde(rename_all = "camelCase")]
    Zipkin {
        /// `http://HOST[:PORT][/PATH]`
        url: String,
        format: ZipkinFormat,
        /// New trace ids have 128 bits instead of 64.
        wide_trace_ids: bool,
        /// Caller and called share one span.
        shared_spans: bool,
    },
    #[serde(rename_all = "camelCase")]
    Datadog {
        /// `http://HOST:PORT`
        url: String,
        /// Incoming and outgoing calls belong to services of their own.
        split_service: bool,
    },
    OpenTelemetry {
        collector: Collector,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ZipkinFormat {
    Json,
    Protobuf,
}

/// Shares of the requests of which no caller has decided, in millionths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct TraceSampling {
    /// Of all that the other two take.
    pub overall: u32,
    /// Of those whose caller asks for it.
    pub client: u32,
    /// Of the others.
    pub random: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct TraceTag {
    pub name: String,
    pub value: TagValue,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub enum TagValue {
    Literal(String),
    Header {
        /// Lower case.
        name: String,
        /// Where the request has no such header. Unset: no tag.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        default: Option<String>,
    },
}
