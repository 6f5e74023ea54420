//! Policies by what they select, so that a Dataplane is compared with the few that may mean it and not with every one.
//!
//! Each policy stands in one place: under one condition that all it selects fulfil ([`Need`]: a tag, a label, a name, a
//! zone). A Dataplane's tags, labels, name and zone lead to its candidates, and the exact check ([`Policy::selects`])
//! decides about those. So the index can cost time, never correctness: a property test holds it to comparing with all.
//!
//! Rejected: a place under every condition of a policy with intersections of the lists (tags that select are mostly one,
//! `kuma.io/service`, and the exact check of a few candidates costs less than intersecting), and a table of finished
//! answers by Dataplane, which every policy for the whole mesh would invalidate.

use crate::matching::{Section, Subject};
use crate::meta::{Meta, Role};
use crate::policy::{Policy, sort};
use crate::routes::Routes;
use meridian_core::{Key, Kind, TargetKind, TargetRef, labels};
use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Tags that nearly everything of a mesh has with the same value: they find nothing.
const COMMON_TAGS: [&str; 3] = [labels::PROTOCOL, labels::ZONE, labels::MESH];

/// Policies of one mesh, of any kind. A clone shares the policies.
#[derive(Clone, Debug, Default)]
pub struct PolicyIndex {
    all: BTreeSet<ByKey>,
    by_kind: BTreeMap<Kind, Places>,
}

/// Where the policies of one kind stand.
#[derive(Clone, Debug, Default)]
struct Places {
    everywhere: BTreeSet<ByKey>,
    by_tag: Table,
    by_label: Table,
    by_name: HashMap<String, BTreeSet<ByKey>>,
    by_zone: HashMap<String, BTreeSet<ByKey>>,
}

/// Key, then value.
type Table = HashMap<String, HashMap<String, BTreeSet<ByKey>>>;

/// What all that a policy selects have.
#[derive(Debug, PartialEq, Eq)]
enum Need<'a> {
    Nothing,
    /// On one inbound, or the gateway.
    Tag(&'a str, &'a str),
    Label(&'a str, &'a str),
    Name(&'a str),
    Zone(&'a str),
    /// It selects no Dataplane.
    Impossible,
}

/// A policy, ordered and found by its key.
#[derive(Clone, Debug)]
struct ByKey(Arc<Policy>);

impl PolicyIndex {
    pub fn new<'a>(policies: impl IntoIterator<Item = &'a Arc<Policy>>) -> Self {
        let mut index = Self::default();
        policies.into_iter().for_each(|policy| index.insert(Arc::clone(policy)));
        index
    }

    /// Takes a policy in, in place of the one of that key.
    pub fn insert(&mut self, policy: Arc<Policy>) {
        self.remove(policy.key());
        let places = self.by_kind.entry(policy.key().kind).or_default();
        if let Some(place) = places.of(&need(&policy)) {
            place.insert(ByKey(Arc::clone(&policy)));
        }
        self.all.insert(ByKey(policy));
    }

    pub fn remove(&mut self, key: &Key) {
        let Some(ByKey(policy)) = self.all.take(key) else { return };
        if let Some(places) = self.by_kind.get_mut(&key.kind) {
            places.remove(&policy);
        }
    }

    pub fn get(&self, key: &Key) -> Option<&Arc<Policy>> {
        self.all.get(key).map(|ByKey(policy)| policy)
    }

    /// All of them, by their keys.
    pub fn values(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.all.iter().map(|ByKey(policy)| policy)
    }

    pub fn len(&self) -> usize {
        self.all.len()
    }

    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Policies of a kind that may select the Dataplane or a part of it, each once, in no order. All that do are among
    /// them.
    pub fn candidates<'a>(
        &'a self,
        kind: Kind,
        subject: &Subject<'_>,
    ) -> impl Iterator<Item = &'a Arc<Policy>> + use<'a> {
        let places = self.by_kind.get(&kind);
        let found = places.map(|places| places.meant(subject)).unwrap_or_default();
        found.into_iter().flatten().map(|ByKey(policy)| policy)
    }

    /// Policies of a kind that are in force for a part of a Dataplane, from weak to strong.
    pub fn selecting(
        &self,
        kind: Kind,
        routes: &Routes,
        subject: &Subject<'_>,
        section: Section<'_>,
    ) -> Vec<Arc<Policy>> {
        let selecting =
            self.candidates(kind, subject).filter(|policy| policy.selects(routes, subject, section));
        sort(selecting.cloned().collect())
    }
}

impl Places {
    /// `None`: nowhere.
    fn of(&mut self, need: &Need<'_>) -> Option<&mut BTreeSet<ByKey>> {
        match *need {
            Need::Nothing => Some(&mut self.everywhere),
            Need::Tag(key, value) => Some(slot(&mut self.by_tag, key, value)),
            Need::Label(key, value) => Some(slot(&mut self.by_label, key, value)),
            Need::Name(name) => Some(self.by_name.entry(name.to_owned()).or_default()),
            Need::Zone(zone) => Some(self.by_zone.entry(zone.to_owned()).or_default()),
            Need::Impossible => None,
        }
    }

    /// Takes a policy out, and its place if nothing is left there.
    fn remove(&mut self, policy: &Arc<Policy>) {
        let need = need(policy);
        let Some(place) = self.of(&need) else { return };
        place.remove(policy.key());
        if !place.is_empty() {
            return;
        }
        match need {
            Need::Nothing | Need::Impossible => {}
            Need::Tag(key, value) => close(&mut self.by_tag, key, value),
            Need::Label(key, value) => close(&mut self.by_label, key, value),
            Need::Name(name) => drop(self.by_name.remove(name)),
            Need::Zone(zone) => drop(self.by_zone.remove(zone)),
        }
    }

    /// The places that a Dataplane leads to, each once.
    fn meant(&self, subject: &Subject<'_>) -> Vec<&BTreeSet<ByKey>> {
        let meta = subject.meta();
        let tags: BTreeSet<(&String, &String)> = subject.tag_sets(Section::Whole).flatten().collect();
        let by_tag = tags.into_iter().filter_map(|(key, value)| self.by_tag.get(key)?.get(value));
        // Some labels say what the key says, whether they are written or not.
        let known = [labels::DISPLAY_NAME, labels::MESH, labels::ZONE];
        let written = subject.labels.keys().map(String::as_str).filter(|key| !known.contains(key));
        let named = known.into_iter().chain(written).filter(|_| !self.by_label.is_empty());
        let by_label = named.filter_map(|key| self.by_label.get(key)?.get(meta.label(key)?));
        let by_name = self.by_name.get(meta.display());
        let by_zone = self.by_zone.get(meta.zone());
        [&self.everywhere].into_iter().chain(by_tag).chain(by_label).chain(by_name).chain(by_zone).collect()
    }
}

fn slot<'a>(table: &'a mut Table, key: &str, value: &str) -> &'a mut BTreeSet<ByKey> {
    table.entry(key.to_owned()).or_default().entry(value.to_owned()).or_default()
}

fn close(table: &mut Table, key: &str, value: &str) {
    if let Some(values) = table.get_mut(key) {
        values.remove(value);
        if values.is_empty() {
            table.remove(key);
        }
    }
}

/// Follows the exact check: of its conditions the one that fewest fulfil.
fn need(policy: &Policy) -> Need<'_> {
    let meta = Meta::from(&*policy.resource);
    let need = match policy.target() {
        // Which Dataplanes a route selects can change without the policy.
        None => Need::Nothing,
        Some(target) => match target.kind {
            TargetKind::Mesh | TargetKind::MeshHttpRoute => Need::Nothing,
            TargetKind::MeshSubset => rarest(target).unwrap_or(Need::Nothing),
            TargetKind::MeshService | TargetKind::MeshServiceSubset => {
                target.name().map_or(Need::Impossible, |name| Need::Tag(labels::SERVICE, name))
            }
            TargetKind::Dataplane => match target.name() {
                Some(name) => Need::Name(name),
                None => target
                    .labels
                    .iter()
                    .flatten()
                    .min_by_key(|(key, _)| COMMON_TAGS.contains(&key.as_str()))
                    .map_or(Need::Nothing, |(key, value)| Need::Label(key, value)),
            },
            TargetKind::MeshGateway
            | TargetKind::MeshExternalService
            | TargetKind::MeshMultiZoneService
            | TargetKind::Other(_) => Need::Impossible,
        },
    };
    let of_zone = meta.role() != Role::Producer && !meta.zone().is_empty();
    if need == Need::Nothing && of_zone { Need::Zone(meta.zone()) } else { need }
}

fn rarest(target: &TargetRef) -> Option<Need<'_>> {
    let order = |key: &str| (key != labels::SERVICE, COMMON_TAGS.contains(&key));
    let tags = target.tags.iter().flatten();
    tags.min_by_key(|(key, _)| order(key)).map(|(key, value)| Need::Tag(key, value))
}

impl Borrow<Key> for ByKey {
    fn borrow(&self) -> &Key {
        self.0.key()
    }
}

impl PartialEq for ByKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.key() == other.0.key()
    }
}

impl Eq for ByKey {}

impl PartialOrd for ByKey {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ByKey {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.key().cmp(other.0.key())
    }
}
