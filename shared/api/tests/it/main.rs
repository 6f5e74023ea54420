//! The API over a real server and a real SQLite store: each endpoint, and each documented error.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper that fails is a test that fails"
)]

mod bounds;
mod contract;
mod explain;
mod harness;
mod inspect;
mod operate;
mod overviews;
mod read_write;
mod who_may;
