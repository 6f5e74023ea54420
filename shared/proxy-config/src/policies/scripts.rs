use serde::{Deserialize, Serialize};

/// A script on requests and their answers, HTTP only: requests go through a list of them in order, answers the other way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Script {
    /// The policy that logs name.
    pub policy: String,
    /// Lua with the API of Envoy's filter.
    pub source: String,
}
