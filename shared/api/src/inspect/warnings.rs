//! Why a policy that selects a Dataplane does not do what its text says.

use super::world::World;
use meridian_core::kinds::mesh_traffic_permission::MeshTrafficPermission;
use meridian_core::{KindInfo, document, names};
use meridian_policy::{Policy, Section, Subject, to_items};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Of the policies of one kind, each said once.
pub(super) fn of(world: &World, info: &KindInfo, subject: &Subject<'_>) -> Vec<String> {
    let mut policies = world.selecting(info.kind, subject, Section::Whole);
    for section in subject.sections() {
        for policy in world.selecting(info.kind, subject, section) {
            if policies.iter().all(|known| known.key() != policy.key()) {
                policies.push(policy);
            }
        }
    }
    let mut out: BTreeSet<String> = policies.iter().flat_map(|policy| fields(policy)).collect();
    out.extend(policies.iter().flat_map(|policy| destinations(world, policy)));
    let without_identity = world.mesh.as_ref().is_some_and(|mesh| mesh.spec.mtls_backend().is_none());
    if info.kind == MeshTrafficPermission::KIND && without_identity && !policies.is_empty() {
        out.insert("mTLS is off in this mesh: nobody is asked for a permission".to_owned());
    }
    let tried = world.tried_out(info.kind, subject);
    out.extend(tried.into_iter().map(|policy| {
        format!("{} is only tried out (kuma.io/effect: shadow) and not among these", named(policy))
    }));
    world.unreadable(info.kind).iter().cloned().chain(out).collect()
}

/// What the write of it was answered: fields that nothing executes, above all.
fn fields(policy: &Policy) -> Vec<String> {
    let checked = document::check_resource(&policy.resource);
    let warnings = checked.map(|checked| checked.warnings).unwrap_or_default();
    warnings.into_iter().map(|warning| format!("{}: {warning}", named(policy))).collect()
}

/// Items of `to` that name nothing that is there.
fn destinations(world: &World, policy: &Arc<Policy>) -> Vec<String> {
    let items = to_items(std::slice::from_ref(policy));
    let absent = items.iter().filter(|item| !item.is_there(&world.destinations));
    absent
        .map(|item| format!("{}: spec.to[{}] names nothing that is there", named(policy), item.index()))
        .collect()
}

fn named(policy: &Policy) -> String {
    let resource = &policy.resource;
    format!("{} {}", resource.key.kind, names::display(&resource.key.name, &resource.labels))
}
