//! How ingresses and egresses pass sessions on, and whom everyone believes.

use super::external;
use super::services::{
    MAX_FAR_INGRESSES, egress_addresses, endpoint_set_names, far_ingresses, ingress_addresses, sni_of,
};
use super::{Compiled, Inputs, host, port};
use crate::intermediates::root_hash;
use meridian_core::Key;
use meridian_core::kinds::trust_bundle::TrustBundle;
use meridian_core::kinds::zone_egress::ZoneEgress;
use meridian_core::kinds::zone_ingress::ZoneIngress;
use meridian_proxy_config::{Bundle, Endpoint, EndpointSet, SniMatch, SniRoute, sni, types};
use std::collections::BTreeMap;

/// The endpoint set of the zone's egresses.
pub(crate) const EGRESSES: &str = "egress";

/// The root that the zone signs by comes first: a proxy whose certificate is of another asks for a new one. Global's
/// order is not passed on before the zone itself can follow it.
pub(crate) fn bundle(inputs: Inputs<'_>, mesh: &str, out: &mut Compiled) {
    let Some(bundle) = inputs.picture.mesh(mesh).and_then(|mesh| mesh.bundle.as_ref()) else { return };
    let TrustBundle { mut roots, revoked } = bundle.spec.clone();
    if let Some(issuer) = inputs.picture.issuers.get(mesh) {
        let is_issuer = |pem: &String| root_hash(pem).is_some_and(|hash| hash.to_string() == *issuer);
        roots.sort_by_key(|pem| !is_issuer(pem));
    }
    out.push(&bundle.resource.key, types::BUNDLE, mesh, &Bundle { mesh: mesh.to_owned(), roots, revoked });
}

pub(crate) fn egresses(inputs: Inputs<'_>, out: &mut Compiled) {
    let picture = inputs.picture;
    let ways = egress_addresses(picture);
    let set = endpoint_set(ways, &picture.zone);
    out.push(&Key::new(ZoneEgress::KIND, "", &picture.zone, ""), types::ENDPOINTS, EGRESSES, &set);
}

/// What the session's server name leads to: the ready local instances.
pub(crate) fn ingress_route(inputs: Inputs<'_>, key: &Key, out: &mut Compiled) {
    let picture = inputs.picture;
    let Some(service) = picture.mesh(&key.mesh).filter(|mesh| mesh.mtls()).and_then(|mesh| mesh.service(key))
    else {
        return;
    };
    for declared in &service.spec.ports {
        let sni = sni_of(picture, service, declared);
        let route = SniRoute {
            matches: SniMatch::Exact(sni.clone()),
            endpoints: endpoint_set_names(picture, key, declared),
        };
        out.push(key, types::SNI_ROUTE, &sni, &route);
    }
}

/// A pinned ExternalService that other zones reach through this one: on to the local egress.
pub(crate) fn ingress_external(inputs: Inputs<'_>, key: &Key, out: &mut Compiled) {
    let Some(sni) = external::pinned_here(inputs.picture, key) else { return };
    let route = SniRoute { matches: SniMatch::Exact(sni.clone()), endpoints: vec![EGRESSES.to_owned()] };
    out.push(key, types::SNI_ROUTE, &sni, &route);
}

pub(crate) fn zone_route(inputs: Inputs<'_>, zone: &str, out: &mut Compiled) {
    let ways = ingress_addresses(inputs.picture, zone);
    if ways.is_empty() {
        return;
    }
    let blame = Key::new(ZoneIngress::KIND, "", zone, "");
    let count = far_ingresses(inputs.picture, zone).count();
    if count > MAX_FAR_INGRESSES {
        let reason = format!(
            "zone {zone} has {count} ZoneIngresses: {MAX_FAR_INGRESSES} of one zone are dialled, the first by name"
        );
        out.problem(&blame, reason);
    }
    let set = format!("ingress/{zone}");
    out.push(&blame, types::ENDPOINTS, &set, &endpoint_set(ways, zone));
    let route = SniRoute { matches: SniMatch::Zone(sni::label(zone)), endpoints: vec![set] };
    out.push(&blame, types::SNI_ROUTE, &format!("zone/{zone}"), &route);
}

fn endpoint_set(ways: Vec<(String, u32, String)>, zone: &str) -> EndpointSet {
    let endpoint = |(address, number, name): (String, u32, String)| Endpoint {
        host: host(&address),
        port: port(number),
        zone: zone.to_owned(),
        sni: None,
        replicas: 1,
        name,
        tags: BTreeMap::new(),
    };
    EndpointSet { endpoints: ways.into_iter().map(endpoint).collect() }
}
