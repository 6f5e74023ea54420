//! One caller's connection to one entry, from the grant to the end.

use super::{
    authorise::Denied,
    dial::{DialError, allowed, dial},
    guard::{Breach, Guard, Hold},
    http,
    originate::Application,
    outward::{Caller, Outward, Underway},
};
use crate::{
    copy,
    denial::{Reason, Refusal},
    host::Asked,
    io::{Reset, Stream},
    preface::Preface,
    refuse::{Alert, Speech, alert, refuse},
    snapshot::{Entry, Snapshot},
    tls::Peer,
    worker::{Check, ConnectionInfo, Direction, Tracked, Worker},
};
use meridian_proxy_config::{HostMatch, Protocol};
use std::{cell::Cell, net::IpAddr, rc::Rc, sync::Arc, time::Instant};

/// Who asks for what, granted.
#[derive(Clone)]
pub(crate) struct Errand {
    /// `None`: any public address.
    pub entry: Option<Arc<Entry>>,
    pub asked: Asked,
    pub port: u16,
    pub mesh: String,
    /// SPIFFE ID, or the sidecar's own service.
    pub caller: String,
    /// By whose policies.
    pub by: Caller,
}

/// Whether the grant still stands under a snapshot: the entry to hold to from now on.
pub(crate) type Terms = Box<dyn Fn(&Snapshot) -> Result<Option<Arc<Entry>>, Denied>>;

impl Errand {
    /// Key of the entry, for reports.
    pub(crate) fn key(&self) -> String {
        self.entry
            .as_ref()
            .map_or_else(|| crate::preface::ANY_ENTRY.to_owned(), |entry| entry.config.key.clone())
    }

    /// What a sidecar would say of it in a preface: for the checks that both ends share.
    pub(crate) fn preface(&self) -> Preface {
        Preface { entry: self.key(), host: self.asked.clone(), port: self.port }
    }

    /// What policies say of it now.
    pub(super) fn outward(&self, snapshot: &Snapshot) -> Arc<Outward> {
        match &self.entry {
            Some(entry) => self.by.outward(snapshot, &self.mesh, &entry.config),
            None => Arc::new(Outward::unsaid()),
        }
    }

    /// What the caller has under way towards the entry.
    pub(super) fn underway(&self, worker: &Worker) -> Rc<Underway> {
        let caller = match &self.by {
            Caller::Dataplane(name) => format!("{}/{name}", self.mesh),
            Caller::Own | Caller::Other => self.caller.clone(),
        };
        worker.leaving.of(&caller, &self.key())
    }

    pub(crate) fn report(&self, worker: &Worker, denied: &Denied) {
        let destination = self.asked.to_string();
        self.report_as(worker, &destination, denied);
    }

    /// With the name that was asked for in place of the granted one.
    pub(crate) fn report_as(&self, worker: &Worker, destination: &str, denied: &Denied) {
        worker.refuse(&Refusal {
            mesh: &self.mesh,
            caller: &self.caller,
            destination,
            port: self.port,
            reason: &denied.reason,
            rule: &denied.rule,
        });
    }

    fn is_http(&self) -> bool {
        self.entry.as_ref().is_some_and(|entry| entry.config.protocol.is_http())
    }

    /// What the client is refused in, when nothing of it was read.
    fn speech(&self) -> Speech {
        if self.is_http() { Speech::Http } else { Speech::Unknown }
    }

    /// Names that Host and SNI may have: where the entry's own endpoints decide the address, any of its names; else
    /// the one that was resolved.
    pub(super) fn holds(&self, entry: Option<&Entry>, asked: &Asked) -> bool {
        match entry {
            None => true,
            Some(entry) if entry.config.endpoints.is_empty() => *asked == self.asked,
            Some(entry) => super::authorise::lists(&entry.config.hosts, asked),
        }
    }

    fn hold(&self) -> Hold {
        let Some(entry) = &self.entry else { return Hold::Nothing };
        if entry.config.tls.is_some() {
            return Hold::NoTls;
        }
        let only_tls = entry.config.protocol == Protocol::Tls;
        let names = match &self.asked {
            // The address is what is listed, and it is held.
            Asked::Ip(_) if entry.config.endpoints.is_empty() && !only_tls => return Hold::Nothing,
            Asked::Ip(_) if entry.config.endpoints.is_empty() => Vec::new(),
            Asked::Name(name) if entry.config.endpoints.is_empty() => vec![name.clone()],
            _ => {
                let names = entry.config.hosts.iter().filter_map(|host| match host {
                    HostMatch::Exact(name) => crate::host::HostName::parse(name.as_bytes()).ok(),
                    HostMatch::Wildcard(_) | HostMatch::Ip(_) | HostMatch::Net(_) => None,
                });
                names.collect()
            }
        };
        if only_tls { Hold::OnlyTls(names) } else { Hold::Names(names) }
    }
}

/// A connection among those that a change of rules may end, with the address that it is pinned to.
pub(super) struct Standing {
    pub tracked: Tracked,
    pinned: Rc<Cell<Option<IpAddr>>>,
}

impl Standing {
    fn new(worker: &Worker, errand: &Errand, peer: Option<Peer>, terms: Terms) -> Self {
        let pinned = Rc::new(Cell::new(None));
        let info =
            ConnectionInfo { direction: Direction::Through, name: errand.key(), peer: errand.caller.clone() };
        let check = check(errand.clone(), terms, pinned.clone());
        let tracked = match peer {
            Some(peer) => worker.track_session(info, peer, check),
            None => worker.track(info, check),
        };
        Self { tracked, pinned }
    }

    /// From now on the address is judged with every change as well.
    pub(super) fn pin(&self, ip: IpAddr) {
        self.pinned.set(Some(ip));
    }
}

/// The grant, the entry's way out, and the address: each as it is now.
fn check(errand: Errand, terms: Terms, pinned: Rc<Cell<Option<IpAddr>>>) -> Check {
    Box::new(move |snapshot| {
        let now = terms(snapshot).map_err(|denied| denied.reason)?;
        if !same_way(errand.entry.as_deref(), now.as_deref()) {
            return Err(Reason::REMOVED);
        }
        let protected = snapshot.proxy.as_ref().map(|proxy| proxy.protected.as_slice()).unwrap_or_default();
        match pinned.get() {
            Some(ip) => allowed(ip, now.as_deref(), protected).map_err(|_| Reason::ADDRESS_REFUSED),
            None => Ok(()),
        }
    })
}

/// A connection that was made under other terms (another endpoint, another CA) is not carried over to the new ones.
fn same_way(before: Option<&Entry>, now: Option<&Entry>) -> bool {
    match (before, now) {
        (None, None) => true,
        (Some(before), Some(now)) => {
            let (before, now) = (&before.config, &now.config);
            before.protocol == now.protocol && before.endpoints == now.endpoints && before.tls == now.tls
        }
        _ => false,
    }
}

/// Serves a granted connection to its end. `reset` is the client's socket; `peer` is who was granted it, where the
/// connection came over a session of the mesh.
pub(crate) async fn carry<S: Stream + Send>(
    worker: &Rc<Worker>,
    client: S,
    reset: Reset,
    errand: Errand,
    peer: Option<Peer>,
    terms: Terms,
) {
    let standing = Standing::new(worker, &errand, peer.clone(), terms);
    if let Some(reason) = standing.tracked.must_reset() {
        errand.report(worker, &Denied::new(reason.clone(), errand.key()));
        return refuse(client, &reset, errand.speech(), &reason).await;
    }
    if let Some(entry) = errand.entry.as_ref().filter(|entry| !entry.limits.admit_connection(Instant::now()))
    {
        entry.traffic.cell(worker.index).rate_limited.inc();
        return reset.arm();
    }
    if errand.is_http() {
        Box::pin(http::serve(worker, client, reset, errand, peer, standing)).await;
    } else {
        Box::pin(opaque(worker, client, reset, &errand, &standing)).await;
    }
}

async fn opaque<S: Stream>(
    worker: &Rc<Worker>,
    client: S,
    reset: Reset,
    errand: &Errand,
    standing: &Standing,
) {
    let outward = errand.outward(&worker.snapshot());
    let underway = errand.underway(worker);
    let limits = &outward.at_once;
    let room = underway.load.connect(limits, false).and_then(|held| Ok((held, underway.load.wait(limits)?)));
    let Ok((_active, pending)) = room else {
        if let Some(entry) = &errand.entry {
            entry.traffic.cell(worker.index).overflows.inc();
        }
        return reset.arm();
    };
    let dialled = tokio::select! {
        dialled = dial(worker, errand, Application::Opaque, &outward) => dialled,
        reason = standing.tracked.reset() => Err(Denied::new(reason, errand.key()).into()),
    };
    let mut way = match dialled {
        Ok(way) => way,
        Err(DialError::Denied(denied)) => {
            errand.report(worker, &denied);
            return refuse(client, &reset, errand.speech(), &denied.reason).await;
        }
        Err(DialError::Failed(message)) => {
            tracing::info!(entry = errand.key(), destination = %errand.asked, message, "the way out failed");
            return reset.arm();
        }
    };
    drop(pending);
    standing.pin(way.address.ip());
    let upstream = way.transport.reset();
    let nobodys = Default::default();
    let traffic = errand.entry.as_ref().map(|entry| entry.traffic.clone());
    let cell = traffic.as_ref().map_or(&nobodys, |traffic| traffic.cell(worker.index));
    cell.connections_opened.inc();
    let mut client = Guard::new(client, errand.hold());
    let ended = tokio::select! {
        biased;
        reason = standing.tracked.reset() => Err(reason),
        copied = copy::bidirectional_idle(
            &mut client,
            &mut way.transport,
            cell,
            &worker.timer,
            outward.connections.tcp_idle,
        ) => Ok(copied),
    };
    cell.connections_closed.inc();
    match ended {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => {
            upstream.arm();
            match Guard::<S>::breach(&error) {
                Some(breach) => broken(worker, client, &reset, errand, &breach).await,
                None => reset.arm(),
            }
        }
        Err(reason) => {
            errand.report(worker, &Denied::new(reason, errand.key()));
            upstream.arm();
            reset.arm();
        }
    }
}

/// The client began with what the entry does not take. One that sent a ClientHello understands an alert.
async fn broken<S: Stream>(worker: &Rc<Worker>, client: S, reset: &Reset, errand: &Errand, breach: &Breach) {
    let (reason, answer) = match breach {
        Breach::NoTls => {
            errand.report(worker, &Denied::new(Reason::WRONG_PROTOCOL, errand.key()));
            return reset.arm();
        }
        Breach::OriginatesTls => (Reason::ENTRY_ORIGINATES_TLS, Alert::AccessDenied),
        Breach::NoName => (Reason::NO_SERVER_NAME, Alert::UnrecognizedName),
        Breach::WrongName(_) | Breach::Hello(crate::hello::HelloError::NameChanged) => {
            (Reason::NAME_MISMATCH, Alert::UnrecognizedName)
        }
        Breach::Hello(_) | Breach::Unfinished => (Reason::INVALID_CLIENT_HELLO, Alert::DecodeError),
    };
    let denied = Denied::new(reason, errand.key());
    match breach {
        Breach::WrongName(name) => errand.report_as(worker, name.as_str(), &denied),
        _ => errand.report(worker, &denied),
    }
    alert(client, answer).await;
    reset.arm();
}
