//! A request over a pooled connection, and what to do when the connection turns out to be gone.

use super::{Body, BodyError, Counted, Http1Error, Incoming, strip_response};
use crate::{
    upstream::{DialError, Far, Pool, SendError, Sending},
    worker::Worker,
};
use http::{Method, Request, Response};
use http_body::Body as _;
use std::{error::Error as _, rc::Rc};

/// How often a request is sent anew because a pooled connection had been closed meanwhile.
const STALE_TRIES: usize = 3;

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

/// What went wrong on a connection.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Http1(#[from] Http1Error),
    #[error(transparent)]
    Http2(#[from] h2::Error),
    #[error("the body that was to be sent failed")]
    Sending(#[source] Box<BodyError>),
    #[error("the other side does not answer pings")]
    Silent,
}

impl Error {
    /// Whether a request was lost since the client did not send it to its end.
    pub fn is_clients(&self) -> bool {
        match self {
            Self::Http1(error) => matches!(error, Http1Error::Sending(_) | Http1Error::Length),
            Self::Sending(_) => true,
            Self::Http2(_) | Self::Silent => false,
        }
    }

    /// Whether an HTTP/2 server said that it did nothing with the request.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Http2(error) if is_untouched(error))
    }
}

/// A stream was refused, or came behind the last one that a server serves before it goes (RFC 9113 6.8). Streams that it
/// does serve end otherwise when the connection breaks.
fn is_untouched(error: &h2::Error) -> bool {
    error.reason() == Some(h2::Reason::REFUSED_STREAM) || error.is_go_away() && error.is_remote()
}

/// The same of what hyper says, which an egress sends by.
pub(crate) fn is_clients(error: &hyper::Error) -> bool {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<h2::Error>());
    error.is_user()
        || cause.is_some_and(|cause| cause.is_reset() && !cause.is_remote() && !cause.is_library())
}

/// The same of what hyper says.
pub(crate) fn is_refusal(error: &hyper::Error) -> bool {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<h2::Error>());
    cause.is_some_and(is_untouched)
}

/// Why a request was not answered.
pub enum ForwardError {
    /// No connection, so nothing was sent: the request can go elsewhere.
    Dial(DialError, Box<Request<Body>>),
    /// It was sent, or parts of it.
    Lost(Error),
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
    mut request: Box<Request<Body>>,
    counted: Counted,
) -> Result<Response<Body>, ForwardError> {
    let mut tries = 0;
    loop {
        tries += 1;
        let (result, reused) = match how {
            How::Multiplexed { alpn } => match pool.multiplexed(worker, far, alpn).await {
                Ok(connection) => (connection.send(request).await, true),
                Err(error) => return Err(ForwardError::Dial(error, request)),
            },
            How::Exclusive { alpn } | How::Continue { alpn } => match pool.exclusive(worker, far, alpn).await
            {
                Ok(connection) => {
                    let (reused, waits) = (connection.reused, matches!(how, How::Continue { .. }));
                    (connection.send(request, waits).await, reused)
                }
                Err(error) => return Err(ForwardError::Dial(error, request)),
            },
        };
        match result {
            Ok((response, sending)) => return Ok(answer(response, sending, counted)),
            Err(SendError { error, request: spare, sent }) => {
                // A server may close a used connection just as we send.
                let again = spare.filter(|request| !sent || (reused && repeatable(request)));
                match again.filter(|_| tries < STALE_TRIES) {
                    Some(unsent) => request = unsent,
                    None => return Err(ForwardError::Lost(error)),
                }
            }
        }
    }
}

fn answer(response: Response<Incoming>, sending: Sending, counted: Counted) -> Response<Body> {
    let mut response = response.map(|body| Body::incoming(body).counted(counted).with(sending));
    strip_response(&mut response);
    response
}

/// What may be repeated: safe, and nothing to send twice.
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
