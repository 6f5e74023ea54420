use crate::CallerMatch;
use serde::{Deserialize, Serialize};
use std::num::NonZeroU64;

/// Faults in the requests of some callers. All that match a caller are made, in order, but for those that are `first_only`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct FaultRule {
    /// Plaintext, which proves nothing, matches what has no conditions.
    #[serde(default)]
    pub caller: CallerMatch,
    pub faults: Vec<Fault>,
    /// Of the rules of which this is said, the first that matches a caller holds alone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub first_only: bool,
}

/// One fault and how often it is made, drawn anew for every request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Fault {
    /// Of a million requests.
    pub per_million: u32,
    pub effect: Effect,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Effect {
    /// The application is asked so much later; milliseconds.
    Delay(u64),
    /// It is not asked: this is answered, 200 to 599.
    Abort(u16),
    /// The answer's body goes no faster; bytes a second.
    Bandwidth(NonZeroU64),
}
