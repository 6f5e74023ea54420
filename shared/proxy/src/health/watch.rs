//! One endpoint's checks, one after the other.

use super::{EndpointHealth, ask::Asker};
use crate::{
    policy::health::{Finding, HealthPlan},
    snapshot::{Cluster, Endpoint},
    upstream::label,
    worker::Worker,
};
use std::{cell::RefCell, rc::Rc, sync::Arc, time::Duration};
use tokio::sync::Semaphore;

/// For how long a connection is kept for the next check: beyond, a handshake is cheaper than its memory.
pub(super) const KEEP: Duration = Duration::from_secs(30);

/// What asks, and what is told of it: sockets and a cluster's counters, or a test's.
pub(super) trait Subject {
    /// Waits until something can be asked at all: what this proxy lacks is no fault of an endpoint's.
    async fn able(&self);
    async fn ask(&mut self) -> Finding;
    /// Between two checks, so long that nothing need be kept for the next one (`keep`: but it may be).
    async fn rest(&mut self, wait: Duration, keep: bool);
    /// A number that is another one if somebody called the cluster meanwhile.
    fn calls(&self) -> u64;
    fn found(&mut self, finding: &Finding, change: Option<bool>);
}

/// Asks for as long as it is polled.
pub(super) async fn repeat<S: Subject>(
    mut subject: S,
    plan: &HealthPlan,
    health: &EndpointHealth,
    turns: &Semaphore,
    chance: impl Fn() -> f64,
) {
    let mut calls = subject.calls();
    subject.rest(plan.first_wait(chance()), false).await;
    loop {
        subject.able().await;
        // Never closed, so there always is one.
        let Ok(turn) = turns.acquire().await else { return };
        let asked = tokio::time::timeout(plan.timeout, subject.ask()).await;
        drop(turn);
        let finding =
            asked.unwrap_or_else(|_| Finding::Silent(format!("no answer within {:?}", plan.timeout)));
        let change = health.note(plan, &finding);
        subject.found(&finding, change);
        let before = std::mem::replace(&mut calls, subject.calls());
        let wait = plan.wait(before != calls, [chance(), chance()]);
        subject.rest(wait, plan.reuse && wait <= KEEP).await;
    }
}

pub(super) async fn watch(
    worker: Rc<Worker>,
    cluster: Rc<RefCell<Arc<Cluster>>>,
    endpoint: Arc<Endpoint>,
    health: Arc<EndpointHealth>,
    turns: Rc<Semaphore>,
) {
    let board = cluster.borrow().health.clone();
    let Some(board) = board else { return };
    let plan = board.plan.clone();
    drop(board);
    let asker = Asker::new(worker, cluster, endpoint, plan.clone());
    repeat(asker, &plan, &health, &turns, rand::random).await;
}

impl Subject for Asker {
    async fn able(&self) {
        // Published anew with each certificate.
        let mut changes = self.worker.shared.snapshots.subscribe();
        loop {
            let mesh = self.cluster.borrow().tls.as_ref().map(|rule| rule.mesh.clone());
            let ready = mesh.is_none_or(|mesh| self.worker.shared.tls.ready(&mesh));
            if ready || changes.changed().await.is_err() {
                return;
            }
        }
    }

    async fn ask(&mut self) -> Finding {
        self.check().await
    }

    async fn rest(&mut self, wait: Duration, keep: bool) {
        if !keep {
            self.hang_up();
        }
        // The runtime's own timer: the worker's would tick all the time.
        let sleep = tokio::time::sleep(wait);
        tokio::pin!(sleep);
        tokio::select! {
            () = &mut sleep => return,
            () = self.revoked() => self.hang_up(),
        }
        sleep.await;
    }

    fn calls(&self) -> u64 {
        self.cluster.borrow().traffic.activity()
    }

    fn found(&mut self, finding: &Finding, change: Option<bool>) {
        let cluster = self.cluster.borrow();
        let cell = cluster.traffic.cell(self.worker.index);
        cell.health_checks.inc();
        self.events.tell(&self.worker, &self.plan, (&cluster, &self.endpoint), finding, change);
        let (service, endpoint, address) = (&cluster.service, &self.endpoint.name, label(&self.endpoint));
        let why = match finding {
            Finding::Well => None,
            Finding::Unwell(why) | Finding::Silent(why) => {
                cell.health_check_failures.inc();
                Some(why)
            }
        };
        match (change, why) {
            (Some(true), _) => tracing::info!(%service, %endpoint, %address, "the endpoint is healthy"),
            (Some(false), _) => {
                cell.health_losses.inc();
                tracing::warn!(%service, %endpoint, %address, why, "the endpoint is unhealthy");
            }
            (None, Some(why)) if self.plan.log_failures => {
                tracing::warn!(%service, %endpoint, %address, why, "a health check failed");
            }
            (None, _) => {}
        }
    }
}
