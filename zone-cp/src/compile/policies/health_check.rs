use super::circuit_breaker::scaled;
use super::millis;
use meridian_core::duration::PolicyDuration;
use meridian_core::kinds::http_headers::HeaderKeyValue;
use meridian_core::kinds::mesh_health_check::{Conf, Grpc, Http, Tcp};
use meridian_proxy_config::{DestinationPolicies, HealthChecks, Jitter, Panic, Protocol, Question};
use std::num::{NonZeroU32, NonZeroU64};

// What a policy leaves unset.
const INTERVAL_MILLIS: u64 = 60_000;
const TIMEOUT_MILLIS: u64 = 15_000;
/// While nobody calls.
const IDLE_INTERVAL_MILLIS: u64 = 60_000;
const UNHEALTHY_AFTER: u32 = 5;
const HEALTHY_AFTER: u32 = 1;
const GOOD: u16 = 200;

/// What holds for calls to a destination.
pub(crate) fn destination(conf: &Conf, protocol: Protocol, into: &mut DestinationPolicies) {
    into.panic = Panic {
        below: conf.healthy_panic_threshold.as_ref().map(|threshold| scaled(Some(threshold), 100.0, 0)),
        fails: conf.fail_traffic_on_panic.unwrap_or(false),
    };
    into.health = question(conf, protocol).map(|question| HealthChecks {
        interval_millis: time(conf.interval, INTERVAL_MILLIS),
        idle_interval_millis: time(conf.no_traffic_interval, IDLE_INTERVAL_MILLIS),
        timeout_millis: time(conf.timeout, TIMEOUT_MILLIS),
        unhealthy_after: count(conf.unhealthy_threshold, UNHEALTHY_AFTER),
        healthy_after: count(conf.healthy_threshold, HEALTHY_AFTER),
        jitter: Jitter {
            initial_millis: conf.initial_jitter.map_or(0, millis),
            interval_millis: conf.interval_jitter.map_or(0, millis),
            interval_percent: whole(conf.interval_jitter_percent),
        },
        reuse: conf.reuse_connection.unwrap_or(true),
        log_failures: conf.always_log_health_check_failures.unwrap_or(false),
        question,
        event_log_path: conf.event_log_path.clone().filter(|path| !path.is_empty()),
    });
}

/// By the destination's protocol. A connection stands in for a question of HTTP or gRPC that is there and disabled.
fn question(conf: &Conf, protocol: Protocol) -> Option<Question> {
    let instead = |disabled: Option<bool>| {
        conf.tcp.as_ref().filter(|tcp| disabled == Some(true) && tcp.disabled != Some(true)).map(connect)
    };
    match protocol {
        Protocol::Http | Protocol::Http2 => {
            let http = conf.http.as_ref()?;
            if http.disabled == Some(true) { instead(http.disabled) } else { Some(get(http)) }
        }
        Protocol::Grpc => {
            let grpc = conf.grpc.as_ref()?;
            if grpc.disabled == Some(true) { instead(grpc.disabled) } else { Some(ask(grpc)) }
        }
        Protocol::Tcp | Protocol::Tls => {
            conf.tcp.as_ref().filter(|tcp| tcp.disabled != Some(true)).map(connect)
        }
    }
}

fn connect(tcp: &Tcp) -> Question {
    Question::Tcp { send: tcp.sent(), receive: tcp.received() }
}

fn get(http: &Http) -> Question {
    let pairs = |headers: Option<&Vec<HeaderKeyValue>>| {
        let pair = |header: &HeaderKeyValue| (header.name.clone(), header.value.clone());
        headers.into_iter().flatten().map(pair).collect()
    };
    let headers = http.request_headers_to_add.as_ref();
    let statuses: Vec<u16> =
        http.expected_statuses.iter().flatten().filter_map(|it| u16::try_from(*it).ok()).collect();
    Question::Http {
        path: http.path.clone().unwrap_or_else(|| "/".to_owned()),
        set_headers: pairs(headers.and_then(|headers| headers.set.as_ref())),
        add_headers: pairs(headers.and_then(|headers| headers.add.as_ref())),
        statuses: if statuses.is_empty() { vec![GOOD] } else { statuses },
    }
}

fn ask(grpc: &Grpc) -> Question {
    Question::Grpc {
        service: grpc.service_name.clone().unwrap_or_default(),
        authority: grpc.authority.clone().filter(|authority| !authority.is_empty()),
    }
}

fn time(given: Option<PolicyDuration>, unset: u64) -> NonZeroU64 {
    NonZeroU64::new(given.map_or(unset, millis)).unwrap_or(NonZeroU64::MIN)
}

fn count(given: Option<i32>, unset: u32) -> NonZeroU32 {
    let given = given.and_then(|count| u32::try_from(count).ok());
    NonZeroU32::new(given.unwrap_or(unset)).unwrap_or(NonZeroU32::MIN)
}

fn whole(given: Option<i32>) -> u32 {
    given.and_then(|number| u32::try_from(number).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn to(protocol: Protocol, conf: Value) -> Value {
        let mut policies = DestinationPolicies::default();
        destination(&serde_json::from_value(conf).unwrap(), protocol, &mut policies);
        serde_json::to_value(policies).unwrap()
    }

    #[test]
    fn the_protocol_picks_the_question() {
        let all = json!({ "tcp": {}, "http": {}, "grpc": {} });
        let http = json!({ "http": { "path": "/", "statuses": [200] } });
        let tcp = json!({ "tcp": {} });
        let off = json!({ "tcp": {}, "http": { "disabled": true }, "grpc": { "disabled": true } });
        let all_off = json!({ "tcp": { "disabled": true }, "http": { "disabled": true } });
        let none = Value::Null;
        for (protocol, conf, expected) in [
            (Protocol::Http, &all, &http),
            (Protocol::Http2, &all, &http),
            (Protocol::Grpc, &all, &json!({ "grpc": {} })),
            (Protocol::Tcp, &all, &tcp),
            (Protocol::Http, &off, &tcp),
            (Protocol::Grpc, &off, &tcp),
            (Protocol::Http, &json!({ "tcp": {} }), &none),
            (Protocol::Grpc, &json!({ "tcp": {}, "http": {} }), &none),
            (Protocol::Tcp, &json!({ "http": {} }), &none),
            (Protocol::Tcp, &all_off, &none),
            (Protocol::Http, &all_off, &none),
        ] {
            assert_eq!(&to(protocol, conf.clone())["health"]["question"], expected, "{protocol:?} {conf}");
        }
    }

    #[test]
    fn changes_may_be_written_to_a_file() {
        for (said, told) in [(json!("/var/log/health"), json!("/var/log/health")), (json!(""), Value::Null)] {
            let conf = json!({"tcp": {}, "eventLogPath": said});
            assert_eq!(to(Protocol::Tcp, conf)["health"]["eventLogPath"], told);
        }
    }

    #[test]
    fn what_is_said_and_what_is_not() {
        let unset = json!({
            "intervalMillis": 60_000, "idleIntervalMillis": 60_000, "timeoutMillis": 15_000,
            "unhealthyAfter": 5, "healthyAfter": 1, "reuse": true, "question": { "tcp": {} },
        });
        assert_eq!(to(Protocol::Tcp, json!({ "tcp": {} })), json!({ "health": unset }));
        let all = json!({
            "interval": "1s", "timeout": "2s", "unhealthyThreshold": 3, "healthyThreshold": 4,
            "initialJitter": "5s", "intervalJitter": "6s", "intervalJitterPercent": 7,
            "healthyPanicThreshold": "8.5", "failTrafficOnPanic": true,
            "alwaysLogHealthCheckFailures": true, "noTrafficInterval": "9s", "reuseConnection": false,
            "tcp": { "send": "Zm9v", "receive": ["YmFy"] },
        });
        let said = json!({
            "intervalMillis": 1_000, "idleIntervalMillis": 9_000, "timeoutMillis": 2_000,
            "unhealthyAfter": 3, "healthyAfter": 4, "logFailures": true,
            "jitter": { "initialMillis": 5_000, "intervalMillis": 6_000, "intervalPercent": 7 },
            "question": { "tcp": { "send": b"foo", "receive": [b"bar"] } },
        });
        let panic = json!({ "below": 850, "fails": true });
        assert_eq!(to(Protocol::Tcp, all), json!({ "health": said, "panic": panic }));
    }

    #[test]
    fn questions_of_http_and_grpc() {
        let http = json!({ "http": {
            "path": "/health", "expectedStatuses": [200, 204],
            "requestHeadersToAdd": { "set": [{ "name": "a", "value": "1" }], "add": [{ "name": "b", "value": "2" }] },
        }});
        let get = json!({ "http": {
            "path": "/health", "statuses": [200, 204], "setHeaders": [["a", "1"]], "addHeaders": [["b", "2"]],
        }});
        assert_eq!(to(Protocol::Http, http)["health"]["question"], get);
        let grpc = json!({ "grpc": { "serviceName": "shop", "authority": "shop.example.com" } });
        let ask = json!({ "grpc": { "service": "shop", "authority": "shop.example.com" } });
        assert_eq!(to(Protocol::Grpc, grpc)["health"]["question"], ask);
    }

    #[test]
    fn a_circuit_breakers_panic_threshold_wins_where_it_is_given() {
        let health = json!({ "healthyPanicThreshold": 30, "tcp": {} });
        for (breaker, expected) in [(json!({}), 3_000), (json!({ "healthyPanicThreshold": 0 }), 0)] {
            let mut breaker = breaker;
            breaker["detectors"] = json!({ "totalFailures": {} });
            let mut policies = DestinationPolicies::default();
            destination(&serde_json::from_value(health.clone()).unwrap(), Protocol::Tcp, &mut policies);
            let breaker = serde_json::from_value(json!({ "outlierDetection": breaker })).unwrap();
            super::super::circuit_breaker::destination(&breaker, &mut policies);
            assert_eq!(policies.outliers.unwrap().panic_below, expected);
        }
    }
}
