//! MeshServices from Dataplanes, and what the zone finds out about its MeshServices. Pure: the clock is an argument.
//!
//! One MeshService a `kuma.io/service`, its ports those of the Dataplanes' inbounds. Where Dataplanes contradict each
//! other the oldest wins, and the others are told so. A MeshService that a user wrote is the user's: only its status,
//! state and identities are kept. They are generated in every `meshServices.mode`, which decides names only: other
//! zones learn of a service by its MeshService and by nothing else.

use crate::compile::services::{is_closed, selected, selected_inbounds, takes_traffic, tls_ready};
use crate::picture::{MeshPicture, Picture};
use meridian_core::kinds::dataplane::Dataplane;
use meridian_core::kinds::mesh::MtlsMode;
use meridian_core::kinds::mesh_service::{
    DataplaneProxies, Identity, IdentityType, MeshService, Port, PortOrName, Selector, State, Status,
    TlsStatus, Vip,
};
use meridian_core::{Key, Resource, labels, names};
use meridian_policy::Parsed;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

/// Value of the label `kuma.io/managed-by` on what is generated.
pub(crate) const MANAGED_BY: &str = "meshservice-generator";
/// A generated MeshService outlives its last Dataplane by this: names and addresses survive a redeployment.
pub(crate) const GRACE: Duration = Duration::hours(1);

/// What is to be done about one MeshService.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) action: Action,
    /// Dataplanes that are not, or not wholly, behind the service, and why.
    pub(crate) conditions: BTreeSet<(Key, String)>,
    /// When to look again although nothing changed.
    pub(crate) wake: Option<OffsetDateTime>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Action {
    #[default]
    Nothing,
    Put(Box<Resource>),
    Delete(Key),
}

/// What the MeshService of this name in this zone should be.
pub(crate) fn generate(
    picture: &Picture,
    mesh_name: &str,
    name: &str,
    vip: Option<Ipv4Addr>,
    now: OffsetDateTime,
) -> Outcome {
    let key = Key::new(MeshService::KIND, mesh_name, &picture.zone, name);
    let Some(mesh) = picture.mesh(mesh_name) else { return Outcome::default() };
    let existing = mesh.service(&key);
    let offering: Vec<&Parsed<Dataplane>> = by_age(picture, mesh, name);
    let mut out = Outcome::default();
    let resource = match existing {
        Some(there) if !is_generated(&there.resource) => (there.resource.clone(), there.spec.clone()),
        Some(there) if offering.is_empty() => match abandoned(&there.resource, now) {
            Abandoned::Since { started, resource } => {
                out.wake = Some(started + GRACE);
                (*resource, there.spec.clone())
            }
            Abandoned::Over => {
                out.action = Action::Delete(key);
                return out;
            }
        },
        None if offering.is_empty() => return out,
        _ if !names::is_label_1035(name) => {
            let reason = format!("no MeshService for kuma.io/service {name:?}: it is no DNS label");
            out.conditions = offering.iter().map(|it| (it.resource.key.clone(), reason.clone())).collect();
            return out;
        }
        _ => {
            let (ports, conditions) = ports(name, &offering);
            out.conditions = conditions;
            let tags = BTreeMap::from([(labels::SERVICE.to_owned(), name.to_owned())]);
            let selector = Selector { dataplane_tags: Some(tags), ..Selector::default() };
            let mut labels = labels::computed(&key, &picture.zone, &BTreeMap::new());
            labels.insert(labels::MANAGED_BY.to_owned(), MANAGED_BY.to_owned());
            let spec = MeshService { selector, ports, ..MeshService::default() };
            (Resource::of(key.clone(), labels, &spec), spec)
        }
    };
    let (base, spec) = resource;
    let next = with_findings(picture, mesh, &base, spec, existing, vip);
    if existing.is_none_or(|there| there.resource != next) {
        out.action = Action::Put(Box::new(next));
    }
    out
}

pub(crate) fn is_generated(resource: &Resource) -> bool {
    resource.labels.get(labels::MANAGED_BY).is_some_and(|by| by == MANAGED_BY)
}

/// Dataplanes with that `kuma.io/service`, the oldest first.
fn by_age<'a>(picture: &Picture, mesh: &'a MeshPicture, service: &str) -> Vec<&'a Parsed<Dataplane>> {
    let keys = mesh.by_service.get(service).into_iter().flatten();
    let mut found: Vec<&Parsed<Dataplane>> = keys.filter_map(|key| mesh.dataplane(key)).collect();
    found.sort_by_key(|it| (picture.created.get(&it.resource.key).copied(), it.resource.key.clone()));
    found
}

/// Ports by number. A number or a name that an older Dataplane uses otherwise is a conflict.
fn ports(service: &str, offering: &[&Parsed<Dataplane>]) -> (Vec<Port>, BTreeSet<(Key, String)>) {
    let mut ports: BTreeMap<u32, Port> = BTreeMap::new();
    let mut numbers: BTreeMap<String, u32> = BTreeMap::new();
    let mut conditions = BTreeSet::new();
    for dataplane in offering {
        let inbounds = dataplane.spec.networking.iter().flat_map(|networking| &networking.inbound);
        for inbound in inbounds.filter(|inbound| inbound.service() == Some(service)) {
            let port = Port {
                name: Some(inbound.section_name()),
                port: inbound.port,
                target_port: Some(PortOrName::Port(inbound.port)),
                app_protocol: Some(inbound.declared_protocol().to_owned()),
            };
            let section = inbound.section_name();
            let conflict = match (ports.get(&inbound.port), numbers.get(&section)) {
                (Some(there), _) if *there != port => Some(format!(
                    "port {} of {service} is {} ({}) by an older Dataplane: this one's is not used",
                    inbound.port,
                    there.section_name(),
                    there.protocol()
                )),
                (None, Some(number)) => {
                    Some(format!("port name {section} of {service} is {number} by an older Dataplane"))
                }
                _ => None,
            };
            if let Some(reason) = conflict {
                conditions.insert((dataplane.resource.key.clone(), reason));
                continue;
            }
            numbers.insert(section, inbound.port);
            ports.insert(inbound.port, port);
        }
    }
    (ports.into_values().collect(), conditions)
}

enum Abandoned {
    Since { started: OffsetDateTime, resource: Box<Resource> },
    Over,
}

/// The label says since when no Dataplane offers it; the resource without one gets it now.
fn abandoned(resource: &Resource, now: OffsetDateTime) -> Abandoned {
    let label = resource.labels.get(labels::DELETION_GRACE_PERIOD_STARTED_AT);
    let started = label.and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok());
    match started {
        Some(started) if now >= started + GRACE => Abandoned::Over,
        Some(started) => Abandoned::Since { started, resource: Box::new(resource.clone()) },
        None => {
            let started = now.replace_nanosecond(0).unwrap_or(now);
            let mut resource = resource.clone();
            if let Ok(text) = started.format(&Rfc3339) {
                resource.labels.insert(labels::DELETION_GRACE_PERIOD_STARTED_AT.to_owned(), text);
            }
            Abandoned::Since { started, resource: Box::new(resource) }
        }
    }
}

/// The resource with what the zone has found out: identities, state, status.
fn with_findings(
    picture: &Picture,
    mesh: &MeshPicture,
    base: &Resource,
    mut spec: MeshService,
    existing: Option<&Parsed<MeshService>>,
    vip: Option<Ipv4Addr>,
) -> Resource {
    let mesh_name = &base.key.mesh;
    let was_ready = existing.is_some_and(tls_ready);
    let mode = mesh.spec().and_then(|spec| spec.mtls_backend()).map(|backend| backend.mode);
    let certified = match mode {
        None => false,
        Some(MtlsMode::Strict) => true,
        Some(MtlsMode::Permissive) => was_ready || is_closed(mesh, &spec),
    };
    let chosen = spec.clone();
    let behind: Vec<&Parsed<Dataplane>> = selected(mesh, &chosen).collect();
    let mut proxies = DataplaneProxies::default();
    let mut identities = BTreeSet::new();
    for dataplane in &behind {
        let facts = picture.facts(&dataplane.resource.key);
        proxies.total += 1;
        proxies.connected += u32::from(facts.is_some());
        let mut inbounds = selected_inbounds(&chosen, &dataplane.spec);
        proxies.healthy +=
            u32::from(inbounds.any(|inbound| takes_traffic(inbound, facts, certified.then_some(mesh_name))));
        let tags = selected_inbounds(&chosen, &dataplane.spec).filter_map(|inbound| inbound.service());
        identities
            .extend(tags.map(|tag| Identity { type_: IdentityType::ServiceTag, value: tag.to_owned() }));
    }
    if is_generated(base) && identities.is_empty() {
        identities.insert(Identity { type_: IdentityType::ServiceTag, value: base.key.name.clone() });
    }
    spec.state = if proxies.healthy > 0 { State::Available } else { State::Unavailable };
    spec.identities = identities.into_iter().collect();
    let all_certified = !behind.is_empty() && everyone_certified(picture, mesh, mesh_name);
    let ready = mode.is_some() && (was_ready || all_certified);
    let status = Status {
        // Nothing has a name that has no address.
        addresses: vip.map(|_| mesh.names.addresses(&base.key)).unwrap_or_default(),
        // Found out when somebody asks: other zones have no use for it.
        hostname_generators: Vec::new(),
        dataplane_proxies: Some(proxies),
        tls: Some(TlsStatus { status: if ready { "Ready" } else { "NotReady" }.to_owned() }),
        vips: vip.map(|ip| Vip { ip: ip.to_string() }).into_iter().collect(),
    };
    let mut next = Resource::of(base.key.clone(), base.labels.clone(), &spec);
    next.status = serde_json::to_value(status).ok();
    next
}

/// All of the mesh's sidecars in this zone have certificates: those behind the service, and those that call it. A
/// client without one could not follow the change to mTLS without failing requests.
pub(crate) fn everyone_certified(picture: &Picture, mesh: &MeshPicture, name: &str) -> bool {
    mesh.dataplanes.keys().all(|key| picture.facts(key).is_some_and(|facts| facts.certified.contains(name)))
}

#[cfg(test)]
mod tests;
