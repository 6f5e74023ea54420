//! Two replicas on one real Postgres.

use crate::harness::{Replica, external};
use crate::zone::{Disk, Zone, hashed, service};
use meridian_api::report::{ZoneReject, types};
use meridian_testkit::postgres::{Postgres, Settings};
use meridian_testkit::wait::{DEADLINE, until};
use serde_json::json;
use std::sync::Arc;

struct Pair {
    postgres: Postgres,
    url: String,
    one: Replica,
    two: Replica,
}

async fn pair() -> Pair {
    let postgres = Postgres::start(Settings::default()).await.unwrap();
    let url = postgres.create_database("meridian").await.unwrap();
    let one = Replica::start_in(Arc::new(tempfile::tempdir().unwrap()), Some(url.clone())).await;
    let two = beside(&one, &url).await;
    Pair { postgres, url, one, two }
}

/// Another replica of the same store: it needs the same key.
async fn beside(one: &Replica, url: &str) -> Replica {
    let data = Arc::new(tempfile::tempdir().unwrap());
    std::fs::copy(one.path("encryption-key"), data.path().join("encryption-key")).unwrap();
    Replica::start_in(data, Some(url.to_owned())).await
}

#[tokio::test]
async fn a_write_at_one_reaches_a_zone_at_the_other() {
    let Pair { one, two, postgres: _postgres, .. } = pair().await;
    let ca = |replica: &Replica| std::fs::read_to_string(replica.path("ca.crt")).unwrap();
    assert_eq!(ca(&one), ca(&two), "one CA for all");
    let east = Zone::start("east", &one).await;
    let west = Zone::start("west", &two).await;
    Replica::written(&one.put("/meshes/default/external-services/api", external("api", None)).await);
    west.until_holds("ExternalService", "default//api").await;
    east.publish(&service("backend")).await;
    let name = format!("default/east/{}", hashed("east", &service("backend")));
    west.until_holds("MeshService", &name).await;
    for replica in [&one, &two] {
        for zone in ["east", "west"] {
            let path = format!("/zones/{zone}/_overview");
            replica.until("both to know both", &path, |zone| zone["status"] == "online").await;
        }
    }
    Replica::written(&two.delete("/meshes/default/external-services/api").await);
    east.until_lacks("ExternalService", "default//api").await;
}

#[tokio::test]
async fn a_zone_moves_between_replicas_and_gets_only_the_difference() {
    let Pair { one, two, postgres: _postgres, .. } = pair().await;
    let east = Zone::start("east", &one).await;
    east.until_holds("Mesh", "//default").await;
    east.publish(&service("backend")).await;
    two.until("the service", "/meshservices", |list| list["total"] == 1).await;
    let disk = east.stop().await;
    disk.held.lock().unwrap().applied = 0;
    Replica::written(&one.put("/meshes/default/external-services/api", external("api", None)).await);
    let east = disk.run(two.bound.sync, 2, false);
    east.until_holds("ExternalService", "default//api").await;
    assert_eq!(east.disk.held.lock().unwrap().applied, 1);
    assert_eq!(east.up.state().counters.resources, 0);
    for replica in [&one, &two] {
        replica.until("online", "/zones/east/_overview", |zone| zone["status"] == "online").await;
    }
}

#[tokio::test]
async fn what_a_zone_says_stands_wherever_it_was_meanwhile() {
    let Pair { one, two, postgres: _postgres, .. } = pair().await;
    let reject = ZoneReject {
        kind: "MeshService".to_owned(),
        mesh: "default".to_owned(),
        name: "odd".to_owned(),
        reason: "it can't be compiled".to_owned(),
    };
    let (name, body) = (reject.wire_name(), serde_json::to_vec(&reject).unwrap());
    let counts = async |what: &str, count: u64| {
        for replica in [&one, &two] {
            replica.until(what, "/_rejections", |list| list["total"] == count).await;
        }
    };
    let east = Zone::start("east", &one).await;
    east.publish_raw(types::REJECT, &name, body.clone());
    counts("said at one", 1).await;
    let east = east.stop().await.run(two.bound.sync, 2, false);
    east.withdraw(types::REJECT, &name);
    counts("withdrawn at two", 0).await;
    // Back at one as it was there before: nothing is sent, and it stands again.
    let east = east.stop().await.run(one.bound.sync, 3, false);
    east.publish_raw(types::REJECT, &name, body);
    counts("said again", 1).await;
    assert_eq!(east.up.state().counters.resources, 0);
}

#[tokio::test]
async fn a_second_process_is_refused_and_replaced_wherever_it_connects() {
    let Pair { one, two, postgres: _postgres, .. } = pair().await;
    let first = Zone::start("east", &one).await;
    two.until("two to know", "/zones/east/_overview", |zone| zone["status"] == "online").await;
    let second = first.disk.run(two.bound.sync, 2, false);
    let why = second.cut().await;
    assert!(why.contains("already connected"), "{why}");
    second.kill();
    let third = first.disk.run(two.bound.sync, 3, true);
    third.connected().await;
    first.cut().await;
    // The loser's replica does not speak for the zone any more.
    let instance = two.until("the third", "/zones/east/_overview", |zone| zone["status"] == "online").await;
    one.until("one to agree", "/zones/east/_overview", |zone| {
        zone["status"] == "online" && zone["instance"] == instance["instance"]
    })
    .await;
}

#[tokio::test]
async fn a_zone_revoked_at_one_is_cut_at_the_other() {
    let Pair { one, two, postgres: _postgres, .. } = pair().await;
    let east = Zone::start("east", &two).await;
    assert_eq!(one.post("/zones/east/_revoke", json!({})).await.status, 200);
    east.cut().await;
}

#[tokio::test]
async fn two_that_start_at_once_write_the_first_resources_once() {
    let Pair { one, postgres, .. } = pair().await;
    let url = postgres.create_database("fresh").await.unwrap();
    let (left, right) = tokio::join!(beside(&one, &url), beside(&one, &url));
    let meshes = left.get("/meshes").await.json();
    assert_eq!(meshes["total"], 1);
    assert_eq!(right.get("/meshes").await.json()["items"], meshes["items"]);
    let ca = |replica: &Replica| std::fs::read_to_string(replica.path("ca.crt")).unwrap();
    assert_eq!(ca(&left), ca(&right));
}

#[tokio::test]
async fn a_replica_with_another_key_does_not_start() {
    let Pair { url, postgres: _postgres, .. } = pair().await;
    let data = tempfile::tempdir().unwrap();
    let config = meridian_global_cp::Config {
        data_dir: Some(data.path().to_owned()),
        store_url: Some(url),
        ..meridian_global_cp::Config::default()
    };
    let error = meridian_global_cp::admin_token(config).await.unwrap_err();
    assert!(format!("{error:#}").contains("sealed with key"), "{error:#}");
}

#[tokio::test]
async fn a_postgres_that_restarts_loses_no_acknowledged_write() {
    let Pair { one, two, postgres, .. } = pair().await;
    let west = Zone::start("west", &two).await;
    west.until_holds("Mesh", "//default").await;
    let writer = async {
        let mut acknowledged = Vec::new();
        for index in 0..60 {
            let name = format!("es-{index}");
            let path = format!("/meshes/default/external-services/{name}");
            let answer = one.put(&path, external(&name, None)).await;
            match answer.status {
                200 | 201 => acknowledged.push(name),
                503 => {}
                _ => panic!("{answer:?}"),
            }
            tokio::task::yield_now().await;
        }
        acknowledged
    };
    let (acknowledged, restarted) = tokio::join!(writer, postgres.restart());
    restarted.unwrap();
    assert!(!acknowledged.is_empty());
    for name in &acknowledged {
        west.until_holds("ExternalService", &format!("default//{name}")).await;
    }
    for replica in [&one, &two] {
        let ready = async || {
            let answer = replica.get("/ready").await;
            anyhow::ensure!(answer.status == 200, "{answer:?}");
            Ok(())
        };
        until("ready again", DEADLINE, ready).await.unwrap();
    }
}

#[tokio::test]
async fn enrolled_at_one_is_enrolled_at_the_other() {
    let Pair { one, two, postgres: _postgres, .. } = pair().await;
    let east = Disk::new("east", &one);
    east.enroll(&one, Some(two.zone_token("east").await), false).await.unwrap();
    east.enroll(&two, None, false).await.unwrap();
    east.run(two.bound.sync, 1, false).connected().await;
}
