//! Whom each mesh believes: its roots, and the intermediates that it believes no longer.
//!
//! The first root of a bundle is the one that signs. What it signed is remembered until it expires, so that a revocation
//! finds it, and forgets it afterwards.

use crate::rotation::Rotation;
use crate::tokens::origin;
use crate::vault::{self, Clients, Cutoff, Intermediate};
use crate::world::World;
use meridian_core::kinds::{mesh::Mesh, trust_bundle::TrustBundle, zone::Zone};
use meridian_core::{Key, Resource};
use meridian_pki::{RootCa, SpkiHash};
use meridian_store::{Change, Expect, ReadError, Revision, Store};
use std::collections::BTreeSet;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// The key of a mesh's bundle.
pub(crate) fn key(mesh: &str) -> Key {
    Key::global(TrustBundle::KIND, mesh, "default")
}

/// A bundle as a resource; `rotation` is shown to whoever reads it.
pub(crate) fn resource(mesh: &str, bundle: &TrustBundle, rotation: Option<&Rotation>) -> Resource {
    let mut resource = Resource::of(key(mesh), origin(), bundle);
    resource.status = rotation.map(|rotation| serde_json::json!({"rotation": rotation}));
    resource
}

/// A bundle with the revision that a change of it expects.
pub(crate) struct Held {
    pub(crate) bundle: TrustBundle,
    pub(crate) rotation: Option<Rotation>,
    pub(crate) revision: Revision,
}

/// The bundle of a mesh as the store has it now.
pub(crate) async fn read(store: &Store, mesh: &str) -> Result<Option<Held>, ReadError> {
    let Some(stored) = store.get(&key(mesh)).await? else { return Ok(None) };
    let damaged = |what: String| ReadError::Damaged { what };
    let bundle = stored.resource.parse().map_err(|error| damaged(error.to_string()))?;
    let rotation = rotation_of(&stored.resource).map_err(damaged)?;
    Ok(Some(Held { bundle, rotation, revision: stored.revision }))
}

/// The rotation under way, from a bundle's status.
pub(crate) fn rotation_of(bundle: &Resource) -> Result<Option<Rotation>, String> {
    let rotation = bundle.status.as_ref().and_then(|status| status.get("rotation"));
    rotation.map(|value| serde_json::from_value(value.clone())).transpose().map_err(|error| error.to_string())
}

/// What a mesh needs that turns mTLS on for the first time.
pub(crate) fn first_root(root: &RootCa) -> [Change; 2] {
    let bundle = TrustBundle { roots: vec![root.authority().certificate_pem()], revoked: Vec::new() };
    [
        vault::put_root(root),
        Change::Put { resource: resource(root.mesh(), &bundle, None), expect: Expect::Absent },
    ]
}

/// Whether the mesh has a root.
pub(crate) fn wants_root(mesh: &Mesh) -> bool {
    mesh.mtls_backend().is_some()
}

/// The hash by which a root (PEM) is named.
pub(crate) fn root_hash(pem: &str) -> Option<String> {
    let certificates = meridian_pki::certificates_from_pem(pem).ok()?;
    Some(SpkiHash::of_certificate(certificates.first()?).ok()?.to_string())
}

/// Shuts a zone out of every mesh: its intermediates are revoked, its client certificates and tokens forgotten. The
/// caller adds what becomes of the Zone itself.
pub(crate) async fn revoke(
    store: &Store,
    meshes: &[String],
    zone: &str,
    now: OffsetDateTime,
) -> anyhow::Result<Vec<Change>> {
    let clients: Clients = vault::read(store, vault::CLIENTS, zone).await?.unwrap_or_default();
    let before: Cutoff = vault::read(store, vault::CUTOFFS, zone).await?.unwrap_or_default();
    let used: BTreeSet<String> =
        before.tokens.into_iter().chain(clients.0.into_iter().map(|client| client.token)).collect();
    let cutoff = Cutoff { before: now.unix_timestamp(), tokens: used.into_iter().collect() };
    let mut changes = vec![
        vault::delete(vault::CLIENTS, zone),
        vault::delete(vault::FENCES, zone),
        vault::put(vault::CUTOFFS, zone, &cutoff),
    ];
    let intermediates = store.private_list(vault::INTERMEDIATES).await?;
    for mesh in meshes {
        let prefix = format!("{mesh}/{zone}/");
        let mut live = BTreeSet::new();
        for (place, value) in &intermediates {
            let Some(hash) = place.strip_prefix(&prefix) else { continue };
            // One that can't be read is revoked rather than spared.
            let expired = serde_json::from_slice::<Intermediate>(value)
                .is_ok_and(|intermediate| intermediate.not_after <= now.unix_timestamp());
            if expired {
                changes.push(vault::delete(vault::INTERMEDIATES, place));
            } else {
                live.insert(hash.to_owned());
            }
        }
        let Some(held) = read(store, mesh).await? else { continue };
        let mut bundle = held.bundle;
        let known: BTreeSet<String> = bundle.revoked.iter().cloned().collect();
        let all: BTreeSet<String> = known.union(&live).cloned().collect();
        if all != known {
            bundle.revoked = all.into_iter().collect();
            changes.push(Change::Put {
                resource: resource(mesh, &bundle, held.rotation.as_ref()),
                expect: Expect::Revision(held.revision),
            });
        }
    }
    Ok(changes)
}

/// The meshes that have a bundle.
pub(crate) fn meshes(world: &World) -> Vec<String> {
    world.of_kind(TrustBundle::KIND).map(|bundle| bundle.key.mesh.clone()).collect()
}

/// The key of a Zone.
pub(crate) fn zone_key(zone: &str) -> Key {
    Key::global(Zone::KIND, "", zone)
}

/// RFC 3339.
pub(crate) fn rfc3339(time: OffsetDateTime) -> String {
    time.format(&Rfc3339).unwrap_or_default()
}
