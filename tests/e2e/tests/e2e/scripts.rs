//! Lua by MeshProxyPatch, from `meridian apply` to what a client sees.

use crate::policies::EVERYTHING;
use anyhow::{Result, ensure};
use meridian_testkit::mesh::{Backing, Mesh, Workload, curl_until};

fn patch(name: &str, matched: &str, script: &str) -> String {
    let script: String = script.lines().map(|line| format!("              {line}\n")).collect();
    format!(
        "type: MeshProxyPatch\nmesh: default\nname: {name}\nspec:\n  targetRef: {{kind: Mesh}}\n  default:\n    appendModifications:\n    - httpFilter:\n        \
         operation: AddBefore\n        match: {{name: envoy.filters.http.router, {matched}}}\n        value: |\n          name: envoy.filters.http.lua\n          \
         typedConfig:\n            '@type': type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua\n            inlineCode: |\n{script}"
    )
}

#[tokio::test]
async fn a_script_answers_changes_and_goes() -> Result<()> {
    let mut mesh = Mesh::start("scripts", Backing::Sqlite, &["east"]).await?;
    mesh.apply(EVERYTHING).await?;
    let web = mesh.workload("east", &Workload::http("web-1", "web")).await?;
    let _backend = mesh.workload("east", &Workload::http("backend-1", "backend")).await?;
    let url = "http://backend.mesh/";
    let probe = ["-H", "user-agent: probe", url];
    curl_until(&web, &probe, "an answer before", |said| said.ends_with("200")).await?;

    let inbound = "function envoy_on_request(handle)\n  if handle:headers():get(\"user-agent\") == \"probe\" then\n    \
         handle:respond({[\":status\"] = \"403\"}, \"no probes\")\n  end\nend";
    mesh.apply(&patch("no-probes", "origin: inbound", inbound)).await?;
    curl_until(&web, &probe, "the script's answer", |said| {
        said.contains("no probes") && said.ends_with("403")
    })
    .await?;
    curl_until(&web, &[url], "everybody else", |said| said.ends_with("200")).await?;

    // At the caller, for one service only; its answer shows it.
    let outbound =
        "function envoy_on_response(handle)\n  handle:headers():replace(\":status\", \"299\")\nend";
    let to_backend = "origin: outbound, listenerTags: {kuma.io/service: backend}";
    mesh.apply(&patch("marked", to_backend, outbound)).await?;
    curl_until(&web, &[url], "the caller's script", |said| said.ends_with("299")).await?;

    // An endless script that may answer lets nobody by.
    let endless = format!("{inbound}\nfunction envoy_on_response(handle)\nend\n")
        .replace("if handle", "while true do end\n  if handle");
    mesh.apply(&patch("no-probes", "origin: inbound", &endless)).await?;
    curl_until(&web, &probe, "a refusal", |said| said.contains("script-failed")).await?;

    let refused = mesh.apply(&patch("broken", "origin: inbound", "function (")).await;
    ensure!(refused.is_err_and(|error| format!("{error:#}").contains("the script is none")));
    Ok(())
}
