//! Mutual TLS inside the mesh: this proxy's certificates, the bundles, and who the other end is.
//!
//! Certificates and bundles are replaced in place; each handshake uses the newest. An open session is judged again
//! after each change ([`Tls::trust`]): what was revoked is cut, what only chains to a root that has left (a rotation)
//! is drained. The validity dates of its certificates count at its handshake: a connection may outlive its leaf.

use crate::{io::Stream, snapshot::PeerRule};
use arc_swap::ArcSwap;
use meridian_pki::{
    Bundles, Identities, Identity, PkiError, TrustError, Usage,
    mesh_tls::{self, MeshClientVerifier, MeshServerVerifier, identity_of_accepted},
};
use meridian_proxy_config::{Bundle, CallerIdentity, SessionTerms};
use rustls::{ClientConfig, CommonState, ServerConfig};
use rustls_pki_types::{CertificateDer, ServerName};
use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use time::OffsetDateTime;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

/// How long a handshake may take.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Cached configurations; beyond, the cache begins anew. A handshake costs a hundred times more than a miss.
const MAX_CONFIGS: usize = 4_096;

/// Certificates and bundles of every mesh that this proxy serves.
#[derive(Default)]
pub struct Tls {
    pub bundles: Bundles,
    pub identities: Identities,
    /// Grows with every new certificate of our own: pooled sessions made with an older one are renewed.
    renewed: AtomicU64,
    /// By mesh; TLS 1.3 where nothing is said.
    terms: ArcSwap<BTreeMap<String, SessionTerms>>,
    servers: Mutex<HashMap<ServerKey, Arc<ServerConfig>>>,
    clients: Mutex<HashMap<ClientKey, Arc<ClientConfig>>>,
}

/// Mesh, the protocols offered, and the terms.
type ServerKey = (String, Vec<Vec<u8>>, SessionTerms);

#[derive(PartialEq, Eq, Hash)]
struct ClientKey {
    mesh: String,
    identities: Vec<String>,
    zone: String,
    alpn: Vec<u8>,
    terms: SessionTerms,
}

/// Who is at the other end of a session, verified.
#[derive(Clone, Debug)]
pub struct Peer {
    pub identity: Arc<CallerIdentity>,
    /// Server name of the session.
    pub sni: Option<String>,
    /// Empty: none was offered.
    pub alpn: Vec<u8>,
    /// As OpenSSL names it.
    pub version: &'static str,
    chain: Arc<[CertificateDer<'static>]>,
    proven: OffsetDateTime,
    usage: Usage,
}

/// Whether an open session's peer is still believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    Believed,
    /// Its root has left the bundle: nothing new goes over this session.
    Leaving,
    /// Revoked, or its mesh is gone.
    Revoked,
}

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("no valid certificate of our own for mesh {0}")]
    NoIdentity(String),
    #[error("no trust bundle for mesh {0}")]
    NoBundle(String),
    #[error("TLS could not be set up")]
    Setup(#[source] PkiError),
    #[error("the peer is not believed")]
    Untrusted(#[source] TrustError),
    #[error("the handshake failed")]
    Handshake(#[source] io::Error),
    #[error("the handshake took longer than {HANDSHAKE_TIMEOUT:?}")]
    Timeout,
    #[error("the peer chose no protocol of the mesh")]
    Alpn,
}

impl Peer {
    /// The first SPIFFE ID, for logs and reports.
    pub fn name(&self) -> &str {
        self.identity.spiffe.first().map_or("none", String::as_str)
    }
}

impl TlsError {
    /// The reason in reports, where the peer's certificate was the cause.
    pub fn trust(&self) -> Option<&TrustError> {
        match self {
            Self::Untrusted(error) => Some(error),
            _ => None,
        }
    }
}

impl Tls {
    /// Whether a session of this mesh can be made now: a certificate that has not expired, and a bundle.
    pub fn ready(&self, mesh: &str) -> bool {
        self.bundles.get(mesh).is_some() && self.has_identity(mesh)
    }

    fn has_identity(&self, mesh: &str) -> bool {
        self.identities.of(mesh).current(OffsetDateTime::now_utc()).is_some()
    }

    /// Takes a new certificate of our own into use.
    pub fn set_identity(&self, mesh: &str, identity: Identity) {
        self.identities.of(mesh).set(identity);
        self.renewed.fetch_add(1, Ordering::AcqRel);
    }

    /// What sessions are like from now on. Open ones are renewed as with a new certificate: they finish what is under way.
    pub fn set_terms(&self, terms: &BTreeMap<String, SessionTerms>) {
        if **self.terms.load() != *terms {
            self.terms.store(Arc::new(terms.clone()));
            self.renewed.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn terms(&self, mesh: &str) -> SessionTerms {
        self.terms.load().get(mesh).cloned().unwrap_or_default()
    }

    /// How often our own certificates, or the terms of sessions, changed.
    pub fn renewed(&self) -> u64 {
        self.renewed.load(Ordering::Acquire)
    }

    /// Takes a mesh's bundle; whether it is another than before.
    ///
    /// # Errors
    /// It can't be read; the old one stays.
    pub fn set_bundle(&self, bundle: &Bundle) -> Result<bool, PkiError> {
        self.bundles.set(bundle)
    }

    /// Judges an open session's peer by the newest bundle.
    pub fn trust(&self, peer: &Peer) -> Trust {
        match self.bundles.verify(&peer.identity.mesh, &peer.chain, peer.usage, peer.proven) {
            Ok(_) => Trust::Believed,
            Err(TrustError::Untrusted(_)) => Trust::Leaving,
            Err(_) => Trust::Revoked,
        }
    }

    /// Answers a handshake as this proxy in `mesh`; the caller's certificate is required and verified.
    /// A caller that offers none of `alpn` is refused before any byte of its is read.
    ///
    /// # Errors
    /// Why there is no session.
    pub async fn accept<S: Stream>(
        &self,
        mesh: &str,
        alpn: &[&[u8]],
        stream: S,
    ) -> Result<(server::TlsStream<S>, Peer), TlsError> {
        let (stream, peer) = self.accept_any(mesh, alpn, stream).await?;
        spoken(peer).map(|peer| (stream, peer))
    }

    /// The same for a caller that is no proxy of the mesh: it may offer no protocol at all.
    ///
    /// # Errors
    /// Why there is no session.
    pub async fn accept_any<S: Stream>(
        &self,
        mesh: &str,
        alpn: &[&[u8]],
        stream: S,
    ) -> Result<(server::TlsStream<S>, Peer), TlsError> {
        if self.bundles.get(mesh).is_none() {
            return Err(TlsError::NoBundle(mesh.to_owned()));
        }
        if !self.has_identity(mesh) {
            return Err(TlsError::NoIdentity(mesh.to_owned()));
        }
        let config = self.server_config(mesh, alpn)?;
        let handshake = TlsAcceptor::from(config).accept(stream);
        let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake)
            .await
            .map_err(|_| TlsError::Timeout)?
            .map_err(failed)?;
        let session = stream.get_ref().1;
        let sni = session.server_name().map(str::to_ascii_lowercase);
        let peer = peer(mesh, session, sni, Usage::Client)?;
        Ok((stream, peer))
    }

    /// Opens a session as this proxy in the rule's mesh; the answer must come from `zone` and be one that the
    /// rule accepts there.
    ///
    /// # Errors
    /// Why there is no session.
    pub async fn connect<S: Stream>(
        &self,
        rule: &PeerRule,
        zone: &str,
        sni: &str,
        alpn: &[u8],
        stream: S,
    ) -> Result<(client::TlsStream<S>, Peer), TlsError> {
        let mesh = rule.mesh.as_str();
        if self.bundles.get(mesh).is_none() {
            return Err(TlsError::NoBundle(mesh.to_owned()));
        }
        if !self.has_identity(mesh) {
            return Err(TlsError::NoIdentity(mesh.to_owned()));
        }
        let config = self.client_config(rule, zone, alpn)?;
        // An address as server name sends none: for endpoints that need no SNI.
        let name = ServerName::try_from(sni.to_owned())
            .unwrap_or(ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into()));
        let handshake = TlsConnector::from(config).connect(name, stream);
        let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake)
            .await
            .map_err(|_| TlsError::Timeout)?
            .map_err(failed)?;
        let peer = peer(mesh, stream.get_ref().1, Some(sni.to_owned()), Usage::Server)?;
        spoken(peer).map(|peer| (stream, peer))
    }

    fn server_config(&self, mesh: &str, alpn: &[&[u8]]) -> Result<Arc<ServerConfig>, TlsError> {
        let terms = self.terms(mesh);
        let key = (mesh.to_owned(), alpn.iter().map(|name| name.to_vec()).collect(), terms.clone());
        cached(&self.servers, key, || {
            let verifier = Arc::new(MeshClientVerifier::new(&self.bundles, mesh));
            mesh_tls::server_config(self.identities.of(mesh), verifier, alpn, &terms)
        })
    }

    fn client_config(&self, rule: &PeerRule, zone: &str, alpn: &[u8]) -> Result<Arc<ClientConfig>, TlsError> {
        let terms = self.terms(&rule.mesh);
        let key = ClientKey {
            terms: terms.clone(),
            mesh: rule.mesh.clone(),
            identities: rule.in_zone(zone).to_vec(),
            zone: zone.to_owned(),
            alpn: alpn.to_vec(),
        };
        cached(&self.clients, key, || {
            let identities = rule.in_zone(zone).to_vec();
            let verifier = Arc::new(MeshServerVerifier::new(&self.bundles, &rule.mesh, identities, zone));
            mesh_tls::client_config(self.identities.of(&rule.mesh), verifier, &[alpn], &terms)
        })
    }
}

/// AWS-LC seeds itself at first use, which takes about 45 ms: done before the proxy is ready, not by its first caller.
pub fn warm_up() {
    let mut bytes = [0; 32];
    if meridian_pki::provider().secure_random.fill(&mut bytes).is_err() {
        tracing::error!("the system's random numbers are not available; no TLS session can be made");
    }
    drop(meridian_pki::PrivateKey::generate());
}

fn cached<K: Eq + std::hash::Hash, V>(
    cache: &Mutex<HashMap<K, Arc<V>>>,
    key: K,
    make: impl FnOnce() -> Result<Arc<V>, PkiError>,
) -> Result<Arc<V>, TlsError> {
    let mut cache: MutexGuard<'_, _> = cache.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(config) = cache.get(&key) {
        return Ok(config.clone());
    }
    if cache.len() >= MAX_CONFIGS {
        cache.clear();
    }
    let config = make().map_err(TlsError::Setup)?;
    cache.insert(key, config.clone());
    Ok(config)
}

fn failed(error: io::Error) -> TlsError {
    let trust = error.get_ref().and_then(|inner| inner.downcast_ref()).and_then(TrustError::of).cloned();
    trust.map_or(TlsError::Handshake(error), TlsError::Untrusted)
}

fn spoken(peer: Peer) -> Result<Peer, TlsError> {
    if peer.alpn.is_empty() { Err(TlsError::Alpn) } else { Ok(peer) }
}

fn peer(mesh: &str, session: &CommonState, sni: Option<String>, usage: Usage) -> Result<Peer, TlsError> {
    let alpn = session.alpn_protocol().unwrap_or_default().to_vec();
    let chain: Arc<[_]> = session
        .peer_certificates()
        .unwrap_or_default()
        .iter()
        .map(|cert| cert.clone().into_owned())
        .collect();
    let identity = Arc::new(identity_of_accepted(mesh, &chain).map_err(TlsError::Untrusted)?);
    let version = match session.protocol_version() {
        Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
        _ => "TLSv1.3",
    };
    Ok(Peer { identity, sni, alpn, version, chain, proven: OffsetDateTime::now_utc(), usage })
}
