//! A session to the egress itself: who calls, and what for.

use super::{
    authorise::{Denied, authorise},
    carry::{Errand, Terms, carry},
    outward::Caller,
};
use crate::{
    denial::{Reason, Refusal},
    host::HostName,
    io::{Reset, Rewind, Socket, Stream},
    preface::{PREFACE_TIMEOUT, Preface},
    refuse::{Speech, refuse},
    snapshot::Snapshot,
    sni::Unrouted,
    tls::Peer,
    worker::Worker,
};
use meridian_proxy_config::{alpn, sni};
use std::{rc::Rc, time::Duration};

/// Serves a session whose server name is one of this egress's own. `unrouted` is given back once the caller is known
/// and granted.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    stream: Rewind<Socket>,
    reset: Reset,
    name: &HostName,
    from: std::net::SocketAddr,
    unrouted: Unrouted,
) {
    let snapshot = worker.snapshot();
    // The server name's mesh picks the bundle before any certificate is read.
    let Some(mesh) = mesh_of(&snapshot, name) else {
        report_stranger(&worker, name, &from.ip().to_string(), &Reason::NO_ROUTE, "");
        return reset.arm();
    };
    let (mut session, peer) = match worker.shared.tls.accept(&mesh, &[alpn::EXTERNAL], stream).await {
        Ok(accepted) => accepted,
        Err(error) => {
            worker.metrics.handshake_failures.inc();
            tracing::info!(%error, %from, %name, "a session to the egress");
            let rule = error.trust().map_or("handshake", |trust| trust.reason());
            report_stranger(&worker, name, &from.ip().to_string(), &Reason::UNTRUSTED_CALLER, rule);
            return;
        }
    };
    let caller = peer.name().to_owned();
    let preface = match Preface::read(&mut session, PREFACE_TIMEOUT).await {
        Ok(preface) => preface,
        Err(error) => {
            tracing::info!(%error, caller, "a preface");
            report_stranger(&worker, name, &caller, &Reason::INVALID_PREFACE, "");
            return reset.arm();
        }
    };
    drop(unrouted);
    granted(&worker, session, reset, peer, caller, preface).await;
}

async fn granted<S: Stream + Send>(
    worker: &Rc<Worker>,
    session: S,
    reset: Reset,
    peer: Peer,
    caller: String,
    preface: Preface,
) {
    let snapshot = worker.snapshot();
    let mesh = peer.identity.mesh.clone();
    let zone = snapshot.proxy.as_ref().map_or("", |proxy| proxy.zone.as_str());
    let by = Caller::of(&peer.identity, zone);
    let mut errand =
        Errand { entry: None, asked: preface.host.clone(), port: preface.port, mesh, caller, by };
    if too_old(worker, &snapshot) {
        errand.report(worker, &Denied::new(Reason::CONFIG_TOO_OLD, ""));
        return refuse(session, &reset, Speech::Unknown, &Reason::CONFIG_TOO_OLD).await;
    }
    match authorise(&snapshot, &peer.identity, peer.sni.as_deref(), &preface) {
        Ok(granted) => {
            if granted.shadow_denied {
                errand.report(worker, &Denied::new(Reason::SHADOW_DENIED, granted.rule));
            }
            errand.entry = granted.entry;
        }
        Err(denied) => {
            // The entry may exist and not be the caller's: its protocol is how the client will understand the answer.
            let entry = snapshot.entries.get(&preface.entry);
            let http = entry.is_some_and(|entry| entry.config.protocol.is_http());
            errand.report(worker, &denied);
            let speech = if http { Speech::Http } else { Speech::Unknown };
            return refuse(session, &reset, speech, &denied.reason).await;
        }
    }
    let terms = standing(peer.clone(), preface);
    carry(worker, session, reset, errand, Some(peer), terms).await;
}

/// The same questions again, for each new snapshot.
fn standing(peer: Peer, preface: Preface) -> Terms {
    Box::new(move |snapshot| {
        authorise(snapshot, &peer.identity, peer.sni.as_deref(), &preface).map(|granted| granted.entry)
    })
}

/// Cut off from its control plane for longer than the mesh's operator allows, an egress grants nothing new: what it
/// knows may have been taken away since.
fn too_old(worker: &Worker, snapshot: &Snapshot) -> bool {
    let limit = snapshot.proxy.as_ref().and_then(|proxy| proxy.max_config_age_seconds);
    limit.is_some_and(|limit| worker.shared.contact.age() > Duration::from_secs(limit))
}

fn mesh_of(snapshot: &Snapshot, name: &HostName) -> Option<String> {
    let parsed = sni::parse(name.as_str())?;
    snapshot.meshes.iter().find(|mesh| sni::label(mesh) == parsed.mesh).cloned()
}

/// Before a preface was read there is no destination to report but the server name.
fn report_stranger(worker: &Worker, name: &HostName, caller: &str, reason: &Reason, rule: &str) {
    let parsed = sni::parse(name.as_str());
    worker.refuse(&Refusal {
        mesh: parsed.as_ref().map(|parsed| parsed.mesh).unwrap_or_default(),
        caller,
        destination: name.as_str(),
        port: 0,
        reason,
        rule,
    });
}
