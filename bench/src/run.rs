//! A whole comparison.

use crate::Options;
use crate::cases::{CASES, Case, FEW_SERVICES, FIRST, MANY_SERVICES, WITH_MANY_SERVICES};
use crate::external::External;
use crate::load::{Outcome, Protocol};
use crate::measure::{Turn, pause, turn, without_proxies};
use crate::peer::{Application, Peer, Stack};
use crate::process::{Memory, Process};
use crate::report::{self, CaseResult, Fresh, Results, StackResult};
use anyhow::{Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

/// Load before anything is counted: connections are made, memory is touched.
const WARM_UP_SECONDS: f64 = 1.0;
/// Idle connections come one after the other, and their memory is looked at when all are there.
const IDLE_SECONDS: f64 = 15.0;
/// For 10,000 connections, each of which is two files of a proxy.
const OPEN_FILES: u64 = 1 << 16;
/// Between the start and a look at memory at rest: what a start needs is over, and what goes on at rest has come round.
const REST_SECONDS: f64 = 30.0;
/// Of what the slowest saturates at: all can serve it.
const SHARE_OF_SLOWEST: f64 = 0.5;

pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(options.rounds > 0, "--rounds must be at least 1");
    let peers = Peer::named(options.envoy.as_deref(), &options.peers, &options.kinds)?;
    std::fs::create_dir_all(&options.out)?;
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES.min(most), most)?;
    let folder = tempfile::tempdir()?;
    let at = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let application = Application {
        http1: at(26_001),
        http2: at(26_002),
        tcp: at(26_003),
        https: at(26_004),
        external: External::make(folder.path())?,
    };
    let _upstream = upstream(&application, folder.path())?;
    let mut cases = Vec::new();
    let mut fresh = Vec::new();
    let few = folder.path().join("few");
    // Ours last: that is whose ratios are told.
    let mut stacks = Vec::new();
    for peer in &peers {
        stacks.push(peer.start(&few, &application, FEW_SERVICES)?.reaching()?);
        let other = peer.start_in_other_mode(&few, &application, FEW_SERVICES)?;
        stacks.extend(other.map(Stack::reaching).transpose()?);
    }
    stacks.push(Stack::meridian(&options.bin, &few, &application, FEW_SERVICES, "")?.reaching()?);
    let versions = report::versions(&stacks);
    fresh.extend(ask_fresh(&stacks, FEW_SERVICES)?);
    for case in CASES.iter().filter(|case| case.name.contains(&options.only)) {
        say(case.name);
        cases.push(compare(case, &stacks, &application, options)?);
    }
    // Their ports are the next ones'.
    drop(stacks);
    if WITH_MANY_SERVICES.name.contains(&options.only) {
        say(WITH_MANY_SERVICES.name);
        let many = folder.path().join("many");
        let mut stacks = Vec::new();
        for peer in &peers {
            stacks.push(peer.start(&many, &application, MANY_SERVICES)?.reaching()?);
        }
        stacks.push(Stack::meridian(&options.bin, &many, &application, MANY_SERVICES, "")?.reaching()?);
        fresh.extend(ask_fresh(&stacks, MANY_SERVICES)?);
        cases.push(compare(&WITH_MANY_SERVICES, &stacks, &application, options)?);
    }
    report::write(&Results::new(versions, fresh, cases), &options.out)
}

/// The application, where it is said to be.
pub(crate) fn upstream(application: &Application, folder: &Path) -> Result<Process> {
    let Application { http1, http2, tcp, https, external } = application;
    let addresses = [http1, http2, tcp, https].map(SocketAddr::to_string);
    let files = [&external.cert, &external.key].map(|file| file.display().to_string());
    let [http1, http2, tcp, https] = addresses.each_ref().map(String::as_str);
    let [cert, key] = files.each_ref().map(String::as_str);
    let words = [
        "upstream", "--http1", http1, "--http2", http2, "--tcp", tcp, "--https", https, "--cert", cert,
        "--key", key,
    ];
    let mut upstream = Process::start("upstream", &std::env::current_exe()?, &words, folder)?;
    upstream.wait_listening(application.https)?;
    Ok(upstream)
}

/// Memory at rest, and then the first answers.
fn ask_fresh(stacks: &[Stack], services: usize) -> Result<Vec<Fresh>> {
    let memory = |stack: &Stack| -> Result<[Memory; 2]> {
        let [client, server] = &stack.pair;
        Ok([client.memory()?, server.memory()?])
    };
    pause(REST_SECONDS);
    let memory = stacks.iter().map(memory).collect::<Result<Vec<_>>>()?;
    let fresh = stacks.iter().zip(memory).map(|(stack, memory)| {
        let first = turn(stack, &FIRST, WARM_UP_SECONDS, None)?.outcome;
        Ok(Fresh::new(stack.name, services, memory, &first))
    });
    fresh.collect()
}

fn compare(
    case: &Case,
    stacks: &[Stack],
    application: &Application,
    options: &Options,
) -> Result<CaseResult> {
    let taking_part: Vec<&Stack> = stacks.iter().filter(|stack| (stack.left_out)(case).is_none()).collect();
    let left_out = stacks.iter().filter_map(|stack| Some((stack.name, (stack.left_out)(case)?)));
    let mut turns: Vec<Vec<Turn>> = vec![Vec::new(); taking_part.len()];
    let is_idle = case.protocol == Protocol::Idle;
    let (rounds, seconds) = if is_idle { (1, IDLE_SECONDS) } else { (options.rounds, options.seconds) };
    for stack in taking_part.iter().filter(|_| !is_idle) {
        turn(stack, case, WARM_UP_SECONDS, None)?;
    }
    for _ in 0..rounds {
        for (stack, turns) in taking_part.iter().zip(&mut turns) {
            turns.push(turn(stack, case, seconds, None)?);
            // What one stack leaves behind (closing connections) is not the next one's.
            pause(0.2);
        }
    }
    let (at_rate, direct) = at_rate(case, &taking_part, application, &turns, options)?;
    let results = taking_part.iter().zip(turns).zip(at_rate);
    let stacks =
        results.map(|((stack, turns), at_rate)| StackResult::new(stack.name, case, turns, at_rate, &direct));
    Ok(CaseResult {
        name: case.name,
        protocol: case.protocol,
        stacks: stacks.collect(),
        left_out: left_out.collect(),
    })
}

/// Latencies at a rate that all can serve, of each stack and without proxies; for loads that have such a thing.
fn at_rate(
    case: &Case,
    stacks: &[&Stack],
    application: &Application,
    turns: &[Vec<Turn>],
    options: &Options,
) -> Result<(Vec<Vec<Turn>>, Vec<Outcome>)> {
    let (mut all, mut direct) = (vec![Vec::new(); stacks.len()], Vec::new());
    let has_rate = matches!(
        case.protocol,
        Protocol::Http1 | Protocol::Http2 | Protocol::Grpc | Protocol::GrpcStream | Protocol::Https
    );
    let saturated = turns.iter().map(|turns| report::median(turns, report::per_second));
    let slowest = saturated.min_by(f64::total_cmp).unwrap_or_default();
    if !has_rate || slowest <= 0.0 {
        return Ok((all, direct));
    }
    let rate = slowest * SHARE_OF_SLOWEST;
    for _ in 0..options.rounds {
        for (stack, turns) in stacks.iter().zip(&mut all) {
            turns.push(turn(stack, case, options.seconds, Some(rate))?);
        }
        direct.extend(without_proxies(application, case, options.seconds, rate)?);
    }
    Ok((all, direct))
}

fn say(text: &str) {
    use std::io::Write;
    drop(writeln!(std::io::stderr(), "{text}"));
}
