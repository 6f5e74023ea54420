//! Why: which policies select a Dataplane and what they add up to, and which Dataplanes a policy selects.
//!
//! Worked out anew for each question, from what the store holds: a control plane that compiles nothing (global) answers
//! as well, and an answer can't be older than the resources. What proxies execute is compiled by the same functions.

use crate::Api;
use crate::access::Action;
use crate::list::{self, Selection};
use crate::problem::Problem;
use crate::request::Asked;
use crate::resources::{At, chain, read_problem};
use axum::Json;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::Request;
use meridian_core::kinds::dataplane::{Dataplane, Inbound};
use meridian_core::kinds::mesh::{Mesh, MeshServicesMode};
use meridian_core::{Kind, KindInfo, Resource, Scope, document};
use meridian_policy::{
    Destinations, InboundConf, Merged, Origin, Policy, ResourceRules, Routes, Section, Subject, SubsetRule,
    from_rules, inbound_confs, inbound_rules, matches_hash, proxy_conf, sort, to_rules,
};
use meridian_store::Query;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Kinds that `to` may name.
const DESTINATIONS: [&str; 4] =
    ["MeshService", "MeshExternalService", "MeshMultiZoneService", "MeshHTTPRoute"];

/// `GET /meshes/{mesh}/dataplanes/{name}/_rules`
pub(crate) async fn rules(at: At, api: Api, request: Request<Body>) -> Result<Response, Problem> {
    let asked = Asked::new(&api, request, Action::Read).await?;
    asked.only(&[])?;
    let (mesh, name) = (asked.part(0).to_owned(), asked.part(1).to_owned());
    let dataplane = at.find_by(&api, &mesh, &name).await?.resource;
    let spec: Dataplane = parsed(&dataplane)?;
    let subject = Subject { key: &dataplane.key, labels: &dataplane.labels, spec: &spec };
    let world = World::of(&api, &mesh).await?;
    let rules: Vec<Value> = kinds().filter_map(|info| world.rules(info, &subject)).collect();
    let answer = json!({
        "resource": meta(&dataplane),
        "httpMatches": world.http_matches(&subject),
        "rules": rules,
    });
    Ok(Json(answer).into_response())
}

/// `GET /meshes/{mesh}/{policies}/{name}/_resources/dataplanes`
pub(crate) async fn dataplanes(at: At, api: Api, request: Request<Body>) -> Result<Response, Problem> {
    let asked = Asked::new(&api, request, Action::Read).await?;
    asked.only(&list::PARAMETERS)?;
    let selection = Selection::of(&asked)?;
    let (mesh, name) = (asked.part(0).to_owned(), asked.part(1).to_owned());
    let stored = at.find_by(&api, &mesh, &name).await?.resource;
    let policy = Policy::new(Arc::new(stored)).map_err(|error| Problem::internal(&error.to_string()))?;
    let routes = Routes::new(&read(&api, &mesh, "MeshHTTPRoute").await?.0);
    let mut selected = Vec::new();
    for resource in of_kind(&api, &mesh, Dataplane::KIND).await? {
        // One that can't be read is compiled for nobody.
        let Ok(spec) = resource.parse::<Dataplane>() else { continue };
        let subject = Subject { key: &resource.key, labels: &resource.labels, spec: &spec };
        let mut parts = subject.sections().chain([Section::Whole]);
        if selection.matches(&resource) && parts.any(|part| policy.would_select(&routes, &subject, part)) {
            selected.push(meta(&resource));
        }
    }
    let total = selected.len() as u64;
    let offset = usize::try_from(selection.offset).unwrap_or(usize::MAX);
    let size = usize::try_from(selection.size).unwrap_or(usize::MAX);
    let page = selected.into_iter().skip(offset).take(size).collect();
    Ok(Json(selection.page(&asked, total, page)).into_response())
}

/// A mesh's policies and what they may be about.
struct World {
    policies: Vec<Arc<Policy>>,
    /// By kind: policies that can't be read, and why.
    unreadable: BTreeMap<&'static str, Vec<String>>,
    routes: Routes,
    destinations: Destinations,
    /// Policies have no effect by `kuma.io/service`.
    only_resources: bool,
}

impl World {
    async fn of(api: &Api, mesh: &str) -> Result<Self, Problem> {
        let (mut policies, mut unreadable) = (Vec::new(), BTreeMap::new());
        for info in kinds() {
            let (readable, errors) = read(api, mesh, info.kind.as_str()).await?;
            policies.extend(readable);
            unreadable.insert(info.kind.as_str(), errors);
        }
        let mut destinations = Destinations::default();
        for kind in DESTINATIONS.into_iter().filter_map(Kind::named) {
            for resource in of_kind(api, mesh, kind).await? {
                destinations.insert(Arc::new(resource));
            }
        }
        let found = api.store.find(Mesh::KIND, "", mesh).await.map_err(read_problem)?;
        let found = found.into_iter().next().map(|stored| stored.resource);
        let spec: Option<Mesh> = found.as_ref().map(parsed).transpose()?;
        found.into_iter().for_each(|mesh| destinations.insert(Arc::new(mesh)));
        let only_resources =
            spec.is_some_and(|mesh| mesh.mesh_services_mode() == MeshServicesMode::Exclusive);
        let routes = Routes::new(&policies);
        Ok(Self { policies, unreadable, routes, destinations, only_resources })
    }

    fn selecting(&self, kind: Kind, subject: &Subject<'_>, section: Section<'_>) -> Vec<Arc<Policy>> {
        let of_kind = self.policies.iter().filter(|policy| policy.key().kind == kind);
        sort(of_kind.filter(|policy| policy.selects(&self.routes, subject, section)).cloned().collect())
    }

    /// What the policies of one kind say of a Dataplane, in Kuma's form; `None` if none selects it.
    fn rules(&self, info: &KindInfo, subject: &Subject<'_>) -> Option<Value> {
        let whole = self.selecting(info.kind, subject, Section::Whole);
        let mut said = Map::new();
        let by_resource = ResourceRules::new(&whole, &self.destinations);
        if !by_resource.rules.is_empty() {
            let rules = by_resource.rules.iter().map(|(id, rule)| {
                json!({
                    "resourceMeta": meta(&rule.resource), "resourceSectionName": id.section,
                    "conf": rule.merged.confs, "origin": origins(&rule.merged.origins),
                })
            });
            said.insert("toResourceRules".to_owned(), rules.collect());
        }
        let by_tag = to_rules(&whole, &self.routes);
        if !self.only_resources && !by_tag.is_empty() {
            said.insert("toRules".to_owned(), by_tag.iter().map(subset).collect());
        }
        let inbounds = subject.spec.networking.iter().flat_map(|networking| &networking.inbound);
        let (mut of_from, mut of_rules) = (Vec::new(), Vec::new());
        for inbound in inbounds {
            let policies = self.selecting(info.kind, subject, Section::Inbound(inbound));
            let rules = inbound_confs(&inbound_rules(&policies));
            if !rules.is_empty() {
                let rules: Vec<Value> = rules.iter().map(by_caller).collect();
                of_rules.push(json!({"inbound": shown(inbound), "rules": rules}));
            }
            let rules = from_rules(&policies);
            if !info.from_means_rules() && !rules.is_empty() {
                let rules: Vec<Value> = rules.iter().map(subset).collect();
                of_from.push(json!({"inbound": shown(inbound), "rules": rules}));
            }
        }
        for (name, list) in [("fromRules", of_from), ("inboundRules", of_rules)] {
            if !list.is_empty() {
                said.insert(name.to_owned(), Value::Array(list));
            }
        }
        if let Some(merged) = proxy_conf(&whole) {
            let rule = json!({"conf": merged.confs.first(), "origin": policies(&merged)});
            said.insert("proxyRule".to_owned(), rule);
        }
        let warnings = self.unreadable.get(info.kind.as_str()).map(Vec::as_slice).unwrap_or_default();
        if said.is_empty() && warnings.is_empty() {
            return None;
        }
        said.insert("type".to_owned(), json!(info.kind.as_str()));
        said.insert("warnings".to_owned(), json!(warnings));
        Some(Value::Object(said))
    }

    /// What the hashes in the tags of `toRules` stand for.
    fn http_matches(&self, subject: &Subject<'_>) -> Vec<Value> {
        let Some(kind) = Kind::named("MeshHTTPRoute") else { return Vec::new() };
        let whole = self.selecting(kind, subject, Section::Whole);
        let by_resource = ResourceRules::new(&whole, &self.destinations);
        let confs = by_resource.rules.values().flat_map(|rule| &rule.merged.confs);
        let rules = confs.filter_map(|conf| conf.get("rules")?.as_array()).flatten();
        let mut all: Vec<Value> = rules
            .filter_map(|rule| rule.get("matches"))
            .map(|matches| json!({"hash": matches_hash(matches), "match": matches}))
            .collect();
        all.sort_by_cached_key(Value::to_string);
        all.dedup();
        all
    }
}

/// Kinds of policies.
fn kinds() -> impl Iterator<Item = &'static KindInfo> {
    meridian_core::kinds()
        .iter()
        .filter(|info| info.targets.is_some() && info.scope == Scope::Mesh && !info.internal)
}

async fn of_kind(api: &Api, mesh: &str, kind: Kind) -> Result<Vec<Resource>, Problem> {
    let query = Query { mesh: Some(mesh.to_owned()), ..Query::all(kind) };
    let page = api.store.list(&query).await.map_err(read_problem)?;
    Ok(page.items.into_iter().map(|stored| stored.resource).collect())
}

/// The mesh's policies of a kind, and why others can't be read: they are left out, as they are by what compiles them.
async fn read(api: &Api, mesh: &str, kind: &str) -> Result<(Vec<Arc<Policy>>, Vec<String>), Problem> {
    let (mut policies, mut errors) = (Vec::new(), Vec::new());
    let Some(kind) = Kind::named(kind) else { return Ok((policies, errors)) };
    for resource in of_kind(api, mesh, kind).await? {
        match Policy::new(Arc::new(resource)) {
            Ok(policy) => policies.push(Arc::new(policy)),
            Err(error) => errors.push(chain(&error)),
        }
    }
    Ok((policies, errors))
}

fn parsed<T: meridian_core::Spec>(resource: &Resource) -> Result<T, Problem> {
    resource.parse().map_err(|error| Problem::internal(&format!("{error}: {}", error.source)))
}

fn meta(resource: &Resource) -> Value {
    json!({
        "type": resource.key.kind.as_str(),
        "mesh": resource.key.mesh,
        "name": resource.key.name,
        "labels": resource.labels,
        "kri": document::kri(resource),
    })
}

fn shown(inbound: &Inbound) -> Value {
    json!({"name": inbound.name, "port": inbound.port, "tags": inbound.tags})
}

fn origins(origins: &[Origin]) -> Vec<Value> {
    let origin = |it: &Origin| json!({"resourceMeta": meta(&it.policy), "ruleIndex": it.item});
    origins.iter().map(origin).collect()
}

fn policies(merged: &Merged) -> Vec<Value> {
    merged.policies().into_iter().map(|policy| meta(policy)).collect()
}

fn by_caller(rule: &InboundConf) -> Value {
    let mut said = json!({"conf": rule.merged.confs, "origin": origins(&rule.merged.origins)});
    if let (Some(matched), Some(fields)) = (&rule.matched, said.as_object_mut()) {
        fields.insert("match".to_owned(), json!(matched));
    }
    said
}

fn subset(rule: &SubsetRule) -> Value {
    let matchers: Vec<Value> =
        rule.subset.iter().map(|tag| json!({"key": tag.key, "value": tag.value, "not": tag.not})).collect();
    json!({"matchers": matchers, "conf": rule.merged.confs.first(), "origin": policies(&rule.merged)})
}
