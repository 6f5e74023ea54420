//! The REST API of both control planes, made from the registry of kinds.
//!
//! It knows resources, the store and who may do what. What differs between global and a zone (defaults that a new
//! mesh brings along, overviews, tokens, root rotation) comes in through [`Hooks`].

pub mod access;
mod explain;
mod format;
mod hooks;
mod identify;
mod insight;
mod inspect;
mod list;
mod offer;
mod operate;
mod overview;
mod problem;
pub mod report;
mod request;
mod resources;
mod routes;
pub mod server;
mod system;
pub mod wire;

pub use hooks::{
    DataplaneTokenRequest, Effects, Hooks, ProxyConfigRequest, RotateCa, TokenRequest, UserTokenRequest,
    Write, ZoneTokenRequest,
};
pub use problem::{InvalidParameter, Problem, Source};

use meridian_store::Store;
use std::sync::Arc;

/// Which control plane serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    Global,
    Zone { name: String },
}

/// All that the routes need.
#[derive(Clone)]
pub struct Api {
    pub store: Store,
    pub role: Role,
    pub access: access::Access,
    pub hooks: Arc<dyn Hooks>,
    /// UUID of this process.
    pub instance: String,
}

impl Api {
    /// The routes; serve them with [`server`].
    pub fn router(self) -> axum::Router {
        routes::router(self)
    }
}
