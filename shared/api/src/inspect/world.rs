//! A mesh as policies see it, read for one question.

use super::shown;
use crate::Api;
use crate::problem::Problem;
use crate::request::Asked;
use crate::resources::read_problem;
use meridian_core::kinds::dataplane::Dataplane;
use meridian_core::kinds::mesh::Mesh;
use meridian_core::{Kind, KindInfo, Resource, Scope, Spec};
use meridian_policy::{
    Destinations, Parsed, Policy, PolicyIndex, ResourceRules, Routes, Section, Subject, from_rules,
    inbound_confs, inbound_rules, matches_hash, proxy_conf, to_rules,
};
use meridian_store::Query;
use meridian_telemetry::chain;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Kinds that `to` may name, but for the Mesh.
const DESTINATIONS: [&str; 4] =
    ["MeshService", "MeshExternalService", "MeshMultiZoneService", "MeshHTTPRoute"];

/// What becomes of policies that are only tried out (`kuma.io/effect: shadow`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shadows {
    /// They are in force nowhere.
    AsTheyAre,
    /// They count as if they were in force.
    InForce,
}

impl Shadows {
    /// By the query parameter `shadow`.
    pub(crate) fn of(asked: &Asked) -> Result<Self, Problem> {
        Ok(if asked.flag("shadow")? { Self::InForce } else { Self::AsTheyAre })
    }

    fn apply(self, resource: Resource) -> Resource {
        match self {
            Self::AsTheyAre => resource,
            Self::InForce => meridian_policy::as_in_force(&resource).unwrap_or(resource),
        }
    }
}

/// A mesh's policies and what they may be about.
pub(crate) struct World {
    pub(crate) policies: PolicyIndex,
    /// By kind: policies that can't be read, and why.
    unreadable: BTreeMap<&'static str, Vec<String>>,
    pub(crate) routes: Routes,
    pub(crate) destinations: Destinations,
    /// Services of all kinds.
    pub(crate) services: Vec<Arc<Resource>>,
    pub(crate) mesh: Option<Parsed<Mesh>>,
}

impl World {
    pub(crate) async fn of(api: &Api, mesh: &str, shadows: Shadows) -> Result<Self, Problem> {
        let (mut policies, mut unreadable) = (PolicyIndex::default(), BTreeMap::new());
        for info in kinds() {
            let (readable, errors) = read(api, mesh, info.kind.as_str(), shadows).await?;
            readable.into_iter().for_each(|policy| policies.insert(policy));
            unreadable.insert(info.kind.as_str(), errors);
        }
        let (mut destinations, mut services) = (Destinations::default(), Vec::new());
        for kind in DESTINATIONS.into_iter().filter_map(Kind::named) {
            for resource in of_kind(api, mesh, kind).await?.into_iter().map(Arc::new) {
                destinations.insert(Arc::clone(&resource));
                // A route is a destination of policies, not of calls.
                if kind.info().targets.is_none() {
                    services.push(resource);
                }
            }
        }
        let found = api.store.find(Mesh::KIND, "", mesh).await.map_err(read_problem)?;
        let found = found.into_iter().next().map(|stored| parsed::<Mesh>(stored.resource)).transpose()?;
        found.iter().for_each(|mesh| destinations.insert(Arc::new(mesh.resource.clone())));
        let routes = Routes::new(policies.values());
        Ok(Self { policies, unreadable, routes, destinations, services, mesh: found })
    }

    /// Policies of a kind that are in force for a part of a Dataplane, from weak to strong.
    pub(crate) fn selecting(
        &self,
        kind: Kind,
        subject: &Subject<'_>,
        section: Section<'_>,
    ) -> Vec<Arc<Policy>> {
        self.policies.selecting(kind, &self.routes, subject, section)
    }

    /// Policies of a kind that are only tried out and would select a part of the Dataplane.
    pub(super) fn tried_out(&self, kind: Kind, subject: &Subject<'_>) -> Vec<&Arc<Policy>> {
        let would = |policy: &&Arc<Policy>| {
            let mut parts = subject.sections().chain([Section::Whole]);
            meridian_policy::as_in_force(&policy.resource).is_some()
                && parts.any(|part| policy.would_select(&self.routes, subject, part))
        };
        self.policies.candidates(kind, subject).filter(would).collect()
    }

    pub(super) fn unreadable(&self, kind: Kind) -> &[String] {
        self.unreadable.get(kind.as_str()).map(Vec::as_slice).unwrap_or_default()
    }

    /// What the policies of one kind say of a Dataplane, in Kuma's form; `None` if none selects it.
    pub(super) fn rules(&self, info: &KindInfo, subject: &Subject<'_>) -> Option<Value> {
        let whole = self.selecting(info.kind, subject, Section::Whole);
        let mut said = Map::new();
        let by_resource = ResourceRules::new(&whole, &self.destinations);
        if !by_resource.rules.is_empty() {
            let rules = by_resource.rules.iter().map(|(id, rule)| {
                json!({
                    "resourceMeta": shown::meta(&rule.resource), "resourceSectionName": id.section,
                    "conf": rule.merged.confs, "origin": shown::origins(&rule.merged.origins),
                })
            });
            said.insert("toResourceRules".to_owned(), rules.collect());
        }
        // Zones ask what is said by `kuma.io/service` whatever the mesh's `meshServices.mode`.
        let by_tag = to_rules(&whole, &self.routes);
        if !by_tag.is_empty() {
            said.insert("toRules".to_owned(), by_tag.iter().map(shown::subset).collect());
        }
        self.inbound_rules(info, subject, &mut said);
        if let Some(merged) = proxy_conf(&whole) {
            let rule = json!({"conf": merged.confs.first(), "origin": shown::policies(&merged)});
            said.insert("proxyRule".to_owned(), rule);
        }
        let warnings = super::warnings::of(self, info, subject);
        if said.is_empty() && warnings.is_empty() {
            return None;
        }
        said.insert("type".to_owned(), json!(info.kind.as_str()));
        said.insert("warnings".to_owned(), json!(warnings));
        Some(Value::Object(said))
    }

    fn inbound_rules(&self, info: &KindInfo, subject: &Subject<'_>, said: &mut Map<String, Value>) {
        let inbounds = subject.spec.networking.iter().flat_map(|networking| &networking.inbound);
        let (mut of_from, mut of_rules) = (Vec::new(), Vec::new());
        for inbound in inbounds {
            let policies = self.selecting(info.kind, subject, Section::Inbound(inbound));
            let rules = inbound_confs(&inbound_rules(&policies));
            if !rules.is_empty() {
                let rules: Vec<Value> = rules.iter().map(shown::by_caller).collect();
                of_rules.push(json!({"inbound": shown::inbound(inbound), "rules": rules}));
            }
            let rules = from_rules(&policies);
            if !info.from_means_rules() && !rules.is_empty() {
                let rules: Vec<Value> = rules.iter().map(shown::subset).collect();
                of_from.push(json!({"inbound": shown::inbound(inbound), "rules": rules}));
            }
        }
        for (name, list) in [("fromRules", of_from), ("inboundRules", of_rules)] {
            if !list.is_empty() {
                said.insert(name.to_owned(), Value::Array(list));
            }
        }
    }

    /// What the hashes in the tags of `toRules` stand for.
    pub(super) fn http_matches(&self, subject: &Subject<'_>) -> Vec<Value> {
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
pub(crate) fn kinds() -> impl Iterator<Item = &'static KindInfo> {
    meridian_core::kinds()
        .iter()
        .filter(|info| info.targets.is_some() && info.scope == Scope::Mesh && !info.internal)
}

/// All resources of a kind, of a mesh or (empty) of a kind without one.
pub(crate) async fn of_kind(api: &Api, mesh: &str, kind: Kind) -> Result<Vec<Resource>, Problem> {
    let mesh = (kind.info().scope == Scope::Mesh).then(|| mesh.to_owned());
    let query = Query { mesh, ..Query::all(kind) };
    let page = api.store.list(&query).await.map_err(read_problem)?;
    Ok(page.items.into_iter().map(|stored| stored.resource).collect())
}

/// All of a kind in their type. One that can't be read is left out: it is compiled for nobody.
pub(crate) async fn all_parsed<T: Spec>(api: &Api, mesh: &str) -> Result<Vec<Parsed<T>>, Problem> {
    all_parsed_with(api, mesh, Shadows::AsTheyAre).await
}

/// The same of policies.
pub(crate) async fn all_parsed_with<T: Spec>(
    api: &Api,
    mesh: &str,
    shadows: Shadows,
) -> Result<Vec<Parsed<T>>, Problem> {
    let all = of_kind(api, mesh, T::KIND).await?.into_iter();
    Ok(all.filter_map(|resource| Parsed::new(shadows.apply(resource)).ok()).collect())
}

/// The mesh's policies of a kind, and why others can't be read: they are left out, as they are by what compiles them.
pub(super) async fn read(
    api: &Api,
    mesh: &str,
    kind: &str,
    shadows: Shadows,
) -> Result<(Vec<Arc<Policy>>, Vec<String>), Problem> {
    let (mut policies, mut errors) = (Vec::new(), Vec::new());
    let Some(kind) = Kind::named(kind) else { return Ok((policies, errors)) };
    for resource in of_kind(api, mesh, kind).await? {
        match Policy::new(Arc::new(shadows.apply(resource))) {
            Ok(policy) => policies.push(Arc::new(policy)),
            Err(error) => errors.push(chain(&error)),
        }
    }
    Ok((policies, errors))
}

pub(crate) fn parsed<T: Spec>(resource: Resource) -> Result<Parsed<T>, Problem> {
    Parsed::new(resource).map_err(|error| Problem::internal(&format!("{error}: {}", error.source)))
}

/// A Dataplane as policies see it.
pub(crate) fn subject(dataplane: &Parsed<Dataplane>) -> Subject<'_> {
    Subject { key: &dataplane.resource.key, labels: &dataplane.resource.labels, spec: &dataplane.spec }
}
