//! Rows as both databases give them, and what they mean once opened.

use crate::failure::Failure;
use crate::plan::Present;
use crate::seal::{OpenFailure, Place, SealKey};
use crate::vault::Vault;
use crate::{Author, Changed, HistoryEntry, Revision, StoreId, Stored};
use meridian_core::{Key, Kind, Resource};
use time::OffsetDateTime;
use zeroize::Zeroizing;

/// The one row that orders all writes.
#[derive(Clone, Debug)]
pub(crate) struct Meta {
    pub(crate) store_id: StoreId,
    pub(crate) revision: Revision,
    pub(crate) floor: Revision,
    /// The data key, sealed by the ring.
    pub(crate) data_key: Vec<u8>,
}

/// A key as columns.
#[derive(Clone, Debug)]
pub(crate) struct KeyRow {
    pub(crate) kind: String,
    pub(crate) mesh: String,
    pub(crate) zone: String,
    pub(crate) name: String,
}

#[derive(Debug)]
pub(crate) struct ResourceRow {
    pub(crate) key: KeyRow,
    pub(crate) revision: i64,
    /// Canonical, and sealed if `sealed`.
    pub(crate) body: Vec<u8>,
    pub(crate) sealed: bool,
    pub(crate) created: OffsetDateTime,
    pub(crate) modified: OffsetDateTime,
    pub(crate) author: Author,
}

/// A row of a private bucket.
pub(crate) struct PrivateRow {
    pub(crate) bucket: String,
    pub(crate) key: String,
    pub(crate) value: Vec<u8>,
}

/// A row that may be sealed.
pub(crate) trait Row {
    type Opened;

    /// What is sealed of it.
    fn sealed(&self) -> Option<&[u8]>;

    /// None for what this program does not know.
    fn open(self, vault: &Vault) -> Result<Option<Self::Opened>, Failure>;
}

#[derive(Debug)]
pub(crate) struct HistoryRow {
    pub(crate) key: KeyRow,
    pub(crate) revision: i64,
    /// None for a tombstone.
    pub(crate) body: Option<Vec<u8>>,
    pub(crate) sealed: bool,
    pub(crate) author: Author,
    pub(crate) at: OffsetDateTime,
}

/// What [`crate::Store::changes_after`] reads, before it is opened.
pub(crate) struct HistoryRows {
    pub(crate) rows: Vec<HistoryRow>,
    pub(crate) upto: Revision,
    pub(crate) newest: Revision,
    pub(crate) floor: Revision,
}

pub(crate) struct SnapshotRows {
    pub(crate) meta: Meta,
    pub(crate) rows: Vec<ResourceRow>,
}

pub(crate) struct StatusRecord {
    pub(crate) zone: String,
    pub(crate) section: String,
    pub(crate) value: Vec<u8>,
    pub(crate) replica: String,
    pub(crate) replica_alive: bool,
    pub(crate) at: OffsetDateTime,
}

impl Meta {
    pub(crate) fn new(
        store_id: &[u8],
        revision: i64,
        floor: i64,
        data_key: Vec<u8>,
    ) -> Result<Self, Failure> {
        let store_id =
            StoreId::from_slice(store_id).ok_or_else(|| Failure::Damaged("its store id".to_owned()))?;
        Ok(Self { store_id, revision: from_column(revision)?, floor: from_column(floor)?, data_key })
    }

    pub(crate) fn missing() -> Failure {
        Failure::Damaged("it has lost its row of revisions".to_owned())
    }
}

impl KeyRow {
    /// None for a kind that this program does not know: a newer one wrote it.
    fn key(self) -> Option<Key> {
        let Some(kind) = Kind::named(&self.kind) else {
            tracing::warn!(
                kind = self.kind,
                name = self.name,
                "a resource of a kind that this program does not know"
            );
            return None;
        };
        Some(Key { kind, mesh: self.mesh, zone: self.zone, name: self.name })
    }

    /// The body of that resource, sealed by another key. None for a kind that this program does not know.
    pub(crate) fn resealed(
        &self,
        vault: &Vault,
        key: &SealKey,
        sealed: &[u8],
    ) -> Result<Option<Vec<u8>>, Failure> {
        let Some(resource) = self.clone().key() else { return Ok(None) };
        reseal(vault, key, Place::Resource(&resource), sealed, || resource.to_string()).map(Some)
    }
}

impl Row for ResourceRow {
    type Opened = Stored;

    fn sealed(&self) -> Option<&[u8]> {
        self.sealed.then_some(&self.body)
    }

    fn open(self, vault: &Vault) -> Result<Option<Stored>, Failure> {
        let Some(key) = self.key.key() else { return Ok(None) };
        let resource = resource(vault, key, &self.body, self.sealed)?;
        let (created, modified) = (self.created, self.modified);
        Ok(Some(Stored {
            resource,
            revision: from_column(self.revision)?,
            created,
            modified,
            author: self.author,
        }))
    }
}

impl ResourceRow {
    /// The body in clear, for comparison.
    pub(crate) fn present(self, vault: &Vault) -> Result<Option<(Key, Present)>, Failure> {
        let Some(key) = self.key.key() else { return Ok(None) };
        let body = match self.sealed {
            true => open_value(vault, Place::Resource(&key), &self.body, || key.to_string())?,
            false => Zeroizing::new(self.body),
        };
        Ok(Some((key, Present { revision: from_column(self.revision)?, body })))
    }
}

impl Row for PrivateRow {
    type Opened = (String, Vec<u8>);

    fn sealed(&self) -> Option<&[u8]> {
        Some(&self.value)
    }

    fn open(self, vault: &Vault) -> Result<Option<Self::Opened>, Failure> {
        let clear = open_private(vault, &self.bucket, &self.key, &self.value)?;
        Ok(Some((self.key, clear.to_vec())))
    }
}

impl Row for HistoryRow {
    type Opened = HistoryEntry;

    fn sealed(&self) -> Option<&[u8]> {
        self.body.as_deref().filter(|_| self.sealed)
    }

    fn open(self, vault: &Vault) -> Result<Option<HistoryEntry>, Failure> {
        let Some(key) = self.key.key() else { return Ok(None) };
        let change = match self.body {
            None => Changed::Delete,
            Some(body) => Changed::Put(resource(vault, key.clone(), &body, self.sealed)?),
        };
        Ok(Some(HistoryEntry {
            revision: from_column(self.revision)?,
            key,
            change,
            author: self.author,
            at: self.at,
        }))
    }
}

fn resource(vault: &Vault, key: Key, body: &[u8], sealed: bool) -> Result<Resource, Failure> {
    let damaged = |key: &Key| Failure::Damaged(format!("{key} cannot be read"));
    if !sealed {
        return Resource::from_canonical(key.clone(), body).map_err(|_| damaged(&key));
    }
    let clear = open_value(vault, Place::Resource(&key), body, || key.to_string())?;
    Resource::from_canonical(key.clone(), &clear).map_err(|_| damaged(&key))
}

pub(crate) fn open_private(
    vault: &Vault,
    bucket: &str,
    key: &str,
    value: &[u8],
) -> Result<Zeroizing<Vec<u8>>, Failure> {
    open_value(vault, Place::Private { bucket, key }, value, || format!("private value {bucket}/{key}"))
}

pub(crate) fn reseal_private(
    vault: &Vault,
    new: &SealKey,
    bucket: &str,
    key: &str,
    value: &[u8],
) -> Result<Vec<u8>, Failure> {
    reseal(vault, new, Place::Private { bucket, key }, value, || format!("private value {bucket}/{key}"))
}

fn reseal(
    vault: &Vault,
    key: &SealKey,
    place: Place<'_>,
    sealed: &[u8],
    what: impl Fn() -> String,
) -> Result<Vec<u8>, Failure> {
    let clear = open_value(vault, place, sealed, what)?;
    key.seal(place, &clear).ok_or_else(|| Failure::Refused("the system's source of randomness failed".into()))
}

/// Opens a sealed value; `what` names it in errors.
fn open_value(
    vault: &Vault,
    place: Place<'_>,
    sealed: &[u8],
    what: impl Fn() -> String,
) -> Result<Zeroizing<Vec<u8>>, Failure> {
    vault.open(place, sealed).map_err(|failure| {
        let why = match failure {
            OpenFailure::OtherKey => "is sealed with a key that is not the store's",
            OpenFailure::Damaged => "was altered or moved: its seal is broken",
        };
        Failure::Damaged(format!("{} {why}", what()))
    })
}

pub(crate) fn from_column(revision: i64) -> Result<Revision, Failure> {
    u64::try_from(revision).map(Revision).map_err(|_| Failure::Damaged("a negative revision".to_owned()))
}

/// Both databases keep numbers of 63 bits; at a million writes a second that lasts for 290,000 years.
pub(crate) fn to_column(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
