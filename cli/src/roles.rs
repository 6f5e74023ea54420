//! Every process of a mesh as a subcommand. What they do is in their crates; here are runtimes and signals.

use crate::failure::{Exit, Failure, Result};
use crate::output;
use meridian_telemetry::LogOptions;
use std::future::Future;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[derive(Clone, Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct GlobalCp {
    #[command(flatten)]
    config: meridian_global_cp::Config,
    #[command(subcommand)]
    command: Option<GlobalCommand>,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum GlobalCommand {
    /// Make another admin token, from the store and its key (with SQLite: stop the control plane first)
    AdminToken(meridian_global_cp::Config),
    /// Say that the store was restored from a backup: zones then ask before they take its deletions
    Restored(meridian_global_cp::Config),
    /// Replace the key that seals secrets at rest
    RotateKey(meridian_global_cp::Config),
}

pub(crate) fn global_cp(role: GlobalCp) -> Result<()> {
    log()?;
    let runtime = runtime()?;
    match role.command {
        None => runtime.block_on(until_signal(|shutdown| meridian_global_cp::run(role.config, shutdown))),
        Some(GlobalCommand::AdminToken(config)) => {
            output::print(&runtime.block_on(meridian_global_cp::admin_token(config))?);
            Ok(())
        }
        Some(GlobalCommand::Restored(config)) => {
            let store = runtime.block_on(meridian_global_cp::restored(config))?;
            output::print(&format!(
                "The store is now {store}. Start the control plane; then, at each zone: meridian zone accept-global"
            ));
            Ok(())
        }
        Some(GlobalCommand::RotateKey(config)) => {
            let key = runtime.block_on(meridian_global_cp::rotate_key(config))?;
            output::print(&format!("Secrets are now sealed with key {key}"));
            Ok(())
        }
    }
}

pub(crate) fn zone_cp(config: meridian_zone_cp::Config) -> Result<()> {
    log()?;
    runtime()?.block_on(until_signal(|shutdown| meridian_zone_cp::run(config, shutdown)))
}

/// A proxy makes its own threads and waits for signals itself.
pub(crate) fn proxy(run: impl FnOnce() -> anyhow::Result<()>) -> Result<()> {
    log()?;
    Ok(run()?)
}

fn log() -> Result<()> {
    LogOptions::from_env()
        .and_then(|options| meridian_telemetry::log::init(&options))
        .map_err(|error| Failure::usage(error.to_string()))
}

pub(crate) fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Failed, format!("can't start threads: {error}")))
}

/// Runs until it ends by itself, or winds down on SIGTERM or SIGINT; a second signal ends it at once.
async fn until_signal<F: Future<Output = anyhow::Result<()>>>(
    role: impl FnOnce(CancellationToken) -> F,
) -> Result<()> {
    let shutdown = CancellationToken::new();
    let no_signals = |error| Failure::new(Exit::Failed, format!("can't wait for signals: {error}"));
    let mut terminated = signal(SignalKind::terminate()).map_err(no_signals)?;
    let mut interrupted = signal(SignalKind::interrupt()).map_err(no_signals)?;
    let mut running = std::pin::pin!(role(shutdown.clone()));
    loop {
        let asked_before = shutdown.is_cancelled();
        tokio::select! {
            done = &mut running => return Ok(done?),
            _ = terminated.recv() => {}
            _ = interrupted.recv() => {}
        }
        if asked_before {
            return Err(Failure::new(Exit::Failed, "ended before it had wound down"));
        }
        tracing::info!("winding down");
        shutdown.cancel();
    }
}
