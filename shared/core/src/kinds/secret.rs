use crate::registry::Standing::Executed;
use crate::{Context, Format, Kind, KindInfo, Spec, Violations};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Sensitive bytes that resources of the mesh name.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Secret {
    /// Base64.
    pub data: String,
}

pub(crate) const INFO: KindInfo = KindInfo {
    plural: "secrets",
    short: "s",
    format: Format::Legacy,
    admin_only: true,
    doc: "Sensitive bytes that resources of the mesh name. Only administrators read it.",
    fields: &[("data", Executed)],
    ..KindInfo::new::<Secret>()
};

impl Secret {
    pub const KIND: Kind = Kind::new("Secret");

    /// The bytes, for one that passed its check.
    pub fn bytes(&self) -> Option<Vec<u8>> {
        use base64::{Engine, engine::general_purpose::STANDARD};
        STANDARD.decode(&self.data).ok()
    }
}

/// Never shows the data.
impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Spec for Secret {
    const KIND: Kind = Secret::KIND;

    fn validate(&self, _context: &Context<'_>, out: &mut Violations) {
        if self.bytes().is_none() {
            out.push("data", "must be base64");
        }
    }
}
