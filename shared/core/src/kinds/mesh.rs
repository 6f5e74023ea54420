use super::data_source::{DataSource, NO_FILE};
use super::is_false;
use crate::check::NOT_SUPPORTED;
use crate::duration::GoDuration;
use crate::enums::proto_enum;
use crate::registry::Standing::{Executed, Refused, Warned};
use crate::validate::Tags;
use crate::{Context, Format, Kind, KindInfo, Scope, Spec, Violations};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// A mesh: its identity and what holds for all of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Mesh {
    /// Mutual TLS between the mesh's proxies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtls: Option<Mtls>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tracing: Option<Tracing>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logging: Option<Logging>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics: Option<Metrics>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub networking: Option<Networking>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub routing: Option<Routing>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub constraints: Option<Constraints>,
    /// Kinds of policies not to create with the mesh; `*` for all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub skip_creating_initial_policies: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mesh_services: Option<MeshServices>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Mtls {
    /// Name of the backend in use; empty: mTLS is off.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub enabled_backend: String,
    /// At most one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub backends: Vec<CertificateAuthorityBackend>,
    #[serde(skip_serializing_if = "is_false")]
    pub skip_validation: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct CertificateAuthorityBackend {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// `builtin`: the root is made here; `provided`: it is `conf`'s.
    #[serde(rename = "type", skip_serializing_if = "String::is_empty")]
    pub type_: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dp_cert: Option<DpCert>,
    /// Of `provided`: [`ProvidedCa`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conf: Option<BTreeMap<String, Value>>,
    pub mode: MtlsMode,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root_chain: Option<RootChain>,
}

/// The root of a mesh, as its user provides it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ProvidedCa {
    /// PEM.
    pub cert: DataSource,
    /// PEM; a Secret, since a Mesh is read by all users and stands in the history in clear.
    pub key: DataSource,
}

proto_enum! {
    /// Whether proxies also take plaintext.
    MtlsMode, default Strict, {
        Strict = 0 "STRICT",
        Permissive = 1 "PERMISSIVE",
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct DpCert {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rotation: Option<Rotation>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_timeout: Option<crate::duration::ProtoDuration>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Rotation {
    /// Lifetime of certificates: `24h`, `1d`. Unset: 24 h. They are renewed from half of it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub expiration: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct RootChain {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_timeout: Option<crate::duration::ProtoDuration>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Networking {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outbound: Option<NetworkingOutbound>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct NetworkingOutbound {
    /// Whether workloads may reach any public address outside of the mesh. Default false (Kuma's is true).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub passthrough: Option<bool>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Routing {
    #[serde(skip_serializing_if = "is_false")]
    pub locality_aware_load_balancing: bool,
    /// External and cross-zone traffic goes through the zone's egress. Needs mTLS.
    #[serde(skip_serializing_if = "is_false")]
    pub zone_egress: bool,
    /// Whether a MeshExternalService needs a permission. Default true (Kuma's is false).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_forbid_mesh_external_service_access: Option<bool>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Constraints {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dataplane_proxy: Option<DataplaneProxyConstraints>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct DataplaneProxyConstraints {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub requirements: Vec<ConstraintRules>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub restrictions: Vec<ConstraintRules>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct ConstraintRules {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct MeshServices {
    /// How names reach services. Unset in a Mesh: Exclusive (Kuma's default is Disabled).
    pub mode: MeshServicesMode,
}

proto_enum! {
    /// Which of `<service>.mesh` and MeshService names exist.
    MeshServicesMode, default Disabled, {
        Disabled = 0 "Disabled",
        Everywhere = 1 "Everywhere",
        ReachableBackends = 2 "ReachableBackends",
        Exclusive = 3 "Exclusive",
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Tracing {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub default_backend: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub backends: Vec<TracingBackend>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct TracingBackend {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampling: Option<f64>,
    #[serde(rename = "type", skip_serializing_if = "String::is_empty")]
    pub type_: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conf: Option<BTreeMap<String, Value>>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Logging {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub default_backend: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub backends: Vec<LoggingBackend>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct LoggingBackend {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub format: String,
    #[serde(rename = "type", skip_serializing_if = "String::is_empty")]
    pub type_: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conf: Option<BTreeMap<String, Value>>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Metrics {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub enabled_backend: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub backends: Vec<MetricsBackend>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct MetricsBackend {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(rename = "type", skip_serializing_if = "String::is_empty")]
    pub type_: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conf: Option<BTreeMap<String, Value>>,
}

pub(crate) const INFO: KindInfo = KindInfo {
    plural: "meshes",
    short: "m",
    scope: Scope::Global,
    format: Format::Legacy,
    short_names: true,
    doc: "A mesh: its identity and what holds for all of it.",
    fields: &[
        ("mtls.enabledBackend", Executed),
        ("mtls.backends[].name", Executed),
        ("mtls.backends[].type", Executed),
        ("mtls.backends[].mode", Executed),
        ("mtls.backends[].dpCert.rotation.expiration", Executed),
        ("mtls.backends[].dpCert.requestTimeout", Warned("a request waits for 10 s")),
        ("mtls.backends[].conf", Executed),
        ("mtls.backends[].rootChain", Warned("the global control plane asks nobody")),
        ("mtls.skipValidation", Warned("backends are always validated")),
        ("networking.outbound.passthrough", Executed),
        ("routing.zoneEgress", Executed),
        ("routing.defaultForbidMeshExternalServiceAccess", Executed),
        (
            "routing.localityAwareLoadBalancing",
            Warned("the local zone is preferred unless a MeshLoadBalancingStrategy says otherwise"),
        ),
        ("meshServices.mode", Executed),
        (
            "constraints",
            Refused("nothing would hold Dataplanes to them; bind dataplane tokens to services instead"),
        ),
        ("skipCreatingInitialPolicies", Executed),
        ("tracing", Warned("use MeshTrace")),
        ("logging", Warned("use MeshAccessLog")),
        ("metrics", Warned("use MeshMetric")),
    ],
    ..KindInfo::new::<Mesh>()
};

impl Mesh {
    pub const KIND: Kind = Kind::new("Mesh");

    /// The backend in use, if mTLS is on.
    pub fn mtls_backend(&self) -> Option<&CertificateAuthorityBackend> {
        let mtls = self.mtls.as_ref()?;
        let enabled = mtls.enabled_backend.as_str();
        mtls.backends.iter().find(|backend| !enabled.is_empty() && backend.name == enabled)
    }

    /// Whether workloads may reach any public address.
    pub fn passthrough(&self) -> bool {
        let outbound = self.networking.as_ref().and_then(|networking| networking.outbound.as_ref());
        outbound.and_then(|outbound| outbound.passthrough).unwrap_or(false)
    }

    pub fn zone_egress(&self) -> bool {
        self.routing.as_ref().is_some_and(|routing| routing.zone_egress)
    }

    pub fn forbids_mesh_external_services(&self) -> bool {
        let routing = self.routing.as_ref();
        routing.and_then(|routing| routing.default_forbid_mesh_external_service_access).unwrap_or(true)
    }

    pub fn mesh_services_mode(&self) -> MeshServicesMode {
        self.mesh_services.as_ref().map_or(MeshServicesMode::Exclusive, |services| services.mode)
    }
}

impl Spec for Mesh {
    const KIND: Kind = Mesh::KIND;

    fn complete(&mut self, _context: &Context<'_>, warnings: &mut Vec<String>) {
        let outbound = self.networking.get_or_insert_default().outbound.get_or_insert_default();
        if outbound.passthrough.is_none() {
            outbound.passthrough = Some(false);
            warnings.push(
                "networking.outbound.passthrough is not said and stored as false (Kuma's default is true)"
                    .into(),
            );
        }
    }

    fn validate(&self, _context: &Context<'_>, out: &mut Violations) {
        let mtls = self.mtls.clone().unwrap_or_default();
        mtls.check(out);
        self.check_observability(out);
        if let Some(proxies) =
            self.constraints.as_ref().and_then(|constraints| constraints.dataplane_proxy.as_ref())
        {
            proxies.check(out);
        }
        if self.zone_egress() && mtls.enabled_backend.is_empty() {
            out.push("mtls", "has to be set when zoneEgress enabled");
        }
    }

    fn warnings(&self, _context: &Context<'_>, out: &mut Vec<String>) {
        match self.mtls_backend().map(|backend| backend.mode) {
            None => out.push("mtls is off: there are no permissions and no traffic between zones".into()),
            Some(MtlsMode::Permissive) => out
                .push("mtls mode PERMISSIVE: permissions do not cover callers without a certificate".into()),
            Some(MtlsMode::Strict) => {}
        }
        for (i, backend) in self.mtls.iter().flat_map(|mtls| &mtls.backends).enumerate() {
            if backend.type_ == BUILTIN && backend.conf.is_some() {
                out.push(format!(
                    "mtls.backends[{i}].conf has no effect: the builtin authority has nothing to configure"
                ));
            }
        }
        if !self.zone_egress() {
            out.push(
                "routing.zoneEgress is off: what may leave the mesh is enforced by the sidecars alone".into(),
            );
        }
    }
}

/// The mesh that a new global control plane begins with: builtin mTLS STRICT, zone egress, no passthrough.
pub fn mesh_default() -> crate::Resource {
    let backend =
        CertificateAuthorityBackend { name: "builtin".into(), type_: "builtin".into(), ..Default::default() };
    let mesh = Mesh {
        mtls: Some(Mtls {
            enabled_backend: "builtin".into(),
            backends: vec![backend],
            skip_validation: false,
        }),
        networking: Some(Networking { outbound: Some(NetworkingOutbound { passthrough: Some(false) }) }),
        routing: Some(Routing { zone_egress: true, ..Default::default() }),
        ..Default::default()
    };
    crate::Resource::of(crate::Key::global(Mesh::KIND, "", "default"), BTreeMap::new(), &mesh)
}

const BUILTIN: &str = "builtin";
const PROVIDED: &str = "provided";

impl CertificateAuthorityBackend {
    /// The root that the user provides; `None` where it is made here.
    ///
    /// # Errors
    /// What is wrong with its configuration.
    pub fn provided(&self) -> Option<Result<ProvidedCa, serde_json::Error>> {
        let read = || {
            let conf = self.conf.clone().unwrap_or_default();
            serde_json::from_value(Value::Object(conf.into_iter().collect()))
        };
        (self.type_ == PROVIDED).then(read)
    }

    fn check_provided(&self, path: &str, out: &mut Violations) {
        let provided = match self.provided() {
            Some(Ok(provided)) => provided,
            Some(Err(error)) => return out.push(path, error.to_string()),
            None => return,
        };
        for (name, source) in [("cert", &provided.cert), ("key", &provided.key)] {
            source.check(&format!("{path}.{name}"), out);
            if source.file.is_some() {
                out.push(format!("{path}.{name}.file"), format!("{NOT_SUPPORTED}: {NO_FILE}"));
            }
        }
        for (name, given) in [
            ("inline", provided.key.inline.is_some()),
            ("inlineString", provided.key.inline_string.is_some()),
        ] {
            if given {
                out.push(format!("{path}.key.{name}"), format!("{NOT_SUPPORTED}: {NO_INLINE_KEY}"));
            }
        }
    }
}

const NO_INLINE_KEY: &str = "all users read a Mesh, and its history has it in clear; put the key into a Secret of the mesh, and name that";

impl Mtls {
    fn check(&self, out: &mut Violations) {
        if self.backends.len() > 1 {
            out.push("mtls.backends", "cannot have more than 1 backends");
        }
        let mut names = BTreeSet::new();
        for (i, backend) in self.backends.iter().enumerate() {
            if !names.insert(backend.name.as_str()) {
                out.push(
                    format!("mtls.backends[{i}].name"),
                    format!("{:?} name is already used for another backend", backend.name),
                );
            }
            let expiration = backend.dp_cert.as_ref().and_then(|cert| cert.rotation.as_ref());
            if expiration.is_some_and(|rotation| GoDuration::parse(&rotation.expiration).is_err()) {
                out.push("mtls.dpcert.rotation.expiration", "has to be a valid format");
            }
            match backend.type_.as_str() {
                BUILTIN => {}
                PROVIDED => backend.check_provided(&format!("mtls.backends[{i}].conf"), out),
                other => out.push(
                    format!("mtls.backends[{i}].type"),
                    format!("{NOT_SUPPORTED}: {other:?}; the types are \"{BUILTIN}\" and \"{PROVIDED}\""),
                ),
            }
        }
        if !self.enabled_backend.is_empty() && !names.contains(self.enabled_backend.as_str()) {
            out.push("mtls.enabledBackend", "has to be set to one of the backends in the mesh");
        }
    }
}

impl DataplaneProxyConstraints {
    fn check(&self, out: &mut Violations) {
        let tags = Tags { require_any: true, selector: true, ..Tags::default() };
        for (name, rules) in [("requirements", &self.requirements), ("restrictions", &self.restrictions)] {
            for (i, rule) in rules.iter().enumerate() {
                tags.check(&format!("constraints.dataplaneProxy.{name}[{i}].tags"), &rule.tags, out);
            }
        }
    }
}
