//! MeshHealthCheck: endpoints that are not well are left out, and come back.

use crate::{
    apps::{Payload, call, serve, tcp_app, text},
    world::{MESH, Pair, address, destination, endpoint, is_reset, resource, soon, until},
};
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use meridian_proxy::{engine::Engine, metrics::TrafficCell, resolve::Resolver};
use meridian_proxy_config::{
    DestinationPolicies, DestinationTls, EndpointSet, HealthChecks, Jitter, Outbound, Panic, Protocol,
    Question, Target, types,
};
use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::SocketAddr,
    num::{NonZeroU32, NonZeroU64},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, AtomicUsize, Ordering},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tracing::field::{Field, Visit};
use tracing_subscriber::{
    Layer,
    filter::LevelFilter,
    layer::{Context, SubscriberExt},
    util::SubscriberInitExt,
};

/// A status that is none: no answer at all.
const SILENT: u16 = 0;

/// An application that answers `/health` with the status it is told, gRPC's health service with the serving status 1 for
/// 200 and 2 else, and everything else with 200.
#[derive(Clone)]
struct Moody {
    at: SocketAddr,
    status: Arc<AtomicU16>,
    checks: Arc<AtomicUsize>,
    calls: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
    last: Arc<Mutex<Option<(String, HeaderMap)>>>,
}

impl Moody {
    async fn start(http2: bool) -> Self {
        let listener = TcpListener::bind(address()).await.unwrap();
        let app = Self {
            at: listener.local_addr().unwrap(),
            status: Arc::new(AtomicU16::new(200)),
            checks: Arc::default(),
            calls: Arc::default(),
            connections: Arc::default(),
            last: Arc::default(),
        };
        let served = app.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                served.connections.fetch_add(1, Ordering::Relaxed);
                let app = served.clone();
                let handler = service_fn(move |request| {
                    let app = app.clone();
                    async move { Ok::<_, Infallible>(app.answer(request).await) }
                });
                tokio::spawn(serve(stream, http2, handler));
            }
        });
        app
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Payload> {
        let (mut head, body) = request.into_parts();
        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let status = self.status.load(Ordering::Relaxed);
        match head.uri.path() {
            "/health" if status == SILENT => {
                self.checks.fetch_add(1, Ordering::Relaxed);
                std::future::pending().await
            }
            "/health" => {
                *self.last.lock().unwrap() = Some((head.uri.to_string(), head.headers));
                self.checks.fetch_add(1, Ordering::Relaxed);
                Response::builder().status(status).body(text("how it is")).unwrap()
            }
            "/grpc.health.v1.Health/Check" => {
                let authority = head.uri.authority().unwrap().as_str();
                head.headers.insert("host", authority.parse().unwrap());
                *self.last.lock().unwrap() =
                    Some((String::from_utf8_lossy(&body).into_owned(), head.headers));
                self.checks.fetch_add(1, Ordering::Relaxed);
                let serving = if status == 200 { 1 } else { 2 };
                let message = Frame::data(Bytes::copy_from_slice(&[0, 0, 0, 0, 2, 8, serving]));
                let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
                let frames = [message, Frame::trailers(trailers)].map(Ok);
                let body = BodyExt::boxed(StreamBody::new(futures::stream::iter(frames)));
                Response::builder().header("content-type", "application/grpc").body(body).unwrap()
            }
            _ => {
                self.calls.fetch_add(1, Ordering::Relaxed);
                Response::new(text("called"))
            }
        }
    }

    fn feel(&self, status: u16) {
        self.status.store(status, Ordering::Relaxed);
    }

    fn checks(&self) -> usize {
        self.checks.load(Ordering::Relaxed)
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }

    async fn is_asked_again(&self) {
        let before = self.checks();
        until("it is asked twice more", async || (self.checks() > before + 1).then_some(())).await;
    }
}

fn http(path: &str) -> Question {
    Question::Http { path: path.into(), set_headers: vec![], add_headers: vec![], statuses: vec![200] }
}

/// Often.
fn checks(question: Question) -> HealthChecks {
    let millis = |millis| NonZeroU64::new(millis).unwrap();
    let one = NonZeroU32::new(1).unwrap();
    HealthChecks {
        interval_millis: millis(20),
        idle_interval_millis: millis(20),
        timeout_millis: millis(2_000),
        unhealthy_after: one,
        healthy_after: one,
        jitter: Jitter::default(),
        reuse: true,
        log_failures: false,
        question,
        event_log_path: None,
    }
}

/// `web`, which calls some endpoints in the clear.
struct Clear {
    pair: Pair,
}

impl Clear {
    async fn start(protocol: Protocol, endpoints: &[SocketAddr], policies: DestinationPolicies) -> Self {
        let pair = Pair::start(protocol, address()).await;
        let clear = Self { pair };
        clear.endpoints(endpoints);
        let mut destination = destination(protocol, &["backend"]);
        destination.tls = DestinationTls::Off;
        clear.pair.web.feed(types::DESTINATION, "backend", &destination);
        // Last: these endpoints are in use before anybody asks them.
        clear.pair.web.feed(types::POLICIES, "backend", &policies);
        clear.pair.settled().await;
        clear
    }

    fn endpoints(&self, at: &[SocketAddr]) {
        let endpoints = at.iter().map(|at| endpoint(*at, "east")).collect();
        self.pair.web.feed(types::ENDPOINTS, "backend", &EndpointSet { endpoints });
    }

    async fn call(&self) -> u16 {
        call(self.pair.outbound, "/").await.status
    }

    fn counted(&self, read: fn(&TrafficCell) -> u64) -> u64 {
        self.pair.counted(read)
    }

    fn losses(&self) -> u64 {
        self.counted(|cell| cell.health_losses.value())
    }

    async fn has_lost(&self, n: u64) {
        until("an endpoint is lost", async || (self.losses() >= n).then_some(())).await;
    }
}

fn policies(question: Question, panic: Panic) -> DestinationPolicies {
    DestinationPolicies { health: Some(checks(question)), panic, ..DestinationPolicies::default() }
}

const NEVER: Panic = Panic { below: Some(0), fails: false };

#[tokio::test]
async fn an_unhealthy_endpoint_is_left_out_and_comes_back() {
    let (a, b) = (Moody::start(false).await, Moody::start(false).await);
    let web = Clear::start(Protocol::Http, &[a.at, b.at], policies(http("/health"), Panic::default())).await;
    a.feel(503);
    web.has_lost(1).await;
    let (of_a, of_b) = (a.calls(), b.calls());
    for _ in 0..6 {
        assert_eq!(web.call().await, 200);
    }
    assert_eq!((a.calls() - of_a, b.calls() - of_b), (0, 6));
    assert!(web.counted(|cell| cell.health_check_failures.value()) > 0);
    assert!(web.counted(|cell| cell.health_checks.value()) > 1);

    a.feel(200);
    until("it is back", async || {
        web.call().await;
        (a.calls() > of_a).then_some(())
    })
    .await;
    assert_eq!(web.losses(), 1);
}

#[tokio::test]
async fn where_too_few_are_well_all_are_used_unless_told_otherwise() {
    for (panic, answered) in [
        (Panic::default(), 200),
        (NEVER, 503),
        (Panic { below: None, fails: true }, 503),
        (Panic { below: Some(10_000), fails: true }, 503),
    ] {
        let app = Moody::start(false).await;
        app.feel(500);
        let web = Clear::start(Protocol::Http, &[app.at], policies(http("/health"), panic)).await;
        web.has_lost(1).await;
        let answer = call(web.pair.outbound, "/").await;
        assert_eq!(answer.status, answered, "{panic:?}");
        assert_eq!(answer.text().contains("left out"), answered == 503, "{}", answer.text());
        // Asked again, and believed.
        app.feel(200);
        until("it is well", async || (web.call().await == 200).then_some(())).await;
    }
}

#[tokio::test]
async fn an_endpoint_that_appears_is_used_once_it_has_answered() {
    let (old, new) = (Moody::start(false).await, Moody::start(false).await);
    new.feel(503);
    let web = Clear::start(Protocol::Http, &[old.at], policies(http("/health"), NEVER)).await;
    old.is_asked_again().await;
    web.endpoints(&[old.at, new.at]);
    for _ in 0..4 {
        assert_eq!(web.call().await, 200);
    }
    assert_eq!(new.calls(), 0, "nobody knows it yet");
    new.feel(200);
    until("it is used", async || {
        web.call().await;
        (new.calls() > 0).then_some(())
    })
    .await;
    assert_eq!(web.losses(), 0, "it never was well");
}

/// What is known survives a change of the endpoints and of the policy.
#[tokio::test]
async fn a_change_of_configuration_forgets_nothing() {
    let (a, b, c) = (Moody::start(false).await, Moody::start(false).await, Moody::start(false).await);
    let web = Clear::start(Protocol::Http, &[a.at, b.at], policies(http("/health"), NEVER)).await;
    a.feel(503);
    web.has_lost(1).await;
    web.endpoints(&[a.at, b.at, c.at]);
    let mut longer = policies(http("/health"), NEVER);
    longer.health.as_mut().unwrap().healthy_after = NonZeroU32::new(1_000_000).unwrap();
    web.pair.web.feed(types::POLICIES, "backend", &longer);
    web.pair.settled().await;
    a.feel(200);
    a.is_asked_again().await;
    let before = a.calls();
    for _ in 0..6 {
        assert_eq!(web.call().await, 200);
    }
    assert_eq!(a.calls(), before, "it has to answer well much longer now");
    assert_eq!(web.losses(), 1);
    // Without the policy nobody asks, and all are used.
    web.pair.policies(|_| {}).await;
    for _ in 0..6 {
        assert_eq!(web.call().await, 200);
    }
    assert!(a.calls() > before);
}

#[tokio::test]
async fn requests_are_as_the_policy_says() {
    let app = Moody::start(false).await;
    let question = Question::Http {
        path: "/health?deep=1".into(),
        set_headers: vec![("host".into(), "shop.test".into()), ("user-agent".into(), "kuma".into())],
        add_headers: vec![("x-check".into(), "yes".into())],
        statuses: vec![204, 299],
    };
    app.feel(204);
    let web = Clear::start(Protocol::Http, &[app.at], policies(question, NEVER)).await;
    app.is_asked_again().await;
    let (uri, headers) = app.last.lock().unwrap().clone().unwrap();
    assert_eq!(uri, "/health?deep=1");
    assert!(headers["host"] == "shop.test" && headers["user-agent"] == "kuma" && headers["x-check"] == "yes");
    assert_eq!(web.losses(), 0);
    app.feel(200);
    web.has_lost(1).await;
}

/// Two applications, each asked by a caller of its own: one by a policy of which something is changed.
struct Beside {
    app: Moody,
    web: Clear,
    other: Moody,
    _others: Clear,
}

impl Beside {
    async fn start(change: impl Fn(&mut HealthChecks), jitter: Jitter) -> Self {
        let (app, other) = (Moody::start(false).await, Moody::start(false).await);
        let mut plain = policies(http("/health"), NEVER);
        change(plain.health.as_mut().unwrap());
        let mut jittered = plain.clone();
        jittered.health.as_mut().unwrap().jitter = jitter;
        let web = Clear::start(Protocol::Http, &[app.at], jittered).await;
        let others = Clear::start(Protocol::Http, &[other.at], plain).await;
        Self { app, web, other, _others: others }
    }

    /// Until the other was asked so often; how often the first was meanwhile.
    async fn for_checks(&self, checks: usize) -> usize {
        let (before, others) = (self.app.checks(), self.other.checks());
        let asked = async || (self.other.checks() >= others + checks).then_some(());
        until("the other was asked", asked).await;
        self.app.checks() - before
    }
}

const HOUR: u64 = 3_600_000;

#[tokio::test]
async fn checks_wait_by_lot_as_the_policy_says() {
    let begins_late = Jitter { initial_millis: HOUR, ..Jitter::default() };
    let late = Beside::start(|_| {}, begins_late).await;
    assert_eq!(late.for_checks(10).await, 0);
    let far_apart = Jitter { interval_millis: HOUR, ..Jitter::default() };
    let far = Beside::start(|_| {}, far_apart).await;
    assert!(far.for_checks(10).await < 2);
    let later = Jitter { interval_percent: 100, ..Jitter::default() };
    let seldom = |checks: &mut HealthChecks| checks.idle_interval_millis = NonZeroU64::new(60).unwrap();
    let longer = Beside::start(seldom, later).await;
    // Half an interval later, on the average.
    assert!((2..38).contains(&longer.for_checks(40).await));
}

#[tokio::test]
async fn who_is_called_has_an_interval_of_its_own() {
    let long = |checks: &mut HealthChecks| checks.interval_millis = NonZeroU64::new(HOUR).unwrap();
    let beside = Beside::start(long, Jitter::default()).await;
    assert!(beside.for_checks(10).await > 2);
    assert_eq!(beside.web.call().await, 200);
    assert!(beside.for_checks(10).await < 3, "what was under way, and one that is due");
}

/// Silence takes more than one check to be believed.
#[tokio::test]
async fn silence_counts_as_often_as_the_policy_says() {
    for (unhealthy_after, is_lost) in [(1_000_000, false), (3, true)] {
        let app = Moody::start(false).await;
        let mut policies = policies(http("/health"), NEVER);
        let checks = policies.health.as_mut().unwrap();
        checks.unhealthy_after = NonZeroU32::new(unhealthy_after).unwrap();
        checks.timeout_millis = NonZeroU64::new(200).unwrap();
        let web = Clear::start(Protocol::Http, &[app.at], policies).await;
        app.is_asked_again().await;
        app.feel(SILENT);
        if is_lost {
            web.has_lost(1).await;
        } else {
            app.is_asked_again().await;
            app.is_asked_again().await;
            assert_eq!((web.losses(), web.call().await), (0, 200));
        }
    }
}

/// Of which endpoints this process logs that a check has failed.
#[derive(Clone, Default)]
struct FailedChecks(Arc<Mutex<Vec<String>>>);

impl FailedChecks {
    fn of(&self, at: SocketAddr) -> usize {
        let at = at.to_string();
        self.0.lock().unwrap().iter().filter(|address| **address == at).count()
    }
}

impl<S: tracing::Subscriber> Layer<S> for FailedChecks {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        if fields.0.get("message").is_some_and(|message| message == "a health check failed") {
            self.0.lock().unwrap().extend(fields.0.remove("address"));
        }
    }
}

#[derive(Default)]
struct Fields(BTreeMap<&'static str, String>);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }
}

/// Beside the one that changes what is known.
#[tokio::test]
async fn each_failed_check_is_logged_where_a_policy_asks_for_it() {
    let logged = FailedChecks::default();
    tracing_subscriber::registry().with(logged.clone().with_filter(LevelFilter::WARN)).init();
    for log_failures in [true, false] {
        let app = Moody::start(false).await;
        app.feel(503);
        let mut policies = policies(http("/health"), NEVER);
        policies.health.as_mut().unwrap().log_failures = log_failures;
        let web = Clear::start(Protocol::Http, &[app.at], policies).await;
        let failures = || web.counted(|cell| cell.health_check_failures.value());
        until("failures", async || (failures() > 5).then_some(())).await;
        if log_failures {
            until("a line for each", async || (logged.of(app.at) > 4).then_some(())).await;
        }
        assert_eq!(logged.of(app.at) > 0, log_failures);
    }
}

/// An application of HTTP that takes connections is well by a policy that asks no more of it.
#[tokio::test]
async fn an_http_application_may_be_asked_for_a_connection_only() {
    let app = Moody::start(false).await;
    app.feel(503);
    let nowhere = address();
    let question = Question::Tcp { send: vec![], receive: vec![] };
    let web = Clear::start(Protocol::Http, &[app.at, nowhere], policies(question, NEVER)).await;
    web.has_lost(1).await;
    for _ in 0..4 {
        assert_eq!(web.call().await, 200);
    }
    assert_eq!((app.checks(), app.calls()), (0, 4));
}

#[tokio::test]
async fn checks_share_a_connection_if_they_may() {
    for reuse in [true, false] {
        let app = Moody::start(false).await;
        let mut policies = policies(http("/health"), NEVER);
        policies.health.as_mut().unwrap().reuse = reuse;
        let _web = Clear::start(Protocol::Http, &[app.at], policies).await;
        until("it was asked", async || (app.checks() > 3).then_some(())).await;
        let (connections, checks) = (app.connections.load(Ordering::Relaxed), app.checks());
        assert!(
            if reuse { connections == 1 } else { connections >= checks },
            "{reuse} {connections} {checks}"
        );
    }
}

/// By the same way, and with the same look at who answers, as requests.
#[tokio::test]
async fn over_mtls_through_the_other_sidecar() {
    for protocol in [Protocol::Http, Protocol::Http2, Protocol::Grpc] {
        let app = Moody::start(protocol != Protocol::Http).await;
        let pair = Pair::start(protocol, app.at).await;
        let question = match protocol {
            Protocol::Grpc => Question::Grpc { service: "shop".into(), authority: Some("shop.test".into()) },
            _ => http("/health"),
        };
        pair.policies(|all| *all = policies(question, NEVER)).await;
        app.is_asked_again().await;
        if protocol == Protocol::Grpc {
            let (message, headers) = app.last.lock().unwrap().clone().unwrap();
            assert_eq!(
                (message.as_str(), &headers["te"]),
                ("\0\0\0\0\u{6}\n\u{4}shop", &"trailers".parse().unwrap())
            );
            assert_eq!(headers["host"], "shop.test");
        }
        let losses = || pair.counted(|cell| cell.health_losses.value());
        assert_eq!(losses(), 0);
        assert_eq!(call(pair.outbound, "/").await.status, 200);
        app.feel(503);
        until("it is lost", async || (losses() == 1).then_some(())).await;
        assert_eq!(call(pair.outbound, "/").await.status, 503);
        app.feel(200);
        until("it is back", async || (call(pair.outbound, "/").await.status == 200).then_some(())).await;
    }
}

#[tokio::test]
async fn who_is_somebody_else_is_not_well() {
    let app = Moody::start(false).await;
    let pair = Pair::start(Protocol::Http, app.at).await;
    pair.policies(|all| *all = policies(http("/health"), NEVER)).await;
    app.is_asked_again().await;
    pair.web.feed(types::DESTINATION, "backend", &destination(Protocol::Http, &["somebody"]));
    until("it is lost", async || (pair.counted(|cell| cell.health_losses.value()) == 1).then_some(())).await;
    let checks = app.checks();
    pair.web.feed(types::DESTINATION, "backend", &destination(Protocol::Http, &["backend"]));
    until("it is asked", async || (app.checks() > checks).then_some(())).await;
    until("it is used", async || (call(pair.outbound, "/").await.status == 200).then_some(())).await;
}

/// A kept connection ends with the trust in whom it leads to.
#[tokio::test]
async fn a_revoked_zone_is_not_well() {
    let app = Moody::start(false).await;
    let mut pair = Pair::start(Protocol::Http, app.at).await;
    let mut seldom = policies(http("/health"), NEVER);
    seldom.health.as_mut().unwrap().idle_interval_millis = NonZeroU64::new(20_000).unwrap();
    pair.web.feed(types::POLICIES, "backend", &seldom);
    until("it was asked", async || (app.checks() == 1).then_some(())).await;
    assert_eq!(pair.web.engine.connections().await.len(), 1, "the check's");
    pair.ca.revoke("east");
    pair.web.feed(types::BUNDLE, MESH, &pair.ca.bundle());
    until("it is closed", async || pair.web.engine.connections().await.is_empty().then_some(())).await;
}

/// Nobody is unwell for want of it.
#[tokio::test]
async fn without_a_certificate_of_its_own_a_proxy_asks_nobody() {
    let app = Moody::start(false).await;
    let pair = Pair::start(Protocol::Http, app.at).await;
    let tls = &pair.web.engine.shared().tls;
    tls.identities.of(MESH).clear();
    pair.policies(|all| *all = policies(http("/health"), NEVER)).await;
    assert_eq!(call(pair.outbound, "/").await.status, 503);
    tls.set_identity(MESH, pair.ca.identity("east", "web"));
    pair.web.engine.republish();
    app.is_asked_again().await;
    assert_eq!(pair.counted(|cell| cell.health_check_failures.value()), 0);
    until("it is used", async || (call(pair.outbound, "/").await.status == 200).then_some(())).await;
}

#[tokio::test]
async fn what_comes_back_over_tcp_decides() {
    for mtls in [false, true] {
        let right = Arc::new(AtomicUsize::new(1));
        let told = right.clone();
        let (app, _) = tcp_app(move |mut stream| {
            let right = told.clone();
            async move {
                let mut asked = [0; 4];
                while stream.read_exact(&mut asked).await.is_ok() {
                    let answer: &[u8] = match (&asked, right.load(Ordering::Relaxed)) {
                        (b"ping", 1) => b"--po--ng",
                        _ => b"ng--po",
                    };
                    stream.write_all(&answer[..3]).await.unwrap();
                    stream.write_all(&answer[3..]).await.unwrap();
                }
            }
        })
        .await;
        let question =
            Question::Tcp { send: b"ping".to_vec(), receive: vec![b"po".to_vec(), b"ng".to_vec()] };
        let mut all = policies(question, NEVER);
        all.health.as_mut().unwrap().timeout_millis = NonZeroU64::new(300).unwrap();
        let web = if mtls {
            let pair = Pair::start(Protocol::Tcp, app).await;
            pair.policies(|policies| *policies = all).await;
            Clear { pair }
        } else {
            Clear::start(Protocol::Tcp, &[app], all).await
        };
        until("it was asked", async || (web.counted(|cell| cell.health_checks.value()) > 2).then_some(()))
            .await;
        assert_eq!(web.losses(), 0);
        right.store(0, Ordering::Relaxed);
        web.has_lost(1).await;
        assert!(is_reset(web.pair.outbound).await);
        right.store(1, Ordering::Relaxed);
        until("it is back", async || {
            let mut stream = TcpStream::connect(web.pair.outbound).await.ok()?;
            drop(stream.write_all(b"ping").await);
            soon("a byte or an end", stream.read_u8()).await.ok()
        })
        .await;
    }
}

#[tokio::test]
async fn a_connection_is_enough_where_nothing_is_asked() {
    let (app, seen) = tcp_app(|stream| async move { drop(stream) }).await;
    let nowhere = address();
    let web = Clear::start(
        Protocol::Tcp,
        &[app, nowhere],
        policies(Question::Tcp { send: vec![], receive: vec![] }, NEVER),
    )
    .await;
    web.has_lost(1).await;
    until("one is asked", async || (seen.connections() > 3).then_some(())).await;
    assert_eq!(web.losses(), 1);
}

/// Two workers, and yet each endpoint is asked by one; both know what it found.
#[tokio::test]
async fn one_worker_asks_and_all_know() {
    let apps = [Moody::start(false).await, Moody::start(false).await, Moody::start(false).await];
    let pair = Pair::start(Protocol::Http, address()).await;
    let engine = Engine::start(2, Resolver::default()).unwrap();
    let outbound = address();
    let mut seldom = policies(http("/health"), NEVER);
    seldom.health.as_mut().unwrap().idle_interval_millis = NonZeroU64::new(3_600_000).unwrap();
    let feed = |resource| assert!(engine.apply(&[resource], &[]).is_empty());
    let snapshot = pair.web.engine.shared().snapshots.load();
    feed(resource(types::PROXY, "self", &**snapshot.proxy.as_ref().unwrap()));
    let endpoints = apps.iter().map(|app| endpoint(app.at, "east")).collect();
    feed(resource(types::ENDPOINTS, "backend", &EndpointSet { endpoints }));
    feed(resource(types::POLICIES, "backend", &seldom));
    let mut clear = destination(Protocol::Http, &["backend"]);
    clear.tls = DestinationTls::Off;
    feed(resource(types::DESTINATION, "backend", &clear));
    apps[0].feel(503);
    let target = Target::Destination("backend".into());
    let listening =
        Outbound { bind: Some(outbound), vips: vec![], port: outbound.port(), hostnames: vec![], target };
    feed(resource(types::OUTBOUND, "backend", &listening));
    until("all were asked", async || apps.iter().all(|app| app.checks() > 0).then_some(())).await;
    let traffic = engine.shared().metrics.traffic("outbound", "backend");
    let sum = |read: fn(&TrafficCell) -> u64| read(traffic.cell(0)) + read(traffic.cell(1));
    until("one is lost", async || (sum(|cell| cell.health_losses.value()) == 1).then_some(())).await;
    for _ in 0..30 {
        assert_eq!(call(outbound, "/").await.status, 200);
    }
    assert_eq!(apps[0].calls(), 0);
    assert!(apps.iter().all(|app| app.checks() == 1), "each by one worker");
}

#[tokio::test]
async fn changes_are_written_to_a_file() {
    let app = Moody::start(false).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("health.log");
    let health =
        HealthChecks { event_log_path: Some(path.to_str().unwrap().into()), ..checks(http("/health")) };
    let policies =
        DestinationPolicies { health: Some(health), panic: NEVER, ..DestinationPolicies::default() };
    let web = Clear::start(Protocol::Http, &[app.at], policies).await;
    app.feel(503);
    web.has_lost(1).await;
    app.feel(200);
    until("it is well", async || (web.call().await == 200).then_some(())).await;
    let lines: Vec<serde_json::Value> = until("two lines", async || {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        (text.lines().count() >= 2)
            .then(|| text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
    })
    .await;
    assert_eq!(lines.len(), 2, "{lines:?}");
    let host = serde_json::json!({"socket_address": {"address": app.at.ip(), "port_value": app.at.port()}});
    for line in &lines {
        assert_eq!((&line["host"], &line["health_checker_type"]), (&host, &"HTTP".into()), "{line}");
        assert_eq!(line["cluster_name"], "backend");
    }
    assert_eq!(lines[0]["eject_unhealthy_event"]["failure_type"], "ACTIVE");
    assert_eq!(lines[1]["add_healthy_event"], serde_json::json!({}));
}
