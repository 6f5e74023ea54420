//! Which Dataplanes a MeshService means, and which services a Dataplane may call.

use crate::Parsed;
use crate::meta::Meta;
use meridian_core::kinds::dataplane::{Dataplane, Inbound, TransparentProxying};
use meridian_core::kinds::mesh_service::{IdentityType, MeshService, Port, PortOrName};
use meridian_core::{Key, Resource, labels};
use meridian_proxy_config::Protocol;
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// The `kuma.io/service` of which a MeshService is a view.
pub fn service_tag(service: &MeshService) -> Option<&str> {
    let selected = service.selector.dataplane_tags.as_ref().and_then(|tags| tags.get(labels::SERVICE));
    let tagged =
        || service.identities.iter().find(|id| id.type_ == IdentityType::ServiceTag).map(|id| &id.value);
    selected.or_else(tagged).map(String::as_str)
}

/// Inbounds of a Dataplane that a service means; none of a Dataplane in another zone or mesh.
pub fn offered<'a>(service: &Parsed<MeshService>, dataplane: &'a Parsed<Dataplane>) -> Vec<&'a Inbound> {
    let (own, theirs) = (&service.resource.key, &dataplane.resource.key);
    if own.mesh != theirs.mesh || own.zone != theirs.zone {
        return Vec::new();
    }
    let selector = &service.spec.selector;
    let tags = match (&selector.dataplane_ref, &selector.dataplane_labels, &selector.dataplane_tags) {
        (Some(reference), ..) if Meta::from(&dataplane.resource).display() != reference.name => {
            return Vec::new();
        }
        (None, Some(wanted), _) if !wanted.matches(&dataplane.resource.labels) => return Vec::new(),
        (None, None, None) => return Vec::new(),
        (_, _, tags) => tags,
    };
    let inbounds = dataplane.spec.networking.iter().flat_map(|networking| &networking.inbound);
    let has =
        |inbound: &&Inbound| tags.iter().flatten().all(|(key, value)| inbound.tags.get(key) == Some(value));
    inbounds.filter(has).collect()
}

/// A declared protocol; what is not HTTP is opaque.
pub fn protocol(text: &str) -> Protocol {
    match text {
        "http" => Protocol::Http,
        "http2" => Protocol::Http2,
        "grpc" => Protocol::Grpc,
        _ => Protocol::Tcp,
    }
}

/// What is spoken on a port that services of several zones offer, each with its zone and in the order of their keys; a zone
/// has one word, its first service's. Its own zone's decides for a caller: no other can take from its calls the routes and
/// policies that only HTTP has. Else what most zones say; of as many the plainest, for which nothing must be understood.
/// `None`: nobody offers it.
pub fn spoken<'a>(own: &str, offers: impl IntoIterator<Item = (&'a str, Protocol)>) -> Option<Protocol> {
    let mut words: BTreeMap<&str, Protocol> = BTreeMap::new();
    for (zone, word) in offers {
        words.entry(zone).or_insert(word);
    }
    if let Some(word) = words.get(own) {
        return Some(*word);
    }
    let zones = |word: Protocol| words.values().filter(|other| **other == word).count();
    let plain = |word: Protocol| match word {
        Protocol::Tcp | Protocol::Tls => 0,
        Protocol::Http => 1,
        Protocol::Http2 => 2,
        Protocol::Grpc => 3,
    };
    words.values().copied().min_by_key(|word| (Reverse(zones(*word)), plain(*word)))
}

/// Whether a port of a service leads to an inbound.
pub fn leads_to(port: &Port, inbound: &Inbound) -> bool {
    match &port.target_port {
        None => inbound.port == port.port,
        Some(PortOrName::Port(number)) => inbound.port == *number,
        Some(PortOrName::Name(name)) => inbound.section_name() == *name,
    }
}

/// Whether a reference by name (at home, or here) or by labels means a resource.
pub fn refers(resource: &Resource, name: &str, wanted: &BTreeMap<String, String>) -> bool {
    refers_to(&resource.key, &resource.labels, name, wanted)
}

/// The same of a resource of which no more is known.
pub fn refers_to(
    key: &Key,
    labelled: &BTreeMap<String, String>,
    name: &str,
    wanted: &BTreeMap<String, String>,
) -> bool {
    let meta = Meta { key, labels: labelled };
    if !name.is_empty() {
        return key.name == name || meta.display() == name;
    }
    let has = |(label, value): (&String, &String)| match label.as_str() {
        labels::DISPLAY_NAME => meta.display() == value,
        labels::ZONE => key.zone == *value,
        _ => labelled.get(label) == Some(value),
    };
    !wanted.is_empty() && wanted.iter().all(has)
}

/// Whether a Dataplane's `reachableBackends` let it learn of a MeshService, MeshExternalService or
/// MeshMultiZoneService; unset: of all.
pub fn is_reachable(transparent: Option<&TransparentProxying>, resource: &Resource) -> bool {
    let backends = transparent.and_then(|transparent| transparent.reachable_backends.as_ref());
    backends.is_none_or(|backends| {
        let kind = resource.key.kind.as_str();
        backends.refs.iter().any(|it| it.kind == kind && refers(resource, &it.name, &it.labels))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_zone_decides_then_most_zones_then_the_plainest() {
        use Protocol::{Grpc, Http, Http2, Tcp};
        for (own, offers, expected) in [
            ("east", vec![("east", Http), ("north", Tcp), ("west", Tcp)], Some(Http)),
            ("east", vec![("east", Tcp), ("north", Http), ("west", Http)], Some(Tcp)),
            ("east", vec![("a", Tcp), ("north", Http), ("west", Http)], Some(Http)),
            ("east", vec![("a", Tcp), ("b", Http)], Some(Tcp)),
            ("east", vec![("a", Grpc), ("b", Http2)], Some(Http2)),
            // However many services a zone has, it is one.
            ("east", vec![("a", Tcp), ("a", Tcp), ("b", Http), ("c", Http)], Some(Http)),
            ("east", vec![("a", Http), ("a", Tcp)], Some(Http)),
            ("east", vec![], None),
        ] {
            assert_eq!(spoken(own, offers.clone()), expected, "{offers:?}");
        }
    }
}
