//! Resources beside what is known of them: `_overview`, and Kuma's older `+insights`.
//!
//! Kuma's fields (`dataplaneInsight.subscriptions`, `zoneInsight`) are there for what reads them; what they can't say
//! truthfully (unknown, how far behind, what was rejected) is in fields of our own beside them.

use crate::access::Action;
use crate::format::rfc3339;
use crate::list::{self, Selection};
use crate::problem::Problem;
use crate::report::{Link, Presence, ProxyOverview, ZoneReport};
use crate::request::Asked;
use crate::resources::{At, read_problem};
use crate::{Api, Role, offer};
use axum::Json;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::Request;
use meridian_core::kinds::mesh::Mesh;
use meridian_core::{Format, document, labels};
use meridian_store::{Query, Stored};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// How one kind is overviewed.
#[derive(Clone, Copy)]
pub(crate) struct Overview {
    /// `Dataplane`
    pub(crate) kind: &'static str,
    /// `dataplane`: the field with the resource.
    field: &'static str,
    insight: fn(&Stored, &Known<'_>) -> Map<String, Value>,
}

/// What overviews are made of beside the resource.
struct Known<'a> {
    reports: &'a [ZoneReport],
    role: &'a Role,
    /// This process.
    instance: &'a str,
    /// The enabled CA backend, by mesh.
    backends: BTreeMap<String, String>,
}

impl<'a> Known<'a> {
    async fn of(api: &'a Api, reports: &'a [ZoneReport]) -> Result<Self, Problem> {
        let meshes = api.store.list(&Query::all(Mesh::KIND)).await.map_err(read_problem)?.items;
        let backend = |stored: Stored| {
            let mesh = stored.resource.parse::<Mesh>().ok()?;
            Some((stored.resource.key.name, mesh.mtls_backend()?.name.clone()))
        };
        let backends = meshes.into_iter().filter_map(backend).collect();
        Ok(Self { reports, role: &api.role, instance: &api.instance, backends })
    }
}

/// The kinds that have an overview.
pub(crate) const OVERVIEWS: [Overview; 5] = [
    Overview { kind: "Dataplane", field: "dataplane", insight: of_proxy },
    Overview { kind: "ZoneIngress", field: "zoneIngress", insight: of_proxy },
    Overview { kind: "ZoneEgress", field: "zoneEgress", insight: of_proxy },
    Overview { kind: "Zone", field: "zone", insight: of_zone },
    Overview { kind: "Mesh", field: "mesh", insight: of_mesh },
];

impl Overview {
    pub(crate) async fn list(self, at: At, api: Api, request: Request<Body>) -> Result<Response, Problem> {
        let asked = Asked::new(&api, request, Action::Read).await?;
        asked.only(&[&list::PARAMETERS[..], &["status"]].concat())?;
        let selection = Selection::of(&asked)?;
        let (total, mut stored) = at.select(&api, &asked, &selection).await?;
        offer::fill(&api, &mut stored).await?;
        let reports = api.hooks.reports().await?;
        let known = Known::of(&api, &reports).await?;
        let items = stored.iter().map(|stored| self.render(stored, &known)).collect();
        Ok(Json(selection.page(&asked, total, items)).into_response())
    }

    pub(crate) async fn one(self, at: At, api: Api, request: Request<Body>) -> Result<Response, Problem> {
        let asked = Asked::new(&api, request, Action::Read).await?;
        asked.only(&[])?;
        let (mesh, name) = match asked.path.as_slice() {
            [mesh, name, ..] => (mesh.as_str(), name.as_str()),
            [name] => ("", name.as_str()),
            [] => ("", ""),
        };
        let mut stored = at.find_by(&api, mesh, name).await?;
        offer::fill(&api, std::slice::from_mut(&mut stored)).await?;
        let reports = api.hooks.reports().await?;
        let known = Known::of(&api, &reports).await?;
        Ok(Json(self.render(&stored, &known)).into_response())
    }

    fn render(self, stored: &Stored, known: &Known<'_>) -> Value {
        let resource = &stored.resource;
        let mut out = Map::new();
        out.insert("type".to_owned(), json!(format!("{}Overview", self.kind)));
        if !resource.key.mesh.is_empty() {
            out.insert("mesh".to_owned(), json!(resource.key.mesh));
        }
        out.insert("name".to_owned(), json!(resource.key.name));
        out.insert("kri".to_owned(), json!(document::kri(resource)));
        out.insert("labels".to_owned(), json!(resource.labels));
        out.insert("creationTime".to_owned(), json!(rfc3339(stored.created)));
        out.insert("modificationTime".to_owned(), json!(rfc3339(stored.modified)));
        debug_assert_eq!(resource.key.kind.info().format, Format::Legacy);
        out.insert(self.field.to_owned(), resource.spec.clone());
        out.extend((self.insight)(stored, known));
        Value::Object(out)
    }
}

/// Where the resource lives and what it is called there.
fn home<'a>(stored: &'a Stored, role: &'a Role) -> (&'a str, &'a str) {
    let key = &stored.resource.key;
    match role {
        Role::Global => {
            let display = stored.resource.labels.get(labels::DISPLAY_NAME);
            (key.zone.as_str(), display.map_or(key.name.as_str(), String::as_str))
        }
        Role::Zone { name } => (name.as_str(), key.name.as_str()),
    }
}

/// What is known of a proxy, if anything is.
pub(crate) fn proxy_of<'a>(
    stored: &Stored,
    reports: &'a [ZoneReport],
    role: &Role,
) -> Option<(&'a ZoneReport, &'a ProxyOverview)> {
    let (zone, name) = home(stored, role);
    let key = &stored.resource.key;
    let report = reports.iter().find(|report| report.zone == zone)?;
    let is_it = |p: &&ProxyOverview| p.kind == key.kind.as_str() && p.mesh == key.mesh && p.name == name;
    report.proxies.iter().find(is_it).map(|proxy| (report, proxy))
}

/// A proxy is as its zone last said, and unknown when nobody has heard of the zone lately.
pub(crate) fn presence(report: &ZoneReport, proxy: &ProxyOverview, role: &Role) -> Presence {
    let heard = match role {
        Role::Zone { .. } => true,
        Role::Global => report.link.as_ref().is_some_and(|link| link.presence == Presence::Online),
    };
    match (heard, proxy.online) {
        (false, _) => Presence::Unknown,
        (true, true) => Presence::Online,
        (true, false) => Presence::Offline,
    }
}

fn of_proxy(stored: &Stored, known: &Known<'_>) -> Map<String, Value> {
    let Known { reports, role, instance, backends } = known;
    let insight_field = match stored.resource.key.kind.as_str() {
        "ZoneIngress" => "zoneIngressInsight",
        "ZoneEgress" => "zoneEgressInsight",
        _ => "dataplaneInsight",
    };
    let (zone, _) = home(stored, role);
    let Some((report, proxy)) = proxy_of(stored, reports, role) else {
        return fields(
            json!({"zone": zone, "status": Presence::Offline, insight_field: {"subscriptions": []}}),
        );
    };
    // At a zone it is connected here; global knows the zone's process from its link.
    let control_plane = match role {
        Role::Zone { .. } => *instance,
        Role::Global => report.link.as_ref().map_or("", |link| link.instance.as_str()),
    };
    let mut subscription = json!({"controlPlaneInstanceId": control_plane, "status": {"total": {}}});
    set(&mut subscription, "id", proxy.status.as_ref().map(|status| json!(status.instance)));
    set(&mut subscription, "connectTime", proxy.connected_at.as_ref().map(|at| json!(at)));
    let ended = proxy.disconnected_at.as_ref().filter(|_| !proxy.online);
    set(&mut subscription, "disconnectTime", ended.map(|at| json!(at)));
    let version = proxy.status.as_ref().map(|status| json!({"kumaDp": {"version": status.version}}));
    set(&mut subscription, "version", version);
    let subscriptions = if proxy.connected_at.is_some() { vec![subscription] } else { Vec::new() };
    let mut insight = json!({"subscriptions": subscriptions});
    let certificate = proxy.status.as_ref().and_then(|status| status.certificates.first());
    let mtls = certificate.map(|certificate| {
        let backend = backends.get(&certificate.mesh);
        json!({
            "certificateExpirationTime": certificate.expires,
            "issuedBackend": backend,
            "supportedBackends": backend.into_iter().collect::<Vec<_>>(),
        })
    });
    set(&mut insight, "mTLS", mtls);
    let mut out = json!({
        "zone": zone,
        "status": presence(report, proxy, role),
        "revision": proxy.revision,
        "behindMillis": proxy.behind_millis,
        "rejected": proxy.rejected,
        "conditions": proxy.conditions,
        insight_field: insight,
    });
    let trusted = (!proxy.trusted_roots.is_empty()).then(|| json!(proxy.trusted_roots));
    set(&mut out, "trustedRoots", trusted);
    if let Some(status) = &proxy.status {
        set(&mut out, "outboundEnforcement", Some(json!(status.outbound_enforcement)));
        set(&mut out, "inbounds", Some(json!(status.inbounds)));
        set(&mut out, "certificates", Some(json!(status.certificates)));
        set(&mut out, "problems", (!status.problems.is_empty()).then(|| json!(status.problems)));
    }
    fields(out)
}

fn of_zone(stored: &Stored, known: &Known<'_>) -> Map<String, Value> {
    let report = known.reports.iter().find(|report| report.zone == stored.resource.key.name);
    let mut out = zone_link(report.and_then(|report| report.link.as_ref()));
    if let Some(report) = report {
        out.insert("rejections".to_owned(), Value::Array(rejections(report)));
    }
    if let Some(at) = stored.resource.status.as_ref().and_then(|status| status.get("revokedAt")) {
        out.insert("revokedAt".to_owned(), at.clone());
    }
    out
}

/// The zone's link as Kuma's insight and as fields of our own.
pub(crate) fn zone_link(link: Option<&Link>) -> Map<String, Value> {
    let Some(link) = link else {
        return fields(json!({"status": Presence::Offline, "zoneInsight": {"subscriptions": []}}));
    };
    let mut subscription = json!({
        "id": link.instance,
        "zoneInstanceId": link.instance,
        "globalInstanceId": link.replica,
        "status": {"total": {}},
        "version": {"kumaCp": {"version": link.version}},
        "authTokenProvided": true,
    });
    set(&mut subscription, "connectTime", link.connected_at.as_ref().map(|at| json!(at)));
    let ended = link.disconnected_at.as_ref().filter(|_| link.presence != Presence::Online);
    set(&mut subscription, "disconnectTime", ended.map(|at| json!(at)));
    fields(json!({
        "status": link.presence,
        "instance": link.instance,
        "replica": link.replica,
        "revision": link.revision,
        "behindMillis": link.behind_millis,
        "withheld": link.withheld,
        "withheldHere": link.withheld_here,
        "refused": link.refused,
        "zoneInsight": {"subscriptions": [subscription]},
    }))
}

fn of_mesh(stored: &Stored, known: &Known<'_>) -> Map<String, Value> {
    let Known { reports, role, .. } = known;
    let name = &stored.resource.key.name;
    let mut counts = [0_u64; 3];
    for report in *reports {
        for proxy in report.proxies.iter().filter(|proxy| proxy.mesh == *name) {
            let slot = presence(report, proxy, role) as usize;
            if let Some(count) = counts.get_mut(slot) {
                *count += 1;
            }
        }
    }
    let [online, offline, unknown] = counts;
    let mut out = json!({
        "dataplanes": {"total": online + offline + unknown, "online": online, "offline": offline, "unknown": unknown},
    });
    if let Ok(mesh) = stored.resource.parse::<Mesh>() {
        let by_egress = mesh.mtls_backend().is_some() && mesh.zone_egress();
        let enforced = if by_egress { "egress" } else { "sidecar" };
        set(&mut out, "egressEnforcement", Some(json!(enforced)));
    }
    fields(out)
}

/// Everything that a zone could not take, in one list: what its control plane refused, what it could not compile, and
/// what its proxies refused.
pub(crate) fn rejections(report: &ZoneReport) -> Vec<Value> {
    let mut out = Vec::new();
    for (by, rejected) in [
        ("zone", report.link.iter().flat_map(|link| &link.rejected).collect::<Vec<_>>()),
        ("global", report.link.iter().flat_map(|link| &link.refused_here).collect()),
    ] {
        for one in rejected {
            let key = crate::wire::key(&one.type_, &one.name);
            let (mesh, name) =
                key.map_or_else(|| (String::new(), one.name.clone()), |key| (key.mesh, key.name));
            out.push(json!({
                "zone": report.zone, "by": by, "type": one.type_, "mesh": mesh, "name": name, "reason": one.reason,
            }));
        }
    }
    for reject in &report.rejects {
        out.push(json!({
            "zone": report.zone, "by": "zone", "type": reject.kind, "mesh": reject.mesh, "name": reject.name,
            "reason": reject.reason,
        }));
    }
    for proxy in &report.proxies {
        for one in &proxy.rejected {
            out.push(json!({
                "zone": report.zone, "by": proxy.wire_name(), "type": one.type_, "mesh": proxy.mesh,
                "name": one.name, "reason": one.reason,
            }));
        }
    }
    out
}

fn set(object: &mut Value, field: &str, value: Option<Value>) {
    if let (Some(fields), Some(value)) = (object.as_object_mut(), value) {
        fields.insert(field.to_owned(), value);
    }
}

fn fields(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}
