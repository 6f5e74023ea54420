//! Who may, who may not, and what a change of that ends.

use crate::{
    apps::{absolute, call, echo_app, get, http_app, http1, http2, streaming, text, whole},
    world::{
        Ca, MESH, Pair, Sidecar, address, destination, destination_by_zone, endpoint, is_reset, resource,
        soon, until,
    },
};
use bytes::Bytes;
use http::Method;
use http_body_util::BodyExt;
use hyper::body::Frame;
use meridian_pki::IdentityHandle;
use meridian_pki::mesh_tls::{MeshServerVerifier, client_config};
use meridian_proxy_config::{EndpointSet, Protocol, SessionTerms, alpn, types};
use std::{
    io::ErrorKind,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// A change is to be felt within this.
const AT_ONCE: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_permission_is_live_both_ways_without_a_restart() {
    let (application, seen) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    pair.permit(&[]);
    pair.settled().await;
    let answer = call(pair.outbound, "/headers").await;
    assert_eq!((answer.status, answer.denied()), (403, Some("no-permission")));
    assert_eq!(seen.connections(), 0, "a refused request reaches nobody");
    let row = ("spiffe://default/web".into(), "backend".into(), "no-permission".into());
    assert_eq!(pair.backend.denials(), [row]);
    let mut client = http1(pair.outbound).await;
    for (services, status) in [(&["web"][..], 200), (&[], 403), (&["web"], 200)] {
        pair.permit(services);
        let start = Instant::now();
        until("the change", async || {
            client.ready().await.ok()?;
            let answer = whole(client.send_request(get("/headers")).await.unwrap()).await;
            (answer.status == status).then_some(())
        })
        .await;
        assert!(start.elapsed() < AT_ONCE);
    }
}

#[tokio::test]
async fn taking_a_permission_away_ends_an_open_stream() {
    let (application, _) = http_app(true).await;
    let pair = Pair::start(Protocol::Grpc, application).await;
    let mut client = http2(pair.outbound).await;
    let (sender, body) = streaming();
    let mut response = client.send_request(absolute(Method::POST, "/echo", body)).await.unwrap();
    sender.send(Frame::data(Bytes::from_static(b"one"))).await.unwrap();
    assert!(soon("the echo", response.frame()).await.unwrap().is_ok());
    pair.permit(&[]);
    let start = Instant::now();
    let end = soon("the end of the stream", response.frame()).await;
    assert!(matches!(end, Some(Err(_))), "a cut stream must not look like a complete one");
    assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
    until("refusals", async || {
        let after = client.send_request(absolute(Method::GET, "/headers", text(""))).await.unwrap();
        (whole(after).await.denied() == Some("no-permission")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn taking_a_permission_away_resets_idle_tcp_and_upgrades() {
    let (application, seen) = echo_app().await;
    let pair = Pair::start(Protocol::Tcp, application).await;
    let mut stream = TcpStream::connect(pair.outbound).await.unwrap();
    stream.write_all(b"a").await.unwrap();
    assert_eq!(soon("the echo", stream.read_u8()).await.unwrap(), b'a');
    pair.permit(&[]);
    let start = Instant::now();
    let error = soon("the reset", stream.read_u8()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert!(start.elapsed() < AT_ONCE);
    assert!(is_reset(pair.outbound).await);
    assert_eq!(seen.connections(), 1, "the second never reached the application");

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
    stream.write_all(b"x").await.unwrap();
    assert_eq!(soon("the echo", stream.read_u8()).await.unwrap(), b'x');
    pair.permit(&[]);
    let start = Instant::now();
    assert!(soon("the end", stream.read_u8()).await.is_err());
    assert!(start.elapsed() < AT_ONCE);
}

#[tokio::test]
async fn an_unrelated_change_ends_nothing() {
    let (application, _) = echo_app().await;
    let pair = Pair::start(Protocol::Tcp, application).await;
    let mut stream = TcpStream::connect(pair.outbound).await.unwrap();
    for services in [&["web", "other"][..], &["other", "web"], &["web"]] {
        pair.permit(services);
        pair.web.feed(types::ENDPOINTS, "another", &EndpointSet::default());
        pair.settled().await;
        stream.write_all(b"a").await.unwrap();
        assert_eq!(soon("the echo", stream.read_u8()).await.unwrap(), b'a');
    }
}

#[tokio::test]
async fn an_outbound_that_is_gone_takes_its_connections_with_it() {
    let (application, _) = echo_app().await;
    let pair = Pair::start(Protocol::Tcp, application).await;
    let mut stream = TcpStream::connect(pair.outbound).await.unwrap();
    stream.write_all(b"a").await.unwrap();
    assert_eq!(soon("the echo", stream.read_u8()).await.unwrap(), b'a');
    pair.web.remove(types::OUTBOUND, "backend");
    assert!(soon("the reset", stream.read_u8()).await.is_err());
    until("nobody listens", async || TcpStream::connect(pair.outbound).await.err()).await;
}

#[tokio::test]
async fn a_revoked_zone_is_cut_on_both_sides() {
    let (application, _) = echo_app().await;
    let mut pair = Pair::start(Protocol::Tcp, application).await;
    let mut stream = TcpStream::connect(pair.outbound).await.unwrap();
    stream.write_all(b"a").await.unwrap();
    assert_eq!(soon("the echo", stream.read_u8()).await.unwrap(), b'a');
    pair.ca.revoke("east");
    pair.backend.feed(types::BUNDLE, MESH, &pair.ca.bundle());
    assert!(soon("the reset", stream.read_u8()).await.is_err());
    assert!(is_reset(pair.outbound).await);
    refused(&pair.backend, "untrusted-caller").await;
}

/// Whoever answers must be who was dialled, where they were dialled, of this mesh.
#[tokio::test]
async fn a_stranger_in_the_backends_place_gets_no_byte() {
    let (application, seen) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    let foreign = Ca::new(MESH, &["east"]);
    let strangers = [
        Sidecar::start(&pair.ca, "east", "other"),
        Sidecar::start(&pair.ca, "west", "backend"),
        Sidecar::start(&foreign, "east", "backend"),
    ];
    for stranger in &strangers {
        let inbound = address();
        stranger.feed(types::INBOUND, "main", &stranger.inbound(Protocol::Http, inbound, application));
        stranger.settled().await;
        let set = EndpointSet { endpoints: vec![endpoint(inbound, "east")] };
        pair.web.feed(types::ENDPOINTS, "backend", &set);
        assert_eq!(call(pair.outbound, "/headers").await.status, 503);
    }
    assert_eq!(seen.connections(), 0);
    assert!(
        pair.web.denials().iter().any(|(_, name, reason)| name == "backend" && reason == "untrusted-peer")
    );
    pair.web.feed(types::DESTINATION, "backend", &destination(Protocol::Http, &[]));
    pair.web.feed(
        types::ENDPOINTS,
        "backend",
        &EndpointSet { endpoints: vec![endpoint(pair.inbound, "east")] },
    );
    assert_eq!(call(pair.outbound, "/headers").await.status, 503, "an empty list of identities refuses");
}

/// What one zone says of its services' identities holds at its own endpoints alone.
#[tokio::test]
async fn an_identity_of_one_zone_is_not_believed_at_anothers_endpoint() {
    let (application, seen) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    let west = Sidecar::start(&pair.ca, "west", "other");
    let inbound = address();
    west.feed(types::INBOUND, "main", &west.inbound(Protocol::Http, inbound, application));
    west.settled().await;
    pair.web.feed(types::ENDPOINTS, "backend", &EndpointSet { endpoints: vec![endpoint(inbound, "west")] });
    let told = |west: &[&str]| {
        let by_zone: [(&str, &[&str]); 2] = [("east", &["backend", "other"]), ("west", west)];
        pair.web.feed(types::DESTINATION, "backend", &destination_by_zone(Protocol::Http, &by_zone));
    };
    told(&["backend"]);
    assert_eq!(call(pair.outbound, "/headers").await.status, 503);
    assert_eq!(seen.connections(), 0);
    assert!(pair.web.denials().iter().any(|(_, _, reason)| reason == "untrusted-peer"));
    told(&["other"]);
    until("its own zone says so", async || {
        (call(pair.outbound, "/headers").await.status == 200).then_some(())
    })
    .await;
    // An open session ends with what its own zone says, too.
    told(&[]);
    assert_eq!(call(pair.outbound, "/headers").await.status, 503);
}

#[tokio::test]
async fn an_identity_that_is_taken_away_ends_what_it_had() {
    let (application, _) = echo_app().await;
    let pair = Pair::start(Protocol::Tcp, application).await;
    let mut stream = TcpStream::connect(pair.outbound).await.unwrap();
    stream.write_all(b"a").await.unwrap();
    assert_eq!(soon("the echo", stream.read_u8()).await.unwrap(), b'a');
    pair.web.feed(types::DESTINATION, "backend", &destination(Protocol::Tcp, &["other"]));
    assert!(soon("the reset", stream.read_u8()).await.is_err());
}

/// A session with the inbound, of someone who has the code and perhaps not the right papers.
pub(crate) async fn session(pair: &Pair, ca: Option<&Ca>, protocol: &[u8]) -> Option<TlsStream<TcpStream>> {
    let bundles = meridian_pki::Bundles::new();
    bundles.set(&pair.ca.bundle()).unwrap();
    let verifier = MeshServerVerifier::new(&bundles, MESH, vec!["spiffe://default/backend".into()], "east");
    let identity = IdentityHandle::new();
    if let Some(ca) = ca {
        identity.set(ca.identity("east", "web"));
    }
    let names: Vec<&[u8]> = if protocol.is_empty() { vec![] } else { vec![protocol] };
    let config = client_config(identity, Arc::new(verifier), &names, &SessionTerms::default()).unwrap();
    let stream = TcpStream::connect(pair.inbound).await.unwrap();
    let name = "sni.msvc.default.east.backend.main".try_into().unwrap();
    TlsConnector::from(config).connect(name, stream).await.ok()
}

/// Dials the inbound directly.
async fn dial(pair: &Pair, ca: Option<&Ca>, protocol: &[u8]) -> Vec<u8> {
    let Some(mut session) = session(pair, ca, protocol).await else { return Vec::new() };
    drop(session.write_all(b"GET /headers HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n").await);
    let mut answer = Vec::new();
    drop(soon("an end", session.read_to_end(&mut answer)).await);
    answer
}

#[tokio::test]
async fn only_the_right_certificate_and_protocol_get_in() {
    let (application, seen) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    let foreign = Ca::new(MESH, &["east"]);
    assert!(dial(&pair, Some(&pair.ca), alpn::HTTP1).await.starts_with(b"HTTP/1.1 200"));
    assert_eq!(seen.requests(), 1);
    for protocol in [alpn::TCP, alpn::EXTERNAL, b"h2", b""] {
        assert_eq!(dial(&pair, Some(&pair.ca), protocol).await, b"", "{protocol:?}");
    }
    assert_eq!(dial(&pair, Some(&foreign), alpn::HTTP1).await, b"");
    assert_eq!(dial(&pair, None, alpn::HTTP1).await, b"");
    let plain = crate::apps::raw(pair.inbound, b"GET / HTTP/1.1\r\nHost: b\r\n\r\n").await;
    assert!(!plain.contains("HTTP"), "{plain:?}");
    assert_eq!(
        (seen.requests(), seen.connections()),
        (1, 1),
        "no byte of a stranger reached the application"
    );
    for reason in ["untrusted-caller", "plaintext", "wrong-protocol"] {
        refused(&pair.backend, reason).await;
    }
}

/// Waits until a refusal for this reason is counted: the peer may see its end before.
async fn refused(sidecar: &Sidecar, reason: &str) {
    until(reason, async || sidecar.denials().iter().any(|(_, _, found)| found == reason).then_some(())).await;
}

#[tokio::test]
async fn an_opaque_inbound_takes_only_opaque_sessions() {
    let (application, seen) = echo_app().await;
    let pair = Pair::start(Protocol::Tcp, application).await;
    for protocol in [alpn::HTTP1, alpn::HTTP2] {
        assert_eq!(dial(&pair, Some(&pair.ca), protocol).await, b"");
    }
    assert_eq!(seen.connections(), 0);
}

#[tokio::test]
async fn what_can_not_be_understood_denies() {
    let (application, seen) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    assert_eq!(call(pair.outbound, "/headers").await.status, 200);
    let mut newer =
        serde_json::to_value(pair.backend.inbound(Protocol::Http, pair.inbound, application)).unwrap();
    newer["denyOnFridays"] = true.into();
    let rejected = pair.backend.engine.apply(&[resource(types::INBOUND, "main", &newer)], &[]);
    assert!(rejected[0].reason.contains("denyOnFridays"), "{rejected:?}");
    until("the refusal", async || {
        (call(pair.outbound, "/headers").await.denied() == Some("no-permission")).then_some(())
    })
    .await;
    assert_eq!(pair.backend.engine.refused().len(), 1);
    let before = seen.requests();
    pair.permit(&["web"]);
    until("the repair", async || (call(pair.outbound, "/headers").await.status == 200).then_some(())).await;
    assert_eq!(seen.requests(), before + 1);
}
