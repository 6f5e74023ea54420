//! Who may call: an ordered list, first match decides, no match denies.

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// A compiled permission, strongest rule first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Permission {
    pub rules: Vec<PermissionRule>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct PermissionRule {
    pub action: Action,
    pub caller: CallerMatch,
    /// Display name of the policy, for logs and "why".
    pub policy: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    Allow,
    Deny,
    /// Allowed, but counted and logged as a denial to come.
    AllowWithShadowDeny,
}

/// All conditions must hold; none at all matches every authenticated caller.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct CallerMatch {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spiffe_exact: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spiffe_prefix: Option<String>,
    /// Each tag must be among the caller's certificate tags.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// The server name of the session (an egress's way to tell destinations apart).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sni: Option<String>,
}

/// What a verified certificate says of a caller. Built once a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallerIdentity {
    pub mesh: String,
    /// `spiffe://<mesh>/<service>`, one or more.
    pub spiffe: Vec<String>,
    /// From the `kuma://<tag>/<value>` SANs.
    pub tags: BTreeMap<String, BTreeSet<String>>,
    /// From `meridian://dataplane/<name>`.
    pub dataplane: Option<String>,
    /// The zone of the issuing intermediate.
    pub zone: String,
}

/// The answer, with the policy that gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    Allow {
        policy: &'a str,
        shadow_denied: bool,
    },
    /// No policy: nothing allowed the caller.
    Deny {
        policy: Option<&'a str>,
    },
}

impl Verdict<'_> {
    pub fn allowed(&self) -> bool {
        matches!(self, Self::Allow { .. })
    }
}

impl Permission {
    /// Decides for one caller; `sni` is the session's server name.
    pub fn decide(&self, caller: &CallerIdentity, sni: Option<&str>) -> Verdict<'_> {
        for rule in &self.rules {
            if rule.caller.matches(caller, sni) {
                return match rule.action {
                    Action::Allow => Verdict::Allow { policy: &rule.policy, shadow_denied: false },
                    Action::AllowWithShadowDeny => {
                        Verdict::Allow { policy: &rule.policy, shadow_denied: true }
                    }
                    Action::Deny => Verdict::Deny { policy: Some(&rule.policy) },
                };
            }
        }
        Verdict::Deny { policy: None }
    }
}

impl CallerMatch {
    /// A caller without an identity is the default one: it matches where nothing is asked of it.
    /// `sni`: the session's server name.
    pub fn matches(&self, caller: &CallerIdentity, sni: Option<&str>) -> bool {
        self.spiffe_exact.as_ref().is_none_or(|want| caller.spiffe.contains(want))
            && self.spiffe_prefix.as_ref().is_none_or(|want| caller.spiffe.iter().any(|id| under(id, want)))
            && self.sni.as_deref().is_none_or(|want| sni == Some(want))
            && self
                .tags
                .iter()
                .all(|(key, value)| caller.tags.get(key).is_some_and(|values| values.contains(value)))
    }
}

/// A SPIFFE prefix ends at a path segment: `spiffe://m/foo` covers `spiffe://m/foo/bar`, not `spiffe://m/foobar`.
fn under(id: &str, prefix: &str) -> bool {
    id.strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || prefix.ends_with('/') || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(service: &str) -> CallerIdentity {
        CallerIdentity {
            mesh: "default".into(),
            spiffe: vec![format!("spiffe://default/{service}")],
            tags: [("kuma.io/service".to_owned(), [service.to_owned()].into())].into(),
            dataplane: Some(format!("{service}-1")),
            zone: "east".into(),
        }
    }

    fn rule(action: Action, caller: CallerMatch) -> PermissionRule {
        PermissionRule { action, caller, policy: "p".into() }
    }

    #[test]
    fn nothing_said_is_denied() {
        assert_eq!(Permission::default().decide(&caller("web"), None), Verdict::Deny { policy: None });
    }

    #[test]
    fn the_first_match_decides() {
        let web = CallerMatch {
            tags: [("kuma.io/service".to_owned(), "web".to_owned())].into(),
            ..Default::default()
        };
        let permission =
            Permission { rules: vec![rule(Action::Deny, web), rule(Action::Allow, CallerMatch::default())] };
        assert!(!permission.decide(&caller("web"), None).allowed());
        assert!(permission.decide(&caller("api"), None).allowed());
    }

    #[test]
    fn a_prefix_ends_at_a_segment() {
        assert!(under("spiffe://m/foo/bar", "spiffe://m/foo"));
        assert!(under("spiffe://m/foo", "spiffe://m/foo"));
        assert!(under("spiffe://m/foobar", "spiffe://m/"));
        assert!(!under("spiffe://m/foobar", "spiffe://m/foo"));
    }
}
