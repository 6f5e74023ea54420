//! Control planes as processes, and their REST API as an administrator uses it.

use crate::process::Process;
use anyhow::{Context, Result, ensure};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use meridian_pki::link::ServerTrust;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the diagnostics port may take to answer.
const ANSWER: Duration = Duration::from_secs(1);

/// One control plane; ended when dropped.
pub(super) struct Plane {
    /// None while it is down.
    process: Option<Process>,
    program: PathBuf,
    words: Vec<String>,
    folder: PathBuf,
    role: &'static str,
    http: SocketAddr,
    diagnostics: SocketAddr,
    /// Zones, or proxies, connect here.
    pub(super) grpc: SocketAddr,
}

/// What a control plane used, from one look to another.
#[derive(Clone, Copy)]
pub(super) struct Look {
    at: Instant,
    cpu: u64,
}

/// CPU of a control plane over a time.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Used {
    pub(super) cpu_millis: f64,
    pub(super) seconds: f64,
}

impl Plane {
    pub(super) fn global(program: &Path, folder: &Path) -> Result<Self> {
        Self::start(program, folder, "global-cp", "--sync-listen", &[])
    }

    /// The zone `scale` of that global control plane.
    pub(super) async fn zone(program: &Path, folder: &Path, global: &Self) -> Result<Self> {
        let token = global.zone_token("scale").await?;
        let file = folder.join("zone-token");
        std::fs::write(&file, token)?;
        let words = [
            "--zone".to_owned(),
            "scale".to_owned(),
            "--global-address".to_owned(),
            format!("https://{}", global.grpc),
            "--ca-cert-file".to_owned(),
            global.data().join("ca.crt").display().to_string(),
            "--zone-token-file".to_owned(),
            file.display().to_string(),
        ];
        Self::start(program, folder, "zone-cp", "--proxy-listen", &words)
    }

    fn start(
        program: &Path,
        folder: &Path,
        role: &'static str,
        grpc_flag: &str,
        more: &[String],
    ) -> Result<Self> {
        let [http, https, grpc, diagnostics] = free_addresses()?;
        let data = folder.join(role).display().to_string();
        let mut words = vec![role.to_owned()];
        let addresses =
            [("--api-http", http), ("--api-https", https), ("--diagnostics", diagnostics), (grpc_flag, grpc)];
        words.extend(addresses.iter().flat_map(|(flag, at)| [(*flag).to_owned(), at.to_string()]));
        words.extend(["--data-dir", &data, "--tls-san", "127.0.0.1"].map(str::to_owned));
        words.extend(more.iter().cloned());
        let folder = folder.to_owned();
        let mut plane =
            Self { process: None, program: program.to_owned(), words, folder, role, http, diagnostics, grpc };
        plane.begin()?;
        Ok(plane)
    }

    /// Starts the process; returns once it serves.
    pub(super) fn begin(&mut self) -> Result<()> {
        let words: Vec<&str> = self.words.iter().map(String::as_str).collect();
        let mut process = Process::start(self.role, &self.program, &words, &self.folder)?;
        process.wait("to be ready", || is_ready(self.diagnostics).unwrap_or(false))?;
        self.process = Some(process);
        Ok(())
    }

    /// As a crash: nobody is told.
    pub(super) fn kill(&mut self) {
        self.process = None;
    }

    fn process(&self) -> Result<&Process> {
        self.process.as_ref().with_context(|| format!("the {} is down", self.role))
    }

    pub(super) fn look(&self) -> Result<Look> {
        Ok(Look { at: Instant::now(), cpu: self.process()?.cpu()? })
    }

    pub(super) fn since(&self, before: Look) -> Result<Used> {
        let now = self.look()?;
        let cpu = std::time::Duration::from_nanos(now.cpu.saturating_sub(before.cpu));
        let seconds = (now.at - before.at).as_secs_f64();
        Ok(Used { cpu_millis: cpu.as_secs_f64() * 1e3, seconds })
    }

    /// Since the process began.
    pub(super) fn in_all(&self) -> Result<Used> {
        self.since(Look { at: Instant::now(), cpu: 0 })
    }

    /// RSS in KiB.
    pub(super) fn rss(&self) -> Result<u64> {
        Ok(self.process()?.memory()?.rss)
    }

    pub(super) fn data(&self) -> PathBuf {
        self.folder.join(self.role)
    }

    pub(super) fn trust(&self) -> Result<ServerTrust> {
        Ok(ServerTrust::from_pem(&std::fs::read_to_string(self.data().join("ca.crt"))?)?)
    }

    pub(super) async fn put(&self, path: &str, body: &Value) -> Result<String> {
        self.ask("PUT", path, &body.to_string()).await
    }

    pub(super) async fn delete(&self, path: &str) -> Result<String> {
        self.ask("DELETE", path, "").await
    }

    pub(super) async fn zone_token(&self, zone: &str) -> Result<String> {
        let asked = serde_json::json!({"zone": zone, "scope": ["cp"], "validFor": "24h"});
        self.ask("POST", "/tokens/zone", &asked.to_string()).await
    }

    /// For any Dataplane of the service.
    pub(super) async fn dataplane_token(&self, service: &str) -> Result<String> {
        let tags = serde_json::json!({"kuma.io/service": [service]});
        let asked = serde_json::json!({"mesh": "default", "tags": tags, "validFor": "24h"});
        self.ask("POST", "/tokens/dataplane", &asked.to_string()).await
    }

    async fn ask(&self, method: &str, path: &str, body: &str) -> Result<String> {
        let token = std::fs::read_to_string(self.data().join("admin-token"))?;
        let stream = tokio::net::TcpStream::connect(self.http).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("host", "control-plane")
            .header("content-type", "application/json")
            .header("authorization", format!("Bearer {}", token.trim()))
            .body(Full::new(Bytes::from(body.to_owned())))?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let text = response.into_body().collect().await?.to_bytes();
        let text = String::from_utf8_lossy(&text).trim().to_owned();
        ensure!(status.is_success(), "{method} {path}: {status}: {text}");
        Ok(text)
    }
}

fn is_ready(diagnostics: SocketAddr) -> Result<bool> {
    let mut stream = TcpStream::connect(diagnostics)?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.write_all(b"GET /ready HTTP/1.1\r\nhost: control-plane\r\nconnection: close\r\n\r\n")?;
    let mut status = [0; 12];
    stream.read_exact(&mut status)?;
    Ok(&status == b"HTTP/1.1 200")
}

/// Ports that are free now.
fn free_addresses() -> Result<[SocketAddr; 4]> {
    let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    // All are held before the first is given back, so that no two are the same.
    let held = [bind()?, bind()?, bind()?, bind()?];
    let [one, two, three, four] = held.each_ref().map(TcpListener::local_addr);
    Ok([one?, two?, three?, four?])
}
