//! What every proxy holds now, kept up to date change by change.
//!
//! A change names the units that it touches ([`crate::compile::touched`]). Those are compiled again, once each, and
//! only what differs is put into the views of the proxies that hold them. Counted, so that a test can hold that a proxy
//! which a change does not touch costs nothing.

use crate::compile::members::{Group, group_members, group_of, own_members};
use crate::compile::touched::Touched;
use crate::compile::{Compiled, Inputs, Problem, Unit, compile, owners};
use crate::picture::Picture;
use crate::vip::{Owner, VipTable};
use meridian_core::Key;
use meridian_delta::{Changing, Encoded, Id, Revision, Shared, StoreId, View, ViewChange};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

/// The views of proxies, by key. A proxy that asks before it has registered gets a pending one, which stays silent.
#[derive(Clone)]
pub(crate) struct Views {
    store: StoreId,
    all: Arc<Mutex<HashMap<Key, Arc<View>>>>,
}

impl Views {
    pub(crate) fn new(store: StoreId) -> Self {
        Self { store, all: Arc::default() }
    }

    /// The proxy's view, made now if there is none.
    pub(crate) fn open(&self, key: &Key) -> Arc<View> {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        // Its contents are computed as a whole, so what is absent is known to be gone, since ever.
        all.entry(key.clone()).or_insert_with(|| View::new(self.store, Revision(0))).clone()
    }

    /// What a group of proxies has in common, still empty.
    fn shared(&self) -> Arc<Shared> {
        Shared::new(self.store)
    }

    /// Streams of the view end, and the next to ask gets another one.
    pub(crate) fn retire(&self, key: &Key) {
        let retired = self.all.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
        if let Some(view) = retired {
            view.retire();
        }
    }

    /// Forgets a view that was never filled, if nobody waits for it, or is about to fill it.
    pub(crate) fn forget_pending(&self, key: &Key) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if all.get(key).is_some_and(|view| !view.is_ready() && Arc::strong_count(view) == 1) {
            all.remove(key);
        }
    }
}

/// Work done since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    /// Units compiled.
    pub(crate) units: u64,
    /// Times that a view was given something, by itself or by what it shares.
    pub(crate) views: u64,
    /// Times that a proxy's or a group's set of units was worked out.
    pub(crate) memberships: u64,
}

pub(crate) struct Audiences {
    views: Views,
    units: HashMap<Unit, Compiled>,
    groups: HashMap<Group, GroupState>,
    proxies: HashMap<Key, ProxyState>,
    /// By mesh: what policies say, a unit a selection.
    policy_units: BTreeMap<String, BTreeSet<Unit>>,
    /// Proxies that hold a unit by themselves.
    own_holders: HashMap<Unit, BTreeSet<Key>>,
    /// Units that need an address: it is released when the last is gone.
    address_users: HashMap<Owner, BTreeSet<Unit>>,
    addresses_of: HashMap<Unit, BTreeSet<Owner>>,
    /// What can't be compiled, by the units that have such.
    problems: BTreeMap<Unit, Vec<Problem>>,
    counters: Counters,
}

struct GroupState {
    members: BTreeSet<Unit>,
    proxies: BTreeSet<Key>,
    /// The resources of its members.
    shared: Arc<Shared>,
}

struct ProxyState {
    view: Arc<View>,
    group: Group,
    own: BTreeSet<Unit>,
}

/// What an update did beside the views.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Updated {
    /// Proxies that are no more.
    pub(crate) gone: Vec<Key>,
}

/// How one unit's resources changed.
#[derive(Default)]
struct Difference {
    upserts: Vec<Arc<Encoded>>,
    removals: Vec<Id>,
}

/// How a group's members changed.
#[derive(Default)]
struct GroupChange {
    added: Vec<Unit>,
    removed: Vec<Unit>,
}

impl Audiences {
    pub(crate) fn new(views: Views) -> Self {
        Self {
            views,
            units: HashMap::new(),
            groups: HashMap::new(),
            proxies: HashMap::new(),
            policy_units: BTreeMap::new(),
            own_holders: HashMap::new(),
            address_users: HashMap::new(),
            addresses_of: HashMap::new(),
            problems: BTreeMap::new(),
            counters: Counters::default(),
        }
    }

    pub(crate) fn counters(&self) -> Counters {
        self.counters
    }

    /// Every proxy that is compiled for.
    pub(crate) fn proxies(&self) -> impl Iterator<Item = &Key> {
        self.proxies.keys()
    }

    /// Resources that can't be compiled, and why.
    pub(crate) fn problems(&self) -> BTreeSet<(Key, String)> {
        self.problems
            .values()
            .flatten()
            .map(|Problem { key, reason }| (key.clone(), reason.clone()))
            .collect()
    }

    /// Addresses that are in use.
    pub(crate) fn uses_address(&self, owner: &Owner) -> bool {
        self.address_users.contains_key(owner)
    }

    /// Brings everything that `touched` names up to the picture; [`Audiences::allot`] comes first.
    pub(crate) fn update(
        &mut self,
        picture: &Picture,
        vips: &VipTable,
        touched: &Touched,
        revision: Revision,
    ) -> Updated {
        let mut moved: BTreeMap<Key, Option<(Group, BTreeSet<Unit>)>> = BTreeMap::new();
        for key in &touched.proxies {
            self.counters.memberships += 1;
            let next = group_of(picture, key).map(|group| (group, own_members(picture, key)));
            let same = self.proxies.get(key).map(|it| (&it.group, &it.own))
                == next.as_ref().map(|it| (&it.0, &it.1));
            if !same {
                moved.insert(key.clone(), next);
            }
        }
        let group_changes = self.regroup(picture, touched, &moved);
        let inputs = Inputs { picture, vips };
        let old = self.compile_all(inputs, touched, &moved, &group_changes);
        let filled = self.publish(revision, &group_changes, &moved, &old);
        let removed = group_changes.into_values().flat_map(|change| change.removed);
        let mut unheld: BTreeSet<Unit> = removed.collect();
        let gone = self.settle(moved, filled, &mut unheld);
        self.drop_unheld(unheld);
        Updated { gone }
    }

    /// Gives virtual addresses to what the units are about, and takes those of what is gone. What changed is to be
    /// stored before [`Audiences::update`] tells proxies of it. `now` in seconds since 1970.
    pub(crate) fn allot(&mut self, picture: &Picture, vips: &mut VipTable, units: &BTreeSet<Unit>, now: u64) {
        for unit in units {
            let wanted = owners(unit, picture);
            let held = self.addresses_of.get(unit).cloned().unwrap_or_default();
            for owner in wanted.difference(&held) {
                if let Err(error) = vips.ensure(owner, now) {
                    tracing::error!(%error, %owner, "a name has no virtual address");
                }
                self.address_users.entry(owner.clone()).or_default().insert(unit.clone());
            }
            for owner in held.difference(&wanted) {
                if let Some(users) = self.address_users.get_mut(owner) {
                    users.remove(unit);
                    if users.is_empty() {
                        self.address_users.remove(owner);
                        vips.release(owner, now);
                    }
                }
            }
            if wanted.is_empty() {
                self.addresses_of.remove(unit);
            } else {
                self.addresses_of.insert(unit.clone(), wanted);
            }
        }
    }

    /// Works out the members of groups that a change may have altered, and of new ones.
    fn regroup(
        &mut self,
        picture: &Picture,
        touched: &Touched,
        moved: &BTreeMap<Key, Option<(Group, BTreeSet<Unit>)>>,
    ) -> HashMap<Group, GroupChange> {
        let mut due: BTreeSet<Group> =
            self.groups.keys().filter(|group| touched.groups.contains(group)).cloned().collect();
        let joined = moved.values().flatten().map(|(group, _)| group);
        due.extend(joined.filter(|group| !self.groups.contains_key(group)).cloned());
        let mut changes = HashMap::new();
        for group in due {
            self.counters.memberships += 1;
            let members = group_members(picture, &group);
            let state = self.groups.entry(group.clone()).or_insert_with(|| GroupState {
                members: BTreeSet::new(),
                proxies: BTreeSet::new(),
                shared: self.views.shared(),
            });
            let change = GroupChange {
                added: members.difference(&state.members).cloned().collect(),
                removed: state.members.difference(&members).cloned().collect(),
            };
            state.members = members;
            changes.insert(group, change);
        }
        changes
    }

    /// Compiles what is touched and held, and what is held for the first time. Returns what these units were before.
    fn compile_all(
        &mut self,
        inputs: Inputs<'_>,
        touched: &Touched,
        moved: &BTreeMap<Key, Option<(Group, BTreeSet<Unit>)>>,
        group_changes: &HashMap<Group, GroupChange>,
    ) -> HashMap<Unit, Option<Compiled>> {
        let of_policies = touched.policies.iter().filter_map(|mesh| self.policy_units.get(mesh)).flatten();
        let held = touched.units.iter().chain(of_policies).filter(|unit| self.units.contains_key(unit));
        let joined = group_changes.values().flat_map(|change| &change.added);
        let own = moved.values().flatten().flat_map(|(_, own)| own);
        let fresh = joined.chain(own).filter(|unit| !self.units.contains_key(unit));
        let due: BTreeSet<Unit> = held.chain(fresh).cloned().collect();
        let mut old = HashMap::new();
        for unit in due {
            self.counters.units += 1;
            let compiled = compile(&unit, inputs);
            if compiled.problems.is_empty() {
                self.problems.remove(&unit);
            } else {
                self.problems.insert(unit.clone(), compiled.problems.clone());
            }
            if let Some(mesh) = mesh_of_policies(&unit) {
                self.policy_units.entry(mesh.to_owned()).or_default().insert(unit.clone());
            }
            let before = self.units.insert(unit.clone(), compiled);
            old.insert(unit, before);
        }
        old
    }

    /// Puts into what each group shares, and into each view, what is new to its proxies, in one step for each proxy. Answers with
    /// the views of those that are new to their groups.
    fn publish(
        &mut self,
        revision: Revision,
        group_changes: &HashMap<Group, GroupChange>,
        moved: &BTreeMap<Key, Option<(Group, BTreeSet<Unit>)>>,
        old: &HashMap<Unit, Option<Compiled>>,
    ) -> HashMap<Key, Arc<View>> {
        let differences: HashMap<&Unit, Difference> = old
            .iter()
            .filter_map(|(unit, before)| Some((unit, self.difference(unit, before.as_ref()?))))
            .filter(|(_, difference)| !difference.is_empty())
            .collect();
        let news = News { units: &self.units, differences, old };
        let no_change = GroupChange::default();
        let mut told: BTreeSet<&Key> = BTreeSet::new();
        let mut changing: Vec<(&Group, Changing, Vec<ViewChange>)> = Vec::new();
        for (group, state) in &self.groups {
            let change = group_changes.get(group).unwrap_or(&no_change);
            let holding = Holding {
                after: &state.members,
                added: change.added.iter().collect(),
                removed: change.removed.iter().collect(),
            };
            let changes = news.of(&holding);
            if !changes.is_empty() {
                changing.push((group, state.shared.change(), changes));
                told.extend(&state.proxies);
            }
        }
        // A proxy that moves is told how what its new group is now differs from what its old one was.
        let joins: HashSet<&Group> =
            moved.iter().filter_map(|(key, next)| self.joins(key, next.as_ref())).collect();
        let (joined, others): (Vec<_>, Vec<_>) =
            changing.into_iter().partition(|(group, ..)| joins.contains(group));
        let apply = |changing: Vec<(&Group, Changing, Vec<ViewChange>)>| -> Vec<Changing> {
            let each = |(_, shared, changes): (&Group, Changing, Vec<ViewChange>)| {
                shared.apply(revision, changes);
                shared
            };
            changing.into_iter().map(each).collect()
        };
        let joined = apply(joined);
        let mut filled = HashMap::new();
        for (key, next) in moved {
            let Some((group, own)) = next else { continue };
            told.insert(key);
            let state = self.groups.get(group).filter(|_| self.joins(key, next.as_ref()).is_some());
            if let Some(state) = state {
                let view = self.views.open(key);
                view.share(revision, state.shared.clone(), news.all(own));
                filled.insert(key.clone(), view);
            } else if let Some(state) = self.proxies.get(key) {
                state.view.apply(revision, news.of(&Holding::between(&state.own, own)));
            }
        }
        let others = apply(others);
        let holders = news.differences.keys().filter_map(|unit| self.own_holders.get(*unit)).flatten();
        let affected: BTreeSet<&Key> = holders.filter(|key| !moved.contains_key(*key)).collect();
        for key in affected {
            let Some(state) = self.proxies.get(key) else { continue };
            let changes = news.of(&Holding::between(&state.own, &state.own));
            if !changes.is_empty() {
                state.view.apply(revision, changes);
                told.insert(key);
            }
        }
        drop((joined, others));
        self.counters.views += told.len() as u64;
        for key in told {
            if let Some(view) = filled.get(key).or_else(|| self.proxies.get(key).map(|state| &state.view)) {
                view.wake();
            }
        }
        filled
    }

    /// The group that a proxy was not in before.
    fn joins<'a>(&self, key: &Key, next: Option<&'a (Group, BTreeSet<Unit>)>) -> Option<&'a Group> {
        let (group, _) = next?;
        self.proxies.get(key).is_none_or(|before| before.group != *group).then_some(group)
    }

    fn difference(&self, unit: &Unit, before: &Compiled) -> Difference {
        let Some(after) = self.units.get(unit) else { return Difference::default() };
        let old: HashMap<Id, &Arc<Encoded>> = before.resources.iter().map(|it| (it.id(), it)).collect();
        let mut gone: BTreeSet<Id> = old.keys().cloned().collect();
        let mut upserts = Vec::new();
        for resource in &after.resources {
            gone.remove(&resource.id());
            if old.get(&resource.id()).is_none_or(|there| there.version != resource.version) {
                upserts.push(resource.clone());
            }
        }
        Difference { upserts, removals: gone.into_iter().collect() }
    }

    /// Takes the moves into the books.
    fn settle(
        &mut self,
        moved: BTreeMap<Key, Option<(Group, BTreeSet<Unit>)>>,
        mut filled: HashMap<Key, Arc<View>>,
        unheld: &mut BTreeSet<Unit>,
    ) -> Vec<Key> {
        let mut gone = Vec::new();
        for (key, next) in moved {
            let before = self.proxies.remove(&key);
            let view = filled.remove(&key).or_else(|| before.as_ref().map(|before| before.view.clone()));
            if let Some(before) = before {
                if let Some(group) = self.groups.get_mut(&before.group) {
                    group.proxies.remove(&key);
                }
                unheld.extend(before.own.iter().cloned());
                for unit in &before.own {
                    if let Some(holders) = self.own_holders.get_mut(unit) {
                        holders.remove(&key);
                        if holders.is_empty() {
                            self.own_holders.remove(unit);
                        }
                    }
                }
            }
            let Some(((group, own), view)) = next.zip(view) else {
                self.views.retire(&key);
                gone.push(key);
                continue;
            };
            if let Some(state) = self.groups.get_mut(&group) {
                state.proxies.insert(key.clone());
            }
            for unit in &own {
                self.own_holders.entry(unit.clone()).or_default().insert(key.clone());
            }
            self.proxies.insert(key, ProxyState { view, group, own });
        }
        self.groups.retain(|_, group| {
            let empty = group.proxies.is_empty();
            if empty {
                unheld.extend(std::mem::take(&mut group.members));
            }
            !empty
        });
        gone
    }

    fn forget_policies(&mut self, unit: &Unit) {
        let Some(mesh) = mesh_of_policies(unit) else { return };
        if let Some(units) = self.policy_units.get_mut(mesh) {
            units.remove(unit);
            if units.is_empty() {
                self.policy_units.remove(mesh);
            }
        }
    }

    /// Units that nobody holds any more cost nothing from here on.
    fn drop_unheld(&mut self, candidates: BTreeSet<Unit>) {
        for unit in candidates {
            let grouped = self.groups.values().any(|group| group.members.contains(&unit));
            if !grouped && !self.own_holders.contains_key(&unit) {
                self.units.remove(&unit);
                self.problems.remove(&unit);
                self.forget_policies(&unit);
            }
        }
    }
}

/// The mesh of which the unit says what policies say.
fn mesh_of_policies(unit: &Unit) -> Option<&str> {
    match unit {
        Unit::Policies { mesh, .. } | Unit::EntryPolicies { mesh, .. } => Some(mesh),
        _ => None,
    }
}

/// What an update compiled, and what was there before it.
struct News<'a> {
    units: &'a HashMap<Unit, Compiled>,
    differences: HashMap<&'a Unit, Difference>,
    old: &'a HashMap<Unit, Option<Compiled>>,
}

impl News<'_> {
    /// Changes for whoever holds these units.
    fn of(&self, holding: &Holding<'_>) -> Vec<ViewChange> {
        let mut removals = Vec::new();
        let mut upserts = Vec::new();
        for unit in &holding.removed {
            let before = self.old.get(*unit).and_then(Option::as_ref).or_else(|| self.units.get(*unit));
            removals
                .extend(before.into_iter().flat_map(|unit| &unit.resources).map(|resource| resource.id()));
        }
        for unit in &holding.added {
            upserts.extend(self.units.get(*unit).into_iter().flat_map(|unit| &unit.resources).cloned());
        }
        for difference in self.differences_in(holding) {
            removals.extend(difference.removals.iter().cloned());
            upserts.extend(difference.upserts.iter().cloned());
        }
        // What moves from one unit to another of the same holder is not taken away: if it is the same there, nothing is sent.
        let given: HashSet<Id> = upserts.iter().map(|resource| resource.id()).collect();
        let removals = removals.into_iter().filter(|id| !given.contains(id)).map(ViewChange::Remove);
        // What goes comes first: of a step in several parts, a host that is no longer allowed must not wait for the rest.
        removals.chain(upserts.into_iter().map(ViewChange::Upsert)).collect()
    }

    /// Of units that were held before and are after. What is looked at is what there is less of.
    fn differences_in(&self, holding: &Holding<'_>) -> Vec<&Difference> {
        let stayed = |unit: &Unit| holding.after.contains(unit) && !holding.added.contains(unit);
        if self.differences.len() <= holding.after.len() {
            return self.differences.iter().filter(|(unit, _)| stayed(unit)).map(|(_, it)| it).collect();
        }
        let here = holding.after.iter().filter_map(|unit| Some((unit, self.differences.get(unit)?)));
        here.filter(|(unit, _)| stayed(unit)).map(|(_, it)| it).collect()
    }

    /// All resources of these units.
    fn all(&self, units: &BTreeSet<Unit>) -> Vec<Arc<Encoded>> {
        units
            .iter()
            .filter_map(|unit| self.units.get(unit))
            .flat_map(|unit| &unit.resources)
            .cloned()
            .collect()
    }
}

/// What a proxy or a group holds after an update, and how that differs from before.
struct Holding<'a> {
    after: &'a BTreeSet<Unit>,
    added: BTreeSet<&'a Unit>,
    removed: Vec<&'a Unit>,
}

impl<'a> Holding<'a> {
    fn between(before: &'a BTreeSet<Unit>, after: &'a BTreeSet<Unit>) -> Self {
        Self { after, added: after.difference(before).collect(), removed: before.difference(after).collect() }
    }
}

impl Difference {
    fn is_empty(&self) -> bool {
        self.upserts.is_empty() && self.removals.is_empty()
    }
}

#[cfg(test)]
mod tests;
