//! MeshRetry: what is sent once more, and what never is.

use crate::{
    apps::{Payload, absolute, call, failing_app, http1, http2, request, streaming, tcp_app, text, whole},
    world::{Pair, Sidecar, address, destination, endpoint, is_reset, soon, until},
};
use bytes::Bytes;
use futures::future::join_all;
use http::{Method, Response};
use hyper::body::Frame;
use meridian_proxy_config::{
    BackOff, Destination, DestinationPolicies, DestinationTls, Endpoint, EndpointSet, HeaderMatch,
    HeaderValueMatch, HostSelection, Protocol, RateLimitedBackOff, ResetFormat, ResetHeader, Retry, RetryOn,
    policies_for_others, types,
};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub(crate) fn retry(max: u32, on: &[RetryOn]) -> Retry {
    Retry {
        max: max.try_into().unwrap(),
        per_try_millis: None,
        back_off: BackOff { base_millis: 1, max_millis: 10 },
        rate_limited: None,
        on: on.to_vec(),
        methods: vec![],
        request_headers: vec![],
        response_headers: vec![],
        hosts: HostSelection::default(),
    }
}

fn unavailable() -> Response<Payload> {
    Response::builder().status(503).body(text("not now")).unwrap()
}

#[tokio::test]
async fn only_a_policy_has_requests_repeated_and_only_so_often() {
    for (policy, status, requests) in [
        (None, 503, 1),
        (Some(retry(5, &[RetryOn::ServerError])), 200, 3),
        (Some(retry(1, &[RetryOn::GatewayError])), 503, 2),
        (Some(retry(5, &[RetryOn::Status(500)])), 503, 1),
        (Some(Retry { methods: vec!["POST".into()], ..retry(5, &[RetryOn::ServerError]) }), 503, 1),
    ] {
        let (application, seen) = failing_app(false, 2, unavailable).await;
        let pair = Pair::start(Protocol::Http, application).await;
        pair.policies(|policies| policies.retry = policy.clone()).await;
        assert_eq!(call(pair.outbound, "/").await.status, status, "{policy:?}");
        assert_eq!(seen.requests(), requests, "{policy:?}");
        assert_eq!(pair.counted(|cell| cell.retries.value()), requests as u64 - 1);
    }
}

/// Conditions on a header, with a value for which each holds and one for which it does not; none: the header is not there.
type Condition = (HeaderValueMatch, Option<&'static str>, Option<&'static str>);

fn conditions() -> [Condition; 5] {
    [
        (HeaderValueMatch::Exact("a".into()), Some("a"), Some("ab")),
        (HeaderValueMatch::Prefix("a".into()), Some("ab"), Some("ba")),
        (HeaderValueMatch::Regex("a+".into()), Some("aa"), Some("ab")),
        (HeaderValueMatch::Present, Some("b"), None),
        (HeaderValueMatch::Absent, None, Some("b")),
    ]
}

fn marked(value: HeaderValueMatch) -> Vec<HeaderMatch> {
    vec![HeaderMatch { name: "x-mark".into(), value }]
}

async fn call_marked(pair: &Pair, mark: Option<&str>) -> u16 {
    let mut request = request(Method::GET, "/", text(""));
    if let Some(mark) = mark {
        request.headers_mut().insert("x-mark", mark.parse().unwrap());
    }
    let answer = http1(pair.outbound).await.send_request(request).await.unwrap();
    whole(answer).await.status
}

#[tokio::test]
async fn requests_are_repeated_that_bear_a_header() {
    for (value, fits, other) in conditions() {
        for (mark, status) in [(fits, 200), (other, 503)] {
            let (application, _) = failing_app(false, 1, unavailable).await;
            let pair = Pair::start(Protocol::Http, application).await;
            let request_headers = marked(value.clone());
            let again = Retry { request_headers, ..retry(1, &[RetryOn::GatewayError]) };
            pair.policies(|policies| policies.retry = Some(again)).await;
            assert_eq!(call_marked(&pair, mark).await, status, "{value:?} {mark:?}");
        }
    }
}

/// Its answers bear the header that the requests bore.
#[tokio::test]
async fn answers_that_bear_a_header_have_their_requests_repeated() {
    let (application, seen) = tcp_app(|mut stream| async move {
        let mut head = vec![0; 1024];
        let read = stream.read(&mut head).await.unwrap_or_default();
        let head = String::from_utf8_lossy(&head[..read]).into_owned();
        let mark = head.lines().find(|line| line.starts_with("x-mark")).unwrap_or("x-other: 1");
        let answer = format!("HTTP/1.1 404 No\r\n{mark}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        drop(stream.write_all(answer.as_bytes()).await);
    })
    .await;
    let pair = Pair::start(Protocol::Http, application).await;
    for (value, fits, other) in conditions() {
        let response_headers = marked(value.clone());
        let again = Retry { response_headers, ..retry(1, &[]) };
        pair.policies(|policies| policies.retry = Some(again)).await;
        for (mark, requests) in [(fits, 2), (other, 1)] {
            let before = seen.connections();
            assert_eq!(call_marked(&pair, mark).await, 404);
            assert_eq!(seen.connections() - before, requests, "{value:?} {mark:?}");
        }
    }
}

type Failure = fn() -> Response<Payload>;

/// Longer than any test.
const HOUR: u64 = 3_600_000;

/// Holds a policy to whether a request that failed once waits for its repetition: as one that does not end.
async fn waits(failure: Failure, policy: Retry, endless: bool) {
    let (application, seen) = failing_app(false, 1, failure).await;
    let pair = Pair::start(Protocol::Http, application).await;
    pair.policies(|policies| policies.retry = Some(policy.clone())).await;
    let first = tokio::spawn(call(pair.outbound, "/"));
    if !endless {
        assert_eq!(soon("an answer", first).await.unwrap().status, 200, "{policy:?}");
        return;
    }
    until("it has failed", async || (pair.counted(|cell| cell.retries.value()) == 1).then_some(())).await;
    for _ in 0..5 {
        assert_eq!(call(pair.outbound, "/").await.status, 200);
    }
    assert!(!first.is_finished() && seen.requests() == 6, "{policy:?}");
    first.abort();
}

#[tokio::test]
async fn how_long_a_repetition_waits_is_the_policys() {
    for (base_millis, max_millis, endless) in [(1, 10, false), (HOUR, HOUR, true), (HOUR, 5, false)] {
        let back_off = BackOff { base_millis, max_millis };
        let policy = Retry { back_off, ..retry(1, &[RetryOn::GatewayError]) };
        waits(unavailable, policy, endless).await;
    }
}

fn told(name: &'static str, value: &'static str) -> Response<Payload> {
    Response::builder().status(503).header(name, value).body(text("not now")).unwrap()
}

/// What a server says goes before the policy's own waits, as long as it is not too long.
#[tokio::test]
async fn a_server_says_when_to_come_again() {
    use ResetFormat::{Seconds, UnixTimestamp};
    let year_2100 = || told("x-reset", "4102444800");
    let cases: [(Failure, _, _, _, _); 6] = [
        (|| told("x-reset", "0"), Seconds, HOUR, HOUR, false),
        (|| told("x-reset", "1"), UnixTimestamp, HOUR, HOUR, false),
        (|| told("x-reset", "3600"), Seconds, 1, HOUR, true),
        (year_2100, UnixTimestamp, 1, u64::MAX, true),
        (|| told("x-reset", "3600"), Seconds, 1, 1_000, false),
        (|| told("x-other", "3600"), Seconds, 1, HOUR, false),
    ];
    for (failure, format, own, max_millis, endless) in cases {
        let headers = vec![ResetHeader { name: "x-reset".into(), format }];
        let rate_limited = Some(RateLimitedBackOff { headers, max_millis });
        let back_off = BackOff { base_millis: own, max_millis: own };
        let policy = Retry { back_off, rate_limited, ..retry(1, &[RetryOn::GatewayError]) };
        waits(failure, policy, endless).await;
    }
}

#[tokio::test]
async fn a_body_is_repeated_whole() {
    let (application, seen) = failing_app(false, 2, unavailable).await;
    let pair = Pair::start(Protocol::Http, application).await;
    pair.policies(|policies| policies.retry = Some(retry(3, &[RetryOn::GatewayError]))).await;
    let (sender, body) = streaming();
    tokio::spawn(async move {
        for part in ["one ", "two ", "three"] {
            sender.send(Frame::data(Bytes::from_static(part.as_bytes()))).await.unwrap();
        }
    });
    let answer = http1(pair.outbound).await.send_request(request(Method::POST, "/", body)).await.unwrap();
    let answer = whole(answer).await;
    assert_eq!((answer.status, answer.text()), (200, "one two three"));
    assert_eq!(seen.requests(), 3);
}

/// What does not fit the buffer is not sent twice, and not cut off either.
#[tokio::test]
async fn a_body_too_large_to_keep_is_not_repeated() {
    let (application, seen) = failing_app(false, 1, unavailable).await;
    let pair = Pair::start(Protocol::Http, application).await;
    pair.policies(|policies| policies.retry = Some(retry(3, &[RetryOn::GatewayError]))).await;
    let big = Bytes::from(vec![b'x'; 300 << 10]);
    let mut client = http1(pair.outbound).await;
    for status in [503, 200] {
        let post = request(Method::POST, "/", text(big.clone()));
        let answer = whole(client.send_request(post).await.unwrap()).await;
        assert_eq!(answer.status, status);
        assert!(status != 200 || answer.body == big);
        client.ready().await.unwrap();
    }
    assert_eq!(seen.requests(), 2);
    assert_eq!(pair.counted(|cell| cell.retries_unrepeatable.value()), 1);
}

#[tokio::test]
async fn grpc_is_repeated_by_its_own_status() {
    let busy = || {
        let head = Response::builder().header("content-type", "application/grpc").header("grpc-status", "14");
        head.body(text("")).unwrap()
    };
    let (application, seen) = failing_app(true, 1, busy).await;
    let pair = Pair::start(Protocol::Grpc, application).await;
    pair.policies(|policies| policies.retry = Some(retry(3, &[RetryOn::GrpcStatus(14)]))).await;
    let post = absolute(Method::POST, "/", text("message"));
    let answer = whole(http2(pair.outbound).await.send_request(post).await.unwrap()).await;
    assert_eq!((answer.text(), seen.requests()), ("message", 2));
}

/// An endpoint in the clear that takes requests and resets its first connection, or never answers on it.
async fn treacherous(resets: bool) -> std::net::SocketAddr {
    let first = Arc::new(AtomicBool::new(true));
    let (at, _) = tcp_app(move |mut stream| {
        let first = first.clone();
        async move {
            let mut head = vec![0; 1024];
            assert!(stream.read(&mut head).await.unwrap() > 0);
            if first.swap(false, Ordering::Relaxed) {
                if !resets {
                    std::future::pending::<()>().await;
                }
                return;
            }
            drop(stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await);
        }
    })
    .await;
    at
}

#[tokio::test]
async fn a_lost_connection_and_a_silent_server_are_failures_too() {
    for (resets, per_try) in [(true, None), (false, Some(200))] {
        for repeated in [false, true] {
            let pair = Pair::start(Protocol::Http, treacherous(resets).await).await;
            let set = EndpointSet { endpoints: vec![endpoint(pair.application, "east")] };
            pair.web.feed(types::ENDPOINTS, "backend", &set);
            let on = if repeated { RetryOn::Reset } else { RetryOn::ConnectFailure };
            let mut clear = destination(Protocol::Http, &["backend"]);
            clear.tls = DestinationTls::Off;
            pair.web.feed(types::DESTINATION, "backend", &clear);
            let again = Retry { per_try_millis: per_try, ..retry(2, &[on]) };
            pair.policies(|policies| policies.retry = Some(again)).await;
            let expected = match (repeated, resets) {
                (true, _) => 200,
                (false, true) => 503,
                (false, false) => 504,
            };
            assert_eq!(call(pair.outbound, "/").await.status, expected, "{resets} {repeated}");
        }
    }
}

#[tokio::test]
async fn a_service_that_is_down_is_not_asked_twice_as_much() {
    let (application, seen) = failing_app(false, usize::MAX, unavailable).await;
    let pair = Pair::start(Protocol::Http, application).await;
    let slow = BackOff { base_millis: 4_000, max_millis: 4_000 };
    let policy = Retry { back_off: slow, ..retry(1, &[RetryOn::ServerError]) };
    pair.policies(|policies| policies.retry = Some(policy)).await;
    let answers = join_all((0..30).map(|_| call(pair.outbound, "/"))).await;
    assert!(answers.iter().all(|answer| answer.status == 503));
    let (made, left_out) =
        (pair.counted(|cell| cell.retries.value()), pair.counted(|cell| cell.retries_over_budget.value()));
    assert!(made > 0 && left_out > 0 && made + left_out == 30, "{made} {left_out}");
    assert_eq!(seen.requests() as u64, 30 + made);
}

#[tokio::test]
async fn a_repetition_goes_elsewhere_if_the_policy_says_so() {
    let (bad, _) = failing_app(false, usize::MAX, unavailable).await;
    let (good, good_seen) = failing_app(false, 0, unavailable).await;
    let pair = Pair::start(Protocol::Http, bad).await;
    let other = Sidecar::start(&pair.ca, "west", "backend");
    let inbound = address();
    other.feed(types::INBOUND, "main", &other.inbound(Protocol::Http, inbound, good));
    other.settled().await;
    let old = Endpoint { tags: version("1"), ..endpoint(pair.inbound, "east") };
    let new = Endpoint { tags: version("2"), ..endpoint(inbound, "west") };
    pair.web.feed(types::ENDPOINTS, "backend", &EndpointSet { endpoints: vec![old] });
    pair.web.feed(types::ENDPOINTS, "west", &EndpointSet { endpoints: vec![new] });
    let both = vec!["backend".to_owned(), "west".to_owned()];
    for (tiers, hosts) in [
        (vec![both.clone()], HostSelection { omit_previous: true, ..HostSelection::default() }),
        (vec![both.clone()], HostSelection { omit_tagged: vec![version("1")], ..HostSelection::default() }),
        (
            both.iter().map(|set| vec![set.clone()]).collect(),
            HostSelection { omit_previous_tiers: 1.try_into().ok(), ..HostSelection::default() },
        ),
    ] {
        let here = Destination { tiers, ..destination(Protocol::Http, &["backend"]) };
        pair.web.feed(types::DESTINATION, "backend", &here);
        let again = Retry { hosts, ..retry(1, &[RetryOn::GatewayError]) };
        pair.policies(|policies| policies.retry = Some(again)).await;
        let before = good_seen.requests();
        for _ in 0..10 {
            assert_eq!(call(pair.outbound, "/").await.status, 200);
        }
        assert_eq!(good_seen.requests(), before + 10);
    }
}

fn version(value: &str) -> BTreeMap<String, String> {
    [("version".to_owned(), value.to_owned())].into()
}

/// Of four endpoints three fail. Who looks at one more than the first does not always find the fourth.
#[tokio::test]
async fn how_far_a_repetition_looks_around_is_the_policys() {
    let (bad, _) = failing_app(false, usize::MAX, unavailable).await;
    let (good, _) = failing_app(false, 0, unavailable).await;
    let pair = Pair::start(Protocol::Http, bad).await;
    let other = Sidecar::start(&pair.ca, "east", "backend");
    let inbound = address();
    other.feed(types::INBOUND, "main", &other.inbound(Protocol::Http, inbound, good));
    other.settled().await;
    let failing = Endpoint { tags: version("1"), replicas: 3, ..endpoint(pair.inbound, "east") };
    let endpoints = vec![failing, endpoint(inbound, "east")];
    pair.web.feed(types::ENDPOINTS, "backend", &EndpointSet { endpoints });
    for (looks, all) in [(None, true), (Some(1), false), (Some(3), true)] {
        let max_looks = looks.and_then(|looks: u32| looks.try_into().ok());
        let hosts = HostSelection { omit_tagged: vec![version("1")], max_looks, ..HostSelection::default() };
        let policy = Retry { hosts, ..retry(1, &[RetryOn::GatewayError]) };
        pair.policies(|policies| policies.retry = Some(policy)).await;
        let mut failed = 0;
        for _ in 0..8 {
            failed += u32::from(call(pair.outbound, "/").await.status == 503);
        }
        assert_eq!(failed == 0, all, "{looks:?}: {failed} of 8");
    }
}

#[tokio::test]
async fn tcp_connections_are_tried_as_often_as_the_policy_says() {
    let pair = Pair::start(Protocol::Tcp, address()).await;
    pair.web.feed(types::ENDPOINTS, "backend", &EndpointSet { endpoints: vec![endpoint(address(), "east")] });
    for (attempts, tries) in [(None, 1), (Some(4), 4)] {
        pair.policies(|policies| policies.connect_attempts = attempts.and_then(|n: u32| n.try_into().ok()))
            .await;
        let before = pair.counted(|cell| cell.connect_failures.value());
        assert!(is_reset(pair.outbound).await);
        until("all tries", async || {
            (pair.counted(|cell| cell.connect_failures.value()) == before + tries).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn what_is_said_of_others_holds_until_something_is_said_of_the_destination() {
    let (application, seen) = failing_app(false, usize::MAX, unavailable).await;
    let pair = Pair::start(Protocol::Http, application).await;
    let of = |repetitions| DestinationPolicies {
        retry: Some(retry(repetitions, &[RetryOn::GatewayError])),
        ..DestinationPolicies::default()
    };
    let attempts = async || {
        pair.settled().await;
        let before = seen.requests();
        assert_eq!(call(pair.outbound, "/").await.status, 503);
        seen.requests() - before
    };
    pair.web.feed(types::POLICIES, policies_for_others(Protocol::Grpc), &of(5));
    assert_eq!(attempts().await, 1, "of another protocol");
    pair.web.feed(types::POLICIES, policies_for_others(Protocol::Http), &of(3));
    assert_eq!(attempts().await, 4);
    pair.web.feed(types::POLICIES, "backend", &of(1));
    assert_eq!(attempts().await, 2);
    pair.web.remove(types::POLICIES, "backend");
    assert_eq!(attempts().await, 4);
}

#[tokio::test]
async fn a_pattern_that_is_none_is_refused_and_what_was_said_before_holds() {
    let (application, _) = failing_app(false, 0, unavailable).await;
    let pair = Pair::start(Protocol::Http, application).await;
    pair.policies(|policies| policies.retry = Some(retry(1, &[RetryOn::Reset]))).await;
    let header = HeaderMatch { name: "x-again".into(), value: HeaderValueMatch::Regex("(".into()) };
    let again = Retry { request_headers: vec![header], ..retry(1, &[RetryOn::Reset]) };
    let broken = DestinationPolicies { retry: Some(again), ..DestinationPolicies::default() };
    let resource = crate::world::resource(types::POLICIES, "backend", &broken);
    let rejected = pair.web.engine.apply(&[resource], &[]);
    assert!(rejected.iter().any(|one| one.reason.contains("pattern")), "{rejected:?}");
    pair.settled().await;
    assert_eq!(call(pair.outbound, "/").await.status, 200, "they guard nothing: what was there before holds");
}
