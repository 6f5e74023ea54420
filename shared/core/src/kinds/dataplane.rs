use super::is_zero;
use super::mesh::MetricsBackend;
use crate::check::NOT_SUPPORTED;
use crate::duration::ProtoDuration;
use crate::enums::proto_enum;
use crate::registry::Standing::{Executed, Warned};
use crate::{Context, Flow, Format, Kind, KindInfo, Spec, Violations, labels};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A sidecar and the service beside it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Dataplane {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub networking: Option<Networking>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics: Option<MetricsBackend>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probes: Option<Probes>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Networking {
    /// Where other proxies reach this one: an IP address or a name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub address: String,
    /// Where other proxies reach this one if not at `address`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub advertised_address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Gateway>,
    /// The services offered.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub inbound: Vec<Inbound>,
    /// Explicit listeners for the services used (without transparent proxying).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub outbound: Vec<Outbound>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transparent_proxying: Option<TransparentProxying>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin: Option<Admin>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub listeners: Vec<Listener>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Gateway {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    #[serde(rename = "type")]
    pub type_: GatewayType,
}

proto_enum! {
    /// Who takes the gateway's traffic.
    GatewayType, default Delegated, {
        Delegated = 0 "DELEGATED",
        Builtin = 1 "BUILTIN",
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Inbound {
    /// Where peers connect.
    #[serde(skip_serializing_if = "is_zero")]
    pub port: u32,
    /// Where the application listens; 0: the same as `port`.
    #[serde(skip_serializing_if = "is_zero")]
    pub service_port: u32,
    /// Where the application listens; empty: `address`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub service_address: String,
    /// Where peers connect; empty: `networking.address`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub address: String,
    /// `kuma.io/service` and what else policies select by.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_probe: Option<ServiceProbe>,
    #[serde(skip_serializing_if = "InboundState::is_ready")]
    pub state: InboundState,
    /// For `sectionName` and MeshService's `targetPort`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// tcp, http, http2 or grpc; empty: the tag `kuma.io/protocol`, else tcp.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub protocol: String,
}

proto_enum! {
    /// Whether an inbound takes traffic.
    InboundState, default Ready, {
        Ready = 0 "Ready",
        NotReady = 1 "NotReady",
        Ignored = 2 "Ignored",
    }
}

impl InboundState {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    fn is_ready(&self) -> bool {
        *self == Self::Ready
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Health {
    pub ready: bool,
}

/// How the proxy finds out whether the application is ready.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct ServiceProbe {
    /// Default 1s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<ProtoDuration>,
    /// Default 2s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<ProtoDuration>,
    /// Default 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unhealthy_threshold: Option<u32>,
    /// Default 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthy_threshold: Option<u32>,
    /// Probe by connecting.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpProbe>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TcpProbe {}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Outbound {
    /// Where to listen; empty: 127.0.0.1.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub address: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub port: u32,
    /// The service meant: `kuma.io/service`, and further tags of its instances.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend_ref: Option<BackendRef>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct BackendRef {
    /// MeshService, MeshExternalService or MeshMultiZoneService.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub port: u32,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct TransparentProxying {
    /// Usually 15006.
    #[serde(skip_serializing_if = "is_zero")]
    pub redirect_port_inbound: u32,
    /// Usually 15001.
    #[serde(skip_serializing_if = "is_zero")]
    pub redirect_port_outbound: u32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub direct_access_services: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reachable_services: Vec<String>,
    #[serde(skip_serializing_if = "IpFamilyMode::is_unspecified")]
    pub ip_family_mode: IpFamilyMode,
    /// The services this proxy learns of; unset: all of the mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reachable_backends: Option<ReachableBackends>,
}

proto_enum! {
    /// Which addresses names resolve to.
    IpFamilyMode, default UnSpecified, {
        UnSpecified = 0 "UnSpecified",
        DualStack = 1 "DualStack",
        IPv4 = 2 "IPv4",
        IPv6 = 3 "IPv6",
    }
}

impl IpFamilyMode {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    fn is_unspecified(&self) -> bool {
        *self == Self::UnSpecified
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct ReachableBackends {
    /// Empty: none.
    pub refs: Vec<ReachableBackendRef>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct ReachableBackendRef {
    /// MeshService, MeshExternalService or MeshMultiZoneService.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u32>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Admin {
    #[serde(skip_serializing_if = "is_zero")]
    pub port: u32,
}

/// A zone proxy's listener in a Dataplane (Kuma 3's form).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Listener {
    #[serde(rename = "type")]
    pub type_: ListenerType,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub address: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub port: u32,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "ListenerState::is_ready")]
    pub state: ListenerState,
}

proto_enum! {
    /// What a listener does.
    ListenerType, default Unspecified, {
        Unspecified = 0 "Unspecified",
        ZoneIngress = 1 "ZoneIngress",
        ZoneEgress = 2 "ZoneEgress",
    }
}

proto_enum! {
    /// Whether a listener takes traffic.
    ListenerState, default Ready, {
        Ready = 0 "Ready",
        NotReady = 1 "NotReady",
    }
}

impl ListenerState {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    fn is_ready(&self) -> bool {
        *self == Self::Ready
    }
}

/// Application probes exposed without mTLS.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Probes {
    #[serde(skip_serializing_if = "is_zero")]
    pub port: u32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<ProbeEndpoint>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct ProbeEndpoint {
    #[serde(skip_serializing_if = "is_zero")]
    pub inbound_port: u32,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub inbound_path: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub path: String,
}

pub(crate) const INFO: KindInfo = KindInfo {
    plural: "dataplanes",
    short: "dp",
    format: Format::Legacy,
    flow: Flow::UP,
    doc: "A sidecar and the service beside it.",
    fields: &[
        ("networking.address", Executed),
        ("networking.advertisedAddress", Executed),
        ("networking.gateway", Executed),
        ("networking.inbound", Executed),
        ("networking.outbound", Executed),
        ("networking.transparentProxying.redirectPortInbound", Executed),
        ("networking.transparentProxying.redirectPortOutbound", Executed),
        ("networking.transparentProxying.reachableBackends", Executed),
        ("networking.transparentProxying.ipFamilyMode", Executed),
        (
            "networking.transparentProxying.directAccessServices",
            Warned("there is no direct access: instances are reached through their service"),
        ),
        ("networking.transparentProxying.reachableServices", Warned("use reachableBackends")),
        ("networking.admin", Warned("the admin interface is a Unix socket")),
        ("networking.listeners", Warned("zone proxies are ZoneIngress and ZoneEgress resources")),
        ("metrics", Warned("use MeshMetric")),
        ("probes", Warned("use inbound[].serviceProbe")),
    ],
    ..KindInfo::new::<Dataplane>()
};

/// The name that the certificates of zone egresses carry.
pub(super) const EGRESS_SERVICE: &str = "zone-egress";
pub(super) const BACKENDS: [&str; 3] = ["MeshExternalService", "MeshMultiZoneService", "MeshService"];

impl Dataplane {
    pub const KIND: Kind = Kind::new("Dataplane");
}

impl Inbound {
    /// `kuma.io/service`, if the inbound has it.
    pub fn service(&self) -> Option<&str> {
        self.tags.get(labels::SERVICE).map(String::as_str)
    }

    /// How policies and MeshServices name this inbound: its name, or its port.
    pub fn section_name(&self) -> String {
        if self.name.is_empty() { self.port.to_string() } else { self.name.clone() }
    }

    /// The declared protocol: the field, else the tag, else tcp. Lower case.
    pub fn declared_protocol(&self) -> &str {
        let tag = self.tags.get(labels::PROTOCOL).map_or("tcp", String::as_str);
        if self.protocol.is_empty() { tag } else { &self.protocol }
    }

    /// Whether the Dataplane itself says that this inbound takes traffic (probes may say otherwise).
    pub fn is_ready(&self) -> bool {
        self.state == InboundState::Ready && self.health.as_ref().is_none_or(|health| health.ready)
    }
}

impl Spec for Dataplane {
    const KIND: Kind = Dataplane::KIND;

    fn validate(&self, _context: &Context<'_>, out: &mut Violations) {
        let Some(networking) = &self.networking else {
            return out.push("networking", "must be defined");
        };
        networking.check_admin(out);
        let gateway = networking.gateway.as_ref().map(|gateway| gateway.type_);
        if let Some(kind) = gateway {
            networking.check_gateway(kind, out);
        }
        networking.check(out);
        match (&self.probes, gateway) {
            (Some(_), Some(GatewayType::Builtin)) => {
                out.push("networking.probes", "probes cannot be defined for builtin gateways");
            }
            (Some(probes), _) => probes.check(out),
            (None, _) => {}
        }
        if let (Some(metrics), None) = (&self.metrics, gateway) {
            metrics.check("metrics", out);
        }
        if gateway == Some(GatewayType::Builtin) && out.is_empty() {
            out.push("networking.gateway.type", format!("{NOT_SUPPORTED}: builtin gateways"));
        }
    }
}
