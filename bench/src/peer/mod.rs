//! The stacks that are compared: two sidecars each, between the same load and the same application.

mod envoy;
mod meridian;

pub(crate) use envoy::Between;
pub(crate) use meridian::INBOUND;

use crate::process::Process;
use anyhow::Result;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

/// Where a stack's client side listens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) http1: SocketAddr,
    pub(crate) http2: SocketAddr,
    pub(crate) tcp: SocketAddr,
}

/// Where the application listens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Application {
    pub(crate) http1: SocketAddr,
    pub(crate) http2: SocketAddr,
    pub(crate) tcp: SocketAddr,
}

/// A stack that runs.
pub(crate) struct Stack {
    pub(crate) name: &'static str,
    pub(crate) version: String,
    pub(crate) entry: Entry,
    /// The caller's sidecar, and the application's: what is measured.
    pub(crate) pair: [Process; 2],
    /// What else it needs, and does not work while requests pass.
    _others: Vec<Process>,
}

impl Stack {
    /// `policies` are documents beside those that every stack has.
    pub(crate) fn meridian(
        programs: &Path,
        folder: &Path,
        application: Application,
        policies: &str,
    ) -> Result<Self> {
        meridian::start(programs, folder, application, policies)
    }

    pub(crate) fn envoy(
        program: &Path,
        folder: &Path,
        application: Application,
        between: Between,
    ) -> Result<Self> {
        envoy::start(program, folder, application, between)
    }
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// Three ports from the first.
fn entry(first: u16) -> Entry {
    Entry { http1: local(first), http2: local(first + 1), tcp: local(first + 2) }
}

/// What a program says of its version, in one line.
fn version(program: &Path) -> Result<String> {
    let output = std::process::Command::new(program).arg("--version").output()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let line = text.lines().next().unwrap_or_default();
    Ok(line.rsplit_once("version:").map_or(line, |(_, version)| version).trim().to_owned())
}
