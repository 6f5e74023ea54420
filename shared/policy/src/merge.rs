//! How configurations of several policies become one: JSON merge patches (RFC 7396) from weak to strong, with
//! Kuma's three exceptions, which go by the names of fields:
//!
//! * lists `append*` grow instead of being replaced;
//! * a list `rules` of rules with `matches` (of a route) is merged by its matches: equal matches share one rule, and
//!   the strongest policy's rules come first;
//! * a list `hostnames` beside them makes a configuration for each of its names.

use meridian_core::Resource;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::sync::Arc;

const RULES: &str = "rules";
const MATCHES: &str = "matches";
const DEFAULT: &str = "default";
const HOSTNAMES: &str = "hostnames";
const APPEND: &str = "append";

/// What some policies add up to.
#[derive(Clone, Debug, PartialEq)]
pub struct Merged {
    /// One, or of routes with hostnames one for each name. Never empty.
    pub confs: Vec<Value>,
    /// What they came from, the strongest first, each once.
    pub origins: Vec<Origin>,
}

/// An item of a policy.
#[derive(Clone, Debug, PartialEq)]
pub struct Origin {
    pub policy: Arc<Resource>,
    /// In the policy's `to`, `from` or `rules`; 0 where it has none of these.
    pub item: usize,
}

/// A configuration to be merged, and where it is from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part<'a> {
    pub(crate) conf: &'a Value,
    pub(crate) policy: &'a Arc<Resource>,
    pub(crate) item: usize,
}

impl Merged {
    /// The strongest policy that has a rule with these matches (of routes): what resolves its names, and what policies name
    /// it by.
    pub fn origin_of(&self, matches: &Value) -> Option<&Arc<Resource>> {
        let has = |origin: &&Origin| {
            let item = origin.policy.spec.get("to").and_then(|to| to.get(origin.item));
            let rules = item.and_then(|item| item.get("rules")).and_then(Value::as_array);
            rules.into_iter().flatten().any(|rule| rule.get("matches") == Some(matches))
        };
        self.origins.iter().find(has).or_else(|| self.origins.first()).map(|origin| &origin.policy)
    }

    /// The configuration in its kind's type; of routes with hostnames that of the first.
    pub fn conf<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        T::deserialize(self.confs.first().unwrap_or(&Value::Null))
    }

    /// All configurations in their kind's type.
    pub fn confs<T: DeserializeOwned>(&self) -> Result<Vec<T>, serde_json::Error> {
        self.confs.iter().map(T::deserialize).collect()
    }

    /// Merges `parts`, which go from weak to strong. `None` if there are none.
    pub(crate) fn of(parts: &[Part<'_>]) -> Option<Self> {
        let confs: Vec<&Value> = parts.iter().map(|part| part.conf).collect();
        let confs = merge(&confs);
        (!confs.is_empty()).then(|| Self { confs, origins: origins(parts) })
    }

    /// The policies that it came from, the strongest first, each once.
    pub fn policies(&self) -> Vec<&Arc<Resource>> {
        let mut policies: Vec<&Arc<Resource>> = Vec::new();
        // Each stands where Kuma puts it: by the first of its items, counted from the weakest.
        for origin in self.origins.iter().rev() {
            if policies.iter().all(|policy| policy.key != origin.policy.key) {
                policies.push(&origin.policy);
            }
        }
        policies.reverse();
        policies
    }
}

impl Origin {
    pub(crate) fn of(part: &Part<'_>) -> Self {
        Self { policy: Arc::clone(part.policy), item: part.item }
    }
}

fn origins(parts: &[Part<'_>]) -> Vec<Origin> {
    let mut origins: Vec<Origin> = Vec::new();
    for part in parts {
        let is_same = |origin: &Origin| origin.item == part.item && origin.policy.key == part.policy.key;
        if !origins.iter().any(is_same) {
            origins.push(Origin::of(part));
        }
    }
    origins.reverse();
    origins
}

/// Merges configurations that go from weak to strong.
pub fn merge(confs: &[&Value]) -> Vec<Value> {
    if !confs.iter().any(|conf| hostnames(conf).is_some()) {
        return merged(confs).into_iter().collect();
    }
    let mut names: Vec<Option<&Value>> = Vec::new();
    for name in confs.iter().flat_map(|conf| names_of(conf)) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let of_name = |name: Option<&Value>| {
        let own: Vec<&Value> = confs.iter().copied().filter(|conf| names_of(conf).contains(&name)).collect();
        let mut conf = merged(&own)?;
        if let (Some(name), Some(fields)) = (name, conf.as_object_mut()) {
            fields.insert(HOSTNAMES.to_owned(), Value::Array(vec![name.clone()]));
        }
        Some(conf)
    };
    names.into_iter().filter_map(of_name).collect()
}

fn merged(confs: &[&Value]) -> Option<Value> {
    let (first, rest) = confs.split_first()?;
    let mut merged = Value::Object(Map::new());
    patch(&mut merged, first);
    for conf in rest {
        patch(&mut merged, conf);
    }
    if confs.iter().any(|conf| routes(conf).is_some())
        && let Some(fields) = merged.as_object_mut()
    {
        fields.insert(RULES.to_owned(), Value::Array(by_matches(confs)));
    }
    Some(merged)
}

/// RFC 7396, but for lists that grow.
pub(crate) fn patch(target: &mut Value, patched: &Value) {
    let Value::Object(patched) = patched else {
        return *target = patched.clone();
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(fields) = target else { return };
    for (name, value) in patched {
        match (fields.get_mut(name), value) {
            (_, Value::Null) => drop(fields.remove(name)),
            (Some(Value::Array(list)), Value::Array(more)) if appends(name) => {
                list.extend(more.iter().cloned())
            }
            (Some(old), value) => patch(old, value),
            (None, value) => {
                let mut fresh = Value::Null;
                patch(&mut fresh, value);
                fields.insert(name.clone(), fresh);
            }
        }
    }
}

/// Whether a list of that name grows: `appendMatch`.
fn appends(name: &str) -> bool {
    name.strip_prefix(APPEND).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_uppercase()))
}

/// The rules of routes, the strongest first: within a policy the first rule is the strongest.
fn by_matches(confs: &[&Value]) -> Vec<Value> {
    let mut rules: Vec<Value> = Vec::new();
    let weak_to_strong = confs.iter().filter_map(|conf| routes(conf)).flat_map(|rules| rules.iter().rev());
    for rule in weak_to_strong {
        let mut rule = rule.clone();
        let equal = |other: &Value| other.get(MATCHES) == rule.get(MATCHES);
        if let Some(position) = rules.iter().position(equal) {
            let weaker = rules.remove(position);
            let confs: Vec<&Value> =
                [&weaker, &rule].into_iter().filter_map(|rule| rule.get(DEFAULT)).collect();
            if let (Some(merged), Some(fields)) = (merged(&confs), rule.as_object_mut()) {
                fields.insert(DEFAULT.to_owned(), merged);
            }
        }
        rules.push(rule);
    }
    rules.reverse();
    rules
}

pub(crate) fn routes(conf: &Value) -> Option<&Vec<Value>> {
    let rules = conf.get(RULES)?.as_array()?;
    rules.iter().any(|rule| rule.get(MATCHES).is_some()).then_some(rules)
}

/// The names that a configuration is for; `None` stands for all.
fn names_of(conf: &Value) -> Vec<Option<&Value>> {
    hostnames(conf).map_or_else(|| vec![None], |names| names.iter().map(Some).collect())
}

fn hostnames(conf: &Value) -> Option<&Vec<Value>> {
    conf.get(HOSTNAMES)?.as_array().filter(|names| !names.is_empty())
}
