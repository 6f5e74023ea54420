//! The index of what a change touches: from one resource that changed to the units that read it.
//!
//! Written by hand, so that a person can read what depends on what. It may name too much, never too little: a property
//! test holds incremental compiling to compiling from nothing.

mod names;
mod of_policies;

use super::Unit;
use super::members::{Group, Reached, is_external, reaches_less};
use super::services::{selected, selected_inbounds, service_of, tls_ready};
use super::{external, multi_zone, policies};
use crate::generate::everyone_certified;
use crate::hostnames;
use crate::picture::{MeshPicture, Picture};
use meridian_core::Key;
use meridian_core::kinds::dataplane::Dataplane;
use meridian_core::kinds::mesh::Mesh;
use meridian_core::kinds::mesh_multi_zone_service::MeshMultiZoneService;
use meridian_core::kinds::mesh_open_telemetry_backend::MeshOpenTelemetryBackend;
use meridian_core::kinds::mesh_passthrough::MeshPassthrough;
use meridian_core::kinds::mesh_service::MeshService;
use meridian_core::kinds::mesh_traffic_permission::MeshTrafficPermission;
use meridian_core::kinds::secret::Secret;
use meridian_core::kinds::trust_bundle::TrustBundle;
use meridian_core::kinds::zone_egress::ZoneEgress;
use meridian_core::kinds::zone_ingress::ZoneIngress;
use meridian_policy::listed_hostnames;
use std::collections::BTreeSet;

/// What to compile again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Touched {
    pub(crate) units: BTreeSet<Unit>,
    /// Meshes of which every [`Unit::Policies`] may have changed.
    pub(crate) policies: BTreeSet<String>,
    /// Groups whose set of units may have changed.
    pub(crate) groups: Groups,
    /// Proxies that came, went, or whose own set of units or group may have changed.
    pub(crate) proxies: BTreeSet<Key>,
    /// Local MeshServices whose status, and `kuma.io/service`s whose MeshService, may have to be written.
    pub(crate) services: BTreeSet<(String, String)>,
}

/// Groups by what they are about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Groups {
    /// Sidecars of these meshes, whatever their reach.
    pub(crate) meshes: BTreeSet<String>,
    /// Sidecars that these MeshServices are in the reach of, as they were and as they are.
    pub(crate) services: BTreeSet<Reached>,
    pub(crate) ingresses: bool,
    pub(crate) egresses: bool,
}

impl Touched {
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub(crate) fn extend(&mut self, other: Self) {
        self.units.extend(other.units);
        self.policies.extend(other.policies);
        self.proxies.extend(other.proxies);
        self.services.extend(other.services);
        self.groups.meshes.extend(other.groups.meshes);
        self.groups.services.extend(other.groups.services);
        self.groups.ingresses |= other.groups.ingresses;
        self.groups.egresses |= other.groups.egresses;
    }
}

impl Groups {
    pub(crate) fn contains(&self, group: &Group) -> bool {
        match group {
            Group::Sidecars { mesh, reach } => {
                self.meshes.contains(mesh) || self.services.iter().any(|it| it.is_in(mesh, reach))
            }
            Group::Ingresses => self.ingresses,
            Group::Egresses => self.egresses,
        }
    }
}

/// What the change of one resource touches: `before` and `after` differ in nothing but `key`.
pub(crate) fn touched(before: &Picture, after: &Picture, key: &Key) -> Touched {
    let mut out = Touched::default();
    for picture in [before, after] {
        match key.kind {
            Mesh::KIND => whole_mesh(picture, &key.name, &mut out),
            TrustBundle::KIND => drop(out.units.insert(Unit::Bundle(key.mesh.clone()))),
            Dataplane::KIND => dataplane(picture, key, &mut out),
            MeshService::KIND => service(picture, key, &mut out),
            MeshMultiZoneService::KIND => many_zones(picture, key, &mut out),
            kind if is_external(kind) => external_destination(picture, key, &mut out),
            Secret::KIND => secret(picture, key, &mut out),
            MeshOpenTelemetryBackend::KIND => collector(picture, key, &mut out),
            MeshTrafficPermission::KIND => of_policies::permission(picture, key, &mut out),
            MeshPassthrough::KIND => of_policies::passthrough(picture, key, &mut out),
            ZoneIngress::KIND => ingress(picture, key, &mut out),
            ZoneEgress::KIND => egress(picture, key, &mut out),
            kind if policies::is_executed(kind) => of_policies::policy(picture, key, &mut out),
            _ => {}
        }
    }
    names::names(before, after, key, &mut out);
    of_policies::callers(before, after, key, &mut out);
    if addresses(before, key) != addresses(after, key) {
        for picture in [before, after] {
            out.units.extend(picture.egresses.keys().cloned().map(Unit::Gateway));
            unenforced_sidecars(picture, &mut out);
        }
    }
    of_policies::asked_tags(before, after, key, &mut out);
    if same_reach(before, after, key) {
        out.groups = Groups::default();
        out.policies.clear();
        out.proxies.retain(|proxy| proxy == key);
    }
    out
}

/// Whether the resource is there before and after, and nobody's set of units depends on what has changed in it. A service's
/// status is written whenever an instance comes or goes: that must not cost a look at every service of the mesh.
fn same_reach(before: &Picture, after: &Picture, key: &Key) -> bool {
    let both = |picture: &Picture| picture.mesh(&key.mesh).cloned();
    let (Some(before), Some(after)) = (both(before), both(after)) else { return false };
    match key.kind {
        Dataplane::KIND => match (before.dataplane(key), after.dataplane(key)) {
            (Some(old), Some(new)) => policies::selection(&before, old) == policies::selection(&after, new),
            _ => false,
        },
        MeshService::KIND => match (before.service(key), after.service(key)) {
            (Some(old), Some(new)) => {
                old.resource.labels == new.resource.labels
                    && old.spec.ports == new.spec.ports
                    && service_of(&old.spec) == service_of(&new.spec)
            }
            _ => false,
        },
        _ => false,
    }
}

/// Addresses of a proxy of this zone.
fn addresses(picture: &Picture, key: &Key) -> Vec<String> {
    if key.kind == Dataplane::KIND {
        let dataplane = picture.mesh(&key.mesh).and_then(|mesh| mesh.dataplane(key));
        let networking = dataplane.and_then(|it| it.spec.networking.as_ref());
        return networking
            .into_iter()
            .flat_map(|it| {
                let inbounds = it.inbound.iter().map(|inbound| inbound.address.clone());
                inbounds.chain([it.address.clone(), it.advertised_address.clone()])
            })
            .collect();
    }
    let ingress = picture.ingresses.get(key).filter(|_| picture.is_local(key));
    let ingress = ingress.and_then(|it| Some(it.spec.networking.as_ref()?.address.clone()));
    let egress = picture.egresses.get(key).and_then(|it| Some(it.spec.networking.as_ref()?.address.clone()));
    ingress.into_iter().chain(egress).collect()
}

/// Everything: at start, or when history does not reach back to where the picture is from.
pub(crate) fn everything(picture: &Picture) -> Touched {
    let mut out = Touched::default();
    for name in picture.meshes.keys() {
        whole_mesh(picture, name, &mut out);
    }
    for key in picture.ingresses.keys() {
        ingress(picture, key, &mut out);
    }
    for key in picture.egresses.keys() {
        egress(picture, key, &mut out);
    }
    out.units.insert(Unit::Egresses);
    (out.groups.ingresses, out.groups.egresses) = (true, true);
    out
}

/// What a change of a Dataplane's facts (readiness, certificates) touches.
pub(crate) fn touched_by_facts(picture: &Picture, key: &Key) -> Touched {
    let mut out = Touched::default();
    if let Some(mesh) = picture.mesh(&key.mesh) {
        services_of_dataplane(mesh, key, &mut out);
    }
    out
}

/// What may be touched beside that once certificates of a mesh have come, or proxies without one have gone: a service's
/// clients change over to mTLS once all that could be its clients have certificates.
pub(crate) fn touched_by_certificates(picture: &Picture, mesh_name: &str) -> Touched {
    let mut out = Touched::default();
    let Some(mesh) = picture.mesh(mesh_name).filter(|mesh| mesh.mtls()) else { return out };
    if everyone_certified(picture, mesh, mesh_name) {
        let waiting =
            mesh.services.iter().filter(|(it, service)| picture.is_local(it) && !tls_ready(service));
        out.services.extend(waiting.map(|(it, _)| (mesh_name.to_owned(), it.name.clone())));
    }
    out
}

fn whole_mesh(picture: &Picture, name: &str, out: &mut Touched) {
    out.policies.insert(name.to_owned());
    out.groups.meshes.insert(name.to_owned());
    (out.groups.ingresses, out.groups.egresses) = (true, true);
    out.units.extend([Unit::Bundle(name.to_owned()), Unit::PassthroughEntries(name.to_owned())]);
    let Some(mesh) = picture.mesh(name) else { return };
    for key in mesh.services.keys() {
        service_units(picture, mesh, key, out);
    }
    out.units.extend(mesh.multi_zone_services.keys().cloned().map(Unit::MultiZone));
    for key in mesh.external_services.keys().chain(mesh.mesh_external_services.keys()) {
        out.units.extend([
            Unit::External(key.clone()),
            Unit::Entry(key.clone()),
            Unit::IngressExternal(key.clone()),
        ]);
    }
    for key in mesh.dataplanes.keys() {
        out.units.extend([Unit::Dataplane(key.clone()), Unit::Caller(key.clone())]);
        out.proxies.insert(key.clone());
        if let Some(dataplane) = mesh.dataplane(key) {
            let tags = crate::picture::service_tags(&dataplane.spec);
            out.services.extend(tags.into_iter().map(|tag| (name.to_owned(), tag.to_owned())));
        }
    }
    out.units.extend(picture.egresses.keys().cloned().map(Unit::Gateway));
}

fn dataplane(picture: &Picture, key: &Key, out: &mut Touched) {
    if !picture.is_local(key) {
        return;
    }
    out.proxies.insert(key.clone());
    out.units.extend([Unit::Dataplane(key.clone()), Unit::Caller(key.clone())]);
    let Some(mesh) = picture.mesh(&key.mesh) else { return };
    let Some(dataplane) = mesh.dataplane(key) else { return };
    out.groups.egresses = true;
    if !mesh.passthroughs.is_empty() {
        out.units.insert(Unit::PassthroughEntries(key.mesh.clone()));
    }
    let tags = crate::picture::service_tags(&dataplane.spec);
    out.services.extend(tags.into_iter().map(|tag| (key.mesh.clone(), tag.to_owned())));
    services_of_dataplane(mesh, key, out);
}

/// Local MeshServices that select the Dataplane: by tag through the index, the few others one by one. A flap of an endpoint
/// asks for it, so it may not cost a look at every service.
fn services_of_dataplane(mesh: &MeshPicture, key: &Key, out: &mut Touched) {
    let Some(dataplane) = mesh.dataplane(key) else { return };
    let tags = crate::picture::service_tags(&dataplane.spec);
    let tagged = tags.iter().filter_map(|tag| mesh.services_by_tag.get(*tag)).flatten();
    let candidates: BTreeSet<&Key> =
        tagged.chain(mesh.services_by_rest.iter()).filter(|it| it.zone == key.zone).collect();
    for service_key in candidates {
        let Some(service) = mesh.service(service_key) else { continue };
        let by_tag = service_of(&service.spec).is_some_and(|tag| tags.contains(tag));
        let selector = &service.spec.selector;
        let by_inbound = selector.dataplane_tags.is_some()
            && by_tag
            && selected_inbounds(&service.spec, &dataplane.spec).next().is_some();
        let by_rest = (selector.dataplane_ref.is_some() || selector.dataplane_labels.is_some() || !by_tag)
            && selected(mesh, &service.spec).any(|it| it.resource.key == *key);
        if by_inbound || by_rest {
            out.units.extend([Unit::Endpoints(service_key.clone()), Unit::Service(service_key.clone())]);
            out.units.insert(Unit::IngressRoute(service_key.clone()));
            out.units.extend(views_of(mesh, service_key));
            out.services.insert((key.mesh.clone(), service_key.name.clone()));
        }
    }
}

fn legacy_of(mesh: &MeshPicture, key: &Key) -> Option<Unit> {
    let service = service_of(&mesh.service(key)?.spec)?.to_owned();
    Some(Unit::Legacy { mesh: key.mesh.clone(), service })
}

/// Destinations that a service is one of several behind.
fn views_of(mesh: &MeshPicture, key: &Key) -> Vec<Unit> {
    let Some(service) = mesh.service(key) else { return Vec::new() };
    let many = multi_zone::selecting(mesh, service).cloned().map(Unit::MultiZone);
    many.chain(legacy_of(mesh, key)).collect()
}

fn service_units(picture: &Picture, mesh: &MeshPicture, key: &Key, out: &mut Touched) {
    out.units.extend([Unit::Service(key.clone()), Unit::Endpoints(key.clone())]);
    out.units.extend(views_of(mesh, key));
    if picture.is_local(key) {
        out.units.insert(Unit::IngressRoute(key.clone()));
        out.services.insert((key.mesh.clone(), key.name.clone()));
    }
}

fn service(picture: &Picture, key: &Key, out: &mut Touched) {
    let Some(mesh) = picture.mesh(&key.mesh) else { return };
    if mesh.service(key).is_none() {
        return;
    }
    service_units(picture, mesh, key, out);
    out.policies.insert(key.mesh.clone());
    out.groups.services.extend(mesh.service(key).map(Reached::of));
    out.groups.ingresses |= picture.is_local(key);
    explicit_outbounds(mesh, out);
    routed(mesh, out);
}

/// Sidecars that hold services for their routes' sake.
fn routed(mesh: &MeshPicture, out: &mut Touched) {
    if mesh.policies.values().any(|policy| policies::says_where(policy)) {
        let less = mesh.dataplanes.iter().filter(|(_, it)| reaches_less(it));
        out.proxies.extend(less.map(|(key, _)| key.clone()));
    }
}

fn many_zones(picture: &Picture, key: &Key, out: &mut Touched) {
    let Some(mesh) = picture.mesh(&key.mesh) else { return };
    out.units.insert(Unit::MultiZone(key.clone()));
    out.policies.insert(key.mesh.clone());
    out.groups.meshes.insert(key.mesh.clone());
    explicit_outbounds(mesh, out);
    routed(mesh, out);
}

/// Sidecars with explicit outbounds, which name services one by one.
fn explicit_outbounds(mesh: &MeshPicture, out: &mut Touched) {
    let explicit = mesh.dataplanes.iter().filter(|(_, it)| {
        it.spec.networking.as_ref().is_some_and(|networking| !networking.outbound.is_empty())
    });
    for (key, _) in explicit {
        out.units.insert(Unit::Dataplane(key.clone()));
        out.proxies.insert(key.clone());
    }
}

fn external_destination(picture: &Picture, key: &Key, out: &mut Touched) {
    let Some(mesh) = picture.mesh(&key.mesh) else { return };
    out.units.extend([
        Unit::External(key.clone()),
        Unit::Entry(key.clone()),
        Unit::IngressExternal(key.clone()),
    ]);
    if let Some(service) = mesh.external_services.get(key) {
        let names = listed_hostnames(&service.spec);
        // Of several with one name the first has it, and no service of the mesh.
        let same =
            mesh.external_services.iter().filter(|(_, it)| !listed_hostnames(&it.spec).is_disjoint(&names));
        for (other, _) in same {
            out.units.extend([Unit::External(other.clone()), Unit::Entry(other.clone())]);
        }
        let tags = mesh.services.values().filter_map(|it| service_of(&it.spec));
        let tags = tags.filter(|tag| names.contains(&hostnames::legacy(tag)));
        let legacy = |tag: &str| Unit::Legacy { mesh: key.mesh.clone(), service: tag.to_owned() };
        out.units.extend(tags.map(legacy));
    }
    out.policies.insert(key.mesh.clone());
    out.groups.meshes.insert(key.mesh.clone());
    (out.groups.ingresses, out.groups.egresses) = (true, true);
    explicit_outbounds(mesh, out);
    routed(mesh, out);
}

fn secret(picture: &Picture, key: &Key, out: &mut Touched) {
    let Some(mesh) = picture.mesh(&key.mesh) else { return };
    for destination in mesh.external_services.keys().chain(mesh.mesh_external_services.keys()) {
        if external::secrets(mesh, destination).contains(&key.name) {
            out.units.extend([Unit::External(destination.clone()), Unit::Entry(destination.clone())]);
        }
    }
}

/// Any policy of the mesh may refer to it.
fn collector(picture: &Picture, key: &Key, out: &mut Touched) {
    let Some(mesh) = picture.mesh(&key.mesh) else { return };
    for policy in mesh.policies.values().filter(|it| policies::refers_to_collectors(it)) {
        of_policies::policy(picture, policy.key(), out);
    }
}

fn ingress(picture: &Picture, key: &Key, out: &mut Touched) {
    if !picture.ingresses.contains_key(key) {
        return;
    }
    if picture.is_local(key) {
        out.proxies.insert(key.clone());
        out.units.insert(Unit::Gateway(key.clone()));
        return;
    }
    out.units.insert(Unit::ZoneRoute(key.zone.clone()));
    out.groups.egresses = true;
    for mesh in picture.meshes.values() {
        let far = mesh.services.keys().filter(|it| it.zone == key.zone);
        for service in far {
            out.units.extend([Unit::Endpoints(service.clone()), Unit::Service(service.clone())]);
            out.units.extend(views_of(mesh, service));
        }
        let pinned =
            mesh.external_services.iter().filter(|(_, it)| it.spec.zone() == Some(key.zone.as_str()));
        out.units.extend(pinned.map(|(key, _)| Unit::External(key.clone())));
    }
}

/// Sidecars that dial outwards themselves know the addresses that they must not dial.
fn unenforced_sidecars(picture: &Picture, out: &mut Touched) {
    for mesh in picture.meshes.values().filter(|mesh| !mesh.egress_enforced()) {
        out.units.extend(mesh.dataplanes.keys().cloned().map(Unit::Dataplane));
    }
}

fn egress(picture: &Picture, key: &Key, out: &mut Touched) {
    if !picture.is_local(key) {
        return;
    }
    out.proxies.insert(key.clone());
    out.units.extend([Unit::Egresses, Unit::Gateway(key.clone())]);
    for mesh in picture.meshes.values().filter(|mesh| mesh.egress_enforced()) {
        for service in mesh.services.keys().filter(|it| !picture.is_local(it)) {
            out.units.extend([Unit::Endpoints(service.clone()), Unit::Service(service.clone())]);
            out.units.extend(views_of(mesh, service));
        }
        let destinations = mesh.external_services.keys().chain(mesh.mesh_external_services.keys());
        out.units.extend(destinations.cloned().map(Unit::External));
        let asking = mesh.dataplanes.keys().filter(|_| !mesh.passthroughs.is_empty() || passes_all(mesh));
        out.units.extend(asking.cloned().map(Unit::Dataplane));
    }
}

fn passes_all(mesh: &MeshPicture) -> bool {
    mesh.spec().is_some_and(Mesh::passthrough)
}
