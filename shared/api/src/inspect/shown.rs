//! Kuma's forms of what is inspected.

use meridian_core::kinds::dataplane::Inbound;
use meridian_core::{Resource, document};
use meridian_policy::{InboundConf, Merged, Origin, SubsetRule};
use serde_json::{Value, json};

pub(super) fn meta(resource: &Resource) -> Value {
    json!({
        "type": resource.key.kind.as_str(),
        "mesh": resource.key.mesh,
        "name": resource.key.name,
        "labels": resource.labels,
        "kri": document::kri(resource),
    })
}

pub(super) fn inbound(inbound: &Inbound) -> Value {
    json!({"name": inbound.name, "port": inbound.port, "tags": inbound.tags})
}

pub(super) fn origins(origins: &[Origin]) -> Vec<Value> {
    let origin = |it: &Origin| json!({"resourceMeta": meta(&it.policy), "ruleIndex": it.item});
    origins.iter().map(origin).collect()
}

pub(super) fn policies(merged: &Merged) -> Vec<Value> {
    merged.policies().into_iter().map(|policy| meta(policy)).collect()
}

pub(super) fn by_caller(rule: &InboundConf) -> Value {
    let mut said = json!({"conf": rule.merged.confs, "origin": origins(&rule.merged.origins)});
    if let (Some(matched), Some(fields)) = (&rule.matched, said.as_object_mut()) {
        fields.insert("match".to_owned(), json!(matched));
    }
    said
}

pub(super) fn subset(rule: &SubsetRule) -> Value {
    let matchers: Vec<Value> =
        rule.subset.iter().map(|tag| json!({"key": tag.key, "value": tag.value, "not": tag.not})).collect();
    json!({"matchers": matchers, "conf": rule.merged.confs.first(), "origin": policies(&rule.merged)})
}

/// Names of policies alone, the strongest first, each once: the newer endpoints' form.
pub(super) fn kris(merged: &Merged) -> Vec<Value> {
    merged.policies().into_iter().map(|policy| json!({"kri": document::kri(policy)})).collect()
}

/// The same: a configuration of one kind.
pub(super) fn conf(kind: &str, merged: &Merged) -> Value {
    json!({"kind": kind, "conf": merged.confs.first(), "origins": kris(merged)})
}
