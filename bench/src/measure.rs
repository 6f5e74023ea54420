//! One turn of load on one stack.

use crate::cases::{Case, Way};
use crate::external;
use crate::load::{Outcome, Protocol};
use crate::peer::{Application, Stack};
use crate::process::{Memory, Process};
use anyhow::{Context, Result, bail};
use serde::Serialize;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Before a load at a rate is counted: connections are opened and pools filled, at that rate.
const RATE_WARM_UP_SECONDS: f64 = 0.5;

/// What one turn gave.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Turn {
    pub(crate) outcome: Outcome,
    /// Of both proxies, in all.
    pub(crate) cpu_seconds: f64,
    /// Of each proxy, under this load.
    pub(crate) memory: [Memory; 2],
    /// Of both proxies, in all; only where perf may count them.
    pub(crate) syscalls: Option<u64>,
}

/// A turn at full speed, or at a rate.
pub(crate) fn turn(stack: &Stack, case: &Case, seconds: f64, rate: Option<f64>) -> Result<Turn> {
    let pair = stack.on_the_way(case.way)?;
    let cpu = || -> Result<u64> { Ok(pair[0].cpu()? + pair[1].cpu()?) };
    let counter = Syscalls::begin(pair);
    let before = cpu()?;
    let mut load = begin(target(stack, case), &stack.external_ca, case, seconds, rate)?;
    let memory = memory_before_the_end(&mut load, pair, seconds)?;
    let outcome = outcome(load, stack.name, case)?;
    let used = cpu()?.saturating_sub(before);
    Ok(Turn {
        outcome,
        cpu_seconds: std::time::Duration::from_nanos(used).as_secs_f64(),
        memory,
        syscalls: counter.and_then(Syscalls::end),
    })
}

/// The same load at the application itself: what of the latencies at this rate is not the proxies'. Not for what leaves
/// the mesh, which speaks TLS to a proxy or to the host.
pub(crate) fn without_proxies(
    application: &Application,
    case: &Case,
    seconds: f64,
    rate: f64,
) -> Result<Option<Outcome>> {
    let target = match (case.way, case.protocol) {
        (Way::Inside, Protocol::Http1) => application.http1,
        (Way::Inside, Protocol::Http2 | Protocol::Grpc | Protocol::GrpcStream) => application.http2,
        _ => return Ok(None),
    };
    let load = begin(target, &application.external.ca, case, seconds, Some(rate))?;
    outcome(load, "no proxies", case).map(Some)
}

fn outcome(load: Child, name: &str, case: &Case) -> Result<Outcome> {
    let output = load.wait_with_output()?;
    if !output.status.success() {
        bail!("{name}, {}: {}", case.name, String::from_utf8_lossy(&output.stderr));
    }
    serde_json::from_slice(&output.stdout).context("what the load printed")
}

fn target(stack: &Stack, case: &Case) -> SocketAddr {
    match (case.way, case.protocol) {
        (Way::Out, Protocol::Https) => stack.entry.passed,
        (Way::Out, _) => stack.entry.originated,
        (Way::Inside, Protocol::Http2 | Protocol::Grpc | Protocol::GrpcStream) => stack.entry.http2,
        (Way::Inside, Protocol::Tcp) => stack.entry.tcp,
        (Way::Inside, Protocol::Http1 | Protocol::Http1Close | Protocol::Https | Protocol::Idle) => {
            stack.entry.http1
        }
    }
}

fn begin(target: SocketAddr, ca: &Path, case: &Case, seconds: f64, rate: Option<f64>) -> Result<Child> {
    let protocol = clap::ValueEnum::to_possible_value(&case.protocol).context("a protocol without a name")?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["load", "--target", &target.to_string(), "--protocol", protocol.get_name()]);
    command.args(["--connections", &case.connections.to_string(), "--streams", &case.streams.to_string()]);
    command.args(["--request-bytes", &case.request_bytes.to_string()]);
    command.args(["--response-bytes", &case.response_bytes.to_string(), "--seconds", &seconds.to_string()]);
    if case.protocol == Protocol::Https {
        command.arg("--ca").arg(ca);
    }
    match (case.way, case.protocol) {
        (Way::Out, Protocol::Https) => drop(command.args(["--host", external::PASSED])),
        (Way::Out, _) => drop(command.args(["--host", external::ORIGINATED])),
        (Way::Inside, _) => {}
    }
    if let Some(rate) = rate {
        command.args(["--rate", &rate.to_string(), "--warm-up", &RATE_WARM_UP_SECONDS.to_string()]);
    }
    Ok(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?)
}

/// The memory when nine tenths of the counted time are over, or somewhat sooner.
fn memory_before_the_end(load: &mut Child, pair: [&Process; 2], seconds: f64) -> Result<[Memory; 2]> {
    pause(seconds * 0.9);
    if load.try_wait()?.is_some_and(|status| !status.success()) {
        return Ok([Memory::default(); 2]);
    }
    Ok([pair[0].memory()?, pair[1].memory()?])
}

#[expect(clippy::disallowed_methods, reason = "a load of fixed length is what is measured")]
pub(crate) fn pause(seconds: f64) {
    std::thread::sleep(std::time::Duration::from_secs_f64(seconds));
}

/// perf, counting what the pair asks the kernel.
struct Syscalls(Child);

impl Syscalls {
    fn begin(pair: [&Process; 2]) -> Option<Self> {
        let pids = format!("{},{}", pair[0].pid(), pair[1].pid());
        let mut command = Command::new("perf");
        command.args(["stat", "-x", ";", "-e", "raw_syscalls:sys_enter", "-p", &pids]);
        command.stdout(Stdio::null()).stderr(Stdio::piped()).stdin(Stdio::null()).spawn().ok().map(Self)
    }

    fn end(self) -> Option<u64> {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.0.id()).ok()?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).ok()?;
        let output = self.0.wait_with_output().ok()?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let line = text.lines().find(|line| line.contains("sys_enter"))?;
        line.split(';').next()?.trim().parse().ok()
    }
}
