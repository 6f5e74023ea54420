//! Why a call fares as it does, and what a policy would change: asked of a running mesh, and held against what happens.

use crate::policies::{external_service, permission};
use anyhow::{Result, ensure};
use meridian_testkit::mesh::{Backing, Mesh, Workload, curl_until};
use meridian_testkit::wait::{DEADLINE, until};

#[tokio::test]
async fn what_is_said_of_a_call_is_what_comes_of_it() -> Result<()> {
    let mut mesh = Mesh::start("why", Backing::Sqlite, &["east", "west"]).await?;
    mesh.apply(&permission("web-to-backend", "backend", &["web"])).await?;
    mesh.apply(&external_service("api", "api.example.com:80", "http")).await?;
    let web = mesh.workload("east", &Workload::http("web-1", "web")).await?;
    let batch = mesh.workload("east", &Workload::http("batch-1", "batch")).await?;
    let _backend = mesh.workload("west", &Workload::http("backend-1", "backend")).await?;
    curl_until(&web, &["http://backend.mesh/"], "200", |said| said.ends_with("200")).await?;

    let explained = async |source: &str, destination: &str, expected: &[&str]| {
        until("the call to be explained", DEADLINE, async || {
            let said = mesh.meridian(&["explain", source, destination]).await?;
            ensure!(
                expected.iter().all(|part| said.contains(part)),
                "explain {source} {destination}:\n{said}"
            );
            Ok(said)
        })
        .await
    };
    explained("web", "backend.mesh:80", &["allowed", "web-to-backend", "zone west"]).await?;
    explained("batch", "backend.mesh:80", &["DENIED", "MeshTrafficPermission"]).await?;
    curl_until(&batch, &["http://backend.mesh/"], "403", |said| said.ends_with("403")).await?;
    explained("web", "http://evil.example.net/", &["not-listed"]).await?;
    explained("web", "http://api.example.com/", &["the egress refuses it", "no rule allows"]).await?;
    let said = web.curl(&["-i", "http://api.example.com/"]).await?;
    ensure!(said.contains("x-meridian-denied: no-permission"), "{said}");

    let timeout = |shadow: &str| {
        format!(
            "type: MeshTimeout\nmesh: default\nname: a-quick\n{shadow}spec:\n  to:\n  - targetRef: {{kind: MeshService, name: backend}}\n    \
             default: {{http: {{requestTimeout: 300ms}}}}\n"
        )
    };
    mesh.apply(&timeout("labels: {kuma.io/effect: shadow}\n")).await?;
    until("global to tell what a policy would change", DEADLINE, async || {
        let said = mesh.meridian(&["inspect", "dataplane", "web-1", "--type", "config", "--shadow"]).await?;
        ensure!(said.contains("request timeout 15s -> 300ms"), "{said}");
        Ok(())
    })
    .await?;
    let said = web.curl(&["http://backend.mesh/slow/700"]).await?;
    ensure!(said.ends_with("200"), "a policy that is only tried out acted: {said}");
    mesh.apply(&timeout("")).await?;
    curl_until(&web, &["http://backend.mesh/slow/700"], "504", |said| said.ends_with("504")).await?;
    explained("web", "backend.mesh:80", &["300ms", "a-quick"]).await?;
    let said = mesh.meridian(&["inspect", "dataplane", "web-1", "--type", "config"]).await?;
    ensure!(said.contains("300"), "{said}");
    let zone = &mesh.zone("east")?.control_plane;
    let layout = mesh.get(zone, "/meshes/default/dataplanes/web-1/_layout").await?;
    ensure!(layout.to_string().contains("backend"), "{layout}");
    Ok(())
}
