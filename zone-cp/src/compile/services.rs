//! Services inside the mesh: names, destinations, endpoints.

use super::policies::{self, AskedTags};
use super::several_zones::{Legacy, Offer, agreed};
use super::{Compiled, Inputs, host, port, protocol};
use crate::hostnames;
use crate::picture::{Facts, MeshPicture, Picture, display_name};
use crate::vip::{Owner, Range};
use meridian_core::kinds::dataplane::{Dataplane, Inbound};
use meridian_core::kinds::mesh::{MeshServicesMode, MtlsMode};
use meridian_core::kinds::mesh_service::{IdentityType, MeshService, Port, State, Status};
use meridian_core::kinds::zone_ingress::{self, ZoneIngress};
use meridian_core::{Key, labels};
use meridian_policy::{Parsed, leads_to};
use meridian_proxy_config::sni::{Sni, SniKind};
use meridian_proxy_config::{Destination, DestinationTls, Endpoint, EndpointSet, Target, types};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

/// A remote service counts as so many virtual endpoints at most.
const MAX_REPLICAS: u32 = 32;
/// An endpoint without tags takes some 200 bytes, and a resource may take 512 KiB: larger sets are cut, by a hash of the
/// endpoint, so that one endpoint that comes or goes changes one part.
const MAX_ENDPOINTS: usize = 1_000;
const ENDPOINT_BYTES: usize = 200;
/// Quotes, colon, comma.
const TAG_BYTES: usize = 6;
/// Where `<service>.mesh` answers beside the ports of the service.
const LEGACY_PORT: u16 = 80;

/// Whose virtual address a MeshService's is; none where the mesh has no such names.
pub(crate) fn owner(picture: &Picture, key: &Key) -> Option<Owner> {
    let mesh = picture.mesh(&key.mesh)?;
    mesh.service(key)?;
    let mode = mesh.spec()?.mesh_services_mode();
    (mode != MeshServicesMode::Disabled).then(|| service_owner(key))
}

fn service_owner(key: &Key) -> Owner {
    Owner { range: Range::MeshService, name: format!("{}/{}/{}", key.mesh, key.zone, key.name) }
}

/// The virtual address of `<service>.mesh`; none where the mesh has no such names, or an ExternalService has this one.
pub(crate) fn legacy_owner(picture: &Picture, mesh: &str, service: &str) -> Option<Owner> {
    let (picture, hostname) = (picture.mesh(mesh)?, hostnames::legacy(service));
    let exists = has_legacy_names(picture)
        && picture.names.listed(&hostname).is_none()
        && picture.services_by_tag.contains_key(service);
    exists.then(|| host_owner(mesh, &hostname))
}

/// One a host, all its ports.
pub(crate) fn host_owner(mesh: &str, host: &str) -> Owner {
    Owner { range: Range::Host, name: format!("{mesh}/{host}") }
}

/// `<service>.mesh` answers in every mode: `meshServices.mode` decides whether MeshServices have names beside it.
pub(crate) fn has_legacy_names(mesh: &MeshPicture) -> bool {
    mesh.spec().is_some()
}

pub(crate) use meridian_policy::service_tag as service_of;

/// What the zone of a service has found out about it.
pub(crate) fn status_of(service: &Parsed<MeshService>) -> Status {
    let status = service.resource.status.as_ref();
    status.and_then(|status| serde_json::from_value(status.clone()).ok()).unwrap_or_default()
}

/// The name of a destination and of its endpoint set.
pub(crate) fn destination_name(service: &Parsed<MeshService>, port: u32) -> String {
    let key = &service.resource.key;
    format!("{}/{}/{}/{port}", key.mesh, key.zone, display_name(&service.resource))
}

pub(crate) fn legacy_name(mesh: &str, service: &str, port: u32) -> String {
    format!("{mesh}//{service}/{port}")
}

/// The server name by which an ingress knows one port of a service.
pub(crate) fn sni_of(picture: &Picture, service: &Parsed<MeshService>, declared: &Port) -> String {
    let key = &service.resource.key;
    let zone = if key.zone.is_empty() { &picture.zone } else { &key.zone };
    let (name, port) = (display_name(&service.resource), declared.section_name());
    Sni { kind: SniKind::MeshService, mesh: &key.mesh, zone, namespace: None, name, port: &port }.to_string()
}

/// Names and destinations of one MeshService.
pub(crate) fn service(inputs: Inputs<'_>, key: &Key, out: &mut Compiled) {
    let picture = inputs.picture;
    let Some(mesh) = picture.mesh(&key.mesh) else { return };
    let (Some(service), Some(_)) = (mesh.service(key), mesh.spec()) else { return };
    let vip = owner(picture, key).and_then(|owner| inputs.vips.address(&owner));
    let hostnames = mesh.names.of(key);
    for declared in &service.spec.ports {
        let name = destination_name(service, declared.port);
        let destination = Destination {
            service: display_name(&service.resource).to_owned(),
            protocol: protocol(declared.protocol()),
            tls: destination_tls(picture, mesh, &key.mesh, &[service]),
            tiers: vec![set_names(picture, mesh, service, declared)],
            spans_zones: false,
        };
        out.push(key, types::DESTINATION, &name, &destination);
        let target = Target::Destination(name.clone());
        out.push_vip(key, &name, vip, port(declared.port), &hostnames, target);
    }
}

/// Destinations of a `kuma.io/service` in all zones, the own first, and its `.mesh` name.
pub(crate) fn legacy(inputs: Inputs<'_>, mesh_name: &str, service: &str, out: &mut Compiled) {
    let picture = inputs.picture;
    let Some(mesh) = picture.mesh(mesh_name) else { return };
    if mesh.spec().is_none() {
        return;
    }
    let found = Legacy::of(picture, mesh, service);
    let (services, ports) = (&found.taken.services, &found.ports);
    let Some(first) = services.first() else { return };
    let blame = first.resource.key.clone();
    found.complain(picture, service, out);
    let tls = destination_tls(picture, mesh, mesh_name, services);
    for (number, offers) in ports {
        let destination = Destination {
            service: service.to_owned(),
            protocol: agreed(picture, offers),
            tls: tls.clone(),
            tiers: tiers(picture, mesh, &tls, offers),
            spans_zones: true,
        };
        out.push(&blame, types::DESTINATION, &legacy_name(mesh_name, service, *number), &destination);
    }
    let hostnames = [hostnames::legacy(service)];
    let [hostname] = &hostnames;
    if let Some(external) = mesh.names.listed(hostname) {
        for it in services {
            let reason = format!(
                "{hostname} leads to the ExternalService {}, not to this service: give one of them another name, or \
                 another kuma.io/service",
                external.name
            );
            out.problem(&it.resource.key, reason);
        }
        return;
    }
    let vip = legacy_owner(picture, mesh_name, service).and_then(|owner| inputs.vips.address(&owner));
    let lowest = ports.keys().next().copied();
    let default = lowest
        .filter(|_| !ports.contains_key(&u32::from(LEGACY_PORT)))
        .map(|to| (u32::from(LEGACY_PORT), to));
    for (number, to) in ports.keys().map(|number| (*number, *number)).chain(default) {
        let target = Target::Destination(legacy_name(mesh_name, service, to));
        out.push_vip(&blame, &legacy_name(mesh_name, service, number), vip, port(number), &hostnames, target);
    }
}

/// The endpoint sets of those who offer a port: the zone's own, then the others'. Plaintext can't cross zones.
pub(crate) fn tiers(
    picture: &Picture,
    mesh: &MeshPicture,
    tls: &DestinationTls,
    offers: &[Offer<'_>],
) -> Vec<Vec<String>> {
    let (near, far): (Vec<_>, Vec<_>) =
        offers.iter().copied().partition(|(it, _)| picture.is_local(&it.resource.key));
    let far = if *tls == DestinationTls::Off { Vec::new() } else { far };
    let sets = |of: Vec<Offer<'_>>| -> Vec<String> {
        of.into_iter().flat_map(|(it, port)| set_names(picture, mesh, it, port)).collect()
    };
    [sets(near), sets(far)].into_iter().filter(|tier| !tier.is_empty()).collect()
}

/// How to speak to a service that is there in these forms. Under STRICT always mutual; under PERMISSIVE once all
/// proxies of the local ones have had certificates, or where a MeshTLS takes nothing else; to other zones always mutual.
pub(crate) fn destination_tls(
    picture: &Picture,
    mesh: &MeshPicture,
    name: &str,
    services: &[&Parsed<MeshService>],
) -> DestinationTls {
    let Some(backend) = mesh.spec().and_then(|spec| spec.mtls_backend()) else { return DestinationTls::Off };
    let is_plain = |it: &Parsed<MeshService>| {
        picture.is_local(&it.resource.key) && !tls_ready(it) && !is_closed(mesh, &it.spec)
    };
    if backend.mode == MtlsMode::Permissive && services.iter().any(|it| is_plain(it)) {
        return DestinationTls::Off;
    }
    let mut identities: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for service in services {
        identities
            .entry(service.resource.key.zone.clone())
            .or_default()
            .extend(spiffe_ids(name, &service.spec));
    }
    let identities = identities.into_iter().map(|(zone, ids)| (zone, ids.into_iter().collect())).collect();
    DestinationTls::Mutual { mesh: name.to_owned(), identities }
}

fn spiffe_ids(mesh: &str, service: &MeshService) -> Vec<String> {
    let id = |identity: &meridian_core::kinds::mesh_service::Identity| match identity.type_ {
        IdentityType::ServiceTag => Some(meridian_pki::spiffe_id(mesh, &identity.value)),
        IdentityType::SpiffeId => Some(identity.value.clone()),
        IdentityType::Other(_) => None,
    };
    service.identities.iter().filter_map(id).collect()
}

pub(crate) fn tls_ready(service: &Parsed<MeshService>) -> bool {
    status_of(service).tls.is_some_and(|tls| tls.status == "Ready")
}

/// One endpoint set a port, in parts where it is large.
pub(crate) fn endpoints(inputs: Inputs<'_>, key: &Key, out: &mut Compiled) {
    let picture = inputs.picture;
    let Some(mesh) = picture.mesh(&key.mesh).filter(|mesh| mesh.spec().is_some()) else { return };
    let Some(service) = mesh.service(key) else { return };
    for declared in &service.spec.ports {
        let all = port_endpoints(picture, mesh, service, declared);
        let names = part_names(&destination_name(service, declared.port), room(&all));
        let mut parts = vec![EndpointSet::default(); names.len()];
        for endpoint in all {
            let part = part_of(&endpoint, names.len());
            if let Some(set) = parts.get_mut(part) {
                set.endpoints.push(endpoint);
            }
        }
        for (name, set) in names.iter().zip(&parts) {
            out.push(key, types::ENDPOINTS, name, set);
        }
    }
}

pub(crate) fn set_names(
    picture: &Picture,
    mesh: &MeshPicture,
    service: &Parsed<MeshService>,
    declared: &Port,
) -> Vec<String> {
    part_names(
        &destination_name(service, declared.port),
        room(&port_endpoints(picture, mesh, service, declared)),
    )
}

/// What endpoints take, in endpoints without tags.
fn room(endpoints: &[Endpoint]) -> usize {
    let tags = endpoints.iter().flat_map(|endpoint| &endpoint.tags);
    let bytes: usize = tags.map(|(key, value)| key.len() + value.len() + TAG_BYTES).sum();
    endpoints.len() + bytes.div_ceil(ENDPOINT_BYTES)
}

/// The sets that an ingress, too, refers to.
pub(crate) fn endpoint_set_names(picture: &Picture, key: &Key, declared: &Port) -> Vec<String> {
    let mesh = picture.mesh(&key.mesh);
    let service = mesh.and_then(|mesh| Some((mesh, mesh.service(key)?)));
    service.map(|(mesh, service)| set_names(picture, mesh, service, declared)).unwrap_or_default()
}

fn part_names(name: &str, endpoints: usize) -> Vec<String> {
    match endpoints.div_ceil(MAX_ENDPOINTS) {
        0 | 1 => vec![name.to_owned()],
        // Twice as many parts as needed: a hash does not fill them evenly.
        parts => (0..parts * 2).map(|part| format!("{name}#{part}")).collect(),
    }
}

fn part_of(endpoint: &Endpoint, parts: usize) -> usize {
    let mut hasher = DefaultHasher::new();
    (&endpoint.host, endpoint.port, &endpoint.name).hash(&mut hasher);
    let parts = u64::try_from(parts.max(1)).unwrap_or(1);
    usize::try_from(hasher.finish() % parts).unwrap_or(0)
}

fn port_endpoints(
    picture: &Picture,
    mesh: &MeshPicture,
    service: &Parsed<MeshService>,
    declared: &Port,
) -> Vec<Endpoint> {
    if picture.is_local(&service.resource.key) {
        local_endpoints(picture, mesh, service, declared)
    } else {
        remote_endpoints(picture, mesh, service, declared)
    }
}

fn local_endpoints(
    picture: &Picture,
    mesh: &MeshPicture,
    service: &Parsed<MeshService>,
    declared: &Port,
) -> Vec<Endpoint> {
    let certified = must_be_certified(mesh, service);
    let sni = mesh.mtls().then(|| sni_of(picture, service, declared));
    let mut out = Vec::new();
    for dataplane in selected(mesh, &service.spec) {
        let facts = picture.facts(&dataplane.resource.key);
        for inbound in selected_inbounds(&service.spec, &dataplane.spec) {
            if leads_to(declared, inbound)
                && takes_traffic(inbound, facts, certified.then_some(&service.resource.key.mesh))
            {
                out.push(Endpoint {
                    host: host(peer_address(&dataplane.spec, inbound)),
                    port: port(inbound.port),
                    zone: picture.zone.clone(),
                    sni: sni.clone(),
                    replicas: 1,
                    name: dataplane.resource.key.name.clone(),
                    tags: tags_of(picture, dataplane, inbound, &mesh.asked_tags),
                });
            }
        }
    }
    out
}

/// Those of an instance's tags that are asked for: an inbound's own, else the Dataplane's labels, which have what the
/// platform knows (of the host, say).
fn tags_of(
    picture: &Picture,
    dataplane: &Parsed<Dataplane>,
    inbound: &Inbound,
    asked: &AskedTags,
) -> BTreeMap<String, String> {
    let tag = |key: &String| Some((key.clone(), tag(picture, dataplane, &inbound.tags, key)?.to_owned()));
    asked.keys().filter_map(tag).collect()
}

/// One tag of an inbound, or gateway, with these tags. The zone is this one, whatever they say.
pub(crate) fn tag<'a>(
    picture: &'a Picture,
    dataplane: &'a Parsed<Dataplane>,
    tags: &'a BTreeMap<String, String>,
    key: &str,
) -> Option<&'a str> {
    if key == labels::ZONE {
        return Some(&picture.zone);
    }
    tags.get(key).or_else(|| dataplane.resource.labels.get(key)).map(String::as_str)
}

/// Clients of this service insist on its certificates, so that an instance without one is no endpoint yet.
fn must_be_certified(mesh: &MeshPicture, service: &Parsed<MeshService>) -> bool {
    let mode = mesh.spec().and_then(|spec| spec.mtls_backend()).map(|backend| backend.mode);
    match mode {
        None => false,
        Some(MtlsMode::Strict) => true,
        Some(MtlsMode::Permissive) => tls_ready(service) || is_closed(mesh, &service.spec),
    }
}

/// Whether MeshTLS closes a service of this zone to plaintext.
pub(crate) fn is_closed(mesh: &MeshPicture, service: &MeshService) -> bool {
    policies::tls::closes(mesh, service, selected(mesh, service))
}

/// An inbound takes traffic if its Dataplane says so, its probe succeeds, and (where asked) it has a certificate. Without
/// a proxy's report nothing does.
pub(crate) fn takes_traffic(inbound: &Inbound, facts: Option<&Facts>, certified_in: Option<&String>) -> bool {
    let Some(facts) = facts else { return false };
    inbound.is_ready()
        && facts.ready.contains(&inbound.section_name())
        && certified_in.is_none_or(|mesh| facts.certified.contains(mesh))
}

/// The zone's Dataplanes that offer a service.
pub(crate) fn selected<'a>(
    mesh: &'a MeshPicture,
    service: &'a MeshService,
) -> Box<dyn Iterator<Item = &'a Parsed<Dataplane>> + 'a> {
    let selector = &service.selector;
    if let Some(reference) = &selector.dataplane_ref {
        let named = move |it: &&Parsed<Dataplane>| it.resource.key.name == reference.name;
        return Box::new(mesh.dataplanes.values().map(AsRef::as_ref).filter(named));
    }
    if let Some(wanted) = &selector.dataplane_labels {
        let labelled = move |it: &&Parsed<Dataplane>| wanted.matches(&it.resource.labels);
        return Box::new(mesh.dataplanes.values().map(AsRef::as_ref).filter(labelled));
    }
    let Some(tags) = &selector.dataplane_tags else { return Box::new(std::iter::empty()) };
    let offers = move |it: &&Parsed<Dataplane>| selected_inbounds(service, &it.spec).next().is_some();
    match tags.get(labels::SERVICE) {
        Some(tag) => {
            let keys = mesh.by_service.get(tag).into_iter().flatten();
            Box::new(keys.filter_map(|key| mesh.dataplane(key)).filter(offers))
        }
        None => Box::new(mesh.dataplanes.values().map(AsRef::as_ref).filter(offers)),
    }
}

/// Inbounds that a service's selector means.
pub(crate) fn selected_inbounds<'a>(
    service: &'a MeshService,
    dataplane: &'a Dataplane,
) -> impl Iterator<Item = &'a Inbound> {
    let inbounds = dataplane.networking.iter().flat_map(|networking| &networking.inbound);
    inbounds.filter(move |inbound| {
        let wanted = service.selector.dataplane_tags.iter().flatten();
        wanted.into_iter().all(|(key, value)| inbound.tags.get(key) == Some(value))
    })
}

fn peer_address<'a>(dataplane: &'a Dataplane, inbound: &'a Inbound) -> &'a str {
    let Some(networking) = &dataplane.networking else { return "" };
    if !networking.advertised_address.is_empty() {
        &networking.advertised_address
    } else if inbound.address.is_empty() {
        &networking.address
    } else {
        &inbound.address
    }
}

/// Another zone's instances, behind its ingresses: through this zone's egresses where the mesh says so.
fn remote_endpoints(
    picture: &Picture,
    mesh: &MeshPicture,
    service: &Parsed<MeshService>,
    declared: &Port,
) -> Vec<Endpoint> {
    let status = status_of(service);
    let ready = status.dataplane_proxies.map_or(0, |proxies| proxies.healthy).min(MAX_REPLICAS);
    let zone = service.resource.key.zone.as_str();
    if ready == 0 || service.spec.state != State::Available || !mesh.mtls() {
        return Vec::new();
    }
    let ways: Vec<(String, u32, String)> = if mesh.egress_enforced() {
        picture.remote_ingresses(zone).next().map(|_| egress_addresses(picture)).unwrap_or_default()
    } else {
        ingress_addresses(picture, zone)
    };
    let count = u32::try_from(ways.len()).unwrap_or(u32::MAX).max(1);
    let sni = sni_of(picture, service, declared);
    // More is not known here of single instances.
    let known = [(labels::ZONE, Some(zone)), (labels::SERVICE, service_of(&service.spec))];
    let known = known.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?.to_owned())));
    let tags: BTreeMap<String, String> = known.filter(|(key, _)| mesh.asked_tags.has(key)).collect();
    let way = |(index, (address, number, name)): (usize, (String, u32, String))| {
        let extra = u32::from(u32::try_from(index).unwrap_or(u32::MAX) < ready % count);
        Endpoint {
            host: host(&address),
            port: port(number),
            zone: zone.to_owned(),
            sni: Some(sni.clone()),
            replicas: (ready / count + extra).max(1),
            name,
            tags: tags.clone(),
        }
    };
    ways.into_iter().enumerate().map(way).collect()
}

/// Address, port and name of the zone's egresses.
pub(crate) fn egress_addresses(picture: &Picture) -> Vec<(String, u32, String)> {
    let networked = picture.egresses.values().filter_map(|it| Some((it, it.spec.networking.as_ref()?)));
    networked.map(|(it, net)| (net.address.clone(), net.port, it.resource.key.name.clone())).collect()
}

/// ZoneIngresses of another zone that are dialled, the first by name: each is an endpoint of each of its services.
pub(crate) const MAX_FAR_INGRESSES: usize = 32;

/// Another zone's ingresses that can be dialled.
pub(crate) fn far_ingresses<'a>(
    picture: &'a Picture,
    zone: &'a str,
) -> impl Iterator<Item = (&'a Parsed<ZoneIngress>, &'a zone_ingress::Networking)> {
    let networked = picture.remote_ingresses(zone).filter_map(|it| Some((it, it.spec.networking.as_ref()?)));
    networked.filter(|(_, net)| !net.advertised_address.is_empty() && net.advertised_port != 0)
}

/// Advertised address, port and name of those that are.
pub(crate) fn ingress_addresses(picture: &Picture, zone: &str) -> Vec<(String, u32, String)> {
    far_ingresses(picture, zone)
        .take(MAX_FAR_INGRESSES)
        .map(|(it, net)| {
            (net.advertised_address.clone(), net.advertised_port, display_name(&it.resource).to_owned())
        })
        .collect()
}
