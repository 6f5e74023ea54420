//! The figures, as a table and as JSON.

use super::float;
use crate::report::Machine;
use anyhow::Result;
use serde::Serialize;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Results {
    machine: Machine,
    version: &'static str,
    pub(super) zone: Option<ZoneResults>,
    pub(super) zones: Option<ZonesResults>,
}

/// One zone with simulated proxies.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ZoneResults {
    pub(super) proxies: usize,
    pub(super) services: usize,
    /// 0: all.
    pub(super) reachable: usize,
    /// What a proxy was told until it was in sync: resources, and bytes of their bodies.
    pub(super) resources_each: f64,
    pub(super) bytes_each: f64,
    /// Of the zone control plane: without a proxy, with all, with all after its restart.
    pub(super) rss_empty_kib: u64,
    pub(super) rss_full_kib: u64,
    pub(super) rss_restarted_kib: u64,
    pub(super) rests: Vec<Rest>,
    pub(super) storms: Vec<Storm>,
    pub(super) arrivals: Vec<Arrival>,
}

/// One global control plane with simulated zones.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ZonesResults {
    pub(super) zones: usize,
    pub(super) services_each: usize,
    pub(super) rss_empty_kib: u64,
    pub(super) rss_full_kib: u64,
    pub(super) rests: Vec<Rest>,
    pub(super) storms: Vec<Storm>,
    pub(super) arrivals: Vec<Arrival>,
}

/// CPU at rest, in milliseconds a second.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Rest {
    pub(super) name: &'static str,
    pub(super) cpu: f64,
    /// Of the global control plane, beside a zone's.
    pub(super) global_cpu: f64,
}

/// All peers come at once.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Storm {
    pub(super) name: &'static str,
    /// Seconds until half, 99 % and all are in sync, both ways.
    pub(super) half: f64,
    pub(super) most: f64,
    pub(super) all: f64,
    /// Seconds until the control plane had little to do any more.
    pub(super) settled: f64,
    /// Of the control plane; after a restart all that its process used since.
    pub(super) cpu_seconds: f64,
    /// Resources that peers which held everything were sent anew.
    pub(super) sent_again: usize,
}

/// How one kind of change spreads.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Arrival {
    pub(super) name: &'static str,
    /// Peers that each change reaches.
    pub(super) reaches: usize,
    /// From the request (or the proxy's report) to the peers: of each change the time of half, of 99 % and of all of them,
    /// milliseconds; the median change.
    pub(super) half: f64,
    pub(super) most: f64,
    pub(super) all: f64,
    /// A change, without what the control plane uses at rest.
    pub(super) cpu_millis: f64,
    pub(super) global_cpu_millis: f64,
    #[serde(skip)]
    rounds: Vec<[f64; 3]>,
}

impl Storm {
    pub(super) fn new(name: &'static str) -> Self {
        Self { name, half: 0.0, most: 0.0, all: 0.0, settled: 0.0, cpu_seconds: 0.0, sent_again: 0 }
    }
}

impl Arrival {
    pub(super) fn new(name: &'static str) -> Self {
        Self {
            name,
            reaches: 0,
            half: 0.0,
            most: 0.0,
            all: 0.0,
            cpu_millis: 0.0,
            global_cpu_millis: 0.0,
            rounds: Vec::new(),
        }
    }

    /// One change: how long it took to each peer.
    pub(super) fn add(&mut self, mut times: Vec<Duration>) {
        times.sort_unstable();
        self.reaches = times.len();
        let at = |hundredths: usize| {
            // The time by which so many hundredths of the peers, rounded up, have it.
            let place = (times.len() * hundredths).div_ceil(100).saturating_sub(1);
            times.get(place).map_or(0.0, |time| time.as_secs_f64() * 1e3)
        };
        self.rounds.push([at(50), at(99), at(100)]);
        [self.half, self.most, self.all] = [0, 1, 2].map(|column| median(&self.rounds, column));
    }
}

fn median(rounds: &[[f64; 3]], column: usize) -> f64 {
    let mut values: Vec<f64> = rounds.iter().filter_map(|round| round.get(column).copied()).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

impl Results {
    pub(super) fn new(zone: Option<ZoneResults>, zones: Option<ZonesResults>) -> Self {
        Self { machine: Machine::here(), version: env!("CARGO_PKG_VERSION"), zone, zones }
    }

    fn markdown(&self) -> String {
        let Machine { cpus, model, kernel } = &self.machine;
        let mut text = format!("{cpus} CPUs ({model}), Linux {kernel}; Meridian {}\n", self.version);
        if let Some(zone) = &self.zone {
            zone.markdown(&mut text);
        }
        if let Some(zones) = &self.zones {
            zones.markdown(&mut text);
        }
        text
    }
}

impl ZoneResults {
    /// KiB of the zone control plane a proxy.
    pub(super) fn memory_each(&self) -> f64 {
        kib(self.rss_full_kib.saturating_sub(self.rss_empty_kib)) / float(self.proxies)
    }

    fn markdown(&self, text: &mut String) {
        let reach = match self.reachable {
            0 => "each learns of all".to_owned(),
            some => format!("each learns of {some}"),
        };
        let _ = writeln!(
            text,
            "\n### A zone of {} proxies and {} services; {reach}\n",
            self.proxies, self.services
        );
        let _ = writeln!(
            text,
            "A proxy was told {:.0} resources, {:.0} KiB. RSS of the zone control plane: {:.1} MiB without proxies, {:.1} MiB with all \
             (**{:.1} KiB a proxy**), {:.1} MiB after its restart.\n",
            self.resources_each,
            self.bytes_each / 1024.0,
            kib(self.rss_empty_kib) / 1024.0,
            kib(self.rss_full_kib) / 1024.0,
            self.memory_each(),
            kib(self.rss_restarted_kib) / 1024.0
        );
        tables(text, &self.rests, &self.storms, &self.arrivals, true);
    }
}

impl ZonesResults {
    fn markdown(&self, text: &mut String) {
        let _ = writeln!(
            text,
            "\n### A global control plane of {} zones, {} services each\n\nRSS: {:.1} MiB enrolled, {:.1} MiB with all connected.\n",
            self.zones,
            self.services_each,
            kib(self.rss_empty_kib) / 1024.0,
            kib(self.rss_full_kib) / 1024.0
        );
        tables(text, &self.rests, &self.storms, &self.arrivals, false);
    }
}

fn tables(text: &mut String, rests: &[Rest], storms: &[Storm], arrivals: &[Arrival], beside_global: bool) {
    let (head, line) = if beside_global { (" global CPU |", "---|") } else { ("", "") };
    let global =
        |value: f64, unit: &str| if beside_global { format!(" {value:.2} {unit} |") } else { String::new() };
    let _ = writeln!(
        text,
        "| a change | reaches | 50 % | 99 % | all | CPU a change |{head}\n|---|---|---|---|---|---|{line}"
    );
    for it in arrivals {
        let _ = writeln!(
            text,
            "| {} | {} | {:.1} ms | {:.1} ms | {:.1} ms | {:.2} ms |{}",
            it.name,
            it.reaches,
            it.half,
            it.most,
            it.all,
            it.cpu_millis,
            global(it.global_cpu_millis, "ms")
        );
    }
    let _ = writeln!(
        text,
        "\n| all at once | 50 % in sync | 99 % | all | at rest | CPU | sent again |\n|---|---|---|---|---|---|---|"
    );
    for it in storms {
        let _ = writeln!(
            text,
            "| {} | {:.2} s | {:.2} s | {:.2} s | {:.2} s | {:.2} s | {} |",
            it.name, it.half, it.most, it.all, it.settled, it.cpu_seconds, it.sent_again
        );
    }
    let _ = writeln!(text, "\n| at rest | CPU |{head}\n|---|---|{line}");
    for it in rests {
        let _ = writeln!(text, "| {} | {:.2} ms/s |{}", it.name, it.cpu, global(it.global_cpu, "ms/s"));
    }
}

#[expect(clippy::cast_precision_loss, reason = "sizes are far below 2^52")]
fn kib(kib: u64) -> f64 {
    kib as f64
}

pub(super) fn write(results: &Results, folder: &Path) -> Result<()> {
    fs::write(folder.join("results.json"), serde_json::to_string_pretty(results)?)?;
    let text = results.markdown();
    fs::write(folder.join("results.md"), &text)?;
    use std::io::Write;
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}
