//! What a write comes to, given what is there: pure, and the same for both databases.

use crate::seal::{Place, SealKey};
use crate::{Change, Expect, Revision, WriteError};
use meridian_core::{Key, Resource};
use std::collections::{BTreeMap, BTreeSet};
use time::OffsetDateTime;
use zeroize::Zeroizing;

/// The most that a resource may take, encoded: it must fit into a message between control planes with room for others.
pub(crate) const RESOURCE_LIMIT: usize = 512 * 1024;

type PrivateKey = (String, String);
/// A private value in clear; None: there is none.
type PrivateValue = Option<Zeroizing<Vec<u8>>>;

/// The changes of one write, checked for what can be checked without the store.
pub(crate) struct Batch {
    resources: Vec<Wanted>,
    private: Vec<Change>,
}

struct Wanted {
    key: Key,
    labels: String,
    /// None: to be deleted.
    body: Option<Zeroizing<Vec<u8>>>,
    expect: Expect,
}

/// The present of one resource.
pub(crate) struct Present {
    pub(crate) revision: Revision,
    /// In clear.
    pub(crate) body: Zeroizing<Vec<u8>>,
}

/// What to write, as it is to be stored. Empty if nothing changes.
pub(crate) struct Plan {
    pub(crate) resources: Vec<Planned>,
    pub(crate) private: Vec<PlannedPrivate>,
}

pub(crate) struct Planned {
    pub(crate) key: Key,
    /// A JSON object.
    pub(crate) labels: String,
    /// None: delete.
    pub(crate) body: Option<Vec<u8>>,
    pub(crate) sealed: bool,
}

pub(crate) struct PlannedPrivate {
    pub(crate) bucket: String,
    pub(crate) key: String,
    /// Sealed; None: delete.
    pub(crate) value: Option<Vec<u8>>,
}

impl Batch {
    pub(crate) fn new(changes: Vec<Change>) -> Result<Self, WriteError> {
        let mut batch = Self { resources: Vec::new(), private: Vec::new() };
        for change in changes {
            match change {
                Change::Put { resource, expect } => batch.resources.push(Wanted::put(resource, expect)?),
                Change::Delete { key, expect } => {
                    batch.resources.push(Wanted { key, labels: String::new(), body: None, expect });
                }
                private => batch.private.push(private),
            }
        }
        if let Some(wanted) = batch.resources.iter().find(|wanted| !storable_key(&wanted.key)) {
            return Err(WriteError::Unstorable { key: wanted.key.clone() });
        }
        let mut seen = BTreeSet::new();
        match batch.resources.iter().find(|wanted| !seen.insert(&wanted.key)) {
            Some(wanted) => Err(WriteError::Repeated { key: wanted.key.clone() }),
            None => Ok(batch),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.resources.is_empty() && self.private.is_empty()
    }

    /// The resources whose present the plan needs.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.resources.iter().map(|wanted| &wanted.key)
    }

    /// The private values whose present the plan needs.
    pub(crate) fn private_keys(&self) -> impl Iterator<Item = (&str, &str)> {
        self.private.iter().filter_map(|change| match change {
            Change::SwapPrivate { bucket, key, .. } => Some((bucket.as_str(), key.as_str())),
            _ => None,
        })
    }

    /// Decides, and seals what is secret.
    pub(crate) fn plan(
        &self,
        present: &BTreeMap<Key, Present>,
        private: &BTreeMap<PrivateKey, Zeroizing<Vec<u8>>>,
        data_key: &SealKey,
    ) -> Result<Plan, WriteError> {
        let mut resources = Vec::new();
        for wanted in &self.resources {
            if wanted.changes(present.get(&wanted.key))? {
                resources.push(wanted.planned(data_key)?);
            }
        }
        let mut outcome: BTreeMap<PrivateKey, PrivateValue> = BTreeMap::new();
        for change in &self.private {
            change_private(change, private, &mut outcome)?;
        }
        let sealed = |((bucket, key), value): (PrivateKey, PrivateValue)| {
            let place = Place::Private { bucket: &bucket, key: &key };
            let value = value.map(|value| seal(data_key, place, &value)).transpose()?;
            Ok(PlannedPrivate { bucket, key, value })
        };
        let private = outcome.into_iter().map(sealed).collect::<Result<Vec<_>, WriteError>>()?;
        Ok(Plan { resources, private })
    }
}

impl Wanted {
    fn put(resource: Resource, expect: Expect) -> Result<Self, WriteError> {
        let body = Zeroizing::new(resource.canonical());
        if body.len() > RESOURCE_LIMIT {
            return Err(WriteError::TooLarge { key: resource.key, size: body.len(), limit: RESOURCE_LIMIT });
        }
        if !resource.labels.iter().all(|(name, value)| storable(name) && storable(value)) {
            return Err(WriteError::Unstorable { key: resource.key });
        }
        let labels = serde_json::to_string(&resource.labels).unwrap_or_default();
        Ok(Self { key: resource.key, labels, body: Some(body), expect })
    }

    /// Whether it makes a difference; an error if the present is not what is expected.
    fn changes(&self, present: Option<&Present>) -> Result<bool, WriteError> {
        let found = present.map(|present| present.revision);
        let expected = match self.expect {
            Expect::Any => true,
            Expect::Absent => present.is_none(),
            Expect::Present if present.is_none() => {
                return Err(WriteError::NotFound { key: self.key.clone() });
            }
            Expect::Present => true,
            Expect::Revision(revision) => found == Some(revision),
        };
        if !expected {
            return Err(WriteError::Conflict { key: self.key.clone(), found });
        }
        Ok(self.body.as_deref() != present.map(|present| &*present.body))
    }

    fn planned(&self, data_key: &SealKey) -> Result<Planned, WriteError> {
        let sealed = self.key.kind.info().admin_only;
        let body = match &self.body {
            Some(clear) if sealed => Some(seal(data_key, Place::Resource(&self.key), clear)?),
            clear => clear.as_ref().map(|clear| clear.to_vec()),
        };
        let sealed = sealed && body.is_some();
        Ok(Planned { key: self.key.clone(), labels: self.labels.clone(), body, sealed })
    }
}

fn change_private(
    change: &Change,
    present: &BTreeMap<PrivateKey, Zeroizing<Vec<u8>>>,
    outcome: &mut BTreeMap<PrivateKey, PrivateValue>,
) -> Result<(), WriteError> {
    let (place, value) = match change {
        Change::PutPrivate { bucket, key, value } => ((bucket.clone(), key.clone()), Some(value)),
        Change::DeletePrivate { bucket, key } => ((bucket.clone(), key.clone()), None),
        Change::SwapPrivate { bucket, key, from, to } => {
            let place = (bucket.clone(), key.clone());
            let found = match outcome.get(&place) {
                Some(earlier) => earlier.as_ref(),
                None => present.get(&place),
            };
            if found.map(|value| value.as_slice()) != from.as_deref() {
                return Err(WriteError::PrivateConflict { bucket: bucket.clone(), key: key.clone() });
            }
            (place, Some(to))
        }
        Change::Put { .. } | Change::Delete { .. } => return Ok(()),
    };
    outcome.insert(place, value.map(|value| Zeroizing::new(value.clone())));
    Ok(())
}

fn seal(data_key: &SealKey, place: Place<'_>, clear: &[u8]) -> Result<Vec<u8>, WriteError> {
    data_key.seal(place, clear).ok_or_else(|| {
        WriteError::Unavailable(Box::from("the system's source of randomness failed: nothing can be sealed"))
    })
}

/// Whether Postgres can have it as text; what it cannot have is in no store, and is asked of none.
pub(crate) fn storable(text: &str) -> bool {
    !text.contains('\0')
}

pub(crate) fn storable_key(key: &Key) -> bool {
    [&key.mesh, &key.zone, &key.name].into_iter().all(|part| storable(part))
}

/// How much history is kept.
#[derive(Clone, Copy)]
pub(crate) struct KeptHistory {
    pub(crate) revisions: u64,
}

impl KeptHistory {
    /// The floor that goes with a new revision. It moves in steps, so that few writes pay for it.
    pub(crate) fn floor(self, newest: Revision, floor: Revision) -> Revision {
        let step = (self.revisions / 4).clamp(1, 256);
        if newest.0.is_multiple_of(step) {
            floor.max(Revision(newest.0.saturating_sub(self.revisions)))
        } else {
            floor
        }
    }
}

/// The present time as both databases can keep it: to the microsecond.
pub(crate) fn now() -> OffsetDateTime {
    let now = OffsetDateTime::now_utc();
    now.replace_nanosecond(now.nanosecond() / 1000 * 1000).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_never_cuts_into_what_is_kept_and_never_goes_back() {
        for kept in [0, 1, 3, 8, 1000, 100_000] {
            let history = KeptHistory { revisions: kept };
            let mut floor = Revision::ZERO;
            for newest in (1..200_000).map(Revision) {
                let next = history.floor(newest, floor);
                assert!(
                    next >= floor && next.0 <= newest.0.saturating_sub(kept),
                    "{kept} at {newest}: {next}"
                );
                assert!(newest.0 - next.0 <= kept + kept / 4 + 1, "{kept} at {newest}: {next} lags");
                floor = next;
            }
        }
    }
}
