//! `meridian`: what users and operators do to a mesh, and every process of it as a subcommand.

mod arguments;
mod capture;
mod client;
mod command;
mod connection;
#[cfg(feature = "demo")]
mod demo;
mod failure;
mod output;
#[cfg(test)]
mod reference;
mod roles;
mod settings;
#[cfg(test)]
mod tests;

use crate::arguments::{Arguments, Command};
use crate::command::{apply, config, delete, denials, explain, generate, get, inspect, operate};
use crate::failure::{Exit, Failure, Result};
use clap::Parser;
use std::future::Future;
use std::process::ExitCode;

fn main() -> ExitCode {
    // For libraries that ask for the process default; ours name the provider.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return usage(&error),
    };
    match run(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::note(&failure.to_string());
            ExitCode::from(failure.exit as u8)
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Apply(apply) => block_on(apply::run(apply)),
        Command::Get(get) => block_on(get::run(get)),
        Command::Delete(delete) => block_on(delete::run(delete)),
        Command::Inspect(inspect) => block_on(inspect::run(inspect)),
        Command::Explain(explain) => block_on(explain::run(explain)),
        Command::Denials(denials) => block_on(denials::run(denials)),
        Command::Generate(generate) => block_on(generate::run(generate)),
        Command::Zone(zone) => block_on(operate::zone(zone)),
        Command::Mesh(mesh) => block_on(operate::mesh(mesh)),
        Command::Config(config) => config::run(config),
        Command::Install(install) => capture::install(install),
        Command::Uninstall(uninstall) => capture::uninstall(uninstall),
        Command::GlobalCp(role) => roles::global_cp(*role),
        Command::ZoneCp(config) => roles::zone_cp(*config),
        Command::Dataplane(config) => roles::proxy(|| meridian_dataplane::run(*config)),
        Command::ZoneIngress(config) => roles::proxy(|| meridian_zone_ingress::run(*config)),
        #[cfg(feature = "demo")]
        Command::Demo(demo) => Ok(roles::runtime()?.block_on(demo::run(demo))?),
        Command::ZoneEgress(config) => roles::proxy(|| meridian_zone_egress::run(*config)),
    }
}

/// Commands of users wait for one answer after the other: one thread is enough.
fn block_on(command: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Failure::new(Exit::Failed, format!("can't start: {error}")))?.block_on(command)
}

/// Help and versions are answers; everything else that clap says is a mistake in the flags.
fn usage(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    if error.use_stderr() { ExitCode::from(Exit::Usage as u8) } else { ExitCode::SUCCESS }
}
