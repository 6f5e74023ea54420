//! The engine from the outside: two of them over loopback with a test CA, and real clients and servers at both ends.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod apps;
mod breaker;
mod control;
mod filter;
mod http;
mod limits;
mod retries;
mod rules;
mod scripts;
mod tcp;
mod timeouts;
mod world;
