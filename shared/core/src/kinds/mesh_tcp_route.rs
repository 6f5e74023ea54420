use super::backend_ref::{self, BackendRef, NO_NAMESPACES};
use crate::registry::Standing::{Executed, Warned};
use crate::validate::MUST_NOT_BE_EMPTY;
use crate::{Context, Flow, Kind, KindInfo, Spec, TargetKind, TargetRef, TargetRefs, Violations};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How connections to a service are split among backends.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct MeshTcpRoute {
    /// The proxies that call. Unset: Mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Vec<To>>,
}

/// One service that is called.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct To {
    pub target_ref: TargetRef,
    /// At most one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Rule {
    pub default: RuleConf,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct RuleConf {
    /// Each connection goes to one of these, by their weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend_refs: Option<Vec<BackendRef>>,
}

pub(crate) const INFO: KindInfo = KindInfo {
    plural: "meshtcproutes",
    short: "mtcpr",
    flow: Flow::BOTH,
    targets: Some(TargetRefs { from: false, to: true, rules: false }),
    doc: "How connections to a service are split among backends.",
    fields: &[
        ("targetRef", Executed),
        ("to", Executed),
        ("to[].rules[].default.backendRefs[].namespace", Warned(NO_NAMESPACES)),
    ],
    ..KindInfo::new::<MeshTcpRoute>()
};

const TOP: [TargetKind; 6] = [
    TargetKind::Mesh,
    TargetKind::MeshSubset,
    TargetKind::MeshGateway,
    TargetKind::MeshService,
    TargetKind::MeshServiceSubset,
    TargetKind::Dataplane,
];
/// Services; behind a gateway there is only the mesh.
const TO: [TargetKind; 3] =
    [TargetKind::MeshService, TargetKind::MeshExternalService, TargetKind::MeshMultiZoneService];
const TO_OF_GATEWAY: [TargetKind; 1] = [TargetKind::Mesh];

impl MeshTcpRoute {
    pub const KIND: Kind = Kind::new("MeshTCPRoute");
}

impl Spec for MeshTcpRoute {
    const KIND: Kind = MeshTcpRoute::KIND;

    fn complete(&mut self, _context: &Context<'_>, _warnings: &mut Vec<String>) {
        let rules = self.to.iter_mut().flatten().flat_map(|to| &mut to.rules);
        rules.flat_map(|rule| rule.default.backend_refs.iter_mut().flatten()).for_each(BackendRef::complete);
    }

    fn validate(&self, _context: &Context<'_>, out: &mut Violations) {
        let gateway = self.target_ref.as_ref().is_some_and(|target| target.kind == TargetKind::MeshGateway);
        if let Some(target) = &self.target_ref {
            target.check("spec.targetRef", &TOP, false, out);
        }
        let to = self.to.as_deref().unwrap_or_default();
        if to.is_empty() {
            out.push("spec.to", MUST_NOT_BE_EMPTY);
        }
        for (i, to) in to.iter().enumerate() {
            let kinds: &[TargetKind] = if gateway { &TO_OF_GATEWAY } else { &TO };
            to.check(&format!("spec.to[{i}]"), kinds, out);
        }
    }

    fn warnings(&self, _context: &Context<'_>, out: &mut Vec<String>) {
        out.extend(self.target_ref.as_ref().and_then(TargetRef::name_warning));
    }
}

impl To {
    fn check(&self, path: &str, kinds: &[TargetKind], out: &mut Violations) {
        self.target_ref.check(&format!("{path}.targetRef"), kinds, false, out);
        if self.rules.len() > 1 {
            // A connection says nothing by which a second rule could be chosen.
            out.push(format!("{path}.rules"), "must have zero or one rule defined");
        }
        for (i, rule) in self.rules.iter().enumerate() {
            let path = format!("{path}.rules[{i}].default.backendRefs");
            match rule.default.backend_refs.as_deref() {
                None | Some([]) => out.push(path, MUST_NOT_BE_EMPTY),
                Some(backends) => backend_ref::check_all(&path, backends, out),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::kinds::tests::{right, warnings, wrong};

    fn of(spec: &str) -> String {
        format!("{{type: MeshTCPRoute, name: split, spec: {{{spec}}}}}")
    }

    #[test]
    fn a_split_by_weight() {
        let split = of(
            "targetRef: {kind: Dataplane, labels: {app: shop}}, to: [{targetRef: {kind: MeshService, name: db}, rules: [{default: {backendRefs: [{kind: MeshService, name: db, port: 5432, weight: 9}, {kind: MeshExternalService, name: old-db, weight: 0}]}}]}]",
        );
        right(&split);
        assert_eq!(warnings(&split), [""; 0]);
    }

    #[test]
    fn a_namespace_is_warned_of() {
        let backends = "[{kind: MeshService, name: a, namespace: b}]";
        let split = of(&format!(
            "to: [{{targetRef: {{kind: MeshService, name: a}}, rules: [{{default: {{backendRefs: {backends}}}}}]}}]"
        ));
        right(&split);
        let reason = "has no effect: outside of Kubernetes there are no namespaces";
        let at = "spec.to[0].rules[0].default.backendRefs[0].namespace";
        assert_eq!(warnings(&split), [format!("{at} {reason}")]);
    }

    #[test]
    fn all_that_is_wrong_is_said() {
        wrong(&of("targetRef: {kind: Mesh}"), &["spec.to: must not be empty"]);
        wrong(
            &of(
                "to: [{targetRef: {kind: Mesh}, rules: [{default: {}}, {default: {backendRefs: [{kind: Mesh}, {kind: MeshMultiZoneService}, {kind: MeshService, name: a, port: 65536}]}}]}]",
            ),
            &[
                "spec.to[0].rules: must have zero or one rule defined",
                "spec.to[0].rules[0].default.backendRefs: must not be empty",
                "spec.to[0].rules[1].default.backendRefs[0].kind: value 'Mesh' is not supported",
                "spec.to[0].rules[1].default.backendRefs[1].name: must be set when kind is MeshMultiZoneService",
                "spec.to[0].rules[1].default.backendRefs[1].port: must be defined",
                "spec.to[0].rules[1].default.backendRefs[2].port: port must be a valid (1-65535)",
                "spec.to[0].targetRef.kind: value 'Mesh' is not supported",
            ],
        );
        wrong(
            &of(
                "targetRef: {kind: MeshGateway, name: edge}, to: [{targetRef: {kind: MeshService, name: a}}]",
            ),
            &["spec.to[0].targetRef.kind: value 'MeshService' is not supported"],
        );
    }
}
