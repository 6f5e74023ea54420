use crate::registry::Standing::Executed;
use crate::{Context, Flow, Format, Kind, KindInfo, Scope, Spec, Violations};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A zone of the mesh.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Zone {
    /// Whether other zones see this one's services. Default true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
}

pub(crate) const INFO: KindInfo = KindInfo {
    plural: "zones",
    short: "z",
    scope: Scope::Global,
    format: Format::Legacy,
    flow: Flow::STAYS,
    short_names: true,
    doc: "A zone of the mesh. It appears when a zone control plane enrols.",
    fields: &[("enabled", Executed)],
    ..KindInfo::new::<Zone>()
};

impl Zone {
    pub const KIND: Kind = Kind::new("Zone");

    pub fn is_enabled(&self) -> bool {
        self.enabled.unwrap_or(true)
    }
}

impl Spec for Zone {
    const KIND: Kind = Zone::KIND;

    fn validate(&self, _context: &Context<'_>, _out: &mut Violations) {}
}
