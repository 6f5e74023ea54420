//! A mesh in one process: a test CA, engines over loopback with a configuration given directly, no control plane.

use meridian_delta::{Encoded, Id};
use meridian_pki::{Identity, Intermediate, Issued, LeafSpec, PrivateKey, RootCa};
use meridian_proxy::{engine::Engine, metrics::TrafficCell, resolve::Resolver};
use meridian_proxy_config::{
    Action, Bundle, CallerMatch, Destination, DestinationPolicies, DestinationTls, DnsSettings, Endpoint,
    EndpointSet, Host, Inbound, InboundPolicies, InboundTls, Outbound, Permission, PermissionRule, Protocol,
    Proxy, Role, Target, Unlisted, types,
};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use time::OffsetDateTime;
use tokio::{io::AsyncReadExt, net::TcpStream};

pub(crate) const DEADLINE: Duration = Duration::from_secs(10);
pub(crate) const MESH: &str = "default";

/// Waits for a condition, with a deadline.
pub(crate) async fn until<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let start = std::time::Instant::now();
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(start.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A future that must end in time.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("not within {DEADLINE:?}: {what}"))
}

/// Whether a new connection ends without a byte. The reset may come before the client has looked at its connection.
pub(crate) async fn is_reset(to: SocketAddr) -> bool {
    match TcpStream::connect(to).await {
        Ok(mut stream) => soon("the end", stream.read_u8()).await.is_err(),
        Err(_) => true,
    }
}

/// An address of its own for each caller: tests run side by side without sharing ports.
pub(crate) fn address() -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let [_, _, high, low] = (n % 65_000 + 1).to_be_bytes();
    let third = u8::try_from(std::process::id() % 200).unwrap_or(0) + 20;
    let ip = IpAddr::V4(Ipv4Addr::new(127, third, high, low));
    TcpListener::bind((ip, 0)).unwrap().local_addr().unwrap()
}

/// A mesh's CA with its zones.
pub(crate) struct Ca {
    pub(crate) mesh: String,
    root: RootCa,
    zones: BTreeMap<String, Intermediate>,
    revoked: Vec<String>,
}

impl Ca {
    pub(crate) fn new(mesh: &str, zones: &[&str]) -> Self {
        let now = OffsetDateTime::now_utc();
        let root = RootCa::generate(mesh, now).unwrap();
        let intermediate = |zone: &str| {
            let key = PrivateKey::generate().unwrap();
            let issued = root.sign_intermediate(&key.request().unwrap(), zone, now).unwrap();
            Intermediate::new(mesh, issued.chain[0].clone(), key).unwrap()
        };
        let zones = zones.iter().map(|zone| ((*zone).to_owned(), intermediate(zone))).collect();
        Self { mesh: mesh.to_owned(), root, zones, revoked: Vec::new() }
    }

    pub(crate) fn identity(&self, zone: &str, service: &str) -> Identity {
        let key = PrivateKey::generate().unwrap();
        let issued = self.sign(zone, service, &key.request().unwrap());
        Identity::new(issued.chain, &key).unwrap()
    }

    pub(crate) fn sign(&self, zone: &str, service: &str, request: &[u8]) -> Issued {
        let spec = LeafSpec {
            services: [service.to_owned()].into(),
            tags: [("kuma.io/service".to_owned(), [service.to_owned()].into())].into(),
            dataplane: Some(format!("{service}-1")),
            lifetime: None,
        };
        self.zones[zone].sign_leaf(request, &spec, OffsetDateTime::now_utc()).unwrap()
    }

    pub(crate) fn bundle(&self) -> Bundle {
        Bundle {
            mesh: self.mesh.clone(),
            roots: vec![self.root.authority().certificate_pem()],
            revoked: self.revoked.clone(),
        }
    }

    pub(crate) fn revoke(&mut self, zone: &str) {
        self.revoked.push(self.zones[zone].spki_hash().to_string());
    }
}

pub(crate) fn resource(kind: &str, name: &str, value: &impl Serialize) -> Arc<Encoded> {
    Encoded::new(kind, name, serde_json::to_vec(value).unwrap()).unwrap()
}

/// An engine as a sidecar of one service.
pub(crate) struct Sidecar {
    pub(crate) engine: Engine,
    pub(crate) service: String,
}

impl Sidecar {
    pub(crate) fn start(ca: &Ca, zone: &str, service: &str) -> Self {
        let engine = Engine::start(1, Resolver::default()).unwrap();
        let sidecar = Self { engine, service: service.to_owned() };
        let proxy = Proxy {
            role: Role::Sidecar,
            mesh: ca.mesh.clone(),
            name: format!("{service}-1"),
            zone: zone.to_owned(),
            service: service.to_owned(),
            listen: None,
            identities: vec![ca.mesh.clone()],
            sessions: Default::default(),
            capture: None,
            dns: DnsSettings { listen_port: None, forward_zones: vec![], forward_all: false, ipv6: false },
            unlisted: Unlisted::Refuse,
            detect_timeout_millis: 300,
            max_config_age_seconds: None,
            protected: vec![],
            tags: BTreeMap::new(),
        };
        sidecar.feed(types::PROXY, "self", &proxy);
        sidecar.feed(types::BUNDLE, &ca.mesh, &ca.bundle());
        sidecar.engine.shared().tls.set_identity(&ca.mesh, ca.identity(zone, service));
        sidecar
    }

    pub(crate) fn feed(&self, kind: &str, name: &str, value: &impl Serialize) {
        let rejected = self.engine.apply(&[resource(kind, name, value)], &[]);
        assert!(rejected.is_empty(), "{rejected:?}");
    }

    pub(crate) fn remove(&self, kind: &str, name: &str) {
        self.engine.apply(&[], &[Id::new(kind, name)]);
    }

    /// Waits until the workers have taken in what was fed.
    pub(crate) async fn settled(&self) {
        let shared = self.engine.shared();
        until("listening", async || {
            (shared.listening.generation() == shared.snapshots.generation()).then_some(())
        })
        .await;
        assert_eq!(shared.listening.failed(), BTreeMap::new());
    }

    pub(crate) fn denials(&self) -> Vec<(String, String, String)> {
        let report = self.engine.shared().denials.snapshot();
        report.denials.into_iter().map(|row| (row.caller, row.destination, row.reason)).collect()
    }

    pub(crate) fn handshakes(&self) -> u64 {
        self.engine.shared().metrics.worker(0).handshakes.value()
    }

    /// An inbound for an application.
    pub(crate) fn inbound(&self, protocol: Protocol, listen: SocketAddr, application: SocketAddr) -> Inbound {
        Inbound {
            name: "main".into(),
            listen,
            application,
            protocol,
            service: self.service.clone(),
            tls: InboundTls::Strict,
            mesh: MESH.into(),
            permission: allow(&["web"]),
            probe: None,
            policies: InboundPolicies::default(),
        }
    }
}

/// A permission for services, by tag.
pub(crate) fn allow(services: &[&str]) -> Permission {
    let rule = |service: &&str| PermissionRule {
        action: Action::Allow,
        caller: CallerMatch {
            tags: [("kuma.io/service".to_owned(), (*service).to_owned())].into(),
            ..Default::default()
        },
        policy: format!("allow-{service}"),
    };
    Permission { rules: services.iter().map(rule).collect() }
}

pub(crate) fn endpoint(address: SocketAddr, zone: &str) -> Endpoint {
    Endpoint {
        host: Host::Ip(address.ip()),
        port: address.port(),
        zone: zone.into(),
        sni: Some(format!("sni.msvc.default.{zone}.backend.main")),
        replicas: 1,
        name: "backend-1".into(),
        tags: BTreeMap::new(),
    }
}

/// The same services in all zones.
pub(crate) fn destination(protocol: Protocol, identities: &[&str]) -> Destination {
    destination_by_zone(protocol, &["east", "west", "north"].map(|zone| (zone, identities)))
}

pub(crate) fn destination_by_zone(protocol: Protocol, identities: &[(&str, &[&str])]) -> Destination {
    let id = |service: &&str| format!("spiffe://{MESH}/{service}");
    let of_zone =
        |(zone, services): &(&str, &[&str])| ((*zone).to_owned(), services.iter().map(id).collect());
    Destination {
        service: "backend".into(),
        protocol,
        tls: DestinationTls::Mutual {
            mesh: MESH.into(),
            identities: identities.iter().map(of_zone).collect(),
        },
        tiers: vec![vec!["backend".into()]],
        spans_zones: false,
    }
}

/// `web` with an outbound to `backend`, both of zone east, and `backend`'s application.
pub(crate) struct Pair {
    pub(crate) ca: Ca,
    pub(crate) web: Sidecar,
    pub(crate) backend: Sidecar,
    /// Where web's application connects.
    pub(crate) outbound: SocketAddr,
    /// Where backend's sidecar takes sessions.
    pub(crate) inbound: SocketAddr,
    pub(crate) application: SocketAddr,
    pub(crate) protocol: Protocol,
}

impl Pair {
    pub(crate) async fn start(protocol: Protocol, application: SocketAddr) -> Self {
        let ca = Ca::new(MESH, &["east", "west"]);
        let (web, backend) = (Sidecar::start(&ca, "east", "web"), Sidecar::start(&ca, "east", "backend"));
        let (outbound, inbound) = (address(), address());
        backend.feed(types::INBOUND, "main", &backend.inbound(protocol, inbound, application));
        web.feed(types::ENDPOINTS, "backend", &EndpointSet { endpoints: vec![endpoint(inbound, "east")] });
        web.feed(types::DESTINATION, "backend", &destination(protocol, &["backend"]));
        let port = outbound.port();
        let target = Target::Destination("backend".into());
        web.feed(
            types::OUTBOUND,
            "backend",
            &Outbound { bind: Some(outbound), vips: vec![], port, hostnames: vec![], target },
        );
        let pair = Self { ca, web, backend, outbound, inbound, application, protocol };
        pair.settled().await;
        pair
    }

    pub(crate) async fn settled(&self) {
        self.web.settled().await;
        self.backend.settled().await;
    }

    /// Changes who may call.
    pub(crate) fn permit(&self, services: &[&str]) {
        let mut inbound = self.backend.inbound(self.protocol, self.inbound, self.application);
        inbound.permission = allow(services);
        self.backend.feed(types::INBOUND, "main", &inbound);
    }

    /// What web's sidecar has counted of requests to `backend`.
    pub(crate) fn counted(&self, read: impl Fn(&TrafficCell) -> u64) -> u64 {
        read(self.web.engine.shared().metrics.traffic("outbound", "backend").cell(0))
    }

    /// Changes what policies say of requests to `backend`, and waits until it holds.
    pub(crate) async fn policies(&self, change: impl FnOnce(&mut DestinationPolicies)) {
        let mut policies = DestinationPolicies::default();
        change(&mut policies);
        self.web.feed(types::POLICIES, "backend", &policies);
        self.settled().await;
    }

    /// Changes what policies say of requests to `backend`'s application, and waits until it holds.
    pub(crate) async fn inbound_policies(&self, change: impl FnOnce(&mut InboundPolicies)) {
        self.change_inbound(|inbound| change(&mut inbound.policies));
        self.settled().await;
    }

    pub(crate) fn change_inbound(&self, change: impl FnOnce(&mut Inbound)) {
        let mut inbound = self.backend.inbound(self.protocol, self.inbound, self.application);
        change(&mut inbound);
        self.backend.feed(types::INBOUND, "main", &inbound);
    }
}
