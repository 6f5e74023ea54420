//! What one audience holds: its own index, and one that it shares with others.
//!
//! A name that both have is what its own index says. Both count their changes in one order, so that one cursor goes
//! through both. A tombstone of its own over a name that is shared only says that the name is not what it was: it is what is
//! shared now.

use std::iter::Peekable;
use std::sync::Arc;

use crate::data::{Encoded, Id, Revision, StoreId, Version};
use crate::index::{Deletions, Entered, Index, Order};

/// A consistent reading of a view.
pub(crate) struct Contents<'a> {
    pub(crate) own: &'a Index,
    pub(crate) shared: Option<&'a Index>,
    pub(crate) switched: Option<Switched>,
    /// Changes that belong together are being made: what is here is half of them.
    pub(crate) is_changing: bool,
}

/// Something else is shared than before. What differs between the two is in the order since; what was yet to be told of the
/// first is not in that of the second.
#[derive(Clone, Copy)]
pub(crate) struct Switched {
    pub(crate) at: Order,
    /// Streams that have not come so far begin anew.
    pub(crate) end: Order,
}

/// What is at a place of the order.
pub(crate) enum At<'a> {
    Present(&'a Arc<Encoded>),
    Removed(&'a Id),
    /// What this was about has another place, before or behind.
    Elsewhere,
}

impl<'a> Contents<'a> {
    pub(crate) fn store(&self) -> StoreId {
        self.own.store
    }

    pub(crate) fn revision(&self) -> Revision {
        self.shared.map_or(self.own.revision, |shared| shared.revision.max(self.own.revision))
    }

    pub(crate) fn floor(&self) -> Revision {
        self.own.floor
    }

    pub(crate) fn deletions(&self) -> Deletions {
        self.own.deletions
    }

    pub(crate) fn is_known(&self) -> bool {
        self.own.known
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.own.ready
    }

    /// The last change.
    pub(crate) fn last(&self) -> Order {
        self.shared.map_or(self.own.last(), |shared| shared.last().max(self.own.last()))
    }

    /// Where a stream stands that begins now.
    pub(crate) fn now(&self) -> Order {
        self.switched.map_or(self.last(), |switched| switched.at.max(self.last()))
    }

    /// Whether a stream that has gone through the order up to `cursor`, from its beginning since it was at `since`, can still
    /// be told the rest.
    pub(crate) fn reaches(&self, cursor: Order, since: Order) -> bool {
        let known = cursor.max(since);
        let shared = self.of_shared(known, since);
        let remembered = self.own.reaches(known) && self.shared.is_none_or(|index| index.reaches(shared));
        remembered && self.switched.is_none_or(|switched| since >= switched.at || cursor >= switched.end)
    }

    /// The place in the order from which on a stream reads what is shared now. Who read what was shared before is told by the
    /// view's own index how that differs.
    fn of_shared(&self, cursor: Order, since: Order) -> Order {
        match self.switched {
            Some(Switched { at, .. }) if since < at => cursor.max(at),
            _ => cursor,
        }
    }

    pub(crate) fn get(&self, type_: &str, name: &str) -> Option<&'a Arc<Encoded>> {
        self.own.get(type_, name).or_else(|| self.shared?.get(type_, name))
    }

    /// The version of a name, and its place in the order.
    pub(crate) fn placed(&self, type_: &str, name: &str) -> Option<(Order, Version)> {
        let at = |index: &Index| Some((index.order_of(type_, name)?, index.get(type_, name)?.version));
        at(self.own).or_else(|| at(self.shared?))
    }

    /// By type and name where nothing is shared; else its own first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &'a Arc<Encoded>> {
        let own = self.own;
        let shared = self.shared.into_iter().flat_map(Index::iter);
        own.iter().chain(shared.filter(|it| own.get(&it.type_, &it.name).is_none()))
    }

    /// What changed after `cursor`, oldest first, each name with its latest value, for a stream that has gone through the order
    /// from its beginning since it was at `since`.
    pub(crate) fn after(&self, cursor: Order, since: Order) -> impl Iterator<Item = (Order, At<'a>)> {
        let (own, shared) = (self.own, self.shared);
        let mine =
            own.after(cursor).map(move |(order, entered)| (order, at_own(shared, order, entered, since)));
        let from = self.of_shared(cursor, since);
        let theirs = shared.into_iter().flat_map(move |shared| shared.after(from));
        let theirs = theirs.map(move |(order, entered)| (order, at_shared(own, entered)));
        Merged { first: mine.peekable(), second: theirs.peekable() }
    }
}

fn at_own<'a>(shared: Option<&'a Index>, order: Order, entered: Entered<'a>, since: Order) -> At<'a> {
    let id = match entered {
        Entered::Present(resource) => return At::Present(resource),
        Entered::Removed(id) => id,
    };
    let there = shared.and_then(|shared| shared.get(&id.type_, &id.name));
    let Some(there) = there else { return At::Removed(id) };
    // Who began when this was so has met what is shared at its own place, or will.
    let its_order = shared.and_then(|shared| shared.order_of(&id.type_, &id.name));
    match order <= since || its_order > Some(order) {
        true => At::Elsewhere,
        false => At::Present(there),
    }
}

fn at_shared<'a>(own: &Index, entered: Entered<'a>) -> At<'a> {
    let (type_, name) = match &entered {
        Entered::Present(resource) => (&resource.type_, &resource.name),
        Entered::Removed(id) => (&id.type_, &id.name),
    };
    match (own.get(type_, name), entered) {
        (Some(_), _) => At::Elsewhere,
        (None, Entered::Present(resource)) => At::Present(resource),
        (None, Entered::Removed(id)) => At::Removed(id),
    }
}

/// Two orders as one.
struct Merged<A: Iterator, B: Iterator> {
    first: Peekable<A>,
    second: Peekable<B>,
}

impl<'a, A, B> Iterator for Merged<A, B>
where
    A: Iterator<Item = (Order, At<'a>)>,
    B: Iterator<Item = (Order, At<'a>)>,
{
    type Item = (Order, At<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let first_is_next = match (self.first.peek(), self.second.peek()) {
            (Some((first, _)), Some((second, _))) => first < second,
            (first, _) => first.is_some(),
        };
        if first_is_next { self.first.next() } else { self.second.next() }
    }
}
