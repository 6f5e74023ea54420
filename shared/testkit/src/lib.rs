//! What tests and the demo stand on: hosts in network namespaces, processes that end with their owner, a
//! throw-away Postgres, and small programs that play applications.
//!
//! Never linked into a product binary, except into `meridian` with its `demo` feature.

pub mod app;
pub mod certificates;
pub mod mesh;
pub mod net;
pub mod postgres;
pub mod process;
pub mod wait;
