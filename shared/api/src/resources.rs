//! Reading and writing resources: the same handlers for every kind of the registry.

use crate::access::Action;
use crate::format::Form;
use crate::hooks::{Effects, Write};
use crate::list::{self, Selection};
use crate::problem::{Problem, Source};
use crate::request::Asked;
use crate::{Api, Role, offer};
use axum::Json;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use meridian_core::{Flow, Key, KindInfo, Scope, WrittenAt, document, labels};
use meridian_store::{Author, Change, Expect, Query, ReadError, Revision, Stored, WriteError};
use meridian_telemetry::chain;
use serde_json::{Map, Value, json};

/// How often a write is tried again because something else changed the resource in between.
const ATTEMPTS: usize = 8;

/// A kind at an address.
#[derive(Clone, Copy)]
pub(crate) struct At {
    pub(crate) info: &'static KindInfo,
    /// The route names no mesh although the kind has one: a list over all meshes.
    pub(crate) across: bool,
}

/// The resource that a request names.
struct Target {
    mesh: String,
    name: String,
}

impl At {
    fn reading(self) -> Action {
        if self.info.admin_only { Action::ReadSecrets } else { Action::Read }
    }

    fn target(self, asked: &Asked) -> Target {
        match self.info.scope {
            Scope::Mesh => Target { mesh: asked.part(0).to_owned(), name: asked.part(1).to_owned() },
            Scope::Global => Target { mesh: String::new(), name: asked.part(0).to_owned() },
        }
    }

    pub(crate) async fn get(self, api: Api, request: Request<Body>) -> Result<Response, Problem> {
        let asked = Asked::new(&api, request, self.reading()).await?;
        asked.only(&["format"])?;
        let form = Form::of(&asked)?;
        let mut stored = self.find(&api, &self.target(&asked)).await?;
        if offer::is_derived(self.info.kind) {
            // Part of it is no part of what is stored: no revision names it.
            offer::fill(&api, std::slice::from_mut(&mut stored)).await?;
            return Ok(Json(form.render(&stored)).into_response());
        }
        let is_found_out = offer::status(&api, &mut stored);
        let tag = etag(stored.revision);
        // The tag is for writes then: a revision does not name what is found out.
        if !is_found_out
            && asked
                .headers
                .get(header::IF_NONE_MATCH)
                .is_some_and(|known| known.as_bytes() == tag.as_bytes())
        {
            return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response());
        }
        Ok(([(header::ETAG, tag)], Json(form.render(&stored))).into_response())
    }

    pub(crate) async fn list(self, api: Api, request: Request<Body>) -> Result<Response, Problem> {
        let asked = Asked::new(&api, request, self.reading()).await?;
        asked.only(&[&list::PARAMETERS[..], &["format"]].concat())?;
        let form = Form::of(&asked)?;
        let selection = Selection::of(&asked)?;
        let (total, mut items) = self.select(&api, &asked, &selection).await?;
        offer::fill(&api, &mut items).await?;
        for stored in &mut items {
            offer::status(&api, stored);
        }
        let items = items.iter().map(|stored| form.render(stored)).collect();
        Ok(Json(selection.page(&asked, total, items)).into_response())
    }

    /// The stored resources of one page, and how many there are.
    pub(crate) async fn select(
        self,
        api: &Api,
        asked: &Asked,
        selection: &Selection,
    ) -> Result<(u64, Vec<Stored>), Problem> {
        let mesh = (self.info.scope == Scope::Mesh && !self.across).then(|| asked.part(0).to_owned());
        if let Some(mesh) = &mesh {
            require_mesh(api, mesh).await?;
        }
        let mut query = Query { mesh, labels: selection.labels.clone(), ..Query::all(self.info.kind) };
        if !selection.needs_contents() {
            (query.offset, query.size) = (selection.offset, selection.size);
            let page = api.store.list(&query).await.map_err(read_problem)?;
            return Ok((page.total, page.items));
        }
        let page = api.store.list(&query).await.map_err(read_problem)?;
        let mut matching: Vec<Stored> =
            page.items.into_iter().filter(|stored| selection.matches(&stored.resource)).collect();
        let total = matching.len() as u64;
        let offset = usize::try_from(selection.offset).unwrap_or(usize::MAX).min(matching.len());
        let mut items = matching.split_off(offset);
        items.truncate(usize::try_from(selection.size).unwrap_or(usize::MAX));
        Ok((total, items))
    }

    pub(crate) async fn put(self, api: Api, request: Request<Body>) -> Result<Response, Problem> {
        let (asked, payload) = Asked::with_body(&api, request, Action::Write).await?;
        asked.only(&["dryRun"])?;
        let dry_run = asked.flag("dryRun")?;
        self.written_here(&api)?;
        let target = self.target(&asked);
        let body = payload.read().await?;
        let mut document = self.check(&body, &target)?;
        document.resource.key.zone = own_zone(&api.role);
        let (key, written) = (&document.resource.key, &document.resource.labels);
        document.resource.labels = labels::computed(key, &key.zone, written);
        if !target.mesh.is_empty() {
            require_mesh(&api, &target.mesh).await?;
        }
        for _ in 0..ATTEMPTS {
            if let Some(response) = self.put_once(&api, &asked, &document, &target, dry_run).await? {
                return Ok(response);
            }
        }
        Err(Problem::conflict("The resource changes faster than it can be written; try again"))
    }

    /// None: somebody else changed it between reading and writing, and the client did not ask for a certain revision.
    async fn put_once(
        self,
        api: &Api,
        asked: &Asked,
        document: &document::Document,
        target: &Target,
        dry_run: bool,
    ) -> Result<Option<Response>, Problem> {
        let before = self.present(api, target).await?;
        let mut resource = document.resource.clone();
        // Written by control planes only: what a user sends of it is not kept.
        resource.status = before.as_ref().and_then(|before| before.resource.status.clone());
        if let Some(before) = &before {
            self.owned_here(api, &before.resource.key)?;
        }
        let asked_for = expectation(&asked.headers, before.as_ref())?;
        let expect = before.as_ref().map_or(Expect::Absent, |before| Expect::Revision(before.revision));
        let write = Write { user: &asked.user, resource: &resource, before: before.as_ref() };
        let Effects { changes: more, warnings } = api.hooks.before_put(write).await?;
        let warnings = [document.warnings.clone(), warnings].concat();
        let status = if before.is_some() { StatusCode::OK } else { StatusCode::CREATED };
        if dry_run {
            let same = |before: &Stored| before.resource.canonical() == resource.canonical();
            let mut answer = written(&warnings, before.as_ref().is_some_and(same));
            answer.insert("dryRun".to_owned(), json!(true));
            return Ok(Some((status, Json(answer)).into_response()));
        }
        let key = resource.key.clone();
        let changes = [vec![Change::Put { resource, expect }], more].concat();
        let revision = match commit(api, asked, changes).await {
            Ok(revision) => revision,
            Err(WriteError::Conflict { .. } | WriteError::PrivateConflict { .. })
                if asked_for == Expect::Any =>
            {
                return Ok(None);
            }
            Err(error) => return Err(write_problem(error, asked_for != Expect::Any)),
        };
        // One that changed nothing keeps its older revision.
        let stored = api.store.get(&key).await.ok().flatten();
        let revision = stored.map_or(revision, |stored| stored.revision);
        let unchanged = before.is_some_and(|before| before.revision == revision);
        let answer = written(&warnings, unchanged);
        Ok(Some((status, [(header::ETAG, etag(revision))], Json(answer)).into_response()))
    }

    pub(crate) async fn delete(self, api: Api, request: Request<Body>) -> Result<Response, Problem> {
        let asked = Asked::new(&api, request, Action::Write).await?;
        asked.only(&["dryRun"])?;
        let dry_run = asked.flag("dryRun")?;
        self.written_here(&api)?;
        let target = self.target(&asked);
        let missing = "Could not delete a resource";
        let stored = self.find(&api, &target).await.map_err(|problem| problem.titled(missing))?;
        self.owned_here(&api, &stored.resource.key)?;
        let expect = match expectation(&asked.headers, Some(&stored))? {
            Expect::Any | Expect::Absent => Expect::Present,
            stricter => stricter,
        };
        let Effects { changes: more, warnings } = api.hooks.before_delete(&asked.user, &stored).await?;
        if !dry_run {
            let key = stored.resource.key;
            commit(&api, &asked, [vec![Change::Delete { key, expect }], more].concat())
                .await
                .map_err(|error| write_problem(error, matches!(expect, Expect::Revision(_))))?;
        }
        Ok(Json(json!({"warnings": warnings})).into_response())
    }

    fn check(self, body: &[u8], target: &Target) -> Result<document::Document, Problem> {
        let text = std::str::from_utf8(body).map_err(|_| {
            Problem::bad_request("Could not process a resource", "The body is not UTF-8 text")
        })?;
        let value = document::parse_text(text).map_err(refused)?;
        let expected = document::Expected { kind: self.info.kind, mesh: &target.mesh, name: &target.name };
        document::check(&value, Some(&expected)).map_err(refused)
    }

    /// The resource of that name: this control plane's own before those of others.
    async fn present(self, api: &Api, target: &Target) -> Result<Option<Stored>, Problem> {
        let found = api.store.find(self.info.kind, &target.mesh, &target.name).await.map_err(read_problem)?;
        let own = own_zone(&api.role);
        let mine = found.iter().position(|stored| stored.resource.key.zone == own);
        Ok(found.into_iter().nth(mine.unwrap_or(0)))
    }

    pub(crate) async fn find_by(self, api: &Api, mesh: &str, name: &str) -> Result<Stored, Problem> {
        self.find(api, &Target { mesh: mesh.to_owned(), name: name.to_owned() }).await
    }

    async fn find(self, api: &Api, target: &Target) -> Result<Stored, Problem> {
        let missing = || Problem::resource_not_found(self.info.kind.as_str(), &target.mesh, &target.name);
        self.present(api, target).await?.ok_or_else(missing)
    }

    /// Whether this control plane takes writes of the kind.
    fn written_here(self, api: &Api) -> Result<(), Problem> {
        let Flow { written_at, .. } = self.info.flow;
        match (&api.role, written_at) {
            (_, WrittenAt::Both)
            | (Role::Global, WrittenAt::Global)
            | (Role::Zone { .. }, WrittenAt::Zone) => Ok(()),
            (Role::Global, WrittenAt::Zone) => Err(Problem::not_allowed(format!(
                "{} is written in the zone it belongs to, and read-only at the global control plane",
                self.info.kind
            ))),
            (Role::Zone { name }, WrittenAt::Global) => Err(Problem::not_allowed(format!(
                "{} is written at the global control plane, and read-only in zone {name}",
                self.info.kind
            ))),
        }
    }

    /// Whether the resource comes from here.
    fn owned_here(self, api: &Api, key: &Key) -> Result<(), Problem> {
        if key.zone == own_zone(&api.role) {
            return Ok(());
        }
        let (from, here) = match &api.role {
            Role::Global => (format!("zone {}", key.zone), "the global control plane".to_owned()),
            Role::Zone { name } if key.zone.is_empty() => {
                ("the global control plane".to_owned(), format!("zone {name}"))
            }
            Role::Zone { name } => (format!("zone {}", key.zone), format!("zone {name}")),
        };
        Err(Problem::not_allowed(format!(
            "{} {:?} comes from {from} and is read-only at {here}",
            key.kind, key.name
        )))
    }
}

/// Kuma's answer to a write, and whether the resource was already so (ours).
fn written(warnings: &[String], unchanged: bool) -> Map<String, Value> {
    let mut answer = Map::from_iter([("warnings".to_owned(), json!(warnings))]);
    if unchanged {
        answer.insert("unchanged".to_owned(), json!(true));
    }
    answer
}

/// The zone of origin of what is written here.
fn own_zone(role: &Role) -> String {
    match role {
        Role::Global => String::new(),
        Role::Zone { name } => name.clone(),
    }
}

async fn require_mesh(api: &Api, mesh: &str) -> Result<(), Problem> {
    let kind = meridian_core::kinds::mesh::Mesh::KIND;
    let found = api.store.find(kind, "", mesh).await.map_err(read_problem)?;
    if found.is_empty() {
        let mut problem =
            Problem::new(StatusCode::NOT_FOUND, "Mesh not found", format!("Mesh {mesh:?} does not exist"));
        problem.invalid.push(crate::InvalidParameter {
            field: "mesh".to_owned(),
            reason: format!("mesh of name {mesh} is not found"),
            source: Source::Path,
        });
        return Err(problem);
    }
    Ok(())
}

async fn commit(api: &Api, asked: &Asked, changes: Vec<Change>) -> Result<Revision, WriteError> {
    let author = Author::new(asked.user.name.clone(), "api");
    let revision = api.store.write(&author, changes.clone()).await?;
    api.hooks.committed(&changes).await;
    Ok(revision)
}

pub(crate) fn etag(revision: Revision) -> HeaderValue {
    HeaderValue::try_from(format!("\"{revision}\"")).unwrap_or_else(|_| HeaderValue::from_static("\"\""))
}

/// `If-Match` and `If-None-Match: *` as what the store must find. What is already known to fail fails here.
fn expectation(headers: &HeaderMap, before: Option<&Stored>) -> Result<Expect, Problem> {
    let text = |name: header::HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or("").trim());
    if let Some(none_match) = text(header::IF_NONE_MATCH) {
        return match (none_match, before) {
            ("*", None) => Ok(Expect::Absent),
            ("*", Some(_)) => {
                Err(Problem::precondition_failed("If-None-Match: * was sent and the resource exists"))
            }
            _ => Err(Problem::invalid(Source::Header, "If-None-Match", "only * is understood on writes")),
        };
    }
    let Some(if_match) = text(header::IF_MATCH) else {
        return Ok(Expect::Any);
    };
    let Some(before) = before else {
        return Err(Problem::precondition_failed("If-Match was sent and the resource does not exist"));
    };
    if if_match == "*" {
        return Ok(Expect::Present);
    }
    let number =
        if_match.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).and_then(|n| n.parse().ok());
    let Some(number) = number else {
        return Err(Problem::invalid(Source::Header, "If-Match", "must be * or one ETag of this resource"));
    };
    if before.revision == Revision(number) {
        Ok(Expect::Revision(before.revision))
    } else {
        let detail = format!("The resource is at revision {}, not {number}", before.revision);
        Err(Problem::precondition_failed(detail))
    }
}

pub(crate) fn refused(problem: document::Problem) -> Problem {
    let mut out = Problem::violations(problem.violations);
    out.title = problem.title;
    out.detail = problem.detail;
    out
}

pub(crate) fn read_problem(error: ReadError) -> Problem {
    match &error {
        ReadError::Unavailable(_) => Problem::unavailable(&chain(&error)),
        ReadError::Damaged { .. } => Problem::internal(&chain(&error)),
    }
}

/// `conditional`: the client named the revision that it wants to replace.
pub(crate) fn write_problem(error: WriteError, conditional: bool) -> Problem {
    match &error {
        WriteError::Conflict { key, found } => {
            let at = found.map_or("is gone".to_owned(), |revision| format!("is now at revision {revision}"));
            let detail = format!("{key} was changed by somebody else meanwhile: it {at}");
            if conditional { Problem::precondition_failed(detail) } else { Problem::conflict(detail) }
        }
        WriteError::PrivateConflict { .. } => {
            Problem::conflict("Somebody else did the same meanwhile; look, and try again")
        }
        WriteError::NotFound { key } => Problem::resource_not_found(key.kind.as_str(), &key.mesh, &key.name),
        WriteError::TooLarge { size, limit, .. } => {
            Problem::invalid(Source::Body, "", format!("takes {size} bytes; a resource may take {limit}"))
        }
        WriteError::Unstorable { .. } => Problem::invalid(Source::Body, "", error.to_string()),
        WriteError::Unavailable(_) => Problem::unavailable(&chain(&error)),
        WriteError::Uncertain(_) => {
            tracing::warn!(cause = %chain(&error), "a write's outcome is unknown");
            Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "Service unavailable",
                "The connection to the store was lost during the commit: the write may or may not have happened. Read, and try again.",
            )
        }
        WriteError::Repeated { .. } | WriteError::Damaged { .. } => Problem::internal(&chain(&error)),
    }
}

/// What `/_resources` says of a kind.
pub(crate) fn description(info: &KindInfo, role: &Role) -> Value {
    let read_only = !matches!(
        (role, info.flow.written_at),
        (_, WrittenAt::Both) | (Role::Global, WrittenAt::Global) | (Role::Zone { .. }, WrittenAt::Zone)
    );
    let words = spaced(info.kind.as_str());
    let mut out = json!({
        "name": info.kind.as_str(),
        "scope": if info.scope == Scope::Mesh { "Mesh" } else { "Global" },
        "readOnly": read_only,
        "path": info.plural,
        "singularDisplayName": words,
        "pluralDisplayName": plural(&words),
        "shortName": info.short,
        "includeInFederation": info.flow.written_at != WrittenAt::Zone,
    });
    if let (Some(targets), Some(fields)) = (info.targets, out.as_object_mut()) {
        let policy = json!({
            "isTargetRef": true,
            "hasToTargetRef": targets.to,
            "hasFromTargetRef": targets.from,
            "hasRulesTargetRef": targets.rules,
            "isFromAsRules": false,
        });
        fields.insert("policy".to_owned(), policy);
    }
    out
}

/// `MeshTrafficPermission` -> `Mesh Traffic Permission`.
fn spaced(name: &str) -> String {
    let mut out = String::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !out.is_empty() {
            out.push(' ');
        }
        out.push(letter);
    }
    out
}

fn plural(words: &str) -> String {
    match words {
        _ if words.ends_with('s') => format!("{words}es"),
        _ if words.ends_with("sh") => format!("{words}es"),
        _ => words.strip_suffix('y').map_or_else(|| format!("{words}s"), |stem| format!("{stem}ies")),
    }
}
