//! HTTP connections that are used again: multiplexed HTTP/2, and HTTP/1.1 one request at a time.
//!
//! Requests of all downstream connections of a worker share one HTTP/2 connection to an endpoint: measured, that
//! saves a third of the CPU over pooled HTTP/1.1, since sockets are the cost. A second one is opened when the first
//! carries [`STREAMS`] streams.

use super::{Active, DialError, EndpointState, open_application};
use crate::{
    codec::{Body, LocalExecutor, client_h1, client_h2},
    denial::Reason,
    io::{Reset, Transport},
    snapshot::Cluster,
    timer::Timer,
    tls::Peer,
    worker::{Check, ConnectionInfo, Direction, Ending, Worker},
};
use futures::{
    FutureExt,
    future::{LocalBoxFuture, Shared},
};
use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::TokioIo;
use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::{Rc, Weak},
    sync::Arc,
    time::Duration,
};

/// Streams on one connection before the next is opened (as ztunnel).
const STREAMS: usize = 100;
/// Connections to one endpoint; beyond, streams share them whatever their number.
const CONNECTIONS: usize = 8;
/// An unused HTTP/1.1 connection is closed before common servers close it (Node.js and uvicorn after 5 s): a request
/// that meets their close would be lost.
const IDLE: Duration = Duration::from_secs(4);
const MAX_IDLE: usize = 512;
/// Connections through an ingress are renewed, so that they spread anew over what is behind it: 5 min, +-20 %.
const REMOTE_AGE_SECONDS: std::ops::Range<u64> = 240..360;

/// A fresh connection.
pub struct Opened {
    pub transport: Transport,
    pub peer: Option<Peer>,
    pub active: Option<Active>,
}

/// Where a pool's connections lead.
#[derive(Clone)]
pub enum Far {
    Endpoint { cluster: Arc<Cluster>, state: Rc<EndpointState> },
    Application(SocketAddr),
}

/// Connections to one endpoint or application.
#[derive(Default)]
pub struct Pool {
    multiplexed: RefCell<Vec<Rc<Multiplexed>>>,
    opening: RefCell<Option<Opening>>,
    idle: RefCell<Vec<Idle>>,
}

type Opening = Shared<LocalBoxFuture<'static, Result<(), DialError>>>;

/// An HTTP/2 connection.
pub struct Multiplexed {
    sender: http2::SendRequest<Body>,
    streams: Cell<usize>,
    retired: Cell<bool>,
    expires: Option<u64>,
    renewed: u64,
}

struct Idle {
    sender: http1::SendRequest<Body>,
    since: u64,
}

/// An HTTP/1.1 connection that is ours until the answer is complete.
pub struct Exclusive {
    sender: http1::SendRequest<Body>,
    pool: Weak<Pool>,
    timer: Timer,
    /// It carried a request before, so the other side may be closing it.
    pub reused: bool,
}

/// A place in a connection, given back when the answer's body has ended.
pub struct Sending(Option<Kind>);

enum Kind {
    Stream(Rc<Multiplexed>),
    Exclusive(Box<Exclusive>),
}

/// A request that was not answered.
pub struct SendError {
    pub error: hyper::Error,
    /// The request, if nothing of it was sent.
    pub request: Option<Request<Body>>,
}

impl Sending {
    /// The answer is complete: the connection can be used again.
    pub fn complete(mut self) {
        if let Some(Kind::Exclusive(exclusive)) = self.0.take_if(|kind| matches!(kind, Kind::Exclusive(_))) {
            exclusive.give_back();
        }
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        if let Some(Kind::Stream(connection)) = &self.0 {
            connection.streams.set(connection.streams.get().saturating_sub(1));
        }
    }
}

impl Far {
    fn name(&self) -> String {
        match self {
            Self::Endpoint { cluster, .. } => cluster.service.clone(),
            Self::Application(address) => address.to_string(),
        }
    }

    /// A new connection.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn open(&self, worker: &Rc<Worker>, alpn: &[u8]) -> Result<Opened, DialError> {
        match self {
            Self::Endpoint { cluster, state } => state.open(worker, cluster, alpn).await,
            Self::Application(address) => open_application(worker, *address).await,
        }
    }

    fn expires(&self, now: u64) -> Option<u64> {
        let remote = matches!(self, Self::Endpoint { state, .. } if state.endpoint.remote);
        let age = || Duration::from_secs(rand::random_range(REMOTE_AGE_SECONDS));
        remote.then(|| now + Timer::ticks(age()))
    }
}

/// Whether a connection to a cluster may live: the cluster is there, and who answered is still who should.
pub fn cluster_check(cluster: &Cluster, peer: Option<&Peer>) -> Check {
    let name = cluster.name.clone();
    let identity = peer.map(|peer| peer.identity.clone());
    Box::new(move |snapshot| {
        let cluster = snapshot.clusters.get(&name).ok_or(Reason::REMOVED)?;
        match (&cluster.tls, &identity) {
            (Some(rule), Some(found)) => {
                let expected =
                    rule.mesh == found.mesh && found.spiffe.iter().any(|id| rule.identities.contains(id));
                if expected { Ok(()) } else { Err(Reason::UNTRUSTED_PEER) }
            }
            _ => Ok(()),
        }
    })
}

impl Pool {
    /// A connection with room for a stream, made if need be.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn multiplexed(
        self: &Rc<Self>,
        worker: &Rc<Worker>,
        far: &Far,
        alpn: &'static [u8],
    ) -> Result<Rc<Multiplexed>, DialError> {
        loop {
            let (best, count) = self.best(worker);
            match best {
                Some(best) if best.streams.get() < STREAMS || count >= CONNECTIONS => return Ok(best),
                Some(best) => {
                    let opening = self.opening(worker, far, alpn);
                    worker.spawn(opening.map(drop));
                    return Ok(best);
                }
                None => self.opening(worker, far, alpn).await?,
            }
        }
    }

    /// The least used connection, and how many there are.
    fn best(&self, worker: &Worker) -> (Option<Rc<Multiplexed>>, usize) {
        let mut connections = self.multiplexed.borrow_mut();
        let renewed = worker.shared.tls.renewed();
        connections.retain(|connection| {
            let old = connection.expires.is_some_and(|at| worker.timer.now() >= at);
            !(old
                || connection.retired.get()
                || connection.renewed != renewed
                || connection.sender.is_closed())
        });
        let best = match connections.as_slice() {
            [only] => Some(only.clone()),
            many => many.iter().min_by_key(|connection| connection.streams.get()).cloned(),
        };
        (best, connections.len())
    }

    /// The one attempt that is under way, or a new one: all who need a connection wait for the same.
    fn opening(self: &Rc<Self>, worker: &Rc<Worker>, far: &Far, alpn: &'static [u8]) -> Opening {
        if let Some(opening) = &*self.opening.borrow() {
            return opening.clone();
        }
        let (pool, worker_, far) = (self.clone(), worker.clone(), far.clone());
        let open = async move {
            let result = pool.open_multiplexed(&worker_, &far, alpn).await;
            pool.opening.borrow_mut().take();
            result
        };
        let opening = open.boxed_local().shared();
        *self.opening.borrow_mut() = Some(opening.clone());
        // Driven by a task of its own: whoever asked first may leave.
        worker.spawn(opening.clone().map(drop));
        opening
    }

    async fn open_multiplexed(
        self: &Rc<Self>,
        worker: &Rc<Worker>,
        far: &Far,
        alpn: &[u8],
    ) -> Result<(), DialError> {
        let renewed = worker.shared.tls.renewed();
        let opened = far.open(worker, alpn).await?;
        let Opened { transport, peer, active } = opened;
        let reset = transport.reset();
        let endpoint = far.name();
        let (sender, connection) = client_h2(transport)
            .await
            .map_err(|source| DialError::Http { endpoint, source: Rc::new(source) })?;
        let expires = far.expires(worker.timer.now());
        let made = Rc::new(Multiplexed {
            sender,
            streams: Cell::new(0),
            retired: Cell::new(false),
            expires,
            renewed,
        });
        self.multiplexed.borrow_mut().push(made.clone());
        let drive = Drive { far: far.clone(), peer, reset, _active: active, pool: Rc::downgrade(self) };
        worker.spawn(drive.multiplexed(worker.clone(), connection, Rc::downgrade(&made)));
        Ok(())
    }

    /// An HTTP/1.1 connection for one request, used before or new.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn exclusive(
        self: &Rc<Self>,
        worker: &Rc<Worker>,
        far: &Far,
        alpn: &[u8],
    ) -> Result<Exclusive, DialError> {
        if let Some(sender) = self.reuse() {
            return Ok(Exclusive {
                sender,
                pool: Rc::downgrade(self),
                timer: worker.timer.clone(),
                reused: true,
            });
        }
        let Opened { transport, peer, active } = far.open(worker, alpn).await?;
        let reset = transport.reset();
        let (sender, connection) = client_h1(transport)
            .await
            .map_err(|source| DialError::Http { endpoint: far.name(), source: Rc::new(source) })?;
        let drive = Drive { far: far.clone(), peer, reset, _active: active, pool: Rc::downgrade(self) };
        worker.spawn(drive.exclusive(worker.clone(), connection));
        Ok(Exclusive { sender, pool: Rc::downgrade(self), timer: worker.timer.clone(), reused: false })
    }

    fn reuse(&self) -> Option<http1::SendRequest<Body>> {
        let mut idle = self.idle.borrow_mut();
        idle.retain(|idle| !idle.sender.is_closed());
        let ready = idle.iter().rposition(|idle| idle.sender.is_ready())?;
        Some(idle.swap_remove(ready).sender)
    }

    fn put(self: &Rc<Self>, sender: http1::SendRequest<Body>, timer: &Timer) {
        let mut idle = self.idle.borrow_mut();
        if sender.is_closed() || idle.len() >= MAX_IDLE {
            return;
        }
        idle.push(Idle { sender, since: timer.now() });
        if idle.len() == 1 {
            drop(tokio::task::spawn_local(close_idle(Rc::downgrade(self), timer.clone())));
        }
    }
}

/// Closes connections that nobody used for a while; ends with the last of them.
async fn close_idle(pool: Weak<Pool>, timer: Timer) {
    loop {
        timer.sleep(IDLE).await;
        let Some(pool) = pool.upgrade() else { return };
        let mut idle = pool.idle.borrow_mut();
        let oldest = timer.now().saturating_sub(Timer::ticks(IDLE));
        idle.retain(|idle| idle.since > oldest);
        if idle.is_empty() {
            return;
        }
    }
}

/// What keeps a pooled connection going.
struct Drive {
    far: Far,
    peer: Option<Peer>,
    reset: Reset,
    _active: Option<Active>,
    pool: Weak<Pool>,
}

impl Drive {
    fn tracked(&self, worker: &Worker) -> Option<crate::worker::Tracked> {
        let Far::Endpoint { cluster, state } = &self.far else { return None };
        let peer = self.peer.as_ref().map_or("plaintext", Peer::name).to_owned();
        let name = format!("{} {}", cluster.service, state.endpoint.name);
        let info = ConnectionInfo { direction: Direction::Upstream, name, peer };
        let check = cluster_check(cluster, self.peer.as_ref());
        Some(match &self.peer {
            Some(peer) => worker.track_session(info, peer.clone(), check),
            None => worker.track(info, check),
        })
    }

    async fn multiplexed(
        self,
        worker: Rc<Worker>,
        connection: http2::Connection<TokioIo<Transport>, Body, LocalExecutor>,
        made: Weak<Multiplexed>,
    ) {
        let _open = self.opened(&worker);
        let retire = || {
            if let Some(made) = made.upgrade() {
                made.retired.set(true);
            }
            // What is retired leaves the pool at once: it closes with its last stream.
            if let Some(pool) = self.pool.upgrade() {
                pool.multiplexed.borrow_mut().retain(|connection| !connection.retired.get());
            }
        };
        let mut connection = std::pin::pin!(connection);
        let tracked = self.tracked(&worker);
        if let Some(tracked) = &tracked {
            tokio::select! {
                result = connection.as_mut() => { ended(result); retire(); return }
                ending = tracked.ending() => { retire(); if ending != Ending::Drain { return self.reset.arm() } }
            }
            tokio::select! {
                result = connection => ended(result),
                _ = tracked.reset() => self.reset.arm(),
            }
        } else {
            ended(connection.await);
            retire();
        }
    }

    async fn exclusive(self, worker: Rc<Worker>, connection: http1::Connection<TokioIo<Transport>, Body>) {
        let _open = self.opened(&worker);
        match self.tracked(&worker) {
            Some(tracked) => tokio::select! {
                result = connection => ended(result),
                _ = tracked.reset() => self.reset.arm(),
            },
            None => ended(connection.await),
        }
    }

    fn opened<'a>(&'a self, worker: &Worker) -> Option<crate::metrics::Open<'a>> {
        match &self.far {
            Far::Endpoint { cluster, .. } => {
                Some(crate::metrics::Open::new(cluster.traffic.cell(worker.index)))
            }
            Far::Application(_) => None,
        }
    }
}

fn ended(result: hyper::Result<()>) {
    if let Err(error) = result {
        tracing::debug!(%error, source = ?std::error::Error::source(&error), "upstream connection");
    }
}

impl Multiplexed {
    /// Sends a request; the answer holds its place in the connection.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn send(
        self: &Rc<Self>,
        request: Request<Body>,
    ) -> Result<(Response<Incoming>, Sending), SendError> {
        self.streams.set(self.streams.get() + 1);
        let sending = Sending(Some(Kind::Stream(self.clone())));
        match self.sender.clone().try_send_request(request).await {
            Ok(response) => Ok((response, sending)),
            Err(mut error) => {
                let request = error.take_message();
                Err(SendError { error: error.into_error(), request })
            }
        }
    }
}

impl Exclusive {
    /// Sends a request; the answer holds the connection.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn send(mut self, request: Request<Body>) -> Result<(Response<Incoming>, Sending), SendError> {
        match self.sender.try_send_request(request).await {
            Ok(response) => Ok((response, Sending(Some(Kind::Exclusive(Box::new(self)))))),
            Err(mut error) => {
                let request = error.take_message();
                Err(SendError { error: error.into_error(), request })
            }
        }
    }

    fn give_back(self) {
        if let Some(pool) = self.pool.upgrade() {
            pool.put(self.sender, &self.timer);
        }
    }
}
