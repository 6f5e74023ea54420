//! Following changes gives what compiling from nothing gives, and costs nothing where nothing is touched.

use super::*;
use crate::compile::fixture::*;
use crate::compile::touched::{touched_by_certificates, touched_by_facts};
use crate::generate::{Action, generate};
use crate::picture::Facts;
use meridian_core::Resource;
use proptest::prelude::*;
use serde_json::json;
use time::OffsetDateTime;

/// Follows one change, and writes what the generator then says, as the engine does.
fn settle(world: &mut World) {
    for _ in 0..10 {
        let Some(mesh) = world.picture.meshes.get("default").cloned() else { return };
        let own = mesh.services.keys().filter(|key| world.picture.is_local(key)).map(|key| key.name.clone());
        let names: BTreeSet<String> = mesh.by_service.keys().cloned().chain(own).collect();
        let mut quiet = true;
        for name in names {
            match generate(&world.picture, "default", &name, None, OffsetDateTime::UNIX_EPOCH).action {
                Action::Put(resource) => world.put(*resource),
                Action::Delete(key) => world.remove(&key),
                Action::Nothing => continue,
            }
            quiet = false;
        }
        if quiet {
            return;
        }
    }
    panic!("the generator never comes to rest");
}

fn set_facts(world: &mut World, key: &Key, facts: Option<Facts>) {
    let before = touched_by_facts(&world.picture, key);
    world.picture.set_facts(key, facts);
    let mut touched = touched_by_facts(&world.picture, key);
    touched.extend(before);
    world.update(touched);
}

#[derive(Clone, Debug)]
enum Op {
    Put(Box<Resource>),
    Remove(Key),
    Facts(Key, Option<Facts>),
}

fn a_dataplane() -> impl Strategy<Value = Resource> {
    (0..4u32, 0..3usize, 0..5usize, prop::bool::ANY).prop_map(|(n, service, shape, http)| {
        let service = ["web", "backend", "Bad_Name"][service];
        let protocol = if http { "http" } else { "tcp" };
        let mut resource =
            dataplane("east", &format!("dp-{n}"), service, &format!("10.1.0.{n}"), 8000 + n % 2, protocol);
        let networking = resource.spec["networking"].as_object_mut().unwrap();
        match shape {
            1 => networking["transparentProxying"]["reachableBackends"] =
                json!({"refs": [{"kind": "MeshService", "name": "backend"}]}),
            2 => drop(networking.insert("outbound".into(), json!([
                {"port": 20001, "tags": {"kuma.io/service": "backend"}},
                {"port": 20002, "backendRef": {"kind": "MeshExternalService", "name": "mes-0", "port": 80}},
                {"port": 20003, "tags": {"kuma.io/service": "outside"}},
            ]))),
            3 => networking["transparentProxying"]["reachableServices"] = json!(["outside"]),
            4 => {
                networking["transparentProxying"]["reachableBackends"] =
                    json!({"refs": [{"kind": "MeshMultiZoneService", "name": "all"}]});
                networking.insert("outbound".into(), json!([
                    {"port": 20004, "backendRef": {"kind": "MeshMultiZoneService", "name": "all", "port": 9000}},
                    {"port": 20005, "backendRef": {"kind": "MeshMultiZoneService", "labels": {"of": "0"}, "port": 1}},
                ]));
            }
            _ => {}
        }
        resource
    })
}

fn a_mesh() -> impl Strategy<Value = Resource> {
    (prop::bool::ANY, prop::bool::ANY, prop::bool::ANY, prop::bool::ANY, 0..3usize).prop_map(
        |(mtls, permissive, zone_egress, passthrough, mode)| {
            let mut spec = strict();
            if !mtls {
                spec.as_object_mut().unwrap().remove("mtls");
            } else if permissive {
                spec["mtls"]["backends"][0]["mode"] = json!("PERMISSIVE");
            }
            spec["routing"]["zoneEgress"] = json!(zone_egress && mtls);
            spec["networking"]["outbound"]["passthrough"] = json!(passthrough);
            let mode = ["Disabled", "Everywhere", "Exclusive"][mode];
            spec["meshServices"] = json!({"mode": mode});
            mesh(spec)
        },
    )
}

fn a_destination() -> impl Strategy<Value = Resource> {
    (0..3u32, 0..3usize, prop::bool::ANY).prop_map(|(n, pin, secret)| {
        let mut tags = json!({"kuma.io/service": if n == 2 { "backend" } else { "outside" }});
        if pin > 0 {
            let zone = ["east", "west"][pin - 1];
            tags["kuma.io/zone"] = json!(zone);
        }
        let mut networking = json!({"address": format!("host{}.example:{}", n % 2, 80 + n)});
        if secret {
            networking["tls"] = json!({"enabled": true, "caCert": {"secret": "ca"}});
        }
        global(
            "ExternalService",
            "default",
            &format!("es-{n}"),
            json!({"tags": tags, "networking": networking}),
        )
    })
}

fn a_policy() -> impl Strategy<Value = Resource> {
    (0..2u32, 0..3usize, prop::bool::ANY).prop_map(|(n, target, deny)| {
        let target = [
            json!({"kind": "Mesh"}),
            json!({"kind": "MeshService", "name": "backend"}),
            json!({"kind": "MeshSubset", "tags": {"kuma.io/service": "web"}}),
        ][target]
            .clone();
        let action = if deny { "Deny" } else { "Allow" };
        let from = json!([{"targetRef": {"kind": "Mesh"}, "default": {"action": action}}]);
        global(
            "MeshTrafficPermission",
            "default",
            &format!("mtp-{n}"),
            json!({"targetRef": target, "from": from}),
        )
    })
}

fn a_timeout() -> impl Strategy<Value = Resource> {
    (0..3u32, 0..4usize, 0..7usize, 1..3u32, prop::bool::ANY).prop_map(|(n, target, to, seconds, inbound)| {
        let target = [
            json!({"kind": "Mesh"}),
            json!({"kind": "MeshSubset", "tags": {"kuma.io/service": "web"}}),
            json!({"kind": "Dataplane", "labels": {"kuma.io/zone": "east"}}),
            json!({"kind": "Dataplane", "labels": {"kuma.io/zone": "west"}}),
        ][target]
            .clone();
        let conf = json!({"idleTimeout": format!("{seconds}s"), "http": {"requestTimeout": format!("{n}s")}});
        let to = [
            json!({"kind": "Mesh"}),
            json!({"kind": "MeshService", "name": "backend"}),
            json!({"kind": "MeshService", "labels": {"kuma.io/display-name": "backend"}}),
            json!({"kind": "MeshService", "labels": {"kuma.io/zone": "west"}, "sectionName": "9000"}),
            json!({"kind": "MeshExternalService", "name": "mes-0"}),
            json!({"kind": "MeshMultiZoneService", "name": "all"}),
            json!({"kind": "MeshMultiZoneService", "labels": {"of": "0"}, "sectionName": "9000"}),
        ][to]
            .clone();
        let mut spec = json!({"targetRef": target, "to": [{"targetRef": to, "default": conf.clone()}]});
        if inbound {
            spec["rules"] = json!([{"default": conf}]);
        }
        global("MeshTimeout", "default", &format!("mt-{n}"), spec)
    })
}

fn a_route() -> impl Strategy<Value = Resource> {
    (0..2u32, 0..3usize, 0..4usize, 0..6usize, prop::bool::ANY).prop_map(|(n, target, to, backend, tcp)| {
        let target = [
            json!({"kind": "Mesh"}),
            json!({"kind": "MeshSubset", "tags": {"kuma.io/service": "web"}}),
            json!({"kind": "Dataplane", "labels": {"kuma.io/zone": "west"}}),
        ][target]
            .clone();
        let to = [
            json!({"kind": "MeshService", "name": "backend"}),
            json!({"kind": "MeshService", "labels": {"kuma.io/display-name": "web"}}),
            json!({"kind": "MeshExternalService", "name": "mes-0"}),
            json!({"kind": "MeshMultiZoneService", "name": "all"}),
        ][to]
            .clone();
        let backend = [
            json!({"kind": "MeshService", "name": "web", "weight": n + 1}),
            json!({"kind": "MeshService", "name": "far", "port": 9000}),
            json!({"kind": "MeshService", "labels": {"kuma.io/zone": "west"}}),
            json!({"kind": "MeshService", "name": "mine", "port": 80}),
            json!({"kind": "MeshMultiZoneService", "name": "all", "port": 9000}),
            json!({"kind": "MeshMultiZoneService", "labels": {"of": "0"}, "port": 80}),
        ][backend]
            .clone();
        let conf = json!({"backendRefs": [backend]});
        let matches = json!([{"path": {"type": "PathPrefix", "value": format!("/{n}")}}]);
        let (kind, rule) = match tcp {
            true => ("MeshTCPRoute", json!({"default": conf})),
            false => ("MeshHTTPRoute", json!({"matches": matches, "default": conf})),
        };
        let spec = json!({"targetRef": target, "to": [{"targetRef": to, "rules": [rule]}]});
        global(kind, "default", &format!("route-{n}"), spec)
    })
}

fn of_a_route() -> impl Strategy<Value = Resource> {
    (0..2u32, prop::bool::ANY, 1..3u32).prop_map(|(n, whole, seconds)| {
        let route = json!({"kind": "MeshHTTPRoute", "name": format!("route-{n}")});
        let mesh = json!({"kind": "Mesh"});
        let (target, to) = if whole { (route, mesh) } else { (mesh, route) };
        let conf = json!({"http": {"requestTimeout": format!("{seconds}s")}});
        let spec = json!({"targetRef": target, "to": [{"targetRef": to, "default": conf}]});
        global("MeshTimeout", "default", &format!("of-route-{n}"), spec)
    })
}

/// Policies that ask for tags.
fn an_asking() -> impl Strategy<Value = Resource> {
    (0..2u32, 0..3usize, prop::bool::ANY).prop_map(|(n, key, retry)| {
        let key = ["kuma.io/protocol", "kuma.io/zone", "kuma.io/display-name"][key];
        let (kind, default) = if retry {
            let selection = json!([{"predicate": "OmitHostsWithTags", "tags": {key: "tcp"}}]);
            ("MeshRetry", json!({"http": {"hostSelection": selection}}))
        } else {
            let tags = json!({"affinityTags": [{"key": key}]});
            ("MeshLoadBalancingStrategy", json!({"localityAwareness": {"localZone": tags}}))
        };
        let spec = json!({"to": [{"targetRef": {"kind": "Mesh"}, "default": default}]});
        global(kind, "default", &format!("asking-{n}"), spec)
    })
}

fn metrics_for() -> impl Strategy<Value = Resource> {
    (0..3u32, 0..2usize, prop::bool::ANY).prop_map(|(n, target, backend)| {
        let targets =
            [json!({"kind": "Mesh"}), json!({"kind": "MeshSubset", "tags": {"kuma.io/service": "web"}})];
        let mut default = json!({"applications": [{"port": 8000 + n}]});
        if backend {
            default["backends"] = json!([{"type": "Prometheus", "prometheus": {"port": 5670 + n}}]);
        }
        global(
            "MeshMetric",
            "default",
            &format!("mm-{n}"),
            json!({"targetRef": targets[target], "default": default}),
        )
    })
}

fn a_collector() -> impl Strategy<Value = Resource> {
    (0..2u32, 1..3u32).prop_map(|(n, port)| {
        let spec = json!({"endpoint": {"address": "otel.example", "port": port}});
        global("MeshOpenTelemetryBackend", "default", &format!("motb-{n}"), spec)
    })
}

/// Policies that refer to one.
fn sent_to_a_collector() -> impl Strategy<Value = Resource> {
    (0..2u32, 0..4usize).prop_map(|(n, what)| {
        let labels = json!({"kuma.io/display-name": format!("motb-{n}")});
        let reference = json!({"backendRef": {"kind": "MeshOpenTelemetryBackend", "labels": labels}});
        let conf = json!({"backends": [{"type": "OpenTelemetry", "openTelemetry": reference}]});
        let (kind, spec) = [
            ("MeshTrace", json!({"default": conf})),
            ("MeshMetric", json!({"default": conf})),
            ("MeshAccessLog", json!({"rules": [{"default": conf}]})),
            ("MeshAccessLog", json!({"to": [{"targetRef": {"kind": "Mesh"}, "default": conf}]})),
        ][what]
            .clone();
        global(kind, "default", &format!("otel-{what}"), spec)
    })
}

fn a_rate_limit() -> impl Strategy<Value = Resource> {
    (0..2u32, 1..3u32).prop_map(|(n, rate)| {
        let sni = crate::compile::external::sni_of("default", "east", "mes-0", 80);
        let conf = json!({"local": {"http": {"requestRate": {"num": rate, "interval": "1s"}}}});
        let matches = if n == 0 { json!([{"sni": {"type": "Exact", "value": sni}}]) } else { json!([]) };
        let spec = json!({
            "targetRef": {"kind": "Dataplane", "labels": {"kuma.io/zone": "east"}},
            "rules": [{"matches": matches, "default": conf}],
        });
        global("MeshRateLimit", "default", &format!("mrl-{n}"), spec)
    })
}

fn a_passthrough() -> impl Strategy<Value = Resource> {
    (0..2u32, prop::bool::ANY, 0..3usize).prop_map(|(n, all, mode)| {
        let target = if all {
            json!({"kind": "Mesh"})
        } else {
            json!({"kind": "MeshSubset", "tags": {"kuma.io/service": "web"}})
        };
        let matches = json!([
            {"type": "Domain", "value": format!("host{n}.example"), "port": 443, "protocol": "tls"},
            {"type": "Domain", "value": format!("*.host{n}.example"), "port": 443, "protocol": "tls"},
            {"type": "CIDR", "value": format!("192.0.{n}.0/24"), "port": 5432},
        ]);
        let default = match mode {
            0 => json!({"passthroughMode": "Matched", "appendMatch": matches}),
            1 => json!({"passthroughMode": "All"}),
            _ => json!({"passthroughMode": "None"}),
        };
        global(
            "MeshPassthrough",
            "default",
            &format!("mp-{n}"),
            json!({"targetRef": target, "default": default}),
        )
    })
}

fn from_west() -> impl Strategy<Value = Resource> {
    (0..3u32, 0..3usize, prop::bool::ANY, prop::bool::ANY).prop_map(|(healthy, service, http, gold)| {
        let service = ["backend", "web", "far"][service];
        let spec = json!({
            "selector": {"dataplaneTags": {"kuma.io/service": service}},
            "ports": [{"port": 9000, "appProtocol": if http { "http" } else { "tcp" }}],
            "identities": [{"type": "ServiceTag", "value": service}],
            "state": if healthy > 0 { "Available" } else { "Unavailable" },
        });
        let mut resource = local("west", "MeshService", "default", service, spec);
        if gold {
            resource.labels.insert("tier".to_owned(), "gold".to_owned());
        }
        resource.status = Some(json!({"dataplaneProxies": {"connected": 3, "healthy": healthy, "total": 3}}));
        abroad("west", resource)
    })
}

fn many_zones() -> impl Strategy<Value = Resource> {
    (0..2u32, 0..4usize, prop::bool::ANY).prop_map(|(n, selector, http)| {
        let selector = [
            json!({"kuma.io/display-name": "backend"}),
            json!({"kuma.io/zone": "west"}),
            json!({"tier": "gold"}),
            json!({"kuma.io/env": "universal"}),
        ][selector]
            .clone();
        let spec = json!({
            "selector": {"meshService": {"matchLabels": selector}},
            "ports": [{"port": 9000, "appProtocol": if http { "http" } else { "tcp" }}, {"port": 8000 + n}],
        });
        let mut resource =
            global("MeshMultiZoneService", "default", if n == 0 { "all" } else { "mes-0" }, spec);
        resource.labels.insert("of".to_owned(), n.to_string());
        resource
    })
}

/// Some of whose templates make the same of several.
fn a_generator() -> impl Strategy<Value = Resource> {
    (0..3u32, 0..3usize, 0..3usize, prop::bool::ANY).prop_map(|(n, selector, template, own)| {
        let selector = ["meshService", "meshExternalService", "meshMultiZoneService"][selector];
        let template = [
            "{{ .DisplayName }}.same.mesh.local",
            "one.same.mesh.local",
            "{{ label \"tier\" }}.{{ .Zone }}.mesh",
        ][template];
        let spec = json!({"selector": {selector: {}}, "template": template});
        let name = format!("hg-{n}");
        if own {
            local("east", "HostnameGenerator", "", &name, spec)
        } else {
            global("HostnameGenerator", "", &name, spec)
        }
    })
}

fn another() -> impl Strategy<Value = Resource> {
    let user_service = local(
        "east",
        "MeshService",
        "default",
        "mine",
        json!({
            "selector": {"dataplaneTags": {"kuma.io/service": "web"}},
            "ports": [{"port": 80, "targetPort": 8000, "appProtocol": "http"}], "state": "Unavailable",
        }),
    );
    let by_name = local(
        "east",
        "MeshService",
        "default",
        "one",
        json!({
            "selector": {"dataplaneRef": {"name": "dp-1"}}, "ports": [{"port": 8001}], "state": "Unavailable",
        }),
    );
    let [ingress, egress] = gateways("east", "10.1.0");
    let [far, _] = gateways("west", "10.2.0");
    let generator = json!({"selector": {"meshService": {}}, "template": "{{ .DisplayName }}.x.mesh.local"});
    let billing = json!({
        "match": {"type": "HostnameGenerator", "port": 80, "protocol": "http"},
        "endpoints": [{"address": "b.example", "port": 443}],
    });
    prop::sample::select(vec![
        user_service,
        by_name,
        ingress,
        egress,
        abroad("west", far),
        global("HostnameGenerator", "", "hg", generator),
        global("MeshExternalService", "default", "mes-0", billing),
        global("Secret", "default", "ca", json!({"data": "Q0E="})),
        global("TrustBundle", "default", "default", json!({"roots": ["a", "b"], "revoked": []})),
    ])
}

fn op() -> impl Strategy<Value = Op> {
    let resource = || {
        prop_oneof![
            4 => a_dataplane(),
            1 => a_mesh(),
            2 => a_destination(),
            2 => a_policy(),
            2 => a_passthrough(),
            3 => a_timeout(),
            3 => a_route(),
            2 => of_a_route(),
            2 => an_asking(),
            1 => metrics_for(),
            2 => a_collector(),
            2 => sent_to_a_collector(),
            3 => from_west(),
            2 => many_zones(),
            1 => a_rate_limit(),
            2 => a_generator(),
            4 => another(),
        ]
    };
    let facts = (0..4u32, 0..3usize).prop_map(|(n, what)| {
        let ready = BTreeSet::from(["8000".to_owned(), "8001".to_owned()]);
        let certified = BTreeSet::from(["default".to_owned()]);
        let facts = [
            None,
            Some(Facts { ready: ready.clone(), certified: BTreeSet::new() }),
            Some(Facts { ready, certified }),
        ][what]
            .clone();
        Op::Facts(sidecar("east", &format!("dp-{n}")), facts)
    });
    prop_oneof![
        5 => resource().prop_map(|resource| Op::Put(Box::new(resource))),
        2 => resource().prop_map(|resource| Op::Remove(resource.key)),
        2 => facts,
    ]
}

fn everything_shown(world: &World) -> BTreeMap<Key, BTreeMap<String, BTreeMap<String, serde_json::Value>>> {
    world.audiences.proxies().map(|key| (key.clone(), world.shown(key))).collect()
}

proptest! {

    #[test]
    fn following_changes_is_compiling_from_nothing(first in a_mesh(), ops in prop::collection::vec(op(), 1..25)) {
        let mut picture = Picture::new("east", crate::picture::Options::default());
        picture.put(first).unwrap();
        let mut world = World::new(picture);
        for op in ops {
            match op {
                Op::Put(resource) => world.put(*resource),
                Op::Remove(key) => world.remove(&key),
                Op::Facts(key, facts) => set_facts(&mut world, &key, facts),
            }
            settle(&mut world);
        }
        let fresh = World::with(world.picture.clone(), world.vips.clone());
        prop_assert_eq!(everything_shown(&world), everything_shown(&fresh));
        prop_assert_eq!(world.audiences.problems(), fresh.audiences.problems());
        // Nobody keeps an address that nothing names.
        let mut after = world.vips.clone();
        after.retain(|owner| fresh.audiences.uses_address(owner), 1);
        prop_assert_eq!(after.drain().len(), world.vips.drain().len());
    }
}

fn cost(world: &mut World, change: impl FnOnce(&mut World)) -> Counters {
    let before = world.audiences.counters();
    change(world);
    let after = world.audiences.counters();
    Counters {
        units: after.units - before.units,
        views: after.views - before.views,
        memberships: after.memberships - before.memberships,
    }
}

/// Fifty sidecars that call backend, and some of another mesh.
fn crowd() -> World {
    let (mut east, _) = world();
    for n in 0..50 {
        let name = format!("client-{n}");
        let resource = dataplane("east", &name, "client", &format!("10.1.1.{n}"), 8080, "http");
        east.set_facts(&resource.key, Some(healthy(&resource)));
        east.put(resource).unwrap();
    }
    generate_all(&mut east);
    World::new(east)
}

#[test]
fn a_status_that_changes_nothing_costs_no_proxy_anything() {
    let mut world = crowd();
    let service =
        world.picture.meshes["default"].services.values().find(|it| it.resource.key.zone == "west").unwrap();
    let mut resource = service.resource.clone();
    resource.status.as_mut().unwrap()["dataplaneProxies"]["total"] = json!(9);
    let cost = cost(&mut world, |world| world.put(resource));
    assert_eq!((cost.views, cost.memberships), (0, 0));
    assert!(cost.units <= 3, "{cost:?}");
}

#[test]
fn one_endpoint_is_compiled_once_for_all_who_subscribe() {
    let mut world = crowd();
    let key = sidecar("east", "web-1");
    let facts = Facts { ready: BTreeSet::new(), certified: BTreeSet::from(["default".to_owned()]) };
    let cost = cost(&mut world, |world| set_facts(world, &key, Some(facts)));
    // web's endpoints and what refers to them; every sidecar and the ingress are given the one changed set.
    assert!(cost.units <= 4, "{cost:?}");
    assert_eq!((cost.views, cost.memberships), (52, 0));
}

/// A MeshMultiZoneService names its members' endpoint sets: it is as it was when they change.
#[test]
fn an_endpoint_behind_several_names_changes_one_set() {
    let mut world = crowd();
    let spec = json!({
        "selector": {"meshService": {"matchLabels": {"kuma.io/display-name": "web"}}},
        "ports": [{"port": 8080}],
    });
    let selecting =
        cost(&mut world, |world| world.put(global("MeshMultiZoneService", "default", "all", spec)));
    assert_eq!((selecting.units, selecting.views), (2, 51), "itself, and what policies may say of it");
    let key = sidecar("east", "web-1");
    let facts = Facts { ready: BTreeSet::new(), certified: BTreeSet::from(["default".to_owned()]) };
    let version = |world: &World| {
        let view = world.views.open(&sidecar("east", "client-0"));
        view.get("Destination", "default/*/all/8080").unwrap().version
    };
    let before = version(&world);
    let flap = cost(&mut world, |world| set_facts(world, &key, Some(facts)));
    assert!(flap.units <= 5, "{flap:?}");
    assert_eq!((flap.views, flap.memberships), (52, 0));
    assert_eq!(version(&world), before);
}

#[test]
fn a_permission_is_compiled_for_those_it_selects() {
    let mut world = crowd();
    let spec = json!({
        "targetRef": {"kind": "MeshService", "name": "web"},
        "from": [{"targetRef": {"kind": "Mesh"}, "default": {"action": "Allow"}}],
    });
    let cost =
        cost(&mut world, |world| world.put(global("MeshTrafficPermission", "default", "all-to-web", spec)));
    assert_eq!((cost.views, cost.memberships), (1, 0), "web-1 alone");
    assert!(cost.units <= 4, "web-1, and the entries that a permission may be about: {cost:?}");
}

#[test]
fn another_mesh_is_not_touched() {
    let mut world = crowd();
    world.put(global("Mesh", "", "other", strict()));
    let mut foreign = dataplane("east", "foreign-1", "web", "10.1.2.1", 8080, "http");
    foreign.key.mesh = "other".into();
    world.put(foreign.clone());
    let cost = cost(&mut world, |world| {
        foreign.spec["networking"]["inbound"][0]["tags"]["version"] = json!("2");
        world.put(foreign);
    });
    assert!(cost.units <= 3 && cost.views <= 1, "{cost:?}");
}

fn timeout(name: &str, spec: serde_json::Value) -> Resource {
    global("MeshTimeout", "default", name, spec)
}

/// A long step is sent in parts: what is not allowed any more must not wait for its last one.
#[test]
fn what_goes_is_told_before_what_comes() {
    let unit = |name: &str| Unit::Dataplane(sidecar("east", name));
    let compiled = |name: &str| Compiled {
        resources: vec![Encoded::new("Destination", name, "{}").unwrap()],
        problems: Vec::new(),
    };
    let units = HashMap::from(["gone", "came"].map(|name| (unit(name), compiled(name))));
    let news = News { units: &units, differences: HashMap::new(), old: &HashMap::new() };
    let (before, after) = (BTreeSet::from([unit("gone")]), BTreeSet::from([unit("came")]));
    let changes = news.of(&Holding::between(&before, &after));
    let told = changes.iter().map(|change| match change {
        ViewChange::Upsert(resource) => format!("+{}", resource.name),
        ViewChange::Remove(id) => format!("-{}", id.name),
    });
    assert_eq!(told.collect::<Vec<_>>(), ["-gone", "+came"]);
}

#[test]
fn a_view_that_is_waited_for_is_not_forgotten() {
    let views = Views::new(StoreId([1; 16]));
    let key = sidecar("east", "web-1");
    let (first, second) = (views.open(&key), views.open(&key));
    drop(first);
    views.forget_pending(&key);
    assert!(Arc::ptr_eq(&views.open(&key), &second));
    drop(second);
    views.forget_pending(&key);
    assert!(views.all.lock().unwrap().is_empty());
}

/// Else a zone of a thousand services would need a thousand times their names for each of its sidecars.
#[test]
fn what_sidecars_of_a_mesh_all_hold_is_kept_once() {
    let mut world = crowd();
    let kept = |world: &World| {
        let view = world.audiences.views.open(&sidecar("east", "client-7"));
        (view.len(), view.own_len())
    };
    let (before, own) = kept(&world);
    for n in 0..20 {
        let name = format!("new-{n}");
        let resource = dataplane("east", &name, &name, &format!("10.1.2.{n}"), 8080, "http");
        set_facts(&mut world, &resource.key, Some(healthy(&resource)));
        world.put(resource);
    }
    settle(&mut world);
    let (after, own_after) = kept(&world);
    assert!(after >= before + 60, "{before} and {after} resources");
    assert_eq!(own_after, own);
    assert!(own < 10, "{own} of {before} are its own");
}

#[test]
fn a_policy_for_the_whole_mesh_is_compiled_once_and_is_small() {
    let mut world = crowd();
    let to = |seconds: &str| {
        let default = json!({"http": {"requestTimeout": seconds}});
        timeout("all", json!({"to": [{"targetRef": {"kind": "Mesh"}, "default": default}]}))
    };
    let first = cost(&mut world, |world| world.put(to("3s")));
    // For all sidecars one, and one for the egress; the one that sidecars give up; and for each caller, which it is now.
    assert_eq!((first.units, first.views), (2 + 1 + 51, 51 + 1));
    let second = cost(&mut world, |world| world.put(to("4s")));
    assert_eq!((second.units, second.views), (2, 51 + 1));
    let shown = world.shown(&sidecar("east", "client-0"));
    let names: Vec<&str> = shown["Policies"].keys().map(String::as_str).collect();
    assert_eq!(names, ["*/grpc", "*/http", "*/http2", "*/tcp"], "said once, not for each service");
}

#[test]
fn a_policy_for_some_sidecars_costs_the_others_nothing() {
    let mut world = crowd();
    let spec = json!({
        "targetRef": {"kind": "MeshSubset", "tags": {"kuma.io/service": "web"}},
        "to": [{"targetRef": {"kind": "Mesh"}, "default": {"idleTimeout": "3s"}}],
    });
    let cost = cost(&mut world, |world| world.put(timeout("web", spec)));
    assert_eq!(
        (cost.units, cost.views, cost.memberships),
        (4, 2, 2),
        "web-1 alone: its new unit, there and at the egress, the one that it gives up, and which of them is its"
    );
}

#[test]
fn services_wait_for_the_last_certificate_of_the_mesh_and_are_looked_at_once() {
    let mut picture = zone("east", "10.1.0", Vec::new());
    let dataplanes = ["web", "backend"]
        .map(|service| dataplane("east", &format!("{service}-1"), service, "10.1.0.1", 8080, "http"));
    for dataplane in &dataplanes {
        picture.put(dataplane.clone()).unwrap();
    }
    let certify = |picture: &mut Picture, at: usize| {
        picture.set_facts(&dataplanes[at].key, Some(healthy(&dataplanes[at])));
    };
    certify(&mut picture, 0);
    generate_all(&mut picture);
    assert!(touched_by_certificates(&picture, "default").is_empty(), "one is without");
    certify(&mut picture, 1);
    let touched = touched_by_certificates(&picture, "default");
    let named = |names: &[&str]| -> BTreeSet<(String, String)> {
        names.iter().map(|name| ("default".to_owned(), (*name).to_owned())).collect()
    };
    assert_eq!(touched.services, named(&["backend", "web"]));
    generate_all(&mut picture);
    assert!(touched_by_certificates(&picture, "default").is_empty(), "none waits any more");
}
