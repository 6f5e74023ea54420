//! What one audience may see: shared by all its streams, changed by whoever compiles it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tokio::sync::watch;

use crate::contents::{Contents, Switched};
use crate::data::{Encoded, Id, Position, Revision, StoreId, Version};
use crate::index::{Deletions, Index, Order};

/// The publisher's side for one audience: a proxy, or all who get the same.
///
/// A new view is *pending*: its streams stay silent until it is first given its contents by [`View::replace`],
/// [`View::share`], [`View::apply`] or [`View::advance`]. So a publisher that still loads, or a proxy that is not registered yet, can't
/// be taken for one that has nothing. Cloning the `Arc` is how its streams have it; the lock inside is held only to
/// change it or to read one message's worth of it.
pub struct View {
    layers: Mutex<Layers>,
    changed: watch::Sender<u64>,
}

struct Layers {
    own: Index,
    shared: Option<Arc<Shared>>,
    switched: Option<Switched>,
    retired: bool,
}

/// Where more than so many names are something else because something else is shared, streams begin anew: what is remembered of
/// them would be more than a view has of its own.
const MANY: usize = 256;

/// What many views have in common, kept once: each shows it beside what is its own, and what is its own goes before.
///
/// Whoever changes it also changes the views that show it, and is alone in that. Streams wait while a
/// [`Changing`] lasts, of which there is one at a time: what is changed here and in a view together is one step to them.
pub struct Shared(RwLock<Common>);

struct Common {
    index: Index,
    is_changing: bool,
}

/// Changes are being made, until this is dropped. The views that show it are to be told then ([`View::wake`]).
#[must_use]
pub struct Changing(Arc<Shared>);

impl Shared {
    /// Empty, for views of this store.
    pub fn new(store: StoreId) -> Arc<Shared> {
        let index = Index::new(store, Revision(0), Deletions::Derived);
        Arc::new(Shared(RwLock::new(Common { index, is_changing: false })))
    }

    pub fn change(self: &Arc<Shared>) -> Changing {
        self.write().is_changing = true;
        Changing(Arc::clone(self))
    }

    fn read(&self) -> RwLockReadGuard<'_, Common> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Common> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Changing {
    pub fn apply(&self, revision: Revision, changes: impl IntoIterator<Item = ViewChange>) {
        let index = &mut self.0.write().index;
        let fills = index.len() == 0;
        index.apply(revision, changes);
        if fills {
            index.pack();
        }
    }
}

impl Drop for Changing {
    fn drop(&mut self) {
        self.0.write().is_changing = false;
    }
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
        let layers = Layers { own: index, shared: None, switched: None, retired: false };
        Arc::new(View { layers: Mutex::new(layers), changed: watch::Sender::new(0) })
    }

    /// Applies one revision's changes, all at once. An upsert equal to what is there, and the removal of what is not,
    /// change nothing. The revision may equal the present one (something beside the store changed); an older one is
    /// taken as the present.
    pub fn apply(&self, revision: Revision, changes: impl IntoIterator<Item = ViewChange>) {
        self.change(|index| index.apply(revision, changes));
    }

    /// Makes `resources` all that is its own: what is equal stays untouched, what is not named goes, as a known deletion.
    pub fn replace(&self, revision: Revision, resources: impl IntoIterator<Item = Arc<Encoded>>) {
        self.change(|index| index.replace(revision, resources));
    }

    /// Makes `shared` and `resources` the whole contents, in one step: what `shared` is now, and what was shared before it is
    /// changed. What was there before and is shared now is not sent again, but for streams that were behind: they begin anew.
    pub fn share(
        &self,
        revision: Revision,
        shared: Arc<Shared>,
        resources: impl IntoIterator<Item = Arc<Encoded>>,
    ) {
        {
            let mut layers = self.lock();
            let (before, last): (HashMap<Id, Version>, _) = layers.read(|contents| {
                (contents.iter().map(|it| (it.id(), it.version)).collect(), contents.last())
            });
            let was_read = layers.own.ready;
            layers.own.replace(revision, resources);
            layers.shared = Some(shared);
            if was_read {
                let at = Order::next();
                let changed = layers.read(|contents| changed(contents, before));
                let few = changed.len() <= MANY;
                // What was to be told of an earlier one is still to be told.
                let behind = layers.switched.map_or(last, |earlier| earlier.end.max(last));
                layers.switched = Some(Switched { at, end: if few { behind } else { at } });
                let told = changed.iter().filter(|_| few);
                told.for_each(|id| layers.own.touch(revision, id));
            }
        }
        self.wake();
    }

    /// Nobody changes it any more: its streams end, and their subscribers come again.
    pub fn retire(&self) {
        self.lock().retired = true;
        self.wake();
    }

    pub(crate) fn is_retired(&self) -> bool {
        self.lock().retired
    }

    /// What it shares has changed: its streams look again.
    pub fn wake(&self) {
        self.changed.send_modify(|count| *count = count.wrapping_add(1));
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
        self.lock().own.ready
    }

    pub fn revision(&self) -> Revision {
        self.read(|contents| contents.revision())
    }

    pub fn position(&self) -> Position {
        self.read(|contents| Position { store: contents.store(), revision: contents.revision() })
    }

    pub fn get(&self, type_: &str, name: &str) -> Option<Arc<Encoded>> {
        self.read(|contents| contents.get(type_, name).cloned())
    }

    /// Everything in it, by type and name: one consistent reading.
    pub fn list(&self) -> Vec<Arc<Encoded>> {
        let mut all: Vec<_> = self.read(|contents| contents.iter().cloned().collect());
        all.sort_by(|a, b| (&a.type_, &a.name).cmp(&(&b.type_, &b.name)));
        all
    }

    pub fn len(&self) -> usize {
        self.read(|contents| contents.iter().count())
    }

    /// How much of it is its own, and kept for it alone.
    pub fn own_len(&self) -> usize {
        self.lock().own.len()
    }

    /// Deletions of its own that are remembered, each until the history is forgotten up to it or there are too many.
    pub fn tombstones(&self) -> usize {
        self.lock().own.tombstones()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads the contents; the caller does no I/O meanwhile.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&Contents<'_>) -> T) -> T {
        self.lock().read(read)
    }

    /// Notified at each change; many changes may be one notification.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn change(&self, change: impl FnOnce(&mut Index)) {
        let moved = {
            let index = &mut self.lock().own;
            let before = index.generation();
            change(index);
            index.generation() != before
        };
        if moved {
            self.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Layers> {
        // The index is changed by code that can't panic half-way through an invariant.
        self.layers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Layers {
    fn read<T>(&self, read: impl FnOnce(&Contents<'_>) -> T) -> T {
        let common = self.shared.as_ref().map(|shared| shared.read());
        read(&Contents {
            own: &self.own,
            shared: common.as_ref().map(|common| &common.index),
            switched: self.switched,
            is_changing: common.as_ref().is_some_and(|common| common.is_changing),
        })
    }
}

/// What is not what it was, and has no new place in the order of its own.
fn changed(contents: &Contents<'_>, mut before: HashMap<Id, Version>) -> Vec<Id> {
    let mut changed = Vec::new();
    for resource in contents.iter() {
        let id = resource.id();
        if before.remove(&id) != Some(resource.version) {
            changed.push(id);
        }
    }
    changed.extend(before.into_keys());
    changed.retain(|id| contents.own.get(&id.type_, &id.name).is_none());
    changed
}
