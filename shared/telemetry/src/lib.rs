//! What a process says of itself: log lines and Prometheus metrics.
//!
//! No metrics library: the ones at hand look a label set up in a map, or share one atomic between all cores, on every
//! request. Here a handle is resolved once (when configuration is compiled) and is a plain memory cell of one worker;
//! a scrape sums the cells.

mod chain;
pub mod log;
pub mod metrics;

pub use chain::chain;
pub use log::{Format, LogError, LogOptions};
pub use metrics::{Counter, Gauge, Histogram, Registry, SharedCounter, SharedHistogram};
