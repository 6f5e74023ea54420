//! `ZoneIngress.availableServices`: what other zones reach through an ingress, found out when somebody asks.
//!
//! Kuma keeps it in the resource and sends the whole list to every zone whenever an instance comes or goes. Here the other
//! zones learn of services by MeshServices; the list is for people and tools that read it.

use crate::Api;
use crate::Role;
use crate::overview::{presence, proxy_of};
use crate::problem::Problem;
use crate::report::{Presence, ProxyOverview, ZoneReport};
use crate::resources::read_problem;
use meridian_core::kinds::dataplane::{Dataplane, Inbound};
use meridian_core::kinds::external_service::ExternalService;
use meridian_core::kinds::mesh::Mesh;
use meridian_core::kinds::zone_ingress::{AvailableService, ZoneIngress};
use meridian_core::{Kind, labels};
use meridian_store::{Query, Stored};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Mesh and tags, and whether they are an ExternalService's.
type Group = (String, BTreeMap<String, String>, bool);

/// Whether a kind has fields that are found out.
pub(crate) fn is_derived(kind: Kind) -> bool {
    kind == ZoneIngress::KIND
}

/// Gives a resource the status that is found out now. False: what is stored is all that is known.
pub(crate) fn status(api: &Api, stored: &mut Stored) -> bool {
    let found = api.hooks.status(&stored.resource);
    let is_found_out = found.is_some();
    stored.resource.status = found.or(stored.resource.status.take());
    is_found_out
}

/// Fills in what the zones of these ingresses offer. An ingress of another zone than this one's, which only global could
/// know, says nothing.
pub(crate) async fn fill(api: &Api, stored: &mut [Stored]) -> Result<(), Problem> {
    if !stored.iter().any(|stored| is_derived(stored.resource.key.kind)) {
        return Ok(());
    }
    let by_zone = offered(api).await?;
    for stored in stored {
        let zone = stored.resource.key.zone.as_str();
        let home = match &api.role {
            Role::Global => zone,
            Role::Zone { name } if zone.is_empty() => name,
            Role::Zone { name } if zone == name => zone,
            Role::Zone { .. } => continue,
        };
        if let Value::Object(spec) = &mut stored.resource.spec {
            let services: &[AvailableService] = by_zone.get(home).map_or(&[], Vec::as_slice);
            spec.insert("availableServices".to_owned(), json!(services));
        }
    }
    Ok(())
}

async fn offered(api: &Api) -> Result<BTreeMap<String, Vec<AvailableService>>, Problem> {
    let all = async |kind| Ok(api.store.list(&Query::all(kind)).await.map_err(read_problem)?.items);
    let meshes: BTreeMap<String, Mesh> = all(Mesh::KIND)
        .await?
        .iter()
        .filter_map(|stored| Some((stored.resource.key.name.clone(), stored.resource.parse::<Mesh>().ok()?)))
        // Without certificates nothing crosses zones.
        .filter(|(_, mesh)| mesh.mtls_backend().is_some())
        .collect();
    let reports = api.hooks.reports().await?;
    let mut found: BTreeMap<(String, Group), u32> = BTreeMap::new();
    for stored in all(Dataplane::KIND).await? {
        let key = &stored.resource.key;
        let Ok(dataplane) = stored.resource.parse::<Dataplane>() else { continue };
        if !meshes.contains_key(&key.mesh) {
            continue;
        }
        let Some(proxy) = online(&stored, &reports, &api.role) else { continue };
        let inbounds = dataplane.networking.iter().flat_map(|networking| &networking.inbound);
        for inbound in inbounds.filter(|inbound| is_ready(inbound, proxy)) {
            let group = (key.mesh.clone(), inbound.tags.clone(), false);
            *found.entry((home(&api.role, &key.zone), group)).or_default() += 1;
        }
    }
    for stored in all(ExternalService::KIND).await? {
        let Ok(service) = stored.resource.parse::<ExternalService>() else { continue };
        let mesh = &stored.resource.key.mesh;
        if let Some(zone) = service.tags.get(labels::ZONE)
            && meshes.get(mesh).is_some_and(Mesh::zone_egress)
        {
            *found.entry((zone.clone(), (mesh.clone(), service.tags.clone(), true))).or_default() += 1;
        }
    }
    let mut by_zone: BTreeMap<String, Vec<AvailableService>> = BTreeMap::new();
    for ((zone, (mesh, tags, external_service)), instances) in found {
        by_zone.entry(zone).or_default().push(AvailableService { tags, instances, mesh, external_service });
    }
    Ok(by_zone)
}

fn home(role: &Role, zone: &str) -> String {
    match role {
        Role::Zone { name } if zone.is_empty() => name.clone(),
        _ => zone.to_owned(),
    }
}

fn online<'a>(stored: &Stored, reports: &'a [ZoneReport], role: &Role) -> Option<&'a ProxyOverview> {
    let (report, proxy) = proxy_of(stored, reports, role)?;
    (presence(report, proxy, role) == Presence::Online).then_some(proxy)
}

/// By what the Dataplane says of itself, and by what its proxy's probes say.
fn is_ready(inbound: &Inbound, proxy: &ProxyOverview) -> bool {
    let name = inbound.section_name();
    let probed = proxy.status.as_ref().and_then(|status| status.inbounds.iter().find(|it| it.name == name));
    inbound.is_ready() && probed.is_none_or(|status| status.ready)
}
