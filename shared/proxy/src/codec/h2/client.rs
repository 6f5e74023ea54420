//! Requests over one connection, many at a time.

use super::{
    Batched, CONNECTION_WINDOW, Driven, FRAME, PING, PING_TIMEOUT, Received, SEND_BUFFER, STREAM_WINDOW,
    upload::Upload,
};
use crate::{
    codec::{Body, Error, MAX_HEAD, REST_WAIT},
    io::Stream,
};
use bytes::Bytes;
use h2::{
    Ping, PingPong,
    client::{Builder, ResponseFuture, SendRequest},
};
use http::{HeaderValue, Method, Request, Response, header::CONTENT_LENGTH};
use http_body::Body as _;
use std::{
    cell::Cell,
    convert::Infallible,
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};
use tokio::{
    sync::oneshot,
    time::{Sleep, sleep},
};

/// What sends requests over a connection that a [`Connection`] drives.
pub(crate) struct Client {
    sender: SendRequest<Bytes>,
    use_: Rc<Use>,
}

#[derive(Default)]
struct Use {
    /// Streams whose answers have not ended.
    streams: Cell<usize>,
    /// Streams were opened since the connection's last turn.
    opened: Cell<bool>,
    over: Cell<bool>,
}

/// A stream counts as open until this is dropped.
pub(crate) struct Open(Rc<Use>);

/// A request that was not answered.
pub(crate) struct SendError {
    pub(crate) error: Error,
    /// The request, if nothing of it was sent.
    pub(crate) request: Option<Box<Request<Body>>>,
}

/// Drives a connection. Resolves when it is over.
pub(crate) struct Connection<S: Stream> {
    driven: Driven<h2::client::Connection<Batched<S>, Bytes>, S>,
    stream: Batched<S>,
    pings: Option<PingPong>,
    watch: Watch,
    use_: Rc<Use>,
}

/// Whether the other side is still there, asked while streams are open. Nothing is armed while there are none.
enum Watch {
    Rests,
    /// To see then whether anything has come.
    Listens(Pin<Box<Sleep>>),
    /// It is asked, and must answer until then.
    Asks(Pin<Box<Sleep>>),
}

/// Begins HTTP/2 over a connection.
///
/// # Errors
/// The settings could not be written.
pub(crate) async fn open<S: Stream>(stream: S) -> Result<(Client, Connection<S>), h2::Error> {
    let stream = Batched::new(stream);
    let mut builder = Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX));
    let (sender, mut connection) = builder.handshake(stream.clone()).await?;
    let pings = connection.ping_pong();
    let use_ = Rc::<Use>::default();
    let driven = Driven::new(connection, stream.clone());
    let connection = Connection { driven, stream, pings, watch: Watch::Rests, use_: use_.clone() };
    Ok((Client { sender, use_ }, connection))
}

impl Client {
    pub(crate) fn is_over(&self) -> bool {
        self.use_.over.get()
    }

    /// Streams whose answers have not ended.
    pub(crate) fn streams(&self) -> usize {
        self.use_.streams.get()
    }

    /// A stream that begins: it counts as open until this is dropped.
    pub(crate) fn open(&self) -> Open {
        self.use_.streams.set(self.use_.streams.get() + 1);
        Open(self.use_.clone())
    }

    /// Sends a request, on a stream that counts. What is left of its body once the answer's head is there goes on being
    /// sent, and for [`REST_WAIT`] when the answer was taken.
    ///
    /// # Errors
    /// Why there is no answer. No request is taken any more after an error that brings it back.
    pub(crate) async fn send(&self, request: Box<Request<Body>>) -> Result<Response<Received>, SendError> {
        let mut sender = self.sender.clone();
        if let Err(error) = poll_fn(|cx| sender.poll_ready(cx)).await {
            self.use_.over.set(true);
            return Err(SendError { error: error.into(), request: Some(request) });
        }
        let (head, body) = request.into_parts();
        let mut head = Request::from_parts(head, ());
        tell_length(&mut head, &body);
        let bodiless = body.is_end_stream();
        let (answer, stream) = sender.send_request(head, bodiless).map_err(|error| lost(error.into()))?;
        self.use_.opened.set(true);
        let upload = (!bodiless).then(|| Upload::request(body, stream));
        let mut exchange = Exchange { answer, upload };
        let response = poll_fn(|cx| exchange.poll(cx)).await.map_err(lost)?;
        let (head, stream) = response.into_parts();
        let mut received = Received::answer(stream, &head.headers);
        if let Some(upload) = exchange.upload {
            let (taken, wait) = oneshot::channel();
            received.tell_when_taken(taken);
            drop(tokio::task::spawn_local(upload.rest(wait)));
        }
        Ok(Response::from_parts(head, received))
    }
}

fn lost(error: Error) -> SendError {
    SendError { error, request: None }
}

/// What is known of the length is told, as HTTP/1.1 would (RFC 9110 8.6).
fn tell_length(head: &mut Request<()>, body: &Body) {
    let means_something = matches!(*head.method(), Method::POST | Method::PUT | Method::PATCH);
    let length = body.size_hint().exact().filter(|length| *length > 0 || means_something);
    if let Some(length) = length {
        head.headers_mut().entry(CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(length));
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get().saturating_sub(1));
    }
}

/// A request under way. Dropped, its stream is cancelled.
struct Exchange {
    answer: ResponseFuture,
    upload: Option<Upload>,
}

impl Exchange {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response<h2::RecvStream>, Error>> {
        if let Some(upload) = &mut self.upload
            && let Poll::Ready(sent) = upload.poll(cx)
        {
            self.upload = None;
            match sent {
                // A server that wants no more of a request may yet have answered it.
                Ok(()) | Err(Error::Http2(_)) => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Pin::new(&mut self.answer).poll(cx).map_err(Error::from)
    }
}

impl Upload {
    /// Sends what is left behind an answer's head, for so long once the answer was taken. Given up, its stream is cancelled.
    async fn rest(mut self, taken: oneshot::Receiver<Infallible>) {
        let sent = tokio::select! {
            sent = poll_fn(|cx| self.poll(cx)) => sent,
            () = async { drop(taken.await); sleep(REST_WAIT).await } => {
                self.cancel();
                return tracing::debug!("the rest of a request did not come");
            }
        };
        if let Err(error) = sent {
            tracing::debug!(%error, "the rest of a request");
        }
    }
}

impl<S: Stream> Connection<S> {
    /// Writes what opens streams, before anything is read. A server that ends the connection gracefully asks by a ping
    /// which streams are still coming: our answer must not overtake them, or it would not serve them.
    fn poll_opened(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        self.stream.hear(false);
        let polled = self.driven.connection().poll(cx);
        self.stream.hear(true);
        polled
    }

    /// Whether the other side is still there; ready when it is not.
    fn poll_watch(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(pings) = &mut self.pings else { return Poll::Pending };
        loop {
            let used = self.use_.streams.get() > 0;
            match &mut self.watch {
                Watch::Rests if used => self.watch = Watch::Listens(Box::pin(sleep(PING))),
                Watch::Rests => return Poll::Pending,
                Watch::Listens(until) => {
                    ready!(until.as_mut().poll(cx));
                    let asks = !self.stream.take_heard() && used && pings.send_ping(Ping::opaque()).is_ok();
                    self.watch = if asks { Watch::Asks(Box::pin(sleep(PING_TIMEOUT))) } else { Watch::Rests };
                }
                Watch::Asks(until) => {
                    if pings.poll_pong(cx).is_pending() {
                        return until.as_mut().poll(cx);
                    }
                    self.watch = Watch::Rests;
                }
            }
        }
    }
}

impl<S: Stream> Future for Connection<S> {
    type Output = Result<(), Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.use_.opened.take()
            && let Poll::Ready(result) = self.poll_opened(cx)
        {
            return Poll::Ready(result.map_err(Error::from));
        }
        if let Poll::Ready(result) = Pin::new(&mut self.driven).poll(cx) {
            return Poll::Ready(result.map_err(Error::from));
        }
        // Behind the connection, which has read by now what has come. A ping that this sends goes with the next turn.
        self.poll_watch(cx).map(|()| Err(Error::Silent))
    }
}

impl<S: Stream> Drop for Connection<S> {
    fn drop(&mut self) {
        self.use_.over.set(true);
    }
}
