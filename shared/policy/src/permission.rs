use crate::precedence::sorted;
use crate::subset::tags_of;
use crate::{Parsed, Subject, selects};
use meridian_core::kinds::dataplane::Inbound;
use meridian_core::kinds::mesh_traffic_permission::{
    Action as Said, From, MeshTrafficPermission, RuleMatch, SpiffeIdMatchType,
};
use meridian_core::{Resource, names};
use meridian_proxy_config::{Action, CallerMatch, Permission, PermissionRule};

/// Who may call one inbound of a Dataplane, by all MeshTrafficPermissions of its mesh (in any order).
pub fn inbound_permission(
    mesh: &str,
    dataplane: &Subject<'_>,
    inbound: &Inbound,
    policies: &[Parsed<MeshTrafficPermission>],
) -> Permission {
    let selected = policies.iter().filter(|policy| {
        policy.resource.key.mesh == mesh
            && selects(&policy.resource, policy.spec.target_ref.as_ref(), dataplane, Some(inbound))
    });
    let mut builder = Builder::default();
    for policy in sorted(selected, |spec| spec.target_ref.as_ref()) {
        builder.add(&policy.resource, &policy.spec, of_inbound);
    }
    builder.finish()
}

/// A caller chooses its session's server name, and an inbound takes any: it can't be what lets the caller in. Else a
/// rule that opens one destination behind an egress would open every inbound to who claims that name.
fn of_inbound(action: Action, matched: &RuleMatch) -> Option<CallerMatch> {
    (matched.sni.is_none() || action == Action::Deny).then(|| caller_match(matched))
}

/// The conditions for a destination behind an egress whose server name is `sni`. The egress knows by the entry which
/// destination is meant, so a rule that names another one is left out, and of one that names this one the name is: what
/// the caller gave as its session's server name decides nothing.
pub(crate) fn of_entry(matched: &RuleMatch, sni: &str) -> Option<CallerMatch> {
    let own = matched.sni.as_ref().is_none_or(|named| named.value == sni);
    own.then(|| CallerMatch { sni: None, ..caller_match(matched) })
}

/// Collects policies from weak to strong.
///
/// Among `from` items the strongest that matches decides, and within a policy the last. Among `rules` any deny
/// decides before any allow. Where both forms meet, a deny of either wins over an allow of `rules`: two policies that
/// disagree must not open what one of them closes.
#[derive(Default)]
pub(crate) struct Builder {
    denied: Vec<PermissionRule>,
    /// From weak to strong.
    from: Vec<PermissionRule>,
    shadow_denied: Vec<PermissionRule>,
    allowed: Vec<PermissionRule>,
}

impl Builder {
    /// Adds a policy; of its `rules` only the matches that have `conditions`.
    pub(crate) fn add(
        &mut self,
        resource: &Resource,
        spec: &MeshTrafficPermission,
        conditions: impl Fn(Action, &RuleMatch) -> Option<CallerMatch>,
    ) {
        let policy = names::display(&resource.key.name, &resource.labels);
        self.from.extend(spec.from.iter().flatten().filter_map(|from| from_rule(from, policy)));
        self.add_rules(policy, spec, conditions);
    }

    /// Adds a policy's `rules` only.
    pub(crate) fn add_rules(
        &mut self,
        policy: &str,
        spec: &MeshTrafficPermission,
        conditions: impl Fn(Action, &RuleMatch) -> Option<CallerMatch>,
    ) {
        let lists = spec.rules.iter().flatten().map(|rule| &rule.default).flat_map(|conf| {
            [
                (Action::Deny, &conf.deny),
                (Action::AllowWithShadowDeny, &conf.allow_with_shadow_deny),
                (Action::Allow, &conf.allow),
            ]
        });
        for (action, matches) in lists {
            let list = match action {
                Action::Deny => &mut self.denied,
                Action::AllowWithShadowDeny => &mut self.shadow_denied,
                Action::Allow => &mut self.allowed,
            };
            let callers = matches.iter().flatten().filter_map(|matched| conditions(action, matched));
            list.extend(callers.map(|caller| rule(action, caller, policy)));
        }
    }

    /// The list in which the first match decides.
    pub(crate) fn finish(self) -> Permission {
        let from = self.from.into_iter().rev();
        let all = self.denied.into_iter().chain(from).chain(self.shadow_denied).chain(self.allowed);
        let mut rules: Vec<PermissionRule> = Vec::new();
        for rule in all {
            // A rule with the conditions of one before it decides nothing.
            if rules.iter().all(|earlier| earlier.caller != rule.caller) {
                let matches_all = rule.caller == CallerMatch::default();
                rules.push(rule);
                if matches_all {
                    break;
                }
            }
        }
        Permission { rules }
    }
}

fn rule(action: Action, caller: CallerMatch, policy: &str) -> PermissionRule {
    PermissionRule { action, caller, policy: policy.to_owned() }
}

/// A reference that can't be understood (its check refuses it) matches everybody where it denies and nobody where
/// it allows.
fn from_rule(from: &From, policy: &str) -> Option<PermissionRule> {
    let action = match from.default.action {
        Some(Said::Allow) => Action::Allow,
        Some(Said::AllowWithShadowDeny) => Action::AllowWithShadowDeny,
        Some(Said::Deny | Said::Other(_)) | None => Action::Deny,
    };
    match tags_of(&from.target_ref) {
        Some(tags) => Some(rule(action, CallerMatch { tags, ..CallerMatch::default() }, policy)),
        None if action == Action::Deny => Some(rule(action, CallerMatch::default(), policy)),
        None => None,
    }
}

/// Whom a match of `rules` means, as proxies compare it.
pub fn caller_match(matched: &RuleMatch) -> CallerMatch {
    let mut caller = CallerMatch::default();
    if let Some(id) = &matched.spiffe_id {
        let value = Some(id.value.clone());
        match id.type_ {
            SpiffeIdMatchType::Prefix => caller.spiffe_prefix = value,
            SpiffeIdMatchType::Exact | SpiffeIdMatchType::Other(_) => caller.spiffe_exact = value,
        }
    }
    caller.sni = matched.sni.as_ref().map(|sni| sni.value.clone());
    caller
}
