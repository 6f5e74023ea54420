use crate::CallerMatch;
use serde::{Deserialize, Serialize};
use std::num::NonZeroU64;

/// Of connections that the proxy makes: to a destination's endpoints, or to the application; some of those that it takes.
/// Milliseconds; proxies keep them to a tenth of a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct ConnectionTimeouts {
    /// Until the connection is there, TLS included. Unset: 5 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect_millis: Option<NonZeroU64>,
    /// Without a byte either way (TCP), or without a request (HTTP; clients' connections too). 0: never. Unset: 1 h for
    /// TCP; HTTP/2 connections are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_millis: Option<u64>,
    /// Age at which an HTTP connection takes no new requests. 0 or unset: no limit of a policy's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_age_millis: Option<u64>,
    /// HTTP/1.1, of connections that the proxy takes: from a request's first byte to the end of its head. 0 or unset: no
    /// limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_head_millis: Option<u64>,
}

/// Of one request and its answer. Milliseconds; proxies keep them to a tenth of a second. 0: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct StreamTimeouts {
    /// From the request's last byte to the answer's, repetitions included. Unset: none at an inbound; at an outbound
    /// 15 s to the answer's head, if the request has no body and is not gRPC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_millis: Option<u64>,
    /// Without a byte either way. Unset: none; 1 h for what has changed its protocol (WebSocket).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_millis: Option<u64>,
    /// From the request's head to the answer's last byte. Unset: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_millis: Option<u64>,
}

/// For callers of one kind, in place of the inbound's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct CallerTimeouts {
    pub caller: CallerMatch,
    pub stream_timeouts: StreamTimeouts,
}
