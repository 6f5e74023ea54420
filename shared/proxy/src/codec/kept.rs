//! A body that was read as a whole, and the room that it takes.

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use std::{cell::Cell, rc::Rc};

/// Bytes and trailers that are still to be sent.
pub(crate) struct Kept {
    bytes: Bytes,
    trailers: Option<HeaderMap>,
    _room: Room,
}

/// A part of what a worker may hold of bodies; given back when dropped.
pub(crate) struct Room {
    taken: Rc<Cell<usize>>,
    mine: usize,
    limit: usize,
}

impl Room {
    pub(crate) fn new(taken: &Rc<Cell<usize>>, limit: usize) -> Self {
        Self { taken: taken.clone(), mine: 0, limit }
    }

    /// Whether there is room for so many bytes more; they then count.
    pub(crate) fn grow(&mut self, bytes: usize) -> bool {
        let taken = self.taken.get().saturating_add(bytes);
        if taken > self.limit {
            return false;
        }
        self.taken.set(taken);
        self.mine += bytes;
        true
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.taken.set(self.taken.get().saturating_sub(self.mine));
    }
}

impl Kept {
    pub(crate) fn new(bytes: Bytes, trailers: Option<HeaderMap>, room: Room) -> Self {
        Self { bytes, trailers: trailers.filter(|trailers| !trailers.is_empty()), _room: room }
    }

    pub(super) fn take_trailers(&mut self) -> Option<HeaderMap> {
        self.trailers.take()
    }

    pub(super) fn next(&mut self) -> Option<Frame<Bytes>> {
        let bytes = std::mem::take(&mut self.bytes);
        if bytes.is_empty() { self.trailers.take().map(Frame::trailers) } else { Some(Frame::data(bytes)) }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.bytes.is_empty() && self.trailers.is_none()
    }

    /// What has an exact length is sent without trailers.
    pub(super) fn size_hint(&self) -> SizeHint {
        let length = self.bytes.len() as u64;
        if self.trailers.is_none() {
            return SizeHint::with_exact(length);
        }
        let mut hint = SizeHint::new();
        hint.set_lower(length);
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_given_back() {
        let taken = Rc::default();
        let mut room = Room::new(&taken, 10);
        assert!(room.grow(4) && room.grow(6) && !room.grow(1));
        let mut other = Room::new(&taken, 10);
        assert!(!other.grow(1));
        let mut kept = Kept::new(Bytes::from_static(b"0123456789"), None, room);
        assert_eq!(kept.size_hint().exact(), Some(10));
        assert!(kept.next().is_some() && kept.next().is_none() && kept.is_end_stream());
        drop(kept);
        assert!(other.grow(10));
    }
}
