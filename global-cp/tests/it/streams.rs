use crate::harness::{Replica, external};
use crate::zone::{Disk, Zone, dataplane, hashed, service};
use meridian_api::report::{ProxyOverview, types};
use meridian_api::wire;
use meridian_delta::{Revision, StoreId, View};
use meridian_testkit::wait::{DEADLINE, until};
use serde_json::{Value, json};

#[tokio::test]
async fn a_zone_gets_what_is_written_and_what_is_taken_away() {
    let global = Replica::start().await;
    let east = Zone::start("east", &global).await;
    let mesh = east.until_holds("Mesh", "//default").await;
    assert_eq!(mesh["spec"]["routing"]["zoneEgress"], true);
    east.until_holds("TrustBundle", "default//default").await;
    east.until_holds("HostnameGenerator", "//local-universal-mesh-service").await;
    let keys = east.names("TokenKey");
    assert_eq!(keys, ["//dataplane.default.1", "//zone.1"], "who users are is global's business");
    assert!(east.names("Zone").is_empty() && east.names("GlobalSecret").is_empty());

    Replica::written(&global.put("/meshes/default/external-services/api", external("api", None)).await);
    east.until_holds("ExternalService", "default//api").await;
    Replica::written(&global.delete("/meshes/default/external-services/api").await);
    east.until_lacks("ExternalService", "default//api").await;
}

#[tokio::test]
async fn what_a_zone_sends_has_its_origin_and_reaches_the_other_zones() {
    let global = Replica::start().await;
    let east = Zone::start("east", &global).await;
    let west = Zone::start("west", &global).await;
    for zone in [&east, &west] {
        zone.publish(&service("backend")).await;
        zone.publish(&dataplane("web")).await;
    }
    let name = hashed("east", &service("backend"));
    let stored = global.until("the service", &format!("/meshes/default/meshservices/{name}"), |_| true).await;
    for (label, value) in
        [("kuma.io/display-name", "backend"), ("kuma.io/zone", "east"), ("kuma.io/origin", "zone")]
    {
        assert_eq!(stored["labels"][label], value, "{stored}");
    }
    let synced = west.until_holds("MeshService", &format!("default/east/{name}")).await;
    assert_eq!(synced["labels"]["kuma.io/origin"], "global");
    assert_eq!(synced["labels"]["kuma.io/zone"], "east");
    global.until("both Dataplanes", "/dataplanes", |list| list["total"] == 2).await;
    // Its own are not echoed, and Dataplanes stay.
    east.until_holds("MeshService", &format!("default/west/{}", hashed("west", &service("backend")))).await;
    assert_eq!(east.names("MeshService").len(), 1);
    assert!(west.names("Dataplane").is_empty());

    east.withdraw("MeshService", "default/east/backend");
    west.until_lacks("MeshService", &format!("default/east/{name}")).await;
}

#[tokio::test]
async fn a_zone_speaks_for_itself_only_and_the_rest_of_what_it_says_counts() {
    let global = Replica::start().await;
    let east = Zone::start("east", &global).await;
    let forged = wire::from_zone("west", service("forged"));
    east.publish_raw("MeshService", &wire::name(&forged.key), forged.canonical());
    east.publish_raw("Mesh", "/east/default", br#"{"labels":{},"spec":{}}"#.to_vec());
    east.publish_raw(
        "MeshService",
        "default/east/broken",
        br#"{"labels":{},"spec":{"nonsense":1}}"#.to_vec(),
    );
    east.publish(&service("good")).await;
    let name = hashed("east", &service("good"));
    global.until("the good one", &format!("/meshes/default/meshservices/{name}"), |_| true).await;
    let rejected = global.until("the reasons", "/_rejections", |list| list["total"] == 2).await;
    let reason = |name: &str| -> String {
        let items = rejected["items"].as_array().unwrap();
        items.iter().find(|item| item["name"] == name).unwrap()["reason"].as_str().unwrap().to_owned()
    };
    assert!(reason("forged").contains("claims zone west"), "{rejected}");
    assert!(reason("broken").contains("nonsense"), "{rejected}");
    assert_eq!(global.get("/meshservices").await.json()["total"], 1);
    let errors: Vec<_> = east.up.state().rejected.iter().map(|r| r.id.name.to_string()).collect();
    assert_eq!(errors.len(), 2, "and the zone hears of it: {errors:?}");
    let mesh = global.get("/meshes/default").await.json();
    assert_eq!(mesh["routing"]["zoneEgress"], true, "what zones do not make is not even listened to");
}

#[tokio::test]
async fn what_a_zone_refuses_stops_nothing_and_shows_with_its_reason() {
    let global = Replica::start().await;
    let disk = Disk::new("east", &global);
    *disk.refuses.lock().unwrap() = Some("/bad");
    disk.enroll(&global, Some(global.zone_token("east").await), false).await.unwrap();
    let east = disk.run(global.bound.sync, 1, false);
    Replica::written(&global.put("/meshes/default/external-services/bad", external("bad", None)).await);
    Replica::written(&global.put("/meshes/default/external-services/good", external("good", None)).await);
    east.until_holds("ExternalService", "default//good").await;
    let zone = global
        .until("the reason", "/zones/east/_overview", |zone| {
            zone["rejections"].as_array().is_some_and(|r| r.len() == 1)
        })
        .await;
    assert_eq!(zone["rejections"][0]["name"], "bad");
    assert_eq!(zone["rejections"][0]["reason"], "it makes no sense here");
}

#[tokio::test]
async fn a_zone_that_comes_back_gets_only_the_difference() {
    let global = Replica::start().await;
    let east = Zone::start("east", &global).await;
    for index in 0..20 {
        let name = format!("es-{index}");
        let path = format!("/meshes/default/external-services/{name}");
        Replica::written(&global.put(&path, external(&name, None)).await);
        east.publish(&service(&format!("svc-{index}"))).await;
    }
    for index in 0..20 {
        east.until_holds("ExternalService", &format!("default//es-{index}")).await;
    }
    global.until("its services", "/meshservices", |list| list["total"] == 20).await;
    let disk = east.stop().await;
    let data = global.stop().await;
    let before = disk.held.lock().unwrap().resources.len();
    disk.held.lock().unwrap().applied = 0;

    let global = Replica::start_in(data, None).await;
    Replica::written(&global.put("/meshes/default/external-services/new", external("new", None)).await);
    Replica::written(&global.delete("/meshes/default/external-services/es-3").await);
    let east = disk.run(global.bound.sync, 2, false);
    east.publish(&service("later")).await;
    east.until_holds("ExternalService", "default//new").await;
    east.until_lacks("ExternalService", "default//es-3").await;
    global.until("the later service", "/meshservices", |list| list["total"] == 21).await;
    assert_eq!(east.disk.held.lock().unwrap().applied, 1, "one changed, one came");
    assert_eq!(east.disk.held.lock().unwrap().resources.len(), before);
    assert_eq!(east.up.state().counters.resources, 1, "and up as well");
}

#[tokio::test]
async fn a_secret_goes_to_zones_that_have_what_names_it() {
    let global = Replica::start().await;
    let east = Zone::start("east", &global).await;
    let west = Zone::start("west", &global).await;
    let secret = json!({"type": "Secret", "mesh": "default", "name": "ca", "data": "eA=="});
    Replica::written(&global.put("/meshes/default/secrets/ca", secret).await);
    let mut pinned = external("api", Some("ca"));
    pinned["tags"]["kuma.io/zone"] = json!("west");
    Replica::written(&global.put("/meshes/default/external-services/api", pinned).await);
    west.until_holds("Secret", "default//ca").await;
    east.until_holds("ExternalService", "default//api").await;
    assert!(east.names("Secret").is_empty(), "west's egress dials it, nobody else");
    Replica::written(&global.put("/meshes/default/external-services/api", external("api", Some("ca"))).await);
    east.until_holds("Secret", "default//ca").await;
    Replica::written(&global.delete("/meshes/default/external-services/api").await);
    east.until_lacks("Secret", "default//ca").await;
    west.until_lacks("Secret", "default//ca").await;
}

#[tokio::test]
async fn a_disabled_zone_serves_nobody_and_still_hears() {
    let global = Replica::start().await;
    let east = Zone::start("east", &global).await;
    let west = Zone::start("west", &global).await;
    east.publish(&service("backend")).await;
    let name = format!("default/east/{}", hashed("east", &service("backend")));
    west.until_holds("MeshService", &name).await;
    let zone = |enabled: bool| json!({"type": "Zone", "name": "east", "enabled": enabled});
    Replica::written(&global.put("/zones/east", zone(false)).await);
    west.until_lacks("MeshService", &name).await;
    Replica::written(&global.put("/meshes/default/external-services/api", external("api", None)).await);
    east.until_holds("ExternalService", "default//api").await;
    Replica::written(&global.put("/zones/east", zone(true)).await);
    west.until_holds("MeshService", &name).await;
}

fn overview(name: &str, online: bool) -> ProxyOverview {
    let body = json!({"kind": "Dataplane", "mesh": "default", "name": name, "online": online});
    serde_json::from_value(body).unwrap()
}

fn publish_overview(zone: &Zone, overview: &ProxyOverview) {
    zone.publish_raw(types::PROXY, &overview.wire_name(), serde_json::to_vec(overview).unwrap());
}

#[tokio::test]
async fn proxies_show_as_their_zone_says() {
    let global = Replica::start().await;
    let east = Zone::start("east", &global).await;
    east.publish(&dataplane("web")).await;
    publish_overview(&east, &overview("web", true));
    let path = format!("/meshes/default/dataplanes/{}/_overview", hashed("east", &dataplane("web")));
    global.until("online", &path, |web| web["status"] == "online" && web["zone"] == "east").await;
    publish_overview(&east, &overview("web", false));
    global.until("offline", &path, |web| web["status"] == "offline").await;
    publish_overview(&east, &overview("web", true));
    global.until("online again", &path, |web| web["status"] == "online").await;
    let disk = east.stop().await;
    // Its zone is gone: what it was last is no news.
    global.until("unknown", &path, |web| web["status"] == "unknown").await;
    global.until("the zone offline", "/zones/east/_overview", |zone| zone["status"] == "offline").await;
    let east = disk.run(global.bound.sync, 2, false);
    east.connected().await;
    global.until("back", &path, |web| web["status"] == "online").await;
    east.withdraw("Dataplane", "default/east/web");
    global.until("gone", "/dataplanes", |list| list["total"] == 0).await;
}

#[tokio::test]
async fn how_far_behind_a_zone_is() {
    let global = Replica::start().await;
    let east = Zone::start("east", &global).await;
    Replica::written(&global.put("/meshes/default/external-services/api", external("api", None)).await);
    let overview = global
        .until("the zone to be current", "/zones/east/_overview", |zone| {
            zone["status"] == "online" && zone["behindMillis"] == 0 && zone["revision"].as_u64() > Some(1)
        })
        .await;
    assert_eq!(overview["refused"], "");
    east.stop().await;
}

/// A restored or foreign store is not believed, by nobody.
#[tokio::test]
async fn a_fresh_global_at_the_same_address_changes_nothing_in_a_zone() {
    let global = Replica::start().await;
    let east = Zone::start("east", &global).await;
    Replica::written(&global.put("/meshes/default/external-services/api", external("api", None)).await);
    east.until_holds("ExternalService", "default//api").await;
    let disk = east.stop().await;
    let data = global.stop().await;
    let config = {
        let global = Replica::start_in(data.clone(), None).await;
        let config = global.config.clone();
        global.stop().await;
        config
    };
    meridian_global_cp::restored(config.clone()).await.unwrap();
    let global = Replica::start_in(data, None).await;
    Replica::written(&global.delete("/meshes/default/external-services/api").await);
    let before = disk.held.lock().unwrap().resources.len();
    let east = disk.run(global.bound.sync, 2, false);
    let refused = async || {
        let state = east.down.state();
        state.refused.ok_or_else(|| anyhow::anyhow!("not refused"))
    };
    until("the zone to refuse another store", DEADLINE, refused).await.unwrap();
    assert_eq!(east.disk.held.lock().unwrap().resources.len(), before);
    let shown = |zone: &Value| zone["refused"].as_str().is_some_and(|why| !why.is_empty());
    global.until("the refusal at global", "/zones/east/_overview", shown).await;
    let offered = east.down.state().offered.unwrap();
    east.control.accept(offered.store);
    let took = async || {
        anyhow::ensure!(east.get("ExternalService", "default//api").is_none(), "still there");
        Ok(())
    };
    until("the zone to take it once accepted", DEADLINE, took).await.unwrap();
}

#[tokio::test]
async fn a_zone_that_lost_its_store_erases_nothing_at_global_until_it_takes_over() {
    let global = Replica::start().await;
    let east = Zone::start("east", &global).await;
    east.publish(&service("backend")).await;
    global.until("the service", "/meshservices", |list| list["total"] == 1).await;
    let mut disk = east.stop().await;
    let empty = View::new(StoreId([9; 16]), Revision(0));
    empty.advance(Revision(1));
    disk.view = empty;
    let east = disk.run(global.bound.sync, 2, false);
    let refused = |zone: &Value| zone["refused"].as_str().is_some_and(|why| why.contains("refused here"));
    global.until("the refusal", "/zones/east/_overview", refused).await;
    assert_eq!(global.get("/meshservices").await.json()["total"], 1);
    let disk = east.stop().await;
    let east = disk.run(global.bound.sync, 3, true);
    global.until("the service to go", "/meshservices", |list| list["total"] == 0).await;
    east.stop().await;
}

/// The zone's store is the one that it was, and has lost what it held: no deletion is on record.
#[tokio::test]
async fn deletions_of_a_zone_that_nothing_vouches_for_wait_for_an_operator() {
    let global = Replica::start().await;
    let east = Zone::start("east", &global).await;
    east.publish(&service("backend")).await;
    global.until("the service", "/meshservices", |list| list["total"] == 1).await;
    let path = "/zones/east/_confirm-deletions";
    assert_eq!(global.post(path, json!({})).await.status, 409, "nothing waits");
    assert_eq!(global.post("/zones/west/_confirm-deletions", json!({})).await.status, 404);
    let store = east.disk.view.position().store;
    let mut disk = east.stop().await;
    assert_eq!(global.post(path, json!({})).await.status, 409, "it is not connected");
    let emptied = View::recorded(store, Revision(0), Revision(0), []);
    emptied.advance(Revision(100));
    disk.view = emptied;
    let east = disk.run(global.bound.sync, 2, false);
    global.until("the deletion to wait", "/zones/east/_overview", |zone| zone["withheldHere"] == 1).await;
    assert_eq!(global.get("/meshservices").await.json()["total"], 1);
    let confirmed = global.post(path, json!({})).await;
    assert_eq!((confirmed.status, &confirmed.json()["confirmed"]), (200, &json!(1)), "{confirmed:?}");
    global.until("the service to go", "/meshservices", |list| list["total"] == 0).await;
    global.until("nothing to wait", "/zones/east/_overview", |zone| zone["withheldHere"] == 0).await;
    east.stop().await;
}
