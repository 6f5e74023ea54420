//! Policies at a zone egress, which serves many callers: what they say of one destination outside of the mesh, by
//! the destination's tags.

use crate::inbound::{InboundRule, from_rules, inbound_rules};
use crate::matching::{is_service, is_subset};
use crate::merge::Part;
use crate::meta::Meta;
use crate::policy::{Item, Policy, sort};
use crate::subset::{SubsetRule, Tagged, combinations, tags_of};
use meridian_core::{TargetKind, TargetRef};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What holds at an egress for one destination.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EgressRules {
    /// By the caller's tags.
    pub from: Vec<SubsetRule>,
    /// By the caller's identity; `None` of a kind that is about outgoing traffic only.
    pub rules: Option<Vec<InboundRule>>,
}

/// The policies of one kind for a destination with these tags, in any order. Of a kind that is about outgoing traffic only
/// the items that name the destination hold, each for the callers that its policy selects.
pub fn egress_rules(policies: &[Arc<Policy>], tags: &BTreeMap<String, String>) -> EgressRules {
    let in_force = policies.iter().filter(|policy| !Meta::from(&*policy.resource).is_shadow());
    let mut policies = sort(in_force.cloned().collect());
    let is_inbound = policies.iter().any(|policy| policy.form.targets.from || policy.form.targets.rules);
    if is_inbound {
        policies.retain(|policy| policy.target().is_none_or(|target| means(target, tags)));
        return EgressRules { from: from_rules(&policies), rules: Some(inbound_rules(&policies)) };
    }
    let items: Vec<Tagged<'_>> = policies.iter().flat_map(|policy| reversed(policy, tags)).collect();
    EgressRules { from: combinations(&items), rules: None }
}

/// The items that name the destination, as if they were `from` items for those whom the policy selects.
fn reversed<'a>(policy: &'a Policy, tags: &BTreeMap<String, String>) -> Vec<Tagged<'a>> {
    let callers = policy.target().map_or_else(|| Some(BTreeMap::new()), tags_of);
    let Some(callers) = callers else {
        return Vec::new();
    };
    let named = policy.to.iter().enumerate().filter(|(_, item)| means(&item.target, tags));
    let part = |(item, of): (usize, &'a Item)| Part { conf: &of.conf, policy: &policy.resource, item };
    named.map(|item| Tagged { tags: callers.clone(), part: part(item) }).collect()
}

fn means(target: &TargetRef, tags: &BTreeMap<String, String>) -> bool {
    match target.kind {
        TargetKind::Mesh => true,
        TargetKind::MeshSubset => is_subset(target.tags.as_ref(), tags),
        TargetKind::MeshService | TargetKind::MeshServiceSubset => is_service(target, tags),
        _ => false,
    }
}
