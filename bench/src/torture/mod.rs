//! What becomes of odd HTTP, beside Envoy: each case is sent as it is to the entry of both stacks, which have the same
//! application behind them, and told are the answers, whether the connection was kept, and what reached the application.
//!
//! The proxies are the ones that are measured (`peer`): two sidecars, so that a case passes two readers of each kind.

mod cases;
mod upstream;

use crate::external::External;
use crate::peer::{Application, Between, Stack};
use anyhow::{Result, bail};
use cases::{ANSWERS, Answer, Case, NEXT as FIRST, requests};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use upstream::Seen;

/// A proxy that says nothing for so long waits for more. Longer than one waits before it ends a connection whose client may
/// still send (Envoy 1 s, ours 1 s).
const QUIET: Duration = Duration::from_millis(2_000);
/// Between parts of a request; and from the end of a connection until its last bytes have reached the application.
const PAUSE: Duration = Duration::from_millis(200);
/// How often a stack that has just come up is asked until it serves.
const FIRST_TRIES: usize = 20;
/// Where the two applications listen: one for each stack, which are asked at the same time.
const PORTS: [u16; 2] = [26_301, 26_302];

#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Options {
    /// Folder with Meridian's programs
    #[arg(long, value_name = "DIR", default_value = "target/release")]
    bin: PathBuf,
    /// Envoy's program
    #[arg(long, value_name = "FILE")]
    envoy: PathBuf,
    /// Only cases whose name contains this
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
}

/// What came of a case at one stack.
#[derive(PartialEq, Eq)]
struct Outcome {
    answers: Vec<String>,
    end: End,
    seen: Vec<String>,
}

/// How the client saw its connection end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Kept,
    Closed,
    Reset,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let at = PORTS.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let external = External::make(folder.path())?;
    let [for_ours, for_peers] =
        at.map(|at| Application { http1: at, http2: at, tcp: at, https: at, external: external.clone() });
    let stacks = [
        Stack::meridian(&options.bin, folder.path(), &for_ours, 0, "")?,
        Stack::envoy(&options.envoy, folder.path(), &for_peers, Between::Same, 0)?,
    ];
    super::on_one_thread(async {
        let seen = [Seen::default(), Seen::default()];
        for (at, seen) in at.into_iter().zip(&seen) {
            let listener = TcpListener::bind(at).await?;
            drop(tokio::task::spawn_local(upstream::serve(listener, ANSWERS, seen.clone())));
        }
        let ([ours, peers], [ours_seen, peers_seen]) = (&stacks, &seen);
        serves(ours).await?;
        serves(peers).await?;
        say(&format!("Envoy {}; differences are marked.\n", peers.version));
        say(&format!("| case | {} | {} | |\n|---|---|---|---|", ours.name, peers.name));
        let of_answers = ANSWERS.iter().enumerate().map(|(index, answer)| answer.case(index));
        for case in requests().into_iter().chain(of_answers).filter(|case| case.name.contains(&options.only))
        {
            let (one, other) = tokio::try_join!(
                outcome(ours.entry.http1, &case, ours_seen),
                outcome(peers.entry.http1, &case, peers_seen)
            )?;
            let differs = if one == other { "" } else { "differs" };
            say(&format!("| {} | {} | {} | {differs} |", case.name, one.told(), other.told()));
        }
        Ok(())
    })
}

/// Waits until a stack's first request is answered by the application.
async fn serves(stack: &Stack) -> Result<()> {
    let case = Case { name: "first".to_owned(), sent: vec![FIRST.into()], ends: false };
    for _ in 0..FIRST_TRIES {
        if outcome(stack.entry.http1, &case, &Seen::default()).await?.answers == ["200"] {
            return Ok(());
        }
    }
    bail!("{} does not serve", stack.name)
}

/// Sends a case over a connection of its own.
async fn outcome(to: SocketAddr, case: &Case, seen: &Seen) -> Result<Outcome> {
    seen.borrow_mut().clear();
    let (mut read, mut write) = TcpStream::connect(to).await?.into_split();
    let sending = async {
        for part in case.sent.iter() {
            // What is refused may be refused before all of it is sent.
            if write.write_all(part.as_bytes()).await.is_err() {
                return;
            }
            if case.sent.len() > 1 {
                tokio::time::sleep(PAUSE).await;
            }
        }
        if case.ends {
            drop(write.shutdown().await);
        }
    };
    let mut said = Vec::new();
    let reading = async {
        loop {
            match timeout(QUIET, read.read_buf(&mut said)).await {
                Err(_) => return End::Kept,
                Ok(Ok(0)) => return End::Closed,
                Ok(Ok(_)) => {}
                Ok(Err(_)) => return End::Reset,
            }
        }
    };
    let ((), end) = tokio::join!(sending, reading);
    drop((read, write));
    tokio::time::sleep(PAUSE).await;
    let answers = answers(&String::from_utf8_lossy(&said));
    Ok(Outcome { answers, end, seen: std::mem::take(&mut *seen.borrow_mut()) })
}

/// The statuses of the answers in what was said.
fn answers(said: &str) -> Vec<String> {
    let mut starts: Vec<usize> = ["HTTP/1.1 ", "HTTP/1.0 "]
        .iter()
        .flat_map(|line| said.match_indices(line))
        .map(|(at, _)| at)
        .collect();
    starts.sort_unstable();
    let ends = starts.iter().skip(1).copied().chain([said.len()]);
    let one = |(start, end): (&usize, usize)| {
        let text = said.get(*start..end).unwrap_or_default();
        text.get(9..12).unwrap_or_default().to_owned()
    };
    starts.iter().zip(ends).map(one).collect()
}

impl Outcome {
    fn told(&self) -> String {
        let end = match self.end {
            End::Kept => "kept",
            End::Closed => "closed",
            End::Reset => "reset",
        };
        let answers = if self.answers.is_empty() { "nothing".to_owned() } else { self.answers.join(", ") };
        let seen: Vec<_> = self.seen.iter().map(|line| format!("`{line}`")).collect();
        format!("{answers}; {end}{}{}", if seen.is_empty() { "" } else { "; " }, seen.join(", "))
    }
}

fn say(text: &str) {
    use std::io::Write;
    drop(writeln!(std::io::stdout(), "{text}"));
}

#[cfg(test)]
mod tests {
    use super::answers;

    #[test]
    fn answers_are_told_apart() {
        let said = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.0 400 Bad\r\n\r\n";
        assert_eq!(answers(said), ["100", "200", "400"]);
        assert!(answers("").is_empty());
    }
}
