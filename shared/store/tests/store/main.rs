//! The store's promises, on both back ends, with a real Postgres.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod contract;
mod history;
mod link;
mod outage;
mod place;
mod private;
mod quiet;
mod replicas;
mod secrets;
mod status;
mod writers;
