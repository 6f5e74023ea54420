//! Ingress and egress: sessions passed on by server name, and never opened.
//!
//! The proxy reads the ClientHello, finds the route, and copies bytes: it holds no key of the session, so it can
//! neither read nor change it. An egress hands what is its own to [`crate::egress`]. Connections that are not routed
//! yet cost memory and prove nothing, so they are limited, per source and in all.

mod limit;

pub use limit::{Admission, Unrouted};

use crate::{
    copy,
    denial::{Reason, Refusal},
    egress,
    hello::{self, HELLO_TIMEOUT, HelloStream, ReadError, read_hello},
    host::HostName,
    io::{Reset, Rewind, Socket, reset_on_close},
    listener::Accepted,
    refuse::{Alert, alert},
    snapshot::{Cluster, Snapshot},
    upstream::{self, Balance, DialError},
    worker::{Check, ConnectionInfo, Direction, Worker},
};
use bytes::BytesMut;
use meridian_proxy_config::{
    Role,
    sni::{self, SniKind},
};
use std::{net::SocketAddr, rc::Rc, sync::Arc};

/// A connection to the mesh port of an ingress or egress. An egress hands what is its own to [`crate::egress`].
pub async fn serve(worker: Rc<Worker>, accepted: Accepted) {
    let Accepted { stream, peer, .. } = accepted;
    let mut socket = Socket::new(stream);
    let reset = socket.reset();
    let Some(unrouted) = worker.shared.admission.admit(peer.ip()) else {
        refused(&worker, peer, "", &Reason::TOO_MANY_UNROUTED);
        return reset.arm();
    };
    let mut read = BytesMut::new();
    let hello = match read_hello(&mut socket, &mut read, HELLO_TIMEOUT).await {
        Ok(hello) => hello,
        Err(error) => return unreadable(&worker, peer, socket, &reset, &error).await,
    };
    let Some(name) = hello.server_name.clone() else {
        refused(&worker, peer, "", &Reason::NO_SERVER_NAME);
        return alert(socket, Alert::UnrecognizedName).await;
    };
    let snapshot = worker.snapshot();
    if is_own(&snapshot, &name) {
        let stream = Rewind::new(read.freeze(), socket);
        return Box::pin(egress::serve(worker, stream, reset, &name, peer, unrouted)).await;
    }
    let Some(cluster) = snapshot.routes.find(name.as_str()).cloned() else {
        refused(&worker, peer, name.as_str(), &Reason::NO_ROUTE);
        return alert(socket, Alert::UnrecognizedName).await;
    };
    let client = match HelloStream::watched(socket, read, &hello) {
        Ok(client) => client,
        Err(_) => {
            refused(&worker, peer, name.as_str(), &Reason::NAME_MISMATCH);
            return reset.arm();
        }
    };
    drop(unrouted);
    pass(&worker, client, reset, peer, name, cluster).await;
}

/// External names of this egress's own zone end here; all others are passed on.
fn is_own(snapshot: &Snapshot, name: &HostName) -> bool {
    let Some(proxy) = snapshot.proxy.as_ref().filter(|proxy| proxy.role == Role::Egress) else {
        return false;
    };
    sni::parse(name.as_str())
        .is_some_and(|parsed| parsed.kind == SniKind::External && parsed.zone == sni::label(&proxy.zone))
}

/// Copies until the end, or until the route is gone.
async fn pass(
    worker: &Rc<Worker>,
    mut client: HelloStream<Socket>,
    reset: Reset,
    peer: SocketAddr,
    name: HostName,
    cluster: Arc<Cluster>,
) {
    let mut dialled = match upstream::dial_tcp(worker, &cluster, Balance::LeastConnections).await {
        Ok(dialled) => dialled,
        Err(error) => {
            tracing::info!(%error, %peer, %name, "passing a session on");
            cluster.traffic.cell(worker.index).connect_failures.inc();
            if matches!(error, DialError::NoEndpoints(_)) {
                refused(worker, peer, name.as_str(), &Reason::NO_ROUTE);
            }
            return reset.arm();
        }
    };
    let info =
        ConnectionInfo { direction: Direction::Through, name: name.to_string(), peer: peer.to_string() };
    let tracked = worker.track(info, still_routed(name.clone(), dialled.endpoint.clone()));
    let cell = cluster.traffic.cell(worker.index);
    cell.connections_opened.inc();
    let ended = tokio::select! {
        biased;
        reason = tracked.reset() => Err(reason),
        copied = copy::bidirectional(&mut client, &mut dialled.stream, cell) => Ok(copied),
    };
    cell.connections_closed.inc();
    match ended {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => {
            if HelloStream::<Socket>::breach(&error).is_some() {
                refused(worker, peer, name.as_str(), &Reason::NAME_MISMATCH);
            }
            reset_on_close(&dialled.stream);
            reset.arm();
        }
        Err(reason) => {
            refused(worker, peer, name.as_str(), &reason);
            reset_on_close(&dialled.stream);
            reset.arm();
        }
    }
}

/// The name still leads to the endpoint that the session is with. Its replicas count as one: readiness changes how
/// many there are.
fn still_routed(name: HostName, endpoint: Arc<crate::snapshot::Endpoint>) -> Check {
    Box::new(move |snapshot| {
        let cluster = snapshot.routes.find(name.as_str()).ok_or(Reason::REMOVED)?;
        let same = |other: &Arc<crate::snapshot::Endpoint>| {
            other.host == endpoint.host && other.port == endpoint.port
        };
        if cluster.tiers.iter().flatten().any(same) { Ok(()) } else { Err(Reason::REMOVED) }
    })
}

async fn unreadable(worker: &Worker, peer: SocketAddr, socket: Socket, reset: &Reset, error: &ReadError) {
    tracing::debug!(%error, %peer, "no ClientHello");
    match error {
        ReadError::Hello(hello::HelloError::NotTls) => {
            refused(worker, peer, "", &Reason::PLAINTEXT);
            reset.arm();
        }
        ReadError::Hello(_) => {
            refused(worker, peer, "", &Reason::INVALID_CLIENT_HELLO);
            alert(socket, Alert::DecodeError).await;
        }
        ReadError::Timeout => {
            refused(worker, peer, "", &Reason::INVALID_CLIENT_HELLO);
            reset.arm();
        }
        // Port scans and health checks of load balancers: nothing was asked for.
        ReadError::Closed | ReadError::Io(_) => {}
    }
}

fn refused(worker: &Worker, peer: SocketAddr, name: &str, reason: &Reason) {
    worker.refuse(&Refusal {
        mesh: sni::parse(name).map(|parsed| parsed.mesh).unwrap_or_default(),
        caller: &peer.ip().to_string(),
        destination: name,
        port: 0,
        reason,
        rule: "",
    });
}

#[cfg(test)]
mod tests;
