//! The sidecar's side over loopback: what captured connections come to, and what is dialled from here.

use super::{serve_captured, serve_entry};
use crate::{
    denial::Reason,
    hello::samples::Sample,
    host::HostName,
    listener::Accepted,
    refuse::DENIED,
    resolve::Resolver,
    rig::{Rig, local, within},
    snapshot::Target,
};
use meridian_proxy_config::{
    self as config, AddressPolicy, EntryKind, EntryPolicies, ExternalEndpoint, Host, HostMatch, Outbound,
    Permission, Protocol, Proxy, Unlisted, Via, types,
};
use std::net::{IpAddr, SocketAddr};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// Where the application believes to be going: an address that nobody lists.
const OLD: &str = "198.51.100.7";

fn sidecar(unlisted: Unlisted) -> Rig {
    let mut rig = Rig::new(Resolver::default());
    let proxy = Proxy { unlisted, ..crate::rig::proxy() };
    rig.put(types::PROXY, "self", &proxy);
    rig.publish();
    rig
}

/// `api.example` on `ports`, led to `server` by the sidecar itself.
fn external(protocol: Protocol, ports: &[u16], server: SocketAddr) -> config::External {
    let hosts = vec![HostMatch::Exact("api.example".into())];
    let entry = config::Entry {
        key: "api".into(),
        mesh: "default".into(),
        kind: EntryKind::ExternalService,
        protocol,
        hosts: hosts.clone(),
        ports: ports.to_vec(),
        endpoints: vec![ExternalEndpoint { host: Host::Ip(server.ip()), port: server.port(), priority: 0 }],
        tls: None,
        addresses: AddressPolicy::default(),
        permission: Permission::default(),
        policies: EntryPolicies::default(),
    };
    config::External {
        entry: "api".into(),
        kind: EntryKind::ExternalService,
        protocol,
        hosts,
        ports: ports.to_vec(),
        originates_tls: false,
        via: Via::Sidecar(Box::new(entry)),
    }
}

fn list(rig: &mut Rig, external: &config::External) {
    rig.put(types::EXTERNAL, "api", external);
    rig.publish();
}

/// A connection that was going to `original`.
async fn captured(rig: &Rig, original: (&str, u16)) -> TcpStream {
    let (client, stream, peer) = pair().await;
    let original = SocketAddr::new(original.0.parse().unwrap(), original.1);
    tokio::task::spawn_local(serve_captured(rig.worker.clone(), Accepted { stream, peer, original }));
    client
}

async fn pair() -> (TcpStream, TcpStream, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (stream, peer) = listener.accept().await.unwrap();
    (client, stream, peer)
}

/// Greets first, then echoes.
async fn server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::task::spawn_local(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::task::spawn_local(async move {
                let (mut reader, mut writer) = stream.split();
                drop(writer.write_all(b"220 ").await);
                drop(tokio::io::copy(&mut reader, &mut writer).await);
            });
        }
    });
    address
}

/// What comes back, and whether it ended with a reset.
async fn rest(client: &mut TcpStream) -> (Vec<u8>, bool) {
    let mut got = Vec::new();
    let ended = within(client.read_to_end(&mut got)).await;
    (got, ended.is_err())
}

#[tokio::test]
async fn what_nothing_lists_is_refused_in_its_own_language() {
    local(async {
        let rig = sidecar(Unlisted::Refuse);
        let mut http = captured(&rig, (OLD, 80)).await;
        http.write_all(b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n").await.unwrap();
        let answer = String::from_utf8(rest(&mut http).await.0).unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 403 ") && answer.contains(&format!("{DENIED}: not-listed")),
            "{answer}"
        );
        assert!(rig.refused("web", "evil.example", &Reason::NOT_LISTED));

        let io = hyper_util::rt::TokioIo::new(captured(&rig, (OLD, 80)).await);
        let (mut sender, connection) = hyper::client::conn::http2::Builder::new(crate::refuse::LocalExecutor)
            .handshake(io)
            .await
            .unwrap();
        let request =
            http::Request::get("http://evil.example/").body(http_body_util::Empty::<bytes::Bytes>::new());
        // It ends behind its answer.
        drop(tokio::task::spawn_local(connection));
        let answer = within(sender.send_request(request.unwrap())).await.unwrap();
        assert_eq!(
            (answer.status().as_u16(), answer.headers()[&DENIED].to_str().unwrap()),
            (403, "not-listed")
        );

        let mut tls = captured(&rig, (OLD, 443)).await;
        tls.write_all(&Sample::named("evil.example").bytes()).await.unwrap();
        assert_eq!(rest(&mut tls).await.0, [21, 3, 3, 0, 2, 2, 49]);
        assert!(rig.refused("web", "evil.example", &Reason::NOT_LISTED));

        for said in [&b"SSH-2.0-x\r\n"[..], b""] {
            let mut tcp = captured(&rig, (OLD, 22)).await;
            tcp.write_all(said).await.unwrap();
            assert_eq!(rest(&mut tcp).await, (vec![], true), "{said:?}");
        }
        assert!(rig.refused("web", OLD, &Reason::NOT_LISTED));
        let mut vip = captured(&rig, ("241.0.0.9", 80)).await;
        assert!(rest(&mut vip).await.1);
        assert!(rig.refused("web", "241.0.0.9", &Reason::UNKNOWN_DESTINATION));
    })
    .await;
}

#[tokio::test]
async fn the_name_decides_whatever_the_address() {
    local(async {
        let server = server().await;
        let mut rig = sidecar(Unlisted::Refuse);
        list(&mut rig, &external(Protocol::Tcp, &[443], server));
        let hello = Sample::named("API.example").bytes();
        let mut client = captured(&rig, (OLD, 443)).await;
        client.write_all(&hello).await.unwrap();
        let mut got = vec![0; 4 + hello.len()];
        within(client.read_exact(&mut got)).await.unwrap();
        assert_eq!(got, [b"220 ", &hello[..]].concat());
        // On another port, and on the way of another name: refused.
        let mut client = captured(&rig, (OLD, 8443)).await;
        client.write_all(&hello).await.unwrap();
        assert_eq!(rest(&mut client).await.0.len(), 7);
        assert!(rig.refused("web", "api.example", &Reason::PORT_NOT_LISTED), "{:?}", rig.denials());
    })
    .await;
}

#[tokio::test]
async fn a_listed_address_is_not_listened_to() {
    local(async {
        let server = server().await;
        let mut rig = sidecar(Unlisted::Refuse);
        let mut listed = external(Protocol::Tcp, &[25], server);
        let ip: IpAddr = OLD.parse().unwrap();
        listed.hosts = vec![HostMatch::Ip(ip)];
        if let Via::Sidecar(entry) = &mut listed.via {
            entry.hosts = vec![HostMatch::Ip(ip)];
        }
        list(&mut rig, &listed);
        // The server speaks first, and at once.
        let mut client = captured(&rig, (OLD, 25)).await;
        let mut got = [0; 4];
        within(client.read_exact(&mut got)).await.unwrap();
        assert_eq!(&got, b"220 ");
    })
    .await;
}

#[tokio::test]
async fn the_address_of_a_name_below_a_wildcard_says_the_name_of_a_silent_client() {
    local(async {
        let server = server().await;
        let mut rig = sidecar(Unlisted::Refuse);
        let mut listed = external(Protocol::Tls, &[443], server);
        listed.hosts = vec![HostMatch::Wildcard("example.com".into())];
        if let Via::Sidecar(entry) = &mut listed.via {
            entry.hosts.clone_from(&listed.hosts);
        }
        list(&mut rig, &listed);
        let lent =
            |name: &str| rig.shared().lent.lend(&HostName::parse(name.as_bytes()).unwrap()).to_string();
        let address = lent("a.example.com");
        let mut client = captured(&rig, (&address, 443)).await;
        let mut got = [0; 4];
        within(client.read_exact(&mut got)).await.unwrap();
        assert_eq!(&got, b"220 ");
        // What is said decides, where something is said.
        let mut client = captured(&rig, (&address, 443)).await;
        client.write_all(&Sample::named("evil.example").bytes()).await.unwrap();
        assert_eq!(rest(&mut client).await.0, [21, 3, 3, 0, 2, 2, 49]);
        assert!(rig.refused("web", "evil.example", &Reason::NOT_LISTED), "{:?}", rig.denials());
        // On another port, for a name that is listed no longer, and for an address that was lent to nobody.
        let gone = lent("a.example.net");
        for (address, port, destination, reason) in [
            (address.as_str(), 8443, "a.example.com", Reason::PORT_NOT_LISTED),
            (&gone, 443, "a.example.net", Reason::NOT_LISTED),
            ("244.255.255.254", 443, "244.255.255.254", Reason::UNKNOWN_DESTINATION),
        ] {
            assert_eq!(rest(&mut captured(&rig, (address, port)).await).await, (vec![], true), "{address}");
            assert!(rig.refused("web", destination, &reason), "{address}: {:?}", rig.denials());
        }
    })
    .await;
}

#[tokio::test]
async fn a_virtual_address_leads_to_its_entry_until_that_is_taken_away() {
    local(async {
        let server = server().await;
        let mut rig = sidecar(Unlisted::Refuse);
        let outbound = Outbound {
            bind: None,
            vips: vec!["240.0.0.9".parse().unwrap()],
            port: 443,
            hostnames: vec!["api.example".into()],
            target: config::Target::External("api".into()),
        };
        rig.put(types::OUTBOUND, "api", &outbound);
        list(&mut rig, &external(Protocol::Tcp, &[443], server));
        let snapshot = rig.worker.snapshot();
        let outbound = snapshot.vip("240.0.0.9:443".parse().unwrap()).unwrap().clone();
        let Target::External(listed) = &outbound.target else { panic!("an entry") };
        let (mut client, stream, peer) = pair().await;
        let accepted = Accepted { stream, peer, original: "240.0.0.9:443".parse().unwrap() };
        tokio::task::spawn_local(serve_entry(rig.worker.clone(), listed.clone(), outbound.clone(), accepted));
        client.write_all(b"x").await.unwrap();
        let mut got = [0; 5];
        within(client.read_exact(&mut got)).await.unwrap();
        assert_eq!(&got, b"220 x");
        rig.remove(types::EXTERNAL, "api");
        rig.publish();
        assert!(rest(&mut client).await.1, "a reset");
        assert!(rig.worker.connections().is_empty() || rig.refused("web", "api.example", &Reason::REMOVED));
    })
    .await;
}

#[tokio::test]
async fn refused_by_the_control_plane_and_without_an_egress() {
    local(async {
        let server = server().await;
        let mut rig = sidecar(Unlisted::Refuse);
        let mut listed = external(Protocol::Http, &[80], server);
        let through = Via::Egress {
            mesh: "default".into(),
            zone: "east".into(),
            sni: "sni.extsvc.default.east.api.http".into(),
            endpoints: "egresses".into(),
        };
        for (via, reason) in [(Via::Refused("no-egress".into()), "no-egress"), (through, "no-egress")] {
            listed.via = via;
            list(&mut rig, &listed);
            let mut client = captured(&rig, (OLD, 80)).await;
            client.write_all(b"GET / HTTP/1.1\r\nHost: api.example\r\n\r\n").await.unwrap();
            let answer = String::from_utf8(rest(&mut client).await.0).unwrap();
            assert!(
                answer.starts_with("HTTP/1.1 403 ") && answer.contains(&format!("{DENIED}: {reason}")),
                "{answer}"
            );
        }
        listed.originates_tls = true;
        list(&mut rig, &listed);
        let mut client = captured(&rig, (OLD, 80)).await;
        client.write_all(&Sample::named("api.example").bytes()).await.unwrap();
        assert_eq!(rest(&mut client).await.0, [21, 3, 3, 0, 2, 2, 49]);
        assert!(rig.refused("web", "api.example", &Reason::ENTRY_ORIGINATES_TLS), "{:?}", rig.denials());
    })
    .await;
}

#[tokio::test]
async fn passthrough_reaches_public_addresses_only() {
    local(async {
        let server = server().await;
        let rig = sidecar(Unlisted::Direct);
        let inside = server.ip().to_string();
        let mut client = captured(&rig, (&inside, server.port())).await;
        assert_eq!(rest(&mut client).await, (vec![], true));
        assert!(rig.refused("web", &inside, &Reason::ADDRESS_REFUSED), "{:?}", rig.denials());
    })
    .await;
}

#[tokio::test]
async fn calls_that_leave_the_mesh_are_logged_as_those_to_the_mesh_are() {
    local(async {
        let server = server().await;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let format = "%KUMA_SOURCE_SERVICE%->%KUMA_DESTINATION_SERVICE% %UPSTREAM_HOST% %BYTES_RECEIVED% %BYTES_SENT% %RESPONSE_FLAGS%";
        let line = config::LogLine { form: Some(config::LogForm::Plain(format.into())), omit_empty: false };
        let backend = config::LogBackend::File { path: path.to_str().unwrap().into(), line };
        let log = config::AccessLog { caller: config::CallerMatch::default(), backend };
        let policies =
            config::DestinationPolicies { access_logs: vec![log], ..config::DestinationPolicies::default() };
        let mut rig = sidecar(Unlisted::Refuse);
        rig.put(types::POLICIES, config::policies_for_others(Protocol::Tcp), &policies);
        list(&mut rig, &external(Protocol::Tcp, &[443], server));

        let hello = Sample::named("api.example").bytes();
        let mut client = captured(&rig, (OLD, 443)).await;
        client.write_all(&hello).await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(rest(&mut client).await.0.len(), hello.len() + 4);
        let mut client = captured(&rig, (OLD, 22)).await;
        client.write_all(b"SSH-2.0-x\r\n").await.unwrap();
        assert!(rest(&mut client).await.1);
        let read = || std::fs::read_to_string(&path).unwrap_or_default();
        let both = async {
            while read().lines().count() < 2 {
                rig.shared().sinks.flush(crate::rig::DEADLINE).await;
                tokio::task::yield_now().await;
            }
        };
        within(both).await;
        let sent = hello.len();
        let expected = format!("web->api api.example:443 {sent} {} -\nweb->external {OLD}:22 11 0 UAEX\n", sent + 4);
        assert_eq!(read(), expected);
    })
    .await;
}
