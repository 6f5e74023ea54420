//! What the zone publishes to global: its own resources, and reports that are no resources.

use meridian_api::wire;
use meridian_core::{Key, Kind, Resource};
use meridian_delta::{Encoded, Id, StoreId, View, ViewChange};
use meridian_store::{Changed, Changes, ChangesError, ReadError, Revision, Snapshot, Store};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

/// The zone's side of the zone -> global stream. Clones are the same.
#[derive(Clone)]
pub(crate) struct Outgoing(Arc<Inner>);

struct Inner {
    zone: String,
    view: Mutex<Option<Arc<View>>>,
    /// Report types are derived, not stored: kept here too, to be put into a new view.
    reports: Mutex<BTreeMap<Id, Arc<Encoded>>>,
    changed: tokio::sync::watch::Sender<u64>,
}

impl Outgoing {
    pub(crate) fn new(zone: &str) -> Self {
        Self(Arc::new(Inner {
            zone: zone.to_owned(),
            view: Mutex::default(),
            reports: Mutex::default(),
            changed: tokio::sync::watch::Sender::new(0),
        }))
    }

    /// The view; none before the store was read. It is another one after history was lost.
    pub(crate) fn view(&self) -> Option<Arc<View>> {
        self.0.view.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Moves when [`Outgoing::view`] is another one.
    pub(crate) fn watch(&self) -> tokio::sync::watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// Names on the wire of own resources that history knows to be deleted.
    pub(crate) async fn deletions(
        &self,
        store: &Store,
        snapshot: &Snapshot,
    ) -> Result<BTreeSet<Id>, ReadError> {
        let mut deleted = BTreeSet::new();
        let mut cursor = snapshot.floor;
        while cursor < snapshot.revision {
            let Changes { entries, upto, .. } = match store.changes_after(cursor).await {
                Ok(changes) => changes,
                // History was cut meanwhile: what it knew is inferred by global then.
                Err(ChangesError::TooOld { .. }) => break,
                Err(ChangesError::Read(error)) => return Err(error),
            };
            for entry in entries.iter().filter(|entry| self.is_ours(&entry.key)) {
                match entry.change {
                    Changed::Delete => drop(deleted.insert(id(&entry.key))),
                    Changed::Put(_) => drop(deleted.remove(&id(&entry.key))),
                }
            }
            if upto <= cursor {
                break;
            }
            cursor = upto;
        }
        Ok(deleted)
    }

    /// Begins anew from one consistent reading of the store.
    pub(crate) fn load(&self, snapshot: &Snapshot, deleted: BTreeSet<Id>) {
        let view = View::recorded(
            StoreId(snapshot.store_id.0),
            delta(snapshot.floor),
            delta(snapshot.revision),
            deleted,
        );
        let own = snapshot.resources.iter().map(|stored| &stored.resource).filter(|it| self.is_ours(&it.key));
        let mut all: Vec<Arc<Encoded>> = own.filter_map(|resource| self.encode(resource.clone())).collect();
        all.extend(self.reports().values().cloned());
        view.replace(delta(snapshot.revision), all);
        *self.0.view.lock().unwrap_or_else(PoisonError::into_inner) = Some(view);
        self.0.changed.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// One change of the store.
    pub(crate) fn take(&self, key: &Key, change: &Changed, revision: Revision) {
        let Some(view) = self.view().filter(|_| self.is_ours(key)) else { return };
        let change = match change {
            Changed::Put(resource) => self.encode(resource.clone()).map(ViewChange::Upsert),
            Changed::Delete => Some(ViewChange::Remove(id(key))),
        };
        view.apply(delta(revision), change);
    }

    /// One report, or its end.
    pub(crate) fn report(&self, type_: &str, name: &str, body: Option<Vec<u8>>) {
        let id = Id::new(type_, name);
        let change = match body.map(|body| Encoded::new(type_, name, body)) {
            Some(Ok(encoded)) => {
                self.reports().insert(id, encoded.clone());
                ViewChange::Upsert(encoded)
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "a report is too large to be sent");
                return;
            }
            None => {
                self.reports().remove(&id);
                ViewChange::Remove(id)
            }
        };
        if let Some(view) = self.view() {
            let revision = view.revision();
            view.apply(revision, [change]);
        }
    }

    pub(crate) fn raise_floor(&self, floor: Revision) {
        if let Some(view) = self.view() {
            view.raise_floor(delta(floor));
        }
    }

    pub(crate) fn set_known(&self, known: bool) {
        if let Some(view) = self.view() {
            view.set_known(known);
        }
    }

    fn reports(&self) -> std::sync::MutexGuard<'_, BTreeMap<Id, Arc<Encoded>>> {
        self.0.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_ours(&self, key: &Key) -> bool {
        key.zone == self.0.zone && goes_up(key.kind)
    }

    fn encode(&self, resource: Resource) -> Option<Arc<Encoded>> {
        let sent = wire::from_zone(&self.0.zone, resource);
        Encoded::new(sent.key.kind.as_str(), wire::name(&sent.key), sent.canonical())
            .inspect_err(|error| tracing::error!(%error, "a resource can't be sent to global"))
            .ok()
    }
}

/// Kinds of which a zone's own go to global.
pub(crate) fn goes_up(kind: Kind) -> bool {
    kind.info().flow.zone_to_global
}

fn id(key: &Key) -> Id {
    Id::new(key.kind.as_str(), wire::name(key))
}

fn delta(revision: Revision) -> meridian_delta::Revision {
    meridian_delta::Revision(revision.0)
}
