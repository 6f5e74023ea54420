//! MeshHealthCheck, MeshTLS and a root of one's own, as a user sees them.

use crate::policies::EVERYTHING;
use anyhow::{Context, Result, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};
use meridian_testkit::mesh::{Backing, Mesh, Proxy, Workload, curl_until};
use meridian_testkit::wait::{DEADLINE, until};
use serde_json::Value;

const URL: &str = "http://backend.mesh/";

async fn ends(from: &Proxy, code: &str) -> Result<String> {
    curl_until(from, &["-i", URL], code, |said| said.ends_with(code)).await
}

async fn start(name: &str) -> Result<(Mesh, Proxy, Proxy)> {
    let mut mesh = Mesh::start(name, Backing::Sqlite, &["east", "west"]).await?;
    mesh.apply(EVERYTHING).await?;
    let web = mesh.workload("east", &Workload::http("web-1", "web")).await?;
    let backend = mesh.workload("west", &Workload::http("backend-1", "backend")).await?;
    ends(&web, "200").await?;
    Ok((mesh, web, backend))
}

#[tokio::test]
async fn a_service_that_says_it_is_unwell_gets_no_calls() -> Result<()> {
    let (mesh, web, _backend) = start("health").await?;
    let check = |path: &str| {
        format!(
            "type: MeshHealthCheck\nmesh: default\nname: ask\nspec:\n  to:\n  - targetRef: {{kind: MeshService, name: backend}}\n    default: \
             {{interval: 200ms, noTrafficInterval: 200ms, timeout: 2s, healthyPanicThreshold: 0, http: {{path: {path}}}}}\n"
        )
    };
    // Through both sidecars, and the ingress between them.
    mesh.apply(&check("/status/503")).await?;
    let said = curl_until(&web, &[URL], "503", |said| said.ends_with("503")).await?;
    ensure!(said.contains("left out"), "{said}");
    mesh.apply(&check("/status/200")).await?;
    ends(&web, "200").await?;
    mesh.apply(&check("/status/500")).await?;
    ends(&web, "503").await?;
    mesh.meridian(&["delete", "meshhealthcheck", "ask"]).await?;
    ends(&web, "200").await.map(drop)
}

#[tokio::test]
async fn who_may_come_without_a_certificate_is_said_for_an_inbound() -> Result<()> {
    let (mesh, web, backend) = start("plain").await?;
    let stranger = mesh.lab_host_outside("west").await?;
    let own = format!("http://{}:8080/", backend.host.ip());
    let answered = async || stranger.run(&["curl", "-sS", "--fail", "--max-time", "3", &own]).await.is_ok();
    ensure!(!answered().await, "the mesh is STRICT");
    let tls = |default: &str| {
        format!("type: MeshTLS\nmesh: default\nname: tls\nspec:\n  rules:\n  - default: {{{default}}}\n")
    };
    let warned = mesh.apply_aloud(&tls("mode: Permissive")).await?;
    ensure!(warned.contains("permissions do not cover callers without a certificate"), "{warned}");
    until("plaintext to be taken", DEADLINE, || async {
        ensure!(answered().await, "not yet");
        Ok(())
    })
    .await?;
    ends(&web, "200").await?;
    mesh.apply(&tls("mode: Strict, tlsVersion: {max: TLS12}, tlsCiphers: [ECDHE-RSA-AES256-GCM-SHA384]"))
        .await?;
    until("plaintext to be refused", DEADLINE, || async {
        ensure!(!answered().await, "still taken");
        Ok(())
    })
    .await?;
    ends(&web, "200").await.map(drop)
}

#[tokio::test]
async fn a_mesh_moves_to_a_root_of_its_users() -> Result<()> {
    let (mesh, web, _backend) = start("own").await?;
    let directory = mesh.lab.directory();
    let file = |name: &str| directory.join(name).display().to_string();
    let make = format!(
        "openssl req -x509 -newkey rsa:2048 -nodes -days 365 -subj /CN=corporate -keyout {} -out {} \
         -addext keyUsage=critical,keyCertSign",
        file("ca.key"),
        file("ca.crt"),
    );
    mesh.lab_host_outside("east").await?.run(&["sh", "-c", &make]).await?;
    for (name, of) in [("ca-cert", "ca.crt"), ("ca-key", "ca.key")] {
        let data = STANDARD.encode(std::fs::read(file(of)).context(of)?);
        let labels = if name == "ca-key" { "labels: {kuma.io/kds-sync: disabled}\n" } else { "" };
        mesh.apply(&format!("type: Secret\nmesh: default\nname: {name}\n{labels}data: {data}\n")).await?;
    }
    let said = mesh
        .apply_aloud(
            "type: Mesh\nname: default\nmtls:\n  enabledBackend: corporate\n  backends:\n  - name: corporate\n    type: provided\n    \
             conf: {cert: {secret: ca-cert}, key: {secret: ca-key}}\nrouting: {zoneEgress: true}\nnetworking: {outbound: {passthrough: false}}\n",
        )
        .await?;
    ensure!(said.contains("meridian mesh rotate-ca default"), "{said}");
    let roots = async || -> Result<Value> {
        let state = mesh.get(&mesh.global, "/meshes/default/_rotate-ca").await?;
        ensure!(state.get("phase").and_then(Value::as_str) == Some("idle"), "{state}");
        state.get("roots").cloned().context("no roots")
    };
    let before = roots().await?;
    mesh.meridian(&["mesh", "rotate-ca", "default"]).await?;
    until("the provided root to be the only one", DEADLINE * 4, || async {
        let now = roots().await?;
        ensure!(now != before, "{now}");
        Ok(())
    })
    .await?;
    ends(&web, "200").await.map(drop)
}
