//! What routes send to: references to services, resolved to destinations.
//!
//! A name means the MeshService of the policy's own zone, as in Kuma; else the `kuma.io/service` of that name, in all zones;
//! else any MeshService of that name. Labels mean a MeshService. A MeshMultiZoneService and a MeshExternalService are meant
//! by name or labels. A MeshServiceSubset means the instances of a `kuma.io/service`, in all zones, that have its tags: those
//! of other zones are known here by their service and their zone alone. Of several the zone's own comes first, then the order of
//! keys decides: Kuma takes the oldest, which zones don't know of each other.

use super::Named;
use crate::compile::proxy::refers;
use crate::compile::services::{destination_name, legacy_name, service_of};
use crate::compile::several_zones::Legacy;
use crate::compile::{external, multi_zone, protocol};
use crate::picture::{MeshPicture, Picture, display_name};
use meridian_core::kinds::backend_ref::BackendRef;
use meridian_core::kinds::mesh_external_service::MeshExternalService;
use meridian_core::kinds::mesh_multi_zone_service::MeshMultiZoneService;
use meridian_core::kinds::mesh_service::{MeshService, Port};
use meridian_core::{Key, Resource, TargetKind};
use meridian_policy::{Parsed, Policy};
use meridian_proxy_config::{BackendTarget, Protocol, RouteBackend};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// What a reference means.
#[derive(Clone, Copy)]
enum Backend<'a> {
    Service(&'a Parsed<MeshService>),
    Legacy(&'a str),
    MultiZone(&'a Parsed<MeshMultiZoneService>),
    External(&'a Parsed<MeshExternalService>),
}

/// What a sidecar must hold for the sake of its routes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Held {
    Service(Key),
    Legacy(String),
    MultiZone(Key),
    External(Key),
}

/// Resolves the references of one route.
#[derive(Clone, Copy)]
pub(super) struct Resolver<'a> {
    pub(super) picture: &'a Picture,
    pub(super) mesh: &'a MeshPicture,
    pub(super) mesh_name: &'a str,
    /// The route that they stand in.
    pub(super) policy: &'a Resource,
    /// What is called: a reference without a port means the same one.
    pub(super) named: &'a Named<'a>,
}

impl Resolver<'_> {
    /// Backends with a weight; those that are not there keep theirs.
    pub(super) fn all(&self, references: &[BackendRef], only_http: bool) -> Vec<RouteBackend> {
        let weighed = references.iter().map(|it| (it, it.weight.unwrap_or(1)));
        let backend = |(reference, weight)| RouteBackend { weight, to: self.one(reference, only_http) };
        weighed.filter(|(_, weight)| *weight > 0).map(backend).collect()
    }

    pub(super) fn one(&self, reference: &BackendRef, only_http: bool) -> BackendTarget {
        match self.destination(reference) {
            Ok((_, protocol)) if only_http && !protocol.is_http() => {
                BackendTarget::Missing(format!("{} does not speak HTTP", said(reference)))
            }
            Ok((target, _)) => target,
            Err(reason) => BackendTarget::Missing(reason),
        }
    }

    fn destination(&self, reference: &BackendRef) -> Result<(BackendTarget, Protocol), String> {
        let found = find(self.picture, self.mesh, self.policy, reference)?;
        let ports: BTreeMap<u32, String> = match found {
            Backend::Service(service) => sections(&service.spec.ports).collect(),
            Backend::Legacy(tag) => {
                let ports = Legacy::of(self.picture, self.mesh, tag).ports.into_iter();
                let first =
                    ports.filter_map(|(number, offers)| Some((number, offers.first()?.1.section_name())));
                first.collect()
            }
            Backend::MultiZone(service) => {
                service.spec.ports.iter().map(|port| (port.port, port.section_name())).collect()
            }
            Backend::External(service) => BTreeMap::from([(service.spec.match_.port, String::new())]),
        };
        let number =
            self.port(reference, &ports).ok_or_else(|| format!("{} has no such port", said(reference)))?;
        let (target, spoken) = self.at_port(found, number);
        Ok((among(target, reference), spoken))
    }

    fn at_port(&self, backend: Backend<'_>, number: u32) -> (BackendTarget, Protocol) {
        let (name, spoken) = match backend {
            Backend::External(service) => {
                let target = BackendTarget::External(external::entry_key(&service.resource.key));
                return (target, external::extsvc_protocol(&service.spec.match_.protocol));
            }
            Backend::Service(service) => {
                let port = service.spec.ports.iter().find(|port| port.port == number);
                (destination_name(service, number), port.map(|port| protocol(port.protocol())))
            }
            Backend::Legacy(tag) => {
                let spoken = Legacy::of(self.picture, self.mesh, tag).protocol(self.picture, number);
                (legacy_name(self.mesh_name, tag, number), spoken)
            }
            Backend::MultiZone(service) => {
                let port = service.spec.ports.iter().find(|port| port.port == number);
                let taken = multi_zone::taken(self.picture, self.mesh, service);
                let spoken = port.map(|port| multi_zone::port_protocol(self.picture, &taken, port));
                (multi_zone::destination_name(service, number), spoken)
            }
        };
        (BackendTarget::Destination(name), spoken.unwrap_or(Protocol::Tcp))
    }

    /// The port that is named; else the one that is called, or the lowest.
    fn port(&self, reference: &BackendRef, ports: &BTreeMap<u32, String>) -> Option<u32> {
        if let Some(wanted) = &reference.section_name {
            return ports.iter().find(|(_, section)| *section == wanted).map(|(number, _)| *number);
        }
        let has = |number: &u32| ports.contains_key(number);
        match reference.port {
            Some(number) => Some(number).filter(has),
            None => self.named.port.filter(has).or_else(|| ports.keys().next().copied()),
        }
    }
}

/// Of a destination the instances that a reference means.
fn among(target: BackendTarget, reference: &BackendRef) -> BackendTarget {
    match (target, reference.tags.as_ref().filter(|tags| !tags.is_empty())) {
        (BackendTarget::Destination(destination), Some(tags)) => {
            BackendTarget::Subset { destination, tags: tags.clone() }
        }
        (target, _) => target,
    }
}

/// Numbers and names of ports.
fn sections(ports: &[Port]) -> impl Iterator<Item = (u32, String)> {
    ports.iter().map(|port| (port.port, port.section_name()))
}

fn said(reference: &BackendRef) -> String {
    let port = reference.port.map(|port| format!(" port {port}")).unwrap_or_default();
    match (&reference.name, &reference.labels) {
        (Some(name), _) => format!("{} {name}{port}", reference.kind),
        (None, Some(labels)) => format!("{} with labels {labels:?}{port}", reference.kind),
        (None, None) => format!("{}{port}", reference.kind),
    }
}

fn find<'a>(
    picture: &Picture,
    mesh: &'a MeshPicture,
    policy: &Resource,
    reference: &BackendRef,
) -> Result<Backend<'a>, String> {
    let missing = || format!("there is no {}", said(reference));
    match reference.kind {
        TargetKind::MeshService => {}
        TargetKind::MeshServiceSubset => {
            let mut tags = mesh.services.values().filter_map(|it| service_of(&it.spec));
            return tags
                .find(|tag| Some(*tag) == reference.name.as_deref())
                .map(Backend::Legacy)
                .ok_or_else(missing);
        }
        TargetKind::MeshMultiZoneService => {
            let (name, wanted) = (reference.name.as_deref(), reference.labels.clone().unwrap_or_default());
            let mut all = mesh.multi_zone_services.values().map(AsRef::as_ref);
            let is_it =
                |it: &&Parsed<MeshMultiZoneService>| refers(&it.resource, name.unwrap_or_default(), &wanted);
            return all.find(is_it).map(Backend::MultiZone).ok_or_else(missing);
        }
        TargetKind::MeshExternalService => {
            let (name, wanted) = (reference.name.as_deref(), reference.labels.clone().unwrap_or_default());
            let all = mesh.mesh_external_services.values().map(AsRef::as_ref);
            let found = all.filter(|it| refers(&it.resource, name.unwrap_or_default(), &wanted));
            // The policy's own zone first, or global's where the policy is global's.
            let order = |it: &&Parsed<MeshExternalService>| {
                (it.resource.key.zone != policy.key.zone, it.resource.key.clone())
            };
            return found.min_by_key(order).map(Backend::External).ok_or_else(missing);
        }
        _ => return Err(format!("routes can't send to a {} yet", reference.kind)),
    }
    let all = || mesh.services.values().map(AsRef::as_ref);
    let nearest = |found: Vec<&'a Parsed<MeshService>>| {
        let order =
            |it: &&Parsed<MeshService>| (!picture.is_local(&it.resource.key), it.resource.key.clone());
        found.into_iter().min_by_key(order).map(Backend::Service)
    };
    let Some(name) = reference.name.as_deref().filter(|name| !name.is_empty()) else {
        let labels = reference.labels.clone().unwrap_or_default();
        let labelled = all().filter(|it| refers(&it.resource, "", &labels)).collect();
        return nearest(labelled).ok_or_else(missing);
    };
    let zone = &policy.key.zone;
    let own = all().find(|it| it.resource.key.zone == *zone && display_name(&it.resource) == name);
    if let Some(own) = own {
        return Ok(Backend::Service(own));
    }
    if let Some(tag) = all().filter_map(|it| service_of(&it.spec)).find(|tag| *tag == name) {
        return Ok(Backend::Legacy(tag));
    }
    nearest(all().filter(|it| display_name(&it.resource) == name).collect()).ok_or_else(missing)
}

/// What a sidecar must hold for a route, whatever else it may reach.
pub(crate) fn held(picture: &Picture, mesh: &MeshPicture, route: &Policy) -> Vec<Held> {
    let found = references(route).into_iter().filter_map(|reference| {
        Some(match find(picture, mesh, &route.resource, &reference).ok()? {
            Backend::Service(service) => Held::Service(service.resource.key.clone()),
            Backend::Legacy(tag) => Held::Legacy(tag.to_owned()),
            Backend::MultiZone(service) => Held::MultiZone(service.resource.key.clone()),
            Backend::External(service) => Held::External(service.resource.key.clone()),
        })
    });
    found.collect()
}

/// All that a route sends to, mirrors included.
fn references(route: &Policy) -> Vec<BackendRef> {
    list(&route.resource.spec, "to")
        .iter()
        .flat_map(|to| list(to, "rules"))
        .flat_map(|rule| of_rule(&rule))
        .collect()
}

/// All that a rule sends to.
fn of_rule(rule: &Value) -> Vec<BackendRef> {
    let Some(conf) = rule.get("default") else { return Vec::new() };
    let mirrors = list(conf, "filters")
        .into_iter()
        .filter_map(|filter| Some(filter.get("requestMirror")?.get("backendRef")?.clone()));
    let all = list(conf, "backendRefs").into_iter().chain(mirrors);
    all.filter_map(|value| BackendRef::deserialize(value).ok()).collect()
}

fn list(value: &Value, name: &str) -> Vec<Value> {
    value.get(name).and_then(Value::as_array).cloned().unwrap_or_default()
}

/// Keys of the tags that routes tell instances apart by, in an item of `to` as policies are merged: with its rules, or its
/// only one.
pub(in crate::compile::policies) fn subset_tags(conf: &Value) -> Vec<String> {
    let rules = conf.get("rules").and_then(Value::as_array);
    let rules = rules.map_or(std::slice::from_ref(conf), Vec::as_slice);
    let tags = rules.iter().flat_map(of_rule).filter_map(|reference| reference.tags);
    tags.flat_map(BTreeMap::into_keys).collect()
}
