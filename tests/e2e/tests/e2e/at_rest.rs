//! A mesh that does nothing costs next to nothing.

use crate::policies::EVERYTHING;
use anyhow::{Context, Result, bail, ensure};
use meridian_testkit::mesh::{Backing, Mesh, Proxy, Workload};
use meridian_testkit::postgres::Postgres;
use meridian_testkit::process::Process;
use meridian_testkit::wait::until;
use std::cell::Cell;
use std::time::{Duration, Instant};

/// How long the rest is looked at, and what a process may use meanwhile: CPU time (twice as much unoptimised), and times that
/// one of its threads wakes.
const REST: Duration = Duration::from_secs(60);
const CPU_MILLIS: u64 = if cfg!(debug_assertions) { 120 } else { 60 };
const WAKEUPS: u64 = 700;
const LOOKS: usize = 3;
/// One every 15 s, and nothing else.
const LIVENESS_QUERY: &str = "SELECT store_id, revision, floor, data_key FROM meridian.meta";
const LIVENESS_QUERIES: usize = 5;

#[tokio::test]
async fn at_rest_the_database_is_left_alone_and_processes_sleep() -> Result<()> {
    let mut mesh = Mesh::start("rest", Backing::Postgres, &["east", "west"]).await?;
    mesh.apply(EVERYTHING).await?;
    let mut sidecars = Vec::new();
    for zone in ["east", "west"] {
        for number in 0..10 {
            sidecars.push(mesh.workload(zone, &Workload::http(&format!("app-{number}"), "app")).await?);
        }
    }
    let postgres = mesh.postgres.as_ref().context("no Postgres")?;
    for sql in ["ALTER SYSTEM SET log_statement = 'all'", "SELECT pg_reload_conf()"] {
        postgres.psql("postgres", sql).await?;
    }
    settled(postgres).await?;

    // Whatever else the machine does makes work look dearer, never cheaper: the quietest look counts.
    let processes = processes(&mesh, &sidecars)?;
    let mut hungry = Vec::new();
    for _ in 0..LOOKS {
        hungry = look(postgres, &processes).await?;
        if hungry.is_empty() {
            return Ok(());
        }
    }
    bail!("at rest: {hungry:?}")
}

/// One look at the rest. Nothing but liveness queries may reach the database; who used too much is named.
async fn look(postgres: &Postgres, processes: &[(String, &Process)]) -> Result<Vec<String>> {
    let logged = postgres.log().len();
    let before = usages(processes)?;
    // The rest itself is what is measured.
    tokio::time::sleep(REST).await;
    let after = usages(processes)?;
    let log = postgres.log();
    let statements = statements(log.get(logged..).context("the log was cut")?);

    println!("statements in {REST:?} at rest: {statements:#?}");
    ensure!(!statements.is_empty(), "not even the liveness query was logged");
    ensure!(
        statements.len() <= LIVENESS_QUERIES && statements.iter().all(|said| said == LIVENESS_QUERY),
        "this reached the database at rest: {statements:#?}"
    );
    let mut hungry = Vec::new();
    for (((name, _), before), after) in processes.iter().zip(before).zip(after) {
        let (millis, wakeups) = (after.millis - before.millis, after.wakeups - before.wakeups);
        println!("{name}: {} KiB resident, {millis} ms of CPU, {wakeups} wakeups", after.rss);
        if millis > CPU_MILLIS || wakeups > WAKEUPS {
            hungry.push(format!("{name} used {millis} ms of CPU and woke {wakeups} times"));
        }
    }
    Ok(hungry)
}

/// Every process of the mesh, with what it is.
fn processes<'a>(mesh: &'a Mesh, sidecars: &'a [Proxy]) -> Result<Vec<(String, &'a Process)>> {
    let mut all = vec![("global".to_owned(), mesh.global.process.as_ref())];
    for zone in mesh.zones.values() {
        all.push((format!("{} control plane", zone.name), zone.control_plane.process.as_ref()));
        for proxy in [&zone.ingress, &zone.egress].into_iter().flatten() {
            all.push((format!("{} {}", zone.name, proxy.name), proxy.process.as_ref()));
        }
    }
    all.extend(sidecars.iter().map(|sidecar| (sidecar.host.name().to_owned(), sidecar.process.as_ref())));
    all.into_iter()
        .map(|(name, process)| Ok((name.clone(), process.with_context(|| format!("{name} is down"))?)))
        .collect()
}

/// What a process has used so far, and holds now.
struct Usage {
    /// KiB.
    rss: u64,
    millis: u64,
    wakeups: u64,
}

fn usages(processes: &[(String, &Process)]) -> Result<Vec<Usage>> {
    let usage = |process: &Process| {
        let (rss, millis) = process.usage()?;
        Ok(Usage { rss, millis, wakeups: process.wakeups()? })
    };
    processes.iter().map(|(_, process)| usage(process)).collect()
}

/// Waits until what the start has caused is over: seven seconds in which at most a liveness query came.
async fn settled(postgres: &Postgres) -> Result<()> {
    let others = || statements(&postgres.log()).iter().filter(|said| *said != LIVENESS_QUERY).count();
    let last = Cell::new((others(), Instant::now()));
    until("the start to be over", Duration::from_secs(60), || async {
        let (before, since) = last.get();
        let now = others();
        if now != before {
            last.set((now, Instant::now()));
        }
        ensure!(now == before && since.elapsed() > Duration::from_secs(7), "{now} statements and counting");
        Ok(())
    })
    .await
}

/// The statements in a log of Postgres, without how they were sent.
fn statements(log: &str) -> Vec<String> {
    let statement = |line: &str| {
        let (_, said) = line.split_once(" LOG:  ")?;
        let said = said
            .strip_prefix("statement: ")
            .or_else(|| said.strip_prefix("execute ")?.split_once(": ").map(|(_, sql)| sql))?;
        Some(said.to_owned())
    };
    log.lines().filter_map(statement).collect()
}
