use crate::registry::Standing::Executed;
use crate::{Context, Kind, KindInfo, Scope, Spec, Violations};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The public half of a key that signs tokens. Internal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct TokenKey {
    pub purpose: TokenPurpose,
    /// Of dataplane tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mesh: Option<String>,
    pub kid: String,
    pub public_key_pem: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum TokenPurpose {
    Dataplane,
    Zone,
    User,
}

pub(crate) const INFO: KindInfo = KindInfo {
    plural: "tokenkeys",
    short: "tk",
    scope: Scope::Global,
    internal: true,
    doc: "The public half of a key that signs tokens.",
    fields: &[("purpose", Executed), ("mesh", Executed), ("kid", Executed), ("publicKeyPem", Executed)],
    ..KindInfo::new::<TokenKey>()
};

impl TokenKey {
    pub const KIND: Kind = Kind::new("TokenKey");
}

impl Spec for TokenKey {
    const KIND: Kind = TokenKey::KIND;

    fn validate(&self, _context: &Context<'_>, _out: &mut Violations) {}
}
