//! From the application into the mesh.

use crate::{
    copy,
    denial::Reason,
    io::{Socket, reset_on_close},
    listener::Accepted,
    metrics::Open,
    snapshot::{Cluster, Outbound, Target},
    tls::Peer,
    upstream::{self, Balance, DialError, Opened, cluster_check},
    worker::{Check, ConnectionInfo, Direction, Tracked, Worker},
};
use meridian_proxy_config::alpn;
use std::{rc::Rc, sync::Arc};

mod attempt;
mod http;

pub(crate) use attempt::refused;

/// Serves a connection of the application to a destination in the mesh. What is spoken was declared: nothing is read
/// before the other side is dialled, so that servers may speak first.
pub async fn serve(worker: Rc<Worker>, outbound: Arc<Outbound>, accepted: Accepted) {
    match &outbound.target {
        Target::Cluster(cluster) if cluster.protocol.is_http() => {
            http::serve(worker, &outbound, accepted).await;
        }
        Target::Cluster(cluster) => tcp(worker, &outbound, cluster, accepted).await,
        Target::Missing(what) => refuse(&worker, &outbound, what, accepted),
        Target::External(_) => {}
    }
}

fn refuse(worker: &Worker, outbound: &Outbound, what: &str, accepted: Accepted) {
    reset_on_close(&accepted.stream);
    worker.refuse_own(&outbound.name, outbound.config.port, &Reason::UNKNOWN_DESTINATION, what);
}

async fn tcp(worker: Rc<Worker>, outbound: &Outbound, cluster: &Arc<Cluster>, accepted: Accepted) {
    let mut downstream = Socket::new(accepted.stream);
    let reset = downstream.reset();
    let (opened, state) = match upstream::open(&worker, cluster, Balance::RoundRobin, alpn::TCP).await {
        Ok(opened) => opened,
        Err(DialError::Overloaded(_)) => {
            reset.arm();
            cluster.traffic.cell(worker.index).overflows.inc();
            return;
        }
        Err(error) => {
            reset.arm();
            tracing::warn!(service = %cluster.service, source = ?error, %error, "no connection");
            return;
        }
    };
    let tracked = track(&worker, outbound, cluster, opened.peer.as_ref(), &state.endpoint.name);
    let Opened { mut transport, active: _active, .. } = opened;
    let far = transport.reset();
    let cell = cluster.traffic.cell(worker.index);
    let _open = Open::new(cell);
    let idle = cluster.connections.tcp_idle;
    let copying = copy::bidirectional_idle(&mut downstream, &mut transport, cell, &worker.timer, idle);
    let whole = tokio::select! {
        result = copying => result.is_ok(),
        _ = tracked.reset() => false,
    };
    if !whole {
        reset.arm();
        far.arm();
    }
}

/// Registers a connection through an outbound: it lives while the outbound leads to this cluster and who answered is
/// still who should.
fn track(
    worker: &Worker,
    outbound: &Outbound,
    cluster: &Cluster,
    peer: Option<&Peer>,
    endpoint: &str,
) -> Tracked {
    let other = peer.map_or(endpoint, Peer::name).to_owned();
    let info = ConnectionInfo { direction: Direction::Outbound, name: outbound.name.clone(), peer: other };
    let leads_here = leads_to(outbound, cluster);
    let expected = cluster_check(cluster, peer);
    let check: Check = Box::new(move |snapshot| leads_here(snapshot).and_then(|()| expected(snapshot)));
    match peer {
        Some(peer) => worker.track_session(info, peer.clone(), check),
        None => worker.track(info, check),
    }
}

fn leads_to(outbound: &Outbound, cluster: &Cluster) -> Check {
    let (name, cluster) = (outbound.name.clone(), cluster.name.clone());
    Box::new(move |snapshot| match snapshot.outbounds.get(&name).map(|outbound| &outbound.target) {
        Some(Target::Cluster(now)) if now.name == cluster => Ok(()),
        _ => Err(Reason::REMOVED),
    })
}
