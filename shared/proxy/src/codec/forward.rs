//! A request over a pooled connection, and what to do when the connection turns out to be gone.

use super::{Body, Counted, Gate, strip_response};
use crate::{
    policy::timeouts::Clock,
    upstream::{DialError, Far, Pool, SendError, Sending},
    worker::Worker,
};
use http::{Method, Request, Response, StatusCode};
use http_body::Body as _;
use hyper::body::Incoming;
use std::{rc::Rc, sync::Arc, time::Duration};

/// How often a request is sent anew because a pooled connection had been closed meanwhile.
const STALE_TRIES: usize = 3;
/// A server that never says 100 gets the body after so long (RFC 9110 10.1.1: a client does not wait for ever).
const CONTINUE_WAIT: Duration = Duration::from_secs(1);

/// Over what a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// HTTP/2, many at a time.
    Multiplexed { alpn: &'static [u8] },
    /// HTTP/1.1, one at a time.
    Exclusive { alpn: &'static [u8] },
    /// HTTP/1.1, and the body only when the server asks for it.
    Continue { alpn: &'static [u8] },
}

/// Why a request was not answered.
pub enum ForwardError {
    /// No connection, so nothing was sent: the request can go elsewhere.
    Dial(DialError, Box<Request<Body>>),
    /// It was sent, or parts of it.
    Lost(hyper::Error),
}

/// Sends a request over a connection of the pool.
///
/// # Errors
/// Why there is no answer.
pub async fn send(
    worker: &Rc<Worker>,
    pool: &Rc<Pool>,
    far: &Far,
    how: How,
    mut request: Request<Body>,
    counted: Counted,
) -> Result<Response<Body>, ForwardError> {
    // What may be repeated if a server closes a used connection just as we send: safe, and nothing to send twice.
    let mut spare = match how {
        How::Exclusive { .. } if repeatable(&request) => Some(copy(&request)),
        _ => None,
    };
    let mut tries = 0;
    loop {
        tries += 1;
        let (result, reused) = match how {
            How::Multiplexed { alpn } => match pool.multiplexed(worker, far, alpn).await {
                Ok(connection) => (connection.send(request).await, true),
                Err(error) => return Err(ForwardError::Dial(error, Box::new(request))),
            },
            How::Exclusive { alpn } | How::Continue { alpn } => match pool.exclusive(worker, far, alpn).await
            {
                Ok(connection) => {
                    let reused = connection.reused;
                    match how {
                        How::Continue { .. } => (holding(worker, connection, request).await, reused),
                        _ => (connection.send(request).await, reused),
                    }
                }
                Err(error) => return Err(ForwardError::Dial(error, Box::new(request))),
            },
        };
        match result {
            Ok((response, sending)) => return Ok(answer(response, sending, counted)),
            Err(SendError { error, request: unsent }) => {
                let again = unsent.or_else(|| spare.take().filter(|_| reused));
                match again.filter(|_| tries < STALE_TRIES) {
                    Some(unsent) => request = unsent,
                    None => return Err(ForwardError::Lost(error)),
                }
            }
        }
    }
}

/// Holds an answer to its clock; `Err` is the status to answer with where it is late.
///
/// # Errors
/// A limit was exceeded before the answer's head.
pub async fn timed<E>(
    clock: Option<Rc<Clock>>,
    answer: impl Future<Output = Result<Response<Body>, E>>,
) -> Result<Result<Response<Body>, E>, StatusCode> {
    let Some(clock) = clock else { return Ok(answer.await) };
    let mut answer = clock.hold(answer).await.map_err(|_| clock.status())?;
    if let Ok(response) = &mut answer {
        clock.answered();
        response.body_mut().response(Some(clock));
    }
    Ok(answer)
}

async fn holding(
    worker: &Worker,
    connection: crate::upstream::Exclusive,
    request: Request<Body>,
) -> Result<(Response<Incoming>, Sending), SendError> {
    let gate = Arc::new(Gate::default());
    let mut request = request.map(|body| body.held(gate.clone()));
    let opened = gate.clone();
    hyper::ext::on_informational(&mut request, move |response| {
        if response.status() == http::StatusCode::CONTINUE {
            opened.open();
        }
    });
    let mut sending = std::pin::pin!(connection.send(request));
    match worker.timer.timeout(CONTINUE_WAIT, sending.as_mut()).await {
        Some(result) => result,
        None => {
            gate.open();
            sending.await
        }
    }
}

fn answer(response: Response<Incoming>, sending: Sending, counted: Counted) -> Response<Body> {
    let mut response = response.map(|body| Body::incoming(body).counted(counted).with(sending));
    strip_response(&mut response);
    response
}

fn repeatable(request: &Request<Body>) -> bool {
    request.body().is_end_stream()
        && matches!(
            *request.method(),
            Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE
        )
}

/// The head of a request, for a repetition.
pub fn copy(request: &Request<Body>) -> Request<Body> {
    let mut copy = Request::new(Body::empty());
    copy.method_mut().clone_from(request.method());
    copy.uri_mut().clone_from(request.uri());
    copy.headers_mut().clone_from(request.headers());
    *copy.version_mut() = request.version();
    copy
}
