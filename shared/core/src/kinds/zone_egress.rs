use super::dataplane::Admin;
use super::is_zero;
use crate::registry::Standing::{Executed, Warned};
use crate::validate;
use crate::{Context, Flow, Format, Kind, KindInfo, Scope, Spec, Violations};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The proxy through which traffic leaves the zone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct ZoneEgress {
    /// Set by the control plane.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub zone: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub networking: Option<Networking>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Networking {
    /// Where the zone's proxies connect.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub address: String,
    /// Usually 10002.
    #[serde(skip_serializing_if = "is_zero")]
    pub port: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin: Option<Admin>,
}

pub(crate) const INFO: KindInfo = KindInfo {
    plural: "zoneegresses",
    aliases: &["zone-egresses"],
    short: "ze",
    scope: Scope::Global,
    format: Format::Legacy,
    flow: Flow::UP,
    doc: "The proxy through which traffic leaves a zone.",
    fields: &[
        ("zone", Executed),
        ("networking.address", Executed),
        ("networking.port", Executed),
        ("networking.admin", Warned("the admin interface is a Unix socket")),
    ],
    ..KindInfo::new::<ZoneEgress>()
};

impl ZoneEgress {
    pub const KIND: Kind = Kind::new("ZoneEgress");
}

impl Spec for ZoneEgress {
    const KIND: Kind = ZoneEgress::KIND;

    fn validate(&self, _context: &Context<'_>, out: &mut Violations) {
        let networking = self.networking.clone().unwrap_or_default();
        if let Some(admin) = &networking.admin
            && validate::clashes_on_loopback(admin.port, &networking.address, networking.port)
        {
            out.push("networking.admin.port", "must differ from port");
        }
        if !networking.address.is_empty() {
            validate::proxy_address("networking.address", &networking.address, out);
        }
        validate::port("networking.port", networking.port, out);
    }
}
