//! The public halves of the keys that sign tokens, and which tokens are revoked: from the store to a verifier.

use meridian_auth::{Purpose, VerificationKey, Verifier};
use meridian_core::kinds::token_key::{TokenKey, TokenPurpose};
use meridian_core::kinds::token_revocation::TokenRevocation;
use meridian_core::{Key, Resource};
use meridian_store::Changed;
use std::collections::BTreeMap;

/// All that is known now.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    keys: BTreeMap<Key, TokenKey>,
    revocations: BTreeMap<Key, TokenRevocation>,
}

impl Known {
    /// Whether the change is about tokens.
    pub(crate) fn take(&mut self, key: &Key, change: &Changed) -> bool {
        match key.kind {
            TokenKey::KIND => take(&mut self.keys, key, change),
            TokenRevocation::KIND => take(&mut self.revocations, key, change),
            _ => false,
        }
    }

    pub(crate) fn verifier(&self) -> Verifier {
        let mut verifier = Verifier::default();
        for key in self.keys.values() {
            let key = VerificationKey {
                purpose: purpose(key.purpose),
                mesh: key.mesh.clone(),
                kid: key.kid.clone(),
                public_key_pem: key.public_key_pem.clone(),
            };
            if let Err(error) = verifier.add_key(&key) {
                tracing::error!(%error, kid = key.kid, "a key for tokens can't be used");
            }
        }
        for revocation in self.revocations.values() {
            for id in &revocation.ids {
                verifier.revoke(purpose(revocation.purpose), revocation.mesh.as_deref(), id);
            }
        }
        verifier
    }
}

fn take<T: meridian_core::Spec>(all: &mut BTreeMap<Key, T>, key: &Key, change: &Changed) -> bool {
    match change {
        Changed::Put(resource) => match Resource::parse::<T>(resource) {
            Ok(parsed) => drop(all.insert(key.clone(), parsed)),
            Err(error) => tracing::error!(%error, "what was stored about tokens can't be read"),
        },
        Changed::Delete => drop(all.remove(key)),
    }
    true
}

fn purpose(of: TokenPurpose) -> Purpose {
    match of {
        TokenPurpose::Dataplane => Purpose::Dataplane,
        TokenPurpose::Zone => Purpose::Zone,
        TokenPurpose::User => Purpose::User,
    }
}
