//! How long a request's head may take to come, over HTTP/1.1: from its first byte to its last.
//!
//! hyper's own limit counts from the end of the request before, so a connection that merely rests would be closed. Here
//! the stream is watched: the first byte that comes while no request is being answered begins a head, and the call of the
//! handler ends it. A head that came in part along with the request before it counts from its next byte; if none comes,
//! the connection counts as unused and ends as such.

use crate::io::{Stream, forward};
use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
    time::Instant,
};

/// Where a connection is between two heads. Shared with its stream, which must be `Send`: hence no cells.
pub(super) struct Heads {
    opened: Instant,
    /// Milliseconds from `opened` to a head's first byte, plus one; 0: no head is on its way.
    began: AtomicU64,
    /// A request is being answered: what comes meanwhile is its body.
    answering: AtomicBool,
    changed: Notify,
}

impl Default for Heads {
    fn default() -> Self {
        Self {
            opened: Instant::now(),
            began: AtomicU64::new(0),
            answering: AtomicBool::new(false),
            changed: Notify::new(),
        }
    }
}

impl Heads {
    fn bytes_came(&self) {
        if self.answering.load(Ordering::Relaxed) || self.began.load(Ordering::Relaxed) != 0 {
            return;
        }
        let millis = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.began.store(millis.saturating_add(1), Ordering::Relaxed);
        self.changed.notify_one();
    }

    /// A head has come whole.
    pub(super) fn complete(&self) {
        self.answering.store(true, Ordering::Relaxed);
        self.began.store(0, Ordering::Relaxed);
    }

    /// The answer has gone out whole.
    pub(super) fn answered(&self) {
        self.answering.store(false, Ordering::Relaxed);
    }

    /// Resolves when a head has been on its way for longer than the limit.
    pub(super) async fn late(&self, limit: Option<Duration>) {
        let Some(limit) = limit else { return std::future::pending().await };
        loop {
            let Some(millis) = self.began.load(Ordering::Relaxed).checked_sub(1) else {
                self.changed.notified().await;
                continue;
            };
            let end = self.opened + Duration::from_millis(millis) + limit;
            if Instant::now() >= end {
                return;
            }
            tokio::time::sleep_until(end).await;
        }
    }
}

/// A stream that says when bytes come.
pub(super) struct HeadWatch<S> {
    inner: S,
    /// `None`: nobody wants to know.
    heads: Option<Arc<Heads>>,
}

impl<S> HeadWatch<S> {
    pub(super) fn new(inner: S, heads: Option<Arc<Heads>>) -> Self {
        Self { inner, heads }
    }
}

impl<S: Stream> AsyncRead for HeadWatch<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        if let Some(heads) = self.heads.as_ref().filter(|_| buf.filled().len() > before) {
            heads.bytes_came();
        }
        read
    }
}

forward!(write HeadWatch<S>, inner, S);

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    const LIMIT: Duration = Duration::from_secs(10);

    /// Whether a head is late by now.
    async fn late(heads: &Heads) -> bool {
        tokio::time::timeout(Duration::ZERO, heads.late(Some(LIMIT))).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_counts_from_its_first_byte_and_a_rest_does_not() {
        let heads = Heads::default();
        tokio::time::advance(LIMIT * 5).await;
        assert!(!late(&heads).await, "nothing has come yet");
        for _ in 0..2 {
            heads.bytes_came();
            tokio::time::advance(LIMIT / 2).await;
            heads.bytes_came();
            assert!(!late(&heads).await);
            heads.complete();
            heads.bytes_came();
            tokio::time::advance(LIMIT * 2).await;
            assert!(!late(&heads).await, "that is the body");
            heads.answered();
        }
        heads.bytes_came();
        tokio::time::advance(LIMIT / 2).await;
        heads.bytes_came();
        tokio::time::advance(LIMIT / 2).await;
        assert!(late(&heads).await, "each byte is no respite");
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_told_of_a_head_that_begins() {
        let heads = Arc::new(Heads::default());
        let (mut far, near) = tokio::io::duplex(64);
        let mut watched = HeadWatch::new(near, Some(heads.clone()));
        let waiting = tokio::spawn(async move { heads.late(Some(LIMIT)).await });
        tokio::task::yield_now().await;
        tokio::io::AsyncWriteExt::write_all(&mut far, b"GET").await.unwrap();
        assert_eq!(watched.read_u8().await.unwrap(), b'G');
        waiting.await.unwrap();
    }
}
