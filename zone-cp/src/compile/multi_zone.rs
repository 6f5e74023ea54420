//! MeshMultiZoneServices: MeshServices of several zones under one name.
//!
//! One destination a port: the zone's own instances first, then the other zones', by the endpoint sets that the
//! MeshServices have anyhow. So an instance that comes or goes changes its MeshService's set and nothing here. A session
//! to another zone bears the server name of the MeshService there: the ingress needs no further route, and who answers
//! (and any rule there that asks for an `sni`) sees the service that it is. Rejected: Kuma's `sni.mzsvc...`, by which
//! every zone's ingress would have to know every selection and follow every change of a label.

use super::services::{destination_tls, tiers};
use super::several_zones::{Offer, Taken, agreed};
use super::{Compiled, Inputs, Unit, port, protocol};
use crate::picture::{MeshPicture, Picture, display_name};
use crate::vip::{Owner, Range};
use meridian_core::Key;
use meridian_core::kinds::mesh_multi_zone_service::{MeshMultiZoneService, Port};
use meridian_core::kinds::mesh_service::{self, MeshService};
use meridian_policy::Parsed;
use meridian_proxy_config::{Destination, Protocol, Target, types};

/// In the names of destinations where others have a zone; no zone is called so.
const ALL_ZONES: &str = "*";

pub(crate) fn owner(picture: &Picture, key: &Key) -> Option<Owner> {
    picture.mesh(&key.mesh)?.multi_zone_services.get(key)?;
    Some(owner_of(key))
}

pub(crate) fn owner_of(key: &Key) -> Owner {
    Owner { range: Range::MeshMultiZoneService, name: format!("{}/{}", key.mesh, key.name) }
}

/// The name of the destination that is one port of it.
pub(crate) fn destination_name(service: &Parsed<MeshMultiZoneService>, port: u32) -> String {
    format!("{}/{ALL_ZONES}/{}/{port}", service.resource.key.mesh, display_name(&service.resource))
}

/// The MeshServices that it selects.
pub(crate) fn selected<'a>(
    mesh: &'a MeshPicture,
    service: &'a Parsed<MeshMultiZoneService>,
) -> impl Iterator<Item = &'a Parsed<MeshService>> {
    let all = mesh.services.values().map(AsRef::as_ref);
    all.filter(|it| service.spec.selector.matches(&it.resource.labels))
}

/// Those that select a MeshService.
pub(crate) fn selecting<'a>(
    mesh: &'a MeshPicture,
    service: &'a Parsed<MeshService>,
) -> impl Iterator<Item = &'a Key> {
    let all = mesh.multi_zone_services.iter();
    all.filter(|(_, it)| it.spec.selector.matches(&service.resource.labels)).map(|(key, _)| key)
}

/// Its names and destinations, and all endpoints that they name.
pub(crate) fn units<'a>(
    picture: &Picture,
    mesh: &'a MeshPicture,
    service: &'a Parsed<MeshMultiZoneService>,
) -> impl Iterator<Item = Unit> + 'a {
    let own = Unit::MultiZone(service.resource.key.clone());
    let taken = Taken::of(picture, selected(mesh, service)).services;
    taken.into_iter().map(|it| Unit::Endpoints(it.resource.key.clone())).chain([own])
}

/// One port, and who serves it.
struct Served<'a> {
    protocol: Protocol,
    /// The zone's own first.
    by: Vec<Offer<'a>>,
    /// They speak what the others don't.
    left_out: Vec<&'a Parsed<MeshService>>,
    /// They declare different protocols, and it is not said which is meant.
    unclear: bool,
}

/// The inbound that answers decides what is spoken on a session, so those that speak HTTP and those that don't can't
/// serve one port. What is declared decides between them; `tcp`, which is also what it means to declare nothing, leaves it
/// to them ([`agreed`]).
fn served<'a>(picture: &Picture, taken: &Taken<'a>, declared: &Port) -> Served<'a> {
    let taken = taken.services.iter().copied();
    let with_port =
        taken.filter_map(|it| Some((it, it.spec.ports.iter().find(|port| port.port == declared.port)?)));
    let by: Vec<Offer<'_>> = with_port.collect();
    let word = |port: &mesh_service::Port| protocol(port.protocol());
    let (spoken, unclear) = match protocol(&declared.app_protocol) {
        Protocol::Tcp => {
            let spoken = agreed(picture, &by);
            (spoken, by.iter().any(|(_, port)| word(port) != spoken))
        }
        declared => (declared, false),
    };
    let (by, others): (Vec<_>, Vec<_>) =
        by.into_iter().partition(|(_, port)| word(port).is_http() == spoken.is_http());
    Served { protocol: spoken, by, left_out: others.into_iter().map(|(it, _)| it).collect(), unclear }
}

/// The services behind it that take part.
pub(crate) fn taken<'a>(
    picture: &Picture,
    mesh: &'a MeshPicture,
    service: &'a Parsed<MeshMultiZoneService>,
) -> Taken<'a> {
    Taken::of(picture, selected(mesh, service))
}

/// What is spoken on one port.
pub(crate) fn port_protocol(picture: &Picture, taken: &Taken<'_>, declared: &Port) -> Protocol {
    served(picture, taken, declared).protocol
}

/// Names and destinations.
pub(crate) fn multi_zone(inputs: Inputs<'_>, key: &Key, out: &mut Compiled) {
    let picture = inputs.picture;
    let Some(mesh) = picture.mesh(&key.mesh).filter(|mesh| mesh.spec().is_some()) else { return };
    let Some(service) = mesh.multi_zone_services.get(key) else { return };
    let vip = inputs.vips.address(&owner_of(key));
    let hostnames = mesh.names.of(key);
    let name = display_name(&service.resource);
    let taken = taken(picture, mesh, service);
    taken.complain(&format!("MeshMultiZoneService {name}"), Some(key), out);
    for declared in &service.spec.ports {
        let served = served(picture, &taken, declared);
        if served.unclear {
            let (port, spoken) = (declared.port, served.protocol);
            let reason = format!(
                "port {port}: {spoken} is spoken, since its MeshServices declare different protocols: give them one \
                 appProtocol, or this port the one that is meant"
            );
            out.problem(key, reason);
        }
        for other in &served.left_out {
            let (name, zone) = (display_name(&other.resource), &other.resource.key.zone);
            let (port, spoken) = (declared.port, if served.protocol.is_http() { "HTTP" } else { "TCP" });
            out.problem(
                key,
                format!("port {port}: {name} in {zone} has no part in it: {spoken} is spoken there"),
            );
        }
        let name = destination_name(service, declared.port);
        let destination = destination(picture, mesh, service, &served);
        out.push(key, types::DESTINATION, &name, &destination);
        let target = Target::Destination(name.clone());
        out.push_vip(key, &name, vip, port(declared.port), &hostnames, target);
    }
}

/// Without anybody who serves it there are no tiers, and callers are told that there is no endpoint.
fn destination(
    picture: &Picture,
    mesh: &MeshPicture,
    service: &Parsed<MeshMultiZoneService>,
    served: &Served<'_>,
) -> Destination {
    let services: Vec<&Parsed<MeshService>> = served.by.iter().map(|(it, _)| *it).collect();
    let tls = destination_tls(picture, mesh, &service.resource.key.mesh, &services);
    Destination {
        service: display_name(&service.resource).to_owned(),
        protocol: served.protocol,
        tiers: tiers(picture, mesh, &tls, &served.by),
        tls,
        spans_zones: true,
    }
}

#[cfg(test)]
mod tests;
