//! The configuration as the workers read it: compiled, immutable, swapped whole.
//!
//! Compiling is incremental by sharing: a part whose sources did not change is the same `Arc` in the next snapshot,
//! so that what hangs on it (pools, balancers, metric handles) stays, and one changed endpoint rebuilds one cluster.

use crate::{
    access_log::AccessLogs,
    address::is_vip,
    denial::Reason,
    egress::{Originator, Outward},
    health::Board,
    metrics::{Traffic, gather::Publication},
    policy::{
        at_once::Limits,
        balance::{BalancingPolicy, TierPlan},
        filter::RequestFilter,
        limits::Rates,
        lua::Chain,
        outliers::OutlierPolicy,
        panic::PanicRule,
        retry::RetryPolicy,
        timeouts::{ConnectionLimits, StreamLimits},
    },
    preface::Preface,
    trace::Tracer,
};
use arc_swap::ArcSwap;
use http::uri::Authority;
use ipnet::IpNet;
use meridian_proxy_config::{
    self as config, CallerIdentity, EGRESS_SERVICE, Host, HostMatch, Protocol, Proxy,
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::sync::watch;

mod compile;
mod resources;
mod routing;
mod tiers;
pub use compile::compile;
pub use resources::Resources;
pub use routing::{MirrorTo, Routing, Split, Verdict, Way};

/// Everything a worker needs to know. Parts are looked up by the names that the control plane gave them.
#[derive(Default)]
pub struct Snapshot {
    pub generation: u64,
    /// `None` until the first configuration has come.
    pub proxy: Option<Arc<Proxy>>,
    pub inbounds: BTreeMap<Arc<str>, Arc<Inbound>>,
    pub outbounds: BTreeMap<Arc<str>, Arc<Outbound>>,
    pub externals: BTreeMap<Arc<str>, Arc<External>>,
    /// Egress: by key.
    pub entries: BTreeMap<String, Arc<Entry>>,
    /// Egress: by `(mesh, dataplane)`.
    pub callers: HashMap<(String, String), Arc<config::Caller>>,
    /// What policies say of calls that leave the mesh here, by the names that the control plane gave them.
    pub outward: BTreeMap<Arc<str>, Arc<Outward>>,
    pub routes: SniRoutes,
    /// Who takes this proxy's metrics; `None`: nobody.
    pub metrics: Option<Arc<Publication>>,
    /// Meshes that have a bundle. Their contents are in [`crate::tls::Tls`].
    pub meshes: Vec<String>,
    /// All clusters, by name: what stays the same is taken over into the next snapshot.
    pub clusters: BTreeMap<Arc<str>, Arc<Cluster>>,
    /// By the destination's name.
    routings: BTreeMap<Arc<str>, Arc<Routing>>,
    /// Where captured traffic to no known destination goes under passthrough through the egress.
    pub unlisted_egress: Option<Arc<Cluster>>,
    /// Of calls that leave the mesh.
    pub external_logs: AccessLogs,
    pub tracer: Option<Arc<Tracer>>,
    pub(crate) vips: HashMap<(IpAddr, u16), Arc<Outbound>>,
    pub(crate) names: Arc<HashMap<String, Arc<[IpAddr]>>>,
    /// By virtual address: the listed name of a destination outside the mesh.
    pub(crate) vip_names: HashMap<IpAddr, String>,
    pub(crate) external_hosts: HashMap<HostMatch, Vec<Arc<External>>>,
    /// Whether `external_hosts` has a wildcard.
    pub(crate) wildcards: bool,
    /// Lengths of the ranges in `external_hosts`, with whether they are of IPv6: one look-up a length finds an
    /// address's ranges, however many there are.
    pub(crate) range_lengths: BTreeSet<(bool, u8)>,
}

/// One port on which a sidecar takes traffic for its application.
pub struct Inbound {
    pub config: Arc<config::Inbound>,
    /// Its newest configuration could not be understood: everybody is refused.
    pub refused: bool,
    pub connections: ConnectionLimits,
    pub streams: StreamLimits,
    pub limits: Rates,
    pub filter: Option<Arc<RequestFilter>>,
    pub scripts: Option<Chain>,
    /// Of each worker.
    pub at_once: Limits,
    /// For some callers, in place of `streams`; the first that matches decides.
    pub streams_of_callers: Vec<(config::CallerMatch, StreamLimits)>,
    pub logs: AccessLogs,
    pub traffic: Arc<Traffic>,
}

impl Inbound {
    /// The limits of what a caller asks; `caller`: who it is, if that is known, and its session's server name.
    pub fn streams_of(&self, caller: Option<(&config::CallerIdentity, Option<&str>)>) -> StreamLimits {
        let own = caller.and_then(|(identity, sni)| {
            self.streams_of_callers.iter().find(|(matched, _)| matched.matches(identity, sni))
        });
        own.map_or(self.streams, |(_, limits)| *limits)
    }
}

/// A place where the application's connections enter the mesh.
pub struct Outbound {
    pub name: Arc<str>,
    pub config: Arc<config::Outbound>,
    pub target: Target,
    /// `None`: to the target, whatever is asked.
    pub routing: Option<Arc<Routing>>,
}

pub enum Target {
    Cluster(Arc<Cluster>),
    External(Arc<External>),
    /// What the outbound names has not come, or was rejected: refused with this reason.
    Missing(String),
}

impl Target {
    /// What routes start from.
    pub fn cluster(&self) -> Option<&Arc<Cluster>> {
        match self {
            Self::Cluster(cluster) => Some(cluster),
            Self::External(external) => external.routed.as_ref(),
            Self::Missing(_) => None,
        }
    }
}

/// Endpoints that a connection may be made to, and what must answer there.
pub struct Cluster {
    pub name: Arc<str>,
    /// For metrics and logs.
    pub service: String,
    pub protocol: Protocol,
    /// `None`: plaintext, or (for SNI routes) bytes passed on as they are.
    pub tls: Option<Arc<PeerRule>>,
    /// The next tier is used when no endpoint of the one before is usable. An endpoint with `replicas` stands as
    /// often in its tier.
    pub tiers: Vec<Vec<Arc<Endpoint>>>,
    /// How each of the tiers is chosen in.
    pub plans: Vec<TierPlan>,
    pub balancing: BalancingPolicy,
    pub connections: ConnectionLimits,
    pub streams: StreamLimits,
    pub retry: Option<Arc<RetryPolicy>>,
    /// TCP: `None` tries each of some endpoints once.
    pub connect_attempts: Option<usize>,
    /// Of each worker.
    pub at_once: Limits,
    pub outliers: Option<OutlierPolicy>,
    pub health: Option<Arc<Board>>,
    pub panic: PanicRule,
    pub logs: AccessLogs,
    pub scripts: Option<Chain>,
    /// Outside of the mesh: its endpoints are egresses.
    pub leaving: Option<Arc<Leaving>>,
    pub traffic: Arc<Traffic>,
    origin: compile::Origin,
}

/// How an egress is asked for a destination outside of the mesh by routes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaving {
    /// Begins each session.
    pub preface: Preface,
    /// Whom requests are for there that were for somebody else here.
    pub authority: Authority,
    /// Nothing can be sent there.
    pub refused: Option<Reason>,
}

impl Leaving {
    /// Why nobody is reached.
    pub fn reason(&self) -> Reason {
        self.refused.clone().unwrap_or(Reason::NO_EGRESS)
    }
}

/// Who must answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerRule {
    pub mesh: String,
    /// Accepted SPIFFE IDs, by the zone that answers; a zone that is not there is refused. They are few: a list takes a
    /// tenth of a map's memory.
    identities: Box<[(String, Box<[String]>)]>,
}

impl PeerRule {
    pub fn new(mesh: String, identities: BTreeMap<String, Vec<String>>) -> Self {
        let identities = identities.into_iter().map(|(zone, ids)| (zone, ids.into())).collect();
        Self { mesh, identities }
    }

    /// An egress of a zone.
    pub fn egress(mesh: &str, zone: &str) -> Self {
        let identities = vec![meridian_pki::spiffe_id(mesh, EGRESS_SERVICE)];
        Self::new(mesh.to_owned(), BTreeMap::from([(zone.to_owned(), identities)]))
    }

    /// Who may answer in a zone.
    pub fn in_zone(&self, zone: &str) -> &[String] {
        self.identities.iter().find(|(of, _)| of == zone).map_or(&[], |(_, ids)| ids)
    }

    /// Whether it is somebody of whom this rule speaks.
    pub fn accepts(&self, peer: &CallerIdentity) -> bool {
        self.mesh == peer.mesh && peer.spiffe.iter().any(|id| self.in_zone(&peer.zone).contains(id))
    }
}

/// One virtual endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    pub host: Host,
    pub port: u16,
    pub zone: String,
    pub sni: Option<String>,
    /// 0.. of the `replicas` that share the address.
    pub replica: u32,
    pub name: String,
    pub tags: BTreeMap<String, String>,
    /// Lies behind another zone's ingress.
    pub remote: bool,
}

/// A destination outside the mesh, as a sidecar sees it.
pub struct External {
    pub config: Arc<config::External>,
    /// With `Via::Egress`: the local egresses.
    pub egress: Option<Arc<Cluster>>,
    /// A MeshExternalService as routes send to it: request by request, where it speaks HTTP.
    pub routed: Option<Arc<Cluster>>,
    /// With `Via::Sidecar`.
    pub entry: Option<Arc<Entry>>,
    pub traffic: Arc<Traffic>,
}

/// An allowlist entry, as the proxy that leaves the mesh enforces it.
pub struct Entry {
    pub config: Arc<config::Entry>,
    pub originator: Option<Arc<Originator>>,
    pub limits: Rates,
    pub traffic: Arc<Traffic>,
}

/// How an ingress or egress passes sessions on.
#[derive(Default)]
pub struct SniRoutes {
    pub exact: HashMap<String, Arc<Cluster>>,
    pub zones: HashMap<String, Arc<Cluster>>,
}

impl SniRoutes {
    /// The exact name first, then the name's zone. `sni` is lower case.
    pub fn find(&self, sni: &str) -> Option<&Arc<Cluster>> {
        self.exact.get(sni).or_else(|| self.zones.get(config::sni::parse(sni)?.zone))
    }
}

impl Snapshot {
    /// The outbound behind a virtual address.
    pub fn vip(&self, address: SocketAddr) -> Option<&Arc<Outbound>> {
        self.vips.get(&(address.ip().to_canonical(), address.port()))
    }

    /// The inbound at whose address a captured connection arrived.
    pub fn inbound_at(&self, address: SocketAddr) -> Option<&Arc<Inbound>> {
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        self.inbounds.values().find(|inbound| {
            let listen = inbound.config.listen;
            listen.port() == address.port() && (listen.ip() == address.ip() || listen.ip().is_unspecified())
        })
    }

    /// Whether an address is virtual, whatever the port.
    pub fn is_vip(&self, address: IpAddr) -> bool {
        is_vip(address.to_canonical())
    }

    /// What the resolver answers for a name of the mesh (lower case, no trailing dot).
    pub fn addresses_of(&self, name: &str) -> Option<&Arc<[IpAddr]>> {
        self.names.get(name)
    }

    /// Entries that list exactly this host, wildcard or range, in no order; the caller checks ports and protocol.
    pub fn externals_for(&self, host: &HostMatch) -> &[Arc<External>] {
        self.external_hosts.get(host).map(Vec::as_slice).unwrap_or_default()
    }

    /// Entries that list a name (lower case, no trailing dot): the exact ones, then wildcards, the longest first.
    pub fn externals_named<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a Arc<External>> {
        self.externals_for(&HostMatch::Exact(name.to_owned())).iter().chain(self.wildcards_above(name))
    }

    /// Entries of wildcards that a name is below, the longest first.
    pub fn wildcards_above<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a Arc<External>> {
        let labels =
            if self.wildcards { name.match_indices('.').map(|(dot, _)| dot + 1).collect() } else { vec![] };
        let parents =
            labels.into_iter().filter_map(|start| name.get(start..)).chain(self.wildcards.then_some(""));
        let parents: Vec<_> = parents.map(|parent| HostMatch::Wildcard(parent.to_owned())).collect();
        parents.into_iter().flat_map(|parent| self.externals_for(&parent))
    }

    /// Entries that list an address, by how exactly they do: the address itself, then ranges, the longest first.
    pub fn externals_at(&self, ip: IpAddr) -> impl Iterator<Item = &[Arc<External>]> {
        let ip = ip.to_canonical();
        let longest_first = self.range_lengths.iter().rev().filter(move |(v6, _)| *v6 == ip.is_ipv6());
        let ranges = longest_first.filter_map(move |(_, length)| IpNet::new(ip, *length).ok());
        let hosts = std::iter::once(HostMatch::Ip(ip)).chain(ranges.map(|net| HostMatch::Net(net.trunc())));
        hosts.map(|host| self.externals_for(&host)).filter(|listing| !listing.is_empty())
    }

    /// A name that the resolver answers with this virtual address.
    pub fn name_of(&self, vip: IpAddr) -> Option<&str> {
        self.vip_names.get(&vip.to_canonical()).map(String::as_str)
    }

    /// The allowlist of one caller, at an egress.
    pub fn caller(&self, mesh: &str, dataplane: &str) -> Option<&Arc<config::Caller>> {
        self.callers.get(&(mesh.to_owned(), dataplane.to_owned()))
    }
}

/// The current snapshot, for all threads.
pub struct Snapshots {
    current: ArcSwap<Snapshot>,
    generation: AtomicU64,
    changed: watch::Sender<u64>,
}

impl Default for Snapshots {
    fn default() -> Self {
        Self {
            current: ArcSwap::from_pointee(Snapshot::default()),
            generation: AtomicU64::new(0),
            changed: watch::Sender::new(0),
        }
    }
}

impl Snapshots {
    pub fn load(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// One atomic load: what workers compare before they look further.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Wakes at each publication.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Swaps in a snapshot under the next generation.
    pub fn publish(&self, mut snapshot: Snapshot) {
        let generation = self.generation() + 1;
        snapshot.generation = generation;
        self.current.store(Arc::new(snapshot));
        self.generation.store(generation, Ordering::Release);
        self.changed.send_replace(generation);
    }
}
