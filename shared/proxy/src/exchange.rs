//! One request or connection, as logs and traces see it: made when it begins, told by the parts that serve it, and
//! written when the last of it is gone.
//!
//! The end is the end of the value: a request's body and its answer's body each hold the exchange, so that however they end (a
//! reset, a cut connection, a handler that is dropped with its client) there is one entry, and exactly one. Rejected: a
//! call at each place where a request may end, as the next such place would be forgotten.
//!
//! Where nothing is logged or traced there is no exchange: a request then costs one comparison.

mod facts;
mod flags;
mod meter;

pub use facts::{Facts, Head, Scene, Subject, Upstream};
pub use flags::{Cause, Flags};
pub use meter::{Meter, Metered};

use crate::{
    access_log::{AccessLog, AccessLogs, Headers},
    codec::Body,
    copy::Copied,
    tls::Peer,
    trace::{Started, Tracer},
    worker::{Direction, Worker},
};
use http::{HeaderMap, Method, Request, Response};
use smallvec::SmallVec;
use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::Instant,
};
use time::OffsetDateTime;

/// An answer that came from the other side.
const VIA_UPSTREAM: &str = "via_upstream";
/// One of the proxy's own that says no cause.
const DIRECT: &str = "direct_response";
const CLIENT_LEFT: &str = "downstream_remote_disconnect";

pub struct Exchange {
    worker: Rc<Worker>,
    facts: RefCell<Facts>,
    logs: RefCell<Told>,
    span: Option<(Arc<Tracer>, Started)>,
    meter: Option<Arc<Meter>>,
}

/// Who is told, with what each wants to know of the heads.
type Told = SmallVec<[(Arc<AccessLog>, Headers); 1]>;

/// A body's place in an exchange.
pub struct Watch {
    exchange: Rc<Exchange>,
    part: Part,
    /// All of it has passed, or need not.
    whole: Cell<bool>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Request,
    Response,
}

impl Scene {
    /// `None` before there is a configuration, when nothing is logged either.
    pub fn new(
        worker: &Worker,
        direction: Direction,
        (remote, local): (SocketAddr, SocketAddr),
        peer: Option<Peer>,
    ) -> Option<Rc<Self>> {
        let snapshot = worker.snapshot();
        let mut listens = snapshot.inbounds.values().map(|inbound| inbound.config.listen.ip());
        let own_address = listens.find(|ip| !ip.is_unspecified());
        let proxy = snapshot.proxy.clone()?;
        let connection = worker.next_number();
        Some(Rc::new(Self { direction, remote, local, peer, proxy, own_address, connection }))
    }
}

impl Exchange {
    /// A request begins. `span`: its place in a trace, which it already carries.
    pub fn request<B>(
        worker: &Rc<Worker>,
        scene: Rc<Scene>,
        subject: Subject,
        logs: &AccessLogs,
        span: Option<(Arc<Tracer>, Started)>,
        request: &Request<B>,
    ) -> Rc<Self> {
        let mut facts = Facts::new(scene, subject);
        facts.request = Some(Head::of(request));
        facts.trace_id = span.as_ref().map(|(_, started)| started.context.trace);
        let of = |log: &Arc<AccessLog>| {
            let headers = Headers { request: log.request(request.headers()), ..Headers::default() };
            (log.clone(), headers)
        };
        let logs = RefCell::new(logs.iter().map(of).collect());
        Rc::new(Self { worker: worker.clone(), facts: RefCell::new(facts), logs, span, meter: None })
    }

    /// Others are told than it began with; `headers`: the request's, as it came.
    pub fn tells(&self, logs: &AccessLogs, headers: &HeaderMap) {
        let of = |log: &Arc<AccessLog>| {
            (log.clone(), Headers { request: log.request(headers), ..Headers::default() })
        };
        *self.logs.borrow_mut() = logs.iter().map(of).collect();
    }

    /// A connection begins of which nothing is read.
    pub fn connection(
        worker: &Rc<Worker>,
        scene: Rc<Scene>,
        subject: Subject,
        logs: &AccessLogs,
    ) -> Rc<Self> {
        Self::metered(worker, scene, subject, logs, None)
    }

    /// A connection begins of which the meter counts what passes.
    pub fn metered(
        worker: &Rc<Worker>,
        scene: Rc<Scene>,
        subject: Subject,
        logs: &AccessLogs,
        meter: Option<Arc<Meter>>,
    ) -> Rc<Self> {
        let logs = logs.iter().map(|log| (log.clone(), Headers::default())).collect();
        let facts = RefCell::new(Facts::new(scene, subject));
        Rc::new(Self { worker: worker.clone(), facts, logs: RefCell::new(logs), span: None, meter })
    }

    /// Somebody is asked; not for the first time, if an attempt failed before.
    pub fn asks(&self, upstream: Upstream) {
        let mut facts = self.facts.borrow_mut();
        facts.attempted = Some(facts.begun.elapsed());
        facts.attempts += 1;
        facts.upstream = Some(upstream);
    }

    /// The one who was asked has answered.
    pub fn upstream_answered(&self) {
        let mut facts = self.facts.borrow_mut();
        facts.answered = Some(facts.begun.elapsed());
        facts.details = VIA_UPSTREAM;
    }

    /// Something went wrong that no answer says.
    pub fn flag(&self, flags: Flags) {
        let mut facts = self.facts.borrow_mut();
        facts.flags = facts.flags.and(flags);
    }

    /// The place of the request's body.
    pub fn watch_request(self: &Rc<Self>) -> Watch {
        Watch { exchange: self.clone(), part: Part::Request, whole: Cell::new(false) }
    }

    /// The answer is known, and its body belongs to the exchange from now on.
    pub fn answered(self: &Rc<Self>, response: &mut Response<Body>) {
        let status = response.status();
        let mut without_body = crate::codec::has_no_body(status);
        {
            let mut facts = self.facts.borrow_mut();
            without_body |= facts.request.as_ref().is_some_and(|head| head.method == Method::HEAD);
            facts.status = Some(status.as_u16());
            if let Some(cause) = response.body().cause() {
                facts.flags = facts.flags.and(cause.flags);
                facts.details = cause.details;
            } else if facts.details.is_empty() {
                facts.details = DIRECT;
            }
            facts.grpc_status = grpc_status(response.headers());
        }
        for (log, headers) in &mut *self.logs.borrow_mut() {
            headers.response = log.response(response.headers());
        }
        let whole = Cell::new(without_body);
        response.body_mut().watch(Watch { exchange: self.clone(), part: Part::Response, whole });
    }

    /// A connection, or what a request has turned into, has ended.
    pub fn closed(&self, moved: Copied, flags: Flags) {
        let mut facts = self.facts.borrow_mut();
        facts.received += moved.a_to_b;
        facts.sent += moved.b_to_a;
        facts.flags = facts.flags.and(flags);
        facts.end = Some(facts.begun.elapsed());
    }

    fn trailers(&self, trailers: &HeaderMap) {
        for (log, headers) in &mut *self.logs.borrow_mut() {
            headers.trailers = log.trailers(trailers);
        }
        if let Some(status) = grpc_status(trailers) {
            self.facts.borrow_mut().grpc_status = Some(status);
        }
    }
}

fn grpc_status(headers: &HeaderMap) -> Option<u32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

impl Facts {
    pub(crate) fn new(scene: Rc<Scene>, subject: Subject) -> Self {
        Self {
            scene,
            subject,
            at: OffsetDateTime::now_utc(),
            begun: Instant::now(),
            request: None,
            status: None,
            flags: Flags::NONE,
            details: "",
            received: 0,
            sent: 0,
            request_end: None,
            answered: None,
            end: None,
            attempted: None,
            attempts: 0,
            upstream: None,
            grpc_status: None,
            trace_id: None,
        }
    }
}

impl Watch {
    /// So many bytes passed.
    pub fn data(&self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let mut facts = self.exchange.facts.borrow_mut();
        let counter = match self.part {
            Part::Request => &mut facts.received,
            Part::Response => &mut facts.sent,
        };
        *counter = counter.saturating_add(bytes);
    }

    /// They are the last that comes: a body need not be read beyond.
    pub fn trailers(&self, trailers: &HeaderMap) {
        if self.part == Part::Response {
            self.exchange.trailers(trailers);
        }
        self.ended();
    }

    /// The body has ended as it should.
    pub fn ended(&self) {
        self.whole.set(true);
        if self.part == Part::Request {
            let mut facts = self.exchange.facts.borrow_mut();
            let elapsed = facts.begun.elapsed();
            facts.request_end.get_or_insert(elapsed);
        }
    }

    /// The other side, or a limit, ended it early.
    pub fn broken(&self, flags: Flags) {
        self.whole.set(true);
        if self.part == Part::Response {
            let mut facts = self.exchange.facts.borrow_mut();
            facts.flags = facts.flags.and(flags);
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if self.part == Part::Request {
            return;
        }
        let mut facts = self.exchange.facts.borrow_mut();
        if !self.whole.get() {
            facts.flags = facts.flags.and(Flags::DOWNSTREAM_ENDED);
            facts.details = CLIENT_LEFT;
        }
        facts.end = Some(facts.begun.elapsed());
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let facts = self.facts.get_mut();
        if let Some(meter) = &self.meter {
            (facts.received, facts.sent) = (meter.received(), meter.sent());
        }
        if facts.end.is_none() {
            facts.end = Some(facts.begun.elapsed());
            if facts.request.is_some() && facts.status.is_none() {
                facts.flags = facts.flags.and(Flags::DOWNSTREAM_ENDED);
                facts.details = CLIENT_LEFT;
            }
        }
        let sinks = &self.worker.shared.sinks;
        for (log, headers) in self.logs.get_mut() {
            log.tell(sinks, facts, headers);
        }
        if let Some((tracer, started)) = &mut self.span {
            tracer.finish(sinks, started, facts);
        }
    }
}
