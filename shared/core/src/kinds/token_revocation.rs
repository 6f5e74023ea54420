use super::token_key::TokenPurpose;
use crate::registry::Standing::Executed;
use crate::{Context, Kind, KindInfo, Scope, Spec, Violations};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Tokens that are no longer good. Internal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct TokenRevocation {
    pub purpose: TokenPurpose,
    /// Of dataplane tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mesh: Option<String>,
    /// The tokens' `jti`.
    pub ids: Vec<String>,
}

pub(crate) const INFO: KindInfo = KindInfo {
    plural: "tokenrevocations",
    short: "tr",
    scope: Scope::Global,
    internal: true,
    doc: "Tokens that are no longer good.",
    fields: &[("purpose", Executed), ("mesh", Executed), ("ids", Executed)],
    ..KindInfo::new::<TokenRevocation>()
};

impl TokenRevocation {
    pub const KIND: Kind = Kind::new("TokenRevocation");
}

impl Spec for TokenRevocation {
    const KIND: Kind = TokenRevocation::KIND;

    fn validate(&self, _context: &Context<'_>, _out: &mut Violations) {}
}
