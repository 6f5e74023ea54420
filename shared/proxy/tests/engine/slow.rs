//! Who is slow: a client or an application that sends byte by byte, stops in the middle, or does not read. What comes
//! slowly comes whole; what stops is given up where a limit is set; and who does not read stops who writes.

use crate::{
    apps::{call, http_app, tcp_app},
    torture::application,
    world::{Pair, soon, until},
};
use meridian_proxy_config::{Protocol, StreamTimeouts};
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};

const SHORT: Option<u64> = Some(300);
/// So many other requests are answered while nothing is written: what could move has moved.
const STILL: usize = 20;
/// So many are sent at most until then.
const ROUNDS: usize = 10_000;
/// What who pours writes at once.
static PART: [u8; 16 << 10] = [b'y'; 16 << 10];
/// What lies between two ends at most: windows, and the buffers of six sockets, which Linux lets grow to some MiB each.
const IN_FLIGHT: u64 = 64 << 20;

/// Each byte in a segment of its own.
async fn drip(stream: &mut TcpStream, bytes: &[u8]) {
    stream.set_nodelay(true).unwrap();
    for byte in bytes {
        stream.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_request_that_comes_byte_by_byte_is_one() {
    let (at, log) = application().await;
    let pair = Pair::start(Protocol::Http, at).await;
    let mut stream = TcpStream::connect(pair.outbound).await.unwrap();
    drip(&mut stream, b"POST /a HTTP/1.1\r\nHost: b\r\nContent-Length: 5\r\n\r\nhello").await;
    let chunks =
        "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n3;x\r\nhel\r\n2\r\nlo\r\n0\r\nX: 1\r\n\r\n";
    drip(&mut stream, format!("POST /b HTTP/1.1\r\nHost: b\r\n{chunks}").as_bytes()).await;
    let mut said = String::new();
    soon("the answers", stream.read_to_string(&mut said)).await.unwrap();
    assert_eq!(said.matches("HTTP/1.1 200 ").count(), 2, "{said}");
    assert_eq!(*log.lock().unwrap(), ["POST /a b hello", "POST /b b hello"]);
}

#[tokio::test]
async fn an_answer_that_comes_byte_by_byte_is_whole() {
    for (answer, body) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-App: yes\r\n\r\nhello", "hello"),
        (
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nX-App: yes\r\nTransfer-Encoding: chunked\r\n\r\n\
             3;x\r\nhel\r\n2\r\nlo\r\n0\r\nX: 1\r\n\r\n",
            "hello",
        ),
    ] {
        let (at, _) = tcp_app(move |mut stream| async move {
            assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0);
            drip(&mut stream, answer.as_bytes()).await;
            drop(stream.read(&mut [0; 1024]).await);
        })
        .await;
        let pair = Pair::start(Protocol::Http, at).await;
        let answer = call(pair.outbound, "/").await;
        assert_eq!((answer.status, answer.text()), (200, body));
        assert_eq!(answer.headers["x-app"], "yes");
    }
}

/// A body of which nothing more comes is given up by the limit on silent streams, at either side.
#[tokio::test]
async fn a_request_that_stops_in_its_body_is_given_up() {
    let idle = StreamTimeouts { idle_millis: SHORT, ..StreamTimeouts::default() };
    for inbound in [false, true] {
        let (at, log) = application().await;
        let pair = Pair::start(Protocol::Http, at).await;
        if inbound {
            pair.inbound_policies(|policies| policies.stream_timeouts = idle).await;
        } else {
            pair.policies(|policies| policies.stream_timeouts = idle).await;
        }
        let mut stream = TcpStream::connect(pair.outbound).await.unwrap();
        stream.write_all(b"POST /a HTTP/1.1\r\nHost: b\r\nContent-Length: 10\r\n\r\nhel").await.unwrap();
        let mut said = String::new();
        soon("the answer", stream.read_to_string(&mut said)).await.unwrap();
        assert!(said.starts_with("HTTP/1.1 408 "), "{said}");
        until("the application sees it break off", async || {
            (*log.lock().unwrap() == ["POST /a b cut"]).then_some(())
        })
        .await;
    }
}

/// A head that never ends is no answer, however often a byte of it comes.
#[tokio::test]
async fn an_answer_that_drips_is_held_to_the_requests_limit() {
    for first in ["HTTP/1.1 200 OK\r\nX: ", "HTTP/1.1 200 OK\r\n\r\n"] {
        let (at, _) = tcp_app(move |mut stream| async move {
            assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0);
            stream.write_all(first.as_bytes()).await.unwrap();
            let mut pause = tokio::time::interval(std::time::Duration::from_millis(50));
            while stream.write_all(b"y").await.is_ok() {
                pause.tick().await;
            }
        })
        .await;
        let pair = Pair::start(Protocol::Http, at).await;
        let limit = StreamTimeouts { request_millis: SHORT, ..StreamTimeouts::default() };
        pair.policies(|policies| policies.stream_timeouts = limit).await;
        let mut stream = TcpStream::connect(pair.outbound).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut said = Vec::new();
        drop(soon("the end", stream.read_to_end(&mut said)).await);
        let said = String::from_utf8_lossy(&said);
        let expected = if first.ends_with("\r\n\r\n") { "HTTP/1.1 200 " } else { "HTTP/1.1 504 " };
        assert!(said.starts_with(expected), "{said}");
        // Of one that had begun the last chunk is missing.
        assert!(expected.contains("504") || !said.ends_with("0\r\n\r\n"), "{said}");
    }
}

/// Writes as long as it may, and counts.
async fn pour(mut to: impl AsyncWrite + Unpin, count: Arc<AtomicU64>) {
    while let Ok(written) = to.write(&PART).await {
        count.fetch_add(written as u64, Ordering::Relaxed);
    }
}

/// Waits until who writes writes no more, while others are served; how much it wrote by then.
async fn stopped(count: &AtomicU64, other: SocketAddr) -> u64 {
    let (mut before, mut still) = (0, 0);
    for _ in 0..ROUNDS {
        assert_eq!(soon("another request", call(other, "/other")).await.status, 200);
        let now = count.load(Ordering::Relaxed);
        still = if now > 0 && now == before { still + 1 } else { 0 };
        before = now;
        assert!(now < IN_FLIGHT, "{now} bytes in flight");
        if still == STILL {
            return now;
        }
    }
    panic!("it begins nothing, or never stops: {before} bytes")
}

/// An application that answers `/other` at once; else it gives and takes as the test does.
async fn application_of<F>(serve: impl Fn(TcpStream) -> F + Clone + Send + Sync + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let (at, _) = tcp_app(move |mut stream| {
        let serve = serve.clone();
        async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                match stream.read_u8().await {
                    Ok(byte) => head.push(byte),
                    Err(_) => return,
                }
            }
            if !head.starts_with(b"GET /other") {
                return serve(stream).await;
            }
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";
            drop(stream.write_all(answer).await);
        }
    })
    .await;
    at
}

/// HTTP/1.1: nothing piles up, the others are served, and what waited comes once it is read.
#[tokio::test]
async fn a_client_that_does_not_read_stops_the_application() {
    let written = Arc::new(AtomicU64::new(0));
    let counting = written.clone();
    let at = application_of(move |mut stream| {
        let counting = counting.clone();
        async move {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            pour(stream, counting).await;
        }
    })
    .await;
    let pair = Pair::start(Protocol::Http, at).await;
    let mut client = TcpStream::connect(pair.outbound).await.unwrap();
    client.write_all(b"GET /flood HTTP/1.1\r\nHost: b\r\n\r\n").await.unwrap();
    let waiting = stopped(&written, pair.outbound).await;
    took(&mut client, waiting + (1 << 20)).await;
    assert!(written.load(Ordering::Relaxed) > waiting);
    // Who leaves ends it.
    drop(client);
    until("nothing is written any more", async || (Arc::strong_count(&written) == 2).then_some(())).await;
}

#[tokio::test]
async fn an_application_that_does_not_read_stops_the_client() {
    let (go, goes) = tokio::sync::watch::channel(None::<u64>);
    let at = application_of(move |mut stream| {
        let mut goes = goes.clone();
        async move {
            let count = goes.wait_for(Option::is_some).await.unwrap().unwrap();
            took(&mut stream, count).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            drop(stream.read(&mut [0]).await);
        }
    })
    .await;
    let pair = Pair::start(Protocol::Http, at).await;
    let client = TcpStream::connect(pair.outbound).await.unwrap();
    let (mut read, mut write) = client.into_split();
    write.write_all(b"POST /a HTTP/1.1\r\nHost: b\r\nContent-Length: 99999999999\r\n\r\n").await.unwrap();
    let written = Arc::new(AtomicU64::new(0));
    let pouring = tokio::spawn(pour(write, written.clone()));
    let waiting = stopped(&written, pair.outbound).await;
    go.send_replace(Some(waiting));
    let mut status = [0; 12];
    soon("the answer", read.read_exact(&mut status)).await.unwrap();
    assert_eq!(&status, b"HTTP/1.1 200");
    pouring.abort();
}

/// Reads so much.
async fn took(from: &mut (impl AsyncRead + Unpin), count: u64) {
    let mut from = from.take(count);
    let read = soon("what waited", tokio::io::copy(&mut from, &mut tokio::io::sink())).await.unwrap();
    assert_eq!(read, count);
}

/// Who sends without end what nobody wants is not read for ever, and the others are served meanwhile.
#[tokio::test]
async fn a_head_without_end_is_refused_and_not_read_for_ever() {
    let (at, _) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, at).await;
    let stream = TcpStream::connect(pair.outbound).await.unwrap();
    let (mut read, mut write) = stream.into_split();
    write.write_all(b"GET / HTTP/1.1\r\nHost: b\r\nX: ").await.unwrap();
    let written = Arc::new(AtomicU64::new(0));
    let pouring = tokio::spawn(pour(write, written.clone()));
    let mut status = [0; 12];
    soon("the answer", read.read_exact(&mut status)).await.unwrap();
    assert_eq!(&status, b"HTTP/1.1 431");
    assert_eq!(call(pair.outbound, "/headers").await.status, 200);
    soon("the end", pouring).await.unwrap();
}
