use super::data_source::{self, DataSource};
use super::hostname_generator::HostnameGeneratorStatus;
use super::is_false;
use super::mesh_service::{Address, Vip};
use crate::check::NOT_SUPPORTED;
use crate::enums::text_enum;
use crate::registry::Standing::{Executed, Refused, Warned};
use crate::validate::{self, is_port};
use crate::{Context, Flow, Kind, KindInfo, Spec, Violations, names};
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A destination outside of the mesh under a generated name, always through an egress.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct MeshExternalService {
    #[serde(rename = "match")]
    pub match_: Match,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extension: Option<Extension>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<Endpoint>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// Addresses that are not public but may be the endpoints', in CIDR notation. Meridian's own field.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "super::cidrs")]
    pub allowed_addresses: Vec<IpNet>,
}

/// What workloads ask for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Match {
    #[serde(rename = "type")]
    pub type_: MatchType,
    pub port: u32,
    pub protocol: Protocol,
}

text_enum! {
    /// Where the name comes from.
    MatchType, default MatchType::HostnameGenerator, {
        HostnameGenerator = "HostnameGenerator",
    }
}

text_enum! {
    /// What workloads speak to it.
    Protocol, default Protocol::Tcp, {
        Tcp = "tcp",
        Grpc = "grpc",
        Http = "http",
        Http2 = "http2",
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Extension {
    #[serde(rename = "type")]
    pub type_: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<Value>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Endpoint {
    /// An IP address or a name.
    pub address: String,
    pub port: u32,
    /// 0 to 128; 0 is tried first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
}

/// TLS that the egress originates.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Tls {
    #[serde(skip_serializing_if = "is_false")]
    pub enabled: bool,
    #[serde(skip_serializing_if = "is_false")]
    pub allow_renegotiation: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<TlsVersions>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verification: Option<TlsVerification>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct TlsVersions {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min: Option<TlsVersion>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<TlsVersion>,
}

text_enum! {
    /// A version of TLS.
    TlsVersion, default TlsVersion::Auto, {
        Auto = "TLSAuto",
        Tls10 = "TLS10",
        Tls11 = "TLS11",
        Tls12 = "TLS12",
        Tls13 = "TLS13",
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct TlsVerification {
    /// Unset: Secured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<VerificationMode>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subject_alt_names: Vec<SubjectAltName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_cert: Option<DataSource>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_cert: Option<DataSource>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_key: Option<DataSource>,
}

text_enum! {
    /// What of the server's certificate is verified.
    VerificationMode, default VerificationMode::Secured, {
        SkipSan = "SkipSAN",
        SkipCa = "SkipCA",
        SkipAll = "SkipAll",
        Secured = "Secured",
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct SubjectAltName {
    #[serde(rename = "type")]
    pub type_: SanMatchType,
    pub value: String,
}

text_enum! {
    /// How a name is compared.
    SanMatchType, default SanMatchType::Exact, {
        Prefix = "Prefix",
        Exact = "Exact",
    }
}

pub(crate) const INFO: KindInfo = KindInfo {
    plural: "meshexternalservices",
    short: "extsvc",
    flow: Flow::BOTH,
    short_names: true,
    doc: "A destination outside of the mesh under a generated name, always through an egress.",
    fields: &[
        ("match", Executed),
        ("endpoints", Executed),
        ("extension", Refused("there are no extensions that would take the traffic")),
        ("tls.enabled", Executed),
        ("tls.allowRenegotiation", Warned("TLS renegotiation is never done")),
        ("tls.version", Executed),
        ("tls.verification", Executed),
        ("tls.verification.caCert.file", Refused(data_source::NO_FILE)),
        ("tls.verification.clientCert.file", Refused(data_source::NO_FILE)),
        ("tls.verification.clientKey.file", Refused(data_source::NO_FILE)),
        ("allowedAddresses", Executed),
    ],
    ..KindInfo::new::<MeshExternalService>()
};

/// What a zone's control plane finds out about a MeshExternalService: each has its own address and names for it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Status {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vip: Option<Vip>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<Address>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hostname_generators: Vec<HostnameGeneratorStatus>,
}

impl MeshExternalService {
    pub const KIND: Kind = Kind::new("MeshExternalService");
}

impl Spec for MeshExternalService {
    const KIND: Kind = MeshExternalService::KIND;

    fn validate(&self, _context: &Context<'_>, out: &mut Violations) {
        self.match_.check(out);
        for (i, endpoint) in self.endpoints.iter().enumerate() {
            endpoint.check(&format!("spec.endpoints[{i}]"), out);
        }
        if let Some(tls) = &self.tls {
            tls.check(out);
        }
        if self.extension.as_ref().is_some_and(|extension| extension.type_.is_empty()) {
            out.push("spec.extension.type", "must not be empty");
        }
    }

    fn warnings(&self, _context: &Context<'_>, out: &mut Vec<String>) {
        if self.endpoints.is_empty() {
            out.push("spec.endpoints is empty: every connection is refused".to_owned());
        }
        let min = self.tls.as_ref().and_then(|tls| tls.version.as_ref()?.min.as_ref());
        if matches!(min, Some(TlsVersion::Tls10 | TlsVersion::Tls11)) {
            out.push("spec.tls.version.min: TLS 1.2 is the lowest version spoken".to_owned());
        }
    }
}

impl Match {
    fn check(&self, out: &mut Violations) {
        if let MatchType::Other(kind) = &self.type_ {
            out.push(
                "spec.match.type",
                format!("unrecognized type '{kind}' - only 'HostnameGenerator' is supported"),
            );
        }
        if !is_port(self.port) {
            out.push("spec.match.port", INVALID_PORT);
        }
        if !self.protocol.is_known() {
            out.push("spec.match.protocol", validate::one_of("protocol", Protocol::VALUES));
        }
    }
}

const INVALID_PORT: &str = "port must be a valid (1-65535)";

impl Endpoint {
    fn check(&self, path: &str, out: &mut Violations) {
        if !validate::is_address(&self.address) {
            out.push(format!("{path}.address"), "address has to be a valid IP or hostname");
        } else if !is_port(self.port) {
            out.push(format!("{path}.port"), INVALID_PORT);
        }
        if self.priority.is_some_and(|priority| priority > 128) {
            out.push(format!("{path}.priority"), "must be at most 128");
        }
    }
}

impl Tls {
    fn check(&self, out: &mut Violations) {
        if let Some(versions) = &self.version {
            versions.check(out);
        }
        if let Some(verification) = &self.verification {
            verification.check(out);
        }
    }
}

impl TlsVersions {
    fn check(&self, out: &mut Violations) {
        let mut valid = true;
        for (name, version) in [("min", &self.min), ("max", &self.max)] {
            if version.as_ref().is_some_and(|version| !version.is_known()) {
                out.push(format!("spec.tls.version.{name}"), validate::one_of(name, TlsVersion::VALUES));
                valid = false;
            }
        }
        let bound =
            |version: &Option<TlsVersion>| version.clone().filter(|version| *version != TlsVersion::Auto);
        match (valid, bound(&self.min), bound(&self.max)) {
            (true, Some(min), Some(max)) if min > max => {
                out.push("spec.tls.version.min", "min version must be lower than max");
            }
            (true, _, Some(TlsVersion::Tls10 | TlsVersion::Tls11)) => out.push(
                "spec.tls.version.max",
                format!("{NOT_SUPPORTED}: TLS 1.2 is the lowest version spoken"),
            ),
            _ => {}
        }
    }
}

impl TlsVerification {
    fn check(&self, out: &mut Violations) {
        let path = "spec.tls.verification";
        if self.server_name.as_deref().is_some_and(|name| !names::is_hostname(name)) {
            out.push(format!("{path}.serverName"), "must be a valid DNS name");
        }
        if self.mode.as_ref().is_some_and(|mode| !mode.is_known()) {
            out.push(format!("{path}.mode"), validate::one_of("mode", VerificationMode::VALUES));
        }
        for (i, name) in self.subject_alt_names.iter().enumerate() {
            if !name.type_.is_known() {
                out.push(
                    format!("{path}.subjectAltNames[{i}].type"),
                    validate::one_of("type", SanMatchType::VALUES),
                );
            }
            if name.value.is_empty() {
                // An empty prefix would match every name.
                out.push(format!("{path}.subjectAltNames[{i}].value"), "must not be empty");
            }
        }
        match (&self.client_cert, &self.client_key) {
            (Some(_), None) => {
                out.push(format!("{path}.clientKey"), "must be defined when clientCert is defined");
            }
            (None, Some(_)) => {
                out.push(format!("{path}.clientCert"), "must be defined when clientKey is defined");
            }
            _ => {}
        }
        let sources =
            [("caCert", &self.ca_cert), ("clientCert", &self.client_cert), ("clientKey", &self.client_key)];
        for (name, source) in sources {
            if let Some(source) = source {
                source.check(&format!("{path}.{name}"), out);
            }
        }
    }
}
