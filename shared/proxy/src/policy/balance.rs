//! MeshLoadBalancingStrategy, compiled: by which rule an endpoint is chosen, and what a request's hash is made of.
//!
//! Everything here is a pure function of the configuration and of the endpoints' identities, so that all workers, all
//! proxies, and one proxy before and after a change agree on where a hash leads. The choosing itself is
//! [`crate::upstream`]'s, which knows what is usable.

use meridian_proxy_config::{Balancer, Balancing, Locality};
use std::{ops::Range, sync::Arc};

mod hashing;
pub mod spill;
mod table;
pub use hashing::{Hashed, Hashing};
pub use table::{Circle, Member, Table};

/// How endpoints of a cluster are chosen.
#[derive(Clone, Default)]
pub struct BalancingPolicy {
    pub rule: Rule,
    /// With [`Rule::Hash`], where the policy says what of.
    pub hashing: Option<Arc<Hashing>>,
    /// Hundredths of a percent: with a smaller share of usable endpoints a tier takes less than all. `None`: a tier takes
    /// all as long as one endpoint is usable.
    pub enough: Option<u32>,
}

/// How one of several endpoints is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rule {
    #[default]
    RoundRobin,
    Random,
    /// Of so many, drawn by lot, the least busy.
    LeastRequest(usize),
    /// By the tier's [`Circle`].
    Hash,
}

/// How the endpoints of one tier are chosen among; their places are those in the tier.
#[derive(Default)]
pub struct TierPlan {
    /// Parts that get shares of the requests by weight. Empty: all endpoints are alike.
    pub parts: Vec<Part>,
    /// Of a tier with several endpoints, with [`Rule::Hash`].
    pub circle: Option<Circle>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    pub endpoints: Range<usize>,
    pub weight: u32,
}

impl BalancingPolicy {
    pub fn compile(config: &Balancing, hashing: Option<Arc<Hashing>>) -> Self {
        let rule = match config.balancer {
            Balancer::RoundRobin => Rule::RoundRobin,
            Balancer::Random => Rule::Random,
            Balancer::LeastRequest { choices } => {
                Rule::LeastRequest(usize::try_from(choices.get()).unwrap_or(usize::MAX))
            }
            Balancer::RingHash { .. } | Balancer::Maglev { .. } => Rule::Hash,
        };
        let enough = match &config.locality {
            Locality::Zones(zones) => Some(zones.enough.clamp(1, 10_000)),
            Locality::Tiers | Locality::Alike => None,
        };
        Self { rule, hashing: hashing.filter(|_| rule == Rule::Hash), enough }
    }

    /// What a request's hash is made of, if endpoints are chosen by one: a route's word goes before the destination's.
    pub fn hashing<'a>(&'a self, of_route: Option<&'a Arc<Hashing>>) -> Option<&'a Arc<Hashing>> {
        let hashing = of_route.or(self.hashing.as_ref());
        hashing.filter(|_| self.rule == Rule::Hash)
    }

    /// Whether it matters how many requests an endpoint has under way.
    pub fn counts_requests(&self) -> bool {
        matches!(self.rule, Rule::LeastRequest(_))
    }
}
