use super::millis;
use meridian_core::duration::PolicyDuration;
use meridian_core::kinds::mesh_timeout::Conf;
use meridian_core::kinds::mesh_traffic_permission::RuleMatch;
use meridian_policy::caller_match;
use meridian_proxy_config::{
    CallerTimeouts, ConnectionTimeouts, DestinationPolicies, InboundPolicies, StreamTimeouts,
};
use std::num::NonZeroU64;

// Kuma's, for what a policy that holds leaves unset. Without any policy the proxy's own hold.
/// Until a connection is made.
const CONNECT_MILLIS: u64 = 5_000;
/// Without a byte on a connection.
const IDLE_MILLIS: u64 = 3_600_000;
/// A request and its answer.
const REQUEST_MILLIS: u64 = 15_000;
/// Without a byte in a request or its answer.
const STREAM_IDLE_MILLIS: u64 = 1_800_000;

/// MeshTimeout towards a destination.
pub(crate) fn destination(conf: &Conf, into: &mut DestinationPolicies) {
    into.connection_timeouts = of_connections(conf);
    into.stream_timeouts = of_streams(conf);
}

/// MeshTimeout at an inbound: what its `rules` add up to for each kind of caller, the first that matches decides. What is
/// for some callers only limits their streams; connections come before it is known who calls.
pub(crate) fn inbound(confs: &[(Option<RuleMatch>, Conf)], into: &mut InboundPolicies) {
    for (matched, conf) in confs {
        match matched {
            Some(_) => into.caller_timeouts.push(CallerTimeouts {
                caller: matched.as_ref().map(caller_match).unwrap_or_default(),
                stream_timeouts: of_streams(conf),
            }),
            None => {
                into.connection_timeouts = of_connections(conf);
                into.stream_timeouts = of_streams(conf);
            }
        }
    }
}

fn of_connections(conf: &Conf) -> ConnectionTimeouts {
    let http = conf.http.clone().unwrap_or_default();
    ConnectionTimeouts {
        connect_millis: NonZeroU64::new(given_or(conf.connection_timeout, CONNECT_MILLIS)),
        idle_millis: Some(given_or(conf.idle_timeout, IDLE_MILLIS)),
        max_age_millis: http.max_connection_duration.map(millis),
        request_head_millis: http.request_headers_timeout.map(millis),
    }
}

fn of_streams(conf: &Conf) -> StreamTimeouts {
    let http = conf.http.clone().unwrap_or_default();
    StreamTimeouts {
        request_millis: Some(given_or(http.request_timeout, REQUEST_MILLIS)),
        idle_millis: Some(given_or(http.stream_idle_timeout, STREAM_IDLE_MILLIS)),
        max_millis: http.max_stream_duration.map(millis),
    }
}

fn given_or(given: Option<PolicyDuration>, default: u64) -> u64 {
    given.map_or(default, millis)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn conf(conf: Value) -> Conf {
        serde_json::from_value(conf).unwrap()
    }

    fn outgoing(given: Value) -> Value {
        let mut policies = DestinationPolicies::default();
        destination(&conf(given), &mut policies);
        serde_json::to_value(policies).unwrap()
    }

    #[test]
    fn a_policy_has_defaults_for_what_it_leaves_unset() {
        let expected = json!({
            "connectionTimeouts": { "connectMillis": 5000, "idleMillis": 3_600_000 },
            "streamTimeouts": { "requestMillis": 2000, "idleMillis": 1_800_000 },
        });
        assert_eq!(outgoing(json!({ "http": { "requestTimeout": "2s" } })), expected);
        let connect = outgoing(json!({ "connectionTimeout": "100us" }));
        assert_eq!(connect["connectionTimeouts"]["connectMillis"], 1);
        assert_eq!(connect["streamTimeouts"]["requestMillis"], 15_000);
    }

    #[test]
    fn every_field_goes_where_it_belongs_and_zero_is_kept() {
        let given = json!({
            "connectionTimeout": "1s", "idleTimeout": "0s",
            "http": {
                "requestTimeout": "0s", "streamIdleTimeout": "3s", "maxStreamDuration": "4s",
                "maxConnectionDuration": "5s", "requestHeadersTimeout": "6s",
            },
        });
        let expected = json!({
            "connectionTimeouts": {
                "connectMillis": 1000, "idleMillis": 0, "maxAgeMillis": 5000, "requestHeadMillis": 6000,
            },
            "streamTimeouts": { "requestMillis": 0, "idleMillis": 3000, "maxMillis": 4000 },
        });
        assert_eq!(outgoing(given), expected);
    }

    #[test]
    fn an_inbound_has_every_field() {
        let given = conf(json!({
            "connectionTimeout": "1s", "idleTimeout": "2s",
            "http": {
                "requestTimeout": "3s", "streamIdleTimeout": "4s", "maxStreamDuration": "5s",
                "maxConnectionDuration": "6s", "requestHeadersTimeout": "7s",
            },
        }));
        let mut policies = InboundPolicies::default();
        inbound(&[(None, given)], &mut policies);
        let expected = json!({
            "connectionTimeouts": {
                "connectMillis": 1000, "idleMillis": 2000, "maxAgeMillis": 6000, "requestHeadMillis": 7000,
            },
            "streamTimeouts": { "requestMillis": 3000, "idleMillis": 4000, "maxMillis": 5000 },
        });
        assert_eq!(serde_json::to_value(&policies).unwrap(), expected);
    }

    #[test]
    fn callers_have_streams_of_their_own() {
        let matched: RuleMatch = serde_json::from_value(
            json!({ "spiffeID": { "type": "Exact", "value": "spiffe://default/batch" } }),
        )
        .unwrap();
        let slow = conf(json!({ "idleTimeout": "9s", "http": { "requestTimeout": "5m" } }));
        let all = conf(json!({ "idleTimeout": "9s" }));
        let mut policies = InboundPolicies::default();
        inbound(&[(Some(matched.clone()), slow.clone()), (None, all)], &mut policies);
        let expected = json!({
            "connectionTimeouts": { "connectMillis": 5000, "idleMillis": 9000 },
            "streamTimeouts": { "requestMillis": 15_000, "idleMillis": 1_800_000 },
            "callerTimeouts": [{
                "caller": { "spiffeExact": "spiffe://default/batch" },
                "streamTimeouts": { "requestMillis": 300_000, "idleMillis": 1_800_000 },
            }],
        });
        assert_eq!(serde_json::to_value(&policies).unwrap(), expected);

        let mut only = InboundPolicies::default();
        inbound(&[(Some(matched), slow)], &mut only);
        assert_eq!(only.connection_timeouts, ConnectionTimeouts::default());
        assert_eq!(only.stream_timeouts, StreamTimeouts::default());
    }
}
