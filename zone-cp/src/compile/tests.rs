//! What each proxy of two zones is told, as snapshots, and the rules that decide, as tables.

use super::fixture::*;
use crate::picture::{Facts, Picture};
use meridian_core::Key;
use serde_json::{Value, json};

#[test]
fn what_the_proxies_of_two_zones_are_told() {
    let (east, west) = world();
    let (east, west) = (World::new(east), World::new(west));
    insta::assert_yaml_snapshot!("east_web", east.shown(&sidecar("east", "web-1")));
    insta::assert_yaml_snapshot!("east_ingress", east.shown(&ingress("east")));
    insta::assert_yaml_snapshot!("east_egress", east.shown(&egress("east")));
    insta::assert_yaml_snapshot!("west_backend", west.shown(&sidecar("west", "backend-1")));
    insta::assert_yaml_snapshot!("west_ingress", west.shown(&ingress("west")));
    insta::assert_yaml_snapshot!("west_egress", west.shown(&egress("west")));
    assert_eq!(east.audiences.problems().len() + west.audiences.problems().len(), 0);
}

fn via(world: &World, entry: &str) -> Value {
    world.one(&sidecar("east", "web-1"), "External", entry)["via"].clone()
}

fn east_with(mesh_spec: Value) -> World {
    let (mut east, _) = world();
    east.put(mesh(mesh_spec)).unwrap();
    World::new(east)
}

const HTTPBIN: &str = "default/es/httpbin";
const LEDGER: &str = "default/es/ledger";
const BILLING: &str = "default/extsvc//billing";

#[test]
fn external_traffic_goes_through_the_egress_or_nowhere() {
    let mut east = east_with(strict());
    assert_eq!(via(&east, HTTPBIN)["egress"]["zone"], "east");
    assert_eq!(via(&east, LEDGER)["egress"]["zone"], "west");
    assert_eq!(via(&east, BILLING)["egress"]["zone"], "east");
    east.remove(&egress("east"));
    for entry in [HTTPBIN, LEDGER, BILLING] {
        assert_eq!(via(&east, entry), json!({"refused": "no-egress"}), "{entry}");
    }
    let passthrough = east.shown(&sidecar("east", "web-1"))["External"]
        .iter()
        .filter(|(name, _)| name.contains("/passthrough/"))
        .map(|(_, external)| external["via"].clone())
        .collect::<Vec<_>>();
    assert_eq!(passthrough, vec![json!({"refused": "no-egress"}); 2]);
    east.put(gateways("east", "10.1.0")[1].clone());
    assert_eq!(via(&east, HTTPBIN)["egress"]["zone"], "east");
}

#[test]
fn wildcards_and_ranges_reach_the_sidecar_the_entry_and_the_callers_list() {
    let mut east = east_with(strict());
    let matches = json!([
        {"type": "Domain", "value": "*.Cdn.example.", "port": 443, "protocol": "tls"},
        {"type": "Domain", "value": "*", "port": 80, "protocol": "http"},
        {"type": "CIDR", "value": "198.51.100.77/24", "port": 5432, "protocol": "tcp"},
    ]);
    let spec = json!({"targetRef": {"kind": "Mesh"}, "default": {"appendMatch": matches}});
    east.put(global("MeshPassthrough", "default", "updates", spec));
    let expected = [
        ("default/passthrough/CIDR/198.51.100.0/24/5432/tcp", json!([{"net": "198.51.100.0/24"}]), "tcp"),
        ("default/passthrough/Domain/*.cdn.example/443/tls", json!([{"wildcard": "cdn.example"}]), "tls"),
        ("default/passthrough/Domain/*/80/http", json!([{"wildcard": ""}]), "http"),
    ];
    let [web, out] = [sidecar("east", "web-1"), egress("east")].map(|key| east.shown(&key));
    for (key, hosts, protocol) in &expected {
        for (kind, shown) in [("External", &web), ("Entry", &out)] {
            assert_eq!(shown[kind][*key]["hosts"], *hosts, "{kind} {key}");
            assert_eq!(shown[kind][*key]["protocol"], *protocol, "{kind} {key}");
        }
        assert!(!web["Outbound"].contains_key(*key), "{key} has no virtual address of the zone's");
    }
    assert_eq!(out["Caller"]["default/web-1"]["entries"], json!(expected.each_ref().map(|(key, ..)| key)));
    assert_eq!(via(&east, expected[1].0)["egress"]["zone"], "east");
}

#[test]
fn a_pinned_service_needs_the_other_zones_ingress() {
    let mut east = east_with(strict());
    let far = east.picture.ingresses.keys().find(|key| key.zone == "west").cloned().unwrap();
    east.remove(&far);
    assert_eq!(via(&east, LEDGER), json!({"refused": "zone-unreachable"}));
}

#[test]
fn without_zone_egress_the_sidecar_enforces_and_mesh_external_services_are_refused() {
    let mut spec = strict();
    spec["routing"]["zoneEgress"] = json!(false);
    let plain = json!({"networking": {"outbound": {"passthrough": false}}});
    for spec in [spec, plain] {
        let east = east_with(spec);
        assert_eq!(
            via(&east, HTTPBIN)["sidecar"]["hosts"],
            json!([{"exact": "httpbin.example"}, {"exact": "httpbin.mesh"}])
        );
        assert_eq!(via(&east, BILLING), json!({"refused": "no-egress"}));
        assert_eq!(via(&east, LEDGER), json!({"refused": "no-egress"}), "it leaves from another zone");
        let proxy = east.one(&sidecar("east", "web-1"), "Proxy", "self");
        assert_eq!(proxy["protected"], json!(["10.1.0.1", "10.1.0.10", "10.1.0.11"]));
        assert!(!east.shown(&egress("east")).contains_key("Entry"));
    }
}

#[test]
fn passthrough_goes_the_same_way() {
    for (zone_egress, passthrough, expected) in
        [(true, true, "Egress"), (false, true, "Direct"), (true, false, "Refuse"), (false, false, "Refuse")]
    {
        let mut spec = strict();
        spec["routing"]["zoneEgress"] = json!(zone_egress);
        spec["networking"]["outbound"]["passthrough"] = json!(passthrough);
        let mut east = east_with(spec);
        east.remove(&Key::global(kind("MeshPassthrough"), "default", "updates"));
        let proxy = east.one(&sidecar("east", "web-1"), "Proxy", "self");
        assert!(proxy["unlisted"]["mode"].as_str().unwrap().eq_ignore_ascii_case(expected), "{proxy}");
        assert_eq!(proxy["dns"]["forwardAll"], json!(passthrough));
        if zone_egress {
            let caller = east.one(&egress("east"), "Caller", "default/web-1");
            let mode = caller["mode"].as_str().unwrap().to_lowercase();
            assert_eq!(mode, if passthrough { "all" } else { "none" });
        }
    }
}

#[test]
fn a_missing_secret_refuses_the_destination_and_says_so() {
    let mut east = east_with(strict());
    east.remove(&Key::global(kind("Secret"), "default", "billing-ca"));
    assert_eq!(via(&east, BILLING), json!({"refused": "invalid-entry"}));
    assert!(!east.shown(&egress("east"))["Entry"].contains_key(BILLING));
    let problems = east.audiences.problems();
    assert!(
        problems.iter().all(|(key, reason)| key.name == "billing" && reason.contains("billing-ca")),
        "{problems:?}"
    );
    assert_eq!(problems.len(), 1);
}

/// A secret goes only to proxies that need it.
#[test]
fn only_the_egress_that_a_destination_leaves_by_gets_its_secrets() {
    let (east, west) = world();
    let (east, west) = (World::new(east), World::new(west));
    let holds = |world: &World, key: &Key| {
        world
            .views
            .open(key)
            .list()
            .iter()
            .any(|resource| String::from_utf8_lossy(&resource.body).contains("PEM CA"))
    };
    assert!(holds(&east, &egress("east")) && holds(&west, &egress("west")));
    for key in [sidecar("east", "web-1"), ingress("east")] {
        assert!(!holds(&east, &key), "{key}");
    }
}

#[test]
fn mtls_of_a_destination() {
    let permissive = || {
        let mut spec = strict();
        spec["mtls"]["backends"][0]["mode"] = json!("PERMISSIVE");
        spec
    };
    let off = json!({"networking": {"outbound": {"passthrough": false}}});
    let west_with = |spec: Value, facts: fn(&Picture, &Key) -> Facts| {
        let (_, mut west) = world();
        // Nothing is known of certificates yet.
        let keys: Vec<Key> = west.meshes["default"].dataplanes.keys().cloned().collect();
        let services: Vec<Key> = west.meshes["default"].services.keys().cloned().collect();
        services.iter().for_each(|key| west.remove(key));
        west.put(mesh(spec)).unwrap();
        for key in keys {
            let facts = facts(&west, &key);
            west.set_facts(&key, Some(facts));
        }
        generate_all(&mut west);
        let world = World::new(west);
        world.one(&sidecar("west", "backend-1"), "Destination", "default/west/backend/9000")["tls"]["mode"]
            .clone()
    };
    let without: fn(&Picture, &Key) -> Facts = |picture, key| Facts {
        certified: Default::default(),
        ..healthy_at(key, &picture.meshes["default"].dataplanes[key].spec)
    };
    let with: fn(&Picture, &Key) -> Facts =
        |picture, key| healthy_at(key, &picture.meshes["default"].dataplanes[key].spec);
    let all_but_one: fn(&Picture, &Key) -> Facts = |picture, key| {
        let facts = healthy_at(key, &picture.meshes["default"].dataplanes[key].spec);
        if key.name == "backend-2" { Facts { certified: Default::default(), ..facts } } else { facts }
    };
    let lower = |mode: Value| mode.as_str().unwrap().to_lowercase();
    assert_eq!(lower(west_with(off, with)), "off");
    assert_eq!(lower(west_with(strict(), without)), "mutual", "plaintext is never an answer under STRICT");
    assert_eq!(lower(west_with(permissive(), without)), "off");
    assert_eq!(lower(west_with(permissive(), all_but_one)), "off", "one has none yet");
    assert_eq!(lower(west_with(permissive(), with)), "mutual");
}

#[test]
fn mtls_never_goes_back() {
    let (_, mut west) = world();
    let mut spec = strict();
    spec["mtls"]["backends"][0]["mode"] = json!("PERMISSIVE");
    west.put(mesh(spec)).unwrap();
    generate_all(&mut west);
    // A new instance, without a certificate yet.
    let late = dataplane("west", "backend-4", "backend", "10.2.0.4", 9000, "http");
    add(&mut west, late.clone());
    west.set_facts(&late.key, Some(Facts { certified: Default::default(), ..healthy(&late) }));
    generate_all(&mut west);
    let west = World::new(west);
    let destination = west.one(&sidecar("west", "backend-1"), "Destination", "default/west/backend/9000");
    assert!(destination["tls"]["mode"].as_str().unwrap().eq_ignore_ascii_case("mutual"));
    let endpoints = west.one(&sidecar("west", "backend-1"), "EndpointSet", "default/west/backend/9000");
    assert_eq!(endpoints["endpoints"].as_array().unwrap().len(), 3, "no client could speak to it");
}

#[test]
fn a_remote_service_counts_as_its_ready_instances() {
    for (instances, ingresses, expected) in
        [(3, 1, vec![3]), (1, 1, vec![1]), (100, 1, vec![32]), (5, 2, vec![3, 2]), (0, 1, vec![])]
    {
        let mut spec = strict();
        spec["routing"]["zoneEgress"] = json!(false);
        let (mut east, west) = world();
        east.put(mesh(spec)).unwrap();
        let service =
            west.meshes["default"].services.values().find(|it| it.resource.key.name == "backend").unwrap();
        let mut resource = service.resource.clone();
        resource.status.as_mut().unwrap()["dataplaneProxies"]["healthy"] = json!(instances);
        east.put(abroad("west", resource)).unwrap();
        for n in 1..ingresses {
            let networking = json!({"address": "10.2.0.20", "port": 10001, "advertisedAddress": "10.2.0.20", "advertisedPort": 10001});
            let more =
                local("west", "ZoneIngress", "", &format!("ingress-{n}"), json!({"networking": networking}));
            east.put(abroad("west", more)).unwrap();
        }
        let east = World::new(east);
        let set = east.one(&sidecar("east", "web-1"), "EndpointSet", &remote_name(&east));
        let mut replicas: Vec<u64> =
            set["endpoints"].as_array().unwrap().iter().map(|it| it["replicas"].as_u64().unwrap()).collect();
        replicas.sort_by(|a, b| b.cmp(a));
        assert_eq!(replicas, expected, "{instances} instances behind {ingresses}");
    }
}

fn remote_name(world: &World) -> String {
    let shown = world.shown(&sidecar("east", "web-1"));
    shown["EndpointSet"].keys().find(|name| name.contains("/west/backend")).unwrap().clone()
}

#[test]
fn legacy_names_reach_a_service_wherever_it_is() {
    for (mode, own) in
        [("Disabled", false), ("Everywhere", true), ("ReachableBackends", true), ("Exclusive", true)]
    {
        let mut spec = strict();
        spec["meshServices"] = json!({"mode": mode});
        let east = east_with(spec);
        let outbounds = &east.shown(&sidecar("east", "web-1"))["Outbound"];
        let answers = |name: &str| {
            let mut ports: Vec<u64> = outbounds
                .values()
                .filter(|it| it["hostnames"].as_array().unwrap().contains(&json!(name)))
                .map(|it| it["port"].as_u64().unwrap())
                .collect();
            ports.sort_unstable();
            ports
        };
        assert_eq!(answers("backend.mesh"), [80, 9000], "{mode}");
        assert_eq!(answers("backend.svc.west.mesh.local"), if own { vec![9000] } else { vec![] }, "{mode}");
        assert_eq!(answers("httpbin.example"), [443], "{mode}");
        assert_eq!(answers("billing.extsvc.mesh.local"), [80], "{mode}");
        assert_eq!(answers("httpbin.mesh"), [80, 443], "{mode}");
    }
}

/// A service of any zone that is tagged as an ExternalService loses its `.mesh` name to it, whatever came first, and
/// nothing else.
#[test]
fn no_service_takes_the_name_of_an_external_service() {
    let outside = || {
        global(
            "ExternalService",
            "default",
            "outside",
            json!({
                "tags": {"kuma.io/service": "Far", "kuma.io/protocol": "tcp"},
                "networking": {"address": "host.example:5432"},
            }),
        )
    };
    let web = sidecar("east", "web-1");
    let named = |world: &World| {
        let outbounds = world.shown(&web).remove("Outbound").unwrap();
        let named = outbounds
            .into_values()
            .filter(|it| it["hostnames"].as_array().unwrap().contains(&json!("far.mesh")));
        let mut named: Vec<(Value, Value)> =
            named.map(|it| (it["port"].clone(), it["target"].clone())).collect();
        named.sort_by_key(|(port, _)| port.as_u64());
        named
    };
    let mut west = zone("west", "10.2.0", vec![dataplane("west", "far-1", "far", "10.2.0.9", 9000, "http")]);
    let mut far = west.meshes["default"].services.values().next().unwrap().resource.clone();
    let own = dataplane("east", "far-2", "far", "10.1.0.9", 9000, "http");
    far = abroad("west", far);
    let expected = [80, 5432].map(|port| (json!(port), json!({"external": "default/es/outside"})));
    for order in 0..2 {
        let (mut east, _) = world();
        add(&mut east, own.clone());
        let mut east = World::new(east);
        let mut arrivals = [far.clone(), outside()];
        arrivals.rotate_left(order);
        arrivals.into_iter().for_each(|it| east.put(it));
        assert_eq!(named(&east), expected, "{order}");
        let told = east.shown(&web);
        assert_eq!(told["Outbound"]["default/es/outside/far.mesh/80"]["vips"].as_array().unwrap().len(), 1);
        assert!(
            told["Destination"].contains_key("default//far/9000"),
            "{order}: routes may still lead there"
        );
        assert!(told["Outbound"].contains_key("default/east/far/9000"), "{order}: its own names stay");
        let entry = east.one(&egress("east"), "Entry", "default/es/outside");
        assert_eq!(entry["hosts"], json!([{"exact": "far.mesh"}, {"exact": "host.example"}]), "{order}");
        assert_eq!(entry["ports"], json!([80, 5432]), "{order}");
        let blamed: Vec<String> = east
            .audiences
            .problems()
            .into_iter()
            .filter(|(_, reason)| reason.starts_with("far.mesh leads to the ExternalService outside"))
            .map(|(key, _)| key.zone)
            .collect();
        assert_eq!(blamed, ["east", "west"], "{order}");
        // Without it the name is the services' again.
        east.remove(&outside().key);
        let again = json!({"destination": "default//far/9000"});
        assert_eq!(named(&east), [80, 9000].map(|port| (json!(port), again.clone())), "{order}");
        assert!(east.audiences.problems().is_empty(), "{order}");
    }
    west.put(outside()).unwrap();
    let west = World::new(west);
    let shown = west.shown(&sidecar("west", "far-1"));
    assert!(!shown["Outbound"].contains_key("default//far/80"), "at home neither");
}

#[test]
fn local_instances_come_first() {
    let mut spec = strict();
    spec["meshServices"] = json!({"mode": "Everywhere"});
    let (mut east, _) = world();
    east.put(mesh(spec)).unwrap();
    add(&mut east, dataplane("east", "backend-9", "backend", "10.1.0.9", 9000, "http"));
    let east = World::new(east);
    let destination = east.one(&sidecar("east", "web-1"), "Destination", "default//backend/9000");
    assert_eq!(destination["tiers"][0], json!(["default/east/backend/9000"]));
    assert!(destination["tiers"][1][0].as_str().unwrap().starts_with("default/west/backend"));
}

#[test]
fn a_sidecar_learns_only_of_what_it_says_it_reaches() {
    let (mut east, _) = world();
    let mut narrow = dataplane("east", "api-1", "api", "10.1.0.2", 8081, "http");
    narrow.spec["networking"]["transparentProxying"]["reachableBackends"] = json!({"refs": [{"kind": "MeshService", "labels": {"kuma.io/display-name": "backend", "kuma.io/zone": "west"}}]});
    narrow.spec["networking"]["transparentProxying"]["reachableServices"] = json!(["httpbin"]);
    add(&mut east, narrow);
    let east = World::new(east);
    let shown = east.shown(&sidecar("east", "api-1"));
    let destinations: Vec<&String> = shown["Destination"].keys().collect();
    assert_eq!(destinations, ["default/west/backend/9000"]);
    assert_eq!(shown["External"].keys().collect::<Vec<_>>(), [HTTPBIN]);
}

#[test]
fn explicit_outbounds() {
    let (mut east, _) = world();
    let mut explicit = dataplane("east", "api-1", "api", "10.1.0.2", 8081, "http");
    explicit.spec["networking"]["transparentProxying"] = Value::Null;
    explicit.spec["networking"].as_object_mut().unwrap().remove("transparentProxying");
    explicit.spec["networking"]["outbound"] = json!([
        {"port": 10001, "tags": {"kuma.io/service": "backend"}},
        {"port": 10002, "backendRef": {"kind": "MeshService", "name": "backend", "port": 9000}},
        {"port": 10003, "backendRef": {"kind": "MeshExternalService", "name": "billing", "port": 80}},
        {"port": 10004, "tags": {"kuma.io/service": "httpbin"}},
        {"port": 10005, "tags": {"kuma.io/service": "nobody"}},
        {"port": 10006, "tags": {"kuma.io/service": "backend", "version": "2"}},
    ]);
    add(&mut east, explicit);
    let east = World::new(east);
    let key = sidecar("east", "api-1");
    let target =
        |port: u32| east.one(&key, "Outbound", &format!("explicit/127.0.0.1:{port}"))["target"].clone();
    assert_eq!(target(10001), json!({"destination": "default//backend/9000"}));
    let by_reference = target(10002)["destination"].as_str().unwrap().to_owned();
    assert!(by_reference.starts_with("default/west/backend"), "{by_reference}");
    assert_eq!(target(10003), json!({"external": BILLING}));
    assert_eq!(target(10004), json!({"external": HTTPBIN}));
    let shown = east.shown(&key);
    // Whatever an outbound names is there, with its endpoints.
    for destination in ["default//backend/9000", by_reference.as_str()] {
        let tiers = shown["Destination"][destination]["tiers"].as_array().unwrap().clone();
        let sets = tiers.iter().flat_map(|tier| tier.as_array().unwrap().clone());
        sets.for_each(|set| assert!(shown["EndpointSet"].contains_key(set.as_str().unwrap())));
    }
    let problems: Vec<String> = east.audiences.problems().into_iter().map(|(_, reason)| reason).collect();
    assert_eq!(problems.len(), 2, "{problems:?}");
}

#[test]
fn only_reported_readiness_makes_an_endpoint() {
    let (_, mut west) = world();
    let silent = dataplane("west", "backend-4", "backend", "10.2.0.4", 9000, "http");
    add(&mut west, silent.clone());
    let endpoints = |picture: &Picture| {
        let world = World::new(picture.clone());
        let set = world.one(&sidecar("west", "backend-1"), "EndpointSet", "default/west/backend/9000");
        set["endpoints"].as_array().unwrap().len()
    };
    assert_eq!(endpoints(&west), 4);
    west.set_facts(&silent.key, Some(Facts { ready: Default::default(), ..healthy(&silent) }));
    assert_eq!(endpoints(&west), 3, "its probe fails");
    west.set_facts(&silent.key, None);
    assert_eq!(endpoints(&west), 3, "its proxy never reported");
}
