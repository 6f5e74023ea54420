//! As much of RFC 6455 as an echo of short text messages needs.

use super::client::write_if;
use anyhow::{Context, Result, bail, ensure};
use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine;
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

/// RFC 6455, section 1.3.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

fn accept_key(key: &str) -> String {
    let hash = digest(&SHA1_FOR_LEGACY_USE_ONLY, format!("{key}{GUID}").as_bytes());
    base64::engine::general_purpose::STANDARD.encode(hash)
}

/// Answers an upgrade and echoes what comes.
pub(super) fn accept(request: Request<Incoming>) -> Response<()> {
    let key = request.headers().get("sec-websocket-key").and_then(|key| key.to_str().ok()).map(accept_key);
    let Some(key) = key else {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::BAD_REQUEST;
        return response;
    };
    tokio::spawn(async move {
        if let Ok(stream) = hyper::upgrade::on(request).await {
            let _ = echo(TokioIo::new(stream)).await;
        }
    });
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert("upgrade", http::HeaderValue::from_static("websocket"));
    headers.insert("connection", http::HeaderValue::from_static("Upgrade"));
    if let Ok(value) = http::HeaderValue::from_str(&key) {
        headers.insert("sec-websocket-accept", value);
    }
    response
}

async fn echo<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) -> Result<()> {
    while let Some(text) = read_frame(&mut stream).await? {
        stream.write_all(&frame(&text, None)?).await?;
    }
    Ok(())
}

/// A text frame; clients must mask.
fn frame(text: &[u8], mask: Option<[u8; 4]>) -> Result<Vec<u8>> {
    let length = u8::try_from(text.len())
        .ok()
        .filter(|length| *length < 126)
        .context("message too long for this program")?;
    let mut out = vec![0x81, length | if mask.is_some() { 0x80 } else { 0 }];
    out.extend(mask.iter().flatten());
    let masks = mask.unwrap_or_default();
    out.extend(text.iter().zip(masks.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    Ok(out)
}

/// The payload of the next frame; `None` at the end.
async fn read_frame<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Option<Vec<u8>>> {
    let mut head = [0; 2];
    match stream.read_exact(&mut head).await {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let [first, second] = head;
    if first & 0x0f == 8 {
        return Ok(None);
    }
    let mut mask = [0; 4];
    if second & 0x80 != 0 {
        stream.read_exact(&mut mask).await?;
    }
    let mut payload = vec![0; usize::from(second & 0x7f)];
    stream.read_exact(&mut payload).await?;
    Ok(Some(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect()))
}

async fn open(target: &str) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(target).await?;
    let key = "dGhlIHNhbXBsZSBub25jZQ==";
    let request = format!(
        "GET /websocket HTTP/1.1\r\nHost: {target}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).await? == 0 {
            bail!("closed during the upgrade: {}", String::from_utf8_lossy(&head));
        }
        head.extend(byte);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    ensure!(head.starts_with("HTTP/1.1 101"), "no upgrade: {head}");
    ensure!(head.contains(&accept_key(key)), "wrong accept key: {head}");
    Ok(stream)
}

const MASK: [u8; 4] = [7, 42, 19, 3];

pub(super) async fn exchange(target: &str) -> Result<()> {
    let mut stream = open(target).await?;
    stream.write_all(&frame(b"over a websocket", Some(MASK))?).await?;
    let echoed = read_frame(&mut stream).await?.context("closed before the echo")?;
    ensure!(echoed == b"over a websocket", "echoed {:?}", String::from_utf8_lossy(&echoed));
    println!("websocket: ok");
    Ok(())
}

/// Holds a WebSocket open; gives the reason of its end.
pub(super) async fn hold(target: &str, busy: bool) -> Result<String> {
    let stream = open(target).await?;
    println!("open");
    let (mut read, mut write) = tokio::io::split(stream);
    let sender = tokio::spawn(async move {
        let beat = frame(b"busy", Some(MASK))?;
        while write_if(busy, &mut write, &beat).await.is_ok() {}
        futures::future::pending::<Result<()>>().await
    });
    let reason = loop {
        match read_frame(&mut read).await {
            Ok(Some(_)) => {}
            Ok(None) => break "end of stream".to_owned(),
            Err(error) => break error.to_string(),
        }
    };
    sender.abort();
    Ok(reason)
}
