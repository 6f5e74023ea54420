use super::*;
use crate::selects;
use meridian_core::TargetRef;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn target(yaml: &str) -> TargetRef {
    serde_json::from_value(document::parse_text(yaml).unwrap()).unwrap()
}

fn policy() -> Resource {
    resource("{type: MeshPassthrough, mesh: default, name: p, spec: {default: {}}}")
}

/// (target, the whole Dataplane, inbound 8080, inbound 8081)
const TABLE: [(&str, bool, bool, bool); 19] = [
    ("{kind: Mesh}", true, true, true),
    ("{kind: Mesh, proxyTypes: [Sidecar]}", true, true, true),
    ("{kind: Mesh, proxyTypes: [Gateway]}", false, false, false),
    ("{kind: MeshSubset}", true, true, true),
    ("{kind: MeshSubset, tags: {version: v1}}", true, true, false),
    ("{kind: MeshSubset, tags: {version: v3}}", false, false, false),
    ("{kind: MeshService, name: web}", true, true, false),
    ("{kind: MeshService, name: other}", false, false, false),
    ("{kind: MeshServiceSubset, name: web, tags: {version: v1}}", true, true, false),
    ("{kind: MeshServiceSubset, name: web, tags: {version: v2}}", false, false, false),
    ("{kind: Dataplane}", true, true, true),
    ("{kind: Dataplane, labels: {app: web}}", true, true, true),
    ("{kind: Dataplane, labels: {app: web, tier: back}}", false, false, false),
    ("{kind: Dataplane, labels: {kuma.io/display-name: web-1, kuma.io/zone: east}}", true, true, true),
    ("{kind: Dataplane, labels: {kuma.io/zone: west}}", false, false, false),
    ("{kind: Dataplane, sectionName: http}", true, true, false),
    ("{kind: Dataplane, sectionName: '8081'}", true, false, true),
    // A port's number is its name only where it has no other.
    ("{kind: Dataplane, sectionName: '8080'}", false, false, false),
    ("{kind: MeshExternalService, name: web}", false, false, false),
];

#[test]
fn references_select_by_kind() {
    let web = web();
    for (text, whole, first, second) in TABLE {
        let (policy, target) = (policy(), target(text));
        let asked = [None, inbounds(&web).first(), inbounds(&web).get(1)];
        let found = asked.map(|inbound| selects(&policy, Some(&target), &subject(&web), inbound));
        assert_eq!(found, [whole, first, second], "{text}");
    }
    assert!(selects(&policy(), None, &subject(&web), None), "no reference is the whole mesh");
}

#[test]
fn another_meshs_policies_select_nothing() {
    let other = resource("{type: MeshPassthrough, mesh: other, name: p, spec: {default: {}}}");
    assert!(!selects(&other, None, &subject(&web()), None));
}

#[test]
fn a_zones_policies_hold_in_that_zone() {
    let mut policy = policy();
    policy.key.zone = "east".into();
    assert!(selects(&policy, None, &subject(&web()), None));
    policy.key.zone = "west".into();
    assert!(!selects(&policy, None, &subject(&web()), None));
}

#[test]
fn a_name_selects_only_where_the_policy_was_written() {
    let named = target("{kind: Dataplane, name: web-1}");
    let mut policy = policy();
    assert!(!selects(&policy, Some(&named), &subject(&web()), None), "web-1 of which zone?");
    policy.key.zone = "east".into();
    assert!(selects(&policy, Some(&named), &subject(&web()), None));
    assert!(!selects(&policy, Some(&target("{kind: Dataplane, name: web-2}")), &subject(&web()), None));
    let elsewhere = target("{kind: Dataplane, name: web-1, namespace: shop}");
    assert!(!selects(&policy, Some(&elsewhere), &subject(&web()), None));
}

#[test]
fn a_workload_owners_policy_stays_in_its_namespace() {
    let mut policy = policy();
    policy.labels.insert("kuma.io/policy-role".into(), "workload-owner".into());
    policy.labels.insert("k8s.kuma.io/namespace".into(), "shop".into());
    let mut web = web();
    assert!(!selects(&policy, None, &subject(&web), None));
    web.resource.labels.insert("k8s.kuma.io/namespace".into(), "shop".into());
    assert!(selects(&policy, None, &subject(&web), None));
}

#[test]
fn a_shadow_policy_is_not_executed() {
    let mut policy = policy();
    policy.labels.insert("kuma.io/effect".into(), "shadow".into());
    assert!(!selects(&policy, None, &subject(&web()), None));
}

#[test]
fn gateways_are_selected_by_their_tags() {
    let gateway: Parsed<Dataplane> = parsed(
        "
type: Dataplane
mesh: default
name: kong
networking:
  address: 192.0.2.9
  gateway: {tags: {kuma.io/service: kong}}
",
    );
    let select = |text: &str| selects(&policy(), Some(&target(text)), &subject(&gateway), None);
    assert!(select("{kind: MeshService, name: kong}"));
    assert!(select("{kind: Mesh, proxyTypes: [Gateway]}"));
    assert!(!select("{kind: Mesh, proxyTypes: [Sidecar]}"));
}

fn tags() -> impl Strategy<Value = BTreeMap<String, String>> {
    proptest::collection::btree_map("[a-d]", "[xy]", 0..4)
}

proptest! {
    /// More tags on an inbound never take away a policy that selected it with fewer.
    #[test]
    fn a_superset_of_tags_never_unmatches(wanted in tags(), has in tags(), more in tags(), service in proptest::bool::ANY) {
        let mut web = web();
        let kind = if service { "MeshServiceSubset" } else { "MeshSubset" };
        let mut target = target(&format!("{{kind: {kind}, name: web}}"));
        target.tags = Some(wanted);
        let networking = web.spec.networking.as_mut().unwrap();
        networking.inbound.truncate(1);
        networking.inbound[0].tags.extend(has.clone());
        let before = selects(&policy(), Some(&target), &subject(&web), inbounds(&web).first());
        let tags = &mut web.spec.networking.as_mut().unwrap().inbound[0].tags;
        for (name, value) in more {
            tags.entry(name).or_insert(value);
        }
        let after = selects(&policy(), Some(&target), &subject(&web), inbounds(&web).first());
        prop_assert!(!before || after);
    }
}
