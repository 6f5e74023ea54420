//! What a MeshLoadBalancingStrategy does that its writer may not expect.

use super::{Conf, LARGEST_TABLE, LoadBalancer, LoadBalancerType, LocalityAwareness, table_size};
use crate::kinds::policy::Targeted;
use crate::{TargetKind, TargetRef};

pub(super) fn warn(items: Option<&Vec<Targeted<Conf>>>, out: &mut Vec<String>) {
    for (i, item) in items.into_iter().flatten().enumerate() {
        let path = format!("spec.to[{i}].default");
        let Conf { locality_awareness, load_balancer, .. } = &item.default;
        if locality_awareness.as_ref().is_some_and(stays) && may_span_zones(&item.target_ref) {
            out.push(format!(
                "{path}.localityAwareness keeps calls in the caller's zone: only crossZone.failover leads to others"
            ));
        }
        if let Some(balancer) = load_balancer {
            warn_of_sizes(&path, balancer, out);
        }
    }
}

/// Whether a part for the local zone alone, as in Kuma, leaves no other zone.
fn stays(locality: &LocalityAwareness) -> bool {
    locality.disabled != Some(true) && locality.local_zone.is_some() && locality.cross_zone.is_none()
}

/// By its name alone a MeshService may be all that share the name.
fn may_span_zones(target: &TargetRef) -> bool {
    match target.kind {
        TargetKind::Mesh | TargetKind::MeshMultiZoneService => true,
        TargetKind::MeshService => !target.has_labels() && target.section_name().is_none(),
        _ => false,
    }
}

fn warn_of_sizes(path: &str, balancer: &LoadBalancer, out: &mut Vec<String>) {
    match balancer.type_ {
        LoadBalancerType::RingHash => {
            let least = balancer.ring_hash.as_ref().and_then(|ring| ring.min_ring_size);
            if let Some(least) = least.filter(|least| *least > LARGEST_TABLE) {
                let path = format!("{path}.loadBalancer.ringHash.minRingSize");
                out.push(format!("{path} is {least}, but a ring has at most {LARGEST_TABLE} places"));
            }
        }
        LoadBalancerType::Maglev => {
            let asked = balancer.maglev.as_ref().and_then(|maglev| maglev.table_size);
            if let Some((asked, size)) = asked.map(|asked| (asked, table_size(asked))).filter(|(a, b)| a != b)
            {
                let why = if asked > LARGEST_TABLE { "tables have no more places" } else { "the next prime" };
                let path = format!("{path}.loadBalancer.maglev.tableSize");
                out.push(format!("{path} is {asked}, but the table has {size} places: {why}"));
            }
        }
        _ => {}
    }
}
