//! Deletions that nobody vouches for: held back until the step is whole, then judged type by type.
//!
//! A publisher that lost its contents looks like one whose contents were all deleted. It says of each removal whether it
//! knows of the deletion; those that it only infers pass as long as they are few.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use meridian_proto::delta::Cause;

use super::Violation;
use crate::data::Id;

/// Up to so many inferred deletions of a type pass...
const FEW: usize = 10;
/// ...and beyond that those up to one in this many of what is held.
const SHARE: usize = 5;

#[derive(Default)]
pub(super) struct Guard {
    /// How many of each type were held when the stream began.
    held: BTreeMap<Arc<str>, usize>,
    total: usize,
    inferred: BTreeSet<Id>,
    unrecorded: BTreeSet<Id>,
    withheld: BTreeSet<Id>,
}

impl Guard {
    pub(super) fn new<'a>(held: impl Iterator<Item = &'a Id>) -> Guard {
        let mut guard = Guard::default();
        for id in held {
            guard.total += 1;
            *guard.held.entry(id.type_.clone()).or_default() += 1;
        }
        guard
    }

    /// The publisher says something certain of this name: what was doubtful before is void.
    pub(super) fn settle(&mut self, id: &Id) {
        if !(self.inferred.is_empty() && self.unrecorded.is_empty() && self.withheld.is_empty()) {
            self.inferred.remove(id);
            self.unrecorded.remove(id);
            self.withheld.remove(id);
        }
    }

    pub(super) fn doubt(&mut self, id: Id, cause: Cause) -> Result<(), Violation> {
        if self.inferred.len() + self.unrecorded.len() + self.withheld.len() >= self.total {
            return Err(Violation::Unexpected("more inferred deletions than there are resources"));
        }
        match cause {
            Cause::Unrecorded => self.unrecorded.insert(id),
            _ => self.inferred.insert(id),
        };
        Ok(())
    }

    /// The step is whole: answers the deletions that pass, and withholds the rest.
    pub(super) fn judge(&mut self) -> Vec<Id> {
        let mut by_type: BTreeMap<Arc<str>, Vec<Id>> = BTreeMap::new();
        for id in std::mem::take(&mut self.inferred) {
            by_type.entry(id.type_.clone()).or_default().push(id);
        }
        self.withheld.append(&mut self.unrecorded);
        let mut pass = Vec::new();
        for (type_, mut ids) in by_type {
            let held = self.held.get(&type_).copied().unwrap_or(0);
            if ids.len() > FEW && ids.len() * SHARE > held {
                self.withheld.extend(ids);
            } else {
                pass.append(&mut ids);
            }
        }
        pass
    }

    pub(super) fn withheld(&self) -> usize {
        self.withheld.len()
    }

    /// An operator lets them pass.
    pub(super) fn release(&mut self) -> Vec<Id> {
        std::mem::take(&mut self.withheld).into_iter().collect()
    }
}
