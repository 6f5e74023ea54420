//! What sidecars are told of policies.

use crate::compile::fixture::*;
use serde_json::{Value, json};

mod forms;

const TO_ALL: &str = "*/http";
const TO_BACKEND: &str = "default/west/backend/9000";
const TO_LEGACY: &str = "default//backend/9000";

/// What web of east holds for one name, after these policies.
fn said(policies: &[(&str, Value)], name: &str) -> Option<Value> {
    let said = all_said(policies, name)?;
    Some(request_of(&said))
}

fn all_said(policies: &[(&str, Value)], name: &str) -> Option<Value> {
    let (mut east, _) = world();
    for (policy, spec) in policies {
        east.put(global("MeshTimeout", "default", policy, spec.clone())).unwrap();
    }
    let world = World::new(east);
    assert!(world.audiences.problems().is_empty(), "{:?}", world.audiences.problems());
    let shown = world.shown(&sidecar("east", "web-1"));
    shown.get("Policies").and_then(|all| all.get(name)).cloned()
}

fn to(target: Value, default: Value) -> Value {
    json!({"to": [{"targetRef": target, "default": default}]})
}

fn request(seconds: u64) -> Value {
    json!(seconds * 1000)
}

fn request_of(policies: &Value) -> Value {
    policies["streamTimeouts"]["requestMillis"].clone()
}

#[test]
fn what_holds_for_the_mesh_is_said_once_and_a_service_only_differs() {
    let mesh = to(json!({"kind": "Mesh"}), json!({"http": {"requestTimeout": "3s"}}));
    assert_eq!(said(&[("all", mesh.clone())], TO_ALL), Some(request(3)));
    assert_eq!(said(&[("all", mesh.clone())], TO_BACKEND), None, "it is like the others");

    let by_tag = json!({"kind": "MeshService", "name": "backend"});
    let by_label = json!({"kind": "MeshService", "labels": {"kuma.io/display-name": "backend"}});
    for target in [by_tag, by_label] {
        let own = to(target.clone(), json!({"idleTimeout": "7s"}));
        let both = [("all", mesh.clone()), ("backend", own)];
        assert_eq!(said(&both, TO_ALL), Some(request(3)));
        for name in [TO_BACKEND, TO_LEGACY] {
            let merged = all_said(&both, name).unwrap();
            assert_eq!(request_of(&merged), request(3), "{target} {name}");
            assert_eq!(merged["connectionTimeouts"]["idleMillis"], 7000, "{target} {name}");
        }
    }
}

#[test]
fn what_is_said_of_many_zones_together_is_said_of_none_alone() {
    let name = "default/*/all/9000";
    let with = |policies: &[(&str, Value)], name: &str| {
        let (mut east, _) = world();
        let spec = json!({
            "selector": {"meshService": {"matchLabels": {"kuma.io/display-name": "backend"}}},
            "ports": [{"port": 9000, "name": "api"}],
        });
        east.put(global("MeshMultiZoneService", "default", "all", spec)).unwrap();
        for (policy, spec) in policies {
            east.put(global("MeshTimeout", "default", policy, spec.clone())).unwrap();
        }
        let world = World::new(east);
        world.shown(&sidecar("east", "web-1"))["Policies"].get(name).map(request_of)
    };
    let conf = |seconds: u32| json!({"http": {"requestTimeout": format!("{seconds}s")}});
    let mesh = to(json!({"kind": "Mesh"}), conf(3));
    let all = json!({"kind": "MeshMultiZoneService", "labels": {"kuma.io/display-name": "all"}});
    let port = json!({"kind": "MeshMultiZoneService", "name": "all", "sectionName": "api"});
    let member = json!({"kind": "MeshService", "name": "backend"});
    let policies = [("mesh", mesh.clone()), ("all", to(all.clone(), conf(4)))];
    assert_eq!(with(&policies, name), Some(request(4)));
    assert_eq!(with(&policies, TO_BACKEND), None);
    assert_eq!(with(&policies, TO_LEGACY), None);
    // One port before the whole, by whatever name: `all` would be the stronger one.
    let policies = [("mesh", mesh.clone()), ("all", to(all, conf(4))), ("port", to(port, conf(5)))];
    assert_eq!(with(&policies, name), Some(request(5)));
    let policies = [("mesh", mesh), ("member", to(member, conf(6)))];
    assert_eq!(with(&policies, name), None, "as the mesh says");
    assert_eq!(with(&policies, TO_BACKEND), Some(request(6)));
}

#[test]
fn egresses_know_what_holds_for_each_caller_and_sidecars_do_not() {
    let (mut east, _) = world();
    add(&mut east, dataplane("east", "batch-1", "batch", "10.1.0.3", 8080, "http"));
    let conf = |seconds: u32| json!({"http": {"requestTimeout": format!("{seconds}s")}});
    let extsvc = json!({"kind": "MeshExternalService", "name": "billing"});
    let tagged = json!({"kind": "MeshService", "name": "ledger"});
    // Of two that speak of tags, the first by name is the stronger one.
    let mut of_web = to(extsvc, conf(4));
    of_web["targetRef"] = json!({"kind": "MeshSubset", "tags": {"kuma.io/service": "web"}});
    let all = to(json!({"kind": "Mesh"}), conf(3));
    for (name, spec) in [("all", all), ("web", of_web), ("a-ledger", to(tagged, conf(5)))] {
        east.put(global("MeshTimeout", "default", name, spec)).unwrap();
    }
    let mut world = World::new(east);
    let shown = world.shown(&egress("east"));
    let set =
        |name: &str| shown["Caller"][&format!("default/{name}")]["policies"].as_str().unwrap().to_owned();
    let (web, batch) = (set("web-1"), set("batch-1"));
    assert!(web != batch && web.len() == 24, "{web} {batch}");
    let said = |set: &str, name: &str| shown["Policies"].get(&format!("{set}|{name}")).map(request_of);
    for (set, name, expected) in [
        (&web, TO_ALL, Some(request(3))),
        (&web, "default/extsvc//billing", Some(request(4))),
        (&batch, TO_ALL, Some(request(3))),
        (&batch, "default/extsvc//billing", None),
        (&batch, "default/es/ledger", Some(request(5))),
        (&batch, "default/es/httpbin", None),
    ] {
        assert_eq!(said(set, name), expected, "{name}: {:?}", shown["Policies"].keys());
    }
    assert_eq!(shown["Policies"].keys().filter(|name| !name.contains('|')).count(), 0);
    let sidecars = world.shown(&sidecar("east", "web-1"));
    assert!(!sidecars["Policies"].contains_key("default/extsvc//billing"));

    // Without an egress a sidecar leaves the mesh itself.
    let mut spec = strict();
    spec["routing"]["zoneEgress"] = json!(false);
    world.put(mesh(spec));
    let sidecars = world.shown(&sidecar("east", "web-1"));
    assert_eq!(request_of(&sidecars["Policies"]["default/es/ledger"]), request(5));
    assert!(!world.shown(&egress("east")).contains_key("Policies"));
}

#[test]
fn rules_that_name_an_entrys_server_name_hold_for_that_entry() {
    let (east, _) = world();
    let mut world = World::new(east);
    let out = egress("east");
    let sni = crate::compile::external::sni_of("default", "east", "billing", 80);
    let spec = |sni: &str| {
        let matched = json!({
            "sni": {"type": "Exact", "value": sni}, "spiffeID": {"type": "Exact", "value": "spiffe://default/web"},
        });
        let rate = json!({"num": 5, "interval": "1s"});
        let rules = json!([
            {"matches": [matched], "default": {"local": {"http": {"requestRate": rate}}}},
            {"default": {"local": {"http": {"requestRate": {"num": 1, "interval": "1h"}}}}},
        ]);
        json!({"targetRef": {"kind": "Dataplane", "labels": {"of": "nobody"}}, "rules": rules})
    };
    world.put(global("MeshRateLimit", "default", "few", spec(&sni)));
    let limits =
        |world: &World, entry: &str| world.one(&out, "Entry", entry)["policies"]["rateLimits"].clone();
    let billing = limits(&world, "default/extsvc//billing");
    assert_eq!(
        billing,
        json!({"requests": [{
            "caller": {"spiffeExact": "spiffe://default/web"},
            "rate": {"num": 5, "intervalMillis": 1000}, "status": 429,
        }]})
    );
    assert_eq!(limits(&world, "default/es/httpbin"), Value::Null);
    world.put(global("MeshRateLimit", "default", "few", spec("sni.extsvc.default.west.billing.80")));
    assert_eq!(limits(&world, "default/extsvc//billing"), Value::Null, "another zone's egress");
}

#[test]
fn one_port_is_not_another() {
    let port = |section: &str| json!({"kind": "MeshService", "labels": {"kuma.io/display-name": "backend"}, "sectionName": section});
    let conf = json!({"http": {"requestTimeout": "4s"}});
    assert_eq!(said(&[("one", to(port("9000"), conf.clone()))], TO_BACKEND), Some(request(4)));
    assert_eq!(said(&[("one", to(port("9001"), conf))], TO_BACKEND), None);
}

#[test]
fn a_policy_holds_for_whom_it_selects_in_its_zone_and_not_as_a_shadow() {
    let conf = json!({"http": {"requestTimeout": "4s"}});
    let mesh = json!({"kind": "Mesh"});
    let with_target = |target: Value| {
        let mut spec = to(mesh.clone(), conf.clone());
        spec["targetRef"] = target;
        spec
    };
    let web = with_target(json!({"kind": "MeshSubset", "tags": {"kuma.io/service": "web"}}));
    assert_eq!(said(&[("web", web)], TO_ALL), Some(request(4)));
    let other = with_target(json!({"kind": "MeshSubset", "tags": {"kuma.io/service": "other"}}));
    assert_eq!(said(&[("other", other)], TO_ALL), None);

    let (mut east, _) = world();
    let mut shadow = global("MeshTimeout", "default", "all", to(mesh.clone(), conf.clone()));
    shadow.labels.insert("kuma.io/effect".into(), "shadow".into());
    east.put(shadow).unwrap();
    let of_west = abroad("west", local("west", "MeshTimeout", "default", "all", to(mesh, conf)));
    east.put(of_west).unwrap();
    let shown = World::new(east).shown(&sidecar("east", "web-1"));
    assert!(!shown.contains_key("Policies"), "{:?}", shown["Policies"]);
}

#[test]
fn the_last_policy_takes_what_it_said_with_it() {
    let (east, _) = world();
    let mut world = World::new(east);
    let policy = |name: &str, seconds: &str| {
        let conf = json!({"http": {"requestTimeout": seconds}});
        global("MeshTimeout", "default", name, to(json!({"kind": "Mesh"}), conf))
    };
    let (a, b) = (policy("a", "2s"), policy("b", "5s"));
    world.put(b.clone());
    assert_eq!(request_of(&world.one(&sidecar("east", "web-1"), "Policies", TO_ALL)), request(5));
    world.put(a.clone());
    assert_eq!(
        request_of(&world.one(&sidecar("east", "web-1"), "Policies", TO_ALL)),
        request(2),
        "a comes before b"
    );
    world.remove(&a.key);
    assert_eq!(request_of(&world.one(&sidecar("east", "web-1"), "Policies", TO_ALL)), request(5));
    world.remove(&b.key);
    assert!(!world.shown(&sidecar("east", "web-1")).contains_key("Policies"));
}

#[test]
fn calls_that_come_in_are_held_to_the_inbounds_own_policies() {
    let (mut east, _) = world();
    let rules = json!({"rules": [{"default": {"http": {"streamIdleTimeout": "9s"}}}]});
    east.put(global("MeshTimeout", "default", "in", rules)).unwrap();
    let elsewhere = json!({
        "targetRef": {"kind": "Dataplane", "sectionName": "other"},
        "rules": [{"default": {"http": {"streamIdleTimeout": "1s"}}}],
    });
    east.put(global("MeshTimeout", "default", "elsewhere", elsewhere)).unwrap();
    let inbound = World::new(east).one(&sidecar("east", "web-1"), "Inbound", "8080");
    assert_eq!(inbound["policies"]["streamTimeouts"]["idleMillis"], 9000);
}

#[test]
fn reports_of_a_filter_name_the_policy_that_decides() {
    let (mut east, _) = world();
    for name in ["a", "b"] {
        let spec = json!({"rules": [{"default": {}}]});
        east.put(global("MeshRequestFilter", "default", name, spec)).unwrap();
    }
    let inbound = World::new(east).one(&sidecar("east", "web-1"), "Inbound", "8080");
    assert_eq!(inbound["policies"]["filter"]["policy"], "a", "{inbound}");
}

#[test]
fn every_fault_that_matches_acts_and_those_for_everybody_are_one() {
    let (mut east, _) = world();
    let abort = |status: u32| json!({"http": [{"abort": {"httpStatus": status, "percentage": 100}}]});
    let some = json!({"rules": [{
        "matches": [{"spiffeID": {"type": "Exact", "value": "spiffe://default/web"}}], "default": abort(501),
    }]});
    for (name, spec) in [
        ("a", json!({"rules": [{"default": abort(503)}]})),
        ("b", json!({"rules": [{"default": abort(504)}]})),
        ("c", some),
    ] {
        east.put(global("MeshFaultInjection", "default", name, spec)).unwrap();
    }
    let inbound = World::new(east).one(&sidecar("east", "web-1"), "Inbound", "8080");
    let faults = inbound["policies"]["faults"].as_array().unwrap();
    assert_eq!(faults.len(), 2, "{inbound}");
    assert!(faults[0].to_string().contains("501") && faults[1].to_string().contains("503"), "{inbound}");
}

/// What can be read of the kinds that don't guard holds, and who can't be is named.
#[test]
fn a_policy_that_cannot_be_read_takes_no_other_with_it() {
    let (mut east, _) = world();
    let limit = |num: Value| json!({"local": {"http": {"requestRate": {"num": num, "interval": "1s"}}}});
    let web = json!([{"spiffeID": {"type": "Exact", "value": "spiffe://default/web"}}]);
    for (name, spec) in [
        ("all", json!({"rules": [{"default": limit(json!(5))}]})),
        ("broken", json!({"rules": [{"default": limit(json!("many"))}]})),
        ("broken-for-web", json!({"rules": [{"matches": web, "default": limit(json!("few"))}]})),
        ("web", json!({"rules": [{"matches": web, "default": limit(json!(2))}]})),
    ] {
        east.put(global("MeshRateLimit", "default", name, spec)).unwrap();
    }
    let world = World::new(east);
    let inbound = world.one(&sidecar("east", "web-1"), "Inbound", "8080");
    let requests = inbound["policies"]["rateLimits"]["requests"].as_array().unwrap();
    let rates: Vec<&Value> = requests.iter().map(|limit| &limit["rate"]["num"]).collect();
    assert_eq!(rates, [2, 5], "{inbound}");
    let problems = world.audiences.problems();
    let named: Vec<&str> = problems.iter().map(|(key, _)| key.name.as_str()).collect();
    assert_eq!(named, ["broken", "broken-for-web"], "{problems:?}");
}

#[test]
fn a_filter_that_cannot_be_read_lets_nobody_in() {
    let (mut east, _) = world();
    let spec = json!({"rules": [{"default": {"status": "none"}}]});
    east.put(global("MeshRequestFilter", "default", "broken", spec)).unwrap();
    east.put(global("MeshRequestFilter", "default", "whole", json!({"rules": [{"default": {}}]}))).unwrap();
    let world = World::new(east);
    let inbound = world.one(&sidecar("east", "web-1"), "Inbound", "8080");
    let filter = &inbound["policies"]["filter"];
    assert_eq!(
        (&filter["action"], &filter["patterns"][0]["regex"]),
        (&json!("block"), &json!("")),
        "{inbound}"
    );
    let problems = world.audiences.problems();
    let named: Vec<&str> = problems.iter().map(|(key, _)| key.name.as_str()).collect();
    assert_eq!(named, ["broken"], "{problems:?}");
}

#[test]
fn logs_of_all_rules_that_match_and_of_the_strongest_to() {
    let (mut east, _) = world();
    let file = |path: &str| json!({"backends": [{"type": "File", "file": {"path": path}}]});
    let matched = json!({"spiffeID": {"type": "Exact", "value": "spiffe://default/web"}});
    for (name, spec) in [
        (
            "in",
            json!({"rules": [{"matches": [matched], "default": file("/web")}, {"default": file("/all")}]}),
        ),
        ("out", to(json!({"kind": "Mesh"}), file("/out"))),
    ] {
        east.put(global("MeshAccessLog", "default", name, spec)).unwrap();
    }
    let world = World::new(east);
    let inbound = world.one(&sidecar("east", "web-1"), "Inbound", "8080");
    assert_eq!(inbound["policies"]["accessLogs"].as_array().unwrap().len(), 2, "{inbound}");
    for name in [TO_ALL, "*/tcp"] {
        let out = world.one(&sidecar("east", "web-1"), "Policies", name);
        assert_eq!(out["accessLogs"], json!([{"backend": {"file": {"path": "/out"}}}]));
    }
}

#[test]
fn a_trace_is_the_sidecars_own_and_goes_with_its_policy() {
    let (east, _) = world();
    let mut world = World::new(east);
    let of = |name: &str, spec: Value| global("MeshTrace", "default", name, spec);
    let backends = json!([{"type": "OpenTelemetry", "openTelemetry": {"endpoint": "otel"}}]);
    let all = of("all", json!({"default": {"backends": backends, "sampling": {"random": 50}}}));
    let own = json!({
        "targetRef": {"kind": "MeshSubset", "tags": {"kuma.io/service": "web"}},
        "default": {"sampling": {"random": 1}},
    });
    world.put(all.clone());
    let one = |world: &World| world.one(&sidecar("east", "web-1"), "Trace", "self");
    assert_eq!(one(&world)["sampling"]["random"], 500_000);
    assert_eq!(one(&world)["backend"], json!({"openTelemetry": {"collector": {"endpoint": "otel:4317"}}}));
    world.put(of("own", own));
    assert_eq!(one(&world)["sampling"]["random"], 10_000);
    world.remove(&all.key);
    assert!(!world.shown(&sidecar("east", "web-1")).contains_key("Trace"), "without a backend there is none");
}

/// A script for all calls of a sidecar, one for the calls to one service, and one before its own application.
#[test]
fn scripts_go_where_they_match() {
    let lua = |matched: Value, source: &str| {
        let value = json!({"name": "envoy.filters.http.lua", "typedConfig": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua", "inlineCode": source,
        }});
        json!({"httpFilter": {"operation": "AddBefore", "match": matched, "value": value.to_string()}})
    };
    let router = |more: Value| {
        let mut matched = more;
        matched["name"] = json!("envoy.filters.http.router");
        matched
    };
    let policy = |name: &str, target: Value, modification: Value| {
        let default = json!({"appendModifications": [modification]});
        global("MeshProxyPatch", "default", name, json!({"targetRef": target, "default": default}))
    };
    let mesh = json!({"kind": "Mesh"});
    let to_backend = json!({"origin": "outbound", "listenerTags": {"kuma.io/service": "backend"}});
    let (east, _) = world();
    let mut world = World::new(east);
    let all = policy("all", mesh.clone(), lua(router(json!({"origin": "outbound"})), "a = 1"));
    let one = policy("one", mesh.clone(), lua(router(to_backend), "a = 2"));
    let own = policy("own", mesh, lua(router(json!({"origin": "inbound"})), "a = 3"));
    for policy in [&all, &one, &own] {
        world.put(policy.clone());
    }
    let web = sidecar("east", "web-1");
    let sources = |policies: &Value| -> Vec<String> {
        let scripts = policies["scripts"].as_array().cloned().unwrap_or_default();
        scripts.iter().map(|script| format!("{}: {}", script["policy"], script["source"])).collect()
    };
    assert_eq!(sources(&world.one(&web, "Policies", TO_ALL)), [r#""all": "a = 1""#]);
    let mut both = sources(&world.one(&web, "Policies", TO_BACKEND));
    both.sort();
    assert_eq!(both, [r#""all": "a = 1""#, r#""one": "a = 2""#]);
    assert_eq!(sources(&world.one(&web, "Inbound", "8080")["policies"]), [r#""own": "a = 3""#]);
    for policy in [&all, &one, &own] {
        world.remove(&policy.key);
    }
    assert!(!world.shown(&web).contains_key("Policies"));
    assert_eq!(sources(&world.one(&web, "Inbound", "8080")["policies"]), [""; 0]);
}

/// As in Kuma the stronger item's list stands in place of the weaker one's; `from` the whole mesh is one of them.
#[test]
fn faults_are_for_callers_with_tags() {
    let (_, mut west) = world();
    let abort = |status: u32| json!({"http": [{"abort": {"httpStatus": status, "percentage": 100}}]});
    let web = json!({"kind": "MeshServiceSubset", "name": "web", "tags": {"kuma.io/zone": "east"}});
    let put = |picture: &mut crate::picture::Picture, name: &str, from: Value| {
        let top = json!({"kind": "Dataplane"});
        let spec = json!({"targetRef": top, "from": from});
        picture.put(global("MeshFaultInjection", "default", name, spec)).unwrap();
    };
    let faults = |picture: &crate::picture::Picture| {
        let key = sidecar("west", "backend-1");
        World::new(picture.clone()).shown(&key)["Inbound"].values().next().unwrap()["policies"]["faults"]
            .clone()
    };
    let mesh = json!({"kind": "Mesh"});
    put(&mut west, "b-all", json!([{"targetRef": mesh, "default": abort(500)}]));
    let made = |status: u32| json!([{"perMillion": 1_000_000, "effect": {"abort": status}}]);
    assert_eq!(faults(&west), json!([{"caller": {}, "faults": made(500)}]));
    put(
        &mut west,
        "a-web",
        json!([
            {"targetRef": {"kind": "MeshSubset", "tags": {"rack": "r1"}}, "default": {"http": []}},
            {"targetRef": web, "default": abort(503)},
        ]),
    );
    let tags = json!({"kuma.io/service": "web", "kuma.io/zone": "east"});
    let expected = json!([
        {"caller": {"tags": tags}, "faults": made(503), "firstOnly": true},
        {"caller": {"tags": {"rack": "r1"}}, "faults": [], "firstOnly": true},
        {"caller": {}, "faults": made(500), "firstOnly": true},
    ]);
    assert_eq!(faults(&west), expected);
    // One that can't be read takes no other with it.
    put(&mut west, "c-broken", json!([{"targetRef": web, "default": {"of a later version": 1}}]));
    assert_eq!(faults(&west), expected);
}

/// A subset of which nothing is asked is everybody.
#[test]
fn faults_for_a_subset_without_tags_are_for_all() {
    let (_, mut west) = world();
    let fault = json!({"http": [{"abort": {"httpStatus": 500, "percentage": 100}}]});
    let spec = json!({"targetRef": {"kind": "Dataplane"}, "from": [{"targetRef": {"kind": "MeshSubset"}, "default": fault}]});
    west.put(global("MeshFaultInjection", "default", "a", spec)).unwrap();
    let told = World::new(west).shown(&sidecar("west", "backend-1"));
    let faults = &told["Inbound"].values().next().unwrap()["policies"]["faults"];
    assert_eq!(
        *faults,
        json!([{"caller": {}, "faults": [{"perMillion": 1_000_000, "effect": {"abort": 500}}]}])
    );
}
