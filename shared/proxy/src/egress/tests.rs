//! The egress over loopback: a caller's mTLS session on one side, servers on the other.
//!
//! 127.0.0.1 may be dialled only by entries that name it; entries with names resolve by a small DNS server here.

use crate::{
    denial::Reason,
    egress::{Denied, authorise},
    io::Socket,
    listener::Accepted,
    preface::Preface,
    resolve::Resolver,
    rig::{Rig, local, until, within},
    snapshot::{PeerRule, Snapshot},
    tls::Tls,
};
use meridian_pki::{Identity, Intermediate, LeafSpec, PrivateKey, RootCa};
use meridian_proxy_config::{
    Action, AddressPolicy, Bundle, CaSource, Caller, CallerIdentity, CallerMatch, CallerMode, Entry,
    EntryKind, EntryPolicies, ExternalEndpoint, Host, HostMatch, Origination, Permission, PermissionRule,
    Protocol, Proxy, Role, SanMatch, TlsVersion, Verification, alpn, types,
};
use rcgen::{CertificateParams, CertifiedIssuer, KeyPair};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    ops::{Deref, DerefMut},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};
use time::OffsetDateTime;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
};
use tokio_rustls::{TlsAcceptor, client::TlsStream};

mod answers;
mod policies;

const MESH: &str = "default";
const ZONE: &str = "east";
const SNI: &str = "sni.extsvc.default.east.api.https";

/// Certificates of one mesh and zone.
struct Ca {
    root: RootCa,
    intermediate: Intermediate,
}

impl Ca {
    fn new() -> Self {
        let now = OffsetDateTime::now_utc();
        let root = RootCa::generate(MESH, now).unwrap();
        let key = PrivateKey::generate().unwrap();
        let issued = root.sign_intermediate(&key.request().unwrap(), ZONE, now).unwrap();
        let intermediate = Intermediate::new(MESH, issued.chain[0].clone(), key).unwrap();
        Self { root, intermediate }
    }

    fn identity(&self, service: &str) -> Identity {
        let key = PrivateKey::generate().unwrap();
        let spec = LeafSpec {
            services: [service.to_owned()].into(),
            tags: BTreeMap::from([("kuma.io/service".to_owned(), [service.to_owned()].into())]),
            dataplane: Some(format!("{service}-1")),
            lifetime: None,
        };
        let now = OffsetDateTime::now_utc();
        let issued = self.intermediate.sign_leaf(&key.request().unwrap(), &spec, now).unwrap();
        Identity::new(issued.chain, &key).unwrap()
    }

    fn bundle(&self, revoked: bool) -> Bundle {
        let revoked = revoked.then(|| self.intermediate.spki_hash().to_string());
        Bundle {
            mesh: MESH.into(),
            roots: vec![self.root.authority().certificate_pem()],
            revoked: revoked.into_iter().collect(),
        }
    }
}

/// An egress with one worker on this thread, and what its control plane told it.
struct Egress {
    rig: Rig,
    ca: Ca,
    address: SocketAddr,
}

impl Deref for Egress {
    type Target = Rig;

    fn deref(&self) -> &Rig {
        &self.rig
    }
}

impl DerefMut for Egress {
    fn deref_mut(&mut self) -> &mut Rig {
        &mut self.rig
    }
}

impl Egress {
    async fn start(resolver: Resolver) -> Self {
        let rig = Rig::new(resolver);
        let ca = Ca::new();
        rig.shared().tls.set_identity(MESH, ca.identity(meridian_proxy_config::EGRESS_SERVICE));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let worker = rig.worker.clone();
        let mut egress = Self { rig, ca, address };
        egress.put(types::PROXY, "self", &proxy(address));
        egress.bundle(false);
        egress.publish();
        tokio::task::spawn_local(async move {
            while let Ok((stream, peer)) = listener.accept().await {
                let accepted = Accepted { stream, peer, original: address };
                tokio::task::spawn_local(crate::sni::serve(worker.clone(), accepted));
            }
        });
        egress
    }

    fn bundle(&mut self, revoked: bool) {
        let bundle = self.ca.bundle(revoked);
        self.put(types::BUNDLE, MESH, &bundle);
    }

    fn entry(&mut self, entry: &Entry) {
        self.put(types::ENTRY, &entry.key, entry);
        self.publish();
    }

    /// A session of `service`'s sidecar, with the preface sent.
    async fn call(&self, service: &str, entry: &str, host: &str, port: u16) -> TlsStream<Socket> {
        let mut stream = self.session(service, alpn::EXTERNAL).await.unwrap();
        let preface = Preface { entry: entry.into(), host: host.parse().unwrap(), port };
        stream.write_all(&preface.encode().unwrap()).await.unwrap();
        stream
    }

    async fn session(&self, service: &str, alpn: &[u8]) -> Result<TlsStream<Socket>, crate::tls::TlsError> {
        let tls = Tls::default();
        tls.set_bundle(&self.ca.bundle(false)).unwrap();
        tls.set_identity(MESH, self.ca.identity(service));
        let rule = PeerRule::egress(MESH, ZONE);
        let socket = Socket::new(TcpStream::connect(self.address).await.unwrap());
        tls.connect(&rule, ZONE, SNI, alpn, socket).await.map(|(stream, _)| stream)
    }

    fn denied(&self, destination: &str, reason: &str) -> bool {
        let row = ("spiffe://default/web".to_owned(), destination.to_owned(), reason.to_owned());
        self.denials().contains(&row)
    }
}

fn proxy(listen: SocketAddr) -> Proxy {
    Proxy {
        role: Role::Egress,
        mesh: String::new(),
        name: "egress".into(),
        zone: ZONE.into(),
        service: String::new(),
        listen: Some(listen),
        identities: vec![MESH.into()],
        ..crate::rig::proxy()
    }
}

fn allow(service: &str) -> Permission {
    let caller =
        CallerMatch { spiffe_exact: Some(format!("spiffe://{MESH}/{service}")), ..CallerMatch::default() };
    Permission { rules: vec![PermissionRule { action: Action::Allow, caller, policy: "allow-web".into() }] }
}

/// `api.example`, led to `address`.
fn entry(protocol: Protocol, address: SocketAddr) -> Entry {
    Entry {
        key: "api".into(),
        mesh: MESH.into(),
        kind: EntryKind::ExternalService,
        protocol,
        hosts: vec![HostMatch::Exact("api.example".into())],
        ports: vec![443],
        endpoints: vec![ExternalEndpoint { host: Host::Ip(address.ip()), port: address.port(), priority: 0 }],
        tls: None,
        addresses: AddressPolicy::default(),
        permission: allow("web"),
        policies: EntryPolicies::default(),
    }
}

/// Counts connections and echoes.
async fn echo() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let bytes = Arc::new(AtomicUsize::new(0));
    let counted = bytes.clone();
    tokio::task::spawn_local(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let counted = counted.clone();
            tokio::task::spawn_local(async move {
                let mut buffer = [0; 4096];
                while let Ok(length @ 1..) = stream.read(&mut buffer).await {
                    counted.fetch_add(length, Ordering::Relaxed);
                    if stream.write_all(&buffer[..length]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (address, bytes)
}

/// HTTP/1.1: answers with the request's Host and path.
async fn site() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::task::spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::task::spawn_local(serve_http(stream));
        }
    });
    address
}

async fn serve_http<S: crate::io::Stream>(stream: S) {
    let service = hyper::service::service_fn(|request: http::Request<hyper::body::Incoming>| async move {
        let host =
            request.headers().get("host").map(|host| host.to_str().unwrap().to_owned()).unwrap_or_default();
        let text = format!("{host} {}", request.uri().path());
        Ok::<_, std::convert::Infallible>(http::Response::new(http_body_util::Full::new(bytes::Bytes::from(
            text,
        ))))
    });
    let io = hyper_util::rt::TokioIo::new(stream);
    drop(hyper::server::conn::http1::Builder::new().serve_connection(io, service).await);
}

async fn get(stream: &mut TlsStream<Socket>, host: &str, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    response(stream).await
}

/// One response with a Content-Length.
async fn response(stream: &mut TlsStream<Socket>) -> String {
    let mut text = String::new();
    loop {
        let mut buffer = [0; 1024];
        let length = within(stream.read(&mut buffer)).await.unwrap();
        text.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            assert!(length > 0, "ended in {text:?}");
            continue;
        };
        let wanted = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .map_or(0, |n| n.parse().unwrap());
        if body.len() >= wanted || length == 0 {
            return text;
        }
    }
}

/// What comes back until the end or a reset.
async fn rest(stream: &mut TlsStream<Socket>) -> (Vec<u8>, bool) {
    let mut got = Vec::new();
    let ended = within(stream.read_to_end(&mut got)).await;
    (got, ended.is_err())
}

fn hello(name: &str) -> Vec<u8> {
    crate::hello::samples::Sample::named(name).bytes()
}

const ALERT_ACCESS_DENIED: [u8; 7] = [21, 3, 3, 0, 2, 2, 49];
const ALERT_UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

#[tokio::test]
async fn an_allowed_caller_gets_through_and_another_does_not() {
    local(async {
        let (server, bytes) = echo().await;
        let mut egress = Egress::start(Resolver::default()).await;
        egress.entry(&entry(Protocol::Tcp, server));
        let mut stream = egress.call("web", "api", "API.example.", 443).await;
        stream.write_all(b"hello").await.unwrap();
        let mut got = [0; 5];
        within(stream.read_exact(&mut got)).await.unwrap();
        assert_eq!(&got, b"hello");
        let before = bytes.load(Ordering::Relaxed);
        let mut other = egress.call("other", "api", "api.example", 443).await;
        drop(other.write_all(b"hello").await);
        assert!(rest(&mut other).await.1, "a reset, not an end");
        assert_eq!(bytes.load(Ordering::Relaxed), before);
        let row = ("spiffe://default/other".to_owned(), "api.example".to_owned(), "no-permission".to_owned());
        assert_eq!(egress.denials(), [row]);
    })
    .await;
}

#[tokio::test]
async fn names_ports_and_entries_of_the_preface_are_held() {
    local(async {
        let (server, bytes) = echo().await;
        let mut egress = Egress::start(Resolver::default()).await;
        egress.entry(&entry(Protocol::Tcp, server));
        for (entry, host, port, reason) in [
            ("api", "evil.example", 443, "name-mismatch"),
            ("api", "127.0.0.1", 443, "name-mismatch"),
            ("api", "api.example", 22, "port-not-listed"),
            ("gone", "api.example", 443, "not-listed"),
            ("*", "198.51.100.9", 443, "no-permission"),
        ] {
            let mut stream = egress.call("web", entry, host, port).await;
            drop(stream.write_all(b"hello").await);
            assert!(rest(&mut stream).await.1, "{host}");
            assert!(egress.denied(host, reason), "{host}: {:?}", egress.denials());
        }
        assert_eq!(bytes.load(Ordering::Relaxed), 0);
    })
    .await;
}

#[tokio::test]
async fn wrong_missing_and_changed_server_names_get_no_byte_through() {
    local(async {
        let (server, bytes) = echo().await;
        let mut egress = Egress::start(Resolver::default()).await;
        egress.entry(&entry(Protocol::Tcp, server));
        for (sent, destination, reason) in [
            (hello("evil.example"), "evil.example", "name-mismatch"),
            (crate::hello::samples::Sample::default().bytes(), "api.example", "server-name-missing"),
            (hello("127.0.0.1"), "api.example", "invalid-client-hello"),
        ] {
            let mut stream = egress.call("web", "api", "api.example", 443).await;
            stream.write_all(&sent).await.unwrap();
            let (got, _) = rest(&mut stream).await;
            assert_eq!(got[..6], ALERT_UNRECOGNIZED_NAME[..6], "{reason}: an alert");
            assert!(egress.denied(destination, reason), "{:?}", egress.denials());
        }
        assert_eq!(bytes.load(Ordering::Relaxed), 0);
        // The same name passes, and another one in a second hello does not.
        let mut stream = egress.call("web", "api", "api.example", 443).await;
        let first = hello("api.example");
        stream.write_all(&first).await.unwrap();
        let mut got = vec![0; first.len()];
        within(stream.read_exact(&mut got)).await.unwrap();
        assert_eq!(got, first, "forwarded unchanged");
        stream.write_all(&hello("evil.example")).await.unwrap();
        let (got, _) = rest(&mut stream).await;
        assert_eq!(got, ALERT_UNRECOGNIZED_NAME);
        assert_eq!(bytes.load(Ordering::Relaxed), first.len());
    })
    .await;
}

#[tokio::test]
async fn every_requests_host_is_held() {
    local(async {
        let server = site().await;
        let mut egress = Egress::start(Resolver::default()).await;
        egress.entry(&entry(Protocol::Http, server));
        let mut stream = egress.call("web", "api", "api.example", 443).await;
        let answer = get(&mut stream, "api.example", "/one").await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("api.example /one"), "{answer}");
        let refused = get(&mut stream, "evil.example", "/two").await;
        assert!(
            refused.starts_with("HTTP/1.1 403") && refused.contains("x-meridian-denied: name-mismatch"),
            "{refused}"
        );
        let answer = get(&mut stream, "API.example:443", "/three").await;
        assert!(
            answer.ends_with("API.example:443 /three") || answer.ends_with("api.example:443 /three"),
            "{answer}"
        );
        assert!(egress.denied("evil.example", "name-mismatch"), "{:?}", egress.denials());
        // No permission: the answer is HTTP as well.
        let mut other = egress.call("other", "api", "api.example", 443).await;
        let refused = get(&mut other, "api.example", "/").await;
        assert!(
            refused.starts_with("HTTP/1.1 403") && refused.contains("x-meridian-denied: no-permission"),
            "{refused}"
        );
    })
    .await;
}

/// Answers every A query with the present address.
async fn name_server(address: Arc<Mutex<IpAddr>>) -> Resolver {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let server = socket.local_addr().unwrap();
    tokio::task::spawn_local(async move {
        let mut buffer = [0; 512];
        while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
            let Ok(question) = crate::dns::parse_query(&buffer[..length]) else { continue };
            let ip = *address.lock().unwrap();
            let matching = (question.kind == 1 && ip.is_ipv4()) || (question.kind == 28 && ip.is_ipv6());
            let reply = crate::dns::Reply::Addresses(if matching { vec![ip] } else { vec![] });
            drop(socket.send_to(&question.reply(&reply, true), client).await);
        }
    });
    Resolver::from_servers(vec![server])
}

#[tokio::test]
async fn a_listed_name_that_leads_inside_is_refused() {
    local(async {
        let (server, bytes) = echo().await;
        for inside in ["127.0.0.1", "169.254.169.254", "10.0.0.1", "241.0.0.1", "::1", "fd00:ec2::254"] {
            let address = Arc::new(Mutex::new(inside.parse().unwrap()));
            let mut egress = Egress::start(name_server(address).await).await;
            let mut listed = entry(Protocol::Tcp, server);
            listed.endpoints = vec![ExternalEndpoint {
                host: Host::Name("api.example".into()),
                port: server.port(),
                priority: 0,
            }];
            egress.entry(&listed);
            let mut stream = egress.call("web", "api", "api.example", 443).await;
            drop(stream.write_all(b"hello").await);
            assert!(rest(&mut stream).await.1, "{inside}");
            assert!(egress.denied("api.example", "address-refused"), "{inside}: {:?}", egress.denials());
            // The same over HTTP: 403.
            listed.protocol = Protocol::Http;
            egress.entry(&listed);
            let mut stream = egress.call("web", "api", "api.example", 443).await;
            let refused = get(&mut stream, "api.example", "/").await;
            assert!(refused.contains("x-meridian-denied: address-refused"), "{inside}: {refused}");
        }
        assert_eq!(bytes.load(Ordering::Relaxed), 0);
    })
    .await;
}

/// What the caller's sidecar was told that it may reach.
fn let_through(egress: &mut Egress, entries: &[Entry]) {
    for entry in entries {
        egress.put(types::ENTRY, &entry.key, entry);
    }
    let caller = Caller {
        mesh: MESH.into(),
        dataplane: "web-1".into(),
        mode: CallerMode::Matched,
        entries: entries.iter().map(|entry| entry.key.clone()).collect(),
        policies: String::new(),
    };
    egress.put(types::CALLER, "default/web-1", &caller);
    egress.publish();
}

fn passthrough(host: HostMatch, protocol: Protocol, port: u16) -> Entry {
    Entry {
        key: "through".into(),
        mesh: MESH.into(),
        kind: EntryKind::MeshPassthrough,
        protocol,
        hosts: vec![host],
        ports: vec![port],
        endpoints: vec![],
        tls: None,
        addresses: AddressPolicy::default(),
        permission: Permission::default(),
        policies: EntryPolicies::default(),
    }
}

#[tokio::test]
async fn the_egress_itself_holds_a_preface_to_the_wildcard() {
    local(async {
        let (server, bytes) = echo().await;
        let address = Arc::new(Mutex::new(server.ip()));
        let mut egress = Egress::start(name_server(address.clone()).await).await;
        let port = server.port();
        let mut listed = passthrough(HostMatch::Wildcard("example.com".into()), Protocol::Tls, port);
        // The laboratory has no public address.
        listed.hosts.push(HostMatch::Ip(server.ip()));
        let_through(&mut egress, std::slice::from_ref(&listed));
        let hello_a = hello("a.example.com");
        let mut stream = egress.call("web", "through", "A.example.com.", port).await;
        stream.write_all(&hello_a).await.unwrap();
        let mut got = vec![0; hello_a.len()];
        within(stream.read_exact(&mut got)).await.unwrap();
        assert_eq!(got, hello_a);
        let before = bytes.load(Ordering::Relaxed);
        for (host, port, reason) in [
            ("example.com", port, "name-mismatch"),
            ("evilexample.com", port, "name-mismatch"),
            ("example.com.evil", port, "name-mismatch"),
            ("127.0.0.2", port, "name-mismatch"),
            ("a.example.com", 1, "port-not-listed"),
        ] {
            let mut stream = egress.call("web", "through", host, port).await;
            drop(stream.write_all(&hello_a).await);
            rest(&mut stream).await;
            assert!(egress.denied(host, reason), "{host}: {:?}", egress.denials());
        }
        // Another name below the same wildcard: the address was resolved for the first one.
        for (said, destination, reason) in [
            (hello("b.example.com"), "b.example.com", "name-mismatch"),
            (crate::hello::samples::Sample::default().bytes(), "a.example.com", "server-name-missing"),
            (b"GET / HTTP/1.1\r\nHost: a.example.com\r\n\r\n".to_vec(), "a.example.com", "wrong-protocol"),
        ] {
            let mut stream = egress.call("web", "through", "a.example.com", port).await;
            drop(stream.write_all(&said).await);
            rest(&mut stream).await;
            assert!(egress.denied(destination, reason), "{reason}: {:?}", egress.denials());
        }
        // Somebody else's caller has no list.
        let mut other = egress.call("other", "through", "a.example.com", port).await;
        drop(other.write_all(&hello_a).await);
        rest(&mut other).await;
        assert_eq!(bytes.load(Ordering::Relaxed), before);
    })
    .await;
}

#[tokio::test]
async fn a_name_below_a_wildcard_that_leads_inside_is_refused() {
    local(async {
        let (server, bytes) = echo().await;
        for inside in ["127.0.0.1", "169.254.169.254", "10.0.0.1", "244.0.0.1", "::1", "fd00:ec2::254"] {
            let address = Arc::new(Mutex::new(inside.parse().unwrap()));
            let mut egress = Egress::start(name_server(address).await).await;
            let host = HostMatch::Wildcard("example.com".into());
            let_through(&mut egress, &[passthrough(host, Protocol::Tls, server.port())]);
            let mut stream = egress.call("web", "through", "a.example.com", server.port()).await;
            drop(stream.write_all(&hello("a.example.com")).await);
            assert_eq!(rest(&mut stream).await.0[..2], [21, 3], "{inside}: an alert");
            assert!(egress.denied("a.example.com", "address-refused"), "{inside}: {:?}", egress.denials());
        }
        assert_eq!(bytes.load(Ordering::Relaxed), 0);
    })
    .await;
}

#[tokio::test]
async fn a_range_is_held_to_the_address_that_is_dialled() {
    local(async {
        let (server, bytes) = echo().await;
        let mut egress = Egress::start(Resolver::default()).await;
        let port = server.port();
        for (net, host, reason) in [
            // Loopback needs the very address, however it is written.
            ("127.0.0.0/8", "127.0.0.1", "address-refused"),
            ("0.0.0.0/0", "127.0.0.1", "address-refused"),
            ("::ffff:127.0.0.0/104", "::ffff:127.0.0.1", "address-refused"),
            ("::/0", "::1", "address-refused"),
            ("169.254.0.0/16", "169.254.169.254", "address-refused"),
            ("240.0.0.0/4", "241.0.0.1", "address-refused"),
            ("10.0.0.0/8", "11.0.0.1", "name-mismatch"),
            ("::/0", "10.0.0.1", "name-mismatch"),
            ("0.0.0.0/0", "a.example", "name-mismatch"),
        ] {
            let range = HostMatch::Net(net.parse().unwrap());
            let_through(&mut egress, &[passthrough(range, Protocol::Tcp, port)]);
            let mut stream = egress.call("web", "through", host, port).await;
            drop(stream.write_all(b"hello").await);
            assert!(rest(&mut stream).await.1, "{net} {host}");
            let reported = host.parse::<IpAddr>().map_or(host.to_owned(), |ip| ip.to_canonical().to_string());
            assert!(egress.denied(&reported, reason), "{net} {host}: {:?}", egress.denials());
        }
        assert_eq!(bytes.load(Ordering::Relaxed), 0);
        // The literal beside the range.
        let mut listed = passthrough(HostMatch::Net("0.0.0.0/0".parse().unwrap()), Protocol::Tcp, port);
        listed.hosts.push(HostMatch::Ip(server.ip()));
        let_through(&mut egress, &[listed]);
        let mut stream = egress.call("web", "through", "127.0.0.1", port).await;
        stream.write_all(b"x").await.unwrap();
        within(stream.read_u8()).await.unwrap();
        // The list shrinks: what it had let through ends.
        let_through(&mut egress, &[]);
        assert!(rest(&mut stream).await.1, "a reset");
    })
    .await;
}

/// A TLS server with a certificate of its own CA for `name`; with `clients`, it wants certificates of that CA.
struct Server {
    address: SocketAddr,
    ca: String,
}

fn authority() -> (CertifiedIssuer<'static, KeyPair>, String) {
    let mut params = CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let pem = ca.pem();
    (ca, pem)
}

async fn tls_server(name: &str, clients: Option<&str>) -> Server {
    use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
    let (issuer, ca) = authority();
    let key = KeyPair::generate().unwrap();
    let certificate =
        CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    let provider = meridian_pki::provider();
    let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(pem) => {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
            let verifier =
                rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
    let config = builder.with_single_cert(vec![certificate.der().clone()], key).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::task::spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::task::spawn_local(async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    serve_http(stream).await;
                }
            });
        }
    });
    Server { address, ca }
}

fn originating(server: &Server) -> Entry {
    let tls = Origination {
        verification: Verification::Secured,
        ca: CaSource::Pem(server.ca.clone()),
        client_certificate: None,
        client_key: None,
        server_name: Some("api.example".into()),
        subject_alt_names: vec![],
        min_version: TlsVersion::Tls12,
        max_version: TlsVersion::Tls13,
    };
    Entry { tls: Some(tls), ..entry(Protocol::Http, server.address) }
}

async fn fetched(egress: &Egress) -> String {
    let mut stream = egress.call("web", "api", "api.example", 443).await;
    get(&mut stream, "api.example", "/").await
}

fn change(entry: &Entry, with: impl FnOnce(&mut Origination)) -> Entry {
    let mut entry = entry.clone();
    with(entry.tls.as_mut().unwrap());
    entry
}

#[tokio::test]
async fn tls_is_originated_and_the_server_held_to_the_entry() {
    local(async {
        let server = tls_server("api.example", None).await;
        let mut egress = Egress::start(Resolver::default()).await;
        let good = originating(&server);
        egress.entry(&good);
        let answer = fetched(&egress).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

        let narrowed = change(&good, |tls| tls.subject_alt_names = vec![SanMatch::Prefix("api.".into())]);
        egress.entry(&narrowed);
        assert!(fetched(&egress).await.starts_with("HTTP/1.1 200"));

        let another_ca = authority().1;
        for broken in [
            change(&good, |tls| tls.subject_alt_names = vec![SanMatch::Exact("other.example".into())]),
            change(&good, |tls| tls.server_name = Some("other.example".into())),
            change(&good, |tls| tls.server_name = None),
            change(&good, |tls| tls.ca = CaSource::Pem(another_ca)),
        ] {
            egress.entry(&broken);
            let refused = fetched(&egress).await;
            assert!(refused.contains("x-meridian-denied: server-certificate"), "{refused}");
        }
        let unverified = change(&good, |tls| {
            tls.verification = Verification::SkipAll;
            tls.server_name = None;
        });
        egress.entry(&unverified);
        assert!(fetched(&egress).await.starts_with("HTTP/1.1 200"));
    })
    .await;
}

#[tokio::test]
async fn a_client_certificate_is_presented() {
    local(async {
        let (issuer, ca) = authority();
        let server = tls_server("api.example", Some(&ca)).await;
        let mut egress = Egress::start(Resolver::default()).await;
        let without = originating(&server);
        egress.entry(&without);
        let refused = fetched(&egress).await;
        assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["egress.example".to_owned()]).unwrap();
        let certificate = certificate.signed_by(&key, &issuer).unwrap().pem();
        let with = change(&without, |tls| {
            tls.client_certificate = Some(certificate);
            tls.client_key = Some(key.serialize_pem());
        });
        egress.entry(&with);
        assert!(fetched(&egress).await.starts_with("HTTP/1.1 200"));
    })
    .await;
}

#[tokio::test]
async fn a_client_hello_to_an_entry_that_originates_is_refused() {
    local(async {
        let server = tls_server("api.example", None).await;
        let mut egress = Egress::start(Resolver::default()).await;
        egress.entry(&Entry { protocol: Protocol::Tcp, ..originating(&server) });
        let mut stream = egress.call("web", "api", "api.example", 443).await;
        stream.write_all(&hello("api.example")).await.unwrap();
        assert_eq!(rest(&mut stream).await.0, ALERT_ACCESS_DENIED);
        assert!(egress.denied("api.example", "entry-originates-tls"), "{:?}", egress.denials());
        // Bytes in the clear become the session's content.
        let mut stream = egress.call("web", "api", "api.example", 443).await;
        let answer = get(&mut stream, "api.example", "/").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    })
    .await;
}

#[tokio::test]
async fn open_connections_end_with_what_allowed_them() {
    local(async {
        let (server, _) = echo().await;
        let mut egress = Egress::start(Resolver::default()).await;
        let listed = entry(Protocol::Tcp, server);
        let takers: [fn(&mut Egress, &Entry); 4] = [
            |egress, entry| {
                egress.remove(types::ENTRY, &entry.key);
                egress.publish();
            },
            |egress, entry| egress.entry(&Entry { permission: Permission::default(), ..entry.clone() }),
            |egress, entry| egress.entry(&Entry { ports: vec![80], ..entry.clone() }),
            |egress, _| {
                egress.bundle(true);
                egress.publish();
            },
        ];
        for take_away in takers {
            egress.entry(&listed);
            let mut stream = egress.call("web", "api", "api.example", 443).await;
            stream.write_all(b"x").await.unwrap();
            within(stream.read_u8()).await.unwrap();
            // Something else changes: it lives on.
            egress.entry(&Entry { key: "other".into(), ..listed.clone() });
            stream.write_all(b"y").await.unwrap();
            within(stream.read_u8()).await.unwrap();
            take_away(&mut egress, &listed);
            assert!(rest(&mut stream).await.1, "a reset");
        }
        let worker = egress.worker.clone();
        until(|| worker.connections().is_empty(), || format!("{:?}", worker.connections().list())).await;
    })
    .await;
}

#[tokio::test]
async fn an_http_connection_ends_with_its_entry_too() {
    local(async {
        let server = site().await;
        let mut egress = Egress::start(Resolver::default()).await;
        egress.entry(&entry(Protocol::Http, server));
        let mut stream = egress.call("web", "api", "api.example", 443).await;
        assert!(get(&mut stream, "api.example", "/").await.starts_with("HTTP/1.1 200"));
        egress.remove(types::ENTRY, "api");
        egress.publish();
        assert!(rest(&mut stream).await.1, "a reset");
    })
    .await;
}

#[tokio::test]
async fn strangers_and_other_protocols_get_no_session() {
    local(async {
        let (server, bytes) = echo().await;
        let mut egress = Egress::start(Resolver::default()).await;
        egress.entry(&entry(Protocol::Tcp, server));
        assert!(egress.session("web", alpn::TCP).await.is_err(), "ALPN is ours alone");
        // Another mesh's root with the same names.
        let stranger = Ca::new();
        let tls = Tls::default();
        tls.set_bundle(&egress.ca.bundle(false)).unwrap();
        tls.set_identity(MESH, stranger.identity("web"));
        let rule = PeerRule::egress(MESH, ZONE);
        let socket = Socket::new(TcpStream::connect(egress.address).await.unwrap());
        if let Ok((mut stream, _)) = tls.connect(&rule, ZONE, SNI, alpn::EXTERNAL, socket).await {
            // TLS 1.3: the client hears of it with its first read.
            let preface = Preface { entry: "api".into(), host: "api.example".parse().unwrap(), port: 443 };
            drop(stream.write_all(&preface.encode().unwrap()).await);
            assert!(rest(&mut stream).await.1);
        }
        // No TLS at all.
        let mut plain = TcpStream::connect(egress.address).await.unwrap();
        plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let mut got = Vec::new();
        assert!(within(plain.read_to_end(&mut got)).await.is_err() && got.is_empty());
        // A server name that nothing here has: an alert.
        let mut unknown = TcpStream::connect(egress.address).await.unwrap();
        unknown.write_all(&hello("sni.msvc.default.west.backend.http")).await.unwrap();
        let mut got = Vec::new();
        drop(within(unknown.read_to_end(&mut got)).await);
        assert_eq!(got, ALERT_UNRECOGNIZED_NAME);
        assert_eq!(bytes.load(Ordering::Relaxed), 0);
        let denials = egress.denials();
        for reason in ["untrusted-caller", "plaintext", "no-route"] {
            assert!(denials.iter().any(|row| row.2 == reason), "{reason}: {denials:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn an_egress_without_news_for_too_long_refuses() {
    local(async {
        let (server, bytes) = echo().await;
        let mut egress = Egress::start(Resolver::default()).await;
        egress.entry(&entry(Protocol::Tcp, server));
        let settings = Proxy { max_config_age_seconds: Some(0), ..proxy(egress.address) };
        egress.put(types::PROXY, "self", &settings);
        egress.publish();
        let mut stream = egress.call("web", "api", "api.example", 443).await;
        drop(stream.write_all(b"hello").await);
        assert!(rest(&mut stream).await.1);
        assert!(egress.denied("api.example", "config-too-old"), "{:?}", egress.denials());
        assert_eq!(bytes.load(Ordering::Relaxed), 0);
    })
    .await;
}

#[tokio::test]
async fn passthrough_is_granted_by_caller_and_zone() {
    local(async {
        let (server, _) = echo().await;
        let mut egress = Egress::start(Resolver::default()).await;
        let mut listed = entry(Protocol::Tcp, server);
        listed.kind = EntryKind::MeshPassthrough;
        // A permission on it means nothing: the caller's own list does.
        egress.entry(&listed);
        let caller = |mode, entries: &[&str]| Caller {
            mesh: MESH.into(),
            dataplane: "web-1".into(),
            mode,
            entries: entries.iter().map(|key| (*key).to_owned()).collect(),
            policies: String::new(),
        };
        let identity = CallerIdentity {
            mesh: MESH.into(),
            spiffe: vec!["spiffe://default/web".into()],
            tags: BTreeMap::new(),
            dataplane: Some("web-1".into()),
            zone: ZONE.into(),
        };
        let preface =
            |entry: &str| Preface { entry: entry.into(), host: "api.example".parse().unwrap(), port: 443 };
        let ask = |snapshot: &Snapshot, who: &CallerIdentity, entry: &str| {
            authorise(snapshot, who, None, &preface(entry)).map(|granted| granted.entry.is_some())
        };
        let refused = |reason: Reason, rule: &str| Err(Denied::new(reason, rule));
        assert_eq!(ask(&egress.worker.snapshot(), &identity, "api"), refused(Reason::NO_PERMISSION, ""));
        for (mode, entries, listed, any) in [
            (CallerMode::Matched, &["api"][..], Ok(true), refused(Reason::NOT_LISTED, "")),
            (
                CallerMode::Matched,
                &["b"],
                refused(Reason::NO_PERMISSION, "api"),
                refused(Reason::NOT_LISTED, ""),
            ),
            (
                CallerMode::None,
                &["api"],
                refused(Reason::NO_PERMISSION, "api"),
                refused(Reason::NOT_LISTED, ""),
            ),
            (CallerMode::All, &[], refused(Reason::NO_PERMISSION, "api"), Ok(false)),
        ] {
            egress.put(types::CALLER, "default/web-1", &caller(mode, entries));
            egress.publish();
            let snapshot = egress.worker.snapshot();
            assert_eq!(ask(&snapshot, &identity, "api"), listed, "{mode:?}");
            assert_eq!(ask(&snapshot, &identity, "*"), any, "{mode:?}");
            // Of the same name, in another zone.
            let far = CallerIdentity { zone: "west".into(), ..identity.clone() };
            assert!(ask(&snapshot, &far, "api").is_err() && ask(&snapshot, &far, "*").is_err());
        }
    })
    .await;
}
