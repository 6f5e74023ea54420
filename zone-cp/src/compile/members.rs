//! Which units each proxy holds.
//!
//! Most of a sidecar's units are those of its whole mesh. Sidecars with the same reach form a [`Group`], whose units are
//! worked out once; beside them each has few of its own.

use super::Unit;
use super::proxy::{referenced_multi_zone, referenced_service, refers};
use super::services::service_of;
use super::several_zones::Legacy;
use super::{external, multi_zone, policies};
use crate::picture::{MeshPicture, Picture};
use meridian_core::kinds::dataplane::{Dataplane, ReachableBackendRef, TransparentProxying};
use meridian_core::kinds::external_service::ExternalService;
use meridian_core::kinds::mesh_external_service::MeshExternalService;
use meridian_core::kinds::mesh_multi_zone_service::MeshMultiZoneService;
use meridian_core::kinds::mesh_service::MeshService;
use meridian_core::kinds::zone_ingress::ZoneIngress;
use meridian_core::{Key, Kind, Resource, labels};
use meridian_policy::{Parsed, refers_to};
use std::collections::{BTreeMap, BTreeSet};

/// Proxies that share units.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Group {
    /// Sidecars of a mesh with the same reach.
    Sidecars { mesh: String, reach: Reach },
    /// All ingresses of the zone.
    Ingresses,
    /// All egresses of the zone.
    Egresses,
}

/// Which services a sidecar learns of; None: all of the mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Reach {
    backends: Option<Vec<BackendRef>>,
    services: Option<Vec<String>>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct BackendRef {
    kind: String,
    name: String,
    labels: BTreeMap<String, String>,
}

/// The group of a proxy of this zone; None if it is not there (any more).
pub(crate) fn group_of(picture: &Picture, proxy: &Key) -> Option<Group> {
    if !picture.is_local(proxy) {
        return None;
    }
    if proxy.kind == Dataplane::KIND {
        let dataplane = picture.mesh(&proxy.mesh)?.dataplane(proxy)?;
        let transparent = dataplane.spec.networking.as_ref()?.transparent_proxying.as_ref();
        return Some(Group::Sidecars { mesh: proxy.mesh.clone(), reach: reach_of(transparent) });
    }
    if proxy.kind == ZoneIngress::KIND {
        return picture.ingresses.contains_key(proxy).then_some(Group::Ingresses);
    }
    picture.egresses.contains_key(proxy).then_some(Group::Egresses)
}

fn reach_of(transparent: Option<&TransparentProxying>) -> Reach {
    let Some(transparent) = transparent else { return Reach::default() };
    let backend = |it: &ReachableBackendRef| BackendRef {
        kind: it.kind.clone(),
        name: it.name.clone(),
        labels: it.labels.clone(),
    };
    let services = &transparent.reachable_services;
    Reach {
        backends: transparent.reachable_backends.as_ref().map(|it| it.refs.iter().map(backend).collect()),
        services: (!services.is_empty()).then(|| services.clone()),
    }
}

/// Whether a sidecar does not learn of all services of its mesh.
pub(crate) fn reaches_less(dataplane: &Parsed<Dataplane>) -> bool {
    let networking = dataplane.spec.networking.as_ref();
    reach_of(networking.and_then(|it| it.transparent_proxying.as_ref())) != Reach::default()
}

/// Units that all of a group hold.
pub(crate) fn group_members(picture: &Picture, group: &Group) -> BTreeSet<Unit> {
    match group {
        Group::Sidecars { mesh, reach } => {
            picture.mesh(mesh).map(|it| sidecars(picture, mesh, it, reach)).unwrap_or_default()
        }
        Group::Ingresses => ingresses(picture),
        Group::Egresses => egresses(picture),
    }
}

/// Units that only this proxy holds, or that it holds whatever its group's reach is.
pub(crate) fn own_members(picture: &Picture, proxy: &Key) -> BTreeSet<Unit> {
    if proxy.kind != Dataplane::KIND {
        return BTreeSet::from([Unit::Gateway(proxy.clone())]);
    }
    let mut units = BTreeSet::from([Unit::Dataplane(proxy.clone())]);
    let Some(mesh) = picture.mesh(&proxy.mesh) else { return units };
    let Some(dataplane) = mesh.dataplane(proxy) else { return units };
    let selection = policies::selection(mesh, dataplane);
    // Who reaches everything holds what routes lead to by its group.
    if reaches_less(dataplane) {
        units.extend(policies::held(picture, mesh, &selection).into_iter().flat_map(|held| match held {
            policies::Held::Service(key) => BTreeSet::from(service_units(&key)),
            policies::Held::Legacy(tag) => legacy_units(picture, &proxy.mesh, mesh, &tag),
            policies::Held::MultiZone(key) => {
                let service = mesh.multi_zone_services.get(&key);
                service.into_iter().flat_map(|it| multi_zone::units(picture, mesh, it)).collect()
            }
            policies::Held::External(key) => BTreeSet::from([Unit::External(key)]),
        }));
    }
    units.insert(Unit::Policies { mesh: proxy.mesh.clone(), selection });
    for outbound in dataplane.spec.networking.iter().flat_map(|it| &it.outbound) {
        if let Some(service) = outbound.tags.get(labels::SERVICE) {
            units.extend(legacy_units(picture, &proxy.mesh, mesh, service));
            let externals =
                mesh.external_services.iter().filter(|(_, it)| it.spec.service() == Some(service));
            units.extend(externals.map(|(key, _)| Unit::External(key.clone())));
        }
        let Some(reference) = &outbound.backend_ref else { continue };
        if let Some(service) = referenced_service(picture, mesh, reference) {
            units.extend(service_units(&service.resource.key));
        }
        if let Some(service) = referenced_multi_zone(mesh, reference) {
            units.extend(multi_zone::units(picture, mesh, service));
        }
        let external = super::proxy::referenced_external(mesh, reference);
        units.extend(external.map(|key| Unit::External(key.clone())));
    }
    units
}

fn sidecars(picture: &Picture, name: &str, mesh: &MeshPicture, reach: &Reach) -> BTreeSet<Unit> {
    let mut units = BTreeSet::from([Unit::Bundle(name.to_owned())]);
    if mesh.egress_enforced() {
        units.insert(Unit::Egresses);
    }
    let services = mesh.services.values().filter(|it| reach.has(MeshService::KIND, &it.resource));
    units.extend(services.flat_map(|it| service_units(&it.resource.key)));
    let many =
        mesh.multi_zone_services.values().filter(|it| reach.has(MeshMultiZoneService::KIND, &it.resource));
    units.extend(many.flat_map(|it| multi_zone::units(picture, mesh, it)));
    let external =
        mesh.mesh_external_services.values().filter(|it| reach.has(MeshExternalService::KIND, &it.resource));
    units.extend(external.map(|it| Unit::External(it.resource.key.clone())));
    let named = |tag: Option<&str>| {
        reach.services.as_ref().is_none_or(|all| tag.is_some_and(|tag| all.iter().any(|it| it == tag)))
    };
    let services = mesh.external_services.values().filter(|it| named(it.spec.service()));
    units.extend(services.map(|it| Unit::External(it.resource.key.clone())));
    if super::services::has_legacy_names(mesh) {
        let known = |tag: &&String| mesh.services_by_tag.contains_key(*tag);
        let tags: BTreeSet<&String> = match &reach.services {
            Some(listed) => listed.iter().filter(known).collect(),
            None => mesh.services_by_tag.keys().collect(),
        };
        units.extend(tags.into_iter().flat_map(|tag| legacy_units(picture, name, mesh, tag)));
    }
    units
}

/// A MeshService as a reach may mean it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Reached {
    key: Key,
    labels: BTreeMap<String, String>,
    tag: Option<String>,
}

impl Reached {
    pub(crate) fn of(service: &Parsed<MeshService>) -> Self {
        let Resource { key, labels, .. } = &service.resource;
        let tag = service_of(&service.spec).map(str::to_owned);
        Self { key: key.clone(), labels: labels.clone(), tag }
    }

    /// Whether the units of sidecars with this reach may depend on the service: named by itself, by its `kuma.io/service`, or as
    /// one of those behind a MeshMultiZoneService.
    pub(crate) fn is_in(&self, mesh: &str, reach: &Reach) -> bool {
        let named = |it: &BackendRef| {
            it.kind == MeshMultiZoneService::KIND.as_str()
                || it.kind == MeshService::KIND.as_str()
                    && refers_to(&self.key, &self.labels, &it.name, &it.labels)
        };
        let tagged = |all: &Vec<String>| self.tag.as_ref().is_some_and(|tag| all.contains(tag));
        self.key.mesh == mesh
            && (reach.backends.as_ref().is_none_or(|all| all.iter().any(named))
                || reach.services.as_ref().is_none_or(tagged))
    }
}

impl Reach {
    fn has(&self, kind: Kind, resource: &Resource) -> bool {
        self.backends.as_ref().is_none_or(|all| {
            all.iter().any(|it| it.kind == kind.as_str() && refers(resource, &it.name, &it.labels))
        })
    }
}

fn service_units(key: &Key) -> [Unit; 2] {
    [Unit::Service(key.clone()), Unit::Endpoints(key.clone())]
}

/// The destinations of a `kuma.io/service`, and all endpoints that they name.
fn legacy_units(picture: &Picture, name: &str, mesh: &MeshPicture, service: &str) -> BTreeSet<Unit> {
    let taken = Legacy::of(picture, mesh, service).taken.services.into_iter();
    let endpoints = taken.map(|it| Unit::Endpoints(it.resource.key.clone()));
    let legacy = Unit::Legacy { mesh: name.to_owned(), service: service.to_owned() };
    endpoints.chain([legacy]).collect()
}

fn ingresses(picture: &Picture) -> BTreeSet<Unit> {
    let mut units = BTreeSet::new();
    for mesh in picture.meshes.values().filter(|mesh| mesh.mtls()) {
        for key in mesh.services.keys().filter(|key| picture.is_local(key)) {
            units.extend([Unit::IngressRoute(key.clone()), Unit::Endpoints(key.clone())]);
        }
        for key in mesh.external_services.keys().filter(|key| external::pinned_here(picture, key).is_some()) {
            units.extend([Unit::IngressExternal(key.clone()), Unit::Egresses]);
        }
    }
    units
}

fn egresses(picture: &Picture) -> BTreeSet<Unit> {
    let mut units: BTreeSet<Unit> = picture.remote_zones().into_iter().map(Unit::ZoneRoute).collect();
    for (name, mesh) in picture.meshes.iter().filter(|(_, mesh)| mesh.mtls()) {
        units.insert(Unit::Bundle(name.clone()));
        if !mesh.egress_enforced() {
            continue;
        }
        let destinations = mesh.external_services.keys().chain(mesh.mesh_external_services.keys());
        let leaving = destinations.filter(|key| external::leaves_here(picture, key));
        units.extend(leaving.map(|key| Unit::Entry(key.clone())));
        units.extend(mesh.dataplanes.keys().map(|key| Unit::Caller(key.clone())));
        units.insert(Unit::PassthroughEntries(name.clone()));
        let selections: BTreeSet<_> =
            mesh.dataplanes.values().map(|it| policies::selection(mesh, it).leaving()).collect();
        units.extend(
            selections
                .into_iter()
                .filter(|selection| !selection.is_empty())
                .map(|selection| Unit::EntryPolicies { mesh: name.clone(), selection }),
        );
    }
    units
}

/// Kinds of destinations outside of the mesh.
pub(crate) fn is_external(kind: Kind) -> bool {
    kind == ExternalService::KIND || kind == MeshExternalService::KIND
}
