//! A permission comes and goes by one apply, without a restart, for requests and for what is open.

use crate::policies::{EVERYTHING, permission};
use anyhow::{Result, ensure};
use meridian_testkit::mesh::{Backing, Mesh, Workload, curl_until};
use meridian_testkit::wait::{DEADLINE, until};

#[tokio::test]
async fn a_permission_comes_and_goes_for_requests_and_open_streams() -> Result<()> {
    let mut mesh = Mesh::start("perm", Backing::Sqlite, &["east", "west"]).await?;
    let web = mesh.workload("east", &Workload::http("web-1", "web")).await?;
    let _http = mesh.workload("west", &Workload::http("backend-1", "backend")).await?;
    let _tcp = mesh.workload("west", &Workload::http("echo-1", "echo").speaking("tcp", "tcp")).await?;
    let _grpc =
        mesh.workload("east", &Workload::http("greeter-1", "greeter").speaking("grpc", "grpc")).await?;
    let app = mesh.programs.app.display().to_string();

    let refused =
        curl_until(&web, &["-i", "http://backend.mesh/"], "a refusal", |said| said.ends_with("403")).await?;
    ensure!(refused.contains("x-meridian-denied: no-permission"), "{refused}");
    until("a TCP connection to be refused", DEADLINE, || async {
        let (succeeded, said) = web.app(&[&app, "tcp-client", "--target", "echo.mesh:80"]).await?;
        ensure!(!succeeded && said.contains("reset"), "{said}");
        Ok(())
    })
    .await?;

    for service in ["backend", "echo", "greeter"] {
        mesh.apply(&permission(&format!("web-to-{service}"), service, &["web"])).await?;
    }
    curl_until(&web, &["http://backend.mesh/"], "an answer", |said| said.ends_with("200")).await?;

    let mut held = Vec::new();
    for (kind, target, service) in [
        ("tcp", "echo.mesh:80", "echo"),
        ("websocket", "backend.mesh:80", "backend"),
        ("grpc", "greeter.mesh:80", "greeter"),
        ("http", "backend.mesh:80", "backend"),
    ] {
        for busy in [false, true] {
            let mut words = vec![app.as_str(), "hold", "--kind", kind, "--target", target];
            words.extend(busy.then_some("--busy"));
            let name = format!("hold-{kind}-{}", if busy { "busy" } else { "idle" });
            let mut process = until(&name, DEADLINE, || async {
                let mut process = web.spawn_app(&name, &words)?;
                process.wait_for_log("open", std::time::Duration::from_secs(2)).await?;
                Ok(process)
            })
            .await?;
            ensure!(process.running(), "{name} ended by itself: {}", process.log());
            held.push((name, service, process));
        }
    }
    for service in ["backend", "echo", "greeter"] {
        mesh.meridian(&["delete", "meshtrafficpermission", &format!("web-to-{service}")]).await?;
    }
    for (name, service, process) in &mut held {
        process
            .wait_for_log("closed:", DEADLINE)
            .await
            .map_err(|error| error.context(format!("{name} to {service}")))?;
    }
    curl_until(&web, &["http://backend.mesh/"], "a refusal again", |said| said.ends_with("403")).await?;
    let denials = until("the denials at global", DEADLINE, || async {
        let denials = mesh.get(&mesh.global, "/meshes/default/_denials").await?;
        ensure!(denials.to_string().contains("no-permission"), "{denials}");
        Ok(denials)
    })
    .await?;
    ensure!(denials.to_string().contains("spiffe://default/web"), "the caller is not named: {denials}");
    Ok(())
}

#[tokio::test]
async fn another_certificate_no_certificate_and_a_wrong_alpn_get_no_byte() -> Result<()> {
    let mut mesh = Mesh::start("alpn", Backing::Sqlite, &["east"]).await?;
    mesh.apply(EVERYTHING).await?;
    let backend = mesh.workload("east", &Workload::http("backend-1", "backend")).await?;
    let web = mesh.workload("east", &Workload::http("web-1", "web")).await?;
    curl_until(&web, &["http://backend.mesh/"], "an answer", |said| said.ends_with("200")).await?;
    // From a host of the mesh that is no sidecar: plaintext, TLS without a certificate, TLS with a foreign one.
    let stranger = &mesh.internet.host;
    let (foreign, key) = mesh.internet.ca.issue(&["spiffe.example"])?;
    let certificate = stranger.write("foreign.pem", &foreign)?.display().to_string();
    let key = stranger.write("foreign.key", &key)?.display().to_string();
    let target = format!("{}:8080", backend.host.ip());
    let url = format!("https://{target}/");
    for words in [
        vec!["curl", "-sS", "--max-time", "3", &format!("http://{target}/")],
        vec!["curl", "-ksS", "--max-time", "3", &url],
        vec!["curl", "-ksS", "--max-time", "3", "--cert", &certificate, "--key", &key, &url],
    ] {
        ensure!(stranger.run(&words).await.is_err(), "{words:?} was answered");
    }
    Ok(())
}
