//! MeshCircuitBreaker: what is too much at once, and endpoints that fail too often.

use crate::{
    apps::{
        Answer, Payload, Seen, call, echo_app, failing_app, full_app, get, http_app, http1, request,
        streaming, tcp_app, text, whole,
    },
    world::{MESH, Pair, Sidecar, address, destination, endpoint, is_reset, soon, until},
};
use futures::future::join_all;
use http::{Method, Response};
use meridian_proxy_config::{
    AtOnce, BackOff, DestinationTls, EndpointSet, FailurePercentage, HostSelection, OutlierDetection,
    Protocol, Retry, RetryOn, StreamTimeouts, SuccessRate, types,
};
use std::{
    net::SocketAddr,
    num::{NonZeroU32, NonZeroU64},
    sync::Arc,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Barrier,
};

const ONE: Option<NonZeroU32> = NonZeroU32::new(1);

fn overloaded(answer: &Answer) -> Option<&str> {
    assert!(answer.status == 503 || !answer.headers.contains_key("x-meridian-overloaded"));
    answer.headers.get("x-meridian-overloaded").map(|limit| limit.to_str().unwrap())
}

fn unavailable() -> Response<Payload> {
    Response::builder().status(503).body(text("not now")).unwrap()
}

/// A request that lasts until this is dropped, once the application has it.
async fn lasting(pair: &Pair, seen: &Seen) -> impl Sized {
    let before = seen.requests();
    let mut client = http1(pair.outbound).await;
    let (sender, body) = streaming();
    tokio::spawn(async move {
        let answer = client.send_request(request(Method::POST, "/echo", body)).await;
        drop(whole(answer.unwrap()).await);
    });
    until("it is there", async || (seen.requests() > before).then_some(())).await;
    sender
}

#[tokio::test]
async fn requests_beyond_the_limit_are_answered_at_once() {
    for inbound in [false, true] {
        let (application, seen) = http_app(false).await;
        let pair = Pair::start(Protocol::Http, application).await;
        let limit = AtOnce { requests: ONE, ..AtOnce::default() };
        // More of them are no help where a limit is reached.
        let again = retry(3);
        if inbound {
            pair.policies(|policies| policies.retry = Some(again)).await;
            pair.inbound_policies(|policies| policies.at_once = limit).await;
        } else {
            pair.policies(|policies| (policies.retry, policies.at_once) = (Some(again), limit)).await;
        }
        let first = lasting(&pair, &seen).await;
        assert_eq!(overloaded(&call(pair.outbound, "/headers").await), Some("max-requests"));
        let metrics = &pair.backend.engine.shared().metrics;
        let there = metrics.traffic("inbound", "backend").cell(0).overflows.value();
        assert_eq!(
            (pair.counted(|cell| cell.overflows.value()), there),
            (u64::from(!inbound), u64::from(inbound))
        );
        assert_eq!((pair.counted(|cell| cell.retries.value()), seen.requests()), (0, 1));
        drop(first);
        until("room again", async || (call(pair.outbound, "/headers").await.status == 200).then_some(()))
            .await;
    }
}

/// An answer under way is a request under way, also when it has changed its protocol.
#[tokio::test]
async fn a_request_counts_until_its_answer_has_ended() {
    for path in ["/flood", "/upgrade"] {
        let (application, _) = http_app(false).await;
        let pair = Pair::start(Protocol::Http, application).await;
        pair.policies(|policies| policies.at_once.requests = ONE).await;
        let mut stream = TcpStream::connect(pair.outbound).await.unwrap();
        let upgrade = if path == "/upgrade" { "Connection: Upgrade\r\nUpgrade: chat\r\n" } else { "" };
        let head = format!("GET {path} HTTP/1.1\r\nHost: b\r\n{upgrade}\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        soon("the head", stream.read_u8()).await.unwrap();
        assert_eq!(overloaded(&call(pair.outbound, "/headers").await), Some("max-requests"), "{path}");
        drop(stream);
        until("room again", async || (call(pair.outbound, "/headers").await.status == 200).then_some(()))
            .await;
    }
}

#[tokio::test]
async fn tcp_connections_beyond_the_limit_are_reset() {
    for inbound in [false, true] {
        let (application, _) = echo_app().await;
        let pair = Pair::start(Protocol::Tcp, application).await;
        let limit = AtOnce { connections: ONE, ..AtOnce::default() };
        if inbound {
            pair.inbound_policies(|policies| policies.at_once = limit).await;
        } else {
            pair.policies(|policies| policies.at_once = limit).await;
        }
        let echoes = async |stream: &mut TcpStream| {
            stream.write_all(b"a").await.is_ok() && soon("an end", stream.read_u8()).await.is_ok()
        };
        let mut first = TcpStream::connect(pair.outbound).await.unwrap();
        assert!(echoes(&mut first).await);
        assert!(is_reset(pair.outbound).await);
        assert!(echoes(&mut first).await);
        drop(first);
        until("room again", async || {
            let mut next = TcpStream::connect(pair.outbound).await.ok()?;
            echoes(&mut next).await.then_some(())
        })
        .await;
    }
}

/// Has `web` speak to an endpoint in the clear, as to an application.
async fn in_the_clear(
    pair: &Pair,
    at: SocketAddr,
    change: impl FnOnce(&mut meridian_proxy_config::DestinationPolicies),
) {
    pair.web.feed(types::ENDPOINTS, "backend", &EndpointSet { endpoints: vec![endpoint(at, "east")] });
    let mut clear = destination(Protocol::Http, &["backend"]);
    clear.tls = DestinationTls::Off;
    pair.web.feed(types::DESTINATION, "backend", &clear);
    pair.policies(change).await;
}

/// A connection that takes no new requests counts as long as its last one lasts, and keeps nobody out.
#[tokio::test]
async fn a_retired_connection_does_not_shut_its_endpoint() {
    let (application, seen) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    pair.policies(|policies| policies.at_once.connections = ONE).await;
    let _first = lasting(&pair, &seen).await;
    pair.web.engine.shared().tls.set_identity(MESH, pair.ca.identity("east", "web"));
    let before = pair.backend.handshakes();
    assert_eq!(call(pair.outbound, "/headers").await.status, 200);
    assert_eq!(pair.backend.handshakes(), before + 1, "with the new certificate");
}

#[tokio::test]
async fn a_request_that_would_need_one_connection_too_many_is_answered_at_once() {
    let (application, seen) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    in_the_clear(&pair, application, |policies| policies.at_once.connections = ONE).await;
    // One after the other, they share it.
    for _ in 0..2 {
        assert_eq!(call(pair.outbound, "/headers").await.status, 200);
    }
    assert_eq!(seen.connections(), 1);
    let _first = lasting(&pair, &seen).await;
    assert_eq!(overloaded(&call(pair.outbound, "/headers").await), Some("max-connections"));
    assert_eq!(seen.connections(), 1);
}

/// Over mTLS requests share a connection, so that one is enough.
#[tokio::test]
async fn one_connection_carries_many_requests() {
    let (application, seen) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    pair.policies(|policies| policies.at_once.connections = ONE).await;
    let _first = lasting(&pair, &seen).await;
    assert_eq!(call(pair.outbound, "/headers").await.status, 200);
    assert_eq!((pair.backend.handshakes(), pair.counted(|cell| cell.overflows.value())), (1, 0));
}

#[tokio::test]
async fn few_requests_wait_for_a_connection() {
    let (silent, seen) = tcp_app(|stream| async move {
        let _open = stream;
        std::future::pending().await
    })
    .await;
    let (application, _) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    pair.web.feed(types::ENDPOINTS, "backend", &EndpointSet { endpoints: vec![endpoint(silent, "east")] });
    pair.policies(|policies| policies.at_once.pending = ONE).await;
    let mut client = http1(pair.outbound).await;
    let first = tokio::spawn(async move { client.send_request(get("/headers")).await });
    until("it is being made", async || (seen.connections() == 1).then_some(())).await;
    assert_eq!(overloaded(&call(pair.outbound, "/headers").await), Some("max-pending-requests"));
    first.abort();
}

/// Whoever comes first waits for the application, which takes nobody.
#[tokio::test]
async fn few_requests_wait_for_an_application() {
    let (application, _full) = full_app().await;
    let pair = Pair::start(Protocol::Http, application).await;
    pair.inbound_policies(|policies| {
        policies.at_once.pending = ONE;
        policies.connection_timeouts.connect_millis = NonZeroU64::new(3_600_000);
    })
    .await;
    let [one, other] = [(), ()].map(|()| Box::pin(call(pair.outbound, "/headers")));
    let first = soon("one to be told", futures::future::select(one, other)).await;
    assert_eq!(overloaded(&first.factor_first().0), Some("max-pending-requests"));
}

fn retry(max: u32) -> Retry {
    Retry {
        max: max.try_into().unwrap(),
        per_try_millis: None,
        back_off: BackOff { base_millis: 1, max_millis: 10 },
        rate_limited: None,
        on: vec![RetryOn::ServerError],
        methods: vec![],
        request_headers: vec![],
        response_headers: vec![],
        hosts: HostSelection::default(),
    }
}

/// Three requests fail together; of what is sent once more, one is under way for ever.
#[tokio::test]
async fn few_repetitions_are_under_way() {
    let together = Arc::new(Barrier::new(3));
    let failed = Arc::new(tokio::sync::Semaphore::new(3));
    let (at, _) = tcp_app(move |mut stream| {
        let (together, failed) = (together.clone(), failed.clone());
        async move {
            let mut head = vec![0; 1024];
            drop(stream.read(&mut head).await);
            match failed.try_acquire() {
                Ok(one) => one.forget(),
                Err(_) => std::future::pending().await,
            }
            together.wait().await;
            let answer = b"HTTP/1.1 503 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            drop(stream.write_all(answer).await);
        }
    })
    .await;
    let pair = Pair::start(Protocol::Http, at).await;
    in_the_clear(&pair, at, |policies| {
        policies.retry = Some(retry(1));
        policies.at_once.retries = ONE;
    })
    .await;
    let calls: Vec<_> = (0..3).map(|_| tokio::spawn(call(pair.outbound, "/"))).collect();
    until("two are told", async || {
        (calls.iter().filter(|call| call.is_finished()).count() == 2).then_some(())
    })
    .await;
    let counted = |read: fn(&meridian_proxy::metrics::TrafficCell) -> u64| pair.counted(read);
    assert_eq!(
        (counted(|cell| cell.retries.value()), counted(|cell| cell.retries_over_budget.value())),
        (1, 2)
    );
    calls.iter().for_each(tokio::task::JoinHandle::abort);
}

fn detection() -> OutlierDetection {
    OutlierDetection {
        interval_millis: NonZeroU64::new(60_000).unwrap(),
        ejection_millis: NonZeroU64::new(60_000).unwrap(),
        max_percent: 100,
        split: false,
        panic_below: 5_000,
        total_failures: NonZeroU32::new(2),
        gateway_failures: None,
        local_failures: None,
        success_rate: None,
        failure_percentage: None,
    }
}

/// Nothing is a failure, and rates are judged often.
fn none() -> OutlierDetection {
    let interval_millis = NonZeroU64::new(200).unwrap();
    OutlierDetection { interval_millis, total_failures: None, ..detection() }
}

/// `backend` with an instance that always fails, and one that never does in zone west.
struct Two {
    pair: Pair,
    _west: Sidecar,
    bad: Seen,
    good: Seen,
}

impl Two {
    async fn start(together: bool, outliers: OutlierDetection) -> Self {
        let (bad_at, bad) = failing_app(false, usize::MAX, unavailable).await;
        let (good_at, good) = failing_app(false, 0, unavailable).await;
        let pair = Pair::start(Protocol::Http, bad_at).await;
        let west = Sidecar::start(&pair.ca, "west", "backend");
        let inbound = address();
        west.feed(types::INBOUND, "main", &west.inbound(Protocol::Http, inbound, good_at));
        west.settled().await;
        pair.web.feed(types::ENDPOINTS, "west", &EndpointSet { endpoints: vec![endpoint(inbound, "west")] });
        let mut both = destination(Protocol::Http, &["backend"]);
        let names = ["backend".to_owned(), "west".to_owned()];
        both.tiers = if together { vec![names.to_vec()] } else { names.map(|name| vec![name]).to_vec() };
        pair.web.feed(types::DESTINATION, "backend", &both);
        pair.policies(|policies| policies.outliers = Some(outliers)).await;
        Self { pair, _west: west, bad, good }
    }

    async fn calls(&self, n: usize) -> usize {
        let answers = join_all((0..n).map(|_| call(self.pair.outbound, "/"))).await;
        answers.iter().filter(|answer| answer.status == 200).count()
    }

    fn ejections(&self) -> u64 {
        self.pair.counted(|cell| cell.ejections.value())
    }
}

#[tokio::test]
async fn an_endpoint_that_fails_is_left_out() {
    for together in [true, false] {
        let two = Two::start(together, detection()).await;
        until("it is out", async || {
            two.calls(1).await;
            (two.ejections() == 1).then_some(())
        })
        .await;
        let (bad, good) = (two.bad.requests(), two.good.requests());
        assert_eq!((bad, two.calls(20).await), (2, 20));
        assert_eq!((two.bad.requests(), two.good.requests()), (bad, good + 20));
        // Without the policy it is asked again.
        two.pair.policies(|_| {}).await;
        two.calls(2).await;
        assert!(two.bad.requests() > bad, "together: {together}");
    }
}

#[tokio::test]
async fn an_endpoint_comes_back() {
    let short = NonZeroU64::new(200).unwrap();
    let two = Two::start(true, OutlierDetection { ejection_millis: short, ..detection() }).await;
    until("it was out three times", async || {
        two.calls(2).await;
        (two.ejections() == 3).then_some(())
    })
    .await;
    assert_eq!(two.bad.requests(), 6);
}

#[tokio::test]
async fn all_are_used_when_too_few_are_left_unless_told_otherwise() {
    for (panic_below, asked) in [(5_000, 12), (0, 2)] {
        let (application, seen) = failing_app(false, usize::MAX, unavailable).await;
        let pair = Pair::start(Protocol::Http, application).await;
        pair.policies(|policies| policies.outliers = Some(OutlierDetection { panic_below, ..detection() }))
            .await;
        for _ in 0..12 {
            assert_eq!(call(pair.outbound, "/").await.status, 503);
        }
        assert_eq!((seen.requests(), pair.counted(|cell| cell.ejections.value())), (asked, 1));
        let out = call(pair.outbound, "/").await;
        assert_eq!(out.text().contains("left out"), panic_below == 0, "{}", out.text());
    }
}

#[tokio::test]
async fn nobody_is_left_out_beyond_the_limit() {
    let two = Two::start(true, OutlierDetection { max_percent: 0, ..detection() }).await;
    two.calls(20).await;
    assert_eq!((two.ejections(), two.bad.requests()), (0, 10));
}

#[tokio::test]
async fn each_detector_counts_its_own_failures() {
    let two = NonZeroU32::new(2);
    let total = || OutlierDetection { total_failures: two, ..none() };
    let gateway = || OutlierDetection { gateway_failures: two, ..none() };
    let local = || OutlierDetection { local_failures: two, split: true, ..none() };
    let split = |outliers| OutlierDetection { split: true, ..outliers };
    let (application, _) = http_app(false).await;
    let nobody = address();
    for (outliers, at, path, is_out) in [
        (total(), application, "/status/500", true),
        (total(), application, "/status/404", false),
        (total(), nobody, "/", true),
        (split(total()), nobody, "/", false),
        (split(total()), application, "/status/500", true),
        (gateway(), application, "/status/503", true),
        (gateway(), application, "/status/500", false),
        (gateway(), nobody, "/", true),
        (split(gateway()), nobody, "/", false),
        (local(), nobody, "/", true),
        (local(), application, "/status/503", false),
        (OutlierDetection { split: false, ..local() }, nobody, "/", false),
    ] {
        let pair = Pair::start(Protocol::Http, at).await;
        in_the_clear(&pair, at, |policies| policies.outliers = Some(outliers.clone())).await;
        for _ in 0..4 {
            assert!(call(pair.outbound, path).await.status >= 404);
        }
        let ejections = pair.counted(|cell| cell.ejections.value());
        assert_eq!(ejections, u64::from(is_out), "{outliers:?} {path}");
    }
}

/// Endpoints of which one always fails are judged side by side: when each that leaves one out has done so, those that do not
/// have seen as much.
#[tokio::test]
async fn rates_are_judged_as_the_policy_says() {
    let by_rate = |min_hosts, min_requests, deviations_thousandths| {
        let rule = SuccessRate { min_hosts, min_requests, deviations_thousandths };
        OutlierDetection { success_rate: Some(rule), ..none() }
    };
    let by_share = |min_hosts, min_requests, percent| {
        let rule = FailurePercentage { min_hosts, min_requests, percent };
        OutlierDetection { failure_percentage: Some(rule), ..none() }
    };
    let day = NonZeroU64::new(86_400_000).unwrap();
    let mut judged = Vec::new();
    for (outliers, is_out) in [
        (by_rate(2, 1, 500), true),
        (by_rate(2, 1, 1_900), false),
        (by_rate(3, 1, 500), false),
        (by_rate(2, 1_000_000, 500), false),
        (by_share(2, 1, 50), true),
        (by_share(3, 1, 50), false),
        (by_share(2, 1_000_000, 50), false),
        (OutlierDetection { interval_millis: day, ..by_share(2, 1, 50) }, false),
    ] {
        judged.push((Two::start(true, outliers.clone()).await, outliers, is_out));
    }
    until("all that are out", async || {
        for (two, ..) in &judged {
            two.calls(4).await;
        }
        judged.iter().all(|(two, _, is_out)| !is_out || two.ejections() == 1).then_some(())
    })
    .await;
    for (two, outliers, is_out) in &judged {
        two.calls(4).await;
        assert_eq!(two.ejections(), u64::from(*is_out), "{outliers:?}");
    }
}

/// Half of the requests fail.
#[tokio::test]
async fn a_share_of_failures_is_the_policys() {
    let mut judged = Vec::new();
    for (percent, is_out) in [(40, true), (60, false)] {
        let (application, _) = http_app(false).await;
        let pair = Pair::start(Protocol::Http, application).await;
        let rule = FailurePercentage { min_hosts: 1, min_requests: 2, percent };
        let outliers = OutlierDetection { failure_percentage: Some(rule), ..none() };
        pair.policies(|policies| policies.outliers = Some(outliers)).await;
        judged.push((pair, is_out));
    }
    let half = async |pair: &Pair| {
        // A good one first: an interval never has more bad ones.
        for path in ["/status/200", "/status/500"] {
            call(pair.outbound, path).await;
        }
        pair.counted(|cell| cell.ejections.value())
    };
    until("one is out", async || {
        half(&judged[1].0).await;
        (half(&judged[0].0).await == 1).then_some(())
    })
    .await;
    for (pair, is_out) in &judged {
        assert_eq!(half(pair).await, u64::from(*is_out));
    }
}

/// No connection, a lost one and no answer in time are failures of the endpoint.
#[tokio::test]
async fn what_is_not_answered_is_a_failure() {
    let (lost, _) = tcp_app(|mut stream| async move {
        drop(stream.read(&mut [0; 1024]).await);
    })
    .await;
    let (slow, _) = http_app(false).await;
    for (at, path) in [(address(), "/"), (lost, "/"), (slow, "/hang"), (slow, "/status/500")] {
        for split in [false, true] {
            let pair = Pair::start(Protocol::Http, at).await;
            in_the_clear(&pair, at, |policies| {
                let local = NonZeroU32::new(2).filter(|_| split);
                policies.outliers = Some(OutlierDetection { split, local_failures: local, ..detection() });
                policies.stream_timeouts =
                    StreamTimeouts { request_millis: Some(200), ..StreamTimeouts::default() };
            })
            .await;
            for out in [0, 1] {
                assert_eq!(pair.counted(|cell| cell.ejections.value()), 0, "{path} {out}");
                assert!(call(pair.outbound, path).await.status >= 500);
            }
            assert_eq!(pair.counted(|cell| cell.ejections.value()), 1, "{path}");
        }
    }
}

#[tokio::test]
async fn tcp_endpoints_are_left_out_too() {
    let pair = Pair::start(Protocol::Tcp, address()).await;
    pair.web.feed(types::ENDPOINTS, "backend", &EndpointSet { endpoints: vec![endpoint(address(), "east")] });
    pair.policies(|policies| policies.outliers = Some(detection())).await;
    until("it is out", async || {
        let mut stream = TcpStream::connect(pair.outbound).await.ok()?;
        assert!(soon("the end", stream.read_u8()).await.is_err());
        (pair.counted(|cell| cell.ejections.value()) == 1).then_some(())
    })
    .await;
}
