//! What a new store begins with. One transaction: of several replicas that start at once, one writes it and the others find
//! it; what an operator deletes later does not come back.

use crate::{initial_policies, tokens, trust, vault};
use anyhow::Context;
use meridian_core::kinds::{
    hostname_generator,
    mesh::{self, Mesh},
    token_key::TokenPurpose,
};
use meridian_core::{Resource, labels};
use meridian_pki::RootCa;
use meridian_store::{Author, Change, Expect, Store, WriteError};
use std::path::{Path, PathBuf};
use time::OffsetDateTime;

/// The private value that says that it was done.
const DEFAULTS: &str = "defaults";

/// The same for the HostnameGenerators that stores of earlier versions did not begin with.
const LATER_GENERATORS: &str = "later-hostname-generators";
const LATER: [&str; 2] = ["local-universal-mesh-service-by-zone", "synced-mesh-multi-zone-service"];

/// Writes the defaults if this store never had them. True: this replica did it.
pub(crate) async fn run(store: &Store) -> anyhow::Result<bool> {
    if store.private_get(vault::ONCE, DEFAULTS).await?.is_some() {
        return later_generators(store).await;
    }
    let mut changes = vec![once(DEFAULTS), once(LATER_GENERATORS)];
    changes.extend(tokens::new_key(TokenPurpose::User, None, "1")?);
    changes.extend(tokens::new_key(TokenPurpose::Zone, None, "1")?);
    changes.extend(hostname_generator::defaults().into_iter().map(of_global));
    changes.push(of_global(mesh::mesh_default()));
    changes.extend(of_mesh(&mesh::mesh_default())?);
    let root = RootCa::generate(&mesh::mesh_default().key.name, OffsetDateTime::now_utc())?;
    changes.extend(trust::first_root(&root));
    write(store, changes).await
}

/// What an operator wrote under such a name meanwhile is left as it is.
async fn later_generators(store: &Store) -> anyhow::Result<bool> {
    if store.private_get(vault::ONCE, LATER_GENERATORS).await?.is_some() {
        return Ok(false);
    }
    let mut changes = vec![once(LATER_GENERATORS)];
    for resource in hostname_generator::defaults() {
        let is_later = LATER.contains(&resource.key.name.as_str());
        if is_later && store.get(&resource.key).await?.is_none() {
            changes.push(of_global(resource));
        }
    }
    write(store, changes).await
}

/// Fails the write if it was done before.
fn once(what: &str) -> Change {
    Change::SwapPrivate {
        bucket: vault::ONCE.to_owned(),
        key: what.to_owned(),
        from: None,
        to: b"1".to_vec(),
    }
}

async fn write(store: &Store, changes: Vec<Change>) -> anyhow::Result<bool> {
    match store.write(&Author::system(), changes).await {
        Ok(_) => Ok(true),
        // Somebody else did it meanwhile.
        Err(WriteError::PrivateConflict { .. } | WriteError::Conflict { .. }) => Ok(false),
        Err(error) => Err(error).context("could not write the first resources"),
    }
}

/// What every new mesh brings along: a key for its dataplane tokens, and its first policies.
pub(crate) fn of_mesh(mesh: &Resource) -> anyhow::Result<Vec<Change>> {
    let name = &mesh.key.name;
    let mut changes: Vec<Change> = tokens::new_key(TokenPurpose::Dataplane, Some(name), "1")?.into();
    changes.extend(initial_policies::of_mesh(name, &mesh.parse::<Mesh>()?));
    Ok(changes)
}

/// Whether the spec is of a mesh that needs a root now.
pub(crate) fn wants_root(resource: &Resource) -> bool {
    resource.parse::<Mesh>().is_ok_and(|mesh| trust::wants_root(&mesh))
}

fn of_global(mut resource: Resource) -> Change {
    resource.labels = labels::computed(&resource.key, "", &resource.labels);
    Change::Put { resource, expect: Expect::Absent }
}

/// Leaves the first admin token beside the data. Its path is logged, not the token. A store that is shared has one such file
/// at each replica's data directory.
pub(crate) async fn admin_token_file(store: &Store, data_dir: &Path) -> anyhow::Result<PathBuf> {
    let path = data_dir.join("admin-token");
    if !path.exists() {
        let token = tokens::admin(store).await?;
        write_private(&path, token.as_bytes())
            .with_context(|| format!("could not write {}", path.display()))?;
        tracing::info!(path = %path.display(), "an admin token was written");
    }
    Ok(path)
}

/// A file that only its owner reads. Whole or not at all.
pub(crate) fn write_private(path: &Path, contents: &[u8]) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let partial = path.with_extension("partial");
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
    file.write_all(contents)?;
    file.sync_all()?;
    std::fs::rename(&partial, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_first_resources_are_valid() {
        for resource in hostname_generator::defaults().into_iter().chain([mesh::mesh_default()]) {
            let checked = meridian_core::document::check_resource(&resource);
            assert_eq!(checked.map(|checked| checked.spec), Ok(resource.spec.clone()), "{}", resource.key);
        }
    }

    #[test]
    fn what_is_private_is_the_owners_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin-token");
        write_private(&path, b"secret").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read(&path).unwrap(), b"secret");
    }
}
