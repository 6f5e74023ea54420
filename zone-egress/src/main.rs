//! The egress as a program of its own.

use std::process::ExitCode;

/// Meridian's zone egress
#[derive(clap::Parser)]
#[command(name = "meridian-zone-egress", version)]
struct Arguments {
    #[command(flatten)]
    config: meridian_zone_egress::Config,
}

fn main() -> ExitCode {
    meridian_proxy::control::program(|arguments: Arguments| meridian_zone_egress::run(arguments.config))
}
