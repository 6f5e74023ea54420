use super::secret::Secret;
use crate::registry::Standing::Executed;
use crate::{Context, Flow, Format, Kind, KindInfo, Scope, Spec, Violations};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Sensitive bytes that belong to no mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct GlobalSecret(pub Secret);

pub(crate) const INFO: KindInfo = KindInfo {
    plural: "global-secrets",
    aliases: &["globalsecrets"],
    short: "gs",
    scope: Scope::Global,
    format: Format::Legacy,
    flow: Flow::STAYS,
    admin_only: true,
    doc: "Sensitive bytes that belong to no mesh. Only administrators read it; it never leaves global.",
    fields: &[("data", Executed)],
    ..KindInfo::new::<GlobalSecret>()
};

impl GlobalSecret {
    pub const KIND: Kind = Kind::new("GlobalSecret");
}

impl Spec for GlobalSecret {
    const KIND: Kind = GlobalSecret::KIND;

    fn validate(&self, context: &Context<'_>, out: &mut Violations) {
        self.0.validate(context, out);
    }
}
