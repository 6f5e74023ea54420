//! Clients: one exchange, or a stream that is held until somebody ends it.

use super::{grpc, websocket};
use anyhow::{Context, Result};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpStream, UdpSocket};

/// What to hold open.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum HoldKind {
    Tcp,
    Websocket,
    Grpc,
    /// An HTTP response that never ends.
    Http,
}

pub(super) async fn tcp(target: &str, send: &str, greeting: bool) -> Result<()> {
    let stream = TcpStream::connect(target).await?;
    let mut stream = BufReader::new(stream);
    if greeting {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        print!("{line}");
    }
    stream.write_all(send.as_bytes()).await?;
    stream.shutdown().await?;
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await?;
    println!("{rest}");
    Ok(())
}

pub(super) async fn udp(target: SocketAddr) -> Result<()> {
    let any: SocketAddr = if target.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(target).await?;
    socket.send(b"ping").await?;
    let mut buffer = [0; 64];
    let read = tokio::time::timeout(Duration::from_secs(2), socket.recv(&mut buffer))
        .await
        .context("no answer")??;
    println!("{}", String::from_utf8_lossy(buffer.get(..read).unwrap_or_default()));
    Ok(())
}

pub(super) async fn hold(kind: HoldKind, target: &str, busy: bool) -> Result<()> {
    let started = Instant::now();
    let reason = match kind {
        HoldKind::Tcp => hold_tcp(target, busy).await,
        HoldKind::Websocket => websocket::hold(target, busy).await,
        HoldKind::Grpc => grpc::hold(target, busy).await,
        HoldKind::Http => hold_http(target).await,
    };
    let reason = reason.unwrap_or_else(|error| format!("{error:#}"));
    println!("closed: {reason} (after {} ms)", started.elapsed().as_millis());
    Ok(())
}

async fn hold_tcp(target: &str, busy: bool) -> Result<String> {
    let mut stream = TcpStream::connect(target).await?;
    let mut buffer = [0; 4096];
    stream.write_all(b"first").await?;
    if stream.read(&mut buffer).await? == 0 {
        return Ok("closed before an answer".to_owned());
    }
    println!("open");
    let (mut read, mut write) = stream.into_split();
    let sender = tokio::spawn(async move {
        while write_if(busy, &mut write, b"busy").await.is_ok() {}
        futures::future::pending::<()>().await
    });
    let reason = loop {
        match read.read(&mut buffer).await {
            Ok(0) => break "end of stream".to_owned(),
            Ok(_) => {}
            Err(error) => break error.to_string(),
        }
    };
    sender.abort();
    Ok(reason)
}

/// One beat of a held stream: writes if it is a busy one. Silence keeps the sending half open.
pub(super) async fn write_if<W: AsyncWriteExt + Unpin>(
    busy: bool,
    write: &mut W,
    bytes: &[u8],
) -> Result<()> {
    tokio::time::sleep(Duration::from_millis(20)).await;
    if busy {
        write.write_all(bytes).await?;
    }
    Ok(())
}

async fn hold_http(target: &str) -> Result<String> {
    let mut stream = TcpStream::connect(target).await?;
    stream.write_all(format!("GET /ticks HTTP/1.1\r\nHost: {target}\r\n\r\n").as_bytes()).await?;
    let mut buffer = [0; 4096];
    let read = stream.read(&mut buffer).await?;
    let head = String::from_utf8_lossy(buffer.get(..read).unwrap_or_default()).into_owned();
    anyhow::ensure!(head.starts_with("HTTP/1.1 200"), "no answer to hold: {head}");
    println!("open");
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) => return Ok("end of stream".to_owned()),
            Ok(_) => {}
            Err(error) => return Ok(error.to_string()),
        }
    }
}

/// As many as the other side takes: one that it refuses is not opened again.
pub(super) async fn crowd(target: SocketAddr, count: usize, send: &str) -> Result<()> {
    let beginning = bytes_of(send)?;
    let mut held = Vec::with_capacity(count);
    for _ in 0..count {
        let opened = tokio::time::timeout(Duration::from_secs(1), TcpStream::connect(target)).await;
        if let Ok(Ok(mut stream)) = opened
            && stream.write_all(&beginning).await.is_ok()
        {
            held.push(stream);
        }
    }
    println!("open: {}", held.len());
    futures::future::pending().await
}

fn bytes_of(text: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some((plain, escaped)) = rest.split_once("\\x") {
        bytes.extend_from_slice(plain.as_bytes());
        let (digits, after) = escaped.split_at_checked(2).context("\\x wants two digits")?;
        bytes.push(u8::from_str_radix(digits, 16)?);
        rest = after;
    }
    bytes.extend_from_slice(rest.as_bytes());
    Ok(bytes)
}
