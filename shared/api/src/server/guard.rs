//! The clock of a connection, below HTTP.
//!
//! Between requests it waits for the next one; from a request's first byte on, its head must be whole in a second;
//! while a request is under way, reading is the handler's business (it bounds bodies), and writing must make progress.
//! An HTTP/1 client that is too slow with its head gets a 408 before the connection closes.

use super::Bounds;
use bytes::Bytes;
use futures::task::AtomicWaker;
use http_body::{Body, Frame, SizeHint};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

const TOO_SLOW: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// How many requests of a connection are under way; shared by its stream and its service.
#[derive(Clone, Default)]
pub(super) struct Activity(Arc<Shared>);

#[derive(Default)]
struct Shared {
    requests: AtomicUsize,
    /// The reading side, to begin its clock when the last request ends: HTTP does not look at it again by itself.
    reader: AtomicWaker,
}

/// One request under way, until its answer is sent or given up.
pub(super) struct Busy(Activity);

impl Activity {
    pub(super) fn begin(&self) -> Busy {
        self.0.requests.fetch_add(1, Ordering::AcqRel);
        Busy(self.clone())
    }

    fn is_busy(&self) -> bool {
        self.0.requests.load(Ordering::Acquire) > 0
    }
}

impl Busy {
    pub(super) fn until_sent(self, body: axum::body::Body) -> axum::body::Body {
        axum::body::Body::new(Sent { body, _busy: self })
    }
}

struct Sent {
    body: axum::body::Body,
    _busy: Busy,
}

impl Body for Sent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if self.0.0.requests.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.0.reader.wake();
        }
    }
}

/// What the reading side waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiting {
    /// The first byte of a request.
    Request,
    /// The rest of its head.
    Head,
    /// Nothing: a request is under way.
    Handler,
}

pub(super) struct Guarded<S> {
    stream: S,
    activity: Activity,
    bounds: Bounds,
    waiting: Waiting,
    read_timer: Pin<Box<Sleep>>,
    write_timer: Option<Pin<Box<Sleep>>>,
    /// The connection began as HTTP/2: there is no way to answer without a stream.
    http2: bool,
    seen: usize,
    /// The rest of a 408 to be written, then the end.
    farewell: Option<&'static [u8]>,
}

impl<S> Guarded<S> {
    pub(super) fn new(stream: S, activity: Activity, bounds: Bounds) -> Self {
        Self {
            stream,
            activity,
            bounds,
            // A client that connects has something to say.
            waiting: Waiting::Head,
            read_timer: Box::pin(tokio::time::sleep(bounds.header)),
            write_timer: None,
            http2: false,
            seen: 0,
            farewell: None,
        }
    }

    fn arm(&mut self, waiting: Waiting, after: Duration) {
        self.waiting = waiting;
        self.read_timer.as_mut().reset(Instant::now() + after);
    }

    fn update(&mut self) {
        match (self.activity.is_busy(), self.waiting) {
            (true, _) => self.waiting = Waiting::Handler,
            (false, Waiting::Handler) => self.arm(Waiting::Request, self.bounds.idle),
            (false, _) => {}
        }
    }

    fn received(&mut self, bytes: &[u8]) {
        if self.seen < 3 {
            self.http2 = self.seen == 0 && bytes.starts_with(b"PRI");
        }
        self.seen = self.seen.saturating_add(bytes.len());
        // Between requests HTTP/2 sends pings and settings; a request must only begin in time.
        if self.waiting == Waiting::Request && !self.http2 {
            self.arm(Waiting::Head, self.bounds.header);
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Guarded<S> {
    fn poll_farewell(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.farewell.filter(|rest| !rest.is_empty()) {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, rest))?;
            self.farewell = rest.get(written..).filter(|_| written > 0);
        }
        self.farewell = Some(&[]);
        Pin::new(&mut self.stream).poll_flush(cx)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.farewell.is_some() {
            return this.poll_farewell(cx);
        }
        this.update();
        let before = buf.filled().len();
        if let Poll::Ready(result) = Pin::new(&mut this.stream).poll_read(cx, buf) {
            this.received(buf.filled().get(before..).unwrap_or_default());
            return Poll::Ready(result);
        }
        if this.waiting == Waiting::Handler {
            this.activity.0.reader.register(cx.waker());
            // The last request may have ended while nobody was registered.
            this.update();
            if this.waiting == Waiting::Handler {
                return Poll::Pending;
            }
        }
        ready!(this.read_timer.as_mut().poll(cx));
        let answer = this.waiting == Waiting::Head && this.seen > 0 && !this.http2;
        this.farewell = Some(if answer { TOO_SLOW } else { &[] });
        this.poll_farewell(cx)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        match Pin::new(&mut this.stream).poll_write(cx, buf) {
            Poll::Ready(result) => {
                this.write_timer = None;
                Poll::Ready(result)
            }
            Poll::Pending => {
                let limit = this.bounds.write;
                let timer = this.write_timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
                ready!(timer.as_mut().poll(cx));
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read")))
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
