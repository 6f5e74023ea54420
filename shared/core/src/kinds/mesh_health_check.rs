use super::http_headers::{self, HeadersToAdd};
use super::policy::{self, Targeted};
use crate::duration::PolicyDuration;
use crate::registry::Standing::Executed;
use crate::validate::{
    self, MUST_BE_DEFINED, NUMBER_EXPECTED, POSITIVE_WHEN_DEFINED, at_least_one, in_range, positive_duration,
};
use crate::{Context, Flow, IntOrString, Kind, KindInfo, Spec, TargetRef, TargetRefs, Violations};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How callers ask the instances of a service whether they are well.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct MeshHealthCheck {
    /// The proxies that ask. Unset: Mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Vec<Targeted<Conf>>>,
}

/// One of `tcp`, `http` and `grpc` must be there; the destination's protocol decides which is used.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Conf {
    /// Between two checks of one instance; more than zero. Unset: 1m.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<PolicyDuration>,
    /// For one check's answer; more than zero. Unset: 15s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<PolicyDuration>,
    /// Failures in a row that make an instance unhealthy. Unset: 5.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unhealthy_threshold: Option<i32>,
    /// Successes in a row that make it healthy again. Unset: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthy_threshold: Option<i32>,
    /// At most so long, by chance, before the first check.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initial_jitter: Option<PolicyDuration>,
    /// At most so much longer, by chance, is an interval.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval_jitter: Option<PolicyDuration>,
    /// The same in percent of the interval; both add up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval_jitter_percent: Option<i32>,
    /// Percent of healthy instances below which all are used; zero: never. MeshCircuitBreaker has it too, and wins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthy_panic_threshold: Option<IntOrString>,
    /// Below that threshold requests fail instead of going to all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fail_traffic_on_panic: Option<bool>,
    /// A file for changes of health, on the proxy's host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_log_path: Option<String>,
    /// Every failure is logged, not only the first in a row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub always_log_health_check_failures: Option<bool>,
    /// The interval while nobody calls the service; more than zero. Unset: 60s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_traffic_interval: Option<PolicyDuration>,
    /// Whether checks share a connection. Unset: true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reuse_connection: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<Tcp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<Http>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc: Option<Grpc>,
}

/// A connection, and what is said on it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Tcp {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disabled: Option<bool>,
    /// Base64. Unset: a connection that is made is enough.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub send: Option<String>,
    /// Base64; each must be found in the answer, in order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub receive: Option<Vec<String>>,
}

/// A GET.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Http {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disabled: Option<bool>,
    /// Unset: `/`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_headers_to_add: Option<HeadersToAdd>,
    /// 100 to 599. Unset: 200.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected_statuses: Option<Vec<i32>>,
}

/// gRPC's own health service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Grpc {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disabled: Option<bool>,
    /// Which service is asked for. Unset: the server as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_name: Option<String>,
    /// `:authority` of the check. Unset: the destination's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authority: Option<String>,
}

/// Of `send`, and of all of `receive`, in bytes: a proxy keeps as much of an answer while it looks for them.
const MAX_PAYLOAD: usize = 16 << 10;

pub(crate) const INFO: KindInfo = KindInfo {
    plural: "meshhealthchecks",
    short: "mhc",
    flow: Flow::BOTH,
    targets: Some(TargetRefs { from: false, to: true, rules: false }),
    doc: "How callers ask the instances of a service whether they are well.",
    fields: &[("targetRef", Executed), ("to", Executed)],
    ..KindInfo::new::<MeshHealthCheck>()
};

impl MeshHealthCheck {
    pub const KIND: Kind = Kind::new("MeshHealthCheck");
}

impl Spec for MeshHealthCheck {
    const KIND: Kind = MeshHealthCheck::KIND;

    fn validate(&self, _context: &Context<'_>, out: &mut Violations) {
        policy::check_top(self.target_ref.as_ref(), &policy::TOP, false, out);
        if self.to.as_ref().is_none_or(Vec::is_empty) {
            out.push("spec.to", "needs at least one item");
        }
        policy::check_targets("to", self.to.as_ref(), &policy::TO, out, Conf::check);
    }

    fn warnings(&self, _context: &Context<'_>, out: &mut Vec<String>) {
        policy::warn_of_top(self.target_ref.as_ref(), out);
        policy::warn_of_destinations(self.to.as_ref(), out);
    }
}

impl Conf {
    fn check(&self, path: &str, out: &mut Violations) {
        if self.tcp.is_none() && self.http.is_none() && self.grpc.is_none() {
            out.push(path, at_least_one(&["tcp", "http", "grpc"]));
        }
        let durations = [
            ("interval", self.interval),
            ("timeout", self.timeout),
            ("initialJitter", self.initial_jitter),
            ("intervalJitter", self.interval_jitter),
            ("noTrafficInterval", self.no_traffic_interval),
        ];
        for (name, duration) in durations {
            positive_duration(&format!("{path}.{name}"), duration, out);
        }
        for (name, threshold) in
            [("unhealthyThreshold", self.unhealthy_threshold), ("healthyThreshold", self.healthy_threshold)]
        {
            if threshold.is_some_and(|threshold| threshold <= 0) {
                out.push(format!("{path}.{name}"), POSITIVE_WHEN_DEFINED);
            }
        }
        in_range(format!("{path}.intervalJitterPercent"), self.interval_jitter_percent, 0..=100, out);
        if let Some(threshold) = &self.healthy_panic_threshold {
            let path = format!("{path}.healthyPanicThreshold");
            validate::percentage(&path, threshold, NUMBER_EXPECTED, out);
        }
        if self.event_log_path.as_ref().is_some_and(|path| !validate::is_file_path(path)) {
            out.push(format!("{path}.eventLogPath"), "must be a valid path when defined");
        }
        if let Some(tcp) = &self.tcp {
            tcp.check(&format!("{path}.tcp"), out);
        }
        if let Some(http) = &self.http {
            http.check(&format!("{path}.http"), out);
        }
        if let Some(grpc) = &self.grpc {
            grpc.check(&format!("{path}.grpc"), out);
        }
    }
}

impl Tcp {
    /// What is sent, decoded.
    pub fn sent(&self) -> Vec<u8> {
        self.send.as_deref().and_then(decoded).unwrap_or_default()
    }

    /// What must come back, decoded.
    pub fn received(&self) -> Vec<Vec<u8>> {
        self.receive.iter().flatten().filter_map(|text| decoded(text)).collect()
    }

    fn check(&self, path: &str, out: &mut Violations) {
        if self.send.as_deref().is_some_and(|text| decoded(text).is_none()) {
            out.push(format!("{path}.send"), NOT_BASE64);
        }
        for (i, text) in self.receive.iter().flatten().enumerate() {
            if decoded(text).is_none_or(|bytes| bytes.is_empty()) {
                out.push(format!("{path}.receive[{i}]"), NOT_BASE64);
            }
        }
        let received: usize = self.received().iter().map(Vec::len).sum();
        for (name, length) in [("send", self.sent().len()), ("receive", received)] {
            if length > MAX_PAYLOAD {
                out.push(format!("{path}.{name}"), format!("must have at most {MAX_PAYLOAD} bytes"));
            }
        }
    }
}

const NOT_BASE64: &str = "must be base64 of what is meant, and not empty";

fn decoded(text: &str) -> Option<Vec<u8>> {
    use base64::{Engine, engine::general_purpose::STANDARD};
    STANDARD.decode(text).ok()
}

impl Grpc {
    fn check(&self, path: &str, out: &mut Violations) {
        let of_authority = |c: char| c.is_ascii_alphanumeric() || "-._~:[]".contains(c);
        if self.authority.as_ref().is_some_and(|authority| !authority.chars().all(of_authority)) {
            out.push(format!("{path}.authority"), "must be a host, with a port or without");
        }
    }
}

impl Http {
    fn check(&self, path: &str, out: &mut Violations) {
        let of_path = |c: char| c.is_ascii_graphic() && !"\"#<>\\^`{|}".contains(c);
        match self.path.as_deref() {
            Some("") => out.push(format!("{path}.path"), MUST_BE_DEFINED),
            Some(given) if !given.starts_with('/') || !given.chars().all(of_path) => {
                out.push(format!("{path}.path"), "must begin with / and be encoded as in a URL");
            }
            _ => {}
        }
        for (i, status) in self.expected_statuses.iter().flatten().enumerate() {
            in_range(format!("{path}.expectedStatuses[{i}]"), Some(*status), 100..=599, out);
        }
        if let Some(headers) = &self.request_headers_to_add {
            let lists = [
                ("set", headers.set.as_deref().unwrap_or_default()),
                ("add", headers.add.as_deref().unwrap_or_default()),
            ];
            http_headers::check_modifier(&format!("{path}.requestHeadersToAdd"), &lists, &[], out);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::kinds::policy_tests::wrong;
    use crate::kinds::tests::{right, warnings};

    fn to(default: &str) -> String {
        format!(
            "{{type: MeshHealthCheck, name: ask, mesh: m, spec: {{to: [{{targetRef: {{kind: Mesh}}, default: {{{default}}}}}]}}}}"
        )
    }

    #[test]
    fn instances_are_asked() {
        let all = to(
            "interval: 10s, timeout: 2s, unhealthyThreshold: 3, healthyThreshold: 1, initialJitter: 5s, intervalJitter: 6s, intervalJitterPercent: 10, healthyPanicThreshold: '11.5', failTrafficOnPanic: true, eventLogPath: /tmp/health.log, alwaysLogHealthCheckFailures: false, noTrafficInterval: 1m, reuseConnection: true, tcp: {disabled: true, send: Zm9v, receive: [YmFy, YmF6]}, http: {path: /health, requestHeadersToAdd: {set: [{name: x-check, value: 'true'}], add: [{name: x-from, value: mesh}]}, expectedStatuses: [200, 201]}, grpc: {serviceName: shop.Cart, authority: shop.example.com}",
        );
        right(&all);
        assert_eq!(warnings(&all), [""; 0]);
    }

    #[test]
    fn what_could_not_be_asked_is_refused() {
        for (default, violations) in [
            (
                "tcp: {send: 'fo', receive: ['Zm9v', '']}",
                &[
                    "spec.to[0].default.tcp.send: must be base64 of what is meant, and not empty",
                    "spec.to[0].default.tcp.receive[1]: must be base64 of what is meant, and not empty",
                ][..],
            ),
            (
                "http: {path: health}",
                &["spec.to[0].default.http.path: must begin with / and be encoded as in a URL"],
            ),
            (
                "http: {path: /a b}",
                &["spec.to[0].default.http.path: must begin with / and be encoded as in a URL"],
            ),
            (
                "grpc: {authority: a/b}",
                &["spec.to[0].default.grpc.authority: must be a host, with a port or without"],
            ),
        ] {
            wrong(&to(default), violations);
        }
        right(&to("http: {path: '/ok?deep=1&x=%20'}, grpc: {authority: 'shop.example.com:443'}"));
    }

    #[test]
    fn all_that_is_wrong_is_said() {
        let none = "{type: MeshHealthCheck, name: ask, mesh: m, spec: {targetRef: {kind: MeshHTTPRoute, name: r}, to: []}}";
        wrong(
            none,
            &[
                "spec.targetRef.kind: value 'MeshHTTPRoute' is not supported",
                "spec.to: needs at least one item",
            ],
        );
        wrong(
            &to("interval: 0s"),
            &[
                "spec.to[0].default: must have at least one defined: tcp, http, grpc",
                "spec.to[0].default.interval: must be greater than zero when defined",
            ],
        );
        wrong(
            &to(
                "timeout: -1s, unhealthyThreshold: -3, healthyThreshold: 0, intervalJitterPercent: 101, healthyPanicThreshold: 101, eventLogPath: health.log, http: {path: '', expectedStatuses: [99, 100, 600], requestHeadersToAdd: {set: [{name: X-Up, value: a}], add: [{name: x-b, value: a}, {name: x-b, value: b}]}}",
            ),
            &[
                "spec.to[0].default.timeout: must be greater than zero when defined",
                "spec.to[0].default.unhealthyThreshold: must be greater than zero when defined",
                "spec.to[0].default.healthyThreshold: must be greater than zero when defined",
                "spec.to[0].default.intervalJitterPercent: must be in inclusive range [0, 100]",
                "spec.to[0].default.healthyPanicThreshold: must be in inclusive range [0.0, 100.0]",
                "spec.to[0].default.eventLogPath: must be a valid path when defined",
                "spec.to[0].default.http.path: must be defined",
                "spec.to[0].default.http.expectedStatuses[0]: must be in inclusive range [100, 599]",
                "spec.to[0].default.http.expectedStatuses[2]: must be in inclusive range [100, 599]",
                "spec.to[0].default.http.requestHeadersToAdd.set[0].name: must be a header's name in lower case, of at most 256 characters",
                "spec.to[0].default.http.requestHeadersToAdd.add[1].name: duplicate header name",
            ],
        );
    }
}
