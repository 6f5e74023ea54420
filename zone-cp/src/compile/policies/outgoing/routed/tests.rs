//! What sidecars are told of routes.

use crate::compile::fixture::*;
use crate::picture::Picture;
use meridian_core::Key;
use serde_json::{Value, json};

const TO_BACKEND: &str = "default/west/backend/9000";
const TO_LEGACY: &str = "default//backend/9000";

/// East and west, and in east two more services: `v2` (http) and `db` (tcp).
fn east() -> Picture {
    let (mut east, _) = world();
    add(&mut east, dataplane("east", "v2-1", "v2", "10.1.0.2", 9000, "http"));
    add(&mut east, dataplane("east", "db-1", "db", "10.1.0.3", 5432, "tcp"));
    east
}

fn to_backend(rules: Value) -> Value {
    json!({"to": [{"targetRef": {"kind": "MeshService", "name": "backend"}, "rules": rules}]})
}

fn under(prefix: &str, default: Value) -> Value {
    json!({"matches": [{"path": {"type": "PathPrefix", "value": prefix}}], "default": default})
}

fn only(name: &str, more: Value) -> Value {
    let mut backend = json!({"kind": "MeshService", "name": name});
    backend.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"backendRefs": [backend]})
}

fn put(picture: &mut Picture, kind: &str, name: &str, spec: Value) {
    picture.put(global(kind, "default", name, spec)).unwrap();
}

/// The routes that web of east holds for a destination.
fn routes(world: &World, name: &str) -> Option<Value> {
    world.shown(&sidecar("east", "web-1")).get("Routes").and_then(|all| all.get(name)).cloned()
}

fn problems(world: &World) -> Vec<String> {
    world.audiences.problems().into_iter().map(|(key, reason)| format!("{}: {reason}", key.name)).collect()
}

#[test]
fn a_service_is_named_by_its_tag_or_its_labels_and_other_services_are_not() {
    for (target, legacy) in [
        (json!({"kind": "MeshService", "name": "backend"}), true),
        (json!({"kind": "MeshService", "labels": {"kuma.io/display-name": "backend"}}), true),
        (
            json!({"kind": "MeshService", "labels": {"kuma.io/display-name": "backend"}, "sectionName": "9000"}),
            true,
        ),
    ] {
        let mut east = east();
        let mut spec = to_backend(json!([under("/a", only("v2", json!({})))]));
        spec["to"][0]["targetRef"] = target.clone();
        put(&mut east, "MeshHTTPRoute", "r", spec);
        let world = World::new(east);
        assert_eq!(problems(&world), [""; 0]);
        let expected = json!({"http": {
            "matches": [{"path": {"prefix": "/a"}, "rule": 0}],
            "rules": [{
                "name": meridian_policy::matches_hash(&json!([{"path": {"type": "PathPrefix", "value": "/a"}}])),
                "backends": [{"weight": 1, "to": {"destination": "default//v2/9000"}}],
            }],
        }});
        assert_eq!(routes(&world, TO_BACKEND), Some(expected.clone()), "{target}");
        assert_eq!(routes(&world, TO_LEGACY).is_some(), legacy, "{target}");
        assert_eq!(world.shown(&sidecar("east", "web-1"))["Routes"].len(), 2, "{target}");
    }
}

#[test]
fn only_who_is_selected_has_routes() {
    let mut east = east();
    let mut spec = to_backend(json!([under("/a", only("v2", json!({})))]));
    spec["targetRef"] = json!({"kind": "MeshSubset", "tags": {"kuma.io/service": "db"}});
    put(&mut east, "MeshHTTPRoute", "r", spec);
    let world = World::new(east);
    assert_eq!(routes(&world, TO_LEGACY), None);
    assert!(world.shown(&sidecar("east", "db-1"))["Routes"].contains_key(TO_LEGACY));
}

#[test]
fn backends_are_resolved_and_those_that_are_not_there_stay_in_the_list() {
    let mut east = east();
    let backends = json!({"backendRefs": [
        {"kind": "MeshService", "name": "backend", "port": 9000, "weight": 8},
        {"kind": "MeshService", "labels": {"kuma.io/display-name": "v2"}, "weight": 2},
        {"kind": "MeshService", "name": "v2", "weight": 0},
        {"kind": "MeshService", "name": "v2", "sectionName": "9000"},
        {"kind": "MeshService", "name": "v2", "port": 81},
        {"kind": "MeshService", "name": "v3"},
        {"kind": "MeshService", "name": "db"},
        {"kind": "MeshExternalService", "name": "billing"},
    ]});
    put(&mut east, "MeshHTTPRoute", "r", to_backend(json!([under("/", backends)])));
    let world = World::new(east);
    let found = routes(&world, TO_LEGACY).unwrap()["http"]["rules"][0]["backends"].clone();
    let missing = |why: &str| json!({"weight": 1, "to": {"missing": why}});
    let expected = json!([
        {"weight": 8, "to": {"destination": "default//backend/9000"}},
        {"weight": 2, "to": {"destination": "default/east/v2/9000"}},
        {"weight": 1, "to": {"destination": "default//v2/9000"}},
        missing("MeshService v2 port 81 has no such port"),
        missing("there is no MeshService v3"),
        missing("MeshService db does not speak HTTP"),
        {"weight": 1, "to": {"external": "default/extsvc//billing"}},
    ]);
    assert_eq!(found, expected);
    let said = problems(&world);
    assert!(said.contains(&"r: there is no MeshService v3: its share is refused".to_owned()), "{said:?}");
    // A zone's own policy means the zone's own services.
    let mut east = self::east();
    let spec = to_backend(json!([under("/", only("v2", json!({})))]));
    east.put(local("east", "MeshHTTPRoute", "default", "r", spec)).unwrap();
    let backends = routes(&World::new(east), TO_LEGACY).unwrap()["http"]["rules"][0]["backends"].clone();
    assert_eq!(backends[0]["to"]["destination"], "default/east/v2/9000");
}

/// The same service, however it and its port are named.
fn references() -> [(Value, &'static str); 5] {
    [
        (json!({"kind": "MeshService", "name": "v2"}), "default//v2/9000"),
        (json!({"kind": "MeshService", "name": "v2", "port": 9000}), "default//v2/9000"),
        (json!({"kind": "MeshService", "name": "v2", "sectionName": "9000"}), "default//v2/9000"),
        (json!({"kind": "MeshService", "labels": {"kuma.io/display-name": "v2"}}), "default/east/v2/9000"),
        (json!({"kind": "MeshMultiZoneService", "name": "all", "sectionName": "api"}), TO_ALL_ZONES),
    ]
}

#[test]
fn mirrors_are_resolved_like_backends() {
    for (reference, destination) in references() {
        let mut east = east();
        many(&mut east);
        let mirror = json!({"type": "RequestMirror", "requestMirror": {"backendRef": reference}});
        put(&mut east, "MeshHTTPRoute", "r", to_backend(json!([under("/", json!({"filters": [mirror]}))])));
        let rule = routes(&World::new(east), TO_LEGACY).unwrap()["http"]["rules"][0].clone();
        assert_eq!(rule["mirrors"][0]["to"], json!({"destination": destination}), "{reference}");
    }
}

#[test]
fn backends_of_connections_are_resolved_too() {
    for (reference, destination) in references() {
        let mut east = east();
        many(&mut east);
        let spec = to_backend(json!([{"default": {"backendRefs": [reference]}}]));
        put(&mut east, "MeshTCPRoute", "r", spec);
        let tcp = routes(&World::new(east), TO_LEGACY).unwrap()["tcp"].clone();
        assert_eq!(tcp, json!([{"weight": 1, "to": {"destination": destination}}]), "{reference}");
    }
}

#[test]
fn rules_of_several_policies_are_one_list_and_equal_matches_one_rule() {
    let mut east = east();
    let set = |value: &str| {
        json!({"filters": [{"type": "RequestHeaderModifier", "requestHeaderModifier": {
        "set": [{"name": "x", "value": value}]}}]})
    };
    put(
        &mut east,
        "MeshHTTPRoute",
        "a",
        to_backend(json!([under("/both", set("a")), under("/a", set("a"))])),
    );
    put(
        &mut east,
        "MeshHTTPRoute",
        "b",
        to_backend(json!([under("/both", set("b")), under("/b/long", set("b"))])),
    );
    let http = routes(&World::new(east), TO_LEGACY).unwrap()["http"].clone();
    let of = |matched: &Value| {
        let rule = usize::try_from(matched["rule"].as_u64().unwrap()).unwrap();
        let set = &http["rules"][rule]["requestHeaders"][0]["set"][1];
        (matched["path"]["prefix"].as_str().unwrap().to_owned(), set.as_str().unwrap().to_owned())
    };
    let said: Vec<_> = http["matches"].as_array().unwrap().iter().map(of).collect();
    let pair = |path: &str, by: &str| (path.to_owned(), by.to_owned());
    assert_eq!(said, [pair("/b/long", "b"), pair("/both", "a"), pair("/a", "a")]);
}

#[test]
fn connections_are_shared_out_where_no_request_is() {
    let split = |service: &str| {
        let mut spec = to_backend(json!([{"default": only("v2", json!({}))}]));
        spec["to"][0]["targetRef"]["name"] = json!(service);
        spec
    };
    let mut east = east();
    put(&mut east, "MeshTCPRoute", "t", split("backend"));
    put(&mut east, "MeshTCPRoute", "u", split("db"));
    put(&mut east, "MeshHTTPRoute", "h", {
        let mut spec = to_backend(json!([under("/a", only("v2", json!({})))]));
        spec["to"][0]["targetRef"]["name"] = json!("db");
        spec
    });
    let mut world = World::new(east);
    let tcp = |to: &str| json!({"tcp": [{"weight": 1, "to": {"destination": to}}]});
    assert_eq!(routes(&world, TO_LEGACY), Some(tcp("default//v2/9000")));
    assert_eq!(routes(&world, "default//db/5432"), Some(tcp("default//v2/9000")), "it speaks no HTTP");
    let http =
        global("MeshHTTPRoute", "default", "r", to_backend(json!([under("/a", only("v2", json!({})))])));
    world.put(http.clone());
    assert!(routes(&world, TO_LEGACY).unwrap().get("http").is_some());
    world.remove(&http.key);
    assert_eq!(routes(&world, TO_LEGACY), Some(tcp("default//v2/9000")));
    world.remove(&Key::global(kind("MeshTCPRoute"), "default", "t"));
    assert_eq!(routes(&world, TO_LEGACY), None);
}

#[test]
fn a_rule_has_what_policies_say_of_its_route() {
    let timeout = |to: Value, seconds: u32| json!({"to": [{"targetRef": to, "default": {"http": {"requestTimeout": format!("{seconds}s")}}}]});
    let named = json!({"kind": "MeshHTTPRoute", "name": "r"});
    let mut east = east();
    let rules = json!([under("/a", only("v2", json!({}))), under("/b", only("v2", json!({})))]);
    put(&mut east, "MeshHTTPRoute", "r", to_backend(rules));
    put(&mut east, "MeshTimeout", "service", timeout(json!({"kind": "MeshService", "name": "backend"}), 7));
    put(
        &mut east,
        "MeshRetry",
        "all",
        json!({"to": [{"targetRef": {"kind": "Mesh"}, "default": {"http": {"numRetries": 2}}}]}),
    );
    let mut world = World::new(east);
    let rule =
        |world: &World, n: usize| routes(world, TO_LEGACY).unwrap()["http"]["rules"][n]["policies"].clone();
    assert_eq!(rule(&world, 0), Value::Null);
    let of_route = global("MeshTimeout", "default", "route", timeout(named.clone(), 3));
    world.put(of_route.clone());
    for n in [0, 1] {
        assert_eq!(rule(&world, n)["streamTimeouts"]["requestMillis"], 3000);
        assert_eq!(rule(&world, n)["retry"]["max"], 2, "of other kinds what holds for the destination");
    }
    world.remove(&of_route.key);
    assert_eq!(rule(&world, 0), Value::Null);
    // The older form: the policy as a whole is about the route.
    let mut whole = timeout(json!({"kind": "Mesh"}), 4);
    whole["targetRef"] = named;
    let whole = global("MeshTimeout", "default", "whole", whole);
    world.put(whole.clone());
    assert_eq!(rule(&world, 1)["streamTimeouts"]["requestMillis"], 4000);
    world.remove(&Key::global(kind("MeshHTTPRoute"), "default", "r"));
    assert_eq!(routes(&world, TO_LEGACY), None);
}

#[test]
fn who_reaches_less_still_holds_what_its_routes_lead_to() {
    let mut web = dataplane("east", "web-1", "web", "10.1.0.1", 8080, "http");
    web.spec["networking"]["transparentProxying"]["reachableBackends"] =
        json!({"refs": [{"kind": "MeshService", "name": "backend"}]});
    web.spec["networking"]["transparentProxying"]["reachableServices"] = json!(["backend"]);
    let mut east = east();
    add(&mut east, web);
    let mut world = World::new(east);
    let holds =
        |world: &World, name: &str| world.shown(&sidecar("east", "web-1"))["Destination"].contains_key(name);
    let v2 = "default//v2/9000";
    assert!(holds(&world, TO_LEGACY) && !holds(&world, v2));
    let mirror = json!({"filters": [{"type": "RequestMirror", "requestMirror": {
        "backendRef": {"kind": "MeshService", "name": "late"}}}]});
    let rules = json!([under("/a", only("v2", json!({}))), under("/b", mirror)]);
    let route = global("MeshHTTPRoute", "default", "r", to_backend(rules));
    world.put(route.clone());
    assert!(holds(&world, v2) && !holds(&world, "default//late/7000"));
    // What comes later is held too.
    let late = dataplane("east", "late-1", "late", "10.1.0.9", 7000, "http");
    world.picture.set_facts(&late.key, Some(healthy(&late)));
    world.put(late);
    let spec = json!({
        "selector": {"dataplaneTags": {"kuma.io/service": "late"}},
        "ports": [{"port": 7000, "appProtocol": "http"}], "state": "Available",
    });
    world.put(local("east", "MeshService", "default", "late", spec));
    assert!(holds(&world, "default//late/7000"));
    world.remove(&route.key);
    assert!(!holds(&world, v2) && !holds(&world, "default//late/7000"));
}

#[test]
fn a_route_of_the_whole_mesh_is_compiled_once() {
    let mut world = World::new(east());
    let route = |path: &str| {
        global("MeshHTTPRoute", "default", "r", to_backend(json!([under(path, only("v2", json!({})))])))
    };
    world.put(route("/a"));
    let before = world.audiences.counters().units;
    world.put(route("/b"));
    assert_eq!(world.audiences.counters().units - before, 1, "one selection");
    for name in ["web-1", "v2-1", "db-1"] {
        assert_eq!(world.shown(&sidecar("east", name))["Routes"].len(), 2);
    }
}

/// A name for all backends, called `all`.
fn many(picture: &mut Picture) {
    let spec = json!({
        "selector": {"meshService": {"matchLabels": {"kuma.io/display-name": "backend"}}},
        "ports": [{"port": 9000, "name": "api"}],
    });
    put(picture, "MeshMultiZoneService", "all", spec);
}

const TO_ALL_ZONES: &str = "default/*/all/9000";

#[test]
fn calls_to_a_name_of_many_zones_are_routed() {
    for target in [
        json!({"kind": "MeshMultiZoneService", "name": "all"}),
        json!({"kind": "MeshMultiZoneService", "labels": {"kuma.io/display-name": "all"}, "sectionName": "api"}),
    ] {
        for (kind, rule) in [
            ("MeshHTTPRoute", under("/a", only("v2", json!({})))),
            ("MeshTCPRoute", json!({"default": only("v2", json!({}))})),
        ] {
            let mut east = east();
            many(&mut east);
            put(&mut east, kind, "r", json!({"to": [{"targetRef": target, "rules": [rule]}]}));
            let world = World::new(east);
            assert_eq!(problems(&world), [""; 0], "{kind} {target}");
            let found = routes(&world, TO_ALL_ZONES).unwrap();
            assert!(found.to_string().contains("default//v2/9000"), "{found}");
            assert_eq!(world.shown(&sidecar("east", "web-1"))["Routes"].len(), 1, "the members have none");
        }
    }
}

#[test]
fn routes_send_to_a_name_of_many_zones() {
    let to_all = |more: Value| {
        let mut backend = json!({"kind": "MeshMultiZoneService", "name": "all"});
        backend.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"backendRefs": [backend]})
    };
    let mut east = east();
    many(&mut east);
    let spec = json!({"to": [{"targetRef": {"kind": "MeshService", "name": "v2"}, "rules": [
        under("/all", to_all(json!({"port": 9000}))),
        under("/section", to_all(json!({"sectionName": "api"}))),
        under("/none", to_all(json!({"port": 81}))),
    ]}]});
    put(&mut east, "MeshHTTPRoute", "r", spec);
    let mut own = dataplane("east", "less-1", "less", "10.1.0.4", 8080, "http");
    own.spec["networking"]["transparentProxying"] = json!({
        "redirectPortInbound": 15006, "redirectPortOutbound": 15001,
        "reachableBackends": {"refs": [{"kind": "MeshService", "name": "v2"}]},
        "reachableServices": ["v2"],
    });
    add(&mut east, own);
    let mut world = World::new(east);
    let rules = routes(&world, "default//v2/9000").unwrap()["http"]["rules"].clone();
    let mut backends: Vec<String> =
        rules.as_array().unwrap().iter().map(|rule| rule["backends"][0]["to"].to_string()).collect();
    backends.sort();
    let destination = json!({"destination": TO_ALL_ZONES}).to_string();
    let missing = json!({"missing": "MeshMultiZoneService all port 81 has no such port"}).to_string();
    assert_eq!(backends, [destination.clone(), destination, missing]);

    // Who reaches less holds what it is led to, as long as it is there.
    let holds = |world: &World| {
        let shown = world.shown(&sidecar("east", "less-1"));
        let has = |kind: &str, name: &str| shown.get(kind).is_some_and(|all| all.contains_key(name));
        (has("Destination", TO_ALL_ZONES), has("EndpointSet", TO_BACKEND))
    };
    assert_eq!(holds(&world), (true, true));
    world.remove(&Key::global(meridian_core::Kind::named("MeshMultiZoneService").unwrap(), "default", "all"));
    assert_eq!(holds(&world), (false, false));
}

/// The MeshExternalService `billing` has routes of its own, with what policies say of their rules alone: what they say of
/// the destination is the egress's.
#[test]
fn what_is_outside_has_routes_and_is_their_backend() {
    let mut east = east();
    let backends = json!({"backendRefs": [
        {"kind": "MeshExternalService", "name": "billing", "port": 80, "weight": 3},
        {"kind": "MeshExternalService", "name": "billing", "port": 81},
        {"kind": "MeshService", "name": "v2"},
    ]});
    let rule = under("/a", backends);
    let target = json!({"kind": "MeshExternalService", "name": "billing"});
    put(&mut east, "MeshHTTPRoute", "r", json!({"to": [{"targetRef": target, "rules": [rule]}]}));
    let timeout = json!({"to": [{"targetRef": target, "default": {"http": {"requestTimeout": "9s"}}}]});
    put(&mut east, "MeshTimeout", "t", timeout);
    let mut world = World::new(east);
    let of_billing =
        |world: &World| routes(world, "external/default/extsvc//billing").unwrap()["http"].clone();
    let expected = json!([
        {"weight": 3, "to": {"external": "default/extsvc//billing"}},
        {"weight": 1, "to": {"missing": "MeshExternalService billing port 81 has no such port"}},
        {"weight": 1, "to": {"destination": "default//v2/9000"}},
    ]);
    let found = of_billing(&world);
    assert_eq!(found["rules"][0]["backends"], expected);
    assert_eq!(found["rules"][0].get("policies"), None);
    let of_route = json!({"to": [{
        "targetRef": {"kind": "MeshHTTPRoute", "name": "r"}, "default": {"http": {"streamIdleTimeout": "2s"}},
    }]});
    world.put(global("MeshTimeout", "default", "u", of_route));
    let expected = json!({"streamTimeouts": {"idleMillis": 2_000, "requestMillis": 15_000}});
    assert_eq!(of_billing(&world)["rules"][0]["policies"], expected);
    world.remove(&Key::global(kind("MeshHTTPRoute"), "default", "r"));
    assert_eq!(routes(&world, "external/default/extsvc//billing"), None);
}

/// A sidecar that reaches a part of its mesh holds what is outside for its routes' sake.
#[test]
fn what_is_outside_is_held_where_routes_lead_there() {
    let mut east = east();
    let mut web = dataplane("east", "web-1", "web", "10.1.0.1", 8080, "http");
    web.spec["networking"]["transparentProxying"]["reachableBackends"] =
        json!({"refs": [{"kind": "MeshService", "labels": {"kuma.io/display-name": "backend"}}]});
    add(&mut east, web);
    let mut world = World::new(east);
    let billing = |world: &World| {
        let held = world.shown(&sidecar("east", "web-1"));
        held.get("External").is_some_and(|all| all.contains_key("default/extsvc//billing"))
    };
    assert!(!billing(&world));
    let backends = json!({"backendRefs": [{"kind": "MeshExternalService", "name": "billing"}]});
    world.put(global("MeshHTTPRoute", "default", "r", to_backend(json!([under("/", backends)]))));
    assert!(billing(&world));
}

#[test]
fn a_subset_is_a_service_and_tags_that_its_instances_bear() {
    for route in ["MeshHTTPRoute", "MeshTCPRoute"] {
        let mut east = east();
        let mut v2 = dataplane("east", "v2-1", "v2", "10.1.0.2", 9000, "http");
        v2.spec["networking"]["inbound"][0]["tags"]["version"] = json!("two");
        add(&mut east, v2);
        let subset =
            |name: &str| json!({"kind": "MeshServiceSubset", "name": name, "tags": {"version": "two"}});
        let default = json!({"backendRefs": [subset("v2"), subset("v3")]});
        let rule = if route == "MeshHTTPRoute" { under("/", default) } else { json!({"default": default}) };
        let mut world = World::new(east);
        let tags = |world: &World| {
            let held = world.shown(&sidecar("east", "web-1"));
            held["EndpointSet"]["default/east/v2/9000"]["endpoints"][0].get("tags").cloned()
        };
        assert_eq!(tags(&world), None);
        world.put(global(route, "default", "r", to_backend(json!([rule]))));
        let said = routes(&world, TO_LEGACY).unwrap();
        let found = said.pointer("/http/rules/0/backends").or(said.get("tcp")).unwrap();
        let subset = json!({"destination": "default//v2/9000", "tags": {"version": "two"}});
        let expected = json!([
            {"weight": 1, "to": {"subset": subset}},
            {"weight": 1, "to": {"missing": "there is no MeshServiceSubset v3"}},
        ]);
        assert_eq!(*found, expected, "{route}");
        assert_eq!(tags(&world), Some(json!({"version": "two"})));
    }
}

#[test]
fn a_rule_has_logs_and_hashes_of_its_own() {
    let mut east = east();
    put(&mut east, "MeshHTTPRoute", "r", to_backend(json!([under("/a", json!({}))])));
    let logs = |path: &str| json!({"backends": [{"type": "File", "file": {"path": path}}]});
    let hash = |name: &str| json!({"hashPolicies": [{"type": "Header", "header": {"name": name}}]});
    let of = |target: Value, default: Value| json!({"to": [{"targetRef": target, "default": default}]});
    let (all, route) = (json!({"kind": "Mesh"}), json!({"kind": "MeshHTTPRoute", "name": "r"}));
    put(&mut east, "MeshAccessLog", "all", of(all.clone(), logs("/all")));
    put(&mut east, "MeshLoadBalancingStrategy", "all", of(all, hash("x-user")));
    let mut world = World::new(east);
    let policies =
        |world: &World| routes(world, TO_LEGACY).unwrap()["http"]["rules"][0].get("policies").cloned();
    assert_eq!(policies(&world), None);
    world.put(global("MeshAccessLog", "default", "own", of(route.clone(), logs("/own"))));
    let own = json!([{"backend": {"file": {"path": "/own"}}}]);
    assert_eq!(policies(&world), Some(json!({"accessLogs": own})));
    world.put(global("MeshLoadBalancingStrategy", "default", "own", of(route, hash("x-cart"))));
    let hash = json!([{"source": {"header": "x-cart"}}]);
    assert_eq!(policies(&world), Some(json!({"accessLogs": own, "hash": hash})));
}
