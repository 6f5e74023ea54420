//! Golden files and our answers in one form, and what differs between them.

use crate::report::Outcome;
use meridian_policy::{InboundRule, Merged, ResourceRules, SubsetRule, kri};
use serde_json::{Map, Value, json};

/// Compares two answers in the common form.
pub(crate) fn judge(expected: &Value, found: &Value) -> Outcome {
    let (expected, found) = (meaning(expected), meaning(found));
    if expected == found {
        return Outcome::Passed;
    }
    let text = |value: &Value| serde_json::to_string_pretty(value).unwrap_or_default();
    Outcome::Failed(diff(&text(&expected), &text(&found)))
}

/// Lines that only one of the two has, with what surrounds them left out.
fn diff(expected: &str, found: &str) -> Value {
    let (expected, found): (Vec<&str>, Vec<&str>) = (expected.lines().collect(), found.lines().collect());
    let mut common = vec![vec![0usize; found.len() + 1]; expected.len() + 1];
    for (i, a) in expected.iter().enumerate().rev() {
        for (j, b) in found.iter().enumerate().rev() {
            common[i][j] =
                if a == b { common[i + 1][j + 1] + 1 } else { common[i + 1][j].max(common[i][j + 1]) };
        }
    }
    let (mut i, mut j, mut lines) = (0, 0, Vec::new());
    while i < expected.len() || j < found.len() {
        if i < expected.len() && j < found.len() && expected[i] == found[j] {
            (i, j) = (i + 1, j + 1);
        } else if j == found.len() || (i < expected.len() && common[i + 1][j] >= common[i][j + 1]) {
            lines.push(format!("- {}", expected[i]));
            i += 1;
        } else {
            lines.push(format!("+ {}", found[j]));
            j += 1;
        }
    }
    lines.into()
}

/// Without empty objects and nulls, and with durations in one spelling.
fn meaning(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let kept = fields.iter().map(|(name, value)| (name.clone(), meaning(value)));
            let is_something = |(_, value): &(String, Value)| {
                !value.is_null() && value.as_object().is_none_or(|fields| !fields.is_empty())
            };
            Value::Object(kept.filter(is_something).collect())
        }
        Value::Array(items) => items.iter().map(meaning).collect(),
        Value::String(text) => nanoseconds(text).map_or_else(|| value.clone(), |n| json!(format!("{n} ns"))),
        other => other.clone(),
    }
}

/// A duration as Go writes it: `1m51s`.
fn nanoseconds(text: &str) -> Option<u128> {
    const UNITS: [(&str, f64); 6] =
        [("ns", 1.0), ("us", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 6e10), ("h", 3.6e12)];
    let (mut rest, mut total) = (text, 0.0);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        total += number * UNITS.iter().find(|(unit, _)| *unit == &rest[..end])?.1;
        rest = &rest[end..];
    }
    (!text.is_empty()).then_some(total as u128)
}

/// `Rules` of a golden file.
pub(crate) fn golden_subsets(rules: &Value) -> Value {
    let rule = |rule: &Value| {
        let mut subset: Vec<Value> = list(&rule["Subset"]).cloned().collect();
        subset.sort_by_key(Value::to_string);
        let origins: Vec<Value> = list(&rule["Origin"]).map(display).collect();
        json!({ "subset": subset, "conf": rule["Conf"], "origins": origins })
    };
    list(rules).map(rule).collect()
}

pub(crate) fn our_subsets(rules: &[SubsetRule]) -> Value {
    let rule = |rule: &SubsetRule| {
        let tag = |tag: &meridian_policy::Tag| json!({ "Key": tag.key, "Not": tag.not, "Value": tag.value });
        let mut subset: Vec<Value> = rule.subset.iter().map(tag).collect();
        subset.sort_by_key(Value::to_string);
        let conf =
            move |conf: &Value| json!({ "subset": subset, "conf": conf, "origins": policies(&rule.merged) });
        rule.merged.confs.iter().map(conf).collect::<Vec<_>>()
    };
    rules.iter().flat_map(rule).collect()
}

/// The policies that a configuration is from, the weakest first as Kuma lists them.
pub(crate) fn policies(merged: &Merged) -> Vec<Value> {
    let policies = merged.policies();
    policies
        .into_iter()
        .rev()
        .map(|policy| display(&json!({ "name": policy.key.name, "labels": policy.labels })))
        .collect()
}

/// A list of `InboundRules` of a golden file.
pub(crate) fn golden_inbound(rules: &Value) -> Value {
    let rule = |rule: &Value| {
        let origin = &rule["origin"];
        json!({
            "conf": rule["conf"],
            "match": rule["match"],
            "origin": { "policy": display(&origin["Resource"]), "item": origin["RuleIndex"] },
        })
    };
    list(rules).map(rule).collect()
}

pub(crate) fn our_inbound(rules: &[InboundRule]) -> Value {
    let rule = |rule: &InboundRule| {
        let policy = &rule.origin.policy;
        let policy = display(&json!({ "name": policy.key.name, "labels": policy.labels }));
        json!({
            "conf": rule.conf,
            "match": rule.matched,
            "origin": { "policy": policy, "item": rule.origin.item },
        })
    };
    rules.iter().map(rule).collect()
}

/// `ResourceRules` of a golden file.
pub(crate) fn golden_resources(rules: &Value) -> Value {
    let rule = |(id, rule): (&String, &Value)| {
        let origin = |origin: &Value| json!([display(&origin["Resource"]), origin["RuleIndex"]]);
        let origins: Vec<Value> = list(&rule["Origin"]).map(origin).collect();
        (id.clone(), json!({ "conf": rule["Conf"], "origins": origins }))
    };
    Value::Object(rules.as_object().into_iter().flatten().map(rule).collect())
}

pub(crate) fn our_resources(rules: &ResourceRules) -> Value {
    let mut found = Map::new();
    for (id, rule) in &rules.rules {
        let origin = |origin: &meridian_policy::Origin| {
            let policy = &origin.policy;
            json!([display(&json!({ "name": policy.key.name, "labels": policy.labels })), origin.item])
        };
        let origins: Vec<Value> = rule.merged.origins.iter().rev().map(origin).collect();
        let conf = json!({ "conf": rule.merged.confs, "origins": origins });
        found.insert(kri(&rule.resource, &id.section), conf);
    }
    Value::Object(found)
}

/// The name under which a resource was written, of its metadata in any of the spellings.
pub(crate) fn display(meta: &Value) -> Value {
    let field = |one: &str, other: &str| meta.get(one).or_else(|| meta.get(other)).cloned();
    let labels = field("labels", "Labels").unwrap_or_default();
    labels.get("kuma.io/display-name").cloned().or_else(|| field("name", "Name")).unwrap_or_default()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}
