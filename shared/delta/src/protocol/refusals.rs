//! What a subscriber has rejected: kept from it until it changes, or until a back-off has passed.
//!
//! Neither a hot loop of the same rejection, nor a resource that is never tried again.

use std::collections::BTreeMap;
use std::time::Instant;

use super::{RETRY_FIRST, RETRY_LAST, shorten};
use crate::data::{Encoded, Id, Version};
use crate::peer::{MAX_REJECTED, Rejected};

#[derive(Default)]
pub(super) struct Refusals(BTreeMap<Id, Refusal>);

struct Refusal {
    version: Version,
    reason: String,
    failures: u32,
    /// None while it is in flight again.
    retry: Option<Instant>,
}

impl Refusals {
    pub(super) fn refuse(&mut self, id: Id, version: Version, mut reason: String, now: Instant) {
        shorten(&mut reason);
        let failures = match self.0.get(&id) {
            Some(before) if before.version == version => before.failures.saturating_add(1),
            _ => 0,
        };
        let wait = RETRY_FIRST.saturating_mul(1 << failures.min(16)).min(RETRY_LAST);
        self.0.insert(id, Refusal { version, reason, failures, retry: Some(now + wait) });
    }

    pub(super) fn clear(&mut self, id: &Id) {
        self.0.remove(id);
    }

    /// Whether this very version was refused.
    pub(super) fn holds(&self, id: &Id, resource: &Encoded) -> bool {
        self.0.get(id).is_some_and(|refusal| refusal.version == resource.version)
    }

    /// What may be tried again.
    pub(super) fn due(&self, now: Instant) -> Vec<(Id, Version)> {
        let due = self.0.iter().filter(|(_, refusal)| refusal.retry.is_some_and(|at| at <= now));
        due.map(|(id, refusal)| (id.clone(), refusal.version)).collect()
    }

    /// It is under way again, or its change is.
    pub(super) fn retried(&mut self, id: &Id) {
        if let Some(refusal) = self.0.get_mut(id) {
            refusal.retry = None;
        }
    }

    pub(super) fn next_retry(&self) -> Option<Instant> {
        self.0.values().filter_map(|refusal| refusal.retry).min()
    }

    pub(super) fn shown(&self) -> Vec<Rejected> {
        let rejected = |(id, refusal): (&Id, &Refusal)| Rejected {
            id: id.clone(),
            version: refusal.version,
            reason: refusal.reason.clone(),
        };
        self.0.iter().take(MAX_REJECTED).map(rejected).collect()
    }
}
