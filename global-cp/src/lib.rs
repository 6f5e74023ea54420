//! The global control plane: where policies are written, and from where every zone gets them.
//!
//! Stateless beside its store, in any number of replicas and without a leader: each job is a transaction that any
//! replica may do, and whoever comes second finds it done.

mod audience;
mod bootstrap;
mod config;
mod diagnostics;
mod follow;
mod hooks;
mod identity;
mod initial_policies;
mod provided;
mod questions;
mod rotate;
mod rotation;
mod run;
mod sink;
mod state;
mod status;
mod sync;
mod tls;
mod tokens;
mod trust;
mod vault;
mod world;
mod zone_status;
mod zones;

pub use config::{Config, ConfigErrors, Settings};
pub use run::{Bound, admin_token, restored, rotate_key, run, run_with};
