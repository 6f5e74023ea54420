use crate::harness::{Server, external};
use meridian_core::{Key, Kind, Resource};
use meridian_store::{Author, Change, Expect};
use serde_json::{Value, json};
use std::collections::BTreeMap;

#[tokio::test]
async fn created_read_changed_deleted() {
    let server = Server::start().await;
    server.mesh("default").await;
    let path = "/meshes/default/external-services/es";
    assert_eq!(server.put(path, external("es", "one.test:80")).await.status, 201);
    let first = server.get(path).await;
    assert_eq!(first.json()["networking"]["address"], "one.test:80");
    assert_eq!(first.json()["labels"]["kuma.io/origin"], "global");
    assert!(first.json()["creationTime"].is_string());

    let changed = server.put(path, external("es", "two.test:80")).await;
    assert_eq!((changed.status, changed.json()["warnings"].is_array()), (200, true));
    let second = server.get(path).await;
    assert_eq!(second.json()["networking"]["address"], "two.test:80");
    assert_eq!(second.json()["creationTime"], first.json()["creationTime"]);
    assert_eq!(second.etag(), changed.etag());
    assert_ne!(second.etag(), first.etag());

    assert_eq!(server.delete(path).await.status, 200);
    let gone = server.get(path).await;
    assert_eq!((gone.status, gone.json()["title"].as_str()), (404, Some("Could not retrieve a resource")));
    assert_eq!(server.delete(path).await.status, 404);
}

#[tokio::test]
async fn yaml_is_a_body_too() {
    let server = Server::start().await;
    let yaml = "type: Mesh\nname: other\n";
    let answer = server.call("PUT", "/meshes/other", &[("authorization", "Bearer admin")], yaml).await;
    assert_eq!(answer.status, 201, "{answer:?}");
}

#[tokio::test]
async fn an_unchanged_write_keeps_its_revision() {
    let server = Server::start().await;
    server.mesh("default").await;
    let path = "/meshes/default/external-services/es";
    let first = server.put(path, external("es", "one.test:80")).await.etag();
    server.mesh("more").await;
    assert_eq!(server.put(path, external("es", "one.test:80")).await.etag(), first);
}

#[tokio::test]
async fn revisions_are_matched() {
    let server = Server::start().await;
    server.mesh("default").await;
    let path = "/meshes/default/external-services/es";
    let admin = ("authorization", "Bearer admin");
    let put = |header: (&'static str, String), address: &'static str| {
        let server = &server;
        async move {
            let body = external("es", address).to_string();
            server.call("PUT", path, &[admin, (header.0, &header.1)], &body).await
        }
    };
    assert_eq!(put(("if-match", "*".into()), "x.test:80").await.status, 412, "nothing is there");
    assert_eq!(put(("if-none-match", "*".into()), "one.test:80").await.status, 201);
    assert_eq!(put(("if-none-match", "*".into()), "x.test:80").await.status, 412);
    let old = server.get(path).await.etag();
    let new = put(("if-match", old.clone()), "two.test:80").await.etag();
    let stale = put(("if-match", old.clone()), "x.test:80").await;
    assert_eq!((stale.status, stale.json()["title"].as_str()), (412, Some("Precondition failed")));
    assert_eq!(put(("if-match", "soon".into()), "x.test:80").await.status, 400);
    assert_eq!(put(("if-match", "*".into()), "three.test:80").await.status, 200);
    assert_eq!(server.call("DELETE", path, &[admin, ("if-match", &new)], "").await.status, 412);
    assert_eq!(server.get(path).await.json()["networking"]["address"], "three.test:80");
    let now = server.get(path).await.etag();
    assert_eq!(server.call("GET", path, &[admin, ("if-none-match", &now)], "").await.status, 304);
    assert_eq!(server.call("DELETE", path, &[admin, ("if-match", &now)], "").await.status, 200);
}

#[tokio::test]
async fn a_dry_run_checks_and_changes_nothing() {
    let server = Server::start().await;
    server.mesh("default").await;
    let path = "/meshes/default/external-services/es?dryRun=true";
    assert_eq!(server.put(path, external("es", "one.test:80")).await.status, 201);
    assert_eq!(server.put(path, external("es", "nonsense")).await.status, 400);
    assert_eq!(server.get("/meshes/default/external-services/es").await.status, 404);
    assert_eq!(server.delete("/meshes/default?dryRun=true").await.status, 200);
    assert_eq!(server.get("/meshes/default").await.status, 200);
    assert_eq!(server.put("/meshes/m?dryRun=maybe", json!({"type": "Mesh", "name": "m"})).await.status, 400);
}

#[tokio::test]
async fn every_violation_is_told_at_once() {
    let server = Server::start().await;
    server.mesh("default").await;
    let body = json!({
        "type": "ExternalService", "mesh": "other", "name": "another",
        "tags": {}, "networking": {"address": "no-port"}, "labels": {"not a key": "x"},
    });
    let answer = server.put("/meshes/default/external-services/es", body).await;
    assert_eq!(answer.status, 400);
    let body = answer.json();
    assert_eq!(body["title"], "Could not process a resource");
    assert_eq!(body["detail"], "Resource is not valid");
    assert_eq!(body["status"], 400);
    assert_eq!(body["type"], "/std-errors");
    assert!(body["instance"].as_str().unwrap().starts_with("meridian:trace:"));
    let fields: Vec<String> = answer.invalid().into_iter().map(|(field, _)| field).collect();
    for field in ["name", "mesh", "networking.address"] {
        assert!(fields.iter().any(|f| f == field), "{field} is not among {fields:?}");
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_body() {
    let server = Server::start().await;
    server.mesh("default").await;
    let at = "/meshes/default/external-services/es";
    let unknown = {
        let mut body = external("es", "one.test:80");
        body["networking"]["adress"] = json!("x");
        body
    };
    let wrong_type = {
        let mut body = external("es", "one.test:80");
        body["networking"] = json!("x");
        body
    };
    let table = [
        (at, unknown, "networking.adress"),
        (at, wrong_type, "networking"),
        (at, json!({"type": "Mesh", "name": "es"}), "type"),
        ("/meshes/UPPER", json!({"type": "Mesh", "name": "UPPER"}), "name"),
    ];
    for (path, body, field) in table {
        let answer = server.put(path, body).await;
        assert_eq!(answer.status, 400, "{answer:?}");
        let fields: Vec<String> = answer.invalid().into_iter().map(|(field, _)| field).collect();
        assert!(fields.iter().any(|f| f == field), "{field} is not among {fields:?}");
    }
    let admin = [("authorization", "Bearer admin")];
    for garbage in ["{", "a: [", "", "- 1", "\"text\""] {
        let answer = server.call("PUT", at, &admin, garbage).await;
        assert_eq!(answer.status, 400, "{garbage:?}: {answer:?}");
        assert!(!answer.json()["detail"].as_str().unwrap().is_empty());
    }
}

#[tokio::test]
async fn what_is_nowhere() {
    let server = Server::start().await;
    let missing_mesh = server.put("/meshes/nope/external-services/es", external("es", "a.test:80")).await;
    assert!(matches!(missing_mesh.status, 400 | 404), "{missing_mesh:?}");
    let unknown = server.get("/nonsense").await;
    assert_eq!((unknown.status, unknown.json()["title"].as_str()), (404, Some("Not Found")));
    let list = server.get("/meshes/nope/dataplanes").await;
    assert_eq!((list.status, list.invalid()[0].0.as_str()), (404, "mesh"));
    let wrong = server.call("PATCH", "/meshes/default", &[("authorization", "Bearer admin")], "").await;
    assert_eq!((wrong.status, wrong.json()["title"].as_str()), (405, Some("Method Not Allowed")));
}

#[tokio::test]
async fn kinds_of_kuma_that_are_not_here_name_what_to_use() {
    let server = Server::start().await;
    for (path, instead) in [
        ("/meshes/default/traffic-permissions", "MeshTrafficPermission"),
        ("/meshes/default/traffic-permissions/x", "MeshTrafficPermission"),
        ("/meshes/default/meshgateways", "not supported"),
    ] {
        let answer = server.get(path).await;
        assert_eq!(answer.status, 400, "{path}: {answer:?}");
        assert!(answer.json()["detail"].as_str().unwrap().contains(instead), "{answer:?}");
    }
}

#[tokio::test]
async fn warnings_come_back() {
    let server = Server::start().await;
    let mut body = json!({"type": "Mesh", "name": "m", "labels": {"warn": "x"}});
    body["logging"] =
        json!({"defaultBackend": "f", "backends": [{"name": "f", "type": "file", "conf": {"path": "/x"}}]});
    let answer = server.put("/meshes/m", body).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    let warnings: Vec<String> = serde_json::from_value(answer.json()["warnings"].clone()).unwrap();
    assert!(warnings.iter().any(|w| w == "from the hook"), "{warnings:?}");
    assert!(warnings.len() > 1, "and those of the check: {warnings:?}");
}

#[tokio::test]
async fn lists_are_paged_and_filtered() {
    let server = Server::start().await;
    server.mesh("default").await;
    for (name, team) in [("alpha", "a"), ("beta", "a"), ("gamma", "b")] {
        let mut body = external(name, "x.test:80");
        body["labels"] = json!({"team": team});
        assert_eq!(server.put(&format!("/meshes/default/external-services/{name}"), body).await.status, 201);
    }
    let names = |list: &Value| -> Vec<String> {
        list["items"].as_array().unwrap().iter().map(|i| i["name"].as_str().unwrap().to_owned()).collect()
    };
    let base = "/meshes/default/external-services";
    let page = server.get(&format!("{base}?size=2")).await.json();
    assert_eq!((page["total"].as_u64(), names(&page).len()), (Some(3), 2));
    let next = page["next"].as_str().unwrap();
    assert!(next.contains("cp.test") && next.contains("offset=2") && next.contains("size=2"), "{next}");
    let rest = server.get(&format!("{base}?size=2&offset=2")).await.json();
    assert_eq!((names(&rest), &rest["next"]), (vec!["gamma".to_owned()], &Value::Null));
    let table = [
        ("name=MM", vec!["gamma"]),
        ("filter%5Blabels.team%5D=a", vec!["alpha", "beta"]),
        ("filter[labels.team]=a&name=bet", vec!["beta"]),
        ("tag=kuma.io/service:alpha", vec!["alpha"]),
        ("tag=kuma.io/service:alpha&tag=kuma.io/protocol:tcp", vec![]),
        ("offset=7", vec![]),
    ];
    for (query, expected) in table {
        assert_eq!(names(&server.get(&format!("{base}?{query}")).await.json()), expected, "{query}");
    }
    let across = server.get("/external-services?size=1").await.json();
    assert_eq!((across["total"].as_u64(), names(&across)), (Some(3), vec!["alpha".to_owned()]));
    for bad in ["size=0", "size=1001", "size=x", "offset=-1", "filter[team]=a", "tag=x", "sise=1"] {
        let answer = server.get(&format!("{base}?{bad}")).await;
        assert_eq!(
            (answer.status, answer.json()["invalid_parameters"][0]["source"].as_str()),
            (400, Some("query")),
            "{bad}"
        );
    }
}

#[tokio::test]
async fn kubernetes_form() {
    let server = Server::start().await;
    server.mesh("default").await;
    server.put("/meshes/default/external-services/es", external("es", "x.test:80")).await;
    server
        .put(
            "/meshes/default/secrets/s",
            json!({"type": "Secret", "mesh": "default", "name": "s", "data": "eA=="}),
        )
        .await;
    let legacy = server.get("/meshes/default/external-services/es?format=k8s").await.json();
    assert_eq!(legacy["apiVersion"], "kuma.io/v1alpha1");
    assert_eq!((&legacy["mesh"], &legacy["metadata"]["name"]), (&json!("default"), &json!("es")));
    assert_eq!(legacy["spec"]["networking"]["address"], "x.test:80");
    let secret = server.get("/meshes/default/secrets/s?format=kubernetes").await.json();
    assert_eq!((&secret["kind"], &secret["type"]), (&json!("Secret"), &json!("system.kuma.io/secret")));
    assert_eq!(secret["data"]["value"], "eA==");
    assert_eq!(secret["metadata"]["labels"]["kuma.io/mesh"], "default");
    assert_eq!(server.get("/meshes/default/secrets/s?format=xml").await.status, 400);
}

async fn from_zone(server: &Server, kind: &str, zone: &str, name: &str) {
    let key = Key::new(Kind::named(kind).unwrap(), "default", zone, name);
    let resource = Resource {
        key,
        labels: BTreeMap::new(),
        spec: json!({"networking": {"address": "192.0.2.1"}}),
        status: None,
    };
    let change = Change::Put { resource, expect: Expect::Any };
    server.store.write(&Author::system(), vec![change]).await.unwrap();
}

#[tokio::test]
async fn what_comes_from_a_zone_is_read_only_at_global() {
    let server = Server::start().await;
    server.mesh("default").await;
    from_zone(&server, "Dataplane", "east", "web").await;
    from_zone(&server, "MeshExternalService", "east", "api").await;
    assert_eq!(server.get("/meshes/default/dataplanes/web").await.status, 200);
    let dataplane = json!({
        "type": "Dataplane", "mesh": "default", "name": "web",
        "networking": {"address": "192.0.2.9", "inbound": [{"port": 80, "tags": {"kuma.io/service": "web"}}]},
    });
    for answer in [
        server.put("/meshes/default/dataplanes/web", dataplane).await,
        server.delete("/meshes/default/dataplanes/web").await,
        server.delete("/meshes/default/meshexternalservices/api").await,
    ] {
        assert_eq!(
            (answer.status, answer.json()["title"].as_str()),
            (405, Some("Operation not allowed")),
            "{answer:?}"
        );
    }
}

#[tokio::test]
async fn what_comes_from_global_is_read_only_in_a_zone() {
    let server = Server::zone().await;
    let mesh = Resource {
        key: Key::global(Kind::named("Mesh").unwrap(), "", "default"),
        labels: BTreeMap::new(),
        spec: json!({}),
        status: None,
    };
    server
        .store
        .write(&Author::system(), vec![Change::Put { resource: mesh, expect: Expect::Any }])
        .await
        .unwrap();
    let answer = server.put("/meshes/default/external-services/es", external("es", "x.test:80")).await;
    assert_eq!(answer.status, 405, "{answer:?}");
    assert_eq!(server.delete("/meshes/default").await.status, 405);
    let own = json!({
        "type": "Dataplane", "mesh": "default", "name": "web", "labels": {"kuma.io/zone": "west"},
        "networking": {"address": "192.0.2.9", "inbound": [{"port": 80, "tags": {"kuma.io/service": "web"}}]},
    });
    assert_eq!(server.put("/meshes/default/dataplanes/web", own).await.status, 201);
    let stored = server.get("/meshes/default/dataplanes/web").await.json();
    assert_eq!(stored["labels"]["kuma.io/zone"], "east");
    assert_eq!(stored["labels"]["kuma.io/origin"], "zone");
}

#[tokio::test]
async fn a_users_write_keeps_the_status_and_can_not_set_it() {
    let server = Server::start().await;
    let zone = json!({"type": "Zone", "name": "east"});
    server.put("/zones/east", zone.clone()).await;
    let key = Key::global(Kind::named("Zone").unwrap(), "", "east");
    let mut resource = server.store.get(&key).await.unwrap().unwrap().resource;
    resource.status = Some(json!({"revokedAt": "then"}));
    server.store.write(&Author::system(), vec![Change::Put { resource, expect: Expect::Any }]).await.unwrap();
    let mut disabled = zone;
    disabled["enabled"] = json!(false);
    let answer = server.put("/zones/east", disabled).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let stored = server.store.get(&key).await.unwrap().unwrap();
    assert_eq!((stored.author.name.as_str(), stored.author.via.as_str()), ("jo", "api"));
    assert_eq!(stored.resource.status, Some(json!({"revokedAt": "then"})));
}

#[tokio::test]
async fn every_kind_of_the_registry_has_its_routes() {
    let server = Server::start().await;
    server.mesh("default").await;
    for info in meridian_core::kinds().iter() {
        let path = format!("/{}", info.plural);
        let expected = if info.internal { 404 } else { 200 };
        assert_eq!(server.get(&path).await.status, expected, "{path}");
        for alias in info.aliases.iter().filter(|_| !info.internal) {
            assert_eq!(server.get(&format!("/{alias}")).await.status, 200, "{alias}");
        }
    }
    let described = server.get("/_resources").await.json();
    let mtp = described["resources"]
        .as_array()
        .unwrap()
        .iter()
        .find(|r| r["name"] == "MeshTrafficPermission")
        .unwrap();
    assert_eq!(mtp["singularDisplayName"], "Mesh Traffic Permission");
    assert_eq!(mtp["policy"]["isTargetRef"], true);
    assert_eq!((&mtp["path"], &mtp["shortName"]), (&json!("meshtrafficpermissions"), &json!("mtp")));
    assert!(!described.to_string().contains("TrustBundle"));
    assert!(!server.get("/policies").await.json().to_string().contains("\"Dataplane\""));
    let openapi = server.get("/openapi.yaml").await;
    assert!(
        openapi.text.contains("/meshes/{mesh}/meshtrafficpermissions"),
        "{}",
        &openapi.text[..200.min(openapi.text.len())]
    );
}

/// What nothing serves is answered with these titles; everything else comes from a route.
#[tokio::test]
async fn every_path_of_the_document_is_served() {
    let (global, zone) = (Server::start().await, Server::zone().await);
    let admin = [("authorization", "Bearer admin")];
    let document = meridian_core::openapi::openapi();
    let mut asked = 0;
    for (path, operations) in document["paths"].as_object().unwrap() {
        let path = path.replace("{mesh}", "default").replace("{zone}", "east").replace("{name}", "nobody");
        let path = path.replace("{kri}", "kri_mt_default___nobody_").replace("{route}", "nobody");
        assert!(!path.contains('{'), "a parameter that nobody fills: {path}");
        for method in operations.as_object().unwrap().keys().filter(|key| *key != "parameters") {
            let method = method.to_uppercase();
            let mut titles = Vec::new();
            for server in [&global, &zone] {
                let answer = server.call(&method, &path, &admin, "").await;
                titles.push(if answer.status < 400 { Value::Null } else { answer.json()["title"].clone() });
            }
            let served = titles.iter().any(|title| title != "Not Found" && title != "Method Not Allowed");
            assert!(served, "{method} {path}: {titles:?}");
            asked += 1;
        }
    }
    assert!(asked > 80, "{asked}");
}

#[tokio::test]
async fn a_write_that_changes_nothing_says_so() {
    let server = Server::start().await;
    server.mesh("default").await;
    let path = "/meshes/default/externalservices/es";
    let unchanged =
        async |path: &str, body: serde_json::Value| server.put(path, body).await.json()["unchanged"].clone();
    let dry = format!("{path}?dryRun=true");
    assert_eq!(unchanged(&dry, external("es", "a.test:80")).await, json!(null), "it would be created");
    assert_eq!(unchanged(path, external("es", "a.test:80")).await, json!(null));
    assert_eq!(unchanged(&dry, external("es", "a.test:80")).await, json!(true));
    assert_eq!(unchanged(path, external("es", "a.test:80")).await, json!(true));
    assert_eq!(unchanged(&dry, external("es", "b.test:80")).await, json!(null));
    assert_eq!(unchanged(path, external("es", "b.test:80")).await, json!(null));
}
