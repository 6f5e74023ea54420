//! Figures of all turns, as a table, JSON and a picture: medians with their range, and the ratio of ours (which is the last
//! of all stacks) to each peer's.

use crate::cases::Case;
use crate::load::{Outcome, Protocol};
use crate::measure::Turn;
use crate::peer::Stack;
use crate::process::Memory;
use anyhow::Result;
use serde::Serialize;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

const GIGA: f64 = 1e9;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Results {
    machine: Machine,
    versions: Vec<(String, String)>,
    fresh: Vec<Fresh>,
    cases: Vec<CaseResult>,
}

/// What proxies are right after their start.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Fresh {
    stack: &'static str,
    /// That the caller's sidecar knows beside those that are called.
    services: usize,
    /// At rest: the caller's sidecar's, and the application's.
    memory: [Memory; 2],
    first_micros: u64,
    /// Of the first second.
    longest_micros: u64,
}

impl Fresh {
    pub(crate) fn new(stack: &'static str, services: usize, memory: [Memory; 2], first: &Outcome) -> Self {
        let Outcome { first_micros, max_micros: longest_micros, .. } = *first;
        Self { stack, services, memory, first_micros, longest_micros }
    }

    fn row(&self) -> String {
        let [client, server] = &self.memory;
        let mib = |kib: u64| float(kib) / 1024.0;
        format!(
            "| {} | {} | {:.1} | {:.1} | {:.1} | {:.1} | {} | {} |",
            self.stack,
            self.services,
            mib(client.rss),
            mib(client.pss),
            mib(client.private),
            mib(server.rss),
            self.first_micros,
            self.longest_micros
        )
    }
}

pub(crate) fn versions(stacks: &[Stack]) -> Vec<(String, String)> {
    stacks.iter().map(|stack| (stack.name.to_owned(), stack.version.clone())).collect()
}

#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) cpus: usize,
    pub(crate) model: String,
    pub(crate) kernel: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CaseResult {
    pub(crate) name: &'static str,
    pub(crate) protocol: Protocol,
    pub(crate) stacks: Vec<StackResult>,
    /// Those that have no part in it, and why.
    pub(crate) left_out: Vec<(&'static str, &'static str)>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct StackResult {
    pub(crate) name: &'static str,
    figures: Vec<Figure>,
    turns: Vec<Turn>,
    turns_at_rate: Vec<Turn>,
}

/// One figure over all turns.
#[derive(Clone, Debug, Serialize)]
struct Figure {
    name: &'static str,
    median: f64,
    min: f64,
    max: f64,
}

#[expect(clippy::cast_precision_loss, reason = "counts and sizes are far below 2^52")]
fn float(number: u64) -> f64 {
    number as f64
}

pub(crate) fn per_second(turn: &Turn) -> f64 {
    float(turn.outcome.requests) / turn.outcome.seconds.max(f64::EPSILON)
}

fn micros_per_request(turn: &Turn) -> f64 {
    turn.cpu_seconds * 1e6 / float(turn.outcome.requests.max(1))
}

fn gigabits(turn: &Turn) -> f64 {
    float(turn.outcome.bytes) * 8.0 / GIGA / turn.outcome.seconds.max(f64::EPSILON)
}

fn cpu_per_gigabyte(turn: &Turn) -> f64 {
    turn.cpu_seconds / (float(turn.outcome.bytes) / GIGA).max(f64::EPSILON)
}

fn syscalls_per_request(turn: &Turn) -> f64 {
    turn.syscalls.map_or(f64::NAN, |count| float(count) / float(turn.outcome.requests.max(1)))
}

/// Of the larger of the two, in MiB.
fn larger(turn: &Turn, of: impl Fn(&Memory) -> u64) -> f64 {
    float(turn.memory.iter().map(of).max().unwrap_or(0)) / 1024.0
}

fn failures(turn: &Turn) -> f64 {
    float(turn.outcome.failures)
}

pub(crate) fn median(turns: &[Turn], of: impl Fn(&Turn) -> f64) -> f64 {
    middle(&turns.iter().map(of).collect::<Vec<_>>())
}

fn middle(values: &[f64]) -> f64 {
    sorted(values).get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values
}

fn figure(name: &'static str, turns: &[Turn], of: impl Fn(&Turn) -> f64) -> Figure {
    let values = sorted(&turns.iter().map(of).collect::<Vec<_>>());
    let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
    Figure { name, median: at(values.len() / 2), min: at(0), max: at(values.len().saturating_sub(1)) }
}

impl StackResult {
    /// `direct`: the same load at the same rate without proxies.
    pub(crate) fn new(
        name: &'static str,
        case: &Case,
        turns: Vec<Turn>,
        at_rate: Vec<Turn>,
        direct: &[Outcome],
    ) -> Self {
        let mut figures = match case.protocol {
            Protocol::Tcp => {
                vec![figure("Gb/s", &turns, gigabits), figure("CPU s/GB", &turns, cpu_per_gigabyte)]
            }
            Protocol::Idle => vec![figure("connections", &turns, |turn| float(turn.outcome.requests))],
            _ => vec![
                figure("requests/s", &turns, per_second),
                figure("CPU µs/request", &turns, micros_per_request),
                figure("syscalls/request", &turns, syscalls_per_request),
            ],
        };
        if case.protocol == Protocol::Http1 && case.connections == 1 {
            figures.push(figure("p50 µs", &turns, |turn| float(turn.outcome.p50_micros)));
            figures.push(figure("p99 µs", &turns, |turn| float(turn.outcome.p99_micros)));
            figures.push(figure("longest µs", &turns, |turn| float(turn.outcome.max_micros)));
        }
        if !at_rate.is_empty() {
            figures.push(figure("p50 µs at rate", &at_rate, |turn| float(turn.outcome.p50_micros)));
            figures.push(figure("p99 µs at rate", &at_rate, |turn| float(turn.outcome.p99_micros)));
            figures.push(figure("p99.9 µs at rate", &at_rate, |turn| float(turn.outcome.p999_micros)));
            let own = middle(&direct.iter().map(|outcome| float(outcome.p99_micros)).collect::<Vec<_>>());
            figures.push(figure("p99 µs added", &at_rate, |turn| float(turn.outcome.p99_micros) - own));
        }
        figures.push(figure("RSS MiB", &turns, |turn| larger(turn, |memory| memory.rss)));
        figures.push(figure("PSS MiB", &turns, |turn| larger(turn, |memory| memory.pss)));
        figures.push(figure("private MiB", &turns, |turn| larger(turn, |memory| memory.private)));
        figures.push(figure("failures", &turns, failures));
        figures.retain(|figure| !figure.median.is_nan());
        Self { name, figures, turns, turns_at_rate: at_rate }
    }

    fn figure(&self, name: &str) -> Option<&Figure> {
        self.figures.iter().find(|figure| figure.name == name)
    }
}

impl Results {
    pub(crate) fn new(versions: Vec<(String, String)>, fresh: Vec<Fresh>, cases: Vec<CaseResult>) -> Self {
        Self { machine: Machine::here(), versions, fresh, cases }
    }

    fn markdown(&self) -> String {
        let mut text = String::new();
        let Machine { cpus, model, kernel } = &self.machine;
        let _ = writeln!(text, "{cpus} CPUs ({model}), Linux {kernel}\n");
        for (name, version) in &self.versions {
            let _ = writeln!(text, "- {name}: {version}");
        }
        text.push_str(
            "\n### Fresh proxies\n\n| | services | RSS MiB, client side | PSS | private | RSS MiB, server side | first answer µs | longest µs |\n\
             |---|---|---|---|---|---|---|---|\n",
        );
        for fresh in &self.fresh {
            let _ = writeln!(text, "{}", fresh.row());
        }
        for case in &self.cases {
            let _ = write!(text, "\n### {}\n\n{}", case.name, case.markdown());
        }
        text
    }
}

impl CaseResult {
    fn markdown(&self) -> String {
        let mut text = String::from("| |");
        self.stacks.iter().for_each(|stack| text.extend([" ", stack.name, " |"]));
        text.push_str(" ratio |\n|---|");
        self.stacks.iter().for_each(|_| text.push_str("---|"));
        text.push_str("---|\n");
        let names = self
            .stacks
            .first()
            .map(|stack| stack.figures.iter().map(|figure| figure.name))
            .into_iter()
            .flatten();
        for name in names {
            let _ = write!(text, "| {name} |");
            for stack in &self.stacks {
                let cell = stack.figure(name).map_or_else(String::new, Figure::text);
                let _ = write!(text, " {cell} |");
            }
            let _ = writeln!(text, " {} |", self.ratios(name));
        }
        for (stack, reason) in &self.left_out {
            let _ = writeln!(text, "\nWithout {stack}: {reason}.");
        }
        text
    }

    /// Of ours to each of the peer's.
    fn ratios(&self, name: &str) -> String {
        let Some((ours, peers)) = self.stacks.split_last() else { return String::new() };
        let Some(ours) = ours.figure(name) else { return String::new() };
        let ratios = peers.iter().filter_map(|peer| Some(ours.median / peer.figure(name)?.median));
        let texts: Vec<String> =
            ratios.filter(|ratio| ratio.is_finite()).map(|ratio| format!("{ratio:.2}")).collect();
        texts.join(" / ")
    }
}

impl Figure {
    fn text(&self) -> String {
        let Self { median, min, max, .. } = self;
        if *max >= 1_000.0 {
            format!("{median:.0} ({min:.0}..{max:.0})")
        } else {
            format!("{median:.1} ({min:.1}..{max:.1})")
        }
    }
}

impl Machine {
    pub(crate) fn here() -> Self {
        let cpus = std::thread::available_parallelism().map_or(0, usize::from);
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let model = model.map_or_else(String::new, |(_, model)| model.trim().to_owned());
        Self { cpus, model, kernel: kernel.trim().to_owned() }
    }
}

pub(crate) fn write(results: &Results, folder: &Path) -> Result<()> {
    fs::write(folder.join("results.json"), serde_json::to_string_pretty(results)?)?;
    let text = results.markdown();
    fs::write(folder.join("results.md"), &text)?;
    fs::write(folder.join("results.svg"), picture(results))?;
    use std::io::Write;
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

/// CPU per request (or per gigabyte), bars of one case beside each other, relative to the peer's.
fn picture(results: &Results) -> String {
    const ROW: usize = 18;
    const WIDTH: f64 = 420.0;
    const OURS: &str = "#1f7a5a";
    const PEERS: [&str; 2] = ["#b0b7c3", "#8792a5"];
    let mut rows = String::new();
    let mut y = 40;
    for case in &results.cases {
        let name = ["CPU µs/request", "CPU s/GB", "RSS MiB"]
            .into_iter()
            .find(|name| case.stacks.iter().all(|stack| stack.figure(name).is_some()));
        let Some(name) = name else { continue };
        let values: Vec<f64> =
            case.stacks.iter().filter_map(|stack| Some(stack.figure(name)?.median)).collect();
        let most = values.iter().copied().fold(f64::EPSILON, f64::max);
        let _ = writeln!(
            rows,
            "<text x=\"10\" y=\"{}\" font-weight=\"bold\">{} ({name})</text>",
            y - 4,
            case.name
        );
        // Peers in turns of two greys, and ours, which is the last.
        let peers = PEERS.into_iter().cycle().take(values.len().saturating_sub(1));
        let colors = peers.chain([OURS]);
        for ((stack, value), color) in case.stacks.iter().zip(values).zip(colors) {
            let _ = writeln!(
                rows,
                "<rect x=\"90\" y=\"{y}\" width=\"{:.0}\" height=\"{}\" fill=\"{color}\"/><text x=\"10\" y=\"{}\">{}</text><text x=\"{:.0}\" y=\"{}\">{value:.1}</text>",
                value / most * WIDTH,
                ROW - 4,
                y + 11,
                stack.name,
                96.0 + value / most * WIDTH,
                y + 11
            );
            y += ROW;
        }
        y += 26;
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"620\" height=\"{y}\" font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{rows}</svg>\n"
    )
}
