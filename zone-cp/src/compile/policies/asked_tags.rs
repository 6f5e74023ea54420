//! Which tags of instances policies ask for. Proxies are told only of those: a tag that nobody asks for costs no
//! message when it changes, and is nobody else's business.

use super::outgoing::backends::subset_tags;
use meridian_core::Kind;
use meridian_core::kinds::mesh_http_route::MeshHttpRoute;
use meridian_core::kinds::mesh_load_balancing_strategy::{self as balancing, MeshLoadBalancingStrategy};
use meridian_core::kinds::mesh_retry::{self as retry, MeshRetry};
use meridian_core::kinds::mesh_tcp_route::MeshTcpRoute;
use meridian_policy::Policy;
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// A kind whose `to` asks for tags.
struct Asking {
    kind: Kind,
    keys: fn(&Value) -> Vec<String>,
}

const ASKING: [Asking; 4] = [
    Asking { kind: MeshLoadBalancingStrategy::KIND, keys: affinity },
    Asking { kind: MeshRetry::KIND, keys: omitted },
    Asking { kind: MeshHttpRoute::KIND, keys: subset_tags },
    Asking { kind: MeshTcpRoute::KIND, keys: subset_tags },
];

/// Keys of tags that policies of a mesh ask for: counted, so that what a policy asked for goes with the last one that
/// asks for it, and no other policy has to be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct AskedTags(BTreeMap<String, usize>);

impl AskedTags {
    pub(crate) fn keys(&self) -> impl Iterator<Item = &String> {
        self.0.keys()
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    /// A policy is there in place of another, or of none.
    pub(crate) fn follow(&mut self, old: Option<&Policy>, new: Option<&Policy>) {
        for key in new.map(asks_for).unwrap_or_default() {
            let count = self.0.entry(key).or_default();
            *count = count.saturating_add(1);
        }
        for key in old.map(asks_for).unwrap_or_default() {
            if let Some(count) = self.0.get_mut(&key) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    self.0.remove(&key);
                }
            }
        }
    }
}

/// A configuration that can't be read asks for nothing: its policy is blamed where it is compiled.
fn asks_for(policy: &Policy) -> BTreeSet<String> {
    let asking = ASKING.iter().find(|asking| asking.kind == policy.key().kind);
    asking.into_iter().flat_map(|asking| policy.to_confs().flat_map(asking.keys)).collect()
}

fn affinity(conf: &Value) -> Vec<String> {
    let Ok(conf) = balancing::Conf::deserialize(conf) else { return Vec::new() };
    let zone = conf.locality_awareness.and_then(|locality| locality.local_zone);
    let tags = zone.and_then(|zone| zone.affinity_tags).unwrap_or_default();
    tags.into_iter().map(|tag| tag.key).collect()
}

fn omitted(conf: &Value) -> Vec<String> {
    let Ok(conf) = retry::Conf::deserialize(conf) else { return Vec::new() };
    let predicates = conf.http.and_then(|http| http.host_selection).unwrap_or_default();
    predicates.into_iter().filter_map(|predicate| predicate.tags).flat_map(BTreeMap::into_keys).collect()
}

#[cfg(test)]
mod tests;
