use crate::rows::Meta;
use crate::{Revision, StoreId};
use std::sync::Arc;
use tokio::sync::watch;

/// What [`crate::Store::feed`] shows: how far the store has got, as this replica knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feed {
    pub store_id: StoreId,
    /// The newest committed revision. Goes back only if somebody restored an older database underneath.
    pub revision: Revision,
    /// False while the database is out of reach: there may be newer revisions. True again once it was asked.
    pub known: bool,
}

/// The writing end, shared by those who learn of commits: this replica's writes, and the follower of all replicas'.
#[derive(Clone)]
pub(crate) struct FeedSender(Arc<watch::Sender<Feed>>);

impl FeedSender {
    pub(crate) fn new(meta: &Meta, known: bool) -> Self {
        Self(Arc::new(watch::Sender::new(Feed { store_id: meta.store_id, revision: meta.revision, known })))
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Feed> {
        self.0.subscribe()
    }

    pub(crate) fn current(&self) -> Feed {
        *self.0.borrow()
    }

    /// This revision is committed, and with it all below.
    pub(crate) fn committed(&self, revision: Revision) {
        self.change(|feed| feed.revision = feed.revision.max(revision));
    }

    pub(crate) fn renamed(&self, store_id: StoreId) {
        self.change(|feed| feed.store_id = store_id);
    }

    /// The database is out of reach.
    pub(crate) fn lost(&self) {
        self.change(|feed| feed.known = false);
    }

    /// The database was asked; `before` is what [`FeedSender::current`] said before it was. An answer below that means
    /// an older database; one below the present only that a write was faster than the answer.
    pub(crate) fn asked(&self, before: Feed, meta: &Meta) {
        self.change(|feed| {
            let older = meta.revision < before.revision || meta.store_id != before.store_id;
            feed.revision = if older { meta.revision } else { feed.revision.max(meta.revision) };
            feed.store_id = meta.store_id;
            feed.known = true;
        });
    }

    fn change(&self, change: impl FnOnce(&mut Feed)) {
        self.0.send_if_modified(|feed| {
            let before = *feed;
            change(feed);
            *feed != before
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(store: u8, revision: u64) -> Meta {
        Meta {
            store_id: StoreId([store; 16]),
            revision: Revision(revision),
            floor: Revision::ZERO,
            data_key: Vec::new(),
        }
    }

    #[test]
    fn a_slow_answer_does_not_take_the_feed_back_but_an_older_database_does() {
        let feed = FeedSender::new(&meta(1, 5), true);
        let before = feed.current();
        feed.committed(Revision(7));
        feed.asked(before, &meta(1, 6));
        assert_eq!(feed.current().revision, Revision(7));
        feed.asked(feed.current(), &meta(1, 3));
        assert_eq!(feed.current().revision, Revision(3));
        feed.lost();
        assert!(!feed.current().known);
        feed.asked(feed.current(), &meta(2, 3));
        assert_eq!(feed.current(), Feed { store_id: StoreId([2; 16]), revision: Revision(3), known: true });
    }

    #[test]
    fn nobody_is_woken_for_nothing() {
        let feed = FeedSender::new(&meta(1, 5), true);
        let watcher = feed.subscribe();
        feed.committed(Revision(4));
        feed.asked(feed.current(), &meta(1, 5));
        assert!(!watcher.has_changed().unwrap());
        feed.committed(Revision(6));
        assert!(watcher.has_changed().unwrap());
    }
}
