//! What a replica holds in memory: every resource once, and one [`View`] a zone over shared encodings.
//!
//! A change costs what it touches times the zones that are connected here: the resource is encoded once, and each
//! zone's view gets it or loses it. Nothing is computed anew for what did not change.

use crate::audience::{self, Facts, Route};
use crate::zone_status::ZoneStatus;
use meridian_api::wire;
use meridian_core::kinds::{
    mesh::Mesh, secret::Secret, token_key::TokenPurpose, token_revocation::TokenRevocation, zone::Zone,
};
use meridian_core::{Key, Kind, Resource};
use meridian_delta::{Encoded, Id, View, ViewChange};
use meridian_store::{Changed, HistoryEntry, Revision, Snapshot, StoreId, Stored};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

/// Everything at one revision.
pub(crate) struct World {
    store: StoreId,
    revision: Revision,
    floor: Revision,
    entries: BTreeMap<Key, Entry>,
    /// Secret -> the resources that name it.
    named_by: BTreeMap<Key, BTreeSet<Key>>,
    /// Names of the wire that were deleted, as far as the history reaches.
    deleted: BTreeMap<Id, Revision>,
    views: BTreeMap<String, Arc<View>>,
}

struct Entry {
    resource: Arc<Resource>,
    /// None: it can't be sent (too large); logged once.
    encoded: Option<Arc<Encoded>>,
}

impl Entry {
    fn new(resource: Resource) -> Self {
        let route = if resource.key.zone.is_empty() { Route::Down } else { Route::Across };
        let sent = audience::as_sent(&resource, route);
        let encoded = Encoded::new(sent.key.kind.as_str(), wire::name(&sent.key), sent.canonical())
            .inspect_err(|error| tracing::error!(%error, "a resource can't be sent to any zone"))
            .ok();
        Self { resource: Arc::new(resource), encoded }
    }
}

impl World {
    /// From one consistent reading, and what history knows of deletions up to it.
    pub(crate) fn new(snapshot: Snapshot, deletions: &[HistoryEntry]) -> Self {
        let mut world = Self {
            store: snapshot.store_id,
            revision: snapshot.revision,
            floor: snapshot.floor,
            entries: BTreeMap::new(),
            named_by: BTreeMap::new(),
            deleted: BTreeMap::new(),
            views: BTreeMap::new(),
        };
        for deletion in deletions.iter().filter(|entry| entry.change == Changed::Delete) {
            world.deleted.insert(id(&deletion.key), deletion.revision);
        }
        for Stored { resource, .. } in snapshot.resources {
            world.enter(resource);
        }
        world
    }

    pub(crate) fn store(&self) -> StoreId {
        self.store
    }

    pub(crate) fn revision(&self) -> Revision {
        self.revision
    }

    pub(crate) fn get(&self, key: &Key) -> Option<&Arc<Resource>> {
        self.entries.get(key).map(|entry| &entry.resource)
    }

    /// All of a kind.
    pub(crate) fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &Arc<Resource>> {
        let from = Key::new(kind, "", "", "");
        self.entries
            .range((Bound::Included(from), Bound::Unbounded))
            .take_while(move |(key, _)| key.kind == kind)
            .map(|(_, entry)| &entry.resource)
    }

    /// The view of a zone: made when its first stream comes.
    pub(crate) fn view(&mut self, zone: &str) -> Arc<View> {
        if let Some(view) = self.views.get(zone) {
            return Arc::clone(view);
        }
        let mut given = Vec::new();
        // Present but not for this zone counts as known to be gone, as what was deleted does.
        let mut absent: BTreeSet<Id> = self.deleted.keys().cloned().collect();
        for entry in self.entries.values() {
            match self.given(entry, zone) {
                Some(encoded) => given.push(Arc::clone(encoded)),
                None => {
                    absent.insert(id(&entry.resource.key));
                }
            }
        }
        let view = View::recorded(
            delta_store(self.store),
            delta_revision(self.floor),
            delta_revision(self.revision),
            absent,
        );
        view.replace(delta_revision(self.revision), given);
        self.views.insert(zone.to_owned(), Arc::clone(&view));
        view
    }

    /// Applies history up to `upto`; `entries` are in the order of revisions. Returns the keys that changed.
    pub(crate) fn apply(
        &mut self,
        entries: Vec<HistoryEntry>,
        upto: Revision,
        floor: Revision,
    ) -> BTreeSet<Key> {
        let mut touched = BTreeSet::new();
        let mut affected = BTreeSet::new();
        for entry in entries {
            touched.insert(entry.key.clone());
            let before = self.affects(&entry.key);
            match entry.change {
                Changed::Put(resource) => {
                    self.deleted.remove(&id(&resource.key));
                    self.enter(resource);
                }
                Changed::Delete => {
                    self.deleted.insert(id(&entry.key), entry.revision);
                    self.leave(&entry.key);
                }
            }
            affected.extend(before);
            affected.extend(self.affects(&entry.key));
        }
        self.revision = self.revision.max(upto);
        self.floor = self.floor.max(floor);
        self.deleted.retain(|_, revision| *revision > floor);
        for (zone, view) in &self.views {
            let changes: Vec<ViewChange> = affected
                .iter()
                .map(|key| match self.entries.get(key).and_then(|entry| self.given(entry, zone)) {
                    Some(encoded) => ViewChange::Upsert(Arc::clone(encoded)),
                    None => ViewChange::Remove(id(key)),
                })
                .collect();
            view.apply(delta_revision(self.revision), changes);
            view.raise_floor(delta_revision(self.floor));
        }
        touched
    }

    /// Tells every view whether its revision is known to be the newest.
    pub(crate) fn set_known(&self, known: bool) {
        self.views.values().for_each(|view| view.set_known(known));
    }

    /// What a change of `key` may change for zones: itself, the secrets it names, and all that a Zone offers.
    fn affects(&self, key: &Key) -> BTreeSet<Key> {
        let mut affected = BTreeSet::from([key.clone()]);
        if let Some(entry) = self.entries.get(key) {
            affected.extend(audience::named_secrets(&entry.resource));
        }
        if key.kind == Zone::KIND {
            let offered = self
                .entries
                .keys()
                .filter(|other| other.zone == key.name && other.kind.info().flow.across_zones);
            affected.extend(offered.cloned());
        }
        affected
    }

    fn given(&self, entry: &Entry, zone: &str) -> Option<&Arc<Encoded>> {
        audience::route(&entry.resource, zone, self)?;
        // Of an entry of this world.
        self.entries.get(&entry.resource.key)?.encoded.as_ref()
    }

    fn enter(&mut self, resource: Resource) {
        self.leave(&resource.key.clone());
        for secret in audience::named_secrets(&resource) {
            self.named_by.entry(secret).or_default().insert(resource.key.clone());
        }
        self.entries.insert(resource.key.clone(), Entry::new(resource));
    }

    fn leave(&mut self, key: &Key) {
        let Some(entry) = self.entries.remove(key) else { return };
        for secret in audience::named_secrets(&entry.resource) {
            if let Some(users) = self.named_by.get_mut(&secret) {
                users.remove(key);
                if users.is_empty() {
                    self.named_by.remove(&secret);
                }
            }
        }
    }

    /// Whether a token is on the list of those that count no longer.
    pub(crate) fn is_revoked(&self, purpose: TokenPurpose, token: &str) -> bool {
        self.of_kind(TokenRevocation::KIND)
            .filter_map(|resource| resource.parse::<TokenRevocation>().ok())
            .any(|list| list.purpose == purpose && list.ids.iter().any(|id| id == token))
    }

    /// The Zone, if there is one.
    pub(crate) fn zone(&self, name: &str) -> Option<&Arc<Resource>> {
        self.get(&Key::global(Zone::KIND, "", name))
    }
}

impl Facts for World {
    fn offers(&self, zone: &str) -> bool {
        let Some(resource) = self.zone(zone) else { return false };
        let enabled = resource.parse::<Zone>().is_ok_and(|zone| zone.is_enabled());
        enabled && !ZoneStatus::of(resource).is_revoked()
    }

    fn names_secret(&self, zone: &str, secret: &Key) -> bool {
        debug_assert_eq!(secret.kind, Secret::KIND);
        let users = || self.named_by.get(secret).into_iter().flatten();
        // The key of a mesh's root.
        if users().any(|user| user.kind == Mesh::KIND) {
            return false;
        }
        users()
            .filter_map(|user| self.entries.get(user))
            .any(|user| audience::uses_secrets_in(&user.resource, zone))
    }
}

/// What a key is called on the stream.
fn id(key: &Key) -> Id {
    Id::new(key.kind.as_str(), wire::name(key))
}

pub(crate) fn delta_revision(revision: Revision) -> meridian_delta::Revision {
    meridian_delta::Revision(revision.0)
}

pub(crate) fn delta_store(store: StoreId) -> meridian_delta::StoreId {
    meridian_delta::StoreId(store.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use meridian_store::Author;
    use serde_json::{Value, json};
    use time::OffsetDateTime;

    fn resource(kind: &str, zone: &str, name: &str, spec: Value) -> Resource {
        let kind = Kind::named(kind).unwrap();
        let mesh = if kind.info().scope == meridian_core::Scope::Mesh { "default" } else { "" };
        Resource { key: Key::new(kind, mesh, zone, name), labels: BTreeMap::new(), spec, status: None }
    }

    fn empty() -> World {
        let snapshot = Snapshot {
            store_id: StoreId([7; 16]),
            revision: Revision(0),
            floor: Revision(0),
            resources: Vec::new(),
        };
        World::new(snapshot, &[])
    }

    fn change(world: &mut World, change: Result<Resource, Key>) -> BTreeSet<Key> {
        let revision = world.revision().next();
        let (key, change) = match change {
            Ok(resource) => (resource.key.clone(), Changed::Put(resource)),
            Err(key) => (key, Changed::Delete),
        };
        let entry =
            HistoryEntry { revision, key, change, author: Author::system(), at: OffsetDateTime::UNIX_EPOCH };
        world.apply(vec![entry], revision, Revision(0))
    }

    fn names(world: &mut World, zone: &str) -> Vec<String> {
        world.view(zone).list().iter().map(|e| format!("{} {}", e.type_, e.name)).collect()
    }

    #[test]
    fn a_view_made_late_equals_one_that_was_there_all_along() {
        let mut world = empty();
        world.view("east");
        change(&mut world, Ok(resource("Zone", "", "west", json!({}))));
        change(&mut world, Ok(resource("Mesh", "", "default", json!({}))));
        change(&mut world, Ok(resource("MeshService", "west", "b-1", json!({}))));
        change(&mut world, Ok(resource("ExternalService", "", "gone", json!({}))));
        change(&mut world, Err(resource("ExternalService", "", "gone", json!({})).key));
        let early = names(&mut world, "east");
        world.views.clear();
        assert_eq!(names(&mut world, "east"), early);
        assert_eq!(early, ["Mesh //default", "MeshService default/west/b-1"]);
    }

    #[test]
    fn a_secret_comes_with_what_names_it_and_goes_with_it() {
        let mut world = empty();
        change(&mut world, Ok(resource("Secret", "", "ca", json!({"data": ""}))));
        assert!(names(&mut world, "east").is_empty());
        let user = resource(
            "ExternalService",
            "",
            "es",
            json!({"networking": {"tls": {"caCert": {"secret": "ca"}}}}),
        );
        change(&mut world, Ok(user.clone()));
        assert_eq!(names(&mut world, "east"), ["ExternalService default//es", "Secret default//ca"]);
        change(&mut world, Ok(resource("ExternalService", "", "es", json!({}))));
        assert_eq!(names(&mut world, "east"), ["ExternalService default//es"]);
        change(&mut world, Ok(user.clone()));
        change(&mut world, Err(user.key));
        assert!(names(&mut world, "east").is_empty());
    }

    #[test]
    fn disabling_revoking_and_deleting_a_zone_takes_its_services_from_the_others() {
        let mut world = empty();
        world.view("east");
        change(&mut world, Ok(resource("MeshService", "west", "b-1", json!({}))));
        assert!(names(&mut world, "east").is_empty(), "no Zone, no offers");
        let service = ["MeshService default/west/b-1"];
        change(&mut world, Ok(resource("Zone", "", "west", json!({}))));
        assert_eq!(names(&mut world, "east"), service);
        change(&mut world, Ok(resource("Zone", "", "west", json!({"enabled": false}))));
        assert!(names(&mut world, "east").is_empty());
        change(&mut world, Ok(resource("Zone", "", "west", json!({"enabled": true}))));
        assert_eq!(names(&mut world, "east"), service);
        let mut revoked = resource("Zone", "", "west", json!({}));
        revoked.status = Some(json!({"revokedAt": "2026-01-01T00:00:00Z"}));
        change(&mut world, Ok(revoked));
        assert!(names(&mut world, "east").is_empty());
        change(&mut world, Err(resource("Zone", "", "west", json!({})).key));
        assert!(names(&mut world, "east").is_empty());
    }

    /// A zone that comes back after a deletion, and another write before its stream has begun.
    #[test]
    fn the_record_of_a_deletion_outlives_the_next_write() {
        let mut world = empty();
        change(&mut world, Ok(resource("ExternalService", "", "gone", json!({}))));
        change(&mut world, Err(resource("ExternalService", "", "gone", json!({})).key));
        let view = world.view("east");
        let records = view.tombstones();
        assert_eq!(records, 1);
        change(&mut world, Ok(resource("Mesh", "", "default", json!({}))));
        assert_eq!(view.tombstones(), records);
    }

    #[test]
    fn a_resource_is_encoded_once_for_all_zones() {
        let mut world = empty();
        change(&mut world, Ok(resource("Mesh", "", "default", json!({}))));
        let (east, west) = (world.view("east"), world.view("west"));
        let of = |view: &View| view.get("Mesh", "//default").unwrap();
        assert!(Arc::ptr_eq(&of(&east), &of(&west)));
    }

    #[test]
    fn what_changed_is_told() {
        let mut world = empty();
        let key = resource("Zone", "", "west", json!({})).key;
        assert_eq!(change(&mut world, Ok(resource("Zone", "", "west", json!({})))), BTreeSet::from([key]));
    }
}
