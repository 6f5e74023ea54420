//! What the global control plane adds to the API: what a mesh or zone brings along and takes with it, tokens, operators'
//! commands.

use crate::state::Global;
use crate::trust::{self, rfc3339, zone_key};
use crate::zone_status::ZoneStatus;
use crate::{bootstrap, provided, questions, rotate, status, tokens, vault};
use futures::future::BoxFuture;
use meridian_api::access::User;
use meridian_api::report::{Presence, ZoneReport};
use meridian_api::{Effects, Hooks, Problem, ProxyConfigRequest, RotateCa, Source, TokenRequest, Write};
use meridian_auth::{UserClaims, Verified};
use meridian_core::kinds::mesh_multi_zone_service::{MatchedMeshService, MeshMultiZoneService, Status};
use meridian_core::kinds::mesh_service::MeshService;
use meridian_core::kinds::{dataplane::Dataplane, mesh::Mesh, token_revocation::TokenRevocation, zone::Zone};
use meridian_core::{Key, Resource};
use meridian_pki::RootCa;
use meridian_store::{Author, Change, Expect, Query, Stored, WriteError};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use time::OffsetDateTime;

/// How often a revocation is tried again because something else changed the zone in between.
const ATTEMPTS: usize = 8;

/// The hooks of one replica.
pub(crate) struct GlobalHooks(pub(crate) Arc<Global>);

impl Hooks for GlobalHooks {
    fn authenticate(&self, token: &str) -> Result<User, String> {
        let verified: Verified<UserClaims> = self
            .0
            .tokens
            .verifier()
            .verify(token, OffsetDateTime::now_utc())
            .map_err(|error| error.to_string())?;
        Ok(User::authenticated(verified.claims.name, verified.claims.groups))
    }

    fn before_put<'a>(&'a self, write: Write<'a>) -> BoxFuture<'a, Result<Effects, Problem>> {
        Box::pin(async move {
            let kind = write.resource.key.kind;
            let changes = if kind == Mesh::KIND {
                return self.put_mesh(&write).await;
            } else if let Some(list) = tokens::revocations(&write.resource.key) {
                vec![revocations(&list, tokens::revoked_ids(write.resource))]
            } else {
                Vec::new()
            };
            Ok(Effects { changes, warnings: Vec::new() })
        })
    }

    fn before_delete<'a>(
        &'a self,
        _user: &'a User,
        stored: &'a Stored,
    ) -> BoxFuture<'a, Result<Effects, Problem>> {
        Box::pin(async move {
            let key = &stored.resource.key;
            let changes = if key.kind == Mesh::KIND {
                self.delete_mesh(&key.name).await?
            } else if key.kind == Zone::KIND {
                self.delete_zone(&key.name).await?
            } else if let Some((purpose, mesh)) = tokens::revocations(key) {
                let key = tokens::revocation_key(purpose, mesh.as_deref());
                vec![Change::Delete { key, expect: Expect::Any }]
            } else {
                Vec::new()
            };
            Ok(Effects { changes, warnings: Vec::new() })
        })
    }

    fn reports(&self) -> BoxFuture<'_, Result<Vec<ZoneReport>, Problem>> {
        Box::pin(async { status::reports(&self.0).await.map_err(|error| Problem::unavailable(&error)) })
    }

    /// Which MeshServices a MeshMultiZoneService means; its names and addresses are each zone's own.
    fn status(&self, resource: &Resource) -> Option<Value> {
        let service: MeshMultiZoneService =
            (resource.key.kind == MeshMultiZoneService::KIND).then(|| resource.parse().ok()).flatten()?;
        let world = self.0.world();
        let same_mesh = world.of_kind(MeshService::KIND).filter(|it| it.key.mesh == resource.key.mesh);
        let selected = same_mesh.filter(|it| service.selector.matches(&it.labels));
        let status = Status::matching(selected.map(|it| MatchedMeshService::from(&**it)).collect());
        serde_json::to_value(status).ok()
    }

    fn issue_token<'a>(&'a self, request: &'a TokenRequest) -> BoxFuture<'a, Result<String, Problem>> {
        Box::pin(tokens::issue(&self.0.store, request))
    }

    fn rotate_ca<'a>(
        &'a self,
        user: &'a User,
        mesh: &'a str,
        what: RotateCa,
    ) -> BoxFuture<'a, Result<Value, Problem>> {
        Box::pin(rotate::command(&self.0, &user.name, mesh, what))
    }

    fn revoke_zone<'a>(&'a self, user: &'a User, zone: &'a str) -> BoxFuture<'a, Result<Value, Problem>> {
        Box::pin(self.revoke(user, zone))
    }

    fn confirm_deletions<'a>(
        &'a self,
        user: &'a User,
        zone: &'a str,
    ) -> BoxFuture<'a, Result<Value, Problem>> {
        Box::pin(self.confirm(user, zone))
    }

    fn proxy_config<'a>(
        &'a self,
        dataplane: &'a Resource,
        asked: ProxyConfigRequest,
    ) -> BoxFuture<'a, Result<Value, Problem>> {
        Box::pin(questions::proxy_config(&self.0, dataplane, asked))
    }

    fn config(&self) -> Value {
        let settings = &self.0.settings;
        let scheme = settings.store_url.split(':').next().unwrap_or_default();
        json!({
            "mode": "global",
            "environment": "universal",
            "dataDir": settings.data_dir,
            // The rest of the URL may hold a password.
            "store": {"type": if scheme.starts_with("postgres") { "postgres" } else { scheme }},
            "apiServer": {
                "http": {"address": settings.api_http.to_string()},
                "https": {"address": settings.api_https.to_string()},
                "authn": {"localhostIsAdmin": settings.access.local_is_admin},
            },
            "access": {"type": "static", "static": settings.access},
            "multizone": {"global": {"sync": {"address": settings.sync_listen.to_string()}}},
            "diagnostics": {"address": settings.diagnostics.to_string()},
            "tls": {"given": settings.tls_files.is_some(), "san": settings.tls_san},
        })
    }
}

impl GlobalHooks {
    /// A new mesh gets its signing key; one that turns mTLS on, its first root. A root is replaced by a rotation only.
    async fn put_mesh(&self, write: &Write<'_>) -> Result<Effects, Problem> {
        let mesh = &write.resource.key.name;
        let mut changes = Vec::new();
        let mut warnings = Vec::new();
        if write.before.is_none() {
            changes = bootstrap::of_mesh(write.resource)
                .map_err(|error| Problem::internal(&format!("{error:#}")))?;
        }
        if bootstrap::wants_root(write.resource) {
            let held =
                trust::read(&self.0.store, mesh).await.map_err(|error| Problem::unavailable(&error))?;
            match held {
                None => {
                    let root = self.first_root(write.resource).await?;
                    warnings.extend(provided::warning(&root, OffsetDateTime::now_utc()));
                    changes.extend(trust::first_root(&root));
                }
                Some(held) => {
                    let before = write.before.map(|before| &before.resource);
                    warnings = provided::differs(&self.0, write.resource, before, &held).await?;
                }
            }
        }
        Ok(Effects { changes, warnings })
    }

    async fn first_root(&self, resource: &Resource) -> Result<RootCa, Problem> {
        let (name, now) = (&resource.key.name, OffsetDateTime::now_utc());
        let mesh = resource.parse::<Mesh>().map_err(|error| Problem::internal(&error))?;
        if let Some(root) = provided::root(&self.0.store, name, &mesh, now).await? {
            return Ok(root);
        }
        RootCa::generate(name, now).map_err(|error| Problem::invalid(Source::Body, "name", error.to_string()))
    }

    /// A mesh goes with all that was written for it; not while proxies are in it.
    async fn delete_mesh(&self, mesh: &str) -> Result<Vec<Change>, Problem> {
        let query = Query { mesh: Some(mesh.to_owned()), size: 1, ..Query::all(Dataplane::KIND) };
        let proxies = self.list(&query).await?.total;
        if proxies > 0 {
            let mut problem = Problem::bad_request("Could not delete a resource", "Resource is not valid");
            problem.invalid.push(meridian_api::InvalidParameter {
                field: "mesh".to_owned(),
                reason: format!("unable to delete mesh, there are still {proxies} dataplanes attached"),
                source: Source::Path,
            });
            return Err(problem);
        }
        let tokens = tokens::of_mesh(&self.0.world(), mesh);
        let mut deleted: BTreeSet<Key> = tokens
            .iter()
            .filter_map(|change| match change {
                Change::Delete { key, .. } => Some(key.clone()),
                _ => None,
            })
            .collect();
        let mut changes = tokens;
        for info in meridian_core::kinds().iter().filter(|info| info.scope == meridian_core::Scope::Mesh) {
            let query = Query { mesh: Some(mesh.to_owned()), ..Query::all(info.kind) };
            for stored in self.list(&query).await?.items {
                let key = stored.resource.key;
                if deleted.insert(key.clone()) {
                    changes.push(Change::Delete { key, expect: Expect::Any });
                }
            }
        }
        let prefix = format!("{mesh}/");
        for bucket in [vault::ROOTS, vault::INTERMEDIATES] {
            let private =
                self.0.store.private_list(bucket).await.map_err(|error| Problem::unavailable(&error))?;
            let of_mesh = private.iter().filter(|(place, _)| place.starts_with(&prefix));
            changes.extend(of_mesh.map(|(place, _)| vault::delete(bucket, place)));
        }
        Ok(changes)
    }

    /// A zone goes with all that it sent, and what it was given counts no longer.
    async fn delete_zone(&self, zone: &str) -> Result<Vec<Change>, Problem> {
        let mut changes = self.shut_out(zone).await?;
        changes.push(vault::delete(vault::CURSORS, zone));
        for info in meridian_core::kinds() {
            let query = Query { zone: Some(zone.to_owned()), ..Query::all(info.kind) };
            let sent = self.list(&query).await?.items;
            changes.extend(
                sent.into_iter()
                    .map(|stored| Change::Delete { key: stored.resource.key, expect: Expect::Any }),
            );
        }
        Ok(changes)
    }

    /// The zone's own process may write its Zone at the same moment: then once more.
    async fn revoke(&self, user: &User, zone: &str) -> Result<Value, Problem> {
        for _ in 0..ATTEMPTS {
            if let Some(done) = self.revoke_once(user, zone).await? {
                return Ok(done);
            }
        }
        Err(Problem::conflict("The zone or its trust changes faster than it can be written; try again"))
    }

    /// None: somebody else changed the zone, or what it is trusted by, between reading and writing.
    async fn revoke_once(&self, user: &User, zone: &str) -> Result<Option<Value>, Problem> {
        let unavailable = |error: &dyn std::fmt::Display| Problem::unavailable(error);
        let stored = self.0.store.get(&zone_key(zone)).await.map_err(|error| unavailable(&error))?;
        let stored = stored.ok_or_else(|| Problem::resource_not_found("Zone", "", zone))?;
        let now = OffsetDateTime::now_utc();
        let mut changes = self.shut_out(zone).await?;
        let mut resource: Resource = stored.resource;
        let state = ZoneStatus { session: None, revoked_at: Some(rfc3339(now)) };
        resource.status = Some(json!(state));
        changes.push(Change::Put { resource, expect: Expect::Revision(stored.revision) });
        match self.0.store.write(&Author::new(user.name.clone(), "api"), changes).await {
            Ok(_) => {}
            Err(WriteError::Conflict { .. } | WriteError::PrivateConflict { .. }) => return Ok(None),
            Err(error) => return Err(unavailable(&error)),
        }
        Ok(Some(json!({
            "zone": zone,
            "revokedAt": rfc3339(now),
            "next": "the zone needs a new zone token to come back",
        })))
    }

    /// Only the replica that holds the zone's stream can: what waits is that stream's.
    async fn confirm(&self, user: &User, zone: &str) -> Result<Value, Problem> {
        let stored = self.0.store.get(&zone_key(zone)).await.map_err(|error| Problem::unavailable(&error))?;
        stored.ok_or_else(|| Problem::resource_not_found("Zone", "", zone))?;
        let link = self.0.zones.get(zone).filter(|link| link.shown().connected);
        let Some(link) = link else {
            let reports = status::reports(&self.0).await.map_err(|error| Problem::unavailable(&error))?;
            let elsewhere = reports.into_iter().find(|report| report.zone == zone).and_then(|it| it.link);
            let elsewhere = elsewhere.filter(|link| link.presence == Presence::Online);
            return Err(Problem::conflict(elsewhere.map_or_else(
                || format!("Zone {zone} is not connected: nothing of it waits"),
                |link| format!("Zone {zone} is connected to replica {}: ask that one", link.replica),
            )));
        };
        let withheld = link.up.state().withheld;
        if withheld == 0 {
            return Err(Problem::conflict(format!("No deletion of zone {zone} waits")));
        }
        link.control.confirm();
        tracing::warn!(user = user.name, zone, withheld, "an operator confirms the deletions that waited");
        Ok(json!({"zone": zone, "confirmed": withheld}))
    }

    async fn shut_out(&self, zone: &str) -> Result<Vec<Change>, Problem> {
        let meshes = trust::meshes(&self.0.world());
        trust::revoke(&self.0.store, &meshes, zone, OffsetDateTime::now_utc())
            .await
            .map_err(|error| Problem::unavailable(&format!("{error:#}")))
    }

    async fn list(&self, query: &Query) -> Result<meridian_store::Page, Problem> {
        self.0.store.list(query).await.map_err(|error| Problem::unavailable(&error))
    }
}

/// Kuma's list of revoked tokens as the resource that every verifier reads.
fn revocations(
    (purpose, mesh): &(meridian_core::kinds::token_key::TokenPurpose, Option<String>),
    ids: Vec<String>,
) -> Change {
    let spec = TokenRevocation { purpose: *purpose, mesh: mesh.clone(), ids };
    let key = tokens::revocation_key(*purpose, mesh.as_deref());
    Change::Put { resource: Resource::of(key, tokens::origin(), &spec), expect: Expect::Any }
}
