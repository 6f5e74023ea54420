use crate::{PkiError, PrivateKey, SpkiHash, provider, x509};
use arc_swap::{ArcSwap, ArcSwapOption};
use rustls::{
    client::ResolvesClientCert,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use std::{collections::BTreeMap, fmt, sync::Arc};
use time::OffsetDateTime;

/// A certificate chain with its key, ready to be presented.
#[derive(Clone)]
pub struct Identity {
    certified: Arc<CertifiedKey>,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
    leaf: SpkiHash,
}

/// The identity that a process presents now; replaced while sessions run. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct IdentityHandle(Arc<ArcSwapOption<Identity>>);

/// One handle a mesh: an egress has an identity in each.
#[derive(Clone, Debug, Default)]
pub struct Identities(Arc<ArcSwap<BTreeMap<String, IdentityHandle>>>);

impl Identity {
    /// Of a mesh workload or a zone: the chain as issued, and the key of the request.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: &PrivateKey) -> Result<Self, PkiError> {
        Self::of(chain, key.to_rustls())
    }

    /// Of files an operator gave: any key rustls can use.
    pub fn from_pem(chain: &str, key: &str) -> Result<Self, PkiError> {
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
            .map_err(|error| PkiError::Key(error.to_string()))?;
        Self::of(crate::certificates_from_pem(chain)?, key)
    }

    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    pub fn not_before(&self) -> OffsetDateTime {
        self.not_before
    }

    pub fn not_after(&self) -> OffsetDateTime {
        self.not_after
    }

    pub fn leaf(&self) -> SpkiHash {
        self.leaf
    }

    fn of(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Self, PkiError> {
        let first = chain.first().ok_or_else(|| PkiError::Certificate("an empty chain".into()))?;
        let parsed = x509::parse(first).map_err(|error| PkiError::Certificate(error.to_string()))?;
        let (not_before, not_after) = x509::validity(&parsed);
        let leaf = SpkiHash::of(parsed.public_key().raw);
        let signer = provider()
            .key_provider
            .load_private_key(key)
            .map_err(|error| PkiError::Key(error.to_string()))?;
        let certified = CertifiedKey::new(chain, signer);
        certified.keys_match().map_err(|_| PkiError::KeyMismatch)?;
        Ok(Self { certified: Arc::new(certified), not_before, not_after, leaf })
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("leaf", &self.leaf)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

impl IdentityHandle {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn set(&self, identity: Identity) {
        self.0.store(Some(Arc::new(identity)));
    }

    pub fn clear(&self) {
        self.0.store(None);
    }

    /// What would be presented at `now`; an expired certificate is not.
    pub fn current(&self, now: OffsetDateTime) -> Option<Arc<Identity>> {
        self.0.load_full().filter(|identity| now < identity.not_after)
    }

    /// What was set last, expired or not: for status.
    pub fn latest(&self) -> Option<Arc<Identity>> {
        self.0.load_full()
    }

    fn certified(&self) -> Option<Arc<CertifiedKey>> {
        let current = self.current(OffsetDateTime::now_utc());
        if current.is_none() && self.0.load().is_some() {
            tracing::warn!(
                "the certificate has expired and is not presented; handshakes fail until it is renewed"
            );
        }
        current.map(|identity| Arc::clone(&identity.certified))
    }
}

impl ResolvesServerCert for IdentityHandle {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.certified()
    }
}

impl ResolvesClientCert for IdentityHandle {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.certified()
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl Identities {
    pub fn new() -> Self {
        Self::default()
    }

    /// The mesh's handle, empty until its first certificate comes.
    pub fn of(&self, mesh: &str) -> IdentityHandle {
        if let Some(handle) = self.0.load().get(mesh) {
            return handle.clone();
        }
        let made = IdentityHandle::new();
        self.0.rcu(|meshes| {
            let mut next = BTreeMap::clone(meshes);
            next.entry(mesh.to_owned()).or_insert_with(|| made.clone());
            next
        });
        self.0.load().get(mesh).cloned().unwrap_or(made)
    }

    /// Forgets a mesh: configs that hold its handle present nothing any more.
    pub fn remove(&self, mesh: &str) {
        if let Some(handle) = self.0.load().get(mesh) {
            handle.clear();
        }
        self.0.rcu(|meshes| {
            let mut next = BTreeMap::clone(meshes);
            next.remove(mesh);
            next
        });
    }

    pub fn meshes(&self) -> Vec<String> {
        self.0.load().keys().cloned().collect()
    }
}
