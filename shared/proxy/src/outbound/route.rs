//! One request, as the routes of its destination say: which rule it is for, and so what is changed in it, who gets a copy
//! and which backend answers.
//!
//! A rule's backend is chosen once: what is repeated is repeated there. A backend that is not there refuses its share
//! with a 500, as in Kuma; nobody else gets it.

use super::http::{Way, forward};
use crate::{
    codec::{self as plumbing, Body, Incoming},
    policy::routes::{Found, Rule},
    snapshot::{self, Cluster, Routing, Split, Verdict},
    worker::Worker,
};
use http::{HeaderValue, Request, Response, StatusCode, header, uri::Authority};
use std::{rc::Rc, sync::Arc};

/// A request that is for a rule.
struct Routed<'a> {
    worker: &'a Rc<Worker>,
    /// The destination that was asked for.
    own: &'a Arc<Cluster>,
    /// The way to it.
    itself: &'a Way<'a>,
    found: Found,
    rule: &'a Rule,
    way: &'a snapshot::Way,
}

/// The answer, and whose it is.
pub(super) async fn answer(
    worker: &Rc<Worker>,
    itself: &Way<'_>,
    routing: &Arc<Routing>,
    authority: &Authority,
    request: Request<Incoming>,
) -> (Arc<Cluster>, Response<Body>) {
    let own = itself.cluster;
    let verdict = routing.of_request(request.method(), request.uri(), request.headers());
    match verdict {
        Verdict::Itself => {
            let response = forward(worker, itself, authority, request).await;
            (own.clone(), response)
        }
        Verdict::Rule(found, rule, way) => {
            let routed = Routed { worker, own, itself, found, rule, way };
            let (cluster, mut response) = routed.answer(authority, request).await;
            rule.response.apply(response.headers_mut());
            (cluster, response)
        }
        Verdict::Connection(split) => match turn(worker, own, split) {
            Ok(cluster) if cluster.protocol.is_http() => {
                let way = Way {
                    exchange: itself.exchange,
                    scripts: itself.scripts,
                    ..Way::to(cluster, itself.ends)
                };
                let authority = outside(own, cluster).unwrap_or(authority);
                (cluster.clone(), forward(worker, &way, authority, request).await)
            }
            Ok(_) => (own.clone(), refusal("the backend does not speak HTTP")),
            Err(refusal) => (own.clone(), refusal),
        },
        Verdict::Unreadable => (own.clone(), refusal("its routes can't be understood")),
    }
}

impl Routed<'_> {
    async fn answer(
        &self,
        authority: &Authority,
        mut request: Request<Incoming>,
    ) -> (Arc<Cluster>, Response<Body>) {
        let policies = self.rule.policies.as_ref();
        if let Some((exchange, logs)) = self.itself.exchange.zip(policies.and_then(|it| it.logs.as_ref())) {
            exchange.tells(logs, request.headers());
        }
        if let Some(redirect) = &self.rule.redirect {
            let location = redirect.location(request.uri(), authority, self.found.prefix);
            return (self.own.clone(), redirected(redirect.status, &location));
        }
        let cluster = match &self.way.split {
            None => self.own,
            Some(split) => match turn(self.worker, self.own, split) {
                Ok(cluster) => cluster,
                Err(refusal) => return (self.own.clone(), refusal),
            },
        };
        let host = self.change(&mut request);
        let authority = host.or_else(|| outside(self.own, cluster)).unwrap_or(authority);
        let way = Way {
            ends: self.itself.ends,
            exchange: self.itself.exchange,
            scripts: self.itself.scripts,
            mirrors: &self.way.mirrors,
            hashing: policies.and_then(|policies| policies.hashing.as_ref()),
            cluster,
            streams: self.way.streams.unwrap_or(self.own.streams),
            retry: policies.map_or(self.own.retry.as_ref(), |policies| policies.retry.as_ref()),
        };
        let response = forward(self.worker, &way, authority, request).await;
        (cluster.clone(), response)
    }

    /// Makes of a request what the rule makes of it; the host that it is for now, if that is another.
    fn change(&self, request: &mut Request<Incoming>) -> Option<&Authority> {
        self.rule.request.apply(request.headers_mut());
        if let Some(target) = self.rule.rewrite.target(request.uri(), self.found.prefix) {
            *request.uri_mut() = target;
        }
        let host = self.rule.rewrite.host.as_ref()?;
        if let Ok(value) = HeaderValue::from_str(host.as_str()) {
            request.headers_mut().insert(header::HOST, value);
        }
        Some(host)
    }
}

/// Whom a request is for that leaves the mesh in another's place: an egress holds it to that name.
fn outside<'a>(own: &Cluster, cluster: &'a Cluster) -> Option<&'a Authority> {
    let leaving = cluster.leaving.as_ref().filter(|_| cluster.name != own.name);
    leaving.map(|leaving| &leaving.authority)
}

#[expect(clippy::result_large_err, reason = "the error is the answer")]
fn turn<'a>(worker: &Worker, own: &Cluster, split: &'a Split) -> Result<&'a Arc<Cluster>, Response<Body>> {
    split.next(worker.index).map_err(|why| {
        tracing::debug!(service = %own.service, why, "a backend is not there");
        refusal(why)
    })
}

fn refusal(why: &str) -> Response<Body> {
    plumbing::plain(StatusCode::INTERNAL_SERVER_ERROR, &format!("no backend: {why}\n"))
}

fn redirected(status: StatusCode, location: &str) -> Response<Body> {
    let Ok(location) = HeaderValue::from_str(location) else {
        return plumbing::plain(StatusCode::BAD_REQUEST, "there is nowhere to go\n");
    };
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response.headers_mut().insert(header::LOCATION, location);
    response
}
