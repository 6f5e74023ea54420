//! A mesh that does nothing costs next to nothing.

use crate::policies::EVERYTHING;
use anyhow::{Context, Result, ensure};
use meridian_testkit::mesh::{Backing, Mesh, Workload};
use meridian_testkit::wait::until;
use std::cell::Cell;
use std::time::{Duration, Instant};

/// How long the rest is looked at, and the CPU time that a process may use meanwhile.
const REST: Duration = Duration::from_secs(60);
const CPU_MILLIS: u64 = 60;

#[tokio::test]
async fn at_rest_the_database_is_left_alone_and_processes_sleep() -> Result<()> {
    let mut mesh = Mesh::start("rest", Backing::Postgres, &["east", "west"]).await?;
    mesh.apply(EVERYTHING).await?;
    let mut sidecars = Vec::new();
    for zone in ["east", "west"] {
        for number in 0..3 {
            sidecars.push(mesh.workload(zone, &Workload::http(&format!("app-{number}"), "app")).await?);
        }
    }
    let postgres = mesh.postgres.as_ref().context("no Postgres")?;
    let transactions = || async {
        let sql = "SELECT xact_commit FROM pg_stat_database WHERE datname = 'meridian'";
        postgres.psql("postgres", sql).await?.trim().parse::<u64>().context("not a number")
    };
    // What the start has caused comes to its end first: no transaction for five seconds.
    let before = settled(&transactions).await?;
    let used: Vec<u64> =
        sidecars.iter().filter_map(|proxy| Some(proxy.process.as_ref()?.usage().ok()?.1)).collect();
    tokio::time::sleep(REST).await;
    let reads = transactions().await? - before;
    println!("transactions in {REST:?} at rest: {reads}");
    ensure!(reads <= 6, "{reads} transactions reached the database at rest");
    for (proxy, before) in sidecars.iter().zip(used) {
        let (rss, after) = proxy.process.as_ref().context("a sidecar died")?.usage()?;
        println!("{}: {rss} KiB resident, {} ms of CPU", proxy.name, after - before);
        ensure!(after - before <= CPU_MILLIS, "{} used {} ms of CPU at rest", proxy.name, after - before);
    }
    Ok(())
}

/// The count once it has not changed for five seconds.
async fn settled<F: Future<Output = Result<u64>>>(count: impl Fn() -> F) -> Result<u64> {
    let last = Cell::new((count().await?, Instant::now()));
    until("the start to be over", Duration::from_secs(60), || async {
        let now = count().await?;
        let (before, since) = last.get();
        if now != before {
            last.set((now, Instant::now()));
        }
        ensure!(now == before && since.elapsed() > Duration::from_secs(5), "{now} transactions and counting");
        Ok(now)
    })
    .await
}
