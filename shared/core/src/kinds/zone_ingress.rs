use super::dataplane::Admin;
use super::{is_false, is_zero};
use crate::registry::Standing::{Executed, Warned};
use crate::validate::{self, Tags};
use crate::{Context, Flow, Format, Kind, KindInfo, Scope, Spec, Violations};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The proxy through which other zones reach this one's services.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct ZoneIngress {
    /// Set by the control plane.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub zone: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub networking: Option<Networking>,
    /// What the zone offers; set by the control plane.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub available_services: Vec<AvailableService>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Networking {
    /// Where the ingress listens.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub address: String,
    /// Where other zones connect: an IP address or a name. Without it and `advertisedPort` the ingress is not used.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub advertised_address: String,
    /// Usually 10001.
    #[serde(skip_serializing_if = "is_zero")]
    pub port: u32,
    #[serde(skip_serializing_if = "is_zero")]
    pub advertised_port: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin: Option<Admin>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct AvailableService {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "is_zero")]
    pub instances: u32,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mesh: String,
    #[serde(skip_serializing_if = "is_false")]
    pub external_service: bool,
}

pub(crate) const INFO: KindInfo = KindInfo {
    plural: "zoneingresses",
    aliases: &["zone-ingresses"],
    short: "zi",
    scope: Scope::Global,
    format: Format::Legacy,
    flow: Flow::ACROSS,
    doc: "The proxy through which other zones reach a zone's services.",
    fields: &[
        ("zone", Executed),
        ("networking.address", Executed),
        ("networking.advertisedAddress", Executed),
        ("networking.port", Executed),
        ("networking.advertisedPort", Executed),
        ("networking.admin", Warned("the admin interface is a Unix socket")),
        ("availableServices", Warned("what a zone offers follows from its MeshServices")),
    ],
    ..KindInfo::new::<ZoneIngress>()
};

impl ZoneIngress {
    pub const KIND: Kind = Kind::new("ZoneIngress");
}

impl Spec for ZoneIngress {
    const KIND: Kind = ZoneIngress::KIND;

    fn validate(&self, _context: &Context<'_>, out: &mut Violations) {
        let networking = self.networking.clone().unwrap_or_default();
        if let Some(admin) = &networking.admin
            && validate::clashes_on_loopback(admin.port, &networking.address, networking.port)
        {
            out.push("networking.admin.port", "must differ from port");
        }
        match (networking.advertised_address.as_str(), networking.advertised_port) {
            ("", 1..) => out.push("networking.advertisedAddress", "has to be defined with advertisedPort"),
            (address, 0) if !address.is_empty() => {
                out.push("networking.advertisedPort", "has to be defined with advertisedAddress");
            }
            _ => {}
        }
        for (name, address) in
            [("address", &networking.address), ("advertisedAddress", &networking.advertised_address)]
        {
            if !address.is_empty() {
                validate::proxy_address(&format!("networking.{name}"), address, out);
            }
        }
        validate::port("networking.port", networking.port, out);
        if networking.advertised_port != 0 {
            validate::port("networking.advertisedPort", networking.advertised_port, out);
        }
        for (i, service) in self.available_services.iter().enumerate() {
            let tags = Tags { require_service: true, ..Tags::default() };
            // The singular is Kuma's.
            tags.check(&format!("availableService[{i}].tags"), &service.tags, out);
        }
    }
}
