//! How one resource looks in an answer: Universal JSON, or Kubernetes' envelope with `?format=k8s`.

use crate::problem::{Problem, Source};
use crate::request::Asked;
use meridian_core::{Format, Scope, document, labels};
use meridian_store::Stored;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// The form that the client asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Universal,
    Kubernetes,
}

impl Form {
    pub(crate) fn of(asked: &Asked) -> Result<Self, Problem> {
        match asked.parameter("format") {
            None | Some("universal") => Ok(Self::Universal),
            Some("k8s" | "kubernetes") => Ok(Self::Kubernetes),
            Some(_) => Err(Problem::invalid(Source::Query, "format", "must be universal, k8s or kubernetes")),
        }
    }

    pub(crate) fn render(self, stored: &Stored) -> Value {
        match self {
            Self::Universal => universal(stored),
            Self::Kubernetes => kubernetes(stored),
        }
    }
}

/// RFC 3339.
pub(crate) fn rfc3339(time: OffsetDateTime) -> String {
    time.format(&Rfc3339).unwrap_or_default()
}

fn universal(stored: &Stored) -> Value {
    let (created, modified) = (rfc3339(stored.created), rfc3339(stored.modified));
    document::to_json(&stored.resource, Some((&created, &modified)))
}

/// As Kuma's `?format=k8s`: to be applied to a cluster, so without times and status.
fn kubernetes(stored: &Stored) -> Value {
    let resource = &stored.resource;
    let info = resource.key.kind.info();
    let mut label_map: Map<String, Value> =
        resource.labels.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
    let mut out = json!({
        "apiVersion": "kuma.io/v1alpha1",
        "kind": info.kind.as_str(),
        "metadata": {"name": resource.key.name},
    });
    let legacy_mesh = info.format == Format::Legacy && info.scope == Scope::Mesh && !info.admin_only;
    if info.scope == Scope::Mesh && !legacy_mesh {
        label_map.insert(labels::MESH.to_owned(), json!(resource.key.mesh));
    }
    if let Some(fields) = out.as_object_mut() {
        if legacy_mesh {
            fields.insert("mesh".to_owned(), json!(resource.key.mesh));
        }
        if info.admin_only {
            let type_ = if info.scope == Scope::Mesh { "secret" } else { "global-secret" };
            fields.insert("apiVersion".to_owned(), json!("v1"));
            fields.insert("kind".to_owned(), json!("Secret"));
            fields.insert("type".to_owned(), json!(format!("system.kuma.io/{type_}")));
            let data = resource.spec.get("data").cloned().unwrap_or_default();
            fields.insert("data".to_owned(), json!({"value": data}));
        } else {
            fields.insert("spec".to_owned(), resource.spec.clone());
        }
    }
    if let (false, Some(metadata)) =
        (label_map.is_empty(), out.get_mut("metadata").and_then(Value::as_object_mut))
    {
        metadata.insert("labels".to_owned(), Value::Object(label_map));
    }
    out
}
