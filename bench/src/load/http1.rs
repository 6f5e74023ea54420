//! HTTP/1.1 with as little of our own as can be: what the generator takes, the proxies can't have.

use super::{Options, Protocol, Tally};
use anyhow::{Context, Result, ensure};
use bytes::{Buf, BytesMut};
use std::rc::Rc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

const MAX_HEADERS: usize = 32;

/// A connection, with or without TLS.
trait Open: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Open for T {}

pub(super) async fn connection(tally: Rc<Tally>) -> Result<()> {
    let options = &tally.options;
    let closes = options.protocol == Protocol::Http1Close;
    let request = request(options, closes);
    let mut read = BytesMut::with_capacity(16 << 10);
    let mut stream = None;
    while let Some(start) = tally.turn().await {
        let open = match stream.take() {
            Some(open) => open,
            None => open_to(&tally).await?,
        };
        let mut open: Box<dyn Open> = open;
        open.write_all(&request).await?;
        open.flush().await?;
        let length = answer(&mut open, &mut read).await?;
        ensure!(length == options.response_bytes, "an answer of {length} bytes");
        tally.answered(start, length);
        if closes {
            read.clear();
        } else {
            stream = Some(open);
        }
    }
    Ok(())
}

/// One request and its answer.
pub(super) async fn once(stream: &mut TcpStream, options: &Options) -> Result<()> {
    stream.write_all(&request(options, false)).await?;
    answer(stream, &mut BytesMut::with_capacity(1 << 10)).await.map(drop)
}

async fn open_to(tally: &Tally) -> Result<Box<dyn Open>> {
    let stream = TcpStream::connect(tally.options.target).await?;
    stream.set_nodelay(true)?;
    match &tally.tls {
        None => Ok(Box::new(stream)),
        Some(tls) => {
            let name = ServerName::try_from(tally.options.host.clone())?;
            Ok(Box::new(TlsConnector::from(tls.clone()).connect(name, stream).await?))
        }
    }
}

fn request(options: &Options, closes: bool) -> Vec<u8> {
    let Options { host, request_bytes: body, response_bytes: answer, .. } = options;
    let body = *body;
    let method = if body == 0 { "GET" } else { "POST" };
    let length = if body == 0 { String::new() } else { format!("content-length: {body}\r\n") };
    let close = if closes { "connection: close\r\n" } else { "" };
    let mut request =
        format!("{method} /bytes/{answer} HTTP/1.1\r\nhost: {host}\r\nuser-agent: bench\r\naccept: */*\r\n{length}{close}\r\n")
            .into_bytes();
    request.resize(request.len() + body, b'x');
    request
}

/// Reads one answer; the length of its body.
async fn answer(stream: &mut (impl AsyncRead + Unpin), read: &mut BytesMut) -> Result<usize> {
    let (head, length) = loop {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        if let httparse::Status::Complete(head) = response.parse(read)? {
            ensure!(response.code == Some(200), "status {:?}", response.code);
            let length =
                response.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
            let length = length.context("an answer without content-length")?;
            break (head, std::str::from_utf8(length.value)?.parse::<usize>()?);
        }
        ensure!(stream.read_buf(read).await? > 0, "closed before an answer");
    };
    let mut left = (head + length).saturating_sub(read.len());
    read.advance((head + length).min(read.len()));
    while left > 0 {
        ensure!(stream.read_buf(read).await? > 0, "closed within an answer");
        let now = left.min(read.len());
        read.advance(now);
        left -= now;
    }
    Ok(length)
}
