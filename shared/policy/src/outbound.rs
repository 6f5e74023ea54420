//! Policies on outgoing traffic: `to`, by the resource that is called, or by the tag `kuma.io/service`.

use crate::destinations::{DestinationId, Destinations};
use crate::hash::matches_hash;
use crate::merge::{Merged, Part};
use crate::policy::{HTTP_ROUTE, Item, Policy};
use crate::precedence::{Strength, rank};
use crate::routes::{Routes, entries};
use crate::subset::{SubsetRule, Tagged, destinations as tag_rules, of_tags, tags_of};
use meridian_core::{Key, Resource, TargetKind, labels};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

/// In the tags of a route's rule: the hash of its `matches`.
pub const MATCHES_HASH_TAG: &str = "__rule-matches-hash__";

/// What holds for the destinations that policies name, and for those that none names.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ResourceRules {
    /// The Mesh's is for all that have none of their own.
    pub rules: BTreeMap<DestinationId, ResourceRule>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ResourceRule {
    pub resource: Arc<Resource>,
    pub merged: Merged,
}

/// An item of `to`, and where it stands.
#[derive(Clone, Copy, Debug)]
pub struct ToItem<'a> {
    pub(crate) policy: &'a Policy,
    pub(crate) item: &'a Item,
    pub(crate) index: usize,
}

impl<'a> ToItem<'a> {
    pub fn policy(&self) -> &'a Arc<Resource> {
        &self.policy.resource
    }

    /// In the policy's `to`.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Whether it means something that is there. What it says of a `kuma.io/service` holds whether there is one or not.
    pub fn is_there(&self, destinations: &Destinations) -> bool {
        let target = &self.item.target;
        let by_tag = match target.kind {
            TargetKind::Mesh | TargetKind::MeshSubset => true,
            TargetKind::MeshService | TargetKind::MeshServiceSubset => !target.has_labels(),
            _ => false,
        };
        by_tag || !destinations.resolve(target, &self.policy.resource).is_empty()
    }

    fn part(&self) -> Part<'a> {
        Part { conf: &self.item.conf, policy: &self.policy.resource, item: self.index }
    }

    fn order(&self) -> (Strength, u8, bool, &'a Reverse<(String, Key)>) {
        let target = &self.item.target;
        let has_ports = matches!(target.kind, TargetKind::MeshService | TargetKind::MeshMultiZoneService);
        let precise = has_ports && target.section_name().is_some();
        let precedence = &self.policy.precedence;
        (precedence.strength, rank(&target.kind), precise, &precedence.name)
    }
}

/// All items of `to`, from weak to strong: by their policies, then by what they name, then by the policies' names.
pub fn to_items(policies: &[Arc<Policy>]) -> Vec<ToItem<'_>> {
    let items = policies
        .iter()
        .flat_map(|policy| policy.to.iter().enumerate().map(|(index, item)| ToItem { policy, item, index }));
    let mut items: Vec<ToItem<'_>> = items.collect();
    items.sort_by(|a, b| a.order().cmp(&b.order()));
    items
}

impl ResourceRules {
    /// Of the policies that select a Dataplane, in any order. Those whose top-level target is a route are not among
    /// them: see [`to_rules`].
    pub fn new(policies: &[Arc<Policy>], destinations: &Destinations) -> Self {
        let named: Vec<(ToItem<'_>, DestinationId)> = to_items(policies)
            .into_iter()
            .filter(|item| item.policy.route_target().is_none())
            .flat_map(|item| {
                let found = destinations.resolve(&item.item.target, &item.policy.resource);
                found.into_iter().map(move |id| (item, id))
            })
            .collect();
        let mut rules = BTreeMap::new();
        for (_, id) in &named {
            if rules.contains_key(id) {
                continue;
            }
            let parts: Vec<Part<'_>> =
                named.iter().filter(|(_, of)| holds(of, id)).map(|(item, _)| item.part()).collect();
            let resource = destinations.get(&id.key).cloned();
            if let (Some(merged), Some(resource)) = (Merged::of(&parts), resource) {
                rules.insert(id.clone(), ResourceRule { resource, merged });
            }
        }
        Self { rules }
    }

    /// What holds for a destination, one port of it or all (`section` empty), and on it for one route or none: the
    /// entry of the route, else of the port, the destination, the Mesh. The first there is holds alone.
    pub fn conf(&self, destination: &Key, section: &str, route: Option<&Key>) -> Option<&ResourceRule> {
        let entry = |key: &Key, section: &str| {
            self.rules.get(&DestinationId { key: key.clone(), section: section.to_owned() })
        };
        route
            .and_then(|route| entry(route, ""))
            .or_else(|| entry(destination, section))
            .or_else(|| entry(destination, ""))
            .or_else(|| self.of_mesh(&destination.mesh))
    }

    /// Whether a policy names the destination, or a port of it.
    pub fn names(&self, destination: &Key) -> bool {
        let first = DestinationId { key: destination.clone(), section: String::new() };
        self.rules.range(first..).next().is_some_and(|(id, _)| id.key == *destination)
    }

    /// Whether a policy names the destination as a whole, or this port of it.
    pub fn names_port(&self, destination: &Key, section: &str) -> bool {
        let has = |section: &str| {
            let id = DestinationId { key: destination.clone(), section: section.to_owned() };
            self.rules.contains_key(&id)
        };
        has(section) || has("")
    }

    /// What holds for what no policy names.
    pub fn of_mesh(&self, mesh: &str) -> Option<&ResourceRule> {
        let is_it = |id: &DestinationId| id.key.kind.as_str() == "Mesh" && id.key.name == mesh;
        self.rules.iter().find(|(id, _)| is_it(id)).map(|(_, rule)| rule)
    }
}

/// Whether what is said of `wide` holds for `narrow`. A service's items don't hold for a route to it.
fn holds(wide: &DestinationId, narrow: &DestinationId) -> bool {
    match wide.key.kind.as_str() {
        "Mesh" => narrow.key == wide.key || narrow.key.mesh == wide.key.name,
        HTTP_ROUTE | "MeshExternalService" => wide.key == narrow.key,
        _ => wide.key == narrow.key && (wide.section.is_empty() || wide.section == narrow.section),
    }
}

/// Kuma's rules by `kuma.io/service`, for policies that select a Dataplane (from weak to strong). A policy whose
/// top-level target is a route speaks of that route's rules.
pub fn to_rules(policies: &[Arc<Policy>], routes: &Routes) -> Vec<SubsetRule> {
    tag_rules(&tagged(policies, routes))
}

/// What policies (from weak to strong) add up to for a service by its tag `kuma.io/service`, and for one rule of a
/// route to it, by the hash of its matches.
pub fn to_conf(
    policies: &[Arc<Policy>],
    routes: &Routes,
    service: &str,
    rule: Option<&str>,
) -> Option<Merged> {
    let mut tags = BTreeMap::from([(labels::SERVICE.to_owned(), service.to_owned())]);
    tags.extend(rule.map(|hash| (MATCHES_HASH_TAG.to_owned(), hash.to_owned())));
    of_tags(&tagged(policies, routes), &tags)
}

fn tagged<'a>(policies: &'a [Arc<Policy>], routes: &Routes) -> Vec<Tagged<'a>> {
    let mut tagged = Vec::new();
    for policy in policies {
        // Kuma takes a policy that names routes in `to` as one for resources only.
        if policy.to.iter().any(|item| item.target.kind == TargetKind::MeshHttpRoute) {
            continue;
        }
        let part = |(index, item): (usize, &'a Item)| Part {
            conf: &item.conf,
            policy: &policy.resource,
            item: index,
        };
        if policy.route_target().is_some() {
            for tags in routes.targeted_by(policy).flat_map(|route| rule_tags(route)) {
                let items = policy.to.iter().enumerate();
                tagged.extend(items.map(|item| Tagged { tags: tags.clone(), part: part(item) }));
            }
            continue;
        }
        for (index, item) in policy.to.iter().enumerate() {
            tagged.extend(tags_of(&item.target).map(|tags| Tagged { tags, part: part((index, item)) }));
        }
    }
    tagged
}

/// The tags of each rule of a route: its matches, and the service that it is about.
fn rule_tags(route: &Policy) -> Vec<BTreeMap<String, String>> {
    let mut all = Vec::new();
    for (target, rules) in entries(route) {
        let service = match target.kind {
            TargetKind::Mesh | TargetKind::MeshSubset => None,
            _ => target.name().map(|name| (labels::SERVICE.to_owned(), name.to_owned())),
        };
        for matches in rules {
            let hash = (MATCHES_HASH_TAG.to_owned(), matches_hash(matches));
            all.push(service.clone().into_iter().chain([hash]).collect());
        }
    }
    all
}
