//! Connections to the outside of one caller's connection: kept for its next requests, shared with nobody.

use super::{Body, Site, attempts::Failed};
use crate::{
    codec, copy,
    egress::{
        authorise::Denied,
        dial::{DialError, Way, dial},
        originate::Application,
        outward::Outward,
    },
    io::{Reset, Transport},
    metrics::TrafficCell,
    policy::at_once::Active,
    refuse::LocalExecutor,
    timer::Timer,
};
use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use meridian_proxy_config::Host;
use meridian_telemetry::chain;
use std::{
    rc::{Rc, Weak},
    time::Duration,
};

/// Idle HTTP/1.1 connections kept for one caller's connection: as many as requests that a sidecar has on one at once.
const MAX_IDLE: usize = 100;
/// And each for so long: most servers close theirs after a minute.
const KEEP: Duration = Duration::from_secs(60);
/// With streams open, a silent server is asked so often.
const PING: Duration = Duration::from_secs(30);

#[derive(Default)]
pub(super) struct Upstreams {
    idle: Vec<Idle>,
    /// There is a task that closes those that nobody uses.
    closing: bool,
    multiplexed: Option<(http2::SendRequest<Body>, Place)>,
}

/// An HTTP/1.1 connection without a request.
struct Idle {
    sender: http1::SendRequest<Body>,
    place: Place,
    /// The tick until which it may be used.
    until: u64,
}

/// Where an upstream connection leads.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) host: Host,
    pub(super) port: u16,
    pub(super) tls: bool,
    /// From which tick on it takes no new requests.
    pub(super) retires: Option<u64>,
}

pub(super) enum Sender {
    Http1(http1::SendRequest<Body>, Place),
    Http2(http2::SendRequest<Body>, Place),
}

impl Site {
    /// A connection that can take a request: an idle one, or a new one.
    pub(super) async fn sender(self: &Rc<Self>, upgrade: bool, outward: &Outward) -> Result<Sender, Failed> {
        if let Some(kept) = self.kept(upgrade) {
            return Ok(kept);
        }
        let limits = &outward.at_once;
        let _pending = self.underway.load.wait(limits).map_err(Failed::Overloaded)?;
        let active = self.underway.load.connect(limits, false).map_err(Failed::Overloaded)?;
        let http2 =
            !upgrade && self.errand.entry.as_ref().is_some_and(|entry| entry.config.protocol.is_http2());
        let application = if http2 { Application::Http2 } else { Application::Http1 };
        let way = tokio::select! {
            way = dial(&self.worker, &self.errand, application, outward) => way.map_err(|error| match error {
                DialError::Denied(denied) => Failed::Denied(denied),
                DialError::Failed(message) => Failed::Unreachable(message),
            })?,
            reason = self.standing.tracked.reset() => {
                return Err(Failed::Denied(Denied::new(reason, self.errand.key())));
            }
        };
        self.open(way, http2, active, outward).await
    }

    fn kept(&self, upgrade: bool) -> Option<Sender> {
        let mut upstreams = self.upstreams.borrow_mut();
        let now = self.worker.timer.now();
        let takes = |place: &Place| place.retires.is_none_or(|at| now < at);
        if let Some((sender, place)) = &upstreams.multiplexed
            && !upgrade
            && !sender.is_closed()
            && takes(place)
        {
            return Some(Sender::Http2(sender.clone(), place.clone()));
        }
        while let Some(Idle { sender, place, until }) = upstreams.idle.pop() {
            if sender.is_ready() && until > self.worker.timer.now() && takes(&place) {
                return Some(Sender::Http1(sender, place));
            }
        }
        None
    }

    async fn open(
        self: &Rc<Self>,
        way: Way,
        http2: bool,
        active: Active,
        outward: &Outward,
    ) -> Result<Sender, Failed> {
        self.standing.pin(way.address.ip());
        self.remember(way.transport.reset());
        let failed = |error: hyper::Error| Failed::Unreachable(chain(&error));
        let tls = matches!(way.transport, Transport::Tls(_));
        let retires = outward.connections.max_age.map(|age| self.worker.timer.after(age));
        let place = Place { host: way.host, port: way.port, tls, retires };
        let io = TokioIo::new(way.transport);
        let ended = self.ended.clone();
        // Without TLS there is nobody to ask: what the entry declares is spoken.
        if way.http2 || (http2 && !tls) {
            let (sender, connection) = http2::Builder::new(LocalExecutor)
                .timer(TokioTimer::new())
                .keep_alive_interval(PING)
                .handshake(io)
                .await
                .map_err(failed)?;
            self.worker.spawn(async move {
                let _active = active;
                tokio::select! { _ = connection => {}, () = ended.cancelled() => {} }
            });
            self.upstreams.borrow_mut().multiplexed = Some((sender.clone(), place.clone()));
            return Ok(Sender::Http2(sender, place));
        }
        let (sender, connection) = http1::Builder::new().handshake(io).await.map_err(failed)?;
        self.worker.spawn(async move {
            let _active = active;
            let connection = connection.with_upgrades();
            tokio::select! { _ = connection => {}, () = ended.cancelled() => {} }
        });
        Ok(Sender::Http1(sender, place))
    }

    pub(super) async fn send(
        self: &Rc<Self>,
        sender: Sender,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, Failed> {
        match sender {
            Sender::Http2(mut sender, _) => sender.send_request(request).await.map_err(Failed::Lost),
            Sender::Http1(mut sender, place) => {
                let response = sender.send_request(request).await.map_err(Failed::Lost)?;
                // Ready again when the response's body has gone through.
                let site = Rc::downgrade(self);
                let ended = self.ended.clone();
                self.worker.spawn(async move {
                    let ready = tokio::select! {
                        ready = sender.ready() => ready.is_ok(),
                        () = ended.cancelled() => false,
                    };
                    if let (true, Some(site)) = (ready, site.upgrade()) {
                        site.keep(sender, place);
                    }
                });
                Ok(response)
            }
        }
    }

    /// Keeps a connection for the caller's next request.
    fn keep(self: &Rc<Self>, sender: http1::SendRequest<Body>, place: Place) {
        let mut upstreams = self.upstreams.borrow_mut();
        if upstreams.idle.len() >= MAX_IDLE {
            upstreams.idle.retain(|idle| !idle.sender.is_closed());
        }
        if upstreams.idle.len() < MAX_IDLE {
            upstreams.idle.push(Idle { sender, place, until: self.worker.timer.after(KEEP) });
            if !std::mem::replace(&mut upstreams.closing, true) {
                let (site, timer, ended) =
                    (Rc::downgrade(self), self.worker.timer.clone(), self.ended.clone());
                self.worker.spawn(async move {
                    tokio::select! { () = close_idle(site, timer) => {}, () = ended.cancelled() => {} }
                });
            }
        }
    }

    /// For the end of the grant. Those that ended by themselves are forgotten: a caller may need many.
    fn remember(&self, upstream: Reset) {
        let mut resets = self.resets.borrow_mut();
        resets.retain(Reset::is_of_open_socket);
        resets.push(upstream);
    }

    /// Bytes both ways after an upgrade, for as long as the grant stands and policies allow.
    pub(super) fn relay(
        self: Rc<Self>,
        client: codec::ToUpgrade,
        server: hyper::upgrade::OnUpgrade,
        (idle, max): (Option<Duration>, Option<Duration>),
        active: Option<Active>,
    ) {
        let worker = self.worker.clone();
        worker.spawn(async move {
            let _active = active;
            let (Ok(mut client), Ok(server)) = tokio::join!(client, server) else { return };
            let mut server = TokioIo::new(server);
            let nobodys = TrafficCell::default();
            let entry = self.errand.entry.as_ref();
            let cell = entry.map_or(&nobodys, |entry| entry.traffic.cell(self.worker.index));
            let timer = &self.worker.timer;
            let last = async {
                match max {
                    Some(max) => timer.sleep(max).await,
                    None => std::future::pending().await,
                }
            };
            let whole = tokio::select! {
                biased;
                _ = self.standing.tracked.reset() => false,
                () = last => false,
                copied = copy::bidirectional_idle(&mut client, &mut server, cell, timer, idle) => copied.is_ok(),
            };
            if !whole {
                self.resets.borrow().iter().for_each(Reset::arm);
            }
        });
    }
}

/// Closes connections that nobody used for a while: they count against the entry's limits, which all callers share. Ends
/// with the last of them.
async fn close_idle(site: Weak<Site>, timer: Timer) {
    let mut next = timer.now();
    loop {
        timer.sleep_until(next).await;
        let Some(site) = site.upgrade() else { return };
        let mut upstreams = site.upstreams.borrow_mut();
        let now = timer.now();
        upstreams.idle.retain(|idle| !idle.sender.is_closed() && idle.until > now);
        match upstreams.idle.iter().map(|idle| idle.until).min() {
            Some(earliest) => next = earliest,
            None => {
                upstreams.closing = false;
                return;
            }
        }
    }
}
