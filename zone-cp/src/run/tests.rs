//! A whole zone control plane in this process, and proxies that speak to it over real TLS.

mod certificate;
mod examples;
mod inspect;

use super::*;
use crate::compile::fixture::{dataplane, global, strict};
use meridian_api::access::Access;
use meridian_auth::{DataplaneClaims, SigningKey};
use meridian_core::{Key, Resource};
use meridian_delta::client::{Address, Connector};
use meridian_delta::{
    Batch, Control, Encoded, Peer, Publisher, Rejected, Resume, Revision, SMALL_PART, Sink, SinkError,
    Subscriber, View, ViewChange,
};
use meridian_pki::link::{ServerTrust, client_config};
use meridian_pki::{PrivateKey, RootCa, TrustStore, Usage, certificates_to_pem};
use meridian_proto::identity::SignLeafRequest;
use meridian_proto::identity::proxy_identity_client::ProxyIdentityClient;
use meridian_proxy_config::{Bundle, CertificateStatus, InboundStatus, ProxyStatus, report_types};
use meridian_store::{Author, Change, Expect};
use rustls_pki_types::CertificateDer;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How long a condition may take.
const PATIENCE: Duration = Duration::from_secs(10);

struct Zone {
    bound: Bound,
    store: Store,
    shutdown: CancellationToken,
    tasks: TaskTracker,
    trust: ServerTrust,
}

impl Zone {
    async fn start(dir: &Path) -> Self {
        Self::start_with(dir, |_| ()).await
    }

    async fn start_with(dir: &Path, change: impl FnOnce(&mut Config)) -> Self {
        let any = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
        let mut config = Config {
            zone: Some("east".into()),
            data_dir: Some(dir.to_owned()),
            api_http: any,
            api_https: any,
            proxy_listen: any,
            diagnostics: any,
            access: Some(Access { local_is_admin: true, ..Access::default() }),
            ..Config::default()
        };
        change(&mut config);
        let settings = config.resolve().unwrap();
        let keys = KeyRing::load_or_create(&settings.encryption_key_file).unwrap();
        let store = Store::open(StoreOptions::new(&settings.store_url, keys, "test")).await.unwrap();
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        let listeners = Listeners::bind(&settings).await.unwrap();
        let node = node(&settings.zone);
        let bound = start(&settings, node, store.clone(), listeners, &tasks, shutdown.clone()).await.unwrap();
        tasks.close();
        let ca = std::fs::read_to_string(dir.join("ca.crt")).unwrap();
        Self { bound, store, shutdown, tasks, trust: ServerTrust::from_pem(&ca).unwrap() }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.tasks.wait().await;
    }

    async fn dataplane(&self, name: &str) -> Option<Resource> {
        let found = self.store.get(&crate::compile::fixture::sidecar("east", name)).await.unwrap();
        found.map(|stored| stored.resource)
    }

    async fn service_is(&self, name: &str, state: &str) {
        let key = Key::new(crate::compile::fixture::kind("MeshService"), "default", "east", name);
        until(&format!("{name} is {state}"), async || {
            let stored = self.store.get(&key).await.unwrap();
            stored.is_some_and(|it| it.resource.spec["state"] == json!(state))
        })
        .await;
    }
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !holds().await {
        assert!(tokio::time::Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What global would have sent down, and signed.
struct Global {
    root: RootCa,
    tokens: SigningKey,
}

impl Global {
    fn new() -> Self {
        let root = RootCa::generate("default", OffsetDateTime::now_utc()).unwrap();
        Self { root, tokens: SigningKey::generate("1").unwrap() }
    }

    fn bundle(&self) -> Bundle {
        let roots = vec![self.root.authority().certificate_pem()];
        Bundle { mesh: "default".into(), roots, revoked: Vec::new() }
    }

    /// Fills a store before its control plane starts.
    async fn seed(&self, dir: &Path) {
        let keys = KeyRing::load_or_create(&dir.join("encryption-key")).unwrap();
        let url = format!("sqlite:{}", dir.join("zone.db").display());
        let store = Store::open(StoreOptions::new(url, keys, "seed")).await.unwrap();
        let resources = [
            global("Mesh", "", "default", strict()),
            global("TrustBundle", "default", "default", json!({"roots": self.bundle().roots, "revoked": []})),
            global(
                "TokenKey",
                "",
                "dataplane-default-1",
                json!({
                    "purpose": "dataplane", "mesh": "default", "kid": "1",
                    "publicKeyPem": self.tokens.public_key_pem(),
                }),
            ),
        ];
        let put = |resource| Change::Put { resource, expect: Expect::Any };
        let mut changes: Vec<Change> = resources.into_iter().map(put).collect();
        let key = PrivateKey::generate().unwrap();
        let signed =
            self.root.sign_intermediate(&key.request().unwrap(), "east", OffsetDateTime::now_utc()).unwrap();
        let value = json!({"certificate": certificates_to_pem(&signed.chain), "key": *key.to_pem()});
        changes.push(Change::PutPrivate {
            bucket: "intermediates".into(),
            key: "default".into(),
            value: value.to_string().into_bytes(),
        });
        store.write(&Author::new("global", "sync"), changes).await.unwrap();
    }

    fn token(&self, name: &str, service: &str) -> meridian_auth::IssuedToken {
        let tags = BTreeMap::from([("kuma.io/service".to_owned(), vec![service.to_owned()])]);
        let claims =
            DataplaneClaims { name: name.into(), mesh: "default".into(), tags, ..DataplaneClaims::default() };
        self.tokens.issue(&claims, time::Duration::hours(1), OffsetDateTime::now_utc()).unwrap()
    }
}

/// A global control plane in this process.
struct RealGlobal {
    api: SocketAddr,
    sync: SocketAddr,
    data_dir: PathBuf,
    /// Of its administrator.
    token: String,
    /// The file with which the zone east may join.
    zone_token: PathBuf,
    shutdown: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl RealGlobal {
    /// All of it is kept in `dir`.
    async fn start(dir: &Path) -> Self {
        let (api, sync) = (free_address(), free_address());
        let (data_dir, zone_token) = (dir.join("global"), dir.join("token"));
        let config = meridian_global_cp::Config {
            data_dir: Some(data_dir.clone()),
            api_http: Some(api),
            api_https: Some(free_address()),
            sync_listen: Some(sync),
            diagnostics: Some(free_address()),
            ..Default::default()
        };
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(meridian_global_cp::run(config, shutdown.clone()));
        until("global is there", async || tokio::net::TcpStream::connect(api).await.is_ok()).await;
        let token = std::fs::read_to_string(data_dir.join("admin-token")).unwrap();
        let global = Self { api, sync, data_dir, token, zone_token, shutdown, task };
        let asked = r#"{"zone": "east", "scope": ["cp"], "validFor": "1h"}"#;
        let answer = global.ask("POST", "/tokens/zone", asked).await;
        std::fs::write(&global.zone_token, answer.split("\r\n\r\n").nth(1).unwrap().trim()).unwrap();
        global
    }

    /// One request of its administrator.
    async fn ask(&self, method: &str, path: &str, body: &str) -> String {
        rest(self.api.port(), method, path, &self.token, body).await
    }

    /// How a zone is configured that has joined it.
    fn joined(&self) -> impl Fn(&mut Config) + use<> {
        let address = format!("https://127.0.0.1:{}", self.sync.port());
        let (ca, token) = (self.data_dir.join("ca.crt"), self.zone_token.clone());
        move |config| {
            config.global_address = Some(address.clone());
            config.ca_cert_file = Some(ca.clone());
            config.zone_token_file = Some(token.clone());
        }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }
}

type Received = BTreeMap<(String, String), Arc<Encoded>>;

struct Collect(watch::Sender<Received>);

impl Sink for Collect {
    async fn resume(&mut self) -> Result<Resume, SinkError> {
        Ok(Resume::default())
    }

    async fn apply(&mut self, batch: Batch) -> Result<Vec<Rejected>, SinkError> {
        self.0.send_modify(|all| {
            for it in batch.upserts {
                all.insert((it.type_.to_string(), it.name.to_string()), it);
            }
            for id in batch.removals {
                all.remove(&(id.type_.to_string(), id.name.to_string()));
            }
        });
        Ok(Vec::new())
    }
}

/// A sidecar, as far as its control plane can tell.
struct Proxy {
    connector: Connector,
    view: Arc<View>,
    pushed: Peer,
    pulled: Peer,
    received: watch::Receiver<Received>,
    closing: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Proxy {
    fn connect(zone: &Zone, token: &str, resource: &Resource) -> Self {
        Self::connect_when(zone, token, resource, std::future::ready(()))
    }

    /// Registers only at that time; it asks for its configuration at once.
    fn connect_when(
        zone: &Zone,
        token: &str,
        resource: &Resource,
        registers: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        let tls = Arc::new(client_config(zone.trust.clone(), None, &[H2]).unwrap());
        let address: Address = format!("https://127.0.0.1:{}", zone.bound.proxies.port()).parse().unwrap();
        let token = token.to_owned();
        let connector =
            Connector::new(address, Arc::new(move || tls.clone()), Arc::new(move || Some(token.clone())));
        let name = format!("{}/{}", resource.key.mesh, resource.key.name);
        let node = Node { name: name.clone(), ..super::node("proxy") };
        let view = View::new(StoreId([7; 16]), Revision(0));
        let own = Encoded::new("Dataplane", name, resource.canonical()).unwrap();
        view.replace(Revision(1), [own]);
        let (sender, received) = watch::channel(Received::new());
        let (pushed, pulled, closing) = (Peer::new(), Peer::new(), CancellationToken::new());
        let publisher = Publisher {
            view: view.clone(),
            types: Vec::new(),
            part: SMALL_PART,
            node: node.clone(),
            peer: pushed.clone(),
        };
        let mut subscriber = Subscriber {
            sink: Collect(sender),
            types: Vec::new(),
            node,
            peer: pulled.clone(),
            control: Control::new(),
        };
        let push = (connector.clone(), closing.clone());
        let pull = (connector.clone(), closing.clone());
        let tasks = vec![
            tokio::spawn(async move {
                registers.await;
                push.0.push(&publisher, push.1).await;
            }),
            tokio::spawn(async move { pull.0.pull(&mut subscriber, pull.1).await }),
        ];
        Self { connector, view, pushed, pulled, received, closing, tasks }
    }

    async fn has(&mut self, type_: &str, name: &str) -> Arc<Encoded> {
        let id = (type_.to_owned(), name.to_owned());
        let found = self.received.wait_for(|all| all.contains_key(&id));
        let all = tokio::time::timeout(PATIENCE, found).await;
        let all = all.unwrap_or_else(|_| panic!("{type_} {name} did not come")).unwrap();
        all[&id].clone()
    }

    async fn refused(&self) -> String {
        let mut states = self.pushed.watch();
        let refused = states.wait_for(|state| !state.rejected.is_empty());
        let state = tokio::time::timeout(PATIENCE, refused).await.expect("a refusal").unwrap();
        state.rejected[0].reason.clone()
    }

    fn report(&self, ready: bool, certificate: Option<&OffsetDateTime>) {
        let expires =
            |at: &OffsetDateTime| at.format(&time::format_description::well_known::Rfc3339).unwrap();
        let status = ProxyStatus {
            role: meridian_proxy_config::Role::Sidecar,
            version: "1".into(),
            instance: "i".into(),
            outbound_enforcement: "strict".into(),
            problems: vec![],
            inbounds: vec![InboundStatus { name: "8080".into(), ready }],
            certificates: certificate
                .map(|at| CertificateStatus {
                    mesh: "default".into(),
                    expires: expires(at),
                    root: "r".into(),
                })
                .into_iter()
                .collect(),
        };
        let body = serde_json::to_vec(&status).unwrap();
        let encoded = Encoded::new(report_types::STATUS, "self", body).unwrap();
        self.view.apply(self.view.revision(), [ViewChange::Upsert(encoded)]);
    }

    async fn leaf(&self) -> Result<Vec<CertificateDer<'static>>, tonic::Status> {
        let csr = PrivateKey::generate().unwrap().request().unwrap();
        let mut client = ProxyIdentityClient::new(self.connector.channel().await.unwrap());
        let answer = client.sign_leaf(SignLeafRequest { mesh: "default".into(), csr }).await?;
        Ok(answer.into_inner().chain.into_iter().map(CertificateDer::from).collect())
    }

    /// A goodbye on both streams.
    async fn leave(self) {
        self.closing.cancel();
        for task in self.tasks {
            task.await.unwrap();
        }
    }

    /// Cut off without a word.
    fn kill(self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

fn web() -> Resource {
    let mut resource = dataplane("east", "web-1", "web", "127.0.0.1", 8080, "http");
    resource.labels.clear();
    resource
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_registers_receives_its_configuration_gets_a_certificate_and_leaves() {
    let dir = tempfile::tempdir().unwrap();
    let global = Global::new();
    global.seed(dir.path()).await;
    let zone = Zone::start(dir.path()).await;
    let mut proxy = Proxy::connect(&zone, &global.token("web-1", "web").text, &web());

    let inbound = proxy.has("Inbound", "8080").await;
    assert!(String::from_utf8_lossy(&inbound.body).contains("\"tls\":\"strict\""));
    proxy.has("Proxy", "self").await;
    proxy.has("Bundle", "default").await;

    let chain = proxy.leaf().await.unwrap();
    let now = OffsetDateTime::now_utc();
    let peer =
        TrustStore::compile(&global.bundle()).unwrap().verify_peer(&chain, Usage::Client, now).unwrap();
    assert_eq!(peer.identity.spiffe, ["spiffe://default/web"]);
    assert_eq!((peer.identity.zone.as_str(), peer.identity.dataplane.as_deref()), ("east", Some("web-1")));
    assert!(peer.identity.tags["kuma.io/service"].contains("web"));

    zone.service_is("web", "Unavailable").await;
    proxy.report(true, None);
    proxy.report(true, Some(&peer.not_after));
    zone.service_is("web", "Available").await;
    proxy.has("EndpointSet", "default/east/web/8080").await;
    proxy.report(false, Some(&peer.not_after));
    zone.service_is("web", "Unavailable").await;

    proxy.leave().await;
    until("the Dataplane is gone at once", async || zone.dataplane("web-1").await.is_none()).await;
    zone.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_proxy_acknowledges_is_seen_though_it_registers_after_its_stream_began() {
    let dir = tempfile::tempdir().unwrap();
    let global = Global::new();
    global.seed(dir.path()).await;
    let zone = Zone::start(dir.path()).await;
    let (register, registers) = tokio::sync::oneshot::channel::<()>();
    let registers = async move { drop(registers.await) };
    let token = global.token("web-1", "web").text;
    let mut proxy = Proxy::connect_when(&zone, &token, &web(), registers);
    until("its stream has begun", async || proxy.pulled.state().node.is_some()).await;
    register.send(()).unwrap();
    proxy.has("Bundle", "default").await;

    let root = global.root.authority().key().spki_hash().to_string();
    let port = zone.bound.api_http.port();
    until("its overview says how far it is and whom it believes", async || {
        let answer = rest(port, "GET", "/meshes/default/dataplanes/web-1/_overview", "", "").await;
        let body = answer.split("\r\n\r\n").nth(1).unwrap_or_default();
        let seen: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
        seen["revision"].as_u64() > Some(0) && seen["trustedRoots"]["default"] == json!([root])
    })
    .await;
    proxy.leave().await;
    zone.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_token_does_not_allow_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let global = Global::new();
    global.seed(dir.path()).await;
    let zone = Zone::start(dir.path()).await;

    let sly = Proxy::connect(&zone, &global.token("web-1", "backend").text, &web());
    assert!(sly.refused().await.contains("kuma.io/service: web"));
    assert!(sly.leaf().await.unwrap_err().message().contains("not registered"));
    assert_eq!(zone.dataplane("web-1").await, None);
    sly.leave().await;

    let mut honest = Proxy::connect(&zone, &global.token("web-1", "web").text, &web());
    honest.has("Proxy", "self").await;
    let before = zone.dataplane("web-1").await;
    // Another subject that may be web-1 too, and whose name is taken.
    let mut moved = web();
    moved.spec["networking"]["address"] = json!("127.0.0.9");
    let thief = Proxy::connect(&zone, &global.token("", "web").text, &moved);
    assert!(thief.refused().await.contains("live stream of another subject"));
    assert_eq!(zone.dataplane("web-1").await, before);
    thief.leave().await;
    assert!(honest.leaf().await.is_ok());

    let none = Proxy::connect(&zone, "no token", &web());
    until("no stream without a token", async || {
        none.pushed.state().error.is_some_and(|error| error.contains("not a token"))
    })
    .await;
    none.kill();
    honest.leave().await;
    zone.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_token_ends_its_stream_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let global = Global::new();
    global.seed(dir.path()).await;
    let zone = Zone::start(dir.path()).await;
    let token = global.token("web-1", "web");
    let mut proxy = Proxy::connect(&zone, &token.text, &web());
    proxy.has("Proxy", "self").await;
    let revocation = crate::compile::fixture::global(
        "TokenRevocation",
        "",
        "dataplane-default",
        json!({"purpose": "dataplane", "mesh": "default", "ids": [token.id]}),
    );
    let change = Change::Put { resource: revocation, expect: Expect::Any };
    zone.store.write(&Author::new("global", "sync"), vec![change]).await.unwrap();
    until("the Dataplane is gone", async || zone.dataplane("web-1").await.is_none()).await;
    until("it is not let in again", async || {
        proxy.pushed.state().error.is_some_and(|error| error.contains("revoked"))
    })
    .await;
    assert_eq!(proxy.leaf().await.unwrap_err().code(), tonic::Code::Unauthenticated);
    proxy.kill();
    zone.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_forgets_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let global = Global::new();
    global.seed(dir.path()).await;
    let zone = Zone::start(dir.path()).await;
    let token = global.token("web-1", "web").text;
    let mut proxy = Proxy::connect(&zone, &token, &web());
    proxy.has("Proxy", "self").await;
    proxy.report(true, Some(&(OffsetDateTime::now_utc() + time::Duration::hours(1))));
    zone.service_is("web", "Available").await;
    let outbound = proxy.has("Outbound", "default/east/web/8080").await;
    proxy.kill();
    zone.stop().await;

    let zone = Zone::start(dir.path()).await;
    assert!(zone.dataplane("web-1").await.is_some());
    zone.service_is("web", "Available").await;
    // Its configuration is there before anybody registers: the same names at the same addresses, and still an endpoint.
    let mut proxy = Proxy::connect(&zone, &token, &web());
    assert_eq!(proxy.has("Outbound", "default/east/web/8080").await.version, outbound.version);
    let set = proxy.has("EndpointSet", "default/east/web/8080").await;
    assert!(String::from_utf8_lossy(&set.body).contains("web-1"), "readiness is as it was");
    proxy.leave().await;
    zone.stop().await;
}

/// One request to a control plane's REST port.
async fn rest(port: u16, method: &str, path: &str, token: &str, body: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let credentials =
        if token.is_empty() { String::new() } else { format!("authorization: Bearer {token}\r\n") };
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: cp\r\nconnection: close\r\n{credentials}\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

fn free_address() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zone_enrols_with_global_follows_it_and_goes_on_without_it() {
    let dir = tempfile::tempdir().unwrap();
    let at_zone = dir.path().join("zone");
    std::fs::create_dir(&at_zone).unwrap();
    let global = RealGlobal::start(dir.path()).await;
    let joined = global.joined();
    let zone = Zone::start_with(&at_zone, &joined).await;
    let mesh = Key::global(crate::compile::fixture::kind("Mesh"), "", "default");
    until("the mesh came down", async || zone.store.get(&mesh).await.unwrap().is_some()).await;
    until("the zone can sign", async || {
        zone.store.private_get("intermediates", "default").await.unwrap().is_some()
    })
    .await;

    let mut service = crate::compile::fixture::local(
        "east",
        "MeshService",
        "default",
        "mine",
        json!({
            "selector": {"dataplaneTags": {"kuma.io/service": "web"}}, "ports": [{"port": 80}], "state": "Unavailable",
        }),
    );
    service.status = None;
    let change = Change::Put { resource: service, expect: Expect::Any };
    zone.store.write(&Author::new("jo", "api"), vec![change]).await.unwrap();
    until("global has the zone's service", async || {
        global.ask("GET", "/meshes/default/meshservices", "").await.contains("\"mine\"")
    })
    .await;
    until("what global deletes goes", async || {
        let path = "/meshes/default/external-services/out";
        let spec = r#"{"type": "ExternalService", "mesh": "default", "name": "out",
            "tags": {"kuma.io/service": "out"}, "networking": {"address": "out.example:443"}}"#;
        global.ask("PUT", path, spec).await;
        let key = Key::global(crate::compile::fixture::kind("ExternalService"), "default", "out");
        until("it came", async || zone.store.get(&key).await.unwrap().is_some()).await;
        global.ask("DELETE", path, "").await;
        until("it went", async || zone.store.get(&key).await.unwrap().is_none()).await;
        true
    })
    .await;
    // The page of metrics is what is scraped.
    let scraped = rest(zone.bound.diagnostics.port(), "GET", "/metrics", "", "").await;
    let named: BTreeSet<&str> =
        scraped.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let page = include_str!("../../../docs/metrics.md");
    let section = page.split("\n## ").find(|section| section.starts_with("Zone")).unwrap();
    let told: BTreeSet<&str> = section.split('`').filter(|word| word.starts_with("meridian_")).collect();
    assert_eq!(told, named);
    zone.stop().await;

    // A new token that global does not take: the certificate of before goes on.
    std::fs::write(&global.zone_token, "revoked").unwrap();
    let zone = Zone::start_with(&at_zone, &joined).await;
    until("the old certificate goes on", async || {
        let link = rest(zone.bound.api_http.port(), "GET", "/_zone", "", "").await;
        link.contains("\"status\":\"online\"")
    })
    .await;
    zone.stop().await;

    global.stop().await;
    let alone = Zone::start_with(&at_zone, &joined).await;
    assert!(alone.store.get(&mesh).await.unwrap().is_some());
    alone.stop().await;
}
