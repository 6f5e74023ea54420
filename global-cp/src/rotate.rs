//! The rotation of roots at work: reads what [`crate::rotation`] decides by, and writes each step in one transaction.
//!
//! Woken by news (a zone has applied something, a proxy has another certificate, a bundle changed), never by a clock; and
//! by the start of a replica, which takes up what another one left.

use crate::provided;
use crate::rotation::{Facts, Phase, ProxyFacts, Rotation, ZoneFacts};
use crate::state::Global;
use crate::status;
use crate::trust::{self, Held, rfc3339};
use crate::vault::{self, Intermediate};
use meridian_api::{Problem, RotateCa};
use meridian_core::Key;
use meridian_core::kinds::{mesh::Mesh, trust_bundle::TrustBundle, zone_egress::ZoneEgress};
use meridian_pki::RootCa;
use meridian_store::{Author, Change, Expect, Revision, WriteError};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

/// Takes every step that may be taken, as news come.
pub(crate) async fn run(global: Arc<Global>, shutdown: CancellationToken) {
    // What zones report is read back from the database, which has it a moment after it is said.
    let mut reports = global.store.status_writes();
    loop {
        reports.mark_unchanged();
        let rotating: Vec<String> = {
            let world = global.world();
            let bundles = world.of_kind(TrustBundle::KIND);
            let rotating = bundles.filter(|bundle| trust::rotation_of(bundle).is_ok_and(|r| r.is_some()));
            rotating.map(|bundle| bundle.key.mesh.clone()).collect()
        };
        for mesh in rotating {
            if let Err(error) = step(&global, &mesh).await {
                tracing::warn!(mesh, error = format!("{error:#}"), "the root's rotation could not go on");
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = global.rotation_news.notified() => {}
            Ok(()) = reports.changed() => {}
        }
    }
}

/// One step, if everybody is there.
async fn step(global: &Global, mesh: &str) -> anyhow::Result<()> {
    let Some(Held { bundle, rotation: Some(rotation), revision }) = trust::read(&global.store, mesh).await?
    else {
        return Ok(());
    };
    let facts = facts(global, mesh, &bundle, revision).await?;
    let waiting = rotation.waiting_for(&facts);
    if !waiting.is_empty() {
        tracing::debug!(mesh, ?rotation, ?waiting, "a rotation waits");
        return Ok(());
    }
    let mut changes = Vec::new();
    let next = rotation.next();
    let roots = match &next {
        Some(next) => ordered(&bundle, next),
        None => {
            changes.push(vault::delete(vault::ROOTS, &vault::root_key(mesh, &rotation.leaving)));
            named(&bundle, &rotation.target)
        }
    };
    let bundle = TrustBundle { roots, ..bundle };
    changes.push(Change::Put {
        resource: trust::resource(mesh, &bundle, next.as_ref()),
        expect: Expect::Revision(revision),
    });
    match global.store.write(&Author::system(), changes).await {
        Ok(_) => {
            tracing::info!(mesh, phase = ?next.map(|next| next.phase), "the rotation of the root took a step")
        }
        // Another replica was first.
        Err(WriteError::Conflict { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// `POST` and `GET /meshes/{mesh}/_rotate-ca`.
pub(crate) async fn command(
    global: &Global,
    user: &str,
    mesh: &str,
    what: RotateCa,
) -> Result<Value, Problem> {
    let missing = || Problem::resource_not_found("Mesh with a CA", "", mesh);
    let held = trust::read(&global.store, mesh).await.map_err(|error| Problem::unavailable(&error))?;
    let held = held.ok_or_else(missing)?;
    match (what, &held.rotation) {
        (RotateCa::Start, None) => start(global, user, mesh, held).await?,
        (RotateCa::Abort, Some(_)) => abort(global, user, mesh, held).await?,
        (RotateCa::Abort, None) => {
            return Err(Problem::conflict(
                "No rotation is under way, or its last step is done: rotate again instead",
            ));
        }
        (RotateCa::Start, Some(_)) | (RotateCa::Show, _) => {}
    }
    show(global, mesh).await
}

async fn start(global: &Global, user: &str, mesh: &str, held: Held) -> Result<(), Problem> {
    let now = OffsetDateTime::now_utc();
    let leaving = held.bundle.roots.first().and_then(|pem| trust::root_hash(pem));
    let leaving = leaving.ok_or_else(|| Problem::internal(&"the bundle has no usable root"))?;
    let root = wanted(global, mesh, now).await?;
    if held.bundle.roots.iter().any(|pem| trust::root_hash(pem).as_deref() == Some(&vault::root_name(&root)))
    {
        return Err(Problem::conflict(
            "The CA that the Mesh provides is the root already: write another certificate and key first",
        ));
    }
    let rotation = Rotation {
        phase: Phase::Distributing,
        target: vault::root_name(&root),
        leaving,
        aborting: false,
        by: user.to_owned(),
        started: rfc3339(now),
    };
    let mut bundle = held.bundle;
    bundle.roots.push(root.authority().certificate_pem());
    let changes = vec![
        vault::put_root(&root),
        Change::Put {
            resource: trust::resource(mesh, &bundle, Some(&rotation)),
            expect: Expect::Revision(held.revision),
        },
    ];
    write(global, user, changes).await
}

/// The root that the mesh is to have: what its user provides, or else a new one.
async fn wanted(global: &Global, mesh: &str, now: OffsetDateTime) -> Result<RootCa, Problem> {
    let key = Key::global(Mesh::KIND, "", mesh);
    let stored = global.store.get(&key).await.map_err(|error| Problem::unavailable(&error))?;
    let spec = stored.and_then(|stored| stored.resource.parse::<Mesh>().ok());
    if let Some(spec) = spec
        && let Some(root) = provided::root(&global.store, mesh, &spec, now).await?
    {
        return Ok(root);
    }
    RootCa::generate(mesh, now).map_err(|error| Problem::internal(&error))
}

async fn abort(global: &Global, user: &str, mesh: &str, held: Held) -> Result<(), Problem> {
    let Some(rotation) = held.rotation else { return Ok(()) };
    let back = rotation.aborted();
    let mut changes = Vec::new();
    let roots = match &back {
        Some(back) => ordered(&held.bundle, back),
        None => {
            changes.push(vault::delete(vault::ROOTS, &vault::root_key(mesh, &rotation.target)));
            named(&held.bundle, &rotation.leaving)
        }
    };
    let bundle = TrustBundle { roots, ..held.bundle };
    changes.push(Change::Put {
        resource: trust::resource(mesh, &bundle, back.as_ref()),
        expect: Expect::Revision(held.revision),
    });
    write(global, user, changes).await
}

async fn write(global: &Global, user: &str, changes: Vec<Change>) -> Result<(), Problem> {
    global.store.write(&Author::new(user, "api"), changes).await.map_err(|error| match error {
        WriteError::Conflict { .. } => {
            Problem::conflict("The mesh's trust changed meanwhile; look, and try again")
        }
        error => Problem::unavailable(&error),
    })?;
    global.rotation_news.notify_one();
    Ok(())
}

async fn show(global: &Global, mesh: &str) -> Result<Value, Problem> {
    let failed = |error: &dyn std::fmt::Display| Problem::unavailable(error);
    let held = trust::read(&global.store, mesh).await.map_err(|error| failed(&error))?;
    let Some(held) = held else { return Ok(json!({"mesh": mesh, "phase": "idle"})) };
    let roots: Vec<String> = held.bundle.roots.iter().filter_map(|pem| trust::root_hash(pem)).collect();
    let mut out = json!({"mesh": mesh, "phase": "idle", "roots": roots});
    if let Some(rotation) = &held.rotation {
        let facts = facts(global, mesh, &held.bundle, held.revision)
            .await
            .map_err(|error| failed(&format!("{error:#}")))?;
        let shown = json!({
            "mesh": mesh,
            "phase": rotation.phase,
            "aborting": rotation.aborting,
            "target": rotation.target,
            "leaving": rotation.leaving,
            "by": rotation.by,
            "started": rotation.started,
            "roots": roots,
            "waitingFor": rotation.waiting_for(&facts),
        });
        out = shown;
    }
    Ok(out)
}

/// The bundle's roots in the order of the phase.
fn ordered(bundle: &TrustBundle, rotation: &Rotation) -> Vec<String> {
    rotation.order().into_iter().flat_map(|name| named(bundle, name)).collect()
}

fn named(bundle: &TrustBundle, name: &str) -> Vec<String> {
    bundle.roots.iter().filter(|pem| trust::root_hash(pem).as_deref() == Some(name)).cloned().collect()
}

/// Who holds what of the mesh now.
async fn facts(global: &Global, mesh: &str, held: &TrustBundle, revision: Revision) -> anyhow::Result<Facts> {
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let mut newest: BTreeMap<String, Intermediate> = BTreeMap::new();
    for (place, value) in global.store.private_list(vault::INTERMEDIATES).await? {
        let Some((of_mesh, rest)) = place.split_once('/') else { continue };
        let Some((zone, key)) = rest.split_once('/') else { continue };
        let Ok(record) = serde_json::from_slice::<Intermediate>(&value) else { continue };
        if of_mesh != mesh || record.not_after <= now || held.revoked.iter().any(|revoked| revoked == key) {
            continue;
        }
        let newer = newest.get(zone).is_none_or(|other| other.issued < record.issued);
        if newer {
            newest.insert(zone.to_owned(), record);
        }
    }
    let reports = status::reports(global).await?;
    let mut facts = Facts::default();
    for (zone, record) in newest {
        let link = reports.iter().find(|report| report.zone == zone).and_then(|report| report.link.as_ref());
        let acknowledged = link.is_some_and(|link| link.revision >= revision.0);
        facts.zones.insert(zone, ZoneFacts { acknowledged, issuer: record.root });
    }
    for report in &reports {
        for proxy in &report.proxies {
            let certificates = proxy.status.iter().flat_map(|status| &status.certificates);
            let leaf = certificates.into_iter().find(|c| c.mesh == mesh).map(|c| c.root.clone());
            let trusts = proxy.trusted_roots.get(mesh);
            let heard = proxy.status.is_some();
            // An egress has a certificate of every mesh with mTLS, once it is heard of.
            let may_have = proxy.kind == ZoneEgress::KIND.as_str() && !heard;
            if proxy.mesh != mesh && leaf.is_none() && trusts.is_none() && !may_have {
                continue;
            }
            let trusts = trusts.into_iter().flatten().cloned().collect();
            facts.proxies.insert(
                format!("zone {} {}", report.zone, proxy.wire_name()),
                ProxyFacts { trusts, heard, leaf },
            );
        }
    }
    Ok(facts)
}
