//! HTTP/2 and unary gRPC.

use super::{Protocol, Tally};
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Method, Request, StatusCode};
use std::rc::Rc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::Instant;

/// A stream's window, and a connection's.
const WINDOW: u32 = 1 << 20;
/// A compression flag and a length.
const GRPC_PREFIX: usize = 5;
/// A stream is ended and made anew after this: both stacks are told that a request may take 15 s.
const LONGEST_STREAM: Duration = Duration::from_secs(10);

pub(super) async fn connection(tally: Rc<Tally>) -> Result<()> {
    let stream = TcpStream::connect(tally.options.target).await?;
    stream.set_nodelay(true)?;
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(WINDOW).initial_connection_window_size(WINDOW * 4);
    let (sender, connection) = builder.handshake::<_, Bytes>(stream).await?;
    let body = body(&tally);
    let long = tally.options.protocol == Protocol::GrpcStream;
    let streams = (0..tally.options.streams).map(|_| {
        let (tally, sender, body) = (tally.clone(), sender.clone(), body.clone());
        async move {
            if long { messages(&tally, sender, body).await } else { requests(tally, sender, body).await }
        }
    });
    let all = futures::future::try_join_all(streams);
    tokio::select! {
        ended = connection => Ok(ended?),
        result = all => result.map(drop),
    }
}

fn body(tally: &Tally) -> Bytes {
    let length = tally.options.request_bytes;
    if !matches!(tally.options.protocol, Protocol::Grpc | Protocol::GrpcStream) {
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
        let (answer, mut sending) = ready.send_request(builder.body(())?, body.is_empty())?;
        if !body.is_empty() {
            send(&mut sending, body.clone(), true).await?;
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

/// Messages of long streams, each sent when the one before is answered.
async fn messages(tally: &Tally, sender: SendRequest<Bytes>, body: Bytes) -> Result<()> {
    let uri = format!("http://bench/bench.Echo/Stream{}", tally.options.response_bytes);
    let wanted = tally.options.response_bytes + GRPC_PREFIX;
    let mut next = tally.turn().await;
    while let Some(mut start) = next {
        let request = Request::builder().method(Method::POST).uri(&uri);
        let request = request.header("content-type", "application/grpc").header("te", "trailers").body(())?;
        let (answer, mut sending) = sender.clone().ready().await?.send_request(request, false)?;
        // The first message does not wait for the head of the answer, as little as with most clients: nginx passes the head
        // on when there is a message to it.
        send(&mut sending, body.clone(), false).await?;
        let answer = answer.await?;
        ensure!(answer.status() == StatusCode::OK, "status {}", answer.status());
        let mut answers = answer.into_body();
        let (began, mut received) = (Instant::now(), 0);
        loop {
            while received < wanted {
                let data = answers.data().await.context("the stream ended")??;
                received += data.len();
                answers.flow_control().release_capacity(data.len())?;
            }
            received -= wanted;
            tally.answered(start, wanted);
            next = tally.turn().await;
            match next {
                Some(at) if began.elapsed() <= LONGEST_STREAM => start = at,
                _ => break,
            }
            send(&mut sending, body.clone(), false).await?;
        }
        sending.send_data(Bytes::new(), true)?;
        let (left, trailers) = receive(answers).await?;
        ensure!(received + left == 0, "an answer that nothing was asked for");
        ensure!(trailers.context("no trailers")?.get("grpc-status").is_some_and(|status| status == "0"));
    }
    Ok(())
}

/// Sends as the windows allow.
async fn send(stream: &mut SendStream<Bytes>, mut body: Bytes, last: bool) -> Result<()> {
    while !body.is_empty() {
        stream.reserve_capacity(body.len());
        let granted = futures::future::poll_fn(|context| stream.poll_capacity(context)).await;
        let granted = granted.context("the stream is closed")??.min(body.len());
        let part = body.split_to(granted);
        stream.send_data(part, last && body.is_empty())?;
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
