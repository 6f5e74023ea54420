//! Which policies select what, and what they add up to: pure functions over resources.
//!
//! One matcher ([`selects`]), one order and one merge serve all kinds. They work on the canonical JSON of a policy
//! ([`Policy`]), of which the kind's entry in the registry says which lists it has; the merged configuration is
//! turned into its kind's type by whoever asks ([`Merged::conf`]).
//!
//! The order in which policies arrive never matters: whatever is compiled is sorted by Kuma's precedence first.

mod destinations;
mod egress;
mod external;
mod hash;
mod hostnames;
mod inbound;
mod index;
mod matching;
mod merge;
mod meta;
mod outbound;
mod passthrough;
mod permission;
mod policy;
mod precedence;
mod proxy;
mod routes;
mod services;
mod subset;

pub use destinations::{DestinationId, Destinations};
pub use egress::{EgressRules, egress_rules, entry_rules};
pub use external::{external_service_permission, mesh_external_service_permission};
pub use hash::matches_hash;
pub use hostnames::{generated_hostname, hostnames, legacy_hostname, listed_hostnames};
pub use inbound::{
    InboundConf, InboundRule, TaggedRule, from_conf, from_rules, inbound_confs, inbound_rules, tagged_rules,
};
pub use index::PolicyIndex;
pub use matching::{InboundRef, Section, Subject, selects};
pub use merge::{Merged, Origin, merge};
pub use meta::{as_in_force, kri};
pub use outbound::{MATCHES_HASH_TAG, ResourceRule, ResourceRules, ToItem, to_conf, to_items, to_rules};
pub use passthrough::{Passthrough, PassthroughEntry, passthrough};
pub use permission::{caller_match, inbound_permission};
pub use policy::{Form, Policy, PolicyError, sort};
pub use proxy::proxy_conf;
pub use routes::Routes;
pub use services::{is_reachable, leads_to, offered, protocol, refers, refers_to, service_tag, spoken};
pub use subset::{Subset, SubsetRule, Tag};

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
