//! `meridian demo`: two zones in network namespaces, an allowlist, and packets that are delivered or refused.
//!
//! Everything is real: separate processes, a Postgres where this machine has one, hosts with addresses of their own.
//! There is no variant on loopback, since it would prove nothing: what is refused there could not have left anyway.

mod propagation;
mod script;
mod unprivileged;

use anyhow::Result;
use meridian_testkit::mesh::{Backing, Mesh};
use meridian_testkit::postgres;
use tokio::signal::unix::{SignalKind, signal};

/// Run two zones, an allowlist and an "internet" on this machine, and show what passes
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Demo {
    /// Check each step and exit: 0 if all held
    #[arg(long)]
    check: bool,
    /// Measure the time from the API's answer to enforcement in the other zone, over this many changes
    #[arg(long, value_name = "CHANGES", num_args = 0..=1, default_missing_value = "200")]
    bench_propagation: Option<usize>,
    /// Keep resources in SQLite even where Postgres is installed
    #[arg(long)]
    sqlite: bool,
}

/// Runs the demo; the exit code says whether every step came out as it should.
pub(crate) async fn run(demo: Demo) -> Result<()> {
    unprivileged::enter_user_namespace_if_needed()?;
    let backing =
        if !demo.sqlite && postgres::binaries().is_some() { Backing::Postgres } else { Backing::Sqlite };
    println!("Meridian demo: zones east and west, each host a network namespace.");
    match backing {
        Backing::Postgres => println!("Resources are kept in a throw-away Postgres."),
        Backing::Sqlite => {
            println!("Resources are kept in SQLite (no Postgres programs found, or --sqlite).")
        }
    }
    let mut mesh = Mesh::start("demo", backing, &["east", "west"]).await?;
    if let Some(changes) = demo.bench_propagation {
        return propagation::run(&mut mesh, changes).await;
    }
    let stage = script::play(&mut mesh).await?;
    if demo.check {
        println!("\nEvery step came out as it should.");
        return Ok(());
    }
    stage.hints(&mesh);
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut terminated = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = interrupted.recv() => {}
        _ = terminated.recv() => {}
    }
    println!("\nEnding the processes and taking the hosts down.");
    Ok(())
}
