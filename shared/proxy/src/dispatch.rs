//! What a fresh connection is: decided by where it was accepted and where it was going.

use crate::{
    external, inbound,
    listener::{Accepted, Purpose},
    outbound,
    snapshot::Target,
    sni,
    worker::Worker,
};
use std::rc::Rc;

/// Serves one connection to its end. Each way of serving is boxed: a connection has the space of its own, not of the largest.
pub async fn serve(worker: Rc<Worker>, purpose: Purpose, accepted: Accepted) {
    match purpose {
        Purpose::Inbound(name) => Box::pin(inbound::serve(worker, Some(name), accepted)).await,
        Purpose::CapturedInbound => Box::pin(inbound::serve(worker, None, accepted)).await,
        Purpose::Outbound(name) => explicit(worker, &name, accepted).await,
        Purpose::CapturedOutbound => captured(worker, accepted).await,
        Purpose::Mesh => Box::pin(sni::serve(worker, accepted)).await,
    }
}

async fn explicit(worker: Rc<Worker>, name: &str, accepted: Accepted) {
    let Some(outbound) = worker.snapshot().outbounds.get(name).cloned() else { return };
    to(worker, outbound, accepted).await;
}

async fn captured(worker: Rc<Worker>, accepted: Accepted) {
    match worker.snapshot().vip(accepted.original).cloned() {
        Some(outbound) => to(worker, outbound, accepted).await,
        None => Box::pin(external::serve_captured(worker, accepted)).await,
    }
}

async fn to(worker: Rc<Worker>, outbound: std::sync::Arc<crate::snapshot::Outbound>, accepted: Accepted) {
    match &outbound.target {
        Target::External(entry) if entry.routed.is_none() || outbound.routing.is_none() => {
            let entry = entry.clone();
            Box::pin(external::serve_entry(worker, entry, outbound, accepted)).await;
        }
        Target::Cluster(_) | Target::External(_) | Target::Missing(_) => {
            Box::pin(outbound::serve(worker, outbound, accepted)).await;
        }
    }
}
