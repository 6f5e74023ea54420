//! Third-party suites against a pair of sidecars: `make conformance`.
//!
//! h2spec speaks to the caller's sidecar as an application does, before an application of HTTP/1.1 and one of gRPC, and to
//! the application's sidecar. It has no certificate to show, so there a MeshTLS takes plaintext: the HTTP/2 server is the same
//! one that stands behind mTLS. gRPC's interop client calls gRPC's interop server through both. A case that fails must be
//! among the exceptions, each with its reason; an exception whose case passes, or that is no case, fails the run as well.

use crate::external::External;
use crate::peer::{Application, Entry, INBOUND, Stack};
use crate::process::Process;
use crate::run::upstream;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

/// For one call of a suite's program, in seconds: h2spec waits 2 s for what does not come, in each of about 150 cases.
const SUITE_SECONDS: &str = "400";
/// Five fields of so many bytes are more than the sidecars' frames of 32 KiB, compressed too: h2spec means to exceed them.
const LONG_FIELD: &str = "8000";
/// An answer with a body, which some of h2spec's cases wait for.
const PATH: &str = "/bytes/65";
/// Cases that want a request beyond those that may be open at a time to be refused. If one of them is answered before the last
/// is sent, there is none beyond: they are asked so many times, and pass by passing once.
const RACES: [&str; 1] = ["http2/5.1.2/1"];
const ATTEMPTS: usize = 5;
/// The interop client's own balancer, which reads what ORCA says.
const ORCA_BALANCER: &str = r#"{"loadBalancingConfig":[{"test_backend_metrics_load_balancer":{}}]}"#;
/// What gRPC's interop test descriptions ask of clients, but what needs credentials or a client of several addresses.
const INTEROP: [&str; 19] = [
    "empty_unary",
    "large_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "timeout_on_sleeping_server",
    "cancel_after_begin",
    "cancel_after_first_response",
    "status_code_and_message",
    "special_status_message",
    "custom_metadata",
    "unimplemented_method",
    "unimplemented_service",
    "pick_first_unary",
    "orca_per_rpc",
    "orca_oob",
    "rpc_soak",
    "channel_soak",
];
/// The application's sidecar takes callers without a certificate: h2spec can't show one.
const PLAINTEXT: &str = "\
---
type: MeshTLS
mesh: default
name: conformance
spec:
  targetRef: {kind: Mesh}
  from:
  - targetRef: {kind: Mesh}
    default: {mode: Permissive}
";

/// What `conformance` is told.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Options {
    /// Folder with Meridian's programs
    #[arg(long, value_name = "DIR", default_value = "target/debug")]
    bin: PathBuf,
    /// Folder with `h2spec`, and with gRPC's interop `client` and `server`
    #[arg(long, value_name = "DIR", default_value = "target/conformance/bin")]
    suites: PathBuf,
    /// Cases that may fail, a line each: the case, then the reason
    #[arg(long, value_name = "FILE", default_value = "bench/conformance-exceptions.txt")]
    exceptions: PathBuf,
}

/// One case and what came of it.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    /// `h2spec/<where>/<section>/<number>` or `grpc/<case>`.
    case: String,
    /// What the suite says of it; `None`: it passed.
    failure: Option<String>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let exceptions = fs::read_to_string(&options.exceptions)
        .with_context(|| format!("reading {}", options.exceptions.display()))?;
    let exceptions = exceptions_of(&exceptions)?;
    let folder = tempfile::tempdir()?;
    let at = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let external = External::make(folder.path())?;
    let own =
        Application { http1: at(26_001), http2: at(26_005), tcp: at(26_003), https: at(26_004), external };
    let _upstream = upstream(&own, folder.path())?;
    // HTTP/2 is asked of gRPC's own server.
    let application = Application { http2: at(26_002), ..own };
    let port = application.http2.port().to_string();
    let mut server =
        Process::start("interop-server", &options.suites.join("server"), &["-port", &port], folder.path())?;
    server.wait_listening(application.http2)?;
    let stack = Stack::meridian(&options.bin, folder.path(), &application, 0, PLAINTEXT)?;
    let Entry { http1, http2, .. } = stack.entry;
    let mut outcomes = Vec::new();
    for (place, address) in [("outbound", http1), ("outbound-grpc", http2), ("inbound", at(INBOUND))] {
        outcomes.extend(h2spec(&options.suites, place, address, folder.path())?);
    }
    for case in INTEROP {
        outcomes.push(interop(&options.suites, case, http2)?);
    }
    let passed = outcomes.iter().filter(|outcome| outcome.failure.is_none()).count();
    say(&format!("{} cases, {passed} passed, {} exceptions", outcomes.len(), exceptions.len()));
    let wrong = judge(&outcomes, &exceptions);
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

fn h2spec(suites: &Path, place: &str, address: SocketAddr, folder: &Path) -> Result<Vec<Outcome>> {
    let report = ask_h2spec(suites, place, address, folder, None)?;
    let mut outcomes = outcomes_of(place, &report)?;
    for race in RACES {
        let name = format!("h2spec/{place}/{race}");
        let Some(outcome) = outcomes.iter_mut().find(|outcome| outcome.case == name) else { continue };
        for _ in 1..ATTEMPTS {
            if outcome.failure.is_none() {
                break;
            }
            // The report has this case alone.
            let report = ask_h2spec(suites, place, address, folder, Some(race))?;
            if outcomes_of(place, &report)?.iter().all(|again| again.failure.is_none()) {
                outcome.failure = None;
            }
        }
    }
    Ok(outcomes)
}

/// What h2spec reports of all its cases, or of one.
fn ask_h2spec(
    suites: &Path,
    place: &str,
    address: SocketAddr,
    folder: &Path,
    case: Option<&str>,
) -> Result<String> {
    let report = folder.join(format!("h2spec-{place}.xml"));
    let output = Command::new("timeout")
        .arg(SUITE_SECONDS)
        .arg(suites.join("h2spec"))
        .args(["--strict", "--max-header-length", LONG_FIELD, "--path", PATH])
        .args(["--host", &address.ip().to_string(), "--port", &address.port().to_string()])
        .arg("--junit-report")
        .arg(&report)
        .args(case)
        .output()?;
    fs::read_to_string(&report).with_context(|| {
        format!("h2spec ({place}) left no report:\n{}", String::from_utf8_lossy(&output.stderr))
    })
}

/// The cases of h2spec's report, numbered within their sections as h2spec does. What was skipped did not pass.
fn outcomes_of(place: &str, report: &str) -> Result<Vec<Outcome>> {
    let document = roxmltree::Document::parse(report)?;
    let suites = document.descendants().filter(|node| node.has_tag_name("testsuite"));
    let mut outcomes = Vec::new();
    for suite in suites {
        let cases = suite.children().filter(|node| node.has_tag_name("testcase"));
        for (number, case) in (1..).zip(cases) {
            let section = case.attribute("package").context("a case without a section")?;
            let title = case.attribute("classname").unwrap_or_default();
            let failure = case.children().find(roxmltree::Node::is_element).map(|bad| {
                let text: Vec<&str> = bad.text().unwrap_or_default().split_whitespace().collect();
                format!("{title}: {}: {}", bad.tag_name().name(), text.join(" "))
            });
            outcomes.push(Outcome { case: format!("h2spec/{place}/{section}/{number}"), failure });
        }
    }
    ensure!(!outcomes.is_empty(), "h2spec ({place}) ran no case");
    Ok(outcomes)
}

fn interop(suites: &Path, case: &str, address: SocketAddr) -> Result<Outcome> {
    let mut client = Command::new("timeout");
    client
        .arg(SUITE_SECONDS)
        .arg(suites.join("client"))
        .args(["-server_host", &address.ip().to_string(), "-server_port", &address.port().to_string()])
        .args(["-test_case", case]);
    if case.starts_with("orca_") {
        client.args(["-service_config_json", ORCA_BALANCER]);
    }
    let output = client.output()?;
    let failure = (!output.status.success())
        .then(|| format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()));
    Ok(Outcome { case: format!("grpc/{case}"), failure })
}

/// Reads lines of a case and its reason; empty ones and those that begin with `#` say nothing.
fn exceptions_of(text: &str) -> Result<BTreeMap<&str, &str>> {
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| line.split_once(' ').with_context(|| format!("an exception without a reason: {line}")))
        .collect()
}

/// What is not as it should be, in words.
fn judge(outcomes: &[Outcome], exceptions: &BTreeMap<&str, &str>) -> Vec<String> {
    let unexpected = outcomes
        .iter()
        .filter(|outcome| !exceptions.contains_key(outcome.case.as_str()))
        .filter_map(|outcome| Some(format!("{} failed: {}", outcome.case, outcome.failure.as_ref()?)));
    let stale =
        exceptions.keys().filter_map(|case| match outcomes.iter().find(|outcome| outcome.case == **case) {
            None => Some(format!("{case} is an exception, but no case")),
            Some(outcome) if outcome.failure.is_none() => {
                Some(format!("{case} passes: take it out of the exceptions"))
            }
            Some(_) => None,
        });
    unexpected.chain(stale).collect()
}

fn say(text: &str) {
    use std::io::Write;
    drop(writeln!(std::io::stderr(), "{text}"));
}

#[cfg(test)]
mod tests {
    use super::{Outcome, exceptions_of, judge, outcomes_of};

    const REPORT: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<testsuites>
  <testsuite name="5.1. Stream States" package="http2/5.1" id="5.1" tests="2" skipped="0" failures="1" errors="0">
    <testcase package="http2/5.1" classname="idle: Sends a DATA frame" time="0.1"></testcase>
    <testcase package="http2/5.1" classname="closed: Sends a DATA frame" time="2.1">
      <failure>GOAWAY Frame
Timeout</failure>
    </testcase>
  </testsuite>
  <testsuite name="7. Error Codes" package="http2/7" id="7" tests="2" skipped="1" failures="0" errors="1">
    <testcase package="http2/7" classname="Sends a GOAWAY frame" time="0.1"><error>EOF</error></testcase>
    <testcase package="http2/7" classname="Sends nothing" time="0"><skipped></skipped></testcase>
  </testsuite>
</testsuites>"#;

    fn outcome(case: &str, failure: Option<&str>) -> Outcome {
        Outcome { case: case.to_owned(), failure: failure.map(str::to_owned) }
    }

    #[test]
    fn a_report_is_read_case_by_case() {
        let expected = [
            outcome("h2spec/inbound/http2/5.1/1", None),
            outcome(
                "h2spec/inbound/http2/5.1/2",
                Some("closed: Sends a DATA frame: failure: GOAWAY Frame Timeout"),
            ),
            outcome("h2spec/inbound/http2/7/1", Some("Sends a GOAWAY frame: error: EOF")),
            outcome("h2spec/inbound/http2/7/2", Some("Sends nothing: skipped: ")),
        ];
        assert_eq!(outcomes_of("inbound", REPORT).unwrap(), expected);
        assert!(outcomes_of("inbound", "<testsuites/>").is_err(), "a report of nothing");
    }

    #[test]
    fn only_expected_failures_are_right() {
        let outcomes = [outcome("a", None), outcome("b", Some("why")), outcome("c", Some("why"))];
        let judged = |exceptions: &str| judge(&outcomes, &exceptions_of(exceptions).unwrap());
        assert_eq!(judged("# known\n\nb since\nc since"), [""; 0]);
        assert_eq!(judged("b since"), ["c failed: why"]);
        assert_eq!(
            judged("a since\nb since\nc since\nd since"),
            ["a passes: take it out of the exceptions", "d is an exception, but no case"]
        );
        assert!(exceptions_of("b").is_err(), "an exception without a reason");
    }
}
