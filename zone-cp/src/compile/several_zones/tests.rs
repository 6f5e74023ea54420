//! What one zone says of its services, and what it can't make of others'.

use super::{MAX_FAR_IDENTITIES, MAX_FAR_PORTS, MAX_FAR_SERVICES};
use crate::compile::fixture::*;
use crate::compile::services::MAX_FAR_INGRESSES;
use crate::picture::{Picture, display_name};
use meridian_core::{Key, Resource};
use serde_json::{Value, json};

const WEB: &str = "web-1";
const ALL: &str = "default/*/all/9000";
const LEGACY: &str = "default//backend/9000";

fn all() -> Resource {
    let selector = json!({"meshService": {"matchLabels": {"of": "all"}}});
    let spec = json!({"selector": selector, "ports": [{"port": 9000}]});
    global("MeshMultiZoneService", "default", "all", spec)
}

/// One that [`all`] selects.
fn member(zone: &str, name: &str, ports: &[(usize, &str)]) -> Resource {
    let mut service = far_service(zone, name, "backend", ports);
    service.labels.insert("of".to_owned(), "all".to_owned());
    service
}

/// East, where nobody offers backend.
fn east() -> Picture {
    let mut picture = zone("east", "10.1.0", vec![dataplane("east", WEB, "web", "10.1.0.1", 8080, "http")]);
    picture.put(all()).unwrap();
    picture
}

fn with(mut picture: Picture, resources: impl IntoIterator<Item = Resource>) -> World {
    resources.into_iter().for_each(|resource| picture.put(resource).unwrap());
    World::new(picture)
}

fn destination(world: &World, name: &str) -> Value {
    world.one(&sidecar("east", WEB), "Destination", name)
}

/// Whose problem, and what.
fn problems(world: &World) -> Vec<(String, String)> {
    let services = &world.picture.meshes["default"].services;
    let name =
        |key: &Key| services.get(key).map_or(key.name.clone(), |it| display_name(&it.resource).to_owned());
    let all = world.audiences.problems().into_iter();
    all.map(|(key, reason)| (format!("{}/{}", key.zone, name(&key)), reason)).collect()
}

#[test]
fn no_zone_takes_http_from_what_others_speak() {
    let told = |own: Option<&str>, others: &[(&str, &str)]| {
        let mut picture = east();
        if let Some(own) = own {
            add(&mut picture, dataplane("east", "backend-1", "backend", "10.1.0.9", 9000, own));
            let mut service = picture.meshes["default"].services.values().next().unwrap().resource.clone();
            assert_eq!(service.key.name, "backend");
            service.labels.insert("of".to_owned(), "all".to_owned());
            picture.put(service).unwrap();
        }
        let world = with(picture, others.iter().map(|(zone, word)| member(zone, "backend", &[(9000, word)])));
        let spoken = [LEGACY, ALL].map(|name| destination(&world, name)["protocol"].clone());
        let problems = problems(&world).into_iter().map(|(whose, _)| whose).collect::<Vec<_>>();
        (spoken, problems)
    };
    let both = |word: &str| [json!(word), json!(word)];
    assert_eq!(told(None, &[("a", "http"), ("b", "http")]), (both("http"), vec![]));
    // The own zone's word, however many say something else.
    let (spoken, blamed) = told(Some("http"), &[("a", "tcp"), ("b", "tcp")]);
    assert_eq!(spoken, both("http"));
    for whose in ["a/backend", "b/backend", "/all"] {
        assert!(blamed.iter().any(|it| it == whose), "{whose} in {blamed:?}");
    }
    assert!(!blamed.iter().any(|it| it == "east/backend"), "{blamed:?}");
    // Most zones' word, wherever the others stand among the keys.
    assert_eq!(told(None, &[("a", "tcp"), ("b", "http"), ("c", "http")]).0, both("http"));
    assert_eq!(told(None, &[("a", "http"), ("b", "http"), ("c", "tcp")]).0, both("http"));
    // As many of each: what both are.
    assert_eq!(told(None, &[("a", "http"), ("b", "tcp")]).0, both("tcp"));
    assert_eq!(told(None, &[("a", "grpc"), ("b", "http")]).0, both("http"));
}

#[test]
fn who_differs_is_told_what_to_do() {
    let services = ["a", "b", "c"].map(|zone| {
        member(zone, "backend", &[(9000, if zone == "a" { "tcp" } else { "http" }), (9001, "tcp")])
    });
    let world = with(east(), services);
    let told = problems(&world);
    let legacy = "port 9000: http is spoken with kuma.io/service backend, not tcp, since zones declare different \
                  protocols: give the port one appProtocol in all of them";
    assert!(told.contains(&("a/backend".to_owned(), legacy.to_owned())), "{told:?}");
    let many = "port 9000: http is spoken, since its MeshServices declare different protocols: give them one \
                appProtocol, or this port the one that is meant";
    assert!(told.contains(&("/all".to_owned(), many.to_owned())), "{told:?}");
}

/// What a zone says of identities holds at its own endpoints: else it could name one of its own for another zone's.
#[test]
fn each_zones_identities_are_its_own() {
    let mut greedy = member("a", "backend", &[(9000, "http")]);
    greedy.spec["identities"] = json!([
        {"type": "SpiffeID", "value": "spiffe://default/mine"}, {"type": "ServiceTag", "value": "backend"},
    ]);
    let world = with(east(), [greedy, member("b", "backend", &[(9000, "http")])]);
    let expected = json!({
        "a": ["spiffe://default/backend", "spiffe://default/mine"], "b": ["spiffe://default/backend"],
    });
    for name in [LEGACY, ALL] {
        assert_eq!(destination(&world, name)["tls"]["identities"], expected, "{name}");
    }
}

#[test]
fn a_zone_has_a_bounded_part_in_a_destination() {
    let name = |n: usize| format!("v{n:03}");
    let many = || (0..MAX_FAR_SERVICES + 4).map(|n| member("a", &name(n), &[(9000, "http")]));
    let others = || [member("b", "backend", &[(9000, "http")])];
    let first = || (0..MAX_FAR_SERVICES).map(|n| format!("default/a/{}/9000", name(n)));
    let expected: Vec<String> = first().chain(["default/b/backend/9000".to_owned()]).collect();
    let mut told = Vec::new();
    // Whatever comes first.
    for world in
        [with(east(), many().chain(others())), with(east(), others().into_iter().chain(many()).rev())]
    {
        for name in [LEGACY, ALL] {
            assert_eq!(destination(&world, name)["tiers"], json!([expected]), "{name}");
        }
        told.push(problems(&world));
    }
    assert_eq!(told[0], told[1]);
    let legacy = format!(
        "zone a has {} MeshServices for kuma.io/service backend: {MAX_FAR_SERVICES} of one zone take part, with \
         {MAX_FAR_IDENTITIES} bytes of identities, the first by name; remove some",
        MAX_FAR_SERVICES + 4
    );
    let all = legacy.replace("kuma.io/service backend", "MeshMultiZoneService all");
    let expected = [("/all".to_owned(), all), (format!("a/{}", name(MAX_FAR_SERVICES)), legacy)];
    assert_eq!(told[0], expected);
}

/// Else a zone could fill the message that a destination is told in, and so take the destination from all.
#[test]
fn a_zones_identities_fill_nobodys_destination() {
    let long = |n: usize| {
        let mut service = member("a", &format!("v{n}"), &[(9000, "http")]);
        let id = |of: usize| json!({"type": "SpiffeID", "value": format!("spiffe://default/{n}/{of}/{}", "x".repeat(1_900))});
        service.spec["identities"] = (0..4).map(id).collect();
        service
    };
    let world = with(east(), (0..16).map(long).chain([member("b", "backend", &[(9000, "http")])]));
    for name in [LEGACY, ALL] {
        let told = destination(&world, name);
        assert_eq!(
            told["tiers"],
            json!([["default/a/v0/9000", "default/a/v1/9000", "default/b/backend/9000"]])
        );
        let of_a: usize = told["tls"]["identities"]["a"]
            .as_array()
            .unwrap()
            .iter()
            .map(|id| id.as_str().unwrap().len())
            .sum();
        assert!(of_a <= MAX_FAR_IDENTITIES);
        assert_eq!(told["tls"]["identities"]["b"], json!(["spiffe://default/backend"]));
    }
    let whose: Vec<String> = problems(&world).into_iter().map(|(whose, _)| whose).collect();
    assert_eq!(whose, ["/all", "a/v10"]);
}

#[test]
fn a_zone_adds_a_bounded_number_of_ways() {
    let mut picture = east();
    picture.put(member("a", "backend", &[(9000, "http")])).unwrap();
    for n in 0..40 {
        let address = json!({
            "address": "10.9.0.1", "port": 10001, "advertisedAddress": format!("192.0.2.{n}"), "advertisedPort": 10001,
        });
        let ingress = local("a", "ZoneIngress", "", &format!("way-{n:02}"), json!({"networking": address}));
        picture.put(abroad("a", ingress)).unwrap();
    }
    let world = World::new(picture);
    let set = world.one(&egress("east"), "EndpointSet", "ingress/a");
    assert_eq!(set["endpoints"].as_array().unwrap().len(), MAX_FAR_INGRESSES);
    let said = problems(&world);
    assert!(said.iter().any(|(_, reason)| reason.starts_with("zone a has 40 ZoneIngresses: 32")), "{said:?}");
}

#[test]
fn a_zone_adds_a_bounded_number_of_ports() {
    let half = |from: usize| (from..from + MAX_FAR_PORTS).map(|port| (port, "tcp")).collect::<Vec<_>>();
    let (low, high) = (half(1_000), half(5_000));
    let services = [
        far_service("a", "one", "backend", &high),
        far_service("a", "two", "backend", &low),
        far_service("b", "backend", "backend", &[(9000, "http")]),
    ];
    let world = with(east(), services);
    let shown = world.shown(&sidecar("east", WEB));
    let ports: Vec<&str> =
        shown["Destination"].keys().filter_map(|name| name.strip_prefix("default//backend/")).collect();
    assert_eq!(ports.len(), MAX_FAR_PORTS + 1);
    assert!(ports.contains(&"1000") && ports.contains(&"9000") && !ports.contains(&"5000"), "{ports:?}");
    let told = problems(&world);
    let text = format!(
        "zone a has {} ports for kuma.io/service backend: {MAX_FAR_PORTS} of one zone are taken, the lowest; remove some",
        2 * MAX_FAR_PORTS
    );
    assert_eq!(told, [("a/one".to_owned(), text)]);
}
