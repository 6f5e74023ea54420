//! A connection as its task and the bodies on it share it.

use super::{
    Error,
    decode::{Decoder, Piece},
    out::Out,
    parse::Framing,
};
use crate::io::Stream;
use bytes::{Bytes, BytesMut};
use http_body::{Frame, SizeHint};
use std::{
    cell::RefCell,
    io,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, Waker, ready},
};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};

/// What is read at once where little is expected: into one buffer of the thread, so that a connection that rests has none.
const SCRATCH: usize = 16 << 10;
/// The same in the midst of a large body, into the buffer that it is passed on in.
const BULK: usize = 64 << 10;

pub(super) type Shared = Rc<RefCell<Link>>;

/// One end of a connection.
pub(super) struct Link {
    /// `None`: it is over.
    pub(super) io: Option<Box<dyn Stream + Send>>,
    /// What was read and not yet understood.
    pub(super) input: BytesMut,
    decoder: Decoder,
    /// Which body on this connection the decoder is of: an older one can't read of it.
    serial: u64,
    waits: Waits,
    /// The last read had no end: the next one is likely large, too.
    flowing: bool,
    /// Of the task that keeps the connection.
    pub(super) owner: Option<Waker>,
    /// Of who reads, and of who writes: woken when the connection ends, which a dropped socket tells nobody.
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// Whether who sends a body waits for a word (100-continue).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Waits {
    No,
    Yes,
    /// And somebody wants the body.
    Wanted,
}

thread_local! {
    static READ: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into());
}

/// Keeps a waker that is not kept already.
pub(super) fn keep(kept: &mut Option<Waker>, cx: &Context<'_>) {
    match kept {
        Some(known) => known.clone_from(cx.waker()),
        None => *kept = Some(cx.waker().clone()),
    }
}

impl Link {
    pub(super) fn over(io: impl Stream + Send) -> Shared {
        Rc::new(RefCell::new(Self {
            io: Some(Box::new(io)),
            input: BytesMut::new(),
            decoder: Decoder::Done,
            serial: 0,
            waits: Waits::No,
            flowing: false,
            owner: None,
            reader: None,
            writer: None,
        }))
    }

    /// # Errors
    /// The connection is over.
    pub(super) fn io(&mut self) -> io::Result<&mut (dyn Stream + Send)> {
        self.io.as_deref_mut().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Ends the connection, for everybody.
    pub(super) fn close(&mut self) {
        self.io = None;
        self.input = BytesMut::new();
        for waker in [self.owner.take(), self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }

    /// A body begins. `waits`: who sends it waits for a word.
    pub(super) fn begin(&mut self, framing: Framing, waits: bool) -> u64 {
        self.decoder = framing.into();
        self.serial += 1;
        self.waits = if waits { Waits::Yes } else { Waits::No };
        self.flowing = false;
        self.serial
    }

    pub(super) fn is_read(&self) -> bool {
        self.decoder.is_done()
    }

    /// Whether the body is none, so that nothing can follow it.
    pub(super) fn is_broken(&self) -> bool {
        self.decoder.is_broken()
    }

    /// Whether the body is over, with what has come already thrown away. Who still reads of it is told that it broke off.
    pub(super) fn skip(&mut self) -> bool {
        if !self.decoder.is_done() {
            self.serial += 1;
        }
        while !self.decoder.is_done() && self.waits != Waits::Yes {
            match self.decoder.next(&mut self.input) {
                Ok(Piece::Data(_)) => {}
                Ok(Piece::Trailers(_) | Piece::End) => break,
                Ok(Piece::More) | Err(_) => return false,
            }
        }
        if self.input.is_empty() {
            self.input = BytesMut::new();
        }
        self.decoder.is_done()
    }

    /// Whether somebody wants a body that its sender holds back; told once.
    pub(super) fn wanted(&mut self) -> bool {
        let wanted = self.waits == Waits::Wanted;
        if wanted {
            self.waits = Waits::No;
        }
        wanted
    }

    /// Writes what waits.
    pub(super) fn poll_write(&mut self, out: &mut Out, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let written = out.poll_write(self.io()?, cx);
        if written.is_pending() {
            keep(&mut self.writer, cx);
        }
        written
    }

    /// Reads more; 0: the other side has ended.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let large = match self.decoder.left() {
            Some(left) => left > SCRATCH as u64,
            None => self.flowing,
        };
        let Some(io) = &mut self.io else { return Poll::Ready(Err(io::ErrorKind::NotConnected.into())) };
        let read = if large {
            if self.input.capacity() - self.input.len() < SCRATCH {
                self.input.reserve(BULK);
            }
            pin!(io.read_buf(&mut self.input)).poll(cx)
        } else {
            READ.with_borrow_mut(|scratch| {
                let mut into = ReadBuf::new(scratch);
                ready!(Pin::new(io).poll_read(cx, &mut into))?;
                self.input.extend_from_slice(into.filled());
                Poll::Ready(Ok(into.filled().len()))
            })
        };
        match &read {
            Poll::Pending => keep(&mut self.reader, cx),
            Poll::Ready(Ok(count)) => self.flowing = *count >= SCRATCH,
            Poll::Ready(Err(_)) => {}
        }
        read
    }

    /// Whether the other side has ended, or says something that nobody asked for: between two messages.
    pub(super) fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.input.is_empty() {
            return Poll::Ready(());
        }
        self.poll_fill(cx).map(drop)
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        loop {
            match self.decoder.next(&mut self.input) {
                Ok(Piece::Data(data)) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Ok(Piece::Trailers(trailers)) => return Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
                Ok(Piece::End) => return Poll::Ready(None),
                Ok(Piece::More) => {}
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
            if self.waits == Waits::Yes {
                self.waits = Waits::Wanted;
                if let Some(owner) = &self.owner {
                    owner.wake_by_ref();
                }
            }
            match ready!(self.poll_fill(cx)) {
                Ok(0) if self.decoder.ended() => return Poll::Ready(None),
                Ok(0) => return Poll::Ready(Some(Err(Error::Cut))),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Some(Err(error.into()))),
            }
        }
    }
}

/// A body that comes over a connection.
pub struct Incoming {
    link: Shared,
    serial: u64,
    /// All of it was read.
    ended: bool,
    failed: bool,
}

impl Incoming {
    pub(super) fn of(link: &Shared, serial: u64) -> Self {
        let ended = link.borrow().is_read();
        Self { link: link.clone(), serial, ended, failed: false }
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let mut link = self.link.borrow_mut();
        if self.ended || self.failed {
            return Poll::Ready(None);
        }
        let polled = match link.serial == self.serial {
            true => link.poll_body(cx),
            // The connection has gone on without its reader.
            false => Poll::Ready(Some(Err(Error::Cut))),
        };
        self.failed = matches!(polled, Poll::Ready(Some(Err(_))));
        self.ended = !self.failed && link.serial == self.serial && link.is_read();
        polled
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        let link = self.link.borrow();
        self.ended || (link.serial == self.serial && link.is_read())
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        let link = self.link.borrow();
        if self.ended {
            return SizeHint::with_exact(0);
        }
        if link.serial != self.serial {
            return SizeHint::default();
        }
        link.decoder.left().map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
