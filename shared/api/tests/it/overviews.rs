use crate::harness::Server;
use meridian_api::report::{Link, Presence, ProxyOverview, Rejected, ZoneReject, ZoneReport};
use meridian_core::{Key, Kind, Resource, labels};
use meridian_proxy_config::{CertificateStatus, Denial, DenialReport, InboundStatus, ProxyStatus, Role};
use meridian_store::{Author, Change, Expect};
use serde_json::{Value, json};
use std::collections::BTreeMap;

fn link(presence: Presence) -> Link {
    Link {
        presence,
        instance: "zone-process".into(),
        version: "0.1.0".into(),
        replica: "replica".into(),
        connected_at: Some("2026-01-01T00:00:00Z".into()),
        disconnected_at: None,
        revision: 7,
        behind_millis: 200,
        rejected: vec![Rejected {
            type_: "ExternalService".into(),
            name: "default//es".into(),
            reason: "unknown field".into(),
        }],
        refused_here: vec![],
        withheld: 0,
        withheld_here: 0,
        refused: String::new(),
    }
}

fn proxy(name: &str, online: bool, ready: bool) -> ProxyOverview {
    ProxyOverview {
        kind: "Dataplane".into(),
        mesh: "default".into(),
        name: name.into(),
        online,
        connected_at: Some("2026-01-01T00:00:00Z".into()),
        disconnected_at: Some("2026-01-02T00:00:00Z".into()),
        revision: 9,
        behind_millis: 0,
        rejected: vec![],
        trusted_roots: BTreeMap::new(),
        conditions: vec!["port 80 is taken".into()],
        status: Some(ProxyStatus {
            role: Role::Sidecar,
            version: "0.1.0".into(),
            instance: "proxy-process".into(),
            outbound_enforcement: "strict".into(),
            problems: vec![],
            inbounds: vec![InboundStatus { name: "80".into(), ready }],
            certificates: vec![CertificateStatus {
                mesh: "default".into(),
                expires: "2026-01-03T00:00:00Z".into(),
                root: "abc".into(),
            }],
        }),
    }
}

fn report(zone: &str, presence: Presence, proxies: Vec<ProxyOverview>) -> ZoneReport {
    let denial = Denial {
        mesh: "default".into(),
        caller: "spiffe://default/web".into(),
        destination: "evil.test".into(),
        port: 443,
        reason: "not-listed".into(),
        rule: String::new(),
        count: 3,
        last: "2026-01-01T00:00:00Z".into(),
        by: "egress".into(),
    };
    let reject = ZoneReject {
        kind: "MeshService".into(),
        mesh: "default".into(),
        name: "clash".into(),
        reason: "collides".into(),
    };
    ZoneReport {
        zone: zone.into(),
        link: Some(link(presence)),
        proxies,
        denials: DenialReport { denials: vec![denial], overflow: 5 },
        rejects: vec![reject],
    }
}

/// As global has it: under a hashed name, with the name at home in a label.
async fn dataplane(server: &Server, zone: &str, home: &str) -> String {
    let name = format!("{home}-{zone}");
    let labels = BTreeMap::from([(labels::DISPLAY_NAME.to_owned(), home.to_owned())]);
    let spec = json!({"networking": {"address": "192.0.2.1", "inbound": [{"port": 80, "tags": {"kuma.io/service": "web"}}]}});
    let key = Key::new(Kind::named("Dataplane").unwrap(), "default", zone, name.clone());
    let resource = Resource { key, labels, spec, status: None };
    server.store.write(&Author::system(), vec![Change::Put { resource, expect: Expect::Any }]).await.unwrap();
    name
}

pub(crate) async fn mesh_with_proxies(presence: Presence) -> Server {
    let server = Server::start().await;
    server.mesh("default").await;
    for name in ["web", "idle", "silent"] {
        dataplane(&server, "east", name).await;
    }
    server.put("/zones/east", json!({"type": "Zone", "name": "east"})).await;
    server.put("/zones/new", json!({"type": "Zone", "name": "new"})).await;
    let proxies = vec![proxy("web", true, true), proxy("idle", false, true)];
    *server.hooks.reports.lock().unwrap() = vec![report("east", presence, proxies)];
    server
}

#[tokio::test]
async fn a_dataplane_with_what_is_known_of_it() {
    let server = mesh_with_proxies(Presence::Online).await;
    let web = server.get("/meshes/default/dataplanes/web-east/_overview").await.json();
    assert_eq!(web["type"], "DataplaneOverview");
    assert_eq!(web["dataplane"]["networking"]["address"], "192.0.2.1");
    assert_eq!((&web["status"], &web["zone"]), (&json!("online"), &json!("east")));
    assert_eq!(web["outboundEnforcement"], "strict");
    assert_eq!(web["conditions"], json!(["port 80 is taken"]));
    let subscription = &web["dataplaneInsight"]["subscriptions"][0];
    assert_eq!(subscription["connectTime"], "2026-01-01T00:00:00Z");
    assert_eq!(subscription.get("disconnectTime"), None, "Kuma reads online from that");
    assert_eq!(web["dataplaneInsight"]["mTLS"]["certificateExpirationTime"], "2026-01-03T00:00:00Z");
    let legacy = server.get("/meshes/default/dataplanes+insights/web-east").await.json();
    assert_eq!(legacy, web);
    let idle = server.get("/meshes/default/dataplanes/idle-east/_overview").await.json();
    assert_eq!(idle["status"], "offline");
    assert_eq!(idle["dataplaneInsight"]["subscriptions"][0]["disconnectTime"], "2026-01-02T00:00:00Z");
    assert_eq!(server.get("/meshes/default/dataplanes/none/_overview").await.status, 404);
}

#[tokio::test]
async fn lists_of_overviews() {
    let server = mesh_with_proxies(Presence::Online).await;
    for path in [
        "/meshes/default/dataplanes/_overview",
        "/meshes/default/dataplanes+insights",
        "/dataplanes/_overview",
    ] {
        let list = server.get(&format!("{path}?size=2")).await.json();
        assert_eq!((list["total"].as_u64(), list["items"].as_array().unwrap().len()), (Some(3), 2), "{path}");
        assert!(list["next"].is_string());
    }
    let zones = server.get("/zones/_overview").await.json();
    assert_eq!(zones["items"][0]["status"], "online");
    assert_eq!(zones["items"][1]["status"], "offline", "it never connected");
    assert_eq!(server.get("/zones+insights").await.json(), zones);
    assert_eq!(server.get("/zoneingresses/_overview").await.json()["total"], 0);
}

#[tokio::test]
async fn a_zone_with_what_it_refused() {
    let server = mesh_with_proxies(Presence::Online).await;
    let east = server.get("/zones/east/_overview").await.json();
    assert_eq!((&east["status"], &east["behindMillis"]), (&json!("online"), &json!(200)));
    assert_eq!(east["zoneInsight"]["subscriptions"][0]["globalInstanceId"], "replica");
    let rejected = server.get("/_rejections").await.json();
    assert_eq!(rejected["items"], east["rejections"]);
    let first = &rejected["items"][0];
    assert_eq!(
        first,
        &json!({
            "zone": "east", "by": "zone", "type": "ExternalService", "mesh": "default", "name": "es", "reason": "unknown field",
        })
    );
    assert_eq!(server.get("/meshes/other/_rejections").await.json()["total"], 0);
    assert_eq!(server.get("/meshes/default/_rejections").await.json()["total"], 2);
}

#[tokio::test]
async fn nobody_claims_to_know_a_zone_that_is_out_of_sight() {
    let server = mesh_with_proxies(Presence::Unknown).await;
    assert_eq!(server.get("/zones/east/_overview").await.json()["status"], "unknown");
    assert_eq!(server.get("/meshes/default/dataplanes/web-east/_overview").await.json()["status"], "unknown");
}

#[tokio::test]
async fn denials_by_mesh() {
    let server = mesh_with_proxies(Presence::Online).await;
    let denials = server.get("/meshes/default/_denials").await.json();
    assert_eq!((denials["total"].as_u64(), denials["overflow"].as_u64()), (Some(1), Some(5)));
    assert_eq!((&denials["items"][0]["zone"], &denials["items"][0]["count"]), (&json!("east"), &json!(3)));
    for (query, total) in
        [("zone=west", 0), ("caller=web", 1), ("destination=good", 0), ("reason=not-listed", 1)]
    {
        let found = server.get(&format!("/meshes/default/_denials?{query}")).await.json();
        assert_eq!(found["total"], total, "{query}");
    }
    assert_eq!(server.get("/meshes/other/_denials").await.json()["total"], 0);
}

#[tokio::test]
async fn a_mesh_says_who_enforces_what_leaves_it() {
    let server = mesh_with_proxies(Presence::Online).await;
    let of = |server: Server, name: &'static str| async move {
        let overview = server.get(&format!("/meshes/{name}/_overview")).await.json();
        (server, overview)
    };
    let (server, plain) = of(server, "default").await;
    assert_eq!(plain["egressEnforcement"], "sidecar");
    assert_eq!(plain["dataplanes"], json!({"total": 2, "online": 1, "offline": 1, "unknown": 0}));
    let strict = json!({
        "type": "Mesh", "name": "strict", "routing": {"zoneEgress": true},
        "mtls": {"enabledBackend": "ca", "backends": [{"name": "ca", "type": "builtin"}]},
    });
    assert_eq!(server.put("/meshes/strict", strict).await.status, 201);
    assert_eq!(of(server, "strict").await.1["egressEnforcement"], "egress");
}

#[tokio::test]
async fn the_global_insight_counts_what_is_there() {
    let server = mesh_with_proxies(Presence::Online).await;
    let insight = server.get("/global-insight").await.json();
    let number = |pointer: &str| insight.pointer(pointer).and_then(Value::as_u64);
    assert_eq!(number("/meshes/total"), Some(1));
    assert_eq!(number("/zones/controlPlanes/total"), Some(2));
    assert_eq!(number("/zones/controlPlanes/online"), Some(1));
    assert_eq!(number("/dataplanes/standard/total"), Some(3));
    assert_eq!(number("/dataplanes/standard/online"), Some(1));
    assert_eq!(number("/dataplanes/standard/offline"), Some(2));
    assert_eq!(number("/services/internal/partiallyDegraded"), Some(1));
    assert_eq!(number("/resources/Dataplane/total"), Some(3));
    assert!(insight["createdAt"].is_string());
}

/// What other zones reach through it: ready inbounds of proxies that are there, and entries pinned to the zone.
#[tokio::test]
async fn an_ingress_offers_what_can_be_reached_through_it() {
    let server = mesh_with_proxies(Presence::Online).await;
    let kind = Kind::named("ZoneIngress").unwrap();
    let spec = json!({"networking": {"address": "192.0.2.7", "port": 10001}});
    let resource =
        Resource { key: Key::new(kind, "", "east", "in-east"), labels: BTreeMap::new(), spec, status: None };
    server.store.write(&Author::system(), vec![Change::Put { resource, expect: Expect::Any }]).await.unwrap();
    let offered = async || server.get("/zoneingresses/in-east").await.json()["availableServices"].clone();
    assert_eq!(offered().await, json!([]), "without certificates nothing crosses zones");

    let strict = json!({
        "type": "Mesh", "name": "default", "routing": {"zoneEgress": true},
        "mtls": {"enabledBackend": "ca", "backends": [{"name": "ca", "type": "builtin"}]},
    });
    assert_eq!(server.put("/meshes/default", strict).await.status, 200);
    let mut pinned = crate::harness::external("pinned", "a.test:80");
    pinned["tags"]["kuma.io/zone"] = json!("east");
    assert_eq!(server.put("/meshes/default/externalservices/pinned", pinned).await.status, 201);
    let web = json!({"tags": {"kuma.io/service": "web"}, "instances": 1, "mesh": "default"});
    let pinned = json!({
        "tags": {"kuma.io/service": "pinned", "kuma.io/protocol": "http", "kuma.io/zone": "east"},
        "instances": 1, "mesh": "default", "externalService": true,
    });
    let expected = json!([pinned, web]);
    assert_eq!(offered().await, expected, "one of three is online");
    let listed = server.get("/zoneingresses").await.json();
    assert_eq!(listed["items"][0]["availableServices"], expected);
    let overview = server.get("/zoneingresses/in-east/_overview").await.json();
    assert_eq!(overview["zoneIngress"]["availableServices"], expected);

    *server.hooks.reports.lock().unwrap() =
        vec![report("east", Presence::Online, vec![proxy("web", true, false), proxy("idle", true, true)])];
    assert_eq!(offered().await[1]["instances"], 1, "the one that is not ready does not count");
    *server.hooks.reports.lock().unwrap() =
        vec![report("east", Presence::Unknown, vec![proxy("web", true, true)])];
    assert_eq!(
        offered().await.as_array().unwrap().len(),
        1,
        "only the pinned entry: nobody knows of the others"
    );
}
