//! Bytes that wait to be written: small ones together, large ones as they came.

use bytes::{Buf, Bytes};
use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::AsyncWrite;

/// What is smaller is copied beside what waits already: one write for both.
const SMALL: usize = 2 << 10;
/// Of what one write is made.
const SLICES: usize = 16;

#[derive(Default)]
pub(super) struct Out {
    pieces: VecDeque<Piece>,
    length: usize,
    /// Some of it was written, ever.
    begun: bool,
    /// The stream may still hold some of what was written.
    unflushed: bool,
}

enum Piece {
    /// Bytes of several messages or parts, and how many of them are written.
    Joined(Vec<u8>, usize),
    Shared(Bytes),
}

impl Piece {
    fn rest(&self) -> &[u8] {
        match self {
            Self::Joined(bytes, written) => bytes.get(*written..).unwrap_or_default(),
            Self::Shared(bytes) => bytes,
        }
    }
}

impl Out {
    pub(super) fn len(&self) -> usize {
        self.length
    }

    pub(super) fn has_begun(&self) -> bool {
        self.begun
    }

    pub(super) fn is_empty(&self) -> bool {
        self.length == 0 && !self.unflushed
    }

    pub(super) fn push(&mut self, bytes: Bytes) {
        if bytes.len() <= SMALL {
            return self.with(|joined| joined.extend_from_slice(&bytes));
        }
        self.length += bytes.len();
        self.pieces.push_back(Piece::Shared(bytes));
    }

    /// Writes small parts behind all else.
    pub(super) fn with(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        // Not to one that is partly written: it would grow for as long as the reader is slower than the writer.
        if !matches!(self.pieces.back(), Some(Piece::Joined(_, 0))) {
            self.pieces.push_back(Piece::Joined(Vec::with_capacity(512), 0));
        }
        if let Some(Piece::Joined(joined, _)) = self.pieces.back_mut() {
            let before = joined.len();
            write(joined);
            self.length += joined.len() - before;
        }
    }

    /// Bytes that are held, written ones too.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        let held = |piece: &Piece| match piece {
            Piece::Joined(bytes, _) => bytes.len(),
            Piece::Shared(bytes) => bytes.len(),
        };
        self.pieces.iter().map(held).sum()
    }

    /// Writes all of it.
    pub(super) fn poll_write<S: AsyncWrite + Unpin + ?Sized>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while self.length > 0 {
            let written = match self.pieces.front() {
                Some(only) if self.pieces.len() == 1 => {
                    ready!(Pin::new(&mut *stream).poll_write(cx, only.rest()))?
                }
                _ => {
                    let mut slices = [IoSlice::new(&[]); SLICES];
                    let mut count = 0;
                    for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
                        *slice = IoSlice::new(piece.rest());
                        count += 1;
                    }
                    let slices = slices.get(..count).unwrap_or_default();
                    ready!(Pin::new(&mut *stream).poll_write_vectored(cx, slices))?
                }
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unflushed = true;
            self.begun = true;
            self.advance(written);
        }
        if self.unflushed {
            ready!(Pin::new(stream).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    fn advance(&mut self, mut written: usize) {
        self.length = self.length.saturating_sub(written);
        while let Some(piece) = self.pieces.front_mut() {
            let rest = piece.rest().len();
            if written < rest {
                match piece {
                    Piece::Joined(_, before) => *before += written,
                    Piece::Shared(bytes) => bytes.advance(written),
                }
                return;
            }
            written -= rest;
            self.pieces.pop_front();
        }
        // What rests holds no memory.
        self.pieces = VecDeque::new();
    }
}
