//! What policies say of calls that go out, for all sidecars with one selection: of the whole mesh once for each protocol,
//! and of a destination only where that differs. Where calls go is in `routed`, what routes name in `backends`.

pub(super) mod backends;
mod routed;

use super::kinds::{OUTGOING, Outgoing, PROTOCOLS, is_patch};
use super::proxy_patch::{self, Patches, Place};
use super::{Collectors, Selection, blame};
use crate::compile::services::{self, service_of};
use crate::compile::several_zones::{Legacy, agreed};
use crate::compile::{Compiled, Inputs, external, multi_zone, protocol};
use crate::picture::{MeshPicture, Picture};
use meridian_core::kinds::mesh_external_service::MeshExternalService;
use meridian_core::kinds::mesh_http_route::MeshHttpRoute;
use meridian_core::kinds::mesh_multi_zone_service::MeshMultiZoneService;
use meridian_core::kinds::mesh_service::MeshService;
use meridian_core::kinds::mesh_tcp_route::MeshTcpRoute;
use meridian_core::{Key, Kind, TargetKind, labels};
use meridian_policy::{Destinations, Merged, Parsed, Policy, ResourceRules, Routes, sort, to_conf};
use meridian_proxy_config::{DestinationPolicies, Protocol, policies_for_others, policies_of_callers, types};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What holds for the calls of all sidecars with a selection.
pub(crate) fn outgoing(inputs: Inputs<'_>, mesh_name: &str, selection: &Selection, out: &mut Compiled) {
    let Some(mesh) = inputs.picture.mesh(mesh_name).filter(|mesh| mesh.spec().is_some()) else { return };
    let Some(blamed) = selection.keys().next() else { return };
    let said = Said::new(mesh, mesh_name, selection, out);
    said.routes(inputs, mesh, blamed, out);
    let mut named = said.named(inputs.picture, mesh, |key, tag| said.names(key, tag));
    if !mesh.egress_enforced() {
        named.extend(said.externals(mesh));
    }
    said.say(blamed, "", named, out);
}

/// What holds, at the egress, for calls that leave the mesh, of all sidecars with a selection.
pub(crate) fn leaving(inputs: Inputs<'_>, mesh_name: &str, selection: &Selection, out: &mut Compiled) {
    let Some(mesh) = inputs.picture.mesh(mesh_name).filter(|mesh| mesh.egress_enforced()) else { return };
    let Some(blamed) = selection.keys().next() else { return };
    let said = Said::new(mesh, mesh_name, selection, out);
    said.say(blamed, &selection.name(), said.externals(mesh), out);
}

/// A destination of which policies may say something of its own.
struct Named<'a> {
    destination: String,
    protocol: Protocol,
    key: &'a Key,
    /// That is called; none of an ExternalService, which has no other.
    port: Option<u32>,
    /// Of the port.
    section: String,
    /// The `kuma.io/service` that it is a view of.
    tag: Option<&'a str>,
}

/// What the policies of one selection say, kind by kind.
struct Said<'a> {
    mesh: &'a str,
    kinds: Vec<(&'static Outgoing, SaidByKind)>,
    http: SaidByKind,
    tcp: SaidByKind,
    /// `None`: they can't be read.
    patches: Option<Patches>,
    /// Values of `kuma.io/service` that these name.
    patched: BTreeSet<String>,
    collectors: Arc<Collectors>,
}

struct SaidByKind {
    /// From weak to strong.
    policies: Vec<Arc<Policy>>,
    by_resource: ResourceRules,
    /// Values of `kuma.io/service` that they name.
    tags: BTreeSet<String>,
}

impl<'a> Said<'a> {
    fn new(mesh: &MeshPicture, name: &'a str, selection: &Selection, out: &mut Compiled) -> Self {
        let selected: Vec<&Arc<Policy>> = selection.keys().filter_map(|key| mesh.policies.get(key)).collect();
        let destinations = destinations(mesh, &selected);
        let of_kind = |kind| SaidByKind::new(kind, &selected, &destinations);
        let kinds = OUTGOING.iter().map(|of| (of, of_kind(of.kind))).collect();
        let patching = selected.iter().filter(|policy| is_patch(policy));
        let patching = sort(patching.map(|policy| Arc::clone(policy)).collect());
        let patches = Patches::read(&patching);
        let patches =
            patches.inspect_err(|error| blame(patching.iter().map(|policy| policy.key()), error, out)).ok();
        let patched = patches.as_ref().map(Patches::tags).unwrap_or_default();
        let (http, tcp) = (of_kind(MeshHttpRoute::KIND), of_kind(MeshTcpRoute::KIND));
        Self { mesh: name, kinds, http, tcp, patches, patched, collectors: mesh.collectors.clone() }
    }

    /// What holds for the whole mesh, and where what holds for one of `named` differs. `set`: who is meant, at an egress.
    fn say(&self, blamed: &Key, set: &str, named: Vec<Named<'_>>, out: &mut Compiled) {
        let others = PROTOCOLS.map(|protocol| (protocol, self.of_mesh(protocol, out)));
        for (protocol, policies) in &others {
            if *policies != DestinationPolicies::default() {
                let name = policies_of_callers(set, policies_for_others(*protocol));
                out.push(blamed, types::POLICIES, &name, policies);
            }
        }
        let differs = |protocol: Protocol, policies: &DestinationPolicies| {
            others.iter().all(|(of, others)| *of != protocol || others != policies)
        };
        for named in named {
            let policies = self.of_port(&named, out);
            if differs(named.protocol, &policies) {
                let name = policies_of_callers(set, &named.destination);
                out.push(blamed, types::POLICIES, &name, &policies);
            }
        }
    }

    /// Entries that are named: MeshExternalServices, and ExternalServices by their `kuma.io/service`.
    fn externals<'b>(&self, mesh: &'b MeshPicture) -> Vec<Named<'b>> {
        let named = |key: &Key| self.kinds.iter().any(|(_, kind)| kind.by_resource.names(key));
        let extsvc = outside(mesh, named);
        let tagged = |tag: &str| self.kinds.iter().any(|(_, kind)| kind.tags.contains(tag));
        let services = mesh.external_services.values().filter(|it| it.spec.service().is_some_and(tagged));
        let services = services.map(|it| Named {
            destination: external::entry_key(&it.resource.key),
            protocol: protocol(it.spec.protocol()),
            key: &it.resource.key,
            port: None,
            section: String::new(),
            tag: it.spec.service(),
        });
        extsvc.chain(services).collect()
    }

    /// Ports of the services that are named, and of the `kuma.io/service`s that MeshServices are views of: there the zone's
    /// own service decides before others'.
    fn named<'b>(
        &self,
        picture: &'b Picture,
        mesh: &'b MeshPicture,
        is_named: impl Fn(&Key, Option<&str>) -> bool,
    ) -> Vec<Named<'b>> {
        let is_service_named = |it: &&Parsed<MeshService>| is_named(&it.resource.key, service_of(&it.spec));
        let services: Vec<&Parsed<MeshService>> =
            mesh.services.values().map(AsRef::as_ref).filter(is_service_named).collect();
        let own = services.iter().flat_map(|service| {
            service.spec.ports.iter().map(|port| Named {
                destination: services::destination_name(service, port.port),
                protocol: protocol(port.protocol()),
                key: &service.resource.key,
                port: Some(port.port),
                section: port.section_name(),
                tag: service_of(&service.spec),
            })
        });
        let tags: BTreeSet<&str> = services.iter().filter_map(|service| service_of(&service.spec)).collect();
        let legacy = tags.into_iter().flat_map(|tag| self.legacy(picture, mesh, tag));
        let many = mesh.multi_zone_services.values().map(AsRef::as_ref);
        let many = many.filter(|it| is_named(&it.resource.key, None));
        let many = many.flat_map(|service| many_zones(picture, mesh, service));
        own.chain(legacy).chain(many).collect()
    }

    fn legacy<'b>(&self, picture: &Picture, mesh: &'b MeshPicture, tag: &'b str) -> Vec<Named<'b>> {
        let ports = Legacy::of(picture, mesh, tag).ports.into_values();
        let named = ports.filter_map(|offers| {
            let (service, port) = offers.first()?;
            Some(Named {
                destination: services::legacy_name(self.mesh, tag, port.port),
                protocol: agreed(picture, &offers),
                key: &service.resource.key,
                port: Some(port.port),
                section: port.section_name(),
                tag: service_of(&service.spec),
            })
        });
        named.collect()
    }

    /// Whether something is said of a destination by its name.
    fn names(&self, key: &Key, tag: Option<&str>) -> bool {
        let patched = tag.is_some_and(|tag| self.patched.contains(tag));
        patched || self.kinds.iter().any(|(_, kind)| kind.names(key, tag))
    }

    fn of_mesh(&self, protocol: Protocol, out: &mut Compiled) -> DestinationPolicies {
        let mut policies = DestinationPolicies::default();
        for (of, kind) in &self.kinds {
            let merged = kind.by_resource.of_mesh(self.mesh).map(|rule| &rule.merged);
            of.apply_merged(merged, protocol, &self.collectors, &mut policies, out);
        }
        self.patch(protocol, None, &mut policies);
        policies
    }

    fn of_port(&self, named: &Named<'_>, out: &mut Compiled) -> DestinationPolicies {
        let mut policies = DestinationPolicies::default();
        for (of, kind) in &self.kinds {
            let merged = kind.of_port(named);
            of.apply_merged(merged.as_ref(), named.protocol, &self.collectors, &mut policies, out);
        }
        self.patch(named.protocol, named.tag, &mut policies);
        policies
    }

    /// `service`: the value of `kuma.io/service`, if that is known.
    fn patch(&self, protocol: Protocol, service: Option<&str>, policies: &mut DestinationPolicies) {
        let tags = service.map(|tag| BTreeMap::from([(labels::SERVICE.to_owned(), tag.to_owned())]));
        let cluster = service.map(str::to_owned);
        let place = Place { origin: "outbound", protocol, listener: None, tags: tags.as_ref(), cluster };
        match &self.patches {
            Some(patches) => patches.destination(&place, policies),
            None if protocol.is_http() => policies.scripts = proxy_patch::closed(),
            None => {}
        }
    }
}

impl SaidByKind {
    fn new(kind: Kind, selected: &[&Arc<Policy>], destinations: &Destinations) -> Self {
        let own = selected.iter().filter(|policy| policy.key().kind == kind);
        let policies = sort(own.map(|policy| Arc::clone(policy)).collect());
        let by_resource = ResourceRules::new(&policies, destinations);
        let tags = policies.iter().flat_map(|policy| policy.named_tags().map(str::to_owned)).collect();
        Self { policies, by_resource, tags }
    }

    /// Whether something is said of a destination by its name, or by the `kuma.io/service` that it is a view of.
    fn names(&self, key: &Key, tag: Option<&str>) -> bool {
        self.by_resource.names(key) || tag.is_some_and(|tag| self.tags.contains(tag))
    }

    fn of_port(&self, named: &Named<'_>) -> Option<Merged> {
        self.by_tag(named).or_else(|| self.by_resource(named).cloned())
    }

    fn by_resource(&self, named: &Named<'_>) -> Option<&Merged> {
        self.by_resource.conf(named.key, &named.section, None).map(|rule| &rule.merged)
    }

    /// What is said of the service by its `kuma.io/service`, unless a policy names the resource itself.
    fn by_tag(&self, named: &Named<'_>) -> Option<Merged> {
        let tag = named.tag.filter(|tag| self.tags.contains(*tag))?;
        if self.by_resource.names_port(named.key, &named.section) {
            return None;
        }
        to_conf(&self.policies, &Routes::default(), tag, None)
    }
}

impl Named<'_> {
    /// Whether an egress holds calls to it to what policies say.
    fn leaves(&self) -> bool {
        self.key.kind == MeshExternalService::KIND
    }
}

/// MeshExternalServices.
fn outside<'a>(mesh: &'a MeshPicture, is_named: impl Fn(&Key) -> bool) -> impl Iterator<Item = Named<'a>> {
    let named = mesh.mesh_external_services.values().filter(move |it| is_named(&it.resource.key));
    named.map(|it| Named {
        destination: external::entry_key(&it.resource.key),
        protocol: external::extsvc_protocol(&it.spec.match_.protocol),
        key: &it.resource.key,
        port: Some(it.spec.match_.port),
        section: String::new(),
        tag: None,
    })
}

/// Ports of a MeshMultiZoneService. What is said of the MeshServices behind does not hold for these, nor the other way
/// round: a policy names what a client calls.
fn many_zones<'a>(
    picture: &'a Picture,
    mesh: &'a MeshPicture,
    service: &'a Parsed<MeshMultiZoneService>,
) -> impl Iterator<Item = Named<'a>> {
    let taken = multi_zone::taken(picture, mesh, service);
    service.spec.ports.iter().map(move |port| Named {
        destination: multi_zone::destination_name(service, port.port),
        protocol: multi_zone::port_protocol(picture, &taken, port),
        key: &service.resource.key,
        port: Some(port.port),
        section: port.section_name(),
        tag: None,
    })
}

/// The resources that policies may name; if they name none, none is looked at.
fn destinations(mesh: &MeshPicture, policies: &[&Arc<Policy>]) -> Destinations {
    let mut destinations = Destinations::default();
    mesh.mesh.iter().for_each(|mesh| destinations.insert(Arc::new(mesh.resource.clone())));
    let named: BTreeSet<&TargetKind> = policies.iter().flat_map(|policy| policy.named_kinds()).collect();
    if named.contains(&TargetKind::MeshService) {
        mesh.services.values().for_each(|it| destinations.insert(Arc::new(it.resource.clone())));
    }
    if named.contains(&TargetKind::MeshExternalService) {
        mesh.mesh_external_services
            .values()
            .for_each(|it| destinations.insert(Arc::new(it.resource.clone())));
    }
    if named.contains(&TargetKind::MeshMultiZoneService) {
        mesh.multi_zone_services.values().for_each(|it| destinations.insert(Arc::new(it.resource.clone())));
    }
    if named.contains(&TargetKind::MeshHttpRoute) {
        let routes = mesh.policies.values().filter(|policy| Routes::is_route(policy));
        routes.for_each(|route| destinations.insert(Arc::clone(&route.resource)));
    }
    destinations
}
