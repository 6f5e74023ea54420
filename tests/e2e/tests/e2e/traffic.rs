//! Traffic policies, as a user sees them: by one apply, across zones, without a restart.

use crate::policies::EVERYTHING;
use anyhow::Result;
use meridian_testkit::mesh::{Backing, Mesh, Proxy, Workload, curl_until};

async fn ends(from: &Proxy, url: &str, code: &str) -> Result<String> {
    curl_until(from, &["-i", url], code, |said| said.ends_with(code)).await
}

#[tokio::test]
async fn timeouts_and_retries_hold_as_long_as_they_are_written() -> Result<()> {
    let mut mesh = Mesh::start("times", Backing::Sqlite, &["east", "west"]).await?;
    mesh.apply(EVERYTHING).await?;
    let web = mesh.workload("east", &Workload::http("web-1", "web")).await?;
    let batch = mesh.workload("east", &Workload::http("batch-1", "batch")).await?;
    let _backend = mesh.workload("west", &Workload::http("backend-1", "backend")).await?;
    for caller in [&web, &batch] {
        ends(caller, "http://backend.mesh/slow/600", "200").await?;
    }

    mesh.apply(
        "type: MeshTimeout\nmesh: default\nname: quick\nspec:\n  targetRef: {kind: MeshSubset, tags: {kuma.io/service: web}}\n  to:\n  \
         - targetRef: {kind: MeshService, name: backend}\n    default: {http: {requestTimeout: 200ms}}\n",
    )
    .await?;
    for name in ["backend.mesh", "backend.svc.west.mesh.local:8080"] {
        ends(&web, &format!("http://{name}/slow/600"), "504").await?;
        ends(&web, &format!("http://{name}/slow/1"), "200").await?;
    }
    ends(&batch, "http://backend.mesh/slow/600", "200").await?;
    mesh.meridian(&["delete", "meshtimeout", "quick"]).await?;
    ends(&web, "http://backend.mesh/slow/600", "200").await?;
    Ok(())
}
