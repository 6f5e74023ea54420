//! Whom a rule is for, as proxies compare it. Policies without effect on access only: permission has its own, stricter
//! reading of server names.

use meridian_core::kinds::mesh_traffic_permission::{RuleMatch, SpiffeIdMatchType};
use meridian_proxy_config::CallerMatch;

/// `None`: everybody.
pub(super) fn caller(matched: Option<&RuleMatch>) -> CallerMatch {
    let mut caller = CallerMatch::default();
    let Some(matched) = matched else { return caller };
    if let Some(id) = &matched.spiffe_id {
        let value = Some(id.value.clone());
        match id.type_ {
            SpiffeIdMatchType::Prefix => caller.spiffe_prefix = value,
            SpiffeIdMatchType::Exact | SpiffeIdMatchType::Other(_) => caller.spiffe_exact = value,
        }
    }
    caller.sni = matched.sni.as_ref().map(|sni| sni.value.clone());
    caller
}
