use crate::registry::Standing::Executed;
use crate::{Context, Kind, KindInfo, Spec, Violations};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Whom to believe in one mesh; named `default`. Internal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct TrustBundle {
    /// Root certificates, PEM.
    pub roots: Vec<String>,
    /// Intermediates no longer believed: lower-case hex of SHA-256 over SubjectPublicKeyInfo.
    pub revoked: Vec<String>,
}

pub(crate) const INFO: KindInfo = KindInfo {
    plural: "trustbundles",
    short: "tb",
    internal: true,
    doc: "Whom to believe in one mesh.",
    fields: &[("roots", Executed), ("revoked", Executed)],
    ..KindInfo::new::<TrustBundle>()
};

impl TrustBundle {
    pub const KIND: Kind = Kind::new("TrustBundle");
}

impl Spec for TrustBundle {
    const KIND: Kind = TrustBundle::KIND;

    fn validate(&self, _context: &Context<'_>, _out: &mut Violations) {}
}
