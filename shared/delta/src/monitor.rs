//! A transport that says when it is gone, and why: a server that does not accept a client's certificate says so in an
//! alert after the handshake (TLS 1.3), which would otherwise end as "connection closed".

use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::DropGuard;

/// Drops its guard with the transport: whoever drives a connection drops the transport when the connection has ended.
pub(crate) struct Monitored<T> {
    transport: T,
    failure: Failure,
    _guard: DropGuard,
}

/// Why the transport failed first, once it did. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Failure(Arc<OnceLock<String>>);

impl Failure {
    fn note<T>(&self, result: &Poll<io::Result<T>>) {
        if let Poll::Ready(Err(error)) = result {
            let _ = self.0.set(error.to_string());
        }
    }

    pub(crate) fn to_error(&self) -> io::Error {
        let reason = self.0.get().map_or("the connection is closed", String::as_str);
        io::Error::new(io::ErrorKind::NotConnected, reason)
    }
}

impl<T> Monitored<T> {
    pub(crate) fn new(transport: T, failure: Failure, guard: DropGuard) -> Monitored<T> {
        Monitored { transport, failure, _guard: guard }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Monitored<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.transport).poll_read(cx, buf);
        self.failure.note(&read);
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Monitored<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.transport).poll_write(cx, buf);
        self.failure.note(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.transport).poll_write_vectored(cx, bufs);
        self.failure.note(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.transport.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.transport).poll_flush(cx);
        self.failure.note(&flushed);
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_shutdown(cx)
    }
}
