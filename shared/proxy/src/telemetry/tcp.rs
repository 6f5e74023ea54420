//! Lines to a TCP listener: one connection, made again when it is gone.

use super::deliver::{Export, Failure};
use std::{io, time::Duration};
use tokio::{io::AsyncWriteExt, net::TcpStream};

/// A listener that takes nothing for so long is gone. It may be slow: what it takes in that time does not matter.
const STALLED: Duration = Duration::from_secs(10);

/// Longer than a lost SYN that is sent again twice.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

pub(super) struct Lines {
    /// `HOST:PORT`
    address: String,
    stream: Option<TcpStream>,
}

impl Lines {
    pub(super) fn new(address: String) -> Self {
        Self { address, stream: None }
    }

    async fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        // What is written to a connection that the other side has closed would be lost without an error.
        if self.stream.as_ref().is_some_and(is_closed) {
            self.stream = None;
        }
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => connect(&self.address).await?,
        };
        let mut rest = lines;
        while !rest.is_empty() {
            let written = tokio::time::timeout(STALLED, stream.write(rest)).await;
            match written.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                n => rest = rest.get(n..).unwrap_or_default(),
            }
        }
        // Only now: after a failure the next lines would go on in the middle of one.
        self.stream = Some(stream);
        Ok(())
    }
}

/// A connection to `HOST:PORT`, by the host's own resolver.
pub(super) async fn connect(address: &str) -> io::Result<TcpStream> {
    let connected = tokio::time::timeout(CONNECT_LIMIT, TcpStream::connect(address)).await;
    connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn is_closed(stream: &TcpStream) -> bool {
    let mut byte = [0];
    match stream.try_read(&mut byte) {
        Ok(0) => true,
        // A listener has nothing to say; whatever it is, it is still there.
        Ok(_) => false,
        Err(error) => error.kind() != io::ErrorKind::WouldBlock,
    }
}

impl Export for Lines {
    type Entry = Vec<u8>;

    async fn send(&mut self, batch: &[Vec<u8>]) -> Result<(), Failure> {
        self.write(&batch.concat()).await.map_err(Failure::again)
    }
}
