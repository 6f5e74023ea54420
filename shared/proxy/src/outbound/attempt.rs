//! One request on its way to an endpoint: where it is tried, and whether it is sent once more.
//!
//! What was not sent goes to the next endpoint without being asked. What was sent is repeated only where a policy says
//! so, while its body can be replayed, and within the budget of repetitions.

use super::http::{overloaded, unreachable};
use crate::{
    codec::{self as plumbing, Body, Counted, ForwardError, How, Tape},
    exchange::{Cause, Exchange, Flags, Upstream as Asked},
    policy::{
        at_once::Limit,
        outliers::Event,
        retry::{Attempt, RetryPolicy},
        timeouts::{Clock, Late},
    },
    snapshot::Cluster,
    upstream::{DialError, EndpointState, Far, Upstream, Wish},
    worker::Worker,
};
use http::{HeaderMap, Request, Response, StatusCode};
use meridian_proxy_config::Protocol;
use smallvec::SmallVec;
use std::{error::Error as _, rc::Rc, sync::Arc, time::Duration};

/// Endpoints tried for one request, as long as nothing was sent.
const MAX_TRIES: usize = 5;

pub(super) struct Errand<'a> {
    pub(super) worker: &'a Rc<Worker>,
    pub(super) cluster: &'a Arc<Cluster>,
    /// The cluster's, on this worker.
    pub(super) upstream: Rc<Upstream>,
    pub(super) how: How,
    pub(super) clock: Option<Rc<Clock>>,
    /// What its endpoint is chosen by, if that goes by a hash.
    pub(super) hash: Option<u64>,
    pub(super) exchange: Option<&'a Rc<Exchange>>,
}

/// How an attempt ended.
#[expect(clippy::large_enum_variant, reason = "nearly all are answers, and a box would cost each of them")]
enum Outcome {
    Answered(Response<Body>),
    Unreachable(DialError),
    Lost(plumbing::Error),
    Late(Late),
    /// Nothing was tried: too much is under way.
    Overloaded(Limit),
}

/// Where a request has been.
#[derive(Default)]
struct Trail {
    /// By which policy it is repeated, if it is.
    repeating: Option<Arc<RetryPolicy>>,
    endpoints: SmallVec<[Rc<EndpointState>; 2]>,
    /// Of the latest attempts, and those that the next one is to avoid.
    tiers: SmallVec<[usize; 4]>,
    avoided: SmallVec<[usize; 4]>,
}

/// What a repetition is made of.
struct Spare {
    head: Request<Body>,
    tape: Option<Tape>,
}

impl Errand<'_> {
    /// The answer, by as many attempts as `retry` allows.
    pub(super) async fn answer(
        self,
        mut request: Box<Request<Body>>,
        retry: Option<&Arc<RetryPolicy>>,
    ) -> Response<Body> {
        let upstream = self.upstream.clone();
        let _waiting = upstream.wait();
        let mut trail = Trail::default();
        let Some(policy) = retry else {
            let outcome = self.attempt(&upstream, request, &mut trail).await;
            return self.conclude(outcome);
        };
        let spare = Spare { head: plumbing::copy(&request), tape: request.body_mut().tape() };
        let mut repeating = None;
        let mut made = 0;
        loop {
            if let (Some(clock), Some(limit)) = (&self.clock, policy.per_try) {
                clock.begin_try(limit);
            }
            let outcome = self.attempt(&upstream, request, &mut trail).await;
            drop(repeating.take());
            let again = outcome.attempt().is_some_and(|attempt| policy.repeats(attempt));
            if made >= policy.max || !again {
                if let Some(exchange) = self.exchange.filter(|_| again) {
                    exchange.flag(Flags::RETRIES_EXHAUSTED);
                }
                spare.stop();
                return self.conclude(outcome);
            }
            let cell = self.cluster.traffic.cell(self.worker.index);
            let Some(body) = spare.body() else {
                cell.retries_unrepeatable.inc();
                return self.conclude(outcome);
            };
            repeating = upstream.repeat();
            if repeating.is_none() {
                cell.retries_over_budget.inc();
                spare.stop();
                return self.conclude(outcome);
            }
            cell.retries.inc();
            made += 1;
            let wait = policy.wait(made, outcome.headers(), now(), rand::random());
            drop(outcome);
            if let Err(late) = self.pause(wait).await {
                return self.conclude(Outcome::Late(late));
            }
            trail.next(policy, made);
            request = self.again(&spare.head, body);
        }
    }

    /// Sends to one endpoint after the other until one can be reached.
    async fn attempt(
        &self,
        upstream: &Upstream,
        mut request: Box<Request<Body>>,
        trail: &mut Trail,
    ) -> Outcome {
        let (worker, cluster) = (self.worker, self.cluster);
        let mut last = upstream.nothing();
        let mut unreached = Vec::new();
        while unreached.len() < MAX_TRIES {
            let Some(state) = trail.pick(upstream, worker.timer.now(), self.hash, &unreached) else { break };
            let far = Far::Endpoint { cluster: cluster.clone(), state: state.clone() };
            if let Some(exchange) = self.exchange {
                exchange.asks(Asked::Endpoint(state.endpoint.clone()));
            }
            let counted = Counted { traffic: cluster.traffic.clone(), worker: worker.index, response: true };
            let under_way = state.under_way(cluster);
            let sending = plumbing::send(worker, &state.pool, &far, self.how, request, counted);
            let sent = match &self.clock {
                Some(clock) => clock.hold(sending).await,
                None => Ok(sending.await),
            };
            match sent {
                Ok(Ok(mut response)) => {
                    response.body_mut().active(under_way);
                    state.succeeded();
                    upstream.note(worker, &state, answered(cluster.protocol, &response));
                    return Outcome::Answered(response);
                }
                Ok(Err(ForwardError::Dial(DialError::Overloaded(limit), _))) => {
                    return Outcome::Overloaded(limit);
                }
                Ok(Err(ForwardError::Dial(error, unsent))) => {
                    state.failed(worker.timer.now());
                    upstream.note(worker, &state, Event::Local);
                    unreached.push(state);
                    request = unsent;
                    last = error;
                }
                Ok(Err(ForwardError::Lost(error))) => {
                    if !error.is_clients() {
                        upstream.note(worker, &state, Event::Local);
                    }
                    return Outcome::Lost(error);
                }
                Err(late) => {
                    if self.is_endpoints(late) {
                        upstream.note(worker, &state, Event::Local);
                    }
                    return Outcome::Late(late);
                }
            }
        }
        Outcome::Unreachable(last)
    }

    /// Whether it was the endpoint that was slow, not the client.
    fn is_endpoints(&self, late: Late) -> bool {
        let sent = self.clock.as_ref().is_some_and(|clock| clock.status() == StatusCode::GATEWAY_TIMEOUT);
        matches!(late, Late::Request | Late::Try) && sent
    }

    async fn pause(&self, wait: Duration) -> Result<(), Late> {
        // The runtime's own timer: the wait is often shorter than a tick of the worker's, and repetitions are rare.
        let pause = Box::pin(tokio::time::sleep(wait));
        match &self.clock {
            Some(clock) => {
                // The attempt is over: its limit does not count.
                clock.end_try();
                clock.hold(pause).await
            }
            None => {
                pause.await;
                Ok(())
            }
        }
    }

    fn again(&self, head: &Request<Body>, body: Body) -> Box<Request<Body>> {
        let traffic = self.cluster.traffic.clone();
        let counted = Counted { traffic, worker: self.worker.index, response: false };
        Box::new(plumbing::copy(head).map(|_| {
            let mut body = body.counted(counted).request(self.clock.clone());
            if let Some(exchange) = self.exchange {
                body.watch(exchange.watch_request());
            }
            body
        }))
    }

    fn conclude(&self, outcome: Outcome) -> Response<Body> {
        let service = &self.cluster.service;
        match outcome {
            Outcome::Answered(mut response) => {
                if let Some(exchange) = self.exchange {
                    exchange.upstream_answered();
                }
                if let Some(clock) = &self.clock {
                    clock.answered();
                    response.body_mut().response(self.clock.clone());
                }
                response
            }
            Outcome::Unreachable(error) => unreachable(self.worker, self.cluster, &error),
            Outcome::Lost(error) if error.is_clients() => {
                let text = "the request's body is malformed, or was cut\n";
                plumbing::because(plumbing::plain(StatusCode::BAD_REQUEST, text), &Cause::MALFORMED)
            }
            Outcome::Lost(error) => {
                tracing::debug!(%service, %error, source = ?error.source(), "request lost");
                let answer = plumbing::plain(StatusCode::SERVICE_UNAVAILABLE, "the connection was lost\n");
                plumbing::because(answer, &Cause::LOST)
            }
            Outcome::Overloaded(limit) => overloaded(self.worker, self.cluster, limit),
            Outcome::Late(_) => {
                self.cluster.traffic.cell(self.worker.index).timeouts.inc();
                let status = self.clock.as_ref().map_or(StatusCode::GATEWAY_TIMEOUT, |clock| clock.status());
                let answer = plumbing::plain(status, &format!("{service} did not answer in time\n"));
                plumbing::because(answer, &Cause::LATE)
            }
        }
    }
}

impl Outcome {
    /// As a policy sees it; `None`: the request's own time is over, so nothing can follow.
    fn attempt(&self) -> Option<Attempt<'_>> {
        match self {
            // Another proxy's limit is reached as well: more requests are no help.
            Self::Answered(response) if response.headers().contains_key(&plumbing::OVERLOADED) => None,
            Self::Answered(response) => Some(Attempt::Answered(response.status(), response.headers())),
            Self::Unreachable(_) => Some(Attempt::Unreachable),
            // There is no whole request to send again.
            Self::Lost(error) if error.is_clients() => None,
            Self::Lost(error) if error.is_refusal() => Some(Attempt::Refused),
            Self::Lost(_) | Self::Late(Late::Try) => Some(Attempt::Lost),
            Self::Late(_) | Self::Overloaded(_) => None,
        }
    }

    fn headers(&self) -> Option<&HeaderMap> {
        match self {
            Self::Answered(response) => Some(response.headers()),
            Self::Unreachable(_) | Self::Lost(_) | Self::Late(_) | Self::Overloaded(_) => None,
        }
    }
}

/// What an answer says of its endpoint. gRPC's own status counts if it is there already, in an answer without messages.
fn answered(protocol: Protocol, response: &Response<Body>) -> Event {
    let own = response.headers().get("grpc-status").filter(|_| protocol == Protocol::Grpc);
    match own.and_then(|status| status.to_str().ok()?.parse().ok()) {
        Some(status) => Event::grpc(status),
        None => Event::Status(response.status().as_u16()),
    }
}

impl Trail {
    fn pick(
        &mut self,
        upstream: &Upstream,
        now: u64,
        hash: Option<u64>,
        unreached: &[Rc<EndpointState>],
    ) -> Option<Rc<EndpointState>> {
        let policy = self.repeating.as_deref();
        let avoids = |state: &Rc<EndpointState>| {
            let been = || self.endpoints.iter().any(|other| other.is(state));
            policy.is_some_and(|policy| policy.avoids(&state.endpoint.tags, been()))
        };
        let looks = policy.and_then(|policy| usize::try_from(policy.hosts.max_looks?.get()).ok());
        let wish = Wish { avoided_tiers: &self.avoided, unreached, avoids, hash, looks };
        let (tier, state) = upstream.pick_by(now, &wish)?;
        self.tiers.push(tier);
        self.endpoints.push(state.clone());
        Some(state)
    }

    /// A repetition begins: what of the past it is to avoid.
    fn next(&mut self, policy: &Arc<RetryPolicy>, made: u32) {
        if policy.hosts.omit_previous_tiers.is_some_and(|every| made.is_multiple_of(every.get())) {
            self.avoided.append(&mut self.tiers);
        }
        self.repeating = Some(policy.clone());
    }
}

impl Spare {
    /// The body once more, if all that passed of it was kept.
    fn body(&self) -> Option<Body> {
        match &self.tape {
            Some(tape) => tape.read().map(Body::again),
            None => Some(Body::empty()),
        }
    }

    fn stop(&self) {
        if let Some(tape) = &self.tape {
            tape.stop();
        }
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    u64::try_from(time::OffsetDateTime::now_utc().unix_timestamp()).unwrap_or_default()
}
