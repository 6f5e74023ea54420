use crate::enums::text_enum;
use crate::registry::Standing::{Executed, Warned};
use crate::validate::{self, INVALID_PORT, MUST_NOT_BE_EMPTY, is_port};
use crate::{Context, Flow, Kind, KindInfo, Spec, Violations};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A collector that policies send OpenTelemetry data to, by its labels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct MeshOpenTelemetryBackend {
    /// Unset: the proxy's own host, port 4317.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Endpoint>,
    /// Unset: grpc.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env: Option<Env>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Endpoint {
    /// An address or a name. Unset: 127.0.0.1, which is the proxy's own host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Unset: 4317.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u32>,
    /// What goes before `/v1/logs`, `/v1/traces`, `/v1/metrics`; of http alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

text_enum! {
    /// What OTLP is spoken over.
    Protocol, default Protocol::Grpc, {
        Grpc = "grpc",
        Http = "http",
    }
}

/// What variables of the proxy's environment say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Env {
    pub mode: EnvMode,
    pub precedence: EnvPrecedence,
    /// Unset: true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_signal_overrides: Option<bool>,
}

text_enum! {
    /// Whether they count.
    EnvMode, default EnvMode::Optional, {
        Disabled = "Disabled",
        Optional = "Optional",
        Required = "Required",
    }
}

text_enum! {
    /// Whose word goes before.
    EnvPrecedence, default EnvPrecedence::EnvFirst, {
        ExplicitFirst = "ExplicitFirst",
        EnvFirst = "EnvFirst",
    }
}

/// Where nothing is said: Kuma's proxies ask a variable first, and then take this.
const ADDRESS: &str = "127.0.0.1";
/// Of OTLP over gRPC; Kuma's for both protocols.
const PORT: u32 = 4317;

pub(crate) const INFO: KindInfo = KindInfo {
    plural: "meshopentelemetrybackends",
    short: "motb",
    flow: Flow::BOTH,
    doc: "A collector that policies send OpenTelemetry data to.",
    fields: &[
        ("endpoint", Executed),
        ("protocol", Executed),
        (
            "env",
            Warned("proxies read none of OpenTelemetry's variables: what endpoint and protocol say holds"),
        ),
    ],
    ..KindInfo::new::<MeshOpenTelemetryBackend>()
};

impl MeshOpenTelemetryBackend {
    pub const KIND: Kind = Kind::new("MeshOpenTelemetryBackend");

    pub fn address(&self) -> &str {
        self.endpoint.as_ref().and_then(|endpoint| endpoint.address.as_deref()).unwrap_or(ADDRESS)
    }

    pub fn port(&self) -> u32 {
        self.endpoint.as_ref().and_then(|endpoint| endpoint.port).unwrap_or(PORT)
    }

    /// What goes before `/v1/logs` and the like, without a `/` at its end; `None`: it is spoken to over gRPC.
    pub fn http_path(&self) -> Option<&str> {
        let path = self.endpoint.as_ref().and_then(|endpoint| endpoint.path.as_deref());
        (self.protocol == Some(Protocol::Http)).then(|| path.unwrap_or_default().trim_end_matches('/'))
    }
}

impl Spec for MeshOpenTelemetryBackend {
    const KIND: Kind = MeshOpenTelemetryBackend::KIND;

    fn validate(&self, _context: &Context<'_>, out: &mut Violations) {
        let over_http = self.protocol == Some(Protocol::Http);
        if let Some(endpoint) = &self.endpoint {
            endpoint.check("spec.endpoint", over_http, out);
        }
        if self.protocol.as_ref().is_some_and(|protocol| !protocol.is_known()) {
            out.push("spec.protocol", "must be one of: grpc, http");
        }
        if let Some(env) = &self.env {
            if !env.mode.is_known() {
                out.push("spec.env.mode", "must be one of: Disabled, Optional, Required");
            }
            if !env.precedence.is_known() {
                out.push("spec.env.precedence", "must be one of: ExplicitFirst, EnvFirst");
            }
        }
    }
}

impl Endpoint {
    fn check(&self, path: &str, over_http: bool, out: &mut Violations) {
        match self.address.as_deref() {
            Some("") => out.push(format!("{path}.address"), MUST_NOT_BE_EMPTY),
            Some(address) if !validate::is_address(address) => {
                out.push(format!("{path}.address"), "address has to be a valid IP or hostname");
            }
            Some(_) | None => {}
        }
        if self.port.is_some_and(|port| !is_port(port)) {
            out.push(format!("{path}.port"), INVALID_PORT);
        }
        let Some(base) = self.path.as_deref().filter(|base| !base.is_empty()) else { return };
        let path = format!("{path}.path");
        if !over_http {
            return out.push(path, "must not be set when protocol is grpc");
        }
        if !base.starts_with('/') {
            out.push(path.as_str(), "must start with /");
        }
        if base.contains(['?', '#']) {
            out.push(path.as_str(), "must not contain query or fragment");
        }
        if !base.chars().all(|c| c.is_ascii_graphic()) {
            out.push(path, "must be the path of a URL: visible ASCII characters, others as %XX");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::policy_tests::wrong;
    use crate::kinds::tests::{right, warnings};

    fn of(spec: &str) -> String {
        format!("{{type: MeshOpenTelemetryBackend, name: main, mesh: m, spec: {{{spec}}}}}")
    }

    fn read(spec: &str) -> MeshOpenTelemetryBackend {
        serde_json::from_value(crate::document::parse_text(&of(spec)).unwrap()["spec"].clone()).unwrap()
    }

    #[test]
    fn a_collector_is_somewhere() {
        for spec in [
            "",
            "endpoint: {}",
            "endpoint: {port: 1}",
            "endpoint: {address: otel.example, port: 4318, path: /base}, protocol: http",
            "endpoint: {address: '::1'}, protocol: grpc",
        ] {
            right(&of(spec));
            assert_eq!(warnings(&of(spec)), [""; 0]);
        }
        let empty = read("");
        assert_eq!((empty.address(), empty.port(), empty.http_path()), ("127.0.0.1", 4317, None));
        assert_eq!(read("protocol: http").http_path(), Some(""));
        assert_eq!(read("endpoint: {path: /a/b/}, protocol: http").http_path(), Some("/a/b"));
        assert_eq!(
            warnings(&of("env: {mode: Required}")),
            [
                "spec.env has no effect: proxies read none of OpenTelemetry's variables: what endpoint and protocol say holds"
            ]
        );
    }

    #[test]
    fn all_that_is_wrong_is_said() {
        wrong(
            &of(
                "endpoint: {address: 'a b', port: 70000, path: /a}, protocol: udp, env: {mode: On, precedence: Me}",
            ),
            &[
                "spec.endpoint.address: address has to be a valid IP or hostname",
                "spec.endpoint.path: must not be set when protocol is grpc",
                "spec.endpoint.port: port must be a valid (1-65535)",
                "spec.env.mode: must be one of: Disabled, Optional, Required",
                "spec.env.precedence: must be one of: ExplicitFirst, EnvFirst",
                "spec.protocol: must be one of: grpc, http",
            ],
        );
        wrong(
            &of("endpoint: {address: '', path: 'a?b c'}, protocol: http"),
            &[
                "spec.endpoint.address: must not be empty",
                "spec.endpoint.path: must be the path of a URL: visible ASCII characters, others as %XX",
                "spec.endpoint.path: must not contain query or fragment",
                "spec.endpoint.path: must start with /",
            ],
        );
    }
}
