//! The engine from the outside: two of them over loopback with a test CA, and real clients and servers at both ends.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod apps;
mod balance;
mod breaker;
mod breaks;
mod callers;
mod collector;
mod control;
mod filter;
mod health;
mod http;
mod leaving;
mod limits;
mod logs;
mod metrics;
mod page;
mod retries;
mod routes;
mod rules;
mod scrape_tls;
mod scripts;
mod sessions;
mod slow;
mod tcp;
mod timeouts;
mod torture;
mod torture2;
mod traces;
mod windows;
mod world;
