//! The ingress as a program of its own.

use std::process::ExitCode;

/// Meridian's zone ingress
#[derive(clap::Parser)]
#[command(name = "meridian-zone-ingress", version)]
struct Arguments {
    #[command(flatten)]
    config: meridian_zone_ingress::Config,
}

fn main() -> ExitCode {
    meridian_proxy::control::program(|arguments: Arguments| meridian_zone_ingress::run(arguments.config))
}
