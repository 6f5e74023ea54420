//! The sidecar's side of destinations outside the mesh.
//!
//! A convenience, not the control: it refuses early and says why, and brings what is listed to the egress, which
//! decides for itself. Where a mesh has no egress, it runs the egress's own enforcement ([`crate::egress`]) on the
//! spot.
//!
//! On a captured connection the name that the application says (SNI, Host) decides, whatever the address: so that
//! listing a host works for an application that still holds its old address. It is read only where address and port
//! do not decide by themselves, and only for a moment: a server may be the one to speak first.

mod choose;
mod detect;

pub(crate) use choose::host_of;
pub use choose::{Choice, choose};
pub use detect::{Heard, MAX_HEARD};

use crate::{
    address::{Scope, judge},
    copy,
    denial::{Reason, Refusal},
    egress::{Caller, Denied, Errand, Terms, carry},
    exchange::{Exchange, Flags, Meter, Metered, Scene, Subject, Upstream},
    host::{Asked, HostName},
    io::{Reset, Rewind, Socket, reset_on_close},
    lent::LENT,
    listener::Accepted,
    metrics::TrafficCell,
    preface::{ANY_ENTRY, Preface},
    refuse::{Speech, refuse},
    snapshot::{Cluster, External, Outbound, Snapshot},
    upstream::dial_tls,
    worker::{Check, ConnectionInfo, Direction, Worker},
};
use bytes::{Bytes, BytesMut};
use meridian_proxy_config::{Proxy, Unlisted, Via, alpn};
use std::{
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Duration,
};
use tokio::io::AsyncWriteExt;

/// The application's connection, with what was read of it.
struct Client {
    socket: Metered<Socket>,
    reset: Reset,
    read: Bytes,
    speech: Speech,
    /// Who connected, and to where.
    ends: (SocketAddr, SocketAddr),
    exchange: Option<Rc<Exchange>>,
}

/// The destination of what no entry lists, in Kuma's words.
const EXTERNAL: &str = "external";

/// What the application wants.
struct Wish {
    asked: Asked,
    port: u16,
}

/// A captured connection whose address is no VIP of the mesh.
pub async fn serve_captured(worker: Rc<Worker>, accepted: Accepted) {
    let snapshot = worker.snapshot();
    let original = SocketAddr::new(accepted.original.ip().to_canonical(), accepted.original.port());
    let mut socket = Socket::new(accepted.stream);
    let reset = socket.reset();
    let mut read = BytesMut::new();
    let heard = if choose::decided_by_address(&snapshot, original) {
        Heard::Nothing
    } else {
        let limit = snapshot.proxy.as_ref().map_or(0, |proxy| proxy.detect_timeout_millis);
        detect::listen(&mut socket, &mut read, Duration::from_millis(limit)).await
    };
    let speech = heard.speech();
    let mut client = Client::new(socket, reset, read.freeze(), speech, (accepted.peer, original));
    // What was heard took a moment: the newest rules decide.
    let snapshot = worker.snapshot();
    let named = name_of(&worker, &snapshot, original.ip());
    match choose(&snapshot, original, &heard, named.as_ref()) {
        Choice::External(external, asked) => {
            let wish = Wish { asked, port: original.port() };
            Box::pin(deliver(&worker, external, client, wish)).await;
        }
        Choice::Refused(external, asked, reason) => {
            let wish = Wish { asked, port: original.port() };
            client.observe(&worker, &external.config.entry, &wish);
            report(&worker, &wish, &Denied::new(reason.clone(), external.config.entry.as_str()));
            client.refuse(&reason).await;
        }
        Choice::Unlisted(asked) => {
            let wish = Wish { asked, port: original.port() };
            Box::pin(unlisted(&worker, &snapshot, client, original, wish)).await;
        }
    }
}

/// The name outside the mesh that a virtual address was given for.
fn name_of(worker: &Worker, snapshot: &Snapshot, address: IpAddr) -> Option<HostName> {
    if let Some(name) = snapshot.name_of(address) {
        return HostName::parse(name.as_bytes()).ok();
    }
    match address {
        IpAddr::V4(v4) if v4.octets().first() == Some(&LENT) => worker.shared.lent.name_at(v4),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

/// A connection to a VIP or explicit outbound of an entry.
pub async fn serve_entry(
    worker: Rc<Worker>,
    external: Arc<External>,
    outbound: Arc<Outbound>,
    accepted: Accepted,
) {
    let socket = Socket::new(accepted.stream);
    let reset = socket.reset();
    let speech = if external.config.protocol.is_http() { Speech::Http } else { Speech::Unknown };
    let ends = (accepted.peer, accepted.original);
    let client = Client::new(socket, reset, Bytes::new(), speech, ends);
    let Some(asked) = choose::host_of(&external.config, &outbound.config.hostnames) else {
        return client.reset.arm();
    };
    let ports = &external.config.ports;
    let port = match ports.first() {
        Some(first) if !ports.contains(&outbound.config.port) => *first,
        _ => outbound.config.port,
    };
    Box::pin(deliver(&worker, external, client, Wish { asked, port })).await;
}

async fn deliver(worker: &Rc<Worker>, external: Arc<External>, mut client: Client, wish: Wish) {
    client.observe(worker, &external.config.entry, &wish);
    match &external.config.via {
        Via::Refused(reason) => {
            let reason = Reason::given(reason);
            report(worker, &wish, &Denied::new(reason.clone(), external.config.entry.as_str()));
            client.refuse(&reason).await;
        }
        Via::Sidecar(_) => by_itself(worker, &external, client, wish).await,
        Via::Egress { .. } => {
            let entry = external.config.entry.clone();
            let preface = Preface { entry, host: wish.asked.clone(), port: wish.port };
            let Some(cluster) = external.egress.clone() else {
                return no_egress(worker, client, &wish, "").await;
            };
            let traffic = external.traffic.clone();
            let check = still_listed(&external);
            let cell = traffic.cell(worker.index);
            through(worker, &cluster, client, wish, preface, check, cell).await;
        }
    }
}

/// Leaves the mesh from here, under the egress's checks.
async fn by_itself(worker: &Rc<Worker>, external: &Arc<External>, client: Client, wish: Wish) {
    let proxy = worker.snapshot().proxy.clone();
    let errand = Errand {
        entry: external.entry.clone(),
        asked: wish.asked.clone(),
        port: wish.port,
        mesh: proxy.as_ref().map(|proxy| proxy.mesh.clone()).unwrap_or_default(),
        caller: proxy.as_ref().map(|proxy| proxy.service.clone()).unwrap_or_default(),
        by: Caller::Own,
    };
    let terms = own_terms(external, &errand);
    if errand.entry.is_none() {
        // The entry did not compile: without its terms there is nothing to hold to.
        return refuse_wish(worker, client, &wish, Reason::NOT_LISTED, &external.config.entry).await;
    }
    if let Err(denied) = terms(&worker.snapshot()) {
        report(worker, &wish, &denied);
        return client.refuse(&denied.reason).await;
    }
    let Client { socket, reset, read, exchange: _exchange, .. } = client;
    carry(worker, Rewind::new(read, socket), reset, errand, None, terms).await;
}

/// The sidecar has no caller to ask for: that the entry is among its own is the permission.
fn own_terms(external: &Arc<External>, errand: &Errand) -> Terms {
    let (external, preface) = (external.clone(), errand.preface());
    Box::new(move |snapshot| {
        let now =
            find(snapshot, &external).ok_or_else(|| Denied::new(Reason::REMOVED, &external.config.entry))?;
        let entry = now.entry.clone().ok_or_else(|| Denied::new(Reason::REMOVED, &external.config.entry))?;
        crate::egress::terms(&entry, &preface)?;
        Ok(Some(entry))
    })
}

/// What no resource lists.
async fn unlisted(
    worker: &Rc<Worker>,
    snapshot: &Arc<Snapshot>,
    mut client: Client,
    original: SocketAddr,
    wish: Wish,
) {
    client.observe(worker, EXTERNAL, &wish);
    let Some(proxy) = snapshot.proxy.clone() else {
        return refuse_wish(worker, client, &wish, Reason::NOT_LISTED, "").await;
    };
    // A virtual address that nothing has is never somebody's real one.
    if snapshot.is_vip(original.ip()) {
        let reason = match wish.asked {
            Asked::Name(_) => Reason::NOT_LISTED,
            Asked::Ip(_) => Reason::UNKNOWN_DESTINATION,
        };
        return refuse_wish(worker, client, &wish, reason, "").await;
    }
    match &proxy.unlisted {
        Unlisted::Refuse => refuse_wish(worker, client, &wish, Reason::NOT_LISTED, "").await,
        Unlisted::Direct => {
            let errand = Errand {
                entry: None,
                asked: Asked::Ip(original.ip()),
                port: original.port(),
                mesh: proxy.mesh.clone(),
                caller: proxy.service.clone(),
                by: Caller::Own,
            };
            let Client { socket, reset, read, exchange: _exchange, .. } = client;
            let terms: Terms = Box::new(move |snapshot| still_unlisted(snapshot, original).map(|()| None));
            carry(worker, Rewind::new(read, socket), reset, errand, None, terms).await;
        }
        Unlisted::Egress { .. } => {
            let scope = Scope { protected: &proxy.protected, ..Scope::default() };
            if let Err(why) = judge(original.ip(), scope) {
                return refuse_wish(worker, client, &wish, Reason::ADDRESS_REFUSED, &why.to_string()).await;
            }
            let Some(cluster) = snapshot.unlisted_egress.clone() else {
                return no_egress(worker, client, &wish, "").await;
            };
            // The address that the application chose: no entry holds a name to it.
            let host = Asked::Ip(original.ip());
            let preface = Preface { entry: ANY_ENTRY.to_owned(), host, port: original.port() };
            let check: Check =
                Box::new(move |snapshot| still_unlisted(snapshot, original).map_err(|d| d.reason));
            through(worker, &cluster, client, wish, preface, check, &TrafficCell::default()).await;
        }
    }
}

/// Passthrough is still on.
fn still_unlisted(snapshot: &Snapshot, original: SocketAddr) -> Result<(), Denied> {
    let open = |proxy: &Arc<Proxy>| proxy.unlisted != Unlisted::Refuse;
    if snapshot.proxy.as_ref().is_some_and(open) && !snapshot.is_vip(original.ip()) {
        Ok(())
    } else {
        Err(Denied::new(Reason::NOT_LISTED, ""))
    }
}

/// The entry is still there and says the same.
fn still_listed(external: &Arc<External>) -> Check {
    let external = external.clone();
    Box::new(move |snapshot| match find(snapshot, &external) {
        Some(now) if Arc::ptr_eq(now, &external) || now.config == external.config => Ok(()),
        _ => Err(Reason::REMOVED),
    })
}

/// The present form of an entry: by one of its hosts, which the snapshot has an index of.
fn find<'a>(snapshot: &'a Snapshot, external: &External) -> Option<&'a Arc<External>> {
    let same = |other: &&Arc<External>| other.config.entry == external.config.entry;
    match external.config.hosts.first() {
        Some(host) => snapshot.externals_for(host).iter().find(same),
        None => None,
    }
}

/// Over mTLS to an egress of the zone: the preface, then the application's bytes as they are.
async fn through(
    worker: &Rc<Worker>,
    cluster: &Arc<Cluster>,
    mut client: Client,
    wish: Wish,
    preface: Preface,
    check: Check,
    cell: &TrafficCell,
) {
    let info = ConnectionInfo {
        direction: Direction::Outbound,
        name: preface.entry.clone(),
        peer: wish.asked.to_string(),
    };
    let tracked = worker.track(info, check);
    let dialled = tokio::select! {
        dialled = dial_tls(worker, cluster, alpn::EXTERNAL) => dialled,
        reason = tracked.reset() => return refuse_wish(worker, client, &wish, reason, &preface.entry).await,
    };
    let mut egress = match dialled {
        Ok((egress, _)) => egress,
        Err(error) => {
            cell.connect_failures.inc();
            return no_egress(worker, client, &wish, &error.to_string()).await;
        }
    };
    // The application's first bytes, if any were read, go with the preface: one record instead of two.
    let first = preface.encode().map(|mut frame| {
        frame.extend_from_slice(&client.read);
        frame
    });
    let sent = match first {
        Ok(first) => egress.stream.write_all(&first).await,
        Err(error) => Err(std::io::Error::other(error)),
    };
    if let Err(error) = sent {
        return no_egress(worker, client, &wish, &error.to_string()).await;
    }
    cell.connections_opened.inc();
    let ended = tokio::select! {
        biased;
        reason = tracked.reset() => Err(reason),
        copied = copy::bidirectional(&mut client.socket, &mut egress.stream, cell) => Ok(copied),
    };
    cell.connections_closed.inc();
    match ended {
        Ok(Ok(_)) => {}
        Ok(Err(_)) => {
            reset_on_close(egress.stream.get_ref().0);
            client.reset.arm();
        }
        Err(reason) => {
            report(worker, &wish, &Denied::new(reason, &preface.entry));
            reset_on_close(egress.stream.get_ref().0);
            client.reset.arm();
        }
    }
}

async fn no_egress(worker: &Rc<Worker>, client: Client, wish: &Wish, why: &str) {
    refuse_wish(worker, client, wish, Reason::NO_EGRESS, why).await;
}

async fn refuse_wish(worker: &Rc<Worker>, client: Client, wish: &Wish, reason: Reason, rule: &str) {
    report(worker, wish, &Denied::new(reason.clone(), rule));
    client.refuse(&reason).await;
}

fn report(worker: &Worker, wish: &Wish, denied: &Denied) {
    let proxy = worker.snapshot().proxy.clone();
    worker.refuse(&Refusal {
        mesh: proxy.as_ref().map(|proxy| proxy.mesh.as_str()).unwrap_or_default(),
        caller: proxy.as_ref().map(|proxy| proxy.service.as_str()).unwrap_or_default(),
        destination: &wish.asked.to_string(),
        port: wish.port,
        reason: &denied.reason,
        rule: &denied.rule,
    });
}

impl Client {
    fn new(
        socket: Socket,
        reset: Reset,
        read: Bytes,
        speech: Speech,
        ends: (SocketAddr, SocketAddr),
    ) -> Self {
        Self { socket: Metered { inner: socket, meter: None }, reset, read, speech, ends, exchange: None }
    }

    /// From now on logs are told of the connection, if there are any.
    fn observe(&mut self, worker: &Rc<Worker>, destination: &str, wish: &Wish) {
        let logs = worker.snapshot().external_logs.clone();
        if logs.is_empty() {
            return;
        }
        let Some(scene) = Scene::new(worker, Direction::Outbound, self.ends, None) else { return };
        let meter = Arc::new(Meter::default());
        meter.add_received(self.read.len());
        self.socket.meter = Some(meter.clone());
        let subject = Subject::External(destination.into());
        let exchange = Exchange::metered(worker, scene, subject, &logs, Some(meter));
        exchange.asks(Upstream::Outside(wish.asked.clone(), wish.port));
        self.exchange = Some(exchange);
    }

    async fn refuse(self, reason: &Reason) {
        if let Some(exchange) = &self.exchange {
            let flags =
                if *reason == Reason::NO_EGRESS { Flags::CONNECT_FAILURE } else { Flags::UNAUTHORISED };
            exchange.closed(copy::Copied::default(), flags);
        }
        let stream = Rewind::new(self.read, self.socket);
        refuse(stream, &self.reset, self.speech, reason).await;
    }
}

#[cfg(test)]
mod tests;
