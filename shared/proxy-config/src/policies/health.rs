use super::unset;
use serde::{Deserialize, Serialize};
use std::num::{NonZeroU32, NonZeroU64};

/// How the endpoints of a destination are asked whether they are well. Milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct HealthChecks {
    /// Between two checks of one endpoint.
    pub interval_millis: NonZeroU64,
    /// The same while nobody calls the destination.
    pub idle_interval_millis: NonZeroU64,
    /// For one check, its connection included.
    pub timeout_millis: NonZeroU64,
    /// Checks in a row without an answer that make an endpoint unhealthy. One answer that says so is enough.
    pub unhealthy_after: NonZeroU32,
    /// Good answers in a row that make it healthy again.
    pub healthy_after: NonZeroU32,
    #[serde(default, skip_serializing_if = "unset")]
    pub jitter: Jitter,
    /// Checks of an endpoint share a connection.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reuse: bool,
    /// Every failure is logged, not only the change that it brings about.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub log_failures: bool,
    pub question: Question,
    /// A file on the proxy's host, absolute, that has a line for each change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_log_path: Option<String>,
}

/// How much longer, by chance, a wait is at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Jitter {
    /// Before the first check.
    #[serde(skip_serializing_if = "unset")]
    pub initial_millis: u64,
    /// Each interval.
    #[serde(skip_serializing_if = "unset")]
    pub interval_millis: u64,
    /// Each interval, in percent of it; beside `interval_millis`.
    #[serde(skip_serializing_if = "unset")]
    pub interval_percent: u32,
}

/// What an endpoint is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Question {
    /// A connection; with `receive`, all of these must come back, in this order.
    Tcp {
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        send: Vec<u8>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        receive: Vec<Vec<u8>>,
    },
    /// A GET.
    Http {
        path: String,
        #[serde(default, rename = "setHeaders", skip_serializing_if = "Vec::is_empty")]
        set_headers: Vec<(String, String)>,
        #[serde(default, rename = "addHeaders", skip_serializing_if = "Vec::is_empty")]
        add_headers: Vec<(String, String)>,
        /// Statuses of a good answer.
        statuses: Vec<u16>,
    },
    /// gRPC's own health service.
    Grpc {
        /// Empty: the server as a whole.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        service: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        authority: Option<String>,
    },
}

/// What happens where few endpoints are left that may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Panic {
    /// As [`super::OutlierDetection::panic_below`], which counts instead where it is there. Unset: 5,000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub below: Option<u32>,
    /// Calls then fail, instead of going to all endpoints.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub fails: bool,
}
