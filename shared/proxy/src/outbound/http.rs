//! HTTP requests of the application, one by one, over shared connections to the destination's endpoints.

use super::{attempt, leads_to, mirror, no_way_out, route};
use crate::{
    codec::{self as plumbing, Body, Counted, How, Incoming, detect},
    denial::Reason,
    exchange::{Cause, Exchange, Scene, Subject, Upstream},
    io::Socket,
    listener::Accepted,
    policy::{
        at_once::{Active, Limit},
        balance::Hashing,
        lua::Chain,
        outliers::Event,
        retry::RetryPolicy,
        timeouts::{Clock, StreamLimits},
    },
    scripts::{Passage, Stopped},
    snapshot::{Cluster, MirrorTo, Outbound},
    trace::Tracer,
    upstream::{self, Balance, DialError, cluster_check},
    worker::{ConnectionInfo, Direction, Worker},
};
use http::{Request, Response, StatusCode, header::SET_COOKIE, uri::Authority};
use http_body::Body as _;
use meridian_lua::Facts;
use meridian_proxy_config::alpn;
use std::{
    cell::{OnceCell, RefCell},
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Instant,
};

/// What the requests of one connection share.
struct Context {
    worker: Rc<Worker>,
    name: String,
    cached: RefCell<(u64, Option<Arc<Outbound>>)>,
    /// By the same generation.
    tracer: RefCell<Option<Arc<Tracer>>>,
    /// Who connected, and to where.
    ends: (SocketAddr, SocketAddr),
    /// For logs; made by the first request that is logged.
    scene: OnceCell<Option<Rc<Scene>>>,
}

/// Where a request goes, and what it is held to on its way.
pub(super) struct Way<'a> {
    /// Who calls, and whom they called.
    pub(super) ends: (SocketAddr, SocketAddr),
    pub(super) cluster: &'a Arc<Cluster>,
    pub(super) streams: StreamLimits,
    pub(super) retry: Option<&'a Arc<RetryPolicy>>,
    /// For logs and traces, if there are any.
    pub(super) exchange: Option<&'a Rc<Exchange>>,
    pub(super) scripts: Option<&'a Chain>,
    /// Who gets a copy of what is sent.
    pub(super) mirrors: &'a [MirrorTo],
    /// In place of the cluster's.
    pub(super) hashing: Option<&'a Arc<Hashing>>,
}

impl<'a> Way<'a> {
    pub(super) fn to(cluster: &'a Arc<Cluster>, ends: (SocketAddr, SocketAddr)) -> Self {
        let (streams, retry) = (cluster.streams, cluster.retry.as_ref());
        Self { ends, cluster, streams, retry, exchange: None, scripts: None, mirrors: &[], hashing: None }
    }
}

pub(super) async fn serve(worker: Rc<Worker>, outbound: &Arc<Outbound>, accepted: Accepted) {
    let Some(cluster) = outbound.target.cluster() else { return };
    let ends = (accepted.peer, accepted.original);
    let socket = Socket::new(accepted.stream);
    let reset = socket.reset();
    let peer = accepted.peer.to_string();
    let info = ConnectionInfo { direction: Direction::Outbound, name: outbound.name.to_string(), peer };
    let tracked = worker.track(info, leads_to(outbound, cluster));
    let detected = tokio::select! {
        detected = detect(socket, &worker.timer) => detected,
        () = plumbing::idle_ending(&tracked) => return,
    };
    let Ok(Some((codec, stream))) = detected else { return };
    let context = Rc::new(Context {
        worker: worker.clone(),
        name: outbound.name.to_string(),
        // By the first request: what holds may change until it comes.
        cached: RefCell::new((u64::MAX, None)),
        tracer: RefCell::default(),
        ends,
        scene: OnceCell::new(),
    });
    let handler = move |request| handle(context.clone(), request);
    Box::pin(plumbing::serve(codec, stream, reset, &tracked, &cluster.connections, handler)).await;
}

async fn handle(context: Rc<Context>, mut request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let start = Instant::now();
    let grpc = plumbing::is_grpc(request.headers());
    plumbing::receive(&mut request);
    let outbound = context.outbound();
    let response = match outbound.as_ref().and_then(|it| Some((it, it.target.cluster()?))) {
        Some((outbound, cluster)) => {
            let logs_rules = outbound.routing.as_ref().is_some_and(|routing| routing.logs_rules());
            let exchange = context.observe(cluster, logs_rules, &mut request);
            let (answering, mut response) =
                answer(&context, outbound, cluster, request, exchange.as_ref()).await;
            let cell = answering.traffic.cell(context.worker.index);
            cell.request(response.status().as_u16(), start.elapsed());
            if let Some(exchange) = exchange {
                exchange.answered(&mut response);
            }
            response
        }
        None => plumbing::plain(StatusCode::SERVICE_UNAVAILABLE, "the destination is gone\n"),
    };
    Ok(if grpc { plumbing::in_grpc(response, Body::emptied) } else { response })
}

/// The answer, and whose it is.
async fn answer(
    context: &Context,
    outbound: &Outbound,
    cluster: &Arc<Cluster>,
    request: Request<Incoming>,
    exchange: Option<&Rc<Exchange>>,
) -> (Arc<Cluster>, Response<Body>) {
    let worker = &context.worker;
    let authority = match asked(cluster, &request) {
        Ok(authority) => authority,
        Err(refusal) => return (cluster.clone(), refusal),
    };
    let scripts = cluster.scripts.as_ref();
    let way = Way { exchange, scripts, ..Way::to(cluster, context.ends) };
    if let Some(routing) = &outbound.routing {
        return Box::pin(route::answer(worker, &way, routing, &authority, request)).await;
    }
    let response = forward(worker, &way, &authority, request).await;
    (cluster.clone(), response)
}

impl Context {
    /// The outbound as it is now: one comparison unless the configuration changed.
    fn outbound(&self) -> Option<Arc<Outbound>> {
        let generation = self.worker.shared.snapshots.generation();
        let mut cached = self.cached.borrow_mut();
        if cached.0 != generation {
            let snapshot = self.worker.snapshot();
            *cached = (snapshot.generation, snapshot.outbounds.get(self.name.as_str()).cloned());
            *self.tracer.borrow_mut() = snapshot.tracer.clone();
        }
        cached.1.clone()
    }

    /// What logs and traces are told of a request, if there are any; it then carries its place in a trace.
    fn observe(
        &self,
        cluster: &Arc<Cluster>,
        logs_rules: bool,
        request: &mut Request<Incoming>,
    ) -> Option<Rc<Exchange>> {
        let tracer = self.tracer.borrow();
        let is_logged = logs_rules || !cluster.logs.is_empty();
        if !is_logged && tracer.is_none() {
            return None;
        }
        let span = Tracer::join(tracer.as_ref(), Direction::Outbound, request.headers_mut());
        if !is_logged && !span.as_ref().is_some_and(|(_, started)| started.is_sampled()) {
            return None;
        }
        let scene = self.scene.get_or_init(|| Scene::new(&self.worker, Direction::Outbound, self.ends, None));
        let subject = Subject::Cluster(cluster.clone());
        Some(Exchange::request(&self.worker, scene.clone()?, subject, &cluster.logs, span, request))
    }
}

/// Whom a request is for, or why nobody can be asked.
#[expect(clippy::result_large_err, reason = "the error is the answer")]
fn asked(cluster: &Cluster, request: &Request<Incoming>) -> Result<Authority, Response<Body>> {
    match plumbing::authority(request) {
        Ok(Some(authority)) => Ok(authority),
        Ok(None) => Ok(Authority::try_from(cluster.service.as_str())
            .unwrap_or_else(|_| Authority::from_static("unknown.mesh"))),
        Err(error) => Err(plumbing::because(plumbing::malformed(error), &Cause::MALFORMED)),
    }
}

/// The answer to a request.
pub(super) async fn forward(
    worker: &Rc<Worker>,
    way: &Way<'_>,
    authority: &Authority,
    request: Request<Incoming>,
) -> Response<Body> {
    let mut errand = way.errand(worker, request.map(Body::incoming));
    if let Some(exchange) = way.exchange {
        errand.request.body_mut().watch(exchange.watch_request());
    }
    match way.scripts {
        None => errand.answer(authority).await,
        Some(chain) => Box::pin(errand.scripted(chain, authority.clone())).await,
    }
}

/// A request of the proxy's own, like one of the application's but for scripts.
pub(crate) async fn ask(
    worker: &Rc<Worker>,
    cluster: &Arc<Cluster>,
    authority: &Authority,
    request: Request<Body>,
) -> Response<Body> {
    let own = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    Way::to(cluster, (own, own)).errand(worker, request).answer(authority).await
}

/// A request to a destination, and what holds it to its time.
struct Errand<'a> {
    worker: &'a Rc<Worker>,
    way: &'a Way<'a>,
    /// Boxed: it goes through many futures, and each would have the space of it twice.
    request: Box<Request<Body>>,
    clock: Option<Rc<Clock>>,
}

impl<'a> Way<'a> {
    /// The same way to the same destination, as that is now.
    fn through(&self, cluster: &'a Arc<Cluster>) -> Self {
        let (streams, retry, hashing) = (self.streams, self.retry, self.hashing);
        Self { streams, retry, hashing, exchange: self.exchange, ..Self::to(cluster, self.ends) }
    }

    fn errand(&'a self, worker: &'a Rc<Worker>, request: Request<Body>) -> Errand<'a> {
        let tries = self.retry.is_some_and(|policy| policy.per_try.is_some());
        let clock = self.streams.begin(&worker.timer, request.body().is_end_stream(), tries);
        let traffic = self.cluster.traffic.clone();
        let counted = Counted { traffic, worker: worker.index, response: false };
        let timed = clock.clone();
        let request = Box::new(request.map(|body| body.counted(counted).request(timed)));
        Errand { worker, way: self, request, clock }
    }
}

impl Errand<'_> {
    /// Through scripts to the destination, and back.
    async fn scripted(self, chain: &Chain, authority: Authority) -> Response<Body> {
        let Self { worker, way, request, clock } = self;
        let (cluster, (peer, original)) = (way.cluster, way.ends);
        let facts = Facts {
            protocol: plumbing::version(request.version()),
            local: original.to_string(),
            remote: peer.to_string(),
            ..Facts::default()
        };
        let passage = Passage::new(worker, chain, facts, &cluster.traffic);
        let going = passage.request(*request, authority);
        let gone = match &clock {
            Some(clock) => match clock.hold(going).await {
                Ok(gone) => gone,
                Err(_) => {
                    cluster.traffic.cell(worker.index).timeouts.inc();
                    let answer = plumbing::plain(clock.status(), "the request was not there in time\n");
                    return plumbing::because(answer, &Cause::LATE);
                }
            },
            None => going.await,
        };
        match gone {
            Ok((request, authority)) => {
                // A script may have waited, and the destination be another by now.
                let newest = worker.snapshot().clusters.get(&cluster.name).cloned();
                let now = newest.as_ref().unwrap_or(cluster);
                let way = &Way { scripts: None, mirrors: way.mirrors, ..way.through(now) };
                let answer =
                    Errand { worker, way, request: Box::new(request), clock }.answer(&authority).await;
                passage.response(answer).await
            }
            Err(Stopped::Answered(answer)) => *answer,
            Err(Stopped::Failed(policy)) => {
                let reason = Reason::SCRIPT_FAILED;
                worker.refuse_own(&cluster.service, original.port(), &reason, &policy);
                plumbing::refused(StatusCode::SERVICE_UNAVAILABLE, &reason)
            }
            Err(Stopped::Body(error)) => {
                tracing::debug!(service = %cluster.service, %error, "the request ended early");
                let answer = plumbing::plain(StatusCode::BAD_REQUEST, "the request ended early\n");
                plumbing::because(answer, &Cause::MALFORMED)
            }
        }
    }

    /// Where endpoints are chosen by a hash, the client is given what it must bring next time.
    async fn answer(self, authority: &Authority) -> Response<Body> {
        let Some(hashing) = self.way.cluster.balancing.hashing(self.way.hashing) else {
            return self.send(authority, None).await;
        };
        let (headers, from) = (self.request.headers(), self.way.ends.0.ip());
        let hashed = hashing.of_request(headers, self.request.uri(), from, rand::random);
        let mut response = self.send(authority, hashed.hash).await;
        for cookie in hashed.cookies {
            response.headers_mut().append(SET_COOKIE, cookie);
        }
        response
    }

    async fn send(self, authority: &Authority, hash: Option<u64>) -> Response<Body> {
        let Self { worker, way, mut request, clock } = self;
        let cluster = way.cluster;
        let upstream = worker.upstreams.of(cluster);
        let active = match upstream.load.request(&cluster.at_once) {
            Ok(active) => active,
            Err(limit) => return overloaded(worker, cluster, limit),
        };
        if plumbing::is_upgrade(&request) {
            return Box::pin(upgrade(worker, way, authority, *request, active, hash)).await;
        }
        let how = how(cluster, &request);
        let http2 = matches!(how, How::Multiplexed { .. });
        let retry = way.retry.filter(|policy| {
            !matches!(how, How::Continue { .. }) && policy.covers(request.method(), request.headers())
        });
        // As it is sent: what scripts refuse or take out goes nowhere.
        let copies = mirror::begin(worker, way.mirrors, authority, &request);
        request.body_mut().copied(copies);
        plumbing::prepare(&mut request, authority, http2, false);
        let errand = attempt::Errand { worker, cluster, upstream, how, clock, hash, exchange: way.exchange };
        let mut response = errand.answer(request, retry).await;
        response.body_mut().active(active);
        response
    }
}

pub(super) fn overloaded(worker: &Worker, cluster: &Cluster, limit: Limit) -> Response<Body> {
    cluster.traffic.cell(worker.index).overflows.inc();
    plumbing::overloaded(limit)
}

/// Between sidecars everything is multiplexed, except a body that waits for the server's word: HTTP/1.1 can carry that
/// word. Without mTLS the endpoint is spoken to as its application would be.
pub(super) fn how<B>(cluster: &Cluster, request: &Request<B>) -> How {
    let waits = plumbing::expects_continue(request);
    match (&cluster.tls, cluster.protocol.is_http2()) {
        (Some(_), _) if waits => How::Continue { alpn: alpn::HTTP1 },
        (Some(_), _) => How::Multiplexed { alpn: alpn::HTTP2 },
        (None, true) => How::Multiplexed { alpn: &[] },
        (None, false) if waits => How::Continue { alpn: &[] },
        (None, false) => How::Exclusive { alpn: &[] },
    }
}

pub(super) fn unreachable(worker: &Worker, cluster: &Cluster, error: &DialError) -> Response<Body> {
    if let Some(reason) = no_way_out(worker, cluster, error) {
        return plumbing::refused(StatusCode::FORBIDDEN, &reason);
    }
    tracing::warn!(service = %cluster.service, %error, source = ?error, "no connection");
    let text = format!("no connection to {}: {error}\n", cluster.service);
    let cause = match error {
        DialError::NoEndpoints(_) | DialError::LeftOut(_) => &Cause::NO_ENDPOINT,
        _ => &Cause::UNREACHABLE,
    };
    plumbing::because(plumbing::plain(StatusCode::SERVICE_UNAVAILABLE, &text), cause)
}

async fn upgrade(
    worker: &Rc<Worker>,
    way: &Way<'_>,
    authority: &Authority,
    mut request: Request<Body>,
    active: Option<Active>,
    hash: Option<u64>,
) -> Response<Body> {
    let cluster = way.cluster;
    plumbing::prepare(&mut request, authority, false, true);
    // Now: when the connection is there, the cluster may be another.
    let upstream = worker.upstreams.of(cluster);
    let opened = upstream::open(worker, cluster, Balance::Policy { hash }, alpn::HTTP1).await;
    let (mut opened, state) = match opened {
        Ok(opened) => opened,
        Err(DialError::Overloaded(limit)) => return overloaded(worker, cluster, limit),
        Err(error) => return unreachable(worker, cluster, &error),
    };
    if let Some(exchange) = way.exchange {
        exchange.asks(Upstream::Endpoint(state.endpoint.clone()));
    }
    opened.also(active);
    opened.also(state.under_way(cluster));
    let peer = opened.peer.clone();
    let name = peer.as_ref().map_or(state.endpoint.name.as_str(), |peer| peer.name()).to_owned();
    let info = ConnectionInfo { direction: Direction::Outbound, name: cluster.service.clone(), peer: name };
    let check = cluster_check(cluster, peer.as_ref());
    let tracked = match peer {
        Some(peer) => worker.track_session(info, peer, check),
        None => worker.track(info, check),
    };
    let traffic = cluster.traffic.clone();
    let kept = way.exchange.cloned();
    match plumbing::upgrade(worker, request, opened, tracked, traffic, way.streams, kept).await {
        Ok(response) => {
            if let Some(exchange) = way.exchange {
                exchange.upstream_answered();
            }
            upstream.note(worker, &state, Event::Status(response.status().as_u16()));
            response
        }
        Err(error) => {
            upstream.note(worker, &state, Event::Local);
            tracing::debug!(service = %cluster.service, %error, "upgrade");
            let answer = plumbing::plain(StatusCode::SERVICE_UNAVAILABLE, "the connection was lost\n");
            plumbing::because(answer, &Cause::LOST)
        }
    }
}
