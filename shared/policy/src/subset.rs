//! Callers or services by their tags, and Kuma's rules over them.
//!
//! Items whose tags can meet in one caller overlap. Kuma lists for each largest group of overlapping items every
//! combination of their tags, present or absent, with what the items that hold for it add up to; the first
//! combination that fits a caller decides.

use crate::merge::{Merged, Part};
use meridian_core::{TargetKind, TargetRef, labels};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// A list with more rules than this is of no use to a reader, and each further tag doubles it: beyond, only the items'
/// own combinations are listed. What holds for a caller does not depend on it ([`of_tags`]).
const MAX_RULES: usize = 4096;

/// A tag that must be there, or must not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tag {
    pub key: String,
    pub value: String,
    /// The tag must not have this value.
    pub not: bool,
}

/// All of these, each key once. Sorted.
pub type Subset = Vec<Tag>;

/// What holds for a group of callers or services. Of a list the first that matches decides.
#[derive(Clone, Debug, PartialEq)]
pub struct SubsetRule {
    pub subset: Subset,
    pub merged: Merged,
}

/// A configuration for what has these tags.
#[derive(Clone, Debug)]
pub(crate) struct Tagged<'a> {
    pub(crate) tags: BTreeMap<String, String>,
    pub(crate) part: Part<'a>,
}

impl SubsetRule {
    /// Whether the rule holds for what has these tags.
    pub fn matches(&self, tags: &BTreeMap<String, String>) -> bool {
        self.subset.iter().all(|tag| (tags.get(&tag.key) == Some(&tag.value)) != tag.not)
    }
}

/// A reference as tags; `None` if tags can't say it.
pub(crate) fn tags_of(target: &TargetRef) -> Option<BTreeMap<String, String>> {
    let service = || target.name().map(|name| (labels::SERVICE.to_owned(), name.to_owned()));
    let tags = target.tags.clone().unwrap_or_default();
    match target.kind {
        TargetKind::Mesh => Some(BTreeMap::new()),
        TargetKind::MeshSubset => Some(tags),
        TargetKind::MeshService => Some([service()?].into()),
        TargetKind::MeshServiceSubset => Some(tags.into_iter().chain([service()?]).collect()),
        _ => None,
    }
}

/// What holds for a caller or a service with these tags. `items` go from weak to strong.
pub(crate) fn of_tags(items: &[Tagged<'_>], tags: &BTreeMap<String, String>) -> Option<Merged> {
    let holds = |item: &&Tagged<'_>| item.tags.iter().all(|(key, value)| tags.get(key) == Some(value));
    let parts: Vec<Part<'_>> = items.iter().filter(holds).map(|item| item.part).collect();
    Merged::of(&parts)
}

/// Kuma's list for `from`: with every combination of tags present and absent.
pub(crate) fn combinations(items: &[Tagged<'_>]) -> Vec<SubsetRule> {
    let Some(groups) = groups(items) else {
        return own(items);
    };
    let mut rules = Vec::new();
    for tags in groups {
        for subset in all_combinations(&tags) {
            rules.extend(rule(subset, items));
        }
    }
    rules.sort_by_key(|rule| Reverse(rule.subset.iter().filter(|tag| !tag.not).count()));
    rules
}

/// Kuma's list for `to`: without absent tags where all items speak of one key at most.
pub(crate) fn destinations(items: &[Tagged<'_>]) -> Vec<SubsetRule> {
    let keys: BTreeSet<&String> = items.iter().flat_map(|item| item.tags.keys()).collect();
    if keys.len() > 1 { combinations(items) } else { own(items) }
}

/// The tags of the items, without their absence. What a caller with two of them gets is not in this list.
fn own(items: &[Tagged<'_>]) -> Vec<SubsetRule> {
    let mut subsets: Vec<Subset> = Vec::new();
    for item in items {
        let subset = positive(&item.tags);
        if !subsets.contains(&subset) {
            subsets.push(subset);
        }
    }
    let mut rules: Vec<_> = subsets.into_iter().filter_map(|subset| rule(subset, items)).collect();
    rules.sort_by_key(|rule| Reverse(rule.subset.len()));
    rules
}

fn positive(tags: &BTreeMap<String, String>) -> Subset {
    let tag = |(key, value): (&String, &String)| Tag { key: key.clone(), value: value.clone(), not: false };
    tags.iter().map(tag).collect()
}

fn rule(subset: Subset, items: &[Tagged<'_>]) -> Option<SubsetRule> {
    let has = |(key, value): (&String, &String)| {
        subset.iter().any(|tag| !tag.not && tag.key == *key && tag.value == *value)
    };
    let holds = |item: &&Tagged<'_>| item.tags.iter().all(has);
    let parts: Vec<Part<'_>> = items.iter().filter(holds).map(|item| item.part).collect();
    let merged = Merged::of(&parts)?;
    Some(SubsetRule { subset, merged })
}

/// In Kuma's order: the first tag changes fastest, and the combination with all of them is the last.
fn all_combinations(tags: &BTreeMap<String, String>) -> impl Iterator<Item = Subset> {
    let count = 1usize << tags.len();
    (1..=count).map(move |bits| {
        let absent = |i: usize| bits & (1 << i) != 0;
        let mut subset = positive(tags);
        subset.iter_mut().enumerate().for_each(|(i, tag)| tag.not = bits != count && absent(i));
        subset
    })
}

/// The largest groups of items that overlap pairwise, as their tags, in Kuma's order. `None` if their combinations
/// would be too many.
fn groups(items: &[Tagged<'_>]) -> Option<Vec<BTreeMap<String, String>>> {
    // Items with the same tags are one node, under all of their positions.
    let mut nodes: Vec<(&BTreeMap<String, String>, Vec<usize>)> = Vec::new();
    for (i, item) in items.iter().enumerate() {
        match nodes.iter_mut().find(|(tags, _)| *tags == &item.tags) {
            Some((_, positions)) => positions.push(i),
            None => nodes.push((&item.tags, vec![i])),
        }
    }
    let overlap = |a: &BTreeMap<String, String>, b: &BTreeMap<String, String>| {
        a.iter().all(|(key, value)| b.get(key).is_none_or(|other| other == value))
    };
    let neighbours: Vec<BTreeSet<usize>> = nodes
        .iter()
        .enumerate()
        .map(|(i, (tags, _))| {
            let all = nodes.iter().enumerate();
            all.filter(|(j, (other, _))| i != *j && overlap(tags, other)).map(|(j, _)| j).collect()
        })
        .collect();
    let mut search = Search { neighbours: &neighbours, found: Vec::new(), left: MAX_RULES };
    search.extend(&mut Vec::new(), (0..nodes.len()).collect(), BTreeSet::new())?;
    let mut groups: Vec<(String, BTreeMap<String, String>)> = Vec::new();
    let mut rules = 0usize;
    for clique in search.found {
        let members = || clique.iter().filter_map(|node| nodes.get(*node));
        let mut positions: Vec<usize> =
            members().flat_map(|(_, positions)| positions.iter().copied()).collect();
        positions.sort_unstable();
        let tags: BTreeMap<_, _> =
            members().flat_map(|(tags, _)| tags.iter()).map(|(k, v)| (k.clone(), v.clone())).collect();
        rules = rules.checked_add(1usize.checked_shl(u32::try_from(tags.len()).ok()?)?)?;
        if rules > MAX_RULES {
            return None;
        }
        let order: Vec<String> = positions.iter().map(usize::to_string).collect();
        groups.push((order.join(":"), tags));
    }
    // Kuma orders groups by this text, the last first.
    groups.sort_by(|a, b| b.0.cmp(&a.0));
    Some(groups.into_iter().map(|(_, tags)| tags).collect())
}

/// The search for maximal cliques (Bron and Kerbosch, with pivots).
struct Search<'a> {
    neighbours: &'a [BTreeSet<usize>],
    found: Vec<Vec<usize>>,
    /// Steps until it gives up.
    left: usize,
}

impl Search<'_> {
    fn of(&self, node: usize) -> BTreeSet<usize> {
        self.neighbours.get(node).cloned().unwrap_or_default()
    }

    /// `None`: gave up.
    fn extend(
        &mut self,
        clique: &mut Vec<usize>,
        mut candidates: BTreeSet<usize>,
        mut excluded: BTreeSet<usize>,
    ) -> Option<()> {
        self.left = self.left.checked_sub(1)?;
        if candidates.is_empty() {
            if excluded.is_empty() && !clique.is_empty() {
                self.found.push(clique.clone());
            }
            return Some(());
        }
        let all = candidates.union(&excluded).copied();
        let pivot = all.max_by_key(|node| self.of(*node).intersection(&candidates).count())?;
        let open: Vec<usize> = candidates.difference(&self.of(pivot)).copied().collect();
        for node in open {
            let own = self.of(node);
            clique.push(node);
            self.extend(clique, &candidates & &own, &excluded & &own)?;
            clique.pop();
            candidates.remove(&node);
            excluded.insert(node);
        }
        Some(())
    }
}
