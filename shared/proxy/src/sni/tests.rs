//! An ingress over loopback: sessions passed on unopened.

use super::serve;
use crate::{
    denial::Reason,
    hello::samples::Sample,
    listener::Accepted,
    resolve::Resolver,
    rig::{Rig, local, until, within},
};
use meridian_proxy_config::{Endpoint, EndpointSet, Host, Proxy, Role, SniMatch, SniRoute, types};
use std::net::SocketAddr;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

const NAME: &str = "sni.msvc.default.west.backend.http";

async fn ingress() -> (Rig, SocketAddr) {
    let mut rig = Rig::new(Resolver::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let proxy = Proxy {
        role: Role::Ingress,
        mesh: String::new(),
        name: "ingress".into(),
        zone: "west".into(),
        service: String::new(),
        listen: Some(address),
        ..crate::rig::proxy()
    };
    rig.put(types::PROXY, "self", &proxy);
    rig.publish();
    let worker = rig.worker.clone();
    tokio::task::spawn_local(async move {
        while let Ok((stream, peer)) = listener.accept().await {
            let accepted = Accepted { stream, peer, original: address };
            tokio::task::spawn_local(serve(worker.clone(), accepted));
        }
    });
    (rig, address)
}

/// Says which it is, then echoes.
async fn backend(mark: u8) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::task::spawn_local(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::task::spawn_local(async move {
                let (mut reader, mut writer) = stream.split();
                drop(writer.write_all(&[mark]).await);
                drop(tokio::io::copy(&mut reader, &mut writer).await);
            });
        }
    });
    address
}

fn route(rig: &mut Rig, backends: &[SocketAddr]) {
    let endpoints = backends
        .iter()
        .map(|address| Endpoint {
            host: Host::Ip(address.ip()),
            port: address.port(),
            zone: "west".into(),
            sni: None,
            replicas: 1,
            name: String::new(),
            tags: Default::default(),
        })
        .collect();
    rig.put(types::ENDPOINTS, "backend", &EndpointSet { endpoints });
    let route = SniRoute { matches: SniMatch::Exact(NAME.into()), endpoints: vec!["backend".into()] };
    rig.put(types::SNI_ROUTE, NAME, &route);
    rig.publish();
}

/// A session by this name; gives the backend's mark once its hello has come back unchanged.
async fn session(ingress: SocketAddr, hello: &[u8]) -> (TcpStream, u8) {
    let mut client = TcpStream::connect(ingress).await.unwrap();
    client.write_all(hello).await.unwrap();
    let mark = within(client.read_u8()).await.unwrap();
    let mut echoed = vec![0; hello.len()];
    within(client.read_exact(&mut echoed)).await.unwrap();
    assert_eq!(echoed, hello);
    (client, mark)
}

#[tokio::test]
async fn sessions_are_spread_by_least_connections_and_end_with_their_route() {
    local(async {
        let (mut rig, address) = ingress().await;
        let (a, b) = (backend(b'a').await, backend(b'b').await);
        route(&mut rig, &[a, b]);
        let hello = Sample::named(NAME).bytes();
        let mut sessions = Vec::new();
        for _ in 0..6 {
            sessions.push(session(address, &hello).await);
        }
        assert_eq!(sessions.iter().filter(|(_, mark)| *mark == b'a').count(), 3);
        // All of one backend end: the next go where there are fewer.
        sessions.retain(|(_, mark)| *mark == b'b');
        until(|| rig.worker.connections().len() == 3, || format!("{:?}", rig.worker.connections().list()))
            .await;
        for _ in 0..3 {
            let (client, mark) = session(address, &hello).await;
            assert_eq!(mark, b'a');
            sessions.push((client, mark));
        }
        // An instance leaves: its sessions are reset, the others live on.
        route(&mut rig, &[a]);
        for (client, mark) in &mut sessions {
            if *mark == b'b' {
                assert!(within(client.read_u8()).await.is_err());
            } else {
                client.write_all(b"x").await.unwrap();
                assert_eq!(within(client.read_u8()).await.unwrap(), b'x');
            }
        }
        rig.remove(types::SNI_ROUTE, NAME);
        rig.publish();
        for (client, _) in sessions.iter_mut().filter(|(_, mark)| *mark == b'a') {
            assert_eq!(
                within(client.read_u8()).await.unwrap_err().kind(),
                std::io::ErrorKind::ConnectionReset
            );
        }
    })
    .await;
}

#[tokio::test]
async fn a_second_hello_must_name_the_same() {
    local(async {
        let (mut rig, address) = ingress().await;
        let a = backend(b'a').await;
        route(&mut rig, &[a]);
        let hello = Sample::named(NAME).bytes();
        let (mut client, _) = session(address, &hello).await;
        client.write_all(&hello).await.unwrap();
        let mut echoed = vec![0; hello.len()];
        within(client.read_exact(&mut echoed)).await.unwrap();
        client.write_all(&Sample::named("sni.msvc.default.west.other.http").bytes()).await.unwrap();
        assert!(within(client.read_u8()).await.is_err());
        assert!(rig.refused("127.0.0.1", NAME, &Reason::NAME_MISMATCH), "{:?}", rig.denials());
        for (sent, reason) in [
            (Sample::named("sni.msvc.default.west.unknown.http").bytes(), Reason::NO_ROUTE),
            (Sample::default().bytes(), Reason::NO_SERVER_NAME),
            (Sample::named("not a name").bytes(), Reason::INVALID_CLIENT_HELLO),
        ] {
            let mut client = TcpStream::connect(address).await.unwrap();
            client.write_all(&sent).await.unwrap();
            let mut got = Vec::new();
            drop(within(client.read_to_end(&mut got)).await);
            assert_eq!(got[..6], [21, 3, 3, 0, 2, 2], "{reason}: an alert");
            assert!(
                rig.denials().iter().any(|row| row.2 == reason.as_str()),
                "{reason}: {:?}",
                rig.denials()
            );
        }
    })
    .await;
}
