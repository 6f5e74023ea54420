//! From the application into the mesh.

use crate::{
    codec::{Codec, detect},
    copy::{self, Copied},
    denial::Reason,
    exchange::{Exchange, Flags, Scene, Subject, Upstream as Asked},
    io::{Reset, Socket, Stream, reset_on_close},
    listener::Accepted,
    metrics::Open,
    snapshot::{Cluster, Outbound, Routing, Split, Target},
    tls::Peer,
    upstream::{self, Balance, DialError, Opened, cluster_check},
    worker::{Check, ConnectionInfo, Direction, Tracked, Worker},
};
use meridian_proxy_config::alpn;
use std::{cell::Cell, net::SocketAddr, rc::Rc, sync::Arc};

mod attempt;
mod http;
mod mirror;
mod route;

pub use mirror::Mirrors;

pub(crate) use http::ask;

/// Serves a connection of the application to a destination in the mesh. What is spoken was declared: nothing is read
/// before the other side is dialled, so that servers may speak first.
pub async fn serve(worker: Rc<Worker>, outbound: Arc<Outbound>, accepted: Accepted) {
    let routing = outbound.routing.as_deref();
    if let Target::Missing(what) = &outbound.target {
        return refuse(&worker, &outbound, what, accepted);
    }
    let Some(cluster) = outbound.target.cluster() else { return };
    match routing.and_then(Routing::of_connections) {
        Some(split) => Box::pin(shared(worker, &outbound, split, accepted)).await,
        None if cluster.protocol.is_http() => Box::pin(http::serve(worker, &outbound, accepted)).await,
        None if routing.is_some_and(|routing| !routing.is_readable()) => {
            refuse(&worker, &outbound, "its routes can't be understood", accepted);
        }
        None => {
            let leads_here = leads_to(&outbound, cluster);
            let ends = (accepted.peer, accepted.original);
            let ends = (ends, opened(accepted));
            Box::pin(tcp(worker, &outbound, cluster, leads_here, ends, alpn::TCP)).await;
        }
    }
}

fn opened(accepted: Accepted) -> (Socket, Reset) {
    let socket = Socket::new(accepted.stream);
    let reset = socket.reset();
    (socket, reset)
}

fn refuse(worker: &Worker, outbound: &Outbound, what: &str, accepted: Accepted) {
    reset_on_close(&accepted.stream);
    worker.refuse_own(&outbound.name, outbound.config.port, &Reason::UNKNOWN_DESTINATION, what);
}

/// To the backend whose turn it is, whatever is spoken. One that takes HTTP only is told which: its clients speak first.
async fn shared(worker: Rc<Worker>, outbound: &Outbound, split: &Split, accepted: Accepted) {
    let cluster = match split.next(worker.index) {
        Ok(cluster) => cluster,
        Err(why) => return refuse(&worker, outbound, why, accepted),
    };
    let still_there = is_there(outbound);
    let ends = (accepted.peer, accepted.original);
    let (downstream, reset) = opened(accepted);
    if !cluster.protocol.is_http() {
        return tcp(worker, outbound, cluster, still_there, (ends, (downstream, reset)), alpn::TCP).await;
    }
    let Ok(Some((codec, downstream))) = detect(downstream, &worker.timer).await else { return };
    let spoken = match codec {
        Codec::Http1 => alpn::HTTP1,
        Codec::Http2 => alpn::HTTP2,
    };
    tcp(worker, outbound, cluster, still_there, (ends, (downstream, reset)), spoken).await;
}

/// `leads_here`: until when the connection may go on, beside what its peer must be. `ends`: who connected, and to where.
async fn tcp<S: Stream>(
    worker: Rc<Worker>,
    outbound: &Outbound,
    cluster: &Arc<Cluster>,
    leads_here: Check,
    (ends, (mut downstream, reset)): ((SocketAddr, SocketAddr), (S, Reset)),
    alpn: &[u8],
) {
    let exchange = observe(&worker, cluster, ends);
    let closed = |moved: Copied, flags: Flags| {
        if let Some(exchange) = &exchange {
            exchange.closed(moved, flags);
        }
    };
    let hashing = cluster.balancing.hashing.as_ref();
    let balance = Balance::Policy { hash: hashing.and_then(|hashing| hashing.of_connection(ends.0.ip())) };
    let (opened, state) = match upstream::open(&worker, cluster, balance, alpn).await {
        Ok(opened) => opened,
        Err(DialError::Overloaded(_)) => {
            reset.arm();
            cluster.traffic.cell(worker.index).overflows.inc();
            closed(Copied::default(), Flags::OVERFLOW);
            return;
        }
        Err(error) => {
            reset.arm();
            no_way_out(&worker, cluster, &error);
            tracing::warn!(service = %cluster.service, source = ?error, %error, "no connection");
            closed(Copied::default(), failed(&error));
            return;
        }
    };
    let tracked = track(&worker, outbound, cluster, leads_here, opened.peer.as_ref(), &state.endpoint.name);
    if let Some(exchange) = &exchange {
        exchange.asks(Asked::Endpoint(state.endpoint.clone()));
    }
    let Opened { mut transport, active: _active, .. } = opened;
    let far = transport.reset();
    let cell = cluster.traffic.cell(worker.index);
    let _open = Open::new(cell);
    let idle = cluster.connections.tcp_idle;
    let moved = Cell::new(Copied::default());
    let copying =
        copy::bidirectional_counted(&mut downstream, &mut transport, cell, &worker.timer, idle, &moved);
    let whole = tokio::select! {
        result = copying => result.is_ok(),
        _ = tracked.reset() => false,
    };
    if !whole {
        reset.arm();
        far.arm();
    }
    closed(moved.get(), Flags::NONE);
}

/// No egress takes what is to leave the mesh: that is a refusal of ours, and this is its reason.
fn no_way_out(worker: &Worker, cluster: &Cluster, error: &DialError) -> Option<Reason> {
    let leaving = cluster.leaving.as_ref()?;
    let (host, port, reason) = (leaving.preface.host.to_string(), leaving.preface.port, leaving.reason());
    worker.refuse_own(&host, port, &reason, &error.to_string());
    Some(reason)
}

/// What logs are told of a connection, if there are any.
fn observe(
    worker: &Rc<Worker>,
    cluster: &Arc<Cluster>,
    ends: (SocketAddr, SocketAddr),
) -> Option<Rc<Exchange>> {
    if cluster.logs.is_empty() {
        return None;
    }
    let scene = Scene::new(worker, Direction::Outbound, ends, None)?;
    Some(Exchange::connection(worker, scene, Subject::Cluster(cluster.clone()), &cluster.logs))
}

/// Why there is no connection, in a log's letters.
fn failed(error: &DialError) -> Flags {
    match error {
        DialError::NoEndpoints(_) | DialError::LeftOut(_) => Flags::NO_ENDPOINT,
        _ => Flags::CONNECT_FAILURE,
    }
}

/// Registers a connection through an outbound: it lives while that leads here and who answered is still who should.
fn track(
    worker: &Worker,
    outbound: &Outbound,
    cluster: &Cluster,
    leads_here: Check,
    peer: Option<&Peer>,
    endpoint: &str,
) -> Tracked {
    let other = peer.map_or(endpoint, Peer::name).to_owned();
    let info =
        ConnectionInfo { direction: Direction::Outbound, name: outbound.name.to_string(), peer: other };
    let expected = cluster_check(cluster, peer);
    let check: Check = Box::new(move |snapshot| leads_here(snapshot).and_then(|()| expected(snapshot)));
    match peer {
        Some(peer) => worker.track_session(info, peer.clone(), check),
        None => worker.track(info, check),
    }
}

/// A backend stays a connection's own, however connections are shared out by now; that it is there is checked beside.
fn is_there(outbound: &Outbound) -> Check {
    let name = outbound.name.clone();
    Box::new(move |snapshot| {
        let now = snapshot.outbounds.get(&name).and_then(|outbound| outbound.target.cluster());
        now.map(|_| ()).ok_or(Reason::REMOVED)
    })
}

fn leads_to(outbound: &Outbound, cluster: &Cluster) -> Check {
    let (name, cluster) = (outbound.name.clone(), cluster.name.clone());
    Box::new(move |snapshot| {
        match snapshot.outbounds.get(&name).and_then(|outbound| outbound.target.cluster()) {
            Some(now) if now.name == cluster => Ok(()),
            _ => Err(Reason::REMOVED),
        }
    })
}
