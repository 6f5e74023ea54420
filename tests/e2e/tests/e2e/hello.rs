//! ClientHellos that come in many segments are read as whole ones are.

use crate::attack::mes;
use crate::intruder::{Stolen, answered, preface, request, say, server_name};
use crate::policies::{EVERYTHING, external_service};
use anyhow::{Context, Result, ensure};
use meridian_testkit::mesh::{Backing, Mesh, START, Workload, curl_until};
use meridian_testkit::net::Host;
use meridian_testkit::process::{Process, Program};

/// Passes on what comes to `listen`, the beginning of it in pieces of a few bytes.
async fn splitter(mesh: &Mesh, host: &Host, listen: &str, target: &str) -> Result<Process> {
    let app = mesh.programs.app.display().to_string();
    let words = [app.as_str(), "split", "--listen", listen, "--target", target];
    let program = Program::new(&format!("split-{}", listen.replace(':', "-")), words);
    let mut process = host.spawn(program.uid(meridian_testkit::mesh::APP_UID))?;
    process.wait_for_log("listening on", START).await?;
    Ok(process)
}

#[tokio::test]
async fn a_client_hello_in_many_segments_is_read_like_a_whole_one() -> Result<()> {
    let mut mesh = Mesh::start("hello", Backing::Sqlite, &["east", "west"]).await?;
    mesh.apply(EVERYTHING).await?;
    mesh.apply(&external_service("api", "api.example.com:443", "tcp")).await?;
    mesh.apply(&mes("plain", "other.example.com", "80", "")).await?;
    let web = mesh.workload("east", &Workload::http("web-1", "web")).await?;
    let _backend = mesh.workload("west", &Workload::http("backend-1", "backend")).await?;
    for url in ["http://backend.mesh/", "http://plain.extsvc.mesh.local/"] {
        curl_until(&web, &[url], "an answer before", |said| said.ends_with("200")).await?;
    }

    // Captured: what the name allows at this address goes on, and no other name does.
    let _out = splitter(&mesh, &web.host, "127.0.0.1:7443", "192.0.2.10:443").await?;
    let ca = mesh.internet.host.directory().join("ca.pem").display().to_string();
    let ask = |name: &'static str| {
        let (ca, web) = (&ca, &web);
        async move {
            let (to, url) = (format!("{name}:443:127.0.0.1:7443"), format!("https://{name}/"));
            web.curl(&["--cacert", ca, "--connect-to", &to, &url]).await
        }
    };
    let said = ask("api.example.com").await?;
    ensure!(said.ends_with("200"), "{said}");
    for name in ["other.example.com", "evil.example.net"] {
        let said = ask(name).await?;
        ensure!(!said.ends_with("200"), "{name}: {said}");
    }

    // From proxy to proxy: the ingress routes by the name and passes the bytes on, the egress ends the session.
    let stolen = Stolen::from(&web, mesh.lab.directory()).await?;
    let stranger = mesh.lab_host_outside("east").await?;
    let ingress = mesh.zone("west")?.ingress.as_ref().context("no ingress")?.host.ip();
    let egress = mesh.zone("east")?.egress.as_ref().context("no egress")?.host.ip();
    let inside = server_name(&web, "sni.msvc.default.west.backend.").await?;
    let outside = server_name(&web, "sni.extsvc.default.east.plain.").await?;
    let (plain, asked) =
        (request("backend.mesh"), preface("default/extsvc//plain", "plain.extsvc.mesh.local", 80));
    for (what, listen, target, name, alpn, bytes) in [
        ("ingress", "127.0.0.1:7001", format!("{ingress}:10001"), &inside, "mesh-h1", plain.as_bytes()),
        ("egress", "127.0.0.1:7002", format!("{egress}:10002"), &outside, "mesh-ext", &asked),
    ] {
        let _split = splitter(&mesh, &stranger, listen, &target).await?;
        let said = say(&stranger, listen, Some(&stolen), name, alpn, bytes).await?;
        ensure!(answered(&said), "{what}: {said}");
        let said =
            say(&stranger, listen, Some(&stolen), "sni.msvc.default.west.nobody.80", alpn, bytes).await?;
        ensure!(said.is_empty(), "{what} with a name of nobody: {said}");
    }
    Ok(())
}
