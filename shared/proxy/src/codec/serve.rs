//! Connections that speak HTTP: serving one to its end, and opening one.

use super::{
    Body, Incoming, MAX_HEAD, h1,
    h2::{Batched, CONNECTION_WINDOW, Driven, FRAME, PING, PING_TIMEOUT, SEND_BUFFER, STREAM_WINDOW, Server},
    heads::Heads,
};
use crate::{
    io::{Reset, Rewind, Stream},
    policy::timeouts::ConnectionLimits,
    timer::Timer,
    worker::{Ending, Tracked},
};
use bytes::BytesMut;
use futures::FutureExt;
use http::{HeaderValue, Request, Response, StatusCode, Version, header};
use hyper::client;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{
    cell::Cell, convert::Infallible, error::Error as _, future::Future, io, pin::Pin, rc::Rc, time::Duration,
};
use tokio::{io::AsyncReadExt, time::Instant};

/// An HTTP/1.1 connection that is drained has this long to bring one more request, whose answer says that it is the
/// last. Closed at once, it would cross with a request on its way, which a client can't safely send again.
const LAST_REQUEST: Duration = Duration::from_secs(5);
/// How long a new connection may take to show which HTTP it speaks.
const DETECT: Duration = Duration::from_secs(60);
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What is spoken on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    Http1,
    Http2,
}

/// Runs hyper's tasks on this thread.
#[derive(Clone, Copy, Debug)]
pub struct LocalExecutor;

impl<F: Future + 'static> hyper::rt::Executor<F> for LocalExecutor
where
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        drop(tokio::task::spawn_local(future));
    }
}

/// Reads as little as shows which HTTP a client speaks; nothing is lost. `None`: the client left.
pub async fn detect<S: Stream>(mut stream: S, timer: &Timer) -> io::Result<Option<(Codec, Rewind<S>)>> {
    let mut ahead = BytesMut::with_capacity(1024);
    loop {
        let read = timer.timeout(DETECT, stream.read_buf(&mut ahead)).await;
        if read.ok_or(io::ErrorKind::TimedOut)?? == 0 {
            return Ok(None);
        }
        let seen = ahead.len().min(PREFACE.len());
        let same = ahead.get(..seen) == PREFACE.get(..seen);
        if !same || seen == PREFACE.len() {
            let codec = if same { Codec::Http2 } else { Codec::Http1 };
            return Ok(Some((codec, Rewind::new(ahead.freeze(), stream))));
        }
    }
}

/// Serves a connection until it ends, is drained, must be reset, or exceeds one of the limits on connections that come
/// in.
pub async fn serve<S, H, F>(
    codec: Codec,
    stream: S,
    reset: Reset,
    tracked: &Tracked,
    limits: &ConnectionLimits,
    handler: H,
) where
    S: Stream + Send,
    H: Fn(Request<Incoming>) -> F + Unpin + 'static,
    F: Future<Output = Result<Response<Body>, Infallible>> + 'static,
{
    let requests = Rc::new(Requests::default());
    let unused = || unused(requests.clone(), limits.http_idle);
    match codec {
        Codec::Http1 => {
            let last = LastAnswer::default();
            let heads = requests.heads.clone();
            let answer = |request: Request<Incoming>| {
                heads.complete();
                let (version, busy, last) = (request.version(), requests.begin(), last.clone());
                handler(request).map(move |response| {
                    let Ok(mut response) = response;
                    response.body_mut().busy(busy);
                    last.mark(version, &mut response);
                    Ok(response)
                })
            };
            let mut connection = Box::pin(h1::Connection::new(stream, heads.clone(), answer));
            let drain = |connection: Pin<&mut h1::Connection<_, _>>| connection.get_mut().graceful_shutdown();
            let served = until(tracked, &reset, unused(), connection.as_mut(), Some(&last), drain);
            let result = tokio::select! {
                result = served => result,
                () = heads.late(limits.request_head) => return,
            };
            if let Err(error) = result {
                tracing::debug!(%error, source = ?error.source(), "connection");
                // Where the end of the connection is the end of the answer, a break must not look like one.
                reset.arm();
            }
        }
        Codec::Http2 => {
            let stream = Batched::new(stream);
            let unused = unused();
            let handler = move |request: Request<Incoming>| {
                let busy = requests.begin();
                handler(request).map(move |response| {
                    let Ok(mut response) = response;
                    response.body_mut().busy(busy);
                    Ok(response)
                })
            };
            let mut driven = Box::pin(Driven::new(Server::new(stream.clone(), handler), stream));
            let served = until(tracked, &reset, unused, driven.as_mut(), None, |driven| {
                driven.get_mut().connection().graceful_shutdown();
            });
            if let Err(error) = served.await {
                tracing::debug!(%error, source = ?error.source(), "connection");
            }
        }
    }
}

/// The requests of one connection that are being answered.
struct Requests {
    open: Cell<usize>,
    /// Since when there is none.
    since: Cell<Instant>,
    heads: Rc<Heads>,
}

impl Default for Requests {
    fn default() -> Self {
        Self { open: Cell::new(0), since: Cell::new(Instant::now()), heads: Rc::default() }
    }
}

/// Counts as a request of its connection until dropped.
pub(super) struct Busy(Rc<Requests>);

impl Drop for Busy {
    fn drop(&mut self) {
        let open = self.0.open.get().saturating_sub(1);
        self.0.open.set(open);
        if open == 0 {
            self.0.since.set(Instant::now());
            self.0.heads.answered();
        }
    }
}

impl Requests {
    /// A request begins; it counts until its answer has gone out.
    fn begin(self: &Rc<Self>) -> Busy {
        self.open.set(self.open.get() + 1);
        Busy(self.clone())
    }
}

/// Resolves when a connection had no request for so long.
async fn unused(requests: Rc<Requests>, idle: Option<Duration>) {
    let Some(idle) = idle else { return std::future::pending().await };
    loop {
        let since = if requests.open.get() == 0 { requests.since.get() } else { Instant::now() };
        let end = since + idle;
        if Instant::now() >= end {
            return;
        }
        tokio::time::sleep_until(end).await;
    }
}

/// Tells an HTTP/1.1 client which answer is the last one on its connection.
#[derive(Clone, Default)]
struct LastAnswer(Rc<Cell<bool>>);

impl LastAnswer {
    /// From now on every answer is the last.
    fn begin(&self) {
        self.0.set(true);
    }

    /// An answer to a request of this version. HTTP/2 has a frame for it.
    fn mark<B>(&self, version: Version, response: &mut Response<B>) {
        let upgraded = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        if self.0.get() && version < Version::HTTP_2 && !upgraded {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
    }
}

/// Resolves when a connection that may be between two requests is to be closed: reset, or drained and without a request
/// for [`LAST_REQUEST`] since.
pub(crate) async fn idle_ending(tracked: &Tracked) {
    if tracked.ending().await == Ending::Drain {
        tokio::select! {
            _ = tracked.reset() => {}
            () = tokio::time::sleep(LAST_REQUEST) => {}
        }
    }
}

/// Drives a connection; a reset drops it with everything that is open on it. `last`: its client is told which answer is
/// the last, before the connection is closed.
async fn until<C, E>(
    tracked: &Tracked,
    reset: &Reset,
    unused: impl Future<Output = ()>,
    mut connection: Pin<&mut C>,
    last: Option<&LastAnswer>,
    drain: impl Fn(Pin<&mut C>),
) -> Result<(), E>
where
    C: Future<Output = Result<(), E>>,
{
    tokio::select! {
        result = connection.as_mut() => return result,
        ending = tracked.ending() => match ending {
            Ending::Drain => {}
            Ending::Reset(_) => {
                reset.arm();
                return Ok(());
            }
        },
        () = unused => {}
    }
    if let Some(last) = last {
        last.begin();
        tokio::select! {
            result = connection.as_mut() => return result,
            _ = tracked.reset() => {}
            () = tokio::time::sleep(LAST_REQUEST) => {}
        }
    }
    drain(connection.as_mut());
    tokio::select! {
        result = connection => result,
        _ = tracked.reset() => {
            reset.arm();
            Ok(())
        }
    }
}

/// Opens HTTP/1.1 over a connection that asks for health: a few requests, and nothing hangs on them.
///
/// # Errors
/// hyper could not begin.
pub async fn client_h1<S: Stream + Send>(
    stream: S,
) -> hyper::Result<(client::conn::http1::SendRequest<Body>, client::conn::http1::Connection<TokioIo<S>, Body>)>
{
    client::conn::http1::Builder::new().max_buf_size(MAX_HEAD).handshake(TokioIo::new(stream)).await
}

/// Opens HTTP/2 over a connection.
///
/// # Errors
/// hyper could not begin.
pub async fn client_h2<S: Stream>(
    stream: S,
) -> hyper::Result<(
    client::conn::http2::SendRequest<Body>,
    client::conn::http2::Connection<TokioIo<S>, Body, LocalExecutor>,
)> {
    client::conn::http2::Builder::new(LocalExecutor)
        .timer(TokioTimer::new())
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING_TIMEOUT)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX))
        .handshake(TokioIo::new(stream))
        .await
}
