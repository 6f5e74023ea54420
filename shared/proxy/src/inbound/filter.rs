//! Requests examined before the application sees them.

use super::Caller;
use crate::{
    codec::{self as plumbing, Body, Guard, Incoming},
    denial::Reason,
    policy::filter::{BodyExaminer, Finding, Framing, Place, RequestFilter, Unexaminable, What},
    snapshot::Inbound,
    worker::Worker,
};
use http::{Request, Response};
use http_body::Body as _;
use meridian_proxy_config::{FilterAction, RequestPart};
use std::{rc::Rc, sync::Arc};

/// A request whose head was examined, and how its body will be.
pub(super) struct Examined {
    guard: Option<Rc<Guard>>,
    /// Large, and mostly not there.
    body: Option<Box<BodyExaminer>>,
}

/// Examines a request's head.
///
/// # Errors
/// The answer to a request that is blocked, which is reported.
pub(super) fn examine(
    worker: &Rc<Worker>,
    caller: &Caller,
    inbound: &Arc<Inbound>,
    request: &Request<Incoming>,
) -> Result<Examined, Box<Response<Body>>> {
    let Some(filter) = &inbound.filter else { return Ok(Examined { guard: None, body: None }) };
    let guard = guard(worker.clone(), caller.clone(), inbound.clone(), filter.clone());
    if let Some(finding) = filter.head(request) {
        guard.judge(&finding);
    }
    let mut body = None;
    if !guard.is_blocked() && filter.searches(RequestPart::Body) && !request.body().is_end_stream() {
        match body_examiner(&guard, inbound, request) {
            Ok(examiner) => body = Some(Box::new(examiner)),
            Err(what) => drop(guard.judge(&Finding { what, place: Place::Part(RequestPart::Body) })),
        }
    }
    let examined = Examined { guard: Some(Rc::new(guard)), body };
    examined.refusal().map_or(Ok(examined), |response| Err(Box::new(response)))
}

fn body_examiner(
    guard: &Guard,
    inbound: &Inbound,
    request: &Request<Incoming>,
) -> Result<BodyExaminer, What> {
    let filter = &guard.filter;
    let examiner = BodyExaminer::new(filter, request.headers(), Framing::of(inbound.config.protocol))?;
    // Before anything is sent there is still an answer to give.
    let length = request.body().size_hint().exact().unwrap_or_default();
    if filter.on_limit == FilterAction::Block && examiner.exceeds(length) {
        return Err(What::Unexaminable(Unexaminable::TooLong));
    }
    Ok(examiner)
}

fn guard(worker: Rc<Worker>, caller: Caller, inbound: Arc<Inbound>, filter: Arc<RequestFilter>) -> Guard {
    let rules = filter.clone();
    Guard::new(filter, move |finding, action| {
        let cell = inbound.traffic.cell(worker.index);
        let (counter, reason) = match action {
            FilterAction::Block => (&cell.filter_blocked, Reason::REQUEST_FILTER),
            FilterAction::Observe => (&cell.filter_observed, Reason::REQUEST_FILTER_OBSERVED),
        };
        counter.inc();
        caller.report(&worker, &inbound, &reason, &rules.rule(finding));
    })
}

impl Examined {
    /// The answer to a blocked request.
    pub(super) fn refusal(&self) -> Option<Response<Body>> {
        let guard = self.guard.as_ref().filter(|guard| guard.is_blocked())?;
        Some(plumbing::refused(guard.filter.status, &Reason::REQUEST_FILTER))
    }

    /// Whether there is a body to examine: it can't go where nobody looks at it.
    pub(super) fn has_body(&self, body: &Incoming) -> bool {
        self.guard.is_some() && !body.is_end_stream()
    }

    /// Examines the body on its way.
    pub(super) fn body(&mut self, body: Body) -> Body {
        match &self.guard {
            Some(guard) => body.filtered(guard.clone(), self.body.take().map(|examiner| *examiner)),
            None => body,
        }
    }
}
