//! Bodies that are far larger than any buffer pass through two sidecars in memory that does not grow with them. A process of
//! its own, since its memory is what is looked at; both ends are in it, too, and hold one buffer each.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]
#![allow(dead_code, reason = "what the engine's tests share, of which this needs a part")]

#[path = "engine/apps.rs"]
mod apps;
#[path = "engine/world.rs"]
mod world;

use apps::{Payload, absolute, http2, tcp_app};
use bytes::Bytes;
use futures::stream::unfold;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use meridian_proxy_config::Protocol;
use std::{convert::Infallible, net::SocketAddr, time::Instant};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};
use world::{Pair, address};

/// In one go with all other tests.
const SOME: u64 = 512 << 20;
/// When asked for: `cargo test -p meridian-proxy --test memory -- --ignored --nocapture`.
const MUCH: u64 = 10 << 30;
/// Before anything is measured: buffers come into being, and windows grow.
const WARM_UP: u64 = 32 << 20;
/// By how much the process may grow beyond that. A body that was held anywhere would take [`SOME`].
const GROWTH: u64 = 32 << 20;
static PART: [u8; 64 << 10] = [b'y'; 64 << 10];

#[test]
fn large_bodies_pass_in_little_memory() {
    run(SOME);
}

#[test]
#[ignore = "10 GiB in each protocol and direction: minutes"]
fn huge_bodies_pass_in_little_memory() {
    run(MUCH);
}

fn run(length: u64) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        for protocol in [Protocol::Http, Protocol::Tcp] {
            let (at, _) = tcp_app(|stream| async { serve(stream).await.unwrap_or_default() }).await;
            let pair = Pair::start(protocol, at).await;
            for (up, down, what) in [(1, 0, "up"), (0, 1, "down")] {
                let what = format!("{protocol:?} {what}");
                let to = pair.outbound;
                flat(&what, length, async |length| exchange(to, up * length, down * length).await).await;
            }
        }
        let pair = Pair::start(Protocol::Grpc, multiplexed_app().await).await;
        for (up, down, what) in [(1, 0, "Grpc up"), (0, 1, "Grpc down")] {
            let to = pair.outbound;
            flat(what, length, async |length| exchange_http2(to, up * length, down * length).await).await;
        }
    });
}

/// Runs a transfer of so many bytes, and looks at the most memory that the process had meanwhile.
async fn flat(what: &str, length: u64, transfer: impl AsyncFn(u64)) {
    transfer(WARM_UP).await;
    // The peak counts from now on (proc(5), clear_refs).
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let (before, began) = (memory("VmRSS:"), Instant::now());
    transfer(length).await;
    let (peak, seconds) = (memory("VmHWM:"), began.elapsed().as_secs_f64());
    println!(
        "{what}: {} MiB in {seconds:.1} s, {:.1} MiB before, at most {:.1} MiB",
        length >> 20,
        before as f64 / 1048576.0,
        peak as f64 / 1048576.0
    );
    assert!(peak < before + GROWTH, "{what}: {before} bytes before, {peak} at most");
}

/// A line of the process' status, in bytes.
fn memory(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}

async fn pour(to: &mut (impl AsyncWriteExt + Unpin), mut length: u64) {
    while length > 0 {
        let part = &PART[..PART.len().min(usize::try_from(length).unwrap_or(usize::MAX))];
        to.write_all(part).await.unwrap();
        length -= part.len() as u64;
    }
}

/// Reads so much, into one buffer.
async fn drain(from: &mut (impl AsyncReadExt + Unpin), length: u64) {
    let mut from = from.take(length);
    assert_eq!(tokio::io::copy(&mut from, &mut tokio::io::sink()).await.unwrap(), length);
}

/// Lines up to an empty one; the number behind the name of a field, if it is there.
async fn head(stream: &mut (impl AsyncBufReadExt + Unpin), field: &str) -> Option<u64> {
    let mut found = None;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok().filter(|count| *count > 0)?;
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            return Some(found.unwrap_or(0));
        }
        if let Some(value) = line.strip_prefix(field) {
            found = Some(value.trim().parse().unwrap());
        }
    }
}

/// Reads a body, and gives as many bytes as the request's `x-wanted` says.
async fn serve(stream: TcpStream) -> Option<()> {
    let mut stream = BufReader::new(stream);
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        stream.read_until(b'\n', &mut text).await.ok().filter(|count| *count > 0)?;
    }
    let mut lines = text.as_slice();
    let wanted = head(&mut lines, "x-wanted:").await?;
    let mut lines = text.as_slice();
    drain(&mut stream, head(&mut lines, "content-length:").await?).await;
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {wanted}\r\nConnection: close\r\n\r\n");
    stream.write_all(answer.as_bytes()).await.ok()?;
    pour(&mut stream, wanted).await;
    stream.shutdown().await.ok()
}

async fn exchange(to: SocketAddr, up: u64, down: u64) {
    let mut stream = BufReader::new(TcpStream::connect(to).await.unwrap());
    let head_of_request = format!(
        "POST / HTTP/1.1\r\nHost: backend.mesh\r\nX-Wanted: {down}\r\nContent-Length: {up}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head_of_request.as_bytes()).await.unwrap();
    pour(&mut stream, up).await;
    assert_eq!(head(&mut stream, "content-length:").await, Some(down));
    drain(&mut stream, down).await;
}

/// A body of so many bytes.
fn body(length: u64) -> Payload {
    let parts = unfold(length, async |left| {
        let count = PART.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        (count > 0).then(|| (Ok(Frame::data(Bytes::from_static(&PART[..count]))), left - count as u64))
    });
    BodyExt::boxed(StreamBody::new(Box::pin(parts)))
}

async fn length_of(mut body: Incoming) -> u64 {
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        length += frame.unwrap().data_ref().map_or(0, Bytes::len) as u64;
    }
    length
}

/// Reads a body, and gives as many bytes as the path says.
async fn multiplexed_app() -> SocketAddr {
    let listener = TcpListener::bind(address()).await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let handler = service_fn(|request: Request<Incoming>| async {
                let wanted = request.uri().path().trim_start_matches('/').parse().unwrap();
                let came = length_of(request.into_body()).await;
                let response = Response::builder().header("x-came", came).body(body(wanted)).unwrap();
                Ok::<_, Infallible>(response)
            });
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(builder.serve_connection(TokioIo::new(stream), handler));
        }
    });
    at
}

async fn exchange_http2(to: SocketAddr, up: u64, down: u64) {
    let mut client = http2(to).await;
    let mut request = absolute(Method::POST, &format!("/{down}"), body(up));
    request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    let response = client.send_request(request).await.unwrap();
    assert_eq!(response.headers()["x-came"], up.to_string());
    assert_eq!(length_of(response.into_body()).await, down);
}
