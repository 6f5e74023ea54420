//! HTTP/1.1, HTTP/2 and gRPC through two sidecars.

use crate::{
    apps::{self, absolute, call, get, http_app, http1, http2, raw, request, streaming, text, whole},
    world::{Pair, soon},
};
use bytes::Bytes;
use futures::future::join_all;
use http::{HeaderMap, Method};
use http_body_util::BodyExt;
use hyper::body::Frame;
use meridian_proxy_config::{Protocol, Script};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

#[tokio::test]
async fn requests_of_one_connection_reach_the_application() {
    let (application, seen) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    let mut client = http1(pair.outbound).await;
    for _ in 0..3 {
        let answer = whole(client.send_request(get("/headers?q=1")).await.unwrap()).await;
        assert_eq!(answer.status, 200);
        assert!(answer.text().contains("host: backend.mesh"), "{}", answer.text());
        assert!(answer.text().contains("uri /headers?q=1"), "{}", answer.text());
        assert_eq!(answer.headers["x-app"], "yes");
        client.ready().await.unwrap();
    }
    assert_eq!((seen.requests(), seen.connections()), (3, 1));
}

#[tokio::test]
async fn many_connections_share_one_session() {
    let (application, seen) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    let answers = join_all((0..40).map(|_| call(pair.outbound, "/headers"))).await;
    assert!(answers.iter().all(|answer| answer.status == 200));
    assert_eq!((seen.requests(), pair.backend.handshakes()), (40, 1));
}

#[tokio::test]
async fn bodies_and_trailers_go_both_ways() {
    let (application, _) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    let big = Bytes::from(vec![b'x'; 3 << 20]);
    let mut client = http1(pair.outbound).await;
    let response = client.send_request(request(Method::POST, "/echo", text(big.clone()))).await.unwrap();
    assert!(whole(response).await.body == big);

    client.ready().await.unwrap();
    let (sender, body) = streaming();
    let mut chunked = request(Method::POST, "/echo", body);
    chunked.headers_mut().insert("trailer", "x-sum".parse().unwrap());
    chunked.headers_mut().insert("te", "trailers".parse().unwrap());
    tokio::spawn(async move {
        sender.send(Frame::data(Bytes::from_static(b"one "))).await.unwrap();
        sender.send(Frame::data(Bytes::from_static(b"two"))).await.unwrap();
        let trailers: HeaderMap = [("x-sum".parse().unwrap(), "7".parse().unwrap())].into_iter().collect();
        sender.send(Frame::trailers(trailers)).await.unwrap();
    });
    let answer = whole(client.send_request(chunked).await.unwrap()).await;
    assert_eq!(answer.text(), "one two");
    assert_eq!(answer.trailers.unwrap()["x-sum"], "7");
}

#[tokio::test]
async fn answers_without_a_body_stay_without() {
    let (application, _) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    let mut client = http1(pair.outbound).await;
    for (method, path, status) in [
        (Method::GET, "/status/204", 204),
        (Method::GET, "/status/304", 304),
        (Method::HEAD, "/status/200", 200),
    ] {
        let answer =
            whole(soon(path, client.send_request(request(method, path, text("")))).await.unwrap()).await;
        assert_eq!((answer.status, answer.text()), (status, ""), "{path}");
        client.ready().await.unwrap();
    }
    let head = raw(pair.outbound, b"HEAD /status/200 HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n").await;
    assert!(head.to_lowercase().contains("content-length: 4") && head.ends_with("\r\n\r\n"), "{head}");
}

#[tokio::test]
async fn what_belongs_to_one_connection_is_not_passed_on() {
    let (application, _) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    let answer = raw(
        pair.outbound,
        b"GET /headers HTTP/1.1\r\nHost: b\r\nConnection: close, X-Secret\r\nX-Secret: 1\r\nKeep-Alive: 5\r\n\
          Proxy-Connection: x\r\nX-Kept: 2\r\n\r\n",
    )
    .await;
    let lower = answer.to_lowercase();
    assert!(lower.contains("x-kept: 2"), "{answer}");
    for gone in ["x-secret", "proxy-connection", "keep-alive"] {
        assert!(!lower.contains(gone), "{gone} in {answer}");
    }
}

#[tokio::test]
async fn http2_and_its_streams() {
    let (application, seen) = http_app(true).await;
    let pair = Pair::start(Protocol::Http2, application).await;
    let client = http2(pair.outbound).await;
    let calls =
        (0..50).map(|_| {
            let mut client = client.clone();
            async move {
                whole(client.send_request(absolute(Method::GET, "/headers", text(""))).await.unwrap()).await
            }
        });
    let answers = join_all(calls).await;
    assert!(answers.iter().all(|answer| answer.status == 200));
    assert!(answers[0].text().contains("uri http://backend.mesh/headers"), "{}", answers[0].text());
    assert_eq!((seen.connections(), seen.requests(), pair.backend.handshakes()), (1, 50, 1));
}

/// The four kinds of gRPC calls are one: messages either way in any order, then trailers.
#[tokio::test]
async fn grpc_streams_both_ways_message_by_message() {
    let (application, _) = http_app(true).await;
    let pair = Pair::start(Protocol::Grpc, application).await;
    let mut client = http2(pair.outbound).await;
    let (sender, body) = streaming();
    let mut call = absolute(Method::POST, "/echo", body);
    call.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    call.headers_mut().insert("te", "trailers".parse().unwrap());
    let mut response = soon("the head before any message", client.send_request(call)).await.unwrap();
    for message in ["first", "second", "third"] {
        sender.send(Frame::data(Bytes::from_static(message.as_bytes()))).await.unwrap();
        let frame = soon("the echo", response.frame()).await.unwrap().unwrap();
        assert_eq!(frame.data_ref().unwrap(), message);
    }
    let trailers: HeaderMap = [("grpc-status".parse().unwrap(), "0".parse().unwrap())].into_iter().collect();
    sender.send(Frame::trailers(trailers)).await.unwrap();
    drop(sender);
    let last = soon("the trailers", response.frame()).await.unwrap().unwrap();
    assert_eq!(last.trailers_ref().unwrap()["grpc-status"], "0");
}

#[tokio::test]
async fn a_reader_that_stops_stops_the_writer() {
    let (application, _) = http_app(true).await;
    let pair = Pair::start(Protocol::Grpc, application).await;
    let mut client = http2(pair.outbound).await;
    let response = client.send_request(absolute(Method::GET, "/flood", text(""))).await.unwrap();
    // Nothing is read: what passes is bounded by windows and buffers, and then it stops.
    let received = || {
        let traffic = pair.backend.engine.shared().metrics.traffic("inbound", "backend");
        traffic.cell(0).bytes_out.value()
    };
    // Others on the same connections are not held up by it; while they come and go, what could move has moved.
    let (mut before, mut still) = (0, 0);
    while still < 20 {
        let other = client.send_request(absolute(Method::GET, "/headers", text("")));
        assert_eq!(soon("another stream", other).await.unwrap().status(), 200);
        let now = received();
        // An answer is smaller than any piece of the flood.
        still = if now > 4096 && now - before < 4096 { still + 1 } else { 0 };
        before = now;
        assert!(now < 16 << 20, "{now} bytes in flight");
    }
    drop(response);
}

#[tokio::test]
async fn an_upgrade_becomes_a_tunnel() {
    let (application, _) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    let mut stream = TcpStream::connect(pair.outbound).await.unwrap();
    stream
        .write_all(b"GET /upgrade HTTP/1.1\r\nHost: b\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\n")
        .await
        .unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(soon("the head", stream.read_u8()).await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    for word in ["ping", "pong"] {
        stream.write_all(word.as_bytes()).await.unwrap();
        let mut back = [0; 4];
        soon("the echo", stream.read_exact(&mut back)).await.unwrap();
        assert_eq!(back, word.as_bytes());
    }
}

/// What a client says of the other protocol before it has the word for it is the tunnel's, and no request.
#[tokio::test]
async fn what_comes_with_an_upgrade_is_the_tunnels() {
    let (application, seen) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    let early = "GET /early HTTP/1.1\r\nHost: b\r\n\r\n";
    let mut stream = TcpStream::connect(pair.outbound).await.unwrap();
    let upgrade = "GET /upgrade HTTP/1.1\r\nHost: b\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\n";
    stream.write_all((upgrade.to_owned() + early).as_bytes()).await.unwrap();
    let mut said = Vec::new();
    while !said.ends_with(early.as_bytes()) {
        assert!(soon("the echo", stream.read_buf(&mut said)).await.unwrap() > 0);
    }
    assert!(said.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&said));
    assert_eq!(seen.requests(), 1);
}

/// An application that says 100 only when it has seen the head, or answers at once.
async fn careful_app(verdict: &'static str) -> std::net::SocketAddr {
    let (at, _) = apps::tcp_app(move |mut stream| async move {
        let mut seen = Vec::new();
        while !seen.ends_with(b"\r\n\r\n") {
            seen.push(stream.read_u8().await.unwrap());
        }
        assert!(String::from_utf8_lossy(&seen).to_lowercase().contains("expect: 100-continue"));
        if verdict != "100" {
            let refusal = format!("HTTP/1.1 {verdict}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            return stream.write_all(refusal.as_bytes()).await.unwrap();
        }
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
        let mut body = [0; 5];
        stream.read_exact(&mut body).await.unwrap();
        assert_eq!(&body, b"hello");
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
    })
    .await;
    at
}

const EXPECT: &[u8] = b"POST / HTTP/1.1\r\nHost: b\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";

#[tokio::test]
async fn a_body_waits_for_the_applications_word() {
    let pair = Pair::start(Protocol::Http, careful_app("100").await).await;
    let mut stream = TcpStream::connect(pair.outbound).await.unwrap();
    stream.write_all(EXPECT).await.unwrap();
    let mut word = [0; 25];
    soon("100", stream.read_exact(&mut word)).await.unwrap();
    assert_eq!(&word, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"hello").await.unwrap();
    let mut answer = [0; 15];
    soon("200", stream.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
}

#[tokio::test]
async fn a_body_that_is_refused_is_never_sent() {
    let pair = Pair::start(Protocol::Http, careful_app("413 Payload Too Large").await).await;
    let answer = raw(pair.outbound, EXPECT).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
}

#[tokio::test]
async fn what_two_parsers_could_read_differently_is_refused() {
    let (application, seen) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    for bad in [
        &b"POST /echo HTTP/1.1\r\nHost: b\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc"[..],
        b"POST /echo HTTP/1.1\r\nHost: b\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: b\r\nContent-Length: +3\r\n\r\nabc",
        b"POST /echo HTTP/1.1\r\nHost: b\r\nTransfer-Encoding: xchunked\r\n\r\nabc",
        b"POST /echo HTTP/1.1\r\nHost: b\r\nTransfer-Encoding: chunked, identity\r\n\r\nabc",
        b"GET /echo HTTP/1.1\r\nHost: b\r\nHost: c\r\n\r\n",
        b"GET /echo HTTP/1.1\r\n\r\n",
        b"GET /echo HTTP/1.1\r\nHost : b\r\n\r\n",
        b"GET http://a/echo HTTP/1.1\r\nHost: b\r\n\r\n",
        b"GET /echo HTTP/1.1\r\nHost: b\r\nX: a\r\n folded\r\n\r\n",
    ] {
        let answer = raw(pair.outbound, bad).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{:?}: {answer}", String::from_utf8_lossy(bad));
    }
    assert_eq!(seen.requests(), 0);
}

#[tokio::test]
async fn heads_are_limited() {
    let (application, seen) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    let huge = format!("GET / HTTP/1.1\r\nHost: b\r\nX-Big: {}\r\n\r\n", "a".repeat(100_000));
    let answer = raw(pair.outbound, huge.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    assert_eq!(seen.requests(), 0);
}

#[tokio::test]
async fn an_application_that_is_not_there_is_said_to_be() {
    let pair = Pair::start(Protocol::Http, crate::world::address()).await;
    let answer = call(pair.outbound, "/").await;
    assert_eq!((answer.status, answer.denied()), (503, None));
}

/// What a client's Connection names is the client's own, not what a proxy writes afterwards.
#[tokio::test]
async fn a_client_takes_away_nothing_of_the_meshs() {
    let (application, _) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    let guest = "function envoy_on_request(h) h:headers():replace('x-role', 'guest') end";
    pair.inbound_policies(|policies| {
        policies.scripts = vec![Script { policy: "roles".into(), source: guest.into() }];
    })
    .await;
    let answer = raw(
        pair.outbound,
        b"GET /headers HTTP/1.1\r\nHost: b\r\nConnection: close, x-role\r\nx-role: admin\r\n\r\n",
    )
    .await;
    assert!(answer.contains("x-role: guest"), "{answer}");
    // A peer's sidecar may be somebody else's: what it names is its own, too.
    let mut request = absolute(Method::GET, "/headers", text(""));
    request.headers_mut().insert("x-role", "admin".parse().unwrap());
    let answer = whole(http2(pair.outbound).await.send_request(request).await.unwrap()).await;
    assert!(answer.text().contains("x-role: guest"), "{}", answer.text());
}
