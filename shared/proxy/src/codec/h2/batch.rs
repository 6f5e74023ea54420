//! One write for all that a connection has to say at a time.
//!
//! The `h2` crate flushes behind each larger frame, so that the answers of many streams would be as many writes, each a
//! system call and a TLS record. Here they wait until the connection has nothing more to add.

use std::{
    cell::RefCell,
    future::Future,
    io::{self, IoSlice},
    ops::DerefMut,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that wait to be written together: a TLS record's most. What is larger goes by itself.
const BATCH: usize = 16 << 10;
/// A buffer that is no larger outlives its bytes.
const KEPT: usize = 4 << 10;

/// A stream whose small writes wait for [`Driven`]. A flush says nothing to it.
pub(in crate::codec) struct Batched<S>(Rc<RefCell<Batch<S>>>);

struct Batch<S> {
    stream: S,
    waiting: Vec<u8>,
    /// How much of it has gone.
    gone: usize,
    /// Something came since this was last asked.
    heard: bool,
    /// Nothing is read now.
    deaf: bool,
    /// Why the last write failed, until the connection is told.
    broken: Option<io::Error>,
}

impl<S> Clone for Batched<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S: AsyncWrite + Unpin> Batched<S> {
    pub(in crate::codec) fn new(stream: S) -> Self {
        let batch = Batch { stream, waiting: Vec::new(), gone: 0, heard: false, deaf: false, broken: None };
        Self(Rc::new(RefCell::new(batch)))
    }

    /// Whether something came since the last time.
    pub(super) fn take_heard(&self) -> bool {
        std::mem::take(&mut self.0.borrow_mut().heard)
    }

    /// Whether to read. Who stops it starts it again in the same turn: nothing wakes for what comes in between.
    pub(super) fn hear(&self, hear: bool) {
        self.0.borrow_mut().deaf = !hear;
    }

    #[cfg(test)]
    pub(super) fn stream(&self) -> std::cell::RefMut<'_, S> {
        std::cell::RefMut::map(self.0.borrow_mut(), |batch| &mut batch.stream)
    }

    /// Writes what waits. Should that fail, the connection learns of it when it reads.
    fn poll_send(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut batch = self.0.borrow_mut();
        let sent = ready!(batch.poll_send(cx));
        if let Err(error) = sent {
            batch.broken = Some(error);
            cx.waker().wake_by_ref();
        }
        Poll::Ready(())
    }
}

impl<S: AsyncWrite + Unpin> Batch<S> {
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.waiting.get(self.gone..).filter(|rest| !rest.is_empty()) {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, rest)) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(written) => self.gone += written,
                Err(error) => {
                    self.empty();
                    return Poll::Ready(Err(error));
                }
            }
        }
        self.empty();
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn empty(&mut self) {
        self.gone = 0;
        if self.waiting.capacity() > KEPT {
            self.waiting = Vec::new();
        } else {
            self.waiting.clear();
        }
    }

    /// Whether so many bytes more may wait; if not, what waits has been written.
    fn poll_room(&mut self, bytes: usize, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if let Some(error) = self.broken.take() {
            return Poll::Ready(Err(error));
        }
        if bytes + self.waiting.len() > BATCH {
            ready!(self.poll_send(cx))?;
        }
        Poll::Ready(Ok(bytes <= BATCH))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Batched<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut batch = self.0.borrow_mut();
        if let Some(error) = batch.broken.take() {
            return Poll::Ready(Err(error));
        }
        if batch.deaf {
            return Poll::Pending;
        }
        ready!(Pin::new(&mut batch.stream).poll_read(cx, buf))?;
        batch.heard = true;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Batched<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let batch = &mut *self.0.borrow_mut();
        if ready!(batch.poll_room(buf.len(), cx))? {
            batch.waiting.extend_from_slice(buf);
            return Poll::Ready(Ok(buf.len()));
        }
        Pin::new(&mut batch.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let batch = &mut *self.0.borrow_mut();
        let bytes = bufs.iter().map(|buf| buf.len()).sum();
        if ready!(batch.poll_room(bytes, cx))? {
            batch.waiting.reserve(bytes);
            bufs.iter().for_each(|buf| batch.waiting.extend_from_slice(buf));
            return Poll::Ready(Ok(bytes));
        }
        Pin::new(&mut batch.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let batch = &mut *self.0.borrow_mut();
        ready!(batch.poll_send(cx))?;
        Pin::new(&mut batch.stream).poll_shutdown(cx)
    }
}

/// Drives a connection over a [`Batched`] stream: what it has written goes when it has nothing more to do.
pub(in crate::codec) struct Driven<C, S> {
    connection: Pin<Box<C>>,
    stream: Batched<S>,
}

impl<C, S> Driven<C, S> {
    pub(in crate::codec) fn new(connection: C, stream: Batched<S>) -> Self {
        Self { connection: Box::pin(connection), stream }
    }

    pub(in crate::codec) fn connection(&mut self) -> Pin<&mut C> {
        self.connection.as_mut()
    }
}

impl<C: Future, S: AsyncWrite + Unpin> Future for Driven<C, S> {
    type Output = C::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<C::Output> {
        let this = self.deref_mut();
        let polled = this.connection.as_mut().poll(cx);
        if polled.is_pending() {
            // A socket that is full wakes this task, too.
            let _ = this.stream.poll_send(cx);
        }
        polled
    }
}
