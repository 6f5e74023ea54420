use super::millis;
use meridian_core::duration::PolicyDuration;
use meridian_core::kinds::http_headers::{HeaderMatch as Matched, HeaderMatchType};
use meridian_core::kinds::mesh_retry::{
    BackOff as Waits, Conf, Grpc, GrpcRetryOn, Http, HttpRetryOn, Predicate, PredicateType,
    RateLimitedBackOff as Limited, ResetFormat as Format,
};
use meridian_proxy_config::{
    BackOff, DestinationPolicies, HeaderMatch, HeaderValueMatch, HostSelection, Protocol, RateLimitedBackOff,
    ResetFormat, ResetHeader, Retry, RetryOn,
};
use std::num::NonZeroU32;

// Envoy's, where Kuma says nothing of its own.
/// Repetitions of a request.
const REPETITIONS: u32 = 1;
/// The first wait before a repetition.
const BASE_MILLIS: u64 = 25;
/// The longest wait, in first ones.
const LONGEST_IN_BASES: u64 = 10;
/// The longest wait that an answer may ask for.
const LONGEST_RESET_MILLIS: u64 = 300_000;

// Kuma's, where no condition is given.
const HTTP_ON: [RetryOn; 3] = [RetryOn::GatewayError, RetryOn::ConnectFailure, RetryOn::RefusedStream];
const GRPC_ON: [RetryOn; 7] = [
    RetryOn::GrpcStatus(CANCELLED),
    RetryOn::ConnectFailure,
    RetryOn::GatewayError,
    RetryOn::RefusedStream,
    RetryOn::Reset,
    RetryOn::GrpcStatus(RESOURCE_EXHAUSTED),
    RetryOn::GrpcStatus(UNAVAILABLE),
];

// gRPC's codes.
const CANCELLED: u32 = 1;
const DEADLINE_EXCEEDED: u32 = 4;
const RESOURCE_EXHAUSTED: u32 = 8;
const INTERNAL: u32 = 13;
const UNAVAILABLE: u32 = 14;

/// MeshRetry towards a destination. Its protocol decides which part holds; for `http2` none does, as in Kuma.
pub(crate) fn destination(conf: &Conf, protocol: Protocol, into: &mut DestinationPolicies) {
    match protocol {
        Protocol::Http => into.retry = conf.http.as_ref().and_then(http),
        Protocol::Grpc => into.retry = conf.grpc.as_ref().and_then(grpc),
        Protocol::Tcp => {
            let attempts = conf.tcp.as_ref().and_then(|tcp| tcp.max_connect_attempt);
            into.connect_attempts = attempts.and_then(NonZeroU32::new);
        }
        Protocol::Http2 | Protocol::Tls => {}
    }
}

fn http(conf: &Http) -> Option<Retry> {
    let given = conf.retry_on.as_deref().unwrap_or_default();
    let mut on: Vec<RetryOn> = given.iter().filter_map(condition).collect();
    if on.is_empty() {
        on.extend(HTTP_ON);
    }
    on.extend(given.iter().filter_map(HttpRetryOn::status).map(RetryOn::Status));
    Some(Retry {
        on,
        methods: given.iter().filter_map(method).map(str::to_owned).collect(),
        request_headers: header_matches(conf.retriable_request_headers.as_deref()),
        response_headers: header_matches(conf.retriable_response_headers.as_deref()),
        hosts: hosts(conf.host_selection.as_deref().unwrap_or_default(), conf.host_selection_max_attempts),
        ..base(conf.num_retries, conf.per_try_timeout, &conf.back_off, &conf.rate_limited_back_off)?
    })
}

fn grpc(conf: &Grpc) -> Option<Retry> {
    let status = |on: &GrpcRetryOn| match on {
        GrpcRetryOn::Canceled => Some(RetryOn::GrpcStatus(CANCELLED)),
        GrpcRetryOn::DeadlineExceeded => Some(RetryOn::GrpcStatus(DEADLINE_EXCEEDED)),
        GrpcRetryOn::Internal => Some(RetryOn::GrpcStatus(INTERNAL)),
        GrpcRetryOn::ResourceExhausted => Some(RetryOn::GrpcStatus(RESOURCE_EXHAUSTED)),
        GrpcRetryOn::Unavailable => Some(RetryOn::GrpcStatus(UNAVAILABLE)),
        GrpcRetryOn::Other(_) => None,
    };
    let mut on: Vec<RetryOn> = conf.retry_on.iter().flatten().filter_map(status).collect();
    if on.is_empty() {
        on.extend(GRPC_ON);
    }
    let base = base(conf.num_retries, conf.per_try_timeout, &conf.back_off, &conf.rate_limited_back_off)?;
    Some(Retry { on, ..base })
}

/// What both protocols have; `None`: nothing is to be repeated.
fn base(
    repetitions: Option<u32>,
    per_try: Option<PolicyDuration>,
    waits: &Option<Waits>,
    limited: &Option<Limited>,
) -> Option<Retry> {
    let waits = waits.clone().unwrap_or_default();
    let base_millis = waits.base_interval.map_or(BASE_MILLIS, millis);
    let longest = waits.max_interval.map_or(base_millis.saturating_mul(LONGEST_IN_BASES), millis);
    Some(Retry {
        max: NonZeroU32::new(repetitions.unwrap_or(REPETITIONS))?,
        per_try_millis: per_try.map(millis).filter(|limit| *limit > 0),
        back_off: BackOff { base_millis, max_millis: longest.max(base_millis) },
        rate_limited: limited.as_ref().map(rate_limited),
        on: Vec::new(),
        methods: Vec::new(),
        request_headers: Vec::new(),
        response_headers: Vec::new(),
        hosts: HostSelection::default(),
    })
}

fn rate_limited(conf: &Limited) -> RateLimitedBackOff {
    let header = |header: &meridian_core::kinds::mesh_retry::ResetHeader| {
        let format = match header.format {
            Format::Seconds => ResetFormat::Seconds,
            Format::UnixTimestamp => ResetFormat::UnixTimestamp,
            Format::Other(_) => return None,
        };
        Some(ResetHeader { name: header.name.clone(), format })
    };
    RateLimitedBackOff {
        headers: conf.reset_headers.iter().flatten().filter_map(header).collect(),
        max_millis: conf.max_interval.map_or(LONGEST_RESET_MILLIS, millis),
    }
}

/// Of an item of `retryOn` that is a condition. There is no HTTP/3 that could fail.
fn condition(on: &HttpRetryOn) -> Option<RetryOn> {
    match on {
        HttpRetryOn::ServerError => Some(RetryOn::ServerError),
        HttpRetryOn::GatewayError => Some(RetryOn::GatewayError),
        HttpRetryOn::Reset => Some(RetryOn::Reset),
        HttpRetryOn::Retriable4xx => Some(RetryOn::Conflict),
        HttpRetryOn::ConnectFailure => Some(RetryOn::ConnectFailure),
        HttpRetryOn::EnvoyRatelimited => Some(RetryOn::RateLimited),
        HttpRetryOn::RefusedStream => Some(RetryOn::RefusedStream),
        _ => None,
    }
}

fn method(on: &HttpRetryOn) -> Option<&'static str> {
    match on {
        HttpRetryOn::MethodConnect => Some("CONNECT"),
        HttpRetryOn::MethodDelete => Some("DELETE"),
        HttpRetryOn::MethodGet => Some("GET"),
        HttpRetryOn::MethodHead => Some("HEAD"),
        HttpRetryOn::MethodOptions => Some("OPTIONS"),
        HttpRetryOn::MethodPatch => Some("PATCH"),
        HttpRetryOn::MethodPost => Some("POST"),
        HttpRetryOn::MethodPut => Some("PUT"),
        HttpRetryOn::MethodTrace => Some("TRACE"),
        _ => None,
    }
}

/// Conditions in the proxy's words; one of an unknown type is left out.
pub(super) fn header_matches(conf: Option<&[Matched]>) -> Vec<HeaderMatch> {
    let header = |header: &Matched| {
        let text = || header.value.clone().unwrap_or_default();
        let value = match header.type_ {
            None | Some(HeaderMatchType::Exact) => HeaderValueMatch::Exact(text()),
            Some(HeaderMatchType::Prefix) => HeaderValueMatch::Prefix(text()),
            Some(HeaderMatchType::RegularExpression) => HeaderValueMatch::Regex(text()),
            Some(HeaderMatchType::Present) => HeaderValueMatch::Present,
            Some(HeaderMatchType::Absent) => HeaderValueMatch::Absent,
            Some(HeaderMatchType::Other(_)) => return None,
        };
        Some(HeaderMatch { name: header.name.clone(), value })
    };
    conf.into_iter().flatten().filter_map(header).collect()
}

fn hosts(predicates: &[Predicate], looks: Option<i32>) -> HostSelection {
    let count = |number: Option<i32>| number.and_then(|n| NonZeroU32::new(u32::try_from(n).ok()?));
    let mut hosts = HostSelection { max_looks: count(looks), ..HostSelection::default() };
    for predicate in predicates {
        match &predicate.predicate {
            PredicateType::OmitPreviousHosts => hosts.omit_previous = true,
            PredicateType::OmitHostsWithTags => hosts.omit_tagged.extend(predicate.tags.clone()),
            PredicateType::OmitPreviousPriorities => {
                hosts.omit_previous_tiers = count(predicate.update_frequency);
            }
            PredicateType::Other(_) => {}
        }
    }
    hosts
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// What a `default` becomes, as it is sent.
    fn compiled(conf: Value, protocol: Protocol) -> Value {
        let mut policies = DestinationPolicies::default();
        destination(&serde_json::from_value(conf).unwrap(), protocol, &mut policies);
        serde_json::to_value(policies).unwrap()
    }

    #[test]
    fn the_protocol_decides_which_part_holds() {
        let conf = json!({
            "tcp": { "maxConnectAttempt": 4 }, "http": { "numRetries": 2 }, "grpc": { "numRetries": 3 },
        });
        let max = |protocol| compiled(conf.clone(), protocol)["retry"]["max"].clone();
        assert_eq!(max(Protocol::Http), 2);
        assert_eq!(max(Protocol::Grpc), 3);
        assert_eq!(compiled(conf.clone(), Protocol::Tcp), json!({ "connectAttempts": 4 }));
        assert_eq!(compiled(conf.clone(), Protocol::Http2), json!({}));
        assert_eq!(compiled(conf, Protocol::Tls), json!({}));
    }

    #[test]
    fn what_is_unset_is_as_in_kuma_and_envoy() {
        let http = compiled(json!({ "http": { "perTryTimeout": "0s" } }), Protocol::Http);
        let waits = json!({ "baseMillis": 25, "maxMillis": 250 });
        let on = json!(["gatewayError", "connectFailure", "refusedStream"]);
        assert_eq!(http, json!({ "retry": { "max": 1, "backOff": waits, "on": on } }));
        let grpc = compiled(json!({ "grpc": { "numRetries": 5 } }), Protocol::Grpc);
        let statuses = grpc["retry"]["on"].as_array().unwrap().iter().filter_map(|on| on.get("grpcStatus"));
        assert_eq!(statuses.collect::<Vec<_>>(), [1, 8, 14]);
        assert_eq!(compiled(json!({ "http": { "numRetries": 0 } }), Protocol::Http), json!({}));
        assert_eq!(compiled(json!({ "grpc": { "numRetries": 0 } }), Protocol::Grpc), json!({}));
    }

    #[test]
    fn conditions_methods_and_statuses_are_told_apart() {
        for (retry_on, on, methods) in [
            (json!(["5xx", "Reset"]), json!(["serverError", "reset"]), json!(null)),
            (json!(["Retriable4xx", "503"]), json!(["conflict", { "status": 503 }]), json!(null)),
            (
                json!(["409"]),
                json!(["gatewayError", "connectFailure", "refusedStream", { "status": 409 }]),
                json!(null),
            ),
            (
                json!(["HttpMethodGet", "HttpMethodPut", "Http3PostConnectFailure"]),
                json!(["gatewayError", "connectFailure", "refusedStream"]),
                json!(["GET", "PUT"]),
            ),
        ] {
            let retry = compiled(json!({ "http": { "retryOn": retry_on } }), Protocol::Http)["retry"].take();
            assert_eq!((&retry["on"], &retry["methods"]), (&on, &methods), "{retry_on}");
        }
    }

    #[test]
    fn every_item_of_retry_on_means_something() {
        for name in HttpRetryOn::VALUES {
            let on: HttpRetryOn = serde_json::from_value(json!(name)).unwrap();
            let known = condition(&on).is_some() || method(&on).is_some();
            assert!(known || on == HttpRetryOn::Http3PostConnectFailure, "{name}");
        }
    }

    #[test]
    fn a_whole_policy_of_grpc() {
        let conf = json!({ "grpc": {
            "numRetries": 4, "perTryTimeout": "2s",
            "backOff": { "baseInterval": "10ms", "maxInterval": "3s" },
            "rateLimitedBackOff": {
                "resetHeaders": [{ "name": "x-reset", "format": "UnixTimestamp" }], "maxInterval": "7s",
            },
            "retryOn": ["Canceled", "DeadlineExceeded", "Internal", "ResourceExhausted", "Unavailable"],
        } });
        let on: Vec<Value> = [1, 4, 13, 8, 14].map(|status| json!({ "grpcStatus": status })).to_vec();
        let expected = json!({ "retry": {
            "max": 4, "perTryMillis": 2000,
            "backOff": { "baseMillis": 10, "maxMillis": 3000 },
            "rateLimited": { "headers": [{ "name": "x-reset", "format": "unixTimestamp" }], "maxMillis": 7_000 },
            "on": on,
        } });
        assert_eq!(compiled(conf, Protocol::Grpc), expected);
    }

    #[test]
    fn conditions_on_headers_and_waits() {
        let header = |type_: &str| json!({ "type": type_, "name": "x-a", "value": "b" });
        let all = ["Exact", "Prefix", "RegularExpression", "Present", "Absent"].map(header);
        let conf = json!({ "http": {
            "backOff": { "baseInterval": "1s", "maxInterval": "8s" },
            "rateLimitedBackOff": {
                "resetHeaders": [{ "name": "x-reset", "format": "UnixTimestamp" }], "maxInterval": "9s",
            },
            "retriableRequestHeaders": all, "retriableResponseHeaders": all,
        } });
        let retry = compiled(conf, Protocol::Http)["retry"].take();
        let values = [json!({ "exact": "b" }), json!({ "prefix": "b" }), json!({ "regex": "b" })];
        let values = values.into_iter().chain([json!("present"), json!("absent")]);
        let headers: Vec<Value> = values.map(|value| json!({ "name": "x-a", "value": value })).collect();
        assert_eq!((&retry["requestHeaders"], &retry["responseHeaders"]), (&json!(headers), &json!(headers)));
        assert_eq!(retry["backOff"], json!({ "baseMillis": 1_000, "maxMillis": 8_000 }));
        let limited =
            json!({ "headers": [{ "name": "x-reset", "format": "unixTimestamp" }], "maxMillis": 9_000 });
        assert_eq!(retry["rateLimited"], limited);
    }

    #[test]
    fn a_whole_policy() {
        let conf = json!({ "http": {
            "numRetries": 3, "perTryTimeout": "1.5s",
            "backOff": { "baseInterval": "1s", "maxInterval": "100ms" },
            "rateLimitedBackOff": { "resetHeaders": [{ "name": "retry-after", "format": "Seconds" }] },
            "retryOn": ["EnvoyRatelimited"],
            "retriableRequestHeaders": [{ "name": "x-again" }, { "type": "Present", "name": "x-more" }],
            "retriableResponseHeaders": [{ "type": "RegularExpression", "name": "x-busy", "value": "y.*" }],
            "hostSelection": [
                { "predicate": "OmitPreviousHosts" },
                { "predicate": "OmitHostsWithTags", "tags": { "version": "1" } },
                { "predicate": "OmitPreviousPriorities", "updateFrequency": 2 },
            ],
            "hostSelectionMaxAttempts": 5,
        } });
        let expected = json!({ "retry": {
            "max": 3, "perTryMillis": 1500,
            "backOff": { "baseMillis": 1000, "maxMillis": 1000 },
            "rateLimited": { "headers": [{ "name": "retry-after", "format": "seconds" }], "maxMillis": 300_000 },
            "on": ["rateLimited"],
            "requestHeaders": [
                { "name": "x-again", "value": { "exact": "" } }, { "name": "x-more", "value": "present" },
            ],
            "responseHeaders": [{ "name": "x-busy", "value": { "regex": "y.*" } }],
            "hosts": {
                "omitPrevious": true, "omitPreviousTiers": 2, "omitTagged": [{ "version": "1" }], "maxLooks": 5,
            },
        } });
        assert_eq!(compiled(conf, Protocol::Http), expected);
    }
}
