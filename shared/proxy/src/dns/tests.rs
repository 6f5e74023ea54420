//! The resolver over its sockets.

use super::message::{A, AAAA};
use super::{Reply, of_type, parse_query, run, within as is_within};
use crate::{
    denial::Reason,
    resolve::Resolver,
    rig::{Rig, local, until, within},
};
use meridian_proxy_config::{self as config, DnsSettings, HostMatch, Outbound, Proxy, Target, Via, types};
use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    time::timeout,
};

const REAL: &str = "198.51.100.53";

/// A server of the host's, which counts what it is asked.
async fn upstream() -> (SocketAddr, Arc<AtomicUsize>) {
    // A port that is free in one protocol may be taken in the other.
    let (udp, address, tcp) = loop {
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = udp.local_addr().unwrap();
        if let Ok(tcp) = TcpListener::bind(address).await {
            break (udp, address, tcp);
        }
    };
    let asked = Arc::new(AtomicUsize::new(0));
    let answer = |query: &[u8], udp| {
        let question = parse_query(query).unwrap();
        question.reply(&Reply::Addresses(vec![REAL.parse().unwrap()]), udp)
    };
    let count = asked.clone();
    tokio::task::spawn_local(async move {
        let mut buffer = [0; 512];
        while let Ok((length, client)) = udp.recv_from(&mut buffer).await {
            count.fetch_add(1, Ordering::Relaxed);
            // A forged answer first: another ID.
            let mut forged = answer(&buffer[..length], true);
            forged[0] ^= 1;
            drop(udp.send_to(&forged, client).await);
            drop(udp.send_to(&answer(&buffer[..length], true), client).await);
        }
    });
    let count = asked.clone();
    tokio::task::spawn_local(async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            count.fetch_add(1, Ordering::Relaxed);
            let mut query = vec![0; usize::from(stream.read_u16().await.unwrap())];
            stream.read_exact(&mut query).await.unwrap();
            let answer = answer(&query, false);
            stream.write_u16(answer.len() as u16).await.unwrap();
            stream.write_all(&answer).await.unwrap();
        }
    });
    (address, asked)
}

fn proxy(port: u16, forward_all: bool) -> Proxy {
    Proxy {
        dns: DnsSettings {
            listen_port: Some(port),
            forward_zones: vec!["cluster.local".into()],
            forward_all,
            ipv6: true,
        },
        ..crate::rig::proxy()
    }
}

fn question(name: &str, kind: u16) -> Vec<u8> {
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1];
    for label in name.trim_end_matches('.').split('.') {
        query.push(label.len() as u8);
        query.extend(label.as_bytes());
    }
    query.push(0);
    query.extend(kind.to_be_bytes());
    // Class IN; an OPT record of 1,232 bytes.
    query.extend([0, 1, 0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
    query
}

/// A question that is not answered is asked again.
const AGAIN: Duration = Duration::from_millis(500);

/// The code and the last answer's address; asked again until the server listens.
async fn ask(port: u16, name: &str, kind: u16, udp: bool) -> (u8, Option<IpAddr>) {
    let query = question(name, kind);
    let answer = within(async {
        if udp {
            let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            socket.connect(("127.0.0.1", port)).await.unwrap();
            let mut buffer = vec![0; 1500];
            loop {
                let sent = socket.send(&query).await;
                // As clients do: before the server had it, the port may have been another test's, which says nothing.
                let received = timeout(AGAIN, socket.recv(&mut buffer)).await;
                match received {
                    Ok(Ok(length)) if sent.is_ok() => return buffer[..length].to_vec(),
                    _ => tokio::task::yield_now().await,
                }
            }
        }
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.write_u16(query.len() as u16).await.unwrap();
        stream.write_all(&query).await.unwrap();
        let mut answer = vec![0; usize::from(stream.read_u16().await.unwrap())];
        stream.read_exact(&mut answer).await.unwrap();
        answer
    });
    let message = hickory_proto::op::Message::from_vec(&answer.await).unwrap();
    assert_eq!(message.metadata.id, 0x1234);
    let code = message.metadata.response_code.low();
    (code, message.answers.first().and_then(|record| record.data.ip_addr()))
}

fn ip(text: &str) -> Option<IpAddr> {
    Some(text.parse().unwrap())
}

#[tokio::test]
async fn names_over_both_transports() {
    local(async {
        let (server, asked) = upstream().await;
        let mut rig = Rig::new(Resolver::from_servers(vec![server]));
        let free = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        rig.put(types::PROXY, "self", &proxy(free, false));
        let outbound = Outbound {
            bind: None,
            vips: vec!["241.0.0.7".parse().unwrap()],
            port: 80,
            hostnames: vec!["backend.mesh".into()],
            target: Target::Destination("backend".into()),
        };
        rig.put(types::OUTBOUND, "backend", &outbound);
        let listed = config::External {
            entry: "api".into(),
            kind: config::EntryKind::MeshPassthrough,
            protocol: config::Protocol::Tcp,
            hosts: vec![HostMatch::Exact("api.example".into())],
            ports: vec![],
            originates_tls: false,
            via: Via::Refused("no-egress".into()),
        };
        rig.put(types::EXTERNAL, "api", &listed);
        rig.publish();
        let serving = tokio::task::spawn_local(run(rig.shared().clone()));
        for udp in [true, false] {
            assert_eq!(ask(free, "Backend.MESH", A, udp).await, (0, ip("241.0.0.7")));
            assert_eq!(ask(free, "backend.mesh", AAAA, udp).await, (0, ip("::ffff:241.0.0.7")));
            assert_eq!(ask(free, "backend.mesh", 16, udp).await, (0, None));
            assert_eq!(ask(free, "evil.example", A, udp).await, (3, None));
            // Listed, with no virtual address: HTTPS records would bring keys for hidden names.
            assert_eq!(ask(free, "api.example", 65, udp).await, (0, None));
            assert_eq!(ask(free, "localhost", A, udp).await, (0, ip("127.0.0.1")));
        }
        assert_eq!(asked.load(Ordering::Relaxed), 0, "nothing of it left");
        assert!(rig.refused("web", "evil.example", &Reason::NOT_LISTED), "{:?}", rig.denials());
        for udp in [true, false] {
            assert_eq!(ask(free, "api.example", A, udp).await, (0, ip(REAL)));
            assert_eq!(ask(free, "db.cluster.local", A, udp).await, (0, ip(REAL)));
        }
        assert_eq!(asked.load(Ordering::Relaxed), 4);
        // Passthrough on: every other name is asked of the host's servers.
        rig.put(types::PROXY, "self", &proxy(free, true));
        rig.publish();
        assert_eq!(ask(free, "evil.example", A, true).await, (0, ip(REAL)));
        // Another port: the old one is given up.
        let other = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        rig.put(types::PROXY, "self", &proxy(other, true));
        rig.publish();
        assert_eq!(ask(other, "backend.mesh", A, true).await, (0, ip("241.0.0.7")));
        let freed = || std::net::UdpSocket::bind(("127.0.0.1", free)).is_ok();
        until(freed, || format!("port {free} is still taken")).await;
        serving.abort();
    })
    .await;
}

#[tokio::test]
async fn names_below_a_wildcard_have_an_address_and_are_asked_of_nobody() {
    local(async {
        let (server, asked) = upstream().await;
        let mut rig = Rig::new(Resolver::from_servers(vec![server]));
        let port = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        rig.put(types::PROXY, "self", &proxy(port, false));
        let listed = config::External {
            entry: "below".into(),
            kind: config::EntryKind::MeshPassthrough,
            protocol: config::Protocol::Tls,
            hosts: vec![HostMatch::Wildcard("example.com".into())],
            ports: vec![443],
            originates_tls: false,
            via: Via::Refused("no-egress".into()),
        };
        rig.put(types::EXTERNAL, "below", &listed);
        rig.publish();
        let serving = tokio::task::spawn_local(run(rig.shared().clone()));
        let (code, lent) = ask(port, "API.example.com.", A, true).await;
        let Some(IpAddr::V4(lent)) = lent else { panic!("{code}: {lent:?}") };
        assert_eq!((code, lent.octets()[0]), (0, 244));
        for udp in [true, false] {
            assert_eq!(ask(port, "api.example.com", A, udp).await, (0, Some(lent.into())));
            let mapped = IpAddr::from(lent.to_ipv6_mapped());
            assert_eq!(ask(port, "api.example.com", AAAA, udp).await, (0, Some(mapped)));
            // No keys for hidden names, and no text.
            for kind in [65, 16] {
                assert_eq!(ask(port, "api.example.com", kind, udp).await, (0, None));
            }
            for name in [
                "example.com",
                "evilexample.com",
                "example.com.evil",
                "api.example.com.evil",
                "com",
                "b\u{fc}cher.example.com",
                "-.example.com",
            ] {
                assert_eq!(ask(port, name, A, udp).await, (3, None), "{name}");
            }
        }
        let (_, deep) = ask(port, "xn--bcher-kva.a.example.com", A, true).await;
        assert!(deep.is_some_and(|deep| deep != lent), "{deep:?}");
        assert_eq!(asked.load(Ordering::Relaxed), 0, "nothing of it left");
        rig.remove(types::EXTERNAL, "below");
        rig.publish();
        assert_eq!(ask(port, "api.example.com", A, true).await, (3, None));
        serving.abort();
    })
    .await;
}

#[test]
fn zones_end_at_labels() {
    assert!(is_within("api.cluster.local", "cluster.local"));
    assert!(is_within("cluster.local", ".Cluster.Local."));
    assert!(!is_within("evilcluster.local", "cluster.local"));
    assert!(!is_within("cluster.local.evil", "cluster.local"));
    assert!(!is_within("a.example", ""));
}

#[test]
fn types() {
    let vip: IpAddr = "241.0.0.1".parse().unwrap();
    let mapped: IpAddr = "::ffff:241.0.0.1".parse().unwrap();
    let own: IpAddr = "fd00::1".parse().unwrap();
    assert_eq!(of_type(&[vip], A, true), [vip]);
    assert_eq!(of_type(&[vip], AAAA, true), [mapped]);
    assert_eq!(of_type(&[vip], AAAA, false), Vec::<IpAddr>::new());
    assert_eq!(of_type(&[vip, own], AAAA, true), [own]);
    assert_eq!(of_type(&[vip], 16, true), Vec::<IpAddr>::new());
}
