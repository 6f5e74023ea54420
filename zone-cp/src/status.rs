//! What the zone has found out about services: its address for each, and the names that lead there.
//!
//! Found out when somebody asks and not stored: what global or another zone wrote is theirs, and a status in the
//! zone's store would be taken for a difference whenever the two are compared. Only what other zones live by, of the
//! zone's own MeshServices, is stored (see [`crate::generate`]).

use crate::compile::{external, multi_zone, services};
use crate::picture::{MeshPicture, Picture};
use crate::vip::{Addresses, Owner};
use arc_swap::ArcSwap;
use meridian_core::kinds::mesh_external_service::{self as extsvc, MeshExternalService};
use meridian_core::kinds::mesh_multi_zone_service::{
    self as mzsvc, MatchedMeshService, MeshMultiZoneService,
};
use meridian_core::kinds::mesh_service::{MeshService, Vip};
use meridian_core::{Key, Resource};
use serde_json::Value;
use std::sync::Arc;

/// What a status is made of, as it is now.
pub(crate) struct Found {
    pub(crate) picture: Arc<ArcSwap<Picture>>,
    pub(crate) addresses: Addresses,
}

impl Found {
    /// None for a resource of which the zone has found out nothing.
    pub(crate) fn status(&self, resource: &Resource) -> Option<Value> {
        let (picture, key) = (self.picture.load(), &resource.key);
        let mesh = picture.mesh(&key.mesh)?;
        match key.kind {
            MeshMultiZoneService::KIND => self.multi_zone(mesh, key),
            MeshExternalService::KIND => self.external(mesh, key),
            MeshService::KIND => self.service(&picture, mesh, key),
            _ => None,
        }
    }

    fn multi_zone(&self, mesh: &MeshPicture, key: &Key) -> Option<Value> {
        let service = mesh.multi_zone_services.get(key)?;
        let selected = multi_zone::selected(mesh, service);
        let status = mzsvc::Status {
            addresses: mesh.names.addresses(key),
            hostname_generators: mesh.names.conditions(key),
            vips: self.vip(&multi_zone::owner_of(key)).into_iter().collect(),
            ..mzsvc::Status::matching(selected.map(|it| MatchedMeshService::from(&it.resource)).collect())
        };
        serde_json::to_value(status).ok()
    }

    fn external(&self, mesh: &MeshPicture, key: &Key) -> Option<Value> {
        mesh.mesh_external_services.get(key)?;
        let status = extsvc::Status {
            vip: self.vip(&external::extsvc_owner(key)),
            addresses: mesh.names.addresses(key),
            hostname_generators: mesh.names.conditions(key),
        };
        serde_json::to_value(status).ok()
    }

    /// What its own zone says of its instances, with this zone's names.
    fn service(&self, picture: &Picture, mesh: &MeshPicture, key: &Key) -> Option<Value> {
        let mut status = services::status_of(mesh.service(key)?);
        let vip = services::owner(picture, key).and_then(|owner| self.vip(&owner));
        status.addresses = vip.as_ref().map(|_| mesh.names.addresses(key)).unwrap_or_default();
        status.hostname_generators = vip.as_ref().map(|_| mesh.names.conditions(key)).unwrap_or_default();
        status.vips = vip.into_iter().collect();
        serde_json::to_value(status).ok()
    }

    fn vip(&self, owner: &Owner) -> Option<Vip> {
        self.addresses.get(owner).map(|ip| Vip { ip: ip.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::fixture::*;
    use serde_json::json;

    #[test]
    fn each_zone_has_its_own_names_and_addresses_for_what_is_not_its_own() {
        let (mut east, _) = world();
        let spec = json!({
            "selector": {"meshService": {"matchLabels": {"kuma.io/display-name": "backend"}}},
            "ports": [{"port": 9000}],
        });
        east.put(global("MeshMultiZoneService", "default", "all", spec)).unwrap();
        let world = World::new(east);
        let addresses = Addresses::default();
        addresses.set(&world.vips);
        let found = Found { picture: Arc::new(ArcSwap::from_pointee(world.picture.clone())), addresses };
        let mesh = &world.picture.meshes["default"];

        let all = mesh.multi_zone_services.values().next().unwrap();
        let status = found.status(&all.resource).unwrap();
        let generator = json!({"coreName": "synced-mesh-multi-zone-service"});
        assert_eq!(
            status["addresses"],
            json!([{"hostname": "all.mzsvc.mesh.local", "origin": "HostnameGenerator", "hostnameGeneratorRef": generator}])
        );
        assert_eq!(
            status["meshServices"],
            json!([{"mesh": "default", "name": "backend", "namespace": "", "zone": "west"}])
        );
        assert_eq!(status["conditions"][0]["reason"], "MatchesFound");
        assert_eq!(status["hostnameGenerators"][0]["conditions"][0]["status"], "True");
        assert!(status["vips"][0]["ip"].as_str().unwrap().starts_with("243."), "{status}");

        let billing = mesh.mesh_external_services.values().next().unwrap();
        let status = found.status(&billing.resource).unwrap();
        assert_eq!(status["addresses"][0]["hostname"], "billing.extsvc.mesh.local");
        assert!(status["vip"]["ip"].as_str().unwrap().starts_with("242."), "{status}");

        let far = mesh.services.values().find(|it| it.resource.key.zone == "west").unwrap();
        let status = found.status(&far.resource).unwrap();
        assert_eq!(status["addresses"][0]["hostname"], "backend.svc.west.mesh.local");
        assert_eq!(status["dataplaneProxies"]["healthy"], 3);
        let own = mesh.services.values().find(|it| it.resource.key.zone == "east").unwrap();
        let status = found.status(&own.resource).unwrap();
        assert_eq!(status["addresses"][1]["hostname"], "web.svc.mesh.local");
        assert_eq!(
            status["hostnameGenerators"][0]["hostnameGeneratorRef"]["coreName"],
            "local-universal-mesh-service"
        );
    }
}
