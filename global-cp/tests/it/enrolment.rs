use crate::harness::Replica;
use crate::zone::{Disk, Zone};
use meridian_testkit::wait::{DEADLINE, until};
use serde_json::json;
use tonic::Code;

#[tokio::test]
async fn a_zone_enrols_with_its_token_and_no_other() {
    let global = Replica::start().await;
    let east = Disk::new("east", &global);
    let token = |body| {
        let global = &global;
        async move { global.post("/tokens/zone", body).await.text }
    };
    let other_zone = token(json!({"zone": "west", "scope": ["cp"]})).await;
    let other_scope = token(json!({"zone": "east", "scope": ["ingress", "egress"]})).await;
    let user = global.post("/tokens/user", json!({"name": "kim"})).await.text;
    let dataplane = global.post("/tokens/dataplane", json!({"name": "web", "mesh": "default"})).await.text;
    let table = [
        (Some(other_zone), Code::PermissionDenied),
        (Some(other_scope), Code::PermissionDenied),
        (Some(user), Code::Unauthenticated),
        (Some(dataplane), Code::Unauthenticated),
        (Some("nonsense".to_owned()), Code::Unauthenticated),
        (None, Code::Unauthenticated),
    ];
    for (token, code) in table {
        let refused = east.enroll(&global, token.clone(), false).await.unwrap_err();
        assert_eq!(refused.code(), code, "{token:?}: {refused}");
    }
    assert_eq!(global.get("/zones").await.json()["total"], 0, "nothing changed");

    east.enroll(&global, Some(global.zone_token("east").await), false).await.unwrap();
    assert_eq!(global.get("/zones/east").await.json()["enabled"], true);
    // By its certificate from now on.
    east.enroll(&global, None, false).await.unwrap();
}

#[tokio::test]
async fn an_expired_and_a_revoked_token_do_not_enrol() {
    let global = Replica::start().await;
    let east = Disk::new("east", &global);
    let short =
        global.post("/tokens/zone", json!({"zone": "east", "scope": ["cp"], "validFor": "1ns"})).await.text;
    assert_eq!(east.enroll(&global, Some(short), false).await.unwrap_err().code(), Code::Unauthenticated);
    let token = global.zone_token("east").await;
    revoke_token(&global, &token).await;
    let refused = async || {
        let answer = east.enroll(&global, Some(token.clone()), false).await;
        anyhow::ensure!(answer.is_err_and(|status| status.message().contains("revoked")), "not refused");
        Ok(())
    };
    until("the revocation", DEADLINE, refused).await.unwrap();
}

/// As Kuma does it: a secret with the tokens' ids.
async fn revoke_token(global: &Replica, token: &str) {
    use base64::{
        Engine,
        engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
    };
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
    let claims: serde_json::Value = serde_json::from_slice(&claims).unwrap();
    let list = STANDARD.encode(claims["jti"].as_str().unwrap());
    let secret = json!({"type": "GlobalSecret", "name": "zone-token-revocations", "data": list});
    Replica::written(&global.put("/global-secrets/zone-token-revocations", secret).await);
}

#[tokio::test]
async fn revoking_the_token_cuts_the_streams_that_it_opened() {
    let global = Replica::start().await;
    let east = Disk::new("east", &global);
    let token = global.zone_token("east").await;
    east.enroll(&global, Some(token.clone()), false).await.unwrap();
    let east = east.run(global.bound.sync, 1, false);
    let west = Zone::start("west", &global).await;
    east.connected().await;
    revoke_token(&global, &token).await;
    east.cut().await;
    assert!(west.down.state().connected, "west's token is another");
}

#[tokio::test]
async fn another_key_needs_take_over() {
    let global = Replica::start().await;
    let east = Disk::new("east", &global);
    east.enroll(&global, Some(global.zone_token("east").await), false).await.unwrap();
    let thief = east.with_new_key();
    let token = global.zone_token("east").await;
    let refused = thief.enroll(&global, Some(token.clone()), false).await.unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists);
    assert!(refused.message().contains("--take-over"), "{refused}");
    thief.enroll(&global, Some(token), true).await.unwrap();
    let replaced = east.enroll(&global, None, false).await.unwrap_err();
    assert_eq!(replaced.code(), Code::Unauthenticated, "the old certificate counts no longer");
}

#[tokio::test]
async fn without_a_certificate_there_is_no_stream() {
    let global = Replica::start().await;
    let stranger = Disk::new("east", &global).run(global.bound.sync, 1, false);
    let why = stranger.cut().await;
    assert!(why.contains("client certificate"), "{why}");
    assert!(stranger.disk.held.lock().unwrap().resources.is_empty());
}

#[tokio::test]
async fn intermediates_are_signed_for_enrolled_zones_and_meshes_with_a_ca() {
    let global = Replica::start().await;
    let east = Disk::new("east", &global);
    assert_eq!(east.intermediate(&global, "default").await.unwrap_err().code(), Code::Unauthenticated);
    east.enroll(&global, Some(global.zone_token("east").await), false).await.unwrap();
    let certificate = east.intermediate(&global, "default").await.unwrap();
    assert_eq!((certificate.chain.len(), certificate.roots.len()), (1, 1));
    assert_eq!(east.intermediate(&global, "nope").await.unwrap_err().code(), Code::NotFound);
    Replica::written(&global.put("/meshes/plain", json!({"type": "Mesh", "name": "plain"})).await);
    assert_eq!(east.intermediate(&global, "plain").await.unwrap_err().code(), Code::NotFound);
    let mtls = json!({
        "type": "Mesh", "name": "plain",
        "mtls": {"enabledBackend": "ca", "backends": [{"name": "ca", "type": "builtin"}]},
    });
    Replica::written(&global.put("/meshes/plain", mtls).await);
    east.intermediate(&global, "plain").await.unwrap();
}

#[tokio::test]
async fn a_revoked_zone_is_out_until_it_has_a_new_token() {
    let global = Replica::start().await;
    let token = global.zone_token("east").await;
    let disk = Disk::new("east", &global);
    disk.enroll(&global, Some(token.clone()), false).await.unwrap();
    let east = disk.run(global.bound.sync, 1, false);
    east.connected().await;
    let west = Zone::start("west", &global).await;
    east.disk.intermediate(&global, "default").await.unwrap();
    let bundle = west.until_holds("TrustBundle", "default//default").await;
    assert_eq!(bundle["spec"]["revoked"], json!([]));

    assert_eq!(global.post("/zones/east/_revoke", json!({})).await.status, 200);
    east.cut().await;
    let told = async || {
        let bundle = west.get("TrustBundle", "default//default").unwrap();
        anyhow::ensure!(bundle["spec"]["revoked"].as_array().unwrap().len() == 1, "{bundle}");
        Ok(())
    };
    until("the revocation in west", DEADLINE, told).await.unwrap();
    assert!(west.down.state().connected);
    assert!(global.get("/zones/east/_overview").await.json()["revokedAt"].is_string());
    assert_eq!(disk.intermediate(&global, "default").await.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(disk.enroll(&global, None, false).await.unwrap_err().code(), Code::Unauthenticated);
    let old = disk.enroll(&global, Some(token), false).await.unwrap_err();
    assert!(old.message().contains("new token"), "{old}");
    disk.enroll(&global, Some(global.zone_token("east").await), true).await.unwrap();
    east.kill();
    disk.run(global.bound.sync, 2, false).connected().await;
    assert_eq!(global.get("/zones/east/_overview").await.json().get("revokedAt"), None);
    assert_eq!(global.post("/zones/nope/_revoke", json!({})).await.status, 404);
}

#[tokio::test]
async fn deleting_a_zone_takes_all_of_it() {
    let global = Replica::start().await;
    let east = Zone::start("east", &global).await;
    let west = Zone::start("west", &global).await;
    let service = crate::zone::service("backend");
    east.publish(&service).await;
    let name = crate::zone::hashed("east", &service);
    west.until_holds("MeshService", &format!("default/east/{name}")).await;
    Replica::written(&global.delete("/zones/east").await);
    east.cut().await;
    west.until_lacks("MeshService", &format!("default/east/{name}")).await;
    assert_eq!(global.get("/meshservices").await.json()["total"], 0);
    assert_eq!(east.disk.enroll(&global, None, false).await.unwrap_err().code(), Code::Unauthenticated);
}

#[tokio::test]
async fn one_process_a_zone() {
    let global = Replica::start().await;
    let first = Zone::start("east", &global).await;
    let second = first.disk.run(global.bound.sync, 2, false);
    let why = second.cut().await;
    assert!(why.contains("already connected from"), "{why}");
    assert!(first.down.state().connected);
    second.kill();
    let third = first.disk.run(global.bound.sync, 3, true);
    third.connected().await;
    let why = first.cut().await;
    assert!(!why.is_empty());
    let fenced = async || {
        let error = first.down.state().error.unwrap_or_default();
        anyhow::ensure!(error.contains("stays out"), "{error}");
        Ok(())
    };
    until("the loser to hear why", DEADLINE, fenced).await.unwrap();
    assert!(third.down.state().connected);
}

#[tokio::test]
async fn a_restarted_process_is_let_in_at_once() {
    let global = Replica::start().await;
    let disk = Zone::start("east", &global).await.kill();
    disk.run(global.bound.sync, 2, false).connected().await;
}
