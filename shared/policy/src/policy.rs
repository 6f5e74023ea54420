//! Every kind of policy in one form: what it selects, and the configurations that it holds.
//!
//! The form follows from the kind's entry in the registry. A new kind needs nothing here.

use crate::precedence::Precedence;
use meridian_core::kinds::mesh_traffic_permission::RuleMatch;
use meridian_core::{Key, Resource, TargetKind, TargetRef, TargetRefs};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::sync::Arc;

/// The kind whose resources other policies may target.
pub(crate) const HTTP_ROUTE: &str = "MeshHTTPRoute";

/// A policy of any kind, read once and used for many proxies.
#[derive(Clone, Debug)]
pub struct Policy {
    pub resource: Arc<Resource>,
    pub(crate) form: Form,
    /// `None`: everything in the mesh.
    pub(crate) target: Option<TargetRef>,
    pub(crate) to: Vec<Item>,
    pub(crate) from: Vec<Item>,
    pub(crate) rules: Vec<Rule>,
    /// The configuration of the whole proxy.
    pub(crate) single: Option<Value>,
    pub(crate) precedence: Precedence,
}

/// Which lists a kind's policies have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    pub targets: TargetRefs,
    /// A `from` item for the whole mesh says the same as an item of `rules` without `matches`.
    pub from_as_rules: bool,
}

/// An item of `to` or `from`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Item {
    pub(crate) target: TargetRef,
    pub(crate) conf: Value,
}

/// An item of `rules`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rule {
    /// Any of these; empty: everybody.
    pub(crate) matches: Vec<RuleMatch>,
    pub(crate) conf: Value,
}

#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    #[error("{0}: not a kind of policy")]
    NotAPolicy(Key),
    #[error("{key}: not a valid {} at {path}", key.kind)]
    Malformed {
        key: Key,
        /// Where in the spec: `to[1].targetRef`.
        path: String,
        source: serde_json::Error,
    },
}

impl Policy {
    /// Reads a policy, of which the spec was checked when it was written.
    pub fn new(resource: Arc<Resource>) -> Result<Self, PolicyError> {
        let info = resource.key.kind.info();
        let targets = info.targets.ok_or_else(|| PolicyError::NotAPolicy(resource.key.clone()))?;
        Self::with_form(resource, Form { targets, from_as_rules: info.from_means_rules() })
    }

    /// As [`Policy::new`], for a form other than the registry's.
    pub fn with_form(resource: Arc<Resource>, form: Form) -> Result<Self, PolicyError> {
        let read = Reader { key: &resource.key, spec: &resource.spec };
        let target = read.value(resource.spec.get("targetRef"), || "targetRef".to_owned())?;
        let to = read.items("to", form.targets.to)?;
        let from = read.items("from", form.targets.from)?;
        let rules = read.rules(form.targets.rules)?;
        let is_single = !form.targets.to && !form.targets.from && !form.targets.rules;
        let single = is_single.then(|| resource.spec.get("default").cloned()).flatten();
        let precedence = Precedence::of(&resource, target.as_ref());
        Ok(Self { form, target, to, from, rules, single, precedence, resource })
    }

    pub fn key(&self) -> &Key {
        &self.resource.key
    }

    /// What the policy selects; `None`: everything in the mesh.
    pub fn target(&self) -> Option<&TargetRef> {
        self.target.as_ref()
    }

    /// Whether it says something of calls that go out.
    pub fn is_outgoing(&self) -> bool {
        !self.to.is_empty()
    }

    /// Whether it says something of calls that come in.
    pub fn is_incoming(&self) -> bool {
        !self.from.is_empty() || !self.rules.is_empty()
    }

    /// What it says of calls that go out, item by item of its `to`.
    pub fn to_confs(&self) -> impl Iterator<Item = &Value> {
        self.to.iter().map(|item| &item.conf)
    }

    /// Kinds of the destinations that its `to` names one by one.
    pub fn named_kinds(&self) -> impl Iterator<Item = &TargetKind> {
        self.to.iter().map(|item| &item.target.kind).filter(|kind| **kind != TargetKind::Mesh)
    }

    /// The values of `kuma.io/service` that its `to` names.
    pub fn named_tags(&self) -> impl Iterator<Item = &str> {
        let by_tag = |target: &&TargetRef| {
            matches!(target.kind, TargetKind::MeshService | TargetKind::MeshServiceSubset)
        };
        self.to.iter().map(|item| &item.target).filter(by_tag).filter_map(TargetRef::name)
    }

    /// The route that it targets as a whole, if it targets one.
    pub(crate) fn route_target(&self) -> Option<&TargetRef> {
        self.target.as_ref().filter(|target| target.kind == TargetKind::MeshHttpRoute)
    }
}

/// Policies in the order in which they are merged: from weak to strong.
pub fn sort(mut policies: Vec<Arc<Policy>>) -> Vec<Arc<Policy>> {
    policies.sort_by(|a, b| a.precedence.cmp(&b.precedence));
    policies
}

/// Reads the parts of one spec.
struct Reader<'a> {
    key: &'a Key,
    spec: &'a Value,
}

impl Reader<'_> {
    fn value<T: DeserializeOwned>(
        &self,
        value: Option<&Value>,
        path: impl FnOnce() -> String,
    ) -> Result<Option<T>, PolicyError> {
        let parse = |value: &Value| T::deserialize(value);
        value
            .filter(|value| !value.is_null())
            .map(parse)
            .transpose()
            .map_err(|source| PolicyError::Malformed { key: self.key.clone(), path: path(), source })
    }

    fn list(&self, name: &str, has: bool) -> impl Iterator<Item = (usize, &Value)> {
        let list = self.spec.get(name).and_then(Value::as_array).filter(|_| has);
        list.into_iter().flatten().enumerate()
    }

    fn items(&self, name: &str, has: bool) -> Result<Vec<Item>, PolicyError> {
        let item = |(i, item): (usize, &Value)| {
            let target = self.value(item.get("targetRef"), || format!("{name}[{i}].targetRef"))?;
            Ok(Item { target: target.unwrap_or_else(TargetRef::mesh), conf: conf(item) })
        };
        self.list(name, has).map(item).collect()
    }

    fn rules(&self, has: bool) -> Result<Vec<Rule>, PolicyError> {
        let rule = |(i, rule): (usize, &Value)| {
            let matches = self.value(rule.get("matches"), || format!("rules[{i}].matches"))?;
            Ok(Rule { matches: matches.unwrap_or_default(), conf: conf(rule) })
        };
        self.list("rules", has).map(rule).collect()
    }
}

/// What an item configures: its `default`; of a route its rules (with matches) and hostnames, or its only rule.
fn conf(item: &Value) -> Value {
    if let Some(conf) = item.get("default") {
        return conf.clone();
    }
    let Some(rules) = item.get("rules").and_then(Value::as_array) else {
        return Value::Object(Map::new());
    };
    if !rules.iter().any(|rule| rule.get("matches").is_some()) {
        return rules.first().cloned().unwrap_or_else(|| Value::Object(Map::new()));
    }
    let own = |(name, _): &(&String, &Value)| name.as_str() != "targetRef";
    let fields = item.as_object().into_iter().flatten().filter(own);
    Value::Object(fields.map(|(name, value)| (name.clone(), value.clone())).collect())
}
