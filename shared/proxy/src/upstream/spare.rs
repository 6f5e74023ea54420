//! What outlier detection leaves of a cluster's endpoints.

use super::{DialError, EndpointState, Upstream};
use crate::{
    policy::outliers::{Event, OutlierPolicy},
    worker::Worker,
};
use smallvec::SmallVec;
use std::rc::Rc;

/// Which endpoints may be used.
pub(super) enum Spared {
    /// Nobody is out, or so many are that all are used.
    All,
    /// Those that are not out; by tier, whether enough of them are left.
    Tiers(SmallVec<[bool; 4]>),
}

impl Spared {
    fn of(policy: &OutlierPolicy, tiers: &[Vec<Rc<EndpointState>>], now: u64) -> Self {
        let stands = |tier: &Vec<Rc<EndpointState>>| {
            let left = tier.iter().filter(|state| !state.record.is_out(now)).count();
            policy.stands(left, tier.len())
        };
        let stand: SmallVec<_> = tiers.iter().map(stands).collect();
        if policy.panics() && !stand.contains(&true) { Self::All } else { Self::Tiers(stand) }
    }

    pub(super) fn allows(&self, state: &EndpointState, now: u64) -> bool {
        matches!(self, Self::All) || !state.record.is_out(now)
    }

    /// Whether it is allowed, and its tier has enough that are.
    pub(super) fn prefers(&self, tier: usize, state: &EndpointState, now: u64) -> bool {
        match self {
            Self::All => true,
            Self::Tiers(stand) => stand.get(tier) == Some(&true) && !state.record.is_out(now),
        }
    }
}

impl Upstream {
    pub(super) fn spared(&self, tiers: &[Vec<Rc<EndpointState>>], now: u64) -> Spared {
        if self.outliers.is_idle(now) {
            return Spared::All;
        }
        match &self.cluster.borrow().outliers {
            Some(policy) => Spared::of(policy, tiers, now),
            None => Spared::All,
        }
    }

    /// Takes in what came of a request or connection to an endpoint.
    pub fn note(&self, worker: &Worker, state: &EndpointState, event: Event) {
        let cluster = self.cluster.borrow();
        let Some(policy) = &cluster.outliers else { return };
        let out = self.outliers.note(policy, &state.record, event, worker.timer.now());
        if out > 0 {
            cluster.traffic.cell(worker.index).ejections.add(out as u64);
            tracing::warn!(service = %cluster.service, out, endpoint = %state.endpoint.name, "endpoints are left out, as they failed too often");
        }
    }

    /// Why there is no endpoint to choose.
    pub fn nothing(&self) -> DialError {
        let service = self.cluster.borrow().service.clone();
        let any = self.tiers.borrow().iter().any(|tier| !tier.is_empty());
        if any { DialError::LeftOut(service) } else { DialError::NoEndpoints(service) }
    }
}
