//! web (east) calls services in west by name, over mTLS from sidecar to sidecar, through west's ingress.

use crate::policies::EVERYTHING;
use anyhow::{Result, ensure};
use meridian_testkit::mesh::{Backing, Mesh, Workload, curl_until};
use meridian_testkit::process::Program;
use meridian_testkit::wait::{DEADLINE, until};

/// What an application must never send in clear between the zones.
const SECRET: &str = "a-plaintext-that-must-not-be-seen";

#[tokio::test]
async fn every_protocol_reaches_the_other_zone_and_nothing_is_readable_between_them() -> Result<()> {
    let mut mesh = Mesh::start("cross", Backing::Sqlite, &["east", "west"]).await?;
    mesh.apply(EVERYTHING).await?;
    let capture = mesh.lab.directory().join("between-zones.pcap").display().to_string();
    let mut tcpdump = mesh.lab.spawn_in_router(Program::new(
        "tcpdump",
        ["tcpdump", "-U", "-i", "any", "-w", &capture, "net", "10.2.0.0/24"],
    ))?;
    tcpdump.wait_for_log("listening on", DEADLINE).await?;

    // The same Dataplane name and, for one service, the same service name in both zones.
    let web = mesh.workload("east", &Workload::http("web-1", "web")).await?;
    let _same_name = mesh.workload("west", &Workload::http("web-1", "other")).await?;
    let _http = mesh.workload("west", &Workload::http("backend-1", "backend")).await?;
    let _grpc =
        mesh.workload("west", &Workload::http("greeter-1", "greeter").speaking("grpc", "grpc")).await?;
    let _tcp = mesh.workload("west", &Workload::http("echo-1", "echo").speaking("tcp", "tcp")).await?;
    let _first =
        mesh.workload("west", &Workload::http("smtp-1", "smtp").speaking("tcp", "server-first")).await?;

    let header = format!("x-secret: {SECRET}");
    let http1 =
        curl_until(&web, &["-H", &header, "http://backend.mesh/"], "HTTP/1.1", |said| said.ends_with("200"))
            .await?;
    ensure!(http1.contains(r#""app":"backend-1""#) && http1.contains(SECRET), "{http1}");
    for host in ["backend.svc.west.mesh.local:8080", "backend.mesh:8080", "backend.mesh"] {
        curl_until(&web, &[&format!("http://{host}/")], host, |said| said.ends_with("200")).await?;
    }
    let http2 = curl_until(&web, &["--http2-prior-knowledge", "http://backend.mesh/"], "HTTP/2", |said| {
        said.ends_with("200")
    })
    .await?;
    ensure!(http2.contains(r#""app":"backend-1""#), "{http2}");
    let trailers = web.curl(&["-v", "http://backend.mesh/trailers", "-H", "te: trailers"]).await?;
    ensure!(trailers.contains("body"), "{trailers}");

    let upload = "x".repeat(300_000);
    let file = web.host.write("upload", &upload)?.display().to_string();
    let echoed = web
        .curl(&[
            "-H",
            "Expect: 100-continue",
            "--data-binary",
            &format!("@{file}"),
            "http://backend.mesh/echo",
        ])
        .await?;
    ensure!(
        echoed.trim_end().strip_suffix("200").is_some_and(|body| body.trim_end() == upload),
        "the echo differs: {} bytes: {echoed:.200}",
        echoed.len()
    );

    let app = mesh.programs.app.display().to_string();
    for (words, expected) in [
        (
            vec![app.as_str(), "grpc-client", "--target", "greeter.mesh:80"],
            "unary, server stream, client stream, bidirectional: ok",
        ),
        (vec![&app, "websocket-client", "--target", "backend.mesh:80"], "websocket: ok"),
        (
            vec![&app, "tcp-client", "--target", "echo.mesh:80", "--send", SECRET],
            "read 33 bytes until the end",
        ),
        (
            vec![&app, "tcp-client", "--target", "smtp.mesh:80", "--greeting", "--send", "helo\r\n"],
            "250 helo",
        ),
    ] {
        until(expected, DEADLINE, || async {
            let (_, said) = web.app(&words).await?;
            ensure!(said.contains(expected), "{words:?}: {said}");
            Ok(())
        })
        .await?;
    }
    tcpdump.signal(nix::sys::signal::Signal::SIGINT)?;
    tcpdump.wait(DEADLINE).await?;
    let wire = std::fs::read(&capture)?;
    ensure!(wire.len() > 100_000, "the capture saw only {} bytes", wire.len());
    ensure!(
        !wire.windows(SECRET.len()).any(|window| window == SECRET.as_bytes()),
        "plaintext between the zones"
    );

    let keys = files_with(
        mesh.zone("west")?.ingress.as_ref().map(|ingress| ingress.host.directory().to_owned()),
        "PRIVATE KEY",
    )?;
    ensure!(keys.is_empty(), "the ingress holds keys: {keys:?}");
    Ok(())
}

#[tokio::test]
async fn psql_speaks_to_postgres_in_the_other_zone() -> Result<()> {
    let mut mesh = Mesh::start("psql", Backing::Sqlite, &["east", "west"]).await?;
    mesh.apply(EVERYTHING).await?;
    let web = mesh.workload("east", &Workload::http("web-1", "web")).await?;
    let mut database = Workload::http("db-1", "db").speaking("tcp", "none");
    database.app.clear();
    database.port = 5432;
    let database = mesh.workload("west", &database).await?;
    let settings = meridian_testkit::postgres::Settings {
        prefix: database.host.prefix(),
        address: database.host.ip().to_string(),
        port: Some(5432),
        ..Default::default()
    };
    let _postgres = meridian_testkit::postgres::Postgres::start(settings).await?;
    until("psql to be answered", DEADLINE, || async {
        let words = ["psql", "-h", "db.mesh", "-U", "meridian", "-At", "-c", "SELECT 6 * 7", "postgres"];
        let (_, said) = web.app(&words).await?;
        ensure!(said.trim() == "42", "{said}");
        Ok(())
    })
    .await
}

/// Files beneath a folder that contain `text`.
fn files_with(folder: Option<std::path::PathBuf>, text: &str) -> Result<Vec<std::path::PathBuf>> {
    let mut found = Vec::new();
    let mut folders: Vec<_> = folder.into_iter().collect();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if std::fs::read(&path).is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(text)) {
                found.push(path);
            }
        }
    }
    Ok(found)
}
