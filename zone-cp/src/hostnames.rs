//! The names of services in this zone; what names there are is said in one place for all of Meridian.

use crate::picture::Picture;
use meridian_core::kinds::mesh_external_service::MeshExternalService;
use meridian_core::kinds::mesh_service::MeshService;
use meridian_policy::{Parsed, hostnames};

pub(crate) use meridian_policy::legacy_hostname as legacy;

/// Names of a MeshService, sorted: of this zone's `<name>.svc.mesh.local`, of another's with the zone in it.
pub(crate) fn of_service(picture: &Picture, service: &Parsed<MeshService>) -> Vec<String> {
    hostnames(&picture.zone, picture.generators.values().map(|it| &it.spec), &service.resource)
}

/// Names of a MeshExternalService, sorted.
pub(crate) fn of_external(picture: &Picture, service: &Parsed<MeshExternalService>) -> Vec<String> {
    hostnames(&picture.zone, picture.generators.values().map(|it| &it.spec), &service.resource)
}
