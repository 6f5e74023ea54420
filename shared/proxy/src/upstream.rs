//! Connections to endpoints: choosing one, dialling it, trying the next.
//!
//! A connection that could not be made is tried at another endpoint, as nothing was sent; an endpoint that failed is
//! left out for a while (1 s, doubling to 30 s), so that the next tier takes over when a whole tier is down.

use crate::{
    denial::Reason,
    health::EndpointHealth,
    io::{Socket, Transport, tune},
    policy::{
        at_once::{Active, Limit, Load},
        outliers::{Detector, Event, Record},
        retry::affordable,
    },
    preface::Preface,
    snapshot::{Cluster, Endpoint, Snapshot},
    timer::Timer,
    tls::{Peer, TlsError},
    worker::Worker,
};
use meridian_proxy_config::{Host, alpn};
use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, HashSet},
    io,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Duration,
};
use tokio::{io::AsyncWriteExt, net::TcpStream};
use tokio_rustls::client::TlsStream;

mod again;
mod application;
mod choose;
mod far;
mod pool;
mod spare;
pub use again::Wish;
pub use application::dial_application;
pub use choose::Balance;
use choose::Dice;
pub use far::{Far, cluster_check};
pub use pool::{Exclusive, Multiplexed, Opened, Pool, SendError, Sending};
use spare::Seen;

pub use crate::policy::timeouts::CONNECT as CONNECT_TIMEOUT;
/// Endpoints tried for one connection at most.
const MAX_TRIES: usize = 5;
/// How long an endpoint that failed is left out: doubled at each further failure.
const EJECT_FIRST: Duration = Duration::from_secs(1);
/// ...up to this.
const EJECT_LONGEST: Duration = Duration::from_secs(30);

/// Balancers and pools of a worker, by cluster; and pools to its applications.
#[derive(Default)]
pub struct Upstreams {
    clusters: RefCell<HashMap<Arc<str>, Rc<Upstream>>>,
    applications: RefCell<HashMap<SocketAddr, Rc<Pool>>>,
    dice: Rc<Dice>,
}

/// Why no connection came about.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DialError {
    #[error("{0} has no endpoints")]
    NoEndpoints(String),
    #[error("{endpoint} could not be resolved")]
    Resolve { endpoint: String, source: Rc<io::Error> },
    #[error("connecting to {endpoint} failed")]
    Connect { endpoint: String, source: Rc<io::Error> },
    #[error("connecting to {endpoint} took longer than {limit:?}")]
    Timeout { endpoint: String, limit: Duration },
    #[error("mTLS with {endpoint} failed")]
    Tls { endpoint: String, source: Rc<TlsError> },
    #[error("{endpoint} does not speak HTTP")]
    Http { endpoint: String, source: Rc<h2::Error> },
    #[error("endpoints of {0} are left out, as they failed too often or are not healthy, and too few remain")]
    LeftOut(String),
    /// Nothing was tried.
    #[error("there is too much under way: {0}")]
    Overloaded(Limit),
}

impl From<Limit> for DialError {
    fn from(limit: Limit) -> Self {
        Self::Overloaded(limit)
    }
}

/// A connection to an endpoint; counts as one of the endpoint's until dropped.
pub struct Dialled<S> {
    pub stream: S,
    pub endpoint: Arc<Endpoint>,
    pub active: Active,
}

/// What a worker knows of a cluster.
pub struct Upstream {
    cluster: RefCell<Arc<Cluster>>,
    tiers: RefCell<Vec<Vec<Rc<EndpointState>>>>,
    cursor: Cell<usize>,
    dice: Rc<Dice>,
    /// Until when an endpoint may be down, at the latest: nearly always in the past.
    down_until: Rc<Cell<u64>>,
    /// Requests that wait for an answer, and repetitions among them.
    waiting: Rc<Cell<usize>>,
    repeating: Rc<Cell<usize>>,
    pub load: Rc<Load>,
    outliers: Detector,
    anyone_unwell: Cell<Seen>,
}

/// What a worker knows of an endpoint.
pub struct EndpointState {
    pub endpoint: Arc<Endpoint>,
    pub pool: Rc<Pool>,
    active: Rc<Cell<usize>>,
    /// Under way, if that is what is chosen by.
    requests: Rc<Cell<usize>>,
    reach: Rc<Reach>,
    load: Rc<Load>,
    record: Rc<Record>,
    /// What health checks find, where there are any.
    checked: RefCell<Option<Arc<EndpointHealth>>>,
}

/// Whether connections to an endpoint can be made.
struct Reach {
    failures: Cell<u32>,
    down_until: Cell<u64>,
    /// Of all of the cluster's endpoints.
    latest: Rc<Cell<u64>>,
}

impl Upstreams {
    /// The worker's state of a cluster, brought up to the given one.
    pub fn of(&self, cluster: &Arc<Cluster>) -> Rc<Upstream> {
        if let Some(upstream) = self.clusters.borrow().get(&cluster.name) {
            upstream.update(cluster);
            return upstream.clone();
        }
        let upstream = Rc::new(Upstream::new(cluster, self.dice.clone()));
        self.clusters.borrow_mut().insert(cluster.name.clone(), upstream.clone());
        upstream
    }

    /// The pool of connections to an application.
    pub fn application(&self, address: SocketAddr) -> Rc<Pool> {
        self.applications.borrow_mut().entry(address).or_default().clone()
    }

    /// Forgets what the snapshot no longer has: pooled connections end once they are idle.
    pub fn refresh(&self, snapshot: &Snapshot) {
        self.clusters.borrow_mut().retain(|name, upstream| match snapshot.clusters.get(name) {
            Some(cluster) => {
                upstream.update(cluster);
                true
            }
            None => false,
        });
        let known = |address: &SocketAddr| {
            snapshot.inbounds.values().any(|inbound| inbound.config.application == *address)
        };
        self.applications.borrow_mut().retain(|address, _| known(address));
    }
}

impl Upstream {
    fn new(cluster: &Arc<Cluster>, dice: Rc<Dice>) -> Self {
        // A random beginning: otherwise all proxies of a fleet begin with the same endpoint.
        let upstream = Self {
            cluster: RefCell::new(cluster.clone()),
            tiers: RefCell::default(),
            cursor: Cell::new(rand::random::<u32>() as usize),
            dice,
            down_until: Rc::default(),
            waiting: Rc::default(),
            repeating: Rc::default(),
            load: Rc::default(),
            outliers: Detector::default(),
            anyone_unwell: Cell::default(),
        };
        upstream.rebuild(cluster);
        upstream
    }

    fn update(&self, cluster: &Arc<Cluster>) {
        if !Arc::ptr_eq(&self.cluster.borrow(), cluster) {
            self.rebuild(cluster);
            *self.cluster.borrow_mut() = cluster.clone();
        }
    }

    /// Endpoints that stay keep their connections and what is known of their health, also under another name or with other
    /// tags; one that stands in several tiers is the same in all.
    fn rebuild(&self, cluster: &Arc<Cluster>) {
        let plain = cluster.tls.is_none();
        let was_plain = self.cluster.borrow().tls.is_none();
        let mut known: HashMap<String, Rc<EndpointState>> = HashMap::new();
        if plain == was_plain {
            let tiers = self.tiers.borrow();
            known.extend(tiers.iter().flatten().map(|state| (state.endpoint.identity(), state.clone())));
        }
        let mut records: Vec<Rc<Record>> = Vec::new();
        let mut listed = HashSet::new();
        let mut state = |endpoint: &Arc<Endpoint>| {
            let identity = endpoint.identity();
            let state = match known.get(&identity) {
                Some(state) if state.endpoint == *endpoint => state.clone(),
                Some(state) => Rc::new(state.renewed(endpoint)),
                None => Rc::new(EndpointState::new(endpoint.clone(), &self.load, &self.down_until)),
            };
            if listed.insert(identity.clone()) {
                records.push(state.record.clone());
            }
            *state.checked.borrow_mut() =
                cluster.health.as_ref().and_then(|board| board.of(endpoint)).cloned();
            known.insert(identity, state.clone());
            state
        };
        self.anyone_unwell.set(Seen::default());
        let tiers = cluster.tiers.iter().map(|tier| tier.iter().map(&mut state).collect()).collect();
        *self.tiers.borrow_mut() = tiers;
        self.outliers.watch(records);
    }

    /// Counts a request until it is answered.
    pub fn wait(&self) -> Active {
        Active::new(&self.waiting)
    }

    /// Counts a repetition, if the policy's limit, or else the budget, allows one more.
    pub fn repeat(&self) -> Option<Active> {
        let repeating = self.repeating.get();
        let allowed = match self.cluster.borrow().at_once.retries {
            Some(limit) => repeating < limit,
            None => affordable(self.waiting.get(), repeating),
        };
        allowed.then(|| Active::new(&self.repeating))
    }

    /// An endpoint by the cluster's own order: a usable one; if none is usable anywhere, any that was not tried. None of
    /// both is left out as an outlier.
    pub fn pick(&self, now: u64, balance: Balance, tried: &[Rc<EndpointState>]) -> Option<Rc<EndpointState>> {
        let (tiers, cluster) = (self.tiers.borrow(), self.cluster.borrow());
        let spared = self.spared(&tiers, now);
        let chooser = self.chooser(&tiers, &cluster, &spared, now, balance);
        let untried = |state: &EndpointState| !among(tried, state) && spared.allows(state, now);
        let usable = chooser
            .find(|index, state| state.is_up(now) && untried(state) && spared.prefers(index, state, now));
        usable.or_else(|| chooser.find(|_, state| untried(state))).map(|(_, state)| state)
    }

    /// Whether an endpoint may be down, left out or unwell.
    fn is_troubled(&self, cluster: &Cluster, tiers: &[Vec<Rc<EndpointState>>], now: u64) -> bool {
        self.down_until.get() > now || !self.outliers.is_idle(now) || self.is_anyone_unwell(cluster, tiers)
    }
}

fn among(some: &[Rc<EndpointState>], state: &EndpointState) -> bool {
    some.iter().any(|other| other.is(state))
}

impl EndpointState {
    fn new(endpoint: Arc<Endpoint>, load: &Rc<Load>, latest: &Rc<Cell<u64>>) -> Self {
        let reach = Reach { failures: Cell::new(0), down_until: Cell::new(0), latest: latest.clone() };
        Self {
            endpoint,
            pool: Rc::new(Pool::of(load)),
            active: Rc::default(),
            requests: Rc::default(),
            reach: Rc::new(reach),
            load: load.clone(),
            record: Rc::default(),
            checked: RefCell::default(),
        }
    }

    /// The same endpoint, of which something else is said now.
    fn renewed(&self, endpoint: &Arc<Endpoint>) -> Self {
        Self {
            endpoint: endpoint.clone(),
            pool: self.pool.clone(),
            active: self.active.clone(),
            requests: self.requests.clone(),
            reach: self.reach.clone(),
            load: self.load.clone(),
            record: self.record.clone(),
            checked: RefCell::default(),
        }
    }

    /// Whether it is the same endpoint, whatever is said of it.
    pub fn is(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.record, &other.record)
    }

    fn is_up(&self, now: u64) -> bool {
        self.reach.down_until.get() <= now
    }

    pub fn succeeded(&self) {
        self.reach.failures.set(0);
        self.reach.down_until.set(0);
    }

    pub fn failed(&self, now: u64) {
        let Reach { failures, down_until, latest } = &*self.reach;
        let wait = EJECT_FIRST.saturating_mul(1 << failures.get().min(5)).min(EJECT_LONGEST);
        failures.set(failures.get().saturating_add(1));
        down_until.set(now + crate::timer::Timer::ticks(wait));
        latest.set(latest.get().max(down_until.get()));
    }

    /// Counts a request until its answer has ended, if endpoints are chosen by how many they have.
    pub fn under_way(&self, cluster: &Cluster) -> Option<Active> {
        cluster.balancing.counts_requests().then(|| Active::new(&self.requests))
    }

    /// A TCP connection.
    async fn dial(&self, worker: &Worker, limit: Duration) -> Result<TcpStream, DialError> {
        let endpoint = &self.endpoint;
        let name = || label(endpoint);
        let addresses = match &endpoint.host {
            Host::Ip(address) => vec![*address],
            Host::Name(host) => worker
                .shared
                .resolver
                .lookup(host)
                .await
                .map_err(|error| DialError::Resolve { endpoint: name(), source: Rc::new(error) })?,
        };
        connect(worker, &addresses, endpoint.port, limit, &name).await
    }

    /// Whether nothing could be sent here if no connection were made. One that is no HTTP serves nobody else, so an
    /// endpoint needs none.
    fn needs_one(&self, cluster: &Cluster) -> bool {
        cluster.protocol.is_http() && self.active.get() == 0
    }

    /// A connection as the cluster demands: in the clear, or mTLS with a verified peer. `needed`: it may be made even if
    /// there are as many as may be.
    pub async fn open(
        self: &Rc<Self>,
        worker: &Rc<Worker>,
        cluster: &Cluster,
        alpn: &[u8],
        needed: bool,
    ) -> Result<Opened, DialError> {
        let cell = cluster.traffic.cell(worker.index);
        let limit = cluster.connections.connect;
        let begun = worker.timer.now();
        let active = self.load.connect(&cluster.at_once, needed)?.and(Active::new(&self.active));
        let stream = self.dial(worker, limit).await.inspect_err(|_| cell.connect_failures.inc())?;
        let socket = Socket::new(stream);
        let Some(rule) = &cluster.tls else {
            return Ok(Opened { transport: Transport::Plain(socket), peer: None, active: Some(active) });
        };
        let endpoint = &self.endpoint;
        let sni = endpoint.sni.as_deref().unwrap_or_default();
        let alpn = if cluster.leaving.is_some() { alpn::EXTERNAL } else { alpn };
        let connecting = worker.shared.tls.connect(rule, &endpoint.zone, sni, alpn, socket);
        let left = limit.saturating_sub(Timer::span(worker.timer.now().saturating_sub(begun)));
        let connected = worker.timer.timeout(left, Box::pin(connecting)).await.ok_or_else(|| {
            cell.connect_failures.inc();
            DialError::Timeout { endpoint: label(endpoint), limit }
        })?;
        let (stream, peer) = connected.map_err(|error| {
            cell.tls_failures.inc();
            distrusted(worker, cluster, endpoint, &error);
            DialError::Tls { endpoint: label(endpoint), source: Rc::new(error) }
        })?;
        let mut transport = Transport::Tls(Box::new(stream));
        if let Some(leaving) = &cluster.leaving {
            let said =
                say(&mut transport, &leaving.preface).await.inspect_err(|_| cell.connect_failures.inc());
            said.map_err(|error| DialError::Connect { endpoint: label(endpoint), source: Rc::new(error) })?;
        }
        Ok(Opened { transport, peer: Some(peer), active: Some(active) })
    }
}

/// A session is new, and takes so little without waiting for anybody.
async fn say(transport: &mut Transport, preface: &Preface) -> io::Result<()> {
    let frame = preface.encode().map_err(io::Error::other)?;
    transport.write_all(&frame).await
}

/// Someone else answered than who should: that is a refusal of ours.
fn distrusted(worker: &Worker, cluster: &Cluster, endpoint: &Endpoint, error: &TlsError) {
    if let Some(trust) = error.trust() {
        worker.refuse_own(&cluster.service, endpoint.port, &Reason::UNTRUSTED_PEER, trust.reason());
        tracing::warn!(service = %cluster.service, endpoint = %label(endpoint), %trust, "the peer is not who it should be");
    }
}

/// Where an endpoint is.
pub(crate) fn label(endpoint: &Endpoint) -> String {
    match &endpoint.host {
        Host::Ip(address) => SocketAddr::new(*address, endpoint.port).to_string(),
        Host::Name(name) => format!("{name}:{}", endpoint.port),
    }
}

/// Tries addresses in turn, within the limit in all.
async fn connect(
    worker: &Worker,
    addresses: &[IpAddr],
    port: u16,
    limit: Duration,
    name: &impl Fn() -> String,
) -> Result<TcpStream, DialError> {
    let attempt = async {
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for address in addresses {
            match TcpStream::connect(SocketAddr::new(*address, port)).await {
                Ok(stream) => {
                    tune(&stream);
                    return Ok(stream);
                }
                Err(error) => last = error,
            }
        }
        Err(DialError::Connect { endpoint: name(), source: Rc::new(last) })
    };
    let result = worker.timer.timeout(limit, attempt).await;
    result.unwrap_or_else(|| Err(DialError::Timeout { endpoint: name(), limit }))
}

/// Tries endpoints until one gives a connection.
///
/// # Errors
/// The last failure, when every try failed; at once, when there is as much under way as may be.
pub async fn open(
    worker: &Rc<Worker>,
    cluster: &Arc<Cluster>,
    balance: Balance,
    alpn: &[u8],
) -> Result<(Opened, Rc<EndpointState>), DialError> {
    let mut tried = Vec::new();
    let upstream = worker.upstreams.of(cluster);
    let mut last = upstream.nothing();
    let _waiting = upstream.load.wait(&cluster.at_once)?;
    for _ in 0..cluster.connect_attempts.unwrap_or(MAX_TRIES) {
        let mut picked = upstream.pick(worker.timer.now(), balance, &tried);
        if picked.is_none() && cluster.connect_attempts.is_some() {
            // As often as the policy says, even if there are fewer endpoints.
            tried.clear();
            picked = upstream.pick(worker.timer.now(), balance, &tried);
        }
        let Some(state) = picked else { break };
        match state.open(worker, cluster, alpn, state.needs_one(cluster)).await {
            Ok(opened) => {
                state.succeeded();
                if !cluster.protocol.is_http() {
                    upstream.note(worker, &state, Event::Connected);
                }
                return Ok((opened, state));
            }
            Err(error @ DialError::Overloaded(_)) => return Err(error),
            Err(error) => {
                state.failed(worker.timer.now());
                upstream.note(worker, &state, Event::Local);
                tried.push(state);
                last = error;
            }
        }
    }
    Err(last)
}

/// A plain TCP connection to an endpoint of the cluster, another endpoint if one can't be reached.
///
/// # Errors
/// The last failure, when every try failed.
pub async fn dial_tcp(
    worker: &Rc<Worker>,
    cluster: &Arc<Cluster>,
    balance: Balance,
) -> Result<Dialled<Socket>, DialError> {
    let (opened, state) = open(worker, cluster, balance, &[]).await?;
    let endpoint = state.endpoint.clone();
    match (opened.transport, opened.active) {
        (Transport::Plain(stream), Some(active)) => Ok(Dialled { stream, endpoint, active }),
        _ => Err(DialError::NoEndpoints(cluster.service.clone())),
    }
}

/// An mTLS session with an endpoint of the cluster, checked against its [`crate::snapshot::PeerRule`].
///
/// # Errors
/// The last failure, when every try failed; a cluster without a rule has no endpoints for this.
pub async fn dial_tls(
    worker: &Rc<Worker>,
    cluster: &Arc<Cluster>,
    alpn: &[u8],
) -> Result<(Dialled<TlsStream<Socket>>, Peer), DialError> {
    let (opened, state) = open(worker, cluster, Balance::RoundRobin, alpn).await?;
    let endpoint = state.endpoint.clone();
    match (opened.transport, opened.peer, opened.active) {
        (Transport::Tls(stream), Some(peer), Some(active)) => {
            Ok((Dialled { stream: *stream, endpoint, active }, peer))
        }
        _ => Err(DialError::NoEndpoints(cluster.service.clone())),
    }
}
