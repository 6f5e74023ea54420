//! Which policies select what, and what they add up to: pure functions over resources.
//!
//! The order in which policies arrive never matters: whatever is compiled is sorted by Kuma's precedence first.

mod external;
mod matching;
mod passthrough;
mod permission;
mod precedence;

pub use external::{external_service_permission, mesh_external_service_permission};
pub use matching::{InboundRef, Subject, selects};
pub use passthrough::{Passthrough, PassthroughEntry, passthrough};
pub use permission::inbound_permission;

use meridian_core::{Resource, Spec};

/// A resource with its typed spec, so that a policy is parsed once and used for many proxies.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed<T> {
    pub resource: Resource,
    pub spec: T,
}

impl<T: Spec> Parsed<T> {
    pub fn new(resource: Resource) -> Result<Self, meridian_core::ParseError> {
        let spec = resource.parse()?;
        Ok(Self { resource, spec })
    }
}

#[cfg(test)]
mod tests;
