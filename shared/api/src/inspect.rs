//! Why: which policies select a Dataplane and what they add up to, and which Dataplanes a policy selects.
//!
//! Worked out anew for each question, from what the store holds: a control plane that compiles nothing (global) answers
//! as well, and an answer can't be older than the resources. What proxies execute is compiled by the same functions.

pub(crate) mod proxies;
pub(crate) mod services;
mod shown;
mod warnings;
pub(crate) mod world;

use crate::Api;
use crate::access::Action;
use crate::list::{self, Selection};
use crate::problem::Problem;
use crate::request::Asked;
use crate::resources::At;
use axum::Json;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::Request;
use meridian_core::kinds::dataplane::Dataplane;
use meridian_policy::{Policy, Routes, Section};
use serde_json::{Value, json};
use std::sync::Arc;
use world::{Shadows, World, all_parsed, kinds, parsed, read, subject};

/// `GET /meshes/{mesh}/dataplanes/{name}/_rules`
pub(crate) async fn rules(at: At, api: Api, request: Request<Body>) -> Result<Response, Problem> {
    let asked = Asked::new(&api, request, Action::Read).await?;
    asked.only(&["shadow"])?;
    let (mesh, name) = (asked.part(0).to_owned(), asked.part(1).to_owned());
    let dataplane = parsed::<Dataplane>(at.find_by(&api, &mesh, &name).await?.resource)?;
    let subject = subject(&dataplane);
    let world = World::of(&api, &mesh, Shadows::of(&asked)?).await?;
    let rules: Vec<Value> = kinds().filter_map(|info| world.rules(info, &subject)).collect();
    let answer = json!({
        "resource": shown::meta(&dataplane.resource),
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
    let routes = Routes::new(&read(&api, &mesh, "MeshHTTPRoute", Shadows::AsTheyAre).await?.0);
    let mut selected = Vec::new();
    for dataplane in all_parsed::<Dataplane>(&api, &mesh).await? {
        let subject = subject(&dataplane);
        let mut parts = subject.sections().chain([Section::Whole]);
        if selection.matches(&dataplane.resource)
            && parts.any(|part| policy.would_select(&routes, &subject, part))
        {
            selected.push(shown::meta(&dataplane.resource));
        }
    }
    Ok(page(&asked, &selection, selected))
}

/// The page of a list that was worked out whole.
fn page(asked: &Asked, selection: &Selection, all: Vec<Value>) -> Response {
    let total = all.len() as u64;
    let offset = usize::try_from(selection.offset).unwrap_or(usize::MAX);
    let size = usize::try_from(selection.size).unwrap_or(usize::MAX);
    let items = all.into_iter().skip(offset).take(size).collect();
    Json(selection.page(asked, total, items)).into_response()
}
