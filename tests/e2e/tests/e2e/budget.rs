//! What a request may cost: system calls of both sidecars together, counted by strace.

use crate::policies::EVERYTHING;
use anyhow::{Context, Result, ensure};
use meridian_testkit::mesh::{Backing, Mesh, Proxy, Workload, curl_until};
use meridian_testkit::wait::{DEADLINE, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::process::{Child, Command};

/// Connections, requests, and system calls of the pair for one request, in tenths. One connection needs twelve: two times read,
/// write and wait at each sidecar. Many share what goes between the sidecars, and the waits.
const BUDGETS: [(usize, u64, u64); 2] = [(1, 1_000, 125), (32, 6_000, 65)];
/// Whether messages of open streams in place of calls, how many at each of 100 streams, and system calls of the pair for one of them, in
/// tenths: what many streams have to say at a time is one write, and a record. Slower machines write less often.
const GRPC_BUDGETS: [(bool, u64, u64); 2] = [(false, 60, 12), (true, 120, 10)];
const GRPC_STREAMS: u64 = 100;
/// Heartbeats and the like, while a load lasts.
const BESIDE: u64 = 300;

#[tokio::test]
async fn a_request_stays_within_its_budget_of_system_calls() -> Result<()> {
    let mut mesh = Mesh::start("budget", Backing::Sqlite, &["east"]).await?;
    mesh.apply(EVERYTHING).await?;
    let web = mesh.workload("east", &Workload::http("web-1", "web")).await?;
    let backend = mesh.workload("east", &Workload::http("backend-1", "backend")).await?;
    let url = "http://backend.mesh/";
    curl_until(&web, &[url], "an answer", |said| said.ends_with("200")).await?;
    for (connections, requests, tenths) in BUDGETS {
        let load = async || load(&web, url, connections, requests).await;
        // Connections between the sidecars are made before anything is counted.
        load().await?;
        let counts = [count(&web).await?, count(&backend).await?];
        load().await?;
        let mut calls = 0;
        for count in counts {
            calls += count.end().await?;
        }
        println!("{connections} connections, {requests} requests: {calls} system calls");
        let most = requests * tenths / 10 + BESIDE;
        ensure!(calls <= most, "{calls} system calls for {requests} requests over {connections} connections");
        ensure!(calls * 2 > most, "lower the budget: {calls} system calls, {most} may be");
    }
    Ok(())
}

#[tokio::test]
async fn grpc_stays_within_its_budget_of_system_calls() -> Result<()> {
    let mut mesh = Mesh::start("grpc-budget", Backing::Sqlite, &["east"]).await?;
    mesh.apply(EVERYTHING).await?;
    let web = mesh.workload("east", &Workload::http("web-1", "web")).await?;
    let greeter =
        mesh.workload("east", &Workload::http("greeter-1", "greeter").speaking("grpc", "grpc")).await?;
    let app = mesh.programs.app.display().to_string();
    for (streaming, each, tenths) in GRPC_BUDGETS {
        let number = each.to_string();
        let mut words = vec![app.as_str(), "grpc-load", "--target", "greeter.mesh:80", "--each", &number];
        words.extend(streaming.then_some("--streaming"));
        let load = async || {
            let (_, said) = web.app(&words).await?;
            ensure!(said.contains(&format!("{} answered", each * GRPC_STREAMS)), "{said}");
            Ok(())
        };
        until("all are answered", DEADLINE, load).await?;
        let counts = [count(&web).await?, count(&greeter).await?];
        load().await?;
        let mut calls = 0;
        for count in counts {
            calls += count.end().await?;
        }
        let messages = each * GRPC_STREAMS;
        println!("streaming {streaming}, {messages} messages: {calls} system calls");
        ensure!(calls <= messages * tenths / 10 + BESIDE, "{calls} system calls for {messages} messages");
    }
    Ok(())
}

async fn load(from: &Proxy, url: &str, connections: usize, requests: u64) -> Result<()> {
    let (connections, number) = (connections.to_string(), requests.to_string());
    let (_, said) = from.app(&["h2load", "--h1", "-c", &connections, "-n", &number, url]).await?;
    ensure!(said.contains(&format!("{requests} succeeded")), "{said}");
    Ok(())
}

/// strace at a process.
struct Count {
    strace: Child,
    summary: PathBuf,
}

async fn count(proxy: &Proxy) -> Result<Count> {
    let pid = proxy.process.as_ref().context("it does not run")?.pid()?;
    let summary = proxy.host.directory().join("system-calls");
    let strace = Command::new("strace")
        .args(["-q", "-f", "-c", "-U", "calls,name", "-o"])
        .arg(&summary)
        .args(["-p", &pid.to_string()])
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("strace")?;
    until("strace to count", DEADLINE, || async {
        for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            let status = std::fs::read_to_string(thread?.path().join("status"))?;
            let is_traced =
                status.lines().any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"));
            ensure!(is_traced, "a thread of {pid} is not traced yet");
        }
        Ok(())
    })
    .await?;
    Ok(Count { strace, summary })
}

impl Count {
    async fn end(mut self) -> Result<u64> {
        let id = self.strace.id().context("strace has ended")?;
        kill(Pid::from_raw(i32::try_from(id)?), Signal::SIGINT)?;
        self.strace.wait().await?;
        total(&self.summary)
    }
}

fn total(summary: &Path) -> Result<u64> {
    let text = std::fs::read_to_string(summary)?;
    let of = |line: &str| line.trim().strip_suffix("total")?.trim().parse::<u64>().ok();
    text.lines().find_map(of).with_context(|| format!("no total in {text}"))
}
