use super::hostname_generator::HostnameGeneratorStatus;
use crate::enums::text_enum;
use crate::registry::Standing::Executed;
use crate::validate::{self, PROTOCOLS};
use crate::{Context, Flow, Kind, KindInfo, Spec, Violations};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

/// Each is a destination of its own in every zone, with all identities: what one zone writes must not fill the others.
const MAX_PORTS: usize = 256;
/// Each is told with each port.
const MAX_IDENTITIES: usize = 64;
/// Bytes: what SPIFFE allows an ID to have.
const MAX_IDENTITY: usize = 2_048;
/// Bytes of all together: a hundred of usual length.
pub const MAX_IDENTITIES_BYTES: usize = 8 << 10;

/// A service: the Dataplanes that offer it, and its ports.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct MeshService {
    pub selector: Selector,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Port>,
    /// Names in the certificates of its instances; set by the control plane.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub identities: Vec<Identity>,
    /// Whether any instance is ready; set by the control plane.
    pub state: State,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Selector {
    /// Inbounds with all of these tags.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dataplane_tags: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dataplane_ref: Option<DataplaneRef>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dataplane_labels: Option<LabelSelector>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct DataplaneRef {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct LabelSelector {
    /// All of these; none: everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub match_labels: Option<BTreeMap<String, String>>,
}

impl LabelSelector {
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.match_labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value))
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Port {
    /// Default: the port as text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub port: u32,
    /// An inbound's port or name; unset: `port`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_port: Option<PortOrName>,
    /// tcp, http, http2, grpc, kafka.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app_protocol: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PortOrName {
    Port(u32),
    Name(String),
}

impl JsonSchema for PortOrName {
    fn schema_name() -> Cow<'static, str> {
        "PortOrName".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [{ "type": "integer" }, { "type": "string" }] })
    }
}

impl Port {
    pub fn section_name(&self) -> String {
        self.name.clone().filter(|name| !name.is_empty()).unwrap_or_else(|| self.port.to_string())
    }

    pub fn protocol(&self) -> &str {
        self.app_protocol.as_deref().filter(|protocol| !protocol.is_empty()).unwrap_or("tcp")
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Identity {
    #[serde(rename = "type")]
    pub type_: IdentityType,
    pub value: String,
}

text_enum! {
    /// What an identity's value is.
    IdentityType, default IdentityType::ServiceTag, {
        ServiceTag = "ServiceTag",
        SpiffeId = "SpiffeID",
    }
}

text_enum! {
    /// Whether a service has a ready instance.
    State, default State::Unavailable, {
        Available = "Available",
        Unavailable = "Unavailable",
    }
}

/// What a zone's control plane finds out about a MeshService. Each zone has its own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Status {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<Address>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dataplane_proxies: Option<DataplaneProxies>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hostname_generators: Vec<HostnameGeneratorStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsStatus>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub vips: Vec<Vip>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Address {
    pub hostname: String,
    /// `HostnameGenerator`
    #[serde(skip_serializing_if = "String::is_empty")]
    pub origin: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname_generator_ref: Option<HostnameGeneratorRef>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct HostnameGeneratorRef {
    pub core_name: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct DataplaneProxies {
    pub connected: u32,
    pub healthy: u32,
    pub total: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct TlsStatus {
    /// `Ready` once every instance has a certificate; clients use mTLS from then on.
    pub status: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Vip {
    pub ip: String,
}

pub(crate) const INFO: KindInfo = KindInfo {
    plural: "meshservices",
    short: "msvc",
    flow: Flow::ACROSS,
    short_names: true,
    doc: "A service: the Dataplanes that offer it, and its ports.",
    fields: &[("selector", Executed), ("ports", Executed), ("identities", Executed), ("state", Executed)],
    ..KindInfo::new::<MeshService>()
};

impl MeshService {
    pub const KIND: Kind = Kind::new("MeshService");
}

impl Spec for MeshService {
    const KIND: Kind = MeshService::KIND;

    fn validate(&self, _context: &Context<'_>, out: &mut Violations) {
        let Selector { dataplane_tags, dataplane_ref, dataplane_labels } = &self.selector;
        let selectors = [dataplane_tags.is_some(), dataplane_ref.is_some(), dataplane_labels.is_some()];
        if selectors.into_iter().filter(|given| *given).count() > 1 {
            out.push(
                "spec.selector",
                "must specify only one of: dataplaneTags, dataplaneRef, or dataplaneLabels",
            );
        }
        if self.ports.len() > MAX_PORTS {
            out.push("spec.ports", format!("must have at most {MAX_PORTS} items"));
        }
        if self.identities.len() > MAX_IDENTITIES {
            out.push("spec.identities", format!("must have at most {MAX_IDENTITIES} items"));
        }
        if !self.state.is_known() {
            out.push("spec.state", validate::one_of("state", State::VALUES));
        }
        if self.identities.iter().map(|identity| identity.value.len()).sum::<usize>() > MAX_IDENTITIES_BYTES {
            out.push("spec.identities", format!("must have at most {MAX_IDENTITIES_BYTES} bytes together"));
        }
        for (i, identity) in self.identities.iter().enumerate() {
            if identity.value.len() > MAX_IDENTITY {
                out.push(
                    format!("spec.identities[{i}].value"),
                    format!("must have at most {MAX_IDENTITY} bytes"),
                );
            }
            if !identity.type_.is_known() {
                out.push(
                    format!("spec.identities[{i}].type"),
                    validate::one_of("type", IdentityType::VALUES),
                );
            }
        }
        let (mut ports, mut names) = (BTreeSet::new(), BTreeSet::new());
        for (i, port) in self.ports.iter().enumerate() {
            let path = format!("spec.ports[{i}]");
            validate::port(&format!("{path}.port"), port.port, out);
            if !ports.insert(port.port) {
                out.push(format!("{path}.port"), format!("port {} is already defined", port.port));
            } else if !names.insert(port.section_name()) {
                out.push(
                    format!("{path}.name"),
                    format!("name {:?} is already defined", port.section_name()),
                );
            }
            if !PROTOCOLS.contains(&port.protocol()) {
                out.push(format!("{path}.appProtocol"), validate::one_of("appProtocol", &PROTOCOLS));
            }
            if let Some(PortOrName::Port(target)) = port.target_port {
                validate::port(&format!("{path}.targetPort"), target, out);
            }
        }
    }
}
