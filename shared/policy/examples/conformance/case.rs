//! Cases from files: resources as a control plane of the case would hold them.

use meridian_core::kinds::dataplane::Dataplane;
use meridian_core::{Key, Kind, Resource, document, labels};
use meridian_policy::{Parsed, Policy, PolicyError};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) type Failure = Box<dyn std::error::Error>;

/// All files below a folder whose names end so, sorted; none if there is no such folder.
pub(crate) fn files(dir: &Path, ending: &str) -> Result<Vec<PathBuf>, Failure> {
    let mut found = Vec::new();
    if !dir.exists() {
        return Ok(found);
    }
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path, ending)?);
        } else if path.to_string_lossy().ends_with(ending) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The name of a case: where it is in the folder, without the file's ending.
pub(crate) fn name(dir: &Path, path: &Path) -> String {
    let path = path.strip_prefix(dir).unwrap_or(path).to_string_lossy();
    path.split_once('.').map_or(&*path, |(name, _)| name).to_owned()
}

/// The documents of a file. Of a key that is given twice the last holds, as in Kuma's own reader of these files.
pub(crate) fn documents(path: &Path) -> Result<Vec<Value>, Failure> {
    let text = std::fs::read_to_string(path)?;
    let mut documents = Vec::new();
    for part in format!("\n{text}").split("\n---") {
        let options = serde_saphyr::options! { duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins };
        let document: Option<Value> = serde_saphyr::from_str_with_options(part, options)?;
        documents.extend(document.filter(|document| !document.is_null()));
    }
    Ok(documents)
}

/// Where resources come from, and where they are looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Nothing is said: they have the labels of the document.
    Plain,
    Global,
    Zone(&'static str),
}

impl Place {
    /// By the name of a golden file: `zone-uni`, `policy-from-global-uni-zone-uni-on-zone`.
    pub(crate) fn of(name: &str) -> Self {
        let source = name.strip_prefix("policy-from-").unwrap_or(name);
        match source.split('-').next() {
            Some("global") => Self::Global,
            _ if source.contains("k8s") => Self::Zone("zone-k8s"),
            _ => Self::Zone("zone-uni"),
        }
    }
}

/// A document as a resource; `None` if its kind is not known. Its spec is normalised where our check takes it.
pub(crate) fn resource(document: &Value, place: Place) -> Option<Resource> {
    let text = |name: &str| document.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let kind = Kind::named(&text("type"))?;
    let written: BTreeMap<String, String> = document
        .get("labels")
        .and_then(|labels| serde_json::from_value(labels.clone()).ok())
        .unwrap_or_default();
    let mesh = match (text("mesh"), kind.as_str()) {
        (_, "Mesh") => String::new(),
        (mesh, _) if mesh.is_empty() => "default".to_owned(),
        (mesh, _) => mesh,
    };
    let key = Key::global(kind, mesh, text("name"));
    let spec = normalised(document);
    let mut resource = Resource { key, labels: written, spec, status: None };
    let mut set = |label: &str, value: &str| resource.labels.insert(label.to_owned(), value.to_owned());
    match place {
        _ if kind.as_str() == "Mesh" => {}
        Place::Plain => {}
        Place::Global => drop(set(labels::ORIGIN, labels::ORIGIN_GLOBAL)),
        Place::Zone(zone) => {
            set(labels::ORIGIN, labels::ORIGIN_ZONE);
            set(labels::ZONE, zone);
        }
    }
    Some(resource)
}

fn normalised(document: &Value) -> Value {
    let mut alone = document.clone();
    if let Some(fields) = alone.as_object_mut() {
        fields.remove("labels");
    }
    if let Ok(checked) = document::check(&alone, None) {
        return checked.resource.spec;
    }
    match document.get("spec") {
        Some(spec) => spec.clone(),
        None => {
            let own =
                |(name, _): &(&String, &Value)| !["type", "mesh", "name", "labels"].contains(&name.as_str());
            let fields = document.as_object().into_iter().flatten().filter(own);
            Value::Object(fields.map(|(name, value)| (name.clone(), value.clone())).collect())
        }
    }
}

/// The policies among the documents, in the order of the file. `mesh`: the mesh that all of them are taken for.
pub(crate) fn policies(
    documents: &[Value],
    place: Place,
    mesh: Option<&str>,
) -> Result<Vec<Arc<Policy>>, PolicyError> {
    let resources = documents.iter().filter_map(|document| resource(document, place));
    let policies = resources.filter(|resource| resource.key.kind.info().targets.is_some());
    let in_mesh = policies.map(|mut resource| {
        resource.key.mesh = mesh.map_or(resource.key.mesh, str::to_owned);
        resource
    });
    in_mesh.map(|resource| Policy::new(Arc::new(resource)).map(Arc::new)).collect()
}

/// Of a case's policies those that it is about: routes only if there is nothing else.
pub(crate) fn subject_of(policies: &[Arc<Policy>]) -> Vec<Arc<Policy>> {
    let is_route = |policy: &&Arc<Policy>| policy.key().kind.as_str() == "MeshHTTPRoute";
    let others: Vec<_> = policies.iter().filter(|policy| !is_route(policy)).cloned().collect();
    if others.is_empty() { policies.to_vec() } else { others }
}

/// Whether a case has a kind that we do not know.
pub(crate) fn has_unknown_kind(documents: &[Value]) -> bool {
    let unknown =
        |document: &Value| document.get("type").and_then(Value::as_str).and_then(Kind::named).is_none();
    documents.iter().any(unknown)
}

pub(crate) fn dataplane(document: &Value, place: Place) -> Result<Parsed<Dataplane>, Failure> {
    let resource = resource(document, place).ok_or("no Dataplane")?;
    Ok(Parsed::new(resource)?)
}

/// The golden file of a case as JSON.
pub(crate) fn golden(path: &Path) -> Result<Value, Failure> {
    Ok(documents(path)?.pop().unwrap_or(json!(null)))
}
