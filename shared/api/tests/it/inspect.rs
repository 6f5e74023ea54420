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
