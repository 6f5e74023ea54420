//! Bytes, and connections that carry none.

use super::Tally;
use anyhow::{Result, ensure};
use std::rc::Rc;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

const BUFFER: usize = 256 << 10;

pub(super) async fn connection(tally: Rc<Tally>) -> Result<()> {
    let mut stream = TcpStream::connect(tally.options.target).await?;
    let mut buffer = vec![0; BUFFER];
    while let Ok(read) = timeout_at(tally.ends, stream.read(&mut buffer)).await {
        let read = read?;
        ensure!(read > 0, "the stream ended");
        tally.bytes.set(tally.bytes.get() + read as u64);
    }
    Ok(())
}

/// Makes a connection that reaches the other side (one answer shows it), and keeps it. One that is closed has failed.
pub(super) async fn idle(tally: Rc<Tally>) -> Result<()> {
    let opener = tally.openers.acquire().await?;
    let start = Instant::now();
    let mut stream = TcpStream::connect(tally.options.target).await?;
    super::http1::once(&mut stream, &tally.options).await?;
    tally.answered(start, 0);
    drop(opener);
    let closed = timeout_at(tally.ends, stream.read(&mut [0])).await;
    ensure!(closed.is_err(), "an idle connection was closed");
    Ok(())
}
