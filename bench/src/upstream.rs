//! The application behind the proxies: it does as little as can be.

use anyhow::{Result, bail};
use bytes::{Buf, Bytes, BytesMut};
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Request, Response};
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const MAX_HEADERS: usize = 64;
const MAX_ANSWER: usize = 1 << 20;
const WINDOW: u32 = 1 << 20;

pub(crate) fn run(http1: SocketAddr, http2: SocketAddr, tcp: SocketAddr) -> Result<()> {
    super::on_one_thread(async {
        let (http1, http2, tcp) =
            (TcpListener::bind(http1).await?, TcpListener::bind(http2).await?, TcpListener::bind(tcp).await?);
        tokio::try_join!(accept(http1, serve_http1), accept(http2, serve_http2), accept(tcp, serve_tcp))?;
        Ok(())
    })
}

async fn accept<F>(listener: TcpListener, serve: impl Fn(TcpStream) -> F) -> Result<()>
where
    F: Future<Output = Result<()>> + 'static,
{
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let served = serve(stream);
        // A client that leaves is nobody's mistake.
        drop(tokio::task::spawn_local(async move { drop(served.await) }));
    }
}

async fn serve_http1(mut stream: TcpStream) -> Result<()> {
    let mut read = BytesMut::with_capacity(16 << 10);
    let mut answer = Vec::new();
    loop {
        let Some((head, body, size)) = request(&read)? else {
            if stream.read_buf(&mut read).await? == 0 {
                return Ok(());
            }
            continue;
        };
        let mut left = (head + body).saturating_sub(read.len());
        read.advance((head + body).min(read.len()));
        while left > 0 {
            if stream.read_buf(&mut read).await? == 0 {
                return Ok(());
            }
            let now = left.min(read.len());
            read.advance(now);
            left -= now;
        }
        answer.clear();
        answer.extend_from_slice(
            format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {size}\r\n\r\n")
                .as_bytes(),
        );
        answer.resize(answer.len() + size, b'y');
        stream.write_all(&answer).await?;
    }
}

/// Lengths of a request's head and body, and of the answer that it asks for; `None`: more must be read.
fn request(read: &[u8]) -> Result<Option<(usize, usize, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(head) = request.parse(read)? else { return Ok(None) };
    let mut body = 0;
    for header in request.headers.iter() {
        if header.name.eq_ignore_ascii_case("content-length") {
            body = std::str::from_utf8(header.value)?.parse()?;
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            bail!("a body of unknown length");
        }
    }
    Ok(Some((head, body, asked(request.path.unwrap_or_default()))))
}

/// The digits at the end of a path.
fn asked(path: &str) -> usize {
    let digits = path
        .rfind(|c: char| !c.is_ascii_digit())
        .map_or(path, |last| path.get(last + 1..).unwrap_or_default());
    digits.parse().unwrap_or(0).min(MAX_ANSWER)
}

async fn serve_http2(stream: TcpStream) -> Result<()> {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW * 4)
        .max_concurrent_streams(1_000);
    let mut connection = builder.handshake::<_, Bytes>(stream).await?;
    while let Some(accepted) = connection.accept().await {
        let (request, answer) = accepted?;
        drop(tokio::task::spawn_local(async move { drop(answer_http2(request, answer).await) }));
    }
    Ok(())
}

async fn answer_http2(request: Request<h2::RecvStream>, mut respond: SendResponse<Bytes>) -> Result<()> {
    let size = asked(request.uri().path());
    let grpc = request.headers().get("content-type").is_some_and(|kind| kind == "application/grpc");
    let mut body = request.into_body();
    while let Some(data) = body.data().await {
        let length = data?.len();
        body.flow_control().release_capacity(length)?;
    }
    let mut payload = Vec::with_capacity(size + 5);
    if grpc {
        payload.push(0);
        payload.extend_from_slice(&u32::try_from(size)?.to_be_bytes());
    }
    payload.resize(payload.len() + size, b'y');
    let kind = if grpc { "application/grpc" } else { "text/plain" };
    let response = Response::builder().header("content-type", kind).body(())?;
    let mut sending = respond.send_response(response, false)?;
    sending.send_data(payload.into(), !grpc)?;
    if grpc {
        let trailers: HeaderMap =
            [(http::HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))]
                .into_iter()
                .collect();
        sending.send_trailers(trailers)?;
    }
    Ok(())
}

async fn serve_tcp(mut stream: TcpStream) -> Result<()> {
    let bytes = vec![0; 256 << 10];
    loop {
        stream.write_all(&bytes).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::asked;

    #[test]
    fn a_path_says_how_much_is_asked_for() {
        for (path, size) in [
            ("/bytes/65", 65),
            ("/bench.Echo/Bytes1024", 1024),
            ("/", 0),
            ("", 0),
            ("/99999999", super::MAX_ANSWER),
        ] {
            assert_eq!(asked(path), size, "{path}");
        }
    }
}
