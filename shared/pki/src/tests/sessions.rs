use super::world::{World, identity, leaf};
use crate::{
    Bundles, Identities, Identity, IdentityHandle, PrivateKey, TrustError, Usage,
    mesh_tls::{self, MeshAcceptor, MeshClientVerifier, MeshServerVerifier},
    provider,
};
use meridian_proxy_config::{Bundle, EGRESS_SERVICE, SessionCipher, SessionTerms, TlsVersion, alpn};
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, ProtocolVersion, ServerConfig, ServerConnection,
};
use rustls_pki_types::{CertificateDer, ServerName};
use std::sync::Arc;
use time::Duration;

const SNI: &str = "sni.msvc.default.west.backend.http";

/// Runs a handshake in memory; the error of whichever side refused first.
pub(super) fn handshake(
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    name: &str,
) -> Result<(ClientConnection, ServerConnection), rustls::Error> {
    let mut client = ClientConnection::new(client, ServerName::try_from(name.to_owned()).unwrap())?;
    let mut server = ServerConnection::new(server)?;
    while client.is_handshaking() || server.is_handshaking() || client.wants_write() || server.wants_write() {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
            server.process_new_packets()?;
        }
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets()?;
        }
    }
    Ok((client, server))
}

fn client_for(bundles: &Bundles, identity: IdentityHandle, ids: &[&str], zone: &str) -> Arc<ClientConfig> {
    let ids = ids.iter().map(|id| (*id).to_owned()).collect();
    let verifier = Arc::new(MeshServerVerifier::new(bundles, "default", ids, zone));
    mesh_tls::client_config(identity, verifier, &[alpn::HTTP2], &SessionTerms::default()).unwrap()
}

fn server_for(bundles: &Bundles, identity: IdentityHandle) -> Arc<ServerConfig> {
    let verifier = Arc::new(MeshClientVerifier::new(bundles, "default"));
    mesh_tls::server_config(identity, verifier, &[alpn::HTTP2, alpn::HTTP1], &SessionTerms::default())
        .unwrap()
}

#[test]
fn two_workloads_across_zones_know_each_other() {
    let world = World::new();
    let bundles = world.bundles();
    let client =
        client_for(&bundles, identity(&world.east, "web", world.now), &["spiffe://default/backend"], "west");
    let server = server_for(&bundles, identity(&world.west, "backend", world.now));
    for _ in 0..2 {
        let (client, server) = handshake(Arc::clone(&client), Arc::clone(&server), SNI).unwrap();
        assert_eq!(client.protocol_version(), Some(ProtocolVersion::TLSv1_3));
        assert_eq!(server.alpn_protocol(), Some(alpn::HTTP2));
        assert_eq!(
            client.negotiated_cipher_suite().unwrap().suite(),
            rustls::CipherSuite::TLS13_AES_128_GCM_SHA256
        );
        assert_eq!(client.negotiated_key_exchange_group().unwrap().name(), rustls::NamedGroup::X25519);
        assert_eq!(server.server_name(), Some(SNI));
        assert_eq!(
            server.handshake_kind().unwrap(),
            HandshakeKind::Full,
            "never resumed: each looks at the peer anew"
        );
        let caller = mesh_tls::identity_of_accepted("default", server.peer_certificates().unwrap()).unwrap();
        assert_eq!(
            (caller.zone.as_str(), caller.spiffe.as_slice()),
            ("east", &["spiffe://default/web".to_owned()][..])
        );
        let stored = server.peer_certificates().unwrap();
        assert_eq!(bundles.verify("default", stored, Usage::Client, world.now).unwrap().identity, caller);
    }
}

#[test]
fn the_client_checks_who_answers() {
    let world = World::new();
    let bundles = world.bundles();
    let web = identity(&world.east, "web", world.now);
    let backend = server_for(&bundles, identity(&world.west, "backend", world.now));
    for (ids, zone, reason) in [
        (&["spiffe://default/other"][..], "west", "wrong-identity"),
        (&["spiffe://default/backend"], "east", "wrong-zone"),
        (&[], "west", "wrong-identity"),
    ] {
        let client = client_for(&bundles, web.clone(), ids, zone);
        let refused = handshake(client, Arc::clone(&backend), SNI).unwrap_err();
        assert_eq!(TrustError::of(&refused).unwrap().reason(), reason, "{refused}");
    }
}

#[test]
fn only_the_egress_stands_in_for_the_egress() {
    let world = World::new();
    let bundles = world.bundles();
    let web = identity(&world.east, "web", world.now);
    let dial = |answering: IdentityHandle| {
        let verifier = Arc::new(MeshServerVerifier::egress(&bundles, "default", "east"));
        let client =
            mesh_tls::client_config(web.clone(), verifier, &[alpn::HTTP2], &SessionTerms::default()).unwrap();
        handshake(client, server_for(&bundles, answering), "sni.extsvc.default.east.api.https")
    };
    assert!(dial(identity(&world.east, EGRESS_SERVICE, world.now)).is_ok());
    assert!(dial(identity(&world.west, EGRESS_SERVICE, world.now)).is_err(), "another zone's egress");
    assert!(dial(identity(&world.east, "backend", world.now)).is_err(), "a workload");
}

#[test]
fn without_a_valid_certificate_nobody_gets_in() {
    let world = World::new();
    let bundles = world.bundles();
    let long_ago = world.now - Duration::hours(48);
    let (expired, expired_key) = leaf(&world.east, "web", long_ago);
    let stale = IdentityHandle::new();
    stale.set(Identity::new(expired.chain, &expired_key).unwrap());
    let server = server_for(&bundles, identity(&world.west, "backend", world.now));
    for (what, client) in [
        ("none", IdentityHandle::new()),
        ("expired", stale.clone()),
        ("another mesh's", identity(&world.other_east, "web", world.now)),
    ] {
        let client = client_for(&bundles, client, &["spiffe://default/backend"], "west");
        assert!(handshake(client, Arc::clone(&server), SNI).is_err(), "{what}");
    }
    let client =
        client_for(&bundles, identity(&world.east, "web", world.now), &["spiffe://default/web"], "east");
    assert!(handshake(client, server_for(&bundles, stale), SNI).is_err(), "an expired leaf is not served");
}

#[test]
fn a_stolen_certificate_without_its_key_is_worth_nothing() {
    #[derive(Debug)]
    struct Thief(Arc<rustls::sign::CertifiedKey>);
    impl rustls::client::ResolvesClientCert for Thief {
        fn resolve(
            &self,
            _: &[&[u8]],
            _: &[rustls::SignatureScheme],
        ) -> Option<Arc<rustls::sign::CertifiedKey>> {
            Some(Arc::clone(&self.0))
        }
        fn has_certs(&self) -> bool {
            true
        }
    }
    let world = World::new();
    let bundles = world.bundles();
    let (victim, _) = leaf(&world.east, "web", world.now);
    let own = PrivateKey::generate().unwrap();
    let signer = provider().key_provider.load_private_key(own.to_rustls()).unwrap();
    let verifier = Arc::new(MeshServerVerifier::new(
        &bundles,
        "default",
        vec!["spiffe://default/backend".into()],
        "west",
    ));
    let mut client = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(Thief(Arc::new(rustls::sign::CertifiedKey::new(
            victim.chain,
            signer,
        )))));
    client.alpn_protocols = vec![alpn::HTTP2.to_vec()];
    let server = server_for(&bundles, identity(&world.west, "backend", world.now));
    assert!(handshake(Arc::new(client), server, SNI).is_err());
}

#[test]
fn the_mesh_speaks_its_own_alpn_over_tls_13_only() {
    let world = World::new();
    let bundles = world.bundles();
    let server = server_for(&bundles, identity(&world.west, "backend", world.now));
    let web = identity(&world.east, "web", world.now);
    let dial = |versions: &[&'static rustls::SupportedProtocolVersion], alpn: &[u8]| {
        let verifier = Arc::new(MeshServerVerifier::new(
            &bundles,
            "default",
            vec!["spiffe://default/backend".into()],
            "west",
        ));
        let mut client = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(Arc::new(web.clone()));
        client.alpn_protocols = vec![alpn.to_vec()];
        handshake(Arc::new(client), Arc::clone(&server), SNI)
    };
    assert!(dial(&[&rustls::version::TLS13], alpn::HTTP1).is_ok());
    assert!(dial(&[&rustls::version::TLS12], alpn::HTTP1).is_err());
    assert!(dial(&[&rustls::version::TLS13], b"h2").is_err());
}

#[test]
fn a_revocation_is_seen_by_open_sessions_and_by_the_next_handshake() {
    let world = World::new();
    let bundles = world.bundles();
    let client =
        client_for(&bundles, identity(&world.east, "web", world.now), &["spiffe://default/backend"], "west");
    let server = server_for(&bundles, identity(&world.west, "backend", world.now));
    let (_, open) = handshake(Arc::clone(&client), Arc::clone(&server), SNI).unwrap();
    let stored: Vec<CertificateDer<'static>> = open.peer_certificates().unwrap().to_vec();
    let generation = bundles.generation();

    bundles.set(&Bundle { revoked: vec![world.east.spki_hash().to_string()], ..world.bundle() }).unwrap();
    assert_ne!(bundles.generation(), generation);
    let refused = bundles.verify("default", &stored, Usage::Client, world.now).unwrap_err();
    assert_eq!(refused.reason(), "revoked");
    let refused = handshake(client, server, SNI).unwrap_err();
    assert_eq!(TrustError::of(&refused).unwrap().reason(), "revoked");
}

#[test]
fn a_new_certificate_takes_effect_without_a_new_config() {
    let world = World::new();
    let bundles = world.bundles();
    let backend = identity(&world.west, "backend", world.now);
    let server = server_for(&bundles, backend.clone());
    let client =
        client_for(&bundles, identity(&world.east, "web", world.now), &["spiffe://default/backend"], "west");
    let served =
        |(client, _): (ClientConnection, ServerConnection)| client.peer_certificates().unwrap()[0].clone();
    let first = served(handshake(Arc::clone(&client), Arc::clone(&server), SNI).unwrap());
    let (renewed, key) = leaf(&world.west, "backend", world.now);
    backend.set(Identity::new(renewed.chain.clone(), &key).unwrap());
    let second = served(handshake(client, server, SNI).unwrap());
    assert_ne!(first, second);
    assert_eq!(second, renewed.chain[0]);
}

#[test]
fn at_an_egress_the_server_name_picks_the_bundle_before_the_certificate_is_read() {
    let world = World::new();
    let bundles = world.bundles();
    let identities = Identities::new();
    let give = |mesh: &str, intermediate| {
        let (issued, key) = leaf(intermediate, EGRESS_SERVICE, world.now);
        identities.of(mesh).set(Identity::new(issued.chain, &key).unwrap());
    };
    give("default", &world.east);
    give("other", &world.other_east);
    let acceptor = MeshAcceptor::new(&bundles, &identities, &[alpn::EXTERNAL]);
    let dial = |mesh: &str, caller: IdentityHandle, sni: &str| {
        let verifier = Arc::new(MeshServerVerifier::egress(&bundles, mesh, "east"));
        let client =
            mesh_tls::client_config(caller, verifier, &[alpn::EXTERNAL], &SessionTerms::default()).unwrap();
        let (found, server) = acceptor.config_for(Some(sni)).unwrap();
        assert_eq!(found, mesh);
        handshake(client, server, sni)
    };
    let ours = identity(&world.east, "web", world.now);
    let theirs = identity(&world.other_east, "web", world.now);
    assert!(dial("default", ours.clone(), "sni.extsvc.default.east.api.https").is_ok());
    assert!(dial("other", theirs.clone(), "sni.extsvc.other.east.api.https").is_ok());
    assert!(
        dial("default", theirs, "sni.extsvc.default.east.api.https").is_err(),
        "another mesh's certificate"
    );
    assert!(dial("other", ours, "sni.extsvc.other.east.api.https").is_err(), "another mesh's certificate");
    for name in [None, Some("example.com"), Some("sni.extsvc.unknown.east.api.https")] {
        assert_eq!(acceptor.config_for(name).unwrap_err(), TrustError::NoMesh);
    }
    identities.remove("default");
    assert_eq!(identities.meshes(), ["other"]);
}

#[test]
fn versions_and_ciphers_are_as_the_terms_say() {
    use TlsVersion::{Tls12, Tls13};
    let world = World::new();
    let bundles = world.bundles();
    let (web, backend) =
        (identity(&world.east, "web", world.now), identity(&world.west, "backend", world.now));
    let terms = |min, max, ciphers: &[SessionCipher]| SessionTerms {
        min,
        max,
        ciphers: ciphers.iter().copied().collect(),
    };
    let (aes, chacha) = (SessionCipher::Aes256Gcm, SessionCipher::ChaCha20Poly1305);
    let new = terms(Tls13, Tls13, &[]);
    let session = |client: &SessionTerms, server: &SessionTerms| {
        let ids = vec!["spiffe://default/backend".to_owned()];
        let of_server = Arc::new(MeshServerVerifier::new(&bundles, "default", ids, "west"));
        let client = mesh_tls::client_config(web.clone(), of_server, &[alpn::HTTP2], client).unwrap();
        let of_client = Arc::new(MeshClientVerifier::new(&bundles, "default"));
        let server = mesh_tls::server_config(backend.clone(), of_client, &[alpn::HTTP2], server).unwrap();
        let (client, server) = handshake(client, server, SNI).ok()?;
        let caller = mesh_tls::identity_of_accepted("default", server.peer_certificates().unwrap()).unwrap();
        assert_eq!(caller.spiffe, ["spiffe://default/web"]);
        assert_eq!(server.handshake_kind().unwrap(), HandshakeKind::Full);
        Some((client.protocol_version().unwrap(), client.negotiated_cipher_suite().unwrap().suite()))
    };
    let old = ProtocolVersion::TLSv1_2;
    for (client, server, expected) in [
        (&terms(Tls12, Tls13, &[]), &terms(Tls12, Tls13, &[]), Some(ProtocolVersion::TLSv1_3)),
        (&terms(Tls12, Tls13, &[]), &new, Some(ProtocolVersion::TLSv1_3)),
        (&terms(Tls12, Tls12, &[]), &terms(Tls12, Tls13, &[]), Some(old)),
        (&terms(Tls12, Tls12, &[]), &new, None),
        (&new, &terms(Tls12, Tls12, &[]), None),
        (&terms(Tls12, Tls12, &[aes]), &terms(Tls12, Tls12, &[chacha]), None),
        (&terms(Tls13, Tls12, &[]), &terms(Tls12, Tls12, &[]), None),
    ] {
        assert_eq!(session(client, server).map(|it| it.0), expected, "{client:?} {server:?}");
    }
    for (ciphers, suite) in [
        (&[][..], rustls::CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
        (&[aes], rustls::CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
        (&[chacha], rustls::CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256),
    ] {
        let terms = terms(Tls12, Tls12, ciphers);
        assert_eq!(session(&terms, &terms), Some((old, suite)));
    }
}
