//! What spans many resources: `/global-insight`, denials, rejections, and a zone's own status.

use crate::access::Action;
use crate::overview::{presence, proxy_of, rejections, zone_link};
use crate::problem::Problem;
use crate::report::{Presence, ZoneReport};
use crate::request::Asked;
use crate::resources::read_problem;
use crate::{Api, Role, format};
use axum::Json;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::Request;
use meridian_core::{kinds, labels};
use meridian_store::{Query, Stored};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// `GET /meshes/{mesh}/_denials`: who was refused what, and why; the latest first.
pub(crate) async fn denials(api: Api, request: Request<Body>) -> Result<Response, Problem> {
    let asked = Asked::new(&api, request, Action::Read).await?;
    asked.only(&["zone", "caller", "destination", "reason"])?;
    let mesh = asked.part(0);
    let reports = api.hooks.reports().await?;
    let mut items: Vec<(String, Value)> = Vec::new();
    let mut overflow = 0_u64;
    for report in &reports {
        if asked.parameter("zone").is_some_and(|zone| zone != report.zone) {
            continue;
        }
        overflow = overflow.saturating_add(report.denials.overflow);
        for denial in report.denials.denials.iter().filter(|denial| denial.mesh == mesh) {
            let wanted =
                |name: &str, value: &str| asked.parameter(name).is_none_or(|part| value.contains(part));
            if wanted("caller", &denial.caller)
                && wanted("destination", &denial.destination)
                && wanted("reason", &denial.reason)
            {
                let mut item = json!(denial);
                if let Some(fields) = item.as_object_mut() {
                    fields.insert("zone".to_owned(), json!(report.zone));
                }
                items.push((denial.last.clone(), item));
            }
        }
    }
    items.sort_by(|(left, _), (right, _)| right.cmp(left));
    let total = items.len();
    let items: Vec<Value> = items.into_iter().map(|(_, item)| item).collect();
    Ok(Json(json!({"total": total, "items": items, "next": null, "overflow": overflow})).into_response())
}

/// `GET /_rejections` and `GET /meshes/{mesh}/_rejections`: resources that somebody could not take, and why.
pub(crate) async fn rejected(api: Api, request: Request<Body>) -> Result<Response, Problem> {
    let asked = Asked::new(&api, request, Action::Read).await?;
    asked.only(&[])?;
    let reports = api.hooks.reports().await?;
    let mesh = asked.path.first();
    let items: Vec<Value> = reports
        .iter()
        .flat_map(rejections)
        .filter(|item| mesh.is_none_or(|mesh| item.get("mesh").and_then(Value::as_str) == Some(mesh)))
        .collect();
    Ok(Json(json!({"total": items.len(), "items": items, "next": null})).into_response())
}

/// `GET /_zone` at a zone: its link to global.
pub(crate) async fn zone(api: Api, request: Request<Body>) -> Result<Response, Problem> {
    let asked = Asked::new(&api, request, Action::Read).await?;
    asked.only(&[])?;
    let Role::Zone { name } = &api.role else {
        return Err(Problem::not_allowed("Only a zone's control plane has a link to global"));
    };
    let reports = api.hooks.reports().await?;
    let report = reports.iter().find(|report| report.zone == *name);
    let mut out = zone_link(report.and_then(|report| report.link.as_ref()));
    out.insert("zone".to_owned(), json!(name));
    out.insert("rejections".to_owned(), json!(report.map(rejections).unwrap_or_default()));
    Ok(Json(Value::Object(out)).into_response())
}

/// `GET /global-insight`, computed when it is asked for: nobody keeps counters for it.
pub(crate) async fn global(api: Api, request: Request<Body>) -> Result<Response, Problem> {
    let asked = Asked::new(&api, request, Action::Read).await?;
    asked.only(&[])?;
    let reports = api.hooks.reports().await?;
    let mut resources = Map::new();
    let mut policies = 0;
    for info in meridian_core::kinds().iter().filter(|info| !info.internal) {
        let query = Query { size: 0, ..Query::all(info.kind) };
        let total = api.store.list(&query).await.map_err(read_problem)?.total;
        resources.insert(info.kind.as_str().to_owned(), json!({"total": total}));
        policies += if info.targets.is_some() { total } else { 0 };
    }
    let total =
        |kind: &str| resources.get(kind).and_then(|r| r.get("total")).and_then(Value::as_u64).unwrap_or(0);
    let dataplanes = everything(&api, kinds::dataplane::Dataplane::KIND).await?;
    let (standard, gateways): (Vec<&Stored>, Vec<&Stored>) =
        dataplanes.iter().partition(|stored| stored.resource.spec.pointer("/networking/gateway").is_none());
    let services = services(&dataplanes, &reports, &api.role);
    let external = total("ExternalService") + total("MeshExternalService");
    let zones_online = reports.iter().filter(|report| link_is(report, Presence::Online)).count();
    let nothing = || json!({"total": 0, "online": 0, "offline": 0, "partiallyDegraded": 0});
    let body = json!({
        "createdAt": format::rfc3339(time::OffsetDateTime::now_utc()),
        "services": {
            "total": services.get("total").and_then(Value::as_u64).unwrap_or(0) + external,
            "internal": services,
            "external": {"total": external},
            "gatewayDelegated": nothing(),
            "gatewayBuiltin": nothing(),
        },
        "zones": {
            "controlPlanes": {"online": zones_online, "total": total("Zone").max(reports.len() as u64)},
            "zoneEgresses": proxies(&reports, "ZoneEgress", total("ZoneEgress"), &api.role),
            "zoneIngresses": proxies(&reports, "ZoneIngress", total("ZoneIngress"), &api.role),
        },
        "dataplanes": {
            "standard": states(&standard, &reports, &api.role),
            "gatewayDelegated": states(&gateways, &reports, &api.role),
            "gatewayBuiltin": nothing(),
        },
        "policies": {"total": policies},
        "meshes": {"total": total("Mesh")},
        "resources": resources,
    });
    Ok(Json(body).into_response())
}

async fn everything(api: &Api, kind: meridian_core::Kind) -> Result<Vec<Stored>, Problem> {
    Ok(api.store.list(&Query::all(kind)).await.map_err(read_problem)?.items)
}

fn link_is(report: &ZoneReport, presence: Presence) -> bool {
    report.link.as_ref().is_some_and(|link| link.presence == presence)
}

fn proxies(reports: &[ZoneReport], kind: &str, total: u64, role: &Role) -> Value {
    let online = reports
        .iter()
        .flat_map(|report| report.proxies.iter().map(move |proxy| (report, proxy)))
        .filter(|(report, proxy)| proxy.kind == kind && presence(report, proxy, role) == Presence::Online)
        .count();
    json!({"online": online, "total": total})
}

#[derive(Clone, Copy, Default)]
struct Count {
    online: u64,
    degraded: u64,
    offline: u64,
}

impl Count {
    fn total(self) -> u64 {
        self.online + self.degraded + self.offline
    }

    fn json(self) -> Value {
        json!({
            "total": self.total(),
            "online": self.online,
            "offline": self.offline,
            "partiallyDegraded": self.degraded,
        })
    }
}

/// Whether the proxy is there, and whether all of its inbounds are ready.
fn state(stored: &Stored, reports: &[ZoneReport], role: &Role) -> Count {
    let Some((report, proxy)) = proxy_of(stored, reports, role) else {
        return Count { offline: 1, ..Count::default() };
    };
    let ready =
        proxy.status.as_ref().is_none_or(|status| status.inbounds.iter().all(|inbound| inbound.ready));
    match (presence(report, proxy, role), ready) {
        (Presence::Online, true) => Count { online: 1, ..Count::default() },
        (Presence::Online, false) => Count { degraded: 1, ..Count::default() },
        _ => Count { offline: 1, ..Count::default() },
    }
}

fn states(dataplanes: &[&Stored], reports: &[ZoneReport], role: &Role) -> Value {
    dataplanes.iter().map(|stored| state(stored, reports, role)).fold(Count::default(), add).json()
}

fn add(left: Count, right: Count) -> Count {
    Count {
        online: left.online + right.online,
        degraded: left.degraded + right.degraded,
        offline: left.offline + right.offline,
    }
}

/// Services by the tags of Dataplanes: online when all are, offline when none is.
fn services(dataplanes: &[Stored], reports: &[ZoneReport], role: &Role) -> Value {
    let mut by_service: BTreeMap<(&str, &str), Count> = BTreeMap::new();
    for stored in dataplanes {
        let inbounds = stored.resource.spec.pointer("/networking/inbound").and_then(Value::as_array);
        let names = inbounds
            .into_iter()
            .flatten()
            .filter_map(|inbound| inbound.get("tags")?.get(labels::SERVICE)?.as_str());
        for service in names {
            let count = by_service.entry((&stored.resource.key.mesh, service)).or_default();
            *count = add(*count, state(stored, reports, role));
        }
    }
    let mut all = Count::default();
    for count in by_service.values() {
        if count.online == count.total() {
            all.online += 1;
        } else if count.online + count.degraded == 0 {
            all.offline += 1;
        } else {
            all.degraded += 1;
        }
    }
    all.json()
}
