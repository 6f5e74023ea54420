//! Counters, gauges and histograms, and their Prometheus text form.
//!
//! A *series* is a metric name with labels. Each registration of a series gives a handle with a cell of its own, so
//! workers register the same series and never share a cache line; a scrape sums the cells. When a handle is dropped
//! (a new configuration replaces the old) its count stays in the series as long as another handle lives; a series
//! without handles is shown once more and then forgotten, so that destinations which come and go do not pile up.

mod histogram;
mod registry;
mod text;

pub use histogram::{Histogram, SharedHistogram};
pub use registry::Registry;
pub use text::{escape_help, escape_label};

use std::{
    cell::Cell,
    marker::PhantomData,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
};

/// A counter with one writer: it may move to another thread, not be used by two. One load and one store.
#[derive(Debug, Default)]
pub struct Counter {
    cell: Arc<AtomicU64>,
    one_writer: PhantomData<Cell<()>>,
}

/// A counter for code that runs on any thread of a runtime.
#[derive(Clone, Debug, Default)]
pub struct SharedCounter(Arc<AtomicU64>);

/// A value that goes up and down. Handles of one series are summed: each says its own part.
#[derive(Clone, Debug, Default)]
pub struct Gauge(Arc<AtomicI64>);

impl Counter {
    pub fn inc(&self) {
        self.add(1);
    }

    pub fn add(&self, n: u64) {
        self.cell.store(self.cell.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// Of this handle alone.
    pub fn value(&self) -> u64 {
        self.cell.load(Relaxed)
    }

    fn of(cell: Arc<AtomicU64>) -> Self {
        Self { cell, one_writer: PhantomData }
    }
}

impl SharedCounter {
    pub fn inc(&self) {
        self.add(1);
    }

    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

impl Gauge {
    pub fn set(&self, value: i64) {
        self.0.store(value, Relaxed);
    }

    pub fn add(&self, n: i64) {
        self.0.fetch_add(n, Relaxed);
    }

    pub fn sub(&self, n: i64) {
        self.0.fetch_sub(n, Relaxed);
    }

    pub fn value(&self) -> i64 {
        self.0.load(Relaxed)
    }
}
