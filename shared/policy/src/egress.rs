//! Policies at a zone egress, which serves many callers: what they say of one destination outside of the mesh, by
//! the destination's tags.

use crate::inbound::{InboundRule, from_rules, inbound_rules};
use crate::matching::{is_service, is_subset};
use crate::merge::Part;
use crate::meta::Meta;
use crate::policy::{Item, Policy, sort};
use crate::subset::{SubsetRule, Tagged, combinations, tags_of};
use meridian_core::kinds::mesh_traffic_permission::RuleMatch;
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

/// What the `rules` of policies of one kind (in any order) say of the entry whose server name is `sni`, whatever the
/// policies select: a server name is only met where it is served. Those that name none are about what they select.
pub fn entry_rules(policies: &[Arc<Policy>], sni: &str) -> Vec<InboundRule> {
    let in_force = policies.iter().filter(|policy| !Meta::from(&*policy.resource).is_shadow());
    let mut rules = inbound_rules(&sort(in_force.cloned().collect()));
    let named = |rule: &InboundRule| {
        let named = rule.matched.as_ref().and_then(|matched| matched.sni.as_ref());
        named.is_some_and(|named| named.value == sni)
    };
    rules.retain(named);
    for rule in &mut rules {
        // The entry is known: who calls is what is left to ask.
        let caller = rule.matched.take().and_then(|matched| matched.spiffe_id);
        rule.matched = caller.map(|spiffe_id| RuleMatch { spiffe_id: Some(spiffe_id), sni: None });
    }
    rules
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
