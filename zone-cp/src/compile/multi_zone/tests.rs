//! What sidecars are told of MeshMultiZoneServices.

use crate::compile::fixture::*;
use crate::picture::Picture;
use meridian_core::Resource;
use serde_json::{Value, json};

const ALL: &str = "default/*/all/9000";
const WEB: &str = "web-1";

fn all(selector: Value, ports: Value) -> Resource {
    let spec = json!({"selector": {"meshService": {"matchLabels": selector}}, "ports": ports});
    global("MeshMultiZoneService", "default", "all", spec)
}

fn backends() -> Resource {
    all(json!({"kuma.io/display-name": "backend"}), json!([{"port": 9000, "appProtocol": "http"}]))
}

/// East, with a backend of its own.
fn both() -> Picture {
    let (mut east, _) = world();
    add(&mut east, dataplane("east", "backend-9", "backend", "10.1.0.9", 9000, "http"));
    east
}

fn with(mut picture: Picture, resources: impl IntoIterator<Item = Resource>) -> World {
    resources.into_iter().for_each(|resource| picture.put(resource).unwrap());
    World::new(picture)
}

fn destination(world: &World) -> Value {
    world.one(&sidecar("east", WEB), "Destination", ALL)
}

#[test]
fn the_zones_own_come_first_and_every_member_may_answer() {
    let mut renamed = abroad(
        "west",
        local(
            "west",
            "MeshService",
            "default",
            "store",
            json!({
                "ports": [{"port": 9000, "appProtocol": "http2"}], "state": "Available",
                "identities": [{"type": "ServiceTag", "value": "store"}],
            }),
        ),
    );
    renamed.labels.insert("tier".to_owned(), "gold".to_owned());
    renamed.status = Some(json!({"dataplaneProxies": {"connected": 2, "healthy": 2, "total": 2}}));
    let mut picture = both();
    for mut backend in
        picture.meshes["default"].services.values().map(|it| it.resource.clone()).collect::<Vec<_>>()
    {
        if backend.labels["kuma.io/display-name"] == "backend" {
            backend.labels.insert("tier".to_owned(), "gold".to_owned());
            picture.put(backend).unwrap();
        }
    }
    let gold = all(json!({"tier": "gold"}), json!([{"port": 9000, "appProtocol": "http"}, {"port": 1}]));
    let world = with(picture, [renamed, gold]);
    let told = destination(&world);
    assert_eq!(
        told,
        json!({
            "service": "all", "protocol": "http",
            "tls": {"mode": "mutual", "mesh": "default",
                "identities": {
                    "east": ["spiffe://default/backend"],
                    "west": ["spiffe://default/backend", "spiffe://default/store"],
                }},
            "tiers": [["default/east/backend/9000"], ["default/west/backend/9000", "default/west/store/9000"]],
            "spansZones": true,
        })
    );
    // The name of the session is the member's: its zone's ingress knows no other.
    let far = world.one(&sidecar("east", WEB), "EndpointSet", "default/west/store/9000");
    let sni = far["endpoints"][0]["sni"].as_str().unwrap();
    assert!(sni.starts_with("sni.msvc.default.west.store."), "{sni}");
}

#[test]
fn it_has_an_address_and_the_names_that_generators_make() {
    let world = with(both(), [backends()]);
    let outbound = world.one(&sidecar("east", WEB), "Outbound", ALL);
    assert_eq!(outbound["hostnames"], json!(["all.mzsvc.mesh.local"]));
    assert_eq!(outbound["target"], json!({"destination": ALL}));
    assert!(outbound["vips"][0].as_str().unwrap().starts_with("243."), "{outbound}");
}

#[test]
fn who_selects_nothing_leads_nowhere_and_says_so_to_callers_only() {
    let world = with(both(), [all(json!({"kuma.io/display-name": "absent"}), json!([{"port": 9000}]))]);
    assert_eq!(destination(&world)["tiers"], json!([]));
    assert_eq!(destination(&world)["tls"]["identities"], json!({}));
    assert!(world.audiences.problems().is_empty());
}

#[test]
fn what_is_spoken_is_what_the_members_speak() {
    let speaks = |declared: &str, own: &str| {
        let (mut east, _) = world();
        add(&mut east, dataplane("east", "backend-9", "backend", "10.1.0.9", 9000, own));
        let port = json!([{"port": 9000, "appProtocol": declared}]);
        let world = with(east, [all(json!({"kuma.io/display-name": "backend"}), port)]);
        let told = destination(&world);
        let problems: Vec<String> = world
            .audiences
            .problems()
            .into_iter()
            .filter(|(_, reason)| reason.contains("has no part in it"))
            .map(|(_, reason)| reason)
            .collect();
        (told["protocol"].clone(), told["tiers"].as_array().unwrap().len(), problems)
    };
    // West's speaks http.
    assert_eq!(speaks("http", "http"), (json!("http"), 2, vec![]));
    assert_eq!(speaks("tcp", "http"), (json!("http"), 2, vec![]));
    assert_eq!(speaks("grpc", "grpc"), (json!("grpc"), 2, vec![]));
    let west = "port 9000: backend in west has no part in it: TCP is spoken there".to_owned();
    assert_eq!(speaks("tcp", "tcp"), (json!("tcp"), 1, vec![west]));
    let east = "port 9000: backend in east has no part in it: HTTP is spoken there".to_owned();
    assert_eq!(speaks("http", "tcp"), (json!("http"), 1, vec![east]));
}

#[test]
fn plaintext_stays_in_the_zone() {
    let plain = mesh(json!({"networking": {"outbound": {"passthrough": false}}}));
    let world = with(both(), [plain, backends()]);
    assert_eq!(destination(&world)["tiers"], json!([["default/east/backend/9000"]]));
}

#[test]
fn a_label_of_a_member_decides_at_once() {
    let mut world = with(both(), [all(json!({"tier": "gold"}), json!([{"port": 9000}]))]);
    assert_eq!(destination(&world)["tiers"], json!([]));
    let far = world.picture.meshes["default"].services.values();
    let far = far.filter(|it| it.resource.key.zone == "west").map(|it| it.resource.clone());
    let mut member = far.into_iter().next().unwrap();
    member.labels.insert("tier".to_owned(), "gold".to_owned());
    world.put(member.clone());
    assert_eq!(destination(&world)["tiers"], json!([["default/west/backend/9000"]]));
    member.labels.remove("tier");
    world.put(member);
    assert_eq!(destination(&world)["tiers"], json!([]));
}

#[test]
fn by_reference_and_for_those_who_say_that_they_reach_it() {
    let mut web = dataplane("east", "web-2", "web", "10.1.0.2", 8080, "http");
    let networking = &mut web.spec["networking"];
    networking["transparentProxying"]["reachableBackends"] =
        json!({"refs": [{"kind": "MeshMultiZoneService", "name": "all"}]});
    networking["outbound"] = json!([
        {"port": 10001, "backendRef": {"kind": "MeshMultiZoneService", "name": "all", "port": 9000}},
        {"port": 10002, "backendRef": {"kind": "MeshMultiZoneService", "name": "all", "port": 1}},
    ]);
    let mut picture = both();
    picture.put(backends()).unwrap();
    add(&mut picture, web);
    let world = World::new(picture);
    let shown = world.shown(&sidecar("east", "web-2"));
    let explicit = &shown["Outbound"]["explicit/127.0.0.1:10001"];
    assert_eq!(explicit["target"], json!({"destination": ALL}));
    assert!(!shown["Outbound"].contains_key("explicit/127.0.0.1:10002"));
    // Its members' endpoints, and not their names.
    assert!(shown["EndpointSet"].contains_key("default/west/backend/9000"));
    assert!(!shown["Outbound"].contains_key("default/west/backend/9000"));
    assert!(shown["Outbound"].contains_key(ALL));
    let problems = world.audiences.problems();
    let reason = &problems.iter().next().unwrap().1;
    assert_eq!(reason, "outbound on port 10002: there is no MeshMultiZoneService all with port 1");
}
