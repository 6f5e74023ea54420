//! Meridian's own stack: both control planes and two sidecars, as a user would run them, without capture.

use super::{Application, Stack, entry, local, version};
use crate::external;
use crate::process::Process;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

const GLOBAL: Ports = Ports { http: 26_100, https: 26_101, grpc: 26_102, diagnostics: 26_103 };
const ZONE: Ports = Ports { http: 26_110, https: 26_111, grpc: 26_112, diagnostics: 26_113 };
/// The first of the client side's listeners.
const ENTRY: u16 = 26_121;
/// The first of the server side's: that of HTTP/1.1.
pub(crate) const INBOUND: u16 = 26_131;
const READINESS: [u16; 2] = [26_151, 26_152];
const EGRESS: u16 = 26_141;
const EGRESS_READINESS: u16 = 26_153;
/// Nothing listens there.
const FIRST_OTHER: usize = 30_000;

struct Ports {
    http: u16,
    https: u16,
    /// Zones, or proxies.
    grpc: u16,
    diagnostics: u16,
}

/// Who may call whom, and what Envoy is told as well: retries, timeouts, limits, outlier detection.
const POLICIES: &str = "\
type: MeshTrafficPermission
mesh: default
name: bench
spec:
  targetRef: {kind: Mesh}
  rules:
  - default: {allow: [{spiffeID: {type: Exact, value: 'spiffe://default/bench-client'}}]}
---
type: MeshRetry
mesh: default
name: bench
spec:
  targetRef: {kind: Mesh}
  to:
  - targetRef: {kind: Mesh}
    default:
      http: {numRetries: 3, retryOn: [GatewayError, ConnectFailure, RefusedStream], backOff: {baseInterval: 25ms, maxInterval: 250ms}}
      grpc: {numRetries: 3, retryOn: [Unavailable]}
---
type: MeshTimeout
mesh: default
name: bench
spec:
  targetRef: {kind: Mesh}
  to:
  - targetRef: {kind: Mesh}
    default: {connectionTimeout: 5s, idleTimeout: 1h, http: {requestTimeout: 15s}}
---
type: MeshCircuitBreaker
mesh: default
name: bench
spec:
  targetRef: {kind: Mesh}
  to:
  - targetRef: {kind: Mesh}
    default:
      connectionLimits: {maxConnections: 65536, maxPendingRequests: 65536, maxRequests: 65536, maxRetries: 65536}
      outlierDetection: {interval: 10s, baseEjectionTime: 30s, maxEjectionPercent: 50, detectors: {totalFailures: {consecutive: 5}}}
";

pub(super) fn start(
    programs: &Path,
    folder: &Path,
    application: &Application,
    services: usize,
    policies: &str,
) -> Result<Stack> {
    let folder = &folder.join("meridian");
    fs::create_dir_all(folder)?;
    let programs =
        programs.canonicalize().with_context(|| format!("{}: run `make release`", programs.display()))?;
    let start =
        Start { meridian: programs.join("meridian"), dataplane: programs.join("meridian-dataplane"), folder };
    let egress = programs.join("meridian-zone-egress");
    let version = version(&start.meridian, "--version")?;
    let global =
        start.control_plane("global-cp", &GLOBAL, &["--sync-listen", &local(GLOBAL.grpc).to_string()])?;
    let token = start.meridian(&[
        "generate",
        "zone-token",
        "--zone",
        "bench",
        "--scope",
        "cp",
        "--valid-for",
        "24h",
    ])?;
    let token = start.write("zone-token", &token)?;
    let mut zone = start.control_plane(
        "zone-cp",
        &ZONE,
        &[
            "--zone",
            "bench",
            "--global-address",
            &format!("https://{}", local(GLOBAL.grpc)),
            "--ca-cert-file",
            &start.folder.join("global-cp/ca.crt").display().to_string(),
            "--zone-token-file",
            &token.display().to_string(),
            "--proxy-listen",
            &local(ZONE.grpc).to_string(),
        ],
    )?;
    let policies = format!("{POLICIES}{policies}---\n{}", external(application)?);
    let policies = start.write("policies.yaml", &policies)?;
    start.meridian(&["apply", "-f", &policies.display().to_string()])?;
    zone.wait("to have an administrator", || {
        start.administrate("zone-cp", ZONE.http, &["get", "dataplanes", "--mesh", "default"]).is_ok()
    })?;
    let egress = start.egress(&egress)?;
    let server = start.sidecar("bench-server", &server(application), READINESS[1])?;
    // A sidecar is ready when it has been told of all; the others are told as it goes.
    start.others(services)?;
    let client = start.sidecar("bench-client", &client(), READINESS[0])?;
    Ok(Stack {
        name: "meridian",
        version,
        entry: entry(ENTRY),
        pair: [client, server],
        egress: Some(egress),
        external_ca: application.external.ca.clone(),
        left_out: |_| None,
        _others: vec![global, zone],
    })
}

/// The host outside of the mesh, once with TLS that the egress originates.
fn external(application: &Application) -> Result<String> {
    let ca = serde_json::Value::from(fs::read_to_string(&application.external.ca)?);
    let (ip, at, name) = (application.https.ip(), application.https, external::NAME);
    let service = |service: &str, protocol: &str, tls: &str| {
        format!(
            "type: ExternalService\nmesh: default\nname: {service}\ntags: {{kuma.io/service: {service}, kuma.io/protocol: {protocol}}}\n\
             networking:\n  address: '{at}'\n  allowedAddresses: [{ip}/32]\n  disableHostDNSEntry: true\n{tls}"
        )
    };
    let tls = format!("  tls: {{enabled: true, serverName: {name}, caCert: {{inlineString: {ca}}}}}\n");
    Ok(format!("{}---\n{}", service("bench-originated", "http", &tls), service("bench-passed", "tcp", "")))
}

fn client() -> String {
    let outbound = |offset: u16, service: &str| {
        format!(
            "  - port: {}\n    address: 127.0.0.1\n    tags: {{kuma.io/service: {service}}}\n",
            ENTRY + offset
        )
    };
    format!(
        "type: Dataplane\nmesh: default\nname: bench-client\nnetworking:\n  address: 127.0.0.1\n  inbound:\n  - port: {}\n    servicePort: 9\n    \
         tags: {{kuma.io/service: bench-client, kuma.io/protocol: tcp}}\n  outbound:\n{}{}{}{}{}",
        INBOUND + 9,
        outbound(0, "bench-http1"),
        outbound(1, "bench-http2"),
        outbound(2, "bench-tcp"),
        outbound(3, "bench-originated"),
        outbound(4, "bench-passed")
    )
}

fn server(application: &Application) -> String {
    let inbound = |offset: u16, to: SocketAddr, service: &str, protocol: &str| {
        format!(
            "  - port: {}\n    serviceAddress: {}\n    servicePort: {}\n    tags: {{kuma.io/service: {service}, kuma.io/protocol: {protocol}}}\n",
            INBOUND + offset,
            to.ip(),
            to.port()
        )
    };
    format!(
        "type: Dataplane\nmesh: default\nname: bench-server\nnetworking:\n  address: 127.0.0.1\n  inbound:\n{}{}{}",
        inbound(0, application.http1, "bench-http1", "http"),
        inbound(1, application.http2, "bench-http2", "grpc"),
        inbound(2, application.tcp, "bench-tcp", "tcp")
    )
}

fn wait_ready(process: &mut Process, port: u16) -> Result<()> {
    let ready = format!("http://127.0.0.1:{port}/ready");
    process.wait("to be ready", || {
        let asked = Command::new("curl").args(["-sf", "-o", "/dev/null", "--max-time", "1", &ready]).status();
        asked.is_ok_and(|status| status.success())
    })
}

struct Start<'a> {
    meridian: PathBuf,
    dataplane: PathBuf,
    folder: &'a Path,
}

impl Start<'_> {
    fn control_plane(&self, role: &str, ports: &Ports, words: &[&str]) -> Result<Process> {
        let data = self.folder.join(role).display().to_string();
        let (http, https, diagnostics) = (
            local(ports.http).to_string(),
            local(ports.https).to_string(),
            local(ports.diagnostics).to_string(),
        );
        let own = [
            role,
            "--data-dir",
            &data,
            "--api-http",
            &http,
            "--api-https",
            &https,
            "--diagnostics",
            &diagnostics,
            "--tls-san",
            "127.0.0.1",
        ];
        let mut process = Process::start(role, &self.meridian, &[&own, words].concat(), self.folder)?;
        process.wait_listening(local(ports.grpc))?;
        process.wait_listening(local(ports.http))?;
        Ok(process)
    }

    fn sidecar(&self, name: &str, resource: &str, readiness_port: u16) -> Result<Process> {
        let token = self.meridian(&[
            "generate",
            "dataplane-token",
            "--mesh",
            "default",
            "--name",
            name,
            "--valid-for",
            "24h",
        ])?;
        let token = self.write(&format!("{name}-token"), &token)?.display().to_string();
        let file = self.write(&format!("{name}.yaml"), resource)?.display().to_string();
        let ca = self.folder.join("zone-cp/ca.crt").display().to_string();
        let data = self.folder.join(name).display().to_string();
        let (address, readiness) = (format!("https://{}", local(ZONE.grpc)), readiness_port.to_string());
        let words = [
            "--cp-address",
            &address,
            "--ca-cert-file",
            &ca,
            "--dataplane-token-file",
            &token,
            "--dataplane-file",
            &file,
            "--data-dir",
            &data,
            "--readiness-port",
            &readiness,
            "--workers",
            "1",
        ];
        let mut process = Process::start(name, &self.dataplane, &words, self.folder)?;
        wait_ready(&mut process, readiness_port)?;
        Ok(process)
    }

    fn egress(&self, program: &Path) -> Result<Process> {
        let words = ["generate", "zone-token", "--zone", "bench", "--scope", "egress", "--valid-for", "24h"];
        let token = self.write("egress-token", &self.meridian(&words)?)?.display().to_string();
        let ca = self.folder.join("zone-cp/ca.crt").display().to_string();
        let data = self.folder.join("egress").display().to_string();
        let address = format!("https://{}", local(ZONE.grpc));
        let (port, readiness) = (EGRESS.to_string(), EGRESS_READINESS.to_string());
        let words = [
            "--cp-address",
            &address,
            "--ca-cert-file",
            &ca,
            "--token-file",
            &token,
            "--data-dir",
            &data,
            "--name",
            "bench-egress",
            "--address",
            "127.0.0.1",
            "--port",
            &port,
            "--readiness-port",
            &readiness,
            "--workers",
            "1",
        ];
        let mut process = Process::start("egress", program, &words, self.folder)?;
        wait_ready(&mut process, EGRESS_READINESS)?;
        Ok(process)
    }

    /// Services that nobody calls: what a sidecar is told of the rest of a mesh. One Dataplane has them all, since a
    /// zone compiles for each Dataplane that it knows, and its work is not what is measured.
    fn others(&self, services: usize) -> Result<()> {
        if services == 0 {
            return Ok(());
        }
        let inbounds = (0..services).map(|number| {
            format!(
                "  - port: {}\n    tags: {{kuma.io/service: other-{number}, kuma.io/protocol: http}}\n",
                FIRST_OTHER + number
            )
        });
        let others =
            "type: Dataplane\nmesh: default\nname: others\nnetworking:\n  address: 127.0.0.1\n  inbound:\n";
        let document = [others.to_owned()].into_iter().chain(inbounds).collect::<String>();
        let file = self.write("others.yaml", &document)?;
        let words = ["apply", "-f", &file.display().to_string()];
        self.administrate("zone-cp", ZONE.http, &words).map(drop)
    }

    /// `meridian` as the administrator at global.
    fn meridian(&self, words: &[&str]) -> Result<String> {
        self.administrate("global-cp", GLOBAL.http, words)
    }

    /// `meridian` as the administrator whom a control plane has made.
    fn administrate(&self, role: &str, port: u16, words: &[&str]) -> Result<String> {
        let token = self.folder.join(role).join("admin-token").display().to_string();
        let address = format!("http://{}", local(port));
        let output = Command::new(&self.meridian)
            .args(words)
            .args(["--address", &address, "--token-file", &token])
            .output()?;
        ensure!(
            output.status.success(),
            "meridian {}: {}",
            words.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.folder.join(name);
        fs::write(&path, text)?;
        Ok(path)
    }
}
