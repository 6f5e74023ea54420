//! What overviews say of a host's capture is what the host does now.

use anyhow::{Result, ensure};
use meridian_testkit::mesh::{Backing, Mesh, Proxy, Workload};
use meridian_testkit::wait::until;
use std::time::Duration;

/// A sidecar looks every 10 s, and tells at most once a second.
const LOOK: Duration = Duration::from_secs(30);

#[tokio::test]
async fn an_uninstalled_capture_is_no_longer_told_as_enforced() -> Result<()> {
    let mut mesh = Mesh::start("uninstall", Backing::Sqlite, &["east"]).await?;
    let web = mesh.workload("east", &Workload::http("web-1", "web")).await?;
    enforcement(&mesh, "strict").await?;
    let direct = ["curl", "-sS", "-f", "--max-time", "5", "http://192.0.2.66/"];
    let (reached, said) = web.app(&direct).await?;
    ensure!(!reached, "the capture let it out: {said}");
    change(&mesh, &web, &["uninstall", "transparent-proxy"]).await?;
    enforcement(&mesh, "none").await?;
    let (reached, said) = web.app(&direct).await?;
    ensure!(reached, "the capture is still there: {said}");
    let uid = meridian_testkit::mesh::PROXY_UID.to_string();
    change(&mesh, &web, &["install", "transparent-proxy", "--kuma-dp-uid", &uid, "--redirect-dns"]).await?;
    enforcement(&mesh, "strict").await
}

async fn change(mesh: &Mesh, web: &Proxy, words: &[&str]) -> Result<()> {
    let program = mesh.programs.meridian.display().to_string();
    let notice = web.host.directory().join("capture.json").display().to_string();
    let mut line = vec![program.as_str()];
    line.extend(words);
    line.extend(["--capture-file", &notice]);
    web.host.run(&line).await.map(drop)
}

/// Waits until the overview at global says so.
async fn enforcement(mesh: &Mesh, expected: &str) -> Result<()> {
    until(&format!("the enforcement to be {expected}"), LOOK, || async {
        let list = mesh.get(&mesh.global, "/meshes/default/dataplanes/_overview").await?;
        let said = list.pointer("/items/0/outboundEnforcement").and_then(serde_json::Value::as_str);
        ensure!(said == Some(expected), "{list}");
        Ok(())
    })
    .await
}
