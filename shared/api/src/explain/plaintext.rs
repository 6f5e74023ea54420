//! Whether a service is spoken to in plaintext.

use super::Facts;
use crate::inspect::world::subject;
use meridian_core::kinds::mesh::MtlsMode;
use meridian_core::kinds::mesh_service::{MeshService, Status};
use meridian_core::kinds::mesh_tls::{Conf, MeshTls, Mode};
use meridian_policy::{Parsed, Section, inbound_confs, inbound_rules, offered};

/// Whether callers in a zone speak plaintext to a service that is there in these forms: without mTLS in the mesh; and under
/// PERMISSIVE while instances of one in their zone are without certificates, unless a MeshTLS takes nothing else than mTLS.
/// Twin of `destination_tls` in `zone-cp/src/compile/services.rs`.
pub(super) fn is_spoken(facts: &Facts, zone: &str, services: &[&Parsed<MeshService>]) -> bool {
    let Some(backend) = facts.mesh.spec.mtls_backend() else { return true };
    let is_plain = |it: &&Parsed<MeshService>| {
        it.resource.key.zone == zone
            && status_of(it).tls.is_none_or(|tls| tls.status != "Ready")
            && !is_closed(facts, it)
    };
    backend.mode == MtlsMode::Permissive && services.iter().any(is_plain)
}

/// What the zone of a service has found out about it.
pub(super) fn status_of(service: &Parsed<MeshService>) -> Status {
    let status = service.resource.status.as_ref();
    status.and_then(|status| serde_json::from_value(status.clone()).ok()).unwrap_or_default()
}

/// Whether MeshTLS closes some inbound of the service to plaintext; policies that can't be read do. Twin of `closes` in
/// `zone-cp/src/compile/policies/tls.rs`.
fn is_closed(facts: &Facts, service: &Parsed<MeshService>) -> bool {
    let mut inbounds = facts.dataplanes.iter().flat_map(|dataplane| {
        offered(service, dataplane).into_iter().map(move |inbound| (dataplane, inbound))
    });
    inbounds.any(|(dataplane, inbound)| {
        let section = Section::Inbound(inbound);
        let policies = facts.world.selecting(MeshTls::KIND, &subject(dataplane), section);
        let confs = inbound_confs(&inbound_rules(&policies));
        confs.iter().any(|conf| match conf.merged.conf::<Conf>() {
            Ok(said) => conf.matched.is_none() && said.mode == Some(Mode::Strict),
            Err(_) => true,
        })
    })
}
