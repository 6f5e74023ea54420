//! Where a hash leads: a ring of points, or Maglev's table. Both are a circle of places, each of one endpoint: who can't
//! have the endpoint at its place goes on along the circle.
//!
//! On a ring an endpoint has as many points with others as without (unlike Envoy's, whose points an endpoint depend on
//! how many endpoints there are, so that one that leaves moves keys among the rest): when one leaves, only its keys move.
//! Points are a quarter of the smallest ring: four endpoints fill one.

use super::hashing::{murmur2, xx};
use meridian_core::kinds::mesh_load_balancing_strategy::{LARGEST_TABLE, table_size};
use meridian_proxy_config::{Balancer, HashFunction};
use std::{cmp::Reverse, collections::BinaryHeap, sync::OnceLock};

/// So many endpoints fill the smallest ring.
const FILLING: u32 = 4;

/// An endpoint as it stands on a circle.
#[derive(Clone, Debug)]
pub struct Member {
    /// The same in all proxies, and different from those of all others.
    pub identity: String,
    /// More than 0; what counts is the proportion.
    pub weight: f64,
}

/// A table that is made by the first request that goes by it, for all workers: a mesh has many destinations of which a
/// proxy calls few, and each of Maglev's tables costs some milliseconds. Where requests go by one, its successor is made
/// with the configuration that brings it ([`Circle::prepare`]), so that no request waits for that.
pub struct Circle {
    balancer: Balancer,
    members: Vec<Member>,
    made: OnceLock<Option<Table>>,
}

impl Circle {
    /// `None` for balancers without one, and where there is nothing to choose.
    pub fn new(balancer: &Balancer, members: impl FnOnce() -> Vec<Member>) -> Option<Self> {
        if !matches!(balancer, Balancer::RingHash { .. } | Balancer::Maglev { .. }) {
            return None;
        }
        let members = members();
        (members.len() > 1).then(|| Self { balancer: balancer.clone(), members, made: OnceLock::new() })
    }

    pub fn table(&self) -> Option<&Table> {
        self.made.get_or_init(|| Table::build(&self.balancer, &self.members)).as_ref()
    }

    /// Makes the table now.
    pub fn prepare(&self) {
        self.table();
    }

    pub fn is_made(&self) -> bool {
        self.made.get().is_some()
    }
}

/// A circle of endpoints, by their places among those that it was made from.
#[derive(Debug, PartialEq, Eq)]
pub struct Table {
    owners: Vec<u32>,
    /// Where on a ring the places are, in ascending order. Empty: they are the remainders of a division.
    points: Vec<u64>,
}

impl Table {
    /// `None` for balancers without one, and where there is nothing to choose.
    fn build(balancer: &Balancer, members: &[Member]) -> Option<Self> {
        if members.len() < 2 {
            return None;
        }
        match balancer {
            Balancer::RingHash { function, min_size, max_size } => {
                Some(ring(members, *function, min_size.get(), max_size.get()))
            }
            Balancer::Maglev { size } => Some(maglev(members, size.get())),
            Balancer::RoundRobin | Balancer::Random | Balancer::LeastRequest { .. } => None,
        }
    }

    /// The endpoints from where a hash leads: each as often as it has places, and at last all. On a ring one point after
    /// the other. In a table by steps of the hash's own, since which members are neighbours there is no accident: whoever
    /// is next to one that is out would take nearly all of its keys.
    pub fn walk(&self, hash: u64) -> impl Iterator<Item = usize> {
        let places = self.owners.len();
        let (start, step) = if self.points.is_empty() {
            let stepping = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32);
            (remainder(hash, places), remainder(stepping, places.saturating_sub(1)) + 1)
        } else {
            (self.points.partition_point(|point| *point < hash), 1)
        };
        let place = move |n: usize| n.wrapping_mul(step).wrapping_add(start).checked_rem(places);
        let owner = move |n: usize| usize::try_from(*self.owners.get(place(n)?)?).ok();
        (0..places).filter_map(owner)
    }
}

fn remainder(number: u64, of: usize) -> usize {
    let of = u64::try_from(of).unwrap_or(u64::MAX);
    number.checked_rem(of).and_then(|rest| usize::try_from(rest).ok()).unwrap_or(0)
}

fn ring(members: &[Member], function: HashFunction, min_size: u32, max_size: u32) -> Table {
    let hash: fn(&[u8]) -> u64 = match function {
        HashFunction::Xx => |bytes| xx(bytes, 0),
        HashFunction::Murmur2 => murmur2,
    };
    let count = u32::try_from(members.len()).unwrap_or(u32::MAX).max(1);
    let most = (max_size.min(LARGEST_TABLE) / count).max(1);
    let each = min_size.div_ceil(FILLING).clamp(1, most);
    let mean = members.iter().map(|member| member.weight).sum::<f64>() / members.len() as f64;
    let mut ring = Vec::new();
    for (owner, member) in (0_u32..).zip(members) {
        // The cast saturates; a member without a point would get nothing at all.
        let points = ((f64::from(each) * member.weight / mean).round() as u32).clamp(1, LARGEST_TABLE);
        let point = |n: u32| (hash(format!("{}_{n}", member.identity).as_bytes()), &member.identity, owner);
        ring.extend((0..points).map(point));
    }
    // Of two at one point the identity decides, not who came first.
    ring.sort_unstable();
    let (points, owners) = ring.into_iter().map(|(point, _, owner)| (point, owner)).unzip();
    Table { owners, points }
}

/// "Maglev: A Fast and Reliable Software Network Load Balancer", section 3.4; weights as in Envoy: a member fills a place
/// in as many rounds as its weight is of the largest one.
fn maglev(members: &[Member], size: u32) -> Table {
    // A prime, so that each member's steps come by every place.
    let size = u64::from(table_size(size));
    let mut fillers: Vec<Filler<'_>> =
        (0..).zip(members).map(|(owner, member)| Filler::new(owner, member, size)).collect();
    // Whoever fills first in a round gets more: the order must be everybody's.
    fillers.sort_by(|a, b| a.identity.cmp(b.identity));
    let largest = members.iter().map(|member| member.weight).fold(f64::MIN_POSITIVE, f64::max);
    let mut due: BinaryHeap<Reverse<(u64, usize)>> =
        (0..fillers.len()).map(|rank| Reverse((1, rank))).collect();
    let mut places: Vec<Option<u32>> = vec![None; usize::try_from(size).unwrap_or(0)];
    for _ in 0..size {
        let Some(mut next) = due.peek_mut() else { break };
        let Reverse((round, rank)) = &mut *next;
        if let Some(filler) = fillers.get_mut(*rank) {
            filler.fill(&mut places, size);
            *round = filler.next_round(*round, largest);
        }
    }
    Table { owners: places.into_iter().flatten().collect(), points: Vec::new() }
}

/// A member that fills places of a table.
struct Filler<'a> {
    owner: u32,
    identity: &'a str,
    weight: f64,
    filled: f64,
    /// The place that it looks at next, and by how much it goes on.
    next: u64,
    step: u64,
}

impl<'a> Filler<'a> {
    fn new(owner: u32, member: &'a Member, size: u64) -> Self {
        let identity = member.identity.as_str();
        let hash = |seed| xx(identity.as_bytes(), seed);
        let step = hash(1) % size.saturating_sub(1).max(1) + 1;
        Self { owner, identity, weight: member.weight, filled: 0.0, next: hash(0) % size, step }
    }

    /// Takes the first free place on its way; there is one.
    fn fill(&mut self, places: &mut [Option<u32>], size: u64) {
        self.filled += 1.0;
        for _ in 0..size {
            let place = usize::try_from(self.next).ok().and_then(|next| places.get_mut(next));
            self.next = (self.next + self.step) % size;
            if let Some(place @ None) = place {
                *place = Some(self.owner);
                return;
            }
        }
    }

    /// The round in which it fills its next place.
    fn next_round(&self, round: u64, largest: f64) -> u64 {
        // The cast saturates: a weight next to nothing comes too late.
        let next = (self.filled * (largest / self.weight)).ceil() as u64;
        next.max(round).saturating_add(1)
    }
}

#[cfg(test)]
mod tests;
