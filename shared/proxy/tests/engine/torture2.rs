//! HTTP/2, frame by frame: requests that HTTP/1.1 on the next hop would read otherwise, and floods of what costs the sender
//! nothing. The others are served on.

use crate::{
    apps::{call, http_app},
    torture::application,
    world::{Pair, soon},
};
use meridian_proxy_config::{Protocol, alpn};
use std::net::SocketAddr;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
const PROTOCOL_ERROR: u32 = 1;
const ENHANCE_YOUR_CALM: u32 = 11;

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Fields as HPACK literals, in order.
pub(crate) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    fields.iter().flat_map(|(name, value)| [vec![0], text(name), text(value)].concat()).collect()
}

const REQUEST: [(&str, &str); 4] =
    [(":method", "POST"), (":scheme", "http"), (":path", "/a"), (":authority", "b")];

/// What came of a request on stream 1.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Answered,
    Reset(u32),
    GoAway(u32),
    Closed,
}

pub(crate) async fn open(to: SocketAddr) -> TcpStream {
    begun(TcpStream::connect(to).await.unwrap()).await
}

async fn begun<S: AsyncWrite + Unpin>(mut stream: S) -> S {
    stream.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await.unwrap();
    stream
}

async fn outcome(stream: &mut TcpStream) -> Outcome {
    loop {
        let mut head = [0; 9];
        if stream.read_exact(&mut head).await.is_err() {
            return Outcome::Closed;
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        if stream.read_exact(&mut payload).await.is_err() {
            return Outcome::Closed;
        }
        let code = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
        match head[3] {
            HEADERS => return Outcome::Answered,
            RST_STREAM => return Outcome::Reset(code(0)),
            GOAWAY if code(4) != 0 => return Outcome::GoAway(code(4)),
            _ => {}
        }
    }
}

#[tokio::test]
async fn what_http1_would_read_otherwise_is_refused() {
    let (at, log) = application().await;
    let pair = Pair::start(Protocol::Http, at).await;
    let with = |extra: &[(&'static str, &'static str)]| [&REQUEST, extra].concat();
    let instead = |at: usize, value: &'static str| {
        let mut fields = REQUEST.to_vec();
        fields[at].1 = value;
        fields
    };
    let malformed = Outcome::Reset(PROTOCOL_ERROR);
    let cases = [
        ("as it should be", with(&[("x-a", "1")]), "abc", Outcome::Answered),
        ("a coding of HTTP/1.1", with(&[("transfer-encoding", "chunked")]), "abc", malformed),
        ("a field of the connection's", with(&[("connection", "close")]), "", Outcome::Reset(PROTOCOL_ERROR)),
        ("too short", with(&[("content-length", "5")]), "abc", Outcome::Reset(PROTOCOL_ERROR)),
        ("too long", with(&[("content-length", "1")]), "abc", Outcome::Reset(PROTOCOL_ERROR)),
        (
            "two lengths",
            with(&[("content-length", "3"), ("content-length", "4")]),
            "abc",
            Outcome::Reset(PROTOCOL_ERROR),
        ),
        ("an upper-case name", with(&[("X-A", "1")]), "", Outcome::GoAway(PROTOCOL_ERROR)),
        ("a name with a line's end", with(&[("x\r\na", "1")]), "", Outcome::GoAway(PROTOCOL_ERROR)),
        (
            "a value with a line's end",
            with(&[("x-a", "1\r\ntransfer-encoding: chunked")]),
            "",
            Outcome::GoAway(PROTOCOL_ERROR),
        ),
        ("a method with a space", instead(0, "GET /x"), "", Outcome::GoAway(PROTOCOL_ERROR)),
        ("a path with a line's end", instead(2, "/a HTTP/1.1\r\nx: y"), "", Outcome::Reset(PROTOCOL_ERROR)),
        ("an empty path", instead(2, ""), "", Outcome::Reset(PROTOCOL_ERROR)),
        ("a second path", with(&[(":path", "/b")]), "", Outcome::Reset(PROTOCOL_ERROR)),
        ("an unknown pseudo field", with(&[(":x", "/b")]), "", Outcome::GoAway(PROTOCOL_ERROR)),
        ("another host", with(&[("host", "c")]), "", Outcome::Answered),
        ("a user in the authority", instead(3, "u@b"), "", Outcome::Answered),
    ];
    let mut wrong = Vec::new();
    for (name, fields, body, expected) in cases {
        let mut stream = open(pair.outbound).await;
        let end = if body.is_empty() { END_STREAM } else { 0 };
        let mut sent = frame(HEADERS, END_HEADERS | end, 1, &block(&fields));
        if !body.is_empty() {
            sent.extend(frame(DATA, END_STREAM, 1, body.as_bytes()));
        }
        stream.write_all(&sent).await.unwrap();
        let found = soon(name, outcome(&mut stream)).await;
        let mut seen = std::mem::take(&mut *log.lock().unwrap());
        seen.retain(|entry| !entry.ends_with(" cut"));
        let reached: &[&str] = if name == "as it should be" { &["POST /a b abc"] } else { &[] };
        if found != expected || seen != reached {
            wrong.push(format!("{name}: {found:?}, expected {expected:?}; seen {seen:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Frames without end, until the proxy ends the connection or takes no more.
async fn flood(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    first: &[u8],
    more: impl Fn(u32) -> Vec<u8>,
    times: u32,
) -> Outcome {
    let (mut read, mut write) = tokio::io::split(begun(stream).await);
    write.write_all(first).await.unwrap();
    let writing = async {
        for number in 0..times {
            if write.write_all(&more(number)).await.is_err() {
                return;
            }
        }
    };
    let reading = async {
        let mut all = Vec::new();
        drop(read.read_to_end(&mut all).await);
        all
    };
    // Nothing that came is looked at before the flood is over: who floods does not read.
    writing.await;
    // Behind a break there is nothing to end.
    drop(write.shutdown().await);
    let all = soon("the end of the connection", reading).await;
    let mut rest = all.as_slice();
    while let Some((head, tail)) = rest.split_at_checked(9) {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let Some((payload, tail)) = tail.split_at_checked(length) else { break };
        if head[3] == GOAWAY && payload[4..8] != [0; 4] {
            return Outcome::GoAway(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
        }
        rest = tail;
    }
    Outcome::Closed
}

/// As the application of the caller, and as a caller's sidecar.
#[tokio::test]
async fn floods_end_the_connection_and_nobody_elses() {
    let (at, _) = http_app(false).await;
    let pair = &Pair::start(Protocol::Http, at).await;
    floods(pair, async || TcpStream::connect(pair.outbound).await.unwrap()).await;
    floods(pair, async || crate::rules::session(pair, Some(&pair.ca), alpn::HTTP2).await.unwrap()).await;
}

async fn floods<S: AsyncRead + AsyncWrite + Unpin>(pair: &Pair, connect: impl AsyncFn() -> S) {
    let to = pair.outbound;
    let request = |stream: u32, flags: u8| frame(HEADERS, flags, stream, &block(&REQUEST));
    let cancel = 8_u32.to_be_bytes();
    let rapid = |number: u32| {
        [request(number * 2 + 1, END_HEADERS | END_STREAM), frame(RST_STREAM, 0, number * 2 + 1, &cancel)]
            .concat()
    };
    // Requests without a single field: each is an error of its own.
    let empty = |number: u32| frame(HEADERS, END_HEADERS | END_STREAM, number * 2 + 1, &[]);
    let ended = soon("rapid resets", flood(connect().await, &[], rapid, 20_000)).await;
    assert_eq!(ended, Outcome::GoAway(ENHANCE_YOUR_CALM), "rapid resets");
    assert_eq!(call(to, "/headers").await.status, 200);
    let ended = soon("empty heads", flood(connect().await, &[], empty, 20_000)).await;
    assert_eq!(ended, Outcome::GoAway(ENHANCE_YOUR_CALM), "empty heads");
    assert_eq!(call(to, "/headers").await.status, 200);

    let filler = "y".repeat(100);
    let filler = block(&[("x-filler", filler.as_str()); 100]);
    let more = |_| frame(CONTINUATION, 0, 1, &filler);
    let ended = soon("continuations", flood(connect().await, &request(1, 0), more, 2_000)).await;
    assert_ne!(ended, Outcome::Answered, "continuations");
    assert_eq!(call(to, "/headers").await.status, 200);

    for (name, first, more) in [
        ("settings", vec![], frame(SETTINGS, 0, 0, &[0, 1, 0, 0, 16, 0])),
        ("pings", vec![], frame(PING, 0, 0, &[1; 8])),
        ("empty data", request(1, END_HEADERS), frame(DATA, 0, 1, &[])),
    ] {
        // It may take them all, or no more of them: its memory is its own matter, its other clients are ours.
        let flooding = async { flood(connect().await, &first, |_| more.clone(), 50_000).await };
        tokio::select! {
            _ = flooding => {}
            served = async {
                for _ in 0..20 {
                    assert_eq!(soon(name, call(to, "/headers")).await.status, 200, "{name}");
                }
            } => served,
        }
        assert_eq!(soon(name, call(to, "/headers")).await.status, 200, "{name}");
    }
}
