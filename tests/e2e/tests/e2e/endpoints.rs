//! Which endpoints are used, and how sessions with them are: MeshHealthCheck and MeshTLS.

use crate::policies::EVERYTHING;
use anyhow::{Result, ensure};
use meridian_testkit::mesh::{Backing, Mesh, Proxy, Workload, curl_until};
use meridian_testkit::wait::{DEADLINE, until};
use std::collections::BTreeSet;

/// Who answers of so many calls.
async fn answering(from: &Proxy, url: &str, calls: usize) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for _ in 0..calls {
        let said = from.curl(&[url]).await?;
        let (body, code) = said.rsplit_once('\n').unwrap_or_default();
        ensure!(code == "200", "{said}");
        let answer: serde_json::Value = serde_json::from_str(body)?;
        names.insert(answer["name"].as_str().unwrap_or_default().to_owned());
    }
    Ok(names)
}

async fn answer_in_the_end(from: &Proxy, url: &str, expected: &[&str]) -> Result<()> {
    let expected: BTreeSet<String> = expected.iter().map(|name| (*name).to_owned()).collect();
    until("the right ones to answer", DEADLINE, async || {
        let found = answering(from, url, 8).await?;
        ensure!(found == expected, "{found:?} answered");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_instance_that_is_not_well_is_left_out_until_it_is() -> Result<()> {
    let mut mesh = Mesh::start("unwell", Backing::Sqlite, &["east"]).await?;
    mesh.apply(EVERYTHING).await?;
    let web = mesh.workload("east", &Workload::http("web-1", "web")).await?;
    let _first = mesh.workload("east", &Workload::http("backend-1", "backend")).await?;
    let _second = mesh.workload("east", &Workload::http("backend-2", "backend")).await?;
    let url = "http://backend.mesh/";
    answer_in_the_end(&web, url, &["backend-1", "backend-2"]).await?;
    let check = |name: &str| {
        format!(
            "type: MeshHealthCheck\nmesh: default\nname: well\nspec:\n  to:\n  - targetRef: {{kind: MeshService, name: backend}}\n    default:\n      \
             {{interval: 200ms, timeout: 2s, unhealthyThreshold: 1, healthyThreshold: 1, noTrafficInterval: 200ms, http: {{path: /only/{name}}}}}\n"
        )
    };
    mesh.apply(&check("backend-2")).await?;
    answer_in_the_end(&web, url, &["backend-2"]).await?;
    mesh.apply(&check("backend-1")).await?;
    answer_in_the_end(&web, url, &["backend-1"]).await?;
    mesh.meridian(&["delete", "meshhealthcheck", "well"]).await?;
    answer_in_the_end(&web, url, &["backend-1", "backend-2"]).await
}

#[tokio::test]
async fn plaintext_is_let_in_where_a_policy_says_so_and_as_long_as_it_does() -> Result<()> {
    let mut mesh = Mesh::start("plain", Backing::Sqlite, &["east"]).await?;
    mesh.apply(EVERYTHING).await?;
    let web = mesh.workload("east", &Workload::http("web-1", "web")).await?;
    let backend = mesh.workload("east", &Workload::http("backend-1", "backend")).await?;
    let outside = mesh.lab_host_outside("east").await?;
    let url = format!("http://{}:8080/", backend.host.ip());
    let plain = async || outside.run(&["curl", "-sS", "--max-time", "5", &url]).await;
    ensure!(plain().await.is_err(), "plaintext got in");
    let permissive = "type: MeshTLS\nmesh: default\nname: legacy\nspec:\n  targetRef: {kind: Dataplane, name: backend-1}\n  rules:\n  - default: {mode: Permissive}\n";
    mesh.apply(permissive).await?;
    until("plaintext to get in", DEADLINE, async || plain().await.map(drop)).await?;
    curl_until(&web, &["http://backend.mesh/"], "mTLS beside it", |said| said.ends_with("200")).await?;
    mesh.meridian(&["delete", "meshtls", "legacy"]).await?;
    until("plaintext to be refused", DEADLINE, async || {
        ensure!(plain().await.is_err(), "it got in");
        Ok(())
    })
    .await?;
    curl_until(&web, &["http://backend.mesh/"], "mTLS all the time", |said| said.ends_with("200")).await?;

    let versions = "type: MeshTLS\nmesh: default\nname: old\nspec:\n  targetRef: {kind: Mesh}\n  from:\n  - targetRef: {kind: Mesh}\n    default: {tlsVersion: {min: TLS12, max: TLS12}}\n";
    mesh.apply(versions).await?;
    curl_until(&web, &["http://backend.mesh/"], "TLS 1.2", |said| said.ends_with("200")).await.map(drop)
}
