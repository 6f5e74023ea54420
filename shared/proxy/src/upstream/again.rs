//! Where one request's attempts go: an endpoint by the cluster's rule, and for a repetition rather one that its policy does not
//! want to avoid.

use super::{Balance, EndpointState, Upstream, among};
use std::rc::Rc;

/// What an attempt asks of its endpoint.
pub struct Wish<'a, F> {
    /// Tiers that it rather does not go to.
    pub avoided_tiers: &'a [usize],
    /// Endpoints that it has found unreachable: never one of these.
    pub unreached: &'a [Rc<EndpointState>],
    /// Endpoints that it rather does not go to.
    pub avoids: F,
    /// What it goes by, where endpoints are chosen by a hash.
    pub hash: Option<u64>,
    /// How many endpoints are looked at after the first for one that is not avoided; `None`: all.
    pub looks: Option<usize>,
}

/// So many looks are as good as all: each costs more than the one before.
const MANY_LOOKS: usize = 32;

impl Upstream {
    /// An endpoint by a wish, and its tier. Where the wish can't be granted, usable endpoints come before those that
    /// failed lately.
    pub fn pick_by<F>(&self, now: u64, wish: &Wish<'_, F>) -> Option<(usize, Rc<EndpointState>)>
    where
        F: Fn(&Rc<EndpointState>) -> bool,
    {
        let (tiers, cluster) = (self.tiers.borrow(), self.cluster.borrow());
        let spared = self.spared(&tiers, now);
        let chooser = self.chooser(&tiers, &cluster, &spared, now, Balance::Policy { hash: wish.hash });
        let reached = |state: &EndpointState| !among(wish.unreached, state);
        let usable = |tier: usize, state: &EndpointState| {
            state.is_up(now) && reached(state) && spared.prefers(tier, state, now)
        };
        let beyond = |tier: usize| !wish.avoided_tiers.contains(&tier);
        let wanted = |state: &Rc<EndpointState>| !(wish.avoids)(state);
        let found = match wish.looks.filter(|more| *more < MANY_LOOKS) {
            Some(more) => looked(
                more,
                |seen: &[(usize, Rc<EndpointState>)]| {
                    let new = |state: &EndpointState| !seen.iter().any(|(_, other)| other.is(state));
                    chooser.find(|tier, state| beyond(tier) && usable(tier, state) && new(state))
                },
                |(_, state)| wanted(state),
            ),
            None => chooser
                .find(|tier, state| beyond(tier) && usable(tier, state) && wanted(state))
                .or_else(|| chooser.find(|tier, state| usable(tier, state) && wanted(state)))
                .or_else(|| chooser.find(|tier, state| beyond(tier) && usable(tier, state))),
        };
        found
            .or_else(|| chooser.find(|tier, state| usable(tier, state)))
            .or_else(|| chooser.find(|_, state| reached(state) && spared.allows(state, now)))
    }
}

/// The first that is wanted, of one and so many more; else the last of them. `next` gives one that is not among those seen.
fn looked<T>(more: usize, mut next: impl FnMut(&[T]) -> Option<T>, wanted: impl Fn(&T) -> bool) -> Option<T> {
    let mut seen = Vec::new();
    while seen.len() <= more {
        let Some(candidate) = next(&seen) else { break };
        if wanted(&candidate) {
            return Some(candidate);
        }
        seen.push(candidate);
    }
    seen.pop()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_around_ends_where_it_is_told_to() {
        let odd = |n: &u32| n % 2 == 1;
        for (candidates, more, found) in [
            (vec![], 5, None),
            (vec![2, 4, 5], 2, Some(5)),
            (vec![2, 4, 5], 1, Some(4)),
            (vec![2, 4, 5], 0, Some(2)),
            (vec![1, 3], 0, Some(1)),
            (vec![2, 4], usize::MAX, Some(4)),
        ] {
            let next = |seen: &[u32]| candidates.get(seen.len()).copied();
            assert_eq!(looked(more, next, odd), found, "{candidates:?} {more}");
        }
    }
}
