//! Control planes die under load, and no request notices.

use crate::policies::{EVERYTHING, external_service};
use anyhow::{Context, Result, ensure};
use meridian_testkit::mesh::{Backing, Mesh, Proxy, Workload, curl_until};
use meridian_testkit::process::Process;
use meridian_testkit::wait::{DEADLINE, until};

#[tokio::test]
async fn control_planes_die_under_load_and_come_back_and_no_request_fails() -> Result<()> {
    let mut mesh = Mesh::start("outage", Backing::Sqlite, &["east", "west"]).await?;
    mesh.apply(EVERYTHING).await?;
    let web = mesh.workload("east", &Workload::http("web-1", "web")).await?;
    let _local = mesh.workload("east", &Workload::http("local-1", "local")).await?;
    let _backend = mesh.workload("west", &Workload::http("backend-1", "backend")).await?;
    let mut again = mesh.workload("west", &Workload::http("again-1", "again")).await?;
    let late_tokens = [mesh.dataplane_token("late-1").await?, mesh.dataplane_token("later-1").await?];
    let loads = [load(&mesh, &web, "local").await?, load(&mesh, &web, "backend").await?];
    answers(&web, "again", "across the zones, before").await?;

    // Without global, zones issue: a new sidecar gets its certificate, one that has lost all gets another.
    mesh.global.kill().await?;
    let late = newcomer(&mut mesh, "late", &late_tokens[0]).await?;
    answers(&late, "backend", "a new sidecar, across the zones").await?;
    answers(&web, "late", "to a new sidecar").await?;
    again.kill().await?;
    again.wipe()?;
    again.start().await?;
    answers(&web, "again", "across the zones, with a new certificate").await?;

    // It is back, and each side sends what the other has missed.
    mesh.global.start().await?;
    in_step(&mesh).await?;
    for zone in ["east", "west"] {
        // From east: the newcomer's Dataplane and MeshService. Down to west: that MeshService.
        let expected = if zone == "east" { (0, 2) } else { (1, 0) };
        until("the difference and no more", DEADLINE, || async {
            let sent = Sent::of(&mesh, zone).await?;
            ensure!(
                (sent.down, sent.up) == expected && sent.removals == 0,
                "{zone}: {sent:?}, not {expected:?}"
            );
            println!("after global's return, {zone}: {sent:?}");
            Ok(())
        })
        .await?;
    }

    // Both die. The zones return alone, and take in another newcomer.
    mesh.global.kill().await?;
    for zone in ["east", "west"] {
        mesh.zone_mut(zone)?.control_plane.kill().await?;
    }
    for zone in ["east", "west"] {
        mesh.zone_mut(zone)?.control_plane.start().await?;
    }
    let later = newcomer(&mut mesh, "later", &late_tokens[1]).await?;
    answers(&later, "backend", "a new sidecar of a zone that restarted alone").await?;
    mesh.global.start().await?;
    in_step(&mesh).await?;

    until("west to have all of the newcomer", DEADLINE, || async {
        let list = mesh.get(&mesh.zone("west")?.control_plane, "/meshes/default/meshservices").await?;
        let items = list.get("items").and_then(serde_json::Value::as_array).context("no items")?;
        let mut services = items.iter().map(ToString::to_string);
        let whole = services.any(|it| it.contains("\"later\"") && it.contains("\"Available\""));
        ensure!(whole, "{list}");
        Ok(())
    })
    .await?;

    // A zone's control plane dies alone, and misses one change.
    mesh.zone_mut("west")?.control_plane.kill().await?;
    mesh.apply(&external_service("missed", "other.example.com:80", "http")).await?;
    mesh.zone_mut("west")?.control_plane.start().await?;
    in_step(&mesh).await?;
    until("what west has missed and no more", DEADLINE, || async {
        let received = received(&mesh, "west").await?;
        ensure!(received == 1, "west missed one resource and received {received}");
        Ok(())
    })
    .await?;
    let backend = mesh.workload("west", &Workload::http("user-1", "user")).await?;
    curl_until(&backend, &["http://other.example.com/"], "what it missed", |said| said.ends_with("200"))
        .await?;

    for (service, load) in loads {
        let summary = finish(load).await?;
        println!("load on {service}: {summary}");
        let failed = summary.get("failed").and_then(serde_json::Value::as_u64);
        let sent = summary.get("sent").and_then(serde_json::Value::as_u64).unwrap_or(0);
        ensure!(failed == Some(0) && sent > 100, "load on {service}: {summary}");
    }
    Ok(())
}

/// Resources that a new process of global has sent to a zone and received from it, reports not counted.
#[derive(Debug)]
struct Sent {
    down: u64,
    up: u64,
    removals: u64,
}

impl Sent {
    async fn of(mesh: &Mesh, zone: &str) -> Result<Self> {
        let zone = format!("zone=\"{zone}\"");
        let down = [zone.as_str(), "direction=\"down\""];
        Ok(Self {
            down: mesh.global.metric("meridian_sync_resources_total", &down).await?,
            up: mesh.global.metric("meridian_zone_resources_total", &[&zone]).await?,
            removals: mesh.global.metric("meridian_sync_removals_total", &[&zone]).await?,
        })
    }
}

async fn received(mesh: &Mesh, zone: &str) -> Result<u64> {
    mesh.zone(zone)?.control_plane.metric("meridian_zone_global_resources_total", &[]).await
}

/// Waits until global and all zones are connected and equal.
async fn in_step(mesh: &Mesh) -> Result<()> {
    until("the zones to be in step with global", DEADLINE, || async {
        for zone in mesh.zones.keys() {
            let label = format!("zone=\"{zone}\"");
            let connected = mesh.global.metric("meridian_zone_connected", &[&label]).await?;
            ensure!(connected == 1, "{zone} is away");
            let overview = mesh.get(&mesh.global, &format!("/zones/{zone}/_overview")).await?;
            let behind = overview.get("behindMillis").and_then(serde_json::Value::as_u64);
            ensure!(behind == Some(0), "{overview}");
        }
        Ok(())
    })
    .await
}

/// A new sidecar in east, with a token that was made before.
async fn newcomer(mesh: &mut Mesh, service: &str, token: &str) -> Result<Proxy> {
    mesh.workload_with_token("east", &Workload::http(&format!("{service}-1"), service), token).await
}

async fn answers(from: &Proxy, service: &str, what: &str) -> Result<()> {
    let url = format!("http://{service}.mesh/");
    curl_until(from, &[&url], what, |said| said.ends_with("200")).await.map(drop)
}

/// A steady load of `web` on a service, once it answers.
pub(crate) async fn load(mesh: &Mesh, web: &Proxy, service: &str) -> Result<(String, Process)> {
    load_of(mesh, web, service, &format!("http://{service}.mesh/")).await
}

/// The same on any URL.
pub(crate) async fn load_of(mesh: &Mesh, web: &Proxy, name: &str, url: &str) -> Result<(String, Process)> {
    curl_until(web, &[url], name, |said| said.ends_with("200")).await?;
    let app = mesh.programs.app.display().to_string();
    let mut load = web.spawn_app(&format!("load-{name}"), &[&app, "load", "--url", url])?;
    load.wait_for_log("load runs", DEADLINE).await?;
    Ok((name.to_owned(), load))
}

/// Ends a load; its summary.
pub(crate) async fn finish(mut load: Process) -> Result<serde_json::Value> {
    load.signal(nix::sys::signal::Signal::SIGTERM)?;
    load.wait(DEADLINE).await?;
    until("the summary", DEADLINE, || async {
        let log = load.log();
        let line = log.lines().last().context("no summary")?;
        Ok(serde_json::from_str(line)?)
    })
    .await
}
