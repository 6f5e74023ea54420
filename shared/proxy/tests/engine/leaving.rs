//! Routes by which calls leave the mesh: the sidecar routes, an egress holds what comes to the entry and to the caller.

use crate::{
    apps::{Answer, Payload, Seen, absolute, echo_app, get, http_app, http1, http2, text, whole},
    world::{MESH, Pair, Sidecar, address, allow, is_reset, soon, until},
};
use http::{Method, Request};
use ipnet::IpNet;
use meridian_proxy_config::{
    AddressPolicy, BackendTarget, EGRESS_SERVICE, Endpoint, EndpointSet, Entry, EntryKind, EntryPolicies,
    External, ExternalEndpoint, HeaderChange, Host, HostMatch, HttpMatch, HttpRoutes, HttpRule, Mirror,
    Outbound, PathChange, PathMatch, Permission, Protocol, Redirect, Rewrite, Role, RouteBackend,
    RoutePolicies, Routes, StreamTimeouts, Target, Via, routes_of_external, types,
};
use std::net::SocketAddr;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const BILLING: &str = "default/extsvc//billing";
const HOST: &str = "billing.extsvc.mesh.local";

/// `web` and `backend`, an egress, and `billing` outside.
struct World {
    pair: Pair,
    egress: Sidecar,
    protocol: Protocol,
    backend: Seen,
    outside: Seen,
    address: SocketAddr,
    /// Where web's application calls `billing`.
    billing: SocketAddr,
}

impl World {
    async fn start(protocol: Protocol) -> Self {
        let app = async || match protocol {
            Protocol::Tcp => echo_app().await,
            _ => http_app(protocol.is_http2()).await,
        };
        let ((application, backend), (address, outside)) = (app().await, app().await);
        let pair = Pair::start(protocol, application).await;
        let egress = egress(&pair).await;
        let billing = crate::world::address();
        let world = Self { pair, egress, protocol, backend, outside, address, billing };
        world.permit(allow(&["web"]));
        world.tell(Via::Egress {
            mesh: MESH.into(),
            zone: "east".into(),
            sni: "sni.extsvc.default.east.billing.http".into(),
            endpoints: "egress".into(),
        });
        let target = Target::External(BILLING.into());
        let (bind, port) = (Some(billing), billing.port());
        let outbound = Outbound { bind, vips: vec![], port, hostnames: vec![], target };
        world.pair.web.feed(types::OUTBOUND, "billing", &outbound);
        world.settled().await;
        world
    }

    /// What the sidecar is told of the entry.
    fn tell(&self, via: Via) {
        let external = External {
            entry: BILLING.into(),
            kind: EntryKind::MeshExternalService,
            protocol: self.protocol,
            hosts: vec![HostMatch::Exact(HOST.into())],
            ports: vec![80],
            originates_tls: false,
            via,
        };
        self.pair.web.feed(types::EXTERNAL, BILLING, &external);
    }

    /// What the egress is told of it.
    fn permit(&self, permission: Permission) {
        let (host, port) = (Host::Ip(self.address.ip()), self.address.port());
        let entry = Entry {
            key: BILLING.into(),
            mesh: MESH.into(),
            kind: EntryKind::MeshExternalService,
            protocol: self.protocol,
            hosts: vec![HostMatch::Exact(HOST.into())],
            ports: vec![80],
            endpoints: vec![ExternalEndpoint { host, port, priority: 0 }],
            tls: None,
            addresses: AddressPolicy { allowed: vec![IpNet::from(self.address.ip())] },
            permission,
            policies: EntryPolicies::default(),
        };
        self.egress.feed(types::ENTRY, BILLING, &entry);
    }

    async fn settled(&self) {
        self.pair.settled().await;
        self.egress.settled().await;
    }

    /// Routes of the service `backend`.
    async fn of_backend(&self, routes: &Routes) {
        self.pair.web.feed(types::ROUTES, "backend", routes);
        self.settled().await;
    }

    /// Routes of `billing`.
    async fn of_billing(&self, routes: &Routes) {
        self.pair.web.feed(types::ROUTES, &routes_of_external(BILLING), routes);
        self.settled().await;
    }
}

async fn egress(pair: &Pair) -> Sidecar {
    let listen = address();
    let egress = Sidecar::start(&pair.ca, "east", EGRESS_SERVICE);
    let mut proxy = (*egress.engine.shared().snapshots.load().proxy.clone().unwrap()).clone();
    (proxy.role, proxy.listen, proxy.mesh) = (Role::Egress, Some(listen), String::new());
    egress.feed(types::PROXY, "self", &proxy);
    egress.settled().await;
    let endpoint = Endpoint {
        host: Host::Ip(listen.ip()),
        port: listen.port(),
        zone: "east".into(),
        sni: None,
        replicas: 1,
        name: "egress".into(),
        tags: Default::default(),
    };
    pair.web.feed(types::ENDPOINTS, "egress", &EndpointSet { endpoints: vec![endpoint] });
    egress
}

fn rules(matched: Option<&str>, rule: HttpRule) -> Routes {
    let path = matched.map(|prefix| PathMatch::Prefix(prefix.into()));
    let matches = vec![HttpMatch { path, ..HttpMatch::default() }];
    Routes::Http(HttpRoutes { matches, rules: vec![HttpRule { name: "one".into(), ..rule }] })
}

fn outside(weight: u32) -> RouteBackend {
    RouteBackend { weight, to: BackendTarget::External(BILLING.into()) }
}

fn inside(weight: u32) -> RouteBackend {
    RouteBackend { weight, to: BackendTarget::Destination("backend".into()) }
}

fn split(backends: Vec<RouteBackend>) -> Routes {
    rules(None, HttpRule { backends: Some(backends), ..HttpRule::default() })
}

/// For billing, by its name.
fn to_billing(path: &str) -> Request<Payload> {
    let mut request = get(path);
    request.headers_mut().insert("host", HOST.parse().unwrap());
    request
}

async fn ask(to: SocketAddr, request: Request<Payload>) -> Answer {
    whole(soon("an answer", http1(to).await.send_request(request)).await.unwrap()).await
}

#[tokio::test]
async fn requests_to_a_service_are_shared_with_what_is_outside_under_its_own_name() {
    for protocol in [Protocol::Http, Protocol::Http2] {
        let world = World::start(protocol).await;
        world.of_backend(&split(vec![inside(3), outside(1)])).await;
        let mut told = Vec::new();
        let (mut h1, mut h2) = (None, None);
        match protocol {
            Protocol::Http => h1 = Some(http1(world.pair.outbound).await),
            _ => h2 = Some(http2(world.pair.outbound).await),
        }
        for _ in 0..8 {
            let answer = match (&mut h1, &mut h2) {
                (Some(h1), _) => h1.send_request(get("/headers")).await,
                (_, Some(h2)) => h2.send_request(absolute(Method::GET, "/headers", text(""))).await,
                _ => panic!("one of both is there"),
            };
            let answer = whole(answer.unwrap()).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            told.push(answer.text().contains(HOST));
        }
        assert_eq!((world.backend.requests(), world.outside.requests()), (6, 2), "{protocol:?}");
        assert_eq!(told.iter().filter(|outside| **outside).count(), 2, "{told:?}");
    }
}

/// What goes by HTTP/1.1 (an upgrade, a body that waits for a word) goes under the entry's name, too.
#[tokio::test]
async fn upgrades_and_bodies_that_wait_are_sent_outside_under_its_own_name() {
    let world = World::start(Protocol::Http).await;
    world.of_backend(&split(vec![outside(1)])).await;
    let mut stream = TcpStream::connect(world.pair.outbound).await.unwrap();
    let upgrade =
        b"GET /upgrade HTTP/1.1\r\nHost: backend.mesh\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\n";
    stream.write_all(upgrade).await.unwrap();
    let mut head = [0; 12];
    soon("the head", stream.read_exact(&mut head)).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 101", "{}", String::from_utf8_lossy(&head));
    let mut stream = TcpStream::connect(world.pair.outbound).await.unwrap();
    let waits = b"POST /echo HTTP/1.1\r\nHost: backend.mesh\r\nExpect: 100-continue\r\nContent-Length: 2\r\nConnection: close\r\n\r\n";
    stream.write_all(waits).await.unwrap();
    let mut word = [0; 25];
    soon("the word", stream.read_exact(&mut word)).await.unwrap();
    assert_eq!(&word, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"ok").await.unwrap();
    let mut rest = String::new();
    soon("the answer", stream.read_to_string(&mut rest)).await.unwrap();
    assert!(rest.starts_with("HTTP/1.1 200 ") && rest.contains("\r\n2\r\nok\r\n0\r\n"), "{rest}");
    assert_eq!((world.backend.requests(), world.outside.requests()), (0, 2));
}

#[tokio::test]
async fn rules_change_calls_to_what_is_outside_and_redirect_them() {
    let world = World::start(Protocol::Http).await;
    let rule = HttpRule {
        request_headers: vec![HeaderChange::Set("x-a".into(), "new".into())],
        response_headers: vec![HeaderChange::Remove("x-app".into())],
        rewrite: Rewrite { hostname: None, path: Some(PathChange::Prefix("/".into())) },
        ..HttpRule::default()
    };
    world.of_billing(&rules(Some("/api"), rule)).await;
    let mut client = http1(world.billing).await;
    let answer = whole(client.send_request(to_billing("/api/headers")).await.unwrap()).await;
    assert!(
        answer.text().contains("x-a: new") && answer.text().contains("uri /headers"),
        "{}",
        answer.text()
    );
    assert!(!answer.headers.contains_key("x-app"));

    let redirect = Redirect { hostname: Some("b.example".into()), status: 301, ..Redirect::default() };
    let rule = HttpRule { redirect: Some(redirect), ..HttpRule::default() };
    world.of_billing(&rules(Some("/api"), rule)).await;
    let answer = whole(client.send_request(to_billing("/api/headers")).await.unwrap()).await;
    assert_eq!(
        (answer.status, &answer.headers["location"]),
        (301, &"http://b.example/api/headers".parse().unwrap())
    );
    assert_eq!(world.outside.requests(), 1);

    // Another name than the entry's is refused where it leaves.
    let rewrite = Rewrite { hostname: Some("evil.example".into()), path: None };
    world.of_billing(&rules(Some("/"), HttpRule { rewrite, ..HttpRule::default() })).await;
    let answer = whole(client.send_request(to_billing("/headers")).await.unwrap()).await;
    assert_eq!((answer.status, answer.denied()), (403, Some("name-mismatch")));

    // Without routes the same connection goes on.
    world.pair.web.remove(types::ROUTES, &routes_of_external(BILLING));
    world.settled().await;
    let answer = whole(client.send_request(to_billing("/headers")).await.unwrap()).await;
    assert_eq!((answer.status, world.outside.requests()), (200, 2));
}

#[tokio::test]
async fn what_is_outside_gives_way_to_a_service_and_has_copies_of_its_requests() {
    let world = World::start(Protocol::Http).await;
    world.of_billing(&split(vec![outside(1), inside(1)])).await;
    for _ in 0..6 {
        assert_eq!(ask(world.billing, to_billing("/status/200")).await.status, 200);
    }
    assert_eq!((world.backend.requests(), world.outside.requests()), (3, 3));
    let mirrors = vec![Mirror { per_million: 1_000_000, to: BackendTarget::External(BILLING.into()) }];
    world.of_backend(&rules(None, HttpRule { mirrors, ..HttpRule::default() })).await;
    assert_eq!(ask(world.pair.outbound, get("/status/200")).await.status, 200);
    until("the copy", async || (world.outside.requests() == 4).then_some(())).await;
}

#[tokio::test]
async fn an_egress_that_forbids_a_call_or_is_not_there_is_told_to_the_client() {
    for protocol in [Protocol::Http, Protocol::Http2] {
        let world = World::start(protocol).await;
        world.of_billing(&split(vec![outside(1)])).await;
        let ask = async || match protocol {
            Protocol::Http => ask(world.billing, to_billing("/status/200")).await,
            _ => {
                let request =
                    Request::builder().uri(format!("http://{HOST}/status/200")).body(text("")).unwrap();
                whole(soon("an answer", http2(world.billing).await.send_request(request)).await.unwrap())
                    .await
            }
        };
        assert_eq!(ask().await.status, 200);
        world.permit(allow(&["nobody"]));
        world.settled().await;
        let answer = ask().await;
        assert_eq!((answer.status, answer.denied()), (403, Some("no-permission")), "{protocol:?}");
        world.permit(allow(&["web"]));
        world.settled().await;
        until("the call to be let through", async || (ask().await.status == 200).then_some(())).await;

        world.tell(Via::Refused("no-egress".into()));
        world.settled().await;
        let answer = ask().await;
        assert_eq!((answer.status, answer.denied()), (403, Some("no-egress")));
        let denial = ("web".to_owned(), HOST.to_owned(), "no-egress".to_owned());
        assert!(world.pair.web.denials().contains(&denial), "{:?}", world.pair.web.denials());
        assert_eq!(world.outside.requests(), 2);
    }
}

#[tokio::test]
async fn what_policies_say_of_a_rule_holds_for_what_leaves() {
    let world = World::start(Protocol::Http).await;
    let stream_timeouts = StreamTimeouts { request_millis: Some(100), ..StreamTimeouts::default() };
    let policies = Some(RoutePolicies { stream_timeouts, ..RoutePolicies::default() });
    world.of_billing(&rules(Some("/hang"), HttpRule { policies, ..HttpRule::default() })).await;
    assert_eq!(ask(world.billing, to_billing("/hang")).await.status, 504);
    assert_eq!(ask(world.billing, to_billing("/status/200")).await.status, 200);
}

#[tokio::test]
async fn connections_are_shared_with_what_is_outside() {
    let world = World::start(Protocol::Tcp).await;
    world.of_billing(&Routes::Tcp(vec![outside(1), inside(1)])).await;
    for _ in 0..4 {
        let mut stream = TcpStream::connect(world.billing).await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        let mut echo = [0; 5];
        soon("the echo", stream.read_exact(&mut echo)).await.unwrap();
        assert_eq!(&echo, b"hello");
    }
    assert_eq!((world.backend.connections(), world.outside.connections()), (2, 2));
    world.of_billing(&Routes::Tcp(vec![outside(1)])).await;
    world.permit(allow(&["nobody"]));
    world.settled().await;
    let mut stream = TcpStream::connect(world.billing).await.unwrap();
    let mut end = Vec::new();
    assert!(matches!(soon("the end", stream.read_to_end(&mut end)).await, Ok(0) | Err(_)));
    world.tell(Via::Refused("no-egress".into()));
    world.settled().await;
    assert!(is_reset(world.billing).await);
}
