//! Where a pool's connections lead, and how long they are kept.

use super::{DialError, EndpointState, Opened, application::open_application};
use crate::{
    denial::Reason,
    policy::{at_once::Limits, timeouts::ConnectionLimits},
    snapshot::{Cluster, Inbound},
    timer::Timer,
    tls::Peer,
    worker::{Check, Worker},
};
use std::{rc::Rc, sync::Arc, time::Duration};

/// An unused HTTP/1.1 connection is closed before common servers close it (Node.js and uvicorn after 5 s): a request
/// that meets their close would be lost.
const IDLE: Duration = Duration::from_secs(4);
/// Connections through an ingress are renewed, so that they spread anew over what is behind it: 5 min, +-20 %.
const REMOTE_AGE_SECONDS: std::ops::Range<u64> = 240..360;

/// Where a pool's connections lead.
#[derive(Clone)]
pub enum Far {
    Endpoint { cluster: Arc<Cluster>, state: Rc<EndpointState> },
    Application(Arc<Inbound>),
}

impl Far {
    pub(super) fn name(&self) -> String {
        match self {
            Self::Endpoint { cluster, .. } => cluster.service.clone(),
            Self::Application(inbound) => inbound.config.application.to_string(),
        }
    }

    /// Whether nothing could be sent there if no connection were made for one request alone.
    pub(super) fn needs_one(&self) -> bool {
        match self {
            Self::Endpoint { cluster, state } => state.needs_one(cluster),
            Self::Application(_) => false,
        }
    }

    /// A new connection. `needed`: also where there are as many as may be.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn open(&self, worker: &Rc<Worker>, alpn: &[u8], needed: bool) -> Result<Opened, DialError> {
        match self {
            Self::Endpoint { cluster, state } => state.open(worker, cluster, alpn, needed).await,
            Self::Application(inbound) => open_application(worker, inbound, needed).await,
        }
    }

    pub(super) fn limits(&self) -> &ConnectionLimits {
        match self {
            Self::Endpoint { cluster, .. } => &cluster.connections,
            Self::Application(inbound) => &inbound.connections,
        }
    }

    pub(super) fn at_once(&self) -> &Limits {
        match self {
            Self::Endpoint { cluster, .. } => &cluster.at_once,
            Self::Application(inbound) => &inbound.at_once,
        }
    }

    pub(super) fn expires(&self, now: u64) -> Option<u64> {
        let remote = matches!(self, Self::Endpoint { state, .. } if state.endpoint.remote);
        let renewal = remote.then(|| Duration::from_secs(rand::random_range(REMOTE_AGE_SECONDS)));
        let age = renewal.into_iter().chain(self.limits().max_age).min();
        age.map(|age| now.saturating_add(Timer::ticks(age)))
    }

    /// How long an HTTP/1.1 connection is kept without a request.
    pub(super) fn keep(&self) -> Duration {
        self.limits().http_idle.map_or(IDLE, |limit| limit.min(IDLE))
    }
}

/// Whether a connection to a cluster may live: the cluster is there, and who answered is still who should.
pub fn cluster_check(cluster: &Cluster, peer: Option<&Peer>) -> Check {
    let (name, leaving) = (cluster.name.clone(), cluster.leaving.clone());
    let identity = peer.map(|peer| peer.identity.clone());
    Box::new(move |snapshot| {
        let cluster = snapshot.clusters.get(&name).ok_or(Reason::REMOVED)?;
        if cluster.leaving != leaving {
            return Err(Reason::REMOVED);
        }
        match (&cluster.tls, &identity) {
            (Some(rule), Some(found)) if !rule.accepts(found) => Err(Reason::UNTRUSTED_PEER),
            _ => Ok(()),
        }
    })
}
