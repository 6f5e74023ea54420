//! How requests are shared out when there are fewer usable endpoints than there should be.

/// Usable endpoints, and all.
pub type Share = (usize, usize);

/// How much of what it would take otherwise a part can take: all of it as long as enough (hundredths of a percent) of its
/// endpoints are usable.
pub fn capacity((usable, all): Share, enough: u32) -> f64 {
    let needed = all as f64 * f64::from(enough) / 10_000.0;
    if needed > 0.0 { (usable as f64 / needed).min(1.0) } else { 0.0 }
}

/// The tier that a request goes to first: each takes as much as it can of what the ones before left over; if all together
/// can't take everything, each takes more, in the same proportion. `at`: where the request stands among all, 0 to 1.
pub fn tier(shares: impl IntoIterator<Item = Share>, enough: u32, at: f64) -> usize {
    let mut left = 1.0;
    let mut loads = smallvec::SmallVec::<[f64; 4]>::new();
    for share in shares {
        let load = capacity(share, enough).min(left);
        left -= load;
        loads.push(load);
    }
    weighted(&loads, at).unwrap_or(0)
}

/// The place that is hit at `at` (0 to 1) if all places lie side by side, each as long as its weight.
pub fn weighted(weights: &[f64], at: f64) -> Option<usize> {
    let mut rest = weights.iter().sum::<f64>() * at;
    let mut last = None;
    for (place, weight) in weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
        if rest < *weight {
            return Some(place);
        }
        rest -= weight;
        last = Some(place);
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tier_gives_away_what_it_cannot_take() {
        let half = 5_000;
        for (shares, enough, loads) in [
            // As long as there are enough, nobody else gets anything.
            (vec![(10, 10), (5, 5)], half, vec![100, 0]),
            (vec![(5, 10), (5, 5)], half, vec![100, 0]),
            (vec![(4, 10), (5, 5)], half, vec![80, 20]),
            (vec![(1, 10), (5, 5)], half, vec![20, 80]),
            (vec![(0, 10), (5, 5)], half, vec![0, 100]),
            (vec![(0, 0), (5, 5)], half, vec![0, 100]),
            // Each in turn takes what it can.
            (vec![(2, 10), (2, 10), (10, 10)], half, vec![40, 40, 20]),
            // All together can't: in proportion.
            (vec![(1, 10), (3, 10)], half, vec![25, 75]),
            (vec![(0, 10), (0, 10)], half, vec![100, 0]),
            // Kuma would take any threshold above 50 for 100.
            (vec![(6, 10), (5, 5)], 7_500, vec![80, 20]),
            (vec![(9, 10), (5, 5)], 10_000, vec![90, 10]),
            (vec![(1, 100), (5, 5)], 100, vec![100, 0]),
        ] {
            let mut counted = vec![0; shares.len()];
            for n in 0..100 {
                counted[tier(shares.clone(), enough, (f64::from(n) + 0.5) / 100.0)] += 1;
            }
            assert_eq!(counted, loads, "{shares:?} {enough}");
        }
    }

    #[test]
    fn what_weighs_nothing_is_never_hit() {
        assert_eq!(weighted(&[], 0.5), None);
        assert_eq!(weighted(&[0.0, 0.0], 0.5), None);
        for at in [0.0, 0.3, 0.999_999_999, 1.0] {
            assert_eq!(weighted(&[0.0, 2.0, 0.0], at), Some(1), "{at}");
        }
        assert_eq!(weighted(&[1.0, 3.0], 0.25), Some(1));
    }
}
