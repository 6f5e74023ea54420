//! What happens where few of a cluster's endpoints may be used, whoever leaves the others out.

use meridian_proxy_config::DestinationPolicies;

/// Hundredths of a percent of a tier's endpoints: half of them, as in Envoy.
const BELOW: u32 = 5_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PanicRule {
    /// Of 10,000.
    below: usize,
    fails: bool,
}

impl PanicRule {
    pub fn compile(config: &DestinationPolicies) -> Self {
        let by_outliers = config.outliers.as_ref().map(|outliers| outliers.panic_below);
        let below = by_outliers.or(config.panic.below).unwrap_or(BELOW);
        Self { below: usize::try_from(below).unwrap_or(usize::MAX), fails: config.panic.fails }
    }

    /// Whether a tier of which so many endpoints are left can stand for itself.
    pub fn stands(&self, left: usize, all: usize) -> bool {
        left > 0 && left.saturating_mul(10_000) >= self.below.saturating_mul(all)
    }

    /// Whether endpoints that are left out are used where no tier can stand for itself.
    pub fn uses_all(&self) -> bool {
        self.below > 0 && !self.fails
    }

    /// Whether nothing is used there.
    pub fn uses_none(&self) -> bool {
        self.below > 0 && self.fails
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meridian_proxy_config::Panic;

    fn rule(below: Option<u32>, fails: bool) -> PanicRule {
        PanicRule::compile(&DestinationPolicies {
            panic: Panic { below, fails },
            ..DestinationPolicies::default()
        })
    }

    #[test]
    fn a_tier_stands_with_enough_of_its_endpoints() {
        for (below, left, all, stands) in [
            (5_000, 1, 2, true),
            (5_000, 1, 3, false),
            (5_000, 2, 3, true),
            (0, 1, 1_000, true),
            (0, 0, 1, false),
            (1, 0, 0, false),
            (10_000, 2, 3, false),
            (10_000, 3, 3, true),
            (u32::MAX, 3, 3, false),
        ] {
            assert_eq!(rule(Some(below), false).stands(left, all), stands, "{below} {left} {all}");
        }
        assert!(!rule(None, false).stands(4, 10) && rule(None, false).stands(5, 10));
    }

    #[test]
    fn what_is_used_where_no_tier_stands() {
        for (below, fails, all, none) in [
            (Some(0), false, false, false),
            (Some(0), true, false, false),
            (Some(1), false, true, false),
            (Some(1), true, false, true),
            (None, true, false, true),
        ] {
            let rule = rule(below, fails);
            assert_eq!((rule.uses_all(), rule.uses_none()), (all, none), "{below:?} {fails}");
        }
    }
}
