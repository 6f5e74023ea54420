//! Certificates and modes change under load, and a revoked zone is out.

use crate::outages::{finish, load, load_of};
use crate::policies::{EVERYTHING, external_service};
use anyhow::{Context, Result, ensure};
use meridian_testkit::mesh::{Backing, Mesh, Proxy, Workload, curl_until};
use meridian_testkit::process::Process;
use meridian_testkit::wait::{DEADLINE, until};
use serde_json::Value;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::time::Duration;

/// A rotation asks every process for something, one after the other.
const ROTATION: Duration = Duration::from_secs(60);

#[tokio::test]
async fn the_root_rotates_under_load_and_across_a_kill_of_global() -> Result<()> {
    let mut mesh = Mesh::start("rotate", Backing::Sqlite, &["east", "west"]).await?;
    mesh.apply(EVERYTHING).await?;
    mesh.apply(&external_service("plain", "other.example.com:80", "http")).await?;
    let web = mesh.workload("east", &Workload::http("web-1", "web")).await?;
    let _backend = mesh.workload("west", &Workload::http("backend-1", "backend")).await?;
    let _echo = mesh.workload("west", &Workload::http("echo-1", "echo").speaking("tcp", "tcp")).await?;
    let across = load(&mesh, &web, "backend").await?;
    let outside = load_of(&mesh, &web, "outside", "http://other.example.com/").await?;
    let mut held = hold(&mesh, &web, "echo").await?;
    let before = until("every proxy to have a certificate of the one root", DEADLINE, || async {
        let state = rotation(&mesh).await?;
        all_certified(&mesh, &roots(&state)).await?;
        Ok(roots(&state))
    })
    .await?;

    // While a zone is away the rotation waits for it, visibly, and can be called off.
    mesh.zone_mut("west")?.control_plane.kill().await?;
    mesh.meridian(&["mesh", "rotate-ca", "default"]).await?;
    let distributing = waits_for(&mesh, "distributing", "zone west").await?;
    ensure!(roots(&distributing).len() == 2, "{distributing}");
    mesh.meridian(&["mesh", "rotate-ca", "default", "--abort"]).await?;
    let aborted = rotation(&mesh).await?;
    ensure!(roots(&aborted) == before && phase(&aborted) == "idle", "{aborted}");

    // Started again, it survives a kill of global, and goes on once everybody is back.
    mesh.meridian(&["mesh", "rotate-ca", "default"]).await?;
    let waiting = waits_for(&mesh, "distributing", "zone west").await?;
    mesh.global.kill().await?;
    mesh.global.start().await?;
    let resumed = rotation(&mesh).await?;
    ensure!(resumed.get("target") == waiting.get("target") && phase(&resumed) == "distributing", "{resumed}");
    mesh.zone_mut("west")?.control_plane.start().await?;
    let after = until("the rotation to end", ROTATION, || async {
        let state = rotation(&mesh).await?;
        ensure!(phase(&state) == "idle", "{state}");
        Ok(roots(&state))
    })
    .await?;
    ensure!(after.len() == 1 && after.is_disjoint(&before), "{before:?} became {after:?}");
    // The old root went only when no certificate was of it any more: nothing to wait for here.
    all_certified(&mesh, &after).await?;
    ensure!(held.running(), "the held stream ended: {}", held.log());
    for (name, load) in [across, outside] {
        nothing_failed(&name, load).await?;
    }
    Ok(())
}

#[tokio::test]
async fn mtls_comes_under_load() -> Result<()> {
    let mut mesh = Mesh::start("mtls", Backing::Sqlite, &["east"]).await?;
    let warned = put_mesh(&mesh, "").await?;
    ensure!(warned.contains("mtls is off"), "{warned}");
    mesh.apply(EVERYTHING).await?;
    let web = mesh.workload("east", &Workload::http("web-1", "web")).await?;
    let backend = mesh.workload("east", &Workload::http("backend-1", "backend")).await?;
    let outside = mesh.lab_host_outside("east").await?;
    let url = format!("http://{}:8080/", backend.host.ip());
    let knock = ["curl", "-sS", "-f", "--max-time", "3", &url];
    let (name, running) = load(&mesh, &web, "backend").await?;
    outside.run(&knock).await.context("without mTLS everybody may call")?;
    ensure!(metric(&backend, "tls_handshakes_total").await? == 0, "there is mTLS already");

    let warned = put_mesh(&mesh, &mtls("PERMISSIVE")).await?;
    ensure!(warned.contains("PERMISSIVE"), "no warning: {warned}");
    until("the client to go to mTLS, with all of its connections", DEADLINE, || async {
        let connections = upstreams(&web).await?;
        let secured = connections.iter().all(|peer| peer == "spiffe://default/backend");
        ensure!(secured && !connections.is_empty(), "{connections:?}");
        Ok(())
    })
    .await?;
    outside.run(&knock).await.context("PERMISSIVE lets plaintext in")?;
    let counted = metric(&backend, "plaintext_admitted_total").await?;
    ensure!(counted > 0, "plaintext is not counted");

    let warned = put_mesh(&mesh, &mtls("STRICT")).await?;
    ensure!(!warned.contains("PERMISSIVE"), "{warned}");
    until("plaintext to be refused", DEADLINE, || async {
        ensure!(outside.run(&knock).await.is_err(), "plaintext still comes through");
        Ok(())
    })
    .await?;

    // Back to PERMISSIVE: strangers come in again, clients stay with mTLS.
    put_mesh(&mesh, &mtls("PERMISSIVE")).await?;
    let counted = metric(&backend, "plaintext_admitted_total").await?;
    until("plaintext to be let in again", DEADLINE, || async { outside.run(&knock).await }).await?;
    nothing_failed(&name, running).await?;
    let strangers = metric(&backend, "plaintext_admitted_total").await? - counted;
    ensure!(strangers == 1, "{strangers} plaintext connections, and only one was a stranger's");
    Ok(())
}

#[tokio::test]
async fn a_revoked_zone_is_out_and_the_others_stay() -> Result<()> {
    let mut mesh = Mesh::start("revoke", Backing::Sqlite, &["east", "west"]).await?;
    mesh.apply(EVERYTHING).await?;
    let east = mesh.workload("east", &Workload::http("web-1", "web")).await?;
    let west = mesh.workload("west", &Workload::http("client-1", "client")).await?;
    let _backend = mesh.workload("west", &Workload::http("backend-1", "backend")).await?;
    let _echo = mesh.workload("west", &Workload::http("echo-1", "echo").speaking("tcp", "tcp")).await?;
    let _local = mesh.workload("east", &Workload::http("local-1", "local").speaking("tcp", "tcp")).await?;
    for caller in [&east, &west] {
        curl_until(caller, &["http://backend.mesh/"], "an answer before", |said| said.ends_with("200"))
            .await?;
    }
    let mut theirs = hold(&mesh, &east, "echo").await?;
    let mut inward = hold(&mesh, &west, "local").await?;
    let mut ours = hold(&mesh, &west, "echo").await?;
    let (name, running) = load(&mesh, &west, "backend").await?;
    mesh.meridian(&["zone", "revoke", "east"]).await?;
    theirs.wait_for_log("closed:", DEADLINE).await.context("east's open connection to west")?;
    inward.wait_for_log("closed:", DEADLINE).await.context("west's open connection to east")?;
    curl_until(&east, &["http://backend.mesh/"], "east to be out", |said| !said.ends_with("200")).await?;
    curl_until(&west, &["http://backend.mesh/"], "west to be untouched", |said| said.ends_with("200"))
        .await?;
    ensure!(ours.running(), "west's own stream ended: {}", ours.log());
    nothing_failed(&name, running).await?;

    // A restart opens nothing any more; a new token lets the zone in again, as any zone.
    let zone = &mut mesh.zone_mut("east")?.control_plane;
    let said = zone.log().len();
    zone.kill().await?;
    zone.start().await?;
    until("the zone to be refused again", DEADLINE, || async {
        let log = mesh.zone("east")?.control_plane.log();
        let since = log.get(said..).unwrap_or_default();
        ensure!(since.contains("the certificate of zone east counts no longer"), "{since}");
        Ok(())
    })
    .await?;
    let words = ["generate", "zone-token", "--zone", "east", "--scope", "cp", "--valid-for", "24h"];
    let token = mesh.meridian(&words).await?;
    let zone = &mut mesh.zone_mut("east")?.control_plane;
    zone.host.write("zone-token", &token)?;
    zone.kill().await?;
    zone.start().await?;
    curl_until(&east, &["http://backend.mesh/"], "east to be in again", |said| said.ends_with("200")).await?;
    let _inward = hold(&mesh, &west, "local").await?;
    Ok(())
}

#[tokio::test]
async fn a_rotation_survives_a_kill_while_certificates_are_reissued() -> Result<()> {
    let mut mesh = Mesh::start("reissue", Backing::Sqlite, &["east", "west"]).await?;
    mesh.apply(EVERYTHING).await?;
    let web = mesh.workload("east", &Workload::http("web-1", "web")).await?;
    let _backend = mesh.workload("west", &Workload::http("backend-1", "backend")).await?;
    let (name, running) = load(&mesh, &web, "backend").await?;
    let mut before = until("every proxy to have a certificate of the one root", DEADLINE, || async {
        let state = rotation(&mesh).await?;
        all_certified(&mesh, &roots(&state)).await?;
        Ok(roots(&state))
    })
    .await?;
    // What proxies report is written once a second, so the phase lasts; should it be missed, another rotation has one.
    let mut caught = None;
    for _ in 0..5 {
        mesh.meridian(&["mesh", "rotate-ca", "default"]).await?;
        let process = mesh.global.process.as_mut().context("global is down")?;
        process.wait_for_log("phase=Some(Reissuing)", ROTATION).await?;
        mesh.global.kill().await?;
        mesh.zone_mut("west")?.control_plane.kill().await?;
        mesh.global.start().await?;
        let state = rotation(&mesh).await?;
        if phase(&state) == "reissuing" {
            caught = Some(state);
            break;
        }
        mesh.zone_mut("west")?.control_plane.start().await?;
        before = rotated(&mesh, &before).await?;
    }
    let caught = caught.context("no rotation was ever caught while it reissued")?;
    ensure!(roots(&caught).len() == 2, "{caught}");
    mesh.zone_mut("west")?.control_plane.start().await?;
    let after = rotated(&mesh, &before).await?;
    let target = caught.get("target").and_then(Value::as_str).context("no target")?;
    ensure!(after.contains(target), "{after:?} is not what was reissued: {caught}");
    all_certified(&mesh, &after).await?;
    nothing_failed(&name, running).await
}

/// Waits for the end of a rotation; the root that is left.
async fn rotated(mesh: &Mesh, before: &BTreeSet<String>) -> Result<BTreeSet<String>> {
    until("the rotation to end", ROTATION, || async {
        let state = rotation(mesh).await?;
        let after = roots(&state);
        ensure!(phase(&state) == "idle" && after.len() == 1 && after.is_disjoint(before), "{state}");
        Ok(after)
    })
    .await
}

async fn rotation(mesh: &Mesh) -> Result<Value> {
    mesh.get(&mesh.global, "/meshes/default/_rotate-ca").await
}

fn phase(state: &Value) -> &str {
    state.get("phase").and_then(Value::as_str).unwrap_or_default()
}

fn roots(state: &Value) -> BTreeSet<String> {
    let roots = state.get("roots").and_then(Value::as_array);
    roots.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

async fn waits_for(mesh: &Mesh, in_phase: &str, whom: &str) -> Result<Value> {
    until(&format!("the rotation to wait for {whom}"), DEADLINE, || async {
        let state = rotation(mesh).await?;
        let waiting = state.get("waitingFor").and_then(Value::as_array);
        let named = waiting
            .is_some_and(|all| !all.is_empty() && all.iter().all(|one| one.to_string().contains(whom)));
        ensure!(phase(&state) == in_phase && named, "{state}");
        Ok(state)
    })
    .await
}

/// Every sidecar and egress has a certificate, of one of these roots.
async fn all_certified(mesh: &Mesh, roots: &BTreeSet<String>) -> Result<()> {
    for path in ["/meshes/default/dataplanes/_overview", "/zoneegresses/_overview"] {
        let list = mesh.get(&mesh.global, path).await?;
        let items = list.get("items").and_then(Value::as_array).context("no items")?;
        ensure!(!items.is_empty(), "{path} is empty");
        for item in items {
            let root = item.pointer("/certificates/0/root").and_then(Value::as_str);
            ensure!(root.is_some_and(|root| roots.contains(root)), "not of {roots:?}: {item}");
        }
    }
    Ok(())
}

/// A silent TCP stream to a service.
async fn hold(mesh: &Mesh, from: &Proxy, service: &str) -> Result<Process> {
    let app = mesh.programs.app.display().to_string();
    let target = format!("{service}.mesh:80");
    let attempts = Cell::new(0);
    until(&format!("a stream to {service}"), DEADLINE, || async {
        let words = [app.as_str(), "hold", "--kind", "tcp", "--target", &target];
        attempts.set(attempts.get() + 1);
        // A log of its own: an earlier attempt may have been closed.
        let mut process = from.spawn_app(&format!("hold-{service}-{}", attempts.get()), &words)?;
        process.wait_for_log("open", Duration::from_secs(2)).await?;
        Ok(process)
    })
    .await
}

async fn nothing_failed(name: &str, load: Process) -> Result<()> {
    let summary = finish(load).await?;
    let number = |field: &str| summary.get(field).and_then(Value::as_u64);
    ensure!(number("failed") == Some(0) && number("succeeded") > Some(0), "load on {name}: {summary}");
    Ok(())
}

fn mtls(mode: &str) -> String {
    format!(
        "mtls:\n  enabledBackend: builtin\n  backends: [{{name: builtin, type: builtin, mode: {mode}}}]\n"
    )
}

/// Writes the mesh with these lines; what the API answered.
async fn put_mesh(mesh: &Mesh, lines: &str) -> Result<String> {
    let yaml =
        format!("type: Mesh\nname: default\nnetworking: {{outbound: {{passthrough: false}}}}\n{lines}");
    let body = format!("@{}", mesh.global.host.write("mesh.yaml", &yaml)?.display());
    let token = std::fs::read_to_string(mesh.global.data().join("admin-token"))?;
    let token = format!("authorization: Bearer {}", token.trim());
    let url = "http://127.0.0.1:5681/meshes/default";
    let kind = "content-type: application/yaml";
    let words = ["curl", "-sS", "-f", "-X", "PUT", "-H", &token, "-H", kind, "--data-binary", &body, url];
    mesh.global.host.run(&words).await
}

async fn metric(proxy: &Proxy, name: &str) -> Result<u64> {
    let text = proxy.host.run(&["curl", "-sS", "-f", "http://127.0.0.1:9902/metrics"]).await?;
    let prefix = format!("meridian_proxy_{name} ");
    let value = text.lines().find_map(|line| line.strip_prefix(&prefix)).with_context(|| text.clone())?;
    Ok(value.parse()?)
}

/// Who is at the other end of the sidecar's pooled connections.
async fn upstreams(proxy: &Proxy) -> Result<Vec<String>> {
    let socket = proxy.host.directory().join("proxy/admin.sock").display().to_string();
    let words = ["curl", "-sS", "-f", "--unix-socket", &socket, "http://admin/stats"];
    let stats: Value = serde_json::from_str(&proxy.host.run(&words).await?)?;
    let all = stats.get("connections").and_then(Value::as_array).context("no connections")?;
    let upstream = all.iter().filter(|it| it.get("direction").and_then(Value::as_str) == Some("upstream"));
    Ok(upstream.filter_map(|it| it.get("peer")?.as_str().map(str::to_owned)).collect())
}
