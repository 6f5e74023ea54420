//! What a sidecar is told, and what a policy that is tried out would change, as a reader sees it.

use super::config::Config;
use super::*;
use crate::compile::fixture::{World, global, mesh as mesh_of, sidecar, strict, world};
use crate::picture::Picture;
use crate::vip::VipTable;
use meridian_core::Resource;
use proptest::prelude::*;
use serde_json::Map;

const DIFF: ProxyConfigRequest = ProxyConfigRequest { shadow: true, diff: true };

fn tried(mut policy: Resource) -> Resource {
    policy.labels.insert("kuma.io/effect".into(), "shadow".into());
    policy
}

fn east(policies: Vec<Resource>) -> Picture {
    let (mut east, _) = world();
    policies.into_iter().for_each(|policy| east.put(policy).unwrap());
    east
}

fn of_web(east: &Picture, asked: ProxyConfigRequest) -> Value {
    answer(east, VipTable::default(), &sidecar("east", "web-1"), asked).unwrap()
}

fn sentences(east: &Picture) -> Vec<String> {
    let answer = of_web(east, DIFF);
    let changes = answer["changes"].as_array().unwrap().iter();
    changes.map(|change| change["text"].as_str().unwrap().to_owned()).collect()
}

fn timeout(name: &str, target: Value, seconds: &str) -> Resource {
    let conf = json!({ "http": { "requestTimeout": seconds } });
    global("MeshTimeout", "default", name, json!({ "to": [{ "targetRef": target, "default": conf }] }))
}

fn backend() -> Value {
    json!({ "kind": "MeshService", "labels": { "kuma.io/display-name": "backend" } })
}

#[test]
fn it_is_what_the_sidecar_holds() {
    let (east, _) = world();
    let world = World::new(east.clone());
    let shown = of_web(&east, ProxyConfigRequest::default());
    assert_eq!(shown["xds"], json!(world.shown(&sidecar("east", "web-1"))));
    assert!(shown.get("diff").is_none() && shown.get("shadowPolicies").is_none(), "{shown}");
}

#[test]
fn a_policy_that_is_tried_out_says_what_it_would_change() {
    let mesh = || json!({ "kind": "Mesh" });
    let east = east(vec![timeout("all", mesh(), "15s"), tried(timeout("try", backend(), "1s"))]);
    assert_eq!(
        sentences(&east),
        [
            "calls to backend:9000 (backend.mesh): request timeout 15s -> 1s",
            "calls to backend:9000 of zone west: request timeout 15s -> 1s",
        ]
    );
    let answer = of_web(&east, DIFF);
    assert_eq!(answer["shadowPolicies"], json!([{ "kri": "kri_mt_default___try_" }]));
    assert_eq!(answer["diff"][0]["op"], "add", "{}", answer["diff"]);
    assert_eq!(
        answer["changes"][1],
        json!({
            "path": "/Policies/default~1west~1backend~19000/streamTimeouts/requestMillis",
            "from": 15_000, "to": 1_000,
            "text": "calls to backend:9000 of zone west: request timeout 15s -> 1s",
        })
    );
    let without = of_web(&east, ProxyConfigRequest { shadow: false, diff: true });
    assert_eq!((&without["diff"], &without["changes"]), (&json!([]), &json!([])));
}

#[test]
fn what_would_hold_for_all_is_said_once_with_its_exceptions() {
    let mesh = || json!({ "kind": "Mesh" });
    let east = east(vec![timeout("own", backend(), "3s"), tried(timeout("try", mesh(), "1s"))]);
    let who = "all calls except to backend:9000 (backend.mesh), backend:9000 of zone west";
    let what = [
        "connect timeout not set -> 5s",
        "idle timeout of connections not set -> 1h",
        "idle timeout of requests not set -> 30m",
        "request timeout not set -> 1s",
    ];
    assert_eq!(sentences(&east), what.map(|what| format!("{who}: {what}")));
}

#[test]
fn permissions_and_names_outside_are_told_too() {
    let deny = json!({
        "targetRef": { "kind": "MeshService", "name": "web" },
        "from": [{ "targetRef": { "kind": "MeshService", "name": "web" }, "default": { "action": "Deny" } }],
    });
    let pass = json!({ "default": { "passthroughMode": "Matched", "appendMatch": [
        { "type": "Domain", "value": "new.example", "port": 443, "protocol": "tls" },
    ] } });
    let policies = vec![
        tried(global("MeshTrafficPermission", "default", "no", deny)),
        tried(global("MeshPassthrough", "default", "new", pass)),
    ];
    let east = east(policies);
    let said = sentences(&east);
    let inbound = "calls to this sidecar's inbound 8080 (web): permission";
    for text in [
        format!("{inbound}: also deny tags kuma.io/service web (policy no)"),
        format!("{inbound}: no longer allow tags kuma.io/service web (policy web-calls)"),
    ] {
        assert!(said.contains(&text), "{text} in {said:#?}");
    }
    let new =
        "what is outside of the mesh: MeshPassthrough default/passthrough/Domain/new.example/443/tls: new";
    assert!(said.iter().any(|it| it == new), "{said:#?}");
    assert!(said.iter().any(|it| it.starts_with("the name or address") && it.ends_with("new")), "{said:#?}");
}

#[test]
fn private_keys_are_not_shown() {
    let (mut east, _) = world();
    // Without an egress that enforces, the sidecar originates TLS itself.
    let mut mesh = strict();
    mesh["routing"]["zoneEgress"] = json!(false);
    east.put(mesh_of(mesh)).unwrap();
    let key = |name: &str| json!({ "inline": if name == "clientKey" { "U0VDUkVU" } else { "UFVCTElD" } });
    let service = json!({
        "tags": { "kuma.io/service": "vault", "kuma.io/protocol": "http" },
        "networking": { "address": "vault.example:443", "tls": {
            "enabled": true, "clientCert": key("clientCert"), "clientKey": key("clientKey"),
        } },
    });
    east.put(global("ExternalService", "default", "vault", service)).unwrap();
    let shown = of_web(&east, ProxyConfigRequest::default()).to_string();
    assert!(shown.contains("PUBLIC") && shown.contains("not shown"), "{shown}");
    assert!(!shown.contains("SECRET"), "{shown}");
}

#[test]
fn who_is_not_there_is_told_so() {
    let (east, _) = world();
    let missing = answer(&east, VipTable::default(), &sidecar("east", "web-9"), DIFF).unwrap_err();
    assert_eq!(missing.status, http::StatusCode::NOT_FOUND);
}

fn body() -> impl Strategy<Value = Value> {
    let leaf =
        prop_oneof![Just(Value::Null), (0..3u8).prop_map(Value::from), "[a/~]{0,2}".prop_map(Value::from)];
    leaf.prop_recursive(3, 24, 3, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::Array),
            proptest::collection::btree_map("[a-c/~]{1,2}", inner, 0..3)
                .prop_map(|fields| Value::Object(Map::from_iter(fields))),
        ]
    })
}

fn configs() -> impl Strategy<Value = Config> {
    let named = proptest::collection::btree_map("[xy]", body(), 0..3);
    proptest::collection::btree_map(
        proptest::sample::select(vec!["Inbound", "Policies", "Other"]),
        named,
        0..3,
    )
    .prop_map(|all| all.into_iter().map(|(type_, named)| (type_.to_owned(), named)).collect())
}

/// A JSON patch, for objects only: lists are replaced as a whole.
fn apply(mut document: Value, patch: &Value) -> Value {
    for step in patch.as_array().unwrap() {
        let (parent, last) = step["path"].as_str().unwrap().rsplit_once('/').unwrap();
        let parent = document.pointer_mut(parent).unwrap().as_object_mut().unwrap();
        let name = last.replace("~1", "/").replace("~0", "~");
        match step["op"].as_str().unwrap() {
            "remove" => assert_eq!(parent.remove(&name).as_ref(), Some(&step["value"])),
            _ => assert_eq!(parent.insert(name, step["value"].clone()), None),
        }
    }
    document
}

proptest! {
    #[test]
    fn the_patch_makes_one_out_of_the_other(before in configs(), after in configs()) {
        let patch = json!(difference::patch(&before, &after));
        prop_assert_eq!(apply(json!(before), &patch), json!(after));
    }

    #[test]
    fn no_change_is_no_sentence_and_none_is_left_out(before in configs(), after in configs()) {
        prop_assert!(difference::changes(&before, &before).is_empty());
        // Of `Policies` only what holds for calls counts, and these names are of no destination.
        let told = |config: &Config| -> Config {
            config.iter().filter(|(type_, all)| *type_ != "Policies" && !all.is_empty()).map(|(t, a)| (t.clone(), a.clone())).collect()
        };
        let same = told(&before) == told(&after);
        prop_assert!(same || !difference::changes(&before, &after).is_empty(), "{:?}", before);
    }
}
