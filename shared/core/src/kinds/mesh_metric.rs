use super::open_telemetry::{self, BackendRef};
use super::policy;
use crate::duration::PolicyDuration;
use crate::enums::text_enum;
use crate::registry::Standing::{Executed, Warned};
use crate::validate::{self, INVALID_PORT, MUST_BE_DEFINED, is_port, positive_duration};
use crate::{Context, Flow, Kind, KindInfo, Spec, TargetRef, TargetRefs, Violations};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which metrics proxies give, their applications' among them, and to whom.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct MeshMetric {
    /// Unset: Mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    pub default: Conf,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Conf {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sidecar: Option<Sidecar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub applications: Option<Vec<Application>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backends: Option<Vec<Backend>>,
}

/// The proxy's own metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Sidecar {
    /// Whether what was never counted is given too. Unset: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub include_unused: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profiles: Option<Profiles>,
}

/// All profiles together, without `exclude`, and with `include` again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Profiles {
    /// Unset: All.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub append_profiles: Option<Vec<Profile>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exclude: Option<Vec<Selector>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub include: Option<Vec<Selector>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Profile {
    pub name: ProfileName,
}

text_enum! {
    /// A set of metrics that has a name.
    ProfileName, default ProfileName::Other(String::new()), {
        All = "All",
        None = "None",
        Basic = "Basic",
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Selector {
    #[serde(rename = "type")]
    pub type_: SelectorType,
    #[serde(rename = "match")]
    pub match_: String,
}

text_enum! {
    /// How a metric's name is compared.
    SelectorType, default SelectorType::Other(String::new()), {
        Prefix = "Prefix",
        Regex = "Regex",
        Exact = "Exact",
        Contains = "Contains",
    }
}

/// An application whose metrics are given with the proxy's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Application {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub path: String,
    /// One of the Dataplane's own, or loopback. Unset: the Dataplane's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    pub port: u32,
}

impl Default for Application {
    fn default() -> Self {
        Self { name: None, path: METRICS.to_owned(), address: None, port: 0 }
    }
}

/// The field that its type names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Backend {
    #[serde(rename = "type")]
    pub type_: BackendType,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prometheus: Option<Prometheus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_telemetry: Option<OpenTelemetry>,
}

text_enum! {
    /// Who takes the metrics.
    BackendType, default BackendType::Other(String::new()), {
        Prometheus = "Prometheus",
        OpenTelemetry = "OpenTelemetry",
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Prometheus {
    /// Only a Prometheus that names itself so when it asks for targets is given this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
    pub port: u32,
    pub path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<PrometheusTls>,
}

impl Default for Prometheus {
    fn default() -> Self {
        Self { client_id: None, port: PROMETHEUS_PORT, path: METRICS.to_owned(), tls: None }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct PrometheusTls {
    pub mode: TlsMode,
}

text_enum! {
    /// Whose certificate the metrics are served with.
    TlsMode, default TlsMode::Disabled, {
        Disabled = "Disabled",
        ProvidedTls = "ProvidedTLS",
        ActiveMtlsBackend = "ActiveMTLSBackend",
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct OpenTelemetry {
    /// `HOST` or `HOST:PORT`; this or `backendRef`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend_ref: Option<BackendRef>,
    /// Unset: 60s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refresh_interval: Option<PolicyDuration>,
}

/// Kuma's.
const METRICS: &str = "/metrics";
const PROMETHEUS_PORT: u32 = 5670;

pub(crate) const INFO: KindInfo = KindInfo {
    plural: "meshmetrics",
    short: "mm",
    flow: Flow::BOTH,
    targets: Some(TargetRefs { from: false, to: false, rules: false }),
    doc: "Which metrics proxies give, their applications' among them, and to whom.",
    fields: &[
        ("targetRef", Executed),
        ("default", Executed),
        (
            "default.backends[].prometheus.clientId",
            Warned("targets are not given out by control planes: any Prometheus may scrape"),
        ),
    ],
    ..KindInfo::new::<MeshMetric>()
};

impl MeshMetric {
    pub const KIND: Kind = Kind::new("MeshMetric");
}

impl Spec for MeshMetric {
    const KIND: Kind = MeshMetric::KIND;

    fn validate(&self, _context: &Context<'_>, out: &mut Violations) {
        policy::check_top(self.target_ref.as_ref(), &policy::TOP, false, out);
        if let Some(profiles) = self.default.sidecar.as_ref().and_then(|sidecar| sidecar.profiles.as_ref()) {
            profiles.check("spec.default.sidecar.profiles", out);
        }
        for (i, application) in self.default.applications.iter().flatten().enumerate() {
            // Kuma's paths: an item is called twice, as the list and by its own name; a port stands for its owner.
            application.check(&format!("spec.default.applications.application[{i}]"), out);
        }
        for (i, backend) in self.default.backends.iter().flatten().enumerate() {
            backend.check(&format!("spec.default.backends.backend[{i}]"), out);
        }
    }

    fn warnings(&self, _context: &Context<'_>, out: &mut Vec<String>) {
        policy::warn_of_top(self.target_ref.as_ref(), out);
    }
}

impl Profiles {
    fn check(&self, path: &str, out: &mut Violations) {
        for (i, profile) in self.append_profiles.iter().flatten().enumerate() {
            if !profile.name.is_known() {
                out.push(
                    format!("{path}.appendProfiles[{i}].name"),
                    format!(
                        "unrecognized profile name '{}' - 'All', 'None', 'Basic' are supported",
                        profile.name
                    ),
                );
            }
        }
        for (list, selectors) in [("exclude", &self.exclude), ("include", &self.include)] {
            for (i, selector) in selectors.iter().flatten().enumerate() {
                selector.check(&format!("{path}.{list}[{i}]"), out);
            }
        }
    }
}

impl Selector {
    fn check(&self, path: &str, out: &mut Violations) {
        match &self.type_ {
            SelectorType::Regex => validate::regex(&format!("{path}.match"), &self.match_, out),
            // Kuma's words, which forget Contains.
            SelectorType::Other(kind) => out.push(
                format!("{path}.type"),
                format!("unrecognized type '{kind}' - 'Regex', 'Prefix', 'Exact' are supported"),
            ),
            SelectorType::Prefix | SelectorType::Exact | SelectorType::Contains => {}
        }
    }
}

impl Application {
    fn check(&self, path: &str, out: &mut Violations) {
        if !is_port(self.port) {
            out.push(path, INVALID_PORT);
        }
        if self.address.as_ref().is_some_and(|address| !validate::is_address(address)) {
            out.push(format!("{path}.address"), "address has to be a valid IP or hostname");
        }
    }
}

impl Backend {
    fn check(&self, path: &str, out: &mut Violations) {
        let (field, given) = match &self.type_ {
            BackendType::Prometheus => ("prometheus", self.prometheus.is_some()),
            BackendType::OpenTelemetry => ("openTelemetry", self.open_telemetry.is_some()),
            BackendType::Other(_) => {
                return out.push(format!("{path}.type"), validate::one_of("type", BackendType::VALUES));
            }
        };
        if !given {
            out.push(format!("{path}.{field}"), MUST_BE_DEFINED);
        }
        if let Some(prometheus) = &self.prometheus {
            if !is_port(prometheus.port) {
                out.push(format!("{path}.port"), INVALID_PORT);
            }
            if prometheus.tls.as_ref().is_some_and(|tls| !tls.mode.is_known()) {
                out.push(format!("{path}.prometheus.tls.mode"), validate::one_of("mode", TlsMode::VALUES));
            }
        }
        if let Some(OpenTelemetry { endpoint, backend_ref, refresh_interval }) = &self.open_telemetry {
            let path = format!("{path}.openTelemetry");
            let destination = open_telemetry::Destination {
                endpoint: endpoint.as_deref(),
                backend_ref: backend_ref.as_ref(),
            };
            destination.check(&path, out);
            positive_duration(&format!("{path}.refreshInterval"), *refresh_interval, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::kinds::policy_tests::wrong;
    use crate::kinds::tests::{right, warnings};

    fn of(default: &str) -> String {
        format!("{{type: MeshMetric, name: counts, mesh: m, spec: {{default: {{{default}}}}}}}")
    }

    #[test]
    fn metrics_are_given() {
        let all = of(
            "sidecar: {includeUnused: true, profiles: {appendProfiles: [{name: Basic}], exclude: [{type: Regex, match: 'http2_.*'}], include: [{type: Contains, match: rbac}]}}, applications: [{name: app, port: 8080}], backends: [{type: Prometheus, prometheus: {clientId: main, tls: {mode: Disabled}}}, {type: Prometheus, prometheus: {port: 1, tls: {mode: ProvidedTLS}}}, {type: Prometheus, prometheus: {port: 2, tls: {mode: ActiveMTLSBackend}}}, {type: OpenTelemetry, openTelemetry: {endpoint: 'otel:4317', refreshInterval: 30s}}]",
        );
        right(&all);
        assert_eq!(
            warnings(&all),
            [
                "spec.default.backends[0].prometheus.clientId has no effect: targets are not given out by control planes: any Prometheus may scrape"
            ]
        );
        let document = crate::document::parse_text(&all).unwrap();
        let spec = crate::document::check(&document, None).unwrap().resource.spec;
        assert_eq!(spec["default"]["backends"][0]["prometheus"]["port"], 5670);
        assert_eq!(spec["default"]["applications"][0]["path"], "/metrics");
    }

    #[test]
    fn all_that_is_wrong_is_said() {
        wrong(
            &of(
                "sidecar: {profiles: {appendProfiles: [{name: Some}], exclude: [{type: Regex, match: '())(!('}], include: [{type: Like}]}}, applications: [{port: 0}, {port: 80, address: 'a b'}]",
            ),
            &[
                "spec.default.sidecar.profiles.appendProfiles[0].name: unrecognized profile name 'Some' - 'All', 'None', 'Basic' are supported",
                "spec.default.sidecar.profiles.exclude[0].match: invalid regex",
                "spec.default.sidecar.profiles.include[0].type: unrecognized type 'Like' - 'Regex', 'Prefix', 'Exact' are supported",
                "spec.default.applications.application[0]: port must be a valid (1-65535)",
                "spec.default.applications.application[1].address: address has to be a valid IP or hostname",
            ],
        );
        wrong(
            &of(
                "backends: [{type: Prometheus}, {type: Prometheus, prometheus: {port: 95599, tls: {mode: Some}}}, {type: Prometheus, prometheus: {tls: {mode: activeMTLSBackend}}}, {type: OpenTelemetry, prometheus: {}}, {type: OpenTelemetry, openTelemetry: {refreshInterval: 0s}}, {}]",
            ),
            &[
                "spec.default.backends.backend[0].prometheus: must be defined",
                "spec.default.backends.backend[1].port: port must be a valid (1-65535)",
                "spec.default.backends.backend[1].prometheus.tls.mode: \"mode\" must be one of [\"Disabled\", \"ProvidedTLS\", \"ActiveMTLSBackend\"]",
                "spec.default.backends.backend[2].prometheus.tls.mode: \"mode\" must be one of [\"Disabled\", \"ProvidedTLS\", \"ActiveMTLSBackend\"]",
                "spec.default.backends.backend[3].openTelemetry: must be defined",
                "spec.default.backends.backend[4].openTelemetry: openTelemetry must have exactly one defined: endpoint, backendRef",
                "spec.default.backends.backend[4].openTelemetry.refreshInterval: must be greater than zero when defined",
                "spec.default.backends.backend[5].type: \"type\" must be one of [\"Prometheus\", \"OpenTelemetry\"]",
            ],
        );
    }
}
