//! Kuma's label and tag keys.

use crate::{Key, Scope};
use std::collections::BTreeMap;

pub const SERVICE: &str = "kuma.io/service";
pub const PROTOCOL: &str = "kuma.io/protocol";
/// Zone of origin.
pub const ZONE: &str = "kuma.io/zone";
pub const MESH: &str = "kuma.io/mesh";
/// `global` or `zone`.
pub const ORIGIN: &str = "kuma.io/origin";
/// The name under which the resource was written.
pub const DISPLAY_NAME: &str = "kuma.io/display-name";
pub const ENV: &str = "kuma.io/env";
/// `sidecar`, `gateway`, `zoneingress`, `zoneegress`.
pub const PROXY_TYPE: &str = "kuma.io/proxy-type";
/// `system`, `producer`, `consumer`, `workload-owner`.
pub const POLICY_ROLE: &str = "kuma.io/policy-role";
pub const MANAGED_BY: &str = "kuma.io/managed-by";
pub const WORKLOAD: &str = "kuma.io/workload";
pub const NAMESPACE: &str = "k8s.kuma.io/namespace";
/// When a generated MeshService lost its last Dataplane (RFC 3339).
pub const DELETION_GRACE_PERIOD_STARTED_AT: &str = "kuma.io/deletion-grace-period-started-at";
/// `enabled` or `disabled`.
pub const KDS_SYNC: &str = "kuma.io/kds-sync";

/// `shadow`: the policy is only tried out, and in force nowhere.
pub const EFFECT: &str = "kuma.io/effect";

pub const EFFECT_SHADOW: &str = "shadow";

pub const ORIGIN_GLOBAL: &str = "global";
pub const ORIGIN_ZONE: &str = "zone";

/// Whose policy one is; a rank in the order of policies.
pub const ROLE_SYSTEM: &str = "system";
pub const ROLE_PRODUCER: &str = "producer";
pub const ROLE_CONSUMER: &str = "consumer";
pub const ROLE_WORKLOAD_OWNER: &str = "workload-owner";

/// The role of a policy without `to`: that of its workload's owner in a namespace, else the system's.
pub fn policy_role(labels: &BTreeMap<String, String>) -> &'static str {
    if labels.get(NAMESPACE).is_some_and(|namespace| !namespace.is_empty()) {
        ROLE_WORKLOAD_OWNER
    } else {
        ROLE_SYSTEM
    }
}

/// The labels that a control plane gives to a resource written there, whatever the writer said. `zone` is that of
/// a zone's control plane, empty at global.
pub fn computed(key: &Key, zone: &str, written: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut labels = written.clone();
    let mut set = |label: &str, value: &str| labels.insert(label.to_owned(), value.to_owned());
    let info = key.kind.info();
    set(ORIGIN, if zone.is_empty() { ORIGIN_GLOBAL } else { ORIGIN_ZONE });
    set(DISPLAY_NAME, &key.name);
    if info.scope == Scope::Mesh {
        set(MESH, &key.mesh);
    }
    if info.targets.is_some() {
        set(POLICY_ROLE, policy_role(written));
    }
    if zone.is_empty() {
        labels.remove(ZONE);
    } else {
        set(ZONE, zone);
        set(ENV, "universal");
    }
    labels
}

/// Why a label's key is not valid: Kubernetes' rules, `[prefix/]name`.
pub fn invalid_key(key: &str) -> Option<&'static str> {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    if name.is_empty() {
        return Some("name part must be non-empty");
    }
    if name.len() > 63 {
        return Some("name part must be no more than 63 characters");
    }
    if !is_qualified(name) {
        return Some(
            "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
        );
    }
    match prefix {
        Some("") => Some("prefix part must be non-empty"),
        Some(prefix) if !crate::names::is_subdomain(prefix) => {
            Some("prefix part must be a lowercase RFC 1123 subdomain")
        }
        _ => None,
    }
}

/// Why a label's value is not valid: Kubernetes' rules.
pub fn invalid_value(value: &str) -> Option<&'static str> {
    if value.len() > 63 {
        return Some("must be no more than 63 characters");
    }
    (!value.is_empty() && !is_qualified(value)).then_some(
        "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
    )
}

fn is_qualified(text: &str) -> bool {
    let ends = |c: char| c.is_ascii_alphanumeric();
    text.starts_with(ends)
        && text.ends_with(ends)
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}
