//! What the mesh's traffic policies say of one destination or inbound, compiled: merged, durations in milliseconds,
//! defaults of a policy filled in. What no policy says is left out, and then the proxy does as it does without one.

use serde::{Deserialize, Serialize};
use std::num::NonZeroU32;

mod matching;
mod retry;
mod timeouts;

pub use matching::{HeaderMatch, HeaderValueMatch};
pub use retry::{BackOff, HostSelection, RateLimitedBackOff, ResetFormat, ResetHeader, Retry, RetryOn};
pub use timeouts::{CallerTimeouts, ConnectionTimeouts, StreamTimeouts};

/// For connections and requests to a destination.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct DestinationPolicies {
    #[serde(skip_serializing_if = "unset")]
    pub connection_timeouts: ConnectionTimeouts,
    #[serde(skip_serializing_if = "unset")]
    pub stream_timeouts: StreamTimeouts,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// TCP: how often a connection is tried, at endpoints in turn. Unset: at up to 5, each once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect_attempts: Option<NonZeroU32>,
}

/// For connections and requests from peers to the application.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct InboundPolicies {
    #[serde(skip_serializing_if = "unset")]
    pub connection_timeouts: ConnectionTimeouts,
    #[serde(skip_serializing_if = "unset")]
    pub stream_timeouts: StreamTimeouts,
    /// The first that matches a caller decides; `stream_timeouts` is for the others, and for those who are unknown.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub caller_timeouts: Vec<CallerTimeouts>,
}

/// Whether nothing is said: it then need not be sent, and a body without it stays the body that it was.
pub(crate) fn unset<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_is_not_sent() {
        assert_eq!(serde_json::to_string(&DestinationPolicies::default()).unwrap(), "{}");
        assert_eq!(serde_json::to_string(&InboundPolicies::default()).unwrap(), "{}");
        assert_eq!(
            serde_json::from_str::<DestinationPolicies>("{}").unwrap(),
            DestinationPolicies::default()
        );
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for body in [
            r#"{"timeout": {}}"#,
            r#"{"streamTimeouts": {"requestSeconds": 1}}"#,
            r#"{"connectionTimeouts": {"connectMillis": 0}}"#,
        ] {
            assert!(serde_json::from_str::<DestinationPolicies>(body).is_err(), "{body}");
        }
    }
}
