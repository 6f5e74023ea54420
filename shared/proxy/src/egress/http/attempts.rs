//! One request to the outside: held to its time, and sent once more where a policy of the caller says so.

use super::{Body, Site, rewrite::rewrite};
use crate::{
    codec::{Counted, Malformed, OVERLOADED, Tape, copy, is_clients, is_refusal, strip_response},
    egress::{authorise::Denied, outward::Outward},
    host::Asked,
    policy::{
        at_once::Limit,
        retry::{Attempt, RetryPolicy},
        timeouts::{Clock, Late},
    },
};
use http::{HeaderMap, Request, Response, StatusCode};
use hyper::body::Incoming;
use std::{rc::Rc, sync::Arc, time::Duration};

/// Why there is no answer from the outside.
pub(super) enum Failed {
    Denied(Denied),
    /// No proxy may pass it on; what follows on the connection can't be trusted.
    Malformed(Malformed),
    /// The client's fault.
    Bad(String),
    Overloaded(Limit),
    /// Nothing was sent.
    Unreachable(String),
    Lost(hyper::Error),
    Late(Late, StatusCode),
}

/// What is asked for, and what holds for it.
pub(super) struct Wish {
    pub(super) asked: Asked,
    pub(super) port: Option<u16>,
    pub(super) outward: Arc<Outward>,
    pub(super) clock: Option<Rc<Clock>>,
}

type Outcome = Result<Response<Body>, Failed>;

impl Site {
    /// The answer, by as many attempts as the policy allows.
    pub(super) async fn attempts(
        self: &Rc<Self>,
        wish: &Wish,
        mut request: Request<Body>,
        retry: Option<&Arc<RetryPolicy>>,
    ) -> Outcome {
        let _waiting = self.underway.wait();
        let Some(policy) = retry else {
            return self.conclude(wish, self.attempt(wish, request).await);
        };
        let (head, tape) = (copy(&request), request.body_mut().tape());
        let mut repeating = None;
        let mut made = 0;
        loop {
            if let (Some(clock), Some(limit)) = (&wish.clock, policy.per_try) {
                clock.begin_try(limit);
            }
            let outcome = self.attempt(wish, request).await;
            drop(repeating.take());
            if made >= policy.max || !attempted(&outcome).is_some_and(|attempt| policy.repeats(attempt)) {
                stop(tape.as_ref());
                return self.conclude(wish, outcome);
            }
            let Some(body) = again(tape.as_ref()) else {
                self.cell(|cell| cell.retries_unrepeatable.inc());
                return self.conclude(wish, outcome);
            };
            repeating = self.underway.repeat(&wish.outward.at_once);
            if repeating.is_none() {
                self.cell(|cell| cell.retries_over_budget.inc());
                stop(tape.as_ref());
                return self.conclude(wish, outcome);
            }
            self.cell(|cell| cell.retries.inc());
            made += 1;
            let wait = policy.wait(made, headers(&outcome), now(), rand::random());
            drop(outcome);
            pause(wish.clock.as_ref(), wait).await?;
            request = copy(&head).map(|_| self.counted(body, false).request(wish.clock.clone()));
        }
    }

    async fn attempt(self: &Rc<Self>, wish: &Wish, request: Request<Body>) -> Outcome {
        let sent = async {
            let sender = self.sender(false, &wish.outward).await?;
            let request = rewrite(request, &wish.asked, wish.port, &sender, false)
                .map_err(|error| Failed::Bad(format!("{error}\n")))?;
            self.send(sender, request).await
        };
        let response = hold(wish.clock.as_ref(), sent).await??;
        Ok(response.map(|body| self.counted(Body::incoming(body), true)))
    }

    /// For the client: an answer of this moment on is the last one.
    fn conclude(&self, wish: &Wish, outcome: Outcome) -> Outcome {
        let mut response = outcome?;
        if let Some(clock) = &wish.clock {
            clock.answered();
            response.body_mut().response(wish.clock.clone());
        }
        strip_response(&mut response);
        Ok(response)
    }

    /// One that leaves HTTP is sent once: what it becomes can't be sent again.
    pub(super) async fn upgrade(
        self: &Rc<Self>,
        wish: &Wish,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, Failed> {
        let sent = async {
            let sender = self.sender(true, &wish.outward).await?;
            let request = rewrite(request, &wish.asked, wish.port, &sender, true)
                .map_err(|error| Failed::Bad(format!("{error}\n")))?;
            self.send(sender, request).await
        };
        hold(wish.clock.as_ref(), sent).await?
    }

    pub(super) fn counted(&self, body: Body, response: bool) -> Body {
        match &self.errand.entry {
            Some(entry) => {
                let traffic = entry.traffic.clone();
                body.counted(Counted { traffic, worker: self.worker.index, response })
            }
            None => body,
        }
    }
}

async fn hold<T>(clock: Option<&Rc<Clock>>, future: impl Future<Output = T>) -> Result<T, Failed> {
    match clock {
        Some(clock) => clock.hold(future).await.map_err(|late| Failed::Late(late, clock.status())),
        None => Ok(future.await),
    }
}

async fn pause(clock: Option<&Rc<Clock>>, wait: Duration) -> Result<(), Failed> {
    if let Some(clock) = clock {
        // The attempt is over: its limit does not count.
        clock.end_try();
    }
    // The runtime's own timer: the wait is often shorter than a tick of the worker's, and repetitions are rare.
    hold(clock, Box::pin(tokio::time::sleep(wait))).await
}

/// The body once more, if all that passed of it was kept.
fn again(tape: Option<&Tape>) -> Option<Body> {
    match tape {
        Some(tape) => tape.read().map(Body::again),
        None => Some(Body::empty()),
    }
}

fn stop(tape: Option<&Tape>) {
    if let Some(tape) = tape {
        tape.stop();
    }
}

/// As a policy sees it; `None`: more attempts are no help, or not allowed.
fn attempted(outcome: &Outcome) -> Option<Attempt<'_>> {
    match outcome {
        Ok(response) if response.headers().contains_key(&OVERLOADED) => None,
        Ok(response) => Some(Attempt::Answered(response.status(), response.headers())),
        Err(Failed::Unreachable(_)) => Some(Attempt::Unreachable),
        // There is no whole request to send again.
        Err(Failed::Lost(error)) if is_clients(error) => None,
        Err(Failed::Lost(error)) if is_refusal(error) => Some(Attempt::Refused),
        Err(Failed::Lost(_) | Failed::Late(Late::Try, _)) => Some(Attempt::Lost),
        Err(
            Failed::Denied(_)
            | Failed::Malformed(_)
            | Failed::Bad(_)
            | Failed::Overloaded(_)
            | Failed::Late(..),
        ) => None,
    }
}

fn headers(outcome: &Outcome) -> Option<&HeaderMap> {
    outcome.as_ref().ok().map(Response::headers)
}

/// Seconds since 1970.
fn now() -> u64 {
    u64::try_from(time::OffsetDateTime::now_utc().unix_timestamp()).unwrap_or_default()
}
