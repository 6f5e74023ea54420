//! Who is told the same of calls that go out: sidecars that the same policies select share one unit, and an egress knows
//! them by the name of their selection.

use super::kinds::{LEAVING, OUTGOING, ROUTES, is_outgoing, says_where};
use super::outgoing::backends::{self, Held};
use crate::picture::{MeshPicture, Picture, subject};
use meridian_core::Key;
use meridian_core::kinds::dataplane::Dataplane;
use meridian_core::kinds::mesh_proxy_patch::MeshProxyPatch;
use meridian_policy::{Parsed, Policy, Section};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::sync::Arc;

/// The policies on outgoing calls that select a sidecar.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Selection(Arc<BTreeSet<Key>>);

pub(crate) fn selection(mesh: &MeshPicture, dataplane: &Parsed<Dataplane>) -> Selection {
    let subject = subject(dataplane);
    let kinds = OUTGOING.iter().map(|of| of.kind).chain(ROUTES).chain([MeshProxyPatch::KIND]);
    let candidates = kinds.flat_map(|kind| mesh.policies.candidates(kind, &subject));
    let selecting = candidates.filter(|policy| selects_outgoing(mesh, policy, dataplane));
    Selection(Arc::new(selecting.map(|policy| policy.key().clone()).collect()))
}

impl Selection {
    /// Those of them that hold for calls that leave the mesh: an egress is told of no others.
    pub(crate) fn leaving(&self) -> Self {
        Self(Arc::new(self.0.iter().filter(|key| LEAVING.contains(&key.kind)).cloned().collect()))
    }

    /// The policies, by their keys in order.
    pub(super) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.0.iter()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What an egress calls it: the same for the same policies, whatever they say. Empty: no policy.
    pub(crate) fn name(&self) -> String {
        if self.0.is_empty() {
            return String::new();
        }
        let mut hasher = Sha256::new();
        for key in self.0.iter() {
            // No part of a key has a line break.
            hasher.update(format!("{key}\n"));
        }
        // 96 bits: nobody can choose what they are hashes of but who writes policies.
        hasher.finalize().iter().take(12).map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Whether a policy says something of the calls that a sidecar's application makes.
pub(crate) fn selects_outgoing(mesh: &MeshPicture, policy: &Policy, dataplane: &Parsed<Dataplane>) -> bool {
    is_outgoing(policy) && policy.selects(&mesh.routes, &subject(dataplane), Section::Whole)
}

/// What a sidecar must hold for its routes' sake.
pub(crate) fn held(picture: &Picture, mesh: &MeshPicture, selection: &Selection) -> BTreeSet<Held> {
    let selected = selection.0.iter().filter_map(|key| mesh.policies.get(key));
    selected
        .filter(|policy| says_where(policy))
        .flat_map(|route| backends::held(picture, mesh, route))
        .collect()
}
