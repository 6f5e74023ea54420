//! Sending requests over a connection, one after the other.

use super::{
    Error, Incoming, MAX_WAITING,
    encode::{self, Encoder},
    link::{self, Link, Shared},
    out::Out,
    parse::{self, Partial, ResponseHead},
};
use crate::{
    codec::{Body, REST_WAIT, is_upgrade_of},
    io::{Rewind, Stream},
    timer::{Sleep, Timer},
};
use http::{Method, Request, Response, StatusCode};
use http_body::Body as _;
use std::{
    cell::Cell,
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

/// A server that never says 100 gets the body after so long (RFC 9110 10.1.1: a client does not wait for ever).
const CONTINUE_WAIT: Duration = Duration::from_secs(1);

/// A connection to a server, for one request at a time. Dropped, it ends.
pub(crate) struct Client {
    link: Shared,
    use_: Rc<Use>,
}

/// What the connection is used for.
#[derive(Default)]
struct Use {
    /// Nobody sends or reads; the server may only end it.
    rests: Cell<bool>,
    /// A body is still being sent, though its request is answered already.
    uploads: Cell<bool>,
    /// Nobody waits for that body: the connection ends with it.
    left: Cell<bool>,
    /// Of the task that sends it, which may be waiting for more of it.
    sender: Cell<Option<Waker>>,
    /// The server would take another request behind the answer.
    keeps: Cell<bool>,
}

/// Resolves when a connection is over: also when the server ends it while it rests. Dropped, the connection ends.
pub(crate) struct Watch {
    link: Shared,
    use_: Rc<Use>,
}

/// A request that was not answered.
pub(crate) struct SendError {
    pub(crate) error: Error,
    /// The request, if it has no body and nothing was heard of it.
    pub(crate) request: Option<Box<Request<Body>>>,
    /// Some of it may have reached the server.
    pub(crate) sent: bool,
}

impl Client {
    pub(crate) fn over(io: impl Stream + Send) -> (Self, Watch) {
        let (link, use_) = (Link::over(io), Rc::<Use>::default());
        (Self { link: link.clone(), use_: use_.clone() }, Watch { link, use_ })
    }

    /// A connection that nobody keeps.
    pub(crate) fn alone(io: impl Stream + Send) -> Self {
        Self { link: Link::over(io), use_: Rc::default() }
    }

    /// The answer was taken whole. What is left of its request still goes, and the connection ends then.
    pub(crate) fn leave(self) {
        if self.use_.uploads.get() {
            self.use_.left.set(true);
            if let Some(sender) = self.use_.sender.take() {
                sender.wake();
            }
        }
    }

    /// The stream behind an upgrade.
    pub(crate) fn into_stream(self) -> Option<Rewind<Box<dyn Stream + Send>>> {
        let mut link = self.link.borrow_mut();
        let ahead = std::mem::take(&mut link.input).freeze();
        link.io.take().map(|io| Rewind::new(ahead, io))
    }

    /// Rests from now on, if another request can follow; whether it can.
    pub(crate) fn rest(&self) -> bool {
        let mut link = self.link.borrow_mut();
        let reusable = link.io.is_some()
            && link.is_read()
            && link.input.is_empty()
            && self.use_.keeps.get()
            && !self.use_.uploads.get();
        if reusable {
            link.skip();
            self.use_.rests.set(true);
            if let Some(owner) = link.owner.take() {
                owner.wake();
            }
        }
        reusable
    }

    /// Rests no longer; false: the connection is over.
    pub(crate) fn rise(&self) -> bool {
        self.use_.rests.set(false);
        let mut link = self.link.borrow_mut();
        link.io.is_some() && link.poll_ended(&mut Context::from_waker(Waker::noop())).is_pending()
    }

    #[cfg(test)]
    pub(super) fn link(&self) -> Shared {
        self.link.clone()
    }

    pub(crate) fn is_open(&self) -> bool {
        self.link.borrow().io.is_some()
    }

    /// Sends a request. `waits`: its body only when the server asks for it. Another protocol is granted to those alone whose
    /// request asks for it.
    ///
    /// # Errors
    /// Why there is no answer.
    pub(crate) async fn send(
        &self,
        timer: &Timer,
        request: Box<Request<Body>>,
        waits: bool,
    ) -> Result<Response<Incoming>, SendError> {
        let (head, body) = request.into_parts();
        let mut out = Out::default();
        let encoder = encode::request(&mut out, &head, &body.size_hint());
        let bodiless = body.is_end_stream();
        let mut exchange = Exchange {
            client: self,
            upgrades: is_upgrade_of(head.version, &head.headers),
            method: head.method.clone(),
            partial: Partial::default(),
            patience: (waits && !bodiless).then(|| timer.sleep(CONTINUE_WAIT)),
            failed: None,
            upload: Upload {
                out,
                encoder,
                waits: waits && !bodiless,
                // Told at once that it is over.
                body: Some(body).filter(|_| !bodiless),
                done: false,
            },
        };
        if bodiless && exchange.upload.encoder.end(&mut exchange.upload.out, None).is_err() {
            return Err(SendError { error: Error::Length, request: None, sent: false });
        }
        let answered = poll_fn(|cx| exchange.poll(cx)).await;
        let Exchange { upload, failed, .. } = exchange;
        match answered {
            Ok(answer) => {
                self.use_.keeps.set(answer.keep && failed.is_none() && !upload.waits);
                if !upload.done && failed.is_none() && !upload.waits {
                    self.use_.uploads.set(true);
                    let rest = upload.rest(self.link.clone(), self.use_.clone(), timer.clone());
                    drop(tokio::task::spawn_local(rest));
                }
                let serial = self.link.borrow_mut().begin(answer.framing, false);
                Ok(answer.response.map(|()| Incoming::of(&self.link, serial)))
            }
            Err(error) => {
                let sent = upload.out.has_begun();
                // Not a byte of an answer: else the server has acted on it.
                let silent =
                    matches!(error, Error::Io(_) | Error::Unanswered) && self.link.borrow().input.is_empty();
                let request =
                    (bodiless && silent).then(|| Box::new(Request::from_parts(head, Body::empty())));
                Err(SendError { error, request, sent })
            }
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if !self.use_.left.get() {
            self.link.borrow_mut().close();
        }
    }
}

/// A request under way.
struct Exchange<'a> {
    client: &'a Client,
    /// The request asks for another protocol.
    upgrades: bool,
    method: Method,
    partial: Partial,
    patience: Option<Sleep>,
    /// Why no more of the request can be written. The server may have answered first.
    failed: Option<Error>,
    upload: Upload,
}

impl Exchange<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<ResponseHead, Error>> {
        loop {
            if let Some(patience) = self.patience.as_mut().filter(|_| self.upload.waits)
                && Pin::new(patience).poll(cx).is_ready()
            {
                self.upload.waits = false;
            }
            if !self.upload.done && self.failed.is_none() {
                match self.upload.poll(&self.client.link, cx) {
                    Poll::Ready(Err(error @ Error::Io(_))) => self.failed = Some(error),
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Ready(Ok(())) | Poll::Pending => {}
                }
            }
            let answer = match ready!(self.poll_head(cx)) {
                Ok(answer) => answer,
                Err(error) => return Poll::Ready(Err(self.failed.take().unwrap_or(error))),
            };
            match answer.response.status() {
                StatusCode::CONTINUE => self.upload.waits = false,
                StatusCode::SWITCHING_PROTOCOLS if self.upgrades => return Poll::Ready(Ok(answer)),
                // Nobody asked for it.
                StatusCode::SWITCHING_PROTOCOLS => return Poll::Ready(Err(Error::Head)),
                status if status.is_informational() => {}
                _ => return Poll::Ready(Ok(answer)),
            }
        }
    }

    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<ResponseHead, Error>> {
        let mut link = self.client.link.borrow_mut();
        loop {
            if !link.input.is_empty()
                && let Some(head) = parse::response(&mut link.input, &mut self.partial, &self.method)?
            {
                return Poll::Ready(Ok(head));
            }
            if ready!(link.poll_fill(cx))? == 0 {
                return Poll::Ready(Err(Error::Unanswered));
            }
        }
    }
}

/// A request on its way out.
struct Upload {
    out: Out,
    encoder: Encoder,
    /// `None`: all of it waits to be written.
    body: Option<Body>,
    waits: bool,
    done: bool,
}

impl Upload {
    fn poll(&mut self, link: &Shared, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        loop {
            self.fill(cx)?;
            let full = self.out.len() >= MAX_WAITING;
            if !self.out.is_empty() {
                ready!(link.borrow_mut().poll_write(&mut self.out, cx))?;
            }
            match self.body {
                None => {
                    self.done = true;
                    return Poll::Ready(Ok(()));
                }
                Some(_) if full => {}
                Some(_) => return Poll::Pending,
            }
        }
    }

    fn fill(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        let waits = self.waits;
        while let Some(body) = self.body.as_mut().filter(|_| !waits && self.out.len() < MAX_WAITING) {
            let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(cx) else { break };
            let trailers = match frame {
                Some(Err(error)) => return Err(Error::Sending(Box::new(error))),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        self.encoder.data(&mut self.out, data)?;
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
            self.encoder.end(&mut self.out, trailers.as_ref())?;
        }
        Ok(())
    }

    /// Sends what is left behind an answer that came first; for [`REST_WAIT`], when nobody keeps the connection. A body that
    /// breaks off breaks the connection off.
    async fn rest(mut self, link: Shared, use_: Rc<Use>, timer: Timer) {
        let mut patience: Option<Sleep> = None;
        let sent = poll_fn(|cx| {
            use_.sender.set(Some(cx.waker().clone()));
            if use_.left.get() {
                let patience = patience.get_or_insert_with(|| timer.sleep(REST_WAIT));
                if Pin::new(patience).poll(cx).is_ready() {
                    return Poll::Ready(Err(Error::Io(std::io::ErrorKind::TimedOut.into())));
                }
            }
            self.poll(&link, cx)
        });
        let sent = sent.await;
        use_.uploads.set(false);
        if let Err(error) = &sent {
            tracing::debug!(%error, "the rest of a request");
        }
        if sent.is_err() || use_.left.get() {
            link.borrow_mut().close();
        }
    }
}

impl Future for Watch {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut link = self.link.borrow_mut();
        if link.io.is_none() {
            return Poll::Ready(());
        }
        link::keep(&mut link.owner, cx);
        if self.use_.rests.get() {
            ready!(link.poll_ended(cx));
            link.close();
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.link.borrow_mut().close();
    }
}
