//! Kuma's order of policies: what a later one says overrides what an earlier one said.
//!
//! From weak to strong: the top-level targetRef's kind; for Dataplanes how precisely it names them; where the policy
//! was written (global, then zone); whose it is (system, producer, consumer, workload owner); and of otherwise equal
//! ones the name, where the alphabetically first is the strongest.

use crate::Parsed;
use meridian_core::{Resource, TargetKind, TargetRef, labels, names};
use std::cmp::Reverse;

/// Sorts from weak to strong. Any two policies differ in their keys, so the order is total: that of arrival never
/// shows.
pub(crate) fn sorted<'a, T>(
    policies: impl Iterator<Item = &'a Parsed<T>>,
    target: impl Fn(&T) -> Option<&TargetRef>,
) -> Vec<&'a Parsed<T>> {
    let mut policies: Vec<_> = policies.collect();
    policies.sort_by_cached_key(|policy| {
        let resource = &policy.resource;
        let display = names::display(&resource.key.name, &resource.labels).to_owned();
        let strength = (top_level(target(&policy.spec)), origin(resource), role(resource));
        (strength, Reverse((display, resource.key.clone())))
    });
    policies
}

fn top_level(target: Option<&TargetRef>) -> (u8, u8) {
    let Some(target) = target else {
        return (1, 0);
    };
    let kind = match target.kind {
        TargetKind::Mesh | TargetKind::Other(_) => 1,
        TargetKind::Dataplane => 2,
        TargetKind::MeshSubset => 3,
        TargetKind::MeshGateway => 4,
        TargetKind::MeshService => 5,
        TargetKind::MeshExternalService => 6,
        TargetKind::MeshMultiZoneService => 7,
        TargetKind::MeshServiceSubset => 8,
        TargetKind::MeshHttpRoute => 9,
    };
    let named = target.name().is_some() || target.namespace().is_some();
    let precision = match (named, target.section_name().is_some(), target.has_labels()) {
        (true, true, _) => 4,
        (true, false, _) => 3,
        (false, true, _) => 2,
        (false, false, true) => 1,
        (false, false, false) => 0,
    };
    (kind, if target.kind == TargetKind::Dataplane { precision } else { 0 })
}

fn origin(policy: &Resource) -> u8 {
    match policy.labels.get(labels::ORIGIN).map(String::as_str) {
        Some(labels::ORIGIN_GLOBAL) => 1,
        Some(labels::ORIGIN_ZONE) => 3,
        _ => 2,
    }
}

fn role(policy: &Resource) -> u8 {
    match policy.labels.get(labels::POLICY_ROLE).map(String::as_str) {
        Some(labels::ROLE_PRODUCER) => 2,
        Some(labels::ROLE_CONSUMER) => 3,
        Some(labels::ROLE_WORKLOAD_OWNER) => 4,
        _ => 1,
    }
}

/// Whose policies hold for the workloads of their namespace only.
pub(crate) fn is_for_namespace(policy: &Resource) -> bool {
    role(policy) > 2
}

/// The zone where a resource was written, or empty.
pub(crate) fn zone(resource: &Resource) -> &str {
    zone_of(&resource.key, &resource.labels)
}

pub(crate) fn zone_of<'a>(
    key: &'a meridian_core::Key,
    labels: &'a std::collections::BTreeMap<String, String>,
) -> &'a str {
    let labelled = labels.get(meridian_core::labels::ZONE).map_or("", String::as_str);
    if key.zone.is_empty() { labelled } else { &key.zone }
}
