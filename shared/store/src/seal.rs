//! Sealing: AES-256-GCM with random nonces, bound to the place where the value lies, so that nobody who can write to the
//! database moves one secret into the place of another.
//!
//! A sealed value names its key: `1 | key id (8) | nonce (12) | ciphertext and tag`.

use crate::{KeyError, KeyId, KeyRing};
use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use meridian_core::Key;
use sha2::{Digest, Sha256};
use std::sync::Arc;
use zeroize::Zeroizing;

const FORMAT: u8 = 1;
const NONCE: usize = 12;
const TAG: usize = 16;

/// Where a sealed value lies.
#[derive(Clone, Copy)]
pub(crate) enum Place<'a> {
    /// The store's data key, sealed by the ring.
    DataKey,
    /// A resource, at present and in history.
    Resource(&'a Key),
    Private {
        bucket: &'a str,
        key: &'a str,
    },
}

#[derive(Debug)]
pub(crate) enum OpenFailure {
    /// Sealed by a key that is not at hand.
    OtherKey,
    /// Altered, or from another place.
    Damaged,
}

pub(crate) struct SealKey {
    id: KeyId,
    key: RandomizedNonceKey,
}

impl Place<'_> {
    /// Parts with their lengths, so that no two places look alike.
    fn associated_data(self) -> Vec<u8> {
        let parts: [&str; 5] = match self {
            Self::DataKey => ["data-key", "", "", "", ""],
            Self::Resource(key) => ["resource", key.kind.as_str(), &key.mesh, &key.zone, &key.name],
            Self::Private { bucket, key } => ["private", bucket, key, "", ""],
        };
        let mut data = b"meridian-store 1".to_vec();
        for part in parts {
            data.extend(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            data.extend(part.as_bytes());
        }
        data
    }
}

impl SealKey {
    pub(crate) fn id_of(bytes: &[u8; 32]) -> KeyId {
        let hash: [u8; 32] =
            Sha256::new().chain_update(b"meridian key id").chain_update(bytes).finalize().into();
        let [a, b, c, d, e, f, g, h, ..] = hash;
        KeyId([a, b, c, d, e, f, g, h])
    }

    /// None if the provider refuses the key, which it does not do for 32 bytes.
    pub(crate) fn new(bytes: &[u8; 32]) -> Option<Self> {
        let key = RandomizedNonceKey::new(&AES_256_GCM, bytes).ok()?;
        Some(Self { id: Self::id_of(bytes), key })
    }

    pub(crate) fn id(&self) -> KeyId {
        self.id
    }

    /// None if the system's source of randomness fails.
    pub(crate) fn seal(&self, place: Place<'_>, clear: &[u8]) -> Option<Vec<u8>> {
        let mut text = Vec::with_capacity(clear.len() + TAG);
        text.extend_from_slice(clear);
        let nonce = self.key.seal_in_place_append_tag(Aad::from(place.associated_data()), &mut text).ok()?;
        let mut sealed = Vec::with_capacity(1 + self.id.0.len() + NONCE + text.len());
        sealed.push(FORMAT);
        sealed.extend(self.id.0);
        sealed.extend(nonce.as_ref());
        sealed.extend(text);
        Some(sealed)
    }

    pub(crate) fn open(&self, place: Place<'_>, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, OpenFailure> {
        let (id, nonce, text) = take_apart(sealed).ok_or(OpenFailure::Damaged)?;
        if id != self.id {
            return Err(OpenFailure::OtherKey);
        }
        let mut text = Zeroizing::new(text.to_vec());
        let nonce = Nonce::from(nonce);
        let opened = self.key.open_in_place(nonce, Aad::from(place.associated_data()), &mut text);
        let length = opened.map_err(|_| OpenFailure::Damaged)?.len();
        text.truncate(length);
        Ok(text)
    }
}

/// By which key a value is sealed.
pub(crate) fn key_of(sealed: &[u8]) -> Option<KeyId> {
    take_apart(sealed).map(|(id, ..)| id)
}

fn take_apart(sealed: &[u8]) -> Option<(KeyId, &[u8; NONCE], &[u8])> {
    let (&format, rest) = sealed.split_first()?;
    let (id, rest) = rest.split_first_chunk::<8>()?;
    let (nonce, text) = rest.split_first_chunk::<NONCE>()?;
    (format == FORMAT).then_some((KeyId(*id), nonce, text))
}

/// A new data key, sealed by the newest key of the ring: what the store keeps of it.
pub(crate) fn new_data_key(ring: &KeyRing) -> Result<Vec<u8>, KeyError> {
    let mut bytes = Zeroizing::new([0; 32]);
    aws_lc_rs::rand::fill(&mut *bytes).map_err(|_| KeyError::Randomness)?;
    let wrapped = ring.key(ring.id()).and_then(|key| key.seal(Place::DataKey, &*bytes));
    wrapped.ok_or(KeyError::Randomness)
}

/// The data key of [`new_data_key`].
pub(crate) fn unwrap_data_key(ring_key: &SealKey, wrapped: &[u8]) -> Result<Arc<SealKey>, OpenFailure> {
    let clear = ring_key.open(Place::DataKey, wrapped)?;
    let bytes = Zeroizing::new(<[u8; 32]>::try_from(clear.as_slice()).map_err(|_| OpenFailure::Damaged)?);
    SealKey::new(&bytes).map(Arc::new).ok_or(OpenFailure::Damaged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use meridian_core::kinds;

    fn secret(mesh: &str, zone: &str, name: &str) -> Key {
        Key::new(meridian_core::Kind::named("Secret").unwrap(), mesh, zone, name)
    }

    #[test]
    fn a_sealed_value_opens_only_in_its_place_with_its_key() {
        assert!(kinds().iter().any(|info| info.kind.as_str() == "Secret"));
        let key = SealKey::new(&[7; 32]).unwrap();
        let home = secret("default", "", "tls");
        let sealed = key.seal(Place::Resource(&home), b"hush").unwrap();
        assert!(!sealed.windows(4).any(|window| window == b"hush"));
        assert_eq!(key.open(Place::Resource(&home), &sealed).unwrap().as_slice(), b"hush");
        let elsewhere =
            [secret("other", "", "tls"), secret("default", "tls", ""), secret("default", "", "tls2")];
        for place in
            elsewhere.iter().map(Place::Resource).chain([Place::Private { bucket: "default", key: "tls" }])
        {
            assert!(matches!(key.open(place, &sealed), Err(OpenFailure::Damaged)));
        }
        let other = SealKey::new(&[8; 32]).unwrap();
        assert!(matches!(other.open(Place::Resource(&home), &sealed), Err(OpenFailure::OtherKey)));
        for at in 0..sealed.len() {
            let mut altered = sealed.clone();
            altered[at] ^= 1;
            assert!(key.open(Place::Resource(&home), &altered).is_err(), "byte {at}");
        }
        assert_ne!(sealed, key.seal(Place::Resource(&home), b"hush").unwrap(), "nonces differ");
    }
}
