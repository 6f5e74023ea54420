//! Policies on incoming traffic: `from` by the caller's tags, `rules` by the caller's identity.

use crate::merge::{Merged, Origin, Part};
use crate::policy::Policy;
use crate::subset::{SubsetRule, Tagged, combinations, of_tags, tags_of};
use meridian_core::TargetRef;
use meridian_core::kinds::mesh_traffic_permission::{RuleMatch, SpiffeIdMatchType};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

/// An item of `rules` for one of its matches.
#[derive(Clone, Debug, PartialEq)]
pub struct InboundRule {
    /// `None`: everybody.
    pub matched: Option<RuleMatch>,
    pub conf: Value,
    pub origin: Origin,
    /// Made of a `from` item for the whole mesh.
    pub of_from: bool,
}

/// An item of `from`, for callers with these tags.
#[derive(Clone, Debug, PartialEq)]
pub struct TaggedRule {
    /// None: everybody.
    pub tags: BTreeMap<String, String>,
    pub conf: Value,
    pub origin: Origin,
}

/// What rules add up to for one kind of caller.
#[derive(Clone, Debug, PartialEq)]
pub struct InboundConf {
    /// `None`: everybody else.
    pub matched: Option<RuleMatch>,
    pub merged: Merged,
}

/// The `from` items of policies that select an inbound (from weak to strong), as Kuma lists them: by the caller's tags,
/// the first that matches decides.
pub fn from_rules(policies: &[Arc<Policy>]) -> Vec<SubsetRule> {
    combinations(&from_items(policies))
}

/// What the `from` items of policies (from weak to strong) add up to for a caller with these tags.
pub fn from_conf(policies: &[Arc<Policy>], caller: &BTreeMap<String, String>) -> Option<Merged> {
    of_tags(&from_items(policies), caller)
}

fn from_items(policies: &[Arc<Policy>]) -> Vec<Tagged<'_>> {
    let items =
        policies.iter().flat_map(|policy| policy.from.iter().enumerate().map(move |item| (policy, item)));
    items
        .filter_map(|(policy, (i, item))| {
            let part = Part { conf: &item.conf, policy: &policy.resource, item: i };
            Some(Tagged { tags: tags_of(&item.target)?, part })
        })
        .collect()
}

/// The `from` items of policies that select an inbound (from weak to strong), where one of them is for a part of the mesh:
/// from strong to weak. Of those that match a caller, the first that sets a field decides it. They stand in place of the
/// rules that are made of `from`.
pub fn tagged_rules(policies: &[Arc<Policy>]) -> Vec<TaggedRule> {
    let by_rules: Vec<Arc<Policy>> = policies.iter().filter(|it| it.rules.is_empty()).cloned().collect();
    let items = from_items(&by_rules);
    if items.iter().all(|item| item.tags.is_empty()) {
        return Vec::new();
    }
    let rule = |item: &Tagged<'_>| TaggedRule {
        tags: item.tags.clone(),
        conf: item.part.conf.clone(),
        origin: Origin { policy: Arc::clone(item.part.policy), item: item.part.item },
    };
    items.iter().rev().map(rule).collect()
}

/// The `rules` of policies that select an inbound (from weak to strong), one for each match: the most specific matches
/// first, and among equally specific ones from weak to strong. What `from` says of the whole mesh is among them where
/// the kind takes that for the same.
pub fn inbound_rules(policies: &[Arc<Policy>]) -> Vec<InboundRule> {
    let mut rules: Vec<InboundRule> = policies.iter().flat_map(|policy| rules_of(policy)).collect();
    rules.sort_by_key(|rule| std::cmp::Reverse(kind_of(rule.matched.as_ref())));
    rules
}

/// What `rules` ([`inbound_rules`]) add up to for each kind of caller: all that hold for it, the more specific over the
/// less specific, then the stronger over the weaker. The first that matches a caller decides; the last is for everybody.
pub fn inbound_confs(rules: &[InboundRule]) -> Vec<InboundConf> {
    let mut order: Vec<&InboundRule> = rules.iter().collect();
    order.sort_by_key(|rule| specificity(rule.matched.as_ref()));
    let mut confs: Vec<InboundConf> = Vec::new();
    for rule in order.iter().rev() {
        let matched = &rule.matched;
        if confs.iter().any(|conf| conf.matched == *matched) {
            continue;
        }
        let holds = order.iter().filter(|other| subsumes(other.matched.as_ref(), matched.as_ref()));
        let parts: Vec<Part<'_>> = holds
            .map(|rule| Part { conf: &rule.conf, policy: &rule.origin.policy, item: rule.origin.item })
            .collect();
        let merged = Merged::of(&parts);
        confs.extend(merged.map(|merged| InboundConf { matched: matched.clone(), merged }));
    }
    confs
}

fn rules_of(policy: &Policy) -> Vec<InboundRule> {
    let rule = |matched: Option<&RuleMatch>, conf: &Value, item: usize, of_from: bool| InboundRule {
        matched: matched.filter(|matched| **matched != RuleMatch::default()).cloned(),
        conf: conf.clone(),
        origin: Origin { policy: Arc::clone(&policy.resource), item },
        of_from,
    };
    if policy.rules.is_empty() && policy.form.from_as_rules {
        let is_all = |target: &TargetRef| tags_of(target).is_some_and(|tags| tags.is_empty());
        let from = policy.from.iter().enumerate().filter(|(_, item)| is_all(&item.target));
        return from.map(|(i, item)| rule(None, &item.conf, i, true)).collect();
    }
    let mut rules = Vec::new();
    for (i, own) in policy.rules.iter().enumerate() {
        if own.matches.is_empty() {
            rules.push(rule(None, &own.conf, i, false));
        }
        rules.extend(own.matches.iter().map(|matched| rule(Some(matched), &own.conf, i, false)));
    }
    rules
}

/// (how the SPIFFE ID is compared, whether there is a server name): Kuma's order of matches.
fn kind_of(matched: Option<&RuleMatch>) -> (u8, bool) {
    let spiffe = matched.and_then(|matched| matched.spiffe_id.as_ref()).map_or(0, |id| match id.type_ {
        SpiffeIdMatchType::Exact => 3,
        SpiffeIdMatchType::Prefix => 2,
        SpiffeIdMatchType::Other(_) => 1,
    });
    (spiffe, matched.is_some_and(|matched| matched.sni.is_some()))
}

/// [`kind_of`], and of prefixes the longer.
fn specificity(matched: Option<&RuleMatch>) -> (u8, usize, bool) {
    let (spiffe, sni) = kind_of(matched);
    let length = matched.and_then(|matched| matched.spiffe_id.as_ref()).map_or(0, |id| id.value.len());
    (spiffe, if spiffe == 2 { length } else { 0 }, sni)
}

/// Whether `wide` holds for everybody for whom `narrow` does.
fn subsumes(wide: Option<&RuleMatch>, narrow: Option<&RuleMatch>) -> bool {
    let Some(wide) = wide else { return true };
    let none = RuleMatch::default();
    let narrow = narrow.unwrap_or(&none);
    let by_id = match (&wide.spiffe_id, &narrow.spiffe_id) {
        (None, _) => true,
        (Some(wide), Some(narrow)) if wide.type_ == SpiffeIdMatchType::Prefix => {
            is_under(&narrow.value, &wide.value)
        }
        (Some(wide), Some(narrow)) => wide == narrow,
        (Some(_), None) => false,
    };
    by_id && (wide.sni.is_none() || wide.sni == narrow.sni)
}

/// Whether a SPIFFE ID begins with `prefix`, at a segment's end.
fn is_under(id: &str, prefix: &str) -> bool {
    let rest = id.strip_prefix(prefix);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || prefix.ends_with('/'))
}
