//! Log-linear histograms of durations: four buckets an octave, so a quantile is off by at most 12.5 %, and recording is
//! two shifts and an add. Shown to Prometheus at two bounds an octave from 64 µs to 67 s: 41 lines a series.

use std::{
    cell::Cell,
    marker::PhantomData,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// Linear parts of an octave, as a power of two.
const PARTS_BITS: u32 = 2;
const PARTS: usize = 1 << PARTS_BITS;
/// Values from 2^27 µs (134 s) on share the last bucket.
const MAX_EXPONENT: u32 = 27;
const BUCKETS: usize = PARTS + (MAX_EXPONENT - PARTS_BITS) as usize * PARTS + 1;
/// Shown bounds: 2^exponent µs and one and a half times that.
const SHOWN: std::ops::RangeInclusive<u32> = 6..=26;

/// A histogram with one writer.
#[derive(Debug, Default)]
pub struct Histogram {
    cells: Arc<Cells>,
    one_writer: PhantomData<Cell<()>>,
}

/// A histogram for code that runs on any thread of a runtime.
#[derive(Clone, Debug, Default)]
pub struct SharedHistogram(Arc<Cells>);

#[derive(Debug)]
pub(super) struct Cells {
    buckets: [AtomicU64; BUCKETS],
    sum_micros: AtomicU64,
}

/// Sums of cells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sum {
    buckets: [u64; BUCKETS],
    sum_micros: u64,
}

impl Histogram {
    pub fn record(&self, value: Duration) {
        let micros = micros(value);
        let add = |cell: &AtomicU64, n: u64| cell.store(cell.load(Relaxed).wrapping_add(n), Relaxed);
        if let Some(cell) = self.cells.buckets.get(index(micros)) {
            add(cell, 1);
        }
        add(&self.cells.sum_micros, micros);
    }

    /// Of this handle alone; the upper bound of the quantile's bucket. `None` if nothing was recorded.
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        self.cells.sum().quantile(q)
    }

    pub(super) fn of(cells: Arc<Cells>) -> Self {
        Self { cells, one_writer: PhantomData }
    }
}

impl SharedHistogram {
    pub fn record(&self, value: Duration) {
        let micros = micros(value);
        if let Some(cell) = self.0.buckets.get(index(micros)) {
            cell.fetch_add(1, Relaxed);
        }
        self.0.sum_micros.fetch_add(micros, Relaxed);
    }

    pub fn quantile(&self, q: f64) -> Option<Duration> {
        self.0.sum().quantile(q)
    }

    pub(super) fn of(cells: Arc<Cells>) -> Self {
        Self(cells)
    }
}

impl Default for Cells {
    fn default() -> Self {
        Self { buckets: [const { AtomicU64::new(0) }; BUCKETS], sum_micros: AtomicU64::new(0) }
    }
}

impl Cells {
    pub(super) fn sum(&self) -> Sum {
        let mut sum = Sum::default();
        sum.add(self);
        sum
    }
}

impl Default for Sum {
    fn default() -> Self {
        Self { buckets: [0; BUCKETS], sum_micros: 0 }
    }
}

impl Sum {
    pub(super) fn add(&mut self, cells: &Cells) {
        for (sum, cell) in self.buckets.iter_mut().zip(&cells.buckets) {
            *sum += cell.load(Relaxed);
        }
        self.sum_micros += cells.sum_micros.load(Relaxed);
    }

    pub(super) fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    pub(super) fn sum_seconds(&self) -> f64 {
        seconds(self.sum_micros)
    }

    /// Cumulative counts at the shown bounds, in seconds; without `+Inf`.
    pub(super) fn shown(&self) -> impl Iterator<Item = (f64, u64)> {
        SHOWN.flat_map(|exponent| [1u64 << exponent, 3u64 << (exponent - 1)]).take(SHOWN.count() * 2 - 1).map(
            |bound| {
                let below = self.buckets.iter().take(index(bound)).sum();
                (seconds(bound), below)
            },
        )
    }

    fn quantile(&self, q: f64) -> Option<Duration> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let rank = ((count as f64 * q.clamp(0.0, 1.0)).ceil() as u64).max(1);
        let mut seen = 0;
        let bucket = self.buckets.iter().position(|n| {
            seen += n;
            seen >= rank
        });
        bucket.map(|bucket| Duration::from_micros(lower(bucket + 1)))
    }
}

/// The bucket of a value: the value itself below `PARTS`, then octave and part of it.
fn index(micros: u64) -> usize {
    if micros < PARTS as u64 {
        return micros as usize;
    }
    let exponent = micros.ilog2();
    if exponent >= MAX_EXPONENT {
        return BUCKETS - 1;
    }
    let part = (micros >> (exponent - PARTS_BITS)) as usize & (PARTS - 1);
    PARTS + (exponent - PARTS_BITS) as usize * PARTS + part
}

/// The smallest value of a bucket.
fn lower(index: usize) -> u64 {
    let Some(above) = index.checked_sub(PARTS) else { return index as u64 };
    let (octave, part) = (above / PARTS, above % PARTS);
    ((PARTS + part) as u64) << octave
}

fn micros(value: Duration) -> u64 {
    u64::try_from(value.as_micros()).unwrap_or(u64::MAX)
}

fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_value_is_in_its_bucket(micros in 0u64..(1 << 30)) {
            let bucket = index(micros);
            prop_assert!(lower(bucket) <= micros);
            if bucket < BUCKETS - 1 {
                prop_assert!(micros < lower(bucket + 1));
                prop_assert!(lower(bucket + 1) - lower(bucket) <= (lower(bucket) / 4).max(1));
            }
        }

        #[test]
        fn shown_bounds_cut_exactly(values in proptest::collection::vec(0u64..200_000_000, 0..200)) {
            let histogram = Histogram::default();
            values.iter().for_each(|value| histogram.record(Duration::from_micros(*value)));
            let sum = histogram.cells.sum();
            prop_assert_eq!(sum.count(), values.len() as u64);
            for (bound, below) in sum.shown() {
                let expected = values.iter().filter(|value| seconds(**value) < bound).count();
                prop_assert_eq!(below, expected as u64, "below {} s", bound);
            }
        }
    }

    #[test]
    fn both_kinds_record_alike() {
        let (one, shared) = (Histogram::default(), SharedHistogram::default());
        for millis in [1, 5, 5, 5, 900] {
            one.record(Duration::from_millis(millis));
            shared.record(Duration::from_millis(millis));
        }
        assert_eq!(one.cells.sum(), shared.0.sum());
        let median = one.quantile(0.5).unwrap();
        assert!((Duration::from_millis(5)..Duration::from_micros(6_250)).contains(&median), "{median:?}");
        assert!(one.quantile(1.0).unwrap() >= Duration::from_millis(900));
        assert_eq!(Histogram::default().quantile(0.5), None);
    }
}
