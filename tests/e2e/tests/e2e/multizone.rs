//! One name for the services of several zones, names of one's own, and policies on calls that leave the mesh.

use crate::policies::EVERYTHING;
use anyhow::{Result, ensure};
use meridian_testkit::mesh::{Backing, Mesh, Proxy, Workload, curl_until};
use meridian_testkit::wait::{DEADLINE, until};

const CATALOGUE: &str = "\
type: MeshMultiZoneService
mesh: default
name: catalogue
labels: {team: shop}
spec:
  selector: {meshService: {matchLabels: {kuma.io/display-name: backend}}}
  ports: [{port: 8080, appProtocol: http}]
";

const URL: &str = "http://catalogue.mzsvc.mesh.local:8080/";

async fn answered_by(from: &Proxy, url: &str, app: &str) -> Result<String> {
    let sign = format!(r#""app":"{app}""#);
    curl_until(from, &[url], app, |said| said.ends_with("200") && said.contains(&sign)).await
}

fn is_unknown(said: &str) -> bool {
    said.contains("Could not resolve host")
}

async fn ends(from: &Proxy, url: &str, code: &str) -> Result<String> {
    curl_until(from, &["-i", url], code, |said| said.ends_with(code)).await
}

#[tokio::test]
async fn one_name_leads_to_the_zones_own_and_then_to_the_others() -> Result<()> {
    let mut mesh = Mesh::start("many", Backing::Sqlite, &["east", "west"]).await?;
    mesh.apply(EVERYTHING).await?;
    let web = mesh.workload("east", &Workload::http("web-1", "web")).await?;
    let said = mesh.apply(CATALOGUE).await?;
    ensure!(!said.contains("no effect"), "{said}");
    // It has a name before anybody is behind it.
    ends(&web, URL, "503").await?;

    let _far = mesh.workload("west", &Workload::http("backend-w", "backend")).await?;
    answered_by(&web, URL, "backend-w").await?;
    let mut near = mesh.workload("east", &Workload::http("backend-e", "backend")).await?;
    answered_by(&web, URL, "backend-e").await?;
    until("the zone's own alone to answer", DEADLINE, || async {
        for _ in 0..10 {
            let said = web.curl(&[URL]).await?;
            ensure!(said.contains("backend-e"), "{said}");
        }
        Ok(())
    })
    .await?;
    near.kill().await?;
    answered_by(&web, URL, "backend-w").await?;
    near.start().await?;
    answered_by(&web, URL, "backend-e").await?;

    // Global knows which MeshServices it means, a zone its own address and name for it too.
    until("the status", DEADLINE, || async {
        let path = "/meshes/default/meshmultizoneservices/catalogue";
        let at_global = mesh.get(&mesh.global, path).await?["status"].to_string();
        ensure!(at_global.contains("\"east\"") && at_global.contains("\"west\""), "{at_global}");
        let in_east = mesh.get(&mesh.zone("east")?.control_plane, path).await?["status"].clone();
        ensure!(in_east["addresses"][0]["hostname"] == "catalogue.mzsvc.mesh.local", "{in_east}");
        ensure!(in_east["vips"][0]["ip"].as_str().is_some_and(|ip| ip.starts_with("243.")), "{in_east}");
        Ok(())
    })
    .await?;

    mesh.meridian(&["delete", "meshmultizoneservice", "catalogue"]).await?;
    curl_until(&web, &[URL], "the name to be gone", is_unknown).await?;
    ends(&web, "http://backend.mesh/", "200").await?;
    Ok(())
}

#[tokio::test]
async fn names_of_ones_own_and_a_policy_on_many_zones() -> Result<()> {
    let mut mesh = Mesh::start("names", Backing::Sqlite, &["east", "west"]).await?;
    mesh.apply(&format!("{EVERYTHING}---\n{CATALOGUE}")).await?;
    let web = mesh.workload("east", &Workload::http("web-1", "web")).await?;
    let _far = mesh.workload("west", &Workload::http("backend-w", "backend")).await?;
    answered_by(&web, URL, "backend-w").await?;

    let generator = |template: &str| {
        format!(
            "type: HostnameGenerator\nname: by-team\nspec:\n  selector: {{meshMultiZoneService: {{matchLabels: {{team: shop}}}}}}\n  \
             template: '{template}'\n"
        )
    };
    mesh.apply(&generator(r#"{{ .DisplayName }}.{{ label "team" }}.mesh.local"#)).await?;
    answered_by(&web, "http://catalogue.shop.mesh.local:8080/", "backend-w").await?;
    mesh.apply(&generator("taken.mesh.local")).await?;
    answered_by(&web, "http://taken.mesh.local:8080/", "backend-w").await?;
    let old = ["http://catalogue.shop.mesh.local:8080/"];
    curl_until(&web, &old, "the old name to be gone", is_unknown).await?;
    mesh.meridian(&["delete", "hostnamegenerator", "by-team"]).await?;
    curl_until(&web, &["http://taken.mesh.local:8080/"], "no name", is_unknown).await?;

    mesh.apply(
        "type: MeshTimeout\nmesh: default\nname: quick\nspec:\n  targetRef: {kind: Mesh}\n  to:\n  - targetRef: {kind: MeshMultiZoneService, \
         labels: {kuma.io/display-name: catalogue}}\n    default: {http: {requestTimeout: 200ms}}\n",
    )
    .await?;
    ends(&web, &format!("{URL}slow/600"), "504").await?;
    ends(&web, &format!("{URL}slow/1"), "200").await?;
    ends(&web, "http://backend.mesh/slow/600", "200").await?;
    Ok(())
}

#[tokio::test]
async fn calls_that_leave_the_mesh_are_held_to_their_callers_policies() -> Result<()> {
    let mut mesh = Mesh::start("leave", Backing::Sqlite, &["east"]).await?;
    mesh.apply(EVERYTHING).await?;
    mesh.apply(&crate::attack::mes("outside", "api.example.com", "80", "")).await?;
    let web = mesh.workload("east", &Workload::http("web-1", "web")).await?;
    let batch = mesh.workload("east", &Workload::http("batch-1", "batch")).await?;
    let url = "http://outside.extsvc.mesh.local";
    for caller in [&web, &batch] {
        ends(caller, &format!("{url}/slow/600"), "200").await?;
    }
    let said = mesh
        .apply(
            "type: MeshTimeout\nmesh: default\nname: quick\nspec:\n  targetRef: {kind: MeshSubset, tags: {kuma.io/service: web}}\n  to:\n  \
             - targetRef: {kind: MeshExternalService, name: outside}\n    default: {http: {requestTimeout: 200ms}}\n",
        )
        .await?;
    ensure!(!said.contains("no effect"), "{said}");
    ends(&web, &format!("{url}/slow/600"), "504").await?;
    ends(&web, &format!("{url}/slow/1"), "200").await?;
    ends(&batch, &format!("{url}/slow/600"), "200").await?;

    mesh.meridian(&["delete", "meshretry", "mesh-retry-all-default"]).await?;
    ends(&web, &format!("{url}/every/3"), "503").await?;
    mesh.apply(
        "type: MeshRetry\nmesh: default\nname: again\nspec:\n  targetRef: {kind: Mesh}\n  to:\n  - targetRef: {kind: MeshExternalService, \
         name: outside}\n    default: {http: {numRetries: 3, retryOn: [5xx], backOff: {baseInterval: 1ms}}}\n",
    )
    .await?;
    until("requests to be repeated", DEADLINE, || async {
        for _ in 0..6 {
            let said = web.curl(&[&format!("{url}/every/3")]).await?;
            ensure!(said.ends_with("200"), "{said}");
        }
        Ok(())
    })
    .await
}
