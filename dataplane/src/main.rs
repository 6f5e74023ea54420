//! The sidecar as a program of its own: no store, no API, no kube client.

use std::process::ExitCode;

/// Meridian's sidecar
#[derive(clap::Parser)]
#[command(name = "meridian-dataplane", version)]
struct Arguments {
    #[command(flatten)]
    config: meridian_dataplane::Config,
}

fn main() -> ExitCode {
    meridian_proxy::control::program(|arguments: Arguments| meridian_dataplane::run(arguments.config))
}
