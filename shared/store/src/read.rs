use crate::{Author, Revision, StoreId};
use meridian_core::{Key, Kind, Resource};
use time::OffsetDateTime;

/// A resource as it is now.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    pub resource: Resource,
    /// Of its last change.
    pub revision: Revision,
    pub created: OffsetDateTime,
    pub modified: OffsetDateTime,
    /// Of its last change.
    pub author: Author,
}

/// Which resources [`crate::Store::list`] gives; all conditions must hold. Order: mesh, name, zone.
#[derive(Clone, Debug)]
pub struct Query {
    pub kind: Kind,
    pub mesh: Option<String>,
    /// Zone of origin; `""` asks for those written at global.
    pub zone: Option<String>,
    /// A part of the key's name.
    pub name_contains: Option<String>,
    /// Labels that the resource has, with these values.
    pub labels: Vec<(String, String)>,
    pub offset: u64,
    pub size: u64,
}

impl Query {
    /// All of a kind.
    pub fn all(kind: Kind) -> Self {
        Self {
            kind,
            mesh: None,
            zone: None,
            name_contains: None,
            labels: Vec::new(),
            offset: 0,
            size: u64::MAX,
        }
    }

    /// All text that is compared.
    pub(crate) fn texts(&self) -> impl Iterator<Item = &str> {
        let labels = self.labels.iter().flat_map(|(name, value)| [name, value]);
        let parts = [&self.mesh, &self.zone, &self.name_contains].into_iter().flatten();
        parts.chain(labels).map(String::as_str)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    pub items: Vec<Stored>,
    /// How many there are without `offset` and `size`.
    pub total: u64,
}

/// All resources at one revision.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub store_id: StoreId,
    pub revision: Revision,
    /// History (and with it the tombstones) is kept above this revision.
    pub floor: Revision,
    pub resources: Vec<Stored>,
}

/// What happened above a cursor.
#[derive(Clone, Debug)]
pub struct Changes {
    /// In the order of revisions. Those of one write share their revision and are never cut apart.
    pub entries: Vec<HistoryEntry>,
    /// The cursor to go on from: `entries` are all changes up to here.
    pub upto: Revision,
    /// The newest revision of the store. Above `upto` if the rest did not fit: ask again.
    pub newest: Revision,
    pub floor: Revision,
}

#[derive(Clone, Debug, PartialEq)]
pub struct HistoryEntry {
    pub revision: Revision,
    pub key: Key,
    pub change: Changed,
    pub author: Author,
    pub at: OffsetDateTime,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Changed {
    Put(Resource),
    /// A tombstone.
    Delete,
}
