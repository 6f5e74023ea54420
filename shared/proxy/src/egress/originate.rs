//! TLS from the egress to the outside, held to what its entry says of the server.

use crate::{io::Socket, upstream::CONNECT_TIMEOUT};
use meridian_proxy_config::{CaSource, Origination, SanMatch, TlsVersion, Verification};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    SupportedProtocolVersion,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor, verify_server_name,
    },
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    server::ParsedCertificate,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject};
use std::{io, net::IpAddr, sync::Arc};
use tokio::time::timeout;
use tokio_rustls::{TlsConnector, client::TlsStream};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// What is spoken inside the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Application {
    Opaque,
    Http1,
    Http2,
}

/// A compiled [`Origination`].
pub struct Originator {
    opaque: Arc<ClientConfig>,
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
    server_name: Option<ServerName<'static>>,
    /// The host's roots were asked for and there are none: everything is refused.
    without_roots: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum OriginateError {
    #[error(
        "the entry names no CA, and this host has no roots: give the entry a caCert, or install root certificates"
    )]
    NoRoots,
    #[error("the server's certificate is not the entry's: {0}")]
    Certificate(String),
    #[error("TLS with the server failed")]
    Handshake(#[source] io::Error),
    #[error("TLS with the server took too long")]
    Timeout,
}

impl Originator {
    /// # Errors
    /// Why it can't be used (a certificate that does not parse, say): the entry is rejected with it.
    pub fn compile(origination: &Origination) -> Result<Self, String> {
        Self::compile_with(origination, system_roots)
    }

    fn compile_with(
        origination: &Origination,
        system: impl FnOnce() -> RootCertStore,
    ) -> Result<Self, String> {
        let needs_roots = matches!(origination.verification, Verification::Secured | Verification::SkipSan);
        let roots = match &origination.ca {
            CaSource::Pem(pem) => pem_roots(pem)?,
            CaSource::System if needs_roots => system(),
            CaSource::System => RootCertStore::empty(),
        };
        let without_roots = needs_roots && roots.is_empty();
        let provider = meridian_pki::provider();
        let verifier = Arc::new(ServerVerifier {
            roots,
            verification: origination.verification,
            sans: origination.subject_alt_names.clone(),
            algorithms: provider.signature_verification_algorithms,
        });
        let base = client_config(origination, provider, verifier)?;
        let with_alpn = |alpn: &[&[u8]]| {
            let mut config = base.clone();
            config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
            Arc::new(config)
        };
        let server_name = origination.server_name.as_deref().map(parse_server_name).transpose()?;
        Ok(Self {
            opaque: with_alpn(&[]),
            http1: with_alpn(&[b"http/1.1"]),
            http2: with_alpn(&[b"h2"]),
            server_name,
            without_roots,
        })
    }

    /// A session with the server at the other end of `socket`, which was dialled as `host`.
    ///
    /// # Errors
    /// Nothing was sent over the session.
    pub async fn connect(
        &self,
        socket: Socket,
        host: &meridian_proxy_config::Host,
        application: Application,
    ) -> Result<TlsStream<Socket>, OriginateError> {
        if self.without_roots {
            return Err(OriginateError::NoRoots);
        }
        let config = match application {
            Application::Opaque => &self.opaque,
            Application::Http1 => &self.http1,
            Application::Http2 => &self.http2,
        };
        let name = match (&self.server_name, host) {
            (Some(name), _) => name.clone(),
            (None, meridian_proxy_config::Host::Ip(ip)) => ServerName::from(*ip),
            (None, meridian_proxy_config::Host::Name(name)) => {
                parse_server_name(name).map_err(OriginateError::Certificate)?
            }
        };
        let session = TlsConnector::from(config.clone()).connect(name, socket);
        match timeout(CONNECT_TIMEOUT, session).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(classify(error)),
            Err(_) => Err(OriginateError::Timeout),
        }
    }
}

/// A certificate that is not the entry's is a refusal; all else a failure.
fn classify(error: io::Error) -> OriginateError {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(Error::InvalidCertificate(why)) => OriginateError::Certificate(format!("{why:?}")),
        _ => OriginateError::Handshake(error),
    }
}

fn client_config(
    origination: &Origination,
    provider: Arc<CryptoProvider>,
    verifier: Arc<ServerVerifier>,
) -> Result<ClientConfig, String> {
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&versions(origination.min_version, origination.max_version)?)
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match (&origination.client_certificate, &origination.client_key) {
        (None, None) => builder.with_no_client_auth(),
        (Some(certificate), Some(key)) => {
            let chain = certificates("clientCert", certificate)?;
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
                .map_err(|error| format!("clientKey: {error}"))?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| format!("clientCert and clientKey: {error}"))?
        }
        _ => return Err("clientCert and clientKey go together".to_owned()),
    };
    // A resumed session would skip the look at the server's certificate.
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn versions(min: TlsVersion, max: TlsVersion) -> Result<Vec<&'static SupportedProtocolVersion>, String> {
    let known = [(TlsVersion::Tls13, &rustls::version::TLS13), (TlsVersion::Tls12, &rustls::version::TLS12)];
    let versions: Vec<_> = known
        .iter()
        .filter(|(version, _)| (min..=max).contains(version))
        .map(|(_, version)| *version)
        .collect();
    if versions.is_empty() { Err("minVersion is above maxVersion".to_owned()) } else { Ok(versions) }
}

fn certificates(field: &str, pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| format!("{field}: {error}"))?;
    if chain.is_empty() { Err(format!("{field} holds no certificate")) } else { Ok(chain) }
}

fn pem_roots(pem: &str) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("caCert", pem)? {
        roots.add(certificate).map_err(|error| format!("caCert: {error}"))?;
    }
    Ok(roots)
}

fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "a root certificate of the host");
    }
    roots.add_parsable_certificates(found.certs);
    roots
}

fn parse_server_name(name: &str) -> Result<ServerName<'static>, String> {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    ServerName::try_from(name.clone()).map_err(|_| format!("serverName {name:?} is no DNS name"))
}

/// Chain, name and SANs, each as far as the entry's verification mode asks.
#[derive(Debug)]
struct ServerVerifier {
    roots: RootCertStore,
    verification: Verification,
    sans: Vec<SanMatch>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerVerifier {
    fn check_sans(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        if self.sans.is_empty() {
            return Ok(());
        }
        let found = subject_alt_names(certificate)?;
        let matched = found.iter().any(|name| self.sans.iter().any(|san| san_matches(san, name)));
        if matched { Ok(()) } else { Err(Error::InvalidCertificate(CertificateError::NotValidForName)) }
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        if matches!(self.verification, Verification::Secured | Verification::SkipSan) {
            let algorithms = self.algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms)?;
        }
        if matches!(self.verification, Verification::Secured | Verification::SkipCa) {
            verify_server_name(&parsed, server_name)?;
            self.check_sans(end_entity)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// DNS names (lower case), URIs and addresses, as text.
fn subject_alt_names(certificate: &CertificateDer<'_>) -> Result<Vec<String>, Error> {
    let bad = || Error::InvalidCertificate(CertificateError::BadEncoding);
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| bad())?;
    let Some(extension) = parsed.subject_alternative_name().map_err(|_| bad())? else {
        return Ok(Vec::new());
    };
    let names = extension.value.general_names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|octets| IpAddr::from(octets).to_string()),
            _ => <[u8; 16]>::try_from(*bytes).ok().map(|octets| IpAddr::from(octets).to_string()),
        },
        _ => None,
    });
    Ok(names.collect())
}

fn san_matches(wanted: &SanMatch, name: &str) -> bool {
    match wanted {
        SanMatch::Exact(wanted) => name == wanted || name == wanted.to_ascii_lowercase(),
        SanMatch::Prefix(wanted) => name.starts_with(wanted.as_str()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origination() -> Origination {
        Origination {
            verification: Verification::Secured,
            ca: CaSource::System,
            client_certificate: None,
            client_key: None,
            server_name: None,
            subject_alt_names: Vec::new(),
            min_version: TlsVersion::Tls12,
            max_version: TlsVersion::Tls13,
        }
    }

    #[test]
    fn no_ca_and_no_system_roots_refuses() {
        let none = Originator::compile_with(&origination(), RootCertStore::empty).unwrap();
        assert!(none.without_roots);
        let unverified = Origination { verification: Verification::SkipAll, ..origination() };
        assert!(!Originator::compile_with(&unverified, RootCertStore::empty).unwrap().without_roots);
    }

    #[test]
    fn what_does_not_parse_is_an_error() {
        let broken = [
            Origination { ca: CaSource::Pem("no certificate".into()), ..origination() },
            Origination { client_certificate: Some("x".into()), ..origination() },
            Origination { min_version: TlsVersion::Tls13, max_version: TlsVersion::Tls12, ..origination() },
            Origination { server_name: Some("a b".into()), ..origination() },
        ];
        for broken in broken {
            assert!(Originator::compile_with(&broken, RootCertStore::empty).is_err());
        }
    }
}
