//! Serving a connection: one request after the other, each answered before the next is read.

use super::{
    Error, Incoming, MAX_WAITING,
    encode::{self, Asked, Encoder},
    link::{self, Link, Shared},
    out::Out,
    parse::{self, Partial, RequestHead},
};
use crate::{
    codec::{Body, expects_continue, heads::Heads, incoming, is_upgrade},
    io::{Rewind, Stream},
};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Version};
use http_body::Body as _;
use std::{
    convert::Infallible,
    pin::Pin,
    rc::Rc,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{sync::oneshot, time::Sleep};

/// How often more is read of a request's rest that nobody wants, before its connection is given up.
const SKIPPED: usize = 4;
/// A client that has ended its side may have left, or may only have no more to say: an answer, or more of one, is waited for
/// so long. Who wants one from a script has it by then, and nothing goes on for long for who has left.
pub(super) const HALF_CLOSED: Duration = Duration::from_secs(1);
/// A client that may still be sending is read for so long behind its last answer: closed at once, the connection would be
/// reset by what comes, and the reset can overtake the answer (RFC 9112, 9.6). As long as Envoy's.
pub(super) const LINGER: Duration = Duration::from_secs(1);
/// And so much: more than the largest buffers that Linux gives a connection (4 MiB to send, 6 to receive), so that who looks
/// for an answer as he writes has seen it.
pub(super) const LINGER_BYTES: usize = 16 << 20;

/// A connection that is served. Resolves when it is over.
pub(in crate::codec) struct Connection<H, F> {
    link: Shared,
    handler: H,
    state: State<F>,
    partial: Partial,
    out: Out,
    heads: Rc<Heads>,
    /// No request is begun any more.
    closing: bool,
    /// What came was no request: more of it may come.
    refused: bool,
    /// Of a client that has ended its side: until when it is believed to be there.
    patience: Option<Pin<Box<Sleep>>>,
    upgrading: Option<oneshot::Sender<Upgraded>>,
}

#[expect(clippy::large_enum_variant, reason = "a box would cost each answer an allocation")]
enum State<F> {
    Head,
    Answering(Pin<Box<F>>, Asked),
    Sending(Sending),
    /// The head that says so is on its way.
    Upgrading,
    Closing,
    /// Nothing more is written.
    Lingering(Linger),
}

/// What is still read of a client, only to be thrown away.
struct Linger {
    end: Pin<Box<Sleep>>,
    bytes: usize,
}

struct Sending {
    /// `None`: all of it waits to be written.
    body: Option<Body>,
    encoder: Encoder,
    trailers: bool,
    keep: bool,
}

/// A stream behind an upgrade.
pub(crate) type Upgraded = Rewind<Box<dyn Stream + Send>>;

/// In a request that wants another protocol: where its stream comes once it is answered so.
#[derive(Clone)]
pub(in crate::codec) struct Upgrading(Arc<Mutex<Option<oneshot::Receiver<Upgraded>>>>);

impl Upgrading {
    pub(in crate::codec) fn take(&self) -> Option<oneshot::Receiver<Upgraded>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl<H, F> Connection<H, F>
where
    H: Fn(Request<incoming::Incoming>) -> F + Unpin,
    F: Future<Output = Result<Response<Body>, Infallible>>,
{
    pub(in crate::codec) fn new(io: impl Stream + Send, heads: Rc<Heads>, handler: H) -> Self {
        Self {
            link: Link::over(io),
            handler,
            state: State::Head,
            partial: Partial::default(),
            out: Out::default(),
            heads,
            closing: false,
            refused: false,
            patience: None,
            upgrading: None,
        }
    }

    /// Takes no request any more; one that is being answered is answered.
    pub(in crate::codec) fn graceful_shutdown(&mut self) {
        self.closing = true;
        if matches!(self.state, State::Head) && self.link.borrow().input.is_empty() {
            self.state = State::Closing;
        }
    }

    /// The next request; `None`: there is none.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<RequestHead>, Error>> {
        let mut link = self.link.borrow_mut();
        loop {
            if !link.input.is_empty() {
                match parse::request(&mut link.input, &mut self.partial) {
                    // Nobody has to be woken for a head that is there at once.
                    Ok(None) => self.heads.bytes_came(),
                    Ok(head) => return Poll::Ready(Ok(head)),
                    Err(error) => {
                        refuse(&mut self.out, &error);
                        self.refused = true;
                        return Poll::Ready(Ok(None));
                    }
                }
            }
            if ready!(link.poll_fill(cx))? == 0 {
                return Poll::Ready(Ok(None));
            }
        }
    }

    fn begin(&mut self, head: RequestHead) {
        let RequestHead { mut request, framing, keep } = head;
        let asked = Asked {
            head: request.method() == Method::HEAD,
            version: request.version(),
            trailers: parse::takes_trailers(request.headers()),
            keep: keep && !self.closing,
        };
        self.upgrading = None;
        self.patience = None;
        if is_upgrade(&request) {
            let (sender, receiver) = oneshot::channel();
            self.upgrading = Some(sender);
            request.extensions_mut().insert(Upgrading(Arc::new(Mutex::new(Some(receiver)))));
        }
        let waits = expects_continue(&request);
        let serial = self.link.borrow_mut().begin(framing, waits);
        let body = Incoming::of(&self.link, serial);
        let answer = (self.handler)(request.map(|()| incoming::Incoming::Http1(body)));
        self.state = State::Answering(Box::pin(answer), asked);
    }

    fn respond(&mut self, response: Response<Body>, asked: &Asked, cx: &mut Context<'_>) {
        let (mut head, mut body) = response.into_parts();
        if head.status.is_informational() && head.status != StatusCode::SWITCHING_PROTOCOLS {
            // No answer: the client would wait for another.
            head.status = StatusCode::INTERNAL_SERVER_ERROR;
            body = Body::empty();
        }
        let asked = Asked { keep: asked.keep && !self.closing && !self.is_given_up(cx), ..*asked };
        let (encoder, keep) = encode::response(&mut self.out, &mut head, &body.size_hint(), &asked);
        self.state = if head.status == StatusCode::SWITCHING_PROTOCOLS {
            State::Upgrading
        } else {
            let bodiless =
                asked.head || matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
            let body = Some(body).filter(|body| !bodiless && !body.is_end_stream());
            let mut sending = Sending { body, encoder, trailers: asked.trailers, keep };
            if sending.body.is_none() && !bodiless && sending.encoder.end(&mut self.out, None).is_err() {
                sending.keep = false;
            }
            State::Sending(sending)
        };
    }

    /// Whether there is a rest of the request that nobody reads, and that has not come: nothing can follow it.
    fn is_given_up(&self, cx: &mut Context<'_>) -> bool {
        let mut link = self.link.borrow_mut();
        if link.is_broken() {
            return true;
        }
        if link.is_read() || Rc::strong_count(&self.link) > 1 {
            return false;
        }
        for _ in 0..SKIPPED {
            if link.skip() || !matches!(link.poll_fill(cx), Poll::Ready(Ok(1..))) {
                break;
            }
        }
        !link.skip()
    }

    /// Whether the client has left before its answer was there: asked where there is nothing to do but wait. Where another
    /// protocol was asked for, the end of one side has a meaning of its own.
    fn is_left(&mut self, cx: &mut Context<'_>) -> bool {
        let mut link = self.link.borrow_mut();
        // What comes behind the request waits for its turn, and is looked at no further.
        if self.upgrading.is_some() || !link.is_read() || !link.input.is_empty() {
            return false;
        }
        match link.poll_fill(cx) {
            Poll::Ready(Ok(0)) => {
                let patience = self.patience.get_or_insert_with(|| Box::pin(tokio::time::sleep(HALF_CLOSED)));
                patience.as_mut().poll(cx).is_ready()
            }
            Poll::Ready(Err(_)) => true,
            Poll::Ready(Ok(_)) | Poll::Pending => false,
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if self.out.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let mut link = self.link.borrow_mut();
        let written = ready!(link.poll_write(&mut self.out, cx));
        Poll::Ready(written.map_err(Error::from))
    }

    /// Whether more may come of a client to whom nothing is said any more.
    fn may_send(&self) -> bool {
        let link = self.link.borrow();
        self.refused || !link.is_read() || !link.input.is_empty()
    }

    /// The answer has gone out whole.
    fn next(&mut self, keep: bool) {
        let read = self.link.borrow_mut().skip();
        self.state = if keep && read && !self.closing { State::Head } else { State::Closing };
    }
}

impl Linger {
    /// Reads until the client has ended, or was read for long enough.
    fn poll(&mut self, link: &Shared, cx: &mut Context<'_>) -> Poll<()> {
        let mut link = link.borrow_mut();
        loop {
            link.input.clear();
            match link.poll_fill(cx) {
                Poll::Ready(Ok(count @ 1..)) if count < self.bytes => self.bytes -= count,
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return self.end.as_mut().poll(cx),
            }
        }
    }
}

impl Sending {
    /// Takes what there is of the body, as much as may wait. Whether there may be more.
    fn fill(&mut self, out: &mut Out, cx: &mut Context<'_>) -> Result<(), Error> {
        while let Some(body) = self.body.as_mut().filter(|_| out.len() < MAX_WAITING) {
            let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(cx) else { break };
            let trailers = match frame {
                Some(Err(error)) => return Err(Error::Sending(Box::new(error))),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        self.encoder.data(out, data)?;
                        if !body.is_end_stream() {
                            continue;
                        }
                        None
                    }
                    Err(frame) => frame.into_trailers().ok(),
                },
                None => None,
            };
            self.body = None;
            self.encoder.end(out, trailers.as_ref().filter(|_| self.trailers))?;
        }
        Ok(())
    }
}

impl<H, F> Future for Connection<H, F>
where
    H: Fn(Request<incoming::Incoming>) -> F + Unpin,
    F: Future<Output = Result<Response<Body>, Infallible>>,
{
    type Output = Result<(), Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        loop {
            match &mut this.state {
                State::Head => match ready!(this.poll_head(cx))? {
                    Some(head) => this.begin(head),
                    None => this.state = State::Closing,
                },
                State::Answering(answer, asked) => {
                    link::keep(&mut this.link.borrow_mut().owner, cx);
                    let answered = answer.as_mut().poll(cx);
                    // Before the answer, also where both come at once: the client may hold its body back until then.
                    if this.link.borrow_mut().wanted() && asked.version == Version::HTTP_11 {
                        this.out.push(Bytes::from_static(b"HTTP/1.1 100 Continue\r\n\r\n"));
                    }
                    let Poll::Ready(Ok(response)) = answered else {
                        if let Poll::Ready(written) = this.poll_write(cx) {
                            written?;
                        }
                        return if this.is_left(cx) { Poll::Ready(Err(Error::Left)) } else { Poll::Pending };
                    };
                    let State::Answering(_, asked) = std::mem::replace(&mut this.state, State::Closing)
                    else {
                        return Poll::Ready(Ok(()));
                    };
                    this.respond(response, &asked, cx);
                }
                State::Sending(sending) => {
                    if let Err(error) = sending.fill(&mut this.out, cx) {
                        // What waits still goes, if it can; the break shows in that the rest is missing.
                        let framed = sending.encoder.persists();
                        if framed && let Poll::Ready(Err(lost)) = this.poll_write(cx) {
                            return Poll::Ready(Err(lost));
                        }
                        return Poll::Ready(Err(error));
                    }
                    let (done, keep) = (sending.body.is_none(), sending.keep);
                    let full = this.out.len() >= MAX_WAITING;
                    if !this.out.is_empty() {
                        this.patience = None;
                    }
                    ready!(this.poll_write(cx))?;
                    match (done, full) {
                        (true, _) => this.next(keep),
                        (false, true) => {}
                        (false, false) if this.is_left(cx) => return Poll::Ready(Err(Error::Left)),
                        (false, false) => return Poll::Pending,
                    }
                }
                State::Upgrading => {
                    ready!(this.poll_write(cx))?;
                    let mut link = this.link.borrow_mut();
                    let ahead = std::mem::take(&mut link.input).freeze();
                    if let (Some(io), Some(upgrading)) = (link.io.take(), this.upgrading.take()) {
                        // Nobody wants it: it ends.
                        drop(upgrading.send(Rewind::new(ahead, io)));
                    }
                    return Poll::Ready(Ok(()));
                }
                State::Closing => {
                    ready!(this.poll_write(cx))?;
                    let mut link = this.link.borrow_mut();
                    ready!(Pin::new(link.io()?).poll_shutdown(cx))?;
                    drop(link);
                    if !this.may_send() {
                        return Poll::Ready(Ok(()));
                    }
                    this.state = State::Lingering(Linger {
                        end: Box::pin(tokio::time::sleep(LINGER)),
                        bytes: LINGER_BYTES,
                    });
                }
                State::Lingering(linger) => {
                    ready!(linger.poll(&this.link, cx));
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl<H, F> Drop for Connection<H, F> {
    fn drop(&mut self) {
        self.link.borrow_mut().close();
    }
}

/// Answers what is no request; nothing is read behind it.
fn refuse(out: &mut Out, error: &Error) {
    let status: &[u8] = match error {
        Error::LargeHead => b"431 Request Header Fields Too Large",
        _ => b"400 Bad Request",
    };
    out.with(|into| {
        into.extend_from_slice(b"HTTP/1.1 ");
        into.extend_from_slice(status);
        into.extend_from_slice(b"\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    });
}
