use super::mesh_service::{HostnameGeneratorRef, LabelSelector};
use crate::registry::Standing::{Executed, Warned};
use crate::{Context, Flow, Key, Kind, KindInfo, Resource, Scope, Spec, Violations, labels, names};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// How names of services are made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct HostnameGenerator {
    pub selector: Selector,
    /// `{{ .DisplayName }}.svc.mesh.local`
    pub template: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extension: Option<Extension>,
}

/// Exactly one of its fields.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Selector {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mesh_service: Option<LabelSelector>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mesh_external_service: Option<LabelSelector>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mesh_multi_zone_service: Option<LabelSelector>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Extension {
    #[serde(rename = "type")]
    pub type_: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<Value>,
}

pub(crate) const INFO: KindInfo = KindInfo {
    plural: "hostnamegenerators",
    short: "hg",
    scope: Scope::Global,
    flow: Flow::BOTH,
    doc: "How names of services are made.",
    fields: &[
        ("selector.meshService", Executed),
        ("selector.meshExternalService", Executed),
        ("selector.meshMultiZoneService", Executed),
        ("template", Executed),
        ("extension", Warned("there are no extensions")),
    ],
    ..KindInfo::new::<HostnameGenerator>()
};

/// Where generated names live: elsewhere a template could take over a real host.
const DOMAINS: [&str; 2] = [".mesh", ".mesh.local"];

/// What came of a generator for one resource, as the resource's status says it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct HostnameGeneratorStatus {
    pub hostname_generator_ref: HostnameGeneratorRef,
    pub conditions: Vec<Condition>,
}

/// Something that holds of a resource, or does not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Condition {
    #[serde(rename = "type")]
    pub type_: String,
    /// `True`, `False`, `Unknown`.
    pub status: String,
    /// One word, for programs.
    pub reason: String,
    /// For people.
    pub message: String,
}

impl Condition {
    pub fn new(type_: &str, status: &str, reason: &str, message: impl Into<String>) -> Self {
        Self {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: message.into(),
        }
    }
}

/// The generators that a new global control plane begins with: Kuma's, under Kuma's names
/// (`pkg/defaults/hostname_generator.go`), those that Kuma makes in each zone included; and one of ours, by which a
/// service has the name with its zone in it at home too. They are ordinary resources: an operator changes or deletes
/// them.
pub fn defaults() -> Vec<Resource> {
    let table = [
        // name, template, field of the selector, labels
        ("local-universal-mesh-service", "{{ .DisplayName }}.svc.mesh.local", "meshService", "zone", true),
        (
            "local-universal-mesh-service-by-zone",
            "{{ .DisplayName }}.svc.{{ .Zone }}.mesh.local",
            "meshService",
            "zone",
            true,
        ),
        (
            "local-mesh-external-service",
            "{{ .DisplayName }}.extsvc.mesh.local",
            "meshExternalService",
            "zone",
            false,
        ),
        (
            "synced-universal-mesh-service",
            "{{ .DisplayName }}.svc.{{ .Zone }}.mesh.local",
            "meshService",
            "global",
            true,
        ),
        (
            "synced-mesh-external-service",
            "{{ .DisplayName }}.extsvc.mesh.local",
            "meshExternalService",
            "global",
            false,
        ),
        (
            "synced-mesh-multi-zone-service",
            "{{ .DisplayName }}.mzsvc.mesh.local",
            "meshMultiZoneService",
            "global",
            false,
        ),
    ];
    let resource = |(name, template, field, origin, universal): (&str, &str, &str, &str, bool)| {
        let mut matched = BTreeMap::from([(labels::ORIGIN, origin)]);
        if universal {
            matched.insert(labels::ENV, "universal");
        }
        let key = Key::global(HostnameGenerator::KIND, "", name);
        let labels = labels::computed(&key, "", &BTreeMap::new());
        let spec = serde_json::json!({"selector": {field: {"matchLabels": matched}}, "template": template});
        Resource { key, labels, spec, status: None }
    };
    table.into_iter().map(resource).collect()
}

impl HostnameGenerator {
    pub const KIND: Kind = Kind::new("HostnameGenerator");
}

impl Spec for HostnameGenerator {
    const KIND: Kind = HostnameGenerator::KIND;

    fn validate(&self, _context: &Context<'_>, out: &mut Violations) {
        let Selector { mesh_service, mesh_external_service, mesh_multi_zone_service } = &self.selector;
        let selectors =
            [mesh_service.is_some(), mesh_external_service.is_some(), mesh_multi_zone_service.is_some()];
        if selectors.into_iter().filter(|given| *given).count() != 1 {
            out.push(
                "spec.selector",
                "exact one selector (meshService, meshExternalService) must be defined",
            );
        }
        if self.extension.as_ref().is_some_and(|extension| extension.type_.is_empty()) {
            out.push("spec.extension.type", "must not be empty");
        }
        if self.template.is_empty() {
            return out.push("spec.template", "must not be empty");
        }
        match Template::parse(&self.template) {
            Err(error) => out.push("spec.template", format!("couldn't parse template: {error}")),
            Ok(template) => {
                let example = template.example();
                if !names::is_subdomain(&example) {
                    out.push(
                        "spec.template",
                        format!("template renders to {example:?} which is not a valid DNS name"),
                    );
                }
            }
        }
    }

    fn warnings(&self, _context: &Context<'_>, out: &mut Vec<String>) {
        let example = Template::parse(&self.template).map(|template| template.example());
        if example.is_ok_and(|name| !DOMAINS.iter().any(|domain| name.ends_with(domain))) {
            out.push("spec.template has no effect: names must end in .mesh or .mesh.local".to_owned());
        }
    }
}

/// A parsed template: text with `{{ .Name }}`, `{{ .DisplayName }}`, `{{ .Namespace }}`, `{{ .Mesh }}`, `{{ .Zone }}`
/// and `{{ label "key" }}`. That is all that Kuma's documentation shows of Go's templates; the rest (pipes,
/// conditions) is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Name,
    DisplayName,
    Namespace,
    Mesh,
    Zone,
    Label(String),
}

/// The service that a name is made for.
#[derive(Clone, Copy, Debug)]
pub struct Named<'a> {
    pub name: &'a str,
    pub display_name: &'a str,
    pub namespace: &'a str,
    pub mesh: &'a str,
    pub zone: &'a str,
    pub labels: &'a BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    #[error("\"{{{{\" without \"}}}}\"")]
    Unclosed,
    #[error("{0:?} is not one of .Name, .DisplayName, .Namespace, .Mesh, .Zone, label \"key\"")]
    Unknown(String),
    #[error("the service has no label {0:?}")]
    NoLabel(String),
    #[error("{0:?} is not a valid DNS name")]
    NotAName(String),
    #[error("{0:?} is no name of the mesh: such end in .mesh or .mesh.local")]
    Foreign(String),
}

impl Template {
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let (mut parts, mut rest) = (Vec::new(), text);
        while let Some((before, after)) = rest.split_once("{{") {
            let (action, tail) = after.split_once("}}").ok_or(TemplateError::Unclosed)?;
            parts.push(Part::Text(before.to_owned()));
            parts.push(Part::parse(action.trim())?);
            rest = tail;
        }
        parts.push(Part::Text(rest.to_owned()));
        Ok(Self(parts))
    }

    /// The name of one service, lower case; an error if it is no DNS name in a mesh's own domain.
    pub fn render(&self, named: &Named<'_>) -> Result<String, TemplateError> {
        let mut out = String::new();
        for part in &self.0 {
            out.push_str(match part {
                Part::Text(text) => text,
                Part::Name => named.name,
                Part::DisplayName => named.display_name,
                Part::Namespace => named.namespace,
                Part::Mesh => named.mesh,
                Part::Zone => named.zone,
                Part::Label(key) => {
                    named.labels.get(key).ok_or_else(|| TemplateError::NoLabel(key.clone()))?
                }
            });
        }
        let name = out.to_ascii_lowercase();
        if !names::is_subdomain(&name) {
            return Err(TemplateError::NotAName(out));
        }
        if DOMAINS.iter().any(|domain| name.ends_with(domain)) {
            Ok(name)
        } else {
            Err(TemplateError::Foreign(name))
        }
    }

    fn example(&self) -> String {
        let text = |part: &Part| match part {
            Part::Text(text) => text.clone(),
            Part::Name => "name".to_owned(),
            Part::DisplayName => "displayname".to_owned(),
            Part::Namespace => "namespace".to_owned(),
            Part::Mesh => "mesh".to_owned(),
            Part::Zone => "zone".to_owned(),
            Part::Label(_) => "label".to_owned(),
        };
        self.0.iter().map(text).collect()
    }
}

impl Part {
    fn parse(action: &str) -> Result<Self, TemplateError> {
        let unknown = || TemplateError::Unknown(action.to_owned());
        Ok(match action {
            ".Name" => Self::Name,
            ".DisplayName" => Self::DisplayName,
            ".Namespace" => Self::Namespace,
            ".Mesh" => Self::Mesh,
            ".Zone" => Self::Zone,
            _ => {
                let key = action.strip_prefix("label").map(str::trim).ok_or_else(unknown)?;
                let key = key.strip_prefix('"').and_then(|key| key.strip_suffix('"')).ok_or_else(unknown)?;
                if key.is_empty() || key.contains(['"', '\\']) {
                    return Err(unknown());
                }
                Self::Label(key.to_owned())
            }
        })
    }
}
