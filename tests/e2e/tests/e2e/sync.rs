//! What zones hold does not vanish because a global did, and one bad resource stops no other.

use crate::policies::{EVERYTHING, external_service};
use anyhow::{Context, Result, ensure};
use meridian_testkit::mesh::{Backing, ControlPlane, Mesh, Proxy, Workload, curl_until};
use meridian_testkit::wait::{DEADLINE, until};
use serde_json::Value;

#[tokio::test]
async fn a_deliberate_delete_is_live_at_once_and_a_fresh_global_changes_nothing_until_it_is_accepted()
-> Result<()> {
    let mut mesh = Mesh::start("fresh", Backing::Sqlite, &["east"]).await?;
    mesh.apply(EVERYTHING).await?;
    mesh.apply(&external_service("plain", "other.example.com:80", "http")).await?;
    let web = mesh.workload("east", &Workload::http("web-1", "web")).await?;
    reached(&web, "other", "the listed host").await?;

    // The only ExternalService is deleted: at once, whatever its share.
    mesh.meridian(&["delete", "externalservice", "plain"]).await?;
    refused(&web, "other", "its end").await?;
    mesh.apply(&external_service("plain", "other.example.com:80", "http")).await?;
    reached(&web, "other", "its return").await?;

    // The same address, another store: nobody there knows the zone, nor does the zone know its CA.
    mesh.global.kill().await?;
    std::fs::remove_dir_all(mesh.global.data())?;
    mesh.global.start().await?;
    until("the zone to have met the stranger", DEADLINE, || async {
        let log = mesh.zone("east")?.control_plane.log();
        ensure!(log.contains("invalid peer certificate"), "{log}");
        Ok(())
    })
    .await?;
    let link = mesh.get(&mesh.zone("east")?.control_plane, "/_zone").await?;
    ensure!(text(&link, "status") == "offline", "{link}");
    reached(&web, "other", "the listed host, still").await?;

    // An operator lets the zone in with a new token. What it holds still counts for more than what it is offered.
    let token = mesh
        .meridian(&["generate", "zone-token", "--zone", "east", "--scope", "cp", "--valid-for", "24h"])
        .await?;
    let zone = &mut mesh.zone_mut("east")?.control_plane;
    zone.host.write("zone-token", &token)?;
    zone.kill().await?;
    zone.start().await?;
    stands_refused(&mesh, "what is held here is of").await?;
    reached(&web, "other", "the listed host, refused as the fresh global is").await?;
    accept(&mesh).await?;
    refused(&web, "other", "the fresh global to count").await
}

#[tokio::test]
async fn an_older_backup_changes_nothing_until_it_is_accepted_and_one_bad_resource_stops_no_other()
-> Result<()> {
    let mut mesh = Mesh::start("backup", Backing::Postgres, &["east"]).await?;
    mesh.apply(EVERYTHING).await?;
    mesh.apply(&external_service("odd", "odd.example.com:80", "http")).await?;
    mesh.apply(&external_service("plain", "other.example.com:80", "http")).await?;
    let web = mesh.workload("east", &Workload::http("web-1", "web")).await?;
    reached(&web, "other", "a listed host").await?;

    // As a newer version of global would write it: with a field that the zone does not know.
    let postgres = mesh.postgres.as_ref().context("no Postgres")?;
    postgres.psql("meridian", NEWER_FIELD).await?;
    mesh.apply(&external_service("api", "api.example.com:80", "http")).await?;
    reached(&web, "api", "what was written after the bad one").await?;
    for control_plane in [&mesh.global, &mesh.zone("east")?.control_plane] {
        let path = if std::ptr::eq(control_plane, &mesh.global) { "/zones/east/_overview" } else { "/_zone" };
        until("the rejection and its reason", DEADLINE, || async {
            let shown = mesh.get(control_plane, path).await?;
            let rejections = shown.get("rejections").and_then(Value::as_array).context("none")?;
            let odd = rejections.iter().find(|one| text(one, "name") == "odd").context("not that one")?;
            ensure!(rejections.len() == 1 && text(odd, "reason").contains("surprise"), "{shown}");
            Ok(())
        })
        .await?;
    }
    let zones = mesh.meridian(&["inspect", "zones"]).await?;
    ensure!(zones.contains("1 rejected"), "{zones}");
    mesh.apply(&external_service("odd", "odd.example.com:8080", "http")).await?;
    until("the rejection to be over", DEADLINE, || async {
        let zone = mesh.get(&mesh.global, "/zones/east/_overview").await?;
        ensure!(zone.get("rejections").and_then(Value::as_array).is_some_and(Vec::is_empty), "{zone}");
        Ok(())
    })
    .await?;

    // A backup, more writes, and the backup again.
    mesh.meridian(&["delete", "externalservice", "api"]).await?;
    refused(&web, "api", "what is deleted").await?;
    let postgres = mesh.postgres.as_ref().context("no Postgres")?;
    let backup = postgres.dump("meridian").await?;
    mesh.apply(&external_service("api", "api.example.com:80", "http")).await?;
    mesh.meridian(&["delete", "externalservice", "plain"]).await?;
    reached(&web, "api", "what the backup lacks").await?;
    refused(&web, "other", "what the backup has").await?;
    mesh.global.kill().await?;
    postgres.restore("meridian", &backup).await?;
    mesh.global.start().await?;
    stands_refused(&mesh, "older than what is held here").await?;
    unchanged(&web).await?;

    // The operator says so: another store, which the zone refuses as well, until its operator takes it.
    mesh.global.kill().await?;
    let said = mesh.global.run_command("restored").await?;
    ensure!(said.contains("accept-global"), "{said}");
    mesh.global.start().await?;
    stands_refused(&mesh, "what is held here is of").await?;
    unchanged(&web).await?;
    accept(&mesh).await?;
    reached(&web, "other", "what the backup has").await?;
    refused(&web, "api", "what the backup lacks").await
}

#[tokio::test]
async fn an_emptied_database_changes_nothing() -> Result<()> {
    let mut mesh = Mesh::start("emptied", Backing::Postgres, &["east"]).await?;
    mesh.apply(EVERYTHING).await?;
    mesh.apply(&external_service("plain", "other.example.com:80", "http")).await?;
    let web = mesh.workload("east", &Workload::http("web-1", "web")).await?;
    reached(&web, "other", "the listed host").await?;

    // Only what was written is gone: which store it is, its revision and its keys are still there.
    let lost =
        "DELETE FROM meridian.resources WHERE kind NOT IN ('Zone', 'TokenKey'); DELETE FROM meridian.history";
    empty(&mut mesh, lost).await?;
    until("the deletions to wait for an operator", DEADLINE, || async {
        let link = mesh.get(&mesh.zone("east")?.control_plane, "/_zone").await?;
        let withheld = link.get("withheld").and_then(Value::as_u64);
        ensure!(withheld > Some(0) && text(&link, "status") == "online", "{link}");
        Ok(())
    })
    .await?;
    served(&web, "with its rows gone").await?;

    // All of it is gone, and global makes a new store beside the old CA and key files.
    empty(&mut mesh, "DROP SCHEMA meridian CASCADE").await?;
    until("the zone to have met the stranger", DEADLINE, || async {
        let zone = &mesh.zone("east")?.control_plane;
        let (link, log) = (mesh.get(zone, "/_zone").await?, zone.log());
        ensure!(text(&link, "status") == "offline", "{link}");
        ensure!(log.contains("stream to the server is down") || log.contains("not enrolled"), "{log}");
        Ok(())
    })
    .await?;
    served(&web, "with its schema gone").await?;
    // Its keys are others, so its operator asks for another token, too.
    mesh.global.kill().await?;
    std::fs::remove_file(mesh.global.data().join("admin-token"))?;
    mesh.global.start().await?;
    let token = mesh
        .meridian(&["generate", "zone-token", "--zone", "east", "--scope", "cp", "--valid-for", "24h"])
        .await?;
    let zone = &mut mesh.zone_mut("east")?.control_plane;
    zone.host.write("zone-token", &token)?;
    zone.kill().await?;
    zone.start().await?;
    stands_refused(&mesh, "what is held here is of").await?;
    served(&web, "refusing the new store").await?;
    accept(&mesh).await?;
    refused(&web, "other", "the new store to count").await
}

/// Takes something out of global's database while global is down.
async fn empty(mesh: &mut Mesh, sql: &str) -> Result<()> {
    mesh.global.kill().await?;
    mesh.postgres.as_ref().context("no Postgres")?.psql("meridian", sql).await?;
    mesh.global.start().await
}

/// At once: the zone goes on as it was.
async fn served(web: &Proxy, when: &str) -> Result<()> {
    let said = web.curl(&["http://other.example.com/"]).await?;
    ensure!(said.ends_with("200"), "{when}: {said}");
    let said = web.curl(&["http://api.example.com/"]).await?;
    ensure!(!said.ends_with("200"), "{when}, unlisted: {said}");
    Ok(())
}

/// The ExternalService `odd` gets a field, in one transaction as the store writes: revision, history, notification.
const NEWER_FIELD: &str = "\
WITH next AS (UPDATE meridian.meta SET revision = revision + 1 RETURNING revision),
changed AS (
    UPDATE meridian.resources r SET revision = next.revision, body = convert_to(
        jsonb_set(convert_from(r.body, 'UTF8')::jsonb, '{spec,surprise}', 'true')::text, 'UTF8')
    FROM next WHERE r.kind = 'ExternalService' AND r.name = 'odd'
    RETURNING r.revision, r.kind, r.mesh, r.zone, r.name, r.body, r.sealed, r.author, r.via),
written AS (
    INSERT INTO meridian.history (revision, ordinal, kind, mesh, zone, name, body, sealed, author, via, at)
    SELECT revision, 0, kind, mesh, zone, name, body, sealed, author, via, now() FROM changed RETURNING revision)
SELECT pg_notify('meridian', revision::text) FROM written";

async fn reached(web: &Proxy, host: &str, what: &str) -> Result<()> {
    curl_until(web, &[&format!("http://{host}.example.com/")], what, |said| said.ends_with("200"))
        .await
        .map(drop)
}

async fn refused(web: &Proxy, host: &str, what: &str) -> Result<()> {
    curl_until(web, &[&format!("http://{host}.example.com/")], what, |said| !said.ends_with("200"))
        .await
        .map(drop)
}

/// At once: what was refused or let through before the older global came still is.
async fn unchanged(web: &Proxy) -> Result<()> {
    for (host, let_through) in [("api", true), ("other", false)] {
        let said = web.curl(&[&format!("http://{host}.example.com/")]).await?;
        ensure!(said.ends_with("200") == let_through, "{host}: {said}");
    }
    Ok(())
}

/// Waits until both ends say that the zone refuses its global, and why.
async fn stands_refused(mesh: &Mesh, why: &str) -> Result<()> {
    let zone = &mesh.zone("east")?.control_plane;
    for (control_plane, path) in [(zone, "/_zone"), (&mesh.global, "/zones/east/_overview")] {
        until("the refusal at both ends", DEADLINE, || async {
            let shown = mesh.get(control_plane, path).await?;
            ensure!(text(&shown, "refused").contains(why) && text(&shown, "status") == "online", "{shown}");
            Ok(())
        })
        .await?;
    }
    let zones = mesh.meridian(&["inspect", "zones"]).await?;
    ensure!(zones.contains("refuses global") && zones.contains(why), "{zones}");
    Ok(())
}

async fn accept(mesh: &Mesh) -> Result<()> {
    let zone: &ControlPlane = &mesh.zone("east")?.control_plane;
    let said = mesh.meridian_at(zone, &["zone", "accept-global"]).await?;
    ensure!(said.contains("accepted"), "{said}");
    until("no refusal", DEADLINE, || async {
        let link = mesh.get(zone, "/_zone").await?;
        ensure!(text(&link, "refused").is_empty(), "{link}");
        Ok(())
    })
    .await
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}
