//! From resources to a snapshot: pure, and sharing what did not change.

use super::{
    Cluster, Entry, External, Inbound, Leaving, Outbound, PeerRule, Resources, Routing, Snapshot, SniRoutes,
    Target,
    resources::EntryParts,
    routing,
    tiers::{arrange, prepare},
};
use crate::{
    access_log::{self, AccessLogs},
    denial::Reason,
    egress::Outward,
    external,
    health::Board,
    metrics::{Metrics, Traffic},
    policy::{
        at_once::Limits,
        balance::{BalancingPolicy, Hashing},
        health::HealthPlan,
        limits::Rates,
        lua::Chain,
        outliers::OutlierPolicy,
        panic::PanicRule,
        retry::{RetryPolicy, connect_attempts},
        timeouts::{ConnectionLimits, StreamLimits},
    },
    preface::Preface,
};
use meridian_proxy_config::{
    self as config, BackendTarget, DestinationPolicies, EndpointSet, EntryKind, HostMatch, Locality,
    Protocol, SniMatch, Unlisted, Via, routes_of_external,
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

/// What a cluster is made from: equal sources give the same cluster again.
struct Source {
    service: String,
    protocol: Protocol,
    tls: Option<Arc<PeerRule>>,
    retry: Option<Arc<RetryPolicy>>,
    logs: AccessLogs,
    scripts: Option<Chain>,
    leaving: Option<Arc<Leaving>>,
    origin: Origin,
}

/// The part of a cluster's source that it does not show.
#[derive(Default)]
pub(super) struct Origin {
    pub(super) tiers: Vec<Vec<Option<Arc<EndpointSet>>>>,
    /// Instead of the endpoints' own: server name and zone.
    pub(super) instead: Option<(String, String)>,
    pub(super) zone: String,
    pub(super) spans_zones: bool,
    /// Tags without which an endpoint is none.
    pub(super) only: BTreeMap<String, String>,
    /// The proxy's own tags, if endpoints are chosen by them.
    pub(super) caller_tags: BTreeMap<String, BTreeSet<String>>,
    /// All that is compiled from them comes with them.
    pub(super) policies: Arc<DestinationPolicies>,
    pub(super) health: Option<Arc<HealthPlan>>,
    pub(super) hashing: Option<Arc<Hashing>>,
}

impl Source {
    fn new(service: String, protocol: Protocol, origin: Origin) -> Self {
        Self {
            service,
            protocol,
            tls: None,
            retry: None,
            logs: AccessLogs::default(),
            scripts: None,
            leaving: None,
            origin,
        }
    }
}

impl Cluster {
    /// Whether it was made from an equal source.
    fn is_of(&self, source: &Source) -> bool {
        *self.service == *source.service
            && self.protocol == source.protocol
            && self.tls == source.tls
            && self.leaving == source.leaving
            && self.origin == source.origin
    }
}

impl PartialEq for Origin {
    fn eq(&self, other: &Self) -> bool {
        let same_sets = |a: &Vec<Option<Arc<EndpointSet>>>, b: &Vec<Option<Arc<EndpointSet>>>| {
            a.len() == b.len()
                && a.iter().zip(b).all(|(a, b)| match (a, b) {
                    (Some(a), Some(b)) => Arc::ptr_eq(a, b),
                    (None, None) => true,
                    _ => false,
                })
        };
        self.instead == other.instead
            && self.zone == other.zone
            && self.spans_zones == other.spans_zones
            && self.only == other.only
            && self.caller_tags == other.caller_tags
            && self.policies == other.policies
            && self.tiers.len() == other.tiers.len()
            && self.tiers.iter().zip(&other.tiers).all(|(a, b)| same_sets(a, b))
    }
}

struct Compiler<'a> {
    resources: &'a Resources,
    previous: &'a Snapshot,
    metrics: &'a Metrics,
    next: Snapshot,
}

/// The snapshot that the resources mean; parts that did not change are those of `previous`.
pub fn compile(resources: &Resources, previous: &Snapshot, metrics: &Metrics) -> Snapshot {
    let next = Snapshot {
        proxy: resources.proxy.clone(),
        meshes: resources.meshes.values().cloned().collect(),
        metrics: resources.metrics.clone(),
        // Nothing but the mesh's own words holds for them.
        tracer: resources.tracer.clone(),
        external_logs: resources.policies("", Protocol::Tcp).logs,
        ..Snapshot::default()
    };
    let mut compiler = Compiler { resources, previous, metrics, next };
    compiler.inbounds();
    compiler.externals();
    compiler.outbounds();
    compiler.egress();
    compiler.outward();
    compiler.routes();
    compiler.unlisted();
    compiler.next
}

impl Compiler<'_> {
    fn zone(&self) -> &str {
        self.next.proxy.as_ref().map_or("", |proxy| proxy.zone.as_str())
    }

    /// Only what matters: a tag of the proxy that changes leaves clusters alone that don't go by tags.
    fn caller_tags(&self, policies: &DestinationPolicies) -> BTreeMap<String, BTreeSet<String>> {
        let Locality::Zones(zones) = &policies.balancing.locality else { return BTreeMap::new() };
        let own = self.next.proxy.iter().flat_map(|proxy| &proxy.tags);
        let asked = own.filter(|(key, _)| zones.affinity.iter().any(|affinity| affinity.tag == **key));
        asked.map(|(key, values)| (key.clone(), values.clone())).collect()
    }

    fn inbounds(&mut self) {
        let accepted = self.resources.inbounds.iter().map(|(name, config)| (name, config, false));
        let refused = self.resources.refused_inbounds.iter().map(|(name, config)| (name, config, true));
        for (name, config, refused) in accepted.chain(refused) {
            let before = self.previous.inbounds.get(name);
            let kept = before.filter(|old| Arc::ptr_eq(&old.config, config) && old.refused == refused);
            let inbound = kept.cloned().unwrap_or_else(|| {
                let traffic = self.metrics.traffic("inbound", &config.service);
                let policies = &config.policies;
                Arc::new(Inbound {
                    config: config.clone(),
                    refused,
                    connections: ConnectionLimits::from(&policies.connection_timeouts),
                    streams: StreamLimits::inbound(&policies.stream_timeouts),
                    limits: Rates::compile(&policies.rate_limits, before.map(|old| &old.limits)),
                    filter: self.resources.filters.get(name).cloned(),
                    scripts: self.resources.scripts.get(name).cloned(),
                    at_once: Limits::share(&policies.at_once, self.metrics.workers()),
                    streams_of_callers: policies.caller_timeouts.iter().map(of_callers).collect(),
                    logs: logs(config, before.map(AsRef::as_ref)),
                    traffic,
                })
            });
            self.next.inbounds.insert(name.clone(), inbound);
        }
    }

    fn externals(&mut self) {
        for (name, (config, parts)) in &self.resources.externals {
            let egress = match &config.via {
                Via::Egress { mesh, zone, sni, endpoints } => {
                    let instead = (sni.clone(), zone.clone());
                    let source = self.egress_source(&config.entry, mesh, endpoints, instead);
                    Some(self.cluster(&format!("egress/{name}"), "external", source))
                }
                Via::Sidecar(_) | Via::Refused(_) => None,
            };
            let routed = self.routed(name, config);
            let same_clusters = |old: &External| {
                same(old.egress.as_ref(), egress.as_ref()) && same(old.routed.as_ref(), routed.as_ref())
            };
            let kept = self.previous.externals.get(name);
            let kept = kept.filter(|old| Arc::ptr_eq(&old.config, config) && same_clusters(old));
            let external = kept.cloned().unwrap_or_else(|| {
                let traffic = self.metrics.traffic("external", &config.entry);
                let entry = parts.as_ref().map(|parts| self.entry(parts));
                Arc::new(External { config: config.clone(), egress, routed, entry, traffic })
            });
            for host in &config.hosts {
                let host = canonical(host);
                match &host {
                    HostMatch::Wildcard(_) => self.next.wildcards = true,
                    HostMatch::Net(net) => {
                        self.next.range_lengths.insert((net.addr().is_ipv6(), net.prefix_len()));
                    }
                    HostMatch::Exact(_) | HostMatch::Ip(_) => {}
                }
                self.next.external_hosts.entry(host).or_default().push(external.clone());
            }
            self.next.externals.insert(name.clone(), external);
        }
    }

    /// What routes can send to a MeshExternalService by. How long it may take and what is tried again is the egress's to
    /// decide, by what policies say of the destination.
    fn routed(&mut self, name: &str, config: &config::External) -> Option<Arc<Cluster>> {
        if config.kind != EntryKind::MeshExternalService {
            return None;
        }
        let host = external::host_of(config, &[])?;
        let leaving = |refused| {
            Some(Arc::new(Leaving {
                authority: host.to_string().parse().ok()?,
                preface: Preface {
                    entry: config.entry.clone(),
                    host: host.clone(),
                    port: *config.ports.first()?,
                },
                refused,
            }))
        };
        let source = match &config.via {
            Via::Sidecar(_) => return None,
            Via::Refused(reason) => Source {
                leaving: Some(leaving(Some(Reason::given(reason)))?),
                ..Source::new(config.entry.clone(), config.protocol, Origin::default())
            },
            Via::Egress { mesh, zone, sni, endpoints } => {
                let instead = (sni.clone(), zone.clone());
                let source = self.egress_source(&config.entry, mesh, endpoints, instead);
                Source { leaving: Some(leaving(None)?), ..source }
            }
        };
        let said = self.resources.policies("", config.protocol);
        let policies = DestinationPolicies {
            access_logs: said.config.access_logs.clone(),
            ..DestinationPolicies::default()
        };
        let origin = Origin { policies: Arc::new(policies), ..source.origin };
        let source = Source { protocol: config.protocol, logs: said.logs, origin, ..source };
        Some(self.cluster(&format!("routed/{name}"), "external", source))
    }

    fn outbounds(&mut self) {
        let configs = &self.resources.outbounds;
        let mut same_names = self.previous.outbounds.len() == configs.len();
        for (name, config) in configs {
            let target = self.target(&config.target);
            let routing = self.routing(&config.target, &target);
            let before = self.previous.outbounds.get(name).filter(|old| Arc::ptr_eq(&old.config, config));
            same_names &= before.is_some();
            let kept = before.filter(|old| {
                same_target(&old.target, &target) && same(old.routing.as_ref(), routing.as_ref())
            });
            let outbound = kept.cloned().unwrap_or_else(|| {
                Arc::new(Outbound { name: name.clone(), config: config.clone(), target, routing })
            });
            for vip in &config.vips {
                let key = (vip.to_canonical(), config.port);
                self.next.vips.entry(key).or_insert_with(|| outbound.clone());
            }
            if let Target::External(_) = outbound.target
                && let Some(hostname) = config.hostnames.first()
            {
                let vips = config.vips.iter().map(|vip| (vip.to_canonical(), hostname.clone()));
                self.next.vip_names.extend(vips);
            }
            self.next.outbounds.insert(name.clone(), outbound);
        }
        self.next.names = if same_names { self.previous.names.clone() } else { Arc::new(names(configs)) };
    }

    fn target(&mut self, target: &config::Target) -> Target {
        match target {
            config::Target::External(name) => match self.next.externals.get(name.as_str()) {
                Some(external) => Target::External(external.clone()),
                None => Target::Missing(format!("external {name}")),
            },
            config::Target::Destination(name) => match self.destination(name) {
                Some(cluster) => Target::Cluster(cluster),
                None => Target::Missing(format!("destination {name}")),
            },
        }
    }

    fn destination(&mut self, name: &str) -> Option<Arc<Cluster>> {
        self.subset(name, &BTreeMap::new())
    }

    /// What a destination has of endpoints with these tags.
    fn subset(&mut self, name: &str, only: &BTreeMap<String, String>) -> Option<Arc<Cluster>> {
        let key = match only.is_empty() {
            true => format!("destination/{name}"),
            false => format!("subset/{name}/{only:?}"),
        };
        if let Some(cluster) = self.next.clusters.get(key.as_str()) {
            return Some(cluster.clone());
        }
        let destination = self.resources.destinations.get(name)?;
        let policies = self.resources.policies(name, destination.protocol);
        let origin = Origin {
            tiers: destination.tiers.iter().map(|tier| self.sets(tier)).collect(),
            instead: None,
            zone: self.zone().to_owned(),
            spans_zones: destination.spans_zones,
            only: only.clone(),
            caller_tags: self.caller_tags(&policies.config),
            policies: policies.config,
            health: policies.health,
            hashing: policies.hashing,
        };
        let source = Source {
            tls: destination.peers.clone(),
            retry: policies.retry,
            logs: policies.logs,
            scripts: policies.scripts,
            ..Source::new(destination.service.clone(), destination.protocol, origin)
        };
        Some(self.cluster(&key, "outbound", source))
    }

    /// What routes say of calls to a destination: once, whichever outbounds lead there.
    fn routing(&mut self, config: &config::Target, target: &Target) -> Option<Arc<Routing>> {
        let own = target.cluster()?;
        let name: Arc<str> = match config {
            config::Target::Destination(name) => name.as_str().into(),
            config::Target::External(name) => routes_of_external(name).into(),
        };
        let compiled = self.resources.routings.get(&name)?.clone();
        if let Some(routing) = self.next.routings.get(&name) {
            return Some(routing.clone());
        }
        let targets = compiled.iter().flat_map(|compiled| routing::targets(compiled));
        let clusters = targets.filter_map(|to| Some((to.clone(), self.backend(to)?))).collect();
        let before = self.previous.routings.get(&name);
        let kept = before.filter(|old| old.is_of(compiled.as_ref(), &clusters, own)).cloned();
        let routing = kept.unwrap_or_else(|| {
            let (before, workers) = (before.map(Arc::as_ref), self.metrics.workers());
            Arc::new(Routing::new(compiled, clusters, own, before, workers))
        });
        self.next.routings.insert(name, routing.clone());
        Some(routing)
    }

    fn backend(&mut self, target: &BackendTarget) -> Option<Arc<Cluster>> {
        match target {
            BackendTarget::Destination(name) => self.destination(name),
            BackendTarget::External(name) => self.next.externals.get(name.as_str())?.routed.clone(),
            BackendTarget::Subset { destination, tags } => self.subset(destination, tags),
            BackendTarget::Missing(_) => None,
        }
    }

    fn egress(&mut self) {
        for (name, parts) in &self.resources.entries {
            let kept = self.previous.entries.get(&parts.config.key);
            let kept = kept.filter(|old| Arc::ptr_eq(&old.config, &parts.config)).cloned();
            let entry = kept.unwrap_or_else(|| self.entry(parts));
            if self.next.entries.insert(parts.config.key.clone(), entry).is_some() {
                tracing::error!(%name, key = %parts.config.key, "two entries have one key");
            }
        }
        let callers = self.resources.callers.values();
        self.next.callers =
            callers.map(|caller| ((caller.mesh.clone(), caller.dataplane.clone()), caller.clone())).collect();
    }

    /// Only where something leaves the mesh.
    fn outward(&mut self) {
        let leaves = self.next.externals.values().any(|external| external.entry.is_some());
        if self.next.entries.is_empty() && !leaves {
            return;
        }
        for (name, parts) in self.resources.all_policies() {
            let kept = self.previous.outward.get(name).filter(|old| Arc::ptr_eq(&old.config, &parts.config));
            let outward = kept.cloned().unwrap_or_else(|| {
                let workers = self.metrics.workers();
                Arc::new(Outward::compile(&parts.config, parts.retry.clone(), workers))
            });
            self.next.outward.insert(name.clone(), outward);
        }
    }

    fn routes(&mut self) {
        let mut routes = SniRoutes::default();
        for (name, route) in &self.resources.routes {
            let (table, service) = match &route.matches {
                SniMatch::Exact(sni) => (&mut routes.exact, sni.clone()),
                SniMatch::Zone(zone) => (&mut routes.zones, zone.clone()),
            };
            let key = match &route.matches {
                SniMatch::Exact(sni) => sni.clone(),
                SniMatch::Zone(zone) => config::sni::label(zone),
            };
            let origin = Origin {
                tiers: vec![self.sets(&route.endpoints)],
                zone: self.zone().to_owned(),
                ..Origin::default()
            };
            let source = Source::new(service, Protocol::Tcp, origin);
            let cluster = self.cluster(&format!("route/{name}"), "through", source);
            table.insert(key, cluster);
        }
        self.next.routes = routes;
    }

    fn unlisted(&mut self) {
        let Some(proxy) = self.next.proxy.clone() else { return };
        if let Unlisted::Egress { endpoints, sni } = &proxy.unlisted {
            let instead = (sni.clone(), proxy.zone.clone());
            let source = self.egress_source("*", &proxy.mesh, endpoints, instead);
            self.next.unlisted_egress = Some(self.cluster("unlisted", "external", source));
        }
    }

    fn entry(&self, parts: &EntryParts) -> Arc<Entry> {
        let traffic = self.metrics.traffic("egress", &parts.config.key);
        let before = self.previous.entries.get(&parts.config.key).map(|old| &old.limits);
        Arc::new(Entry {
            config: parts.config.clone(),
            originator: parts.originator.clone(),
            limits: Rates::compile(&parts.config.policies.rate_limits, before),
            traffic,
        })
    }

    fn egress_source(&self, service: &str, mesh: &str, endpoints: &str, instead: (String, String)) -> Source {
        let tls = Some(Arc::new(PeerRule::egress(mesh, &instead.1)));
        let origin = Origin {
            tiers: vec![self.sets(std::slice::from_ref(&endpoints.to_owned()))],
            instead: Some(instead),
            zone: self.zone().to_owned(),
            ..Origin::default()
        };
        Source { tls, ..Source::new(service.to_owned(), Protocol::Tcp, origin) }
    }

    fn sets(&self, names: &[String]) -> Vec<Option<Arc<EndpointSet>>> {
        names.iter().map(|name| self.resources.endpoints.get(name.as_str()).cloned()).collect()
    }

    fn cluster(&mut self, name: &str, direction: &'static str, source: Source) -> Arc<Cluster> {
        let before = self.previous.clusters.get(name);
        let kept = before.filter(|old| old.is_of(&source)).cloned();
        let cluster = kept.unwrap_or_else(|| {
            let traffic = self.metrics.traffic(direction, &source.service);
            let health = before.and_then(|old| old.health.as_deref());
            let cluster = build(name.into(), traffic, source, self.metrics.workers(), health);
            prepare(&cluster.plans, before.map(|old| old.plans.as_slice()).unwrap_or_default());
            Arc::new(cluster)
        });
        self.next.clusters.insert(cluster.name.clone(), cluster.clone());
        cluster
    }
}

fn of_callers(timeouts: &config::CallerTimeouts) -> (config::CallerMatch, StreamLimits) {
    (timeouts.caller.clone(), StreamLimits::inbound(&timeouts.stream_timeouts))
}

fn build(
    name: Arc<str>,
    traffic: Arc<Traffic>,
    source: Source,
    workers: usize,
    health: Option<&Board>,
) -> Cluster {
    let Source { service, protocol, tls, retry, logs, scripts, leaving, origin } = source;
    let policies = &origin.policies;
    let (tiers, plans) = arrange(&origin);
    let board = |plan: &Arc<HealthPlan>| Arc::new(Board::new(plan.clone(), &tiers, health));
    let connections = ConnectionLimits::from(&policies.connection_timeouts);
    let (connections, streams) = match &leaving {
        None => (connections, StreamLimits::outbound(&policies.stream_timeouts, protocol == Protocol::Grpc)),
        Some(_) => (ConnectionLimits { tcp_idle: None, ..connections }, StreamLimits::default()),
    };
    Cluster {
        name,
        service,
        protocol,
        tls,
        health: origin.health.as_ref().map(board),
        panic: PanicRule::compile(policies),
        tiers,
        plans,
        balancing: BalancingPolicy::compile(&policies.balancing, origin.hashing.clone()),
        connections,
        streams,
        retry,
        scripts,
        at_once: Limits::share(&policies.at_once, workers),
        outliers: policies.outliers.as_ref().map(OutlierPolicy::compile),
        connect_attempts: connect_attempts(policies),
        logs,
        leaving,
        traffic,
        origin,
    }
}

/// What the resolver answers, by name.
fn names(outbounds: &BTreeMap<Arc<str>, Arc<config::Outbound>>) -> HashMap<String, Arc<[IpAddr]>> {
    let mut names: HashMap<&String, Vec<IpAddr>> = HashMap::new();
    for config in outbounds.values() {
        for hostname in &config.hostnames {
            let addresses = names.entry(hostname).or_default();
            for vip in &config.vips {
                if !addresses.contains(vip) {
                    addresses.push(*vip);
                }
            }
        }
    }
    names.into_iter().map(|(name, addresses)| (name.clone(), addresses.into())).collect()
}

/// What stays the same keeps its backends.
fn logs(config: &config::Inbound, before: Option<&Inbound>) -> AccessLogs {
    let said = &config.policies.access_logs;
    match before.filter(|old| old.config.policies.access_logs == *said) {
        Some(old) => old.logs.clone(),
        None => access_log::compile(said),
    }
}

fn same_target(a: &Target, b: &Target) -> bool {
    match (a, b) {
        (Target::Cluster(a), Target::Cluster(b)) => Arc::ptr_eq(a, b),
        (Target::External(a), Target::External(b)) => Arc::ptr_eq(a, b),
        (Target::Missing(a), Target::Missing(b)) => a == b,
        _ => false,
    }
}

fn same<T>(a: Option<&Arc<T>>, b: Option<&Arc<T>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (None, None) => true,
        _ => false,
    }
}

fn canonical(host: &HostMatch) -> HostMatch {
    match host {
        HostMatch::Exact(name) => HostMatch::Exact(name.trim_end_matches('.').to_ascii_lowercase()),
        HostMatch::Wildcard(parent) => HostMatch::Wildcard(parent.trim_matches('.').to_ascii_lowercase()),
        HostMatch::Ip(address) => HostMatch::Ip(address.to_canonical()),
        HostMatch::Net(net) => HostMatch::Net(config::canonical_net(*net)),
    }
}
