//! MeshTimeout: how long connections and requests may take, at the caller's side and at the application's.

use crate::{
    apps::{
        absolute, call, echo_app, full_app, get, http_app, http1, http2, request, streaming, tcp_app, text,
        whole,
    },
    world::{Pair, soon, until},
};
use bytes::Bytes;
use http::Method;
use http_body_util::BodyExt;
use hyper::body::Frame;
use meridian_proxy::worker::Direction;
use meridian_proxy_config::{
    CallerMatch, CallerTimeouts, ConnectionTimeouts, InboundTls, Protocol, StreamTimeouts,
};
use std::num::NonZeroU64;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const SHORT: Option<u64> = Some(300);

fn whole_request() -> StreamTimeouts {
    StreamTimeouts { request_millis: SHORT, ..StreamTimeouts::default() }
}

#[tokio::test]
async fn a_request_that_is_not_answered_in_time_is_answered_504() {
    let (application, _) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    pair.policies(|policies| policies.stream_timeouts = whole_request()).await;
    let answer = call(pair.outbound, "/hang").await;
    assert_eq!((answer.status, answer.text()), (504, "backend did not answer in time\n"));
    assert_eq!(pair.counted(|cell| cell.timeouts.value()), 1);
    assert_eq!(call(pair.outbound, "/headers").await.status, 200);
}

#[tokio::test]
async fn the_applications_side_has_a_limit_of_its_own() {
    let (application, _) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    pair.inbound_policies(|policies| policies.stream_timeouts = whole_request()).await;
    let answer = call(pair.outbound, "/hang").await;
    assert_eq!((answer.status, answer.text()), (504, "the application did not answer in time\n"));
}

/// Who was late shows which limit held: the caller's side has a longer one.
#[tokio::test]
async fn a_caller_may_have_limits_of_its_own() {
    let (application, _) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    let longer = StreamTimeouts { request_millis: Some(1_000), ..StreamTimeouts::default() };
    pair.policies(|policies| policies.stream_timeouts = longer).await;
    let none = StreamTimeouts::default();
    for (caller, its, others, late) in [
        ("web", whole_request(), none, "the application"),
        ("api", whole_request(), none, "backend"),
        ("web", none, whole_request(), "backend"),
        ("api", none, whole_request(), "the application"),
    ] {
        pair.inbound_policies(|policies| {
            let spiffe_exact = Some(format!("spiffe://default/{caller}"));
            let caller = CallerMatch { spiffe_exact, ..CallerMatch::default() };
            policies.caller_timeouts = vec![CallerTimeouts { caller, stream_timeouts: its }];
            policies.stream_timeouts = others;
        })
        .await;
        let answer = call(pair.outbound, "/hang").await;
        assert_eq!(answer.text(), format!("{late} did not answer in time\n"), "{caller}");
    }
}

/// A connection that rests meanwhile is another thing: it is there when it is needed.
#[tokio::test]
async fn a_head_that_does_not_end_in_time_ends_the_connection() {
    let (application, _) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    let short = ConnectionTimeouts { request_head_millis: SHORT, ..ConnectionTimeouts::default() };
    pair.policies(|policies| policies.connection_timeouts = short).await;
    let mut resting = http1(pair.outbound).await;
    assert_eq!(whole(resting.send_request(get("/headers")).await.unwrap()).await.status, 200);
    let mut slow = TcpStream::connect(pair.outbound).await.unwrap();
    let request = b"GET /status/204 HTTP/1.1\r\nHost: backend.mesh\r\n\r\n";
    slow.write_all(request).await.unwrap();
    let mut answer = [0; 1024];
    assert!(soon("an answer", slow.read(&mut answer)).await.unwrap() > 0);
    slow.write_all(&request[..20]).await.unwrap();
    assert!(matches!(soon("the end", slow.read(&mut answer)).await, Ok(0) | Err(_)));
    resting.ready().await.unwrap();
    assert_eq!(whole(resting.send_request(get("/headers")).await.unwrap()).await.status, 200);
}

/// The time that a caller takes for its own request is not the server's.
#[tokio::test]
async fn a_request_counts_from_its_last_byte_and_grpc_has_no_exemption() {
    let (application, _) = http_app(true).await;
    let pair = Pair::start(Protocol::Grpc, application).await;
    pair.policies(|policies| policies.stream_timeouts = whole_request()).await;
    let mut client = http2(pair.outbound).await;
    let (sender, body) = streaming();
    let answer = tokio::spawn(client.send_request(absolute(Method::POST, "/hang", body)));
    let slow = tokio::time::timeout(std::time::Duration::from_millis(900), std::future::pending::<()>());
    assert!(slow.await.is_err() && !answer.is_finished(), "it has not been sent yet");
    drop(sender);
    assert_eq!(soon("an answer", answer).await.unwrap().unwrap().status(), 504);
}

#[tokio::test]
async fn an_answer_that_does_not_end_in_time_is_cut_off() {
    for limits in [whole_request(), StreamTimeouts { max_millis: SHORT, ..StreamTimeouts::default() }] {
        let (application, _) = http_app(true).await;
        let pair = Pair::start(Protocol::Http2, application).await;
        pair.policies(|policies| policies.stream_timeouts = limits).await;
        let mut client = http2(pair.outbound).await;
        let (_sender, body) = streaming();
        let body = if limits.max_millis.is_some() { body } else { text("") };
        let response = client.send_request(absolute(Method::POST, "/flood", body)).await.unwrap();
        assert_eq!(response.status(), 200);
        // The reader is slow: what does not flow does not hold the limit off either.
        assert!(soon("the end", response.collect()).await.is_err());
        assert_eq!(pair.counted(|cell| cell.timeouts.value()), 1);
    }
}

#[tokio::test]
async fn a_silent_stream_ends_and_a_slow_one_does_not() {
    let (application, _) = http_app(true).await;
    let pair = Pair::start(Protocol::Grpc, application).await;
    let idle = StreamTimeouts { idle_millis: Some(700), ..StreamTimeouts::default() };
    pair.policies(|policies| policies.stream_timeouts = idle).await;
    let mut client = http2(pair.outbound).await;
    let (sender, body) = streaming();
    let mut response =
        soon("the head", client.send_request(absolute(Method::POST, "/echo", body))).await.unwrap();
    let mut pause = tokio::time::interval(std::time::Duration::from_millis(300));
    for _ in 0..6 {
        pause.tick().await;
        sender.send(Frame::data(Bytes::from_static(b"on"))).await.unwrap();
        assert_eq!(soon("the echo", response.frame()).await.unwrap().unwrap().data_ref().unwrap(), "on");
    }
    assert!(soon("the end", response.frame()).await.unwrap().is_err());
    // Before the head it is the caller that is told, and that it was the one who was silent.
    let (_unfinished, body) = streaming();
    let answer = soon("an answer", client.send_request(absolute(Method::POST, "/hang", body))).await.unwrap();
    assert_eq!(answer.status(), 408);
}

#[tokio::test]
async fn a_connection_that_does_not_come_about_is_given_up() {
    let (silent, _) = tcp_app(|stream| async move {
        let _open = stream;
        std::future::pending().await
    })
    .await;
    let (application, _) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    let set = meridian_proxy_config::EndpointSet { endpoints: vec![crate::world::endpoint(silent, "east")] };
    pair.web.feed(meridian_proxy_config::types::ENDPOINTS, "backend", &set);
    pair.policies(|policies| policies.connection_timeouts.connect_millis = NonZeroU64::new(200)).await;
    let answer = call(pair.outbound, "/headers").await;
    assert_eq!(answer.status, 503);
    assert!(answer.text().contains("took longer than 200ms"), "{}", answer.text());
}

#[tokio::test]
async fn tcp_without_a_byte_ends_on_either_side() {
    for inbound in [false, true] {
        let (application, _) = echo_app().await;
        let pair = Pair::start(Protocol::Tcp, application).await;
        let short = ConnectionTimeouts { idle_millis: SHORT, ..ConnectionTimeouts::default() };
        if inbound {
            pair.inbound_policies(|policies| policies.connection_timeouts = short).await;
        } else {
            pair.policies(|policies| policies.connection_timeouts = short).await;
        }
        let mut stream = TcpStream::connect(pair.outbound).await.unwrap();
        stream.write_all(b"a").await.unwrap();
        assert_eq!(soon("the echo", stream.read_u8()).await.unwrap(), b'a');
        assert!(soon("the end", stream.read_u8()).await.is_err());
    }
}

#[tokio::test]
async fn sessions_without_a_request_are_closed() {
    let (application, _) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    let short = ConnectionTimeouts { idle_millis: SHORT, ..ConnectionTimeouts::default() };
    pair.policies(|policies| policies.connection_timeouts = short).await;
    let mut client = http1(pair.outbound).await;
    assert_eq!(whole(client.send_request(get("/headers")).await.unwrap()).await.status, 200);
    for direction in [Direction::Upstream, Direction::Outbound] {
        until("it is closed", async || {
            let open = pair.web.engine.connections().await;
            open.iter().all(|open| open.info.direction != direction).then_some(())
        })
        .await;
    }
    assert_eq!(call(pair.outbound, "/headers").await.status, 200);
    assert_eq!(pair.backend.handshakes(), 2);
}

#[tokio::test]
async fn an_old_session_takes_no_new_requests() {
    let (application, seen) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    let aged = ConnectionTimeouts { max_age_millis: SHORT, ..ConnectionTimeouts::default() };
    pair.policies(|policies| policies.connection_timeouts = aged).await;
    pair.inbound_policies(|policies| policies.connection_timeouts = aged).await;
    until("new connections on both legs", async || {
        assert_eq!(call(pair.outbound, "/headers").await.status, 200);
        (pair.backend.handshakes() >= 3 && seen.connections() >= 3).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_tunnel_is_held_to_the_streams_limits() {
    for limits in [
        StreamTimeouts { idle_millis: SHORT, ..StreamTimeouts::default() },
        StreamTimeouts { max_millis: SHORT, ..StreamTimeouts::default() },
    ] {
        let (application, _) = http_app(false).await;
        let pair = Pair::start(Protocol::Http, application).await;
        pair.policies(|policies| policies.stream_timeouts = limits).await;
        let mut stream = TcpStream::connect(pair.outbound).await.unwrap();
        let head = b"GET /upgrade HTTP/1.1\r\nHost: b\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\n";
        stream.write_all(head).await.unwrap();
        let mut all = Vec::new();
        drop(soon("the end", stream.read_to_end(&mut all)).await);
        assert!(all.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&all));
    }
}

#[tokio::test]
async fn zero_means_no_limit() {
    let (application, _) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    let never = StreamTimeouts { request_millis: Some(0), idle_millis: Some(0), max_millis: Some(0) };
    pair.policies(|policies| policies.stream_timeouts = never).await;
    let mut client = http1(pair.outbound).await;
    let answer = client.send_request(request(Method::POST, "/echo", text("as it is"))).await.unwrap();
    assert_eq!(whole(answer).await.text(), "as it is");
}

/// The application's side by itself: the caller's has no limits.
#[tokio::test]
async fn an_inbound_holds_streams_to_their_limits() {
    let idle = StreamTimeouts { idle_millis: SHORT, ..StreamTimeouts::default() };
    let longest = StreamTimeouts { max_millis: SHORT, ..StreamTimeouts::default() };
    for (limits, path) in [(idle, "/echo"), (longest, "/flood")] {
        let (application, _) = http_app(true).await;
        let pair = Pair::start(Protocol::Grpc, application).await;
        pair.inbound_policies(|policies| policies.stream_timeouts = limits).await;
        let mut client = http2(pair.outbound).await;
        let (sender, body) = streaming();
        let response = client.send_request(absolute(Method::POST, path, body));
        let mut response = soon("the head", response).await.unwrap();
        assert_eq!(response.status(), 200);
        sender.send(Frame::data(Bytes::from_static(b"on"))).await.unwrap();
        assert!(soon("a part", response.frame()).await.unwrap().unwrap().is_data());
        assert!(soon("the end", response.collect()).await.is_err(), "{path}");
    }
}

/// By whose limit it ends shows in the answer: the caller's side waits longer.
#[tokio::test]
async fn an_inbound_gives_up_an_application_that_takes_no_connection() {
    let (application, _full) = full_app().await;
    let pair = Pair::start(Protocol::Http, application).await;
    let longer = StreamTimeouts { request_millis: Some(2_000), ..StreamTimeouts::default() };
    pair.policies(|policies| policies.stream_timeouts = longer).await;
    for (millis, status, text) in [
        (200, 503, "the application can't be reached\n"),
        (3_600_000, 504, "backend did not answer in time\n"),
    ] {
        let limit = NonZeroU64::new(millis);
        pair.inbound_policies(|policies| policies.connection_timeouts.connect_millis = limit).await;
        let answer = call(pair.outbound, "/headers").await;
        assert_eq!((answer.status, answer.text()), (status, text));
    }
}

#[tokio::test]
async fn an_inbound_gives_up_a_head_that_does_not_end() {
    let (application, seen) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    pair.change_inbound(|inbound| {
        inbound.tls = InboundTls::Off;
        inbound.policies.connection_timeouts.request_head_millis = SHORT;
    });
    pair.settled().await;
    assert_eq!(call(pair.inbound, "/headers").await.status, 200);
    let mut slow = TcpStream::connect(pair.inbound).await.unwrap();
    slow.write_all(b"GET /headers HTTP/1.1\r\nHost: ").await.unwrap();
    let mut answer = [0; 1024];
    assert!(matches!(soon("the end", slow.read(&mut answer)).await, Ok(0) | Err(_)));
    assert_eq!(seen.requests(), 1);
}
