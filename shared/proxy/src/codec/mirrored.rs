//! A copy of a request's body for a mirror, made of what passes anyway.
//!
//! The request never waits for its copies: bytes are shared, not copied, up to [`BEHIND`]. A mirror that falls further behind
//! is given up, and its request ends with an error, so that nobody takes a part for the whole. Rejected: waiting for
//! the slowest (a mirror would slow down what it mirrors), and reading the body before (memory, and no streams).

use super::BodyError;
use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;
use std::{
    cell::RefCell,
    collections::VecDeque,
    future::poll_fn,
    rc::Rc,
    task::{Context, Poll, Waker},
};

/// Bytes by which a copy may be behind: as much as one stream of HTTP/2 may have on its way.
const BEHIND: usize = 256 << 10;
/// What a piece takes beside its bytes, at least: a body of single bytes is not kept for nothing.
const PIECE: usize = 128;

/// Where a body that passes leaves its copy. Dropped before the end, it gives the copy up.
pub struct CopyTo(Rc<RefCell<Inner>>);

/// Where a mirror reads it.
pub struct CopyFrom(Rc<RefCell<Inner>>);

/// What became of it.
pub struct CopyFate(Rc<RefCell<Inner>>);

#[derive(Default)]
struct Inner {
    waiting: VecDeque<Piece>,
    bytes: usize,
    state: State,
    reader: Option<Waker>,
    watcher: Option<Waker>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Flowing,
    Ended,
    GivenUp,
    /// Nobody reads any more.
    Left,
}

enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
}

/// Both ends of a copy.
pub fn mirrored() -> (CopyTo, CopyFrom) {
    let inner = Rc::<RefCell<Inner>>::default();
    (CopyTo(inner.clone()), CopyFrom(inner))
}

impl CopyTo {
    pub(super) fn push(&self, frame: &Frame<Bytes>) {
        let mut inner = self.0.borrow_mut();
        if inner.state != State::Flowing {
            return;
        }
        if let Some(data) = frame.data_ref() {
            inner.bytes += PIECE + data.len();
            inner.waiting.push_back(Piece::Data(data.clone()));
        } else if let Some(trailers) = frame.trailers_ref() {
            inner.waiting.push_back(Piece::Trailers(trailers.clone()));
        }
        if inner.bytes > BEHIND {
            inner.give_up();
        }
        inner.wake();
    }

    pub(super) fn end(self) {
        let mut inner = self.0.borrow_mut();
        if inner.state == State::Flowing {
            inner.state = State::Ended;
        }
        inner.wake();
    }
}

impl Drop for CopyTo {
    fn drop(&mut self) {
        let mut inner = self.0.borrow_mut();
        if inner.state == State::Flowing {
            inner.give_up();
        }
        inner.wake();
    }
}

impl Drop for CopyFrom {
    fn drop(&mut self) {
        // Nobody reads: nothing is kept.
        let mut inner = self.0.borrow_mut();
        if inner.state == State::Flowing {
            inner.state = State::Left;
        }
        inner.waiting = VecDeque::new();
    }
}

impl Inner {
    fn give_up(&mut self) {
        self.state = State::GivenUp;
        self.waiting = VecDeque::new();
        self.bytes = 0;
    }

    fn wake(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
        if self.state == State::GivenUp
            && let Some(watcher) = self.watcher.take()
        {
            watcher.wake();
        }
    }
}

impl CopyFrom {
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut inner = self.0.borrow_mut();
        match (inner.waiting.pop_front(), inner.state) {
            (Some(Piece::Data(data)), _) => {
                inner.bytes = inner.bytes.saturating_sub(PIECE + data.len());
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            (Some(Piece::Trailers(trailers)), _) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
            (None, State::Ended) => Poll::Ready(None),
            (None, State::GivenUp | State::Left) => Poll::Ready(Some(Err(BodyError::GivenUp))),
            (None, State::Flowing) => {
                inner.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        let inner = self.0.borrow();
        inner.waiting.is_empty() && inner.state == State::Ended
    }

    pub fn fate(&self) -> CopyFate {
        CopyFate(self.0.clone())
    }
}

impl CopyFate {
    /// Ends when the copy can no longer become whole.
    pub async fn given_up(&self) {
        poll_fn(|cx| {
            let mut inner = self.0.borrow_mut();
            if inner.state == State::GivenUp {
                return Poll::Ready(());
            }
            inner.watcher = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::task::noop_waker_ref;

    fn poll(from: &mut CopyFrom) -> Poll<Option<Result<Vec<u8>, String>>> {
        let read = from.poll(&mut Context::from_waker(noop_waker_ref()));
        let text = |frame: Frame<Bytes>| frame.into_data().map(|data| data.to_vec()).unwrap_or_default();
        read.map(|read| read.map(|result| result.map(text).map_err(|error| error.to_string())))
    }

    fn data(bytes: usize) -> Frame<Bytes> {
        Frame::data(Bytes::from(vec![7; bytes]))
    }

    #[test]
    fn a_copy_is_whole_or_an_error() {
        let (to, mut from) = mirrored();
        assert!(poll(&mut from).is_pending());
        to.push(&data(2));
        to.end();
        assert!(!from.is_end_stream());
        assert_eq!(poll(&mut from), Poll::Ready(Some(Ok(vec![7, 7]))));
        assert!(from.is_end_stream());
        assert_eq!(poll(&mut from), Poll::Ready(None));

        let (to, mut from) = mirrored();
        to.push(&data(2));
        drop(to);
        assert!(matches!(poll(&mut from), Poll::Ready(Some(Err(_)))));
    }

    #[test]
    fn who_is_too_far_behind_is_given_up_and_who_follows_is_not() {
        let (to, mut from) = mirrored();
        for _ in 0..100 {
            to.push(&data(BEHIND / 2));
            assert!(matches!(poll(&mut from), Poll::Ready(Some(Ok(_)))));
        }
        to.push(&data(BEHIND / 2));
        assert_eq!(from.0.borrow().state, State::Flowing);
        to.push(&data(BEHIND / 2));
        assert_eq!(from.0.borrow().state, State::GivenUp);
        assert_eq!(from.0.borrow().waiting.len(), 0, "nothing is kept");
        to.push(&data(1));
        to.end();
        assert!(matches!(poll(&mut from), Poll::Ready(Some(Err(_)))));

        let (to, from) = mirrored();
        for _ in 0..BEHIND / PIECE {
            to.push(&data(1));
        }
        assert_eq!(from.0.borrow().state, State::GivenUp, "many small pieces are large too");

        let (to, from) = mirrored();
        drop(from);
        to.push(&data(1));
        assert_eq!(to.0.borrow().waiting.len(), 0, "nobody reads");
    }
}
