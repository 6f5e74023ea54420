//! What stands around a spec.

use super::Problem;
use crate::{Format, Kind, KindInfo, Scope, Violations, labels};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

pub(super) struct Envelope {
    pub(super) info: &'static KindInfo,
    pub(super) mesh: Option<String>,
    pub(super) name: Option<String>,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) spec: Map<String, Value>,
    pub(super) spec_missing: bool,
    pub(super) warnings: Vec<String>,
}

/// What a control plane adds to an answer, so that an answer may be sent back.
const ANSWERED: [&str; 3] = ["creationTime", "modificationTime", "kri"];
/// Where Kubernetes keeps the policies of the whole mesh: no namespace in Kuma's sense.
const SYSTEM_NAMESPACE: &str = "kuma-system";
const API_VERSION: &str = "kuma.io/v1alpha1";

impl Envelope {
    pub(super) fn read(
        kinds: &'static [KindInfo],
        fields: &Map<String, Value>,
        expected: Option<Kind>,
        out: &mut Violations,
    ) -> Result<Self, Problem> {
        if fields.contains_key("apiVersion") {
            Self::kubernetes(kinds, fields, out)
        } else {
            Self::universal(kinds, fields, expected, out)
        }
    }

    fn universal(
        kinds: &'static [KindInfo],
        fields: &Map<String, Value>,
        expected: Option<Kind>,
        out: &mut Violations,
    ) -> Result<Self, Problem> {
        let info = match (fields.get("type"), expected) {
            (Some(Value::String(name)), _) => public_kind(kinds, name)?,
            (None | Some(Value::Null), Some(kind)) => {
                known(kinds, kind.as_str()).ok_or_else(|| Problem::unknown_kind(kind.as_str()))?
            }
            (None | Some(Value::Null), None) => return Err(Problem::unreadable("\"type\" must be defined")),
            (Some(_), _) => return Err(Problem::unreadable("\"type\" must be a string")),
        };
        let kind = info.kind;
        let mut envelope = Self::new(info);
        let legacy = info.format == Format::Legacy;
        envelope.spec_missing = !legacy && fields.get("spec").is_none_or(Value::is_null);
        for (name, value) in fields {
            match name.as_str() {
                "type" => {}
                "name" => envelope.name = text(name, value, out),
                "mesh" => envelope.mesh = text(name, value, out),
                "labels" => envelope.labels = texts(name, value, out),
                name if ANSWERED.contains(&name) => {}
                "status" if !legacy => envelope.ignore_status(value),
                "spec" if !legacy => envelope.take_spec(value, out),
                "spec" => {
                    out.push("spec", format!("unknown field: the fields of a {kind} stand beside its name"))
                }
                _ if legacy => {
                    envelope.spec.insert(name.clone(), value.clone());
                }
                _ => out.push(name.clone(), crate::shape::UNKNOWN_FIELD),
            }
        }
        Ok(envelope)
    }

    fn kubernetes(
        kinds: &'static [KindInfo],
        fields: &Map<String, Value>,
        out: &mut Violations,
    ) -> Result<Self, Problem> {
        let named = |field: &str| fields.get(field).and_then(Value::as_str);
        let Some(kind) = named("kind") else {
            return Err(Problem::unreadable("\"kind\" must be a string"));
        };
        let is_secret = kind == "Secret" && named("apiVersion") == Some("v1");
        let info = match (is_secret, named("type")) {
            (true, Some("system.kuma.io/global-secret")) => public_kind(kinds, "GlobalSecret")?,
            (true, Some("system.kuma.io/secret")) => public_kind(kinds, "Secret")?,
            (true, _) => return Err(Problem::unreadable("a Secret must be of type system.kuma.io/secret")),
            (false, _) if named("apiVersion") != Some(API_VERSION) => {
                return Err(Problem::unreadable(format!("apiVersion must be {API_VERSION}")));
            }
            (false, _) => public_kind(kinds, kind)?,
        };
        let mut envelope = Self::new(info);
        envelope.spec_missing = !is_secret && info.format == Format::Spec && fields.get("spec").is_none();
        for (name, value) in fields {
            match name.as_str() {
                "apiVersion" | "kind" => {}
                "type" if is_secret => {}
                "data" if is_secret => envelope.take_secret(value, out),
                "metadata" => envelope.take_metadata(value, out),
                "mesh" => envelope.mesh = text(name, value, out),
                "status" => envelope.ignore_status(value),
                "spec" if !is_secret => envelope.take_spec(value, out),
                _ => out.push(name.clone(), crate::shape::UNKNOWN_FIELD),
            }
        }
        if info.scope == Scope::Mesh && envelope.mesh.is_none() {
            envelope.mesh = envelope.labels.get(labels::MESH).cloned();
        }
        Ok(envelope)
    }

    fn new(info: &'static KindInfo) -> Self {
        Self {
            info,
            mesh: None,
            name: None,
            labels: BTreeMap::new(),
            spec: Map::new(),
            spec_missing: false,
            warnings: Vec::new(),
        }
    }

    fn take_spec(&mut self, value: &Value, out: &mut Violations) {
        match value {
            Value::Object(spec) => self.spec.clone_from(spec),
            Value::Null => {}
            _ => out.push("spec", "must be an object"),
        }
    }

    fn take_secret(&mut self, value: &Value, out: &mut Violations) {
        match value.get("value") {
            Some(data) => {
                self.spec.insert("data".to_owned(), data.clone());
            }
            None => out.push("data.value", "must be defined"),
        }
    }

    fn take_metadata(&mut self, value: &Value, out: &mut Violations) {
        let Value::Object(metadata) = value else {
            return out.push("metadata", "must be an object");
        };
        for (name, value) in metadata {
            let path = format!("metadata.{name}");
            match name.as_str() {
                "name" => self.name = text(&path, value, out),
                "labels" => self.labels.extend(texts(&path, value, out)),
                "namespace" => match text(&path, value, out) {
                    Some(namespace) if namespace != SYSTEM_NAMESPACE => {
                        self.labels.insert(labels::NAMESPACE.to_owned(), namespace);
                    }
                    _ => {}
                },
                // What a cluster adds to an answer.
                "annotations" | "creationTimestamp" | "finalizers" | "generation" | "managedFields"
                | "ownerReferences" | "resourceVersion" | "selfLink" | "uid" => {}
                _ => out.push(path, crate::shape::UNKNOWN_FIELD),
            }
        }
    }

    fn ignore_status(&mut self, status: &Value) {
        if status.as_object().is_some_and(|fields| !fields.is_empty()) {
            self.warnings.push("status has no effect: control planes write it".to_owned());
        }
    }
}

fn public_kind(kinds: &'static [KindInfo], name: &str) -> Result<&'static KindInfo, Problem> {
    known(kinds, name).filter(|info| !info.internal).ok_or_else(|| Problem::unknown_kind(name))
}

fn known(kinds: &'static [KindInfo], name: &str) -> Option<&'static KindInfo> {
    kinds.iter().find(|info| info.kind.as_str() == name)
}

fn text(path: &str, value: &Value, out: &mut Violations) -> Option<String> {
    match value {
        Value::String(text) => return Some(text.clone()),
        Value::Number(number) => return Some(number.to_string()),
        Value::Null => {}
        _ => out.push(path, "must be a string"),
    }
    None
}

fn texts(path: &str, value: &Value, out: &mut Violations) -> BTreeMap<String, String> {
    let Value::Object(fields) = value else {
        if !value.is_null() {
            out.push(path, "must be an object");
        }
        return BTreeMap::new();
    };
    let text = |(key, value): (&String, &Value)| match value {
        Value::String(text) => Some((key.clone(), text.clone())),
        Value::Number(number) => Some((key.clone(), number.to_string())),
        Value::Bool(flag) => Some((key.clone(), flag.to_string())),
        Value::Null => Some((key.clone(), String::new())),
        _ => {
            out.push(format!("{path}[{key:?}]"), "must be a string");
            None
        }
    };
    fields.iter().filter_map(text).collect()
}
