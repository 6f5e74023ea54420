//! Links to control planes: ports 5678, 5682 and 5685.
//!
//! The client proves the server by a CA file or by the CA's fingerprint, before it sends any token; there is no way to
//! skip it. On 5685 the server proves a zone's client certificate, if there is one: a zone's first contact has none.

use crate::{
    IdentityHandle, PkiError, SpkiHash, TrustError,
    key::sha256_from_hex,
    mesh_tls::{algorithms, chain, only_tls13_signatures, owned},
    provider,
    trust::path_error,
    x509,
};
use arc_swap::ArcSwap;
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    server::{
        NoServerSessionStorage,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use sha2::{Digest, Sha256};
use std::{collections::BTreeSet, fmt, str::FromStr, sync::Arc};
use time::OffsetDateTime;
use webpki::EndEntityCert;

/// ALPN of gRPC.
pub const H2: &[u8] = b"h2";
/// ALPN of HTTP/1.1.
pub const HTTP1: &[u8] = b"http/1.1";

/// SHA-256 of a whole certificate (DER). Written as hex, with or without colons, `sha256:` allowed in front.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

/// By what a client knows its control plane.
#[derive(Clone, Debug)]
pub enum ServerTrust {
    /// `--ca-cert-file`
    Certificates(Vec<CertificateDer<'static>>),
    /// `--ca-fingerprint`: of a CA that the server sends along, or of the server's certificate itself.
    Fingerprint(Fingerprint),
}

/// The zones whose client certificates a global control plane accepts; clones share it.
#[derive(Clone, Debug, Default)]
pub struct ZoneClients(Arc<ArcSwap<ZoneTrust>>);

/// A zone, proven by its client certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneClient {
    pub zone: String,
    pub key: SpkiHash,
    pub not_after: OffsetDateTime,
}

#[derive(Debug, Default)]
struct ZoneTrust {
    anchors: Vec<TrustAnchor<'static>>,
    revoked: BTreeSet<SpkiHash>,
}

impl Fingerprint {
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        Self(Sha256::digest(certificate).into())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Fingerprint {
    type Err = PkiError;

    fn from_str(text: &str) -> Result<Self, PkiError> {
        sha256_from_hex(text).map(Self)
    }
}

impl ServerTrust {
    pub fn from_pem(pem: &str) -> Result<Self, PkiError> {
        Ok(Self::Certificates(crate::certificates_from_pem(pem)?))
    }

    /// Checks that `hosts`' server would be believed: the same that a handshake does.
    pub fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: OffsetDateTime,
    ) -> Result<(), TrustError> {
        let [leaf, rest @ ..] = chain else { return Err(TrustError::ChainShape(0)) };
        let end_entity = EndEntityCert::try_from(leaf).map_err(path_error)?;
        end_entity
            .verify_is_valid_for_subject_name(name)
            .map_err(|_| TrustError::WrongName(name.to_str().into_owned()))?;
        let pinned;
        let trusted = match self {
            Self::Certificates(certificates) => certificates.as_slice(),
            Self::Fingerprint(fingerprint) => {
                let found = chain.iter().find(|certificate| Fingerprint::of(certificate) == *fingerprint);
                pinned = [found.ok_or(TrustError::WrongFingerprint)?.clone().into_owned()];
                pinned.as_slice()
            }
        };
        if trusted.iter().any(|certificate| certificate == leaf) {
            // Trusted by itself (a self-signed server certificate, say): nothing above it needs to be proven.
            return check_validity(leaf, now);
        }
        let anchors = anchors(trusted).map_err(|error| TrustError::Untrusted(error.to_string()))?;
        let usage = webpki::KeyUsage::server_auth();
        end_entity
            .verify_for_usage(algorithms().all, &anchors, rest, x509::unix(now), usage, None, None)
            .map_err(path_error)?;
        Ok(())
    }
}

/// For a client of a control plane; `identity` is a zone's client certificate.
pub fn client_config(
    trust: ServerTrust,
    identity: Option<IdentityHandle>,
    alpn: &[&[u8]],
) -> Result<ClientConfig, PkiError> {
    let verifier = LinkServerVerifier { trust, algorithms: algorithms() };
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| PkiError::Tls(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match identity {
        Some(identity) => builder.with_client_cert_resolver(Arc::new(identity)),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = owned(alpn);
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// For a control plane's port; the certificate behind the handle may be replaced at any time. With `zones`, a client
/// certificate is asked for and must be a zone's if one is sent.
pub fn server_config(
    certificate: IdentityHandle,
    zones: Option<ZoneClients>,
    alpn: &[&[u8]],
) -> Result<ServerConfig, PkiError> {
    // People's tools speak to the REST port; zones and proxies are ours and speak 1.3.
    let versions = if zones.is_some() { &[&rustls::version::TLS13][..] } else { rustls::DEFAULT_VERSIONS };
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .map_err(|error| PkiError::Tls(error.to_string()))?;
    let builder = match zones {
        Some(zones) => {
            builder.with_client_cert_verifier(Arc::new(ZoneVerifier { zones, algorithms: algorithms() }))
        }
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(certificate));
    config.alpn_protocols = owned(alpn);
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

impl ZoneClients {
    /// The zone CAs (PEM), and the keys of revoked client certificates.
    pub fn new(authorities: &str, revoked: impl IntoIterator<Item = SpkiHash>) -> Result<Self, PkiError> {
        let clients = Self::default();
        clients.set(authorities, revoked)?;
        Ok(clients)
    }

    pub fn set(
        &self,
        authorities: &str,
        revoked: impl IntoIterator<Item = SpkiHash>,
    ) -> Result<(), PkiError> {
        let anchors = anchors(&crate::certificates_from_pem(authorities)?)?;
        self.0.store(Arc::new(ZoneTrust { anchors, revoked: revoked.into_iter().collect() }));
        Ok(())
    }

    /// In a handshake, and for the stored chain of an open link after a revocation.
    pub fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        now: OffsetDateTime,
    ) -> Result<ZoneClient, TrustError> {
        let [leaf] = chain else { return Err(TrustError::ChainShape(chain.len())) };
        let trust = self.0.load();
        let end_entity = EndEntityCert::try_from(leaf).map_err(path_error)?;
        let usage = webpki::KeyUsage::client_auth();
        end_entity
            .verify_for_usage(
                crate::trust::ALGORITHMS,
                &trust.anchors,
                &[],
                x509::unix(now),
                usage,
                None,
                None,
            )
            .map_err(path_error)?;
        let parsed = x509::parse(leaf)?;
        crate::trust::check_leaf(&parsed)?;
        let key = SpkiHash::of(parsed.public_key().raw);
        if trust.revoked.contains(&key) {
            return Err(TrustError::Revoked(key.to_string()));
        }
        let names = x509::names(&parsed)?;
        let zone = x509::zone(&names).ok_or(TrustError::NoIdentity)?.to_owned();
        Ok(ZoneClient { zone, key, not_after: x509::validity(&parsed).1 })
    }
}

#[derive(Debug)]
struct LinkServerVerifier {
    trust: ServerTrust,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for LinkServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.trust
            .verify(&chain(end_entity, intermediates), name, x509::datetime(now))
            .map_err(TrustError::into_rustls)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[derive(Debug)]
struct ZoneVerifier {
    zones: ZoneClients,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClientCertVerifier for ZoneVerifier {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.zones
            .verify(&chain(end_entity, intermediates), x509::datetime(now))
            .map_err(TrustError::into_rustls)?;
        Ok(ClientCertVerified::assertion())
    }

    only_tls13_signatures!();
}

fn anchors(certificates: &[CertificateDer<'_>]) -> Result<Vec<TrustAnchor<'static>>, PkiError> {
    certificates
        .iter()
        .map(|certificate| webpki::anchor_from_trusted_cert(certificate).map(|anchor| anchor.to_owned()))
        .collect::<Result<_, _>>()
        .map_err(|error| PkiError::Certificate(error.to_string()))
}

fn check_validity(certificate: &CertificateDer<'_>, now: OffsetDateTime) -> Result<(), TrustError> {
    let (not_before, not_after) = x509::validity(&x509::parse(certificate)?);
    if now < not_before {
        Err(TrustError::NotYetValid)
    } else if now >= not_after {
        Err(TrustError::Expired)
    } else {
        Ok(())
    }
}
