use super::policy::{self, Lists, ONLY_MESH, PlainRule, Targeted};
use crate::duration::PolicyDuration;
use crate::registry::Standing::{Executed, Warned};
use crate::validate::{
    self, GREATER_THAN_ZERO, MUST_BE_DEFINED, in_range, positive_count, positive_duration,
};
use crate::{Context, Flow, IntOrString, Kind, KindInfo, Spec, TargetRef, TargetRefs, Violations};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How much a service may be given at once, and when an endpoint that fails is left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct MeshCircuitBreaker {
    /// The proxies that hold to it. Unset: Mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    /// For calls that come in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Vec<Targeted<Conf>>>,
    /// For calls that go out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Vec<Targeted<Conf>>>,
    /// For calls that come in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rules: Option<Vec<PlainRule<Conf>>>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Conf {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection_limits: Option<ConnectionLimits>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outlier_detection: Option<OutlierDetection>,
}

/// Limits of one proxy towards one service; each more than zero.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct ConnectionLimits {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connection_pools: Option<u32>,
    /// Requests that wait for a connection; for other traffic than HTTP, connections that are being made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_pending_requests: Option<u32>,
    /// Retries under way at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_retries: Option<u32>,
    /// Requests under way at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_requests: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct OutlierDetection {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disabled: Option<bool>,
    /// Between two looks at all endpoints.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<PolicyDuration>,
    /// How long an endpoint is left out, times how often it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_ejection_time: Option<PolicyDuration>,
    /// Percent of the endpoints that may be left out at once; one always may.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_ejection_percent: Option<u32>,
    /// Whether what the proxy itself could not do (a connection that failed) counts apart from what the service
    /// answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split_external_and_local_errors: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detectors: Option<Detectors>,
    /// Percent of healthy endpoints below which all are used; zero: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthy_panic_threshold: Option<IntOrString>,
}

/// What makes an endpoint an outlier; each that is given is on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Detectors {
    /// Any failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_failures: Option<Failures>,
    /// Statuses 502, 503, 504.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway_failures: Option<Failures>,
    /// What the proxy itself could not do, with `splitExternalAndLocalErrors`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_origin_failures: Option<Failures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub success_rate: Option<SuccessRate>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure_percentage: Option<FailurePercentage>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Failures {
    /// Failures in a row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consecutive: Option<u32>,
}

/// An endpoint whose rate of success is far from the others'.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct SuccessRate {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minimum_hosts: Option<u32>,
    /// Requests in one interval, below which an endpoint is not judged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_volume: Option<u32>,
    /// Standard deviations below the mean.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub standard_deviation_factor: Option<IntOrString>,
}

/// An endpoint with a fixed share of failures.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct FailurePercentage {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minimum_hosts: Option<u32>,
    /// Requests in one interval, below which an endpoint is not judged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_volume: Option<u32>,
    /// Percent of failures.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threshold: Option<u32>,
}

const ONE_POOL: &str = "a proxy keeps one pool an endpoint, whatever the request";
const NO_RETRIES: &str = "requests to the application are not repeated";
const ONE_APPLICATION: &str = "an inbound has one application: without it nobody would be left to answer";

pub(crate) const INFO: KindInfo = KindInfo {
    plural: "meshcircuitbreakers",
    short: "mcb",
    flow: Flow::BOTH,
    targets: Some(TargetRefs { from: true, to: true, rules: true }),
    doc: "How much a service may be given at once, and when an endpoint that fails is left out.",
    fields: &[
        ("targetRef", Executed),
        ("from", Executed),
        ("from[].default.connectionLimits.maxConnectionPools", Warned(ONE_POOL)),
        ("from[].default.connectionLimits.maxRetries", Warned(NO_RETRIES)),
        ("from[].default.outlierDetection", Warned(ONE_APPLICATION)),
        ("to", Executed),
        ("to[].default.connectionLimits.maxConnectionPools", Warned(ONE_POOL)),
        ("rules", Executed),
        ("rules[].default.connectionLimits.maxConnectionPools", Warned(ONE_POOL)),
        ("rules[].default.connectionLimits.maxRetries", Warned(NO_RETRIES)),
        ("rules[].default.outlierDetection", Warned(ONE_APPLICATION)),
    ],
    ..KindInfo::new::<MeshCircuitBreaker>()
};

impl MeshCircuitBreaker {
    pub const KIND: Kind = Kind::new("MeshCircuitBreaker");
}

impl Spec for MeshCircuitBreaker {
    const KIND: Kind = MeshCircuitBreaker::KIND;

    fn validate(&self, _context: &Context<'_>, out: &mut Violations) {
        let lists = Lists::new(self.from.as_ref(), self.to.as_ref(), self.rules.as_ref());
        policy::check_top(self.target_ref.as_ref(), &policy::TOP, lists.inbound(), out);
        lists.check(out);
        policy::check_targets("from", self.from.as_ref(), &ONLY_MESH, out, Conf::check);
        policy::check_targets("to", self.to.as_ref(), &policy::TO, out, Conf::check);
        for (i, rule) in self.rules.iter().flatten().enumerate() {
            // Kuma's path: it calls rules `from` here.
            rule.default.check(&format!("spec.from[{i}].default"), out);
        }
    }

    fn warnings(&self, _context: &Context<'_>, out: &mut Vec<String>) {
        policy::warn_of_top(self.target_ref.as_ref(), out);
        let detects = |conf: &Conf| conf.outlier_detection.is_some();
        policy::warn_of_outside(self.to.as_ref(), "outlierDetection", detects, out);
    }
}

impl Conf {
    fn check(&self, path: &str, out: &mut Violations) {
        if self.connection_limits.is_none() && self.outlier_detection.is_none() {
            out.push(path, "at least one of: 'connectionLimits' or 'outlierDetection' should be configured");
        }
        if let Some(limits) = &self.connection_limits {
            limits.check(&format!("{path}.connectionLimits"), out);
        }
        if let Some(detection) = &self.outlier_detection {
            detection.check(&format!("{path}.outlierDetection"), out);
        }
    }
}

impl ConnectionLimits {
    fn check(&self, path: &str, out: &mut Violations) {
        let limits = [
            ("maxConnections", self.max_connections),
            ("maxConnectionPools", self.max_connection_pools),
            ("maxPendingRequests", self.max_pending_requests),
            ("maxRetries", self.max_retries),
            ("maxRequests", self.max_requests),
        ];
        for (name, limit) in limits {
            positive_count(&format!("{path}.{name}"), limit, out);
        }
    }
}

impl OutlierDetection {
    fn check(&self, path: &str, out: &mut Violations) {
        positive_duration(&format!("{path}.interval"), self.interval, out);
        positive_duration(&format!("{path}.baseEjectionTime"), self.base_ejection_time, out);
        in_range(format!("{path}.maxEjectionPercent"), self.max_ejection_percent, 0..=100, out);
        if let Some(threshold) = &self.healthy_panic_threshold {
            let path = format!("{path}.healthyPanicThreshold");
            validate::percentage(&path, threshold, validate::NUMBER_EXPECTED, out);
        }
        let path = format!("{path}.detectors");
        match &self.detectors {
            None => out.push(path, MUST_BE_DEFINED),
            Some(detectors) => detectors.check(&path, out),
        }
    }
}

impl Detectors {
    fn check(&self, path: &str, out: &mut Violations) {
        if *self == Self::default() {
            let detectors = [
                "totalFailures",
                "gatewayFailures",
                "localOriginFailures",
                "successRate",
                "failurePercentage",
            ];
            return out.push(path, validate::at_least_one(&detectors));
        }
        let failures = [
            ("totalFailures", &self.total_failures),
            ("gatewayFailures", &self.gateway_failures),
            ("localOriginFailures", &self.local_origin_failures),
        ];
        for (name, failures) in failures {
            let consecutive = failures.as_ref().and_then(|failures| failures.consecutive);
            positive_count(&format!("{path}.{name}.consecutive"), consecutive, out);
        }
        if let Some(rate) = &self.success_rate {
            rate.check(&format!("{path}.successRate"), out);
        }
        if let Some(share) = &self.failure_percentage {
            let path = format!("{path}.failurePercentage");
            positive_count(&format!("{path}.minimumHosts"), share.minimum_hosts, out);
            positive_count(&format!("{path}.requestVolume"), share.request_volume, out);
            in_range(format!("{path}.threshold"), share.threshold, 0..=100, out);
        }
    }
}

impl SuccessRate {
    fn check(&self, path: &str, out: &mut Violations) {
        positive_count(&format!("{path}.minimumHosts"), self.minimum_hosts, out);
        positive_count(&format!("{path}.requestVolume"), self.request_volume, out);
        let factor = self.standard_deviation_factor.as_ref().map(IntOrString::number);
        let path = format!("{path}.standardDeviationFactor");
        match factor {
            Some(None) => out.push(path, "invalid number"),
            Some(Some(factor)) if factor <= 0.0 => out.push(path, GREATER_THAN_ZERO),
            _ => {}
        }
    }
}
