//! HTTP requests of the application, one by one, over shared connections to the destination's endpoints.

use super::{attempt, leads_to};
use crate::{
    codec::{self as plumbing, Body, Counted, How, Malformed, detect},
    denial::Reason,
    io::Socket,
    listener::Accepted,
    policy::{
        at_once::{Active, Limit},
        lua::Chain,
        outliers::Event,
        timeouts::Clock,
    },
    scripts::{Passage, Stopped},
    snapshot::{Cluster, Outbound, Target},
    upstream::{self, Balance, DialError, cluster_check},
    worker::{ConnectionInfo, Direction, Worker},
};
use http::{Request, Response, StatusCode, uri::Authority};
use http_body::Body as _;
use hyper::{body::Incoming, service::service_fn};
use meridian_lua::Facts;
use meridian_proxy_config::alpn;
use std::{cell::RefCell, convert::Infallible, net::SocketAddr, rc::Rc, sync::Arc, time::Instant};

/// What the requests of one connection share.
struct Context {
    worker: Rc<Worker>,
    name: String,
    /// The application's end of the connection, and where it called.
    peer: SocketAddr,
    original: SocketAddr,
    cached: RefCell<(u64, Option<Arc<Cluster>>)>,
}

pub(super) async fn serve(worker: Rc<Worker>, outbound: &Outbound, accepted: Accepted) {
    let Target::Cluster(cluster) = &outbound.target else { return };
    let socket = Socket::new(accepted.stream);
    let reset = socket.reset();
    let peer = accepted.peer.to_string();
    let info = ConnectionInfo { direction: Direction::Outbound, name: outbound.name.clone(), peer };
    let tracked = worker.track(info, leads_to(outbound, cluster));
    let detected = tokio::select! {
        detected = detect(socket, &worker.timer) => detected,
        () = plumbing::idle_ending(&tracked) => return,
    };
    let Ok(Some((codec, stream))) = detected else { return };
    let context = Rc::new(Context {
        worker: worker.clone(),
        name: outbound.name.clone(),
        peer: accepted.peer,
        original: accepted.original,
        cached: RefCell::new((worker.snapshot().generation, Some(cluster.clone()))),
    });
    let handler = service_fn(move |request| handle(context.clone(), request));
    plumbing::serve(codec, stream, reset, &tracked, &cluster.connections, handler).await;
}

async fn handle(context: Rc<Context>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let start = Instant::now();
    let Some(cluster) = context.cluster() else {
        return Ok(plumbing::plain(StatusCode::SERVICE_UNAVAILABLE, "the destination is gone\n"));
    };
    let response = forward(&context, &cluster, request).await;
    cluster.traffic.cell(context.worker.index).request(response.status().as_u16(), start.elapsed());
    Ok(response)
}

impl Context {
    /// The destination as it is now: one comparison unless the configuration changed.
    fn cluster(&self) -> Option<Arc<Cluster>> {
        let generation = self.worker.shared.snapshots.generation();
        let mut cached = self.cached.borrow_mut();
        if cached.0 != generation {
            let snapshot = self.worker.snapshot();
            let target = snapshot.outbounds.get(&self.name).map(|outbound| &outbound.target);
            let cluster = match target {
                Some(Target::Cluster(cluster)) => Some(cluster.clone()),
                _ => None,
            };
            *cached = (snapshot.generation, cluster);
        }
        cached.1.clone()
    }
}

async fn forward(context: &Context, cluster: &Arc<Cluster>, request: Request<Incoming>) -> Response<Body> {
    let worker = &context.worker;
    let authority = match plumbing::authority(&request) {
        Ok(Some(authority)) => authority,
        Ok(None) => Authority::try_from(cluster.service.as_str())
            .unwrap_or_else(|_| Authority::from_static("unknown.mesh")),
        Err(Malformed::Connect) => {
            return plumbing::plain(StatusCode::METHOD_NOT_ALLOWED, "CONNECT is not supported\n");
        }
        Err(error) => return plumbing::plain(StatusCode::BAD_REQUEST, &format!("{error}\n")),
    };
    let request = request.map(Body::incoming);
    match &cluster.scripts {
        None => errand(worker, cluster, request).answer(&authority).await,
        Some(chain) => Box::pin(scripted(context, cluster, chain, authority, request)).await,
    }
}

/// A request of the proxy's own, like one of the application's but for scripts.
pub(crate) async fn ask(
    worker: &Rc<Worker>,
    cluster: &Arc<Cluster>,
    authority: &Authority,
    request: Request<Body>,
) -> Response<Body> {
    errand(worker, cluster, request).answer(authority).await
}

/// Through scripts to the destination, and back.
async fn scripted(
    context: &Context,
    cluster: &Arc<Cluster>,
    chain: &Chain,
    authority: Authority,
    request: Request<Body>,
) -> Response<Body> {
    let worker = &context.worker;
    let facts = Facts {
        protocol: plumbing::version(request.version()),
        local: context.original.to_string(),
        remote: context.peer.to_string(),
        ..Facts::default()
    };
    let passage = Passage::new(worker, chain, facts, &cluster.traffic);
    let Errand { request, clock, .. } = errand(worker, cluster, request);
    let going = passage.request(request, authority);
    let gone = match &clock {
        Some(clock) => match clock.hold(going).await {
            Ok(gone) => gone,
            Err(_) => {
                cluster.traffic.cell(worker.index).timeouts.inc();
                return plumbing::plain(clock.status(), "the request was not there in time\n");
            }
        },
        None => going.await,
    };
    match gone {
        Ok((request, authority)) => {
            let answer = Errand { worker, cluster, request, clock }.answer(&authority).await;
            passage.response(answer).await
        }
        Err(Stopped::Answered(answer)) => *answer,
        Err(Stopped::Failed(policy)) => {
            let reason = Reason::SCRIPT_FAILED;
            worker.refuse_own(&cluster.service, context.original.port(), &reason, &policy);
            plumbing::refused(StatusCode::SERVICE_UNAVAILABLE, &reason)
        }
        Err(Stopped::Body(error)) => {
            tracing::debug!(service = %cluster.service, %error, "the request ended early");
            plumbing::plain(StatusCode::BAD_REQUEST, "the request ended early\n")
        }
    }
}

/// A request to a destination, and what holds it to its time.
struct Errand<'a> {
    worker: &'a Rc<Worker>,
    cluster: &'a Arc<Cluster>,
    request: Request<Body>,
    clock: Option<Rc<Clock>>,
}

fn errand<'a>(worker: &'a Rc<Worker>, cluster: &'a Arc<Cluster>, request: Request<Body>) -> Errand<'a> {
    let tries = cluster.retry.as_ref().is_some_and(|policy| policy.per_try.is_some());
    let clock = cluster.streams.begin(&worker.timer, request.body().is_end_stream(), tries);
    let counted = Counted { traffic: cluster.traffic.clone(), worker: worker.index, response: false };
    let timed = clock.clone();
    Errand { worker, cluster, request: request.map(|body| body.counted(counted).request(timed)), clock }
}

impl Errand<'_> {
    async fn answer(self, authority: &Authority) -> Response<Body> {
        let Self { worker, cluster, mut request, clock } = self;
        let active = match worker.upstreams.of(cluster).load.request(&cluster.at_once) {
            Ok(active) => active,
            Err(limit) => return overloaded(worker, cluster, limit),
        };
        if plumbing::is_upgrade(&request) {
            return Box::pin(upgrade(worker, cluster, authority, request, active)).await;
        }
        let how = how(cluster, &request);
        let http2 = matches!(how, How::Multiplexed { .. });
        let retry = cluster.retry.as_ref().filter(|policy| {
            !matches!(how, How::Continue { .. }) && policy.covers(request.method(), request.headers())
        });
        plumbing::prepare(&mut request, authority, http2, false);
        let mut response = attempt::Errand { worker, cluster, how, clock }.answer(request, retry).await;
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
fn how(cluster: &Cluster, request: &Request<Body>) -> How {
    let waits = plumbing::expects_continue(request);
    match (&cluster.tls, cluster.protocol.is_http2()) {
        (Some(_), _) if waits => How::Continue { alpn: alpn::HTTP1 },
        (Some(_), _) => How::Multiplexed { alpn: alpn::HTTP2 },
        (None, true) => How::Multiplexed { alpn: &[] },
        (None, false) if waits => How::Continue { alpn: &[] },
        (None, false) => How::Exclusive { alpn: &[] },
    }
}

pub(super) fn unreachable(cluster: &Cluster, error: &DialError) -> Response<Body> {
    tracing::warn!(service = %cluster.service, %error, source = ?error, "no connection");
    plumbing::plain(
        StatusCode::SERVICE_UNAVAILABLE,
        &format!("no connection to {}: {error}\n", cluster.service),
    )
}

async fn upgrade(
    worker: &Rc<Worker>,
    cluster: &Arc<Cluster>,
    authority: &Authority,
    mut request: Request<Body>,
    active: Option<Active>,
) -> Response<Body> {
    plumbing::prepare(&mut request, authority, false, true);
    // Now: when the connection is there, the cluster may be another.
    let upstream = worker.upstreams.of(cluster);
    let opened = upstream::open(worker, cluster, Balance::RoundRobin, alpn::HTTP1).await;
    let (mut opened, state) = match opened {
        Ok(opened) => opened,
        Err(DialError::Overloaded(limit)) => return overloaded(worker, cluster, limit),
        Err(error) => return unreachable(cluster, &error),
    };
    opened.also(active);
    let peer = opened.peer.clone();
    let name = peer.as_ref().map_or(state.endpoint.name.as_str(), |peer| peer.name()).to_owned();
    let info = ConnectionInfo { direction: Direction::Outbound, name: cluster.service.clone(), peer: name };
    let check = cluster_check(cluster, peer.as_ref());
    let tracked = match peer {
        Some(peer) => worker.track_session(info, peer, check),
        None => worker.track(info, check),
    };
    match plumbing::upgrade(worker, request, opened, tracked, cluster.traffic.clone(), cluster.streams).await
    {
        Ok(response) => {
            upstream.note(worker, &state, Event::Status(response.status().as_u16()));
            response
        }
        Err(error) => {
            upstream.note(worker, &state, Event::Local);
            tracing::debug!(service = %cluster.service, %error, "upgrade");
            plumbing::plain(StatusCode::SERVICE_UNAVAILABLE, "the connection was lost\n")
        }
    }
}
