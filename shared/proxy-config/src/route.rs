use serde::{Deserialize, Serialize};

/// How an ingress, or an egress between zones, passes a TLS session on, which it does not terminate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct SniRoute {
    #[serde(rename = "match")]
    pub matches: SniMatch,
    /// Names of endpoint sets.
    pub endpoints: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SniMatch {
    Exact(String),
    /// Every mesh server name whose zone part is this (an egress's way to another zone's ingress).
    Zone(String),
}
