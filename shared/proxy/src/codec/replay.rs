//! A request's body that can be sent once more, as long as what was read of it fits a buffer.
//!
//! The body flows as it comes, and a copy (a reference to the same bytes) is kept of what passed. A repetition first
//! reads the copy and then goes on with the source. Once the copy exceeds [`REPLAY`] it is given up, and the request with
//! it: it can't be repeated any more.

use super::{BodyError, body::Source};
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use std::{
    cell::RefCell,
    collections::VecDeque,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

/// What a piece costs besides its bytes: a peer may send one at a time.
pub(crate) const PIECE: usize = 128;
/// Bytes of one request's body that are kept for a repetition.
const REPLAY: usize = 64 << 10;

/// What passed of a body, and the rest of it.
pub struct Tape(Rc<RefCell<Inner>>);

/// One reading of a tape; ends with an error when the next one begins.
pub struct Reader {
    tape: Rc<RefCell<Inner>>,
    number: u32,
    /// Pieces to read before the source goes on.
    again: VecDeque<Piece>,
}

struct Inner {
    source: Source,
    kept: Vec<Piece>,
    bytes: usize,
    /// Whether all of what passed is kept.
    whole: bool,
    ended: bool,
    reader: u32,
}

#[derive(Clone)]
enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
}

impl Tape {
    pub(crate) fn new(source: Source) -> Self {
        let inner = Inner { source, kept: Vec::new(), bytes: 0, whole: true, ended: false, reader: 0 };
        Self(Rc::new(RefCell::new(inner)))
    }

    /// A reading from the beginning. `None`: too much has passed, or [`Tape::stop`] was called.
    pub fn read(&self) -> Option<Reader> {
        let mut inner = self.0.borrow_mut();
        if !inner.whole {
            return None;
        }
        inner.reader += 1;
        let again = inner.kept.iter().cloned().collect();
        Some(Reader { tape: self.0.clone(), number: inner.reader, again })
    }

    /// Keeps nothing any more: there is an answer.
    pub fn stop(&self) {
        self.0.borrow_mut().stop();
    }
}

impl Inner {
    fn stop(&mut self) {
        self.whole = false;
        self.kept = Vec::new();
    }

    fn keep(&mut self, frame: &Frame<Bytes>) {
        if !self.whole {
            return;
        }
        if let Some(data) = frame.data_ref() {
            self.bytes += data.len() + PIECE;
            self.kept.push(Piece::Data(data.clone()));
        } else if let Some(trailers) = frame.trailers_ref() {
            self.kept.push(Piece::Trailers(trailers.clone()));
        }
        if self.bytes > REPLAY {
            self.stop();
        }
    }
}

/// A frame, and whether it is read for the first time.
pub(super) type Read = (Frame<Bytes>, bool);

impl Reader {
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Read, BodyError>>> {
        let mut inner = self.tape.borrow_mut();
        if inner.reader != self.number {
            return Poll::Ready(Some(Err(BodyError::Replaced)));
        }
        if let Some(piece) = self.again.pop_front() {
            let frame = match piece {
                Piece::Data(bytes) => Frame::data(bytes),
                Piece::Trailers(trailers) => Frame::trailers(trailers),
            };
            return Poll::Ready(Some(Ok((frame, false))));
        }
        if inner.ended {
            return Poll::Ready(None);
        }
        match Pin::new(&mut inner.source).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                inner.keep(&frame);
                Poll::Ready(Some(Ok((frame, true))))
            }
            Poll::Ready(None) => {
                inner.ended = true;
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => {
                // What the client did not finish is not sent again.
                inner.stop();
                Poll::Ready(Some(Err(error)))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        let inner = self.tape.borrow();
        self.again.is_empty() && (inner.ended || inner.source.is_end_stream())
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        let again: usize = self
            .again
            .iter()
            .map(|piece| match piece {
                Piece::Data(bytes) => bytes.len(),
                Piece::Trailers(_) => 0,
            })
            .sum();
        let rest = self.tape.borrow().source.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(again as u64));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(again as u64));
        }
        hint
    }
}
