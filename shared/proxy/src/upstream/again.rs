//! Where one request's attempts go: the next endpoint in turn, and for a repetition rather one that its policy does not
//! want to avoid.

use super::{EndpointState, Upstream, among, in_turn};
use std::rc::Rc;

/// What an attempt asks of its endpoint.
pub struct Wish<'a, F> {
    /// Tiers that it rather does not go to.
    pub avoided_tiers: &'a [usize],
    /// Endpoints that it has found unreachable: never one of these.
    pub unreached: &'a [Rc<EndpointState>],
    /// Endpoints that it rather does not go to.
    pub avoids: F,
    /// How many endpoints are looked at after the first for one that is not avoided; `None`: all.
    pub looks: Option<usize>,
}

impl Upstream {
    /// The next endpoint by a wish, and its tier. Where the wish can't be granted, usable endpoints come before those that
    /// failed lately.
    pub fn pick_by<F>(&self, now: u64, wish: &Wish<'_, F>) -> Option<(usize, Rc<EndpointState>)>
    where
        F: Fn(&Rc<EndpointState>) -> bool,
    {
        let tiers = self.tiers.borrow();
        let start = self.cursor.get();
        self.cursor.set(start.wrapping_add(1));
        let turn = || {
            let tiers = tiers.iter().enumerate();
            tiers.flat_map(|(index, tier)| in_turn(tier, start).map(move |state| (index, state)))
        };
        let spared = self.spared(&tiers, now);
        let untried = |(_, state): &(usize, &Rc<EndpointState>)| {
            !among(wish.unreached, state) && spared.allows(state, now)
        };
        let usable = |one: &(usize, &Rc<EndpointState>)| {
            one.1.is_up(now) && !among(wish.unreached, one.1) && spared.prefers(one.0, one.1, now)
        };
        let beyond = |(tier, _): &(usize, &Rc<EndpointState>)| !wish.avoided_tiers.contains(tier);
        let wanted = |one: &(usize, &Rc<EndpointState>)| !(wish.avoids)(one.1);
        let mut candidates = turn().filter(|one| beyond(one) && usable(one));
        let found = match wish.looks {
            Some(more) => looked(candidates, more, wanted),
            None => candidates
                .find(wanted)
                .or_else(|| turn().find(|one| usable(one) && wanted(one)))
                .or_else(|| turn().find(|one| beyond(one) && usable(one))),
        };
        let found = found.or_else(|| turn().find(usable)).or_else(|| turn().find(untried));
        found.map(|(tier, state)| (tier, state.clone()))
    }
}

/// The first that is wanted, of one and so many more; else the last of them.
fn looked<T>(candidates: impl Iterator<Item = T>, more: usize, wanted: impl Fn(&T) -> bool) -> Option<T> {
    let mut last = None;
    for candidate in candidates.take(more.saturating_add(1)) {
        if wanted(&candidate) {
            return Some(candidate);
        }
        last = Some(candidate);
    }
    last
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
            assert_eq!(looked(candidates.iter().copied(), more, odd), found, "{candidates:?} {more}");
        }
    }
}
