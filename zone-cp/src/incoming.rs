//! What comes down from global: into the store, with the position in the same transaction.

use crate::link::BUCKET;
use meridian_api::wire;
use meridian_core::{Key, Resource, document};
use meridian_delta::{Batch, Encoded, Id, Position, Rejected, Resume, Sink, SinkError, Version};
use meridian_store::{Author, Change, Expect, Store, WriteError};
use std::collections::BTreeMap;
use std::sync::Arc;

const POSITION: &str = "position";

pub(crate) struct GlobalSink {
    store: Store,
    zone: String,
}

impl GlobalSink {
    pub(crate) fn new(store: Store, zone: &str) -> Self {
        Self { store, zone: zone.to_owned() }
    }

    /// The resource, if the zone can act on it; global says nothing about what is the zone's own.
    fn accept(&self, encoded: &Encoded) -> Result<Resource, String> {
        let key = wire::key(&encoded.type_, &encoded.name)
            .ok_or_else(|| format!("this zone control plane does not know the kind {}", encoded.type_))?;
        if key.zone == self.zone {
            return Err("it is the zone's own, which only the zone may write".to_owned());
        }
        if !key.kind.info().flow.global_to_zone && !key.kind.info().flow.across_zones {
            return Err(format!("{} does not go from global to zones", key.kind));
        }
        let resource = Resource::from_canonical(key, &encoded.body)
            .map_err(|error| format!("{error}: {}", error.source))?;
        match document::check_resource(&resource) {
            Ok(_) => Ok(resource),
            Err(problem) => {
                let violations: Vec<String> = problem.violations.iter().map(ToString::to_string).collect();
                Err(format!("{}: {}", problem.title, violations.join("; ")))
            }
        }
    }
}

impl Sink for GlobalSink {
    async fn resume(&mut self) -> Result<Resume, SinkError> {
        let position = self.store.private_get(BUCKET, POSITION).await?;
        let position = position.map(|bytes| serde_json::from_slice::<Position>(&bytes)).transpose()?;
        let snapshot = self.store.snapshot().await?;
        let foreign = snapshot.resources.into_iter().filter(|stored| stored.resource.key.zone != self.zone);
        let have =
            foreign.map(|stored| (id(&stored.resource.key), Version::of(&stored.resource.canonical())));
        Ok(Resume { position, have: have.collect() })
    }

    async fn apply(&mut self, batch: Batch) -> Result<Vec<Rejected>, SinkError> {
        let mut rejected = Vec::new();
        let mut puts: BTreeMap<Key, (Arc<Encoded>, Resource)> = BTreeMap::new();
        for encoded in batch.upserts {
            match self.accept(&encoded) {
                Ok(resource) => drop(puts.insert(resource.key.clone(), (encoded, resource))),
                Err(reason) => rejected.push(reject(&encoded, reason)),
            }
        }
        let removals = batch.removals.iter().filter_map(|id| wire::key(&id.type_, &id.name));
        let removals: Vec<Key> = removals.filter(|key| key.zone != self.zone).collect();
        loop {
            let changes = changes(&puts, &removals, batch.position)?;
            match self.store.write(&Author::new("global", "sync"), changes).await {
                Ok(_) => return Ok(rejected),
                // One that the store can't take does not stop the others.
                Err(WriteError::TooLarge { key, size, limit }) if puts.contains_key(&key) => {
                    if let Some((encoded, _)) = puts.remove(&key) {
                        rejected.push(reject(&encoded, format!("it takes {size} bytes; {limit} fit")));
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn changes(
    puts: &BTreeMap<Key, (Arc<Encoded>, Resource)>,
    removals: &[Key],
    position: Option<Position>,
) -> Result<Vec<Change>, SinkError> {
    let put = |(_, resource): &(Arc<Encoded>, Resource)| Change::Put {
        resource: resource.clone(),
        expect: Expect::Any,
    };
    let gone = removals.iter().filter(|key| !puts.contains_key(key));
    let delete = |key: &Key| Change::Delete { key: key.clone(), expect: Expect::Any };
    let mut changes: Vec<Change> = puts.values().map(put).chain(gone.map(delete)).collect();
    if let Some(position) = position {
        let value = serde_json::to_vec(&position)?;
        changes.push(Change::PutPrivate { bucket: BUCKET.to_owned(), key: POSITION.to_owned(), value });
    }
    Ok(changes)
}

fn reject(encoded: &Encoded, reason: String) -> Rejected {
    tracing::warn!(resource = ?encoded, reason, "a resource of global is not accepted");
    Rejected { id: encoded.id(), version: encoded.version, reason }
}

fn id(key: &Key) -> Id {
    Id::new(key.kind.as_str(), wire::name(key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::fixture::{abroad, global, local, strict};
    use meridian_delta::{Revision, StoreId};
    use meridian_store::{KeyRing, Options};
    use serde_json::json;

    async fn store(dir: &std::path::Path) -> Store {
        let keys = KeyRing::load_or_create(&dir.join("key")).unwrap();
        let url = format!("sqlite:{}", dir.join("zone.db").display());
        Store::open(Options::new(url, keys, "test")).await.unwrap()
    }

    fn sent(resource: &Resource) -> Arc<Encoded> {
        let key = &resource.key;
        Encoded::new(key.kind.as_str(), wire::name(key), resource.canonical()).unwrap()
    }

    fn batch(upserts: Vec<Arc<Encoded>>, removals: Vec<Id>, revision: u64) -> Batch {
        let revision = Revision(revision);
        let position = Some(Position::new(StoreId([9; 16]), revision));
        Batch { position, revision, complete: true, upserts, removals }
    }

    #[tokio::test]
    async fn one_bad_resource_stops_no_other_and_the_position_is_kept_with_the_contents() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path()).await;
        let mut sink = GlobalSink::new(store.clone(), "east");
        let good = global("Mesh", "", "default", strict());
        let mut bad = global("Mesh", "", "broken", strict());
        bad.spec["surprise"] = json!(true);
        let own = local("east", "MeshService", "default", "web", json!({"state": "Unavailable"}));
        let far = local("west", "MeshService", "default", "web", json!({"state": "Unavailable"}));
        let far = abroad("west", far);
        let unknown = Encoded::new("MeshSomething", "//x", "{}").unwrap();
        let all = vec![sent(&good), sent(&bad), sent(&own), sent(&far), unknown];
        let rejected = sink.apply(batch(all, vec![], 4)).await.unwrap();
        let names: Vec<String> = rejected.iter().map(|it| it.id.to_string()).collect();
        assert_eq!(names, ["Mesh //broken", "MeshService default/east/web", "MeshSomething //x"]);
        assert!(rejected[0].reason.contains("surprise"), "{}", rejected[0].reason);

        // What is held is said with the versions that were sent: nothing comes twice.
        let resume = GlobalSink::new(store.clone(), "east").resume().await.unwrap();
        assert_eq!(resume.position, Some(Position::new(StoreId([9; 16]), Revision(4))));
        let mut have = resume.have;
        have.sort();
        let mut expected: Vec<_> = [sent(&good), sent(&far)].iter().map(|it| (it.id(), it.version)).collect();
        expected.sort();
        assert_eq!(have, expected);

        let gone = vec![sent(&far).id(), sent(&own).id()];
        sink.apply(batch(vec![], gone, 5)).await.unwrap();
        let resume = sink.resume().await.unwrap();
        assert_eq!((resume.have.len(), resume.position.unwrap().revision), (1, Revision(5)));
    }
}
