//! Whose turn it is: shares by weight that are exact, not only likely.
//!
//! Smooth weighted round robin (nginx's): each turn everybody gains its weight, who has most goes and pays the sum. In any
//! run of as many turns as the weights add up to (without their common divisor) each has its share to the one, and the
//! turns of one backend are spread out. Rejected: a random number for each request, by which one of a hundred requests
//! to a backend with one percent is as often none or two.

use std::sync::atomic::{AtomicI64, Ordering};

/// So many turns at most are skipped at the start: a fleet whose proxies all began alike would send its first requests to
/// one backend.
const SKIPPED: u64 = 1_024;

/// The turns of some backends. Each worker has its own, which it alone writes.
#[derive(Debug)]
pub struct Turns {
    weights: Box<[i64]>,
    total: i64,
    workers: Box<[Box<[AtomicI64]>]>,
}

impl Turns {
    /// `seed`: a random number.
    pub fn new(weights: &[u32], workers: usize, seed: u64) -> Self {
        let divisor = i64::from(weights.iter().copied().fold(0, gcd).max(1));
        let weights: Box<[i64]> = weights.iter().map(|weight| i64::from(*weight) / divisor).collect();
        let total: i64 = weights.iter().sum();
        let row = || weights.iter().map(|_| AtomicI64::new(0)).collect();
        let turns = Self { workers: (0..workers.max(1)).map(|_| row()).collect(), weights, total };
        let period = u64::try_from(turns.total).unwrap_or(1).clamp(1, SKIPPED);
        for worker in 0..turns.workers.len() {
            let mixed = seed.wrapping_add((worker as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            for _ in 0..mixed % period {
                turns.next(worker);
            }
        }
        turns
    }

    /// Who is next; `None`: there is nobody with any weight.
    pub fn next(&self, worker: usize) -> Option<usize> {
        let row = self.workers.get(worker % self.workers.len().max(1))?;
        let mut best: Option<(usize, &AtomicI64, i64)> = None;
        for (index, (credit, weight)) in row.iter().zip(&self.weights).enumerate() {
            let now = credit.load(Ordering::Relaxed).saturating_add(*weight);
            credit.store(now, Ordering::Relaxed);
            if *weight > 0 && best.is_none_or(|(_, _, most)| now > most) {
                best = Some((index, credit, now));
            }
        }
        let (index, credit, now) = best?;
        credit.store(now.saturating_sub(self.total), Ordering::Relaxed);
        Some(index)
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn counts(turns: &Turns, worker: usize, n: usize) -> Vec<usize> {
        let mut counts = vec![0; turns.weights.len()];
        for _ in 0..n {
            counts[turns.next(worker).unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn nine_to_one_is_ninety_of_a_hundred_wherever_it_begins() {
        for seed in 0..20 {
            let turns = Turns::new(&[90, 10], 2, seed);
            assert_eq!(counts(&turns, 0, 100), [90, 10], "{seed}");
            assert_eq!(counts(&turns, 1, 10), [9, 1], "a worker's turns are its own");
            assert_eq!(counts(&turns, 0, 3)[1] + counts(&turns, 0, 7)[1], 1);
        }
    }

    #[test]
    fn who_has_no_weight_has_no_turn() {
        assert_eq!(Turns::new(&[], 1, 7).next(0), None);
        assert_eq!(Turns::new(&[0, 0], 1, 7).next(0), None);
        assert_eq!(counts(&Turns::new(&[0, 3, 0], 1, 7), 0, 10), [0, 10, 0]);
        let largest = Turns::new(&[u32::MAX, u32::MAX - 1], 1, u64::MAX);
        assert_eq!(counts(&largest, 0, 1_000), [500, 500]);
    }

    proptest! {
        /// In any run of a period each has its share, and at no time is anybody more than one turn away from it.
        #[test]
        fn shares_are_exact(weights in prop::collection::vec(0u32..50, 1..6), seed: u64, skipped in 0usize..200) {
            let sum: usize = weights.iter().map(|weight| *weight as usize).sum();
            prop_assume!(sum > 0);
            let turns = Turns::new(&weights, 1, seed);
            (0..skipped).for_each(|_| assert!(turns.next(0).is_some()));
            let expected: Vec<usize> = weights.iter().map(|weight| *weight as usize).collect();
            prop_assert_eq!(counts(&turns, 0, sum), expected);
        }
    }
}
