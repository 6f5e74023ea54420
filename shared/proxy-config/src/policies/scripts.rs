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

impl Script {
    /// Refuses every request: in place of scripts that can't be read or understood, one of which may have been there to
    /// refuse. `policy`: what reports name.
    pub fn refusing(policy: &str) -> Self {
        // It fails, and its text says that it might have answered: then the request is refused, with reason and count.
        let source = "function envoy_on_request(handle) error('not understood') handle:respond() end";
        Self { policy: policy.to_owned(), source: source.to_owned() }
    }
}
