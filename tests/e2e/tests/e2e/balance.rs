//! MeshLoadBalancingStrategy, as a caller sees it: who answers, and whether anybody does.

use crate::policies::EVERYTHING;
use anyhow::{Context, Result, ensure};
use meridian_testkit::mesh::{Backing, Mesh, Proxy, Workload, curl_until};
use meridian_testkit::wait::{DEADLINE, until};
use std::collections::BTreeMap;

const URL: &str = "http://backend.mesh/";

fn strategy(conf: &str) -> String {
    format!(
        "type: MeshLoadBalancingStrategy\nmesh: default\nname: choice\nspec:\n  to:\n  - targetRef: {{kind: MeshService, name: backend}}\n    \
         default: {conf}\n"
    )
}

/// How often each instance answers of so many calls.
async fn answers(from: &Proxy, calls: usize, words: &[&str]) -> Result<BTreeMap<String, usize>> {
    let mut counts = BTreeMap::new();
    for _ in 0..calls {
        let said = from.curl(&[words, &[URL]].concat()).await?;
        let (body, code) = said.rsplit_once('\n').unwrap_or_default();
        ensure!(code == "200", "{said}");
        let answer: serde_json::Value = serde_json::from_str(body).with_context(|| said.clone())?;
        let name = answer.get("app").and_then(serde_json::Value::as_str).unwrap_or_default();
        *counts.entry(name.to_owned()).or_default() += 1;
    }
    Ok(counts)
}

#[tokio::test]
async fn a_key_leads_to_one_instance_and_zones_are_left_as_a_policy_says() -> Result<()> {
    let mut mesh = Mesh::start("balance", Backing::Sqlite, &["east", "west"]).await?;
    mesh.apply(EVERYTHING).await?;
    let web = mesh.workload("east", &Workload::http("web-1", "web")).await?;
    let batch = mesh.workload("east", &Workload::http("batch-1", "batch")).await?;
    let _first = mesh.workload("west", &Workload::http("backend-1", "backend")).await?;
    curl_until(&web, &[URL], "200 from the other zone", |said| said.ends_with("200")).await?;

    let here = "{localityAwareness: {crossZone: {failover: [{to: {type: None}}]}}}";
    mesh.apply(&strategy(here)).await?;
    curl_until(&web, &[URL], "nobody of this zone", |said| said.ends_with("503")).await?;
    let west = "{localityAwareness: {crossZone: {failover: [{to: {type: Only, zones: [west]}}]}}}";
    mesh.apply(&strategy(west)).await?;
    curl_until(&web, &[URL], "200 from the zone that may be asked", |said| said.ends_with("200")).await?;

    let mut local = Vec::new();
    for name in ["backend-2", "backend-3", "backend-4"] {
        local.push(mesh.workload("east", &Workload::http(name, "backend")).await?);
    }
    let by_header = "{loadBalancer: {type: Maglev}, hashPolicies: [{type: Header, header: {name: x-user}}]}";
    mesh.apply(&strategy(by_header)).await?;
    let keys = ["x-user: ada", "x-user: bob", "x-user: cleo", "x-user: dan", "x-user: eve", "x-user: fay"];
    let places = until("each key to have one place, the same for two callers", DEADLINE, async || {
        let mut places = BTreeMap::new();
        for key in keys {
            let found = answers(&web, 4, &["-H", key]).await?;
            ensure!(found.len() == 1, "{key}: {found:?}");
            ensure!(found.keys().eq(answers(&batch, 2, &["-H", key]).await?.keys()), "{key} differs");
            places.insert(key, found.into_keys().next());
        }
        ensure!(places.values().flatten().all(|name| name != "backend-1"), "{places:?} leaves the zone");
        Ok(places)
    })
    .await?;
    let used: std::collections::BTreeSet<_> = places.values().collect();
    ensure!(used.len() > 1, "all keys lead to {used:?}");

    let by_cookie = "{loadBalancer: {type: RingHash}, hashPolicies: [{type: Cookie, cookie: {name: place, ttl: 1h, path: /}}]}";
    mesh.apply(&strategy(by_cookie)).await?;
    let said = curl_until(&web, &["-i", URL], "a cookie", |said| said.contains("set-cookie: place=")).await?;
    let cookie = said.lines().find_map(|line| line.strip_prefix("set-cookie: ")?.split(';').next());
    let cookie = cookie.context("no cookie")?;
    ensure!(answers(&web, 6, &["-b", cookie]).await?.len() == 1, "a cookie leads to several");

    mesh.meridian(&["delete", "meshloadbalancingstrategy", "choice"]).await?;
    until("instances to take turns", DEADLINE, async || {
        let found = answers(&web, 9, &[]).await?;
        ensure!(found.len() == 3 && found.values().all(|count| *count == 3), "{found:?}");
        Ok(())
    })
    .await
}
