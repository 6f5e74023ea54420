//! Port 5678: proxies register, receive what is compiled for them, and get certificates.
//!
//! Who is at the other end is what the token says; a stream of another subject never takes a live proxy's place. What a
//! proxy registers goes when it leaves ([`crate::presence`]).

mod identity;
mod sink;

use crate::audiences::Views;
use crate::claims::Subject;
use crate::engine::{Command, Seen};
use crate::intermediates::Intermediates;
use crate::presence::{Presence, StreamId};
use crate::reports::Reports;
use meridian_auth::ZoneScope;
use meridian_core::Key;
use meridian_core::kinds::dataplane::Dataplane;
use meridian_core::kinds::zone_egress::ZoneEgress;
use meridian_core::kinds::zone_ingress::ZoneIngress;
use meridian_delta::server::Connection;
use meridian_delta::stream::{End, Opened, Outbound};
use meridian_delta::{Control, Node, Peer, Publisher, SMALL_PART, Subscriber};
use meridian_proto::delta as wire;
use meridian_proto::delta::sync_server::Sync;
use meridian_proxy_config::types;
use meridian_store::{Author, Change, Expect, Store};
use sink::ProxySink;
use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use time::OffsetDateTime;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

/// The server's side of all proxies. Clones are the same.
#[derive(Clone)]
pub(crate) struct Proxies(Arc<Inner>);

struct Inner {
    zone: String,
    node: Node,
    allow_unbound: bool,
    store: Store,
    views: Views,
    reports: Reports,
    seen: Seen,
    intermediates: Intermediates,
    commands: mpsc::Sender<Command>,
    presence: Mutex<Presence>,
    streams: Mutex<HashMap<StreamId, Live>>,
    next_stream: AtomicU64,
    /// Held while a registration is written or removed, so that the one does not undo the other.
    writing: tokio::sync::Mutex<()>,
    /// The next deadline of [`Presence`] may be another one.
    deadlines: Notify,
}

/// A stream that runs.
struct Live {
    key: Key,
    subject: Subject,
    connection: SocketAddr,
    cut: CancellationToken,
}

/// What [`Proxies::new`] needs.
pub(crate) struct Parts {
    pub(crate) zone: String,
    pub(crate) node: Node,
    pub(crate) allow_unbound: bool,
    pub(crate) store: Store,
    pub(crate) views: Views,
    pub(crate) reports: Reports,
    pub(crate) seen: Seen,
    pub(crate) intermediates: Intermediates,
    pub(crate) commands: mpsc::Sender<Command>,
}

impl Proxies {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { zone, node, allow_unbound, store, views, reports, seen, intermediates, commands } = parts;
        Self(Arc::new(Inner {
            zone,
            node,
            allow_unbound,
            store,
            views,
            reports,
            seen,
            intermediates,
            commands,
            presence: Mutex::default(),
            streams: Mutex::default(),
            next_stream: AtomicU64::new(1),
            writing: tokio::sync::Mutex::new(()),
            deadlines: Notify::new(),
        }))
    }

    /// Proxies that the store knows at start: they have a minute to come back.
    pub(crate) fn expect(&self, keys: Vec<Key>) {
        for key in &keys {
            self.0.reports.expect(key);
        }
        self.presence().expect(keys, Instant::now());
        self.0.deadlines.notify_one();
    }

    /// Ends registrations whose time is up, and streams whose token or resource is gone; until `shutdown`.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let mut tokens = self.0.seen.tokens.subscribe();
        loop {
            let deadline = self.presence().next_deadline();
            let wait = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = wait => self.expire().await,
                () = self.0.deadlines.notified() => {}
                Ok(()) = tokens.changed() => self.recheck().await,
                keys = self.0.seen.gone.next() => self.removed(keys).await,
            }
        }
    }

    async fn expire(&self) {
        let expired = self.presence().expired(Instant::now());
        for key in expired {
            tracing::info!(%key, "the proxy did not come back; it is removed");
            self.leave(key).await;
        }
    }

    /// Removes what a proxy registered, unless it has registered again meanwhile.
    async fn leave(&self, key: Key) {
        let _writing = self.0.writing.lock().await;
        if self.presence().is_known(&key) {
            return;
        }
        self.0.reports.gone(&key);
        let change = Change::Delete { key: key.clone(), expect: Expect::Any };
        if let Err(error) = self.0.store.write(&Author::new(own_name(&key), "proxy"), vec![change]).await {
            tracing::error!(%key, %error, "the proxy could not be removed; it is tried again");
            self.presence().expect_back([key], Instant::now() + crate::presence::GRACE);
            self.0.deadlines.notify_one();
            return;
        }
        self.forget(key).await;
    }

    async fn forget(&self, key: Key) {
        if self.0.commands.send(Command::Forget { key }).await.is_err() {
            tracing::debug!("the engine has stopped");
        }
    }

    /// Cuts the streams whose token no longer holds. What they registered goes at once.
    async fn recheck(&self) {
        let verifier = self.0.seen.verifier.load_full();
        let now = OffsetDateTime::now_utc();
        let mut ended = BTreeSet::new();
        for live in self.streams().values() {
            if let Err(error) = live.subject.recheck(&verifier, now) {
                tracing::warn!(key = %live.key, subject = %live.subject, %error, "the stream is cut");
                live.cut.cancel();
                ended.insert(live.key.clone());
            }
        }
        for key in ended {
            self.presence().forget(&key);
            self.leave(key).await;
        }
    }

    /// Resources of proxies that are gone from the store (a user has deleted them, say): a proxy that is there registers
    /// again.
    async fn removed(&self, keys: Vec<Key>) {
        let _writing = self.0.writing.lock().await;
        // It may have registered again since: its resource is in the store then. Who followed what was compiled of the old one is
        // told to come again.
        let mut gone = BTreeSet::new();
        for key in keys {
            match self.0.store.get(&key).await {
                Ok(None) => drop(gone.insert(key)),
                Ok(Some(_)) => {}
                Err(error) => tracing::warn!(%key, %error, "it is not known whether the proxy was removed"),
            }
        }
        for key in &gone {
            self.presence().forget(key);
            self.0.reports.gone(key);
            self.forget(key.clone()).await;
        }
        for live in self.streams().values().filter(|live| gone.contains(&live.key)) {
            live.cut.cancel();
        }
    }

    fn presence(&self) -> MutexGuard<'_, Presence> {
        self.0.presence.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn streams(&self) -> MutexGuard<'_, HashMap<StreamId, Live>> {
        self.0.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn authenticate<T>(&self, request: &Request<T>) -> Result<Subject, Status> {
        let header = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        let token = header.and_then(|value| value.strip_prefix("Bearer ")).ok_or_else(|| {
            Status::unauthenticated(
                "a token is needed: dataplane tokens for sidecars, zone tokens for ingress and egress",
            )
        })?;
        Subject::authenticate(&self.0.seen.verifier.load(), token, OffsetDateTime::now_utc())
            .map_err(|error| Status::unauthenticated(error.to_string()))
    }

    /// The proxy that a stream says it is, if its token lets it be that.
    fn admit(&self, subject: &Subject, name: &str, types: &[Arc<str>]) -> Result<Key, Status> {
        let key = proxy_key(&self.0.zone, subject, name, types).ok_or_else(|| {
            let wanted = match subject {
                Subject::Dataplane(_) => {
                    "a dataplane token is for a sidecar, <mesh>/<name>: ingress and egress need a zone token"
                }
                Subject::Zone(_) => {
                    "a zone token is for an ingress or egress, <name>: a sidecar needs a dataplane token"
                }
            };
            Status::permission_denied(format!("{name:?} does not go with the token: {wanted}"))
        })?;
        subject
            .may_be(&self.0.zone, &key, self.0.allow_unbound)
            .map_err(|denied| Status::permission_denied(denied.to_string()))?;
        Ok(key)
    }

    fn open(&self, key: &Key, subject: Subject, connection: &Connection) -> (StreamId, CancellationToken) {
        let id = StreamId(self.0.next_stream.fetch_add(1, Ordering::Relaxed));
        let cut = connection.closing.child_token();
        let live = Live { key: key.clone(), subject, connection: connection.peer, cut: cut.clone() };
        self.streams().insert(id, live);
        (id, cut)
    }

    /// The proxy that calls: by its token's name, by the streams of its connection, or as the only one of its subject.
    fn caller(&self, subject: &Subject, connection: SocketAddr) -> Option<Key> {
        let streams = self.streams();
        // By the connection first: comparing subjects of every stream would cost a storm of proxies its square.
        let here = streams.values().filter(|it| it.connection == connection && it.subject == *subject);
        let here: BTreeSet<&Key> = here.map(|it| &it.key).collect();
        if !here.is_empty() {
            return here.first().filter(|_| here.len() == 1).map(|key| (*key).clone());
        }
        let all: BTreeSet<&Key> =
            streams.values().filter(|it| it.subject == *subject).map(|it| &it.key).collect();
        all.first().filter(|_| all.len() == 1).map(|key| (*key).clone())
    }
}

/// The key of a proxy by what its stream calls it; the kind follows from the token, and for a token of both scopes from
/// the types.
fn proxy_key(zone: &str, subject: &Subject, name: &str, requested: &[Arc<str>]) -> Option<Key> {
    match subject {
        Subject::Dataplane(_) => {
            let (mesh, name) = name.split_once('/')?;
            let whole = !mesh.is_empty() && !name.is_empty();
            whole.then(|| Key::new(Dataplane::KIND, mesh, zone, name))
        }
        Subject::Zone(token) => {
            let (ingress, egress) =
                (token.claims.has(ZoneScope::Ingress), token.claims.has(ZoneScope::Egress));
            let asks = |type_: &str| requested.iter().any(|it| **it == *type_);
            let wants_egress = asks(ZoneEgress::KIND.as_str()) || asks(types::ENTRY) || asks(types::CALLER);
            let kind =
                if egress && (!ingress || wants_egress) { ZoneEgress::KIND } else { ZoneIngress::KIND };
            (!name.is_empty() && !name.contains('/')).then(|| Key::new(kind, "", zone, name))
        }
    }
}

#[tonic::async_trait]
impl Sync for Proxies {
    type PullStream = Outbound<wire::PublisherMessage>;
    type PushStream = Outbound<wire::SubscriberMessage>;

    async fn pull(
        &self,
        request: Request<Streaming<wire::SubscriberMessage>>,
    ) -> Result<Response<Self::PullStream>, Status> {
        let subject = self.authenticate(&request)?;
        let connection = connection(&request)?;
        let opened = Opened::read(request.into_inner()).await?;
        let key = self.admit(&subject, &opened.hello.node.name, &opened.hello.types)?;
        let (stream, cut) = self.open(&key, subject, &connection);
        let peer = Peer::new();
        self.0.reports.follows(&key, stream, peer.clone());
        let publisher = Publisher {
            view: self.0.views.open(&key),
            types: Vec::new(),
            part: SMALL_PART,
            node: self.0.node.clone(),
            peer: peer.clone(),
        };
        let (response, task) = publisher.answer(opened, cut);
        let proxies = self.clone();
        tokio::spawn(async move {
            let shown = proxies.show(&key, peer);
            tokio::pin!(task);
            tokio::select! {
                _ = &mut task => {}
                () = shown => {}
            }
            proxies.streams().remove(&stream);
            proxies.0.reports.unfollows(&key, stream);
            proxies.0.views.forget_pending(&key);
        });
        Ok(response)
    }

    async fn push(
        &self,
        request: Request<Streaming<wire::PublisherMessage>>,
    ) -> Result<Response<Self::PushStream>, Status> {
        let subject = self.authenticate(&request)?;
        let connection = connection(&request)?;
        let opened = Opened::read(request.into_inner()).await?;
        let key = self.admit(&subject, &opened.hello.node.name, &opened.hello.types)?;
        let epoch = opened.hello.node.epoch;
        let (stream, cut) = self.open(&key, subject.clone(), &connection);
        let sink =
            ProxySink { proxies: self.clone(), key: key.clone(), subject, stream, epoch, cut: cut.clone() };
        let subscriber = Subscriber {
            sink,
            types: Vec::new(),
            node: self.0.node.clone(),
            peer: Peer::new(),
            control: Control::new(),
        };
        let (response, task) = subscriber.answer(opened, cut);
        let proxies = self.clone();
        tokio::spawn(async move {
            let goodbye = matches!(task.await, Ok(End::Goodbye(_)));
            // Boxed: a proxy that rests has no room for what a write to the store takes.
            Box::pin(proxies.ended(&key, stream, goodbye)).await;
        });
        Ok(response)
    }
}

impl Proxies {
    /// Shows each step of a proxy's stream in its overview.
    async fn show(&self, key: &Key, peer: Peer) {
        let mut states = peer.watch();
        while states.changed().await.is_ok() {
            self.0.reports.moved(key);
        }
    }

    async fn ended(&self, key: &Key, stream: StreamId, goodbye: bool) {
        self.streams().remove(&stream);
        let was_here = self.presence().is_held_by(key, stream);
        let left = self.presence().stream_ended(key, stream, goodbye, Instant::now());
        if left {
            tracing::info!(%key, "the proxy has left");
            self.leave(key.clone()).await;
        } else if was_here {
            self.0.reports.closed(key);
        }
        self.0.deadlines.notify_one();
    }
}

/// What a proxy's own resource is called on its stream.
fn own_name(key: &Key) -> String {
    if key.mesh.is_empty() { key.name.clone() } else { format!("{}/{}", key.mesh, key.name) }
}

fn connection<T>(request: &Request<T>) -> Result<Connection, Status> {
    Connection::of(request).cloned().ok_or_else(|| Status::internal("the request came over no connection"))
}
