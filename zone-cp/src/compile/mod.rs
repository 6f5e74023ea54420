//! What proxies are told, as pure functions of the picture and the virtual addresses.
//!
//! The work is cut into [`Unit`]s: what is compiled, encoded and replaced together, and shared by every proxy that
//! needs it. A service's endpoints, say, are one unit, however many sidecars subscribe. Which units a proxy holds is
//! [`members`]; which units a change touches is [`touched`]. Rejected: compiling whole proxies and comparing (the work of a
//! flipped probe would grow with the mesh), and tracking reads while compiling (the index could not be read by a person).

pub(crate) mod external;
pub(crate) mod members;
pub(crate) mod multi_zone;
pub(crate) mod policies;
pub(crate) mod proxy;
pub(crate) mod routes;
pub(crate) mod services;
pub(crate) mod several_zones;
pub(crate) mod touched;

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;

use crate::picture::Picture;
use crate::vip::{Owner, VipTable};
use meridian_core::Key;
use meridian_delta::Encoded;
pub(crate) use meridian_policy::protocol;
use meridian_proxy_config::{Outbound, Target, types};
use serde::Serialize;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

/// What is compiled together. Names of resources are unique over all units that one proxy may hold.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Unit {
    /// Whom to believe in a mesh.
    Bundle(String),
    /// A MeshService's names and destinations.
    Service(Key),
    /// A MeshService's endpoint sets.
    Endpoints(Key),
    /// A MeshMultiZoneService's names and destinations.
    MultiZone(Key),
    /// Destinations of a `kuma.io/service` over all zones; the names too, where the mesh has them.
    Legacy { mesh: String, service: String },
    /// What policies say of the calls of all sidecars that the same ones select.
    Policies { mesh: String, selection: policies::Selection },
    /// The same of their calls to destinations outside of the mesh, for egresses.
    EntryPolicies { mesh: String, selection: policies::Selection },
    /// An ExternalService or MeshExternalService, for sidecars.
    External(Key),
    /// The same, for the egress that it leaves by.
    Entry(Key),
    /// All that is one sidecar's own.
    Dataplane(Key),
    /// What a sidecar may reach by MeshPassthrough, for egresses.
    Caller(Key),
    /// All destinations that MeshPassthroughs of a mesh name, for egresses.
    PassthroughEntries(String),
    /// The endpoint set of the zone's egresses.
    Egresses,
    /// An ingress's or egress's own settings.
    Gateway(Key),
    /// How an ingress leads to a local MeshService.
    IngressRoute(Key),
    /// How an ingress leads to an ExternalService that is pinned to the zone.
    IngressExternal(Key),
    /// An egress's way to another zone.
    ZoneRoute(String),
}

/// All that compiling reads.
#[derive(Clone, Copy)]
pub(crate) struct Inputs<'a> {
    pub(crate) picture: &'a Picture,
    pub(crate) vips: &'a VipTable,
}

/// A resource that arrived whole and can't be compiled. What it guards is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) key: Key,
    pub(crate) reason: String,
}

/// A unit's resources.
#[derive(Clone, Debug, Default)]
pub(crate) struct Compiled {
    pub(crate) resources: Vec<Arc<Encoded>>,
    pub(crate) problems: Vec<Problem>,
}

impl Compiled {
    /// `for_` is whose fault it would be if the resource were too large.
    fn push<T: Serialize>(&mut self, for_: &Key, type_: &str, name: &str, resource: &T) {
        let encoded = serde_json::to_vec(resource)
            .map_err(|error| error.to_string())
            .and_then(|body| Encoded::new(type_, name, body).map_err(|error| error.to_string()));
        match encoded {
            Ok(encoded) => self.resources.push(encoded),
            Err(reason) => self.problem(for_, reason),
        }
    }

    /// How calls to `port` of a virtual address, and of the names that lead there, reach `target`. Nothing while there is no
    /// address.
    fn push_vip(
        &mut self,
        for_: &Key,
        name: &str,
        vip: Option<Ipv4Addr>,
        port: u16,
        hostnames: &[String],
        target: Target,
    ) {
        let Some(vip) = vip.map(IpAddr::V4) else { return };
        let outbound = Outbound { bind: None, vips: vec![vip], port, hostnames: hostnames.to_vec(), target };
        self.push(for_, types::OUTBOUND, name, &outbound);
    }

    fn problem(&mut self, key: &Key, reason: impl Into<String>) {
        self.problems.push(Problem { key: key.clone(), reason: reason.into() });
    }
}

/// The virtual addresses that a unit needs before it is compiled.
pub(crate) fn owners(unit: &Unit, picture: &Picture) -> BTreeSet<Owner> {
    match unit {
        Unit::Service(key) => services::owner(picture, key).into_iter().collect(),
        Unit::MultiZone(key) => multi_zone::owner(picture, key).into_iter().collect(),
        Unit::Legacy { mesh, service } => {
            services::legacy_owner(picture, mesh, service).into_iter().collect()
        }
        Unit::External(key) => external::owners(picture, key),
        Unit::Dataplane(key) => proxy::owners(picture, key),
        _ => BTreeSet::new(),
    }
}

/// Compiles one unit; empty if what it is about is gone.
pub(crate) fn compile(unit: &Unit, inputs: Inputs<'_>) -> Compiled {
    let mut out = Compiled::default();
    match unit {
        Unit::Bundle(mesh) => routes::bundle(inputs, mesh, &mut out),
        Unit::Service(key) => services::service(inputs, key, &mut out),
        Unit::Endpoints(key) => services::endpoints(inputs, key, &mut out),
        Unit::MultiZone(key) => multi_zone::multi_zone(inputs, key, &mut out),
        Unit::Legacy { mesh, service } => services::legacy(inputs, mesh, service, &mut out),
        Unit::Policies { mesh, selection } => policies::outgoing(inputs, mesh, selection, &mut out),
        Unit::EntryPolicies { mesh, selection } => policies::leaving(inputs, mesh, selection, &mut out),
        Unit::External(key) => external::external(inputs, key, &mut out),
        Unit::Entry(key) => external::entry(inputs, key, &mut out),
        Unit::Dataplane(key) => proxy::dataplane(inputs, key, &mut out),
        Unit::Caller(key) => proxy::caller(inputs, key, &mut out),
        Unit::PassthroughEntries(mesh) => proxy::passthrough_entries(inputs, mesh, &mut out),
        Unit::Egresses => routes::egresses(inputs, &mut out),
        Unit::Gateway(key) => proxy::gateway(inputs, key, &mut out),
        Unit::IngressRoute(key) => routes::ingress_route(inputs, key, &mut out),
        Unit::IngressExternal(key) => routes::ingress_external(inputs, key, &mut out),
        Unit::ZoneRoute(zone) => routes::zone_route(inputs, zone, &mut out),
    }
    out
}

/// An address or a name, as users write it.
pub(crate) fn host(text: &str) -> meridian_proxy_config::Host {
    match text.parse::<IpAddr>() {
        Ok(address) => meridian_proxy_config::Host::Ip(address),
        Err(_) => meridian_proxy_config::Host::Name(normal_name(text)),
    }
}

/// Lower case, without a trailing dot.
pub(crate) fn normal_name(text: &str) -> String {
    text.trim_end_matches('.').to_ascii_lowercase()
}

/// A port that passed its check; 0 for one that did not.
pub(crate) fn port(number: u32) -> u16 {
    u16::try_from(number).unwrap_or(0)
}
