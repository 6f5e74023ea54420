//! Changes of Envoy's configuration. There is no Envoy here, so a change means something only where the proxies have what
//! it changes: scripts, and some limits. Of the rest a document's author is told.

mod checks;
pub mod effect;

use crate::enums::text_enum;
use crate::registry::Standing::{Executed, Warned};
use crate::{Flow, Kind, KindInfo, TargetRef, TargetRefs};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// Changes of what Kuma configures Envoy with.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct MeshProxyPatch {
    /// Unset: Mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    pub default: Conf,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Conf {
    /// At least one; done in order, those of weaker policies first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub append_modifications: Option<Vec<Modification>>,
}

/// Exactly one of its fields.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Modification {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<Patch<ResourceOperation, ClusterMatch>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listener: Option<Patch<ResourceOperation, ListenerMatch>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_filter: Option<Patch<FilterOperation, FilterMatch>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_filter: Option<Patch<FilterOperation, FilterMatch>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub virtual_host: Option<Patch<ResourceOperation, VirtualHostMatch>>,
}

/// What is done (`O`) to what is matched (`M`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(
    deny_unknown_fields,
    rename_all = "camelCase",
    default,
    bound(deserialize = "O: Deserialize<'de> + Default, M: Deserialize<'de> + Default")
)]
#[schemars(
    rename = "{M}Patch",
    bound = "O: JsonSchema + Default + Serialize, M: JsonSchema + Default + Serialize"
)]
pub struct Patch<O, M> {
    pub operation: O,
    /// Unset: everything.
    #[serde(rename = "match", skip_serializing_if = "Option::is_none")]
    pub match_: Option<M>,
    /// YAML or JSON of Envoy's own type: what is added, or merged into what is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Of Patch, instead of `value`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub json_patches: Option<Vec<JsonPatch>>,
}

text_enum! {
    /// What is done to a cluster, a listener or a virtual host.
    ResourceOperation, default ResourceOperation::Other(String::new()), {
        Add = "Add",
        Patch = "Patch",
        Remove = "Remove",
    }
}

text_enum! {
    /// What is done to a filter, or with one beside it.
    FilterOperation, default FilterOperation::Other(String::new()), {
        AddFirst = "AddFirst",
        AddLast = "AddLast",
        AddBefore = "AddBefore",
        AddAfter = "AddAfter",
        Patch = "Patch",
        Remove = "Remove",
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct ClusterMatch {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The part of Kuma that made it: `inbound`, `outbound`, `transparent`, ...
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct ListenerMatch {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The part of Kuma that made it: `inbound`, `outbound`, `transparent`, ...
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tags: Option<BTreeMap<String, String>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct FilterMatch {
    /// The filter's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listener_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listener_tags: Option<BTreeMap<String, String>>,
    /// The part of Kuma that made it: `inbound`, `outbound`, `transparent`, ...
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct VirtualHostMatch {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The part of Kuma that made it: `inbound`, `outbound`, `transparent`, ...
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route_configuration_name: Option<String>,
}

/// One operation of RFC 6902, on Envoy's type with its names in camelCase.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct JsonPatch {
    pub op: JsonPatchOperation,
    pub path: String,
    /// Of move and copy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Of add and replace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<Value>,
}

text_enum! {
    /// An operation of RFC 6902.
    JsonPatchOperation, default JsonPatchOperation::Other(String::new()), {
        Add = "add",
        Remove = "remove",
        Replace = "replace",
        Move = "move",
        Copy = "copy",
    }
}

const NO_ENVOY: &str = "the proxies are not Envoy: there is nothing that it would change";

pub(crate) const INFO: KindInfo = KindInfo {
    plural: "meshproxypatches",
    short: "mpp",
    flow: Flow::BOTH,
    targets: Some(TargetRefs { from: false, to: false, rules: false }),
    doc: "Changes of Envoy's configuration.",
    // Of those that are executed, the parts that are not have warnings of their own.
    fields: &[
        ("targetRef", Executed),
        ("default.appendModifications[].httpFilter", Executed),
        ("default.appendModifications[].networkFilter", Executed),
        ("default.appendModifications[].cluster", Executed),
        ("default.appendModifications[].listener", Warned(NO_ENVOY)),
        ("default.appendModifications[].virtualHost", Warned(NO_ENVOY)),
    ],
    ..KindInfo::new::<MeshProxyPatch>()
};

impl MeshProxyPatch {
    pub const KIND: Kind = Kind::new("MeshProxyPatch");
}

#[cfg(test)]
mod tests;
