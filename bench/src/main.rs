//! What a call through the mesh costs, beside peers: `make bench`.
//!
//! All stacks run at the same time and only one is loaded at a time, in turns (A B A B ...): what else happens on the
//! machine meets all alike. The load and the application behind the proxies are programs of their own (this one's other
//! commands), so that their CPU is not counted as the proxies'. Numbers of one machine mean little; ratios of one run do.

mod cases;
mod conformance;
mod external;
mod load;
mod measure;
mod peer;
mod process;
mod report;
mod run;
mod scale;
mod torture;
mod upstream;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "meridian-bench", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compare Meridian's sidecars with Envoy's, HAProxy's or nginx's
    Run(Options),
    /// Send odd HTTP to Meridian's sidecars and to a peer's, and tell what each makes of it
    Torture(torture::Options),
    /// Run third-party suites (h2spec, gRPC's interop client and server) against a pair of sidecars
    Conformance(conformance::Options),
    /// What the control planes cost: simulated proxies and zones at real ones
    Scale(scale::Options),
    /// Load one address: what `run` starts as a program of its own; prints JSON
    Load(load::Options),
    /// The application behind the proxies: HTTP/1.1, HTTP/2 (gRPC), TCP and HTTPS on four ports
    Upstream(upstream::Options),
}

/// What `run` is told.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Options {
    /// Folder with Meridian's programs
    #[arg(long, value_name = "DIR", default_value = "target/release")]
    bin: PathBuf,
    /// Envoy's program: it runs in both of its modes. Without it there must be a --peer
    #[arg(long, value_name = "FILE")]
    envoy: Option<PathBuf>,
    /// Another proxy to compare with; once for each. What it is, its file's name tells, or --peer-kind
    #[arg(long = "peer", value_name = "PATH")]
    peers: Vec<PathBuf>,
    /// What each --peer is, in their order, for files of other names
    #[arg(long = "peer-kind", value_name = "KIND", value_enum)]
    kinds: Vec<peer::Kind>,
    /// Seconds of load in each turn
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// Turns of each case and stack
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Only cases whose name contains this
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Where results.json, results.md and results.svg go
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    out: PathBuf,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Run(options) => run::run(&options),
        Command::Torture(options) => torture::run(&options),
        Command::Conformance(options) => conformance::run(&options),
        Command::Scale(options) => scale::run(&options),
        Command::Load(options) => load::run(&options),
        Command::Upstream(options) => upstream::run(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&error);
            ExitCode::FAILURE
        }
    }
}

fn tell(error: &anyhow::Error) {
    use std::io::Write;
    drop(writeln!(std::io::stderr(), "{error:#}"));
}

/// Everything of one program runs on one thread: it shall not take more of the machine than it must.
fn on_one_thread<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, future)
}
