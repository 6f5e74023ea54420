//! A relay that cuts the beginning of what a client says into segments of a few bytes.

use super::announce;
use anyhow::Result;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Between segments, so that the receiver reads each for itself.
const PAUSE: Duration = Duration::from_millis(1);

pub(super) async fn serve(listen: SocketAddr, target: SocketAddr, size: usize, first: usize) -> Result<()> {
    let listener = TcpListener::bind(listen).await?;
    announce(listen);
    loop {
        let (client, _) = listener.accept().await?;
        tokio::spawn(relay(client, target, size.max(1), first));
    }
}

async fn relay(mut client: TcpStream, target: SocketAddr, size: usize, first: usize) -> Result<()> {
    let mut server = TcpStream::connect(target).await?;
    server.set_nodelay(true)?;
    let mut buffer = vec![0; first];
    // A hello is said in one breath; its answer must not wait for what is said after it.
    let read = client.read(&mut buffer).await?;
    for segment in buffer.get(..read).unwrap_or_default().chunks(size) {
        server.write_all(segment).await?;
        tokio::time::sleep(PAUSE).await;
    }
    tokio::io::copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}
