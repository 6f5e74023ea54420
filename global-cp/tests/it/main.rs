//! Real processes' worth of global control plane in one test process: real stores, real TLS, zones that speak the protocol
//! by the same client as real ones.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper that fails is a test that fails"
)]

mod access;
mod certificate;
mod enrolment;
mod harness;
mod provided;
mod questions;
mod replicas;
mod rest;
mod rotation;
mod streams;
mod zone;
