use crate::{PkiError, TrustError, TrustStore, Usage, VerifiedPeer};
use arc_swap::ArcSwap;
use meridian_proxy_config::{Bundle, sni};
use rustls_pki_types::CertificateDer;
use std::{collections::BTreeMap, sync::Arc};
use time::OffsetDateTime;

/// The bundles of all meshes that a process believes, swapped while sessions run. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Bundles(Arc<ArcSwap<State>>);

#[derive(Clone, Debug, Default)]
struct State {
    generation: u64,
    meshes: BTreeMap<String, Arc<TrustStore>>,
}

impl Bundles {
    pub fn new() -> Self {
        Self::default()
    }

    /// Replaces a mesh's bundle; whether anything changed. On an error the old bundle stays: its holder reports the
    /// rejection.
    pub fn set(&self, bundle: &Bundle) -> Result<bool, PkiError> {
        if self.get(&bundle.mesh).is_some_and(|store| store.bundle() == bundle) {
            return Ok(false);
        }
        TrustStore::compile(bundle)?;
        let mut failed = None;
        self.0.rcu(|state| {
            let mut next = State::clone(state);
            next.generation += 1;
            match TrustStore::with_generation(bundle, next.generation) {
                Ok(store) => drop(next.meshes.insert(bundle.mesh.clone(), Arc::new(store))),
                Err(error) => failed = Some(error),
            }
            next
        });
        failed.map_or(Ok(true), Err)
    }

    /// Believes nobody of the mesh any more.
    pub fn remove(&self, mesh: &str) -> bool {
        let before = self.0.rcu(|state| {
            let mut next = State::clone(state);
            next.generation += u64::from(next.meshes.remove(mesh).is_some());
            next
        });
        before.meshes.contains_key(mesh)
    }

    pub fn get(&self, mesh: &str) -> Option<Arc<TrustStore>> {
        self.0.load().meshes.get(mesh).cloned()
    }

    /// Grows with every change of any bundle: one load tells whether sessions must be looked at again.
    pub fn generation(&self) -> u64 {
        self.0.load().generation
    }

    /// The mesh of a session's server name (`sni.<kind>.<mesh>...`, hashed labels included), if its bundle is here.
    pub fn mesh_of_sni(&self, server_name: &str) -> Option<String> {
        let parsed = sni::parse(server_name)?;
        let state = self.0.load();
        state.meshes.keys().find(|mesh| sni::label(mesh) == parsed.mesh).cloned()
    }

    /// Proves a chain against the newest bundle: in a handshake, and for the stored chain of an open session after a
    /// change of [`Bundles::generation`].
    pub fn verify(
        &self,
        mesh: &str,
        chain: &[CertificateDer<'_>],
        usage: Usage,
        now: OffsetDateTime,
    ) -> Result<VerifiedPeer, TrustError> {
        self.get(mesh).ok_or_else(|| TrustError::UnknownMesh(mesh.to_owned()))?.verify_peer(chain, usage, now)
    }
}
