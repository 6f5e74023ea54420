//! Of every kind: whom a policy is for, and in which form it says so.

use super::*;
use std::collections::BTreeMap;

/// What a sidecar holds: type -> name -> body.
type Shown = BTreeMap<String, BTreeMap<String, Value>>;

/// Something that a policy of each kind may say of calls that come in.
fn incoming() -> [(&'static str, Value); 7] {
    let rate = json!({"num": 1, "interval": "1s"});
    let file = json!({"backends": [{"type": "File", "file": {"path": "/in"}}]});
    [
        (
            "MeshTimeout",
            json!({"connectionTimeout": "1s", "idleTimeout": "2s", "http": {
            "requestTimeout": "3s", "streamIdleTimeout": "4s", "maxStreamDuration": "5s",
            "maxConnectionDuration": "6s", "requestHeadersTimeout": "7s"}}),
        ),
        (
            "MeshCircuitBreaker",
            json!({"connectionLimits": {
            "maxConnections": 1, "maxPendingRequests": 2, "maxRequests": 3}}),
        ),
        (
            "MeshRateLimit",
            json!({"local": {
            "http": {"requestRate": rate, "onRateLimit": {"status": 503, "headers": {
                "set": [{"name": "a", "value": "1"}], "add": [{"name": "b", "value": "2"}]}}},
            "tcp": {"connectionRate": rate}}}),
        ),
        (
            "MeshFaultInjection",
            json!({"http": [{
            "abort": {"httpStatus": 503, "percentage": 1}, "delay": {"value": "1s", "percentage": 2},
            "responseBandwidth": {"limit": "1kbps", "percentage": 3}}]}),
        ),
        ("MeshAccessLog", file),
        ("MeshRequestFilter", json!({})),
        ("MeshTLS", json!({"mode": "Permissive"})),
    ]
}

/// The same of calls to a service.
fn outgoing() -> [(&'static str, Value); 6] {
    [
        ("MeshTimeout", json!({"connectionTimeout": "1s"})),
        ("MeshRetry", json!({"http": {"numRetries": 3}, "tcp": {"maxConnectAttempt": 3}})),
        ("MeshCircuitBreaker", json!({"connectionLimits": {"maxConnections": 1}})),
        ("MeshHealthCheck", json!({"http": {"path": "/health"}})),
        ("MeshLoadBalancingStrategy", json!({"loadBalancer": {"type": "Random"}})),
        ("MeshAccessLog", json!({"backends": [{"type": "File", "file": {"path": "/out"}}]})),
    ]
}

/// What a policy of each kind says, without its target.
fn specs() -> Vec<(&'static str, Value)> {
    let to_backend = |rules: Value| json!({"to": [{"targetRef": {"kind": "MeshService", "name": "backend"}, "rules": rules}]});
    let elsewhere = json!({"backendRefs": [{"kind": "MeshService", "name": "web"}]});
    let path = json!([{"path": {"type": "PathPrefix", "value": "/a"}}]);
    let trace = json!([{"type": "OpenTelemetry", "openTelemetry": {"endpoint": "otel"}}]);
    let metric = json!([{"type": "Prometheus", "prometheus": {"port": 5670}}]);
    let domain = json!([{"type": "Domain", "value": "more.example", "port": 443, "protocol": "tls"}]);
    let patch = json!([{"cluster": {"operation": "Patch", "value": "{connectTimeout: 2s}"}}]);
    let api = json!({"spiffeID": {"type": "Exact", "value": "spiffe://default/api"}});
    let mut all = vec![
        ("MeshTrafficPermission", json!({"rules": [{"default": {"allow": [api]}}]})),
        ("MeshHTTPRoute", to_backend(json!([{"matches": path, "default": elsewhere}]))),
        ("MeshTCPRoute", to_backend(json!([{"default": elsewhere}]))),
        ("MeshTrace", json!({"default": {"backends": trace}})),
        ("MeshMetric", json!({"default": {"backends": metric}})),
        ("MeshPassthrough", json!({"default": {"passthroughMode": "Matched", "appendMatch": domain}})),
        ("MeshProxyPatch", json!({"default": {"appendModifications": patch}})),
    ];
    all.extend(incoming().map(|(kind, conf)| (kind, json!({"rules": [{"default": conf}]}))));
    all.extend(outgoing().map(|(kind, conf)| (kind, to(json!({"kind": "Mesh"}), conf))));
    all
}

/// What web of east, whose Dataplane has the label `app: web`, holds with a policy.
fn shown(kind: &str, spec: Option<Value>) -> Shown {
    let (mut east, _) = world();
    let mut web = dataplane("east", "web-1", "web", "10.1.0.1", 8080, "http");
    web.labels.insert("app".to_owned(), "web".to_owned());
    east.put(web).unwrap();
    if let Some(spec) = spec {
        east.put(global(kind, "default", "a-mine", spec)).unwrap();
    }
    let world = World::new(east);
    assert!(world.audiences.problems().is_empty(), "{kind}: {:?}", world.audiences.problems());
    world.shown(&sidecar("east", "web-1"))
}

#[test]
fn a_policy_of_any_kind_is_for_whom_its_target_selects() {
    let plain = shown("Mesh", None);
    let named = |target: Value, mut spec: Value| {
        spec["targetRef"] = target;
        spec
    };
    for (kind, spec) in specs() {
        assert!(shown(kind, Some(spec.clone())) != plain, "{kind}: without a target, for the mesh");
        for (target, selected) in [
            (json!({"kind": "Mesh"}), true),
            (json!({"kind": "Dataplane"}), true),
            (json!({"kind": "Dataplane", "labels": {"app": "web"}}), true),
            (json!({"kind": "Dataplane", "labels": {"app": "api"}}), false),
            (json!({"kind": "MeshSubset", "tags": {"kuma.io/service": "web"}}), true),
            (json!({"kind": "MeshSubset", "tags": {"kuma.io/service": "api"}}), false),
        ] {
            let found = shown(kind, Some(named(target.clone(), spec.clone())));
            assert_eq!(found != plain, selected, "{kind} {target}");
        }
    }
}

#[test]
fn what_is_said_of_calls_is_said_of_the_services_that_are_named() {
    let plain = shown("Mesh", None);
    for (kind, conf) in outgoing() {
        let of = |target: Value| {
            let mut policies =
                shown(kind, Some(to(target, conf.clone()))).remove("Policies").unwrap_or_default();
            policies.retain(|name, body| plain.get("Policies").and_then(|all| all.get(name)) != Some(body));
            policies.into_keys().collect::<Vec<_>>()
        };
        assert!(of(json!({"kind": "Mesh"})).contains(&TO_ALL.to_owned()), "{kind}");
        let of_backend = [TO_LEGACY, TO_BACKEND];
        assert_eq!(of(json!({"kind": "MeshService", "name": "backend"})), of_backend, "{kind}");
        let labels = json!({"kuma.io/display-name": "backend"});
        assert_eq!(of(json!({"kind": "MeshService", "labels": labels})), of_backend, "{kind}");
        assert_eq!(of(json!({"kind": "MeshService", "name": "api"})), [""; 0], "{kind}");
    }
}

#[test]
fn routes_are_for_calls_to_the_service_that_is_named() {
    for (kind, spec) in specs().into_iter().filter(|(kind, _)| kind.ends_with("Route")) {
        let of = |name: &str| {
            let mut spec = spec.clone();
            spec["to"][0]["targetRef"]["name"] = json!(name);
            let routes = shown(kind, Some(spec)).remove("Routes").unwrap_or_default();
            routes.into_keys().collect::<Vec<_>>()
        };
        assert_eq!(of("backend"), [TO_LEGACY, TO_BACKEND], "{kind}");
        assert_eq!(of("api"), [""; 0], "{kind}");
    }
}

/// The older form of what is for everybody.
#[test]
fn from_the_whole_mesh_is_a_rule_for_everybody() {
    let plain = shown("Mesh", None);
    // This one never had it.
    for (kind, conf) in incoming().into_iter().filter(|(kind, _)| *kind != "MeshRequestFilter") {
        let rules = shown(kind, Some(json!({"rules": [{"default": conf}]})));
        let from = json!({"from": [{"targetRef": {"kind": "Mesh"}, "default": conf}]});
        assert!(rules != plain, "{kind}");
        assert!(shown(kind, Some(from)) == rules, "{kind}");
    }
}
