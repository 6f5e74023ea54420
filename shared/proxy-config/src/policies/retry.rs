use super::{HeaderMatch, unset};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::num::NonZeroU32;

/// When a request is sent once more. What could not be sent at all (no connection) goes to another endpoint without
/// being asked; this is about what comes after.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Retry {
    /// Repetitions of one request at most.
    pub max: NonZeroU32,
    /// For each attempt, from the request's last byte (or the attempt's begin, if that is later) to the answer's head;
    /// kept to a tenth of a second. Unset: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_try_millis: Option<u64>,
    pub back_off: BackOff,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limited: Option<RateLimitedBackOff>,
    /// One of these must hold.
    pub on: Vec<RetryOn>,
    /// If there are any of the two, the request must have one of the methods (upper case) or match one of the headers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub request_headers: Vec<HeaderMatch>,
    /// An answer that matches one of these is as good as a condition of `on`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub response_headers: Vec<HeaderMatch>,
    #[serde(default, skip_serializing_if = "unset")]
    pub hosts: HostSelection,
}

/// A random wait of up to `base` before the first repetition; each further one may take twice as long, up to `max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct BackOff {
    pub base_millis: u64,
    pub max_millis: u64,
}

/// An answer that says when to come again is believed, unless that is later than `max`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RateLimitedBackOff {
    /// The first that is there counts.
    pub headers: Vec<ResetHeader>,
    pub max_millis: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ResetHeader {
    /// Lower case.
    pub name: String,
    pub format: ResetFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ResetFormat {
    /// So many seconds from now.
    Seconds,
    /// Seconds since 1970.
    UnixTimestamp,
}

/// What makes an attempt a failed one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RetryOn {
    /// Any status of 500 and more, and no answer at all.
    ServerError,
    /// 502, 503 and 504, and no answer at all.
    GatewayError,
    /// The connection or stream ended, or the attempt's time passed, before the answer's head.
    Reset,
    ConnectFailure,
    /// The server says that it did not touch the request.
    RefusedStream,
    /// 409.
    Conflict,
    /// The answer bears `x-envoy-ratelimited`.
    RateLimited,
    Status(u16),
    /// `grpc-status` of an answer without messages.
    GrpcStatus(u32),
}

/// Where a repetition goes: rather not to what is omitted, unless there is nothing else.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct HostSelection {
    /// Endpoints that this request was at.
    pub omit_previous: bool,
    /// After each so many attempts, the tiers that they were at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub omit_previous_tiers: Option<NonZeroU32>,
    /// Endpoints that have all tags of one of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub omit_tagged: Vec<BTreeMap<String, String>>,
    /// How many endpoints are looked at after the first for one that is not omitted; then the last is taken. Unset: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_looks: Option<NonZeroU32>,
}
