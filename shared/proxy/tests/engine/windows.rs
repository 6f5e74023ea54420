//! HTTP/2 clients that ask and never give a window for the answer.

use crate::{
    apps::{call, http_app},
    torture2::{END_HEADERS, END_STREAM, GOAWAY, HEADERS, RST_STREAM, SETTINGS, block, frame, open},
    world::{Pair, soon, until},
};
use meridian_proxy_config::{Protocol, StreamTimeouts};
use std::net::SocketAddr;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// SETTINGS_INITIAL_WINDOW_SIZE of nothing.
const NO_WINDOW: [u8; 6] = [0, 4, 0, 0, 0, 0];
/// Streams that nobody reads, each with its window full on the connection that the sidecars share.
const UNREAD: u32 = 64;

/// Asks for answers without end, so many, and gives no window for them.
async fn ask(to: SocketAddr, streams: u32) -> TcpStream {
    let mut stream = open(to).await;
    let fields = [(":method", "GET"), (":scheme", "http"), (":path", "/flood"), (":authority", "b")];
    let heads = (0..streams)
        .flat_map(|number| frame(HEADERS, END_HEADERS | END_STREAM, number * 2 + 1, &block(&fields)));
    let sent: Vec<u8> = frame(SETTINGS, 0, 0, &NO_WINDOW).into_iter().chain(heads).collect();
    stream.write_all(&sent).await.unwrap();
    stream
}

#[tokio::test]
async fn answers_that_nobody_reads_stop_nobody_elses() {
    for (protocol, http2) in [(Protocol::Http, false), (Protocol::Http2, true)] {
        let (application, seen) = http_app(http2).await;
        let pair = Pair::start(protocol, application).await;
        let _unread = ask(pair.outbound, UNREAD).await;
        until("all to be asked", async || (seen.requests() == UNREAD as usize).then_some(())).await;
        for _ in 0..20 {
            assert_eq!(soon("another's answer", call(pair.outbound, "/headers")).await.status, 200);
        }
    }
}

#[tokio::test]
async fn an_answer_that_nobody_reads_is_held_to_the_streams_limits() {
    let (application, seen) = http_app(true).await;
    let pair = Pair::start(Protocol::Http2, application).await;
    let idle = StreamTimeouts { idle_millis: Some(300), ..StreamTimeouts::default() };
    pair.policies(|policies| policies.stream_timeouts = idle).await;
    let mut client = ask(pair.outbound, 1).await;
    until("it to be asked", async || (seen.requests() == 1).then_some(())).await;
    // Its stream, and not the connection.
    let kinds = soon("the reset", async {
        let mut kinds = Vec::new();
        while kinds.last() != Some(&RST_STREAM) {
            let mut head = [0; 9];
            client.read_exact(&mut head).await.unwrap();
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            client.read_exact(&mut vec![0; length as usize]).await.unwrap();
            kinds.push(head[3]);
        }
        kinds
    })
    .await;
    assert!(kinds.contains(&HEADERS) && !kinds.contains(&GOAWAY), "{kinds:?}");
    assert_eq!(call(pair.outbound, "/headers").await.status, 200);
}
