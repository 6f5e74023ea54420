//! TCP and UDP applications.

use super::announce;
use anyhow::Result;
use std::net::SocketAddr;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

pub(super) async fn serve_echo(listen: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(listen).await?;
    announce(listen);
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(echo(stream));
    }
}

async fn echo(mut stream: TcpStream) -> Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    let mut total = 0;
    loop {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            stream.write_all(format!("\nread {total} bytes until the end\n").as_bytes()).await?;
            return Ok(stream.shutdown().await?);
        }
        total += read;
        stream.write_all(buffer.get(..read).unwrap_or_default()).await?;
    }
}

pub(super) async fn serve_greeting(listen: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(listen).await?;
    announce(listen);
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(greet(stream));
    }
}

async fn greet(mut stream: TcpStream) -> Result<()> {
    stream.write_all(b"220 ready\r\n").await?;
    let (read, mut write) = stream.split();
    let mut lines = BufReader::new(read).lines();
    while let Some(line) = lines.next_line().await? {
        write.write_all(format!("250 {line}\r\n").as_bytes()).await?;
    }
    Ok(())
}

pub(super) async fn serve_udp(listen: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind(listen).await?;
    announce(listen);
    let mut buffer = [0; 2048];
    loop {
        let (read, peer) = socket.recv_from(&mut buffer).await?;
        socket.send_to(buffer.get(..read).unwrap_or_default(), peer).await?;
    }
}
