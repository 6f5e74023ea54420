//! How long a request's head may take to come, over HTTP/1.1: from its first byte to its last.
//!
//! A limit that counts from the end of the request before would close a connection that merely rests. Here the first byte
//! that comes while no request is being answered begins a head, and the call of the handler ends it.

use std::{cell::Cell, time::Duration};
use tokio::{sync::Notify, time::Instant};

/// Where a connection is between two heads.
#[derive(Default)]
pub(super) struct Heads {
    /// When the first byte of the head came that is on its way.
    began: Cell<Option<Instant>>,
    /// A request is being answered: what comes meanwhile is its body.
    answering: Cell<bool>,
    changed: Notify,
}

impl Heads {
    pub(super) fn bytes_came(&self) {
        if self.answering.get() || self.began.get().is_some() {
            return;
        }
        self.began.set(Some(Instant::now()));
        self.changed.notify_one();
    }

    /// A head has come whole.
    pub(super) fn complete(&self) {
        self.answering.set(true);
        self.began.set(None);
    }

    /// The answer has gone out whole.
    pub(super) fn answered(&self) {
        self.answering.set(false);
    }

    /// Resolves when a head has been on its way for longer than the limit.
    pub(super) async fn late(&self, limit: Option<Duration>) {
        let Some(limit) = limit else { return std::future::pending().await };
        loop {
            let Some(began) = self.began.get() else {
                self.changed.notified().await;
                continue;
            };
            let end = began + limit;
            if Instant::now() >= end {
                return;
            }
            tokio::time::sleep_until(end).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let heads = Heads::default();
        let mut waiting = std::pin::pin!(heads.late(Some(LIMIT)));
        assert!(futures::poll!(waiting.as_mut()).is_pending());
        heads.bytes_came();
        waiting.await;
    }
}
