//! HTTP connections that are used again: multiplexed HTTP/2, and HTTP/1.1 one request at a time.
//!
//! Requests of all downstream connections of a worker share one HTTP/2 connection to an endpoint: measured, that
//! saves a third of the CPU over pooled HTTP/1.1, since sockets are the cost. A second one is opened when the first
//! carries [`STREAMS`] streams.

use super::{DialError, Far, cluster_check};
use crate::{
    codec::{Body, Client, Error, Http2Client, Http2Connection, Incoming, Open, Watch, open_http2},
    io::{Reset, Transport},
    policy::at_once::{Active, Limit, Limits, Load},
    timer::Timer,
    tls::Peer,
    worker::{ConnectionInfo, Direction, Ending, Tracked, Worker},
};
use futures::{
    FutureExt,
    future::{LocalBoxFuture, Shared},
};
use http::{Request, Response};
use std::{
    cell::{Cell, RefCell},
    rc::{Rc, Weak},
    time::Duration,
};

/// Streams on one connection before the next is opened (as ztunnel).
const STREAMS: usize = 100;
/// Connections to one endpoint; beyond, streams share them whatever their number.
const CONNECTIONS: usize = 8;
const MAX_IDLE: usize = 512;

/// A fresh connection.
pub struct Opened {
    pub transport: Transport,
    pub peer: Option<Peer>,
    pub active: Option<Active>,
}

impl Opened {
    /// What counts as under way for as long as the connection is.
    pub fn also(&mut self, active: Option<Active>) {
        self.active = match (self.active.take(), active) {
            (Some(own), Some(active)) => Some(own.and(active)),
            (own, active) => own.or(active),
        };
    }
}

/// Connections to one endpoint or application.
#[derive(Default)]
pub struct Pool {
    multiplexed: RefCell<Vec<Rc<Multiplexed>>>,
    opening: RefCell<Option<Opening>>,
    idle: RefCell<Vec<Idle>>,
    /// There is a task that closes those that nobody uses.
    closing: Cell<bool>,
    /// Of the whole cluster or application.
    pub(super) load: Rc<Load>,
}

type Opening = Shared<LocalBoxFuture<'static, Result<(), DialError>>>;

/// An HTTP/2 connection.
pub struct Multiplexed {
    client: Http2Client,
    /// Since which tick there is none.
    unused: Cell<u64>,
    timer: Timer,
    retired: Cell<bool>,
    expires: Option<u64>,
    renewed: u64,
}

struct Idle {
    client: Client,
    expires: Option<u64>,
    /// The tick until which it may be used.
    until: u64,
}

/// An HTTP/1.1 connection that is ours until the answer is complete.
pub struct Exclusive {
    client: Client,
    pool: Weak<Pool>,
    timer: Timer,
    keep: Duration,
    expires: Option<u64>,
    /// It carried a request before, so the other side may be closing it.
    pub reused: bool,
}

/// A place in a connection, given back when the answer's body has ended.
pub struct Sending(Option<Kind>);

enum Kind {
    Stream {
        connection: Rc<Multiplexed>,
        _open: Open,
    },
    Exclusive(Box<Exclusive>),
    /// Of no pool.
    Alone(Client),
}

/// A request that was not answered.
pub struct SendError {
    pub error: Error,
    /// The request, if it is still there.
    pub request: Option<Box<Request<Body>>>,
    /// Some of it may have reached the other side.
    pub sent: bool,
}

impl Sending {
    /// The answer takes its connection with it.
    pub(crate) fn alone(client: Client) -> Self {
        Self(Some(Kind::Alone(client)))
    }

    /// The answer is complete: the connection can be used again.
    pub fn complete(mut self) {
        match self.0.take_if(|kind| !matches!(kind, Kind::Stream { .. })) {
            Some(Kind::Exclusive(exclusive)) => exclusive.give_back(),
            Some(Kind::Alone(client)) => client.leave(),
            Some(Kind::Stream { .. }) | None => {}
        }
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        if let Some(Kind::Stream { connection, .. }) = &self.0 {
            connection.unused.set(connection.timer.now());
        }
    }
}

impl Pool {
    pub(super) fn of(load: &Rc<Load>) -> Self {
        Self { load: load.clone(), ..Self::default() }
    }

    /// A request, until its answer has ended; `None`: nobody counts.
    ///
    /// # Errors
    /// There are as many as may be.
    pub fn request(&self, limits: &Limits) -> Result<Option<Active>, Limit> {
        self.load.request(limits)
    }

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
                Some(best) if best.client.streams() < STREAMS || count >= CONNECTIONS => return Ok(best),
                Some(best) if self.load.connected(far.at_once()) => return Ok(best),
                Some(best) => {
                    let opening = self.opening(worker, far, alpn);
                    worker.spawn(opening.map(drop));
                    return Ok(best);
                }
                None => {
                    let _waiting = self.load.wait(far.at_once())?;
                    self.opening(worker, far, alpn).await?;
                }
            }
        }
    }

    /// The least used connection, and how many there are.
    fn best(&self, worker: &Worker) -> (Option<Rc<Multiplexed>>, usize) {
        let mut connections = self.multiplexed.borrow_mut();
        let renewed = worker.shared.tls.renewed();
        connections.retain(|connection| {
            let old = connection.expires.is_some_and(|at| worker.timer.now() >= at);
            !(old || connection.retired.get() || connection.renewed != renewed || connection.client.is_over())
        });
        let best = match connections.as_slice() {
            [only] => Some(only.clone()),
            many => many.iter().min_by_key(|connection| connection.client.streams()).cloned(),
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
        // Retired connections count while their last streams last; they take no new ones.
        let needed = self.multiplexed.borrow().is_empty();
        let opened = far.open(worker, alpn, needed).await?;
        let Opened { transport, peer, active } = opened;
        let reset = transport.reset();
        let endpoint = far.name();
        let (client, connection) = open_http2(transport)
            .await
            .map_err(|source| DialError::Http { endpoint, source: Rc::new(source) })?;
        let expires = far.expires(worker.timer.now());
        let made = Rc::new(Multiplexed {
            client,
            unused: Cell::new(worker.timer.now()),
            timer: worker.timer.clone(),
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
        let exclusive = |client, expires, reused| Exclusive {
            client,
            pool: Rc::downgrade(self),
            timer: worker.timer.clone(),
            keep: far.keep(),
            expires,
            reused,
        };
        if let Some(idle) = self.reuse(worker.timer.now()) {
            return Ok(exclusive(idle.client, idle.expires, true));
        }
        let _waiting = self.load.wait(far.at_once())?;
        // Boxed: rare, and its space would be part of every request's future.
        let opened = Box::pin(far.open(worker, alpn, far.needs_one())).await?;
        let Opened { transport, peer, active } = opened;
        let reset = transport.reset();
        let (client, watch) = Client::over(transport);
        let drive = Drive { far: far.clone(), peer, reset, _active: active, pool: Rc::downgrade(self) };
        worker.spawn(drive.exclusive(worker.clone(), watch));
        Ok(exclusive(client, far.expires(worker.timer.now()), false))
    }

    fn reuse(&self, now: u64) -> Option<Idle> {
        let mut idle = self.idle.borrow_mut();
        while let Some(last) = idle.pop() {
            if last.until > now && last.client.rise() {
                return Some(last);
            }
        }
        None
    }

    fn put(self: &Rc<Self>, used: Exclusive) {
        let Exclusive { client, timer, keep, expires, .. } = used;
        let until = timer.after(keep).min(expires.unwrap_or(u64::MAX));
        let mut idle = self.idle.borrow_mut();
        if idle.len() >= MAX_IDLE || until <= timer.now() || !client.rest() {
            return client.leave();
        }
        idle.push(Idle { client, expires, until });
        if !self.closing.replace(true) {
            drop(tokio::task::spawn_local(close_idle(Rc::downgrade(self), timer)));
        }
    }
}

/// Closes connections that nobody used for a while; ends with the last of them.
async fn close_idle(pool: Weak<Pool>, timer: Timer) {
    let mut next = timer.now();
    loop {
        timer.sleep_until(next).await;
        let Some(pool) = pool.upgrade() else { return };
        let mut idle = pool.idle.borrow_mut();
        let now = timer.now();
        idle.retain(|idle| idle.client.is_open() && idle.until > now);
        match idle.iter().map(|idle| idle.until).min() {
            Some(earliest) => next = earliest,
            None => {
                pool.closing.set(false);
                return;
            }
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
    fn tracked(&self, worker: &Worker) -> Option<Tracked> {
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
        connection: Http2Connection<Transport>,
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
        let limit = self.far.limits().http_idle;
        tokio::select! {
            result = connection.as_mut() => { ended(result); retire(); return }
            () = unused(&made, limit) => retire(),
            ending = ending(tracked.as_ref()) => {
                retire();
                if ending != Ending::Drain { return self.reset.arm() }
            }
        }
        if let Some(tracked) = &tracked {
            tokio::select! {
                result = connection => ended(result),
                _ = tracked.reset() => self.reset.arm(),
            }
        } else {
            ended(connection.await);
        }
    }

    async fn exclusive(self, worker: Rc<Worker>, watch: Watch) {
        let _open = self.opened(&worker);
        match self.tracked(&worker) {
            Some(tracked) => tokio::select! {
                () = watch => {}
                _ = tracked.reset() => self.reset.arm(),
            },
            None => watch.await,
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

async fn ending(tracked: Option<&Tracked>) -> Ending {
    match tracked {
        Some(tracked) => tracked.ending().await,
        None => std::future::pending().await,
    }
}

/// Resolves when a connection had no stream for so long.
async fn unused(connection: &Weak<Multiplexed>, limit: Option<Duration>) {
    let Some(limit) = limit else { return std::future::pending().await };
    let ticks = Timer::ticks(limit);
    let mut wait = limit;
    loop {
        // The runtime's own timer: it wakes nobody while it runs, and these are few.
        tokio::time::sleep(wait).await;
        let Some(connection) = connection.upgrade() else { return };
        let passed = connection.timer.now().saturating_sub(connection.unused.get());
        wait = match connection.client.streams() {
            0 if passed >= ticks => return,
            0 => Timer::span(ticks.saturating_sub(passed)),
            _ => limit,
        };
    }
}

fn ended(result: Result<(), Error>) {
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
        request: Box<Request<Body>>,
    ) -> Result<(Response<Incoming>, Sending), SendError> {
        let sending = Sending(Some(Kind::Stream { connection: self.clone(), _open: self.client.open() }));
        match self.client.send(request).await {
            Ok(response) => Ok((response.map(Incoming::Http2), sending)),
            Err(error) => {
                let sent = error.request.is_none();
                Err(SendError { error: error.error, request: error.request, sent })
            }
        }
    }
}

impl Exclusive {
    /// Sends a request; the answer holds the connection. `waits`: its body only when the server asks for it.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn send(
        self,
        request: Box<Request<Body>>,
        waits: bool,
    ) -> Result<(Response<Incoming>, Sending), SendError> {
        match self.client.send(&self.timer, request, waits).await {
            Ok(response) => {
                let sending = Sending(Some(Kind::Exclusive(Box::new(self))));
                Ok((response.map(Incoming::Http1), sending))
            }
            Err(error) => {
                Err(SendError { error: error.error.into(), request: error.request, sent: error.sent })
            }
        }
    }

    fn give_back(self) {
        if let Some(pool) = self.pool.upgrade() {
            pool.put(self);
        }
    }
}
