//! Virtual addresses: which name has which, and for how long nobody else may have it.
//!
//! An address is a hash of its owner, probed onwards when taken, so that it is mostly the same after a lost store.
//! It is not given to another owner for [`QUARANTINE`] after its release, because applications and resolvers cache;
//! the owner itself gets it back at any time. Each row is stored by itself: an allocation costs one small write.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

/// A released address is not given again for so long.
pub(crate) const QUARANTINE: Duration = Duration::from_hours(24);

/// What an address is for; each has a /8 of its own in 240/4, which no route leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Range {
    /// `<service>.mesh` and real host names of listed destinations: one a host, all its ports.
    Host,
    MeshService,
    MeshExternalService,
    MeshMultiZoneService,
}

impl Range {
    fn first_octet(self) -> u8 {
        match self {
            Self::Host => 240,
            Self::MeshService => 241,
            Self::MeshExternalService => 242,
            Self::MeshMultiZoneService => 243,
        }
    }
}

/// Whose address it is: a range, and a name unique in it (`<mesh>/<host>`, `<mesh>/<zone>/<name>`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Owner {
    pub(crate) range: Range,
    pub(crate) name: String,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.range.first_octet(), self.name)
    }
}

/// One stored row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Row {
    pub(crate) range: Range,
    pub(crate) name: String,
    pub(crate) address: Ipv4Addr,
    /// Seconds since 1970; unset while in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) released: Option<u64>,
}

/// Addresses in use, for who shows them; brought up to date by the table's owner. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Addresses(Arc<RwLock<HashMap<Owner, Ipv4Addr>>>);

impl Addresses {
    pub(crate) fn get(&self, owner: &Owner) -> Option<Ipv4Addr> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(owner).copied()
    }

    pub(crate) fn set(&self, table: &VipTable) {
        let in_use = table.by_owner.iter().filter(|(_, slot)| slot.released.is_none());
        let all = in_use.map(|(owner, slot)| (owner.clone(), slot.address)).collect();
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = all;
    }

    /// What [`VipTable::drain`] gave.
    pub(crate) fn follow(&self, changed: &[(Owner, Option<Row>)]) {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for (owner, row) in changed {
            match row.as_ref().filter(|row| row.released.is_none()) {
                Some(row) => drop(all.insert(owner.clone(), row.address)),
                None => drop(all.remove(owner)),
            }
        }
    }
}

/// Every address of a range is in use or in quarantine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no virtual address is left in {0}.0.0.0/8")]
pub(crate) struct Exhausted(u8);

/// The table. Changes gather until [`VipTable::drain`] takes them to the store.
#[derive(Clone, Debug, Default)]
pub(crate) struct VipTable {
    by_owner: HashMap<Owner, Slot>,
    by_address: HashMap<Ipv4Addr, Owner>,
    changed: Vec<Owner>,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    address: Ipv4Addr,
    released: Option<u64>,
}

impl VipTable {
    /// From stored rows. Of two rows for one address, which only a damaged store holds, the later is dropped.
    pub(crate) fn load(rows: impl IntoIterator<Item = Row>) -> Self {
        let mut table = Self::default();
        for row in rows {
            let owner = Owner { range: row.range, name: row.name };
            if table.by_address.contains_key(&row.address) || table.by_owner.contains_key(&owner) {
                continue;
            }
            table.by_address.insert(row.address, owner.clone());
            table.by_owner.insert(owner, Slot { address: row.address, released: row.released });
        }
        table
    }

    /// The owner's address, given now if it has none. `now` in seconds since 1970.
    pub(crate) fn ensure(&mut self, owner: &Owner, now: u64) -> Result<Ipv4Addr, Exhausted> {
        if let Some(slot) = self.by_owner.get_mut(owner) {
            if slot.released.take().is_some() {
                self.changed.push(owner.clone());
            }
            return Ok(slot.address);
        }
        let address = self.free_address(owner, now)?;
        if let Some(former) = self.by_address.insert(address, owner.clone()) {
            self.by_owner.remove(&former);
            self.changed.push(former);
        }
        self.by_owner.insert(owner.clone(), Slot { address, released: None });
        self.changed.push(owner.clone());
        Ok(address)
    }

    /// The owner's address while it is in use.
    pub(crate) fn address(&self, owner: &Owner) -> Option<Ipv4Addr> {
        self.by_owner.get(owner).filter(|slot| slot.released.is_none()).map(|slot| slot.address)
    }

    /// Begins the quarantine. Nothing happens for an owner without an address.
    pub(crate) fn release(&mut self, owner: &Owner, now: u64) {
        if let Some(slot) = self.by_owner.get_mut(owner)
            && slot.released.is_none()
        {
            slot.released = Some(now);
            self.changed.push(owner.clone());
        }
    }

    /// Releases whatever `wanted` does not name: at start, when changes were missed.
    pub(crate) fn retain(&mut self, wanted: impl Fn(&Owner) -> bool, now: u64) {
        let stale: Vec<Owner> = self
            .by_owner
            .iter()
            .filter(|(owner, slot)| slot.released.is_none() && !wanted(owner))
            .map(|(owner, _)| owner.clone())
            .collect();
        for owner in stale {
            self.release(&owner, now);
        }
    }

    /// What is to be stored since the last call; `None`: the row goes.
    pub(crate) fn drain(&mut self) -> Vec<(Owner, Option<Row>)> {
        let mut changed = std::mem::take(&mut self.changed);
        changed.sort();
        changed.dedup();
        let row = |owner: &Owner| {
            let slot = self.by_owner.get(owner)?;
            let (range, name) = (owner.range, owner.name.clone());
            Some(Row { range, name, address: slot.address, released: slot.released })
        };
        changed.into_iter().map(|owner| (owner.clone(), row(&owner))).collect()
    }

    fn free_address(&self, owner: &Owner, now: u64) -> Result<Ipv4Addr, Exhausted> {
        /// Host parts 1..=2^24-2: neither the network's address nor the broadcast one.
        const HOSTS: u32 = (1 << 24) - 2;
        let digest = Sha256::digest(owner.to_string().as_bytes());
        let seed = digest.iter().take(4).fold(0u32, |sum, byte| (sum << 8) | u32::from(*byte));
        let octet = owner.range.first_octet();
        (0..HOSTS)
            .map(|step| Ipv4Addr::from((u32::from(octet) << 24) | (1 + (seed % HOSTS + step) % HOSTS)))
            .find(|address| self.is_free(*address, now))
            .ok_or(Exhausted(octet))
    }

    fn is_free(&self, address: Ipv4Addr, now: u64) -> bool {
        let Some(slot) = self.by_address.get(&address).and_then(|owner| self.by_owner.get(owner)) else {
            return true;
        };
        slot.released.is_some_and(|at| now.saturating_sub(at) >= QUARANTINE.as_secs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn owner(n: usize) -> Owner {
        Owner { range: Range::MeshService, name: format!("default/east/s{n}") }
    }

    #[test]
    fn ranges_are_apart() {
        let mut table = VipTable::default();
        for (range, octet) in [
            (Range::Host, 240),
            (Range::MeshService, 241),
            (Range::MeshExternalService, 242),
            (Range::MeshMultiZoneService, 243),
        ] {
            let address = table.ensure(&Owner { range, name: "default/x".into() }, 0).unwrap();
            assert_eq!(address.octets()[0], octet);
        }
    }

    #[test]
    fn a_taken_address_is_probed_onwards_and_quarantined() {
        let mut first = VipTable::default();
        let wanted = first.ensure(&owner(1), 0).unwrap();
        let squatter =
            Row { range: Range::MeshService, name: "other".into(), address: wanted, released: Some(100) };
        let mut table = VipTable::load([squatter]);
        let day = QUARANTINE.as_secs();
        assert_ne!(table.clone().ensure(&owner(1), 100 + day - 1).unwrap(), wanted);
        assert_eq!(table.ensure(&owner(1), 100 + day).unwrap(), wanted);
        let drained = table.drain();
        assert!(drained.iter().any(|(owner, row)| owner.name == "other" && row.is_none()), "{drained:?}");
    }

    #[test]
    fn the_owner_gets_its_address_back() {
        let mut table = VipTable::default();
        let address = table.ensure(&owner(1), 0).unwrap();
        table.release(&owner(1), 10);
        assert_eq!(table.address(&owner(1)), None);
        assert_eq!(table.ensure(&owner(1), 20).unwrap(), address);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Ensure(usize),
        Release(usize),
        Wait(u64),
        Restart,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..40usize).prop_map(Step::Ensure),
            (0..40usize).prop_map(Step::Release),
            (0..100_000u64).prop_map(Step::Wait),
            Just(Step::Restart),
        ]
    }

    proptest! {
        /// No two owners share an address, none moves while in use, none is given again within a day, and what is
        /// stored row by row is the table.
        #[test]
        fn addresses_are_stable_unique_and_quarantined(steps in prop::collection::vec(step(), 1..120)) {
            let mut table = VipTable::default();
            let mut stored: HashMap<Owner, Row> = HashMap::new();
            let mut live: HashMap<usize, Ipv4Addr> = HashMap::new();
            let mut freed: HashMap<Ipv4Addr, (usize, u64)> = HashMap::new();
            let mut now = 1;
            let shown = Addresses::default();
            for step in steps {
                match step {
                    Step::Ensure(n) => {
                        let address = table.ensure(&owner(n), now).unwrap();
                        if let Some(before) = live.insert(n, address) {
                            prop_assert_eq!(before, address);
                        }
                        if let Some((former, at)) = freed.remove(&address) {
                            prop_assert!(former == n || now - at >= QUARANTINE.as_secs());
                        }
                    }
                    Step::Release(n) => {
                        table.release(&owner(n), now);
                        if let Some(address) = live.remove(&n) {
                            freed.insert(address, (n, now));
                        }
                    }
                    Step::Wait(seconds) => now += seconds,
                    Step::Restart => table = VipTable::load(stored.values().cloned()),
                }
                let drained = table.drain();
                shown.follow(&drained);
                for (owner, row) in drained {
                    match row {
                        Some(row) => { stored.insert(owner, row); }
                        None => { stored.remove(&owner); }
                    }
                }
                for (n, address) in &live {
                    prop_assert_eq!(shown.get(&owner(*n)), Some(*address));
                }
                let distinct: HashSet<_> = live.values().collect();
                prop_assert_eq!(distinct.len(), live.len());
            }
        }
    }
}
