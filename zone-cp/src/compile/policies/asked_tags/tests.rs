//! What proxies are told of tags.

use crate::compile::fixture::*;
use crate::picture::Picture;
use meridian_core::{Key, Resource};
use serde_json::{Value, json};

fn near(tags: &[&str]) -> Resource {
    let tags: Vec<Value> = tags.iter().map(|key| json!({"key": key})).collect();
    let default = json!({"localityAwareness": {"localZone": {"affinityTags": tags}}});
    global("MeshLoadBalancingStrategy", "default", "near", to(default))
}

fn elsewhere(tags: Value) -> Resource {
    let selection = json!([{"predicate": "OmitHostsWithTags", "tags": tags}]);
    global("MeshRetry", "default", "elsewhere", to(json!({"http": {"hostSelection": selection}})))
}

fn to(default: Value) -> Value {
    json!({"to": [{"targetRef": {"kind": "Mesh"}, "default": default}]})
}

/// East with a backend of its own beside those of west; instances say where they stand.
fn racks() -> Picture {
    let (mut east, _) = world();
    let mut backend = dataplane("east", "backend-9", "backend", "10.1.0.9", 9000, "http");
    backend.spec["networking"]["inbound"][0]["tags"]["rack"] = json!("r1");
    backend.labels.insert("k8s/node".into(), "n1".into());
    add(&mut east, backend);
    east
}

fn endpoint_tags(world: &World, set: &str) -> Value {
    let shown = world.shown(&sidecar("east", "web-1"));
    let (_, found) = shown["EndpointSet"].iter().find(|(name, _)| name.starts_with(set)).unwrap();
    found["endpoints"][0].get("tags").cloned().unwrap_or(Value::Null)
}

const OWN: &str = "default/east/backend";
const FAR: &str = "default/west/backend";

fn own_tags(world: &World) -> Value {
    world.one(&sidecar("east", "web-1"), "Proxy", "self").get("tags").cloned().unwrap_or(Value::Null)
}

#[test]
fn endpoints_bear_the_tags_that_some_policy_asks_for() {
    let mut world = World::new(racks());
    assert_eq!(endpoint_tags(&world, OWN), Value::Null, "nobody asks");
    world.put(near(&["rack", "k8s/node", "nobodys"]));
    assert_eq!(
        endpoint_tags(&world, OWN),
        json!({"rack": "r1", "k8s/node": "n1"}),
        "a label stands for a tag"
    );
    world.put(elsewhere(json!({"rack": "r2", "kuma.io/zone": "west"})));
    let all = json!({"rack": "r1", "k8s/node": "n1", "kuma.io/zone": "east"});
    assert_eq!(endpoint_tags(&world, OWN), all);
    assert_eq!(
        endpoint_tags(&world, FAR),
        json!({"kuma.io/zone": "west"}),
        "more is not known of another zone's"
    );
    world.put(near(&["k8s/node"]));
    assert_eq!(endpoint_tags(&world, OWN), all, "the other one still asks");
    for name in ["MeshLoadBalancingStrategy/near", "MeshRetry/elsewhere"] {
        let (kind_name, name) = name.split_once('/').unwrap();
        world.remove(&Key::global(kind(kind_name), "default", name));
    }
    assert_eq!((endpoint_tags(&world, OWN), endpoint_tags(&world, FAR)), (Value::Null, Value::Null));
}

#[test]
fn a_sidecar_is_told_its_own_values() {
    let mut east = racks();
    let mut web = dataplane("east", "web-1", "web", "10.1.0.1", 8080, "http");
    let mut second = web.spec["networking"]["inbound"][0].clone();
    web.spec["networking"]["inbound"][0]["tags"]["rack"] = json!("r1");
    (second["port"], second["tags"]["rack"]) = (json!(8090), json!("r2"));
    web.spec["networking"]["inbound"].as_array_mut().unwrap().push(second);
    add(&mut east, web);
    let mut world = World::new(east);
    assert_eq!(own_tags(&world), Value::Null);
    world.put(near(&["rack", "kuma.io/zone", "nobodys"]));
    assert_eq!(own_tags(&world), json!({"rack": ["r1", "r2"], "kuma.io/zone": ["east"]}));
}

#[test]
fn a_tag_that_nobody_asks_for_sends_no_endpoints() {
    let mut world = World::new(racks());
    world.put(near(&["rack"]));
    let version = |world: &World| {
        let all = world.views.open(&sidecar("east", "web-1")).list();
        let of: Vec<_> =
            all.into_iter().filter(|it| &*it.type_ == "EndpointSet").map(|it| it.version).collect();
        of
    };
    let before = version(&world);
    let mut backend = dataplane("east", "backend-9", "backend", "10.1.0.9", 9000, "http");
    backend.spec["networking"]["inbound"][0]["tags"]["rack"] = json!("r1");
    backend.spec["networking"]["inbound"][0]["tags"]["team"] = json!("blue");
    world.put(backend.clone());
    assert_eq!(version(&world), before);
    backend.spec["networking"]["inbound"][0]["tags"]["rack"] = json!("r2");
    world.put(backend);
    assert_ne!(version(&world), before);
    assert_eq!(endpoint_tags(&world, OWN), json!({"rack": "r2"}));
}

/// Sets are cut by what they take, tags included: none outgrows a resource.
#[test]
fn long_tags_cut_sets_into_more_parts() {
    let (mut east, _) = world();
    for n in 0..600 {
        let mut backend = dataplane(
            "east",
            &format!("backend-{n}"),
            "many",
            &format!("10.9.{}.{}", n / 250, n % 250),
            9000,
            "http",
        );
        backend.spec["networking"]["inbound"][0]["tags"]["rack"] = json!("r".repeat(1_000));
        let key = backend.key.clone();
        east.set_facts(&key, Some(healthy(&backend)));
        east.put(backend).unwrap();
    }
    generate_all(&mut east);
    let mut world = World::new(east);
    let sets = |world: &World| {
        let shown = world.shown(&sidecar("east", "web-1"));
        let of = shown["EndpointSet"].keys().filter(|name| name.starts_with("default/east/many"));
        let destination =
            shown["Destination"]["default/east/many/9000"]["tiers"][0].as_array().unwrap().len();
        (of.count(), destination)
    };
    assert_eq!(sets(&world), (1, 1));
    world.put(near(&["rack"]));
    let (parts, named) = sets(&world);
    assert!(parts > 2 && parts == named, "{parts} {named}");
    assert!(world.audiences.problems().is_empty(), "{:?}", world.audiences.problems());
}

#[test]
fn only_a_service_of_all_zones_says_that_it_spans_them() {
    let world = World::new(racks());
    let shown = world.shown(&sidecar("east", "web-1"));
    for (name, destination) in &shown["Destination"] {
        let spans = destination.get("spansZones").is_some();
        assert_eq!(spans, name.starts_with("default//"), "{name}");
    }
}
