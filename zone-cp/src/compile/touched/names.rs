//! Where a change of names is told.

use super::Touched;
use crate::compile::Unit;
use crate::compile::members::is_external;
use crate::hostnames::{self, Names};
use crate::picture::Picture;
use meridian_core::Key;
use meridian_core::kinds::hostname_generator::HostnameGenerator;
use meridian_core::kinds::mesh_external_service::MeshExternalService;
use meridian_core::kinds::mesh_multi_zone_service::MeshMultiZoneService;
use meridian_core::kinds::mesh_service::MeshService;

/// Who has other names now: the resource itself, those to and from whom a name moved, and all of whom a generator speaks.
pub(super) fn names(before: &Picture, after: &Picture, key: &Key, out: &mut Touched) {
    if key.kind == HostnameGenerator::KIND {
        for picture in [before, after] {
            for mesh in picture.meshes.values() {
                let all = mesh.services.keys().chain(mesh.mesh_external_services.keys());
                all.chain(mesh.multi_zone_services.keys()).for_each(|key| named(picture, key, out));
            }
        }
        return;
    }
    if !hostnames::is_named(key.kind) && !is_external(key.kind) {
        return;
    }
    let of = |picture: &Picture| picture.mesh(&key.mesh).map(|mesh| mesh.names.clone()).unwrap_or_default();
    let (old, new) = (of(before), of(after));
    if !old.same(&new, key) {
        Names::renamed(&old, &new, key).iter().for_each(|renamed| named(after, renamed, out));
    }
}

/// Where the names of a resource are told.
fn named(picture: &Picture, key: &Key, out: &mut Touched) {
    match key.kind {
        MeshService::KIND => {
            out.units.insert(Unit::Service(key.clone()));
            if picture.is_local(key) {
                out.services.insert((key.mesh.clone(), key.name.clone()));
            }
        }
        MeshExternalService::KIND => {
            out.units.extend([Unit::External(key.clone()), Unit::Entry(key.clone())])
        }
        MeshMultiZoneService::KIND => drop(out.units.insert(Unit::MultiZone(key.clone()))),
        _ => {}
    }
}
