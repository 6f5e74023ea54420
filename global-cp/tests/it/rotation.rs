use crate::harness::Replica;
use crate::zone::Zone;
use meridian_api::report::{ProxyOverview, types};
use meridian_pki::SpkiHash;
use serde_json::{Value, json};

const PATH: &str = "/meshes/default/_rotate-ca";

/// What a proxy of the zone knows, and which root its leaf is of.
fn report(zone: &Zone, trusts: &[String], leaf: &str) {
    let body = json!({
        "kind": "Dataplane", "mesh": "default", "name": "web", "online": true,
        "trustedRoots": {"default": trusts},
        "status": {
            "role": "sidecar", "version": "0", "instance": "i", "outboundEnforcement": "strict", "inbounds": [],
            "certificates": [{"mesh": "default", "expires": "2030-01-01T00:00:00Z", "root": leaf}],
        },
    });
    let overview: ProxyOverview = serde_json::from_value(body).unwrap();
    zone.publish_raw(types::PROXY, &overview.wire_name(), serde_json::to_vec(&overview).unwrap());
}

/// The roots in the bundle that the zone holds.
fn roots(zone: &Zone) -> Vec<String> {
    let Some(bundle) = zone.get("TrustBundle", "default//default") else { return Vec::new() };
    let of = |pem: &Value| {
        let certificates = meridian_pki::certificates_from_pem(pem.as_str().unwrap()).unwrap();
        SpkiHash::of_certificate(&certificates[0]).unwrap().to_string()
    };
    bundle["spec"]["roots"].as_array().unwrap().iter().map(of).collect()
}

async fn until_roots(zone: &Zone, expected: &[&String]) {
    let look = async || {
        let held = roots(zone);
        anyhow::ensure!(held.iter().eq(expected.iter().copied()), "{held:?}");
        Ok(())
    };
    meridian_testkit::wait::until("the bundle", meridian_testkit::wait::DEADLINE, look).await.unwrap();
}

async fn waits(global: &Replica, phase: &str, for_: &str) {
    let waiting = |state: &Value| {
        let text = state["waitingFor"].to_string();
        state["phase"] == phase && text.contains(for_)
    };
    global.until(&format!("{phase}, waiting for {for_}"), PATH, waiting).await;
}

#[tokio::test]
async fn a_root_is_replaced_step_by_step_and_over_a_kill() {
    let global = Replica::start().await;
    let zone = Zone::start("east", &global).await;
    zone.disk.intermediate(&global, "default").await.unwrap();
    zone.until_holds("TrustBundle", "default//default").await;
    let old = roots(&zone)[0].clone();
    report(&zone, std::slice::from_ref(&old), &old);
    global.until("the proxy", "/meshes/default/_overview", |mesh| mesh["dataplanes"]["total"] == 1).await;

    assert_eq!(global.post(PATH, json!({})).await.status, 202);
    waits(&global, "distributing", "has not acknowledged both roots").await;
    let new = global.get(PATH).await.json()["target"].as_str().unwrap().to_owned();
    until_roots(&zone, &[&old, &new]).await;
    // Asked again, it is the same one.
    assert_eq!(global.post(PATH, json!({})).await.json()["target"], new.as_str());
    report(&zone, &[old.clone(), new.clone()], &old);
    until_roots(&zone, &[&new, &old]).await;
    waits(&global, "reissuing", "its intermediate is of the leaving root").await;

    // A kill loses nothing.
    let disk = zone.kill();
    let data = global.data();
    drop(global);
    let global = Replica::start_in(data, None).await;
    let zone = disk.run(global.bound.sync, 2, false);
    zone.connected().await;
    waits(&global, "reissuing", "its certificate is of the leaving root").await;
    zone.disk.intermediate(&global, "default").await.unwrap();
    waits(&global, "reissuing", "Dataplane/default/web").await;
    assert!(!global.get(PATH).await.json()["waitingFor"].to_string().contains("intermediate"));
    report(&zone, &[new.clone(), old.clone()], &new);
    until_roots(&zone, &[&new]).await;
    let done = global.until("the end", PATH, |state| state["phase"] == "idle").await;
    assert_eq!(done["roots"], json!([new]));
    assert_eq!(global.post(&format!("{PATH}?abort=true"), json!({})).await.status, 409);
}

#[tokio::test]
async fn an_abort_goes_back_the_way_it_came() {
    let global = Replica::start().await;
    let zone = Zone::start("east", &global).await;
    zone.disk.intermediate(&global, "default").await.unwrap();
    zone.until_holds("TrustBundle", "default//default").await;
    let old = roots(&zone)[0].clone();
    report(&zone, std::slice::from_ref(&old), &old);
    global.until("the proxy", "/meshes/default/_overview", |mesh| mesh["dataplanes"]["total"] == 1).await;
    // While distributing nobody has anything of it.
    global.post(PATH, json!({})).await;
    waits(&global, "distributing", "Dataplane").await;
    assert_eq!(global.post(&format!("{PATH}?abort=true"), json!({})).await.status, 202);
    until_roots(&zone, &[&old]).await;
    // While reissuing somebody may.
    global.post(PATH, json!({})).await;
    let new = global.get(PATH).await.json()["target"].as_str().unwrap().to_owned();
    report(&zone, &[old.clone(), new.clone()], &old);
    waits(&global, "reissuing", "intermediate").await;
    zone.disk.intermediate(&global, "default").await.unwrap();
    report(&zone, &[old.clone(), new.clone()], &new);
    assert_eq!(global.post(&format!("{PATH}?abort=true"), json!({})).await.json()["aborting"], true);
    until_roots(&zone, &[&old, &new]).await;
    zone.disk.intermediate(&global, "default").await.unwrap();
    report(&zone, &[old.clone(), new.clone()], &old);
    until_roots(&zone, &[&old]).await;
    assert_eq!(global.get(PATH).await.json()["phase"], "idle");
}

#[tokio::test]
async fn a_mesh_without_a_ca_has_nothing_to_rotate() {
    let global = Replica::start().await;
    Replica::written(&global.put("/meshes/plain", json!({"type": "Mesh", "name": "plain"})).await);
    assert_eq!(global.post("/meshes/plain/_rotate-ca", json!({})).await.status, 404);
    assert_eq!(global.post("/meshes/nope/_rotate-ca", json!({})).await.status, 404);
}

#[tokio::test]
async fn a_mesh_that_nobody_uses_rotates_at_once() {
    let global = Replica::start().await;
    let before = global.get(PATH).await.json();
    global.post(PATH, json!({})).await;
    let after = global.until("the end", PATH, |state| state["phase"] == "idle").await;
    assert_ne!(before["roots"], after["roots"]);
}
