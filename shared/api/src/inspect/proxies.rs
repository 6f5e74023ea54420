//! One Dataplane: its layout, and what policies add up to for it, for one of its inbounds, and for one of the services that
//! it calls. Kuma's newer endpoints, which name things by KRI.

use super::shown;
use super::world::{Shadows, World, kinds, parsed, subject};
use crate::access::Action;
use crate::problem::{Problem, Source};
use crate::request::Asked;
use crate::resources::At;
use crate::{Api, ProxyConfigRequest};
use axum::Json;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{Request, StatusCode};
use meridian_core::kinds::dataplane::{Dataplane, Inbound};
use meridian_core::kinds::mesh_external_service::MeshExternalService;
use meridian_core::{Kind, Resource, document, labels};
use meridian_policy::{
    Parsed, ResourceRules, Section, inbound_confs, inbound_rules, is_reachable, kri, proxy_conf,
};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Kinds of routes; the stronger first: where a service has routes of HTTP, those of TCP are not used.
const ROUTES: [&str; 2] = ["MeshHTTPRoute", "MeshTCPRoute"];

/// A Dataplane and its mesh.
struct Viewed {
    asked: Asked,
    world: World,
    dataplane: Parsed<Dataplane>,
}

impl Viewed {
    async fn new(at: At, api: &Api, request: Request<Body>) -> Result<Self, Problem> {
        let asked = Asked::new(api, request, Action::Read).await?;
        asked.only(&[])?;
        let stored = at.find_by(api, asked.part(0), asked.part(1)).await?;
        let world = World::of(api, asked.part(0), Shadows::AsTheyAre).await?;
        Ok(Self { world, dataplane: parsed(stored.resource)?, asked })
    }

    /// The inbound of that KRI.
    fn inbound(&self, wanted: &str) -> Result<&Inbound, Problem> {
        let networking = self.dataplane.spec.networking.as_ref();
        let mut inbounds = networking.into_iter().flat_map(|networking| &networking.inbound);
        let found = inbounds.find(|inbound| self.inbound_kri(inbound) == wanted);
        found.ok_or_else(|| nothing(&format!("the Dataplane has no inbound {wanted:?}")))
    }

    fn inbound_kri(&self, inbound: &Inbound) -> String {
        kri(&self.dataplane.resource, &inbound.section_name())
    }

    /// The ports that the Dataplane may call.
    fn outbounds(&self) -> Vec<Outbound<'_>> {
        let transparent =
            self.dataplane.spec.networking.as_ref().and_then(|it| it.transparent_proxying.as_ref());
        let reachable = self.world.services.iter().filter(|service| is_reachable(transparent, service));
        reachable.flat_map(ports).collect()
    }

    /// The port of that KRI.
    fn outbound(&self, wanted: &str) -> Result<Outbound<'_>, Problem> {
        let found = self.outbounds().into_iter().find(|outbound| outbound.kri() == wanted);
        found.ok_or_else(|| nothing(&format!("the Dataplane calls nothing by the name {wanted:?}")))
    }

    /// What the policies of a kind say of calls that go out.
    fn outgoing(&self, kind: Kind) -> ResourceRules {
        let policies = self.world.selecting(kind, &subject(&self.dataplane), Section::Whole);
        ResourceRules::new(&policies, &self.world.destinations)
    }
}

/// One port of a service.
struct Outbound<'a> {
    service: &'a Arc<Resource>,
    section: String,
    port: u64,
    protocol: String,
}

impl Outbound<'_> {
    fn kri(&self) -> String {
        kri(self.service, &self.section)
    }

    /// The name of what proxies are told of it.
    fn compiled_name(&self) -> String {
        let key = &self.service.key;
        if key.kind == MeshExternalService::KIND {
            return format!("{}/extsvc/{}/{}", key.mesh, key.zone, key.name);
        }
        let name = meridian_core::names::display(&key.name, &self.service.labels);
        format!("{}/{}/{name}/{}", key.mesh, key.zone, self.port)
    }
}

fn ports(service: &Arc<Resource>) -> Vec<Outbound<'_>> {
    let outbound = |declared: &Value, protocol: &str| {
        let port = declared.get("port")?.as_u64()?;
        let name = declared.get("name").and_then(Value::as_str).filter(|name| !name.is_empty());
        let section = name.map_or_else(|| port.to_string(), str::to_owned);
        let protocol = declared.get(protocol).and_then(Value::as_str).unwrap_or("tcp").to_owned();
        Some(Outbound { service, section, port, protocol })
    };
    if service.key.kind == MeshExternalService::KIND {
        return service.spec.get("match").and_then(|it| outbound(it, "protocol")).into_iter().collect();
    }
    let declared = service.spec.get("ports").and_then(Value::as_array);
    declared.into_iter().flatten().filter_map(|it| outbound(it, "appProtocol")).collect()
}

/// `GET /meshes/{mesh}/dataplanes/{name}/_layout`
pub(crate) async fn layout(at: At, api: Api, request: Request<Body>) -> Result<Response, Problem> {
    let viewed = Viewed::new(at, &api, request).await?;
    let resource = &viewed.dataplane.resource;
    let networking = viewed.dataplane.spec.networking.as_ref();
    let inbounds = networking.into_iter().flat_map(|networking| &networking.inbound).map(|inbound| {
        json!({
            "kri": viewed.inbound_kri(inbound), "port": inbound.port,
            "protocol": inbound.declared_protocol(), "proxyResourceName": inbound.section_name(),
        })
    });
    let outbounds = viewed.outbounds().into_iter().map(|outbound| {
        json!({
            "kri": outbound.kri(), "port": outbound.port, "protocol": outbound.protocol,
            "proxyResourceName": outbound.compiled_name(),
        })
    });
    let mut answer = json!({
        "kri": document::kri(resource),
        "labels": resource.labels,
        "inbounds": inbounds.collect::<Vec<_>>(),
        "outbounds": outbounds.collect::<Vec<_>>(),
        // Zone proxies are resources of their own, not listeners of Dataplanes.
        "listeners": [],
    });
    let service = networking
        .into_iter()
        .flat_map(|it| {
            it.inbound.iter().map(|inbound| &inbound.tags).chain(it.gateway.as_ref().map(|it| &it.tags))
        })
        .find_map(|tags| tags.get(labels::SERVICE));
    let has_identity = viewed.world.mesh.as_ref().is_some_and(|mesh| mesh.spec.mtls_backend().is_some());
    if let (Some(service), true, Some(fields)) = (service, has_identity, answer.as_object_mut()) {
        fields.insert("spiffeId".to_owned(), json!(format!("spiffe://{}/{service}", resource.key.mesh)));
    }
    Ok(Json(answer).into_response())
}

/// `GET /meshes/{mesh}/dataplanes/{name}/_policies`
pub(crate) async fn policies(at: At, api: Api, request: Request<Body>) -> Result<Response, Problem> {
    let viewed = Viewed::new(at, &api, request).await?;
    let said = kinds().filter_map(|info| {
        let whole = viewed.world.selecting(info.kind, &subject(&viewed.dataplane), Section::Whole);
        Some(shown::conf(info.kind.as_str(), &proxy_conf(&whole)?))
    });
    Ok(Json(json!({"policies": said.collect::<Vec<_>>()})).into_response())
}

/// `GET /meshes/{mesh}/dataplanes/{name}/_inbounds/{kri}/_policies`
pub(crate) async fn inbound_policies(at: At, api: Api, request: Request<Body>) -> Result<Response, Problem> {
    let viewed = Viewed::new(at, &api, request).await?;
    let inbound = viewed.inbound(viewed.asked.part(2))?;
    let mut said = Vec::new();
    for info in kinds() {
        let subject = subject(&viewed.dataplane);
        let policies = viewed.world.selecting(info.kind, &subject, Section::Inbound(inbound));
        let confs = inbound_confs(&inbound_rules(&policies));
        if confs.is_empty() {
            continue;
        }
        let mut origins: BTreeSet<String> = BTreeSet::new();
        let mut rules = Vec::new();
        for conf in &confs {
            let policies = conf.merged.policies();
            origins.extend(policies.iter().map(|policy| document::kri(policy)));
            let mut rule = json!({"conf": conf.merged.confs.first()});
            if let Some(fields) = rule.as_object_mut() {
                fields.extend(policies.first().map(|it| ("kri".to_owned(), json!(document::kri(it)))));
                fields.extend(conf.matched.as_ref().map(|it| ("match".to_owned(), json!(it))));
            }
            rules.push(rule);
        }
        let origins: Vec<Value> = origins.into_iter().map(|kri| json!({"kri": kri})).collect();
        said.push(json!({"kind": info.kind.as_str(), "rules": rules, "origins": origins}));
    }
    Ok(Json(json!({"policies": said})).into_response())
}

/// `GET /meshes/{mesh}/dataplanes/{name}/_outbounds/{kri}/_policies`
pub(crate) async fn outbound_policies(at: At, api: Api, request: Request<Body>) -> Result<Response, Problem> {
    let viewed = Viewed::new(at, &api, request).await?;
    let outbound = viewed.outbound(viewed.asked.part(2))?;
    Ok(Json(json!({"policies": confs(&viewed, &outbound, None)})).into_response())
}

/// `GET /meshes/{mesh}/dataplanes/{name}/_outbounds/{kri}/_routes/{kri}/_policies`
pub(crate) async fn route_policies(at: At, api: Api, request: Request<Body>) -> Result<Response, Problem> {
    let viewed = Viewed::new(at, &api, request).await?;
    let outbound = viewed.outbound(viewed.asked.part(2))?;
    let wanted = viewed.asked.part(3);
    let mut all = viewed.world.policies.values();
    let route = all.find(|it| is_route(it.key().kind) && document::kri(&it.resource) == wanted);
    let route = route.ok_or_else(|| nothing(&format!("there is no route {wanted:?}")))?;
    Ok(Json(json!({"policies": confs(&viewed, &outbound, Some(route.key()))})).into_response())
}

/// What holds for a port, on a route or on none. Routes themselves are not among it.
fn confs(viewed: &Viewed, outbound: &Outbound<'_>, route: Option<&meridian_core::Key>) -> Vec<Value> {
    let of = |kind: Kind| {
        let rules = viewed.outgoing(kind);
        let rule = rules.conf(&outbound.service.key, &outbound.section, route)?;
        Some(shown::conf(kind.as_str(), &rule.merged))
    };
    kinds().map(|info| info.kind).filter(|kind| !is_route(*kind)).filter_map(of).collect()
}

/// `GET /meshes/{mesh}/dataplanes/{name}/_outbounds/{kri}/_routes`
pub(crate) async fn outbound_routes(at: At, api: Api, request: Request<Body>) -> Result<Response, Problem> {
    let viewed = Viewed::new(at, &api, request).await?;
    let outbound = viewed.outbound(viewed.asked.part(2))?;
    let mut routes = Vec::new();
    for kind in ROUTES.into_iter().filter_map(Kind::named) {
        let rules = viewed.outgoing(kind);
        let Some(rule) = rules.conf(&outbound.service.key, &outbound.section, None) else { continue };
        let conf = rule.merged.confs.first();
        let listed = conf.and_then(|conf| conf.get("rules")?.as_array());
        // A route of TCP has one rule without matches.
        let one =
            conf.filter(|_| listed.is_none()).map(|conf| (json!([]), conf.get("default").unwrap_or(conf)));
        let many = listed.into_iter().flatten().map(|rule| {
            (rule.get("matches").cloned().unwrap_or_default(), rule.get("default").unwrap_or(&Value::Null))
        });
        let rules: Vec<Value> = one
            .into_iter()
            .chain(many)
            .map(|(matches, conf)| {
                let from = rule.merged.policies().into_iter().find(|it| has_rule(it, &matches));
                let from = from.or(rule.merged.policies().into_iter().next());
                json!({"kri": from.map(|it| document::kri(it)), "matches": matches, "conf": conf})
            })
            .collect();
        routes.push(json!({"kind": kind.as_str(), "rules": rules, "origins": shown::kris(&rule.merged)}));
    }
    Ok(Json(json!({"routes": routes})).into_response())
}

fn is_route(kind: Kind) -> bool {
    ROUTES.contains(&kind.as_str())
}

/// Whether a route has a rule with these matches.
fn has_rule(route: &Resource, matches: &Value) -> bool {
    let to = route.spec.get("to").and_then(Value::as_array).into_iter().flatten();
    let rules = to.filter_map(|item| item.get("rules")?.as_array()).flatten();
    rules.into_iter().any(|rule| rule.get("matches") == Some(matches))
}

/// `GET /meshes/{mesh}/dataplanes/{name}/_config`
pub(crate) async fn config(at: At, api: Api, request: Request<Body>) -> Result<Response, Problem> {
    let asked = Asked::new(&api, request, Action::Read).await?;
    asked.only(&["shadow", "include"])?;
    let includes = asked.query.iter().filter(|(name, _)| name == "include");
    let mut included = includes.flat_map(|(_, value)| value.split(',')).filter(|value| !value.is_empty());
    if let Some(other) = included.clone().find(|value| *value != "diff") {
        return Err(Problem::invalid(Source::Query, "include", format!("must be diff, not {other:?}")));
    }
    let wanted = ProxyConfigRequest { shadow: asked.flag("shadow")?, diff: included.next().is_some() };
    let stored = at.find_by(&api, asked.part(0), asked.part(1)).await?;
    Ok(Json(api.hooks.proxy_config(&stored.resource, wanted).await?).into_response())
}

fn nothing(detail: &str) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "Could not retrieve a resource", detail)
}
