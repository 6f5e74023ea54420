//! The mesh's traffic policies at work: their compiled forms, and the decisions that need no I/O.
//!
//! All state is a worker's own, but for the buckets of rate limits, which are one atomic each. What a policy costs a request is a comparison or two; what it says of rare cases (a
//! repetition, an ejection) is paid by those.

pub mod at_once;
pub mod balance;
pub mod faults;
pub mod filter;
pub mod health;
pub mod limits;
pub mod lua;
pub mod matching;
pub mod outliers;
pub mod panic;
pub mod retry;
pub mod routes;
pub mod timeouts;
