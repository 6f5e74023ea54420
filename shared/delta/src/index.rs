//! The contents of a view, by name and by order of change.
//!
//! The order is a count of changes, not the store's revision: two changes may carry one revision, and a cursor between
//! them must not miss the second. It is one count for all indexes of the process, so that a stream that reads two of
//! them ([`crate::contents`]) has one cursor. Only the latest value of a name has a place in the order, so the index
//! never outgrows what it holds (and a bounded number of tombstones), however much changes.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::data::{Encoded, Id, Revision, StoreId};
use crate::view::ViewChange;

/// How an index knows that a name it has not was deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deletions {
    /// Its contents are all that the audience should hold: what is absent was taken away.
    Derived,
    /// By a record of each; what is absent without one was lost.
    Recorded,
}

/// A place in the order of changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Order(u64);

/// Places that were given away.
static ORDERS: AtomicU64 = AtomicU64::new(0);

impl Order {
    /// Behind all others.
    pub(crate) fn next() -> Order {
        Order(ORDERS.fetch_add(1, Ordering::Relaxed) + 1)
    }
}

pub(crate) struct Index {
    pub(crate) store: StoreId,
    pub(crate) revision: Revision,
    pub(crate) floor: Revision,
    pub(crate) deletions: Deletions,
    pub(crate) known: bool,
    pub(crate) ready: bool,
    slots: BTreeMap<Arc<str>, BTreeMap<Arc<str>, Slot>>,
    order: BTreeMap<Order, Change>,
    last: Order,
    /// Tombstones up to here were dropped: a cursor below can't be served any more.
    forgotten: Order,
    live: usize,
    tombstones: usize,
    max_tombstones: usize,
}

/// The place of a name in the order, where its value is.
struct Slot {
    order: Order,
    revision: Revision,
}

/// A resource says its own name; there are many, and tombstones are few.
enum Change {
    Present(Arc<Encoded>),
    Removed(Box<Id>),
}

/// What a name became.
pub(crate) enum Entered<'a> {
    Present(&'a Arc<Encoded>),
    Removed(&'a Id),
}

/// A derived view needs tombstones only for its live streams; one that lags further starts anew, which costs it a
/// listing and nothing else. A record is also proof of a deletion and is kept as far as it is affordable (some 100
/// bytes each).
const MAX_TOMBSTONES: [(Deletions, usize); 2] = [(Deletions::Derived, 1024), (Deletions::Recorded, 100_000)];

impl Index {
    pub(crate) fn new(store: StoreId, floor: Revision, deletions: Deletions) -> Index {
        let max_tombstones =
            MAX_TOMBSTONES.iter().find(|(of, _)| *of == deletions).map_or(0, |(_, maximum)| *maximum);
        Index {
            store,
            revision: floor,
            floor,
            deletions,
            known: true,
            ready: false,
            slots: BTreeMap::new(),
            order: BTreeMap::new(),
            last: Order(0),
            forgotten: Order(0),
            live: 0,
            tombstones: 0,
            max_tombstones,
        }
    }

    /// Changes whenever a stream may have something to do.
    pub(crate) fn generation(&self) -> (Order, Revision, bool, bool) {
        (self.last, self.revision, self.known, self.ready)
    }

    pub(crate) fn last(&self) -> Order {
        self.last
    }

    pub(crate) fn tombstones(&self) -> usize {
        self.tombstones
    }

    pub(crate) fn len(&self) -> usize {
        self.live
    }

    /// Where a name is in the order, if it has a place.
    pub(crate) fn order_of(&self, type_: &str, name: &str) -> Option<Order> {
        self.slots.get(type_)?.get(name).map(|slot| slot.order)
    }

    pub(crate) fn get(&self, type_: &str, name: &str) -> Option<&Arc<Encoded>> {
        self.at(self.slots.get(type_)?.get(name)?)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Encoded>> {
        self.slots.values().flat_map(|names| names.values()).filter_map(|slot| self.at(slot))
    }

    fn at(&self, slot: &Slot) -> Option<&Arc<Encoded>> {
        match self.order.get(&slot.order)? {
            Change::Present(resource) => Some(resource),
            Change::Removed(_) => None,
        }
    }

    /// Whether a stream that knows of everything up to `order` can still be told what happened since.
    pub(crate) fn reaches(&self, order: Order) -> bool {
        order >= self.forgotten
    }

    /// What changed after `cursor`, oldest first, each name once with its latest value.
    pub(crate) fn after(&self, cursor: Order) -> impl Iterator<Item = (Order, Entered<'_>)> {
        let above = (std::ops::Bound::Excluded(cursor), std::ops::Bound::Unbounded);
        self.order.range(above).map(|(order, change)| match change {
            Change::Present(resource) => (*order, Entered::Present(resource)),
            Change::Removed(id) => (*order, Entered::Removed(id)),
        })
    }

    pub(crate) fn apply(&mut self, revision: Revision, changes: impl IntoIterator<Item = ViewChange>) {
        for change in changes {
            match change {
                ViewChange::Upsert(resource) => self.upsert(revision, resource),
                ViewChange::Remove(id) => self.remove(revision, &id),
            }
        }
        self.advance(revision);
    }

    fn upsert(&mut self, revision: Revision, resource: Arc<Encoded>) {
        let id = resource.id();
        if self.get(&id.type_, &id.name).is_some_and(|there| there.version == resource.version) {
            return;
        }
        self.enter(revision, id, Change::Present(resource));
    }

    fn remove(&mut self, revision: Revision, id: &Id) {
        if self.get(&id.type_, &id.name).is_some() {
            self.enter(revision, id.clone(), Change::Removed(Box::new(id.clone())));
            self.bound_tombstones();
        }
    }

    /// A name that is not here, and was or is somewhere else, is not what it was: whoever reads on looks for it again.
    pub(crate) fn touch(&mut self, revision: Revision, id: &Id) {
        if self.get(&id.type_, &id.name).is_none() {
            self.enter(revision, id.clone(), Change::Removed(Box::new(id.clone())));
            self.bound_tombstones();
        }
    }

    /// Before the first contents: this name is missing for a reason in the reading of `revision`. The record counts
    /// until the history is forgotten up to there: whoever was at an older position still has to hear of it.
    pub(crate) fn record_absent(&mut self, revision: Revision, id: Id) {
        if self.get(&id.type_, &id.name).is_none() {
            self.enter(revision, id.clone(), Change::Removed(Box::new(id)));
        }
    }

    pub(crate) fn replace(&mut self, revision: Revision, resources: impl IntoIterator<Item = Arc<Encoded>>) {
        let mut gone: BTreeMap<Id, ()> = self.iter().map(|there| (there.id(), ())).collect();
        for resource in resources {
            gone.remove(&resource.id());
            self.upsert(revision, resource);
        }
        gone.keys().for_each(|id| self.remove(revision, id));
        self.pack();
        self.advance(revision);
    }

    pub(crate) fn advance(&mut self, revision: Revision) {
        self.revision = self.revision.max(revision);
        self.ready = true;
    }

    pub(crate) fn raise_floor(&mut self, floor: Revision) {
        if floor <= self.floor {
            return;
        }
        self.floor = floor;
        let old: Vec<Order> = self
            .order
            .iter()
            .filter(|(_, change)| self.tombstone(change).is_some_and(|slot| slot.revision <= floor))
            .map(|(order, _)| *order)
            .collect();
        old.into_iter().for_each(|order| self.forget(order));
    }

    /// Where a deleted name is; none for one that is there.
    fn tombstone(&self, change: &Change) -> Option<&Slot> {
        match change {
            Change::Present(_) => None,
            Change::Removed(id) => self.slots.get(&id.type_)?.get(&id.name),
        }
    }

    /// Entering in order leaves the trees' nodes half empty, and a view that was filled at once changes little.
    pub(crate) fn pack(&mut self) {
        self.order = std::mem::take(&mut self.order).into_iter().collect();
        for names in self.slots.values_mut() {
            *names = std::mem::take(names).into_iter().collect();
        }
    }

    fn enter(&mut self, revision: Revision, id: Id, change: Change) {
        self.last = Order::next();
        let revision = revision.max(self.revision);
        let present = matches!(change, Change::Present(_));
        let slot = Slot { order: self.last, revision };
        let names = self.slots.entry(id.type_).or_default();
        let before = match names.entry(id.name) {
            Entry::Vacant(vacant) => {
                vacant.insert(slot);
                None
            }
            Entry::Occupied(mut occupied) => Some(occupied.insert(slot)),
        };
        match before.and_then(|before| self.order.remove(&before.order)) {
            Some(Change::Present(_)) => self.live -= 1,
            Some(Change::Removed(_)) => self.tombstones -= 1,
            None => {}
        }
        match present {
            true => self.live += 1,
            false => self.tombstones += 1,
        }
        self.order.insert(self.last, change);
    }

    fn bound_tombstones(&mut self) {
        // A quarter at a time: finding the oldest walks the order.
        if self.tombstones <= self.max_tombstones {
            return;
        }
        let excess = self.tombstones - self.max_tombstones / 4 * 3;
        let oldest: Vec<(Order, Revision)> = self
            .order
            .iter()
            .filter_map(|(order, change)| Some((*order, self.tombstone(change)?.revision)))
            .take(excess)
            .collect();
        for (order, revision) in oldest {
            self.forget(order);
            if self.deletions == Deletions::Recorded {
                self.floor = self.floor.max(revision);
            }
        }
    }

    fn forget(&mut self, order: Order) {
        let Some(Change::Removed(id)) = self.order.remove(&order) else { return };
        if let Some(names) = self.slots.get_mut(&id.type_) {
            names.remove(&id.name);
            if names.is_empty() {
                self.slots.remove(&id.type_);
            }
        }
        self.tombstones -= 1;
        self.forgotten = self.forgotten.max(order);
    }
}
