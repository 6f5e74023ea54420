//! The control thread against a control plane of the test's own, and then without one.

use crate::{
    apps::{Seen, call, http_app},
    world::{Ca, MESH, Sidecar, address, allow, destination, endpoint, resource, soon, until},
};
use futures::{SinkExt, StreamExt, channel::mpsc, lock::Mutex as AsyncMutex};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use meridian_delta::{
    Batch, Control as Operator, Encoded, Id, Node, Peer, Publisher, Rejected, Resume, Revision, SMALL_PART,
    Sink, SinkError, StoreId, Subscriber, View,
    client::Connector,
    server::{Connection, Limits, serve},
    stream::{Opened, Outbound},
};
use meridian_pki::{
    Identity, IdentityHandle, PrivateKey, ServerCa,
    link::{self, ServerTrust},
};
use meridian_proto::{
    delta::{
        Position, PublisherHello, PublisherMessage, Resource, SubscriberMessage, Update,
        publisher_message::Message, subscriber_message::Message as Heard, sync_server,
    },
    identity::{Certificate, SignLeafRequest, proxy_identity_server},
};
use meridian_proxy::control::{self, Link, Registration, Settings};
use meridian_proxy_config::{
    DenialReport, Outbound as ConfigOutbound, Protocol, ProxyStatus, Target, report_types, types,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};
use time::OffsetDateTime;
use tokio::net::{TcpListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

type Shown = Arc<Mutex<BTreeMap<Id, Arc<Encoded>>>>;

/// A control plane that gives one proxy what the test puts into its view.
#[derive(Clone)]
struct Plane {
    view: Arc<View>,
    pulled: Peer,
    pushed: Shown,
    ca: Arc<Mutex<Arc<Ca>>>,
    tokens: Arc<Mutex<Vec<String>>>,
    /// In place of the view: updates as the test says them, one after the other.
    by_hand: Option<Arc<AsyncMutex<mpsc::UnboundedReceiver<Update>>>>,
}

/// Publishes updates, and is silent between them.
async fn say(
    mut asked: Streaming<SubscriberMessage>,
    updates: Arc<AsyncMutex<mpsc::UnboundedReceiver<Update>>>,
    mut to: mpsc::Sender<Result<PublisherMessage, Status>>,
) {
    let position = Some(Position { store_id: vec![7; 16], revision: 0 });
    let hello = PublisherHello { protocol: meridian_delta::PROTOCOL, position, ..PublisherHello::default() };
    to.send(Ok(PublisherMessage { message: Some(Message::Hello(hello)) })).await.unwrap();
    loop {
        let heard = asked.next().await.unwrap().unwrap();
        if matches!(heard.message, Some(Heard::Have(have)) if have.last) {
            break;
        }
    }
    let mut updates = updates.lock().await;
    while let Some(update) = updates.next().await {
        to.send(Ok(PublisherMessage { message: Some(Message::Update(update)) })).await.unwrap();
    }
}

fn update(revision: u64, more: bool, resources: impl IntoIterator<Item = Arc<Encoded>>) -> Update {
    let upserts = resources.into_iter().map(|resource| Resource {
        r#type: resource.type_.to_string(),
        name: resource.name.to_string(),
        version: resource.version.0.to_vec(),
        body: resource.body.clone(),
    });
    Update { nonce: revision, revision, more, upserts: upserts.collect(), removals: Vec::new() }
}

/// `docs/metrics.md` names what a proxy counts, and nothing else.
fn the_page_of_metrics_has_all_of(scraped: &str) {
    let named: BTreeSet<&str> =
        scraped.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let page = include_str!("../../../../docs/metrics.md");
    let section = page.split("\n## ").find(|section| section.starts_with("Proxies")).unwrap();
    let told: BTreeSet<&str> = section.split('`').filter(|word| word.starts_with("meridian_")).collect();
    assert_eq!(told, named);
}

struct Shelf(Shown);

impl Sink for Shelf {
    async fn resume(&mut self) -> Result<Resume, SinkError> {
        Ok(Resume::default())
    }

    async fn apply(&mut self, batch: Batch) -> Result<Vec<Rejected>, SinkError> {
        let mut shelf = self.0.lock().unwrap();
        shelf.extend(batch.upserts.into_iter().map(|resource| (resource.id(), resource)));
        Ok(Vec::new())
    }
}

impl Plane {
    fn closing<T>(&self, request: &Request<T>) -> CancellationToken {
        let token = request.metadata().get("authorization").map(|token| token.to_str().unwrap().to_owned());
        self.tokens.lock().unwrap().extend(token);
        Connection::of(request).unwrap().closing.clone()
    }

    fn shown<T: serde::de::DeserializeOwned>(&self, kind: &str) -> Option<T> {
        let shown = self.pushed.lock().unwrap();
        let found = shown.values().find(|resource| &*resource.type_ == kind)?;
        serde_json::from_slice(&found.body).ok()
    }

    fn give(&self, revision: u64, resources: impl IntoIterator<Item = Arc<Encoded>>) {
        let changes = resources.into_iter().map(meridian_delta::ViewChange::Upsert);
        self.view.apply(Revision(revision), changes);
    }
}

#[tonic::async_trait]
impl sync_server::Sync for Plane {
    type PullStream = Outbound<PublisherMessage>;
    type PushStream = Outbound<SubscriberMessage>;

    async fn pull(
        &self,
        request: Request<Streaming<SubscriberMessage>>,
    ) -> Result<Response<Self::PullStream>, Status> {
        let closing = self.closing(&request);
        if let Some(updates) = self.by_hand.clone() {
            let (to, from) = mpsc::channel(1);
            tokio::spawn(say(request.into_inner(), updates, to));
            return Ok(Response::new(from));
        }
        let opened = Opened::read(request.into_inner()).await?;
        assert_eq!(opened.hello.node.name, "default/backend-1");
        let (view, peer) = (self.view.clone(), self.pulled.clone());
        Ok(Publisher { view, types: Vec::new(), part: SMALL_PART, node: Node::default(), peer }
            .answer(opened, closing)
            .0)
    }

    async fn push(
        &self,
        request: Request<Streaming<PublisherMessage>>,
    ) -> Result<Response<Self::PushStream>, Status> {
        let closing = self.closing(&request);
        let opened = Opened::read(request.into_inner()).await?;
        let subscriber = Subscriber {
            sink: Shelf(self.pushed.clone()),
            types: Vec::new(),
            node: Node::default(),
            peer: Peer::new(),
            control: Operator::new(),
        };
        Ok(subscriber.answer(opened, closing).0)
    }
}

#[tonic::async_trait]
impl proxy_identity_server::ProxyIdentity for Plane {
    async fn sign_leaf(&self, request: Request<SignLeafRequest>) -> Result<Response<Certificate>, Status> {
        let request = request.into_inner();
        assert_eq!(request.mesh, MESH);
        let issued = self.ca.lock().unwrap().sign("east", "backend", &request.csr);
        let chain = issued.chain.into_iter().map(|certificate| certificate.to_vec()).collect();
        Ok(Response::new(Certificate { chain, roots: Vec::new() }))
    }
}

/// Serves on an address until dropped.
struct Serving {
    address: SocketAddr,
    trust: String,
    stop: CancellationToken,
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn start(plane: Plane) -> Serving {
    let listener = TcpListener::bind(address()).await.unwrap();
    let at = listener.local_addr().unwrap();
    let now = OffsetDateTime::now_utc();
    let ca = ServerCa::generate("test", now).unwrap();
    let key = PrivateKey::generate().unwrap();
    let issued = ca.sign_server(&key, &[at.ip().to_string()], now).unwrap();
    let handle = IdentityHandle::new();
    handle.set(Identity::new(issued.chain, &key).unwrap());
    let config = Arc::new(link::server_config(handle, None, &[link::H2]).unwrap());
    let routes = tonic::service::Routes::new(sync_server::SyncServer::new(plane.clone()))
        .add_service(proxy_identity_server::ProxyIdentityServer::new(plane));
    let stop = CancellationToken::new();
    let limits = Limits { drain: Duration::from_millis(100), ..Limits::default() };
    tokio::spawn(serve(listener, Arc::new(move || config.clone()), routes, limits, stop.clone()));
    Serving { address: at, trust: ca.authority().certificate_pem(), stop }
}

const DATAPLANE: &str = "
type: Dataplane
mesh: default
name: backend-1
networking:
  address: 192.0.2.1
  inbound:
    - port: 8080
      tags:
        kuma.io/service: backend
        kuma.io/protocol: http
";

/// A proxy process, as far as one can be had in a thread.
struct Running {
    thread: thread::JoinHandle<anyhow::Result<()>>,
    readiness: SocketAddr,
    admin: std::path::PathBuf,
}

fn run(data: &Path, plane: SocketAddr, trust: &str) -> Running {
    let trust = ServerTrust::from_pem(trust).unwrap();
    let tls = Arc::new(link::client_config(trust, None, &[link::H2]).unwrap());
    let connector = Connector::new(
        format!("https://{plane}").parse().unwrap(),
        Arc::new(move || tls.clone()),
        Arc::new(|| Some("token".to_owned())),
    );
    let (readiness, admin) = (address(), data.join("admin.sock"));
    let settings = Settings {
        link: Link { connector },
        data_dir: data.to_owned(),
        readiness,
        admin_socket: Some(admin.clone()),
        workers: 1,
        drain_time: Duration::from_secs(5),
        capture_file: data.join("capture.json"),
        dns_port: None,
        metrics_files: None,
    };
    let registration = Registration::from_text(DATAPLANE, "Dataplane", &[]).unwrap();
    Running { thread: thread::spawn(move || control::run(settings, registration)), readiness, admin }
}

impl Running {
    async fn ready(&self) {
        until("readiness", async || {
            let stream = tokio::net::TcpStream::connect(self.readiness).await.ok()?;
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
            tokio::spawn(connection);
            let request = http::Request::get("/ready").body(Empty::<bytes::Bytes>::new()).unwrap();
            (sender.send_request(request).await.ok()?.status() == 200).then_some(())
        })
        .await;
    }

    async fn admin(&self, method: &str, path: &str) -> String {
        let stream = UnixStream::connect(&self.admin).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request =
            http::Request::builder().method(method).uri(path).body(Empty::<bytes::Bytes>::new()).unwrap();
        let response = soon(path, sender.send_request(request)).await.unwrap();
        String::from_utf8(response.collect().await.unwrap().to_bytes().to_vec()).unwrap()
    }

    async fn stop(self) {
        self.admin("POST", "/drain").await;
        let ended = tokio::task::spawn_blocking(move || self.thread.join().unwrap());
        soon("the end", ended).await.unwrap().unwrap();
    }
}

struct Scene {
    plane: Plane,
    web: Sidecar,
    outbound: SocketAddr,
    inbound: SocketAddr,
    application: SocketAddr,
    seen: Seen,
    template: Sidecar,
}

/// `web`, fed directly, calls `backend`, which has a control plane.
async fn scene() -> Scene {
    let (application, seen) = http_app(false).await;
    let ca = Arc::new(Ca::new(MESH, &["east"]));
    let web = Sidecar::start(&ca, "east", "web");
    let template = Sidecar::start(&ca, "east", "backend");
    let (outbound, inbound) = (address(), address());
    let set = meridian_proxy_config::EndpointSet { endpoints: vec![endpoint(inbound, "east")] };
    web.feed(types::ENDPOINTS, "backend", &set);
    web.feed(types::DESTINATION, "backend", &destination(Protocol::Http, &["backend"]));
    let target = Target::Destination("backend".into());
    let port = outbound.port();
    let bound = ConfigOutbound { bind: Some(outbound), vips: vec![], port, hostnames: vec![], target };
    web.feed(types::OUTBOUND, "backend", &bound);
    web.settled().await;
    let plane = Plane {
        view: View::new(StoreId([7; 16]), Revision(0)),
        pulled: Peer::new(),
        pushed: Shown::default(),
        ca: Arc::new(Mutex::new(ca)),
        tokens: Arc::default(),
        by_hand: None,
    };
    Scene { plane, web, outbound, inbound, application, seen, template }
}

impl Scene {
    fn inbound_for(&self, services: &[&str]) -> Arc<Encoded> {
        let mut inbound = self.template.inbound(Protocol::Http, self.inbound, self.application);
        inbound.permission = allow(services);
        resource(types::INBOUND, "main", &inbound)
    }

    /// What a control plane gives once the proxy has registered.
    fn first(&self) -> Vec<Arc<Encoded>> {
        let known = self.template.engine.all();
        known.into_iter().chain([self.inbound_for(&["web"])]).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_of_a_change_holds_though_its_rest_never_comes() {
    let scene = scene().await;
    let (updates, from) = mpsc::unbounded();
    let plane = Plane { by_hand: Some(Arc::new(AsyncMutex::new(from))), ..scene.plane.clone() };
    let data = tempfile::tempdir().unwrap();
    let serving = start(plane).await;
    let running = run(data.path(), serving.address, &serving.trust);
    updates.unbounded_send(update(1, false, scene.first())).unwrap();
    running.ready().await;
    assert_eq!(call(scene.outbound, "/headers").await.status, 200);
    updates.unbounded_send(update(2, true, [scene.inbound_for(&[])])).unwrap();
    until("the refusal", async || (call(scene.outbound, "/headers").await.status == 403).then_some(())).await;
    running.stop().await;
}

/// More of it than goes into one message.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_is_ready_once_all_parts_of_its_configuration_hold() {
    let scene = scene().await;
    let data = tempfile::tempdir().unwrap();
    let serving = start(scene.plane.clone()).await;
    let bound: Vec<SocketAddr> = (0..5).map(|_| address()).collect();
    let outbounds = (0..5_000_usize).map(|number| {
        let bind = (number % 1_000 == 500).then(|| bound[number / 1_000]);
        let (port, target) = (bind.map_or(80, |bind| bind.port()), Target::Destination("backend".into()));
        let hostnames = vec![format!("service-{number}.of-a-namespace.svc.of-a-zone.mesh.local")];
        let outbound = ConfigOutbound { bind, vips: vec![], port, hostnames, target };
        resource(types::OUTBOUND, &format!("outbound-{number:04}"), &outbound)
    });
    scene.plane.give(1, scene.first().into_iter().chain(outbounds));
    let running = run(data.path(), serving.address, &serving.trust);
    running.ready().await;
    for address in bound {
        // It knows no such destination, and says so by a reset; nobody listening would be something else.
        let refused = std::io::ErrorKind::ConnectionRefused;
        let failed = tokio::net::TcpStream::connect(address).await.err();
        assert_ne!(failed.map(|error| error.kind()), Some(refused));
    }
    assert_eq!(call(scene.outbound, "/headers").await.status, 200);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_lives_with_its_control_plane_and_without() {
    let scene = scene().await;
    let plane = &scene.plane;
    let data = tempfile::tempdir().unwrap();
    let serving = start(plane.clone()).await;
    let running = run(data.path(), serving.address, &serving.trust);

    // It registers, is given its configuration, and gets a certificate for it.
    until("its registration", async || {
        let shown = plane.pushed.lock().unwrap();
        shown.contains_key(&Id::new("Dataplane", "default/backend-1")).then_some(())
    })
    .await;
    plane.give(1, scene.first());
    running.ready().await;
    assert!(plane.tokens.lock().unwrap().iter().all(|token| token == "Bearer token"));
    assert_eq!(call(scene.outbound, "/headers").await.status, 200);
    until("its status", async || {
        let status: ProxyStatus = plane.shown(report_types::STATUS)?;
        (status.certificates.len() == 1 && status.inbounds.len() == 1).then_some(())
    })
    .await;

    // A change is enforced at once, and what it refuses is reported.
    plane.give(2, [scene.inbound_for(&[])]);
    until("the refusal", async || (call(scene.outbound, "/headers").await.status == 403).then_some(())).await;
    until("the report", async || {
        let report: DenialReport = plane.shown(report_types::DENIALS)?;
        let row = report.denials.first()?;
        (row.caller == "spiffe://default/web" && row.by == "sidecar backend-1").then_some(())
    })
    .await;

    // What it can't accept is visible, with the reason, and does not stop the rest.
    let odd = resource(types::OUTBOUND, "odd", &serde_json::json!({"not": "an outbound"}));
    plane.give(3, [odd, scene.inbound_for(&["web"])]);
    until("the rejection", async || {
        let state = plane.pulled.state();
        state.rejected.first().filter(|one| one.reason.contains("not")).map(drop)
    })
    .await;
    until("the rest", async || (call(scene.outbound, "/headers").await.status == 200).then_some(())).await;
    let config = running.admin("GET", "/config").await;
    assert!(config.contains("\"refused\"") && config.contains("odd"), "{config}");
    let scraped = running.admin("GET", "/metrics").await;
    assert!(scraped.contains("meridian_proxy_config_revision 3"));
    the_page_of_metrics_has_all_of(&scraped);

    // The control plane goes, and the process is replaced: the new one serves from what is on disk.
    drop(serving);
    running.stop().await;
    for name in ["config.json", "identities/default.json"] {
        let mode = std::fs::metadata(data.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let nobody = address();
    let trust = meridian_pki::ServerCa::generate("none", OffsetDateTime::now_utc()).unwrap();
    let again = run(data.path(), nobody, &trust.authority().certificate_pem());
    again.ready().await;
    let before = scene.seen.requests();
    until("the old connection is noticed", async || {
        (call(scene.outbound, "/headers").await.status == 200).then_some(())
    })
    .await;
    assert_eq!(scene.seen.requests(), before + 1);
    assert!(scene.web.denials().is_empty());
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_nobody_believes_any_more_is_replaced() {
    let scene = scene().await;
    let plane = &scene.plane;
    let data = tempfile::tempdir().unwrap();
    let serving = start(plane.clone()).await;
    let running = run(data.path(), serving.address, &serving.trust);
    let status = || plane.shown::<ProxyStatus>(report_types::STATUS);
    let root = || Some(status()?.certificates.first()?.root.clone());
    let of = |ca: &Ca| {
        let roots = meridian_pki::certificates_from_pem(&ca.bundle().roots[0]).unwrap();
        meridian_pki::SpkiHash::of_certificate(&roots[0]).unwrap().to_string()
    };
    plane.give(1, scene.first());
    running.ready().await;
    let first = of(&plane.ca.lock().unwrap());
    until("a certificate of the first root", async || (root()? == first).then_some(())).await;

    // The root was rotated while the proxy could not hear of it: of the bundle that it knew nothing is left. What the
    // control plane signs is not believed either, until it has followed.
    let second = Arc::new(Ca::new(MESH, &["east"]));
    plane.give(2, [resource(types::BUNDLE, MESH, &second.bundle())]);
    until("the complaint", async || {
        running.admin("GET", "/stats").await.contains("not believed").then_some(())
    })
    .await;
    *plane.ca.lock().unwrap() = second.clone();
    until("a certificate of the second root", async || (root()? == of(&second)).then_some(())).await;
    running.stop().await;
}
