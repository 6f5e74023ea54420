//! Resources into documents.

use crate::{Format, Resource, Scope};
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// The Universal form that REST answers with. `times` are creation and modification, RFC 3339.
pub fn to_json(resource: &Resource, times: Option<(&str, &str)>) -> Value {
    let mut fields = Map::new();
    let key = &resource.key;
    let info = key.kind.info();
    fields.insert("type".into(), key.kind.as_str().into());
    if info.scope == Scope::Mesh {
        fields.insert("mesh".into(), key.mesh.clone().into());
    }
    fields.insert("name".into(), key.name.clone().into());
    if !resource.labels.is_empty() {
        fields.insert("labels".into(), serde_json::json!(resource.labels));
    }
    if let Some((created, modified)) = times {
        fields.insert("creationTime".into(), created.into());
        fields.insert("modificationTime".into(), modified.into());
    }
    fields.insert("kri".into(), kri(resource).into());
    match (info.format, &resource.spec) {
        (Format::Legacy, Value::Object(spec)) => fields.extend(spec.clone()),
        (_, spec) => {
            fields.insert("spec".into(), spec.clone());
        }
    }
    if let Some(status) = &resource.status {
        fields.insert("status".into(), status.clone());
    }
    Value::Object(fields)
}

/// Kuma's resource identifier: `kri_<short>_<mesh>_<zone>_<namespace>_<name>_<section>`.
pub fn kri(resource: &Resource) -> String {
    let namespace = resource.labels.get(crate::labels::NAMESPACE).map_or("", String::as_str);
    let zone = resource.labels.get(crate::labels::ZONE).map_or(resource.key.zone.as_str(), String::as_str);
    let (short, mesh) = (resource.key.kind.info().short, &resource.key.mesh);
    let name = crate::names::display(&resource.key.name, &resource.labels);
    format!("kri_{short}_{mesh}_{zone}_{namespace}_{name}_")
}

/// The order in which people read a document.
#[derive(Serialize)]
struct Ordered<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    mesh: Option<&'a str>,
    name: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: &'a BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    spec: Option<&'a Value>,
}

/// The Universal form as YAML, to be applied again: without times and status.
pub fn to_yaml(resource: &Resource) -> String {
    let key = &resource.key;
    let info = key.kind.info();
    let legacy = info.format == Format::Legacy;
    let ordered = Ordered {
        kind: key.kind.as_str(),
        mesh: (info.scope == Scope::Mesh).then_some(&key.mesh),
        name: &key.name,
        labels: &resource.labels,
        spec: (!legacy).then_some(&resource.spec),
    };
    let mut text = serde_saphyr::to_string(&ordered).unwrap_or_default();
    let has_fields = resource.spec.as_object().is_some_and(|fields| !fields.is_empty());
    if legacy && has_fields {
        text.push_str(&serde_saphyr::to_string(&resource.spec).unwrap_or_default());
    }
    text
}
