use crate::harness::Server;
use meridian_core::{Key, Kind, Resource, labels};
use meridian_store::{Author, Change, Expect};
use serde_json::{Value, json};
use std::collections::BTreeMap;

async fn store(server: &Server, zone: &str, kind: &str, name: &str, spec: Value) {
    let key = Key::new(Kind::named(kind).unwrap(), "default", zone, name);
    let labels = labels::computed(&key, zone, &BTreeMap::new());
    let resource = Resource { key, labels, spec, status: None };
    let change = Change::Put { resource, expect: Expect::Absent };
    server.store.write(&Author::system(), vec![change]).await.unwrap();
}

/// web and batch of east, backend's service, and two MeshTimeouts.
async fn server() -> Server {
    let server = Server::start().await;
    server.mesh("default").await;
    for name in ["web", "batch"] {
        let spec = json!({"networking": {"address": "10.0.0.1", "inbound": [
            {"port": 8080, "tags": {"kuma.io/service": name, "kuma.io/protocol": "http"}},
        ]}});
        store(&server, "east", "Dataplane", name, spec).await;
    }
    let service = json!({
        "selector": {"dataplaneTags": {"kuma.io/service": "backend"}},
        "ports": [{"port": 80, "appProtocol": "http"}], "state": "Available",
    });
    store(&server, "east", "MeshService", "backend", service).await;
    let conf = |seconds: &str| json!({"http": {"requestTimeout": seconds}});
    let all = json!({
        "targetRef": {"kind": "Mesh"},
        "to": [{"targetRef": {"kind": "Mesh"}, "default": conf("9s")}],
    });
    let incoming = json!({"rules": [{"default": {"idleTimeout": "1m"}}]});
    let own = json!({
        "targetRef": {"kind": "MeshSubset", "tags": {"kuma.io/service": "web"}},
        "to": [{
            "targetRef": {"kind": "MeshService", "labels": {"kuma.io/display-name": "backend"}},
            "default": conf("2s"),
        }],
    });
    for (name, spec) in [("all", all), ("own", own), ("incoming", incoming)] {
        let body = json!({"type": "MeshTimeout", "mesh": "default", "name": name, "spec": spec});
        let answer = server.put(&format!("/meshes/default/meshtimeouts/{name}"), body).await;
        assert_eq!(answer.status, 201, "{}", answer.text);
    }
    server
}

#[tokio::test]
async fn what_policies_add_up_to_and_which_they_are() {
    let server = server().await;
    let said = server.get("/meshes/default/dataplanes/web/_rules").await.json();
    assert_eq!((&said["resource"]["type"], &said["resource"]["name"]), (&json!("Dataplane"), &json!("web")));
    assert_eq!(said["httpMatches"], json!([]));
    let [timeouts] = said["rules"].as_array().unwrap().as_slice() else { panic!("{said}") };
    assert_eq!(timeouts["type"], "MeshTimeout");
    let to = timeouts["toResourceRules"].as_array().unwrap();
    let by_kind = |kind: &str| to.iter().find(|rule| rule["resourceMeta"]["type"] == kind).unwrap();
    assert_eq!(by_kind("Mesh")["conf"], json!([{"http": {"requestTimeout": "9s"}}]));
    let backend = by_kind("MeshService");
    assert_eq!(backend["conf"], json!([{"http": {"requestTimeout": "2s"}}]));
    let origins: Vec<&str> = backend["origin"].as_array().unwrap().iter().map(origin).collect();
    assert_eq!(origins, ["own", "all"], "the strongest first");
    let inbound = &timeouts["inboundRules"][0];
    assert_eq!(
        (&inbound["inbound"]["port"], &inbound["rules"][0]["conf"]),
        (&json!(8080), &json!([{"idleTimeout": "1m0s"}]))
    );

    let batch = server.get("/meshes/default/dataplanes/batch/_rules").await.json();
    assert_eq!(batch["rules"][0]["toResourceRules"].as_array().unwrap().len(), 1, "{batch}");
    assert_eq!(server.get("/meshes/default/dataplanes/none/_rules").await.status, 404);
}

/// Zones ask what is said by `kuma.io/service` whatever the mesh's `meshServices.mode`; unset, it is Exclusive.
#[tokio::test]
async fn what_is_said_by_tag_is_shown_in_every_mode() {
    let server = server().await;
    for mode in [None, Some("Exclusive"), Some("Disabled")] {
        let mut mesh = json!({"type": "Mesh", "name": "default"});
        mesh["meshServices"] = mode.map_or(json!({}), |mode| json!({ "mode": mode }));
        assert_eq!(server.put("/meshes/default", mesh).await.status, 200);
        let by_tag = json!({"to": [{
            "targetRef": {"kind": "MeshService", "name": "elsewhere"}, "default": {"http": {"numRetries": 2}},
        }]});
        let body = json!({"type": "MeshRetry", "mesh": "default", "name": "by-tag", "spec": by_tag});
        assert!(server.put("/meshes/default/meshretries/by-tag", body).await.status < 300);
        let said = server.get("/meshes/default/dataplanes/web/_rules").await.json();
        let mut rules = said["rules"].as_array().unwrap().iter();
        let retries =
            rules.find(|rule| rule["type"] == "MeshRetry").unwrap_or_else(|| panic!("{mode:?}: {said:#}"));
        assert_eq!(retries["toRules"][0]["matchers"][0]["value"], "elsewhere", "{mode:?}: {retries:#}");
    }
}

fn origin(origin: &Value) -> &str {
    origin["resourceMeta"]["name"].as_str().unwrap()
}

#[tokio::test]
async fn the_dataplanes_of_a_policy_in_pages() {
    let server = server().await;
    let names = async |path: &str| -> Vec<String> {
        let page = server.get(path).await.json();
        let items = page["items"].as_array().unwrap().iter();
        items.map(|item| item["name"].as_str().unwrap().to_owned()).collect()
    };
    let of = |policy: &str| format!("/meshes/default/meshtimeouts/{policy}/_resources/dataplanes");
    assert_eq!(names(&of("all")).await, ["batch", "web"]);
    assert_eq!(names(&of("own")).await, ["web"]);
    assert_eq!(names(&format!("{}?name=bat", of("all"))).await, ["batch"]);
    let page = server.get(&format!("{}?size=1", of("all"))).await.json();
    assert_eq!((&page["total"], page["items"].as_array().unwrap().len()), (&json!(2), 1));
    assert!(page["next"].is_string(), "{page}");
    assert_eq!(server.get(&of("none")).await.status, 404);
}

#[tokio::test]
async fn warnings_say_why_a_policy_does_less_than_it_says() {
    let server = server().await;
    let shadow = json!({
        "type": "MeshTimeout", "mesh": "default", "name": "try", "labels": {"kuma.io/effect": "shadow"},
        "spec": {"to": [{"targetRef": {"kind": "Mesh"}, "default": {"idleTimeout": "1s"}}]},
    });
    assert_eq!(server.put("/meshes/default/meshtimeouts/try", shadow).await.status, 201);
    let nobody = json!({"kind": "MeshService", "labels": {"kuma.io/display-name": "gone"}});
    let body = json!({
        "type": "MeshTimeout", "mesh": "default", "name": "nobody",
        "spec": {"to": [{"targetRef": nobody, "default": {"idleTimeout": "1s"}}]},
    });
    assert_eq!(server.put("/meshes/default/meshtimeouts/nobody", body).await.status, 201);
    let allow = json!({
        "type": "MeshTrafficPermission", "mesh": "default", "name": "all",
        "spec": {"from": [{"targetRef": {"kind": "Mesh"}, "default": {"action": "Allow"}}]},
    });
    assert_eq!(server.put("/meshes/default/meshtrafficpermissions/all", allow).await.status, 201);
    let patch = json!({
        "type": "MeshProxyPatch", "mesh": "default", "name": "patch",
        "spec": {"default": {"appendModifications": [
            {"listener": {"operation": "Patch", "match": {"origin": "outbound"}, "value": "traffic_direction: OUTBOUND"}},
        ]}},
    });
    assert_eq!(server.put("/meshes/default/meshproxypatches/patch", patch).await.status, 201);
    let said = server.get("/meshes/default/dataplanes/web/_rules").await.json();
    let of = |kind: &str| -> Vec<String> {
        let rules = said["rules"].as_array().unwrap().iter();
        let rule = rules.into_iter().find(|rule| rule["type"] == kind).unwrap_or_else(|| panic!("{said:#}"));
        rule["warnings"].as_array().unwrap().iter().map(|it| it.as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(
        of("MeshTimeout"),
        [
            "MeshTimeout nobody: spec.to[0] names nothing that is there",
            "MeshTimeout try is only tried out (kuma.io/effect: shadow) and not among these",
        ]
    );
    assert_eq!(of("MeshTrafficPermission"), ["mTLS is off in this mesh: nobody is asked for a permission"]);
    assert!(
        of("MeshProxyPatch")[0].starts_with("MeshProxyPatch patch: spec.default.appendModifications[0]"),
        "{said:#}"
    );
}

#[tokio::test]
async fn a_dataplane_its_inbounds_and_outbounds_by_kri() {
    let server = server().await;
    let base = "/meshes/default/dataplanes/web";
    let layout = server.get(&format!("{base}/_layout")).await.json();
    assert_eq!(
        layout["inbounds"],
        json!([{"kri": "kri_dp_default_east__web_8080", "port": 8080, "protocol": "http", "proxyResourceName": "8080"}])
    );
    assert_eq!(
        layout["outbounds"],
        json!([{
            "kri": "kri_msvc_default_east__backend_80", "port": 80, "protocol": "http",
            "proxyResourceName": "default/east/backend/80",
        }])
    );
    assert_eq!((&layout["kri"], &layout["listeners"]), (&json!("kri_dp_default_east__web_"), &json!([])));
    assert!(layout.get("spiffeId").is_none(), "without mTLS nobody has one: {layout}");

    let outbound = format!("{base}/_outbounds/kri_msvc_default_east__backend_80");
    let said = server.get(&format!("{outbound}/_policies")).await.json();
    assert_eq!(
        said["policies"],
        json!([{
            "kind": "MeshTimeout", "conf": {"http": {"requestTimeout": "2s"}},
            "origins": [{"kri": "kri_mt_default___own_"}, {"kri": "kri_mt_default___all_"}],
        }])
    );
    let said = server.get(&format!("{base}/_inbounds/kri_dp_default_east__web_8080/_policies")).await.json();
    assert_eq!(
        said["policies"],
        json!([{
            "kind": "MeshTimeout", "origins": [{"kri": "kri_mt_default___incoming_"}],
            "rules": [{"conf": {"idleTimeout": "1m0s"}, "kri": "kri_mt_default___incoming_"}],
        }])
    );
    assert_eq!(server.get(&format!("{base}/_policies")).await.json(), json!({"policies": []}));
    for path in ["_outbounds/kri_x/_policies", "_inbounds/kri_x/_policies", "_outbounds/kri_x/_routes"] {
        assert_eq!(server.get(&format!("{base}/{path}")).await.status, 404, "{path}");
    }
}

#[tokio::test]
async fn routes_of_an_outbound_and_what_holds_on_them() {
    let server = server().await;
    let matches = json!([{"path": {"type": "PathPrefix", "value": "/v1"}}]);
    let backend = json!({"kind": "MeshService", "labels": {"kuma.io/display-name": "backend"}});
    let route = json!({
        "type": "MeshHTTPRoute", "mesh": "default", "name": "v1",
        "spec": {"to": [{"targetRef": backend, "rules": [{"matches": matches, "default": {}}]}]},
    });
    assert_eq!(server.put("/meshes/default/meshhttproutes/v1", route).await.status, 201);
    let on_route = json!({
        "type": "MeshTimeout", "mesh": "default", "name": "on-route",
        "spec": {"to": [{
            "targetRef": {"kind": "MeshHTTPRoute", "labels": {"kuma.io/display-name": "v1"}},
            "default": {"http": {"requestTimeout": "5s"}},
        }]},
    });
    let written = server.put("/meshes/default/meshtimeouts/on-route", on_route).await;
    assert_eq!(written.status, 201, "{}", written.text);
    let outbound = "/meshes/default/dataplanes/web/_outbounds/kri_msvc_default_east__backend_80";
    let routes = server.get(&format!("{outbound}/_routes")).await.json();
    assert_eq!(
        routes["routes"],
        json!([{
            "kind": "MeshHTTPRoute", "origins": [{"kri": "kri_mhttpr_default___v1_"}],
            "rules": [{"kri": "kri_mhttpr_default___v1_", "matches": matches, "conf": {}}],
        }])
    );
    let said = server.get(&format!("{outbound}/_routes/kri_mhttpr_default___v1_/_policies")).await.json();
    assert_eq!(said["policies"][0]["conf"], json!({"http": {"requestTimeout": "5s"}}), "{said:#}");
}

#[tokio::test]
async fn services_their_dataplanes_and_their_names() {
    let server = server().await;
    let offering = server.get("/meshes/default/meshservices/backend/_dataplanes").await.json();
    assert_eq!(offering["total"], 0);
    let spec = json!({"networking": {"address": "10.0.0.2", "inbound": [
        {"port": 80, "tags": {"kuma.io/service": "backend"}},
    ]}});
    store(&server, "east", "Dataplane", "backend-1", spec.clone()).await;
    store(&server, "west", "Dataplane", "backend-2", spec).await;
    let offering = server.get("/meshes/default/meshservices/backend/_dataplanes?size=5").await.json();
    assert_eq!((&offering["total"], &offering["items"][0]["name"]), (&json!(1), &json!("backend-1")));

    assert_eq!(server.put("/zones/west", json!({"type": "Zone", "name": "west"})).await.status, 201);
    for generator in meridian_core::kinds::hostname_generator::defaults() {
        let change = Change::Put { resource: generator, expect: Expect::Absent };
        server.store.write(&Author::system(), vec![change]).await.unwrap();
    }
    let names = server.get("/meshes/default/meshservices/backend/_hostnames").await.json();
    let (both, one) = (json!([{"name": "east"}, {"name": "west"}]), json!([{"name": "east"}]));
    assert_eq!(
        names,
        json!({"total": 3, "items": [
            {"hostname": "backend.mesh", "zones": both},
            {"hostname": "backend.svc.east.mesh.local", "zones": both},
            {"hostname": "backend.svc.mesh.local", "zones": one},
        ]})
    );
    assert_eq!(server.get("/meshes/default/meshservices/none/_hostnames").await.status, 404);
    let spec = json!({
        "selector": {"meshService": {"matchLabels": {"kuma.io/display-name": "backend"}}}, "ports": [{"port": 80}],
    });
    store(&server, "", "MeshMultiZoneService", "all", spec).await;
    let names = server.get("/meshes/default/meshmultizoneservices/all/_hostnames").await.json();
    assert_eq!(
        names,
        json!({"total": 1, "items": [{"hostname": "all.mzsvc.mesh.local", "zones": [{"name": "west"}]}]})
    );
}

#[tokio::test]
async fn a_resource_by_its_kri() {
    let server = server().await;
    for kri in ["kri_mt_default___own_", "kri_mt_default___own_http"] {
        let found = server.get(&format!("/_kri/{kri}")).await.json();
        assert_eq!((&found["type"], &found["name"]), (&json!("MeshTimeout"), &json!("own")), "{kri}");
    }
    assert_eq!(server.get("/_kri/kri_mt_default___none_").await.status, 404);
    assert_eq!(server.get("/_kri/kri_mt_default").await.status, 400);
    assert_eq!(server.get("/_kri/kri_nokind_default___own_").await.status, 400);
    let secret = json!({"type": "Secret", "mesh": "default", "name": "s", "data": "YQ=="});
    assert_eq!(server.put("/meshes/default/secrets/s", secret).await.status, 201);
    let kri = Kind::named("Secret").unwrap().info().short;
    let path = format!("/_kri/kri_{kri}_default___s_");
    assert_eq!(server.get(&path).await.status, 200);
    let user = [("authorization", "Bearer user")];
    assert_eq!(server.call("GET", &path, &user, "").await.status, 403, "secrets are the administrators'");
    assert_eq!(server.call("GET", "/_kri/kri_mt_default___own_", &user, "").await.status, 200);
}

#[tokio::test]
async fn a_configuration_is_asked_of_who_compiles_it() {
    let server = server().await;
    let path = "/meshes/default/dataplanes/web/_config";
    for (query, asked) in [
        ("", "web shadow false diff false"),
        ("?shadow=true&include=diff", "web shadow true diff true"),
        ("?shadow=false&include=", "web shadow false diff false"),
    ] {
        assert_eq!(server.get(&format!("{path}{query}")).await.json(), json!({"asked": asked}), "{query}");
    }
    assert_eq!(server.get(&format!("{path}?include=everything")).await.invalid()[0].0, "include");
    assert_eq!(server.get("/meshes/default/dataplanes/none/_config").await.status, 404);
}
