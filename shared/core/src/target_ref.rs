use crate::enums::text_enum;
use crate::validate::Tags;
use crate::{Violations, check::NOT_SUPPORTED};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Kuma's reference to what a policy selects (top level), to whom it applies (`from`) or to what (`to`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct TargetRef {
    pub kind: TargetKind,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Of MeshSubset and MeshServiceSubset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tags: Option<BTreeMap<String, String>>,
    /// Of resources of that kind, as an alternative to `name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    /// Narrows to one inbound by its name, or its port if it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
    /// Kuma reserves it; no kind takes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mesh: Option<String>,
    /// `Sidecar`, `Gateway`; empty: both.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub proxy_types: Vec<ProxyType>,
}

text_enum! {
    /// What a targetRef names.
    TargetKind, default TargetKind::Other(String::new()), {
        Mesh = "Mesh",
        MeshSubset = "MeshSubset",
        MeshGateway = "MeshGateway",
        MeshService = "MeshService",
        MeshExternalService = "MeshExternalService",
        MeshMultiZoneService = "MeshMultiZoneService",
        MeshServiceSubset = "MeshServiceSubset",
        MeshHttpRoute = "MeshHTTPRoute",
        Dataplane = "Dataplane",
    }
}

text_enum! {
    /// A sort of proxy.
    ProxyType, default ProxyType::Sidecar, {
        Sidecar = "Sidecar",
        Gateway = "Gateway",
    }
}

impl TargetRef {
    /// A reference to everything in the mesh: what an absent top-level targetRef means.
    pub fn mesh() -> Self {
        Self::of(TargetKind::Mesh)
    }

    pub fn of(kind: TargetKind) -> Self {
        Self { kind, ..Self::default() }
    }

    pub fn name(&self) -> Option<&str> {
        self.name.as_deref().filter(|name| !name.is_empty())
    }

    pub fn section_name(&self) -> Option<&str> {
        self.section_name.as_deref().filter(|name| !name.is_empty())
    }

    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref().filter(|name| !name.is_empty())
    }

    pub fn has_labels(&self) -> bool {
        is_some(self.labels.as_ref())
    }

    /// A word on a reference that means less than it seems to.
    pub(crate) fn name_warning(&self) -> Option<String> {
        if self.kind == TargetKind::MeshGateway {
            return Some("spec.targetRef selects nothing: there are no builtin gateways".to_owned());
        }
        (self.kind == TargetKind::Dataplane && self.name().is_some()).then(|| {
            "spec.targetRef.name selects Dataplanes only of the zone where the policy is written; labels select \
             everywhere"
                .to_owned()
        })
    }

    pub(crate) fn has_proxy_types(&self) -> bool {
        !self.proxy_types.is_empty()
    }

    /// Checks it where `kinds` are allowed. `inbound`: the policy acts on inbounds.
    pub(crate) fn check(&self, path: &str, kinds: &[TargetKind], inbound: bool, out: &mut Violations) {
        let kind_path = format!("{path}.kind");
        if self.kind.as_str().is_empty() {
            return out.push(kind_path, "must be defined");
        }
        if !kinds.contains(&self.kind) {
            return out.push(kind_path, format!("value '{}' is not supported", self.kind));
        }
        match self.kind {
            TargetKind::Mesh => {
                if self.name().is_some() {
                    out.push(format!("{path}.name"), "using name with kind Mesh is not yet supported");
                }
                self.refuse(
                    path,
                    &[Field::Mesh, Field::Tags, Field::Labels, Field::Namespace, Field::Section],
                    out,
                );
            }
            TargetKind::Dataplane => {
                self.refuse(path, &[Field::Tags, Field::Mesh, Field::ProxyTypes], out);
                self.labels_or_name(path, "either labels or name and namespace must be specified", out);
                if !inbound && self.section_name().is_some() {
                    out.push(format!("{path}.sectionName"), "can only be used with inbound policies");
                }
            }
            TargetKind::MeshSubset => {
                self.refuse(path, &[Field::Name, Field::Mesh], out);
                self.check_tags(path, false, out);
                self.refuse(path, &[Field::Labels, Field::Namespace, Field::Section], out);
            }
            TargetKind::MeshServiceSubset | TargetKind::MeshGateway => {
                self.require_name(path, out);
                self.check_name(path, out);
                self.refuse(path, &[Field::Mesh, Field::ProxyTypes], out);
                self.check_tags(path, true, out);
                self.refuse(path, &[Field::Labels, Field::Namespace, Field::Section], out);
            }
            TargetKind::MeshExternalService => {
                self.check_service(path, "either labels or name must be specified", out);
                self.refuse(path, &[Field::Section], out);
            }
            _ => {
                self.check_service(path, "either labels or name and namespace must be specified", out);
                if self.has_labels() && self.section_name().is_some() {
                    out.push(format!("{path}.sectionName"), "sectionName should not be combined with labels");
                }
            }
        }
        self.check_proxy_types(path, out);
    }

    fn check_service(&self, path: &str, both: &str, out: &mut Violations) {
        self.check_name(path, out);
        self.refuse(path, &[Field::Mesh, Field::Tags, Field::ProxyTypes], out);
        if !self.has_labels() {
            self.require_name(path, out);
        }
        self.labels_or_name(path, both, out);
    }

    fn check_proxy_types(&self, path: &str, out: &mut Violations) {
        for (i, proxy_type) in self.proxy_types.iter().enumerate() {
            if !proxy_type.is_known() {
                out.push(format!("{path}.proxyTypes[{i}]"), "must be one of: Sidecar, Gateway");
            }
        }
    }

    fn check_name(&self, path: &str, out: &mut Violations) {
        let valid = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
        if !self.name().unwrap_or_default().bytes().all(valid) {
            out.push(
                format!("{path}.name"),
                "invalid characters: must consist of lower case alphanumeric characters, '-', '.' and '_'.",
            );
        }
    }

    fn require_name(&self, path: &str, out: &mut Violations) {
        if self.name().is_none() {
            out.push(format!("{path}.name"), format!("must be set with kind {}", self.kind));
        }
    }

    fn labels_or_name(&self, path: &str, reason: &str, out: &mut Violations) {
        if self.has_labels() && (self.name().is_some() || self.namespace().is_some()) {
            out.push(format!("{path}.labels"), reason);
        }
    }

    fn check_tags(&self, path: &str, selector: bool, out: &mut Violations) {
        if let Some(tags) = &self.tags {
            let path = format!("{path}.tags");
            Tags { selector, ..Tags::default() }.check(&path, tags, out);
            if selector && tags.values().any(|value| value == "*") {
                out.push(path, format!("{NOT_SUPPORTED}: the value \"*\"; name each value"));
            }
        }
    }

    fn refuse(&self, path: &str, fields: &[Field], out: &mut Violations) {
        for field in fields {
            let (name, set) = match field {
                Field::Name => ("name", self.name().is_some()),
                Field::Namespace => ("namespace", self.namespace().is_some()),
                Field::Mesh => ("mesh", self.mesh.as_deref().is_some_and(|mesh| !mesh.is_empty())),
                Field::Tags => ("tags", is_some(self.tags.as_ref())),
                Field::Labels => ("labels", self.has_labels()),
                Field::Section => ("sectionName", self.section_name().is_some()),
                Field::ProxyTypes => ("proxyTypes", !self.proxy_types.is_empty()),
            };
            if set {
                out.push(format!("{path}.{name}"), format!("must not be set with kind {}", self.kind));
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Field {
    Name,
    Namespace,
    Mesh,
    Tags,
    Labels,
    Section,
    ProxyTypes,
}

fn is_some(map: Option<&BTreeMap<String, String>>) -> bool {
    map.is_some_and(|map| !map.is_empty())
}
