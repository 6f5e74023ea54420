//! HTTP requests of peers, one by one, to the application over HTTP/1.1 or HTTP/2 as it declares.

use super::{
    Arrival, Caller,
    filter::{Examined, examine},
    terms::Terms,
};
use crate::{
    access_log::AccessLogs,
    codec::{self as plumbing, Body, Codec, Counted, ForwardError, How, Incoming, detect},
    denial::Reason,
    exchange::{Cause, Exchange, Scene, Subject, Upstream},
    io::Stream,
    policy::at_once::{Active, Limit},
    policy::lua::Chain,
    policy::timeouts::{Clock, StreamLimits},
    scripts::{Passage, Stopped},
    snapshot::Inbound,
    trace::Tracer,
    upstream::{DialError, Far, Pool, dial_application},
    worker::{ConnectionInfo, Direction, Worker},
};
use http::{Request, Response, StatusCode, uri::Authority};
use http_body::Body as _;
use meridian_lua::{Facts, PeerFacts};
use meridian_proxy_config::alpn;
use std::{
    cell::{Cell, OnceCell, RefCell},
    convert::Infallible,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::Instant,
};

/// What the requests of one connection share.
struct Context {
    worker: Rc<Worker>,
    caller: Caller,
    inbound: RefCell<Arc<Inbound>>,
    /// The generation that the present decision was made by.
    decided: Cell<u64>,
    /// What else that configuration asks of the caller's requests.
    terms: RefCell<Rc<Terms>>,
    /// The logs that are told of them, by the same.
    logs: RefCell<AccessLogs>,
    tracer: RefCell<Option<Arc<Tracer>>>,
    /// Who connected, and to where.
    ends: (SocketAddr, SocketAddr),
    /// For logs; made by the first request that is logged.
    scene: OnceCell<Option<Rc<Scene>>>,
    /// The caller's limits, by the same.
    streams: Cell<StreamLimits>,
    /// Why the caller is refused, if it is: the rule.
    refusal: RefCell<Option<String>>,
}

pub(super) async fn serve<S: Stream + Send>(arrival: Arrival, stream: S, caller: Caller) {
    let tracked = arrival.track(&caller);
    let worker = arrival.worker.clone();
    let context = Rc::new(Context {
        worker: worker.clone(),
        caller: caller.clone(),
        ends: arrival.ends(),
        logs: RefCell::default(),
        tracer: RefCell::default(),
        scene: OnceCell::new(),
        inbound: RefCell::new(arrival.inbound.clone()),
        decided: Cell::new(u64::MAX),
        terms: RefCell::default(),
        streams: Cell::default(),
        refusal: RefCell::default(),
    });
    let handler = move |request| handle(context.clone(), request);
    let reset = arrival.reset.clone();
    let limits = arrival.inbound.connections;
    match caller.peer.as_ref().map(|peer| peer.alpn.as_slice()) {
        Some(alpn::HTTP2) => {
            Box::pin(plumbing::serve(Codec::Http2, stream, reset, &tracked, &limits, handler)).await
        }
        Some(_) => Box::pin(plumbing::serve(Codec::Http1, stream, reset, &tracked, &limits, handler)).await,
        None => {
            let detected = tokio::select! {
                detected = detect(stream, &worker.timer) => detected,
                () = plumbing::idle_ending(&tracked) => return,
            };
            if let Ok(Some((codec, stream))) = detected {
                Box::pin(plumbing::serve(codec, stream, reset, &tracked, &limits, handler)).await;
            }
        }
    }
}

async fn handle(context: Rc<Context>, mut request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let start = Instant::now();
    let grpc = plumbing::is_grpc(request.headers());
    plumbing::receive(&mut request);
    let permitted = context.permitted();
    let exchange = context.observe(&mut request);
    let mut response = match permitted {
        Ok(()) => answer(&context, request, start, exchange.as_ref()).await,
        Err(rule) => refuse(&context, &rule, start),
    };
    if let Some(exchange) = exchange {
        exchange.answered(&mut response);
    }
    Ok(if grpc { plumbing::in_grpc(response, Body::emptied) } else { response })
}

async fn answer(
    context: &Rc<Context>,
    request: Request<Incoming>,
    start: Instant,
    exchange: Option<&Rc<Exchange>>,
) -> Response<Body> {
    let inbound = context.inbound.borrow().clone();
    let terms = context.terms.borrow().clone();
    let cell = inbound.traffic.cell(context.worker.index);
    let response = match terms.hold(start, cell).await {
        Ok(speed) => {
            // A delay may outlast the configuration that it began by, and that one's filter and permissions.
            if let Err(rule) = context.permitted() {
                return refuse(context, &rule, start);
            }
            let inbound = context.inbound.borrow().clone();
            let mut response = match examine(&context.worker, &context.caller, &inbound, &request) {
                Ok(examined) => forward(context, &inbound, examined, request, exchange).await,
                Err(refusal) => plumbing::because(*refusal, &Cause::FILTERED),
            };
            if let Some(bytes_per_second) = speed {
                cell.faults_slowed.inc();
                response.body_mut().pace(bytes_per_second);
            }
            response
        }
        Err(answer) => answer,
    };
    cell.request(response.status().as_u16(), start.elapsed());
    response
}

fn refuse(context: &Context, rule: &str, start: Instant) -> Response<Body> {
    let inbound = context.inbound.borrow().clone();
    context.caller.refused(&context.worker, &inbound, rule);
    inbound.traffic.cell(context.worker.index).request(403, start.elapsed());
    plumbing::denied(&Reason::NO_PERMISSION)
}

impl Context {
    /// What scripts are told of a request.
    fn facts(&self, inbound: &Inbound, request: &Request<Body>) -> Facts {
        let peer = self.caller.peer.as_ref();
        Facts {
            protocol: plumbing::version(request.version()),
            local: inbound.config.listen.to_string(),
            remote: self.ends.0.to_string(),
            server_name: peer.and_then(|peer| peer.sni.clone()).unwrap_or_default(),
            peer: peer
                .map(|peer| PeerFacts { uris: peer.identity.spiffe.clone(), tls_version: peer.version }),
        }
    }

    /// The decision for this connection; made anew when the configuration has changed.
    fn permitted(&self) -> Result<(), String> {
        let generation = self.worker.shared.snapshots.generation();
        if self.decided.get() != generation {
            let snapshot = self.worker.snapshot();
            let verdict = match snapshot.inbounds.get(self.caller.inbound.as_str()) {
                Some(inbound) => {
                    *self.inbound.borrow_mut() = inbound.clone();
                    *self.terms.borrow_mut() = Rc::new(Terms::of(inbound, self.caller.peer.as_ref()));
                    self.streams.set(self.caller.streams(inbound));
                    *self.logs.borrow_mut() = self.caller.logs(inbound);
                    *self.tracer.borrow_mut() = snapshot.tracer.clone();
                    self.caller.decide(&self.worker, inbound)
                }
                None => Err("the inbound is gone".to_owned()),
            };
            *self.refusal.borrow_mut() = verdict.err();
            self.decided.set(snapshot.generation);
        }
        self.refusal.borrow().clone().map_or(Ok(()), Err)
    }

    /// What logs and traces are told of a request, if there are any; it then carries its place in a trace.
    fn observe(&self, request: &mut Request<Incoming>) -> Option<Rc<Exchange>> {
        let (logs, tracer) = (self.logs.borrow(), self.tracer.borrow());
        if logs.is_empty() && tracer.is_none() {
            return None;
        }
        let span = Tracer::join(tracer.as_ref(), Direction::Inbound, request.headers_mut());
        if logs.is_empty() && !span.as_ref().is_some_and(|(_, started)| started.is_sampled()) {
            return None;
        }
        let peer = || self.caller.peer.clone();
        let scene =
            self.scene.get_or_init(|| Scene::new(&self.worker, Direction::Inbound, self.ends, peer()));
        let subject = Subject::Inbound(self.inbound.borrow().clone());
        Some(Exchange::request(&self.worker, scene.clone()?, subject, &logs, span, request))
    }
}

async fn forward(
    context: &Context,
    inbound: &Arc<Inbound>,
    mut examined: Examined,
    request: Request<Incoming>,
    exchange: Option<&Rc<Exchange>>,
) -> Response<Body> {
    let authority = match plumbing::authority(&request) {
        Ok(Some(authority)) => authority,
        Ok(None) => Authority::try_from(inbound.config.service.as_str())
            .unwrap_or_else(|_| Authority::from_static("unknown.mesh")),
        Err(error) => return plumbing::because(plumbing::malformed(error), &Cause::MALFORMED),
    };
    let worker = &context.worker;
    let pool = worker.upstreams.application(inbound.config.application);
    let active = match pool.request(&inbound.at_once) {
        Ok(active) => active,
        Err(limit) => return overloaded(worker, inbound, limit),
    };
    if let Some(exchange) = exchange {
        exchange.asks(Upstream::Application(inbound.config.application));
    }
    let counted = Counted { traffic: inbound.traffic.clone(), worker: worker.index, response: false };
    let clock = context.streams.get().begin(&worker.timer, request.body().is_end_stream(), false);
    let has_body = examined.has_body(request.body());
    let timed = clock.clone();
    // Boxed: it goes through several futures, and each would have the space of it twice.
    let mut request =
        Box::new(request.map(|body| examined.body(Body::incoming(body)).counted(counted).request(timed)));
    if let Some(exchange) = exchange {
        request.body_mut().watch(exchange.watch_request());
    }
    let errand = Errand { context, inbound, examined, has_body, clock, active, exchange, pool };
    match &inbound.scripts {
        None => errand.answer(&authority, request).await,
        Some(chain) => Box::pin(errand.scripted(chain, authority, request)).await,
    }
}

/// A request that may be sent to the application.
struct Errand<'a> {
    context: &'a Context,
    inbound: &'a Arc<Inbound>,
    examined: Examined,
    /// There is a body that is examined.
    has_body: bool,
    clock: Option<Rc<Clock>>,
    active: Option<Active>,
    exchange: Option<&'a Rc<Exchange>>,
    pool: Rc<Pool>,
}

impl Errand<'_> {
    /// Through scripts to the application, and back.
    async fn scripted(
        self,
        chain: &Chain,
        authority: Authority,
        request: Box<Request<Body>>,
    ) -> Response<Body> {
        let facts = self.context.facts(self.inbound, &request);
        let passage = Passage::new(&self.context.worker, chain, facts, &self.inbound.traffic);
        let going = passage.request(*request, authority);
        let gone = match &self.clock {
            Some(clock) => match clock.hold(going).await {
                Ok(gone) => gone,
                Err(_) => return self.late(clock.status()),
            },
            None => going.await,
        };
        match gone {
            Ok((request, authority)) => {
                let answer = self.answer(&authority, Box::new(request)).await;
                passage.response(answer).await
            }
            Err(Stopped::Answered(answer)) => *answer,
            Err(Stopped::Failed(policy)) => {
                let reason = Reason::SCRIPT_FAILED;
                self.context.caller.report(&self.context.worker, self.inbound, &reason, &policy);
                plumbing::refused(StatusCode::SERVICE_UNAVAILABLE, &reason)
            }
            Err(Stopped::Body(error)) => {
                tracing::debug!(inbound = %self.inbound.config.name, %error, "the request ended early");
                let (answer, cause) = match self.examined.refusal() {
                    Some(refusal) => (refusal, &Cause::FILTERED),
                    None => {
                        let text = "the request ended early\n";
                        (plumbing::plain(StatusCode::BAD_REQUEST, text), &Cause::MALFORMED)
                    }
                };
                plumbing::because(answer, cause)
            }
        }
    }

    async fn answer(self, authority: &Authority, mut request: Box<Request<Body>>) -> Response<Body> {
        let Self { context, inbound, examined, has_body, clock, active, exchange, pool } = self;
        let worker = &context.worker;
        let http2 = inbound.config.protocol.is_http2();
        if plumbing::is_upgrade(&request) && !http2 && !has_body {
            return Box::pin(upgrade(context, inbound, authority, *request, active, exchange)).await;
        }
        let how = match (http2, plumbing::expects_continue(&request)) {
            (true, _) => How::Multiplexed { alpn: &[] },
            (false, true) => How::Continue { alpn: &[] },
            (false, false) => How::Exclusive { alpn: &[] },
        };
        plumbing::prepare(&mut request, authority, http2, false);
        let far = Far::Application(inbound.clone());
        let counted = Counted { traffic: inbound.traffic.clone(), worker: worker.index, response: true };
        let sending = plumbing::send(worker, &pool, &far, how, request, counted);
        let mut answer = match &clock {
            Some(clock) => clock.hold(sending).await.map_err(|_| clock.status()),
            None => Ok(sending.await),
        };
        if let (Ok(Ok(response)), Some(clock)) = (&mut answer, clock) {
            clock.answered();
            response.body_mut().response(Some(clock));
        }
        if let Some(refusal) = examined.refusal() {
            return plumbing::because(refusal, &Cause::FILTERED);
        }
        if let (Some(exchange), Ok(Ok(_))) = (exchange, &answer) {
            exchange.upstream_answered();
        }
        conclude(context, inbound, answer, active)
    }

    fn late(&self, status: StatusCode) -> Response<Body> {
        late(&self.context.worker, self.inbound, status)
    }
}

fn late(worker: &Worker, inbound: &Inbound, status: StatusCode) -> Response<Body> {
    inbound.traffic.cell(worker.index).timeouts.inc();
    let answer = plumbing::plain(status, "the application did not answer in time\n");
    plumbing::because(answer, &Cause::LATE)
}

fn conclude(
    context: &Context,
    inbound: &Inbound,
    answer: Result<Result<Response<Body>, ForwardError>, StatusCode>,
    active: Option<Active>,
) -> Response<Body> {
    let worker = &context.worker;
    match answer {
        Ok(Ok(mut response)) => {
            response.body_mut().active(active);
            response
        }
        Err(status) => late(worker, inbound, status),
        Ok(Err(ForwardError::Dial(DialError::Overloaded(limit), _))) => overloaded(worker, inbound, limit),
        Ok(Err(ForwardError::Dial(error, _))) => unreachable(context, inbound, &error),
        Ok(Err(ForwardError::Lost(error))) => {
            tracing::debug!(inbound = %inbound.config.name, %error, source = ?std::error::Error::source(&error), "request lost");
            lost()
        }
    }
}

fn lost() -> Response<Body> {
    let answer = plumbing::plain(StatusCode::SERVICE_UNAVAILABLE, "the application closed the connection\n");
    plumbing::because(answer, &Cause::LOST)
}

fn overloaded(worker: &Worker, inbound: &Inbound, limit: Limit) -> Response<Body> {
    inbound.traffic.cell(worker.index).overflows.inc();
    plumbing::overloaded(limit)
}

fn unreachable(context: &Context, inbound: &Inbound, error: &DialError) -> Response<Body> {
    inbound.traffic.cell(context.worker.index).connect_failures.inc();
    tracing::warn!(inbound = %inbound.config.name, %error, "the application can't be reached");
    let answer = plumbing::plain(StatusCode::SERVICE_UNAVAILABLE, "the application can't be reached\n");
    plumbing::because(answer, &Cause::UNREACHABLE)
}

async fn upgrade(
    context: &Context,
    inbound: &Arc<Inbound>,
    authority: &Authority,
    mut request: Request<Body>,
    active: Option<Active>,
    exchange: Option<&Rc<Exchange>>,
) -> Response<Body> {
    let worker = &context.worker;
    plumbing::prepare(&mut request, authority, false, true);
    let mut opened = match dial_application(worker, inbound).await {
        Ok(opened) => opened,
        Err(DialError::Overloaded(limit)) => return overloaded(worker, inbound, limit),
        Err(error) => return unreachable(context, inbound, &error),
    };
    opened.also(active);
    let caller = &context.caller;
    let info = ConnectionInfo {
        direction: Direction::Inbound,
        name: caller.inbound.clone(),
        peer: caller.name().to_owned(),
    };
    // Its own memory of the decision: the connection it came over may have noticed a change before.
    let own = Caller { allowed: Rc::new(Cell::new(true)), ..caller.clone() };
    let tracked = match &caller.peer {
        Some(peer) => worker.track_session(info, peer.clone(), own.check()),
        None => worker.track(info, own.check()),
    };
    let (traffic, streams) = (inbound.traffic.clone(), context.streams.get());
    match plumbing::upgrade(worker, request, opened, tracked, traffic, streams, exchange.cloned()).await {
        Ok(response) => {
            if let Some(exchange) = exchange {
                exchange.upstream_answered();
            }
            response
        }
        Err(error) => {
            tracing::debug!(inbound = %inbound.config.name, %error, "upgrade");
            lost()
        }
    }
}
