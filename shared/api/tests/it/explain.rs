//! What would happen to a call, over a real store: in the mesh and out of it.

use crate::harness::{Server, external};
use meridian_core::{Key, Kind, Resource, labels};
use meridian_store::{Author, Change, Expect};
use serde_json::{Value, json};
use std::collections::BTreeMap;

async fn store(server: &Server, zone: &str, kind: &str, name: &str, spec: Value, status: Option<Value>) {
    let kind = Kind::named(kind).unwrap();
    let mesh = if kind.info().scope == meridian_core::Scope::Mesh { "default" } else { "" };
    let key = Key::new(kind, mesh, zone, name);
    let labels = labels::computed(&key, zone, &BTreeMap::new());
    let change = Change::Put { resource: Resource { key, labels, spec, status }, expect: Expect::Absent };
    server.store.write(&Author::system(), vec![change]).await.unwrap();
}

async fn policy(server: &Server, kind: &str, name: &str, spec: Value) {
    let plural = Kind::named(kind).unwrap().info().plural;
    let body = json!({"type": kind, "mesh": "default", "name": name, "spec": spec});
    let answer = server.put(&format!("/meshes/default/{plural}/{name}"), body).await;
    assert!(matches!(answer.status, 200 | 201), "{}", answer.text);
}

fn dataplane(service: &str, port: u32, protocol: &str) -> Value {
    json!({"networking": {"address": "192.0.2.1", "inbound": [
        {"port": port, "tags": {"kuma.io/service": service, "kuma.io/protocol": protocol}},
    ]}})
}

/// web in east calls backend in west; both zones have their gateways.
async fn world(server: &Server) {
    let mesh = json!({
        "type": "Mesh", "name": "default",
        "mtls": {"enabledBackend": "ca", "backends": [{"name": "ca", "type": "builtin", "mode": "STRICT"}]},
        "routing": {"zoneEgress": true},
        "networking": {"outbound": {"passthrough": false}},
    });
    assert_eq!(server.put("/meshes/default", mesh).await.status, 201);
    store(server, "east", "Dataplane", "web-1", dataplane("web", 8080, "http"), None).await;
    for name in ["backend-1", "backend-2"] {
        store(server, "west", "Dataplane", name, dataplane("backend", 9000, "http"), None).await;
    }
    let service = |tag: &str, port: u32| {
        json!({
            "selector": {"dataplaneTags": {"kuma.io/service": tag}}, "state": "Available",
            "ports": [{"port": port, "appProtocol": "http"}],
        })
    };
    let status = |count: u32| {
        Some(json!({"dataplaneProxies": {"connected": count, "healthy": count, "total": count}}))
    };
    store(server, "east", "MeshService", "web", service("web", 8080), status(1)).await;
    store(server, "west", "MeshService", "backend", service("backend", 9000), status(2)).await;
    for zone in ["east", "west"] {
        let networking = json!({"address": "192.0.2.9", "port": 10001, "advertisedAddress": "192.0.2.9", "advertisedPort": 10001});
        store(server, zone, "ZoneIngress", "ingress", json!({"zone": zone, "networking": networking}), None)
            .await;
    }
    for generator in meridian_core::kinds::hostname_generator::defaults() {
        let change = Change::Put { resource: generator, expect: Expect::Absent };
        server.store.write(&Author::system(), vec![change]).await.unwrap();
    }
    let networking = json!({"address": "192.0.2.8", "port": 10002});
    store(server, "east", "ZoneEgress", "egress", json!({"zone": "east", "networking": networking}), None)
        .await;
}

async fn ask(server: &Server, destination: &str) -> Value {
    let answer =
        server.get(&format!("/meshes/default/_explain?source=web-1&destination={destination}")).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()
}

#[track_caller]
fn step<'a>(answer: &'a Value, name: &str) -> &'a Value {
    let steps = answer["steps"].as_array().unwrap();
    steps.iter().find(|step| step["step"] == name).unwrap_or_else(|| panic!("{name} in {answer:#}"))
}

fn allow(target: Value, caller: &str) -> Value {
    json!({
        "targetRef": target,
        "from": [{"targetRef": {"kind": "MeshService", "name": caller}, "default": {"action": "Allow"}}],
    })
}

#[tokio::test]
async fn a_call_in_the_mesh_says_who_decides_what() {
    let server = Server::start().await;
    world(&server).await;
    for name in
        ["backend.mesh:80", "backend.mesh:9000", "backend", "http://backend.svc.west.mesh.local:9000/x"]
    {
        let answer = ask(&server, name).await;
        assert_eq!(answer["allowed"], false, "{answer:#}");
        assert_eq!(
            step(&answer, "MeshTrafficPermission")["text"],
            "refused by all 2 instances: no rule allows spiffe://default/web"
        );
    }
    policy(
        &server,
        "MeshTrafficPermission",
        "web",
        allow(json!({"kind": "MeshService", "name": "backend"}), "web"),
    )
    .await;
    let quick = json!({"to": [{
        "targetRef": {"kind": "MeshService", "name": "backend"}, "default": {"http": {"requestTimeout": "2s"}},
    }]});
    policy(&server, "MeshTimeout", "quick", quick).await;
    let limit = json!({"targetRef": {"kind": "Dataplane"}, "rules": [{"default": {"local": {"http": {"requestRate": {"num": 5, "interval": "1s"}}}}}]});
    policy(&server, "MeshRateLimit", "five", limit).await;
    let fault = |id: &str, status: u32| {
        json!({"rules": [{
            "matches": [{"spiffeID": {"type": "Exact", "value": format!("spiffe://default/{id}")}}],
            "default": {"http": [{"abort": {"httpStatus": status, "percentage": 10}}]},
        }]})
    };
    policy(&server, "MeshFaultInjection", "mine", fault("web", 503)).await;
    policy(&server, "MeshFaultInjection", "others", fault("other", 500)).await;

    let answer = ask(&server, "backend.mesh").await;
    assert_eq!(answer["allowed"], true, "{answer:#}");
    assert_eq!(answer["destination"]["port"], 9000);
    assert_eq!(
        step(&answer, "endpoints")["text"],
        "zone west: 2 of 2 ready, by the ZoneEgress of east and the ZoneIngress of west"
    );
    let permission = step(&answer, "MeshTrafficPermission");
    assert_eq!(permission["text"], "let in by all 2 instances");
    assert_eq!(permission["policies"][0]["name"], "web");
    let timeout = step(&answer, "MeshTimeout");
    assert_eq!(timeout["conf"], json!({"http": {"requestTimeout": "2s"}}), "{answer:#}");
    assert_eq!(
        timeout["policies"],
        json!([{"type": "MeshTimeout", "name": "quick", "kri": "kri_mt_default___quick_", "items": [0]}])
    );
    assert_eq!(
        step(&answer, "MeshRateLimit")["text"],
        "at all 2 instances: local http request rate interval 1s, local http request rate num 5"
    );
    let faults = step(&answer, "MeshFaultInjection");
    assert_eq!(faults["policies"].as_array().unwrap().len(), 1, "{faults}");
    assert_eq!(faults["policies"][0]["name"], "mine");

    let closed = ask(&server, "backend.mesh:81").await;
    assert_eq!(closed["allowed"], false);
    assert_eq!(step(&closed, "destination")["text"], "MeshService backend of zone west has no port 81");
}

#[tokio::test]
async fn what_is_tried_out_counts_when_asked_for() {
    let server = Server::start().await;
    world(&server).await;
    let body = json!({
        "type": "MeshTrafficPermission", "mesh": "default", "name": "try", "labels": {"kuma.io/effect": "shadow"},
        "spec": allow(json!({"kind": "Mesh"}), "web"),
    });
    assert_eq!(server.put("/meshes/default/meshtrafficpermissions/try", body).await.status, 201);
    assert_eq!(ask(&server, "backend.mesh").await["allowed"], false);
    let answer = ask(&server, "backend.mesh&shadow=true").await;
    assert_eq!(answer["allowed"], true, "{answer:#}");
    assert_eq!(step(&answer, "MeshTrafficPermission")["policies"][0]["name"], "try");
}

#[tokio::test]
async fn instances_that_differ_are_told_apart() {
    let server = Server::start().await;
    world(&server).await;
    let one = json!({"kind": "Dataplane", "labels": {"kuma.io/display-name": "backend-2"}});
    policy(&server, "MeshTrafficPermission", "one", allow(one, "web")).await;
    let answer = ask(&server, "backend.mesh").await;
    assert_eq!(answer["allowed"], Value::Null, "{answer:#}");
    let steps = answer["steps"].as_array().unwrap().iter();
    let said: Vec<&str> = steps
        .filter(|step| step["step"] == "MeshTrafficPermission")
        .map(|step| step["text"].as_str().unwrap())
        .collect();
    assert_eq!(
        said,
        [
            "refused by instance backend-1: no rule allows spiffe://default/web",
            "let in by instance backend-2",
        ]
    );
}

#[tokio::test]
async fn what_a_caller_may_not_reach_is_unknown_to_it() {
    let server = Server::start().await;
    world(&server).await;
    let mut narrow = dataplane("batch", 8080, "http");
    narrow["networking"]["transparentProxying"] = json!({"reachableBackends": {"refs": [
        {"kind": "MeshService", "labels": {"kuma.io/display-name": "web"}},
    ]}});
    store(&server, "east", "Dataplane", "batch-1", narrow, None).await;
    for (host, known) in
        [("web.svc.mesh.local", true), ("backend.svc.west.mesh.local", false), ("backend.mesh", true)]
    {
        let path = format!("/meshes/default/_explain?source=batch&destination={host}");
        let answer = server.get(&path).await.json();
        assert_eq!(
            step(&answer, "destination")["outcome"],
            if known { "passed" } else { "denied" },
            "{host}"
        );
    }
}

#[tokio::test]
async fn routes_say_which_rule_takes_the_request() {
    let server = Server::start().await;
    world(&server).await;
    let rule = |path: &str, backend: &str| {
        json!({
            "matches": [{"path": {"type": "PathPrefix", "value": path}}],
            "default": {"backendRefs": [{"kind": "MeshService", "name": backend, "port": 9000}]},
        })
    };
    let route = json!({"to": [{
        "targetRef": {"kind": "MeshService", "name": "backend"}, "rules": [rule("/", "backend"), rule("/v2", "backend-v2")],
    }]});
    policy(&server, "MeshHTTPRoute", "split", route).await;
    let answer = ask(&server, "backend.mesh&path=/v2/users").await;
    let taken = step(&answer, "MeshHTTPRoute");
    assert!(taken["text"].as_str().unwrap().contains("backend-v2"), "{taken}");
    assert_eq!(taken["policies"][0]["name"], "split");
    assert_eq!(answer["allowed"], Value::Null, "the service dialled is not who answers: {answer:#}");
    assert_eq!(
        step(&answer, "endpoints")["text"],
        "the route decides where it goes: ask for its backends by their names (MeshService backend-v2 port 9000)"
    );
    assert_eq!(steps(&answer), ["destination", "MeshHTTPRoute", "endpoints"]);
}

fn steps(answer: &Value) -> Vec<&str> {
    answer["steps"].as_array().unwrap().iter().map(|step| step["step"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn what_a_route_changes_is_told_of_the_request() {
    let server = Server::start().await;
    world(&server).await;
    policy(&server, "MeshTrafficPermission", "all", allow(json!({"kind": "Mesh"}), "web")).await;
    let backend = json!({"kind": "MeshService", "name": "backend"});
    let connections = json!({"to": [{"targetRef": backend, "rules": [
        {"default": {"backendRefs": [{"kind": "MeshService", "name": "other", "port": 9000}]}},
    ]}]});
    policy(&server, "MeshTCPRoute", "connections", connections).await;
    let answer = ask(&server, "backend.mesh").await;
    assert_eq!(answer["allowed"], Value::Null, "{answer:#}");
    assert_eq!(steps(&answer), ["destination", "MeshTCPRoute", "endpoints"]);

    let rule = |path: &str, conf: Value| json!({"matches": [{"path": {"type": "PathPrefix", "value": path}}], "default": conf});
    let redirect = json!({"type": "RequestRedirect", "requestRedirect": {"hostname": "new.example"}});
    let rules = json!([
        rule("/moved", json!({"filters": [redirect]})),
        rule("/split", json!({"backendRefs": [{"kind": "MeshService", "name": "other", "port": 9000}]})),
        rule("/plain", json!({})),
    ]);
    policy(&server, "MeshHTTPRoute", "mine", json!({"to": [{"targetRef": backend, "rules": rules}]})).await;
    let timeouts = |target: Value, conf: Value| json!({"to": [{"targetRef": target, "default": conf}]});
    let slow = json!({"connectionTimeout": "3s", "http": {"requestTimeout": "9s"}});
    policy(&server, "MeshTimeout", "slow", timeouts(backend.clone(), slow.clone())).await;
    let route = json!({"kind": "MeshHTTPRoute", "name": "mine"});
    let quick = json!({"connectionTimeout": "1s", "http": {"requestTimeout": "1s"}});
    policy(&server, "MeshTimeout", "quick", timeouts(route, quick)).await;

    let answer = ask(&server, "backend.mesh/other").await;
    assert_eq!(answer["allowed"], true, "{answer:#}");
    let overridden = step(&answer, "MeshTCPRoute")["text"].as_str().unwrap();
    assert!(overridden.ends_with("(not executed: a MeshHTTPRoute for the same destination comes first)"));
    assert_eq!(step(&answer, "MeshTimeout")["conf"], slow);

    let answer = ask(&server, "backend.mesh/plain").await;
    assert_eq!(answer["allowed"], true, "{answer:#}");
    let timeout = step(&answer, "MeshTimeout");
    let sum = json!({"connectionTimeout": "3s", "http": {"requestTimeout": "1s"}});
    assert_eq!(timeout["conf"], sum, "connections are the service's");
    assert_eq!(timeout["policies"][0]["name"], "quick");

    let answer = ask(&server, "backend.mesh/split").await;
    assert_eq!(answer["allowed"], Value::Null, "{answer:#}");
    assert_eq!(step(&answer, "MeshTimeout")["conf"], json!({"http": {"requestTimeout": "1s"}}));

    let answer = ask(&server, "backend.mesh/moved").await;
    assert_eq!(answer["allowed"], Value::Null, "{answer:#}");
    assert_eq!(
        step(&answer, "redirect")["text"],
        "the caller's sidecar answers with a redirect (hostname new.example): ask for where it leads"
    );
    assert_eq!(steps(&answer), ["destination", "MeshHTTPRoute", "MeshTCPRoute", "redirect"]);
}

#[tokio::test]
async fn plaintext_stays_in_its_zone() {
    let server = Server::start().await;
    world(&server).await;
    let mesh = json!({
        "type": "Mesh", "name": "default",
        "mtls": {"enabledBackend": "ca", "backends": [{"name": "ca", "type": "builtin", "mode": "PERMISSIVE"}]},
    });
    assert_eq!(server.put("/meshes/default", mesh).await.status, 200);
    let west = ask(&server, "backend.mesh").await;
    assert_eq!(step(&west, "endpoints")["outcome"], "passed", "no instance of east is without: {west:#}");
    assert_eq!(west["allowed"], false, "nobody permits it: {west:#}");

    store(&server, "east", "Dataplane", "backend-3", dataplane("backend", 9000, "http"), None).await;
    let service = json!({
        "selector": {"dataplaneTags": {"kuma.io/service": "backend"}}, "state": "Available",
        "ports": [{"port": 9000, "appProtocol": "http"}],
    });
    let status = json!({
        "dataplaneProxies": {"connected": 1, "healthy": 1, "total": 1}, "tls": {"status": "NotReady"},
    });
    store(&server, "east", "MeshService", "backend", service, Some(status)).await;
    let all = json!({
        "selector": {"meshService": {"matchLabels": {"kuma.io/display-name": "backend"}}},
        "ports": [{"port": 9000}],
    });
    store(&server, "", "MeshMultiZoneService", "all", all, None).await;
    for name in ["backend.mesh", "all.mzsvc.mesh.local:9000"] {
        let answer = ask(&server, name).await;
        assert_eq!(
            step(&answer, "endpoints")["text"],
            "zone east: 1 of 1 ready, in the caller's zone; \
             zone west: 2 of 2 ready, not reachable: plaintext does not cross zones"
        );
        assert_eq!(answer["allowed"], true, "plaintext needs no permission: {answer:#}");
    }
    let direct = ask(&server, "backend.svc.west.mesh.local:9000").await;
    assert_eq!(step(&direct, "endpoints")["outcome"], "passed", "to another zone always mTLS: {direct:#}");

    policy(&server, "MeshTLS", "strict", json!({"rules": [{"default": {"mode": "Strict"}}]})).await;
    for name in ["backend.mesh", "all.mzsvc.mesh.local:9000"] {
        let answer = ask(&server, name).await;
        let text = step(&answer, "endpoints")["text"].as_str().unwrap();
        assert!(!text.contains("plaintext"), "{text}");
        assert_eq!(answer["allowed"], false, "nobody permits it: {answer:#}");
    }
}

#[tokio::test]
async fn every_access_log_that_is_written_is_told() {
    let server = Server::start().await;
    world(&server).await;
    let log = |path: &str| json!({"backends": [{"type": "File", "file": {"path": path}}]});
    let spec = json!({"rules": [
        {"matches": [{"spiffeID": {"type": "Exact", "value": "spiffe://default/web"}}], "default": log("/web")},
        {"matches": [{"spiffeID": {"type": "Prefix", "value": "spiffe://default"}}], "default": log("/mesh")},
        {"default": log("/all")},
    ]});
    policy(&server, "MeshAccessLog", "logs", spec).await;
    let answer = ask(&server, "backend.mesh").await;
    let said = step(&answer, "MeshAccessLog");
    let paths: Vec<&str> = said["conf"]
        .as_array()
        .unwrap_or_else(|| panic!("{said:#}"))
        .iter()
        .map(|conf| conf["backends"][0]["file"]["path"].as_str().unwrap())
        .collect();
    assert_eq!(paths, ["/web", "/mesh", "/all"]);
}

#[tokio::test]
async fn what_leaves_the_mesh_must_be_listed_and_permitted() {
    let server = Server::start().await;
    world(&server).await;
    let answer = ask(&server, "https://api.example.com").await;
    assert_eq!(answer["allowed"], false);
    assert!(step(&answer, "allowlist")["text"].as_str().unwrap().ends_with("(not-listed)"), "{answer:#}");

    let service = external("api", "api.example.com:443");
    assert_eq!(server.put("/meshes/default/external-services/api", service).await.status, 201);
    let answer = ask(&server, "https://api.example.com/v1").await;
    assert_eq!(answer["allowed"], false, "nobody permits it: {answer:#}");
    assert_eq!(step(&answer, "way out")["text"], "by the ZoneEgress of zone east");
    policy(
        &server,
        "MeshTrafficPermission",
        "out",
        allow(json!({"kind": "MeshService", "name": "api"}), "web"),
    )
    .await;
    let answer = ask(&server, "https://API.example.com./v1").await;
    assert_eq!(answer["allowed"], true, "{answer:#}");
    assert_eq!(step(&answer, "allowlist")["policies"][0]["name"], "api");
    assert_eq!(step(&answer, "MeshTrafficPermission")["policies"][0]["name"], "out");
    let answer = ask(&server, "api.example.com:8443").await;
    assert_eq!(
        step(&answer, "allowlist")["text"],
        "ExternalService api lists api.example.com on port 443 only (port-not-listed)"
    );

    let pass = json!({"default": {"passthroughMode": "Matched", "appendMatch": [
        {"type": "Domain", "value": "*.updates.example", "port": 443, "protocol": "tls"},
        {"type": "CIDR", "value": "203.0.113.0/24", "protocol": "tcp"},
    ]}});
    policy(&server, "MeshPassthrough", "updates", pass).await;
    for (destination, allowed) in [
        ("https://eu.updates.example", true),
        ("https://updates.example", false),
        ("203.0.113.7:5432", true),
        ("203.0.114.7:5432", false),
    ] {
        assert_eq!(ask(&server, destination).await["allowed"], allowed, "{destination}");
    }
}

#[tokio::test]
async fn an_external_service_comes_before_a_service_of_its_name() {
    let server = Server::start().await;
    world(&server).await;
    let meant = async |name: &str| ask(&server, name).await["destination"].clone();
    assert_eq!(meant("backend.mesh").await["services"][0]["type"], "MeshService");
    let listed = json!({
        "type": "ExternalService", "mesh": "default", "name": "outside",
        "tags": {"kuma.io/service": "backend"}, "networking": {"address": "host.example:443"},
    });
    assert_eq!(server.put("/meshes/default/external-services/outside", listed).await.status, 201);
    for name in ["backend.mesh", "backend"] {
        assert_eq!(meant(name).await["entry"], "ExternalService outside", "{name}");
    }
    let own = meant("backend.svc.west.mesh.local:9000").await;
    assert_eq!(own["services"][0]["type"], "MeshService", "its own name stays: {own:#}");
}

/// As the zone decides it: the caller's own, else most of them, else the plainest.
#[tokio::test]
async fn what_is_spoken_with_several_zones_is_what_they_agree_on() {
    let server = Server::start().await;
    world(&server).await;
    let offer = async |zone: &str, protocol: &str| {
        let spec = json!({
            "selector": {"dataplaneTags": {"kuma.io/service": "backend"}}, "state": "Available",
            "ports": [{"port": 9000, "appProtocol": protocol}],
        });
        store(&server, zone, "MeshService", "backend", spec, None).await;
        ask(&server, "backend.mesh").await["destination"]["protocol"].clone()
    };
    assert_eq!(offer("a", "tcp").await, "tcp");
    assert_eq!(offer("b", "http").await, "http");
    assert_eq!(offer("c", "tcp").await, "tcp");
    assert_eq!(offer("east", "http").await, "http");
}

#[tokio::test]
async fn what_is_listed_must_be_known_and_whole() {
    let server = Server::start().await;
    world(&server).await;
    let service = external("api", "api.example.com:443");
    assert_eq!(server.put("/meshes/default/external-services/api", service).await.status, 201);
    let spec = |endpoints: Value, tls: Value| json!({"match": {"port": 443, "protocol": "tcp"}, "endpoints": endpoints, "tls": tls});
    let endpoints = json!([{"address": "pay.example.com", "port": 443}]);
    let trusting = json!({"enabled": true, "verification": {"caCert": {"secret": "roots"}}});
    for (name, spec) in [
        ("pay", spec(endpoints.clone(), json!({"enabled": true}))),
        ("empty", spec(json!([]), json!({"enabled": true}))),
        ("trusting", spec(endpoints, trusting)),
    ] {
        store(&server, "", "MeshExternalService", name, spec, None).await;
    }
    for (name, outcome, end) in [
        ("empty", "denied", "MeshExternalService empty has no endpoints: zones refuse it (invalid-entry)"),
        (
            "trusting",
            "unknown",
            "MeshExternalService trusting needs Secrets, which are not looked at here (tls.verification.caCert: roots): \
             without them zones refuse it (invalid-entry)",
        ),
    ] {
        let answer = ask(&server, &format!("{name}.extsvc.mesh.local:443")).await;
        let entry = step(&answer, "entry");
        assert_eq!((&entry["outcome"], &entry["text"]), (&json!(outcome), &json!(end)), "{answer:#}");
        assert_ne!(answer["allowed"], true);
    }
    let reach = |services: Value, backends: Value| {
        let mut spec = dataplane("narrow", 8080, "http");
        spec["networking"]["transparentProxying"] =
            json!({"reachableServices": services, "reachableBackends": {"refs": backends}});
        spec
    };
    let web = json!([{"kind": "MeshService", "labels": {"kuma.io/display-name": "web"}}]);
    let both = json!([{"kind": "MeshExternalService", "name": "pay"}]);
    let mut by_outbound = reach(json!(["web"]), web.clone());
    by_outbound["networking"]["outbound"] = json!([
        {"port": 1, "tags": {"kuma.io/service": "api"}},
        {"port": 2, "backendRef": {"kind": "MeshExternalService", "name": "pay", "port": 443}},
    ]);
    for (name, spec) in [
        ("neither", reach(json!(["web"]), web)),
        ("both", reach(json!(["api"]), both)),
        ("outbound", by_outbound),
    ] {
        store(&server, "east", "Dataplane", name, spec, None).await;
    }
    for (source, known) in [("web-1", true), ("neither", false), ("both", true), ("outbound", true)] {
        for (host, entry) in [
            ("https://api.example.com", "ExternalService api lists api.example.com:443"),
            ("pay.extsvc.mesh.local:443", "MeshExternalService pay lists pay.extsvc.mesh.local:443"),
        ] {
            let path = format!("/meshes/default/_explain?source={source}&destination={host}");
            let answer = server.get(&path).await.json();
            let text = step(&answer, "allowlist")["text"].as_str().unwrap();
            let away =
                ", but is not among what the caller may reach: its sidecar does not know it (not-listed)";
            assert_eq!(text, format!("{entry}{}", if known { "" } else { away }), "{source}");
            assert!(known || answer["allowed"] == false, "{answer:#}");
        }
    }
}

#[tokio::test]
async fn a_service_of_several_zones_is_asked_by_its_own_name() {
    let server = Server::start().await;
    world(&server).await;
    let of_all = |selected: &str| {
        json!({
            "selector": {"meshService": {"matchLabels": {"kuma.io/display-name": selected}}},
            "ports": [{"port": 9000, "name": "api"}],
        })
    };
    store(&server, "", "MeshMultiZoneService", "all", of_all("backend"), None).await;
    store(&server, "", "MeshMultiZoneService", "none", of_all("nobody"), None).await;
    let timeout = |target: Value, time: &str| json!({"to": [{"targetRef": target, "default": {"http": {"requestTimeout": time}}}]});
    let all = json!({"kind": "MeshMultiZoneService", "name": "all", "sectionName": "api"});
    let member = json!({"kind": "MeshService", "name": "backend"});
    policy(&server, "MeshTimeout", "all", timeout(all, "4s")).await;
    policy(&server, "MeshTimeout", "member", timeout(member, "5s")).await;
    let answer = ask(&server, "all.mzsvc.mesh.local:9000").await;
    assert_eq!(
        step(&answer, "destination")["text"],
        "MeshMultiZoneService all: MeshService backend of zone west, port 9000 (http)"
    );
    assert_eq!(step(&answer, "MeshTimeout")["policies"][0]["name"], "all");
    assert_eq!(answer["destination"]["services"][0]["type"], "MeshMultiZoneService");
    for (destination, text) in [
        (
            "all.mzsvc.mesh.local:81",
            "MeshMultiZoneService all: MeshService backend of zone west has no port 81",
        ),
        (
            "none.mzsvc.mesh.local:9000",
            "MeshMultiZoneService none has no endpoints: it selects no MeshService with that port",
        ),
    ] {
        let answer = ask(&server, destination).await;
        assert_eq!(
            (&answer["allowed"], &step(&answer, "destination")["text"]),
            (&json!(false), &json!(text))
        );
    }
    let member = ask(&server, "backend.svc.west.mesh.local:9000").await;
    assert_eq!(step(&member, "MeshTimeout")["policies"][0]["name"], "member");
}

#[tokio::test]
async fn a_zone_does_not_claim_what_another_knows() {
    let server = Server::zone().await;
    let mesh = json!({"mtls": {"enabledBackend": "ca", "backends": [{"name": "ca", "type": "builtin"}]}});
    store(&server, "", "Mesh", "default", mesh, None).await;
    store(&server, "east", "Dataplane", "web-1", dataplane("web", 8080, "http"), None).await;
    let service = json!({
        "selector": {"dataplaneTags": {"kuma.io/service": "backend"}}, "state": "Available",
        "ports": [{"port": 9000, "appProtocol": "http"}],
    });
    let status = json!({"dataplaneProxies": {"connected": 1, "healthy": 1, "total": 1}});
    store(&server, "west", "MeshService", "backend", service, Some(status)).await;
    let networking = json!({"address": "192.0.2.9", "port": 10001, "advertisedAddress": "192.0.2.9", "advertisedPort": 10001});
    store(&server, "west", "ZoneIngress", "ingress", json!({"zone": "west", "networking": networking}), None)
        .await;
    let answer = ask(&server, "backend.mesh").await;
    assert_eq!(answer["allowed"], Value::Null, "{answer:#}");
    assert_eq!(step(&answer, "instances")["outcome"], "unknown");
}

#[tokio::test]
async fn questions_that_make_no_sense_are_refused() {
    let server = Server::start().await;
    world(&server).await;
    for (query, field) in [
        ("destination=backend.mesh", "source"),
        ("source=web-1", "destination"),
        ("source=web-1&destination=a%20b", "destination"),
        ("source=web-1&destination=backend.mesh&path=x", "path"),
        ("source=web-1&destination=backend.mesh&header=x", "header"),
        ("source=web-1&destination=backend.mesh&hedaer=x:y", "hedaer"),
    ] {
        let answer = server.get(&format!("/meshes/default/_explain?{query}")).await;
        assert_eq!(answer.status, 400, "{query}: {}", answer.text);
        assert_eq!(answer.invalid()[0].0, field, "{query}");
    }
    let answer = server.get("/meshes/default/_explain?source=nobody&destination=backend.mesh").await;
    assert_eq!(answer.status, 404, "{}", answer.text);
    let answer = server.get("/meshes/none/_explain?source=web-1&destination=backend.mesh").await;
    assert_eq!(answer.status, 404, "{}", answer.text);
    let by_service = server.get("/meshes/default/_explain?source=web&destination=backend").await;
    assert_eq!(by_service.json()["source"]["name"], "web-1");
}
