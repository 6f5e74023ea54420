//! The stacks that are compared: two sidecars each, between the same load and the same application.

mod envoy;
mod haproxy;
mod identities;
mod kind;
mod meridian;
mod nginx;

pub(crate) use envoy::Between;
pub(crate) use kind::{Kind, Peer};
pub(crate) use meridian::INBOUND;

use crate::cases::{Case, Way};
use crate::external::External;
use crate::process::Process;
use anyhow::{Context, Result, ensure};
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// For a byte of the application, before another connection is tried.
const LONGEST_READ: Duration = Duration::from_secs(1);

/// Where a stack's client side listens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) http1: SocketAddr,
    pub(crate) http2: SocketAddr,
    pub(crate) tcp: SocketAddr,
    /// HTTP to the host outside, to which the egress speaks TLS.
    pub(crate) originated: SocketAddr,
    /// Bytes to it: the TLS is the application's.
    pub(crate) passed: SocketAddr,
}

/// Where the application listens.
#[derive(Clone, Debug)]
pub(crate) struct Application {
    pub(crate) http1: SocketAddr,
    pub(crate) http2: SocketAddr,
    pub(crate) tcp: SocketAddr,
    /// The host outside of the mesh.
    pub(crate) https: SocketAddr,
    pub(crate) external: External,
}

/// A stack that runs.
pub(crate) struct Stack {
    pub(crate) name: &'static str,
    pub(crate) version: String,
    pub(crate) entry: Entry,
    /// The caller's sidecar, and the application's: what is measured.
    pub(crate) pair: [Process; 2],
    /// Where traffic leaves the mesh; not in each of a peer's modes.
    egress: Option<Process>,
    pub(crate) external_ca: PathBuf,
    /// Why it has no part in a case.
    pub(crate) left_out: fn(&Case) -> Option<&'static str>,
    /// What else it needs, and does not work while requests pass.
    _others: Vec<Process>,
}

impl Stack {
    /// The caller's sidecar knows `services` more than it calls. `policies` are documents beside those that every stack has.
    pub(crate) fn meridian(
        programs: &Path,
        folder: &Path,
        application: &Application,
        services: usize,
        policies: &str,
    ) -> Result<Self> {
        meridian::start(programs, folder, application, services, policies)
    }

    pub(crate) fn envoy(
        program: &Path,
        folder: &Path,
        application: &Application,
        between: Between,
        services: usize,
    ) -> Result<Self> {
        envoy::start(program, folder, application, between, services)
    }

    /// Waits until bytes of the application come through. HTTP is left alone: its first request is measured.
    pub(crate) fn reaching(mut self) -> Result<Self> {
        let at = self.entry.tcp;
        self.pair[0].wait("to reach the application", || {
            let read = || -> std::io::Result<()> {
                let mut stream = TcpStream::connect(at)?;
                stream.set_read_timeout(Some(LONGEST_READ))?;
                stream.read_exact(&mut [0])
            };
            read().is_ok()
        })?;
        Ok(self)
    }

    /// The two proxies that a request passes.
    pub(crate) fn on_the_way(&self, way: Way) -> Result<[&Process; 2]> {
        let [client, server] = &self.pair;
        match way {
            Way::Inside => Ok([client, server]),
            Way::Out => Ok([client, self.egress.as_ref().context("a stack without an egress")?]),
        }
    }
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// Five ports from the first.
fn entry(first: u16) -> Entry {
    Entry {
        http1: local(first),
        http2: local(first + 1),
        tcp: local(first + 2),
        originated: local(first + 3),
        passed: local(first + 4),
    }
}

/// Where a peer's programs listen: each on the ports that follow its first.
#[derive(Clone, Copy, Debug)]
struct Ports {
    /// Five, those of an `Entry`.
    client: u16,
    /// HTTP/1.1, HTTP/2 and TCP.
    server: u16,
    /// Two: TLS originated, and passed on.
    egress: u16,
}

impl Ports {
    /// All of them are below `first + 20`.
    fn from(first: u16) -> Self {
        Self { client: first, server: first + 10, egress: first + 15 }
    }

    fn first(&self, role: Role) -> u16 {
        match role {
            Role::Client => self.client,
            Role::Server => self.server,
            Role::Egress => self.egress,
        }
    }
}

/// What a program of a peer is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// The caller's sidecar.
    Client,
    /// The application's.
    Server,
    Egress,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
            Self::Egress => "egress",
        }
    }
}

/// Starts a peer's programs, those first that others call, each when the one before it listens.
fn pair(
    ports: &Ports,
    has_egress: bool,
    begin: impl Fn(Role) -> Result<Process>,
) -> Result<([Process; 2], Option<Process>)> {
    let listening = |role: Role| -> Result<Process> {
        let mut process = begin(role)?;
        process.wait_listening(local(ports.first(role)))?;
        Ok(process)
    };
    let server = listening(Role::Server)?;
    let egress = has_egress.then(|| listening(Role::Egress)).transpose()?;
    Ok(([listening(Role::Client)?, server], egress))
}

/// Asks a program what it makes of a configuration.
fn says_that_it_is_well(program: &Path, words: &[&str]) -> Result<()> {
    let output = Command::new(program).args(words).output();
    let output = output.with_context(|| format!("starting {}", program.display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{} {}:\n{said}", program.display(), words.join(" "));
    Ok(())
}

/// What a program says of its version when asked by `flag`, in one line.
fn version(program: &Path, flag: &str) -> Result<String> {
    let output = Command::new(program).arg(flag).output();
    let output = output.with_context(|| format!("starting {}", program.display()))?;
    // nginx tells it to those who read errors.
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    let line = text.lines().next().unwrap_or_default();
    Ok(line.rsplit_once("version:").map_or(line, |(_, version)| version).trim().to_owned())
}

#[cfg(test)]
mod fixtures {
    use super::identities::{Identities, Identity};
    use super::{Application, local};
    use crate::external::External;

    pub(super) fn identities() -> Identities {
        let identity = |name: &str| Identity {
            cert: format!("/{name}.pem").into(),
            key: format!("/{name}.pem.key").into(),
        };
        Identities {
            ca: "/ca.pem".into(),
            client: identity("client"),
            server: identity("server"),
            egress: identity("egress"),
        }
    }

    pub(super) fn application() -> Application {
        let external = External { ca: "/out-ca.pem".into(), cert: "/out.pem".into(), key: "/out.key".into() };
        Application { http1: local(1), http2: local(2), tcp: local(3), https: local(4), external }
    }
}
