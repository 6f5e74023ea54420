//! What holds whatever the policies say: of their order, of selection, of merging.

use super::*;
use crate::{
    Destinations, Policy, ResourceRules, Routes, from_conf, from_rules, inbound_confs, inbound_permission,
    inbound_rules, merge, proxy_conf, selects, sort, to_rules,
};
use meridian_core::kinds::mesh_traffic_permission::MeshTrafficPermission;
use meridian_core::{Key, Kind, TargetRef};
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A configuration of a made-up kind: the same field has the same sort of value everywhere, as a schema demands.
fn conf() -> impl Strategy<Value = Value> {
    let number = || proptest::option::of(0u8..4);
    let list = || proptest::option::of(proptest::collection::vec(0u8..3, 0..3));
    (number(), number(), number(), list(), list(), proptest::bool::ANY).prop_map(
        |(a, b, c, list, more, nested)| {
            let mut conf = serde_json::Map::new();
            let mut inner = serde_json::Map::new();
            conf.extend(a.map(|a| ("a".to_owned(), json!(a))));
            conf.extend(list.map(|list| ("list".to_owned(), json!(list))));
            conf.extend(more.map(|more| ("appendMatch".to_owned(), json!(more))));
            inner.extend(b.map(|b| ("b".to_owned(), json!(b))));
            inner.extend(c.map(|c| ("c".to_owned(), json!(c))));
            if nested {
                conf.insert("http".to_owned(), Value::Object(inner));
            }
            Value::Object(conf)
        },
    )
}

fn without_growing_lists(mut conf: Value) -> Value {
    conf.as_object_mut().unwrap().remove("appendMatch");
    conf
}

/// A route's configuration: rules by their matches.
fn route() -> impl Strategy<Value = Value> {
    let rule = (select(vec!["/a", "/b", "/c"]), conf().prop_map(without_growing_lists));
    proptest::collection::vec(rule, 1..4).prop_map(|rules| {
        let mut seen = Vec::new();
        let mut all = Vec::new();
        for (path, conf) in rules {
            if !seen.contains(&path) {
                seen.push(path);
                all.push(
                    json!({ "matches": [{ "path": { "type": "Exact", "value": path } }], "default": conf }),
                );
            }
        }
        json!({ "rules": all })
    })
}

fn merged(confs: &[&Value]) -> Value {
    merge(confs).into_iter().next().unwrap()
}

proptest! {
    #[test]
    fn merging_is_associative(a in conf(), b in conf(), c in conf()) {
        let left = merged(&[&merged(&[&a, &b]), &c]);
        let right = merged(&[&a, &merged(&[&b, &c])]);
        prop_assert_eq!(&left, &right);
        prop_assert_eq!(&left, &merged(&[&a, &b, &c]));
    }

    #[test]
    fn merging_routes_is_associative(a in route(), b in route(), c in route()) {
        let left = merged(&[&merged(&[&a, &b]), &c]);
        let right = merged(&[&a, &merged(&[&b, &c])]);
        prop_assert_eq!(&left, &right);
        prop_assert_eq!(&left, &merged(&[&a, &b, &c]));
    }

    #[test]
    fn saying_the_same_twice_says_it_once(a in conf().prop_map(without_growing_lists), of in route()) {
        prop_assert_eq!(merged(&[&a, &a]), merged(&[&a]));
        prop_assert_eq!(merged(&[&of, &of]), merged(&[&of]));
    }

    #[test]
    fn what_says_nothing_changes_nothing(a in conf()) {
        let nothing = json!({});
        prop_assert_eq!(merged(&[&nothing, &a]), merged(&[&a]));
        prop_assert_eq!(merged(&[&a, &nothing]), merged(&[&a]));
    }

    #[test]
    fn the_strongest_has_the_last_word(a in conf(), b in conf()) {
        let both = merged(&[&a, &b]);
        for path in ["/a", "/list", "/http/b", "/http/c"] {
            let expected = b.pointer(path).or_else(|| a.pointer(path));
            prop_assert_eq!(both.pointer(path), expected, "{}", path);
        }
        let growing = |conf: &Value| conf["appendMatch"].as_array().map_or(0, Vec::len);
        prop_assert_eq!(growing(&both), growing(&a) + growing(&b));
    }
}

fn policy(kind: &str, i: usize, zone: &str, role: &str, spec: Value) -> Arc<Policy> {
    let key = Key::new(Kind::named(kind).unwrap(), "default", zone, format!("p{i}"));
    let labels = BTreeMap::from([("kuma.io/policy-role".to_owned(), role.to_owned())]);
    Arc::new(Policy::new(Arc::new(Resource { key, labels, spec, status: None })).unwrap())
}

/// One policy with every list: where it selects, whom it calls, who calls, what it says.
fn any_policies(kind: &'static str) -> impl Strategy<Value = Vec<Arc<Policy>>> {
    let top = select(vec![
        json!({ "kind": "Mesh" }),
        json!({ "kind": "MeshSubset", "tags": { "version": "v1" } }),
        json!({ "kind": "Dataplane", "labels": { "app": "web" } }),
        json!({ "kind": "MeshService", "name": "web" }),
    ]);
    let to = select(vec![
        json!({ "kind": "Mesh" }),
        json!({ "kind": "MeshService", "name": "api" }),
        json!({ "kind": "MeshService", "labels": { "kuma.io/display-name": "api" } }),
        json!({ "kind": "MeshService", "labels": { "kuma.io/display-name": "api" }, "sectionName": "http" }),
    ]);
    let from = select(vec![
        json!({ "kind": "Mesh" }),
        json!({ "kind": "MeshSubset", "tags": { "env": "prod" } }),
        json!({ "kind": "MeshService", "name": "api" }),
    ]);
    let id = |type_: &str, value: &str| json!([{ "spiffeID": { "type": type_, "value": value } }]);
    let matches = select(vec![
        Value::Null,
        id("Exact", "spiffe://default/api"),
        id("Prefix", "spiffe://default"),
        id("Prefix", "spiffe://default/api"),
    ]);
    let place = (select(vec!["", "east"]), select(vec!["", "producer", "consumer"]));
    let one = (place, top, (to, conf()), (from, conf()), (matches, conf()));
    proptest::collection::vec(one, 0..6).prop_map(move |all| {
        let made = |(i, ((zone, role), top, to, from, rule)): (usize, ((&str, &str), Value, _, _, _))| {
            let item = |(target, conf): (Value, Value)| json!([{ "targetRef": target, "default": conf }]);
            let (matches, conf): (Value, Value) = rule;
            let spec = json!({
                "targetRef": top, "to": item(to), "from": item(from),
                "rules": [{ "matches": matches, "default": conf }], "default": conf,
            });
            policy(kind, i, zone, role, spec)
        };
        all.into_iter().enumerate().map(made).collect()
    })
}

fn destinations() -> Destinations {
    let service = |name: &str| {
        let key = Key::new(Kind::named("MeshService").unwrap(), "default", "east", name);
        let labels = BTreeMap::from([("kuma.io/display-name".to_owned(), name.to_owned())]);
        let spec = json!({ "ports": [{ "port": 80, "name": "http" }, { "port": 81 }] });
        Arc::new(Resource { key, labels, spec, status: None })
    };
    let key = Key::global(Kind::named("Mesh").unwrap(), "", "default");
    let mesh = Arc::new(Resource { key, labels: BTreeMap::new(), spec: json!({}), status: None });
    Destinations::new(&[service("api"), service("db"), mesh])
}

proptest! {
    #[test]
    fn the_order_of_arrival_never_shows(
        (first, second) in any_policies("MeshTimeout")
            .prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle())),
    ) {
        let (first, second) = (sort(first), sort(second));
        let destinations = destinations();
        prop_assert_eq!(ResourceRules::new(&first, &destinations), ResourceRules::new(&second, &destinations));
        let routes = Routes::default();
        prop_assert_eq!(to_rules(&first, &routes), to_rules(&second, &routes));
        prop_assert_eq!(from_rules(&first), from_rules(&second));
        prop_assert_eq!(inbound_confs(&inbound_rules(&first)), inbound_confs(&inbound_rules(&second)));
    }

    #[test]
    fn nor_does_it_for_what_configures_a_whole_proxy(
        (first, second) in any_policies("MeshMetric")
            .prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle())),
    ) {
        prop_assert_eq!(proxy_conf(&sort(first)), proxy_conf(&sort(second)));
    }

    /// Kuma's list, of which the first rule that fits decides, says of a caller what the items that hold for it add up to.
    #[test]
    fn kumas_list_and_the_sum_agree(
        all in any_policies("MeshTimeout"),
        service in select(vec!["api", "db"]),
        env in select(vec!["prod", "dev"]),
    ) {
        let policies = sort(all);
        let tags = BTreeMap::from([("kuma.io/service".to_owned(), service.to_owned()), ("env".to_owned(), env.to_owned())]);
        let listed = from_rules(&policies).into_iter().find(|rule| rule.matches(&tags)).map(|rule| rule.merged);
        let added = from_conf(&policies, &tags);
        prop_assert_eq!(listed.map(|it| it.confs), added.map(|it| it.confs));
    }

    /// What is said of the mesh is part of what is said of a service, unless something stronger says otherwise.
    #[test]
    fn a_destination_has_all_fields_that_the_mesh_has(all in any_policies("MeshTimeout")) {
        let rules = ResourceRules::new(&all, &destinations());
        let Some(of_mesh) = rules.of_mesh("default") else { return Ok(()) };
        for rule in rules.rules.values() {
            for field in of_mesh.merged.confs[0].as_object().unwrap().keys() {
                prop_assert!(rule.merged.confs[0].get(field).is_some(), "{}", field);
            }
        }
    }

    /// More labels on a Dataplane never take away a policy that selected it with fewer.
    #[test]
    fn a_superset_of_labels_never_unmatches(
        wanted in proptest::collection::btree_map("[a-c]", "[xy]", 0..3),
        has in proptest::collection::btree_map("[a-c]", "[xy]", 0..3),
        more in proptest::collection::btree_map("[a-d]", "[xy]", 0..4),
    ) {
        let mut target = TargetRef::of(meridian_core::TargetKind::Dataplane);
        target.labels = Some(wanted);
        let policy = resource("{type: MeshPassthrough, mesh: default, name: p, spec: {default: {}}}");
        let mut web = web();
        web.resource.labels = has;
        let before = selects(&policy, Some(&target), &subject(&web), None);
        for (name, value) in more {
            web.resource.labels.entry(name).or_insert(value);
        }
        prop_assert!(!before || selects(&policy, Some(&target), &subject(&web), None));
    }

    /// One more deny lets nobody in who was out.
    #[test]
    fn a_deny_opens_nothing(
        allowed in proptest::collection::vec(select(vec!["api", "db", "web"]), 0..3),
        denied in select(vec!["api", "db", "web"]),
        asking in select(vec!["api", "db", "web"]),
    ) {
        let permission = |i: usize, list: &str, service: &str| -> Parsed<MeshTrafficPermission> {
            parsed(&format!(
                "{{type: MeshTrafficPermission, mesh: default, name: p{i}, spec: {{rules: [{{default: {{{list}: \
                 [{{spiffeID: {{type: Exact, value: 'spiffe://default/{service}'}}}}]}}}}]}}}}"
            ))
        };
        let mut policies: Vec<_> = allowed.iter().enumerate().map(|(i, it)| permission(i, "allow", it)).collect();
        let web = web();
        let decide = |policies: &[Parsed<MeshTrafficPermission>]| {
            let permission = inbound_permission("default", &subject(&web), &inbounds(&web)[0], policies);
            permission.decide(&caller(asking, &[]), None).allowed()
        };
        let before = decide(&policies);
        policies.push(permission(9, "deny", denied));
        let after = decide(&policies);
        prop_assert!(before || !after);
        prop_assert!(asking != denied || !after);
    }
}
