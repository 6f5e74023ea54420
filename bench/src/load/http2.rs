//! HTTP/2 and unary gRPC.

use super::{Protocol, Tally};
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Method, Request, StatusCode};
use std::rc::Rc;
use tokio::net::TcpStream;

/// A stream's window, and a connection's.
const WINDOW: u32 = 1 << 20;
/// A compression flag and a length.
const GRPC_PREFIX: usize = 5;

pub(super) async fn connection(tally: Rc<Tally>) -> Result<()> {
    let stream = TcpStream::connect(tally.options.target).await?;
    stream.set_nodelay(true)?;
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(WINDOW).initial_connection_window_size(WINDOW * 4);
    let (sender, connection) = builder.handshake::<_, Bytes>(stream).await?;
    let body = body(&tally);
    let streams = (0..tally.options.streams).map(|_| requests(tally.clone(), sender.clone(), body.clone()));
    let all = futures::future::try_join_all(streams);
    tokio::select! {
        ended = connection => Ok(ended?),
        result = all => result.map(drop),
    }
}

fn body(tally: &Tally) -> Bytes {
    let length = tally.options.request_bytes;
    if tally.options.protocol != Protocol::Grpc {
        return vec![b'x'; length].into();
    }
    let prefix = u32::try_from(length).unwrap_or_default().to_be_bytes();
    [&[0], prefix.as_slice(), vec![b'x'; length].as_slice()].concat().into()
}

async fn requests(tally: Rc<Tally>, sender: SendRequest<Bytes>, body: Bytes) -> Result<()> {
    let grpc = tally.options.protocol == Protocol::Grpc;
    let uri = if grpc {
        format!("http://bench/bench.Echo/Bytes{}", tally.options.response_bytes)
    } else {
        format!("http://bench/bytes/{}", tally.options.response_bytes)
    };
    let wanted = tally.options.response_bytes + if grpc { GRPC_PREFIX } else { 0 };
    let method = if body.is_empty() { Method::GET } else { Method::POST };
    while let Some(start) = tally.turn().await {
        let mut builder = Request::builder().method(method.clone()).uri(&uri);
        if grpc {
            builder = builder.header("content-type", "application/grpc").header("te", "trailers");
        }
        let mut ready = sender.clone().ready().await?;
        let (answer, sending) = ready.send_request(builder.body(())?, body.is_empty())?;
        if !body.is_empty() {
            send(sending, body.clone()).await?;
        }
        let answer = answer.await?;
        ensure!(answer.status() == StatusCode::OK, "status {}", answer.status());
        let (length, trailers) = receive(answer.into_body()).await?;
        ensure!(length == wanted, "an answer of {length} bytes");
        if grpc {
            let status = trailers.and_then(|trailers| trailers.get("grpc-status").cloned());
            ensure!(status.context("no grpc-status")? == "0", "a gRPC error");
        }
        tally.answered(start, length);
    }
    Ok(())
}

async fn send(mut stream: SendStream<Bytes>, mut body: Bytes) -> Result<()> {
    while !body.is_empty() {
        stream.reserve_capacity(body.len());
        let granted = futures::future::poll_fn(|context| stream.poll_capacity(context)).await;
        let granted = granted.context("the stream is closed")??.min(body.len());
        let part = body.split_to(granted);
        stream.send_data(part, body.is_empty())?;
    }
    Ok(())
}

async fn receive(mut body: RecvStream) -> Result<(usize, Option<HeaderMap>)> {
    let mut length = 0;
    while let Some(data) = body.data().await {
        let data = data?;
        length += data.len();
        body.flow_control().release_capacity(data.len())?;
    }
    Ok((length, body.trailers().await?))
}
