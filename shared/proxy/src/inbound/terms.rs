//! What policies ask of a request that has permission: faults first, then rate limits.

use crate::{
    codec::{self as plumbing, Body},
    exchange::Cause,
    metrics::TrafficCell,
    policy::{
        faults::{self, MILLION, Plan},
        limits::{Rates, RequestLimiter},
    },
    snapshot::Inbound,
    tls::Peer,
};
use http::{Response, StatusCode};
use meridian_proxy_config::{CallerIdentity, Fault, FaultRule};
use std::{num::NonZeroU64, sync::Arc, time::Instant};

/// In Kuma's proxies' words.
const ABORTED: &str = "fault filter abort";
const LIMITED: &str = "local_rate_limited";

/// What holds for one caller, by one configuration of an inbound. Made once a connection and change.
#[derive(Default)]
pub(crate) struct Terms {
    limit: Option<Arc<RequestLimiter>>,
    faults: Vec<Fault>,
}

impl Terms {
    pub(super) fn of(inbound: &Inbound, peer: Option<&Peer>) -> Self {
        Self::new(&inbound.limits, &inbound.config.policies.faults, peer)
    }

    pub(crate) fn new(limits: &Rates, rules: &[FaultRule], peer: Option<&Peer>) -> Self {
        let nobody = CallerIdentity::default();
        let caller = peer.map_or(&nobody, |peer| &*peer.identity);
        let sni = peer.and_then(|peer| peer.sni.as_deref());
        Self { limit: limits.of(caller, sni).cloned(), faults: faults::of(rules, caller, sni) }
    }

    /// Holds a request to them. `Ok` says how fast its answer may go.
    ///
    /// # Errors
    /// What is answered instead of asking the application.
    pub(crate) async fn hold(
        &self,
        began: Instant,
        cell: &TrafficCell,
    ) -> Result<Option<NonZeroU64>, Response<Body>> {
        let plan = match self.faults.as_slice() {
            [] => Plan::default(),
            faults => faults::plan(faults, || rand::random_range(0..MILLION)),
        };
        let mut now = began;
        if !plan.delay.is_zero() {
            cell.faults_delayed.inc();
            // Not the coarse timer's: who asks for 50 ms means them.
            Box::pin(tokio::time::sleep(plan.delay)).await;
            now = Instant::now();
        }
        if let Some(status) = plan.abort {
            cell.faults_aborted.inc();
            return Err(plumbing::because(bare(status, ABORTED), &Cause::FAULT));
        }
        if let Some(limit) = self.limit.as_ref().filter(|limit| !limit.admit(now)) {
            cell.rate_limited.inc();
            let mut answer = plumbing::because(bare(limit.status, LIMITED), &Cause::RATE_LIMITED);
            limit.mark(answer.headers_mut());
            return Err(answer);
        }
        Ok(plan.bytes_per_second)
    }
}

/// An answer of ours, without a body where its status allows none.
fn bare(status: StatusCode, text: &str) -> Response<Body> {
    plumbing::plain(status, if plumbing::has_no_body(status) { "" } else { text })
}
