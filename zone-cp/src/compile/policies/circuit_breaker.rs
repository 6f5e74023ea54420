use meridian_core::IntOrString;
use meridian_core::duration::PolicyDuration;
use meridian_core::kinds::mesh_circuit_breaker::{Conf, ConnectionLimits, Failures, OutlierDetection};
use meridian_core::kinds::mesh_traffic_permission::RuleMatch;
use meridian_proxy_config::{
    AtOnce, DestinationPolicies, FailurePercentage, InboundPolicies, OutlierDetection as Outliers,
    SuccessRate,
};
use std::num::{NonZeroU32, NonZeroU64};

// What Kuma leaves unset is Envoy's to say, and these are its numbers.
/// Connections, waiting requests and requests at once, each.
const AT_ONCE: u32 = 1_024;
/// Repetitions at once.
const RETRIES: u32 = 3;
/// How often rates are judged.
const INTERVAL_MILLIS: u64 = 10_000;
/// How long an endpoint is left out the first time.
const EJECTION_MILLIS: u64 = 30_000;
const MAX_PERCENT: u32 = 10;
/// Hundredths of a percent.
const PANIC_BELOW: u32 = 5_000;
const CONSECUTIVE: u32 = 5;
const MIN_HOSTS: u32 = 5;
const RATE_REQUESTS: u32 = 100;
const DEVIATIONS_THOUSANDTHS: u32 = 1_900;
const SHARE_REQUESTS: u32 = 50;
const FAILURE_PERCENT: u32 = 85;

/// What holds for calls to a destination.
pub(crate) fn destination(conf: &Conf, into: &mut DestinationPolicies) {
    into.at_once = conf.connection_limits.as_ref().map(at_once).unwrap_or_default();
    let panic_below = into.panic.below.unwrap_or(PANIC_BELOW);
    into.outliers = conf.outlier_detection.as_ref().and_then(|conf| outliers(conf, panic_below));
}

/// What holds for calls to an application. The kind tells no callers apart: what is for some of them is left alone.
pub(crate) fn inbound(confs: &[(Option<RuleMatch>, Conf)], into: &mut InboundPolicies) {
    let conf = confs.iter().find(|(matched, _)| matched.is_none()).map(|(_, conf)| conf);
    let limits = conf.and_then(|conf| conf.connection_limits.as_ref());
    // Nothing is repeated here.
    into.at_once = limits.map(|limits| AtOnce { retries: None, ..at_once(limits) }).unwrap_or_default();
}

fn at_once(limits: &ConnectionLimits) -> AtOnce {
    let given = |limit: Option<u32>, unset| NonZeroU32::new(limit.unwrap_or(unset));
    AtOnce {
        connections: given(limits.max_connections, AT_ONCE),
        pending: given(limits.max_pending_requests, AT_ONCE),
        requests: given(limits.max_requests, AT_ONCE),
        retries: given(limits.max_retries, RETRIES),
    }
}

/// `None`: it is switched off. `panic_below`: what holds where it does not say.
fn outliers(conf: &OutlierDetection, panic_below: u32) -> Option<Outliers> {
    if conf.disabled == Some(true) {
        return None;
    }
    let detectors = conf.detectors.clone().unwrap_or_default();
    let in_a_row =
        |failures: &Option<Failures>| NonZeroU32::new(failures.as_ref()?.consecutive.unwrap_or(CONSECUTIVE));
    Some(Outliers {
        interval_millis: millis(conf.interval, INTERVAL_MILLIS),
        ejection_millis: millis(conf.base_ejection_time, EJECTION_MILLIS),
        max_percent: conf.max_ejection_percent.unwrap_or(MAX_PERCENT),
        split: conf.split_external_and_local_errors.unwrap_or(false),
        panic_below: scaled(conf.healthy_panic_threshold.as_ref(), 100.0, panic_below),
        total_failures: in_a_row(&detectors.total_failures),
        gateway_failures: in_a_row(&detectors.gateway_failures),
        local_failures: in_a_row(&detectors.local_origin_failures),
        success_rate: detectors.success_rate.map(|rate| SuccessRate {
            min_hosts: rate.minimum_hosts.unwrap_or(MIN_HOSTS),
            min_requests: rate.request_volume.unwrap_or(RATE_REQUESTS),
            deviations_thousandths: scaled(
                rate.standard_deviation_factor.as_ref(),
                1_000.0,
                DEVIATIONS_THOUSANDTHS,
            ),
        }),
        failure_percentage: detectors.failure_percentage.map(|share| FailurePercentage {
            min_hosts: share.minimum_hosts.unwrap_or(MIN_HOSTS),
            min_requests: share.request_volume.unwrap_or(SHARE_REQUESTS),
            percent: share.threshold.unwrap_or(FAILURE_PERCENT),
        }),
    })
}

fn millis(given: Option<PolicyDuration>, unset: u64) -> NonZeroU64 {
    NonZeroU64::new(given.map_or(unset, super::millis)).unwrap_or(NonZeroU64::MIN)
}

/// A number with decimals as a whole one, which saturates; what is more than zero stays so.
pub(super) fn scaled(given: Option<&IntOrString>, scale: f64, unset: u32) -> u32 {
    match given.and_then(IntOrString::number) {
        Some(number) if number > 0.0 => ((number * scale).round() as u32).max(1),
        Some(_) => 0,
        None => unset,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meridian_core::kinds::mesh_traffic_permission::SpiffeIdMatch;
    use serde_json::{Value, json};

    fn conf(value: Value) -> Conf {
        serde_json::from_value(value).unwrap()
    }

    fn to(value: Value) -> Value {
        let mut policies = DestinationPolicies::default();
        destination(&conf(value), &mut policies);
        serde_json::to_value(policies).unwrap()
    }

    #[test]
    fn limits_of_a_destination() {
        assert_eq!(to(json!({})), json!({}));
        for (limits, expected) in [
            (json!({}), json!({ "connections": 1024, "pending": 1024, "requests": 1024, "retries": 3 })),
            (
                json!({ "maxConnections": 1, "maxPendingRequests": 2, "maxRequests": 3, "maxRetries": 4 }),
                json!({ "connections": 1, "pending": 2, "requests": 3, "retries": 4 }),
            ),
        ] {
            assert_eq!(to(json!({ "connectionLimits": limits })), json!({ "atOnce": expected }));
        }
    }

    #[test]
    fn outlier_detection_of_a_destination() {
        let detector = |detectors: Value| to(json!({ "outlierDetection": { "detectors": detectors } }));
        let with = |mut more: Value| {
            let fixed = json!({
                "intervalMillis": 10_000, "ejectionMillis": 30_000, "maxPercent": 10, "panicBelow": 5_000,
            });
            more.as_object_mut().unwrap().extend(fixed.as_object().unwrap().clone());
            json!({ "outliers": more })
        };
        for (given, expected) in [
            (json!({ "totalFailures": {} }), json!({ "totalFailures": 5 })),
            (json!({ "gatewayFailures": { "consecutive": 2 } }), json!({ "gatewayFailures": 2 })),
            (json!({ "localOriginFailures": {} }), json!({ "localFailures": 5 })),
            (
                json!({ "successRate": {}, "failurePercentage": {} }),
                json!({
                    "successRate": { "minHosts": 5, "minRequests": 100, "deviationsThousandths": 1_900 },
                    "failurePercentage": { "minHosts": 5, "minRequests": 50, "percent": 85 },
                }),
            ),
            (
                json!({
                    "successRate": { "minimumHosts": 2, "requestVolume": 3, "standardDeviationFactor": "0.5" },
                    "failurePercentage": { "minimumHosts": 4, "requestVolume": 6, "threshold": 7 },
                }),
                json!({
                    "successRate": { "minHosts": 2, "minRequests": 3, "deviationsThousandths": 500 },
                    "failurePercentage": { "minHosts": 4, "minRequests": 6, "percent": 7 },
                }),
            ),
        ] {
            assert_eq!(detector(given.clone()), with(expected), "{given}");
        }
    }

    #[test]
    fn what_else_outlier_detection_says() {
        let given = json!({
            "interval": "1s", "baseEjectionTime": "2m", "maxEjectionPercent": 0,
            "splitExternalAndLocalErrors": true, "healthyPanicThreshold": "33.3",
            "detectors": { "totalFailures": { "consecutive": 1 } },
        });
        let expected = json!({
            "intervalMillis": 1_000, "ejectionMillis": 120_000, "maxPercent": 0, "split": true,
            "panicBelow": 3_330, "totalFailures": 1,
        });
        assert_eq!(to(json!({ "outlierDetection": given })), json!({ "outliers": expected }));
        let off = json!({ "disabled": true, "detectors": { "totalFailures": {} } });
        assert_eq!(to(json!({ "outlierDetection": off })), json!({}));
    }

    #[test]
    fn a_threshold_that_is_not_zero_stays_so() {
        for (threshold, expected) in
            [(json!(0), 0), (json!("0.0"), 0), (json!("0.001"), 1), (json!(100), 10_000)]
        {
            let number: IntOrString = serde_json::from_value(threshold).unwrap();
            assert_eq!(scaled(Some(&number), 100.0, 7), expected, "{number:?}");
        }
        assert_eq!(scaled(None, 100.0, 7), 7);
    }

    #[test]
    fn an_inbound_has_the_limits_that_are_for_everybody() {
        let limits = |n: u32| {
            conf(json!({
                "connectionLimits": {
                    "maxConnections": 5, "maxPendingRequests": 6, "maxRequests": n, "maxRetries": 1,
                },
                "outlierDetection": { "detectors": { "totalFailures": {} } },
            }))
        };
        let some = RuleMatch { spiffe_id: Some(SpiffeIdMatch::default()), sni: None };
        let mut policies = InboundPolicies::default();
        inbound(&[(Some(some), limits(1)), (None, limits(2))], &mut policies);
        let expected = json!({ "atOnce": { "connections": 5, "pending": 6, "requests": 2 } });
        assert_eq!(serde_json::to_value(&policies).unwrap(), expected);
        inbound(&[], &mut policies);
        assert_eq!(policies, InboundPolicies::default());
    }
}
