use crate::merge::{Merged, Part};
use crate::policy::Policy;
use std::sync::Arc;

/// What policies that configure a whole proxy (from weak to strong) add up to.
pub fn proxy_conf(policies: &[Arc<Policy>]) -> Option<Merged> {
    let confs = policies.iter().filter_map(|policy| Some((policy, policy.single.as_ref()?)));
    let parts: Vec<Part<'_>> =
        confs.map(|(policy, conf)| Part { conf, policy: &policy.resource, item: 0 }).collect();
    Merged::of(&parts)
}
