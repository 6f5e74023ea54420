//! What one audience may see: shared by all its streams, changed by whoever compiles it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::data::{Encoded, Id, Position, Revision, StoreId};
use crate::index::{Deletions, Index};

/// The publisher's side for one audience: a proxy, or all who get the same.
///
/// A new view is *pending*: its streams stay silent until it is first given its contents by [`View::replace`],
/// [`View::apply`] or [`View::advance`]. So a publisher that still loads, or a proxy that is not registered yet, can't
/// be taken for one that has nothing. Cloning the `Arc` is how it is shared; the lock inside is held only to change the
/// index or to read one message's worth of it.
pub struct View {
    index: Mutex<Index>,
    changed: watch::Sender<u64>,
}

/// One change of a view's contents.
#[derive(Debug, Clone)]
pub enum ViewChange {
    Upsert(Arc<Encoded>),
    Remove(Id),
}

impl View {
    /// A view computed from a store: whoever compiles it states at each revision all that the audience should hold.
    ///
    /// What a subscriber holds and this view has not is known to be deleted if the subscriber's position is at `floor`
    /// or above, else inferred.
    pub fn new(store: StoreId, floor: Revision) -> Arc<View> {
        View::with(Index::new(store, floor, Deletions::Derived))
    }

    /// A view of stored resources, whose deletions are recorded one by one from `floor` on.
    ///
    /// `absent` are the names that are missing for a reason in the reading of revision `at`: deleted after `floor` (from
    /// the history), or present in the store and not meant for this audience. Any other name that a subscriber turns out to hold was lost by the
    /// store, not deleted, and is kept by the subscriber until an operator confirms.
    pub fn recorded(
        store: StoreId,
        floor: Revision,
        at: Revision,
        absent: impl IntoIterator<Item = Id>,
    ) -> Arc<View> {
        let mut index = Index::new(store, floor, Deletions::Recorded);
        absent.into_iter().for_each(|id| index.record_absent(at, id));
        View::with(index)
    }

    fn with(index: Index) -> Arc<View> {
        Arc::new(View { index: Mutex::new(index), changed: watch::Sender::new(0) })
    }

    /// Applies one revision's changes, all at once. An upsert equal to what is there, and the removal of what is not,
    /// change nothing. The revision may equal the present one (something beside the store changed); an older one is
    /// taken as the present.
    pub fn apply(&self, revision: Revision, changes: impl IntoIterator<Item = ViewChange>) {
        self.change(|index| {
            for change in changes {
                match change {
                    ViewChange::Upsert(resource) => index.upsert(revision, resource),
                    ViewChange::Remove(id) => index.remove(revision, &id),
                }
            }
            index.advance(revision);
        });
    }

    /// Makes `resources` the whole contents: what is equal stays untouched, what is not named goes, as a known deletion.
    pub fn replace(&self, revision: Revision, resources: impl IntoIterator<Item = Arc<Encoded>>) {
        self.change(|index| index.replace(revision, resources));
    }

    /// A revision came that changed nothing here.
    pub fn advance(&self, revision: Revision) {
        self.change(|index| index.advance(revision));
    }

    /// The store forgot its history up to `floor`: deletions before are no longer known.
    pub fn raise_floor(&self, floor: Revision) {
        self.change(|index| index.raise_floor(floor));
    }

    /// Whether the present revision is known to be the store's newest. Heartbeats say so.
    pub fn set_known(&self, known: bool) {
        self.change(|index| index.known = known);
    }

    /// Whether it was given its contents yet.
    pub fn is_ready(&self) -> bool {
        self.lock().ready
    }

    pub fn revision(&self) -> Revision {
        self.lock().revision
    }

    pub fn position(&self) -> Position {
        let index = self.lock();
        Position { store: index.store, revision: index.revision }
    }

    pub fn get(&self, type_: &str, name: &str) -> Option<Arc<Encoded>> {
        self.lock().get(type_, name).cloned()
    }

    /// Everything in it, by type and name: one consistent reading.
    pub fn list(&self) -> Vec<Arc<Encoded>> {
        self.lock().iter().cloned().collect()
    }

    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Deletions that are remembered, each until the history is forgotten up to it or there are too many.
    pub fn tombstones(&self) -> usize {
        self.lock().tombstones()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads the index; the caller does no I/O meanwhile.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&Index) -> T) -> T {
        read(&self.lock())
    }

    /// Notified at each change; many changes may be one notification.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn change(&self, change: impl FnOnce(&mut Index)) {
        let moved = {
            let mut index = self.lock();
            let before = index.generation();
            change(&mut index);
            index.generation() != before
        };
        if moved {
            self.changed.send_modify(|count| *count = count.wrapping_add(1));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Index> {
        // The index is changed by code that can't panic half-way through an invariant.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
