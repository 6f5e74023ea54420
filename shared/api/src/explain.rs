//! What would happen to a call, and which policies decide it: `GET /meshes/{mesh}/_explain`. An endpoint of our own.
//!
//! A pure function over the mesh's resources, so that global answers as well as a zone and nothing needs to run. It takes
//! the decisions with the functions that compile for proxies; what only proxies know (which instances are ready this
//! moment, what an address resolves to) it does not claim. A zone knows the Dataplanes of its own; what another zone's
//! would say is told as unknown.

mod inside;
mod outgoing;
mod outside;
mod plaintext;
mod question;
mod routes;
mod words;

use crate::access::Action;
use crate::inspect::world::{Shadows, World, all_parsed, all_parsed_with, subject};
use crate::problem::{Problem, Source};
use crate::request::Asked;
use crate::{Api, Role};
use axum::Json;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{Request, StatusCode};
use meridian_core::kinds::dataplane::Dataplane;
use meridian_core::kinds::external_service::ExternalService;
use meridian_core::kinds::hostname_generator::HostnameGenerator;
use meridian_core::kinds::mesh::Mesh;
use meridian_core::kinds::mesh_external_service::MeshExternalService;
use meridian_core::kinds::mesh_multi_zone_service::MeshMultiZoneService;
use meridian_core::kinds::mesh_passthrough::MeshPassthrough;
use meridian_core::kinds::mesh_service::MeshService;
use meridian_core::kinds::mesh_traffic_permission::MeshTrafficPermission;
use meridian_core::kinds::zone_egress::ZoneEgress;
use meridian_core::kinds::zone_ingress::ZoneIngress;
use meridian_core::{Resource, document, labels, names};
use meridian_policy::{Merged, Parsed, Subject};
use meridian_proxy_config::CallerIdentity;
use question::Question;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// The parameters of the question.
const PARAMETERS: [&str; 6] = ["source", "destination", "path", "method", "header", "shadow"];

/// All that a call in a mesh depends on.
struct Facts {
    world: World,
    mesh: Parsed<Mesh>,
    dataplanes: Vec<Parsed<Dataplane>>,
    services: Vec<Parsed<MeshService>>,
    multi_zone_services: Vec<Parsed<MeshMultiZoneService>>,
    external_services: Vec<Parsed<ExternalService>>,
    mesh_external_services: Vec<Parsed<MeshExternalService>>,
    passthroughs: Vec<Parsed<MeshPassthrough>>,
    permissions: Vec<Parsed<MeshTrafficPermission>>,
    generators: Vec<Parsed<HostnameGenerator>>,
    /// Zones with an egress.
    egresses: BTreeSet<String>,
    /// Zones with an ingress that others can reach.
    ingresses: BTreeSet<String>,
    /// The zone that answers, which knows no other's Dataplanes; none at global.
    here: Option<String>,
}

/// Who calls.
struct Caller<'a> {
    dataplane: &'a Parsed<Dataplane>,
    identity: CallerIdentity,
}

/// One thing that is decided on the way.
#[derive(Debug, Serialize)]
struct Step {
    step: &'static str,
    outcome: Outcome,
    text: String,
    /// What policies add up to here.
    #[serde(skip_serializing_if = "Option::is_none")]
    conf: Option<Value>,
    /// Those that decide, the strongest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    policies: Vec<Decider>,
}

/// What a step means for the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum Outcome {
    /// It goes on.
    Passed,
    /// It ends here.
    Denied,
    /// Not to be known here.
    Unknown,
}

/// A policy, or another resource, that decides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Decider {
    #[serde(rename = "type")]
    kind: String,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    kri: Option<String>,
    /// Its items of `to`, `from` or `rules` that say so.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    items: Vec<usize>,
}

impl Step {
    fn new(step: &'static str, outcome: Outcome, text: impl Into<String>) -> Self {
        Self { step, outcome, text: text.into(), conf: None, policies: Vec::new() }
    }

    fn passed(step: &'static str, text: impl Into<String>) -> Self {
        Self::new(step, Outcome::Passed, text)
    }

    fn denied(step: &'static str, text: impl Into<String>) -> Self {
        Self::new(step, Outcome::Denied, text)
    }

    fn by(mut self, deciders: impl IntoIterator<Item = Decider>) -> Self {
        self.policies.extend(deciders);
        self
    }
}

impl Decider {
    fn of(resource: &Resource) -> Self {
        Self {
            kind: resource.key.kind.as_str().to_owned(),
            name: names::display(&resource.key.name, &resource.labels).to_owned(),
            kri: Some(document::kri(resource)),
            items: Vec::new(),
        }
    }

    /// The policies of a sum, with their items.
    fn all(merged: &Merged) -> Vec<Self> {
        let decider = |policy: &std::sync::Arc<Resource>| {
            let own = merged.origins.iter().filter(|origin| origin.policy.key == policy.key);
            Self { items: own.map(|origin| origin.item).collect(), ..Self::of(policy) }
        };
        merged.policies().into_iter().map(decider).collect()
    }
}

impl Facts {
    async fn of(api: &Api, name: &str, shadows: Shadows) -> Result<Self, Problem> {
        let mut world = World::of(api, name, shadows).await?;
        let missing = || {
            let detail = format!("Mesh {name:?} does not exist");
            Problem::new(StatusCode::NOT_FOUND, "Mesh not found", detail)
        };
        let mesh = world.mesh.take().ok_or_else(missing)?;
        let ingresses = all_parsed::<ZoneIngress>(api, "").await?.into_iter().filter(|it| {
            let networking = it.spec.networking.as_ref();
            networking.is_some_and(|net| !net.advertised_address.is_empty() && net.advertised_port != 0)
        });
        let egresses = all_parsed::<ZoneEgress>(api, "").await?;
        Ok(Self {
            mesh,
            dataplanes: all_parsed(api, name).await?,
            services: all_parsed(api, name).await?,
            multi_zone_services: all_parsed(api, name).await?,
            external_services: all_parsed(api, name).await?,
            mesh_external_services: all_parsed(api, name).await?,
            passthroughs: all_parsed_with(api, name, shadows).await?,
            permissions: all_parsed_with(api, name, shadows).await?,
            generators: all_parsed(api, "").await?,
            egresses: egresses.into_iter().map(|it| it.resource.key.zone).collect(),
            ingresses: ingresses.map(|it| it.resource.key.zone).collect(),
            here: match &api.role {
                Role::Global => None,
                Role::Zone { name } => Some(name.clone()),
            },
            world,
        })
    }

    fn mtls(&self) -> bool {
        self.mesh.spec.mtls_backend().is_some()
    }

    /// What leaves the mesh goes through the zone's egress, and nowhere else.
    fn egress_enforced(&self) -> bool {
        self.mtls() && self.mesh.spec.zone_egress()
    }

    /// By its name here or at home; else the first instance of a service of that name.
    fn source(&self, wanted: &str) -> Result<Caller<'_>, Problem> {
        let named =
            |it: &&Parsed<Dataplane>| it.resource.key.name == wanted || display(&it.resource) == wanted;
        let mut found: Vec<&Parsed<Dataplane>> = self.dataplanes.iter().filter(named).collect();
        let offers = |it: &&Parsed<Dataplane>| services(it).contains(wanted);
        if found.is_empty() {
            found.extend(self.dataplanes.iter().find(offers));
        }
        match found.as_slice() {
            [one] => Ok(Caller { dataplane: one, identity: identity(one) }),
            [] => {
                let mesh = &self.mesh.resource.key.name;
                Err(Problem::resource_not_found(Dataplane::KIND.as_str(), mesh, wanted))
            }
            several => {
                let names: Vec<String> = several
                    .iter()
                    .map(|it| format!("{} in {}", it.resource.key.name, it.resource.key.zone))
                    .collect();
                let reason =
                    format!("several zones have one: {}; name one of these in full", names.join(", "));
                Err(Problem::invalid(Source::Query, "source", reason))
            }
        }
    }
}

impl Caller<'_> {
    fn subject(&self) -> Subject<'_> {
        subject(self.dataplane)
    }

    fn zone(&self) -> &str {
        &self.dataplane.resource.key.zone
    }
}

/// `GET /meshes/{mesh}/_explain?source=web-1&destination=backend.mesh:80&path=/x&method=GET&header=NAME:VALUE`; with
/// `shadow=true` as if the policies that are only tried out were in force.
pub(crate) async fn explain(api: Api, request: Request<Body>) -> Result<Response, Problem> {
    let asked = Asked::new(&api, request, Action::Read).await?;
    asked.only(&PARAMETERS)?;
    let question = Question::of(&asked)?;
    let wanted = asked.parameter("source").filter(|wanted| !wanted.is_empty());
    let wanted = wanted.ok_or_else(|| Problem::invalid(Source::Query, "source", "must name a Dataplane"))?;
    let (facts, wanted) = (Facts::of(&api, asked.part(0), Shadows::of(&asked)?).await?, wanted.to_owned());
    // Every instance of a service is asked what it says: with many, that is work.
    let work = move || facts.source(&wanted).map(|caller| answer(&facts, &caller, &question));
    let done = tokio::task::spawn_blocking(work).await;
    let answer = done.map_err(|error| Problem::internal(&error.to_string()))??;
    Ok(Json(answer).into_response())
}

/// The whole answer.
fn answer(facts: &Facts, caller: &Caller<'_>, question: &Question) -> Value {
    let (target, steps) = match inside::find(facts, caller, question) {
        Some(found) => (found.shown(), inside::steps(facts, caller, question, &found)),
        None => outside::explain(facts, caller, question),
    };
    let has = |outcome: Outcome| steps.iter().any(|step| step.outcome == outcome);
    let allowed = match (has(Outcome::Denied), has(Outcome::Unknown)) {
        (true, _) => Some(false),
        (false, true) => None,
        (false, false) => Some(true),
    };
    let source = &caller.dataplane.resource;
    json!({
        "source": {
            "type": source.key.kind.as_str(), "mesh": source.key.mesh, "name": display(source),
            "zone": source.key.zone, "kri": document::kri(source),
            "services": services(caller.dataplane), "spiffeIds": caller.identity.spiffe,
        },
        "destination": target,
        "allowed": allowed,
        "steps": steps,
    })
}

/// What its certificate says, if its token binds no other tags than the Dataplane has.
fn identity(dataplane: &Parsed<Dataplane>) -> CallerIdentity {
    let key = &dataplane.resource.key;
    let mut tags: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (tag, value) in tag_sets(dataplane).flatten().filter(|(tag, _)| *tag != labels::ZONE) {
        tags.entry(tag.clone()).or_default().insert(value.clone());
    }
    tags.insert(labels::ZONE.to_owned(), BTreeSet::from([key.zone.clone()]));
    let spiffe = services(dataplane).into_iter().map(|service| format!("spiffe://{}/{service}", key.mesh));
    CallerIdentity {
        mesh: key.mesh.clone(),
        spiffe: spiffe.collect(),
        tags,
        dataplane: Some(display(&dataplane.resource).to_owned()),
        zone: key.zone.clone(),
    }
}

fn services(dataplane: &Parsed<Dataplane>) -> BTreeSet<&str> {
    tag_sets(dataplane).filter_map(|tags| tags.get(labels::SERVICE)).map(String::as_str).collect()
}

fn tag_sets(dataplane: &Parsed<Dataplane>) -> impl Iterator<Item = &BTreeMap<String, String>> {
    let networking = dataplane.spec.networking.iter();
    networking
        .flat_map(|it| it.inbound.iter().map(|it| &it.tags).chain(it.gateway.as_ref().map(|it| &it.tags)))
}

fn display(resource: &Resource) -> &str {
    names::display(&resource.key.name, &resource.labels)
}
