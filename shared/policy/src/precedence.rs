//! Kuma's order of policies: what a later one says overrides what an earlier one said.
//!
//! From weak to strong: the top-level targetRef's kind; for Dataplanes how precisely it names them; where the policy
//! was written (global, then zone); whose it is (system, producer, consumer, workload owner); and of otherwise equal
//! ones the name, where the alphabetically first is the strongest.

use crate::Parsed;
use crate::meta::{Meta, Origin, Role};
use meridian_core::{Key, Resource, TargetKind, TargetRef};
use std::cmp::Reverse;

/// A policy's place in the order. Any two policies differ in their keys, so the order is total: that of arrival never
/// shows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Precedence {
    pub(crate) strength: Strength,
    pub(crate) name: Reverse<(String, Key)>,
}

/// All of the order but the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Strength {
    kind: u8,
    precision: u8,
    origin: Origin,
    role: Role,
}

impl Precedence {
    pub(crate) fn of(policy: &Resource, target: Option<&TargetRef>) -> Self {
        let meta = Meta::from(policy);
        let kind = target.map_or(1, |target| rank(&target.kind));
        let precision = target.map_or(0, precision);
        let strength = Strength { kind, precision, origin: meta.origin(), role: meta.role() };
        Self { strength, name: meta.order() }
    }
}

/// Sorts from weak to strong.
pub(crate) fn sorted<'a, T>(
    policies: impl Iterator<Item = &'a Parsed<T>>,
    target: impl Fn(&T) -> Option<&TargetRef>,
) -> Vec<&'a Parsed<T>> {
    let mut policies: Vec<_> = policies.collect();
    policies.sort_by_cached_key(|policy| Precedence::of(&policy.resource, target(&policy.spec)));
    policies
}

/// Kuma's order of targetRef kinds, at the top level and in `to`.
pub(crate) fn rank(kind: &TargetKind) -> u8 {
    match kind {
        TargetKind::Mesh | TargetKind::Other(_) => 1,
        TargetKind::Dataplane => 2,
        TargetKind::MeshSubset => 3,
        TargetKind::MeshGateway => 4,
        TargetKind::MeshService => 5,
        TargetKind::MeshExternalService => 6,
        TargetKind::MeshMultiZoneService => 7,
        TargetKind::MeshServiceSubset => 8,
        TargetKind::MeshHttpRoute => 9,
    }
}

/// How precisely Dataplanes are named.
fn precision(target: &TargetRef) -> u8 {
    if target.kind != TargetKind::Dataplane {
        return 0;
    }
    let named = target.name().is_some() || target.namespace().is_some();
    match (named, target.section_name().is_some(), target.has_labels()) {
        (true, true, _) => 4,
        (true, false, _) => 3,
        (false, true, _) => 2,
        (false, false, true) => 1,
        (false, false, false) => 0,
    }
}
