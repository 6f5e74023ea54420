//! Requests of one connection, each answered in a task of its own.
//!
//! Answered in the connection's task, they would be fewer tasks and more work: what a stream has to do runs between two
//! turns of the connection, so that the connection finds more to write at once.

use super::{
    Batched, CONNECTION_WINDOW, FRAME, MAX_STREAMS, PENDING_RESETS, Received, SEND_BUFFER, STREAM_WINDOW,
    upload::Upload,
};
use crate::{
    codec::{Body, Incoming, MAX_HEAD},
    io::Stream,
};
use bytes::Bytes;
use h2::{
    Reason, RecvStream,
    server::{Builder, Connection, Handshake, SendResponse},
};
use http::{HeaderValue, Request, Response, header};
use http_body::Body as _;
use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

/// What no answer over HTTP/2 may have (RFC 9113 8.2.2).
const OF_CONNECTIONS: [header::HeaderName; 5] = [
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::HeaderName::from_static("keep-alive"),
    header::HeaderName::from_static("proxy-connection"),
];

/// Serves a connection. Resolves when it is over; what is still being answered learns of it, and ends.
pub(in crate::codec) struct Server<S, H> {
    state: State<S>,
    handler: H,
    /// It was to end before it had begun.
    drains: bool,
}

enum State<S> {
    Begins(Pin<Box<Handshake<Batched<S>, Bytes>>>),
    Serves(Box<Connection<Batched<S>, Bytes>>),
}

/// One request, until its answer was sent.
struct Answering<F> {
    respond: SendResponse<Bytes>,
    state: Answer<F>,
}

enum Answer<F> {
    Made(Pin<Box<F>>),
    Sent(Box<Upload>),
}

impl<S, H, F> Server<S, H>
where
    S: Stream,
    H: Fn(Request<Incoming>) -> F,
    F: Future<Output = Result<Response<Body>, Infallible>> + 'static,
{
    pub(in crate::codec) fn new(stream: Batched<S>, handler: H) -> Self {
        let mut builder = Builder::new();
        builder
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME)
            .max_send_buffer_size(SEND_BUFFER)
            .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX))
            .max_pending_accept_reset_streams(PENDING_RESETS)
            .max_concurrent_streams(MAX_STREAMS);
        let state = State::Begins(Box::pin(builder.handshake(stream)));
        Self { state, handler, drains: false }
    }

    /// Takes no more requests than are on their way, and ends once they are answered.
    pub(in crate::codec) fn graceful_shutdown(&mut self) {
        match &mut self.state {
            State::Begins(_) => self.drains = true,
            State::Serves(connection) => connection.graceful_shutdown(),
        }
    }

    /// Takes requests as they come. Ready: the connection is over.
    fn poll_requests(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        loop {
            match &mut self.state {
                State::Begins(handshake) => {
                    let mut connection = Box::new(ready!(handshake.as_mut().poll(cx))?);
                    if self.drains {
                        connection.graceful_shutdown();
                    }
                    self.state = State::Serves(connection);
                }
                State::Serves(connection) => {
                    let Some(request) = ready!(connection.poll_accept(cx)) else {
                        return Poll::Ready(Ok(()));
                    };
                    let (request, respond) = request?;
                    let state = Answer::Made(Box::pin((self.handler)(received(request))));
                    drop(tokio::task::spawn_local(Answering { respond, state }));
                }
            }
        }
    }
}

fn received(request: Request<RecvStream>) -> Request<Incoming> {
    let (head, stream) = request.into_parts();
    let body = Received::request(stream, &head.headers);
    Request::from_parts(head, Incoming::Http2(body))
}

impl<S, H, F> Future for Server<S, H>
where
    S: Stream,
    H: Fn(Request<Incoming>) -> F + Unpin,
    F: Future<Output = Result<Response<Body>, Infallible>> + 'static,
{
    type Output = Result<(), h2::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.poll_requests(cx)
    }
}

impl<F: Future<Output = Result<Response<Body>, Infallible>>> Future for Answering<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        loop {
            match &mut this.state {
                Answer::Made(made) => match made.as_mut().poll(cx) {
                    Poll::Ready(Ok(response)) => match begin(&mut this.respond, response) {
                        Some(upload) => this.state = Answer::Sent(Box::new(upload)),
                        None => return Poll::Ready(()),
                    },
                    // Nobody waits for it any more.
                    Poll::Pending => return this.respond.poll_reset(cx).map(drop),
                },
                Answer::Sent(upload) => {
                    if let Err(error) = ready!(upload.poll(cx)) {
                        tracing::debug!(%error, "an answer over HTTP/2");
                    }
                    return Poll::Ready(());
                }
            }
        }
    }
}

/// Sends the head; the body is left.
fn begin(respond: &mut SendResponse<Bytes>, response: Response<Body>) -> Option<Upload> {
    let (head, body) = response.into_parts();
    let mut head = Response::from_parts(head, ());
    for name in OF_CONNECTIONS {
        head.headers_mut().remove(name);
    }
    let bodiless = body.is_end_stream();
    if let Some(length) = body.size_hint().exact().filter(|_| !bodiless) {
        head.headers_mut().entry(header::CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(length));
    }
    match respond.send_response(head, bodiless) {
        Ok(stream) => (!bodiless).then(|| Upload::answer(body, stream)),
        Err(error) => {
            tracing::debug!(%error, "an answer over HTTP/2");
            respond.send_reset(Reason::INTERNAL_ERROR);
            None
        }
    }
}
