//! TCP through two sidecars, endpoints that fail, plaintext, and the end of a proxy.

use crate::{
    apps::{call, echo_app, get, http_app, http1, tcp_app, whole},
    world::{Ca, MESH, Pair, Sidecar, address, allow, destination, endpoint, soon, until},
};
use meridian_proxy_config::{Destination, DestinationTls, EndpointSet, Inbound, InboundTls, Protocol, types};
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

#[tokio::test]
async fn bytes_and_both_half_closes() {
    let (application, _) = echo_app().await;
    let pair = Pair::start(Protocol::Tcp, application).await;
    let mut stream = TcpStream::connect(pair.outbound).await.unwrap();
    let sent: Vec<u8> = (0..2_000_000u32).map(|n| n.to_le_bytes()[1]).collect();
    let (mut read, mut write) = stream.split();
    let mut received = Vec::new();
    let both = async {
        let send = async {
            write.write_all(&sent).await.unwrap();
            write.shutdown().await.unwrap();
        };
        tokio::join!(send, read.read_to_end(&mut received)).1.unwrap();
    };
    soon("the echo", both).await;
    assert!(received == sent, "what came back differs");
}

#[tokio::test]
async fn a_server_may_speak_first_and_close_first() {
    let (application, _) = tcp_app(|mut stream| async move {
        stream.write_all(b"220 welcome\r\n").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "thanks");
    })
    .await;
    let pair = Pair::start(Protocol::Tcp, application).await;
    let mut stream = TcpStream::connect(pair.outbound).await.unwrap();
    let mut greeting = String::new();
    soon("the greeting", stream.read_to_string(&mut greeting)).await.unwrap();
    assert_eq!(greeting, "220 welcome\r\n");
    stream.write_all(b"thanks").await.unwrap();
}

#[tokio::test]
async fn a_reset_on_one_side_is_a_reset_on_the_other() {
    let (application, _) = tcp_app(|stream| async move {
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    })
    .await;
    let pair = Pair::start(Protocol::Tcp, application).await;
    let mut stream = TcpStream::connect(pair.outbound).await.unwrap();
    let error = soon("the reset", stream.read_u8()).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn an_endpoint_that_is_down_is_passed_over() {
    let (application, seen) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    let set = EndpointSet { endpoints: vec![endpoint(address(), "east"), endpoint(pair.inbound, "east")] };
    pair.web.feed(types::ENDPOINTS, "backend", &set);
    for _ in 0..10 {
        assert_eq!(call(pair.outbound, "/headers").await.status, 200);
    }
    assert_eq!(seen.requests(), 10);
}

#[tokio::test]
async fn the_next_tier_takes_over_and_only_then() {
    let (near, near_seen) = http_app(false).await;
    let (far, far_seen) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, near).await;
    let other = Sidecar::start(&pair.ca, "west", "backend");
    let far_inbound = address();
    other.feed(types::INBOUND, "main", &other.inbound(Protocol::Http, far_inbound, far));
    other.settled().await;
    let tiers = Destination {
        tiers: vec![vec!["backend".into()], vec!["west".into()]],
        ..destination(Protocol::Http, &["backend"])
    };
    pair.web.feed(types::ENDPOINTS, "west", &EndpointSet { endpoints: vec![endpoint(far_inbound, "west")] });
    pair.web.feed(types::DESTINATION, "backend", &tiers);
    for _ in 0..4 {
        assert_eq!(call(pair.outbound, "/headers").await.status, 200);
    }
    assert_eq!((near_seen.requests(), far_seen.requests()), (4, 0));
    pair.web.feed(types::ENDPOINTS, "backend", &EndpointSet { endpoints: vec![endpoint(address(), "east")] });
    for _ in 0..4 {
        assert_eq!(call(pair.outbound, "/headers").await.status, 200);
    }
    assert_eq!((near_seen.requests(), far_seen.requests()), (4, 4));
}

#[tokio::test]
async fn replicas_take_their_share() {
    let (one, one_seen) = http_app(false).await;
    let (three, three_seen) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, one).await;
    let other = Sidecar::start(&pair.ca, "west", "backend");
    let inbound = address();
    other.feed(types::INBOUND, "main", &other.inbound(Protocol::Http, inbound, three));
    other.settled().await;
    let mut many = endpoint(inbound, "west");
    many.replicas = 3;
    let set = EndpointSet { endpoints: vec![endpoint(pair.inbound, "east"), many] };
    pair.web.feed(types::ENDPOINTS, "backend", &set);
    for _ in 0..40 {
        assert_eq!(call(pair.outbound, "/headers").await.status, 200);
    }
    assert_eq!((one_seen.requests(), three_seen.requests()), (10, 30));
    assert_eq!(other.handshakes(), 3, "each virtual endpoint has its own connection");
}

fn plaintext(pair: &Pair) {
    let off = Destination { tls: DestinationTls::Off, ..destination(pair.protocol, &["backend"]) };
    pair.web.feed(types::DESTINATION, "backend", &off);
}

#[tokio::test]
async fn without_mtls_everything_is_plain() {
    for (protocol, http2) in [(Protocol::Http, false), (Protocol::Grpc, true)] {
        let (application, seen) = http_app(http2).await;
        let pair = Pair::start(protocol, application).await;
        pair.change_inbound(|inbound| inbound.tls = InboundTls::Off);
        plaintext(&pair);
        pair.settled().await;
        assert_eq!(call(pair.outbound, "/headers").await.status, 200);
        assert_eq!((seen.requests(), pair.backend.handshakes()), (1, 0));
    }
}

#[tokio::test]
async fn permissive_takes_both_and_counts_the_plain_ones() {
    let (application, _) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    pair.change_inbound(|inbound| inbound.tls = InboundTls::Permissive);
    pair.settled().await;
    assert_eq!(call(pair.outbound, "/headers").await.status, 200);
    assert_eq!(call(pair.inbound, "/headers").await.status, 200);
    let metrics = pair.backend.engine.shared().metrics.worker(0);
    assert_eq!((metrics.handshakes.value(), metrics.plaintext_admitted.value()), (1, 1));
}

#[tokio::test]
async fn a_server_speaks_first_under_permissive() {
    let (application, _) =
        tcp_app(|mut stream| async move { stream.write_all(b"hello").await.unwrap() }).await;
    let pair = Pair::start(Protocol::Tcp, application).await;
    pair.change_inbound(|inbound| inbound.tls = InboundTls::Permissive);
    pair.settled().await;
    for to in [pair.outbound, pair.inbound] {
        let mut greeting = String::new();
        let mut stream = TcpStream::connect(to).await.unwrap();
        soon("the greeting", stream.read_to_string(&mut greeting)).await.unwrap();
        assert_eq!(greeting, "hello");
    }
}

#[tokio::test]
async fn strict_after_permissive_ends_what_is_plain_and_nothing_else() {
    let (application, _) = echo_app().await;
    let pair = Pair::start(Protocol::Tcp, application).await;
    pair.change_inbound(|inbound| inbound.tls = InboundTls::Permissive);
    pair.settled().await;
    let mut plain = TcpStream::connect(pair.inbound).await.unwrap();
    let mut session = TcpStream::connect(pair.outbound).await.unwrap();
    for stream in [&mut plain, &mut session] {
        stream.write_all(b"a").await.unwrap();
        assert_eq!(soon("the echo", stream.read_u8()).await.unwrap(), b'a');
    }
    pair.change_inbound(|_| {});
    assert!(soon("the end", plain.read_u8()).await.is_err());
    session.write_all(b"b").await.unwrap();
    assert_eq!(soon("the echo", session.read_u8()).await.unwrap(), b'b');
}

#[tokio::test]
async fn a_drain_finishes_what_is_open_and_takes_nothing_new() {
    let (arrived, arrival) = tokio::sync::watch::channel(false);
    let (release, released) = tokio::sync::watch::channel(false);
    let (application, _) = tcp_app(move |mut stream| {
        let (arrived, mut released) = (arrived.clone(), released.clone());
        async move {
            let mut request = vec![0; 1024];
            let n = stream.read(&mut request).await.unwrap();
            assert!(n > 0);
            arrived.send_replace(true);
            released.wait_for(|now| *now).await.unwrap();
            drop(stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone").await);
        }
    })
    .await;
    let pair = Pair::start(Protocol::Http, application).await;
    let mut client = http1(pair.outbound).await;
    let slow = tokio::spawn(async move { client.send_request(get("/")).await });
    until("the request is there", async || arrival.borrow().then_some(())).await;
    let finish = async {
        until("nothing new is taken", async || TcpStream::connect(pair.inbound).await.err()).await;
        release.send_replace(true);
    };
    let (drained, ()) = tokio::join!(pair.backend.engine.drain(Duration::from_secs(5)), finish);
    assert!(drained, "the drain waited for what had finished");
    assert_eq!(whole(slow.await.unwrap().unwrap()).await.text(), "done");
}

#[tokio::test]
async fn a_drained_client_is_told_before_its_connection_is_closed() {
    let (application, _) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    let mut client = http1(pair.outbound).await;
    let first = client.send_request(get("/headers")).await.unwrap();
    assert!(first.headers().get("connection").is_none());
    whole(first).await;
    // Whenever it begins: every request is answered, and one answer says that it is the last.
    let until_told = async {
        loop {
            client.ready().await.unwrap();
            let answer = client.send_request(get("/headers")).await.unwrap();
            let told = answer.headers().get("connection").cloned();
            assert_eq!(whole(answer).await.status, 200);
            if let Some(told) = told {
                break told;
            }
        }
    };
    let drain = pair.web.engine.drain(Duration::from_secs(20));
    let (drained, told) = tokio::join!(drain, soon("an answer that is the last", until_told));
    assert_eq!(told, "close");
    assert!(drained, "its last answer ended the connection");
}

#[tokio::test]
async fn an_endpoint_that_drains_under_load_fails_no_request() {
    let (application, _) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    let other = Sidecar::start(&pair.ca, "east", "backend");
    let inbound = address();
    other.feed(types::INBOUND, "main", &other.inbound(Protocol::Http, inbound, application));
    other.settled().await;
    let set = EndpointSet { endpoints: vec![endpoint(pair.inbound, "east"), endpoint(inbound, "east")] };
    pair.web.feed(types::ENDPOINTS, "backend", &set);
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let served = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let load = (0..8).map(|_| {
        let (stopped, outbound, served) = (stopped.clone(), pair.outbound, served.clone());
        tokio::spawn(async move {
            let mut answered = 0;
            let mut client = http1(outbound).await;
            while !*stopped.borrow() {
                client.ready().await.unwrap();
                let answer = whole(client.send_request(get("/headers")).await.unwrap()).await;
                assert_eq!(answer.status, 200, "after {answered}: {}", answer.text());
                answered += 1;
                served.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
            answered
        })
    });
    let load: Vec<_> = load.collect();
    until("both are in use", async || (pair.backend.handshakes() * other.handshakes() > 0).then_some(()))
        .await;
    assert!(other.engine.drain(Duration::from_secs(5)).await);
    let by_then = served.load(std::sync::atomic::Ordering::Relaxed);
    until("the load to go on", async || {
        (served.load(std::sync::atomic::Ordering::Relaxed) > by_then + 200).then_some(())
    })
    .await;
    stop.send(true).unwrap();
    for task in load {
        assert!(soon("the load", task).await.unwrap() > 0);
    }
}

#[tokio::test]
async fn a_new_certificate_fails_no_request() {
    let (application, seen) = http_app(false).await;
    let pair = Pair::start(Protocol::Http, application).await;
    for round in 0..5 {
        let sidecar = if round % 2 == 0 { &pair.web } else { &pair.backend };
        let identity = pair.ca.identity("east", &sidecar.service);
        sidecar.engine.shared().tls.set_identity(MESH, identity);
        sidecar.engine.republish();
        for _ in 0..5 {
            assert_eq!(call(pair.outbound, "/headers").await.status, 200);
        }
    }
    assert_eq!(seen.requests(), 25);
    assert!(pair.backend.handshakes() >= 3, "sessions were renewed");
}

#[tokio::test]
async fn two_workers_share_a_port() {
    let (application, seen) = http_app(false).await;
    let ca = Ca::new(MESH, &["east"]);
    let mut pair = Pair::start(Protocol::Http, application).await;
    pair.ca = ca;
    let many = meridian_proxy::engine::Engine::start(2, Default::default()).unwrap();
    let inbound = Inbound {
        tls: InboundTls::Off,
        listen: address(),
        permission: allow(&[]),
        ..pair.backend.inbound(Protocol::Http, pair.inbound, application)
    };
    let proxy = pair.web.engine.all().into_iter().find(|resource| &*resource.type_ == types::PROXY).unwrap();
    many.apply(&[proxy, crate::world::resource(types::INBOUND, "main", &inbound)], &[]);
    until("both listen", async || (many.shared().listening.generation() == 1).then_some(())).await;
    for _ in 0..20 {
        assert_eq!(call(inbound.listen, "/headers").await.status, 200);
    }
    assert_eq!(seen.requests(), 20);
}
