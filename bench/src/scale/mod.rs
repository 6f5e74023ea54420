//! What the control planes cost as a mesh grows: `make bench-scale`.
//!
//! The control planes are real processes; thousands of simulated proxies, and a hundred simulated zones, speak the real
//! protocol to them from this process: TLS, tokens, registration, certificates, both streams, resumption. They carry no
//! traffic. CPU is the control plane's own, by `/proc`; times are seen by the simulated peers, which share its cores.

mod changes;
mod held;
mod peer;
mod plane;
mod proxies;
mod report;
mod zones;

#[cfg(test)]
mod tests;

use crate::measure::pause;
use anyhow::{Context, Result, bail, ensure};
use changes::{MESH_WIDE, PROXY_CHANGES, ZONE_CHANGES};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use peer::Simulated;
use plane::{Plane, Used};
use proxies::{Fleet, Shape};
use report::{Arrival, Rest, Results, Storm, ZoneResults, ZonesResults};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use zones::Zones;

/// What `scale` is told.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Options {
    /// The program `meridian`
    #[arg(long, value_name = "FILE", default_value = "target/release/meridian")]
    meridian: PathBuf,
    /// Simulated sidecars of one zone; 0 leaves this part out
    #[arg(long, default_value_t = 1_000)]
    proxies: usize,
    /// Services that they are, in turn
    #[arg(long, default_value_t = 1_000)]
    services: usize,
    /// Services that each sidecar names as reachable; 0: it names none, and is told of all
    #[arg(long, default_value_t = 0)]
    reachable: usize,
    /// Simulated zones of one global control plane; 0 leaves this part out
    #[arg(long, default_value_t = 100)]
    zones: usize,
    /// Changes of each kind, one after the other
    #[arg(long, default_value_t = 10)]
    changes: usize,
    /// Seconds of rest whose CPU is measured
    #[arg(long, default_value_t = 20.0)]
    rest: f64,
    /// Seconds of grace after changes, whose reports and acknowledgements still go up (once a second at most); and how long
    /// the control plane must use little CPU until it counts as settled
    #[arg(long, default_value_t = 2.5)]
    settle: f64,
    /// Where results.json and results.md go
    #[arg(long, value_name = "DIR", default_value = "target/bench-scale")]
    out: PathBuf,
}

/// A socket a peer, and another one for the control plane's process, which inherits the limit.
const OPEN_FILES: u64 = 1 << 16;
/// How long all peers may take to be in sync; what takes longer is no result.
const PATIENCE: Duration = Duration::from_mins(10);
/// How long one change may take.
const CHANGE: Duration = Duration::from_mins(2);
/// Between two looks at how far the peers are: the times of a storm are as fine as this.
const LOOK: Duration = Duration::from_millis(50);
/// A control plane that uses less of a core than this, and than what its peers may take at rest, has settled.
const SETTLED: f64 = 0.2;
/// Of a core, for each peer: heartbeats are half of it.
const SETTLED_FOR_EACH: f64 = 60e-6;
/// The share of peers whose time is shown beside the last one's.
const MOST: f64 = 0.99;

pub(crate) fn run(options: &Options) -> Result<()> {
    std::fs::create_dir_all(&options.out)?;
    let results = measure(options)?;
    report::write(&results, &options.out)
}

fn measure(options: &Options) -> Result<Results> {
    ensure!(options.proxies == 0 || options.services > 0, "--services must be at least 1");
    ensure!(
        options.proxies == 0 || options.reachable <= options.services,
        "--reachable must be at most --services ({})",
        options.services
    );
    ensure!(options.changes > 0, "--changes must be at least 1");
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES.min(most), most)?;
    let program = options
        .meridian
        .canonicalize()
        .with_context(|| format!("{}: run `make release`", options.meridian.display()))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let zone = if options.proxies > 0 { Some(Box::pin(zone(options, &program)).await?) } else { None };
        let zones = if options.zones > 0 { Some(Box::pin(zones(options, &program)).await?) } else { None };
        Ok(Results::new(zone, zones))
    })
}

/// One zone with all its proxies.
async fn zone(options: &Options, program: &Path) -> Result<ZoneResults> {
    let folder = tempfile::tempdir()?;
    let global = Plane::global(program, folder.path())?;
    let mut zone = Plane::zone(program, folder.path(), &global).await?;
    let shape = Shape {
        proxies: options.proxies,
        services: options.services.min(options.proxies),
        reachable: options.reachable,
    };
    let fleet = Fleet::new(shape, &global, &zone).await?;
    let mut rests = vec![rest("no proxy", options.rest, &zone, &global)?];
    let empty = zone.rss()?;

    say(&format!("{} proxies connect", shape.proxies));
    let (began, before) = (Instant::now(), zone.look()?);
    fleet.connect()?;
    let mut first = in_sync("first contact", fleet.peers(), began).await?;
    until("every proxy has its certificate", || fleet.proxies.iter().filter(|it| !it.is_certified()).count())
        .await?;
    first.settled = settle(&zone, options.proxies, options.settle, began)?;
    first.cpu_seconds = zone.since(before)?.cpu_millis / 1e3;
    let received = fleet.common.received();
    rests.push(rest("all proxies", options.rest, &zone, &global)?);
    let full = zone.rss()?;

    let at_rest = rests.last().map(|rest| (rest.cpu, rest.global_cpu)).unwrap_or_default();
    let mut arrivals = Vec::new();
    for (name, change) in PROXY_CHANGES {
        say(name);
        let mut arrival = Arrival::new(name);
        let (zone_before, global_before) = (zone.look()?, global.look()?);
        for round in 0..options.changes {
            let expected = change(&fleet, &global, round).await?;
            let common = &fleet.common;
            let missing = || expected.saturating_sub(common.arrived());
            until_within(CHANGE, &format!("all have: {name}"), missing, Duration::from_millis(1)).await?;
            arrival.add(common.arrivals());
        }
        pause(options.settle);
        let each = |used: Used, rest: f64| (used.cpu_millis - rest * used.seconds) / float(options.changes);
        arrival.cpu_millis = each(zone.since(zone_before)?, at_rest.0);
        arrival.global_cpu_millis = each(global.since(global_before)?, at_rest.1);
        arrivals.push(arrival);
    }
    global.delete(MESH_WIDE).await?;
    pause(options.settle);

    say("the zone control plane restarts");
    let received_before = fleet.common.received();
    zone.kill();
    let began = Instant::now();
    zone.begin()?;
    let mut storm = in_sync("restart of the zone control plane", fleet.peers(), began).await?;
    storm.settled = settle(&zone, options.proxies, options.settle, began)?;
    storm.cpu_seconds = zone.in_all()?.cpu_millis / 1e3;
    storm.sent_again = fleet.common.received().0 - received_before.0;
    rests.push(rest("after the restart", options.rest, &zone, &global)?);
    let again = zone.rss()?;
    Ok(ZoneResults {
        proxies: shape.proxies,
        services: shape.services,
        reachable: shape.reachable,
        resources_each: float(received.0) / float(shape.proxies),
        bytes_each: float(received.1) / float(shape.proxies),
        rss_empty_kib: empty,
        rss_full_kib: full,
        rss_restarted_kib: again,
        rests,
        storms: vec![first, storm],
        arrivals,
    })
}

/// One global control plane with all its zones.
async fn zones(options: &Options, program: &Path) -> Result<ZonesResults> {
    let folder = tempfile::tempdir()?;
    let mut global = Plane::global(program, folder.path())?;
    let zones = Zones::new(options.zones, &global).await?;
    let empty = global.rss()?;
    say(&format!("{} zones connect", options.zones));
    let (began, before) = (Instant::now(), global.look()?);
    zones.connect()?;
    let mut first = in_sync("first contact", zones.peers(), began).await?;
    first.settled = settle(&global, options.zones, options.settle, began)?;
    first.cpu_seconds = global.since(before)?.cpu_millis / 1e3;
    let mut rests = vec![rest_of(&global, "all zones", options.rest)?];
    let full = global.rss()?;
    let at_rest = rests.last().map(|rest| rest.cpu).unwrap_or_default();
    let mut arrivals = Vec::new();
    for (name, change) in ZONE_CHANGES {
        say(name);
        let mut arrival = Arrival::new(name);
        let before = global.look()?;
        for round in 0..options.changes {
            let expected = change(&zones, options.zones, &global, round).await?;
            let missing = || expected.saturating_sub(zones.common.arrived());
            until_within(CHANGE, &format!("all have: {name}"), missing, Duration::from_millis(1)).await?;
            arrival.add(zones.common.arrivals());
        }
        pause(options.settle);
        let used = global.since(before)?;
        arrival.cpu_millis = (used.cpu_millis - at_rest * used.seconds) / float(options.changes);
        arrivals.push(arrival);
    }
    say("the global control plane restarts");
    global.kill();
    let began = Instant::now();
    global.begin()?;
    let mut storm = in_sync("restart of the global control plane", zones.peers(), began).await?;
    storm.settled = settle(&global, options.zones, options.settle, began)?;
    storm.cpu_seconds = global.in_all()?.cpu_millis / 1e3;
    rests.push(rest_of(&global, "after the restart", options.rest)?);
    Ok(ZonesResults {
        zones: options.zones,
        services_each: zones::SERVICES,
        rss_empty_kib: empty,
        rss_full_kib: full,
        rests,
        storms: vec![first, storm],
        arrivals,
    })
}

/// Waits until the control plane has little to do, twice in a row: what one part has done may only begin to occupy another. The
/// answer is how many seconds that was after `began`.
fn settle(plane: &Plane, peers: usize, seconds: f64, began: Instant) -> Result<f64> {
    let little = SETTLED + SETTLED_FOR_EACH * float(peers);
    let mut quiet_since = None;
    loop {
        let (passed, before) = (began.elapsed(), plane.look()?);
        pause(seconds);
        let used = plane.since(before)?;
        if used.cpu_millis >= little * used.seconds * 1e3 {
            quiet_since = None;
        } else if let Some(since) = quiet_since.replace(passed) {
            return Ok(since.as_secs_f64());
        }
        ensure!(passed < PATIENCE, "the control plane is still busy after {passed:?}");
    }
}

/// CPU of both while nothing happens.
fn rest(name: &'static str, seconds: f64, zone: &Plane, global: &Plane) -> Result<Rest> {
    let (zone_before, global_before) = (zone.look()?, global.look()?);
    pause(seconds);
    let per_second = |used: Used| used.cpu_millis / used.seconds;
    Ok(Rest {
        name,
        cpu: per_second(zone.since(zone_before)?),
        global_cpu: per_second(global.since(global_before)?),
    })
}

fn rest_of(plane: &Plane, name: &'static str, seconds: f64) -> Result<Rest> {
    let before = plane.look()?;
    pause(seconds);
    let used = plane.since(before)?;
    Ok(Rest { name, cpu: used.cpu_millis / used.seconds, global_cpu: 0.0 })
}

/// Waits until all are in sync by streams that began since.
async fn in_sync<'a>(
    name: &'static str,
    peers: impl Iterator<Item = &'a Simulated>,
    since: Instant,
) -> Result<Storm> {
    let peers: Vec<&Simulated> = peers.collect();
    let mut storm = Storm::new(name);
    loop {
        let done = peers.iter().filter(|peer| peer.is_in_sync(since)).count();
        let passed = since.elapsed();
        let share = float(done) / float(peers.len());
        for (seconds, of) in [(&mut storm.half, 0.5), (&mut storm.most, MOST), (&mut storm.all, 1.0)] {
            if share >= of && *seconds == 0.0 {
                *seconds = passed.as_secs_f64();
            }
        }
        if done == peers.len() {
            return Ok(storm);
        }
        if passed > PATIENCE {
            let trouble = peers.iter().find_map(|peer| peer.trouble());
            bail!("{name}: {done} of {} are in sync after {passed:?}; one says: {trouble:?}", peers.len());
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn until(what: &str, missing: impl Fn() -> usize) -> Result<()> {
    until_within(PATIENCE, what, missing, LOOK).await
}

async fn until_within(
    patience: Duration,
    what: &str,
    missing: impl Fn() -> usize,
    look: Duration,
) -> Result<()> {
    let began = Instant::now();
    loop {
        match missing() {
            0 => return Ok(()),
            left => ensure!(began.elapsed() < patience, "not in {patience:?}: {what}: {left} are missing"),
        }
        tokio::time::sleep(look).await;
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn float(count: usize) -> f64 {
    count as f64
}

fn say(text: &str) {
    use std::io::Write;
    drop(writeln!(std::io::stderr(), "{text}"));
}
