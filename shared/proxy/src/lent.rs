//! Addresses lent to names below a listed wildcard.
//!
//! Nobody can list these names beforehand, so the sidecar itself gives an address to each that is asked for: nothing
//! is asked of the outside for it, and the connection is captured like any other to a virtual address. Forwarding the
//! question was rejected: it would let data out in names before anybody has connected, past the egress, and lead the
//! application to addresses that the egress would not choose.
//!
//! SNI and Host still decide where a connection goes; the address says the name only where nothing else does (a gRPC
//! client that waits for the server's settings). So nothing is lost with an address that was forgotten, and nothing is
//! kept on disk: an address is a hash of its name, and mostly the same after a restart.

use crate::host::HostName;
use std::{
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hasher},
    net::Ipv4Addr,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// First octet: 244/8 is this proxy's own to give, beside the zone's 240/8 to 243/8.
pub(crate) const LENT: u8 = 244;

/// Most names that have an address at a time: the least recently used gives way. A workload that asks for endless
/// names gains nothing but that.
pub const MAX_LENT: usize = 4096;

/// Host parts 1..=2^24-2: neither the network's address nor the broadcast one.
const HOSTS: u32 = (1 << 24) - 2;

/// All threads': the resolver lends, a worker looks up, once a connection to such an address.
pub struct Lent {
    most: usize,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    by_name: HashMap<HostName, Loan>,
    by_address: HashMap<Ipv4Addr, HostName>,
    /// By last use.
    order: BTreeMap<u64, HostName>,
    uses: u64,
}

#[derive(Clone, Copy)]
struct Loan {
    address: Ipv4Addr,
    used: u64,
}

impl Default for Lent {
    fn default() -> Self {
        Self::new(MAX_LENT)
    }
}

impl Lent {
    /// For at most so many names, at least one.
    pub fn new(most: usize) -> Self {
        Self { most: most.max(1), table: Mutex::default() }
    }

    /// The name's address: the one that it has, or a new one.
    pub fn lend(&self, name: &HostName) -> Ipv4Addr {
        let mut table = self.table();
        if let Some(address) = table.touch(name) {
            return address;
        }
        while table.by_name.len() >= self.most && table.forget_oldest() {}
        table.add(name)
    }

    /// Whose address it is, if that is still known.
    pub fn name_at(&self, address: Ipv4Addr) -> Option<HostName> {
        let mut table = self.table();
        let name = table.by_address.get(&address).cloned()?;
        table.touch(&name);
        Some(name)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn touch(&mut self, name: &HostName) -> Option<Ipv4Addr> {
        let loan = self.by_name.get_mut(name)?;
        self.uses += 1;
        self.order.remove(&loan.used);
        loan.used = self.uses;
        self.order.insert(self.uses, name.clone());
        Some(loan.address)
    }

    fn forget_oldest(&mut self) -> bool {
        let Some((_, name)) = self.order.pop_first() else { return false };
        if let Some(loan) = self.by_name.remove(&name) {
            self.by_address.remove(&loan.address);
        }
        true
    }

    fn add(&mut self, name: &HostName) -> Ipv4Addr {
        let mut hasher = DefaultHasher::new();
        hasher.write(name.as_str().as_bytes());
        let seed = (hasher.finish() % u64::from(HOSTS)) as u32;
        let at = |step| Ipv4Addr::from((u32::from(LENT) << 24) | (1 + (seed + step) % HOSTS));
        // Far fewer are lent than there are: the first free one is near.
        let free = (0..HOSTS).map(at).find(|address| !self.by_address.contains_key(address));
        let address = free.unwrap_or_else(|| at(0));
        self.uses += 1;
        self.by_name.insert(name.clone(), Loan { address, used: self.uses });
        self.by_address.insert(address, name.clone());
        self.order.insert(self.uses, name.clone());
        address
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::is_vip;
    use proptest::prelude::*;

    fn name(n: usize) -> HostName {
        HostName::parse(format!("n{n}.example.com").as_bytes()).unwrap()
    }

    #[test]
    fn a_name_keeps_its_address_also_over_a_restart() {
        let lent = Lent::default();
        let address = lent.lend(&name(1));
        assert_eq!(lent.lend(&name(1)), address);
        assert_eq!(Lent::default().lend(&name(1)), address);
        assert_eq!(lent.name_at(address), Some(name(1)));
        assert_eq!(lent.name_at(Ipv4Addr::new(240, 0, 0, 1)), None);
    }

    #[test]
    fn the_least_recently_used_gives_way() {
        let lent = Lent::new(3);
        let [first, second, third] = [1, 2, 3].map(|n| lent.lend(&name(n)));
        // Asked for again, and connected to.
        lent.lend(&name(1));
        lent.name_at(second);
        lent.lend(&name(4));
        assert_eq!(lent.name_at(third), None);
        assert_eq!((lent.name_at(first), lent.name_at(second)), (Some(name(1)), Some(name(2))));
    }

    proptest! {
        /// However many are asked for: no two names share an address, all are virtual, and no more are kept than may.
        #[test]
        fn addresses_are_unique_and_bounded(asked in prop::collection::vec(0..60usize, 1..200)) {
            let lent = Lent::new(20);
            for n in asked {
                let address = lent.lend(&name(n));
                prop_assert!(is_vip(address.into()) && address.octets()[0] == LENT);
                prop_assert_eq!(lent.name_at(address), Some(name(n)));
                let table = lent.table();
                prop_assert!(table.by_name.len() <= 20);
                prop_assert_eq!(table.by_name.len(), table.by_address.len());
                prop_assert_eq!(table.by_name.len(), table.order.len());
            }
        }
    }
}
