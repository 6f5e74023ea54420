//! Traffic policies, merged and turned into what proxies execute. One file a kind holds a pure function over the kind's
//! merged `Conf`; the tables here are all that the rest of the zone knows of kinds.
//!
//! What holds for calls that go out depends on who calls: on the policies that select the sidecar, its [`Selection`].
//! Sidecars with one selection share one unit. It says what holds for the whole mesh once for each protocol, and beside
//! that only what differs for destinations that a policy names: so a policy for the whole mesh is one small resource to
//! each sidecar, however many services there are. Rejected: policies inside of destinations, which would then be as many
//! as selections times services.

use super::services::{self, legacy_services, service_of};
use super::{Compiled, Inputs, external, multi_zone, protocol};
use crate::picture::{MeshPicture, Picture, display_name, subject};
use meridian_core::duration::PolicyDuration;
use meridian_core::kinds::dataplane::{Dataplane, Inbound};
use meridian_core::kinds::mesh_access_log::MeshAccessLog;
use meridian_core::kinds::mesh_circuit_breaker::MeshCircuitBreaker;
use meridian_core::kinds::mesh_fault_injection::MeshFaultInjection;
use meridian_core::kinds::mesh_health_check::MeshHealthCheck;
use meridian_core::kinds::mesh_http_route::MeshHttpRoute;
use meridian_core::kinds::mesh_load_balancing_strategy::MeshLoadBalancingStrategy;
use meridian_core::kinds::mesh_metric::MeshMetric;
use meridian_core::kinds::mesh_multi_zone_service::MeshMultiZoneService;
use meridian_core::kinds::mesh_proxy_patch::MeshProxyPatch;
use meridian_core::kinds::mesh_rate_limit::MeshRateLimit;
use meridian_core::kinds::mesh_request_filter::MeshRequestFilter;
use meridian_core::kinds::mesh_retry::MeshRetry;
use meridian_core::kinds::mesh_service::MeshService;
use meridian_core::kinds::mesh_tcp_route::MeshTcpRoute;
use meridian_core::kinds::mesh_timeout::MeshTimeout;
use meridian_core::kinds::mesh_tls::MeshTls;
use meridian_core::kinds::mesh_trace::MeshTrace;
use meridian_core::kinds::mesh_traffic_permission::RuleMatch;
use meridian_core::{Key, Kind, TargetKind, labels};
use meridian_policy::{
    Destinations, InboundRule, Merged, Parsed, Policy, ResourceRules, Routes, Section, entry_rules,
    inbound_confs, inbound_rules, proxy_conf, sort, to_conf,
};
use meridian_proxy_config::metrics::Metrics;
use meridian_proxy_config::{
    DestinationPolicies, EntryPolicies, InboundPolicies, Protocol, Trace, policies_for_others,
    policies_of_callers, types,
};
use proxy_patch::{Patches, Place};
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

mod access_log;
mod asked_tags;
mod backends;
mod callers;
mod circuit_breaker;
mod fault_injection;
mod health_check;
mod http_route;
mod load_balancing;
mod metric;
mod proxy_patch;
mod rate_limit;
mod request_filter;
mod retry;
mod routed;
mod timeout;
pub(crate) mod tls;
mod trace;

pub(crate) use backends::Held;

pub(crate) use asked_tags::AskedTags;

/// A kind whose `to` is executed.
struct Outgoing {
    kind: Kind,
    apply: fn(&Merged, Protocol, &mut DestinationPolicies) -> Result<(), serde_json::Error>,
}

/// A kind whose `from` and `rules` are executed.
struct Incoming {
    kind: Kind,
    apply: fn(&[InboundRule], &mut InboundPolicies) -> Result<(), serde_json::Error>,
    /// What holds if its policies can't be read: what guards must not be left out.
    unreadable: fn(&mut InboundPolicies),
}

const OUTGOING: &[Outgoing] = &[
    Outgoing {
        kind: MeshTimeout::KIND,
        apply: |merged, _, into| merged.conf().map(|conf| timeout::destination(&conf, into)),
    },
    Outgoing {
        kind: MeshRetry::KIND,
        apply: |merged, protocol, into| merged.conf().map(|conf| retry::destination(&conf, protocol, into)),
    },
    // Before MeshCircuitBreaker, whose panic threshold wins.
    Outgoing {
        kind: MeshHealthCheck::KIND,
        apply: |merged, protocol, into| {
            merged.conf().map(|conf| health_check::destination(&conf, protocol, into))
        },
    },
    Outgoing {
        kind: MeshCircuitBreaker::KIND,
        apply: |merged, _, into| merged.conf().map(|conf| circuit_breaker::destination(&conf, into)),
    },
    Outgoing {
        kind: MeshLoadBalancingStrategy::KIND,
        apply: |merged, _, into| merged.conf().map(|conf| load_balancing::destination(&conf, into)),
    },
    Outgoing {
        kind: MeshAccessLog::KIND,
        apply: |merged, _, into| merged.conf().map(|conf| access_log::destination(&conf, into)),
    },
];

const INCOMING: &[Incoming] = &[
    Incoming {
        kind: MeshTimeout::KIND,
        apply: |rules, into| by_caller(rules).map(|confs| timeout::inbound(&confs, into)),
        unreadable: |_| {},
    },
    Incoming {
        kind: MeshCircuitBreaker::KIND,
        apply: |rules, into| by_caller(rules).map(|confs| circuit_breaker::inbound(&confs, into)),
        unreadable: |_| {},
    },
    Incoming {
        kind: MeshRateLimit::KIND,
        apply: |rules, into| by_caller(rules).map(|confs| rate_limit::inbound(&confs, into)),
        unreadable: |_| {},
    },
    Incoming {
        kind: MeshFaultInjection::KIND,
        apply: |rules, into| each(rules).map(|confs| fault_injection::inbound(&confs, into)),
        unreadable: |_| {},
    },
    Incoming {
        kind: MeshRequestFilter::KIND,
        apply: |rules, into| {
            request_filter::inbound(&by_caller(rules)?, into);
            if let Some(policy) = strongest(rules) {
                request_filter::named(policy, into);
            }
            Ok(())
        },
        unreadable: request_filter::close,
    },
    Incoming {
        kind: MeshAccessLog::KIND,
        apply: |rules, into| each(rules).map(|confs| access_log::inbound(&confs, into)),
        unreadable: |_| {},
    },
];

/// Kinds that say where calls go.
const ROUTES: [Kind; 2] = [MeshHttpRoute::KIND, MeshTcpRoute::KIND];

/// Kinds whose `to` holds for calls that leave the mesh, too: executed where these leave it.
const LEAVING: [Kind; 3] = [MeshTimeout::KIND, MeshRetry::KIND, MeshCircuitBreaker::KIND];

/// Kinds that say something of a sidecar as a whole.
const WHOLE: [Kind; 2] = [MeshMetric::KIND, MeshTrace::KIND];

/// Kinds whose `rules` may name the server name of an entry: executed by egresses.
const OF_ENTRIES: [Kind; 2] = [MeshRateLimit::KIND, MeshFaultInjection::KIND];

/// Protocols of destinations, as policies tell them apart: what is TLS to an entry is TCP to these.
const PROTOCOLS: [Protocol; 4] = [Protocol::Http, Protocol::Http2, Protocol::Grpc, Protocol::Tcp];

/// Whether policies of a kind are turned into something here.
pub(crate) fn is_executed(kind: Kind) -> bool {
    let by_call = is_outgoing_kind(kind) || INCOMING.iter().any(|it| it.kind == kind);
    by_call || WHOLE.contains(&kind) || kind == MeshTls::KIND || kind == MeshProxyPatch::KIND
}

fn is_outgoing_kind(kind: Kind) -> bool {
    OUTGOING.iter().map(|it| it.kind).chain(ROUTES).any(|it| it == kind)
}

/// The policies on outgoing calls that select a sidecar.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Selection(Arc<BTreeSet<Key>>);

pub(crate) fn selection(mesh: &MeshPicture, dataplane: &Parsed<Dataplane>) -> Selection {
    let subject = subject(dataplane);
    let kinds = OUTGOING.iter().map(|of| of.kind).chain(ROUTES).chain([MeshProxyPatch::KIND]);
    let candidates = kinds.flat_map(|kind| mesh.policies.candidates(kind, &subject));
    let selecting = candidates.filter(|policy| selects_outgoing(mesh, policy, dataplane));
    Selection(Arc::new(selecting.map(|policy| policy.key().clone()).collect()))
}

/// Whether a policy says something of calls that go out.
pub(crate) fn is_outgoing(policy: &Policy) -> bool {
    (is_outgoing_kind(policy.key().kind) && policy.is_outgoing()) || is_patch(policy)
}

/// A modification of a proxy is one of all that it does.
fn is_patch(policy: &Policy) -> bool {
    policy.key().kind == MeshProxyPatch::KIND
}

impl Selection {
    /// Those of them that hold for calls that leave the mesh: an egress is told of no others.
    pub(crate) fn leaving(&self) -> Self {
        Self(Arc::new(self.0.iter().filter(|key| LEAVING.contains(&key.kind)).cloned().collect()))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What an egress calls it: the same for the same policies, whatever they say. Empty: no policy.
    pub(crate) fn name(&self) -> String {
        if self.0.is_empty() {
            return String::new();
        }
        let mut hasher = Sha256::new();
        for key in self.0.iter() {
            // No part of a key has a line break.
            hasher.update(format!("{key}\n"));
        }
        // 96 bits: nobody can choose what they are hashes of but who writes policies.
        hasher.finalize().iter().take(12).map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Whether a policy says something of the calls that a sidecar's application makes.
pub(crate) fn selects_outgoing(mesh: &MeshPicture, policy: &Policy, dataplane: &Parsed<Dataplane>) -> bool {
    is_outgoing(policy) && policy.selects(&mesh.routes, &subject(dataplane), Section::Whole)
}

/// Whether a policy says where calls go.
pub(crate) fn is_route(policy: &Policy) -> bool {
    ROUTES.contains(&policy.key().kind)
}

/// What a sidecar must hold for its routes' sake.
pub(crate) fn held(picture: &Picture, mesh: &MeshPicture, selection: &Selection) -> BTreeSet<Held> {
    let selected = selection.0.iter().filter_map(|key| mesh.policies.get(key));
    selected
        .filter(|policy| is_route(policy))
        .flat_map(|route| backends::held(picture, mesh, route))
        .collect()
}

/// Whether a policy says something of the calls to some inbound of a sidecar, or of its sessions.
pub(crate) fn selects_incoming(policy: &Policy, dataplane: &Parsed<Dataplane>) -> bool {
    if is_patch(policy) {
        return policy.selects(&Routes::default(), &subject(dataplane), Section::Whole);
    }
    let is_here = INCOMING.iter().any(|it| it.kind == policy.key().kind);
    let inbounds = dataplane.spec.networking.iter().flat_map(|networking| &networking.inbound);
    (is_here && policy.is_incoming() && inbounds.into_iter().any(|inbound| takes(policy, dataplane, inbound)))
        || tls::selects(policy, dataplane)
}

fn takes(policy: &Policy, dataplane: &Parsed<Dataplane>, inbound: &Inbound) -> bool {
    policy.selects(&Routes::default(), &subject(dataplane), Section::Inbound(inbound))
}

/// Whether a policy says something of a sidecar as a whole.
pub(crate) fn selects_whole(policy: &Policy, dataplane: &Parsed<Dataplane>) -> bool {
    let is_here = WHOLE.contains(&policy.key().kind);
    is_here && policy.selects(&Routes::default(), &subject(dataplane), Section::Whole)
}

/// What policies of one kind add up to for a sidecar as a whole.
fn whole(mesh: &MeshPicture, dataplane: &Parsed<Dataplane>, kind: Kind) -> Option<Merged> {
    let candidates = mesh.policies.candidates(kind, &subject(dataplane));
    let selecting = candidates.filter(|policy| selects_whole(policy, dataplane));
    proxy_conf(&sort(selecting.cloned().collect()))
}

/// What a sidecar traces.
pub(crate) fn trace(mesh: &MeshPicture, dataplane: &Parsed<Dataplane>, out: &mut Compiled) -> Option<Trace> {
    let merged = whole(mesh, dataplane, MeshTrace::KIND)?;
    match merged.conf() {
        Ok(conf) => trace::trace(&conf),
        Err(error) => {
            blame(merged.origins.iter().map(|origin| &origin.policy.key), &error, out);
            None
        }
    }
}

/// Which metrics a sidecar gives, and to whom. Policies that can't be read open no port.
pub(crate) fn metrics(
    mesh: &MeshPicture,
    dataplane: &Parsed<Dataplane>,
    out: &mut Compiled,
) -> Option<Metrics> {
    let merged = whole(mesh, dataplane, MeshMetric::KIND)?;
    match merged.conf() {
        Ok(conf) => {
            let (metrics, problems) = metric::metrics(&conf, dataplane.spec.networking.as_ref()?);
            let key = &dataplane.resource.key;
            problems.into_iter().for_each(|problem| out.problem(key, format!("MeshMetric: {problem}")));
            metrics
        }
        Err(error) => {
            blame(merged.origins.iter().map(|origin| &origin.policy.key), &error, out);
            None
        }
    }
}

/// What holds for calls to an inbound.
pub(crate) fn inbound(
    mesh: &MeshPicture,
    dataplane: &Parsed<Dataplane>,
    inbound: &Inbound,
    out: &mut Compiled,
) -> InboundPolicies {
    let mut policies = InboundPolicies::default();
    for of in INCOMING {
        let candidates = mesh.policies.candidates(of.kind, &subject(dataplane));
        let selecting = candidates.filter(|policy| policy.is_incoming() && takes(policy, dataplane, inbound));
        let rules = inbound_rules(&sort(selecting.cloned().collect()));
        if let Err(error) = (of.apply)(&rules, &mut policies) {
            (of.unreadable)(&mut policies);
            blame(rules.iter().map(|rule| &rule.origin.policy.key), &error, out);
        }
    }
    patch_inbound(mesh, dataplane, inbound, &mut policies, out);
    policies
}

/// Modifications come after all other kinds.
fn patch_inbound(
    mesh: &MeshPicture,
    dataplane: &Parsed<Dataplane>,
    inbound: &Inbound,
    policies: &mut InboundPolicies,
    out: &mut Compiled,
) {
    let patches = mesh.policies.candidates(MeshProxyPatch::KIND, &subject(dataplane));
    let selecting = patches.filter(|policy| selects_outgoing(mesh, policy, dataplane));
    let selecting = sort(selecting.cloned().collect());
    if selecting.is_empty() {
        return;
    }
    let address = dataplane.spec.networking.as_ref().map(|networking| networking.address.as_str());
    let address =
        Some(inbound.address.as_str()).filter(|own| !own.is_empty()).or(address).unwrap_or_default();
    let port = if inbound.service_port == 0 { inbound.port } else { inbound.service_port };
    let place = Place {
        origin: "inbound",
        protocol: protocol(inbound.declared_protocol()),
        listener: Some(format!("inbound:{address}:{}", inbound.port)),
        tags: Some(&inbound.tags),
        cluster: Some(format!("localhost:{port}")),
    };
    match Patches::read(&selecting) {
        Ok(patches) => patches.inbound(&place, policies),
        Err(error) => {
            proxy_patch::close(policies);
            blame(selecting.iter().map(|policy| policy.key()), &error, out);
        }
    }
}

/// What holds for calls to the entry whose server name at the egress is `sni`.
pub(crate) fn entry(mesh: &MeshPicture, sni: &str, out: &mut Compiled) -> EntryPolicies {
    let mut policies = InboundPolicies::default();
    for of in INCOMING.iter().filter(|of| OF_ENTRIES.contains(&of.kind)) {
        let all = mesh.policies.values().filter(|policy| policy.key().kind == of.kind).cloned();
        let rules = entry_rules(&all.collect::<Vec<_>>(), sni);
        if let Err(error) = (of.apply)(&rules, &mut policies) {
            blame(rules.iter().map(|rule| &rule.origin.policy.key), &error, out);
        }
    }
    EntryPolicies { faults: policies.faults, rate_limits: policies.rate_limits }
}

/// Whether a policy may say something of entries.
pub(crate) fn is_of_entries(policy: &Policy) -> bool {
    OF_ENTRIES.contains(&policy.key().kind) && policy.is_incoming()
}

/// What holds for the calls of all sidecars with a selection.
pub(crate) fn outgoing(inputs: Inputs<'_>, mesh_name: &str, selection: &Selection, out: &mut Compiled) {
    let Some(mesh) = inputs.picture.mesh(mesh_name).filter(|mesh| mesh.spec().is_some()) else { return };
    let Some(blamed) = selection.0.first() else { return };
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
    let Some(blamed) = selection.0.first() else { return };
    let said = Said::new(mesh, mesh_name, selection, out);
    said.say(blamed, &selection.name(), said.externals(mesh), out);
}

/// A destination of which policies may say something of its own.
struct Named<'a> {
    destination: String,
    protocol: Protocol,
    key: &'a Key,
    /// That is called; none of an entry, which has no other.
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
        let selected: Vec<&Arc<Policy>> =
            selection.0.iter().filter_map(|key| mesh.policies.get(key)).collect();
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
        Self { mesh: name, kinds, http, tcp, patches, patched }
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
        let extsvc = mesh.mesh_external_services.values().filter(|it| named(&it.resource.key));
        let extsvc = extsvc.map(|it| Named {
            destination: external::entry_key(&it.resource.key),
            protocol: external::extsvc_protocol(&it.spec.match_.protocol),
            key: &it.resource.key,
            port: None,
            section: String::new(),
            tag: None,
        });
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
        let mut views: Vec<&Parsed<MeshService>> = legacy_services(mesh, tag).collect();
        views.sort_by_key(|service| !picture.is_local(&service.resource.key));
        let mut known = BTreeSet::new();
        let ports = views.into_iter().flat_map(|it| it.spec.ports.iter().map(move |port| (it, port)));
        let first = ports.filter(|(_, port)| known.insert(port.port));
        let named = first.filter_map(|(service, port)| {
            Some(Named {
                destination: services::legacy_name(self.mesh, tag, port.port),
                protocol: services::legacy_protocol(mesh, tag, port.port)?,
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
            of.apply_merged(merged, protocol, &mut policies, out);
        }
        self.patch(protocol, None, &mut policies);
        policies
    }

    fn of_port(&self, named: &Named<'_>, out: &mut Compiled) -> DestinationPolicies {
        let mut policies = DestinationPolicies::default();
        for (of, kind) in &self.kinds {
            of.apply_merged(kind.of_port(named).as_ref(), named.protocol, &mut policies, out);
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

impl Outgoing {
    fn apply_merged(
        &self,
        merged: Option<&Merged>,
        protocol: Protocol,
        policies: &mut DestinationPolicies,
        out: &mut Compiled,
    ) {
        let Some(merged) = merged else { return };
        if let Err(error) = (self.apply)(merged, protocol, policies) {
            blame(merged.origins.iter().map(|origin| &origin.policy.key), &error, out);
        }
    }
}

/// Ports of a MeshMultiZoneService. What is said of the MeshServices behind does not hold for these, nor the other way
/// round: a policy names what a client calls.
fn many_zones<'a>(
    picture: &'a Picture,
    mesh: &'a MeshPicture,
    service: &'a Parsed<MeshMultiZoneService>,
) -> impl Iterator<Item = Named<'a>> {
    service.spec.ports.iter().map(move |port| Named {
        destination: multi_zone::destination_name(service, port.port),
        protocol: multi_zone::port_protocol(picture, mesh, service, port),
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

/// What rules add up to for each kind of caller: the first that matches decides, the last is for everybody.
fn by_caller<T: DeserializeOwned>(
    rules: &[InboundRule],
) -> Result<Vec<(Option<RuleMatch>, T)>, serde_json::Error> {
    let confs = inbound_confs(rules);
    confs.into_iter().map(|conf| Ok((conf.matched, conf.merged.conf()?))).collect()
}

/// Rules of which every one that matches a caller acts, and last what those for everybody add up to.
fn each<T: DeserializeOwned>(
    rules: &[InboundRule],
) -> Result<Vec<(Option<RuleMatch>, T)>, serde_json::Error> {
    let (for_all, for_some): (Vec<_>, Vec<_>) =
        rules.iter().cloned().partition(|rule| rule.matched.is_none());
    let read = |rule: InboundRule| Ok((rule.matched, T::deserialize(&rule.conf)?));
    let mut confs = for_some.into_iter().map(read).collect::<Result<Vec<_>, _>>()?;
    confs.extend(by_caller(&for_all)?);
    Ok(confs)
}

/// The name of the policy that has the last word on what holds for everybody.
fn strongest(rules: &[InboundRule]) -> Option<&str> {
    let last = rules.iter().rfind(|rule| rule.matched.is_none())?;
    Some(display_name(&last.origin.policy))
}

/// A duration in whole milliseconds: what is shorter than one counts as one, so that it does not become "never".
fn millis(duration: PolicyDuration) -> u64 {
    u64::try_from(duration.get().as_micros().div_ceil(1_000)).unwrap_or(u64::MAX)
}

/// A configuration that can't be read is its policies' fault; the others hold.
fn blame<'a>(policies: impl Iterator<Item = &'a Key>, error: &serde_json::Error, out: &mut Compiled) {
    let keys: BTreeSet<&Key> = policies.collect();
    keys.into_iter().for_each(|key| out.problem(key, error.to_string()));
}

#[cfg(test)]
mod tests;
