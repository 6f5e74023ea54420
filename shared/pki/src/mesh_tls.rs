//! Sessions between workloads: TLS 1.3 unless a policy says otherwise, both sides proven by the mesh's bundle.
//!
//! The configs hold handles, not values: a new certificate or bundle takes effect with the next handshake, without a
//! new config. What must happen to open sessions is the proxy's business ([`Bundles::generation`]).

use crate::{
    Bundles, Identities, IdentityHandle, PkiError, TrustError, Usage, VerifiedPeer, mesh_provider, provider,
    spiffe_id, x509,
};
use arc_swap::ArcSwap;
use meridian_proxy_config::{CallerIdentity, EGRESS_SERVICE, SessionTerms, TlsVersion};
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme,
    SupportedProtocolVersion,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::WebPkiSupportedAlgorithms,
    server::{
        NoServerSessionStorage,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::{collections::BTreeMap, sync::Arc};

pub use crate::trust::identity_of_accepted;

/// Proves who calls: any workload of the mesh. Whether it may is the permission's business, after the handshake.
#[derive(Debug)]
pub struct MeshClientVerifier {
    bundles: Bundles,
    mesh: String,
    algorithms: WebPkiSupportedAlgorithms,
}

/// Proves who answers: one of the expected identities, in the expected zone.
#[derive(Debug)]
pub struct MeshServerVerifier {
    bundles: Bundles,
    mesh: String,
    identities: Vec<String>,
    zone: String,
    algorithms: WebPkiSupportedAlgorithms,
}

/// Picks the server config of a session by its server name's mesh, before any certificate is read: for an egress,
/// which serves all meshes on one port. Use with `tokio_rustls::LazyConfigAcceptor`.
#[derive(Debug)]
pub struct MeshAcceptor {
    bundles: Bundles,
    identities: Identities,
    alpn: Vec<Vec<u8>>,
    configs: ArcSwap<BTreeMap<String, Arc<ServerConfig>>>,
}

impl MeshClientVerifier {
    pub fn new(bundles: &Bundles, mesh: &str) -> Self {
        Self { bundles: bundles.clone(), mesh: mesh.to_owned(), algorithms: algorithms() }
    }
}

impl MeshServerVerifier {
    /// `identities`: the destination's SPIFFE IDs; an empty list refuses everybody. `zone`: of the endpoint dialled.
    pub fn new(bundles: &Bundles, mesh: &str, identities: Vec<String>, zone: &str) -> Self {
        let (mesh, zone) = (mesh.to_owned(), zone.to_owned());
        Self { bundles: bundles.clone(), mesh, identities, zone, algorithms: algorithms() }
    }

    /// For a dial to an egress of `zone`.
    pub fn egress(bundles: &Bundles, mesh: &str, zone: &str) -> Self {
        Self::new(bundles, mesh, vec![spiffe_id(mesh, EGRESS_SERVICE)], zone)
    }

    /// Also for the stored chain of an open session, after a change of the bundles.
    pub fn verify(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<VerifiedPeer, TrustError> {
        if self.identities.is_empty() {
            return Err(TrustError::NothingExpected);
        }
        let peer = self.bundles.verify(&self.mesh, chain, Usage::Server, x509::datetime(now))?;
        self.expect(&peer.identity)?;
        Ok(peer)
    }

    fn expect(&self, found: &CallerIdentity) -> Result<(), TrustError> {
        if !found.spiffe.iter().any(|id| self.identities.contains(id)) {
            let (found, expected) = (found.spiffe.join(", "), self.identities.join(", "));
            return Err(TrustError::WrongIdentity { found, expected });
        }
        if found.zone != self.zone {
            return Err(TrustError::WrongZone { found: found.zone.clone(), expected: self.zone.clone() });
        }
        Ok(())
    }
}

/// For dialling one destination in one zone. Without a valid certificate of our own the server refuses: there is no
/// fall-back to plaintext.
pub fn client_config(
    identity: IdentityHandle,
    verifier: Arc<MeshServerVerifier>,
    alpn: &[&[u8]],
    terms: &SessionTerms,
) -> Result<Arc<ClientConfig>, PkiError> {
    let mut config = ClientConfig::builder_with_provider(mesh_provider(terms))
        .with_protocol_versions(&versions(terms))
        .map_err(|error| PkiError::Tls(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(identity));
    config.alpn_protocols = owned(alpn);
    config.resumption = Resumption::disabled();
    config.require_ems = true;
    Ok(Arc::new(config))
}

/// For the inbounds of a sidecar, or an egress's side of one mesh.
pub fn server_config(
    identity: IdentityHandle,
    verifier: Arc<MeshClientVerifier>,
    alpn: &[&[u8]],
    terms: &SessionTerms,
) -> Result<Arc<ServerConfig>, PkiError> {
    let mut config = ServerConfig::builder_with_provider(mesh_provider(terms))
        .with_protocol_versions(&versions(terms))
        .map_err(|error| PkiError::Tls(error.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(identity));
    config.alpn_protocols = owned(alpn);
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    // RFC 7627: without it, a session of TLS 1.2 is not bound to its handshake.
    config.require_ems = true;
    Ok(Arc::new(config))
}

fn versions(terms: &SessionTerms) -> Vec<&'static SupportedProtocolVersion> {
    let all = [(TlsVersion::Tls13, &rustls::version::TLS13), (TlsVersion::Tls12, &rustls::version::TLS12)];
    all.into_iter().filter(|(version, _)| terms.allows(*version)).map(|(_, version)| version).collect()
}

impl MeshAcceptor {
    pub fn new(bundles: &Bundles, identities: &Identities, alpn: &[&[u8]]) -> Self {
        Self {
            bundles: bundles.clone(),
            identities: identities.clone(),
            alpn: owned(alpn),
            configs: ArcSwap::default(),
        }
    }

    /// The mesh that the ClientHello's server name names, and the config that proves its workloads.
    pub fn config_for(&self, server_name: Option<&str>) -> Result<(String, Arc<ServerConfig>), TrustError> {
        let name = server_name.ok_or(TrustError::NoMesh)?.to_ascii_lowercase();
        let mesh = self.bundles.mesh_of_sni(&name).ok_or(TrustError::NoMesh)?;
        let config = self.config_of(&mesh).map_err(|error| TrustError::Untrusted(error.to_string()))?;
        Ok((mesh, config))
    }

    fn config_of(&self, mesh: &str) -> Result<Arc<ServerConfig>, PkiError> {
        if let Some(config) = self.configs.load().get(mesh) {
            return Ok(Arc::clone(config));
        }
        let verifier = Arc::new(MeshClientVerifier::new(&self.bundles, mesh));
        let alpn: Vec<&[u8]> = self.alpn.iter().map(Vec::as_slice).collect();
        let config = server_config(self.identities.of(mesh), verifier, &alpn, &SessionTerms::default())?;
        self.configs.rcu(|configs| {
            let mut next = BTreeMap::clone(configs);
            next.insert(mesh.to_owned(), Arc::clone(&config));
            next
        });
        Ok(config)
    }
}

/// What both kinds of verifiers share.
macro_rules! tls13_signatures {
    () => {
        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ECDSA_NISTP256_SHA256]
        }
    };
}
pub(crate) use tls13_signatures;

/// The signatures of a verifier that takes TLS 1.3 and P-256 only, from its field `algorithms`.
macro_rules! only_tls13_signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Err(rustls::Error::General("TLS 1.2 where only 1.3 was offered".into()))
        }

        crate::mesh_tls::tls13_signatures!();
    };
}
pub(crate) use only_tls13_signatures;

/// The same, for configurations that may offer TLS 1.2.
macro_rules! mesh_signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            rustls::crypto::verify_tls12_signature(message, certificate, signed, &self.algorithms)
        }

        crate::mesh_tls::tls13_signatures!();
    };
}

impl ClientCertVerifier for MeshClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let chain = chain(end_entity, intermediates);
        self.bundles
            .verify(&self.mesh, &chain, Usage::Client, x509::datetime(now))
            .map_err(TrustError::into_rustls)?;
        Ok(ClientCertVerified::assertion())
    }

    mesh_signatures!();
}

impl ServerCertVerifier for MeshServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(&chain(end_entity, intermediates), now).map_err(TrustError::into_rustls)?;
        Ok(ServerCertVerified::assertion())
    }

    mesh_signatures!();
}

pub(crate) fn chain<'a>(leaf: &CertificateDer<'a>, rest: &[CertificateDer<'a>]) -> Vec<CertificateDer<'a>> {
    std::iter::once(leaf).chain(rest).cloned().collect()
}

pub(crate) fn algorithms() -> WebPkiSupportedAlgorithms {
    provider().signature_verification_algorithms
}

pub(crate) fn owned(alpn: &[&[u8]]) -> Vec<Vec<u8>> {
    alpn.iter().map(|name| name.to_vec()).collect()
}
