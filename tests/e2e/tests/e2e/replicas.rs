//! Two global replicas on one Postgres: either will do, and neither lies.

use crate::policies::{EVERYTHING, external_service};
use anyhow::{Context, Result, ensure};
use meridian_testkit::mesh::{Backing, ControlPlane, Mesh, Workload, curl_until};
use meridian_testkit::wait::{DEADLINE, until};
use serde_json::Value;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::time::Duration;

/// A connection that is cut silently is noticed by a query every 15 s that may take 5 s.
const NOTICED: Duration = Duration::from_secs(25);

#[tokio::test]
async fn a_restart_of_postgres_under_writes_at_both_replicas_loses_none() -> Result<()> {
    let mut mesh = Mesh::start("replica", Backing::Postgres, &["east"]).await?;
    let second = mesh.second_replica().await?;
    mesh.apply(EVERYTHING).await?;
    let web = mesh.workload("east", &Workload::http("web-1", "web")).await?;
    // The zone is connected to the first; the write goes to the second.
    let file = second.host.write("es.yaml", &external_service("plain", "other.example.com:80", "http"))?;
    mesh.meridian_at(&second, &["apply", "-f", &file.display().to_string()]).await?;
    curl_until(&web, &["http://other.example.com/"], "the second replica's write", |said| {
        said.ends_with("200")
    })
    .await?;

    let postgres = mesh.postgres.as_ref().context("no Postgres")?;
    let (done, over) = (Cell::new(0), Cell::new(false));
    let restart = async {
        until("writes to be under way", DEADLINE, || async {
            ensure!(done.get() > 10, "{}", done.get());
            Ok(())
        })
        .await?;
        postgres.kill().await?;
        postgres.launch().await?;
        for replica in [&mesh.global, &second] {
            until("a replica to be ready again", DEADLINE, || known(replica, 1)).await?;
        }
        over.set(true);
        anyhow::Ok(())
    };
    let (one, two, restarted) = tokio::join!(
        write(&mesh, &mesh.global, "one", &done, &over),
        write(&mesh, &second, "two", &done, &over),
        restart
    );
    restarted?;
    let mut acknowledged = one?;
    acknowledged.extend(two?);
    acknowledged.insert("plain".to_owned());
    let zone = &mesh.zone("east")?.control_plane;
    for control_plane in [&mesh.global, &second, zone] {
        until("every acknowledged write", DEADLINE, || async {
            let held = external_services(&mesh, control_plane).await?;
            let lost: Vec<&String> = acknowledged.difference(&held).collect();
            ensure!(lost.is_empty(), "of {} lost: {lost:?}", acknowledged.len());
            Ok(())
        })
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_replica_cut_off_from_postgres_or_dead_is_known_to_be() -> Result<()> {
    let mut mesh = Mesh::start("cut", Backing::Postgres, &["east"]).await?;
    let second = mesh.second_replica().await?;
    mesh.apply(EVERYTHING).await?;
    let web = mesh.workload("east", &Workload::http("web-1", "web")).await?;
    let database = mesh.database.clone().context("no Postgres host")?;

    // The session that listens is the one that holds the replica's lock. Its packets vanish, and so do new connections.
    let sql = "SELECT a.client_port FROM pg_locks l JOIN pg_stat_activity a USING (pid) \
               WHERE l.locktype = 'advisory' AND l.granted AND a.client_addr = '10.0.0.10'";
    let port = mesh.postgres.as_ref().context("no Postgres")?.psql("postgres", sql).await?;
    ensure!(port.parse::<u16>().is_ok(), "not one listening session: {port:?}");
    let rules = format!(
        "table inet cut {{\n\
         chain in {{ type filter hook input priority 0; ip saddr 10.0.0.10 tcp sport {port} drop; }}\n\
         chain out {{ type filter hook output priority 0; ip daddr 10.0.0.10 tcp dport {port} drop; }}\n\
         chain new {{ type filter hook input priority 0; ip saddr 10.0.0.10 tcp flags syn tcp dport 5432 drop; }}\n}}\n"
    );
    let rules = database.write("cut.nft", &rules)?.display().to_string();
    database.run(&["nft", "-f", &rules]).await?;
    let file = second.host.write("es.yaml", &external_service("plain", "other.example.com:80", "http"))?;
    mesh.meridian_at(&second, &["apply", "-f", &file.display().to_string()]).await?;

    let zone = &mesh.zone("east")?.control_plane;
    until("the first to say that it does not know", NOTICED, || known(&mesh.global, 0)).await?;
    until("the zone to count its age", DEADLINE, || async {
        let link = mesh.get(zone, "/_zone").await?;
        ensure!(link.get("behindMillis").and_then(Value::as_u64) > Some(0), "{link}");
        Ok(())
    })
    .await?;
    ensure!(
        mesh.global.host.run(&["curl", "-sf", "http://127.0.0.1:5680/ready"]).await.is_err(),
        "a replica that can't read is ready"
    );

    // New connections pass again; the one that was cut stays cut.
    database.run(&["nft", "delete", "chain", "inet", "cut", "new"]).await?;
    curl_until(&web, &["http://other.example.com/"], "what was written meanwhile", |said| {
        said.ends_with("200")
    })
    .await?;
    until("the zone's age to be none", DEADLINE, || async {
        known(&mesh.global, 1).await?;
        let link = mesh.get(zone, "/_zone").await?;
        ensure!(link.get("behindMillis").and_then(Value::as_u64) == Some(0), "{link}");
        Ok(())
    })
    .await?;

    for replica in [&mesh.global, &second] {
        status(&mesh, replica, "online").await?;
    }
    mesh.global.kill().await?;
    status(&mesh, &second, "unknown").await?;
    mesh.global.start().await?;
    for replica in [&mesh.global, &second] {
        status(&mesh, replica, "online").await?;
    }
    Ok(())
}

/// Writes one ExternalService after another at a replica until `over` and ten more; the names that were acknowledged.
async fn write(
    mesh: &Mesh,
    replica: &ControlPlane,
    prefix: &str,
    done: &Cell<u32>,
    over: &Cell<bool>,
) -> Result<BTreeSet<String>> {
    let token = std::fs::read_to_string(mesh.global.data().join("admin-token"))?;
    let header = format!("authorization: Bearer {}", token.trim());
    let (mut acknowledged, mut failed, mut more) = (BTreeSet::new(), 0, 10);
    for number in 0.. {
        let name = format!("{prefix}-{number}");
        let yaml = external_service(&name, &format!("{name}.example.com:80"), "http");
        let url = format!("http://127.0.0.1:5681/meshes/default/external-services/{name}");
        let words = ["curl", "-sS", "-f", "-o", "/dev/null", "--max-time", "10", "-X", "PUT", "-H", &header];
        let words = [&words[..], &["-H", "content-type: application/yaml", "--data-binary", &yaml, &url]];
        match replica.host.run(&words.concat()).await {
            Ok(_) => {
                done.set(done.get() + 1);
                acknowledged.insert(name);
            }
            Err(_) => failed += 1,
        }
        more -= i32::from(over.get());
        if more == 0 {
            break;
        }
    }
    println!("at {prefix}: {} writes acknowledged, {failed} not", acknowledged.len());
    ensure!(acknowledged.len() >= 10, "only {} of {prefix}'s writes were acknowledged", acknowledged.len());
    Ok(acknowledged)
}

async fn external_services(mesh: &Mesh, at: &ControlPlane) -> Result<BTreeSet<String>> {
    let list = mesh.get(at, "/meshes/default/external-services?size=1000").await?;
    let items = list.get("items").and_then(Value::as_array).with_context(|| list.to_string())?;
    Ok(items.iter().filter_map(|item| Some(item.get("name")?.as_str()?.to_owned())).collect())
}

/// Whether the replica says that it knows (1) or does not know (0) the newest revision.
async fn known(replica: &ControlPlane, expected: u64) -> Result<()> {
    let known = replica.metric("meridian_store_known", &[]).await?;
    ensure!(known == expected, "it says {known}");
    Ok(())
}

async fn status(mesh: &Mesh, replica: &ControlPlane, expected: &str) -> Result<()> {
    until(&format!("the zone to be {expected} at a replica"), DEADLINE, || async {
        let zone = mesh.get(replica, "/zones/east/_overview").await?;
        ensure!(zone.get("status").and_then(Value::as_str) == Some(expected), "{zone}");
        Ok(())
    })
    .await
}
