//! From the mesh to the application.
//!
//! The inbound's own protocol, as the control plane says it, decides what may be spoken; ALPN only picks the codec.
//! Permission is decided once a connection, and again whenever the rules change.

use crate::{
    access_log::{self, AccessLogs},
    copy::{self, Copied},
    denial::{Reason, Refusal},
    exchange::{Exchange, Flags, Scene, Subject, Upstream},
    io::{Reset, Socket, Stream, reset_on_close},
    listener::Accepted,
    metrics::{Open, publish},
    policy::timeouts::StreamLimits,
    snapshot::{Inbound, Snapshot},
    tls::{Peer, TlsError},
    upstream::{DialError, Opened, dial_application},
    worker::{Check, ConnectionInfo, Direction, Tracked, Worker},
};
use meridian_proxy_config::{CallerIdentity, InboundTls, Verdict, alpn};
use std::{cell::Cell, net::SocketAddr, rc::Rc, sync::Arc, time::Instant};

mod beginners;
mod filter;
mod http;
mod permissive;
mod terms;

pub use beginners::Beginners;
pub(crate) use terms::Terms;

/// A connection that an inbound takes, before it is known what is spoken on it.
struct Arrival {
    worker: Rc<Worker>,
    inbound: Arc<Inbound>,
    address: SocketAddr,
    reset: Reset,
}

/// Who calls: proven by a certificate, or nobody (plaintext).
#[derive(Clone)]
struct Caller {
    inbound: String,
    peer: Option<Peer>,
    /// The last decision, so that a take-away (which ends the connection) is told from a refusal (which answers 403).
    allowed: Rc<Cell<bool>>,
}

/// Serves a connection for the named inbound, or for the one that its original destination names.
pub async fn serve(worker: Rc<Worker>, name: Option<String>, accepted: Accepted) {
    let snapshot = worker.snapshot();
    let inbound = match &name {
        Some(name) => snapshot.inbounds.get(name.as_str()),
        None => snapshot.inbound_at(accepted.original),
    };
    let Some(inbound) = inbound.cloned() else {
        if name.is_none() && publish::is_scrape(&snapshot, accepted.original) {
            return worker.shared.scrapes.hand_over(accepted);
        }
        reset_on_close(&accepted.stream);
        let destination = accepted.original.ip().to_string();
        let mesh = snapshot.proxy.as_ref().map_or("", |proxy| proxy.mesh.as_str());
        return worker.refuse(&Refusal {
            mesh,
            caller: "none",
            destination: &destination,
            port: accepted.original.port(),
            reason: &Reason::UNKNOWN_DESTINATION,
            rule: "",
        });
    };
    drop(snapshot);
    let socket = Socket::new(accepted.stream);
    let arrival = Arrival { worker, inbound, address: accepted.peer, reset: socket.reset() };
    match arrival.inbound.config.tls {
        InboundTls::Off => arrival.plaintext(socket).await,
        InboundTls::Strict => arrival.session(socket).await,
        InboundTls::Permissive => match permissive::sniff(&arrival.worker, socket).await {
            Ok(permissive::Sniffed::Session(stream)) => arrival.session(stream).await,
            Ok(permissive::Sniffed::Plaintext(stream)) => {
                arrival.worker.metrics.plaintext_admitted.inc();
                arrival.plaintext(stream).await;
            }
            Err(error) => tracing::debug!(%error, "a connection ended before it began"),
        },
    }
}

impl Arrival {
    fn protocols(&self) -> &'static [&'static [u8]] {
        if self.inbound.config.protocol.is_http() { &[alpn::HTTP2, alpn::HTTP1] } else { &[alpn::TCP] }
    }

    async fn session<S: Stream + Send>(self, stream: S) {
        let config = &self.inbound.config;
        let beginner = self.worker.beginners.begin();
        let accepted = tokio::select! {
            accepted = Box::pin(self.worker.shared.tls.accept(&config.mesh, self.protocols(), stream)) => accepted,
            () = beginner.gone() => {
                self.worker.metrics.handshake_failures.inc();
                return self.reset.arm();
            }
        };
        drop(beginner);
        match accepted {
            Ok((stream, peer)) => {
                self.worker.metrics.handshakes.inc();
                let caller =
                    Caller { inbound: config.name.clone(), peer: Some(peer), allowed: Rc::default() };
                self.admit(stream, caller).await;
            }
            Err(error) => {
                self.worker.metrics.handshake_failures.inc();
                self.distrusted(&error);
            }
        }
    }

    async fn plaintext<S: Stream + Send>(self, stream: S) {
        let caller = Caller { inbound: self.inbound.config.name.clone(), peer: None, allowed: Rc::default() };
        self.admit(stream, caller).await;
    }

    async fn admit<S: Stream + Send>(self, stream: S, caller: Caller) {
        if self.over_rate(&caller) {
            self.inbound.traffic.cell(self.worker.index).rate_limited.inc();
            return self.reset.arm();
        }
        if self.inbound.config.protocol.is_http() {
            Box::pin(http::serve(self, stream, caller)).await;
        } else {
            Box::pin(self.tcp(stream, caller)).await;
        }
    }

    /// Whether a new connection is one too many. Who has no permission uses nothing up, and is told so.
    fn over_rate(&self, caller: &Caller) -> bool {
        let limits = &self.inbound.limits;
        limits.of_connections()
            && caller.verdict(&self.inbound).is_ok()
            && !limits.admit_connection(Instant::now())
    }

    /// What logs are told of a connection, if there are any.
    fn observe(&self, caller: &Caller) -> Option<Rc<Exchange>> {
        let logs = caller.logs(&self.inbound);
        if logs.is_empty() {
            return None;
        }
        let scene = Scene::new(&self.worker, Direction::Inbound, self.ends(), caller.peer.clone())?;
        Some(Exchange::connection(&self.worker, scene, Subject::Inbound(self.inbound.clone()), &logs))
    }

    fn ends(&self) -> (SocketAddr, SocketAddr) {
        (self.address, self.inbound.config.listen)
    }

    async fn tcp<S: Stream + Send>(self, mut stream: S, caller: Caller) {
        let exchange = self.observe(&caller);
        let closed = |moved: Copied, flags: Flags| {
            if let Some(exchange) = &exchange {
                exchange.closed(moved, flags);
            }
        };
        if let Err(rule) = caller.decide(&self.worker, &self.inbound) {
            self.reset.arm();
            closed(Copied::default(), Flags::UNAUTHORISED);
            caller.refused(&self.worker, &self.inbound, &rule);
            return;
        }
        let tracked = self.track(&caller);
        let opened = tokio::select! {
            opened = dial_application(&self.worker, &self.inbound) => opened,
            _ = tracked.reset() => return self.reset.arm(),
        };
        let cell = self.inbound.traffic.cell(self.worker.index);
        let Opened { mut transport, active: _active, .. } = match opened {
            Ok(opened) => opened,
            Err(DialError::Overloaded(_)) => {
                cell.overflows.inc();
                closed(Copied::default(), Flags::OVERFLOW);
                return self.reset.arm();
            }
            Err(error) => {
                cell.connect_failures.inc();
                closed(Copied::default(), Flags::CONNECT_FAILURE);
                self.reset.arm();
                tracing::warn!(inbound = %caller.inbound, %error, "the application can't be reached");
                return;
            }
        };
        if let Some(exchange) = &exchange {
            exchange.asks(Upstream::Application(self.inbound.config.application));
        }
        let far = transport.reset();
        let _open = Open::new(cell);
        let idle = self.inbound.connections.tcp_idle;
        let moved = Cell::new(Copied::default());
        let timer = &self.worker.timer;
        let copying = copy::bidirectional_counted(&mut stream, &mut transport, cell, timer, idle, &moved);
        let whole = tokio::select! {
            result = copying => result.is_ok(),
            _ = tracked.reset() => false,
        };
        if !whole {
            self.reset.arm();
            far.arm();
        }
        closed(moved.get(), Flags::NONE);
    }

    fn track(&self, caller: &Caller) -> Tracked {
        let peer =
            caller.peer.as_ref().map_or_else(|| self.address.to_string(), |peer| peer.name().to_owned());
        let info = ConnectionInfo { direction: Direction::Inbound, name: caller.inbound.clone(), peer };
        let check = caller.check();
        match &caller.peer {
            Some(peer) => self.worker.track_session(info, peer.clone(), check),
            None => self.worker.track(info, check),
        }
    }

    fn distrusted(&self, error: &TlsError) {
        let config = &self.inbound.config;
        tracing::debug!(inbound = %config.name, %error, source = ?error, "no session");
        let (reason, rule) = match (error, error.trust()) {
            (_, Some(trust)) => (Reason::UNTRUSTED_CALLER, trust.reason()),
            (TlsError::Handshake(source), None) if is_no_tls(source) => (Reason::PLAINTEXT, "STRICT"),
            (TlsError::Alpn, None) => (Reason::WRONG_PROTOCOL, ""),
            _ => return,
        };
        if reason == Reason::PLAINTEXT {
            self.reset.arm();
        }
        self.worker.refuse(&Refusal {
            mesh: &config.mesh,
            caller: "none",
            destination: &config.service,
            port: config.listen.port(),
            reason: &reason,
            rule,
        });
    }
}

fn is_no_tls(error: &std::io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(inner, Some(rustls::Error::InvalidMessage(_)))
}

impl Caller {
    fn name(&self) -> &str {
        self.peer.as_ref().map_or("none", Peer::name)
    }

    /// Whether this caller may call, by an inbound as it is now; `Err` names the nearest rule. Reports a shadow denial.
    fn decide(&self, worker: &Worker, inbound: &Inbound) -> Result<(), String> {
        let verdict = self.verdict(inbound);
        self.allowed.set(verdict.is_ok());
        if let Some(policy) = verdict? {
            let reason = Reason::of("shadow-denied");
            self.report(worker, inbound, &reason, &policy);
        }
        Ok(())
    }

    /// `Ok(Some(policy))`: allowed, but that policy will deny.
    fn verdict(&self, inbound: &Inbound) -> Result<Option<String>, String> {
        if inbound.refused {
            return Err("the inbound's configuration could not be understood".to_owned());
        }
        let Some(peer) = &self.peer else {
            return match inbound.config.tls {
                InboundTls::Strict => Err("STRICT".to_owned()),
                InboundTls::Off | InboundTls::Permissive => Ok(None),
            };
        };
        match inbound.config.permission.decide(&peer.identity, peer.sni.as_deref()) {
            Verdict::Allow { policy, shadow_denied } => Ok(shadow_denied.then(|| policy.to_owned())),
            Verdict::Deny { policy } => Err(policy.unwrap_or_default().to_owned()),
        }
    }

    /// The logs that are told of what this caller does.
    fn logs(&self, inbound: &Inbound) -> AccessLogs {
        if inbound.logs.is_empty() {
            return inbound.logs.clone();
        }
        let nobody = CallerIdentity::default();
        let identity = self.peer.as_ref().map_or(&nobody, |peer| &*peer.identity);
        access_log::of_caller(
            &inbound.logs,
            identity,
            self.peer.as_ref().and_then(|peer| peer.sni.as_deref()),
        )
    }

    /// How long what this caller asks may take.
    fn streams(&self, inbound: &Inbound) -> StreamLimits {
        inbound.streams_of(self.peer.as_ref().map(|peer| (&*peer.identity, peer.sni.as_deref())))
    }

    fn refused(&self, worker: &Worker, inbound: &Inbound, rule: &str) {
        self.report(worker, inbound, &Reason::NO_PERMISSION, rule);
    }

    fn report(&self, worker: &Worker, inbound: &Inbound, reason: &Reason, rule: &str) {
        let config = &inbound.config;
        worker.refuse(&Refusal {
            mesh: &config.mesh,
            caller: self.name(),
            destination: &config.service,
            port: config.listen.port(),
            reason,
            rule,
        });
    }

    /// Ends what had been allowed and is not any more.
    fn check(&self) -> Check {
        let caller = self.clone();
        Box::new(move |snapshot: &Snapshot| {
            let inbound = snapshot.inbounds.get(caller.inbound.as_str()).ok_or(Reason::REMOVED)?;
            let was = caller.allowed.get();
            let now = caller.verdict(inbound).is_ok();
            caller.allowed.set(now);
            if was && !now { Err(Reason::NO_PERMISSION) } else { Ok(()) }
        })
    }
}
