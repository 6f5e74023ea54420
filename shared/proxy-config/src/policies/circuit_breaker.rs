use serde::{Deserialize, Serialize};
use std::num::{NonZeroU32, NonZeroU64};

/// How much may be under way at once, from one proxy to one destination or application. What is beyond is refused at
/// once. Unset: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct AtOnce {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<NonZeroU32>,
    /// HTTP: requests that wait for a connection; else connections that are being made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pending: Option<NonZeroU32>,
    /// HTTP only: requests whose answer has not ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<NonZeroU32>,
    /// Repetitions under way, of requests to a destination. Unset: the proxy's own budget.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<NonZeroU32>,
}

/// When an endpoint that fails is left out, and for how long.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct OutlierDetection {
    /// Rates are judged once in this time.
    pub interval_millis: NonZeroU64,
    /// Times how often the endpoint was left out of late.
    pub ejection_millis: NonZeroU64,
    /// Of the endpoints that may be out at once, 0 to 100. More than 0: one always may.
    pub max_percent: u32,
    /// What the proxy itself could not do (a connection, an answer in time) counts apart from what was answered.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub split: bool,
    /// Hundredths of a percent, 0 to 10,000: a tier with a smaller share of endpoints that are not out gives way to the
    /// next one; where no tier has as many, all endpoints are used. 0: never.
    pub panic_below: u32,
    /// Failures in a row of whatever kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_failures: Option<NonZeroU32>,
    /// Statuses 502, 503 and 504 in a row; without `split`, what the proxy could not do counts as one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway_failures: Option<NonZeroU32>,
    /// In a row; with `split`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_failures: Option<NonZeroU32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub success_rate: Option<SuccessRate>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_percentage: Option<FailurePercentage>,
}

/// An endpoint whose rate of success is far below the others'.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct SuccessRate {
    /// Fewer endpoints with enough requests are not compared.
    pub min_hosts: u32,
    /// Of an endpoint in an interval: with fewer it is not judged.
    pub min_requests: u32,
    /// Thousandths of a standard deviation below the mean.
    pub deviations_thousandths: u32,
}

/// An endpoint of whose requests too large a share fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct FailurePercentage {
    pub min_hosts: u32,
    pub min_requests: u32,
    /// Failures from which on it is out, 0 to 100.
    pub percent: u32,
}
