//! Which series a policy wants of the proxy's own: by Kuma's profiles, which go by Envoy's names.

use meridian_proxy_config::metrics::{MetricProfile, NameMatch, SidecarMetrics};
use regex::Regex;

/// How large a compiled pattern may be, as when the policy was applied: what it says must not fill a proxy's memory.
const PATTERN_SIZE: usize = 256 << 10;

/// Kuma's profile Basic: golden signals, and what its dashboards show. The proxy's own names are few: all of them.
const BASIC_PREFIXES: [&str; 4] = ["envoy_server", "envoy_control_plane", "envoy_dns", "meridian_"];
const BASIC_PARTS: [&str; 28] = [
    "rq_time",
    "cx_length_ms",
    "cx_count",
    "_rq",
    "bytes",
    "timeout",
    "health_check",
    "lb_healthy_panic",
    "cx_destroy",
    "error",
    "fail",
    "reset",
    "eject",
    "overflow",
    "cancelled",
    "max_duration_reached",
    "no_cluster",
    "no_route",
    "no_filter_chain",
    "reject",
    "denied",
    "days_until_first_cert_expiring",
    "rbac",
    "cx_active",
    "cx_connect",
    "circuit_breakers",
    "cx_total",
    "ssl_handshake",
];
const BASIC_NAMES: [&str; 3] = [
    "envoy_cluster_membership_degraded",
    "envoy_cluster_membership_healthy",
    "envoy_cluster_membership_total",
];

#[derive(Debug)]
pub struct Selection {
    profile: MetricProfile,
    exclude: Vec<Matcher>,
    include: Vec<Matcher>,
}

#[derive(Debug)]
enum Matcher {
    Exact(String),
    Prefix(String),
    Contains(String),
    Regex(Regex),
}

impl Selection {
    /// # Errors
    /// A pattern can't be understood, or is too large.
    pub fn compile(config: &SidecarMetrics) -> Result<Self, String> {
        let all = |matches: &[NameMatch]| matches.iter().map(Matcher::compile).collect::<Result<_, _>>();
        Ok(Self { profile: config.profile, exclude: all(&config.exclude)?, include: all(&config.include)? })
    }

    /// Whether a family is given: what is included wins over what is excluded, and that over the profile.
    pub fn has(&self, name: &str) -> bool {
        let any = |matchers: &[Matcher]| matchers.iter().any(|matcher| matcher.matches(name));
        any(&self.include) || (self.in_profile(name) && !any(&self.exclude))
    }

    fn in_profile(&self, name: &str) -> bool {
        match self.profile {
            MetricProfile::All => true,
            MetricProfile::None => false,
            MetricProfile::Basic => {
                BASIC_NAMES.contains(&name)
                    || BASIC_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
                    || BASIC_PARTS.iter().any(|part| name.contains(part))
            }
        }
    }
}

impl Matcher {
    fn compile(config: &NameMatch) -> Result<Self, String> {
        Ok(match config {
            NameMatch::Exact(name) => Self::Exact(name.clone()),
            NameMatch::Prefix(prefix) => Self::Prefix(prefix.clone()),
            NameMatch::Contains(part) => Self::Contains(part.clone()),
            NameMatch::Regex(pattern) => {
                let built = regex::RegexBuilder::new(pattern).size_limit(PATTERN_SIZE).build();
                Self::Regex(built.map_err(|error| format!("pattern {pattern:?}: {error}"))?)
            }
        })
    }

    fn matches(&self, name: &str) -> bool {
        match self {
            Self::Exact(exact) => name == exact,
            Self::Prefix(prefix) => name.starts_with(prefix.as_str()),
            Self::Contains(part) => name.contains(part.as_str()),
            Self::Regex(regex) => regex.is_match(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACTIVE: &str = "envoy_cluster_upstream_cx_active";
    const CLUSTERS: &str = "envoy_cluster_manager_active_clusters";

    fn selection(profile: MetricProfile, exclude: &[NameMatch], include: &[NameMatch]) -> Selection {
        let config = SidecarMetrics {
            include_unused: false,
            profile,
            exclude: exclude.to_vec(),
            include: include.to_vec(),
        };
        Selection::compile(&config).unwrap()
    }

    #[test]
    fn each_profile_contains_the_one_before() {
        for (profile, wanted) in [
            (MetricProfile::None, [false, false, false]),
            (MetricProfile::Basic, [true, false, true]),
            (MetricProfile::All, [true, true, true]),
        ] {
            let selection = selection(profile, &[], &[]);
            assert_eq!([ACTIVE, CLUSTERS, "meridian_proxy_ready"].map(|name| selection.has(name)), wanted);
        }
    }

    #[test]
    fn what_is_included_wins() {
        let prefix = || NameMatch::Prefix("envoy_cluster".into());
        let without = selection(MetricProfile::All, &[prefix()], &[NameMatch::Regex("cx_.*e$".into())]);
        assert!(without.has(ACTIVE) && !without.has(CLUSTERS) && without.has("envoy_server_live"));
        let only = selection(MetricProfile::None, &[NameMatch::Contains("cx".into())], &[prefix()]);
        assert!(only.has(ACTIVE) && only.has(CLUSTERS) && !only.has("envoy_server_live"));
        let exact = selection(MetricProfile::All, &[NameMatch::Exact(CLUSTERS.into())], &[]);
        assert!(exact.has(ACTIVE) && !exact.has(CLUSTERS));
    }

    #[test]
    fn a_pattern_that_is_none_is_refused() {
        let exclude = vec![NameMatch::Regex("(".into())];
        assert!(Selection::compile(&SidecarMetrics { exclude, ..Default::default() }).is_err());
    }
}
