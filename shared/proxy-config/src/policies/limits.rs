use crate::CallerMatch;
use serde::{Deserialize, Serialize};
use std::num::{NonZeroU32, NonZeroU64};

/// How much an inbound lets in. A proxy counts over all of its workers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct RateLimits {
    /// HTTP requests: the first that matches the caller decides. None: no limit.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub requests: Vec<RequestLimit>,
    /// New connections, of any protocol and from whomever.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<Rate>,
}

/// What holds for some callers, together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RequestLimit {
    /// Plaintext, which proves nothing, matches what has no conditions.
    #[serde(default)]
    pub caller: CallerMatch,
    /// Unset: these callers have no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// Of the answer beyond the rate: 400 to 599.
    pub status: u16,
    /// Name, in lower case, and value: instead of what the answer has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub set_headers: Vec<(String, String)>,
    /// Beside what the answer has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub add_headers: Vec<(String, String)>,
}

/// `num` at once, and as many again in each interval, evenly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Rate {
    pub num: NonZeroU32,
    pub interval_millis: NonZeroU64,
}
