//! What the mesh's traffic policies say of one destination or inbound, compiled: merged, durations in milliseconds,
//! defaults of a policy filled in. What no policy says is left out, and then the proxy does as it does without one.

use crate::Protocol;
use serde::{Deserialize, Serialize};
use std::num::NonZeroU32;

mod access_log;
mod balancing;
mod circuit_breaker;
mod faults;
mod filter;
mod health;
mod limits;
mod matching;
mod retry;
mod scripts;
mod timeouts;

pub use access_log::{AccessLog, LogBackend, LogForm, LogLine};
pub use balancing::{
    Affinity, Balancer, Balancing, ByZone, Failover, HashFunction, HashPolicy, HashSource, Locality, Zones,
};
pub use circuit_breaker::{AtOnce, FailurePercentage, OutlierDetection, SuccessRate};
pub use faults::{Effect, Fault, FaultRule};
pub use filter::{FilterAction, FilterPattern, RequestFilter, RequestPart, RuleSet};
pub use health::{HealthChecks, Jitter, Panic, Question};
pub use limits::{Rate, RateLimits, RequestLimit};
pub use matching::{HeaderMatch, HeaderValueMatch};
pub use retry::{BackOff, HostSelection, RateLimitedBackOff, ResetFormat, ResetHeader, Retry, RetryOn};
pub use scripts::Script;
pub use timeouts::{CallerTimeouts, ConnectionTimeouts, StreamTimeouts};

/// For connections and requests to a destination. A resource beside the destination, since it depends on who calls: a
/// destination is the same for all sidecars of a mesh, and what holds for the whole mesh is said once.
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
    #[serde(skip_serializing_if = "unset")]
    pub at_once: AtOnce,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outliers: Option<OutlierDetection>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthChecks>,
    #[serde(skip_serializing_if = "unset")]
    pub panic: Panic,
    #[serde(skip_serializing_if = "unset")]
    pub balancing: Balancing,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub access_logs: Vec<AccessLog>,
    /// The last before a request is sent.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub scripts: Vec<Script>,
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
    /// Before the rate limits.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<FaultRule>,
    #[serde(skip_serializing_if = "unset")]
    pub rate_limits: RateLimits,
    /// HTTP only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter: Option<RequestFilter>,
    #[serde(skip_serializing_if = "unset")]
    pub at_once: AtOnce,
    /// Every one that matches a caller is told.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub access_logs: Vec<AccessLog>,
    /// After all of the above.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub scripts: Vec<Script>,
}

/// The name of what holds for destinations of a protocol that have no policies of their own. No destination has it.
pub fn policies_for_others(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Http => "*/http",
        Protocol::Http2 => "*/http2",
        Protocol::Grpc => "*/grpc",
        Protocol::Tls => "*/tls",
        Protocol::Tcp => "*/tcp",
    }
}

/// The name, at an egress, of what policies say of an entry (by its key), or of others of its protocol
/// ([`policies_for_others`]), for callers whose [`crate::Caller::policies`] is `set`. A sidecar that leaves the mesh itself
/// knows what holds for itself by `name` alone.
pub fn policies_of_callers(set: &str, name: &str) -> String {
    if set.is_empty() { name.to_owned() } else { format!("{set}|{name}") }
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
    fn faults_and_limits_travel_as_they_are() {
        let body = r#"{"faults":[{"caller":{"spiffeExact":"spiffe://m/web"},"faults":[{"perMillion":5000,"effect":{"delay":100}},{"perMillion":1,"effect":{"abort":503}},{"perMillion":2,"effect":{"bandwidth":1024}}]}],"rateLimits":{"requests":[{"caller":{},"rate":{"num":5,"intervalMillis":1000},"status":429,"setHeaders":[["a","b"]]}],"connections":{"num":1,"intervalMillis":100}}}"#;
        let policies: InboundPolicies = serde_json::from_str(body).unwrap();
        assert_eq!(serde_json::to_string(&policies).unwrap(), body);
        for wrong in [
            r#"{"faults": [{"faults": [{"perMillion": 1, "effect": {"sigh": 1}}]}]}"#,
            r#"{"rateLimits": {"requests": [{"status": 429, "burst": 1}]}}"#,
            r#"{"rateLimits": {"connections": {"num": 0, "intervalMillis": 1000}}}"#,
        ] {
            assert!(serde_json::from_str::<InboundPolicies>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn health_checks_travel_as_they_are() {
        for question in [
            r#"{"tcp":{}}"#,
            r#"{"tcp":{"send":[1],"receive":[[2,3]]}}"#,
            r#"{"http":{"path":"/","setHeaders":[["a","b"]],"statuses":[200]}}"#,
            r#"{"grpc":{"service":"shop","authority":"a"}}"#,
        ] {
            let body = format!(
                r#"{{"health":{{"intervalMillis":1,"idleIntervalMillis":2,"timeoutMillis":3,"unhealthyAfter":4,"healthyAfter":5,"jitter":{{"intervalPercent":6}},"reuse":true,"question":{question}}},"panic":{{"below":0,"fails":true}}}}"#
            );
            let policies: DestinationPolicies = serde_json::from_str(&body).unwrap();
            assert_eq!(serde_json::to_string(&policies).unwrap(), body);
        }
        assert!(serde_json::from_str::<Question>(r#"{"tcp":{"wait":1}}"#).is_err());
    }

    #[test]
    fn a_choice_of_endpoints_travels_as_it_is() {
        let body = r#"{"balancing":{"locality":{"zones":{"affinity":[{"tag":"rack","weight":9}],"failover":[{"from":["east"],"to":{"only":["west"]}},{"to":"any"}],"enough":5000}},"balancer":{"ringHash":{"function":"murmur2","minSize":1024,"maxSize":4096}},"hash":[{"source":{"cookie":{"name":"c","madeForSeconds":60,"path":"/"}},"terminal":true},{"source":"sourceIp"}]}}"#;
        let policies: DestinationPolicies = serde_json::from_str(body).unwrap();
        assert_eq!(serde_json::to_string(&policies).unwrap(), body);
    }

    #[test]
    fn access_logs_travel_as_they_are() {
        let body = r#"{"accessLogs":[{"caller":{"spiffePrefix":"spiffe://m/a"},"backend":{"file":{"path":"/l","line":{"form":{"plain":"%PROTOCOL%"},"omitEmpty":true}}}},{"backend":{"tcp":{"address":"a:1"}}},{"backend":{"openTelemetry":{"collector":{"endpoint":"a:1"},"attributes":[["k","v"]],"body":{"a":[1]}}}}]}"#;
        let policies: InboundPolicies = serde_json::from_str(body).unwrap();
        assert_eq!(serde_json::to_string(&policies).unwrap(), body);
        for wrong in [
            r#"{"accessLogs": [{"backend": {"fax": {}}}]}"#,
            r#"{"accessLogs": [{"backend": {"file": {"path": "/l", "mode": 1}}}]}"#,
        ] {
            assert!(serde_json::from_str::<DestinationPolicies>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for body in [
            r#"{"timeout": {}}"#,
            r#"{"streamTimeouts": {"requestSeconds": 1}}"#,
            r#"{"connectionTimeouts": {"connectMillis": 0}}"#,
            r#"{"atOnce": {"requests": 0}}"#,
            r#"{"outliers": {}}"#,
            r#"{"health": {"question": {"tcp": {}}}}"#,
            r#"{"panic": {"above": 1}}"#,
            r#"{"balancing": {"locality": {"zones": {"enough": 5000, "never": true}}}}"#,
            r#"{"balancing": {"balancer": {"maglev": {"size": 0}}}}"#,
            r#"{"balancing": {"hash": [{"source": {"filterState": "key"}}]}}"#,
        ] {
            assert!(serde_json::from_str::<DestinationPolicies>(body).is_err(), "{body}");
        }
    }
}
