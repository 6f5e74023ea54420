//! HTTP/2 clients that ask and never give a window for the answer.

use crate::{
    apps::{call, http_app},
    torture2::{END_HEADERS, END_STREAM, HEADERS, SETTINGS, block, frame, open},
    world::{Pair, soon, until},
};
use meridian_proxy_config::Protocol;
use std::net::SocketAddr;
use tokio::{io::AsyncWriteExt, net::TcpStream};

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
