//! What a policy touches: whom it selects, and what is told to or about those.

use super::{Touched, service_units};
use crate::compile::{Unit, policies};
use crate::picture::{MeshPicture, Picture, subject};
use meridian_core::kinds::dataplane::Dataplane;
use meridian_core::kinds::mesh_tls::MeshTls;
use meridian_core::{Key, Resource, TargetKind, TargetRef};
use meridian_policy::{Parsed, Policy, Routes};
use std::sync::Arc;

pub(super) fn permission(picture: &Picture, key: &Key, out: &mut Touched) {
    let Some(mesh) = picture.mesh(&key.mesh) else { return };
    let Some(policy) = mesh.permissions.iter().find(|it| it.resource.key == *key) else { return };
    out.units.extend(
        selected_sidecars(mesh, &policy.resource, policy.spec.target_ref.as_ref()).map(Unit::Dataplane),
    );
    for destination in mesh.external_services.keys().chain(mesh.mesh_external_services.keys()) {
        out.units.insert(Unit::Entry(destination.clone()));
        if !mesh.egress_enforced() {
            out.units.insert(Unit::External(destination.clone()));
        }
    }
}

pub(super) fn passthrough(picture: &Picture, key: &Key, out: &mut Touched) {
    let Some(mesh) = picture.mesh(&key.mesh) else { return };
    let Some(policy) = mesh.passthroughs.iter().find(|it| it.resource.key == *key) else { return };
    for dataplane in selected_sidecars(mesh, &policy.resource, policy.spec.target_ref.as_ref()) {
        out.units.extend([Unit::Dataplane(dataplane.clone()), Unit::Caller(dataplane)]);
    }
    out.units.insert(Unit::PassthroughEntries(key.mesh.clone()));
}

/// A policy's own sidecars get other units where it comes or goes; what the units say may change at any time.
pub(super) fn policy(picture: &Picture, key: &Key, out: &mut Touched) {
    let Some(mesh) = picture.mesh(&key.mesh) else { return };
    let Some(policy) = mesh.policies.get(key) else { return };
    let is_target = is_target(mesh, policy);
    for (dataplane, it) in mesh.dataplanes.iter() {
        if is_target || policies::selects_outgoing(mesh, policy, it) {
            out.proxies.insert(dataplane.clone());
        }
        if policies::selects_incoming(policy, it) || policies::selects_whole(policy, it) {
            out.units.insert(Unit::Dataplane(dataplane.clone()));
        }
    }
    if policies::is_of_entries(policy) {
        let entries = mesh.external_services.keys().chain(mesh.mesh_external_services.keys());
        out.units.extend(entries.cloned().map(Unit::Entry));
    }
    out.policies.extend(policies::is_outgoing(policy).then(|| key.mesh.clone()));
    if key.kind == MeshTls::KIND {
        // How a service is spoken to may follow from what its inbounds take.
        for service in mesh.services.keys().filter(|service| picture.is_local(service)) {
            service_units(picture, mesh, service, out);
        }
        out.units.extend(picture.egresses.keys().cloned().map(Unit::Gateway));
    }
}

/// Whether a policy is a route that decides whom the policies select that are about it.
fn is_target(mesh: &MeshPicture, policy: &Policy) -> bool {
    let is_of_routes =
        |it: &Arc<Policy>| it.target().is_some_and(|target| target.kind == TargetKind::MeshHttpRoute);
    Routes::is_route(policy) && mesh.policies.values().any(is_of_routes)
}

/// Callers of which an egress is told that other policies select them now.
pub(super) fn callers(before: &Picture, after: &Picture, key: &Key, out: &mut Touched) {
    if !policies::is_executed(key.kind) {
        return;
    }
    let of = |picture: &Picture| {
        let mesh = picture.mesh(&key.mesh)?.clone();
        let policy = mesh.policies.get(key)?.clone();
        Some((mesh, policy))
    };
    let (old, new) = (of(before), of(after));
    let decides = [&old, &new].into_iter().flatten().any(|(mesh, policy)| is_target(mesh, policy));
    let Some(mesh) = after.mesh(&key.mesh) else { return };
    for (dataplane, it) in mesh.dataplanes.iter() {
        let selects = |of: &Option<(MeshPicture, Arc<Policy>)>| {
            of.as_ref().is_some_and(|(mesh, policy)| policies::selects_outgoing(mesh, policy, it))
        };
        if decides || selects(&old) != selects(&new) {
            out.units.insert(Unit::Caller(dataplane.clone()));
            out.groups.egresses = true;
        }
    }
}

/// Dataplanes of which the policy selects at least a part.
fn selected_sidecars<'a>(
    mesh: &'a MeshPicture,
    policy: &'a Resource,
    target: Option<&'a TargetRef>,
) -> impl Iterator<Item = Key> + 'a {
    let is_selected = move |dataplane: &&Arc<Parsed<Dataplane>>| {
        let subject = subject(dataplane);
        let inbounds = dataplane.spec.networking.iter().flat_map(|networking| &networking.inbound);
        let mut parts = inbounds.map(Some).chain([None]);
        parts.any(|inbound| meridian_policy::selects(policy, target, &subject, inbound))
    };
    mesh.dataplanes.values().filter(is_selected).map(|dataplane| dataplane.resource.key.clone())
}

/// Endpoints and proxies bear the tags that policies ask for: other ones once a policy asks for others.
pub(super) fn asked_tags(before: &Picture, after: &Picture, key: &Key, out: &mut Touched) {
    let asked = |picture: &Picture| picture.mesh(&key.mesh).map(|mesh| mesh.asked_tags.clone());
    let [old, new] = [before, after].map(|picture| asked(picture).unwrap_or_default());
    if old.keys().eq(new.keys()) {
        return;
    }
    for picture in [before, after] {
        let Some(mesh) = picture.mesh(&key.mesh) else { continue };
        mesh.services.keys().for_each(|service| service_units(picture, mesh, service, out));
        out.units.extend(mesh.dataplanes.keys().cloned().map(Unit::Dataplane));
    }
}
