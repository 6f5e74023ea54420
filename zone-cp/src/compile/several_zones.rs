//! Destinations over the services of several zones: which of them take part, and what is spoken there.
//!
//! A zone says itself which services it has. What it says must not fill other zones' sidecars, nor decide for what the
//! others have.

use super::{Compiled, protocol};
use crate::picture::{MeshPicture, Picture};
use meridian_core::Key;
use meridian_core::kinds::mesh_service::{MeshService, Port};
use meridian_policy::{Parsed, spoken};
use meridian_proxy_config::Protocol;
use std::collections::{BTreeMap, BTreeSet};

/// MeshServices of one other zone in a destination. A zone makes one for a `kuma.io/service`, and users a few more, for
/// versions say; each adds its endpoint sets and identities to the destination in every sidecar.
pub(crate) const MAX_FAR_SERVICES: usize = 16;
/// Bytes of the identities of one other zone in a destination, which has them with each of its ports: that they fill no message, nor
/// sidecars.
const MAX_FAR_IDENTITIES: usize = 16 << 10;
/// Ports of one other zone's services behind a `kuma.io/service`, each of which is a destination: as many as one
/// MeshService may have.
pub(crate) const MAX_FAR_PORTS: usize = 256;

/// A service that has a port, and what it says of it.
pub(crate) type Offer<'a> = (&'a Parsed<MeshService>, &'a Port);

/// The services that take part: all of this zone's, and of each other zone the first by name.
pub(crate) struct Taken<'a> {
    /// The zone's own first, then by zone and name.
    pub(crate) services: Vec<&'a Parsed<MeshService>>,
    /// The first of each zone that is left out, and how many there are of its zone.
    left_out: BTreeMap<&'a str, (&'a Key, usize)>,
}

impl<'a> Taken<'a> {
    /// `all`: in the order of their keys.
    pub(crate) fn of(picture: &Picture, all: impl Iterator<Item = &'a Parsed<MeshService>>) -> Self {
        // How many there are of a zone, and the bytes of identities of those that take part.
        let mut counts: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
        let mut taken = Self { services: Vec::new(), left_out: BTreeMap::new() };
        for service in all {
            let key = &service.resource.key;
            let (count, bytes) = counts.entry(key.zone.as_str()).or_default();
            *count += 1;
            let own: usize = service.spec.identities.iter().map(|identity| identity.value.len()).sum();
            let fits = *count <= MAX_FAR_SERVICES && *bytes + own <= MAX_FAR_IDENTITIES;
            if picture.is_local(key) || fits {
                *bytes += own;
                taken.services.push(service);
            } else {
                taken.left_out.entry(key.zone.as_str()).or_insert((key, 0));
            }
        }
        for (zone, (_, all)) in &mut taken.left_out {
            *all = counts.get(zone).map_or(0, |(count, _)| *count);
        }
        taken.services.sort_by_key(|it| !picture.is_local(&it.resource.key));
        taken
    }

    /// One problem a zone, not one a service: they are what there may be too many of. `blamed`: whose it is, if not the
    /// service's that is left out.
    pub(crate) fn complain(&self, of: &str, blamed: Option<&Key>, out: &mut Compiled) {
        for (zone, (first, count)) in &self.left_out {
            let reason = format!(
                "zone {zone} has {count} MeshServices for {of}: {MAX_FAR_SERVICES} of one zone take part, with \
                 {MAX_FAR_IDENTITIES} bytes of identities, the first by name; remove some"
            );
            out.problem(blamed.unwrap_or(first), reason);
        }
    }
}

/// A `kuma.io/service` in all zones.
pub(crate) struct Legacy<'a> {
    pub(crate) taken: Taken<'a>,
    /// Who offers each port, in the order of [`Taken::services`].
    pub(crate) ports: BTreeMap<u32, Vec<Offer<'a>>>,
    /// Zones with more ports than are taken, and how many.
    beyond: BTreeMap<&'a str, (&'a Key, usize)>,
}

impl<'a> Legacy<'a> {
    pub(crate) fn of(picture: &Picture, mesh: &'a MeshPicture, tag: &str) -> Self {
        let all = mesh.services_by_tag.get(tag).into_iter().flatten();
        let taken = Taken::of(picture, all.filter_map(|key| mesh.service(key)));
        let mut by_zone: BTreeMap<&str, (&Key, BTreeSet<u32>)> = BTreeMap::new();
        for service in taken.services.iter().filter(|it| !picture.is_local(&it.resource.key)) {
            let key = &service.resource.key;
            let (_, numbers) = by_zone.entry(key.zone.as_str()).or_insert_with(|| (key, BTreeSet::new()));
            numbers.extend(service.spec.ports.iter().map(|port| port.port));
        }
        by_zone.retain(|_, (_, numbers)| numbers.len() > MAX_FAR_PORTS);
        let last = |numbers: &BTreeSet<u32>| numbers.iter().nth(MAX_FAR_PORTS - 1).copied();
        let is_taken = |(service, port): &Offer<'_>| {
            let limited = by_zone.get(service.resource.key.zone.as_str());
            limited.and_then(|(_, numbers)| last(numbers)).is_none_or(|last| port.port <= last)
        };
        let offers = taken.services.iter().flat_map(|it| it.spec.ports.iter().map(|port| (*it, port)));
        let mut ports: BTreeMap<u32, Vec<Offer<'a>>> = BTreeMap::new();
        for offer in offers.filter(is_taken) {
            ports.entry(offer.1.port).or_default().push(offer);
        }
        let beyond = by_zone.into_iter().map(|(zone, (key, numbers))| (zone, (key, numbers.len()))).collect();
        Self { taken, ports, beyond }
    }

    /// What is spoken on one of its ports.
    pub(crate) fn protocol(&self, picture: &Picture, number: u32) -> Option<Protocol> {
        self.ports.get(&number).map(|offers| agreed(picture, offers))
    }

    pub(crate) fn complain(&self, picture: &Picture, tag: &str, out: &mut Compiled) {
        self.taken.complain(&format!("kuma.io/service {tag}"), None, out);
        for (zone, (key, count)) in &self.beyond {
            let reason = format!(
                "zone {zone} has {count} ports for kuma.io/service {tag}: {MAX_FAR_PORTS} of one zone are taken, the \
                 lowest; remove some"
            );
            out.problem(key, reason);
        }
        // One port of each that differs says enough.
        let mut told = BTreeSet::new();
        for (number, offers) in &self.ports {
            let spoken = agreed(picture, offers);
            for (service, port) in offers.iter().filter(|(_, port)| protocol(port.protocol()) != spoken) {
                if told.insert(&service.resource.key) {
                    let reason = format!(
                        "port {number}: {} is spoken with kuma.io/service {tag}, not {}, since zones declare different \
                         protocols: give the port one appProtocol in all of them",
                        spoken,
                        port.protocol()
                    );
                    out.problem(&service.resource.key, reason);
                }
            }
        }
    }
}

/// What is spoken on a port with all that offer it; opaque bytes where nobody does.
pub(crate) fn agreed(picture: &Picture, offers: &[Offer<'_>]) -> Protocol {
    let words = offers.iter().map(|(it, port)| (it.resource.key.zone.as_str(), protocol(port.protocol())));
    spoken(&picture.zone, words).unwrap_or(Protocol::Tcp)
}

#[cfg(test)]
mod tests;
