//! What outlier detection and health checks leave of a cluster's endpoints.

use super::{DialError, EndpointState, Upstream};
use crate::{policy::outliers::Event, snapshot::Cluster, worker::Worker};
use smallvec::SmallVec;
use std::rc::Rc;

/// Which endpoints may be used.
pub(super) enum Spared {
    /// Nobody is out, or so many are that all are used.
    All,
    /// Those that are not out; by tier, whether enough of them are left.
    Tiers { stand: SmallVec<[bool; 4]>, by_outliers: bool },
    /// So many are out that calls fail.
    Nobody,
}

/// Whether a cluster had an endpoint that is not well, when so many changes had been seen.
#[derive(Clone, Copy, Default)]
pub(super) struct Seen(Option<(u64, bool)>);

impl Spared {
    fn of(cluster: &Cluster, tiers: &[Vec<Rc<EndpointState>>], now: u64) -> Self {
        let by_outliers = cluster.outliers.is_some();
        let stands = |tier: &Vec<Rc<EndpointState>>| {
            let left = tier.iter().filter(|state| !state.is_out(now, by_outliers)).count();
            cluster.panic.stands(left, tier.len())
        };
        let stand: SmallVec<_> = tiers.iter().map(stands).collect();
        let any = stand.contains(&true);
        if !any && cluster.panic.uses_all() {
            Self::All
        } else if !any && cluster.panic.uses_none() {
            Self::Nobody
        } else {
            Self::Tiers { stand, by_outliers }
        }
    }

    pub(super) fn allows(&self, state: &EndpointState, now: u64) -> bool {
        match self {
            Self::All => true,
            Self::Tiers { by_outliers, .. } => !state.is_out(now, *by_outliers),
            Self::Nobody => false,
        }
    }

    /// Whether it is allowed, and its tier has enough that are.
    pub(super) fn prefers(&self, tier: usize, state: &EndpointState, now: u64) -> bool {
        let stands = match self {
            Self::All => true,
            Self::Tiers { stand, .. } => stand.get(tier) == Some(&true),
            Self::Nobody => false,
        };
        stands && self.allows(state, now)
    }
}

impl EndpointState {
    /// As health checks find; without them, nobody knows of anything.
    pub(super) fn is_healthy(&self) -> bool {
        self.checked.borrow().as_ref().is_none_or(|health| health.is_well())
    }

    fn is_out(&self, now: u64, by_outliers: bool) -> bool {
        (by_outliers && self.record.is_out(now)) || !self.is_healthy()
    }
}

impl Upstream {
    pub(super) fn spared(&self, tiers: &[Vec<Rc<EndpointState>>], now: u64) -> Spared {
        let cluster = self.cluster.borrow();
        let ejected = cluster.outliers.is_some() && !self.outliers.is_idle(now);
        if ejected || self.is_anyone_unwell(&cluster, tiers) {
            Spared::of(&cluster, tiers, now)
        } else {
            Spared::All
        }
    }

    /// One atomic load, unless an endpoint's health has changed.
    pub(super) fn is_anyone_unwell(&self, cluster: &Cluster, tiers: &[Vec<Rc<EndpointState>>]) -> bool {
        let Some(board) = &cluster.health else { return false };
        let changes = board.changes();
        match self.anyone_unwell.get().0 {
            Some((seen, anyone)) if seen == changes => anyone,
            _ => {
                let anyone = tiers.iter().flatten().any(|state| !state.is_healthy());
                self.anyone_unwell.set(Seen(Some((changes, anyone))));
                anyone
            }
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
