//! The application behind the proxies: it does as little as can be.

use crate::external;
use anyhow::Result;
use bytes::{Buf, Bytes, BytesMut};
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Request, Response};
use std::net::SocketAddr;
use std::path::PathBuf;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

const MAX_HEADERS: usize = 64;
const MAX_ANSWER: usize = 1 << 20;
const WINDOW: u32 = 1 << 20;
/// A compression flag and a length.
const GRPC_PREFIX: usize = 5;

/// Where it listens, and as whom.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Options {
    /// HTTP/1.1
    #[arg(long)]
    http1: SocketAddr,
    /// HTTP/2 without TLS
    #[arg(long)]
    http2: SocketAddr,
    /// Bytes without end, to everybody
    #[arg(long)]
    tcp: SocketAddr,
    /// HTTP/1.1 in TLS: a host outside of the mesh
    #[arg(long)]
    https: SocketAddr,
    /// Its certificate (PEM)
    #[arg(long, value_name = "FILE")]
    cert: PathBuf,
    /// Its key (PEM)
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let tls = &TlsAcceptor::from(external::server(&options.cert, &options.key)?);
    super::on_one_thread(async {
        let http1 = TcpListener::bind(options.http1).await?;
        let http2 = TcpListener::bind(options.http2).await?;
        let tcp = TcpListener::bind(options.tcp).await?;
        let https = TcpListener::bind(options.https).await?;
        let serve_https = |stream| {
            let tls = tls.clone();
            async move { serve_http1(tls.accept(stream).await?).await }
        };
        tokio::try_join!(
            accept(http1, serve_http1),
            accept(http2, serve_http2),
            accept(tcp, serve_tcp),
            accept(https, serve_https)
        )?;
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

async fn serve_http1(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<()> {
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
        stream.flush().await?;
    }
}

/// Lengths of a request's head and body, and of the answer that it asks for; `None`: more must be read.
fn request(read: &[u8]) -> Result<Option<(usize, usize, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(head) = request.parse(read)? else { return Ok(None) };
    let (mut body, mut chunked) = (0, false);
    for header in request.headers.iter() {
        if header.name.eq_ignore_ascii_case("content-length") {
            body = std::str::from_utf8(header.value)?.parse()?;
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            chunked = true;
        }
    }
    if chunked {
        let Some(length) = chunked_length(read.get(head..).unwrap_or_default()) else { return Ok(None) };
        body = length;
    }
    Ok(Some((head, body, asked(request.path.unwrap_or_default()))))
}

/// How long a chunked body is, once its end is there. What is in it is not looked at: the loads send none, and a suite's few are short.
fn chunked_length(body: &[u8]) -> Option<usize> {
    let find = |from: usize, what: &[u8]| {
        Some(from + body.get(from..)?.windows(what.len()).position(|window| window == what)?)
    };
    let last = if body.starts_with(b"0\r\n") { 0 } else { find(0, b"\r\n0\r\n")? + 2 };
    Some(find(last, b"\r\n\r\n")? + 4)
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

/// Answers each message of a stream with one of the size that the path says.
async fn answer_messages(
    request: Request<h2::RecvStream>,
    mut respond: SendResponse<Bytes>,
    size: usize,
) -> Result<()> {
    let response = Response::builder().header("content-type", "application/grpc").body(())?;
    let mut sending = respond.send_response(response, false)?;
    let answer: Bytes = message(size)?.into();
    let mut body = request.into_body();
    let mut read = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        read.extend_from_slice(&data);
        while let Some(length) = whole_message(&read) {
            read.advance(length);
            sending.send_data(answer.clone(), false)?;
        }
    }
    sending.send_trailers(grpc_ok())?;
    Ok(())
}

/// A gRPC message: a flag, its length, its bytes.
fn message(size: usize) -> Result<Vec<u8>> {
    let mut message = Vec::with_capacity(size + GRPC_PREFIX);
    message.push(0);
    message.extend_from_slice(&u32::try_from(size)?.to_be_bytes());
    message.resize(size + GRPC_PREFIX, b'y');
    Ok(message)
}

/// The length of the first message with its prefix, if all of it was read.
fn whole_message(read: &[u8]) -> Option<usize> {
    let (_flag, rest) = read.split_first()?;
    let length = u32::from_be_bytes(*rest.first_chunk()?);
    let length = usize::try_from(length).ok()? + GRPC_PREFIX;
    (read.len() >= length).then_some(length)
}

fn grpc_ok() -> HeaderMap {
    HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))])
}

async fn answer_http2(request: Request<h2::RecvStream>, mut respond: SendResponse<Bytes>) -> Result<()> {
    let size = asked(request.uri().path());
    if request.uri().path().starts_with("/bench.Echo/Stream") {
        return answer_messages(request, respond, size).await;
    }
    let grpc = request.headers().get("content-type").is_some_and(|kind| kind == "application/grpc");
    let mut body = request.into_body();
    while let Some(data) = body.data().await {
        let length = data?.len();
        body.flow_control().release_capacity(length)?;
    }
    let payload = if grpc { message(size)? } else { vec![b'y'; size] };
    let kind = if grpc { "application/grpc" } else { "text/plain" };
    let response = Response::builder().header("content-type", kind).body(())?;
    let mut sending = respond.send_response(response, false)?;
    sending.send_data(payload.into(), !grpc)?;
    if grpc {
        sending.send_trailers(grpc_ok())?;
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
    use super::{asked, message, whole_message};

    #[test]
    fn messages_are_found_when_they_are_whole() {
        let two = [message(3).unwrap(), message(0).unwrap()].concat();
        for (read, length) in [(0, None), (4, None), (7, None), (8, Some(8)), (13, Some(8))] {
            assert_eq!(whole_message(&two[..read]), length, "{read}");
        }
        assert_eq!(whole_message(&two[8..]), Some(5));
    }

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
