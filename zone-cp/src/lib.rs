//! The zone control plane: what one cluster or datacenter knows, and what its proxies are told.
//!
//! Everything it compiles from is in its own store, so that it starts and serves without the global control plane.
//!
//! ```text
//!   global ──► incoming ──► store ──► engine ──► audiences ──► views ──► proxies (5678)
//!   global ◄── outgoing ◄─────┴── reports ◄────────────────────────────────┘
//! ```
//! One task, the [`engine`], owns the picture and compiles; every other part only writes to the store, or tells the engine
//! what a proxy has reported.

mod audiences;
mod claims;
mod compile;
mod config;
mod diagnostics;
mod engine;
mod generate;
mod hooks;
mod hostnames;
mod incoming;
mod inspect;
mod intermediates;
mod link;
mod outgoing;
mod picture;
mod presence;
mod proxies;
mod questions;
mod reports;
mod run;
mod serving;
mod status;
mod tokens;
mod vip;

pub use config::{Config, ConfigErrors, GlobalSettings, GlobalTrust, Settings};
pub use run::run;
