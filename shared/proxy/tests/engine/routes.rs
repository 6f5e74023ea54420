//! MeshHTTPRoute and MeshTCPRoute: where calls go, what is changed in them, and who gets a copy.

use crate::{
    apps::{
        Seen, absolute, call, echo_app, failing_app, get, http_app, http1, http2, request, streaming,
        tcp_app, text, whole,
    },
    world::{Pair, Sidecar, address, destination, endpoint, is_reset, resource, soon, until},
};
use bytes::Bytes;
use http::{Method, Request, Response};
use hyper::body::Frame;
use hyper_util::rt::TokioIo;
use meridian_proxy_config::{
    BackOff, BackendTarget, Destination, EndpointSet, HeaderChange, HeaderMatch, HeaderValueMatch,
    HostSelection, HttpMatch, HttpRoutes, HttpRule, Inbound, Mirror, PathChange, PathMatch, Protocol,
    QueryMatch, QueryValueMatch, Redirect, Retry, RetryOn, Rewrite, RouteBackend, RoutePolicies, Routes,
    StreamTimeouts, types,
};
use std::net::SocketAddr;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Another backend of web's, by the name of its destination: a sidecar of its own before `application`.
async fn another(pair: &Pair, name: &str, protocol: Protocol, application: SocketAddr) -> Sidecar {
    let sidecar = Sidecar::start(&pair.ca, "east", "backend");
    let inbound = address();
    sidecar.feed(types::INBOUND, "main", &sidecar.inbound(protocol, inbound, application));
    sidecar.settled().await;
    let endpoints = EndpointSet { endpoints: vec![endpoint(inbound, "east")] };
    pair.web.feed(types::ENDPOINTS, name, &endpoints);
    let destination = Destination {
        service: name.into(),
        tiers: vec![vec![name.into()]],
        ..destination(protocol, &["backend"])
    };
    pair.web.feed(types::DESTINATION, name, &destination);
    sidecar
}

fn to(name: &str, weight: u32) -> RouteBackend {
    RouteBackend { weight, to: BackendTarget::Destination(name.into()) }
}

fn nobody(weight: u32) -> RouteBackend {
    RouteBackend { weight, to: BackendTarget::Missing("MeshService v3 is not there".into()) }
}

fn under(prefix: &str) -> HttpMatch {
    HttpMatch { path: Some(PathMatch::Prefix(prefix.into())), ..HttpMatch::default() }
}

fn one(matched: HttpMatch, rule: HttpRule) -> Routes {
    Routes::Http(HttpRoutes { matches: vec![matched], rules: vec![HttpRule { name: "one".into(), ..rule }] })
}

fn split(backends: Vec<RouteBackend>) -> Routes {
    one(under("/"), HttpRule { backends: Some(backends), ..HttpRule::default() })
}

async fn route(pair: &Pair, routes: &Routes) {
    pair.web.feed(types::ROUTES, "backend", routes);
    pair.settled().await;
}

async fn pair_of(protocol: Protocol) -> (Pair, Seen, Sidecar, Seen) {
    let h2 = protocol.is_http2();
    let (first, first_seen) = http_app(h2).await;
    let (second, second_seen) = http_app(h2).await;
    let pair = Pair::start(protocol, first).await;
    let v2 = another(&pair, "v2", protocol, second).await;
    (pair, first_seen, v2, second_seen)
}

#[tokio::test]
async fn a_header_leads_elsewhere_as_long_as_a_route_says_so_and_over_one_connection() {
    let (pair, first, _v2, second) = pair_of(Protocol::Http).await;
    let mut client = http1(pair.outbound).await;
    let mut ask = async |version: &str| {
        let mut request = get("/status/200");
        request.headers_mut().insert("x-version", version.parse().unwrap());
        let answer = whole(soon("an answer", client.send_request(request)).await.unwrap()).await;
        assert_eq!(answer.status, 200);
        (first.requests(), second.requests())
    };
    assert_eq!(ask("2").await, (1, 0));
    let header = HeaderMatch { name: "x-version".into(), value: HeaderValueMatch::Exact("2".into()) };
    let matched = HttpMatch { headers: vec![header], ..under("/status") };
    let rule = HttpRule { backends: Some(vec![to("v2", 1)]), ..HttpRule::default() };
    route(&pair, &one(matched, rule)).await;
    assert_eq!(ask("2").await, (1, 1));
    assert_eq!(ask("1").await, (2, 1), "what fits no rule goes to the destination itself");
    pair.web.remove(types::ROUTES, "backend");
    pair.settled().await;
    assert_eq!(ask("2").await, (3, 1));
}

#[tokio::test]
async fn shares_are_exact_and_go_on_when_something_else_changes() {
    let (pair, first, _v2, second) = pair_of(Protocol::Http).await;
    route(&pair, &split(vec![to("backend", 90), to("v2", 10)])).await;
    let mut client = http1(pair.outbound).await;
    for n in 0..100 {
        if n % 10 == 3 {
            // Another endpoint makes another cluster, and a rule before it other routes: turns go on.
            let mut endpoints = vec![endpoint(pair.inbound, "east")];
            endpoints.extend((n % 20 == 3).then(|| endpoint(pair.inbound, "east")).map(|mut it| {
                it.replicas = 2;
                it
            }));
            pair.web.feed(types::ENDPOINTS, "backend", &EndpointSet { endpoints });
            let Routes::Http(mut routes) = split(vec![to("backend", 90), to("v2", 10)]) else {
                panic!("a split of requests makes routes of requests")
            };
            routes.matches.insert(0, HttpMatch { rule: 1, ..under(&format!("/other{n}")) });
            routes.rules.push(HttpRule { name: "other".into(), ..HttpRule::default() });
            route(&pair, &Routes::Http(routes)).await;
        }
        let answer = soon("an answer", client.send_request(get("/status/200"))).await.unwrap();
        assert_eq!(whole(answer).await.status, 200);
    }
    assert_eq!((first.requests(), second.requests()), (90, 10));
}

#[tokio::test]
async fn a_backend_that_is_not_there_refuses_its_share_and_no_other() {
    let (pair, first, _v2, second) = pair_of(Protocol::Http).await;
    let statuses = async || {
        let mut refused = 0;
        for _ in 0..8 {
            refused += u32::from(call(pair.outbound, "/status/200").await.status == 500);
        }
        refused
    };
    for (backends, refused) in [
        (vec![to("v2", 3), nobody(1)], 2),
        (vec![to("v2", 1), to("v9", 1)], 4),
        (vec![nobody(1)], 8),
        (vec![], 8),
    ] {
        route(&pair, &split(backends.clone())).await;
        assert_eq!(statuses().await, refused, "{backends:?}");
    }
    assert_eq!((first.requests(), second.requests()), (0, 10));
}

#[tokio::test]
async fn routes_that_cannot_be_understood_refuse_calls_until_they_are_gone() {
    for protocol in [Protocol::Http, Protocol::Tcp] {
        let (application, seen) =
            if protocol == Protocol::Tcp { echo_app().await } else { http_app(false).await };
        let pair = Pair::start(protocol, application).await;
        let broken = HttpMatch { path: Some(PathMatch::Regex("(".into())), ..HttpMatch::default() };
        let broken = resource(types::ROUTES, "backend", &one(broken, HttpRule::default()));
        assert_eq!(pair.web.engine.apply(&[broken], &[]).len(), 1);
        pair.settled().await;
        if protocol == Protocol::Tcp {
            assert!(is_reset(pair.outbound).await);
        } else {
            assert_eq!(call(pair.outbound, "/status/200").await.status, 500);
        }
        assert_eq!(seen.connections(), 0);
        pair.web.remove(types::ROUTES, "backend");
        pair.settled().await;
        if protocol == Protocol::Http {
            assert_eq!(call(pair.outbound, "/status/200").await.status, 200);
        }
    }
}

#[tokio::test]
async fn a_rule_changes_target_host_and_headers() {
    for protocol in [Protocol::Http, Protocol::Http2] {
        let (pair, ..) = pair_of(protocol).await;
        let text = |text: &str| text.to_owned();
        let rule = HttpRule {
            request_headers: vec![
                HeaderChange::Set(text("x-a"), text("new")),
                HeaderChange::Add(text("x-b"), text("more")),
                HeaderChange::Remove(text("x-c")),
            ],
            response_headers: vec![
                HeaderChange::Remove(text("x-app")),
                HeaderChange::Set(text("x-by"), text("route")),
            ],
            rewrite: Rewrite {
                hostname: Some(text("inner.example.com")),
                path: Some(PathChange::Prefix(text("/"))),
            },
            ..HttpRule::default()
        };
        route(&pair, &one(under("/api"), rule)).await;
        let headers = |mut request: Request<_>| {
            for (name, value) in [("x-a", "old"), ("x-b", "one"), ("x-c", "gone")] {
                request.headers_mut().insert(name, value.parse().unwrap());
            }
            request
        };
        let path = "/api/headers?q=1";
        let answer = match protocol {
            Protocol::Http => http1(pair.outbound).await.send_request(headers(get(path))).await,
            _ => {
                let request = headers(absolute(Method::GET, path, text_body()));
                http2(pair.outbound).await.send_request(request).await
            }
        };
        let answer = whole(answer.unwrap()).await;
        let said = answer.text();
        for line in ["x-a: new", "x-b: one", "x-b: more"] {
            assert!(said.lines().any(|found| found == line), "{protocol:?} {line}\n{said}");
        }
        assert!(
            !said.contains("x-c:") && !said.contains("old") && said.contains("inner.example.com"),
            "{said}"
        );
        assert!(!said.contains("backend.mesh"), "{said}");
        assert!(said.contains("/headers?q=1") && !said.contains("/api"), "{said}");
        assert_eq!(answer.headers.get("x-by").unwrap(), "route");
        assert!(!answer.headers.contains_key("x-app"));
    }
}

fn text_body() -> crate::apps::Payload {
    text("")
}

#[tokio::test]
async fn a_redirect_is_answered_at_once() {
    let (pair, first, ..) = pair_of(Protocol::Http).await;
    let redirect = Redirect {
        scheme: Some("https".into()),
        hostname: Some("www.example.com".into()),
        path: Some(PathChange::Prefix("/new".into())),
        status: 308,
        ..Redirect::default()
    };
    let rule = HttpRule {
        redirect: Some(redirect),
        response_headers: vec![HeaderChange::Set("x-by".into(), "route".into())],
        ..HttpRule::default()
    };
    route(&pair, &one(under("/old"), rule)).await;
    let mut client = http1(pair.outbound).await;
    for body in ["", "a body that nobody reads"] {
        let answer = client.send_request(request(Method::POST, "/old/x?q=1", text(body))).await;
        let answer = whole(soon("an answer", async { answer }).await.unwrap()).await;
        assert_eq!(answer.status, 308);
        assert_eq!(answer.headers.get("location").unwrap(), "https://www.example.com/new/x?q=1");
        assert_eq!(answer.headers.get("x-by").unwrap(), "route");
        client = http1(pair.outbound).await;
    }
    assert_eq!(first.requests(), 0);
}

/// A match, a request that fits it, and one that does not: method, target and `x-user`.
type Case = (HttpMatch, Asked, Asked);
type Asked = (Method, &'static str, &'static str);

fn matches() -> Vec<Case> {
    let path = |path| HttpMatch { path: Some(path), ..HttpMatch::default() };
    let header = |value| HttpMatch {
        headers: vec![HeaderMatch { name: "x-user".into(), value }],
        ..HttpMatch::default()
    };
    let query =
        |value| HttpMatch { query: vec![QueryMatch { name: "q".into(), value }], ..HttpMatch::default() };
    let by_method = HttpMatch { method: Some("POST".into()), ..HttpMatch::default() };
    let get = |target, user| (Method::GET, target, user);
    vec![
        (path(PathMatch::Exact("/a".into())), get("/a?b=c", ""), get("/a/b", "")),
        (path(PathMatch::Prefix("/a".into())), get("/a/b", ""), get("/ab", "")),
        (path(PathMatch::Regex("/v[0-9]+".into())), get("/v12", ""), get("/v12/a", "")),
        (by_method, (Method::POST, "/a", ""), get("/a", "")),
        (header(HeaderValueMatch::Exact("ann".into())), get("/", "ann"), get("/", "anna")),
        (header(HeaderValueMatch::Prefix("ann".into())), get("/", "anna"), get("/", "joann")),
        (header(HeaderValueMatch::Regex("a.*".into())), get("/", "ann"), get("/", "bob")),
        (header(HeaderValueMatch::Present), get("/", "ann"), get("/", "")),
        (header(HeaderValueMatch::Absent), get("/", ""), get("/", "ann")),
        (query(QueryValueMatch::Exact("1".into())), get("/?p=2&q=1", ""), get("/?p=1&q=2", "")),
        (query(QueryValueMatch::Regex("1+".into())), get("/?q=11", ""), get("/?q=12", "")),
    ]
}

#[tokio::test]
async fn a_rule_holds_for_what_its_matches_say() {
    let (pair, first, _v2, second) = pair_of(Protocol::Http).await;
    for (matched, fits, other) in matches() {
        let rule = HttpRule { backends: Some(vec![to("v2", 1)]), ..HttpRule::default() };
        route(&pair, &one(matched.clone(), rule)).await;
        for ((method, target, user), way) in [(fits, [0, 1]), (other, [1, 0])] {
            let mut asked = request(method, target, text(""));
            if !user.is_empty() {
                asked.headers_mut().insert("x-user", user.parse().unwrap());
            }
            let before = [first.requests(), second.requests()];
            let answer = soon("an answer", http1(pair.outbound).await.send_request(asked)).await.unwrap();
            whole(answer).await;
            let after = [first.requests() - before[0], second.requests() - before[1]];
            assert_eq!(after, way, "{matched:?} {target} {user}");
        }
    }
}

#[tokio::test]
async fn a_redirect_changes_what_it_says_and_nothing_else() {
    let (pair, ..) = pair_of(Protocol::Http).await;
    let of = Redirect { status: 302, ..Redirect::default() };
    let text = |text: &str| Some(text.to_owned());
    for (redirect, location) in [
        (Redirect { scheme: text("https"), ..of.clone() }, "https://backend.mesh/old/x?q=1"),
        (Redirect { hostname: text("www.example.com"), ..of.clone() }, "http://www.example.com/old/x?q=1"),
        (Redirect { port: Some(8443), status: 301, ..of.clone() }, "http://backend.mesh:8443/old/x?q=1"),
        (
            Redirect { path: Some(PathChange::Full("/moved".into())), status: 307, ..of.clone() },
            "http://backend.mesh/moved?q=1",
        ),
        (Redirect { path: Some(PathChange::Prefix("/new".into())), ..of }, "http://backend.mesh/new/x?q=1"),
    ] {
        let status = redirect.status;
        let rule = HttpRule { redirect: Some(redirect), ..HttpRule::default() };
        route(&pair, &one(under("/old"), rule)).await;
        let answer = call(pair.outbound, "/old/x?q=1").await;
        assert_eq!((answer.status, answer.headers["location"].to_str().unwrap()), (status, location));
    }
}

#[tokio::test]
async fn a_rule_may_ask_for_another_path() {
    let (pair, ..) = pair_of(Protocol::Http).await;
    let path = Some(PathChange::Full("/headers".into()));
    let rule = HttpRule { rewrite: Rewrite { hostname: None, path }, ..HttpRule::default() };
    route(&pair, &one(under("/api"), rule)).await;
    let answer = call(pair.outbound, "/api/x/y?q=1").await;
    let said: Vec<&str> = answer.text().lines().collect();
    assert!(said.contains(&"uri /headers?q=1") && said.contains(&"host: backend.mesh"), "{said:?}");
}

fn mirrored_to(name: &str, per_million: u32) -> Routes {
    let mirror = Mirror { per_million, to: BackendTarget::Destination(name.into()) };
    one(under("/"), HttpRule { mirrors: vec![mirror], ..HttpRule::default() })
}

#[tokio::test]
async fn a_mirror_gets_the_whole_request_and_nobody_its_answer() {
    let (application, seen) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    let (mirror, copies) =
        failing_app(false, usize::MAX, || Response::builder().status(503).body(text("")).unwrap()).await;
    let _audit = another(&pair, "audit", Protocol::Http, mirror).await;
    route(&pair, &mirrored_to("audit", 1_000_000)).await;
    let (sender, body) = streaming();
    tokio::spawn(async move {
        for part in ["one ", "two ", "three"] {
            sender.send(Frame::data(Bytes::from_static(part.as_bytes()))).await.unwrap();
        }
    });
    let answer = http1(pair.outbound).await.send_request(request(Method::POST, "/echo", body)).await.unwrap();
    let answer = whole(answer).await;
    assert_eq!((answer.status, answer.text()), (200, "one two three"));
    // It answers only what has come whole.
    let audit = pair.web.engine.shared().metrics.traffic("outbound", "audit");
    until("the copy", async || {
        (copies.requests() == 1 && audit.cell(0).bytes_in.value() == 13).then_some(())
    })
    .await;
    assert_eq!(call(pair.outbound, "/status/204").await.status, 204);
    until("the next", async || (copies.requests() == 2).then_some(())).await;
    assert_eq!((audit.cell(0).mirrored.value(), audit.cell(0).mirrors_dropped.value()), (2, 0));

    route(&pair, &mirrored_to("audit", 0)).await;
    assert_eq!(call(pair.outbound, "/status/204").await.status, 204);
    route(&pair, &mirrored_to("nobody", 1_000_000)).await;
    assert_eq!(call(pair.outbound, "/status/204").await.status, 204);
    assert_eq!((seen.requests(), audit.cell(0).mirrored.value()), (4, 2));
}

/// One that takes nothing in: what it can't have is not kept.
#[tokio::test]
async fn a_mirror_that_stands_still_holds_up_nobody() {
    let (application, _) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    let (silent, _) = tcp_app(|stream| async move {
        let _open = stream;
        std::future::pending::<()>().await;
    })
    .await;
    let _audit = another(&pair, "audit", Protocol::Http, silent).await;
    route(&pair, &mirrored_to("audit", 1_000_000)).await;
    let big = Bytes::from(vec![b'x'; 8 << 20]);
    let post = request(Method::POST, "/echo", text(big.clone()));
    let answer = whole(soon("an answer", http1(pair.outbound).await.send_request(post)).await.unwrap()).await;
    assert!(answer.status == 200 && answer.body == big);
    let audit = pair.web.engine.shared().metrics.traffic("outbound", "audit");
    until("the copy to be given up", async || (audit.cell(0).mirrors_dropped.value() == 1).then_some(()))
        .await;
    assert!(audit.cell(0).bytes_in.value() < 8 << 20);
    assert_eq!(call(pair.outbound, "/status/200").await.status, 200);
}

#[tokio::test]
async fn what_changes_its_protocol_is_routed_too() {
    let (pair, first, _v2, second) = pair_of(Protocol::Http).await;
    route(&pair, &split(vec![to("v2", 1)])).await;
    let mut request = get("/upgrade");
    request.headers_mut().insert("connection", "upgrade".parse().unwrap());
    request.headers_mut().insert("upgrade", "chat".parse().unwrap());
    let answer = soon("an answer", http1(pair.outbound).await.send_request(request)).await.unwrap();
    assert_eq!(answer.status(), 101);
    let mut io = TokioIo::new(hyper::upgrade::on(answer).await.unwrap());
    io.write_all(b"hello").await.unwrap();
    let mut said = [0; 5];
    soon("an echo", io.read_exact(&mut said)).await.unwrap();
    assert_eq!((&said, first.requests(), second.requests()), (b"hello", 0, 1));
    // The next request goes elsewhere; this connection stays where it is.
    route(&pair, &split(vec![to("v2", 1), to("backend", 9)])).await;
    io.write_all(b"still").await.unwrap();
    soon("an echo", io.read_exact(&mut said)).await.unwrap();
    assert_eq!(&said, b"still");
}

#[tokio::test]
async fn a_rule_has_limits_and_repetitions_of_its_own_and_these_stay_with_its_backend() {
    let unavailable = || Response::builder().status(503).body(text("not now")).unwrap();
    let (application, first) = http_app(false).await;
    let (second, seen) = failing_app(false, 2, unavailable).await;
    let pair = Pair::start(Protocol::Http, application).await;
    let _v2 = another(&pair, "v2", Protocol::Http, second).await;
    let retry = Retry {
        max: 3.try_into().unwrap(),
        per_try_millis: None,
        back_off: BackOff { base_millis: 1, max_millis: 10 },
        rate_limited: None,
        on: vec![RetryOn::GatewayError],
        methods: vec![],
        request_headers: vec![],
        response_headers: vec![],
        hosts: HostSelection::default(),
    };
    let policies = RoutePolicies { retry: Some(retry), ..RoutePolicies::default() };
    let again = HttpRule {
        backends: Some(vec![to("v2", 1), to("backend", 1)]),
        policies: Some(policies),
        ..HttpRule::default()
    };
    route(&pair, &one(under("/"), again)).await;
    let mut statuses = vec![];
    for _ in 0..2 {
        statuses.push(call(pair.outbound, "/status/200").await.status);
    }
    assert_eq!((statuses, seen.requests(), first.requests()), (vec![200, 200], 3, 1));

    let timeouts = StreamTimeouts { request_millis: Some(100), ..StreamTimeouts::default() };
    let quick = HttpRule {
        policies: Some(RoutePolicies { stream_timeouts: timeouts, ..RoutePolicies::default() }),
        ..HttpRule::default()
    };
    route(&pair, &one(under("/hang"), quick)).await;
    assert_eq!(call(pair.outbound, "/hang").await.status, 504);
}

async fn echoed(stream: &mut TcpStream) -> bool {
    let mut said = [0; 2];
    stream.write_all(b"hi").await.is_ok() && soon("an echo", stream.read_exact(&mut said)).await.is_ok()
}

#[tokio::test]
async fn tcp_connections_take_turns_and_stay_where_they_are() {
    let (first, first_seen) = echo_app().await;
    let (second, second_seen) = echo_app().await;
    let pair = Pair::start(Protocol::Tcp, first).await;
    let _v2 = another(&pair, "v2", Protocol::Tcp, second).await;
    route(&pair, &Routes::Tcp(vec![to("backend", 3), to("v2", 1)])).await;
    let mut open = vec![];
    for _ in 0..8 {
        let mut stream = TcpStream::connect(pair.outbound).await.unwrap();
        assert!(echoed(&mut stream).await);
        open.push(stream);
    }
    assert_eq!((first_seen.connections(), second_seen.connections()), (6, 2));
    route(&pair, &Routes::Tcp(vec![to("backend", 1), to("v2", 9)])).await;
    for stream in &mut open {
        assert!(echoed(stream).await, "shares are for those who come");
    }
    route(&pair, &Routes::Tcp(vec![nobody(1)])).await;
    assert!(is_reset(pair.outbound).await);
}

#[tokio::test]
async fn an_http_destination_can_be_shared_out_by_connection() {
    for protocol in [Protocol::Http, Protocol::Http2] {
        let (pair, first, _v2, second) = pair_of(protocol).await;
        route(&pair, &Routes::Tcp(vec![to("backend", 1), to("v2", 1)])).await;
        for _ in 0..4 {
            let status = match protocol {
                Protocol::Http => call(pair.outbound, "/status/200").await.status,
                _ => {
                    let request = absolute(Method::GET, "/status/200", text(""));
                    let answer = http2(pair.outbound).await.send_request(request).await.unwrap();
                    whole(answer).await.status
                }
            };
            assert_eq!(status, 200);
        }
        assert_eq!((first.requests(), second.requests()), (2, 2));
    }
}

#[tokio::test]
async fn a_subset_of_a_services_instances_follows_their_tags() {
    let (pair, first, _v2, second) = pair_of(Protocol::Http).await;
    let other = address();
    let (application, third) = http_app(false).await;
    pair.backend.feed(
        types::INBOUND,
        "other",
        &Inbound { name: "other".into(), ..pair.backend.inbound(Protocol::Http, other, application) },
    );
    let tagged = async |version: &str| {
        let mut tagged = endpoint(other, "east");
        tagged.tags = [("version".to_owned(), version.to_owned())].into();
        let endpoints = vec![endpoint(pair.inbound, "east"), tagged];
        pair.web.feed(types::ENDPOINTS, "backend", &EndpointSet { endpoints });
        pair.settled().await;
    };
    tagged("2").await;
    let tags = [("version".to_owned(), "2".to_owned())].into();
    let to = BackendTarget::Subset { destination: "backend".into(), tags };
    route(&pair, &split(vec![RouteBackend { weight: 1, to }])).await;
    for _ in 0..6 {
        assert_eq!(call(pair.outbound, "/status/200").await.status, 200);
    }
    assert_eq!((first.requests(), second.requests(), third.requests()), (0, 0, 6));
    tagged("3").await;
    assert_eq!(call(pair.outbound, "/status/200").await.status, 503);
    pair.web.remove(types::ROUTES, "backend");
    pair.settled().await;
    assert_eq!(call(pair.outbound, "/status/200").await.status, 200);
}
