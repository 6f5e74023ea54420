//! The keys in use: the ring, and the store's data keys that it has opened.

use crate::seal::{self, OpenFailure, Place, SealKey};
use crate::{KeyError, KeyRing, OpenError};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use zeroize::Zeroizing;

/// Two, since a reader may still hold rows from before a rotation.
const REMEMBERED: usize = 2;

pub(crate) struct Vault {
    ring: Mutex<KeyRing>,
    /// The latest learned first.
    data_keys: RwLock<Vec<DataKey>>,
}

struct DataKey {
    /// As the store has it.
    wrapped: Vec<u8>,
    key: Arc<SealKey>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum VaultError {
    #[error("the store is sealed with key {wanted}, and the key file holds {held}")]
    OtherKey { wanted: String, held: String },
    #[error("the store's data key does not open")]
    Damaged,
    #[error(transparent)]
    Keys(#[from] KeyError),
}

impl From<VaultError> for OpenError {
    fn from(error: VaultError) -> Self {
        match error {
            VaultError::OtherKey { wanted, held } => Self::OtherKey { wanted, held },
            VaultError::Damaged => Self::Damaged { what: error.to_string() },
            VaultError::Keys(error) => Self::Keys(error),
        }
    }
}

impl Vault {
    pub(crate) fn new(ring: KeyRing) -> Self {
        Self { ring: Mutex::new(ring), data_keys: RwLock::default() }
    }

    pub(crate) fn ring(&self) -> KeyRing {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_ring(&self, ring: KeyRing) {
        *self.ring.lock().unwrap_or_else(PoisonError::into_inner) = ring;
    }

    /// The store's data key, given what the store has of it. Looks into the key file anew if it needs another key.
    pub(crate) fn learn(&self, wrapped: &[u8]) -> Result<Arc<SealKey>, VaultError> {
        let known = self.find(|known| known.wrapped == wrapped);
        known.map_or_else(|| self.unwrap(wrapped), Ok)
    }

    fn unwrap(&self, wrapped: &[u8]) -> Result<Arc<SealKey>, VaultError> {
        let wanted = seal::key_of(wrapped).ok_or(VaultError::Damaged)?;
        let mut ring = self.ring();
        if ring.key(wanted).is_none() {
            ring = ring.reloaded()?;
            self.set_ring(ring.clone());
        }
        let other = || VaultError::OtherKey { wanted: wanted.to_string(), held: ring.ids() };
        let ring_key = ring.key(wanted).ok_or_else(other)?;
        let key = seal::unwrap_data_key(&ring_key, wrapped).map_err(|_| VaultError::Damaged)?;
        let mut keys = self.data_keys.write().unwrap_or_else(PoisonError::into_inner);
        keys.insert(0, DataKey { wrapped: wrapped.to_vec(), key: Arc::clone(&key) });
        keys.truncate(REMEMBERED);
        Ok(key)
    }

    /// Whether a sealed value can be opened without learning another data key.
    pub(crate) fn knows_key_of(&self, sealed: &[u8]) -> bool {
        seal::key_of(sealed).is_some_and(|id| self.find(|known| known.key.id() == id).is_some())
    }

    pub(crate) fn open(&self, place: Place<'_>, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, OpenFailure> {
        let id = seal::key_of(sealed).ok_or(OpenFailure::Damaged)?;
        self.find(|known| known.key.id() == id).ok_or(OpenFailure::OtherKey)?.open(place, sealed)
    }

    fn find(&self, wanted: impl Fn(&DataKey) -> bool) -> Option<Arc<SealKey>> {
        let keys = self.data_keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.iter().find(|known| wanted(known)).map(|known| Arc::clone(&known.key))
    }
}
