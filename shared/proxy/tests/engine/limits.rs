//! MeshRateLimit and MeshFaultInjection: what a caller sees of each field.

use crate::{
    apps::{call, echo_app, get, http_app, http1, http2, request, text, whole},
    world::{Pair, allow, is_reset, soon, until},
};
use http::Method;
use http_body_util::BodyExt;
use meridian_proxy::metrics::TrafficCell;
use meridian_proxy_config::{
    CallerMatch, Effect, Fault, FaultRule, InboundTls, Protocol, Rate, RateLimits, RequestLimit,
};
use std::num::{NonZeroU32, NonZeroU64};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const ALWAYS: u32 = 1_000_000;

/// So slow that none comes back while a test runs.
fn only(num: u32) -> Rate {
    Rate { num: NonZeroU32::new(num).unwrap(), interval_millis: NonZeroU64::new(86_400_000).unwrap() }
}

fn limit(rate: Option<Rate>) -> RequestLimit {
    RequestLimit {
        caller: CallerMatch::default(),
        rate,
        status: 429,
        set_headers: vec![],
        add_headers: vec![],
    }
}

fn requests(limits: Vec<RequestLimit>) -> RateLimits {
    RateLimits { requests: limits, connections: None }
}

fn caller(service: &str) -> CallerMatch {
    CallerMatch { spiffe_exact: Some(format!("spiffe://default/{service}")), ..CallerMatch::default() }
}

fn faults(caller: CallerMatch, effects: &[Effect]) -> FaultRule {
    let faults = effects.iter().map(|effect| Fault { per_million: ALWAYS, effect: *effect }).collect();
    FaultRule { caller, faults, first_only: false }
}

/// What backend's sidecar has counted at its inbound.
fn counted(pair: &Pair, read: impl Fn(&TrafficCell) -> u64) -> u64 {
    read(pair.backend.engine.shared().metrics.traffic("inbound", "backend").cell(0))
}

#[tokio::test]
async fn requests_beyond_the_rate_are_answered_429_and_do_not_arrive() {
    let (application, seen) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    pair.inbound_policies(|policies| policies.rate_limits = requests(vec![limit(Some(only(2)))])).await;
    for _ in 0..2 {
        assert_eq!(call(pair.outbound, "/headers").await.status, 200);
    }
    let answer = call(pair.outbound, "/headers").await;
    assert_eq!((answer.status, answer.text()), (429, "local_rate_limited"));
    assert_eq!((seen.requests(), counted(&pair, |cell| cell.rate_limited.value())), (2, 1));
}

#[tokio::test]
async fn the_answer_is_what_the_policy_says() {
    let (application, _) = http_app(true).await;
    let pair = Pair::start(Protocol::Http2, application).await;
    let pair_of = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let said = RequestLimit {
        status: 503,
        set_headers: vec![pair_of("content-type", "application/json"), pair_of("retry-after", "1")],
        add_headers: vec![pair_of("x-limit", "a"), pair_of("x-limit", "b"), pair_of("content-length", "1")],
        ..limit(Some(only(1)))
    };
    pair.inbound_policies(|policies| policies.rate_limits = requests(vec![said])).await;
    assert_eq!(call(pair.outbound, "/headers").await.status, 200);
    let answer = call(pair.outbound, "/headers").await;
    assert_eq!((answer.status, answer.text()), (503, "local_rate_limited"));
    let all =
        |name| answer.headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect::<Vec<_>>();
    assert_eq!(all("content-type"), ["application/json"]);
    assert_eq!(all("retry-after"), ["1"]);
    assert_eq!(all("x-limit"), ["a", "b"]);
}

#[tokio::test]
async fn the_first_rule_for_the_caller_decides() {
    let (application, _) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    let of = |service: &str, rate| RequestLimit { caller: caller(service), ..limit(rate) };
    let status_of_second = async |limits| {
        pair.inbound_policies(|policies| policies.rate_limits = requests(limits)).await;
        call(pair.outbound, "/headers").await;
        call(pair.outbound, "/headers").await.status
    };
    assert_eq!(status_of_second(vec![of("web", Some(only(1))), limit(None)]).await, 429);
    assert_eq!(status_of_second(vec![of("web", None), limit(Some(only(1)))]).await, 200);
    assert_eq!(status_of_second(vec![of("api", None), limit(Some(only(1)))]).await, 429);
}

#[tokio::test]
async fn a_bucket_outlives_what_does_not_change_it() {
    let (application, _) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    pair.inbound_policies(|policies| policies.rate_limits = requests(vec![limit(Some(only(1)))])).await;
    assert_eq!(call(pair.outbound, "/headers").await.status, 200);
    pair.inbound_policies(|policies| {
        policies.stream_timeouts.max_millis = Some(60_000);
        policies.rate_limits = requests(vec![limit(Some(only(1)))]);
    })
    .await;
    assert_eq!(call(pair.outbound, "/headers").await.status, 429);
    pair.inbound_policies(|policies| policies.rate_limits = requests(vec![limit(Some(only(2)))])).await;
    assert_eq!(call(pair.outbound, "/headers").await.status, 200);
}

#[tokio::test]
async fn who_may_not_call_uses_nothing_up() {
    let (application, _) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    let change = async |services: &[&str]| {
        pair.change_inbound(|inbound| {
            inbound.permission = allow(services);
            inbound.policies.rate_limits =
                RateLimits { requests: vec![limit(Some(only(1)))], connections: Some(only(1)) };
            inbound.policies.faults = vec![faults(CallerMatch::default(), &[Effect::Delay(1)])];
        });
        pair.settled().await;
    };
    change(&[]).await;
    for _ in 0..3 {
        let answer = call(pair.outbound, "/headers").await;
        assert_eq!((answer.status, answer.denied()), (403, Some("no-permission")));
    }
    assert_eq!(counted(&pair, |cell| cell.faults_delayed.value() + cell.rate_limited.value()), 0);
    change(&["web"]).await;
    assert_eq!(call(pair.outbound, "/headers").await.status, 200);
    assert_eq!(call(pair.outbound, "/headers").await.status, 429);
}

/// Plaintext proves nothing: what is for one caller is not for it, what is for everybody is.
#[tokio::test]
async fn plaintext_is_held_to_what_is_for_everybody() {
    let (application, _) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    pair.change_inbound(|inbound| {
        inbound.tls = InboundTls::Off;
        let web = RequestLimit { caller: caller("web"), status: 503, ..limit(Some(only(1))) };
        inbound.policies.rate_limits = requests(vec![web, limit(Some(only(1)))]);
        inbound.policies.faults = vec![faults(caller("web"), &[Effect::Abort(500)])];
    });
    pair.settled().await;
    assert_eq!(call(pair.inbound, "/headers").await.status, 200);
    assert_eq!(call(pair.inbound, "/headers").await.status, 429);
}

#[tokio::test]
async fn connections_beyond_the_rate_are_reset() {
    let (application, seen) = echo_app().await;
    let pair = Pair::start(Protocol::Tcp, application).await;
    pair.inbound_policies(|policies| policies.rate_limits.connections = Some(only(1))).await;
    let mut first = TcpStream::connect(pair.outbound).await.unwrap();
    first.write_all(b"a").await.unwrap();
    assert_eq!(soon("the echo", first.read_u8()).await.unwrap(), b'a');
    assert!(is_reset(pair.outbound).await);
    until("it is counted", async || (counted(&pair, |cell| cell.rate_limited.value()) == 1).then_some(()))
        .await;
    assert_eq!(seen.connections(), 1);
    // Who is in stays.
    first.write_all(b"b").await.unwrap();
    assert_eq!(soon("the echo", first.read_u8()).await.unwrap(), b'b');
}

/// What was used up comes back with time.
#[tokio::test]
async fn a_rate_is_one_of_its_interval() {
    let often = Rate { num: NonZeroU32::MIN, interval_millis: NonZeroU64::new(500).unwrap() };
    let (application, _) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    pair.inbound_policies(|policies| policies.rate_limits = requests(vec![limit(Some(often))])).await;
    for status in [429, 200] {
        let answered = async || (call(pair.outbound, "/headers").await.status == status).then_some(());
        until("the rate", answered).await;
    }
    let (application, _) = echo_app().await;
    let pair = Pair::start(Protocol::Tcp, application).await;
    pair.inbound_policies(|policies| policies.rate_limits.connections = Some(often)).await;
    for echoes in [false, true] {
        until("the rate", async || {
            let mut stream = TcpStream::connect(pair.outbound).await.ok()?;
            let sent = stream.write_all(b"a").await.is_ok();
            (sent && soon("an echo or the end", stream.read_u8()).await.is_ok() == echoes).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn an_http_connection_beyond_the_rate_is_reset_too() {
    let (application, seen) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    pair.change_inbound(|inbound| {
        inbound.tls = InboundTls::Off;
        inbound.policies.rate_limits.connections = Some(only(1));
    });
    pair.settled().await;
    let mut first = http1(pair.inbound).await;
    assert_eq!(whole(first.send_request(get("/headers")).await.unwrap()).await.status, 200);
    assert!(is_reset(pair.inbound).await);
    assert_eq!(whole(first.send_request(get("/headers")).await.unwrap()).await.status, 200);
    assert_eq!(seen.requests(), 2);
}

#[tokio::test]
async fn an_abort_is_answered_in_the_applications_place() {
    let (application, seen) = http_app(true).await;
    let pair = Pair::start(Protocol::Grpc, application).await;
    pair.inbound_policies(|policies| {
        policies.faults = vec![faults(caller("web"), &[Effect::Abort(418)])];
        policies.rate_limits = requests(vec![limit(Some(only(1)))]);
    })
    .await;
    for _ in 0..2 {
        let answer = call(pair.outbound, "/headers").await;
        assert_eq!((answer.status, answer.text()), (418, "fault filter abort"));
    }
    assert_eq!((seen.requests(), counted(&pair, |cell| cell.faults_aborted.value())), (0, 2));
    // It comes before the rate limit, which none of them has used up.
    pair.inbound_policies(|policies| policies.rate_limits = requests(vec![limit(Some(only(1)))])).await;
    assert_eq!(call(pair.outbound, "/headers").await.status, 200);
}

#[tokio::test]
async fn a_delayed_request_waits_before_the_application_is_asked() {
    let (application, seen) = http_app(true).await;
    let pair = Pair::start(Protocol::Http2, application).await;
    let delay = async |millis| {
        let rule = faults(CallerMatch::default(), &[Effect::Delay(millis)]);
        pair.inbound_policies(|policies| policies.faults = vec![rule]).await;
    };
    delay(20).await;
    assert_eq!(call(pair.outbound, "/headers").await.status, 200);
    assert_eq!(counted(&pair, |cell| cell.faults_delayed.value()), 1);
    delay(3_600_000).await;
    let waiting = tokio::spawn(call(pair.outbound, "/headers"));
    until("it waits", async || (counted(&pair, |cell| cell.faults_delayed.value()) == 2).then_some(())).await;
    pair.inbound_policies(|_| ()).await;
    assert_eq!(call(pair.outbound, "/headers").await.status, 200);
    // The one that waits has not been asked of the application, and holds nobody up.
    assert_eq!((seen.requests(), waiting.is_finished()), (2, false));
    waiting.abort();
}

#[tokio::test]
async fn a_delayed_request_ends_with_its_permission() {
    let (application, seen) = http_app(true).await;
    let pair = Pair::start(Protocol::Http2, application).await;
    let hour = faults(CallerMatch::default(), &[Effect::Delay(3_600_000)]);
    pair.inbound_policies(|policies| policies.faults = vec![hour]).await;
    let waiting = tokio::spawn(call(pair.outbound, "/headers"));
    until("it waits", async || (counted(&pair, |cell| cell.faults_delayed.value()) == 1).then_some(())).await;
    pair.permit(&[]);
    assert_eq!(soon("its end", waiting).await.unwrap().status, 503);
    assert_eq!(seen.requests(), 0);
}

#[tokio::test]
async fn every_rule_for_a_caller_is_made() {
    let (application, _) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    pair.inbound_policies(|policies| {
        policies.faults = vec![
            faults(caller("web"), &[Effect::Delay(1)]),
            faults(caller("api"), &[Effect::Abort(500)]),
            faults(CallerMatch::default(), &[Effect::Abort(502)]),
        ];
    })
    .await;
    assert_eq!(call(pair.outbound, "/headers").await.status, 502);
    let both = counted(&pair, |cell| cell.faults_delayed.value() * 10 + cell.faults_aborted.value());
    assert_eq!(both, 11);
}

#[tokio::test]
async fn a_slowed_answer_comes_in_small_portions_and_whole() {
    let (application, _) = http_app(true).await;
    let pair = Pair::start(Protocol::Http2, application).await;
    let slow = Effect::Bandwidth(NonZeroU64::new(2_000).unwrap());
    pair.inbound_policies(|policies| policies.faults = vec![faults(CallerMatch::default(), &[slow])]).await;
    let mut client = http2(pair.outbound).await;
    let flood = crate::apps::absolute(Method::GET, "/flood", text(""));
    let mut response = soon("the head", client.send_request(flood)).await.unwrap();
    for _ in 0..3 {
        let frame = soon("a portion", response.frame()).await.unwrap().unwrap();
        let data = frame.into_data().unwrap();
        // The application sends 16 KiB at a time.
        assert!(data.len() < 1_000, "{}", data.len());
    }
    drop(response);
    let mut client = http1(pair.outbound).await;
    let sent = "x".repeat(250);
    let answer = client.send_request(request(Method::POST, "/echo", text(sent.clone()))).await.unwrap();
    assert_eq!(whole(answer).await.text(), sent);
    assert_eq!(counted(&pair, |cell| cell.faults_slowed.value()), 2);
}

#[tokio::test]
async fn a_fault_that_never_happens_does_not() {
    let (application, _) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    pair.inbound_policies(|policies| {
        let slow = Effect::Bandwidth(NonZeroU64::MIN);
        let never = [Effect::Abort(500), Effect::Delay(3_600_000), slow];
        let faults = never.map(|effect| Fault { per_million: 0, effect }).to_vec();
        policies.faults = vec![FaultRule { caller: CallerMatch::default(), faults, first_only: false }];
    })
    .await;
    for _ in 0..20 {
        assert_eq!(call(pair.outbound, "/headers").await.status, 200);
    }
}

#[tokio::test]
async fn callers_are_told_apart_by_their_tags_and_the_first_rule_holds() {
    let (application, _) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    let tagged = |service: &str, status| {
        let tags = [("kuma.io/service".to_owned(), service.to_owned())].into();
        let caller = CallerMatch { tags, ..CallerMatch::default() };
        FaultRule { first_only: true, ..faults(caller, &[Effect::Abort(status)]) }
    };
    for (service, expected) in [("web", 418), ("api", 503)] {
        let all = FaultRule { first_only: true, ..faults(CallerMatch::default(), &[Effect::Abort(503)]) };
        pair.inbound_policies(|policies| policies.faults = vec![tagged(service, 418), all]).await;
        assert_eq!(call(pair.outbound, "/status/200").await.status, expected);
    }
}
