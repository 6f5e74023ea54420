//! Choosing one of a cluster's endpoints: by its policy's rule, among those that a caller allows.
//!
//! Nearly always everybody is allowed, and a choice costs a look or two (least connections: one at each). What is not
//! allowed is stepped over, by each rule in its own way, so that a hash still leads to one place.

use super::{EndpointState, Upstream, spare::Spared};
use crate::{
    policy::balance::{Part, Rule, Table, spill},
    snapshot::Cluster,
};
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use smallvec::SmallVec;
use std::{cell::RefCell, cmp::Reverse, rc::Rc};

/// Lots that are drawn for an endpoint that is allowed, before the next in turn is taken: with half of them out, one in 256
/// choices comes to that, so that whoever stands after one that is out is hardly burdened.
const DRAWS: usize = 8;

/// How an endpoint is chosen among the usable ones of a tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    RoundRobin,
    LeastConnections,
    /// As the cluster's policy says; with the hash of a request or connection, if it goes by one.
    Policy {
        hash: Option<u64>,
    },
}

/// A worker's random numbers: small and fast, as nothing secret depends on them.
pub(super) struct Dice(RefCell<SmallRng>);

impl Default for Dice {
    fn default() -> Self {
        Self::seeded(rand::random())
    }
}

impl Dice {
    pub(super) fn seeded(seed: u64) -> Self {
        Self(RefCell::new(SmallRng::seed_from_u64(seed)))
    }

    fn number(&self) -> u64 {
        self.0.borrow_mut().random()
    }

    /// 0 to 1.
    fn share(&self) -> f64 {
        self.0.borrow_mut().random()
    }

    fn below(&self, end: usize) -> usize {
        if end > 1 { self.0.borrow_mut().random_range(0..end) } else { 0 }
    }
}

/// One choice, which may have to be made in several steps: all begin at the same place.
pub(super) struct Chooser<'a> {
    tiers: &'a [Vec<Rc<EndpointState>>],
    cluster: &'a Cluster,
    rule: How,
    dice: &'a Dice,
    /// Whose turn it is.
    start: usize,
    hash: u64,
    /// The tier that is looked at first.
    first: usize,
    /// Some endpoint may not be usable.
    troubled: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    LeastConnections,
    By(Rule),
}

impl Upstream {
    pub(super) fn chooser<'a>(
        &'a self,
        tiers: &'a [Vec<Rc<EndpointState>>],
        cluster: &'a Cluster,
        spared: &Spared,
        now: u64,
        balance: Balance,
    ) -> Chooser<'a> {
        let start = self.cursor.get();
        self.cursor.set(start.wrapping_add(1));
        let (rule, given) = match balance {
            Balance::RoundRobin => (How::By(Rule::RoundRobin), None),
            Balance::LeastConnections => (How::LeastConnections, None),
            Balance::Policy { hash } => (How::By(cluster.balancing.rule), hash),
        };
        let dice = &*self.dice;
        let hash = match rule {
            How::By(Rule::Hash) => given.unwrap_or_else(|| dice.number()),
            _ => 0,
        };
        let troubled = self.is_troubled(cluster, tiers, now);
        let mut chooser = Chooser { tiers, cluster, rule, dice, start, hash, first: 0, troubled };
        chooser.first = chooser.first_tier(|state| state.is_up(now) && spared.allows(state, now));
        chooser
    }
}

impl Chooser<'_> {
    fn first_tier(&self, usable: impl Fn(&EndpointState) -> bool) -> usize {
        let Some(enough) = self.cluster.balancing.enough.filter(|_| self.troubled && self.tiers.len() > 1)
        else {
            return 0;
        };
        let share =
            |tier: &Vec<Rc<EndpointState>>| (tier.iter().filter(|state| usable(state)).count(), tier.len());
        let at = match self.rule {
            // The same hash, the same tier, and of each tier all places alike: hence not the hash as it is.
            How::By(Rule::Hash) => fraction(self.hash.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32)),
            _ => self.dice.share(),
        };
        spill::tier(self.tiers.iter().map(share), enough, at)
    }

    /// An endpoint that is allowed, with its tier: in the first tier that has one.
    pub(super) fn find(
        &self,
        allowed: impl Fn(usize, &Rc<EndpointState>) -> bool,
    ) -> Option<(usize, Rc<EndpointState>)> {
        let others = (0..self.tiers.len()).filter(|index| *index != self.first);
        std::iter::once(self.first).chain(others).find_map(|index| {
            let found = self.in_tier(index, self.tiers.get(index)?, &|state| allowed(index, state))?;
            Some((index, found.clone()))
        })
    }

    fn in_tier<'t>(
        &self,
        index: usize,
        tier: &'t [Rc<EndpointState>],
        allowed: &impl Fn(&Rc<EndpointState>) -> bool,
    ) -> Option<&'t Rc<EndpointState>> {
        let plan = self.cluster.plans.get(index);
        if self.rule == How::By(Rule::Hash)
            && let Some(table) = plan.and_then(|plan| plan.circle.as_ref()?.table())
        {
            return self.on_table(table, tier, allowed);
        }
        let parts = plan.map(|plan| plan.parts.as_slice()).unwrap_or_default();
        if parts.is_empty() {
            return self.in_part(tier, allowed);
        }
        let order = self.by_weight(parts, tier, allowed).into_iter();
        let endpoints = order.filter_map(|place| tier.get(parts.get(place)?.endpoints.clone()));
        endpoints.into_iter().find_map(|part| self.in_part(part, allowed))
    }

    /// The order in which a tier's parts are looked at: first one that is drawn by its weight, then the others, the
    /// heaviest first.
    fn by_weight(
        &self,
        parts: &[Part],
        tier: &[Rc<EndpointState>],
        allowed: &impl Fn(&Rc<EndpointState>) -> bool,
    ) -> SmallVec<[usize; 4]> {
        let enough = self.cluster.balancing.enough.filter(|_| self.troubled);
        let weight = |part: &Part| {
            let endpoints = tier.get(part.endpoints.clone()).unwrap_or_default();
            let share = || (endpoints.iter().filter(|state| allowed(state)).count(), endpoints.len());
            f64::from(part.weight) * enough.map_or(1.0, |enough| spill::capacity(share(), enough))
        };
        let weights: SmallVec<[f64; 4]> = parts.iter().map(weight).collect();
        let drawn = spill::weighted(&weights, self.dice.share());
        let mut order: SmallVec<[usize; 4]> = (0..parts.len()).collect();
        order
            .sort_by_key(|place| Reverse((drawn == Some(*place), parts.get(*place).map(|part| part.weight))));
        order
    }

    fn on_table<'t>(
        &self,
        table: &Table,
        tier: &'t [Rc<EndpointState>],
        allowed: &impl Fn(&Rc<EndpointState>) -> bool,
    ) -> Option<&'t Rc<EndpointState>> {
        let mut walk = table.walk(self.hash).filter_map(|place| tier.get(place));
        let first = walk.next().filter(|state| allowed(state));
        if first.is_some() {
            return first;
        }
        // The whole circle is walked only if there is somebody to be found.
        let any = tier.iter().find(|state| allowed(state))?;
        Some(walk.find(|state| allowed(state)).unwrap_or(any))
    }

    fn in_part<'t>(
        &self,
        part: &'t [Rc<EndpointState>],
        allowed: &impl Fn(&Rc<EndpointState>) -> bool,
    ) -> Option<&'t Rc<EndpointState>> {
        match self.rule {
            How::By(Rule::RoundRobin) => in_turn(part, self.start).find(|state| allowed(state)),
            // Without a table there is one endpoint, or only parts of others.
            How::By(Rule::Random | Rule::Hash) => self.drawn(part, allowed),
            How::By(Rule::LeastRequest(choices)) => self.least_of(choices, part, allowed),
            How::LeastConnections => {
                let turn = in_turn(part, self.start).filter(|state| allowed(state));
                turn.min_by_key(|state| state.active.get())
            }
        }
    }

    /// By lot; not all alike only where many are not allowed.
    fn drawn<'t>(
        &self,
        part: &'t [Rc<EndpointState>],
        allowed: &impl Fn(&Rc<EndpointState>) -> bool,
    ) -> Option<&'t Rc<EndpointState>> {
        let lots = (0..DRAWS).filter_map(|_| part.get(self.dice.below(part.len())));
        lots.into_iter().find(|state| allowed(state)).or_else(|| {
            let start = self.dice.below(part.len());
            in_turn(part, start).find(|state| allowed(state))
        })
    }

    /// Of some that are drawn (of all, if there are no more) the least busy.
    fn least_of<'t>(
        &self,
        choices: usize,
        part: &'t [Rc<EndpointState>],
        allowed: &impl Fn(&Rc<EndpointState>) -> bool,
    ) -> Option<&'t Rc<EndpointState>> {
        let is_http = self.cluster.protocol.is_http();
        let busy =
            |state: &&Rc<EndpointState>| if is_http { state.requests.get() } else { state.active.get() };
        if choices >= part.len() {
            let start = self.dice.below(part.len());
            return in_turn(part, start).filter(|state| allowed(state)).min_by_key(busy);
        }
        let first = self.drawn(part, allowed)?;
        let more = (1..choices).filter_map(|_| self.drawn(part, allowed));
        std::iter::once(first).chain(more).min_by_key(busy)
    }
}

/// A number as a share of the largest one.
fn fraction(number: u64) -> f64 {
    number as f64 / u64::MAX as f64
}

/// The endpoints of a tier, beginning with the one whose turn it is.
fn in_turn(tier: &[Rc<EndpointState>], start: usize) -> impl Iterator<Item = &Rc<EndpointState>> {
    let start = start.checked_rem(tier.len()).unwrap_or_default();
    let (head, tail) = tier.split_at_checked(start).unwrap_or_default();
    tail.iter().chain(head)
}

#[cfg(test)]
mod tests;
