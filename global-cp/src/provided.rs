//! Roots that users provide: read from where a Mesh says they are, checked, and brought into the mesh.
//!
//! What is provided is taken over once: at the mesh's first mTLS, or by a rotation that somebody asks for. From then on it is
//! kept like a root that was made here, sealed. A root that followed its Secret would take everybody's trust away in one
//! step, at a write that nobody took for one; and in the midst of a rotation both roots must be able to sign.

use crate::state::Global;
use crate::trust;
use meridian_api::{Problem, Source};
use meridian_core::kinds::data_source::DataSource;
use meridian_core::kinds::{mesh::Mesh, secret::Secret};
use meridian_core::{Key, Resource, labels};
use meridian_pki::{RootCa, lifetime};
use meridian_store::Store;
use time::OffsetDateTime;

/// The root that a mesh's backend in use provides; `None`: it is to be made here.
pub(crate) async fn root(
    store: &Store,
    name: &str,
    mesh: &Mesh,
    now: OffsetDateTime,
) -> Result<Option<RootCa>, Problem> {
    let Some(provided) = mesh.mtls_backend().and_then(|backend| backend.provided()) else { return Ok(None) };
    let provided = provided.map_err(|error| invalid("", error.to_string()))?;
    let certificate = text(store, name, "cert", &provided.cert).await?;
    let key = text(store, name, "key", &provided.key).await?;
    let root =
        RootCa::provided(name, &certificate, &key, now).map_err(|error| invalid("", error.to_string()))?;
    Ok(Some(root))
}

/// What somebody should know of a root before it is in use.
pub(crate) fn warning(root: &RootCa, now: OffsetDateTime) -> Option<String> {
    let ends = root.authority().not_after();
    let soon = ends < now + lifetime::INTERMEDIATE;
    soon.then(|| format!("the provided CA ends on {}, and the mesh's certificates with it", ends.date()))
}

/// What a write says of a mesh whose bundle has another root than the write asks for.
pub(crate) async fn differs(
    global: &Global,
    resource: &Resource,
    before: Option<&Resource>,
    held: &trust::Held,
) -> Result<Vec<String>, Problem> {
    let (Ok(mesh), name) = (resource.parse::<Mesh>(), &resource.key.name) else { return Ok(Vec::new()) };
    let was = before.and_then(|before| before.parse::<Mesh>().ok());
    let source = |mesh: &Mesh| mesh.mtls_backend().map(|it| (it.type_.clone(), it.conf.clone()));
    // What is in use needs no look at what it once came from.
    if was.as_ref().and_then(source) == source(&mesh) {
        return Ok(Vec::new());
    }
    let now = OffsetDateTime::now_utc();
    let rotate =
        format!("`meridian mesh rotate-ca {name}` brings in the one that is asked for, step by step");
    let Some(root) = root(&global.store, name, &mesh, now).await? else {
        let was_provided = was.as_ref().is_some_and(|was| source(was).is_some_and(|it| it.0 == "provided"));
        return Ok(was_provided
            .then(|| format!("the mesh still has the root that was provided; {rotate}"))
            .into_iter()
            .collect());
    };
    let present = held.bundle.roots.first().and_then(|pem| trust::root_hash(pem));
    let same = present.as_ref() == Some(&crate::vault::root_name(&root));
    let other = (!same).then(|| format!("the mesh still has another root; {rotate}"));
    Ok(other.into_iter().chain(warning(&root, now)).collect())
}

async fn text(store: &Store, mesh: &str, field: &str, source: &DataSource) -> Result<String, Problem> {
    let bytes = match source.secret_name() {
        Some(secret) => {
            let key = Key::global(Secret::KIND, mesh, secret);
            let stored = store.get(&key).await.map_err(|error| Problem::unavailable(&error))?;
            let stored = stored.ok_or_else(|| {
                let first = "write it first (to a mesh without mTLS, if the mesh is new)";
                invalid(
                    &format!(".{field}.secret"),
                    format!("there is no Secret {secret} in mesh {mesh}: {first}"),
                )
            })?;
            let sync = stored.resource.labels.get(labels::KDS_SYNC).map(String::as_str);
            if field == "key" && sync != Some("disabled") {
                let label = format!("Secret {secret} must have the label {}: disabled", labels::KDS_SYNC);
                let why = "so that no zone gets the key, whatever names it, before and after this mesh does";
                return Err(invalid(".key.secret", format!("{label}, {why}")));
            }
            stored.resource.parse::<Secret>().ok().and_then(|secret| secret.bytes())
        }
        None => source.inline_bytes(),
    };
    bytes
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .ok_or_else(|| invalid(&format!(".{field}"), "must be PEM".to_owned()))
}

fn invalid(field: &str, reason: String) -> Problem {
    Problem::invalid(Source::Body, format!("mtls.backends[0].conf{field}"), reason)
}
