use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
};

/// All sources together: at up to 64 KiB and 5 s each, 256 MiB at the very worst.
const IN_ALL: usize = 4096;
/// One source. A whole zone arrives as one address, its egress; a session is routed within milliseconds.
const PER_SOURCE: usize = 1024;

/// Counts connections that are not yet routed or authenticated, over all workers.
#[derive(Clone, Default)]
pub struct Admission(Arc<Mutex<Counts>>);

#[derive(Default)]
struct Counts {
    all: usize,
    sources: HashMap<IpAddr, usize>,
}

/// One such connection. Dropped when it is routed, or gone.
pub struct Unrouted {
    admission: Admission,
    source: IpAddr,
}

impl Admission {
    /// `None` when there are too many already.
    pub fn admit(&self, source: IpAddr) -> Option<Unrouted> {
        let source = one_source(source);
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let present = counts.sources.get(&source).copied().unwrap_or(0);
        if counts.all >= IN_ALL || present >= PER_SOURCE {
            return None;
        }
        counts.all += 1;
        counts.sources.insert(source, present + 1);
        Some(Unrouted { admission: self.clone(), source })
    }
}

impl Drop for Unrouted {
    fn drop(&mut self) {
        let mut counts = self.admission.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.all = counts.all.saturating_sub(1);
        match counts.sources.get_mut(&self.source) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(counts.sources.remove(&self.source)),
        }
    }
}

/// A host has a whole /64 to choose its IPv6 addresses from.
fn one_source(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64)).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_can_not_take_all_places() {
        let admission = Admission::default();
        let ip = |last: u16| IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last));
        let held: Vec<_> = (0..PER_SOURCE).map(|at| admission.admit(ip(at as u16)).unwrap()).collect();
        assert!(admission.admit(ip(1)).is_none());
        assert!(admission.admit("192.0.2.1".parse().unwrap()).is_some());
        drop(held);
        assert!(admission.admit(ip(1)).is_some());
        assert!(admission.0.lock().unwrap().sources.len() <= 1);
    }

    #[test]
    fn there_is_a_limit_in_all() {
        let admission = Admission::default();
        let held: Vec<_> = (0..IN_ALL as u32)
            .map(|at| admission.admit(IpAddr::from((0x0a00_0000 + at).to_be_bytes())).unwrap())
            .collect();
        assert!(admission.admit("192.0.2.1".parse().unwrap()).is_none());
        drop(held);
        assert_eq!(admission.0.lock().unwrap().all, 0);
    }
}
