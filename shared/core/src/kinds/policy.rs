//! What the specs of several policies have in common.

use super::mesh_traffic_permission::RuleMatch;
use crate::target_ref::ProxyType;
use crate::validate::MUST_NOT_BE_DEFINED;
use crate::{TargetKind, TargetRef, Violations};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A configuration for whom a reference names: an item of `to` (a destination) or of `from` (callers).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(
    deny_unknown_fields,
    rename_all = "camelCase",
    default,
    bound(deserialize = "C: Deserialize<'de> + Default")
)]
#[schemars(rename = "Targeted", bound = "C: JsonSchema + Default + Serialize")]
pub struct Targeted<C> {
    pub target_ref: TargetRef,
    pub default: C,
}

/// A configuration for callers by SPIFFE ID and server name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(
    deny_unknown_fields,
    rename_all = "camelCase",
    default,
    bound(deserialize = "C: Deserialize<'de> + Default")
)]
#[schemars(rename = "Rule", bound = "C: JsonSchema + Default + Serialize")]
pub struct Rule<C> {
    /// One of them must match. Unset: every caller.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub matches: Option<Vec<RuleMatch>>,
    pub default: C,
}

/// A configuration for every caller.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(
    deny_unknown_fields,
    rename_all = "camelCase",
    default,
    bound(deserialize = "C: Deserialize<'de> + Default")
)]
#[schemars(rename = "Rule", bound = "C: JsonSchema + Default + Serialize")]
pub struct PlainRule<C> {
    pub default: C,
}

/// What a policy that acts on both directions may select; those with routes add MeshHTTPRoute.
pub(crate) const TOP: [TargetKind; 6] = [
    TargetKind::Mesh,
    TargetKind::MeshSubset,
    TargetKind::MeshGateway,
    TargetKind::MeshService,
    TargetKind::MeshServiceSubset,
    TargetKind::Dataplane,
];

pub(crate) const TOP_OR_ROUTE: [TargetKind; 7] = [
    TargetKind::Mesh,
    TargetKind::MeshSubset,
    TargetKind::MeshGateway,
    TargetKind::MeshService,
    TargetKind::MeshServiceSubset,
    TargetKind::MeshHttpRoute,
    TargetKind::Dataplane,
];

/// What `to` may name.
pub(crate) const TO: [TargetKind; 4] = [
    TargetKind::Mesh,
    TargetKind::MeshService,
    TargetKind::MeshExternalService,
    TargetKind::MeshMultiZoneService,
];

pub(crate) const TO_OR_ROUTE: [TargetKind; 5] = [
    TargetKind::Mesh,
    TargetKind::MeshService,
    TargetKind::MeshExternalService,
    TargetKind::MeshMultiZoneService,
    TargetKind::MeshHttpRoute,
];

pub(crate) const ONLY_MESH: [TargetKind; 1] = [TargetKind::Mesh];

/// Of a field that `what` (a top-level reference, matches) leaves no place for.
pub(crate) const NOT_BY_CALLER: &str = "can't be specified when matches contain spiffeID because this field cannot be conditioned on source identity";

/// The three lists of a policy; which of them are there.
#[derive(Clone, Copy)]
pub(crate) struct Lists {
    pub(crate) from: bool,
    pub(crate) to: bool,
    pub(crate) rules: bool,
}

impl Lists {
    pub(crate) fn new<F, T, R>(from: Option<&Vec<F>>, to: Option<&Vec<T>>, rules: Option<&Vec<R>>) -> Self {
        let given = |length: Option<usize>| length.is_some_and(|length| length > 0);
        Self {
            from: given(from.map(Vec::len)),
            to: given(to.map(Vec::len)),
            rules: given(rules.map(Vec::len)),
        }
    }

    pub(crate) fn inbound(self) -> bool {
        self.from || self.rules
    }

    pub(crate) fn check(self, out: &mut Violations) {
        if !self.from && !self.to && !self.rules {
            out.push("spec", "at least one of 'from', 'to' or 'rules' has to be defined");
        }
        self.check_exclusive(out);
    }

    /// Of kinds that Kuma takes with no list at all.
    pub(crate) fn check_exclusive(self, out: &mut Violations) {
        if self.rules && (self.from || self.to) {
            out.push("spec", "fields 'to' and 'from' must be empty when 'rules' is defined");
        }
    }
}

/// The kind of what the policy selects; Mesh where nothing says so.
pub(crate) fn top_kind(top: Option<&TargetRef>) -> TargetKind {
    top.map_or(TargetKind::Mesh, |top| top.kind.clone())
}

/// Whether builtin gateways are among what the policy selects: Kuma then has it speak of what goes out (`to`).
pub(crate) fn includes_gateways(top: Option<&TargetRef>) -> bool {
    match top_kind(top) {
        TargetKind::MeshGateway | TargetKind::MeshHttpRoute => true,
        TargetKind::Mesh | TargetKind::MeshSubset => {
            top.is_none_or(|top| top.proxy_types.is_empty() || top.proxy_types.contains(&ProxyType::Gateway))
        }
        _ => false,
    }
}

/// Why a `to` that only gateways have has no effect.
pub(crate) const NO_GATEWAYS: &str = "there are no builtin gateways";

/// `from`, which only sidecars have, and `to`, which only gateways have, of a policy that selects what it selects.
pub(crate) fn check_sides<C>(
    top: Option<&TargetRef>,
    from: (Option<&Vec<Targeted<C>>>, &[TargetKind]),
    to: Option<&Vec<Targeted<C>>>,
    out: &mut Violations,
    check: impl Fn(&C, &str, &mut Violations),
) {
    let with_gateways = includes_gateways(top);
    if with_gateways && from.0.is_some_and(|from| !from.is_empty()) {
        let instead = "select only proxyType Sidecar or select only gateways and use spec.to";
        out.push("spec.from", format!("{MUST_NOT_BE_DEFINED} when the scope includes a Gateway, {instead}"));
    } else {
        check_targets("from", from.0, from.1, out, &check);
    }
    if !with_gateways && to.is_some_and(|to| !to.is_empty()) {
        out.push("spec.to", MUST_NOT_BE_DEFINED);
    } else {
        check_targets("to", to, &ONLY_MESH, out, &check);
    }
}

pub(crate) fn check_top(top: Option<&TargetRef>, kinds: &[TargetKind], inbound: bool, out: &mut Violations) {
    if let Some(target) = top {
        target.check("spec.targetRef", kinds, inbound, out);
    }
}

/// Each item's reference and its configuration, which `check` looks at with its path.
pub(crate) fn check_targets<C>(
    list: &str,
    items: Option<&Vec<Targeted<C>>>,
    kinds: &[TargetKind],
    out: &mut Violations,
    mut check: impl FnMut(&C, &str, &mut Violations),
) {
    for (i, item) in items.into_iter().flatten().enumerate() {
        let path = format!("spec.{list}[{i}]");
        item.target_ref.check(&format!("{path}.targetRef"), kinds, false, out);
        check(&item.default, &format!("{path}.default"), out);
    }
}

/// Each rule's matches and its configuration, which `check` looks at with its path.
pub(crate) fn check_rules<C>(
    rules: Option<&Vec<Rule<C>>>,
    out: &mut Violations,
    check: impl Fn(&Rule<C>, &str, &mut Violations),
) {
    for (i, rule) in rules.into_iter().flatten().enumerate() {
        let path = format!("spec.rules[{i}]");
        for (j, matched) in rule.matches.iter().flatten().enumerate() {
            let path = format!("{path}.matches[{j}]");
            if matched.spiffe_id.is_none() && matched.sni.is_none() {
                out.push(path, "at least one of 'spiffeID' or 'sni' has to be defined");
            } else {
                matched.check(&path, out);
            }
        }
        check(rule, &format!("{path}.default"), out);
    }
}

impl<C> Rule<C> {
    /// Whether the rule is for some callers only.
    pub(crate) fn is_for_some(&self) -> bool {
        self.matches.as_ref().is_some_and(|matches| !matches.is_empty())
    }

    /// Whether the rule asks who the caller is: what acts before that is known can't depend on it.
    pub(crate) fn asks_for_caller(&self) -> bool {
        self.matches.iter().flatten().any(|matched| matched.spiffe_id.is_some())
    }
}

/// Destinations that a policy on calls names and that no proxy executes it for.
pub(super) fn warn_of_destinations<T>(to: Option<&Vec<Targeted<T>>>, out: &mut Vec<String>) {
    for (i, item) in to.into_iter().flatten().enumerate() {
        warn_of_destination(&format!("spec.to[{i}]"), &item.target_ref.kind, out);
    }
}

/// Whether no proxy does what an item of `to` says, which is then said.
pub(super) fn warn_of_destination(path: &str, kind: &TargetKind, out: &mut Vec<String>) -> bool {
    let why = match kind {
        TargetKind::MeshExternalService => "it holds inside the mesh, and this destination is outside of it",
        _ => return false,
    };
    out.push(format!("{path} has no effect: {why}"));
    true
}

/// Fields of items whose destination is outside of the mesh, where the proxy that calls it makes no such choice.
pub(super) fn warn_of_outside<T>(
    to: Option<&Vec<Targeted<T>>>,
    field: &str,
    is_set: impl Fn(&T) -> bool,
    out: &mut Vec<String>,
) {
    for (i, item) in to.into_iter().flatten().enumerate() {
        if item.target_ref.kind == TargetKind::MeshExternalService && is_set(&item.default) {
            out.push(format!(
                "spec.to[{i}].default.{field} has no effect: endpoints of a destination outside of the mesh are tried in \
                 the order that it gives them"
            ));
        }
    }
}

/// What a reference selects less than it seems to.
pub(crate) fn warn_of_top(top: Option<&TargetRef>, out: &mut Vec<String>) {
    out.extend(top.and_then(TargetRef::name_warning));
    if top_kind(top) == TargetKind::MeshHttpRoute {
        out.push(
            "spec.targetRef selects nothing: routes belong to builtin gateways there, and there are none"
                .into(),
        );
    }
}

/// What of an item for a MeshHTTPRoute has no effect: what is about connections, which routes share.
pub(super) fn warn_of_connections(i: usize, fields: &[(&str, bool)], out: &mut Vec<String>) {
    let set = fields.iter().filter(|(_, set)| *set);
    out.extend(set.map(|(field, _)| {
        format!("spec.to[{i}].default.{field} has no effect: it is about connections, which routes share")
    }));
}
