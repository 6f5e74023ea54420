//! One service: the Dataplanes that offer it, and the names that it has, zone by zone.

use super::shown;
use super::world::{all_parsed, of_kind, parsed};
use crate::access::Action;
use crate::format::Form;
use crate::identify;
use crate::list::{self, Selection};
use crate::problem::{Problem, Source};
use crate::request::Asked;
use crate::resources::{At, read_problem};
use crate::{Api, Role};
use axum::Json;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{Request, StatusCode};
use meridian_core::kinds::dataplane::Dataplane;
use meridian_core::kinds::hostname_generator::HostnameGenerator;
use meridian_core::kinds::mesh_service::MeshService;
use meridian_core::kinds::zone::Zone;
use meridian_core::{Resource, Scope, document};
use meridian_policy::{hostnames, legacy_hostname, offered, service_tag};
use meridian_store::{Query, Stored};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// `kri`, short name, mesh, zone, namespace, and a name and a section that are told apart by the resources.
const KRI_PARTS: usize = 7;

/// `GET /meshes/{mesh}/meshservices/{name}/_dataplanes`
pub(crate) async fn dataplanes(at: At, api: Api, request: Request<Body>) -> Result<Response, Problem> {
    let asked = Asked::new(&api, request, Action::Read).await?;
    asked.only(&list::PARAMETERS)?;
    let selection = Selection::of(&asked)?;
    let service = at.find_by(&api, asked.part(0), asked.part(1)).await?.resource;
    let service = parsed::<MeshService>(service)?;
    let all = all_parsed::<Dataplane>(&api, asked.part(0)).await?;
    let offering = all.iter().filter(|it| !offered(&service, it).is_empty());
    let matching = offering.map(|it| &it.resource).filter(|resource| selection.matches(resource));
    Ok(super::page(&asked, &selection, matching.map(shown::meta).collect()))
}

/// `GET /meshes/{mesh}/{services}/{name}/_hostnames`
pub(crate) async fn names(at: At, api: Api, request: Request<Body>) -> Result<Response, Problem> {
    let asked = Asked::new(&api, request, Action::Read).await?;
    asked.only(&[])?;
    let service = at.find_by(&api, asked.part(0), asked.part(1)).await?.resource;
    let generators = all_parsed::<HostnameGenerator>(&api, "").await?;
    let mut by_name: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for zone in zones(&api, &service).await? {
        let tag = service.parse::<MeshService>().ok().and_then(|it| service_tag(&it).map(legacy_hostname));
        let generated = hostnames(&zone, &generators, &service);
        for name in generated.into_iter().chain(tag) {
            by_name.entry(name).or_default().insert(zone.clone());
        }
    }
    let items: Vec<Value> = by_name
        .into_iter()
        .map(|(name, zones)| {
            let zones: Vec<Value> = zones.into_iter().map(|zone| json!({"name": zone})).collect();
            json!({"hostname": name, "zones": zones})
        })
        .collect();
    Ok(Json(json!({"total": items.len(), "items": items})).into_response())
}

/// Zones in which the service may have names: all at global, and a zone knows of itself.
async fn zones(api: &Api, service: &Resource) -> Result<BTreeSet<String>, Problem> {
    if let Role::Zone { name } = &api.role {
        return Ok(BTreeSet::from([name.clone()]));
    }
    let zones = of_kind(api, "", Zone::KIND).await?.into_iter().map(|zone| zone.key.name);
    let own = Some(service.key.zone.clone()).filter(|zone| !zone.is_empty());
    Ok(zones.chain(own).collect())
}

/// `GET /_kri/{kri}`: the resource of that name, whatever its kind.
pub(crate) async fn by_kri(api: Api, request: Request<Body>) -> Result<Response, Problem> {
    let (asked, _) = Asked::open(&api, request).await?;
    let wanted = asked.part(0);
    let parts: Vec<&str> = wanted.splitn(KRI_PARTS, '_').collect();
    let named = match parts.as_slice() {
        ["kri", short, mesh, _, _, _, _] => {
            let mut kinds = meridian_core::kinds().iter().filter(|info| !info.internal);
            kinds.find(|info| info.short == *short).map(|info| (info, *mesh))
        }
        _ => None,
    };
    let secret = named.is_some_and(|(info, _)| info.admin_only);
    identify::allow(&api, &asked.user, if secret { Action::ReadSecrets } else { Action::Read })?;
    asked.only(&[])?;
    let reason = "must be kri_SHORT_MESH_ZONE_NAMESPACE_NAME_SECTION, with the short name of a kind";
    let (info, mesh) = named.ok_or_else(|| Problem::invalid(Source::Path, "kri", reason))?;
    let mesh = (info.scope == Scope::Mesh).then(|| mesh.to_owned());
    let found = api.store.list(&Query { mesh, ..Query::all(info.kind) }).await.map_err(read_problem)?;
    // A section is a part of the resource: the whole is answered. A name may hold underscores as well.
    let own = |stored: &&Stored| wanted.starts_with(&document::kri(&stored.resource));
    let longest = found.items.iter().filter(own).max_by_key(|stored| document::kri(&stored.resource).len());
    let missing = || {
        let detail = format!("Resource not found: kri={wanted:?}");
        Problem::new(StatusCode::NOT_FOUND, "Could not retrieve a resource", detail)
    };
    Ok(Json(Form::Universal.render(longest.ok_or_else(missing)?)).into_response())
}
