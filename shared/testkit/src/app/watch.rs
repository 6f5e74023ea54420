//! Asks again and again, and prints each change of the answer with its time: how long a change took to be live.

use anyhow::Result;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// An attempt that takes longer counts as `no answer`.
const LIMIT: Duration = Duration::from_secs(2);
/// Between attempts.
const PAUSE: Duration = Duration::from_micros(500);

/// Prints `<microseconds since 1970> <answer>` at each change: a status code, with the reason of a refusal, or an error.
pub(super) async fn run(connect: &str, host: &str) -> Result<()> {
    let mut last = String::new();
    loop {
        let answer = match tokio::time::timeout(LIMIT, attempt(connect, host)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => format!("error: {error}"),
            Err(_) => "no answer".to_owned(),
        };
        if answer != last {
            println!("{} {answer}", SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros());
            last = answer;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn attempt(connect: &str, host: &str) -> Result<String> {
    let mut stream = TcpStream::connect(connect).await?;
    let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let text = String::from_utf8_lossy(&answer);
    let status = text.split_whitespace().nth(1).unwrap_or("no status");
    let reason = text.lines().find_map(|line| line.strip_prefix("x-meridian-denied: "));
    Ok(reason.map_or_else(|| status.to_owned(), |reason| format!("{status} {reason}")))
}
