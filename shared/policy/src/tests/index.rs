//! The index finds what comparing with every policy finds, and looks at few.

use super::*;
use crate::{Policy, PolicyIndex, Routes, Section, sort};
use meridian_core::kinds::mesh_timeout::MeshTimeout;
use meridian_core::{Key, Kind};
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

type Labels = BTreeMap<String, String>;

fn policy(kind: &str, zone: &str, name: &str, labels: Labels, target: &Value) -> Arc<Policy> {
    let key = Key::new(Kind::named(kind).unwrap(), "default", zone, name);
    let spec = json!({ "targetRef": target, "to": [{ "targetRef": { "kind": "Mesh" }, "default": {} }] });
    Arc::new(Policy::new(Arc::new(Resource { key, labels, spec, status: None })).unwrap())
}

fn dataplane(zone: &str, name: &str, labels: Labels, spec: Value) -> Parsed<Dataplane> {
    let key = Key::new(Dataplane::KIND, "default", zone, name);
    Parsed::new(Resource { key, labels, spec, status: None }).unwrap()
}

/// Tags or labels out of a few, so that they often meet.
fn words() -> impl Strategy<Value = Labels> {
    let key =
        select(vec!["a", "b", "kuma.io/service", "kuma.io/zone", "kuma.io/display-name", "kuma.io/mesh"]);
    let value = select(vec!["x", "y", "east", "default"]);
    proptest::collection::btree_map(key.prop_map(str::to_owned), value.prop_map(str::to_owned), 0..3)
}

fn target() -> impl Strategy<Value = Value> {
    let kind = select(vec![
        "Mesh",
        "MeshSubset",
        "MeshService",
        "MeshServiceSubset",
        "Dataplane",
        "MeshHTTPRoute",
        "MeshExternalService",
        "Unknown",
    ]);
    let name = proptest::option::of(select(vec!["x", "y", "route"]));
    let section = proptest::option::weighted(0.2, select(vec!["x", "80"]));
    let types = select(vec![json!([]), json!([]), json!(["Sidecar"]), json!(["Gateway"])]);
    (kind, name, words(), words(), section, types).prop_map(|(kind, name, tags, labels, section, types)| {
        let mut target = json!({ "kind": kind, "tags": tags, "labels": labels, "proxyTypes": types });
        let fields = target.as_object_mut().unwrap();
        fields.extend(name.map(|name| ("name".to_owned(), json!(name))));
        fields.extend(section.map(|section| ("sectionName".to_owned(), json!(section))));
        target
    })
}

fn written() -> impl Strategy<Value = Labels> {
    let role = select(vec!["", "producer", "consumer", "workload-owner"]);
    let shadow = proptest::bool::weighted(0.1);
    (role, shadow, words()).prop_map(|(role, shadow, mut labels)| {
        if !role.is_empty() {
            labels.insert("kuma.io/policy-role".into(), role.into());
        }
        if shadow {
            labels.insert("kuma.io/effect".into(), "shadow".into());
        }
        labels
    })
}

fn policies() -> impl Strategy<Value = Vec<Arc<Policy>>> {
    let kind = select(vec!["MeshTimeout", "MeshTimeout", "MeshRetry", "MeshHTTPRoute"]);
    let one = (kind, select(vec!["", "east", "west"]), written(), target());
    proptest::collection::vec(one, 0..20).prop_map(|all| {
        let made = |(i, (kind, zone, labels, target)): (usize, (&str, &str, Labels, Value))| {
            let name = if kind == "MeshHTTPRoute" { "route".to_owned() } else { format!("p{i}") };
            policy(kind, zone, &name, labels, &target)
        };
        all.into_iter().enumerate().map(made).collect()
    })
}

fn dataplanes() -> impl Strategy<Value = Parsed<Dataplane>> {
    let inbounds = proptest::collection::vec((words(), select(vec!["", "x"])), 0..3);
    let gateway = proptest::option::weighted(0.2, words());
    (select(vec!["east", "west"]), select(vec!["x", "z"]), words(), inbounds, gateway).prop_map(
        |(zone, name, labels, inbounds, gateway)| {
            let inbound = |(i, (tags, name)): (usize, (Labels, &str))| json!({ "port": 80 + i, "tags": tags, "name": name });
            let inbounds: Vec<Value> = inbounds.into_iter().enumerate().map(inbound).collect();
            let mut networking = json!({ "address": "192.0.2.1", "inbound": inbounds });
            if let Some(tags) = gateway {
                networking["gateway"] = json!({ "tags": tags });
            }
            dataplane(zone, name, labels, json!({ "networking": networking }))
        },
    )
}

fn keys(policies: &[Arc<Policy>]) -> Vec<&Key> {
    policies.iter().map(|policy| policy.key()).collect()
}

proptest! {
    #[test]
    fn it_finds_what_comparing_with_all_finds(
        policies in policies(),
        gone in proptest::collection::vec(proptest::bool::ANY, 20),
        of in dataplanes(),
    ) {
        let mut index = PolicyIndex::new(&policies);
        let left: BTreeMap<&Key, &Arc<Policy>> = policies.iter().map(|policy| (policy.key(), policy)).collect();
        let removed: Vec<&Key> =
            left.keys().zip(&gone).filter(|(_, gone)| **gone).map(|(key, _)| *key).collect();
        removed.iter().for_each(|key| index.remove(key));
        let left: Vec<Arc<Policy>> =
            left.into_iter().filter(|(key, _)| !removed.contains(key)).map(|(_, it)| Arc::clone(it)).collect();
        prop_assert_eq!(index.values().map(|it| it.key()).collect::<Vec<_>>(), keys(&left));
        let routes = Routes::new(&left);
        let subject = subject(&of);
        for kind in ["MeshTimeout", "MeshRetry", "MeshHTTPRoute"].map(|kind| Kind::named(kind).unwrap()) {
            for section in subject.sections().chain([Section::Whole]) {
                let of_kind = left.iter().filter(|it| it.key().kind == kind);
                let linear = sort(of_kind.filter(|it| it.selects(&routes, &subject, section)).cloned().collect());
                let found = index.selecting(kind, &routes, &subject, section);
                prop_assert_eq!(keys(&found), keys(&linear), "{:?}", section);
            }
            let mut candidates: Vec<&Key> = index.candidates(kind, &subject).map(|it| it.key()).collect();
            let count = candidates.len();
            candidates.sort();
            candidates.dedup();
            prop_assert_eq!(candidates.len(), count, "each once");
        }
    }

    #[test]
    fn what_is_taken_out_leaves_nothing_behind(policies in policies()) {
        let mut index = PolicyIndex::new(&policies);
        policies.iter().for_each(|policy| index.remove(policy.key()));
        prop_assert!(index.is_empty());
        prop_assert_eq!(format!("{:?}", index).matches("ByKey").count(), 0, "{:?}", index);
    }
}

/// 1,000 policies, one a service and one for all; 1,000 Dataplanes, one a service.
#[test]
fn a_dataplane_is_compared_with_its_own_policies_only() {
    const COUNT: usize = 1_000;
    let of_service = |i: usize| json!({ "kind": "MeshService", "name": format!("s{i}") });
    let of_label = |i: usize| json!({ "kind": "Dataplane", "labels": { "kuma.io/zone": "east", "app": format!("s{i}") } });
    let of_tags = |i: usize| json!({ "kind": "MeshSubset", "tags": { "kuma.io/protocol": "http", "app": format!("s{i}") } });
    let mut all = vec![policy("MeshTimeout", "", "all", Labels::new(), &json!({ "kind": "Mesh" }))];
    all.extend((1..COUNT).map(|i| {
        let target = [of_service(i), of_label(i), of_tags(i)][i % 3].clone();
        policy("MeshTimeout", "", &format!("p{i}"), Labels::new(), &target)
    }));
    let index = PolicyIndex::new(&all);
    let mut checks = 0;
    for i in 1..COUNT {
        let service = format!("s{i}");
        let tags = json!({ "kuma.io/service": service, "kuma.io/protocol": "http", "app": service });
        let inbounds = json!([{ "port": 80, "tags": tags }, { "port": 81, "tags": tags }]);
        let labels = Labels::from([("app".to_owned(), service)]);
        let spec = json!({ "networking": { "address": "192.0.2.1", "inbound": inbounds } });
        let web = dataplane("east", "web", labels, spec);
        checks += index.candidates(MeshTimeout::KIND, &subject(&web)).count();
        let found = index.selecting(MeshTimeout::KIND, &Routes::default(), &subject(&web), Section::Whole);
        let names: Vec<&str> = found.iter().map(|it| it.key().name.as_str()).collect();
        assert_eq!(names, ["all".to_owned(), format!("p{i}")]);
    }
    assert_eq!(checks, 2 * (COUNT - 1), "the policy for all, and the Dataplane's own");
}
