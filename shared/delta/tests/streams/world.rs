//! A control plane and one that dials it, over real TLS on the loopback.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use meridian_delta::client::{Address, Connector};
use meridian_delta::server::{Connection, Limits, serve};
use meridian_delta::stream::{End, Opened, Outbound};
use meridian_delta::{
    Batch, Control, Encoded, Id, Node, PART, Peer, Position, Publisher, Rejected, Resume, Revision,
    SMALL_PART, Sink, SinkError, StoreId, Subscriber, Version, View, ViewChange,
};
use meridian_proto::delta::sync_server::{Sync, SyncServer};
use meridian_proto::delta::{PublisherMessage, SubscriberMessage};
use rustls::{ClientConfig, ServerConfig};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::pki::{Ca, client_config, server_config};

pub(crate) const STORE: StoreId = StoreId([1; 16]);

/// Waits until it holds, at most 10 s.
pub(crate) async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "{what}: not within 10 s");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// What a subscriber holds, "on disk": it outlives its sink.
#[derive(Clone)]
pub(crate) struct Disk {
    pub(crate) held: Arc<Mutex<BTreeMap<Id, Version>>>,
    position: Arc<Mutex<Option<Position>>>,
    /// Bodies that are rejected.
    pub(crate) rejects: Arc<Mutex<Vec<Vec<u8>>>>,
    /// Closed: the sink does not finish.
    pub(crate) open: watch::Sender<bool>,
}

impl Disk {
    pub(crate) fn new() -> Disk {
        Disk {
            held: Arc::default(),
            position: Arc::default(),
            rejects: Arc::default(),
            open: watch::Sender::new(true),
        }
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.held.lock().unwrap().keys().map(|id| id.name.to_string()).collect()
    }

    pub(crate) fn holds(&self, view: &View) -> bool {
        let theirs: BTreeMap<_, _> = view.list().iter().map(|each| (each.id(), each.version)).collect();
        *self.held.lock().unwrap() == theirs
    }
}

impl Sink for Disk {
    async fn resume(&mut self) -> Result<Resume, SinkError> {
        let have = self.held.lock().unwrap().iter().map(|(id, version)| (id.clone(), *version)).collect();
        Ok(Resume { position: *self.position.lock().unwrap(), have })
    }

    async fn apply(&mut self, batch: Batch) -> Result<Vec<Rejected>, SinkError> {
        self.open.subscribe().wait_for(|open| *open).await?;
        let mut held = self.held.lock().unwrap();
        let mut rejected = Vec::new();
        for resource in batch.upserts {
            if self.rejects.lock().unwrap().iter().any(|body| *body == resource.body) {
                let reason = "not acceptable here".to_owned();
                rejected.push(Rejected { id: resource.id(), version: resource.version, reason });
            } else {
                held.insert(resource.id(), resource.version);
            }
        }
        for id in batch.removals {
            held.remove(&id);
        }
        let mut position = self.position.lock().unwrap();
        *position = batch.position.or(*position);
        Ok(rejected)
    }
}

/// The token of a call, and how many certificates came with it.
type Call = (Option<String>, usize);

/// What a called control plane knows, whichever process serves it.
#[derive(Clone)]
pub(crate) struct Called {
    pub(crate) view: Arc<View>,
    pub(crate) pulled: Peer,
    pub(crate) disk: Disk,
    pub(crate) pushed: Peer,
    pub(crate) calls: Arc<Mutex<Vec<Call>>>,
    pub(crate) ends: Arc<Mutex<Vec<String>>>,
}

impl Called {
    fn admit<T>(&self, request: &Request<T>) -> Result<CancellationToken, Status> {
        let connection = Connection::of(request).ok_or_else(|| Status::internal("no connection"))?;
        let token = request.metadata().get("authorization").map(|token| token.to_str().unwrap().to_owned());
        self.calls.lock().unwrap().push((token, connection.certificates.len()));
        Ok(connection.closing.clone())
    }

    fn record(&self, end: JoinHandle<End>) {
        let ends = self.ends.clone();
        tokio::spawn(async move {
            let end = match end.await.unwrap() {
                End::Goodbye(reason) => format!("goodbye {reason}"),
                End::Closed => "closed".to_owned(),
                End::Lost(_) => "lost".to_owned(),
            };
            ends.lock().unwrap().push(end);
        });
    }

    pub(crate) fn ended(&self, how: &str) -> usize {
        self.ends.lock().unwrap().iter().filter(|end| end.starts_with(how)).count()
    }
}

#[tonic::async_trait]
impl Sync for Called {
    type PullStream = Outbound<PublisherMessage>;
    type PushStream = Outbound<SubscriberMessage>;

    async fn pull(
        &self,
        request: Request<Streaming<SubscriberMessage>>,
    ) -> Result<Response<Self::PullStream>, Status> {
        let closing = self.admit(&request)?;
        let opened = Opened::read(request.into_inner()).await?;
        let publisher = Publisher {
            view: self.view.clone(),
            types: Vec::new(),
            part: PART,
            node: Node::default(),
            peer: self.pulled.clone(),
        };
        let (response, end) = publisher.answer(opened, closing);
        self.record(end);
        Ok(response)
    }

    async fn push(
        &self,
        request: Request<Streaming<PublisherMessage>>,
    ) -> Result<Response<Self::PushStream>, Status> {
        let closing = self.admit(&request)?;
        let opened = Opened::read(request.into_inner()).await?;
        if opened.hello.node.name == "stranger" {
            return Err(Status::permission_denied("no stranger may push"));
        }
        let subscriber = Subscriber {
            sink: self.disk.clone(),
            types: Vec::new(),
            node: Node::default(),
            peer: self.pushed.clone(),
            control: Control::new(),
        };
        let (response, end) = subscriber.answer(opened, closing);
        self.record(end);
        Ok(response)
    }
}

/// A process that serves, until it is stopped (with a drain) or killed.
pub(crate) struct Serving {
    pub(crate) shutdown: CancellationToken,
    task: JoinHandle<()>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Serving {
    /// In a runtime of its own: killing it drops all its connections at once, as the kernel does for a process.
    pub(crate) fn start(
        listener: std::net::TcpListener,
        called: Called,
        tls: Arc<ArcSwap<ServerConfig>>,
        limits: Limits,
    ) -> Serving {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone();
        let task = runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            let routes = tonic::service::Routes::new(SyncServer::new(called));
            serve(listener, Arc::new(move || tls.load_full()), routes, limits, stop).await;
        });
        Serving { shutdown, task, runtime: Some(runtime) }
    }

    pub(crate) fn kill(mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }

    pub(crate) async fn stop(mut self) {
        self.shutdown.cancel();
        (&mut self.task).await.unwrap();
        self.runtime.take().unwrap().shutdown_background();
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Both ends. The caller pulls into `disk` and pushes `view`.
pub(crate) struct World {
    pub(crate) called: Called,
    pub(crate) server_tls: Arc<ArcSwap<ServerConfig>>,
    pub(crate) client_tls: Arc<ArcSwap<ClientConfig>>,
    pub(crate) address: SocketAddr,
    pub(crate) limits: Limits,
    pub(crate) disk: Disk,
    pub(crate) pulled: Peer,
    pub(crate) control: Control,
    pub(crate) view: Arc<View>,
    pub(crate) pushed: Peer,
    pub(crate) node: Node,
    pub(crate) closing: CancellationToken,
}

impl World {
    pub(crate) fn new() -> World {
        let ca = Ca::new();
        World::with(server_config(&ca, None), client_config(&ca, None))
    }

    pub(crate) fn with(server: Arc<ServerConfig>, client: Arc<ClientConfig>) -> World {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        World {
            called: Called {
                view: View::new(STORE, Revision(0)),
                pulled: Peer::new(),
                disk: Disk::new(),
                pushed: Peer::new(),
                calls: Arc::default(),
                ends: Arc::default(),
            },
            server_tls: Arc::new(ArcSwap::new(server)),
            client_tls: Arc::new(ArcSwap::new(client)),
            address: listener.local_addr().unwrap(),
            limits: Limits { drain: Duration::from_secs(2), ..Limits::default() },
            disk: Disk::new(),
            pulled: Peer::new(),
            control: Control::new(),
            view: View::new(StoreId([9; 16]), Revision(0)),
            pushed: Peer::new(),
            node: Node { name: "caller".to_owned(), instance: "one".to_owned(), epoch: 7, ..Node::default() },
            closing: CancellationToken::new(),
        }
    }

    /// Starts the server, at the same address each time: once the one before has gone.
    pub(crate) async fn serve(&self) -> Serving {
        let bound = Mutex::new(None);
        eventually("the address is free", || {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.set_reuseaddr(true).unwrap();
            *bound.lock().unwrap() = socket.bind(self.address).and_then(|()| socket.listen(64)).ok();
            bound.lock().unwrap().is_some()
        })
        .await;
        let listener = bound.into_inner().unwrap().unwrap().into_std().unwrap();
        Serving::start(listener, self.called.clone(), self.server_tls.clone(), self.limits.clone())
    }

    pub(crate) fn connector(&self) -> Connector {
        let address: Address = format!("https://localhost:{}", self.address.port()).parse().unwrap();
        let tls = self.client_tls.clone();
        Connector::new(address, Arc::new(move || tls.load_full()), Arc::new(|| Some("secret".to_owned())))
    }

    pub(crate) fn pull(&self, connector: &Connector) -> JoinHandle<()> {
        let mut subscriber = Subscriber {
            sink: self.disk.clone(),
            types: Vec::new(),
            node: self.node.clone(),
            peer: self.pulled.clone(),
            control: self.control.clone(),
        };
        let (connector, closing) = (connector.clone(), self.closing.clone());
        tokio::spawn(async move { connector.pull(&mut subscriber, closing).await })
    }

    pub(crate) fn push(&self, connector: &Connector) -> JoinHandle<()> {
        let publisher = Publisher {
            view: self.view.clone(),
            types: Vec::new(),
            part: SMALL_PART,
            node: self.node.clone(),
            peer: self.pushed.clone(),
        };
        let (connector, closing) = (connector.clone(), self.closing.clone());
        tokio::spawn(async move { connector.push(&publisher, closing).await })
    }

    pub(crate) async fn pulled_all(&self) {
        eventually("the caller holds what the called publishes", || self.disk.holds(&self.called.view)).await;
    }
}

/// Revision `revision` puts `names` with `body`.
pub(crate) fn put(view: &View, revision: u64, names: impl IntoIterator<Item = usize>, body: &str) {
    let upsert = |name: usize| {
        ViewChange::Upsert(Encoded::new("Thing", format!("thing-{name:03}"), body.to_owned()).unwrap())
    };
    view.apply(Revision(revision), names.into_iter().map(upsert));
}
