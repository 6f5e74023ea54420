//! HTTP entries: every request is held to the entry, not only the first.
//!
//! One caller's connection has connections to the outside of its own, so that no two callers ever share one, and the
//! end of a grant is the end of both. Their address is judged once for each of them.

use super::{
    authorise::Denied,
    carry::{Errand, Standing},
    outward::{Outward, Underway},
};
use crate::{
    codec::{self, Body, Incoming, idle_ending, in_grpc, is_clients, is_grpc},
    denial::Reason,
    inbound::Terms,
    io::{Reset, Stream},
    metrics::TrafficCell,
    policy::{retry::RetryPolicy, timeouts::ConnectionLimits},
    refuse::{answer, forbidden},
    snapshot::{Entry, Snapshot},
    tls::Peer,
    worker::Worker,
};
use attempts::{Failed, Wish};
use http::{Method, Request, Response, StatusCode};
use http_body::Body as _;
use meridian_proxy_config::Protocol;
use meridian_telemetry::chain;
use rewrite::request_host;
use std::{
    cell::{Ref, RefCell},
    convert::Infallible,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;
use upstreams::Upstreams;

mod attempts;
mod rewrite;
mod upstreams;

/// From the first byte of a request over HTTP/1.1 to the end of its head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(15);

/// Serves a granted caller's requests.
pub(super) async fn serve<S: Stream + Send>(
    worker: &Rc<Worker>,
    client: S,
    reset: Reset,
    errand: Errand,
    peer: Option<Peer>,
    standing: Standing,
) {
    let ended = CancellationToken::new();
    let snapshot = worker.snapshot();
    let outward = errand.outward(&snapshot);
    let idle = outward.connections.http_idle;
    let entry = entry_now(&errand, &snapshot);
    let site = Rc::new(Site {
        peer: peer.clone(),
        worker: worker.clone(),
        underway: errand.underway(worker),
        said: RefCell::new(Said {
            generation: snapshot.generation,
            outward,
            terms: terms(entry.as_deref(), peer.as_ref()),
            entry,
        }),
        errand,
        standing: Rc::new(standing),
        upstreams: RefCell::default(),
        resets: RefCell::default(),
        ended: ended.clone(),
    });
    site.cell(|cell| cell.connections_opened.inc());
    let _end = ended.drop_guard();
    let tracked = &site.standing.tracked;
    let limits = ConnectionLimits {
        http_idle: idle,
        request_head: Some(HEADER_TIMEOUT),
        ..ConnectionLimits::default()
    };
    let answering = site.clone();
    let handler = move |request| {
        let site = answering.clone();
        async move { Ok::<_, Infallible>(site.answer(request).await) }
    };
    let detected = tokio::select! {
        detected = codec::detect(client, &worker.timer) => detected.ok().flatten(),
        () = idle_ending(tracked) => None,
    };
    if let Some((codec, client)) = detected {
        codec::serve(codec, client, reset.clone(), tracked, &limits, handler).await;
    }
    if let Some(reason) = site.standing.tracked.must_reset() {
        site.errand.report(worker, &Denied::new(reason, site.errand.key()));
        reset.arm();
        site.resets.borrow().iter().for_each(Reset::arm);
    }
    site.cell(|cell| cell.connections_closed.inc());
}

/// What policies say of a caller's requests, in one generation of the configuration.
struct Said {
    generation: u64,
    /// Those that select the caller.
    outward: Arc<Outward>,
    /// Those that name the entry.
    terms: Rc<Terms>,
    /// As it is now: a sidecar keeps connections for requests to come, whatever the entry is called by then.
    entry: Option<Arc<Entry>>,
}

fn entry_now(errand: &Errand, snapshot: &Snapshot) -> Option<Arc<Entry>> {
    let entry = errand.entry.as_ref()?;
    let key = &entry.config.key;
    // A sidecar that leaves by itself has its entries with what it may reach.
    let own =
        || snapshot.externals.values().filter_map(|it| it.entry.as_ref()).find(|it| it.config.key == *key);
    Some(snapshot.entries.get(key).or_else(own).unwrap_or(entry).clone())
}

fn terms(entry: Option<&Entry>, peer: Option<&Peer>) -> Rc<Terms> {
    let Some(entry) = entry else { return Rc::default() };
    Rc::new(Terms::new(&entry.limits, &entry.config.policies.faults, peer))
}

/// What one caller's connection has.
struct Site {
    worker: Rc<Worker>,
    errand: Errand,
    standing: Rc<Standing>,
    underway: Rc<Underway>,
    /// What policies say.
    said: RefCell<Said>,
    /// Who calls, where that is proven.
    peer: Option<Peer>,
    upstreams: RefCell<Upstreams>,
    resets: RefCell<Vec<Reset>>,
    /// Ends the tasks of its upstream connections.
    ended: CancellationToken,
}

impl Site {
    fn cell(&self, count: impl FnOnce(&TrafficCell)) {
        if let Some(entry) = &self.errand.entry {
            count(entry.traffic.cell(self.worker.index));
        }
    }

    fn is_grpc(&self) -> bool {
        self.errand.entry.as_ref().is_some_and(|entry| entry.config.protocol == Protocol::Grpc)
    }

    /// What holds for the caller's requests now: one comparison unless the configuration changed.
    fn said(&self) -> Ref<'_, Said> {
        if self.said.borrow().generation != self.worker.shared.snapshots.generation() {
            let snapshot = self.worker.snapshot();
            let entry = entry_now(&self.errand, &snapshot);
            *self.said.borrow_mut() = Said {
                generation: snapshot.generation,
                outward: self.errand.outward(&snapshot),
                terms: terms(entry.as_deref(), self.peer.as_ref()),
                entry,
            };
        }
        self.said.borrow()
    }

    async fn answer(self: Rc<Self>, request: Request<Incoming>) -> Response<Body> {
        let asked = request_host(&request).map_or_else(|_| String::new(), |(asked, _)| asked.to_string());
        let grpc = is_grpc(request.headers());
        let response = match self.clone().forward(request).await {
            Ok(response) => response,
            Err(failed) => self.failure(failed, &asked),
        };
        if grpc { in_grpc(response, Body::emptied) } else { response }
    }

    /// What the client is told.
    fn failure(&self, failed: Failed, asked: &str) -> Response<Body> {
        match failed {
            Failed::Denied(denied) => {
                self.errand.report_as(&self.worker, asked, &denied);
                forbidden(&denied.reason)
            }
            Failed::Malformed(error) => codec::malformed(error),
            Failed::Bad(message) => answer(StatusCode::BAD_REQUEST, None, message),
            Failed::Overloaded(limit) => {
                self.cell(|cell| cell.overflows.inc());
                codec::overloaded(limit)
            }
            Failed::Late(_, status) => {
                self.cell(|cell| cell.timeouts.inc());
                answer(status, None, "the destination did not answer in time\n".into())
            }
            Failed::Lost(error) if is_clients(&error) => {
                answer(StatusCode::BAD_REQUEST, None, "the request's body is malformed, or was cut\n".into())
            }
            Failed::Lost(error) => self.unreachable(&chain(&error)),
            Failed::Unreachable(message) => self.unreachable(&message),
        }
    }

    fn unreachable(&self, message: &str) -> Response<Body> {
        tracing::info!(entry = self.errand.key(), message, "the way out failed");
        self.cell(|cell| cell.connect_failures.inc());
        answer(StatusCode::SERVICE_UNAVAILABLE, None, "the destination can't be reached\n".into())
    }

    async fn forward(self: Rc<Self>, mut request: Request<Incoming>) -> Result<Response<Body>, Failed> {
        if request.method() == Method::CONNECT {
            return Err(Failed::Denied(Denied::new(Reason::WRONG_PROTOCOL, self.errand.key())));
        }
        // Before anything else: where the body ends must be told in one way.
        codec::authority(&request).map_err(Failed::Malformed)?;
        codec::receive(&mut request);
        let (asked, port) =
            request_host(&request).map_err(|error| Failed::Bad(format!("Host: {error}\n")))?;
        let (outward, terms) = {
            let said = self.said();
            let holds = self.errand.holds(said.entry.as_deref(), &asked);
            if !holds || port.is_some_and(|port| port != self.errand.port) {
                return Err(Failed::Denied(Denied::new(Reason::NAME_MISMATCH, self.errand.key())));
            }
            (said.outward.clone(), said.terms.clone())
        };
        let nobodys = TrafficCell::default();
        let entry = self.errand.entry.as_ref();
        let cell = entry.map_or(&nobodys, |entry| entry.traffic.cell(self.worker.index));
        let speed = match terms.hold(Instant::now(), cell).await {
            Ok(speed) => speed,
            Err(answer) => return Ok(answer),
        };
        let active = self.underway.load.request(&outward.at_once).map_err(Failed::Overloaded)?;
        let upgrade = codec::upgrading(&mut request);
        let covers = |policy: &&Arc<RetryPolicy>| policy.covers(request.method(), request.headers());
        let retry = outward.retry.as_ref().filter(covers).filter(|_| upgrade.is_none()).cloned();
        let tries = retry.as_ref().is_some_and(|policy| policy.per_try.is_some());
        let streams = outward.streams(self.is_grpc());
        let clock = streams.begin(&self.worker.timer, request.body().is_end_stream(), tries);
        let request = request.map(|body| self.counted(Body::incoming(body), false).request(clock.clone()));
        let tunnel = streams.tunnel();
        let wish = Wish { asked, port, outward, clock };
        let Some(client) = upgrade else {
            let mut response = self.attempts(&wish, request, retry.as_ref()).await?;
            response.body_mut().active(active);
            if let Some(bytes_per_second) = speed {
                cell.faults_slowed.inc();
                response.body_mut().pace(bytes_per_second);
            }
            return Ok(response);
        };
        let mut response = self.upgrade(&wish, request).await?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let server = hyper::upgrade::on(&mut response);
            self.clone().relay(client, server, tunnel, active);
        } else {
            codec::strip_response(&mut response);
        }
        Ok(response.map(|body| self.counted(Body::incoming(body), true)))
    }
}
